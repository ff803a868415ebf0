"""`recipes/dpo.py` as users start it: through `accelerate launch`, in one process and in two."""

import json
import random
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from preference_rows import streamed
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ext.demo import model_path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes/dpo.py"
LAUNCH = [
    str(Path(sys.executable).with_name("accelerate")),
    *["launch", "--quiet", "--config_file", str(ROOT / "accelerate_configs/cpu.yaml"), "--main_process_port", "0"],
]
SHORT = ["--max_train_samples", "64", "--max_eval_samples", "8", "--logging_steps", "1", "--max_steps", "2"]


def launch(*args, processes=1):
    command = [*LAUNCH, "--num_processes", str(processes), str(SCRIPT), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def assert_quiet(done):
    for noise in ("Warning", "warning", "deprecated", "Failed", "MatMul8bitLt", "The following values"):
        assert noise not in done.stdout + done.stderr


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def contents(folder):
    """The bytes of its files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def write_pairs(path, count=40):
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"Answer {i}.", "rejected": "No.", "weight": 1.0 + i % 3}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def user_loss(tmp_path_factory):
    """A loss of a user's own, in a file outside the repository."""
    path = tmp_path_factory.mktemp("elsewhere") / "my_loss.py"
    path.write_text(
        "from torch.nn.functional import logsigmoid\n"
        "def weighted(batch, *, beta, power=1.0):\n"
        "    logits = beta * (batch.chosen_logratios - batch.rejected_logratios)\n"
        "    return -logsigmoid(logits) * batch.extras['weight'] ** power\n"
    )
    return path


def test_embedded_default_leaves_everything_behind_and_is_quiet(tmp_path):
    done = launch(*SHORT, "--output_dir", tmp_path / "run")
    folder = tmp_path / "run"
    results = json.loads((folder / "all_results.json").read_text())
    assert results["eval_rewards/accuracies_before"] == 0.5
    for metric in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"):
        assert metric in results and f"{metric}_before" in results
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    card = (folder / "README.md").read_text()
    assert "rlhf_ext" in card and "| reward accuracy (chance: 0.5) | 0.500 |" in card
    assert "None" not in card
    for file in ("model.safetensors", "tokenizer.json", "trainer_state.json"):
        assert (folder / file).is_file()
    assert "reward accuracy" in done.stdout and str(folder) in done.stdout
    assert "of the embedded model on 64 rows of the embedded demo; 8 rows are held out." in done.stdout
    assert "step     2  loss" in done.stdout + done.stderr
    assert_quiet(done)


def test_loss_of_an_installed_package_on_an_8_bit_base(tmp_path):
    """The package is found by its entry point; what is saved is an adapter that peft loads without us."""
    site = tmp_path / "site"
    metadata = site / "their_losses-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-losses\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rlhf_ext.dpo_loss]\ntheir_loss = their_losses:squared\n")
    (site / "their_losses.py").write_text(
        "def squared(batch, *, beta, target=1.0):\n"
        "    return (beta * (batch.chosen_logratios - batch.rejected_logratios) - target) ** 2\n"
    )
    options = ["--loss_type", "their_loss", "--loss_kwargs", '{"target": 2.0}', "--load_in_8bit", "--use_peft"]
    environment = {"PYTHONPATH": str(site)}
    done = forked.run(SCRIPT, *SHORT, *options, "--output_dir", tmp_path / "run", environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_quiet(done)
    adapter, whole = 3 * 2 * 16 * (192 + 192), 1_721_664  # r=16 on two layers of each of three blocks
    assert f"Training {adapter:,} of {whole + adapter:,} parameters" in done.stdout
    # All rewards are 0 in the first step, but for the rounding of 8-bit products, which differs with gradients on.
    assert history(tmp_path / "run")[1]["loss"] == pytest.approx(4.0, abs=0.02)
    base = AutoModelForCausalLM.from_pretrained(model_path())
    adapted = PeftModel.from_pretrained(base, tmp_path / "run")
    assert any("lora_B" in name and weight.any() for name, weight in adapted.named_parameters())


def test_adapter_that_was_trained_with_dropout_is_trained_on_without(tmp_path):
    """As recipes/sft.py leaves one, with TRL's default of 0.05."""
    lora = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.05, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_path()), lora).save_pretrained(tmp_path / "sft")
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(tmp_path / "sft")
    options = ["--model_name_or_path", tmp_path / "sft", "--use_peft", "--bf16", "false", "--save_strategy", "no"]
    options += ["--max_length", "256", "--output_dir", tmp_path / "run"]
    done = forked.run(SCRIPT, *SHORT, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/adapter_config.json").read_text())["lora_dropout"] == 0


def test_two_processes_equal_one_on_the_same_global_batch(tmp_path, user_loss):
    """With an adapter, a loss of one's own, and an extra column, which must stay with its row."""
    data = write_pairs(tmp_path / "pairs.jsonl")
    options = ["--dataset_name", data, "--loss_type", f"{user_loss}:weighted", "--loss_kwargs", '{"power": 0.5}']
    options += ["--extra_columns", "weight", "--eval_fraction", "0.2", "--max_steps", "3", "--logging_steps", "1"]
    options += ["--use_peft", "--learning_rate", "8e-4", "--bf16", "false"]
    for processes in (1, 2):
        per_device = ["--per_device_train_batch_size", 8 // processes, "--per_device_eval_batch_size", 8 // processes]
        arguments = [*options, *per_device, "--output_dir", tmp_path / str(processes)]
        if processes == 1:
            forked.run_together(1, SCRIPT, *arguments)
        else:
            launch(*arguments, processes=2)
    one, two = (history(tmp_path / str(processes)) for processes in (1, 2))
    compared = {"loss", "grad_norm", "rewards/margins", "logps/chosen", "eval_loss", "eval_rewards/margins"}
    assert sum("loss" in entry for entry in one) == 3
    for entry, other in zip(one, two, strict=True):
        for metric in entry.keys() & compared:
            assert entry[metric] == pytest.approx(other[metric], rel=1e-3, abs=1e-4), metric


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--use_peft", "--lora_dropout", "0.1"], "error: --lora_dropout 0.1 has no effect with --disable_dropout"),
        (["--dataset_name", "{data}"], "error: {data}, row 2, column 'rejected': 'chosen' and 'rejected' are equal."),
        (["--config", "{config}"], "error: --config: there is no option 'lerning_rate'. Did you mean 'learning_rate'?"),
    ],
)
def test_bad_input_is_one_line_before_the_model_loads(options, expected, tmp_path):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    places = {"data": tmp_path / "pairs.jsonl", "config": tmp_path / "config.yaml"}
    places["data"].write_text("\n".join(map(json.dumps, rows)))
    places["config"].write_text("lerning_rate: 1")
    options = [option.format(**places) for option in options]
    done = forked.run(SCRIPT, "--model_name_or_path", "/no/such/model", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(expected.format(**places))
    assert "Traceback" not in done.stderr


def test_streamed_pairs_with_the_defaults_of_the_demo(tmp_path):
    options = [*streamed(tmp_path / "data", write_pairs), "--max_steps", "2"]
    done = forked.run(SCRIPT, *options, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/all_results.json").read_text())["eval_rewards/margins"] != 0


def test_killed_run_keeps_its_checkpoints_and_ends_as_if_nothing_had_happened(tmp_path):
    """Killed at any moment, perhaps while saving: what was complete stays as it was, and the run goes on from there."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    options = [*SHORT, "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "1", "--output_dir"]
    assert forked.run(SCRIPT, *options, whole).returncode == 0
    saved, delay = folder / "checkpoint-2/trainer_state.json", random.uniform(0, 0.3)
    forked.kill_after(saved, SCRIPT, *options, folder, delay=delay)
    assert not (folder / "all_results.json").exists()
    before = contents(folder / "checkpoint-1")
    refused = forked.run(SCRIPT, *options, folder)
    assert refused.returncode == 1 and "holds another run (checkpoint-1)" in refused.stderr
    assert forked.run(SCRIPT, *options, folder, "--resume_from_checkpoint", "true").returncode == 0
    assert contents(folder / "checkpoint-1") == before
    assert json.loads((folder / "all_results.json").read_text())["eval_rewards/accuracies_before"] == 0.5
    assert [entry["step"] for entry in history(folder) if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    resumed, uninterrupted = (contents(path / "checkpoint-6") for path in (folder, whole))
    for file in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        assert resumed[file] == uninterrupted[file], file
