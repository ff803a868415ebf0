"""Intervals and paired tests against hand-worked numbers, plain loops, and simulated truth."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf_ext.evaluation.statistics import (
    Bootstrap,
    MetricError,
    exact_proportion,
    quantile_bins,
    sign_flip_test,
    sign_test,
)

QUICK = Bootstrap(resamples=300)


def simulated_prompts(rng, prompts=40, pairs=8):
    """Pairs whose chance to be right depends on their prompt; the true mean over all prompts is 0.6."""
    chance = rng.beta(1.2, 0.8, prompts)
    right = rng.random((prompts, pairs)) < chance[:, None]
    return right.astype(float).ravel(), np.repeat(np.arange(prompts), pairs).tolist()


def test_interval_of_prompts_covers_the_truth_as_often_as_it_says_and_that_of_rows_does_not():
    rng = np.random.default_rng(1)
    covered = {"prompts": 0, "rows": 0}
    for _ in range(200):
        right, prompts = simulated_prompts(rng)
        for name, clusters in (("prompts", prompts), ("rows", None)):
            interval = QUICK.mean(right, clusters)
            covered[name] += interval.low <= 0.6 <= interval.high
    assert 0.90 <= covered["prompts"] / 200 <= 0.985
    assert covered["rows"] / 200 < 0.75


def test_interval_of_independent_rows_covers_the_truth():
    rng = np.random.default_rng(2)
    intervals = [QUICK.mean(rng.random(120) < 0.7) for _ in range(200)]
    assert 0.90 <= np.mean([interval.low <= 0.7 <= interval.high for interval in intervals]) <= 0.985


def test_interval_width_is_that_of_the_normal_approximation():
    right = np.arange(1000) % 4 > 0
    interval = Bootstrap(resamples=4000, confidence=0.9).mean(right)
    assert interval.value == 0.75
    half = 1.645 * math.sqrt(0.75 * 0.25 / 1000)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.07)


def test_mean_equals_the_general_bootstrap_and_a_plain_loop():
    right, prompts = simulated_prompts(np.random.default_rng(3), prompts=12, pairs=5)
    right, prompts = right[:-3], prompts[:-3]  # prompts of different size
    fast = QUICK.mean(right, prompts)
    general = QUICK.statistic(lambda values: values.mean(), right, clusters=prompts)
    assert (fast.low, fast.high) == pytest.approx((general.low, general.high))
    rng, means = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = [value for p in rng.integers(0, 12, 12) for value in right[np.array(prompts) == p]]
        means.append(np.mean(drawn))
    assert (fast.low, fast.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.04)


def test_columns_are_drawn_together():
    x = np.random.default_rng(4).normal(size=30)
    interval = QUICK.statistic(lambda a, b: a.mean() * np.corrcoef(a, b)[0, 1], x, 2 * x)
    mean = QUICK.mean(x)  # as the correlation is 1 in each resample
    assert (interval.value, interval.low, interval.high) == pytest.approx((mean.value, mean.low, mean.high))


def test_resamples_that_are_all_equal_give_no_interval():
    x = np.random.default_rng(4).normal(size=30)
    interval = QUICK.statistic(lambda a, b: np.corrcoef(a, b)[0, 1], x, 2 * x)
    assert interval.value == pytest.approx(1) and np.isnan([interval.low, interval.high]).all()


def test_one_prompt_is_resampled_by_rows_and_one_row_has_no_interval():
    right = [1, 0, 1, 1, 0, 1]
    assert QUICK.mean(right, ["the same"] * 6) == QUICK.mean(right)
    alone = QUICK.mean([1.0])
    assert alone.value == 1 and math.isnan(alone.low) and math.isnan(alone.high)


def test_undefined_resamples_are_left_out():
    x, y = np.array([0.0, 0.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])

    def correlation(a, b):
        return math.nan if np.ptp(a) == 0 or np.ptp(b) == 0 else np.corrcoef(a, b)[0, 1]

    interval = QUICK.statistic(correlation, x, y)
    assert -1 <= interval.low <= interval.value <= interval.high <= 1


def test_sign_test_by_hand():
    # 1 against 7 of 8: p = 2 * (C(8, 0) + C(8, 1)) / 2^8 = 18 / 256; zeros do not count.
    assert sign_test([1, 1, 1, 1, 1, 1, 1, -1, 0, 0]) == pytest.approx(18 / 256)
    # 121 against 59 discordant pairs, a textbook table of McNemar's test.
    assert sign_test([1] * 121 + [-1] * 59) == pytest.approx(2 * stats.binom.cdf(59, 180, 0.5))
    assert sign_test([0.2, -3]) == 1
    assert sign_test([0, 0]) == 1


def test_sign_flip_test_by_hand():
    # Sums 3, 1, 2: only (3, 1, 2) and its opposite are as extreme as 6 among the 8 sign patterns.
    assert sign_flip_test([3, 1, 2]) == pytest.approx(2 / 8)
    # Of sums 3, 1, -2 (total 2) the patterns with |total| >= 2: 2, 6, 4 and their opposites.
    assert sign_flip_test([3, 1, -2]) == pytest.approx(6 / 8)
    # Rows of one prompt flip together: two prompts with sums 2 and 2.
    assert sign_flip_test([1, 1, 1, 1], ["a", "a", "b", "b"]) == pytest.approx(2 / 4)
    assert sign_flip_test([1, -1], ["a", "a"]) == 1
    assert sign_flip_test([0, 0]) == 1


def test_repeated_prompts_make_the_independent_test_reject_too_often():
    """Under the null hypothesis a true 5% test rejects about 5% of the time."""
    rng = np.random.default_rng(5)
    rejected = {"flip": 0, "sign": 0}
    for _ in range(200):
        # One model is better on a whole prompt, the other on the next, by chance.
        differences = np.repeat(rng.choice([-1, 1], 30), 6)
        prompts = np.repeat(np.arange(30), 6).tolist()
        rejected["flip"] += sign_flip_test(differences, prompts, resamples=500) < 0.05
        rejected["sign"] += sign_test(differences) < 0.05
    assert rejected["flip"] / 200 <= 0.10
    assert rejected["sign"] / 200 > 0.25


def test_exact_proportion_is_the_rule_of_three():
    perfect = exact_proportion(100, 100, 0.95)
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(0.025 ** (1 / 100))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.integers(1, 8))
@settings(deadline=None)
def test_quantile_bins_keep_order_and_ties(values, bins):
    numbers = quantile_bins(values, bins)
    assert numbers.min() >= 0 and numbers.max() < bins
    by_value = sorted(zip(values, numbers, strict=True))
    for (value, number), (next_value, next_number) in pairwise(by_value):
        assert number <= next_number
        assert number == next_number or value < next_value


def test_quantile_bins_hold_equally_many():
    values = np.random.default_rng(6).permutation(100)
    assert np.bincount(quantile_bins(values, 4)).tolist() == [25, 25, 25, 25]
    assert quantile_bins([1, 1, 1, 1, 1, 1, 1, 9], 4).tolist() == [0] * 7 + [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QUICK.mean([]), "there are none"),
        (lambda: QUICK.mean([1, math.nan]), "number 2 is nan, and 1 in all"),
        (lambda: QUICK.mean([1, math.inf]), "number 2 is inf"),
        (lambda: QUICK.mean([[1, 2]]), r"must have shape \(N,\), not \(1, 2\)"),
        (lambda: QUICK.mean([1, 2], ["a"]), "clusters: there are 1, where 2 are needed"),
        (lambda: sign_test([]), "there are none"),
        (lambda: sign_flip_test([math.nan]), "not finite"),
        (lambda: quantile_bins([1, 2], 0), "at least 1 bin"),
        (lambda: Bootstrap(resamples=0), "at least 1 resample"),
        (lambda: Bootstrap(confidence=95), "between 0 and 1"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(MetricError, match=message):
        call()
