"""Train `recipes/reward.py` on human preferences with several losses and seeds, and print the table of docs/results.md.

    python benchmarks/reward_human_preferences.py --model PATH --data FOLDER --preferences truthfulqa

`FOLDER` holds `pref_NAME.jsonl` to train on and `eval_NAME.jsonl`, held out, rows of {prompt, chosen, rejected} text,
and perhaps `rated_NAME.jsonl` with ratings. Without `eval_NAME.jsonl` every fifth prompt is held out. Every model is
also tested on the files of `--also`. A run with the same options whose results are there is not repeated.

`--folds` leaves `eval_NAME.jsonl` alone and holds out a fifth of the dialogues in `pref_NAME.jsonl`, one after the
other: with 0 1 2 3 4 every pair is held out once, and the measures are those of all. Prompts that are too long, and
what a fold has beyond `--max_eval_samples`, are left out. The floor is a logistic regression on the words of the
answers, trained on all rows. "Above the floor", and above the first loss: how much more accurate the mean score of all
seeds is on the same pairs, with its 95% interval and the p-value of a permutation of signs, both by dialogues.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bag_of_words import bag_of_words
from dpo_human_preferences import ALLOCATOR, DTYPE_HELP, PARALLEL_HELP, TARGETS_HELP, format_pair, write_formatted

from rlhf_ext import RewardModel
from rlhf_ext.evaluation.calibration import calibration
from rlhf_ext.evaluation.report import show, show_p
from rlhf_ext.evaluation.reward import accuracy, compare, spearman
from rlhf_ext.output_files import write_jsonl

RECIPE = Path(__file__).parents[1] / "recipes" / "reward.py"
LOSSES = {
    "bradley_terry": ["--loss_type", "bradley_terry"],
    "margin": ["--loss_type", "margin"],  # the default, 0.1
    "margin 1.0": ["--loss_type", "margin", "--loss_kwargs", '{"margin": 1.0}'],
    "smoothing 0.1": ["--loss_type", "bradley_terry", "--loss_kwargs", '{"label_smoothing": 0.1}'],
    "strength as margin": ["--loss_type", "margin", "--loss_kwargs", '{"margin": 0.0}', "--extra_columns", "margin"],
}
HUMAN = "\n\nHuman:"  # begins a turn of a dialogue
LONGEST_PROMPT = 1200  # characters, so that every prompt fits the 512 tokens of MiniLM; longer ones are left out


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def split_by_prompt(source: Path, folder: Path, fold: int | None = None) -> tuple[Path, Path]:
    """Write all rows of every fifth prompt into one file, those of the others into another; return both.

    With a fold, rows that begin with the same turn count as one prompt.
    """
    rows = read(source)
    prompts = [row["prompt"] if fold is None else first_turn(row) for row in rows]
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    files = []
    for name, held_out in (("train", False), ("held_out", True)):
        parts = [number[prompt] % 5 == (4 if fold is None else fold) for prompt in prompts]
        files.append(folder / f"{name}_{source.name}")
        write_jsonl(files[-1], [row for row, part in zip(rows, parts, strict=True) if part == held_out])
    return files[0], files[1]


def first_turn(row: dict[str, Any]) -> str:
    """Return what a prompt begins with: the whole of it, where it is no dialogue."""
    return row["prompt"].split("\n\nAssistant:")[0]


def keep_last_turns(rows: list[dict[str, Any]], turns: int | None) -> list[dict[str, Any]]:
    """Return the rows with the last turns only of prompts that are dialogues."""
    if turns is None:
        return rows
    said = [row["prompt"].split(HUMAN)[1:] for row in rows]
    return [
        row | {"prompt": HUMAN + HUMAN.join(parts[-turns:])} if len(parts) > turns else row
        for row, parts in zip(rows, said, strict=True)
    ]


def evaluated(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return the rows whose prompts are short enough, evenly thinned out to about as many as there may be."""
    kept = [row for row in rows if len(row["prompt"]) <= LONGEST_PROMPT]
    return kept[:: max(1, len(kept) // most)]


def write_with_margin(source: Path, target: Path) -> None:
    """Write pairs with their strength, divided by its mean, as margin."""
    rows = read(source)
    mean = statistics.mean(row["strength"] for row in rows)
    pairs = [format_pair(row) | {"margin": row["strength"] / mean} for row in rows]
    kept = [json.dumps(pair) for pair in pairs if pair["chosen"] != pair["rejected"]]
    target.write_text("\n".join(kept), encoding="utf-8")


@dataclass(frozen=True)
class Split:
    """Pairs to train on and pairs that are held out.

    Attributes:
        folder: Where the files for the recipe are, `pref_NAME.jsonl` and perhaps `margin_NAME.jsonl`, and its runs.
        held_out: Rows.
        floor: The bag of words' score differences on them.
    """

    folder: Path
    held_out: list[dict[str, Any]]
    floor: list[float]


def prepare(arguments: argparse.Namespace, fold: int | None) -> Split:
    """Write the files that the recipe trains on, and compute the floor."""
    folder = arguments.output
    for name, value in (("fold", fold), ("last_turns", arguments.last_turns)):  # other rows, so other runs
        folder /= "" if value is None else f"{name}-{value}"
    folder.mkdir(parents=True, exist_ok=True)
    source = arguments.data / f"pref_{arguments.preferences}.jsonl"
    held_out = arguments.data / f"eval_{arguments.preferences}.jsonl"
    if fold is not None or not held_out.is_file():
        source, held_out = split_by_prompt(source, folder, fold)
    train_rows, rows = (
        keep_last_turns([row | {"dialogue": first_turn(row)} for row in read(path)], arguments.last_turns)
        for path in (source, held_out)
    )
    rows = evaluated(rows, arguments.max_eval_samples)
    source = folder / f"train_{arguments.preferences}.jsonl"
    write_jsonl(source, train_rows)
    write_formatted(source, folder / f"pref_{arguments.preferences}.jsonl")
    if "strength as margin" in arguments.losses:
        write_with_margin(source, folder / f"margin_{arguments.preferences}.jsonl")
    return Split(folder, rows, bag_of_words(train_rows, rows))


def train(arguments: argparse.Namespace, split: Split, loss: str, seed: int) -> Path:
    """Run the recipe unless it has been run before with the same options; return its folder."""
    kind = "margin" if loss == "strength as margin" else "pref"
    options = {
        "model_name_or_path": arguments.model,
        "dataset_name": split.folder / f"{kind}_{arguments.preferences}.jsonl",
        "max_train_samples": arguments.max_train_samples,
        "max_eval_samples": 200,  # a part of the training file held out: offset and temperature are fitted on it
        "max_length": arguments.max_length,
        "num_train_epochs": arguments.num_train_epochs,
        "learning_rate": arguments.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "bf16": str(not arguments.adapter).lower(),  # over an 8-bit base weights are of --dtype already
        "gradient_checkpointing": "false",
        "train_sampling_strategy": arguments.train_sampling_strategy,
        "save_strategy": "no",
        "seed": seed,
    }
    command = [sys.executable, str(RECIPE), *LOSSES[loss]]
    if arguments.adapter:
        command += ["--load_in_8bit", "--use_peft", "--dtype", arguments.dtype]
        command += ["--lora_r", str(arguments.lora_r), "--lora_target_modules", *arguments.lora_target_modules]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    folder = split.folder / f"{arguments.preferences}-{loss.replace(' ', '-')}-{seed}-{fingerprint(command)}"
    if not (folder / "all_results.json").is_file():
        command += ["--output_dir", str(folder)]
        subprocess.run(command, check=True, env={**os.environ, **ALLOCATOR}, stdout=subprocess.DEVNULL)
    return folder


def fingerprint(*values: Any) -> str:
    """Return a name for values, which others do not share."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


def differences_of(model: RewardModel, rows: list[dict[str, Any]]) -> list[float]:
    """Return the score differences of pairs, chosen minus rejected."""
    pairs = [format_pair(row) for row in rows]
    scores = [model.score([(pair["prompt"], pair[side]) for pair in pairs]) for side in ("chosen", "rejected")]
    return [chosen - rejected for chosen, rejected in zip(*scores, strict=True)]


def evaluate(arguments: argparse.Namespace, split: Split, folder: Path) -> dict[str, Any]:
    """Return the held-out measures of a trained model and its score differences, computed once."""
    path = folder / f"evaluation-{fingerprint(split.held_out, arguments.also, arguments.max_eval_samples)}.json"
    if path.is_file():
        return json.loads(path.read_text())
    model = RewardModel.from_pretrained(str(folder), max_length=512)  # some prompts are longer than those of training
    differences = differences_of(model, split.held_out)
    measures: dict[str, Any] = {"differences": differences, "ece": calibration(differences, model.temperature).error}
    measures["minutes"] = json.loads((folder / "all_results.json").read_text())["train_runtime"] / 60
    for name in arguments.also:
        rows = keep_last_turns(read(arguments.data / f"eval_{name}.jsonl"), arguments.last_turns)
        rows = evaluated(rows, arguments.max_eval_samples)
        measures[name] = accuracy(differences_of(model, rows), [row["prompt"] for row in rows]).value
    rated = arguments.data / f"rated_{arguments.preferences}.jsonl"
    if rated.is_file():
        rows = read(rated)
        rows = rows[:: max(1, len(rows) // arguments.max_eval_samples)]
        pairs = [format_pair({**row, "chosen": row["response"], "rejected": ""}) for row in rows]
        scores = model.score([(pair["prompt"], pair["chosen"]) for pair in pairs])
        measures["spearman"] = spearman(scores, [row["rating"] for row in rows])
    path.write_text(json.dumps(measures))
    return measures


def of_all_splits(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the measures of one seed: accuracy over all held-out pairs, means of what each split has one of."""
    differences = [difference for run in runs for difference in run["differences"]]
    means = {name: statistics.mean(run[name] for run in runs) for name in runs[0] if name != "differences"}
    return {"differences": differences, "accuracy": accuracy(differences).value} | means


def above(others: Sequence[float], differences: Sequence[float], dialogues: Sequence[str]) -> str:
    """Say how much more accurate score differences are than others on the same pairs."""
    against = compare(differences, others, dialogues)
    return f"{show(against.accuracy_difference)}, {show_p(against.sign_flip_p)}"


def main() -> None:
    """Train and evaluate every loss with every seed; print one row a loss: mean over seeds (lowest to highest)."""
    arguments = parse_arguments()
    splits = [prepare(arguments, fold) for fold in arguments.folds]
    floor = [difference for split in splits for difference in split.floor]
    dialogues = [row["dialogue"] for split in splits for row in split.held_out]
    print(f"Bag of words: {accuracy(floor).value:.3f} of {len(floor)} held-out pairs.\n")
    columns, first = None, None
    for loss in arguments.losses:
        jobs = [(split, seed) for seed in range(arguments.seeds) for split in splits]
        with ThreadPoolExecutor(arguments.parallel) as pool:
            folders = list(pool.map(lambda job, loss=loss: train(arguments, job[0], loss, job[1]), jobs))
        runs = [evaluate(arguments, split, folder) for (split, _), folder in zip(jobs, folders, strict=True)]
        runs = [of_all_splits(runs[start : start + len(splits)]) for start in range(0, len(runs), len(splits))]
        differences = np.mean([run.pop("differences") for run in runs], axis=0)
        if columns is None:
            columns, first = list(runs[0]), differences
            names = ["trained on", "loss", *columns, "mean score", "above the floor", f"above {loss}"]
            print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
        cells = [[run[column] for run in runs] for column in columns]
        shown = [f"{statistics.mean(cell):.3f} ({min(cell):.3f} to {max(cell):.3f})" for cell in cells]
        shown += [f"{accuracy(differences).value:.3f}"]
        shown.append(above(floor, differences, dialogues))
        shown.append("" if differences is first else above(first, differences, dialogues))
        print(f"| {arguments.preferences} | {loss} | {' | '.join(shown)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preferences", required=True)
    parser.add_argument("--losses", nargs="+", default=["bradley_terry", "margin", "smoothing 0.1"], choices=LOSSES)
    parser.add_argument("--adapter", action="store_true", help="LoRA r=16 over 8 bit instead of full fine-tuning")
    parser.add_argument("--also", nargs="*", default=["hhh_alignment", "llmfao_crowd"])
    parser.add_argument(
        "--folds", type=int, nargs="+", choices=range(5), default=[None], help="fifths of the dialogues to hold out"
    )
    parser.add_argument("--last_turns", type=int, help="of the human, that a prompt keeps; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--max_eval_samples", type=int, default=400)
    parser.add_argument("--num_train_epochs", type=float, default=1)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--train_sampling_strategy", default="random", help="group_by_length saves a third of the time")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", help=f"with --adapter: {DTYPE_HELP}")
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_target_modules", nargs="+", default=["all-linear"], help=TARGETS_HELP)
    parser.add_argument("--parallel", type=int, default=1, help=PARALLEL_HELP)
    parser.add_argument("--output", type=Path, default=Path("runs/reward_human_preferences"))
    arguments = parser.parse_args()
    if arguments.last_turns is not None and arguments.last_turns < 1:
        parser.error("--last_turns must be at least 1.")
    if len(set(arguments.folds)) < len(arguments.folds):
        parser.error("--folds names one twice.")
    return arguments


if __name__ == "__main__":
    main()
