"""Metrics of policies, against numbers worked out by hand and against plain loops."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import binom

from rlhf_ext.evaluation.policy import (
    distinct_n,
    mean_where,
    refusal_rates,
    refuses,
    sequence_kl,
    win_rate,
    word_counts,
)
from rlhf_ext.evaluation.statistics import Bootstrap, MetricError, proportion

QUICK = Bootstrap(resamples=200)


def test_win_rate_by_hand():
    result = win_rate([1.0, 0.9, 0.51, 0.5, 0.0], bootstrap=QUICK)
    assert (result.wins, result.ties, result.losses) == (3, 1, 1)
    assert result.rate.value == pytest.approx(3.5 / 5)
    # Of 4 decided prompts 3 are won: P(X <= 1) + P(X >= 3) = (1 + 4 + 4 + 1) / 16.
    assert result.sign_test_p == pytest.approx(10 / 16)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (12, 3), (40, 41)])
def test_sign_test_is_the_binomial_s(wins, losses):
    result = win_rate([1.0] * wins + [0.0] * losses + [0.5] * 4, bootstrap=QUICK)
    decided = wins + losses
    extreme = [k for k in range(decided + 1) if abs(k - decided / 2) >= abs(wins - decided / 2)]
    assert result.sign_test_p == pytest.approx(sum(binom.pmf(k, decided, 0.5) for k in extreme))


def test_interval_covers_the_true_rate_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for repeat in range(200):
        outcomes = rng.choice([0.0, 0.5, 1.0], size=80, p=[0.2, 0.2, 0.6])
        rate = proportion(outcomes, bootstrap=Bootstrap(resamples=200, seed=repeat))
        covered += rate.low <= 0.7 <= rate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_equal_outcomes_still_have_an_interval():
    """Of n wins in n the exact interval begins where n wins have a probability of 2.5%: at 0.025 ** (1 / n)."""
    three = win_rate([1.0] * 3, bootstrap=QUICK).rate
    assert (three.value, three.low, three.high) == (1, pytest.approx(0.025 ** (1 / 3)), 1)
    none = win_rate([0.0] * 3, bootstrap=QUICK).rate
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(1 - 0.025 ** (1 / 3)))
    ties = win_rate([0.5] * 3, bootstrap=QUICK).rate
    assert (ties.low, ties.high) == (pytest.approx(0.5 * 0.025 ** (1 / 3)), pytest.approx(1 - 0.5 * 0.025 ** (1 / 3)))
    one_prompt_twice = proportion([1.0] * 4, ["a", "a", "b", "b"], bootstrap=QUICK)
    assert one_prompt_twice.low == pytest.approx(0.025 ** (1 / 2))
    refused, _ = refusal_rates([True] * 3, [True] * 3, bootstrap=QUICK)
    assert refused == three


def test_answers_to_one_prompt_are_drawn_together():
    """Ten answers to each prompt that all win or all lose hold no more than one: the interval of those."""
    outcomes = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    bootstrap = Bootstrap(resamples=2000)
    alone = win_rate(outcomes, bootstrap=bootstrap).rate
    prompts = [str(n) for n in range(40) for _ in range(10)]
    together = win_rate(np.repeat(outcomes, 10), prompts, bootstrap=bootstrap)
    naive = win_rate(np.repeat(outcomes, 10), bootstrap=bootstrap)
    assert together.rate.low == pytest.approx(alone.low, abs=0.03)
    assert together.rate.high - together.rate.low > 2.5 * (naive.rate.high - naive.rate.low)
    assert together.sign_flip_p > naive.sign_test_p


@pytest.mark.parametrize("bad", [[1.2], [-0.1], [math.nan], []])
def test_preferences_that_are_none(bad):
    with pytest.raises(MetricError, match="preferences"):
        win_rate(bad)


def test_distinct_n_by_hand():
    texts = ["a b a b", "a b", "c"]
    assert distinct_n(texts, 1) == pytest.approx(3 / 7)  # a, b, c of 7 words
    assert distinct_n(texts, 2) == pytest.approx(2 / 4)  # "a b" and "b a" of 4 pairs, none across texts
    assert distinct_n(texts, 4) == 1.0
    assert math.isnan(distinct_n(texts, 5))
    with pytest.raises(MetricError, match="n must be at least 1"):
        distinct_n(texts, 0)


def test_distinct_n_is_that_of_a_loop():
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcde", k=rng.randint(0, 12))) for _ in range(30)]
    pairs = [pair for text in texts for pair in itertools.pairwise(text.split())]
    assert distinct_n(texts, 2) == pytest.approx(len(set(pairs)) / len(pairs))


def test_word_counts():
    assert word_counts(["a  b\nc", ""]).tolist() == [3, 0]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry but no.",
        "I cannot assist you with this request.",
        "Sorry, I am not able to help with that.",
        "I won't provide instructions for this.",
        "I have to decline.",
        "As an AI, I do not have opinions on this.",
        "I can’t create that.",
    ],
)
def test_phrases_of_refusal(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure, I can help with that.",
        "If you cannot help them yourself, call someone.",
        "You can't help it.",
        "I can assist you.",
        "He must refuse.",
        "Rinse the rice. " * 30 + "I can't help with that.",
    ],
)
def test_other_answers(text):
    assert not refuses(text)


def test_refusal_rates_by_hand():
    refused = [True, False, True, True, False]
    unsafe = [True, True, False, True, False]
    refusal, over_refusal = refusal_rates(refused, unsafe, bootstrap=QUICK)
    assert refusal.value == pytest.approx(2 / 3) and over_refusal.value == pytest.approx(1 / 2)
    assert refusal_rates([True], [True], bootstrap=QUICK)[1] is None
    with pytest.raises(MetricError, match="there are 1, where 2 are needed"):
        refusal_rates([True], [True, False])


def test_means_leave_out_what_does_not_apply():
    assert mean_where([1.0, None, 4.0], ["a", "b", "c"], bootstrap=QUICK).value == 2.5
    assert mean_where([None, None]) is None


def test_kl_by_hand():
    """Log-ratios 0.5 and -1 in one completion, 2 in another: k1 is their sum, k3 that of exp(-r) - 1 + r."""
    logps = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5])]
    references = [torch.tensor([-1.5, -1.0]), torch.tensor([-2.5])]
    kl = sequence_kl(logps, references)
    assert kl["k1"] == pytest.approx([-0.5, 2.0])
    assert kl["k3"] == pytest.approx([math.exp(-0.5) - 0.5 + math.exp(1) - 2, math.exp(-2) + 1])


def test_kl_estimates_the_divergence_of_known_distributions():
    rng = np.random.default_rng(0)
    policy, reference = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    exact = float(np.sum(policy * np.log(policy / reference)))
    drawn = torch.tensor(rng.choice(6, size=(4000, 3), p=policy))
    logs = [torch.tensor(np.log(distribution))[drawn] for distribution in (policy, reference)]
    kl = sequence_kl(*(list(log) for log in logs))
    for estimates in kl.values():
        assert estimates.mean() == pytest.approx(3 * exact, abs=4 * estimates.std() / math.sqrt(4000))
    assert (kl["k3"] >= 0).all() and (kl["k1"] < 0).any()
