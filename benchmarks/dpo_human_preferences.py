"""Train `recipes/dpo.py` on human preferences with several losses, and print the table of docs/results.md.

    python benchmarks/dpo_human_preferences.py --model PATH --data FOLDER --preferences truthfulqa --max_steps 100

`FOLDER` holds `pref_NAME.jsonl` to train on and `eval_NAME.jsonl`, held out, to evaluate on: rows of {prompt, chosen,
rejected} text. LoRA r=16 over an 8-bit base. A run whose results are there already is not repeated.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

# The average log-ratio is about as many times smaller than the sum as a completion has tokens; beta makes up for it.
LOSSES = {
    "sigmoid": ["--beta", "0.1"],
    "average_logp": ["--beta", "2"],
    "cdpo": ["--beta", "0.1", "--loss_kwargs", '{"label_smoothing": 0.1}'],
    "simpo": ["--beta", "2", "--loss_kwargs", '{"gamma": 0.5}'],
}
RECIPE = Path(__file__).parents[1] / "recipes" / "dpo.py"
# glibc returns every large block to the system and gets it back page by page; with a vocabulary of 262,144 tokens that
# took two thirds of a step. These settings keep the blocks.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30), "MALLOC_TOP_PAD_": str(2**28)}


def format_pair(row: dict) -> dict:
    """Write a plain question as a dialogue, and begin completions with a space, so that no token spans the border."""
    prompt = row["prompt"] if row["prompt"].endswith("Assistant:") else f"Question: {row['prompt']}\nAnswer:"
    return {"prompt": prompt, "chosen": " " + row["chosen"].strip(), "rejected": " " + row["rejected"].strip()}


def write_formatted(source: Path, target: Path, max_characters: float = math.inf) -> None:
    """Convert a file, leaving out pairs with a longer text and the few that differ in nothing but white space."""
    pairs = [format_pair(json.loads(line)) for line in source.read_text(encoding="utf-8").split("\n") if line]
    pairs = [pair for pair in pairs if sum(map(len, pair.values())) - _shorter(pair) <= max_characters]
    kept = [json.dumps(pair) for pair in pairs if pair["chosen"] != pair["rejected"]]
    target.write_text("\n".join(kept), encoding="utf-8")


def _shorter(pair: dict) -> int:
    return min(len(pair["chosen"]), len(pair["rejected"]))


def run(arguments: argparse.Namespace, loss: str) -> dict:
    """Run the recipe with one loss and return its results."""
    folder = arguments.output / f"{arguments.preferences}-{loss}"
    if not (folder / "all_results.json").is_file():
        files = {part: arguments.output / f"{part}_{arguments.preferences}.jsonl" for part in ("pref", "eval")}
        options = {
            "model_name_or_path": arguments.model,
            "dataset_name": files["pref"],
            "eval_dataset_name": files["eval"],
            "max_eval_samples": arguments.max_eval_samples,
            "max_steps": arguments.max_steps,
            "max_length": arguments.max_length,
            "lora_target_modules": "all-linear",
            "learning_rate": 2e-4,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "dtype": "bfloat16",
            "bf16": "false",  # weights and activations are bfloat16 already; autocast would only cost time
            "gradient_checkpointing": "false",
            "logging_steps": 5,
            "save_strategy": "no",
            "loss_type": loss,
            "output_dir": folder,
        }
        command = [sys.executable, str(RECIPE), "--load_in_8bit", "--use_peft", *LOSSES[loss]]
        command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        subprocess.run(command, check=True, env={**os.environ, **ALLOCATOR})
    return json.loads((folder / "all_results.json").read_text())


def main() -> None:
    """Parse the arguments, run every loss and print one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preferences", required=True)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--max_characters", type=float, default=math.inf, help="of prompt and completion together")
    parser.add_argument("--max_eval_samples", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("runs/dpo_human_preferences"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part in ("pref", "eval"):
        name = f"{part}_{arguments.preferences}.jsonl"
        write_formatted(arguments.data / name, arguments.output / name, arguments.max_characters)
    print("| trained on | loss | held-out accuracy before | after (95% interval) | margin before | after | minutes |")
    print("|---|---|---|---|---|---|---|")
    for loss in arguments.losses:
        results = run(arguments, loss)
        accuracy, margin = results["eval_rewards/accuracies"], results["eval_rewards/margins"]
        interval = 1.96 * math.sqrt(accuracy * (1 - accuracy) / arguments.max_eval_samples)
        print(
            f"| {arguments.preferences} | {loss} | {results['eval_rewards/accuracies_before']:.3f} "
            f"| {accuracy:.3f} ± {interval:.3f} | {results['eval_rewards/margins_before']:.3f} | {margin:.3f} "
            f"| {results['train_runtime'] / 60:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
