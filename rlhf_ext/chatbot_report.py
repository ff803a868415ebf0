"""What `recipes/chatbot_rlhf.py` shows at its end: the base against the trained model, and how training went."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as ConsoleTable

from .chatbot import ChatbotArguments
from .evaluation.page import Answer, Headline, Sample, Section, Table, render

Metrics = Mapping[str, Any]
SAMPLES = 8
LAST = 0.25  # the part of training that "at the end" means, as single batches are noisy
QUALITIES = {"helpfulness": "helpfulness, 1 to 5", "safety": "safety, 1 to 5", "reward": "score of the reward model"}
TRAINING = {
    "ppo": {"loss": "policy loss", "kl/k1": "KL per answer, nats", "clip_fraction": "clip fraction"},
    "dpo": {"loss": "policy loss", "rewards/accuracies": "reward accuracy", "rewards/margins": "reward margin"},
    "best_of_n": {},
}


def summarize(args: ChatbotArguments, finished: Mapping[str, Metrics]) -> None:
    """Write `all_results.json` and `report.html` into the output folder, and print the tables.

    Args:
        args: The command line.
        finished: The phases, each with its command and seconds.
    """
    folder = Path(args.output_dir)
    policy = _results(folder / "evaluation")
    outcome = outcome_table(policy)
    training = training_table(args, folder)
    metrics = {name: value for name, value in policy.items() if name.startswith("eval_")}
    metrics |= {f"eval_{key}_before": policy[f"eval_other_{key}"] for key in QUALITIES if f"eval_{key}" in policy}
    metrics |= {f"seconds_{name.replace('-', '_')}": phase["seconds"] for name, phase in finished.items()}
    (folder / "all_results.json").write_text(json.dumps(metrics, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    title = f"{Path(args.base_model).name}: from base to chatbot with {args.algorithm}"
    page = render(title, _subtitle(policy), _headlines(policy), _sections(folder, finished, outcome, training))
    (folder / "report.html").write_text(page, encoding="utf-8")
    for table in (outcome, training):
        _print(table)
    print(f"report.html, all_results.json, and a folder for each phase: {folder}")


def outcome_table(policy: Metrics) -> Table:
    """Return base against trained, with 95% intervals and the change in percent of the base.

    Args:
        policy: The metrics of `recipes/evaluate.py` with the trained model as policy and the base as the other.
    """
    rows = []
    for name, label in QUALITIES.items():
        if policy.get(f"eval_{name}") is None:
            continue
        before, after = policy[f"eval_other_{name}"], policy[f"eval_{name}"]
        change = f"{(after - before) / before:+.0%}" if name != "reward" else f"{after - before:+.2f}"
        rows.append(
            (label, _with_interval(policy, f"eval_other_{name}"), _with_interval(policy, f"eval_{name}"), change)
        )
    rows.append(("win rate against the base", "", _with_interval(policy, "eval_win_rate"), ""))
    return Table(("", "base", "trained", "change"), rows, "Base against trained, with 95% intervals.")


def training_table(args: ChatbotArguments, folder: Path) -> Table:
    """Return how good the reward model is, and how training the policy ended."""
    reward = _results(folder / "reward")
    rows = [("reward model: accuracy on held-out pairs", _number(reward.get("eval_accuracy")))]
    if (folder / "reward-evaluation").is_dir():
        evaluated = _results(folder / "reward-evaluation")
        rows = [
            ("reward model: accuracy on other pairs", _with_interval(evaluated, "eval_accuracy")),
            ("reward model: rank correlation with ratings", _with_interval(evaluated, "eval_spearman")),
        ]
    history = []
    if args.algorithm != "best_of_n":
        history = json.loads((folder / args.algorithm / "trainer_state.json").read_text(encoding="utf-8"))[
            "log_history"
        ]
    rows += [(label, _number(at_the_end(history, name))) for name, label in TRAINING[args.algorithm].items()]
    return Table(("", "measured"), rows, "How training went; of the policy, means over its last quarter.")


def at_the_end(history: Sequence[Metrics], name: str) -> float | None:
    """Return the mean of a metric over the last quarter of the entries that have it; None where none has."""
    values = [entry[name] for entry in history if name in entry]
    return statistics.mean(values[-max(1, round(LAST * len(values))) :]) if values else None


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_interval(metrics: Metrics, name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    text = _number(metrics.get(name))
    return text if low is None or high is None else f"{text} ({low:.3f} to {high:.3f})"


def _subtitle(policy: Metrics) -> str:
    return f"Answers of both models to the same {policy['eval_prompts']} prompts; the judge is {policy['judge']}."


def _headlines(policy: Metrics) -> list[Headline]:
    shown = [name for name in QUALITIES if policy.get(f"eval_{name}") is not None]
    before = {name: _number(policy[f"eval_other_{name}"]) for name in shown}
    headlines = [Headline(QUALITIES[n], _number(policy[f"eval_{n}"]), f"base: {before[n]}") for n in shown]
    return [*headlines, Headline("win rate against the base", _number(policy["eval_win_rate"]))]


def _sections(folder: Path, finished: Mapping[str, Metrics], outcome: Table, training: Table) -> list[Section]:
    ran = Table(
        ("phase", "seconds", "command"),
        [
            (name, f"{phase['seconds']:.0f}", f"accelerate launch {phase['command']}")
            for name, phase in finished.items()
        ],
        "Each phase is a recipe of its own, and its folder holds that recipe's report.html.",
    )
    return [
        Section("Result", tables=[outcome]),
        Section("Training", tables=[training]),
        Section("Samples", ["The first prompts of the evaluation."], samples=_samples(folder)),
        Section("What ran", tables=[ran]),
    ]


def _samples(folder: Path) -> list[Sample]:
    lines = (folder / "evaluation/completions.jsonl").read_text(encoding="utf-8").splitlines()
    samples = []
    for row in map(json.loads, lines[:SAMPLES]):
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        answers = [
            Answer(name, row[f"{prefix}completion"], _rating(row, prefix), good=good)
            for name, prefix, good in (
                ("base", "other_", row["preference"] < 0.5),
                ("trained", "", row["preference"] > 0.5),
            )
        ]
        samples.append(Sample(prompt, answers))
    return samples


def _rating(row: Metrics, prefix: str) -> str:
    found = ((name, row.get(f"{prefix}{name}")) for name in QUALITIES)
    return ", ".join(f"{name} {value:.2f}" for name, value in found if value is not None)


def _print(table: Table) -> None:
    shown = ConsoleTable(title=table.caption, title_justify="left")
    for column in table.columns:
        shown.add_column(column)
    for row in table.rows:
        shown.add_row(*row)
    Console().print(shown)
