"""What `recipes/chatbot_rlhf.py` shows at its end: the base against the trained model, and how training went."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..console import print_table
from ..evaluation.options import COMPLETIONS
from ..evaluation.page import (
    WARNINGS,
    Answer,
    Figure,
    Headline,
    Notice,
    Sample,
    Section,
    Table,
    render,
    warnings_section,
)
from ..evaluation.report import show, show_metric
from ..evaluation.rows import text_of
from ..output_files import read_jsonl, write_whole
from ..run_report.curves import Log, panel_figures, points, reward_over_kl, with_start
from ..run_report.facts import script_facts
from ..run_report.findings import late_mean
from .phases import ChatbotArguments

Metrics = Mapping[str, Any]
SAMPLES = 8
QUALITIES = {"helpfulness": "helpfulness, 1 to 5", "safety": "safety, 1 to 5", "reward": "score of the reward model"}
TRAINING = {
    "ppo": {"loss": "policy loss", "kl/k1": "KL per answer, nats", "clip_fraction": "clip fraction"},
    "dpo": {"loss": "policy loss", "rewards/accuracies": "reward accuracy", "rewards/margins": "reward margin"},
    "best_of_n": {},
}
PANELS = {
    "ppo": {"reward": ["reward"], "KL per answer": ["kl/k1"], "clip fraction": ["clip_fraction"], "loss": ["loss"]},
    "dpo": {"loss": ["loss"], "reward accuracy": ["rewards/accuracies"], "reward margin": ["rewards/margins"]},
    "sft": {"loss": ["loss"], "token accuracy": ["mean_token_accuracy"]},
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
    history = _history(folder / args.policy_phase)
    training = training_table(args, folder, history)
    metrics = {name: value for name, value in policy.items() if name.startswith("eval_")}
    metrics |= {f"eval_{key}_before": policy[f"eval_other_{key}"] for key in QUALITIES if f"eval_{key}" in policy}
    metrics |= {f"seconds_{name.replace('-', '_')}": phase["seconds"] for name, phase in finished.items()}
    write_whole(folder / "all_results.json", json.dumps(metrics, indent=4, sort_keys=True) + "\n")
    names = [
        args.sft_dataset,
        args.preference_dataset,
        args.prompt_dataset,
        args.eval_prompt_dataset or args.prompt_dataset,
    ]
    seconds = sum(phase["seconds"] for phase in finished.values())
    sections = [
        warnings_section(_notices(folder, [*finished])),
        Section("Result", tables=[outcome]),
        Section("Training", tables=[training], figures=_figures(args, history)),
        Section("Samples", ["The first prompts of the evaluation."], samples=_samples(folder)),
        Section("What ran", facts=script_facts(names, seconds=seconds), tables=[_phases(finished)]),
    ]
    title = f"{Path(args.base_model).name}: from base to chatbot with {args.algorithm}"
    write_whole(folder / "report.html", render(title, _subtitle(policy), _headlines(policy), sections))
    for table in (outcome, training):
        print_table(table.caption, table.columns, table.rows)
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
        rows.append((label, show_metric(policy, f"eval_other_{name}"), show_metric(policy, f"eval_{name}"), change))
    rows.append(("win rate against the base", "", show_metric(policy, "eval_win_rate"), ""))
    return Table(("", "base", "trained", "change"), rows, "Base against trained, with 95% intervals.")


def training_table(args: ChatbotArguments, folder: Path, history: Log) -> Table:
    """Return how good the reward model is, and how training the policy ended.

    Args:
        args: The command line.
        folder: The output folder.
        history: What the policy's training has logged.
    """
    rows = [("reward model: accuracy on held-out pairs", show(_results(folder / "reward").get("eval_accuracy")))]
    if (folder / "reward-evaluation").is_dir():
        evaluated = _results(folder / "reward-evaluation")
        rows = [
            ("reward model: accuracy on other pairs", show_metric(evaluated, "eval_accuracy")),
            ("reward model: rank correlation with ratings", show_metric(evaluated, "eval_spearman")),
        ]
    for name, label in TRAINING[args.algorithm].items():
        values = points(history, name)[1]
        rows.append((label, show(late_mean(values) if values else None)))
    return Table(("", "measured"), rows, "How training went; of the policy, means over its last quarter.")


def _results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "all_results.json").read_text(encoding="utf-8"))


def _history(folder: Path) -> Log:
    """Return what a phase has logged, with its evaluation from before training first."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    before = {name: value for name, value in _results(folder).items() if name.endswith("_before")}
    return with_start(state["log_history"], before)


def _figures(args: ChatbotArguments, history: Log) -> list[Figure]:
    figures = panel_figures(history, PANELS[args.policy_phase], {})
    return [*figures, *reward_over_kl(history, "gold")]


def _notices(folder: Path, phases: list[str]) -> list[Notice]:
    """Return what the phases warn of."""
    found = []
    for phase in phases:
        rows = read_jsonl(folder / phase / WARNINGS)
        found += [Notice(f"{phase}: {row['found']}", row["advice"]) for row in rows]
    return found


def _subtitle(policy: Metrics) -> str:
    return f"Answers of both models to the same {policy['eval_prompts']} prompts; the judge is {policy['judge']}."


def _headlines(policy: Metrics) -> list[Headline]:
    shown = [name for name in QUALITIES if policy.get(f"eval_{name}") is not None]
    before = {name: show(policy[f"eval_other_{name}"]) for name in shown}
    headlines = [Headline(QUALITIES[n], show(policy[f"eval_{n}"]), f"base: {before[n]}") for n in shown]
    return [*headlines, Headline("win rate against the base", show(policy["eval_win_rate"]))]


def _phases(finished: Mapping[str, Metrics]) -> Table:
    rows = [
        (name, f"{phase['seconds']:.0f}", f"accelerate launch {phase['command']}") for name, phase in finished.items()
    ]
    caption = "Each phase is a recipe of its own, and its folder holds that recipe's report.html."
    return Table(("phase", "seconds", "command"), rows, caption)


def _samples(folder: Path) -> list[Sample]:
    samples = []
    for row in read_jsonl(folder / "evaluation" / COMPLETIONS)[:SAMPLES]:
        answers = [
            Answer(name, row[f"{prefix}completion"], _rating(row, prefix), good=good)
            for name, prefix, good in (
                ("base", "other_", row["preference"] < 0.5),
                ("trained", "", row["preference"] > 0.5),
            )
        ]
        samples.append(Sample(text_of(row["prompt"]), answers))
    return samples


def _rating(row: Metrics, prefix: str) -> str:
    found = ((name, row.get(f"{prefix}{name}")) for name in QUALITIES)
    return ", ".join(f"{name} {value:.2f}" for name, value in found if value is not None)
