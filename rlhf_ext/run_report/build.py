"""Puts the report of a run together and writes it: `report.html` and `samples.jsonl` in the output folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer

from ..arguments import DEMO, RecipeArguments
from ..evaluation.page import Answer, Headline, Notice, Sample, Section, Table, render
from ..evaluation.rows import text_of
from ..samples import FILE_NAME
from . import findings
from .bands import healthy_bands
from .curves import first_values, panel_figures, points, reward_over_kl, with_start
from .facts import run_facts
from .pairs import pair_sections
from .samples import SHOWN, Completions, SampleCallback

GOLD = "rewards/gold/mean"  # what TRL calls the mean of the demo's judge, which has weight 0
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

    figures = panel_figures(history, panels, bands)
    over_kl = reward_over_kl(history, GOLD)
    held_out = script_args.eval_dataset_name or script_args.dataset_name or DEMO
    sections = [
        _warnings(notices),
        _before_and_after(rows, held_out),
        Section("Training", figures=[*figures, *([] if over_kl is None else [over_kl])]),
        *([_samples(folder)] if hasattr(trainer.model, "generate") else []),
        *report.sections,
        Section("What ran", facts=run_facts(trainer, script_args, train_metrics.get("train_runtime"))),
    ]
    kind = getattr(trainer, "_name", None) or type(trainer).__name__.removesuffix("Trainer")
    page = render(f"{kind} run {folder.name}", f"On {script_args.dataset_name or DEMO}.", _headlines(rows), sections)
    (folder / "report.html").write_text(page, encoding="utf-8")


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
        found += _notices_of(samples.before, samples.after)
    return [notice for notice in found if notice is not None]


def _notices_of(before: Completions, after: Completions) -> list[Notice | None]:
    """Return what the scores of completions show."""
    if "reward" not in before.scores or "reward" not in after.scores:
        return []
    rewards = before.scores["reward"], after.scores["reward"]
    lengths = [np.array([len(text) for text in part.texts]) for part in (before, after)]
    found = [
        findings.gain_within_noise("The reward", *rewards),
        findings.length_explains_reward(lengths[0], rewards[0], lengths[1], rewards[1]),
    ]
    golds = [[score for score in part.scores.get("gold", []) if score is not None] for part in (before, after)]
    if all(golds):
        found += [findings.exploited_reward(*rewards, *golds), findings.gain_within_noise("The gold score", *golds)]
    return found


def _warnings(notices: Sequence[Notice]) -> Section:
    if notices:
        return Section("Warnings", notices=notices)
    return Section("Warnings", ["None of the checks found anything. docs/report.md says what is checked."])


def _before_and_after(rows: Sequence[tuple[str, str, str]], held_out: str) -> Section:
    if not rows:
        return Section("Before and after", ["There is no evaluation from before training to compare with."])
    return Section("Before and after", [f"On held-out rows of {held_out}."], [Table(["", "before", "after"], rows)])


def _headlines(rows: Sequence[tuple[str, str, str]]) -> list[Headline]:
    telling = [row for row in rows if not row[0].startswith("loss")] or rows  # a loss says least to most readers
    return [Headline(label, after, f"{before} before") for label, before, after in telling[:HEADLINES]]


def _samples(folder: Path) -> Section:
    path = folder / FILE_NAME
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
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
