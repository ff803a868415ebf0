"""`recipes/ppo.py` as users start it: the embedded default, one backbone, a kill at any moment."""

import json
import random
import shutil
from pathlib import Path

import forked
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ext.demo.reward import demo_reward_model
from rlhf_ext.reward_model.settings import RewardModelSettings

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes/ppo.py"
SHORT = ["--max_eval_samples", "4", "--max_completion_length", "8", "--logging_steps", "1", "--disable_tqdm", "true"]
SHORT += ["--per_device_train_batch_size", "4", "--steps_per_generation", "1", "--num_iterations", "2"]


def run(*args, ok=True, renders=False):
    done = forked.run(SCRIPT, *SHORT, *args, renders=renders, timeout=280)
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def rewards(tmp_path_factory, model_name, tokenizer):
    """An untrained reward model, full and as an adapter."""
    folder = tmp_path_factory.mktemp("rewards")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder / "full")
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    for kind in ("full", "adapter"):
        tokenizer.save_pretrained(folder / kind)
        RewardModelSettings(score_offset=0.25, dtype="float32").save(folder / kind)
    return folder


def test_embedded_default_leaves_everything_behind(tmp_path, rewards):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "reward_model").symlink_to(rewards / "full")  # in place of training one
    done = run("--output_dir", folder, "--max_steps", "4", renders=True)
    results = json.loads((folder / "all_results.json").read_text())
    for metric in ("reward", "kl/k1", "gold/helpfulness", "gold/safety", "entropy"):
        assert f"eval_{metric}" in results and f"eval_{metric}_before" in results
    assert results["eval_kl/k1_before"] == pytest.approx(0, abs=1e-4)
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    for file in ("model.safetensors", "tokenizer.json", "critic/critic.safetensors", "README.md"):
        assert (folder / file).is_file()
    assert "KL per answer" in done.stdout and str(folder) in done.stdout
    for noise in ("Warning", "warning", "deprecated"):
        assert noise not in done.stdout + done.stderr


def test_reward_function_from_a_file_sees_the_columns_of_its_rows(tmp_path, rewards, model_name):
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {n}.", "wanted": {n}}}\n' for n in range(12)))
    (tmp_path / "mine.py").write_text(
        "def wanted(completions, wanted, **kwargs):\n    return [100.0 + n for n in wanted]"
    )
    scored = ["--reward_model", rewards / "full", "--reward_funcs", tmp_path / "mine.py:wanted"]
    options = ["--dataset_name", tmp_path / "prompts.jsonl", "--model_name_or_path", model_name, "--bf16", "false"]
    run(*options, *scored, "--reward_weights", "0", "1", "--max_steps", "2", "--output_dir", tmp_path / "run")
    results = json.loads((tmp_path / "run/all_results.json").read_text())
    assert 100 <= results["eval_reward"] <= 112 and results["eval_reward"] == results["eval_rewards/wanted/mean"]


def test_reward_model_of_the_demo_is_trained_once(tmp_path):
    text = ([{"role": "user", "content": "How do I grow mint?"}], "Give it water and some shade.")
    first = demo_reward_model(tmp_path / "reward", seed=0, pairs=16).score(text)
    assert demo_reward_model(tmp_path / "reward", seed=1).score(text) == first


def test_one_8_bit_backbone(tmp_path, rewards, model_name):
    options = ["--load_in_8bit", "--use_peft", "--lora_target_modules", "all-linear", "--critic", "adapter"]
    options += ["--reward_adapter", rewards / "adapter", "--critic_path", rewards / "adapter", "--max_steps", "2"]
    run(*options, "--output_dir", tmp_path / "run")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_name), tmp_path / "run")
    assert any("lora_B" in name and weight.any() for name, weight in adapted.named_parameters())


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_run_killed_at_any_moment_goes_on_bit_for_bit(tuning, tmp_path, rewards):
    """SIGKILL after a random time; resumed from the last complete checkpoint it ends as if nothing had happened."""
    options = ["--reward_model", rewards / "full", "--max_steps", "16", "--save_strategy", "steps", "--save_steps", "1"]
    options += ["--scale_scores", "true", "--kl_target", "0.1", "--kl_horizon", "50"]
    files = ["critic/critic.safetensors", "checkpoint-16/critic/critic.safetensors"]
    if tuning == "lora":
        options += ["--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear", "--critic", "adapter"]
        files += ["adapter_model.safetensors", "critic/adapter_model.safetensors"]
    else:
        files += ["model.safetensors"]
    run(*options, "--output_dir", tmp_path / "whole")
    saved, delay = tmp_path / "killed/checkpoint-2/trainer_state.json", random.uniform(0, 0.6)
    forked.kill_after(saved, SCRIPT, *SHORT, *options, "--output_dir", tmp_path / "killed", delay=delay)
    assert not (tmp_path / "killed/all_results.json").exists()
    run(*options, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "true")
    for file in files:
        whole, resumed = (load_file(tmp_path / kind / file) for kind in ("whole", "killed"))
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    whole, resumed = ((tmp_path / kind / "critic/ppo_state.json").read_text() for kind in ("whole", "killed"))
    assert whole == resumed
    steps = sorted(int(path.name.rpartition("-")[2]) for path in (tmp_path / "whole").glob("checkpoint-*"))
    assert steps == list(range(2, 17, 2))  # between batches of completions only


def test_two_processes_of_the_configuration_for_several_gpus(tmp_path, rewards):
    """On the CPU; the metrics are those of the global batch."""
    environment = forked.launched_environment("multi_gpu.yaml") | {"CUDA_VISIBLE_DEVICES": ""}
    options = [
        "--per_device_train_batch_size",
        "2",
        "--per_device_eval_batch_size",
        "2",
        "--reward_model",
        rewards / "full",
        "--output_dir",
        tmp_path,
    ]
    options += ["--max_steps", "2", "--missing_eos_penalty", "1", "--save_strategy", "steps", "--save_steps", "2"]
    forked.run_together(2, SCRIPT, *SHORT, *options, environment=environment, timeout=280)
    assert {path.name for path in (tmp_path / "checkpoint-2").glob("rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    first, second = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"][:2]
    assert first["ratio"] == 1.0 != second["ratio"]
    assert first["reward"] - first["score"] == pytest.approx(first["completions/clipped_ratio"], abs=1e-5)
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["eval_kl/k1_before"] == pytest.approx(0, abs=1e-4) and "eval_gold/safety" in results
    assert load_file(tmp_path / "critic/critic.safetensors")["weight"].any()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (3, [], "error: The dataset has 2 prompts, and one batch of completions needs 4: give it more"),
        (12, ["--max_completion_length", "510"], "error: {data}, column 'prompt': 'Say 0.'... has "),
        (12, ["--reward_model", "{short}"], "and short takes 4 with the completion. Shorten or remove"),
        (12, ["--critic", "adapter"], "error: critic='adapter' needs a LoRA policy"),
    ],
)
def test_what_the_trainer_refuses_is_one_line_before_anything_trains(rows, options, message, tmp_path, rewards):
    shutil.copytree(rewards / "full", tmp_path / "short")
    RewardModelSettings(dtype="float32", max_length=4).save(tmp_path / "short")
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(f'{{"prompt": "Say {n}."}}\n' for n in range(rows)))
    options = [
        option.format(short=tmp_path / "short") for option in ["--reward_model", str(rewards / "full"), *options]
    ]
    done = run("--dataset_name", data, *options, "--output_dir", tmp_path / "run", ok=False)
    assert message.format(data=data) in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr and not (tmp_path / "run/all_results.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset_name", "{data}", "--reward_model", "x"], "error: {data}, row 2, column 'prompt': it is missing"),
        (["--dataset_name", "{data}"], "error: there is nothing to score completions with: name a --reward_model"),
        (
            ["--dataset_name", "{data}", "--reward_funcs", "{data}.py:strict"],
            "error: reward '{data}.py:strict' has the signature (completions), but is called as fn(*, prompts,",
        ),
        (["--scale_rewards", "group"], "error: scale_rewards='group' has no effect"),
    ],
)
def test_bad_input_is_one_line_before_the_model_loads(options, message, tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "a"}\n{"question": "b"}')
    Path(f"{data}.py").write_text("def strict(completions):\n    return [0.0] * len(completions)")
    options = [option.format(data=data) for option in options]
    done = run(*options, "--output_dir", tmp_path / "run", "--model_name_or_path", "/no/such/model", ok=False)
    assert done.stderr.strip().splitlines()[-1].startswith(message.format(data=data))
    assert "Traceback" not in done.stderr
