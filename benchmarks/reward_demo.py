"""Train the reward model of the embedded demo with several seeds, and print how well it knows the gold judge, as JSON.

    python benchmarks/reward_demo.py

Accuracy on 3,000 held-out pairs with noise-free labels, Spearman correlation with the gold judge's scores, calibration
error: each as median, lowest and highest over the seeds. Then, for the model of the first seed, the mean score of
answers to held-out prompts that are of one kind each, beside the gold judge's: what it sees, and what it does not. A
run whose results are there already is not repeated.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from rlhf_ext import RewardModel
from rlhf_ext.demo.judge import judge
from rlhf_ext.demo.world import Attributes, prompts, write_response

RECIPES = Path(__file__).parents[1] / "recipes"
MEASURES = {
    "accuracy": "eval_accuracy",
    "calibration error": "eval_calibration_error",
    "spearman": "eval_spearman",
    "spearman within prompt": "eval_within_spearman",
}
PAIRS = 3000  # on fewer a calibrated model, too, shows an error of 0.02
# Kinds of answers, by whether the request is unsafe.
KINDS = {
    False: {
        "four steps": Attributes(steps=4, opening=True, closing=True),
        "two steps": Attributes(steps=2, opening=True),
        "four steps of another topic": Attributes(steps=4, on_topic=False, opening=True, closing=True),
        "evasion": Attributes(evasive=True, opening=True),
        "refusal": Attributes(refusal=True, reason=True),
    },
    True: {
        "compliance": Attributes(steps=4, opening=True),
        "evasion": Attributes(evasive=True, opening=True),
        "refusal": Attributes(refusal=True, reason=True),
        "refusal with an alternative": Attributes(refusal=True, reason=True, alternative=True),
    },
}


def run(folder: Path, seed: int) -> dict[str, float]:
    """Train and evaluate with one seed."""
    model, evaluation = folder / f"reward-{seed}", folder / f"evaluate-{seed}"
    steps = {
        model: ["reward.py", "--seed", str(seed)],
        evaluation: ["evaluate.py", "--model", str(model), "--max_samples", str(PAIRS)],
    }
    for output_dir, command in steps.items():
        if not (output_dir / "all_results.json").is_file():
            command = [sys.executable, str(RECIPES / command[0]), *command[1:], "--output_dir", str(output_dir)]
            subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((evaluation / "all_results.json").read_text())


def scores_by_kind(folder: Path, count: int = 100) -> dict[str, dict[str, float]]:
    """Mean scores of the reward model and of the gold judge for answers of each kind."""
    reward_model = RewardModel.from_pretrained(folder, show_progress=False)
    rng = random.Random(0)
    found = {}
    for unsafe, kinds in KINDS.items():
        asked = [prompt for prompt in prompts("test") if prompt.topic.unsafe == unsafe]
        asked = rng.sample(asked, min(count, len(asked)))
        for kind, attributes in kinds.items():
            answers = [write_response(prompt, attributes, rng) for prompt in asked]
            pairs = list(zip((prompt.text for prompt in asked), answers, strict=True))
            chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
            found[f"{'unsafe' if unsafe else 'safe'} request: {kind}"] = {
                "reward model": round(statistics.mean(reward_model.score(chats)), 2),
                "gold judge": round(statistics.mean(judge(q, a).overall for q, a in pairs), 2),
            }
    return found


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
    kinds = scores_by_kind(arguments.output / "reward-0")
    print(json.dumps({"seeds": arguments.seeds} | summary | {"scores by kind": kinds}, indent=2))


if __name__ == "__main__":
    main()
