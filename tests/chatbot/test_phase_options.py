"""Options of all phases of a chatbot run, refused before the first one starts."""

import pytest
from accelerate import PartialState

from rlhf_ext.arguments import ArgumentError
from rlhf_ext.chatbot.phase_options import check_options
from rlhf_ext.chatbot.phases import ChatbotArguments, phases


def check(**settings):
    args = ChatbotArguments(output_dir="runs/chatbot", **settings)
    check_options(phases(args, has_chat_template=True), args.config_files)


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("sft_config", "learning_rat: 1", "there is no option 'learning_rat'. Did you mean 'learning_rate'?"),
        ("sft_config", "learning_rate: fast", "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        ("reward_config", "loss_type: no_such_loss", ".*no_such_loss"),
        ("policy_config", "kl_estimator: k4", "kl_estimator: 'k4' is none of k1, k2, k3"),
        (
            "policy_config",
            "num_iterations: 3\nsteps_per_generation: 2\ngradient_accumulation_steps: 4",
            ".*num_iterations",
        ),
    ],
)
def test_values_that_a_recipe_refuses(option, content, message, tmp_path):
    path = tmp_path / "phase.yaml"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=f"{path}: {message}"):
        check(**{option: str(path)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ppo_epochs": 0}, "phase ppo: .*num_iterations"),
        ({"max_eval_samples": 0}, "phase reward-evaluation: --max_samples 0 must be at least 1"),
    ],
)
def test_options_of_the_command_that_a_recipe_refuses(settings, message):
    with pytest.raises(ArgumentError, match=message):
        check(**settings)


@pytest.mark.parametrize("algorithm", ["ppo", "dpo"])
def test_dropout_that_a_phase_would_take_away(algorithm, tmp_path):
    path = tmp_path / "phase.yaml"
    path.write_text("use_peft: true\nlora_dropout: 0.1")
    with pytest.raises(ArgumentError, match=f"{path}: --lora_dropout 0.1 has no effect with --disable_dropout true"):
        check(algorithm=algorithm, policy_config=str(path))
    path.write_text("use_peft: true\nlora_dropout: 0.1\ndisable_dropout: false")
    check(algorithm=algorithm, policy_config=str(path))


def test_configuration_with_data_is_the_one_that_is_named(tmp_path):
    """The one of its phase is not written yet."""
    path = tmp_path / "phase.yaml"
    path.write_text("eval_fraction: some")
    data = dict.fromkeys(("sft_dataset", "preference_dataset", "prompt_dataset"), "rows.jsonl")
    with pytest.raises(ArgumentError, match=f"{path}: argument --eval_fraction/.*: invalid float value: 'some'"):
        check(**data, sft_config=str(path))


def test_all_processes_count_and_none_waits_for_the_others(tmp_path, monkeypatch, capsys):
    path = tmp_path / "phase.yaml"
    path.write_text("num_generations: 8\nper_device_train_batch_size: 2\nsteps_per_generation: 1\n")
    path.write_text(path.read_text() + "num_iterations: 1\nper_device_eval_batch_size: 2\nbf16: false\n")
    with pytest.raises(ArgumentError, match=r"8"):
        check(policy_config=str(path))
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(PartialState, "_shared_state", {})
    check(policy_config=str(path))
    assert not PartialState._shared_state and capsys.readouterr().out == ""
