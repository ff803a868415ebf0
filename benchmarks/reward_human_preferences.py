"""Train `recipes/reward.py` on human preferences with several losses and seeds, and print the table of docs/results.md.

    python benchmarks/reward_human_preferences.py --model PATH --data FOLDER --preferences truthfulqa

`FOLDER` holds `pref_NAME.jsonl` to train on and `eval_NAME.jsonl`, held out, rows of {prompt, chosen, rejected} text,
and perhaps `rated_NAME.jsonl` with ratings. Without `eval_NAME.jsonl` every fifth prompt is held out. Every model is
also tested on the files of `--also`. A run whose results are there already is not repeated.
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

from dpo_human_preferences import ALLOCATOR, DTYPE_HELP, PARALLEL_HELP, TARGETS_HELP, format_pair, write_formatted

from rlhf_ext import RewardModel
from rlhf_ext.evaluation.calibration import calibration
from rlhf_ext.evaluation.reward import accuracy, spearman

RECIPE = Path(__file__).parents[1] / "recipes" / "reward.py"
LOSSES = {
    "bradley_terry": ["--loss_type", "bradley_terry"],
    "margin": ["--loss_type", "margin"],  # the default, 0.1
    "margin 1.0": ["--loss_type", "margin", "--loss_kwargs", '{"margin": 1.0}'],
    "smoothing 0.1": ["--loss_type", "bradley_terry", "--loss_kwargs", '{"label_smoothing": 0.1}'],
    "strength as margin": ["--loss_type", "margin", "--loss_kwargs", '{"margin": 0.0}', "--extra_columns", "margin"],
}
LONGEST_PROMPT = 1200  # characters, so that every prompt fits the 512 tokens of MiniLM; longer ones are left out


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def split_by_prompt(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write all rows of every fifth prompt into one file, those of the others into another; return both."""
    rows = read(source)
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(row["prompt"] for row in rows))}
    files = []
    for name, held_out in (("train", False), ("held_out", True)):
        kept = [json.dumps(row) for row in rows if (number[row["prompt"]] % 5 == 4) == held_out]
        files.append(folder / f"{name}_{source.name}")
        files[-1].write_text("\n".join(kept), encoding="utf-8")
    return files[0], files[1]


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
        pairs = [format_pair(row) for row in rows if len(row["prompt"]) <= LONGEST_PROMPT]
        pairs = pairs[:: max(1, len(pairs) // arguments.max_eval_samples)]
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
    arguments.output.mkdir(parents=True, exist_ok=True)
    source = arguments.data / f"pref_{arguments.preferences}.jsonl"
    arguments.held_out = arguments.data / f"eval_{arguments.preferences}.jsonl"
    if not arguments.held_out.is_file():
        source, arguments.held_out = split_by_prompt(source, arguments.output)
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
        cells = [[run[column] for run in runs] for column in columns]
        shown = [f"{statistics.mean(cell):.3f} ({min(cell):.3f} to {max(cell):.3f})" for cell in cells]
        print(f"| {arguments.preferences} | {loss} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
