"""Puts the report of a run together and writes `report.html`, `samples.jsonl` and `warnings.jsonl`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer

from ..arguments import DEMO, RecipeArguments
from ..evaluation.page import WARNINGS, Answer, Headline, Notice, Sample, Section, Table, render, warnings_section
from ..evaluation.rows import text_of
from ..output_files import read_jsonl, write_jsonl, write_whole
from . import findings
from .bands import healthy_bands
from .curves import first_values, panel_figures, points, reward_over_kl, with_start
from .facts import run_facts
from .pairs import pair_sections
from .samples import FILE_NAME, SHOWN, Completions, SampleCallback

HEADLINES = 4


def write_report(
    trainer: Trainer,
    script_args: RecipeArguments,
    before: Mapping[str, float],
    train_metrics: Mapping[str, float],
    after: Mapping[str, float],
    *,
    rows: Sequence[tuple[str, str, str]],
    panels: Mapping[str, Sequence[str]],
    samples: SampleCallback | None = None,
    eval_rows: Any = None,
) -> None:
    """Write the page, on one process.

    Args:
        trainer: A TRL trainer whose run has ended.
        script_args: Where the data came from.
        before: As `evaluate_before` returns it; may be empty.
        train_metrics: As `trainer.train()` returns them.
        after: As `trainer.evaluate()` returns it.
        rows: As `before_and_after` returns them.
        panels: Titles of figures, and the metrics of each.
        samples: Completions before and after.
        eval_rows: The held-out rows as they were loaded; for the evaluation of a reward model.
    """
    folder = Path(trainer.args.output_dir)
    history = with_start(trainer.state.log_history, before)
    bands = healthy_bands(trainer.args, first_values(history))
    report = pair_sections(trainer, eval_rows)
    if samples is not None:
        samples.save(folder)
    notices = [*run_notices(trainer, history, before, after, samples), *report.notices]

    write_jsonl(folder / WARNINGS, map(asdict, notices))

    figures = [*panel_figures(history, panels, bands), *reward_over_kl(history, unlearned_judge(trainer))]
    held_out = script_args.eval_dataset_name or script_args.dataset_name or DEMO
    sections = [
        warnings_section(notices),
        _before_and_after(rows, held_out),
        Section("Training", figures=figures),
        *([_samples(folder)] if hasattr(trainer.model, "generate") else []),
        *report.sections,
        Section("What ran", facts=run_facts(trainer, script_args, train_metrics.get("train_runtime"))),
    ]
    kind = getattr(trainer, "_name", None) or type(trainer).__name__.removesuffix("Trainer")
    page = render(f"{kind} run {folder.name}", f"On {script_args.dataset_name or DEMO}.", _headlines(rows), sections)
    write_whole(folder / "report.html", page)


def unlearned_judge(trainer: Trainer) -> str | None:
    """Return the name of a reward function that nothing learns from, as its weight is 0; None where there is none.

    On the demo this is the gold judge. With data of one's own it may be a second reward model.
    """
    names = getattr(trainer, "reward_func_names", [])
    weights = trainer.reward_weights.tolist() if names else []
    return next((name for name, weight in zip(names, weights, strict=True) if weight == 0), None)


def run_notices(
    trainer: Trainer,
    history: Sequence[Mapping[str, Any]],
    before: Mapping[str, float],
    after: Mapping[str, float],
    samples: SampleCallback | None,
) -> list[Notice]:
    """Return what stands out in a run.

    Args:
        trainer: A TRL trainer whose run has ended.
        history: As `with_start` returns it.
        before: As `evaluate_before` returns it.
        after: As `trainer.evaluate()` returns it.
        samples: Completions before and after.
    """
    args = trainer.args
    bands = healthy_bands(args, first_values(history))
    logged = {name: points(history, name)[1] for name in bands}
    found = findings.out_of_band(logged, bands)
    train_losses, eval_losses = points(history, "loss")[1], points(history, "eval_loss")[1]
    if not hasattr(args, "max_completion_length"):  # the loss of PPO says nothing about what was learned
        found.append(findings.overfitted(train_losses, eval_losses))
    else:
        share = after.get("eval_completions/clipped_ratio", 0.0)
        found.append(findings.cut_off(share, args.max_completion_length))
    pairs = len(trainer.eval_dataset) if hasattr(trainer.eval_dataset, "__len__") else 0
    for metric in ("eval_accuracy", "eval_rewards/accuracies"):
        if metric in after:
            found.append(findings.accuracy_like_a_coin(after[metric], pairs))
    if "eval_logps/chosen_before" in before and "eval_logps/chosen" in after:
        found.append(findings.chosen_less_likely(before["eval_logps/chosen_before"], after["eval_logps/chosen"]))
    if samples is not None and samples.before is not None and samples.after is not None:
        found += _notices_of(samples.before, samples.after, unlearned_judge(trainer))
    return [notice for notice in found if notice is not None]


def _notices_of(before: Completions, after: Completions, judge: str | None) -> list[Notice | None]:
    """Return what the scores of completions show: the reward's, or the gold judge's where nothing learns from a reward.

    Args:
        before: Completions from before training.
        after: The same from after it.
        judge: The score that nothing learns from, beside the reward.
    """
    name, label = ("reward", "reward") if "reward" in before.scores else ("gold", "gold score")
    scores = _known(before, after, name)
    if scores is None:
        return []
    lengths = [np.array([len(text) for text in part.texts]) for part in (before, after)]
    found = [
        findings.gain_within_noise(f"The {label}", *scores),
        findings.length_explains_reward(lengths[0], scores[0], lengths[1], scores[1], name=label),
    ]
    others = None if judge is None else _known(before, after, judge)
    if others is not None:
        label = f"{judge} score"
        found += [findings.exploited_reward(*scores, *others, judge=label)]
        found += [findings.gain_within_noise(f"The {label}", *others)]
    return found


def _known(before: Completions, after: Completions, name: str) -> list[list[float]] | None:
    """Return the scores that there are, before and after; None where there are none."""
    parts = [[score for score in part.scores.get(name, []) if score is not None] for part in (before, after)]
    return parts if all(parts) else None


def _before_and_after(rows: Sequence[tuple[str, str, str]], held_out: str) -> Section:
    if not rows:
        return Section("Before and after", ["There is no evaluation from before training to compare with."])
    return Section("Before and after", [f"On held-out rows of {held_out}."], [Table(["", "before", "after"], rows)])


def _headlines(rows: Sequence[tuple[str, str, str]]) -> list[Headline]:
    telling = [row for row in rows if not row[0].startswith("loss")] or rows  # a loss says least to most readers
    return [Headline(label, after, f"{before} before") for label, before, after in telling[:HEADLINES]]


def _samples(folder: Path) -> Section:
    path = folder / FILE_NAME
    rows = read_jsonl(path) if path.is_file() else []
    if not rows:
        return Section("Samples", ["None: nothing was sampled in this run."])
    text = f"Completions of held-out prompts; {FILE_NAME} holds {len(rows)}."
    if settings := rows[0].get("decoding"):
        text += " Sampled with " + ", ".join(f"{name} {value}" for name, value in settings.items()) + "."
    return Section("Samples", [text], samples=[_sample(row) for row in rows[:SHOWN]])


def _sample(row: Mapping[str, Any]) -> Sample:
    answers = []
    for name in ("before", "after"):
        scores = {judge: score for judge, score in row.get(f"scores_{name}", {}).items() if score is not None}
        if name in row:
            answers.append(Answer(name, row[name], ", ".join(f"{judge} {s:.2f}" for judge, s in scores.items()), None))
    return Sample(text_of(row["prompt"]), answers)
