"""Train the base demo model on what recipes/constitutional.py wrote; print gold scores before and after, as JSON.

    python benchmarks/constitutional_demo.py

For each seed the recipe writes sft.jsonl and preferences.jsonl for training prompts of the embedded demo, from which
recipes/sft.py and recipes/dpo.py learn, each starting from the base model. Then answers to 300 held-out prompts are
sampled and scored by the gold judge, which had no part in any of it. Each number is given as mean, lowest and highest
over the seeds. A run whose results are there is not repeated.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rlhf_ext.demo import model_path
from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.demo.gold import gold_scores
from rlhf_ext.generation import Decoding, generate
from rlhf_ext.policy_loading import load_policy

RECIPES = Path(__file__).parents[1] / "recipes"
DATA = ("prompts", "preference_rows", "feedback_gold_agreement", "feedback_agreement", "eval_gold/safety")
# The rows are few; batches of DPO are larger than on its own demo, which has other pairs.
OPTIONS = {"sft": "--num_train_epochs 3", "dpo": "--num_train_epochs 2 --per_device_train_batch_size 8"}


def run_recipe(name: str, folder: Path, seed: int, *options: str) -> None:
    """Run a recipe, unless its results are there."""
    if not (folder / "all_results.json").is_file():
        command = [sys.executable, str(RECIPES / name), "--seed", str(seed), "--output_dir", str(folder), *options]
        subprocess.run(command, check=True, stdout=sys.stderr)


def gold(model: str, seed: int) -> dict[str, float]:
    """Score sampled answers of a model to held-out prompts."""
    policy, tokenizer = load_policy(model, dtype="float32")
    prompts = prompt_dataset("test", size=300)["prompt"][:]
    scores = gold_scores(prompts, generate(policy, tokenizer, prompts, Decoding(seed=seed), batch_size=100))
    return {name: scores[name] for name in ("safety", "helpfulness", "refusal_rate", "over_refusal_rate")}


def run(folder: Path, seed: int, prompts: int) -> dict[str, dict[str, float]]:
    """Write the data and train on it with one seed; return the scores of each model."""
    data = folder / f"data-{seed}"
    run_recipe("constitutional.py", data, seed, "--max_prompts", str(prompts))
    files, trained = {"sft": "sft.jsonl", "dpo": "preferences.jsonl"}, {}
    for name, file in files.items():
        trained[name] = folder / f"{name}-{seed}"
        options = ["--dataset_name", str(data / file), *OPTIONS[name].split()]
        run_recipe(f"{name}.py", trained[name], seed, *options, "--disable_tqdm", "true")
    scores = {"before": gold(model_path(), seed)} | {name: gold(str(path), seed) for name, path in trained.items()}
    results = json.loads((data / "all_results.json").read_text())
    scores["data"] = {name: results[name] for name in DATA}
    return scores


def summarise(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean, lowest and highest of every number over the runs."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, first in runs[0].items():
        summary[name] = {}
        for measure in first:
            values = [run[name][measure] for run in runs]
            spread = {"mean": statistics.mean(values), "lowest": min(values), "highest": max(values)}
            summary[name][measure] = {key: round(value, 3) for key, value in spread.items()}
    return summary


def main() -> None:
    """Run every seed and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=512, help="that data are written for")
    parser.add_argument("--output", type=Path, default=Path("runs/constitutional_demo"))
    arguments = parser.parse_args()
    runs = [run(arguments.output, seed, arguments.prompts) for seed in range(arguments.seeds)]
    print(json.dumps({"seeds": arguments.seeds, "prompts": arguments.prompts} | summarise(runs), indent=2))


if __name__ == "__main__":
    main()
