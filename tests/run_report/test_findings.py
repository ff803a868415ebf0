"""What the report warns about: each check fires on a case worked out by hand, and is silent on its neighbour."""

import numpy as np
import pytest

from rlhf_ext.evaluation.reward import length_bias
from rlhf_ext.evaluation.statistics import Bootstrap
from rlhf_ext.run_report import findings
from rlhf_ext.run_report.bands import Band, healthy_bands

BANDS = {
    "kl/k1": Band(0, 12.0, ""),
    "clip_fraction": Band(0.02, 0.3, ""),
    "entropy": Band(0.3, None, ""),
    "value/explained_variance": Band(0, 1, ""),
}


def test_length_explains_the_part_of_the_gain_that_its_slope_brings():
    lengths = np.arange(10, 30.0)
    rewards = 0.1 * lengths  # 0.1 a character
    # Ten characters more bring 1.0; the rest of the gain of 1.25 comes from elsewhere: 80%.
    notice = findings.length_explains_reward(lengths, rewards, lengths + 10, rewards + 1.25)
    assert "explains 80% of the reward gain" in notice.found and "longer, from 20 to 30" in notice.found
    named = findings.length_explains_reward(lengths, rewards, lengths + 10, rewards + 1.25, name="gold score")
    assert "explains 80% of the gold score gain" in named.found
    assert "all of" in findings.length_explains_reward(lengths, rewards, lengths + 20, rewards + 1.25).found
    assert "shorter" in findings.length_explains_reward(lengths, -rewards, lengths - 10, 1.25 - rewards).found
    assert findings.length_explains_reward(lengths, rewards, lengths + 1, rewards + 1.25) is None  # 8%
    assert findings.length_explains_reward(lengths, rewards, lengths, rewards - 1.25) is None  # no gain
    assert findings.length_explains_reward(lengths[:9], rewards[:9], lengths[:9] + 10, rewards[:9] + 1.25) is None


def test_exploited_reward_needs_both_sides():
    low, high = np.arange(20) / 20, np.arange(20) / 20 + 2
    assert "the policy exploits its reward" in findings.exploited_reward(low, high, high, low).found
    assert findings.exploited_reward(low, high, low, high) is None
    assert findings.exploited_reward(low, low + 0.01, high, low) is None  # the reward's rise may be chance
    assert findings.exploited_reward(low[:9], high[:9], high[:9], low[:9]) is None


def test_gain_within_noise_names_the_chance():
    # Welch's t of two samples of the same variance s2 is the difference over sqrt(2 s2 / n): here 0, so p is 1.
    values = np.arange(12.0)
    assert "100% of the time" in findings.gain_within_noise("The reward", values, values[::-1]).found
    assert findings.gain_within_noise("The reward", values, values + 10) is None
    assert findings.gain_within_noise("The reward", np.zeros(12), np.ones(12)) is None
    assert findings.gain_within_noise("The reward", values[:9], values[:9]) is None


@pytest.mark.parametrize(
    ("right", "pairs", "warns"),
    # P(at least 59 of 100 heads) = 0.044, P(at least 58) = 0.067.
    [(59, 100, False), (58, 100, True), (5, 5, False), (4, 4, True), (20, 100, True)],
)
def test_accuracy_is_compared_with_a_coin(right, pairs, warns):
    assert (findings.accuracy_like_a_coin(right / pairs, pairs) is not None) == warns


@pytest.mark.parametrize(
    ("train", "held_out", "warns"),
    [
        ([1.0, 0.5, 0.1], [1.0, 0.6, 0.9], True),
        ([1.0, 0.5, 0.1], [1.0, 0.6, 0.62], False),  # 3% above its best
        ([1.0, 0.5, 1.2], [1.0, 0.6, 0.9], False),  # training does not fall either
        ([1.0], [1.0, 2.0], False),
    ],
)
def test_overfitting_is_a_held_out_loss_that_rises_alone(train, held_out, warns):
    assert (findings.overfitted(train, held_out) is not None) == warns


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ({"kl/k1": [1.0, 1.0, 1.0, 13.0]}, "13.0 nats per completion, above 2 times its target of 6"),
        ({"clip_fraction": [0.1, 0.1, 0.1, 0.4]}, "40% of the tokens were clipped at the end, more than 30%"),
        ({"clip_fraction": [0.01, 0.01, 0.0, 0.02]}, "Only 1.0% of the tokens were clipped, fewer than 2%"),
        ({"entropy": [1.0, 0.5, 0.3, 0.1]}, "The entropy fell from 1.00 to 0.10"),
        ({"value/explained_variance": [0.5, 0.1, 0.0, -0.25]}, "ended at -0.25, below 0"),
    ],
)
def test_what_ends_outside_its_band_is_named_with_its_number(logged, said):
    (notice,) = findings.out_of_band(logged, BANDS)
    assert said in notice.found and notice.advice


def test_what_stays_inside_or_is_not_logged_is_no_warning():
    inside = {"kl/k1": [20.0, 5, 5, 5], "clip_fraction": [0.1, 0.1, 0.1, 0.0], "entropy": [1.0, 0.5, 0.4, 0.4]}
    assert findings.out_of_band(inside, BANDS) == [] == findings.out_of_band({"entropy": []}, BANDS)


def test_thresholds_of_the_simple_checks():
    assert "23% of the completions were cut off at max_completion_length=64" in findings.cut_off(0.23, 64).found
    assert findings.cut_off(0.1, 64) is None
    assert (
        "23% of the answers of sft were cut off at max_new_tokens=64" in findings.answers_cut_off("sft", 0.23, 64).found
    )
    assert findings.answers_cut_off("sft", 0.1, 64) is None
    assert "from -20.0 to -23.0 nats" in findings.chosen_less_likely(-20.0, -23.0).found
    assert findings.chosen_less_likely(-20.0, -21.9) is None and findings.chosen_less_likely(-20.0, -5.0) is None


def test_late_mean_is_that_of_the_last_quarter():
    assert findings.late_mean([float(n) for n in range(8)]) == 6.5
    assert findings.late_mean([2.0]) == 2.0


def test_a_judge_that_prefers_length_is_found_out():
    # 12 of 14 decided prompts: P(at least 12 heads or at most 2) = 2 * (1 + 14 + 91) / 2**14 = 0.013.
    preferences, lengths = [1.0] * 6 + [0.0] * 6 + [1.0, 0.0, 0.5], [5] * 6 + [-5] * 6 + [-5, 5, 5]
    notice = findings.judge_prefers_length("gold", preferences, lengths)
    assert notice.found == "gold prefers the longer answer to 86% of the prompts."
    shorter = findings.judge_prefers_length("gold", preferences, [-length for length in lengths])
    assert "the shorter answer" in shorter.found
    assert findings.judge_prefers_length("gold", [1.0] * 5, [5] * 5) is None  # p = 0.06
    assert findings.judge_prefers_length("gold", [1.0] * 60 + [0.0] * 40, [5] * 100) is None  # 60%
    assert findings.judge_prefers_length("gold", [0.5], [5]) is None


def test_a_reward_model_that_counts_characters_is_found_out():
    lengths = np.array([5.0] * 40 + [-5.0] * 40)
    notice = findings.prefers_length(length_bias(lengths, lengths, bootstrap=Bootstrap(50)))
    assert (
        "prefers longer answers: its accuracy is 1.00 where" in notice.found and "0.00 where it is not" in notice.found
    )
    assert findings.prefers_length(length_bias(np.abs(lengths), lengths, bootstrap=Bootstrap(50))) is None
    assert findings.prefers_length(length_bias(np.ones(3), np.array([1.0, 2, 3]), bootstrap=Bootstrap(50))) is None


def test_bands_follow_the_configuration():
    from rlhf_ext import PPOConfig

    options = {"kl_target": 3.0, "max_clip_fraction": 0.25, "use_cpu": True, "bf16": False}
    bands = healthy_bands(PPOConfig("x", **options), {"entropy": 2.0})
    assert (bands["kl/k1"].high, bands["clip_fraction"].high) == (6.0, 0.25)
    assert bands["entropy"].low == pytest.approx(0.6)
    single = PPOConfig("x", num_iterations=1, steps_per_generation=1, use_cpu=True, bf16=False)
    assert "clip_fraction" not in healthy_bands(single, {})
