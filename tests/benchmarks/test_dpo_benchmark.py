"""The DPO benchmark evaluates as many pairs as it says, in full batches, and reports all of its seeds."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest


@pytest.fixture
def benchmark(monkeypatch, tmp_path, model_name):
    """The benchmark with a recipe that only writes results, its data, and the options that name both."""
    import dpo_human_preferences

    commands = []

    def run(command, **options):
        commands.append(command)
        said = dict(pairwise(command))
        rows = Path(said["--eval_dataset_name"]).read_text(encoding="utf-8").split("\n")
        accuracy = 0.6 + 0.1 * int(said["--seed"])
        results = {"eval_rewards/accuracies": accuracy, "eval_rewards/accuracies_before": 0.5, "train_runtime": 60.0}
        results |= {"eval_rewards/margins": 1.0, "eval_runtime": 2.0, "eval_samples_per_second": len(rows) / 2}
        folder = Path(said["--output_dir"])
        folder.mkdir(parents=True)
        (folder / "all_results.json").write_text(json.dumps(results))

    monkeypatch.setattr(dpo_human_preferences.subprocess, "run", run)
    rows = [{"prompt": f"{i}", "chosen": "yes", "rejected": "no"} for i in range(30)]
    rows += [{"prompt": "word " * 200, "chosen": "yes", "rejected": "no"}] * 10  # TRL would drop these
    for part in ("pref", "eval"):
        (tmp_path / f"{part}_some.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["--model", model_name, "--data", tmp_path, "--preferences", "some", "--output", tmp_path / "runs"]

    def main(*args):
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, [*options, *args])])
        dpo_human_preferences.main()
        return commands

    return main


def test_number_of_pairs_is_that_of_full_batches_that_are_evaluated(benchmark, capsys):
    benchmark("--max_length", 64, "--losses", "cdpo", "--seeds", 3)
    row = capsys.readouterr().out.splitlines()[-1]
    # 30 prompts fit, which is three full batches; 1.96 * sqrt(0.7 * 0.3 / 24) = 0.183
    assert row == (
        "| some | cdpo | 3 | 24 | 0.500 | 0.700 (0.600 to 0.800) | ± 0.183 | 1.000 (1.000 to 1.000) "
        "| 1.000 (1.000 to 1.000) |"
    )


def test_all_losses_and_seeds_are_evaluated_on_the_same_pairs_once(benchmark, tmp_path):
    commands = benchmark("--max_eval_samples", 17, "--losses", "sigmoid", "simpo", "--seeds", 2)
    assert len(commands) == 4
    assert len((tmp_path / "runs/eval_some.jsonl").read_text().split("\n")) == 16
    assert len(benchmark("--max_eval_samples", 17, "--losses", "sigmoid", "simpo", "--seeds", 2)) == 4
    with pytest.raises(SystemExit, match="evaluated 16 pairs instead of 8: remove it"):
        benchmark("--max_eval_samples", 8, "--losses", "simpo", "--seeds", 2)
