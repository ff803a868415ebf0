"""The part of a report that is about a reward model: accuracy, calibration and length bias on its held-out pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer

from ..evaluation import figures, reward
from ..evaluation.page import Notice, Section, Table
from ..evaluation.pair_report import ABOUT_CALIBRATION, ABOUT_LENGTH
from ..evaluation.report import show
from ..evaluation.rows import text_of
from ..evaluation.statistics import Bootstrap
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
        eval_rows: The held-out rows as they were loaded. Lengths come from here, if no row was dropped since.
    """
    scores = getattr(trainer, "eval_scores", None)
    if scores is None:
        return PairSections()
    chosen, rejected = (part.numpy() for part in scores)
    differences = chosen - rejected
    sections = [_calibration(chosen, rejected, trainer.settings.temperature)]
    lengths = _length_differences(eval_rows)
    if lengths is None or len(lengths) != len(differences):
        return PairSections(sections)
    bias = reward.length_bias(differences, lengths, bootstrap=Bootstrap(RESAMPLES))
    notice = findings.prefers_length(bias)
    return PairSections([*sections, _length(differences, lengths, bias)], [notice] if notice else [])


def _calibration(chosen: np.ndarray, rejected: np.ndarray, temperature: float) -> Section:
    differences = chosen - rejected
    found = reward.calibration(differences, temperature)
    rows = [
        ("accuracy", show(reward.accuracy(differences, bootstrap=Bootstrap(RESAMPLES)))),
        ("calibration error", show(found.error)),
        ("the same if calibrated", show(found.error_if_calibrated)),
        ("confidence minus accuracy", f"{found.overconfidence:+.3f}"),
        ("temperature", show(temperature)),
    ]
    same = "The temperature was fitted on these pairs; recipes/evaluate.py measures on others."
    drawn = [figures.reliability({"reward model": found}), figures.score_histogram("scores", "", chosen, rejected)]
    return Section("Calibration", [ABOUT_CALIBRATION, same], [Table(["", f"{len(differences)} pairs"], rows)], drawn)


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


def _length_differences(rows: Any) -> np.ndarray | None:
    """Return the characters of the chosen answers minus those of the rejected ones, (N,)."""
    if not isinstance(rows, Dataset):
        return None
    return np.array([float(len(text_of(row["chosen"])) - len(text_of(row["rejected"]))) for row in rows])
