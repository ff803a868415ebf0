"""How good is a reward model? Metrics on the differences of its scores, chosen minus rejected, and on human ratings.

Symbols: d is the score difference of a pair, shape (N,), positive where the model is right; T the temperature that
turns it into the probability sigmoid(d / T) that the chosen answer is better. A tie (d = 0) is right by half, as of a
model that tosses a coin. `prompts` tells which rows share a prompt (any hashable values) and makes the intervals
respect that (see `statistics`). Wrong input raises `MetricError`.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .calibration import Calibration, calibration, correctness, fit_temperature
from .statistics import (
    BOOTSTRAP,
    Array,
    Bootstrap,
    Estimate,
    MetricError,
    as_numbers,
    number_clusters,
    proportion,
    quantile_bins,
    rows_of_clusters,
    sign_flip_test,
    sign_test,
)

Prompts = Sequence[Hashable] | None
Correlation = Callable[[Array, Array], float]
__all__ = [
    "Calibration",
    "Comparison",
    "Group",
    "LengthBias",
    "RatingCorrelation",
    "accuracy",
    "accuracy_by",
    "accuracy_by_strength",
    "calibration",
    "compare",
    "correctness",
    "correlation_with_ratings",
    "fit_temperature",
    "length_bias",
    "pearson",
    "spearman",
]


def accuracy(differences: ArrayLike, prompts: Prompts = None, *, bootstrap: Bootstrap = BOOTSTRAP) -> Estimate:
    """Return the fraction of pairs whose chosen answer scores higher, with its interval (see `proportion`)."""
    return proportion(correctness(differences), prompts, bootstrap=bootstrap)


def spearman(x: Array, y: Array) -> float:
    """Return Spearman's rank correlation of two arrays (N,); NaN where one of them is constant."""
    return pearson(stats.rankdata(x), stats.rankdata(y))


def pearson(x: Array, y: Array) -> float:
    """Return Pearson's correlation of two arrays (N,); NaN where one of them is constant."""
    return math.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])


@dataclass(frozen=True)
class RatingCorrelation:
    """Correlation of scores with ratings.

    Attributes:
        spearman: Over all rows: does a higher score go with a higher rating?
        pearson: Over all rows: is the relation linear?
        within_spearman: The rank correlation among the answers to one prompt, averaged over prompts; None where no
            prompt has two answers with different ratings. Best-of-n and policy training depend on this one: over all
            rows, a model also gains by knowing which prompts are easy.
        within_pearson: The same with Pearson's correlation.
        prompts_within: How many prompts that is.
    """

    spearman: Estimate
    pearson: Estimate
    within_spearman: Estimate | None
    within_pearson: Estimate | None
    prompts_within: int


def correlation_with_ratings(
    scores: ArrayLike, ratings: ArrayLike, prompts: Prompts = None, *, bootstrap: Bootstrap = BOOTSTRAP
) -> RatingCorrelation:
    """Correlate the scores of rated answers with their ratings.

    Where all answers to a prompt score the same but are rated differently, the correlation there counts as 0.

    Args:
        scores: (N,).
        ratings: (N,), higher is better.
        prompts: Which rows share a prompt.
        bootstrap: For the intervals.
    """
    scores, ratings = as_numbers(scores, "scores"), as_numbers(ratings, "ratings", size=len(scores))
    for name, values in (("rating", ratings), ("score", scores)):
        if np.ptp(values) == 0:
            raise MetricError(f"every {name} is {values[0]:g}: nothing to correlate with.")
    rows_of = rows_of_clusters(number_clusters(prompts, scores.size))
    told_apart = [rows for rows in rows_of if np.ptp(ratings[rows]) > 0]

    def within(correlation: Correlation) -> Estimate | None:
        values = [correlation(scores[rows], ratings[rows]) for rows in told_apart]
        return bootstrap.mean(np.nan_to_num(values)) if values else None

    return RatingCorrelation(
        spearman=bootstrap.statistic(spearman, scores, ratings, clusters=prompts),
        pearson=bootstrap.statistic(pearson, scores, ratings, clusters=prompts),
        within_spearman=within(spearman),
        within_pearson=within(pearson),
        prompts_within=len(told_apart),
    )


@dataclass(frozen=True)
class Group:
    """The accuracy on some of the pairs."""

    name: str
    count: int
    accuracy: Estimate


def accuracy_by(
    differences: ArrayLike, groups: Sequence[str], prompts: Prompts = None, *, bootstrap: Bootstrap = BOOTSTRAP
) -> list[Group]:
    """Return the accuracy on each group of pairs, the largest group first.

    Args:
        differences: Score differences, chosen minus rejected, (N,).
        groups: The group of each pair: a source, a category.
        prompts: Which rows share a prompt.
        bootstrap: For the intervals.
    """
    differences = as_numbers(differences, "score differences", size=len(groups))
    names, group_of, counts = np.unique(np.asarray(groups, dtype=str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [_group(str(names[g]), group_of == g, differences, prompts, bootstrap) for g in order]


def accuracy_by_strength(
    differences: ArrayLike,
    strengths: ArrayLike,
    prompts: Prompts = None,
    *,
    bins: int = 4,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> list[Group]:
    """Return the accuracy on pairs of similar strength, weakest first; `statistics.quantile_bins` forms the groups.

    Args:
        differences: Score differences, chosen minus rejected, (N,).
        strengths: How clearly the chosen answer was preferred, (N,), in any unit.
        prompts: Which rows share a prompt.
        bins: How many groups.
        bootstrap: For the intervals.
    """
    differences = as_numbers(differences, "score differences")
    strengths = as_numbers(strengths, "strengths", size=differences.size)
    bin_of = quantile_bins(strengths, bins)
    groups = []
    for number in np.unique(bin_of):
        members = bin_of == number
        low, high = strengths[members].min(), strengths[members].max()
        name = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        groups.append(_group(name, members, differences, prompts, bootstrap))
    return groups


def _group(name: str, members: Array, differences: Array, prompts: Prompts, bootstrap: Bootstrap) -> Group:
    own_prompts = None if prompts is None else [prompts[row] for row in np.flatnonzero(members)]
    return Group(name, int(members.sum()), accuracy(differences[members], own_prompts, bootstrap=bootstrap))


@dataclass(frozen=True)
class LengthBias:
    """How scores go with length.

    Attributes:
        spearman: Rank correlation of score difference and length difference; None where one of them is constant.
        pearson: The linear one.
        shorter_right: Accuracy where the chosen answer is the shorter one; None where there is no such pair.
        longer_right: Accuracy where it is the longer one. A model that counts words has 0 above and 1 here.
        same_length: How many pairs are in neither.
    """

    spearman: Estimate | None
    pearson: Estimate | None
    shorter_right: Group | None
    longer_right: Group | None
    same_length: int


def length_bias(
    differences: ArrayLike, length_differences: ArrayLike, prompts: Prompts = None, *, bootstrap: Bootstrap = BOOTSTRAP
) -> LengthBias:
    """Relate score differences to length differences.

    The correlations alone do not show a bias, because people may really prefer longer answers in these pairs; a gap
    between the two accuracies does.

    Args:
        differences: Score differences, chosen minus rejected, (N,).
        length_differences: Length differences, chosen minus rejected, (N,), in any unit.
        prompts: Which rows share a prompt.
        bootstrap: For the intervals.
    """
    differences = as_numbers(differences, "score differences")
    lengths = as_numbers(length_differences, "length differences", size=differences.size)
    varied = np.ptp(differences) > 0 and np.ptp(lengths) > 0

    def correlated(correlation: Correlation) -> Estimate | None:
        return bootstrap.statistic(correlation, differences, lengths, clusters=prompts) if varied else None

    def where(name: str, members: Array) -> Group | None:
        return _group(name, members, differences, prompts, bootstrap) if members.any() else None

    return LengthBias(
        spearman=correlated(spearman),
        pearson=correlated(pearson),
        shorter_right=where("shorter is right", lengths < 0),
        longer_right=where("longer is right", lengths > 0),
        same_length=int((lengths == 0).sum()),
    )


@dataclass(frozen=True)
class Comparison:
    """Two models, A and B, on the same pairs.

    Attributes:
        accuracy_difference: Accuracy of A minus that of B, with the interval of this difference.
        only_a: Pairs on which A does better than B (right against wrong, or a tie in between).
        only_b: Pairs on which B does better.
        mcnemar_p: p-value of McNemar's exact test, which takes pairs to be independent.
        sign_flip_p: p-value of the permutation test by prompts, which does not. Believe this one where prompts repeat.
        agreement: The fraction of pairs in which both prefer the same answer.
        kappa: Cohen's kappa of these preferences, chosen or rejected: agreement beyond what their accuracies alone
            make likely, so 0 for models with unrelated mistakes and 1 for the same mistakes (R. Geirhos et al., "Beyond
            accuracy", 2020, call it error consistency); None where both always prefer the same side.
    """

    accuracy_difference: Estimate
    only_a: int
    only_b: int
    mcnemar_p: float
    sign_flip_p: float
    agreement: float
    kappa: float | None


def compare(
    differences_a: ArrayLike, differences_b: ArrayLike, prompts: Prompts = None, *, bootstrap: Bootstrap = BOOTSTRAP
) -> Comparison:
    """Compare two models on the same pairs.

    Args:
        differences_a: Score differences of model A, chosen minus rejected, (N,).
        differences_b: Those of model B, in the same order.
        prompts: Which rows share a prompt.
        bootstrap: For the interval.
    """
    right_a = correctness(differences_a)
    right_b = correctness(as_numbers(differences_b, "score differences of the other model", size=right_a.size))
    difference = right_a - right_b
    agreement = float((difference == 0).mean())
    expected = sum(float((right_a == side).mean() * (right_b == side).mean()) for side in (0, 0.5, 1))
    return Comparison(
        accuracy_difference=proportion(difference, prompts, least=-1.0, bootstrap=bootstrap),
        only_a=int((difference > 0).sum()),
        only_b=int((difference < 0).sum()),
        mcnemar_p=sign_test(difference),
        sign_flip_p=sign_flip_test(difference, prompts, seed=bootstrap.seed),
        agreement=agreement,
        kappa=None if expected == 1 else (agreement - expected) / (1 - expected),
    )
