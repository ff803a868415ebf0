"""Uncertainty of a measured value, and paired tests, for rows that may belong together.

Several pairs often share one prompt, and a model that misreads the prompt gets all of them wrong: such rows are not
independent, and treating them so gives intervals that are too narrow. Everything here that takes `clusters` therefore
draws whole clusters (all rows of a prompt) with replacement; see A. C. Davison and D. V. Hinkley, "Bootstrap Methods
and their Application" (1997), section 3.8.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Array = np.ndarray


class MetricError(ValueError):
    """Values from which a metric cannot be computed. The message says which and why."""


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval; `low` and `high` are NaN where rows are too few or too alike."""

    value: float
    low: float
    high: float


def as_numbers(values: ArrayLike, name: str, *, size: int | None = None) -> Array:
    """Return `values` as a float64 array of shape (N,).

    Raises:
        MetricError: They are empty, not one-dimensional, not finite, or not `size` many.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise MetricError(f"{name} must have shape (N,), not {array.shape}.")
    if not array.size:
        raise MetricError(f"{name}: there are none.")
    if size is not None and array.size != size:
        raise MetricError(f"{name}: there are {array.size}, where {size} are needed.")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise MetricError(f"{name}: number {bad[0] + 1} is {array[bad[0]]}, and {bad.size} in all are not finite.")
    return array


def number_clusters(clusters: Sequence[Hashable] | None, rows: int) -> Array:
    """Return a cluster number from 0 for each row; every row is its own cluster where `clusters` is None.

    Raises:
        MetricError: There is not one cluster for each row.
    """
    if clusters is None:
        return np.arange(rows)
    if len(clusters) != rows:
        raise MetricError(f"clusters: there are {len(clusters)}, where {rows} are needed.")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(cluster, len(number)) for cluster in clusters])


def rows_of_clusters(numbers: Array) -> list[Array]:
    """Return the row indices of each cluster numbered by `number_clusters`."""
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


def independent_units(clusters: Sequence[Hashable] | None, rows: int) -> Array:
    """Return the number of the unit that each row is drawn with: its cluster, or itself where there is one cluster.

    About a single prompt a statement can be made only for this prompt, and there its rows are the units.
    """
    numbers = number_clusters(clusters, rows)
    return numbers if numbers.any() else np.arange(rows)


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap intervals (B. Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979).

    Args:
        resamples: How often the rows are drawn anew.
        confidence: The part of the resampled values that the interval holds.
        seed: The same seed gives the same interval.
    """

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise MetricError("a bootstrap needs at least 1 resample and a confidence between 0 and 1.")

    def mean(self, values: ArrayLike, clusters: Sequence[Hashable] | None = None) -> Estimate:
        """Return the mean of `values` (N,) with its interval.

        Raises:
            MetricError: As in `as_numbers`.
        """
        values = as_numbers(values, "values")
        ids = independent_units(clusters, values.size)
        # The mean of a resample is a ratio of sums over clusters, and these need no rows.
        sums, sizes = np.bincount(ids, weights=values), np.bincount(ids).astype(float)
        low, high = self._interval(
            (sums, sizes), lambda sums, sizes, axis=-1: sums.sum(axis) / sizes.sum(axis), vectorized=True
        )
        return Estimate(float(values.mean()), low, high)

    def statistic(
        self,
        statistic: Callable[..., float],
        *columns: Array,
        clusters: Sequence[Hashable] | None = None,
    ) -> Estimate:
        """Return `statistic(*columns)` with its interval; the rows of all columns are drawn together.

        Resamples in which the statistic is not finite (a correlation where one side is constant) are left out.
        """
        members = rows_of_clusters(independent_units(clusters, len(columns[0])))

        def of_clusters(drawn: Array) -> float:
            rows = np.concatenate([members[cluster] for cluster in drawn])
            return statistic(*(column[rows] for column in columns))

        low, high = self._interval((np.arange(len(members)),), of_clusters, vectorized=False)
        return Estimate(float(statistic(*columns)), low, high)

    def _interval(
        self, columns: tuple[Array, ...], statistic: Callable[..., float], *, vectorized: bool
    ) -> tuple[float, float]:
        if len(columns[0]) < 2:
            return math.nan, math.nan
        with warnings.catch_warnings():  # of resamples without a value, which are left out below
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            drawn = stats.bootstrap(
                columns,
                statistic,
                paired=True,
                vectorized=vectorized,
                n_resamples=self.resamples,
                batch=max(1, 1_000_000 // len(columns[0])),  # bounds the memory
                method="percentile",
                rng=np.random.default_rng(self.seed),
            ).bootstrap_distribution
        finite = drawn[np.isfinite(drawn)]
        if not finite.size or np.ptp(finite) < 1e-12:  # equal resamples say nothing of what was not seen
            return math.nan, math.nan
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(finite, [tail, 1 - tail])
        return float(low), float(high)


BOOTSTRAP = Bootstrap()


def sign_test(differences: ArrayLike) -> float:
    """Return the two-sided p-value of the exact sign test: are positive and negative differences equally likely?

    Zeros say nothing and are left out; with zeros only, p is 1. On the difference of two models' right (1) and wrong
    (0) it is McNemar's exact test (Q. McNemar, 1947). It takes the rows to be independent.

    Raises:
        MetricError: As in `as_numbers`.
    """
    differences = as_numbers(differences, "differences")
    positive, negative = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(positive, positive + negative).pvalue) if positive + negative else 1.0


def sign_flip_test(
    differences: ArrayLike, clusters: Sequence[Hashable] | None = None, *, resamples: int = 9999, seed: int = 0
) -> float:
    """Return the two-sided p-value of the paired permutation test that the mean difference is 0.

    If nothing distinguishes the two models, the differences of a whole cluster may as well have the other sign
    (R. A. Fisher, "The Design of Experiments", 1935). Unlike `sign_test` it allows rows that belong together. Few
    clusters are permuted exhaustively, many `resamples` times at random.

    Raises:
        MetricError: As in `as_numbers`.
    """
    differences = as_numbers(differences, "differences")
    sums = np.bincount(independent_units(clusters, differences.size), weights=differences)
    sums = sums[sums != 0]  # a sum of zero has no sign to flip
    if sums.size < 2:  # one sum and its opposite are equally extreme
        return 1.0
    result = stats.permutation_test(
        (sums,),
        lambda sums, axis=-1: sums.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 1_000_000 // sums.size),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def exact_proportion(successes: int, trials: int, confidence: float) -> Estimate:
    """Return a proportion with its exact interval (C. J. Clopper and E. S. Pearson, 1934)."""
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def proportion(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    least: float = 0.0,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Estimate:
    """Return the mean of values from `least` to 1 with its interval.

    Where all are equal, every resample is too and the bootstrap's interval would be a point. In its place stands the
    interval from (1 - u) value + u least to (1 - u) value + u, where u is the upper end of the exact binomial interval
    of what was never seen: a part u of all clusters may be different, and at worst all of those have the least value,
    or the greatest.

    Args:
        values: (N,).
        clusters: The cluster of each, such as its prompt.
        least: The least that a value can be: 0 for a proportion, -1 for the difference of two.
        bootstrap: For the interval.

    Raises:
        MetricError: As in `as_numbers`.
    """
    values = as_numbers(values, "values")
    if np.ptp(values) > 0:
        return bootstrap.mean(values, clusters)
    independent = int(independent_units(clusters, values.size).max()) + 1
    different = exact_proportion(0, independent, bootstrap.confidence).high
    value = float(values[0])
    rest = (1 - different) * value
    return Estimate(value, rest + different * least, rest + different)


def quantile_bins(values: ArrayLike, bins: int) -> Array:
    """Return a bin number for each value, so that the bins hold about equally many and equal values share one.

    Where there are no more than `bins` distinct values, each has its own bin. Bins may be missing: those numbers do
    not occur.

    Raises:
        MetricError: As in `as_numbers`, or there is less than one bin.
    """
    values = as_numbers(values, "values")
    if bins < 1:
        raise MetricError(f"there must be at least 1 bin, not {bins}.")
    distinct, own_bin = np.unique(values, return_inverse=True)
    if distinct.size <= bins:
        return own_bin
    return ((stats.rankdata(values, method="min") - 1) * bins // values.size).astype(int)
