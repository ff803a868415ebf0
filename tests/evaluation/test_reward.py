"""Metrics of reward models against hand-worked numbers, plain loops, scipy and synthetic data of known truth."""

import logging
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from rlhf_ext.evaluation.reward import (
    accuracy,
    accuracy_by,
    accuracy_by_strength,
    calibration,
    compare,
    correlation_with_ratings,
    fit_temperature,
    length_bias,
)
from rlhf_ext.evaluation.statistics import Bootstrap, MetricError

QUICK = Bootstrap(resamples=100)
differences = arrays(float, st.integers(1, 40), elements=st.sampled_from([-3, -1, -0.25, 0, 0.5, 1, 2]))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def calibrated_differences(rng, count, temperature=1.0):
    """Differences of a model whose probabilities sigmoid(d / temperature) are true."""
    gap = np.abs(rng.normal(0, 2, count))
    right = rng.random(count) < sigmoid(gap / temperature)
    return np.where(right, gap, -gap)


def test_accuracy_counts_ties_as_one_half():
    assert accuracy([1.0, -1.0, 0.0, 2.0], bootstrap=QUICK).value == (1 + 0 + 0.5 + 1) / 4


@given(differences)
@settings(max_examples=40, deadline=None)
def test_swapping_chosen_and_rejected_gives_one_minus_accuracy(d):
    one, other = accuracy(d, bootstrap=QUICK), accuracy(-d, bootstrap=QUICK)
    assert one.value == pytest.approx(1 - other.value)
    if len(d) > 1:
        assert one.low == pytest.approx(1 - other.high, abs=1e-9) or one.value in (0, 1)


def test_accuracy_interval_is_wider_where_prompts_repeat():
    d = np.repeat(np.random.default_rng(0).choice([-1.0, 1.0, 1.0], 50), 6)
    by_rows, by_prompts = accuracy(d), accuracy(d, np.repeat(np.arange(50), 6).tolist())
    assert by_rows.value == by_prompts.value
    ratio = (by_prompts.high - by_prompts.low) / (by_rows.high - by_rows.low)
    assert ratio == pytest.approx(math.sqrt(6), rel=0.2)  # six copies of a row say what one says


def test_a_model_that_is_always_right_is_not_certain():
    sure = accuracy(np.ones(20), ["a", "b"] * 10)
    assert (sure.value, sure.high) == (1, 1)
    assert sure.low == pytest.approx(0.025 ** (1 / 2))  # two prompts, not twenty pairs
    assert accuracy(-np.ones(20)).high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_a_model_of_nothing_but_ties_is_not_certain_either():
    ties = accuracy(np.zeros(3))
    assert (ties.low, ties.high) == (pytest.approx(0.5 * 0.025 ** (1 / 3)), pytest.approx(1 - 0.5 * 0.025 ** (1 / 3)))


def test_a_difference_that_is_always_the_same_is_not_certain():
    """Of five pairs that A gets right and B wrong, a part u = 1 - 0.025 ** (1 / 5) may be the other way round."""
    unseen = 1 - 0.025 ** (1 / 5)
    difference = compare(np.ones(5), -np.ones(5)).accuracy_difference
    assert (difference.value, difference.high) == (1, 1)
    assert difference.low == pytest.approx((1 - unseen) - unseen)
    same = compare(np.ones(5), np.ones(5)).accuracy_difference
    assert (same.low, same.high) == (pytest.approx(-unseen), pytest.approx(unseen))


def test_two_rows_have_a_correlation_without_an_interval():
    result = correlation_with_ratings([1.0, 2.0], [1.0, 3.0]).spearman
    assert result.value == pytest.approx(1) and math.isnan(result.low) and math.isnan(result.high)


def test_calibration_error_by_hand():
    """Three pairs at confidence 0.6, one wrong; three at 0.9, all right; two bins."""
    at = {p: math.log(p / (1 - p)) for p in (0.6, 0.9)}
    result = calibration([at[0.6], -at[0.6], at[0.6], at[0.9], at[0.9], at[0.9]], bins=2)
    assert result.confidences == pytest.approx([0.6, 0.9])
    assert result.accuracies == pytest.approx([2 / 3, 1])
    assert result.counts.tolist() == [3, 3]
    assert result.error == pytest.approx(0.5 * (2 / 3 - 0.6) + 0.5 * 0.1)
    assert result.overconfidence == pytest.approx(0.75 - 5 / 6)


def test_calibrated_scores_have_an_error_near_zero_and_as_expected_of_their_number():
    rng = np.random.default_rng(1)
    many = calibration(calibrated_differences(rng, 40_000, temperature=1.7), temperature=1.7)
    assert many.error < 0.01 and abs(many.overconfidence) < 0.01
    few = [calibration(calibrated_differences(rng, 200), seed=i) for i in range(40)]
    assert np.mean([r.error for r in few]) == pytest.approx(np.mean([r.error_if_calibrated for r in few]), rel=0.15)
    assert np.mean([r.error for r in few]) > 0.03  # which is why it is reported


@pytest.mark.parametrize("claimed", [0.5, 2.0])
def test_known_miscalibration_gives_the_known_error(claimed):
    """At twice the temperature a model understates itself; the error is the mean distance of the two probabilities."""
    d = calibrated_differences(np.random.default_rng(2), 60_000)
    result = calibration(d, temperature=claimed)
    expected = np.mean(np.abs(sigmoid(np.abs(d)) - sigmoid(np.abs(d) / claimed)))
    assert result.error == pytest.approx(expected, abs=0.008)
    assert result.overconfidence == pytest.approx(expected if claimed < 1 else -expected, abs=0.008)


@given(differences, st.randoms())
@settings(max_examples=40, deadline=None)
def test_calibration_ignores_order_and_counts_every_pair(d, random):
    shuffled = list(d)
    random.shuffle(shuffled)
    one, other = calibration(d, resamples=1), calibration(shuffled, resamples=1)
    assert one.error == pytest.approx(other.error)
    assert one.counts.sum() == len(d)
    assert 0 <= one.error <= 1
    assert one.counts @ one.accuracies / len(d) == pytest.approx(accuracy(d, bootstrap=QUICK).value)


def test_fitted_temperature_finds_the_truth():
    d = calibrated_differences(np.random.default_rng(3), 50_000, temperature=3.0)
    assert fit_temperature(d) == pytest.approx(3.0, rel=0.03)


@given(differences, st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_fitted_temperature_is_the_minimum_and_scales_with_the_scores(d, factor):
    assume(d.mean() > 0.02 and d.min() < 0)
    fitted = fit_temperature(d)

    def loss(temperature):
        return np.mean(np.log1p(np.exp(-d / temperature)))

    if fitted < 900 * np.abs(d).mean():  # else the bound is reached: barely better than chance
        assert loss(fitted) <= min(loss(fitted * 1.01), loss(fitted / 1.01))
    assert fit_temperature(factor * d) == pytest.approx(factor * fitted, rel=1e-3)


def test_weights_count_like_repeated_pairs():
    d = np.array([2.0, -1.0, 0.5, 3.0])
    assert fit_temperature(d, [1, 2, 1, 3]) == pytest.approx(fit_temperature(np.repeat(d, [1, 2, 1, 3])), rel=1e-5)
    assert fit_temperature(d, [1, 1, 0, 0]) == pytest.approx(fit_temperature(d[:2]), rel=1e-5)


def test_separated_pairs_get_a_finite_temperature(caplog):
    """All right by 2: the best is the temperature at which sigmoid(2 / T) is Platt's target (N + 1) / (N + 2)."""
    with caplog.at_level(logging.WARNING):
        fitted = fit_temperature([2.0] * 8)
    assert sigmoid(2.0 / fitted) == pytest.approx(9 / 10, abs=1e-4)
    assert "order every held-out pair as wanted" in caplog.text


def test_scores_without_information_get_a_temperature_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert fit_temperature([0.0, 0.0]) == 1.0
        assert fit_temperature([1.0, -1.5]) == pytest.approx(1250)
        assert fit_temperature([-2.0]) == pytest.approx(2000)
    assert "arbitrary" in caplog.text and "near 1/2" in caplog.text


def test_correlations_equal_those_of_scipy():
    rng = np.random.default_rng(4)
    ratings = rng.integers(1, 6, 80).astype(float)
    scores = ratings + rng.normal(0, 2, 80)
    result = correlation_with_ratings(scores, ratings, bootstrap=QUICK)
    assert result.spearman.value == pytest.approx(stats.spearmanr(scores, ratings).statistic)
    assert result.pearson.value == pytest.approx(stats.pearsonr(scores, ratings).statistic)
    assert result.spearman.low < result.spearman.value < result.spearman.high
    assert result.within_spearman is None and result.prompts_within == 0


def test_correlation_within_prompts_by_hand():
    """Right order for "a" and "f", wrong for "b", equal scores for "c", equal ratings for "d", and "e" is alone."""
    prompts = list("aaabbccddeff")
    ratings = [1, 2, 3, 1, 2, 1, 2, 4, 4, 5, 1, 2]
    scores = [-3, -2, -1, 9, 8, 5, 5, 1, 2, 3, 0, 1]
    result = correlation_with_ratings(scores, ratings, prompts, bootstrap=QUICK)
    assert result.prompts_within == 4
    assert result.within_spearman.value == pytest.approx((1 - 1 + 0 + 1) / 4)
    assert result.within_pearson.value == pytest.approx((1 - 1 + 0 + 1) / 4)


def test_knowing_only_the_prompt_is_no_correlation_within():
    rng = np.random.default_rng(5)
    level = np.repeat(rng.normal(0, 3, 500), 4)
    prompts = np.repeat(np.arange(500), 4).tolist()
    scores, ratings = level + rng.normal(size=2000), level + rng.normal(size=2000)
    result = correlation_with_ratings(scores, ratings, prompts, bootstrap=QUICK)
    assert result.spearman.low > 0.8
    assert abs(result.within_spearman.value) < 0.08 and abs(result.within_pearson.value) < 0.08


def test_answers_to_one_prompt_are_correlated_within_it():
    result = correlation_with_ratings([1, 2, 4], [1, 2, 3], ["a"] * 3, bootstrap=QUICK)
    assert result.within_spearman.value == pytest.approx(1) and result.prompts_within == 1


def test_accuracy_by_group_equals_a_plain_loop():
    rng = np.random.default_rng(6)
    d, sources = rng.normal(0.5, 1, 90), rng.choice(["web", "books", "code"], 90, p=[0.6, 0.3, 0.1])
    groups = accuracy_by(d, sources.tolist(), bootstrap=QUICK)
    assert [group.count for group in groups] == sorted((group.count for group in groups), reverse=True)
    for group in groups:
        members = [value for value, source in zip(d, sources, strict=True) if source == group.name]
        assert group.count == len(members)
        assert group.accuracy.value == pytest.approx(sum(value > 0 for value in members) / len(members))


def test_groups_keep_their_prompts():
    d = np.repeat(np.random.default_rng(7).choice([-1.0, 1.0], 40), 5)
    prompts = np.repeat(np.arange(40), 5).tolist()
    group = accuracy_by(d, ["a"] * 200, prompts)[0]
    assert group.accuracy == accuracy(d, prompts)


def test_accuracy_by_strength_runs_from_weak_to_strong():
    d, strengths = [-1, 1, -1, 1, 1, 1], [0.2, 0.2, 0.4, 0.4, 1.0, 1.0]
    groups = accuracy_by_strength(d, strengths, bins=3, bootstrap=QUICK)
    assert [(group.name, group.count, group.accuracy.value) for group in groups] == [
        ("0.2", 2, 0.5),
        ("0.4", 2, 0.5),
        ("1", 2, 1),
    ]
    assert [group.name for group in accuracy_by_strength(range(1, 7), range(6), bins=2)] == ["0 to 2", "3 to 5"]


def test_length_bias_of_a_model_that_counts_characters():
    lengths = np.array([5.0, -3, 8, -2, 0, 1])
    bias = length_bias(lengths, lengths, bootstrap=QUICK)
    assert bias.spearman.value == pytest.approx(1) and bias.pearson.value == pytest.approx(1)
    assert (bias.longer_right.accuracy.value, bias.longer_right.count) == (1, 3)
    assert (bias.shorter_right.accuracy.value, bias.shorter_right.count) == (0, 2)
    assert bias.same_length == 1
    opposite = length_bias(-lengths, lengths, bootstrap=QUICK)
    assert opposite.spearman.value == pytest.approx(-1)
    assert opposite.shorter_right.accuracy.value == 1


def test_length_bias_where_lengths_or_scores_do_not_differ():
    assert length_bias([1, 2], [0, 0]).spearman is None
    assert length_bias([1, 2], [0, 0]).longer_right is None
    assert length_bias([1, 1], [3, 4]).pearson is None


def test_comparison_by_hand():
    a = [1, 1, 1, 1, -1, -1, 0, 1]
    b = [1, 1, -1, -1, -1, 1, 1, 0]
    result = compare(a, b, bootstrap=QUICK)
    assert result.accuracy_difference.value == pytest.approx((5.5 - 4.5) / 8)
    assert (result.only_a, result.only_b) == (3, 2)
    assert result.mcnemar_p == 1
    assert result.agreement == pytest.approx(3 / 8)
    expected = (5 * 4 + 2 * 3 + 1 * 1) / 64  # chosen, rejected, tie
    assert result.kappa == pytest.approx((3 / 8 - expected) / (1 - expected))


@given(differences, st.data())
@settings(max_examples=30, deadline=None)
def test_comparison_turned_around_changes_the_sign_only(a, data):
    b = data.draw(arrays(float, len(a), elements=st.sampled_from([-1, 0, 1])))
    one, other = compare(a, b, bootstrap=QUICK), compare(b, a, bootstrap=QUICK)
    assert one.accuracy_difference.value == pytest.approx(-other.accuracy_difference.value)
    assert (one.only_a, one.only_b) == (other.only_b, other.only_a)
    assert (one.mcnemar_p, one.agreement, one.kappa) == (other.mcnemar_p, other.agreement, other.kappa)
    assert one.sign_flip_p == pytest.approx(other.sign_flip_p)


def test_kappa_tells_the_same_mistakes_from_unrelated_ones():
    rng = np.random.default_rng(8)
    right = rng.random(4000) < 0.8
    model = np.where(right, 1.0, -1.0)
    assert compare(model, model, bootstrap=QUICK).kappa == pytest.approx(1)
    unrelated = np.where(rng.random(4000) < 0.8, 1.0, -1.0)
    result = compare(model, unrelated, bootstrap=QUICK)
    assert result.agreement == pytest.approx(0.8**2 + 0.2**2, abs=0.03)
    assert result.kappa == pytest.approx(0, abs=0.06)
    assert compare([1.0, 2.0], [1.0, 1.0], bootstrap=QUICK).kappa is None


def test_a_better_model_is_found_better():
    rng = np.random.default_rng(9)
    good, bad = (np.where(rng.random(600) < chance, 1.0, -1.0) for chance in (0.8, 0.65))
    result = compare(good, bad)
    assert result.accuracy_difference.low > 0
    assert result.mcnemar_p < 0.001 and result.sign_flip_p < 0.001


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([]), "score differences: there are none"),
        (lambda: accuracy([0.1, math.nan]), "score differences: number 2 is nan"),
        (lambda: calibration([1.0], temperature=0), "temperature must be a positive number, not 0"),
        (lambda: calibration([1.0], temperature=math.nan), "temperature must be a positive number"),
        (lambda: fit_temperature([math.inf]), "number 1 is inf"),
        (lambda: fit_temperature([1.0], [1.0, 2.0]), "weights: there are 2, where 1 are needed"),
        (lambda: fit_temperature([1.0, 2.0], [1.0, -2.0]), "must not be negative"),
        (lambda: fit_temperature([1.0], [0.0]), "not all zero"),
        (lambda: correlation_with_ratings([1, 2], [3, 3]), "every rating is 3: nothing to correlate with"),
        (lambda: correlation_with_ratings([1, 1], [3, 4]), "every score is 1"),
        (lambda: correlation_with_ratings([1, 2], [3]), "ratings: there are 1, where 2 are needed"),
        (lambda: length_bias([1, 2], [1]), "length differences: there are 1"),
        (lambda: compare([1, 2], [1]), "other model: there are 1, where 2"),
        (lambda: accuracy_by([1, 2], ["a"]), "there are 2, where 1 are needed"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(MetricError, match=message):
        call()
