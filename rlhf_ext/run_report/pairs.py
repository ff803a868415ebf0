"""The part of a report that is about a reward model: accuracy, calibration and length bias on its held-out pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer
from trl import extract_prompt

from ..evaluation import figures, reward
from ..evaluation.page import Notice, Section, Table
from ..evaluation.pair_report import ABOUT_CALIBRATION, ABOUT_LENGTH
from ..evaluation.report import show
from ..evaluation.rows import text_of
from ..evaluation.statistics import Bootstrap
from ..splits import keys
from . import findings

RESAMPLES = 500  # the intervals of a quick look; recipes/evaluate.py draws more


@dataclass(frozen=True)
class PairSections:
    """Sections of the page, and what stands out."""

    sections: Sequence[Section] = field(default_factory=list)
    notices: Sequence[Notice] = field(default_factory=list)


def pair_sections(trainer: Trainer, eval_rows: Any) -> PairSections:
    """Return what the scores say that a reward model's calibration left behind; nothing for other trainers.

    Args:
        trainer: A TRL trainer whose run has ended.
        eval_rows: The held-out rows as they were loaded; those that are longer than `max_length` have no scores.
    """
    scores = getattr(trainer, "eval_scores", None)
    if scores is None:
        return PairSections()
    chosen, rejected = (part.numpy() for part in scores)
    rows = _scored_rows(trainer, len(chosen))
    if rows is None:
        notes = [
            "Their texts are not known here, so there are no lengths, and each pair counts as a prompt of its own."
        ]
        return PairSections([_calibration(chosen, rejected, trainer.settings.temperature, None, notes)])
    prompts = keys(row["prompt"] if "prompt" in row else extract_prompt(row)["prompt"] for row in rows)
    dropped = len(eval_rows) - len(rows) if isinstance(eval_rows, Dataset) else 0
    notes = [f"Without {dropped} of {len(eval_rows)} held-out pairs, longer than max_length."] if dropped else []
    lengths = np.array([float(len(text_of(row["chosen"])) - len(text_of(row["rejected"]))) for row in rows])
    bias = reward.length_bias(chosen - rejected, lengths, prompts, bootstrap=Bootstrap(RESAMPLES))
    notice = findings.prefers_length(bias)
    sections = [
        _calibration(chosen, rejected, trainer.settings.temperature, prompts, notes),
        _length(chosen - rejected, lengths, bias),
    ]
    return PairSections(sections, [notice] if notice else [])


def _scored_rows(trainer: Trainer, count: int) -> list[dict[str, Any]] | None:
    """Return the rows that were scored, in the order of the scores.

    None where these are not known: streamed rows, or rows that came as tokens.
    """
    evaluated = trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, dict) else [trainer.eval_dataset]
    known = all(isinstance(part, Dataset) and {"chosen", "rejected"} <= {*part.column_names} for part in evaluated)
    if not known:
        return None
    columns = ("prompt", "chosen", "rejected")
    kept = (part.select_columns([name for name in columns if name in part.column_names]) for part in evaluated)
    rows = [row for part in kept for row in part]
    return rows if len(rows) == count else None


def _calibration(
    chosen: np.ndarray, rejected: np.ndarray, temperature: float, prompts: list[str] | None, notes: Sequence[str]
) -> Section:
    differences = chosen - rejected
    found = reward.calibration(differences, temperature)
    rows = [
        ("accuracy", show(reward.accuracy(differences, prompts, bootstrap=Bootstrap(RESAMPLES)))),
        ("calibration error", show(found.error)),
        ("the same if calibrated", show(found.error_if_calibrated)),
        ("confidence minus accuracy", f"{found.overconfidence:+.3f}"),
        ("temperature", show(temperature)),
    ]
    same = "The temperature was fitted on these pairs; recipes/evaluate.py measures on others."
    text = [ABOUT_CALIBRATION, " ".join([same, *notes])]
    drawn = [figures.reliability({"reward model": found}), figures.score_histogram("scores", "", chosen, rejected)]
    return Section("Calibration", text, [Table(["", f"{len(differences)} pairs"], rows)], drawn)


def _length(differences: np.ndarray, lengths: np.ndarray, bias: reward.LengthBias) -> Section:
    rows = [
        ("accuracy, shorter right", *_group(bias.shorter_right)),
        ("accuracy, longer right", *_group(bias.longer_right)),
        ("Spearman with length", str(len(lengths)), show(bias.spearman)),
    ]
    scatter = figures.length_scatter("length", "", differences, lengths)
    return Section("Length", [ABOUT_LENGTH], [Table(["", "pairs", "value"], rows)], [scatter])


def _group(group: reward.Group | None) -> tuple[str, str]:
    return ("0", "–") if group is None else (str(group.count), show(group.accuracy))
