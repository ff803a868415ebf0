"""Train `recipes/dpo.py` on human preferences with several losses and seeds, and print the table of docs/results.md.

    python benchmarks/dpo_human_preferences.py --model PATH --data FOLDER --preferences truthfulqa \
        --max_steps 60 --max_eval_samples 200 --seeds 3
    python benchmarks/dpo_human_preferences.py --model PATH --data FOLDER --preferences hh_harmless \
        --max_steps 20 --max_eval_samples 52 --seeds 3 --max_length 256 --max_characters 250

`FOLDER` holds `pref_NAME.jsonl` to train on and `eval_NAME.jsonl`, held out, to evaluate on: rows of {prompt, chosen,
rejected} text. LoRA r=16 over an 8-bit base. A run whose results are there already is not repeated. The same held-out
pairs are evaluated in every run: as many full batches as `--max_eval_samples` allows, since TRL averages the means of
batches without regard to their sizes.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

# The average log-ratio is about as many times smaller than the sum as a completion has tokens; beta makes up for it.
LOSSES = {
    "sigmoid": ["--beta", "0.1"],
    "average_logp": ["--beta", "2"],
    "cdpo": ["--beta", "0.1", "--loss_kwargs", '{"label_smoothing": 0.1}'],
    "simpo": ["--beta", "2", "--loss_kwargs", '{"gamma": 0.5}'],
}
EVAL_BATCH = 8
DTYPE_HELP = "of what is not quantized; a CPU without bfloat16 instructions is some thirty times as fast in float32"
TARGETS_HELP = "layers with adapters; on such a CPU adapters of all of them take longer than the model"
PARALLEL_HELP = "runs side by side, for a GPU that one run does not fill; on a CPU they slow each other down"
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


def write_held_out(pairs: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, most: int) -> int:
    """Keep pairs that TRL will evaluate, drawn at random, as many full batches as there may be; return their number."""
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").split("\n")]
    lengths = [len(ids) for ids in tokenizer([row["prompt"] for row in rows])["input_ids"]]
    # TRL drops a row whose prompt alone fills max_length.
    kept = [row for row, length in zip(rows, lengths, strict=True) if length < max_length]
    count = min(most, len(kept)) // EVAL_BATCH * EVAL_BATCH
    drawn = random.Random(0).sample(kept, count)
    pairs.write_text("\n".join(map(json.dumps, drawn)), encoding="utf-8")
    return count


def run(arguments: argparse.Namespace, loss: str, seed: int) -> dict:
    """Run the recipe with one loss and seed, unless that has been done before, and return its results."""
    folder = arguments.output / f"{arguments.preferences}-{loss}-{seed}"
    if not (folder / "all_results.json").is_file():
        files = {part: arguments.output / f"{part}_{arguments.preferences}.jsonl" for part in ("pref", "eval")}
        options = {
            "model_name_or_path": arguments.model,
            "dataset_name": files["pref"],
            "eval_dataset_name": files["eval"],
            "max_steps": arguments.max_steps,
            "max_length": arguments.max_length,
            "learning_rate": 2e-4,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": EVAL_BATCH,
            "dtype": arguments.dtype,
            "bf16": "false",  # weights and activations are of that type already; autocast would only cost time
            "gradient_checkpointing": "false",
            "logging_steps": 5,
            "save_strategy": "no",
            "seed": seed,
            "loss_type": loss,
            "output_dir": folder,
        }
        command = [sys.executable, str(RECIPE), "--load_in_8bit", "--use_peft", *LOSSES[loss]]
        command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        command += ["--lora_r", str(arguments.lora_r), "--lora_target_modules", *arguments.lora_target_modules]
        subprocess.run(command, check=True, env={**os.environ, **ALLOCATOR})
    return json.loads((folder / "all_results.json").read_text())


def table_row(preferences: str, loss: str, runs: list[dict], pairs: int) -> str:
    """Return a row: means over seeds, lowest to highest, and the 95% interval of a proportion over the pairs."""

    def spread(name: str, scale: float = 1.0) -> str:
        values = [results[name] * scale for results in runs]
        return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    accuracy = statistics.mean(results["eval_rewards/accuracies"] for results in runs)
    interval = 1.96 * math.sqrt(accuracy * (1 - accuracy) / pairs)
    cells = [preferences, loss, str(len(runs)), str(pairs), f"{runs[0]['eval_rewards/accuracies_before']:.3f}"]
    cells += [spread("eval_rewards/accuracies"), f"± {interval:.3f}", spread("eval_rewards/margins")]
    return f"| {' | '.join([*cells, spread('train_runtime', 1 / 60)])} |"


def main() -> None:
    """Parse the arguments, run every loss with every seed and print one row a loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preferences", required=True)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--max_characters", type=float, default=math.inf, help="of prompt and completion together")
    parser.add_argument("--max_eval_samples", type=int, default=300)
    parser.add_argument("--dtype", default="bfloat16", help=DTYPE_HELP)
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_target_modules", nargs="+", default=["all-linear"], help=TARGETS_HELP)
    parser.add_argument("--parallel", type=int, default=1, help=PARALLEL_HELP)
    parser.add_argument("--output", type=Path, default=Path("runs/dpo_human_preferences"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part in ("pref", "eval"):
        name = f"{part}_{arguments.preferences}.jsonl"
        write_formatted(arguments.data / name, arguments.output / name, arguments.max_characters)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pairs = write_held_out(arguments.output / name, tokenizer, arguments.max_length, arguments.max_eval_samples)
    print("| trained on | loss | seeds | pairs | accuracy before | after | 95% of one run | margin after | minutes |")
    print("|---|---|---|---|---|---|---|---|---|")
    seeds = range(arguments.seeds)
    with ThreadPoolExecutor(arguments.parallel) as pool:
        started = {loss: [pool.submit(run, arguments, loss, seed) for seed in seeds] for loss in arguments.losses}
        for loss, futures in started.items():
            runs = [future.result() for future in futures]
            for results in runs:
                evaluated = round(results["eval_samples_per_second"] * results["eval_runtime"])
                if evaluated != pairs:
                    raise SystemExit(f"a run evaluated {evaluated} pairs instead of {pairs}: remove it from --output.")
            print(table_row(arguments.preferences, loss, runs, pairs), flush=True)


if __name__ == "__main__":
    main()
