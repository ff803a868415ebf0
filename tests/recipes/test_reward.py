"""`recipes/reward.py` in one process and in two."""

import json
import random

import forked
import pytest
from preference_rows import streamed
from transformers import AutoModelForSequenceClassification

SCRIPT = forked.ROOT / "recipes/reward.py"


def launch(*args, processes=1, renders=False):
    return forked.run_together(processes, SCRIPT, *args, renders=renders)[0]


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def write_pairs(path, count=40):
    rows = [
        {"prompt": f"Question {i}?", "chosen": f" Answer {i}.", "rejected": " No." * (1 + i % 3), "margin": i % 3}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_embedded_default_leaves_everything_behind_and_is_quiet(tmp_path):
    short = ["--max_train_samples", "64", "--max_eval_samples", "16", "--logging_steps", "1", "--max_steps", "2"]
    folder = tmp_path / "run"
    done = launch(*short, "--output_dir", folder, renders=True)
    results = json.loads((folder / "all_results.json").read_text())
    settings = json.loads((folder / "reward_model.json").read_text())
    for metric in ("eval_loss", "eval_accuracy", "eval_margin"):
        assert metric in results and f"{metric}_before" in results
    assert results["eval_score_offset"] == settings["score_offset"] != 0
    assert results["eval_temperature"] == settings["temperature"] != 1
    assert settings["max_length"] == 256 and settings["quantization"] is None
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "| accuracy |" in (folder / "README.md").read_text()
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1
    assert "accuracy" in done.stdout and str(folder) in done.stdout
    for noise in ("Warning", "warning", "deprecated", "[transformers]", "The following values"):
        assert noise not in done.stdout + done.stderr


def test_two_processes_equal_one_on_the_same_global_batch_and_calibrate_alike(tmp_path):
    """With a margin column, which must stay with its row; the held-out rows do not divide evenly among processes."""
    data = write_pairs(tmp_path / "pairs.jsonl")
    options = ["--dataset_name", data, "--eval_fraction", "0.225", "--max_steps", "3", "--logging_steps", "1"]
    options += ["--head_dropout", "0", "--bf16", "false"]
    for processes in (1, 2):
        per_device = ["--per_device_train_batch_size", 8 // processes, "--per_device_eval_batch_size", 8 // processes]
        launch(*options, *per_device, "--output_dir", tmp_path / str(processes), processes=processes)
    one, two = (history(tmp_path / str(processes)) for processes in (1, 2))
    for metric in ("loss", "grad_norm"):
        first, second = ([entry[metric] for entry in entries if metric in entry] for entries in (one, two))
        assert len(first) == 3 and first == pytest.approx(second, rel=1e-3, abs=1e-4)
    first, second = (json.loads((tmp_path / name / "reward_model.json").read_text()) for name in ("1", "2"))
    # After three steps the weights differ by rounding; a row counted twice would move both by several per cent.
    for key in ("score_offset", "temperature"):
        assert first[key] == pytest.approx(second[key], rel=5e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max_length", "3"], "error: {data}: every pair is longer than max_length=3 tokens. Raise --max_length to"),
        (["--loss_type", "magin"], "error: Unknown preference_loss 'magin'. Did you mean 'margin'?"),
        (
            ["--loss_type", "bradley_terry", "--extra_columns", "margin"],
            "error: The column 'margin': no loss in loss_type",
        ),
        (["--extra_columns", "weight"], "error: The column 'weight': no loss in loss_type computes with extras"),
    ],
)
def test_bad_input_is_one_line_before_the_model_loads(options, expected, tmp_path):
    data = write_pairs(tmp_path / "pairs.jsonl")
    done = forked.run(SCRIPT, "--dataset_name", data, *options, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(expected.format(data=data))
    assert "Traceback" not in done.stderr and "Loading weights" not in done.stderr


def test_streamed_pairs_with_the_defaults_of_the_demo(tmp_path):
    options = [*streamed(tmp_path / "data", write_pairs), "--max_steps", "2"]
    done = forked.run(SCRIPT, *options, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/reward_model.json").is_file()


def test_killed_run_ends_as_if_nothing_had_happened(tmp_path):
    """SIGKILL at a random moment, an adapter with its head; the scores' offset and temperature are the same, too."""
    options = ["--max_train_samples", "64", "--max_eval_samples", "16", "--max_steps", "6"]
    options += ["--use_peft", "--lora_r", "4", "--per_device_train_batch_size", "4"]
    options += ["--lora_target_modules", "all-linear", "--save_strategy", "steps", "--save_steps", "1", "--output_dir"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert forked.run(SCRIPT, *options, whole).returncode == 0
    saved, delay = killed / "checkpoint-2/trainer_state.json", random.uniform(0, 0.3)
    forked.kill_after(saved, SCRIPT, *options, killed, delay=delay)
    assert not (killed / "all_results.json").exists()
    assert forked.run(SCRIPT, *options, killed, "--resume_from_checkpoint", "true").returncode == 0
    for file in ("adapter_model.safetensors", "reward_model.json", "checkpoint-6/optimizer.pt"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
