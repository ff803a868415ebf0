"""Train the reward model of the embedded demo with several seeds, and print how well it knows the gold judge, as JSON.

    python benchmarks/reward_demo.py

Accuracy on 1,000 held-out pairs with noise-free labels, Spearman correlation with the gold judge's scores, calibration
error: each as median, lowest and highest over the seeds. A run whose results are there already is not repeated.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
MEASURES = {
    "accuracy": "eval_accuracy",
    "calibration error": "eval_calibration_error",
    "spearman": "eval_spearman",
    "spearman within prompt": "eval_within_spearman",
}


def run(folder: Path, seed: int) -> dict[str, float]:
    """Train and evaluate with one seed."""
    model, evaluation = folder / f"reward-{seed}", folder / f"evaluate-{seed}"
    steps = {
        model: ["reward.py", "--seed", str(seed)],
        evaluation: ["evaluate.py", "--model", str(model)],
    }
    for output_dir, command in steps.items():
        if not (output_dir / "all_results.json").is_file():
            command = [sys.executable, str(RECIPES / command[0]), *command[1:], "--output_dir", str(output_dir)]
            subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((evaluation / "all_results.json").read_text())


def main() -> None:
    """Run every seed and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/reward_demo"))
    arguments = parser.parse_args()
    results = [run(arguments.output, seed) for seed in range(arguments.seeds)]
    summary = {}
    for name, key in MEASURES.items():
        values = [result[key] for result in results]
        summary[name] = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    print(json.dumps({"seeds": arguments.seeds} | summary, indent=2))


if __name__ == "__main__":
    main()
