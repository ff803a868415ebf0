"""Are a reward model's probabilities true? Calibration error, and the temperature and offset that set them right.

Symbols as in `reward`: d is the score difference of a pair, chosen minus rejected, and sigmoid(d / T) the probability
that the chosen answer is better. Wrong input raises `MetricError`.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.special import expit

from .statistics import Array, MetricError, as_numbers, quantile_bins

logger = logging.getLogger(__name__)


def correctness(differences: ArrayLike) -> Array:
    """Return 1 for each pair whose chosen answer scores higher, 0 for lower, 1/2 for a tie, shape (N,)."""
    return (np.sign(as_numbers(differences, "score differences")) + 1) / 2


@dataclass(frozen=True)
class Calibration:
    """The reliability diagram's points, one per bin, and what they add up to.

    Attributes:
        error: The expected calibration error, from 0 to 1/2.
        error_if_calibrated: What a perfectly calibrated model with the same confidences would show on so few pairs,
            on average. Finite bins are never exactly right, so an error of this size is no sign of miscalibration.
        overconfidence: Mean confidence minus accuracy; negative if the model is right more often than it claims.
        confidences: Mean confidence of each bin, from 1/2 to 1, shape (bins,).
        accuracies: Accuracy of each bin, shape (bins,).
        counts: Pairs in each bin, shape (bins,).
    """

    error: float
    error_if_calibrated: float
    overconfidence: float
    confidences: Array
    accuracies: Array
    counts: Array


def calibration(
    differences: ArrayLike, temperature: float = 1.0, *, bins: int = 10, resamples: int = 200, seed: int = 0
) -> Calibration:
    """Compare how sure the model is with how often it is right.

    The confidence in the predicted winner, sigmoid(|d| / T), is compared with the accuracy in bins that hold about
    equally many pairs:

        ECE = sum over bins of (pairs in bin / N) * |accuracy of bin - mean confidence of bin|

    (C. Guo et al., "On Calibration of Modern Neural Networks", 2017, with the equal-mass bins of K. Nguyen and
    B. O'Connor, 2015.) It is folded to the winner because the plain form has nothing to compare with: which answer
    comes first is arbitrary, and with the chosen one always first every outcome would be 1.

    Args:
        differences: Score differences, chosen minus rejected, (N,).
        temperature: T > 0, of the model.
        bins: How many bins; fewer where confidences are equal.
        resamples: How many calibrated outcomes are simulated for `error_if_calibrated`.
        seed: For these.
    """
    right = correctness(differences)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise MetricError(f"temperature must be a positive number, not {temperature}.")
    confidence = expit(np.abs(np.asarray(differences, dtype=np.float64)) / temperature)
    _, bin_of = np.unique(quantile_bins(confidence, bins), return_inverse=True)
    counts = np.bincount(bin_of)
    confidences = np.bincount(bin_of, weights=confidence) / counts

    def error(outcomes: Array) -> tuple[float, Array]:
        accuracies = np.bincount(bin_of, weights=outcomes) / counts
        return float(counts @ np.abs(accuracies - confidences) / counts.sum()), accuracies

    rng = np.random.default_rng(seed)
    simulated = [error(rng.random(right.size) < confidence)[0] for _ in range(resamples)]
    measured, accuracies = error(right)
    return Calibration(
        error=measured,
        error_if_calibrated=float(np.mean(simulated)),
        overconfidence=float(confidence.mean() - right.mean()),
        confidences=confidences,
        accuracies=accuracies,
        counts=counts,
    )


def fit_temperature(differences: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the temperature T > 0 that minimises the (weighted) mean of -log sigmoid(d / T) on held-out pairs.

    This is temperature scaling (C. Guo et al., 2017): it changes probabilities and no decision. The mean is convex in
    1/T, so a bounded search on log T finds the one minimum. T scales with the scores: c * d gives c * T. Three cases
    have no minimum; each gets a usable temperature and a logged warning:

    - every d is 0: nothing depends on T, and it is 1;
    - no d is negative (perfectly separated): T would go to 0 and every probability to 1. Instead of certainty the
      targets are (N + 1) / (N + 2), as in J. Platt, "Probabilistic Outputs for Support Vector Machines" (1999);
    - the mean of d is not positive (no better than chance): T would be infinite. It is 1000 times the mean of |d|, so
      that probabilities are near 1/2.

    Args:
        differences: Held-out score differences, chosen minus rejected, (N,).
        weights: Non-negative weight of each pair, (N,); all equal by default.
    """
    d = as_numbers(differences, "score differences")
    weights = _normalized(weights, d.size)
    scale = float(weights @ np.abs(d))
    if scale == 0:
        logger.warning("every score difference is 0, so the temperature is arbitrary: 1.0.")
        return 1.0
    if weights @ d <= 0:
        logger.warning(
            "the scores do not prefer the chosen answers on average; the temperature makes probabilities near 1/2."
        )
        return 1000 * scale
    used = d[weights > 0]
    target = 1.0
    if used.min() >= 0:
        target = (used.size + 1) / (used.size + 2)
        logger.warning("the scores order every held-out pair as wanted; the temperature aims at %.4g, not 1.", target)

    def loss(log_temperature: float) -> float:
        logits = d / (scale * math.exp(log_temperature))
        return float(weights @ (target * np.logaddexp(0, -logits) + (1 - target) * np.logaddexp(0, logits)))

    bound = math.log(1000)
    found = optimize.minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-9})
    return scale * math.exp(float(found.x))


def _normalized(weights: ArrayLike | None, size: int) -> Array:
    weights = np.ones(size) if weights is None else as_numbers(weights, "weights", size=size)
    if weights.min() < 0 or weights.sum() == 0:
        raise MetricError("weights must not be negative, and not all zero.")
    return weights / weights.sum()
