"""`recipes/chatbot_rlhf.py` as users start it, with short phases; killed once, then talked to."""

import json
import time

import forked
import pytest
from safetensors.torch import load_file

from rlhf_ext import cli
from rlhf_ext.demo import model_path

ROOT = forked.ROOT
SCRIPT = ROOT / "recipes/chatbot_rlhf.py"
TRAINING = "max_steps: 4\nmax_train_samples: 64\nmax_eval_samples: 8\nbf16: false\ngradient_checkpointing: false\n"
TRAINING += "per_device_train_batch_size: 4\n"
CONFIGS = {
    "sft": TRAINING,
    "reward": TRAINING,
    "policy": TRAINING + "max_completion_length: 8\nsteps_per_generation: 1\nnum_iterations: 1\n",
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    options = ["--max_eval_samples", 16]
    for phase, lines in CONFIGS.items():
        (folder / f"{phase}.yaml").write_text(lines)
        options += [f"--{phase}_config", folder / f"{phase}.yaml"]
    return options


def run(*command):
    done = forked.run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_killed_in_the_policy_phase_it_goes_on_and_can_be_talked_to(configs, tmp_path, capsys):
    folder = tmp_path / "run"
    process = forked.start(SCRIPT, *configs, "--output_dir", folder)
    deadline = time.monotonic() + 200
    while not (folder / "ppo/checkpoint-2/trainer_state.json").is_file():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()

    done = run(SCRIPT, *configs, "--output_dir", folder)
    for line in ("Phase 1 of 5, sft: finished before.", "Phase 3 of 5, ppo: accelerate launch recipes/ppo.py"):
        assert line in done.stdout
    for label in (
        "helpfulness, 1 to 5",
        "safety, 1 to 5",
        "win rate",
        "clip fraction",
        "KL per answer",
    ):
        assert label in done.stdout
    results = json.loads((folder / "all_results.json").read_text())
    assert {"eval_helpfulness_before", "eval_safety", "eval_win_rate", "seconds_ppo"} <= results.keys()
    page = (folder / "report.html").read_text()
    assert "accelerate launch recipes/sft.py" in page and "base: " in page
    assert all((folder / phase / "report.html").is_file() for phase in ("sft", "reward", "ppo", "evaluation"))
    assert all((folder / f"ppo/checkpoint-{step}").is_dir() for step in (3, 4))  # the last two

    phases = json.loads((folder / "pipeline.json").read_text())["phases"]
    alone = phases["ppo"]["command"].replace(f"{folder}/ppo", f"{tmp_path}/alone").split()
    run(ROOT / alone[0], *alone[1:])
    whole, resumed = (load_file(path / "model.safetensors") for path in (tmp_path / "alone", folder / "ppo"))
    assert all((whole[name] == resumed[name]).all() for name in whole)

    assert cli.main(["chat", str(folder), "How do I grow mint?", "/new", "--max_new_tokens", "8"]) == 0
    shown = capsys.readouterr().out
    assert "How do I grow mint?" in shown and "base, score" in shown and "trained, score" in shown
    assert cli.main(["chat", str(tmp_path)]) == 1
    assert "holds no run of recipes/chatbot_rlhf.py" in capsys.readouterr().err


def test_adapters_of_one_8_bit_base_from_demonstrations_to_dpo(configs, tmp_path):
    configs = [*configs[:-1], configs[3]]  # what fits SFT fits DPO, too
    quantized = ["--use_peft", "--load_in_8bit", "--model_name", model_path()]
    run(SCRIPT, *configs, "--algorithm", "dpo", *quantized, "--output_dir", tmp_path / "run")
    weights = {}
    for phase in ("sft", "reward", "dpo"):
        folder = tmp_path / "run" / phase
        assert not (folder / "model.safetensors").exists()
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == model_path()
        weights[phase] = load_file(folder / "adapter_model.safetensors")
    assert weights["dpo"].keys() == weights["sft"].keys()  # the same adapter, trained on
    assert any((weights["dpo"][name] != weights["sft"][name]).any() for name in weights["dpo"])
    results = json.loads((tmp_path / "run/dpo/all_results.json").read_text())
    assert results["eval_rewards/accuracies_before"] == 0.5  # the reference is the adapter as it was


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithm", "dpo", "--ppo_epochs", "4"], "error: --ppo_epochs has no effect with --algorithm dpo"),
        (["--model_name", "/no/such/model"], "error: --model_name /no/such/model: its tokenizer cannot be loaded"),
        (["--algorithm", "sarsa"], "error: argument --algorithm: invalid choice: 'sarsa'"),
    ],
)
def test_bad_options_are_one_line_before_anything_runs(options, message, tmp_path):
    done = forked.run(SCRIPT, *options, "--output_dir", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()
