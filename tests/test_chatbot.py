"""The phases of the chatbot recipe, its report, and the command `rlhf-ext chat`, without training."""

import pytest

from rlhf_ext.arguments import ArgumentError
from rlhf_ext.chatbot import ChatbotArguments, phases
from rlhf_ext.chatbot_report import at_the_end, outcome_table

DATA = {"sft_dataset": "a.jsonl", "preference_dataset": "b.jsonl", "prompt_dataset": "c.jsonl"}


def options_of(name, **settings):
    found = phases(ChatbotArguments(**settings), has_chat_template=True)
    return " ".join(next(phase.options for phase in found if phase.name == name))


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [
        ("ppo", ["sft", "reward", "ppo", "reward-evaluation", "evaluation"]),
        ("dpo", ["sft", "reward", "dpo", "reward-evaluation", "evaluation"]),
        ("best_of_n", ["sft", "reward", "reward-evaluation", "evaluation"]),
    ],
)
def test_phases_of_each_algorithm(algorithm, names):
    found = phases(ChatbotArguments(algorithm=algorithm), has_chat_template=True)
    assert [phase.name for phase in found] == names
    assert [phase.trains for phase in found] == ["evaluation" not in name for name in names]


def test_flags_of_the_guide_reach_their_phases():
    settings = {"model_name": "gpt2", "algorithm": "ppo", "batch_size": 4, "ppo_epochs": 3}
    for phase in ("sft", "reward", "ppo"):
        assert "--per_device_train_batch_size 4" in options_of(phase, **settings)
    assert "--model_name_or_path gpt2" in options_of("reward", **settings)
    assert "--num_iterations 3" in options_of("ppo", **settings)
    assert "--num_iterations" not in options_of("reward", **settings)


def test_policy_starts_from_the_demonstrations_and_is_compared_with_the_base():
    for algorithm in ("ppo", "dpo"):
        assert "--model_name_or_path runs/chatbot/sft" in options_of(algorithm, algorithm=algorithm, model_name="m")
        evaluation = options_of("evaluation", algorithm=algorithm, model_name="m")
        assert f"--policy runs/chatbot/{algorithm} --other_policy m --judge gold" in evaluation
    assert "--judge runs/chatbot/reward" in options_of("evaluation", **DATA)
    assert "--best_of 8 --best_of_model runs/chatbot/reward" in options_of("evaluation", algorithm="best_of_n")


def test_with_lora_everything_is_an_adapter_of_one_base():
    options = options_of("ppo", model_name="m", use_peft=True, load_in_8bit=True)
    assert "--reward_adapter runs/chatbot/reward --critic adapter --critic_path runs/chatbot/reward" in options
    assert "--use_peft --lora_target_modules all-linear --load_in_8bit" in options
    assert "--reward_model runs/chatbot/reward" in options_of("ppo", model_name="m")


def test_model_without_a_chat_template_gets_a_plain_one():
    found = phases(ChatbotArguments(model_name="gpt2"), has_chat_template=False)
    for phase in found[:2]:
        template = phase.options[phase.options.index("--chat_template_path") + 1]
        assert template.endswith("plain_chat.jinja")


def test_data_reach_their_phases():
    assert "--dataset_name a.jsonl" in options_of("sft", **DATA)
    assert "--dataset_name b.jsonl" in options_of("reward", **DATA)
    assert "--dataset_name b.jsonl" in options_of("dpo", algorithm="dpo", **DATA)
    assert "--dataset_name c.jsonl" in options_of("ppo", **DATA)
    assert "--dataset_name c.jsonl" in options_of("evaluation", **DATA)
    assert "--dataset_name d.jsonl" in options_of("evaluation", **DATA, eval_prompt_dataset="d.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "dpo", "ppo_epochs": 4}, "--ppo_epochs has no effect with --algorithm dpo"),
        ({"algorithm": "best_of_n", "policy_config": "x.yaml"}, "--policy_config has no effect"),
        ({"load_in_8bit": True}, "add --use_peft"),
        ({"sft_dataset": "a.jsonl"}, "name all three or none"),
        ({"eval_prompt_dataset": "a.jsonl"}, "--eval_prompt_dataset has no effect"),
        ({"algorithm": "best_of_n", "best_of": 1}, "at least 2 answers"),
        ({"best_of": 4}, "--best_of has no effect with --algorithm ppo"),
    ],
)
def test_options_without_effect_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        ChatbotArguments(**settings)


def test_a_local_file_that_changes_makes_another_run(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("{}")
    args = ChatbotArguments(**{key: str(tmp_path / value) for key, value in DATA.items()})
    before = args.settings()
    (tmp_path / "a.jsonl").write_text('{"more": 1}')
    assert args.settings() != before
    assert "output_dir" not in before


def test_metrics_at_the_end_are_means_over_the_last_quarter():
    history = [{"kl": float(n)} for n in range(8)] + [{"train_runtime": 3.0}]
    assert at_the_end(history, "kl") == 6.5
    assert at_the_end(history, "loss") is None
    assert at_the_end([{"kl": 2.0}], "kl") == 2.0


def test_change_is_shown_in_percent_of_the_base():
    metrics = {"eval_win_rate": 0.75, "eval_win_rate_low": 0.7, "eval_win_rate_high": 0.8, "eval_reward": None}
    for name, before, after in (("helpfulness", 2.0, 3.8), ("safety", 2.5, 4.0)):
        metrics |= {f"eval_other_{name}": before, f"eval_{name}": after}
    table = outcome_table(metrics)
    assert table.rows == [
        ("helpfulness, 1 to 5", "2.000", "3.800", "+90%"),
        ("safety, 1 to 5", "2.500", "4.000", "+60%"),
        ("win rate against the base", "", "0.750 (0.700 to 0.800)", ""),
    ]
