"""Train `recipes/reward.py` on human preferences with several losses and seeds, and print the table of docs/results.md.

    python benchmarks/reward_human_preferences.py --model PATH --data FOLDER --preferences truthfulqa

`FOLDER` holds `pref_NAME.jsonl` to train on and `eval_NAME.jsonl`, held out, rows of {prompt, chosen, rejected} text,
and perhaps `rated_NAME.jsonl` with ratings. Without `eval_NAME.jsonl` every fifth prompt is held out. Every model is
also tested on the files of `--also`. A run whose results are there already is not repeated.

`--fold` leaves `eval_NAME.jsonl` alone and holds out a fifth of the dialogues in `pref_NAME.jsonl`: with 0 to 4 every
pair has been held out once. The first row is the floor, a logistic regression on the words of the answers.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bag_of_words import bag_of_words
from dpo_human_preferences import ALLOCATOR, DTYPE_HELP, PARALLEL_HELP, TARGETS_HELP, format_pair, write_formatted

from rlhf_ext import RewardModel
from rlhf_ext.evaluation.calibration import calibration
from rlhf_ext.evaluation.reward import accuracy, spearman
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
    prompts = [row["prompt"] if fold is None else row["prompt"].split("\n\nAssistant:")[0] for row in rows]
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    files = []
    for name, held_out in (("train", False), ("held_out", True)):
        parts = [number[prompt] % 5 == (4 if fold is None else fold) for prompt in prompts]
        files.append(folder / f"{name}_{source.name}")
        write_jsonl(files[-1], [row for row, part in zip(rows, parts, strict=True) if part == held_out])
    return files[0], files[1]


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


def train(arguments: argparse.Namespace, loss: str, seed: int) -> Path:
    """Run the recipe unless it has been run before; return its folder."""
    folder = arguments.output / f"{arguments.preferences}-{loss.replace(' ', '-')}-{seed}"
    if not (folder / "all_results.json").is_file():
        kind = "margin" if loss == "strength as margin" else "pref"
        options = {
            "model_name_or_path": arguments.model,
            "dataset_name": arguments.output / f"{kind}_{arguments.preferences}.jsonl",
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
            "output_dir": folder,
        }
        command = [sys.executable, str(RECIPE), *LOSSES[loss]]
        if arguments.adapter:
            command += ["--load_in_8bit", "--use_peft", "--dtype", arguments.dtype]
            command += ["--lora_r", str(arguments.lora_r), "--lora_target_modules", *arguments.lora_target_modules]
        command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        subprocess.run(command, check=True, env={**os.environ, **ALLOCATOR}, stdout=subprocess.DEVNULL)
    return folder


def evaluate(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return the held-out measures of a trained model, computed once."""
    path = folder / "held_out.json"
    if path.is_file():
        return json.loads(path.read_text())
    model = RewardModel.from_pretrained(str(folder), max_length=512)  # some prompts are longer than those of training
    measures = {"minutes": json.loads((folder / "all_results.json").read_text())["train_runtime"] / 60}
    for name in (arguments.preferences, *arguments.also):
        is_own = name == arguments.preferences
        rows = read(arguments.held_out if is_own else arguments.data / f"eval_{name}.jsonl")
        rows = keep_last_turns(rows, arguments.last_turns)
        pairs = [format_pair(row) for row in evaluated(rows, arguments.max_eval_samples)]
        scores = [model.score([(pair["prompt"], pair[side]) for pair in pairs]) for side in ("chosen", "rejected")]
        differences = [chosen - rejected for chosen, rejected in zip(*scores, strict=True)]
        measures[name] = accuracy(differences, [pair["prompt"] for pair in pairs]).value
        if is_own:
            measures["ece"] = calibration(differences, model.temperature).error
    rated = arguments.data / f"rated_{arguments.preferences}.jsonl"
    if rated.is_file():
        rows = read(rated)
        rows = rows[:: max(1, len(rows) // arguments.max_eval_samples)]
        pairs = [format_pair({**row, "chosen": row["response"], "rejected": ""}) for row in rows]
        scores = model.score([(pair["prompt"], pair["chosen"]) for pair in pairs])
        measures["spearman"] = spearman(scores, [row["rating"] for row in rows])
    path.write_text(json.dumps(measures))
    return measures


def main() -> None:
    """Train and evaluate every loss with every seed; print one row a loss: mean over seeds (lowest to highest)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preferences", required=True)
    parser.add_argument("--losses", nargs="+", default=["bradley_terry", "margin", "smoothing 0.1"], choices=LOSSES)
    parser.add_argument("--adapter", action="store_true", help="LoRA r=16 over 8 bit instead of full fine-tuning")
    parser.add_argument("--also", nargs="*", default=["hhh_alignment", "llmfao_crowd"])
    parser.add_argument("--fold", type=int, choices=range(5), help="hold out this fifth of the dialogues to train on")
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
    for name in ("fold", "last_turns"):  # other rows, so other runs
        value = getattr(arguments, name)
        arguments.output /= "" if value is None else f"{name}-{value}"
    arguments.output.mkdir(parents=True, exist_ok=True)
    source = arguments.data / f"pref_{arguments.preferences}.jsonl"
    arguments.held_out = arguments.data / f"eval_{arguments.preferences}.jsonl"
    if arguments.fold is not None or not arguments.held_out.is_file():
        source, arguments.held_out = split_by_prompt(source, arguments.output, arguments.fold)
    train_rows, held_out = (keep_last_turns(read(path), arguments.last_turns) for path in (source, arguments.held_out))
    floor = bag_of_words(train_rows, evaluated(held_out, arguments.max_eval_samples))
    source = arguments.output / f"train_{arguments.preferences}.jsonl"
    write_jsonl(source, train_rows)
    write_formatted(source, arguments.output / f"pref_{arguments.preferences}.jsonl")
    if "strength as margin" in arguments.losses:
        write_with_margin(source, arguments.output / f"margin_{arguments.preferences}.jsonl")
    columns = None
    for loss in arguments.losses:
        with ThreadPoolExecutor(arguments.parallel) as pool:
            folders = list(pool.map(lambda seed, loss=loss: train(arguments, loss, seed), range(arguments.seeds)))
        runs = [evaluate(arguments, folder) for folder in folders]
        if columns is None:
            columns = list(runs[0])
            print(f"| trained on | loss | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
            shown = [f"{floor:.3f}" if column == arguments.preferences else "" for column in columns]
            print(f"| {arguments.preferences} | bag of words | {' | '.join(shown)} |", flush=True)
        cells = [[run[column] for run in runs] for column in columns]
        shown = [f"{statistics.mean(cell):.3f} ({min(cell):.3f} to {max(cell):.3f})" for cell in cells]
        print(f"| {arguments.preferences} | {loss} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
