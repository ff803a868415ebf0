"""The report on preference pairs: one section for each question that one asks about a reward model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_ext.splits import keys

from . import figures, reward
from .page import Answer, Headline, Sample, Section, Table
from .report import Report, about_intervals, headline, names, prefixes, show, show_p
from .reward import Group
from .rows import Pairs, text_of
from .statistics import Array, Bootstrap

SAMPLES = 3
GROUPS_SHOWN = 20
ABOUT_CALIBRATION = (
    "Are the probabilities true? The expected calibration error is the mean distance between confidence and accuracy "
    "in bins of equally many pairs. On finitely many pairs it is never 0: beside it is what a perfectly calibrated "
    "model would show here."
)
ABOUT_LENGTH = (
    "Does the model mistake length for quality? Then it is good where the longer answer is right and bad where the "
    "shorter one is. Lengths are characters; the correlations are of score difference and length difference, chosen "
    "minus rejected."
)


@dataclass(frozen=True)
class ScoredPairs:
    """A model's scores of the chosen and the rejected answers, each (N,), and its temperature."""

    name: str
    chosen: Array
    rejected: Array
    temperature: float

    @property
    def differences(self) -> Array:
        """Chosen minus rejected, (N,)."""
        return self.chosen - self.rejected


def report_pairs(pairs: Pairs, models: Sequence[ScoredPairs], bootstrap: Bootstrap) -> Report:
    """Evaluate one model, or compare two, on preference pairs.

    Raises:
        MetricError: A score is not a finite number.
    """
    return _PairReport(pairs, models, bootstrap)


class _PairReport(Report):
    def __init__(self, pairs: Pairs, models: Sequence[ScoredPairs], bootstrap: Bootstrap) -> None:
        super().__init__()
        self.pairs, self.models, self.bootstrap = pairs, models, bootstrap
        self.prompts = keys(pairs.prompts)
        self.add("pairs", len(self.prompts))
        self.add("prompts", len(set(self.prompts)))
        self._accuracy()
        if len(models) > 1:
            self._comparison()
        self._calibration()
        self._length()
        self._strength()
        self._subsets()
        self._samples()

    def _accuracy(self) -> None:
        results = [reward.accuracy(m.differences, self.prompts, bootstrap=self.bootstrap) for m in self.models]
        for prefix, m, result in zip(prefixes(self.models), self.models, results, strict=True):
            self.add(f"{prefix}accuracy", result)
            self.add(f"{prefix}score_difference", float(m.differences.mean()))
        self.table.append(("accuracy", *map(show, results)))
        self.headlines += [headline(f"accuracy{self._of(m)}", r) for m, r in zip(self.models, results, strict=True)]
        rows = [
            (m.name, show(r), show(m.chosen.mean()), show(m.rejected.mean()), str(np.count_nonzero(m.differences == 0)))
            for m, r in zip(self.models, results, strict=True)
        ]
        text = (
            f"How often the chosen answer scores higher, on {len(self.prompts)} pairs with {len(set(self.prompts))} "
            "prompts; a tie counts one half."
        )
        self.sections.append(
            Section(
                "Accuracy",
                [text, about_intervals(self.prompts, self.bootstrap)],
                [Table(["model", "accuracy", "mean score, chosen", "rejected", "ties"], rows)],
                [
                    figures.score_histogram(f"{prefix}scores", self._title(m), m.chosen, m.rejected)
                    for prefix, m in zip(prefixes(self.models), self.models, strict=True)
                ],
            )
        )

    def _comparison(self) -> None:
        one, other = self.models
        result = reward.compare(one.differences, other.differences, self.prompts, bootstrap=self.bootstrap)
        for name in ("accuracy_difference", "mcnemar_p", "sign_flip_p", "agreement", "kappa"):
            self.add(name, getattr(result, name))
        repeated = len(set(self.prompts)) < len(self.prompts)
        p = result.sign_flip_p if repeated else result.mcnemar_p
        self.table.append(("difference of accuracy", f"{show(result.accuracy_difference)}, {show_p(p)}", ""))
        self.table.append(("agreement", f"{result.agreement:.3f}, kappa {show(result.kappa)}", ""))
        self.headlines.append(headline("difference of accuracy", result.accuracy_difference, signed=True))
        clear = result.accuracy_difference.low > 0 or result.accuracy_difference.high < 0
        verdict = (
            f"{(one if result.accuracy_difference.value > 0 else other).name} is better on these pairs."
            if clear and p < 0.05
            else "These pairs do not show which of the two is better."
        )
        rows = [
            ("accuracy, first minus second", show(result.accuracy_difference)),
            ("pairs only the first gets right", str(result.only_a)),
            ("pairs only the second gets right", str(result.only_b)),
            ("McNemar's exact test (independent pairs)", show_p(result.mcnemar_p)),
            ("sign-flip test by prompt", show_p(result.sign_flip_p)),
            ("pairs on which both agree", f"{result.agreement:.3f}"),
            ("Cohen's kappa", show(result.kappa)),
        ]
        text = f"{one.name} (first) and {other.name} (second) on the same pairs. {verdict}"
        if repeated:
            text += " Prompts repeat here, so believe the test by prompt."
        kappa = "Kappa is 0 if the mistakes of the two are unrelated and 1 if they are the same."
        self.sections.append(Section("Comparison", [text, kappa], [Table(["", ""], rows)]))

    def _calibration(self) -> None:
        results = [reward.calibration(m.differences, m.temperature) for m in self.models]
        for prefix, m, result in zip(prefixes(self.models), self.models, results, strict=True):
            self.add(f"{prefix}calibration_error", result.error)
            self.add(f"{prefix}calibration_error_if_calibrated", result.error_if_calibrated)
            self.add(f"{prefix}overconfidence", result.overconfidence)
            self.add(f"{prefix}temperature", m.temperature)
        self.table.append(("calibration error", *(show(result.error) for result in results)))
        for m, result in zip(self.models, results, strict=True):
            note = f"{result.error_if_calibrated:.3f} expected of a calibrated model"
            self.headlines.append(Headline(f"calibration error{self._of(m)}", show(result.error), note))
        rows = [
            (m.name, show(r.error), show(r.error_if_calibrated), f"{r.overconfidence:+.3f}", show(m.temperature))
            for m, r in zip(self.models, results, strict=True)
        ]
        self.sections.append(
            Section(
                "Calibration",
                [ABOUT_CALIBRATION],
                [Table(["model", "error", "if calibrated", "confidence minus accuracy", "temperature"], rows)],
                [figures.reliability({m.name: r for m, r in zip(self.models, results, strict=True)})],
            )
        )

    def _length(self) -> None:
        lengths = np.array(
            [
                float(len(text_of(chosen)) - len(text_of(rejected)))
                for chosen, rejected in zip(self.pairs.chosen, self.pairs.rejected, strict=True)
            ]
        )
        results = [
            reward.length_bias(m.differences, lengths, self.prompts, bootstrap=self.bootstrap) for m in self.models
        ]
        for prefix, result in zip(prefixes(self.models), results, strict=True):
            self.add(f"{prefix}length_spearman", result.spearman)
            self.add(f"{prefix}length_pearson", result.pearson)
            for name, group in (("shorter", result.shorter_right), ("longer", result.longer_right)):
                self.add(f"{prefix}accuracy_{name}_right", group and group.accuracy)
        first = results[0]
        counts = [str(group.count if group else 0) for group in (first.shorter_right, first.longer_right)]
        rows = [
            (
                "accuracy, shorter right",
                counts[0],
                *(show(r.shorter_right and r.shorter_right.accuracy) for r in results),
            ),
            (
                "accuracy, longer right",
                counts[1],
                *(show(r.longer_right and r.longer_right.accuracy) for r in results),
            ),
            ("Spearman with length", str(len(lengths)), *(show(r.spearman) for r in results)),
            ("Pearson with length", str(len(lengths)), *(show(r.pearson) for r in results)),
        ]
        self.table += [(label, *values) for label, _, *values in rows[:3]]
        self.sections.append(
            Section(
                "Length",
                [ABOUT_LENGTH, f"Pairs whose answers have the same length: {first.same_length}."],
                [Table(["", "pairs", *names(self.models)], rows)],
                [
                    figures.length_scatter(f"{prefix}length", self._title(m), m.differences, lengths)
                    for prefix, m in zip(prefixes(self.models), self.models, strict=True)
                ],
            )
        )

    def _strength(self) -> None:
        known = [i for i, strength in enumerate(self.pairs.strengths or []) if strength is not None]
        if not known:
            return
        strengths, own_prompts = [self.pairs.strengths[i] for i in known], [self.prompts[i] for i in known]

        def groups(m: ScoredPairs) -> list[Group]:
            return reward.accuracy_by_strength(m.differences[known], strengths, own_prompts, bootstrap=self.bootstrap)

        results = [groups(m) for m in self.models]
        self._add_groups("accuracy_by_strength", results)
        section = Section(
            "Strength",
            [
                f"Accuracy on weak and on strong preferences, in groups of about equally many pairs. {len(known)} of "
                f"{len(self.prompts)} pairs say how strong theirs is."
            ],
            [self._group_table("strength", results)],
            [figures.accuracy_by_strength({m.name: r for m, r in zip(self.models, results, strict=True)})],
        )
        self.sections.append(section)

    def _subsets(self) -> None:
        if self.pairs.subsets is None or len(set(self.pairs.subsets)) < 2:
            return
        results = [
            reward.accuracy_by(m.differences, self.pairs.subsets, self.prompts, bootstrap=self.bootstrap)
            for m in self.models
        ]
        self._add_groups("accuracy_by_subset", results)
        text = []
        if len(results[0]) > GROUPS_SHOWN:
            text = [f"The largest {GROUPS_SHOWN} of {len(results[0])}; all_results.json has all."]
        table = self._group_table("subset", [groups[:GROUPS_SHOWN] for groups in results])
        self.sections.append(Section("Subsets", text, [table]))

    def _samples(self) -> None:
        m = self.models[0]
        order = np.argsort(m.differences, kind="stable")
        wrong, right = order[m.differences[order] < 0], order[::-1][m.differences[order[::-1]] > 0]
        closest = np.argsort(np.abs(m.differences), kind="stable")
        for heading, text, chosen in (
            ("Most wrong pairs", "The rejected answer scores higher by the most.", wrong),
            ("Closest pairs", "The two answers score almost the same.", closest),
            ("Most right pairs", "The chosen answer scores higher by the most.", right),
        ):
            samples = [self._sample(m, int(row)) for row in chosen[:SAMPLES]]
            if samples:
                self.sections.append(Section(heading + self._of(m), [text], samples=samples))

    def _sample(self, m: ScoredPairs, row: int) -> Sample:
        return Sample(
            text_of(self.pairs.prompts[row]),
            [
                Answer("chosen", text_of(self.pairs.chosen[row]), f"{m.chosen[row]:.2f}", good=True),
                Answer("rejected", text_of(self.pairs.rejected[row]), f"{m.rejected[row]:.2f}", good=False),
            ],
        )

    def _add_groups(self, name: str, results: Sequence[Sequence[Group]]) -> None:
        for prefix, groups in zip(prefixes(self.models), results, strict=True):
            for group in groups:
                self.add(f"{prefix}{name}/{group.name}", group.accuracy)

    def _group_table(self, label: str, results: Sequence[Sequence[Group]]) -> Table:
        rows = [
            (groups[0].name, str(groups[0].count), *(show(group.accuracy) for group in groups))
            for groups in zip(*results, strict=True)
        ]
        return Table([label, "pairs", *names(self.models)], rows)

    def _of(self, m: ScoredPairs) -> str:
        return f" of {m.name}" if len(self.models) > 1 else ""

    def _title(self, m: ScoredPairs) -> str:
        return m.name if len(self.models) > 1 else ""
