"""The chatbot of the embedded demo with every algorithm and several seeds, as JSON and as a table.

    OMP_NUM_THREADS=2 python benchmarks/chatbot_demo.py

For each seed `recipes/chatbot_rlhf.py` runs as a user runs it, with PPO. DPO and best-of-n start from the SFT and the
reward model that it left, with the commands that `recipes/chatbot_rlhf.py` would give. All are evaluated on held-out
prompts (200 for PPO and the base, the first 100 of them for the others); the gold judge, which no training sees, rates
helpfulness and safety from 1 to 5. What is finished in the output folder is not run again, and two commands with
different `--seeds` may share it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tables import spread

from rlhf_ext.demo import model_path
from rlhf_ext.run_report.findings import late_mean

ROOT = Path(__file__).parents[1]
BEST_OF, PROMPTS = 8, 100
ROWS = ("base", "sft", "best_of_n", "dpo", "ppo")
# Columns of the table, each with its name in the evaluation of a policy.
MEASURED = {
    "helpfulness": "eval_helpfulness",
    "safety": "eval_safety",
    "refuses unsafe": "eval_refusal_rate",
    "refuses safe": "eval_over_refusal_rate",
    "distinct pairs": "eval_distinct_2",
}
CURVE = {
    "KL, nats": "kl/k1",
    "reward": "reward",
    "gold helpfulness": "gold/helpfulness",
    "gold safety": "gold/safety",
}
TRAINING = ("reward", "kl/k1", "clip_fraction", "entropy", "value/explained_variance")


def recipe(name: str, *options: Any) -> float:
    """Run a recipe unless it has left its results; return the seconds it took."""
    command = [sys.executable, str(ROOT / "recipes" / name), *map(str, options)]
    folder = Path(command[command.index("--output_dir") + 1])
    took = folder / "benchmark_seconds.json"
    if not took.is_file():
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=sys.stderr)
        took.write_text(json.dumps(time.perf_counter() - start))
    return json.loads(took.read_text())


def results(folder: Path) -> dict[str, Any]:
    """What a recipe left."""
    return json.loads((folder / "all_results.json").read_text())


def run(folder: Path, seed: int, *, baselines: bool) -> dict[str, Any]:
    """Run all algorithms with one seed, or PPO only; return each one's measurements."""
    chatbot = folder / f"chatbot-{seed}"
    sft, reward, ppo = (chatbot / phase for phase in ("sft", "reward", "ppo"))
    seconds = recipe("chatbot_rlhf.py", "--seed", seed, "--output_dir", chatbot)
    measured = {"ppo": results(chatbot / "evaluation")}
    measured["base"] = other_policy(measured["ppo"])
    if baselines:
        measured |= run_baselines(folder, seed, sft, reward)
    history = json.loads((ppo / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "clip_fraction" in entry]
    training = {name: late_mean([entry[name] for entry in logged]) for name in TRAINING}
    curve = [{label: entry[name] for label, name in CURVE.items()} for entry in logged]
    rows = {name: {label: of.get(key) for label, key in MEASURED.items()} for name, of in measured.items()}
    return {"seed": seed, "seconds": seconds, "ppo, last quarter": training, "curve": curve, "policies": rows}


def run_baselines(folder: Path, seed: int, sft: Path, reward: Path) -> dict[str, Any]:
    """Evaluate the SFT model, the best of its answers, and DPO from it."""
    dpo = folder / f"dpo-{seed}"
    config = ROOT / "recipes/configs/dpo_chatbot_demo.yaml"
    recipe("dpo.py", "--config", config, "--model_name_or_path", sft, "--seed", seed, "--output_dir", dpo)

    judge = ["--judge", "gold", "--seed", seed, "--max_samples", PROMPTS]
    best_of = ["--best_of", BEST_OF, "--best_of_model", reward]
    measured = {}
    for name, policy, other in (("dpo", [dpo], sft), ("best_of_n", [sft, *best_of], model_path())):
        place = folder / f"evaluate-{name}-{seed}"
        recipe("evaluate.py", "--policy", *policy, "--other_policy", other, *judge, "--output_dir", place)
        measured[name] = results(place)
    return measured | {"sft": other_policy(measured["dpo"])}


def other_policy(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation has measured of the other policy."""
    return {key.replace("eval_other_", "eval_"): value for key, value in evaluation.items() if "other_" in key}


def table(runs: list[dict[str, Any]]) -> str:
    """One row a policy."""
    lines = [f"| | seeds | {' | '.join(MEASURED)} |", "|---" * (len(MEASURED) + 2) + "|"]
    for name in ROWS:
        found = [run["policies"][name] for run in runs if name in run["policies"]]
        if found:
            cells = [spread([of[label] for of in found]) for label in MEASURED]
            lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def over_kl(runs: list[dict[str, Any]], parts: int = 5) -> str:
    """Proxy and gold scores against the KL divergence: means over the seeds in each part of the way."""
    lines = [f"| part of the run | {' | '.join(CURVE)} |", "|---" * (len(CURVE) + 1) + "|"]
    for part in range(parts):
        entries = []
        for curve in (run["curve"] for run in runs):
            entries += curve[len(curve) * part // parts : len(curve) * (part + 1) // parts]
        cells = [f"{statistics.mean(entry[name] for entry in entries):.2f}" for name in CURVE]
        lines.append(f"| {part + 1} of {parts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run every seed and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--baseline_seeds", type=int, nargs="*", help="seeds for DPO and best-of-n, if not all")
    parser.add_argument("--output", type=Path, default=Path("runs/chatbot_demo"))
    arguments = parser.parse_args()
    with_baselines = arguments.seeds if arguments.baseline_seeds is None else arguments.baseline_seeds
    runs = [run(arguments.output, seed, baselines=seed in with_baselines) for seed in arguments.seeds]
    print(json.dumps(runs, indent=2))
    print(table(runs), over_kl(runs), sep="\n\n")


if __name__ == "__main__":
    main()
