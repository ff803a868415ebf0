"""The phases of the chatbot recipe, its report, and the command `rlhf-ext chat`, without training."""

import pytest

from rlhf_ext.arguments import ArgumentError
from rlhf_ext.chatbot.phases import ChatbotArguments, phases
from rlhf_ext.chatbot.report import outcome_table

DATA = {"sft_dataset": "a.jsonl", "preference_dataset": "b.jsonl", "prompt_dataset": "c.jsonl"}


def options_of(name, configs=None, **settings):
    found = phases(ChatbotArguments(output_dir="runs/chatbot", **settings), has_chat_template=True, configs=configs)
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
    found = phases(ChatbotArguments(algorithm=algorithm, output_dir="runs/chatbot"), has_chat_template=True)
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
    found = phases(ChatbotArguments(model_name="gpt2", output_dir="runs/chatbot"), has_chat_template=False)
    for phase in found[:2]:
        template = phase.options[phase.options.index("--chat_template_path") + 1]
        assert template.endswith("plain_chat.jinja")


def test_data_reach_their_phases():
    for phase, settings in (("sft", {}), ("reward", {}), ("ppo", {}), ("dpo", {"algorithm": "dpo"})):
        rows = f"--dataset_name runs/chatbot/data/{phase}-train.jsonl --eval_dataset_name "
        assert f"{rows}runs/chatbot/data/{phase}-eval.jsonl" in options_of(phase, **settings, **DATA)
        assert "--dataset_name" not in options_of(phase, **settings)
    assert "--dataset_name c.jsonl" in options_of("evaluation", **DATA)
    assert "--dataset_name d.jsonl" in options_of("evaluation", **DATA, eval_prompt_dataset="d.jsonl")


def test_configuration_files_reach_their_phases():
    files = {"sft_config": "a.yaml", "reward_config": "b.yaml", "policy_config": "c.yaml"}
    for phase, name in (("sft", "a"), ("reward", "b"), ("ppo", "c")):
        assert f"--config {name}.yaml" in options_of(phase, **files)
        assert f"--config runs/chatbot/data/{phase}.yaml" in options_of(phase, **files, **DATA)  # without the data
    assert "configs/ppo_chatbot_demo.yaml" in options_of("ppo") and "--config" not in options_of("ppo", model_name="m")
    chosen = options_of("sft", use_peft=True, configs={"sft": {"lora_target_modules": ["q_proj"]}})
    assert "--use_peft" in chosen and "all-linear" not in chosen


def test_configuration_of_a_phase_has_the_last_word_on_its_batch_size():
    """Memory may run out in one phase when another is finished."""
    configs = {"ppo": {"per_device_train_batch_size": 1}}
    assert "--per_device_train_batch_size" not in options_of("ppo", batch_size=4, configs=configs)
    assert "--per_device_train_batch_size 4" in options_of("sft", batch_size=4, configs=configs)


def test_evaluations_of_the_phases_are_limited_unless_something_nearer_says():
    limit = {"max_eval_samples": 5}
    for phase, settings in (("sft", {}), ("reward", {}), ("ppo", {}), ("dpo", {"algorithm": "dpo"})):
        of_a_named_model = settings | {"model_name": "m"}
        assert "--max_eval_samples 5" in options_of(phase, **limit, **of_a_named_model)
        assert "--max_eval" not in options_of(phase, **of_a_named_model)
        assert "--max_eval" not in options_of(phase, {phase: {"max_eval_samples": 7}}, **limit, **of_a_named_model)
        assert "--max_eval" not in options_of(phase, **limit, **settings)  # the demo's own numbers
        assert "--max_eval" not in options_of(phase, **limit, **settings, **DATA)  # the file has no more rows
    assert "--max_eval_samples 5" in options_of("ppo", {"ppo": {}}, policy_config="c.yaml", **limit)
    for phase in ("reward-evaluation", "evaluation"):
        assert "--max_samples 5" in options_of(phase, **limit)


def test_phases_depend_on_the_limit_of_their_evaluations_where_it_reaches_them():
    def depending(configs=None, **settings):
        args = ChatbotArguments(output_dir="runs/chatbot", **settings)
        found = phases(args, has_chat_template=True, configs=configs)
        return [phase.name for phase in found if phase.trains and "max_eval_samples" in phase.settings]

    own, nearer = {"max_eval_samples": 7}, {"model_name": "m"}
    assert depending(**DATA) == depending(**nearer) == ["sft", "reward", "ppo"]
    assert depending(algorithm="dpo", **DATA) == ["sft", "reward", "dpo"]
    assert depending({"ppo": own, "sft": own}, **DATA) == ["reward", "ppo"]  # which is scored by the reward model
    assert depending({"reward": own, "dpo": own, "sft": own}, algorithm="dpo", **DATA) == []
    assert depending() == [] and depending(policy_config="c.yaml") == ["ppo"]


@pytest.mark.parametrize("algorithm", ["ppo", "dpo", "best_of_n"])
def test_every_setting_belongs_to_the_phases_that_depend_on_it(algorithm):
    args = ChatbotArguments(algorithm=algorithm, output_dir="runs/chatbot")
    found = {phase.name: {*phase.settings} for phase in phases(args, has_chat_template=True)}
    assert found["evaluation"] >= args.settings().keys() | set().union(*found.values())
    assert "policy_config" not in found["sft"] | found["reward"] and "sft_config" not in found["reward"]
    if algorithm != "best_of_n":
        assert found[algorithm] > found["sft"] and "policy_config" in found[algorithm]
        assert ("reward_config" in found[algorithm]) == (algorithm == "ppo")


def test_quantized_policies_are_evaluated_quantized():
    assert "--load_in_4bit" in options_of("evaluation", use_peft=True, load_in_4bit=True)
    assert "--load_in" not in options_of("evaluation")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "dpo", "ppo_epochs": 4}, "--ppo_epochs has no effect with --algorithm dpo"),
        ({"algorithm": "best_of_n", "policy_config": "x.yaml"}, "--policy_config has no effect"),
        ({"load_in_8bit": True}, "add --use_peft"),
        ({"load_in_8bit": True, "load_in_4bit": True, "use_peft": True}, "exclude each other"),
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
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "sft.yaml"):
        (tmp_path / name).write_text("seed: 1")
    named = {key: str(tmp_path / value) for key, value in DATA.items()} | {"sft_config": str(tmp_path / "sft.yaml")}
    args = ChatbotArguments(**named)
    before = args.settings()
    assert args.settings() == before and "output_dir" not in before
    for name, option in (("a.jsonl", "sft_dataset"), ("sft.yaml", "sft_config")):
        (tmp_path / name).write_text("seed: 2")  # of the same length
        after = args.settings()
        assert [key for key in after if after[key] != before[key]] == [f"contents of {option}"]
        before = after


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
