"""What looks wrong in a finished run, in plain words: each check takes numbers and returns a notice, or None.

A notice says the number that was found and what to try. Checks stay silent where there is too little to tell.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ..evaluation.page import Notice
from ..evaluation.reward import LengthBias
from .bands import CHANCE, ENTROPY_KEPT, KL_TOLERANCE, Band

SIGNIFICANT = 0.05
FEWEST = 10  # samples below which no check compares distributions
LENGTH_SHARE = 0.3  # of the reward's gain, from which on length is worth a notice
CUT_OFF = 0.1  # part of the completions
OVERFITTED = 0.05  # how much of the best held-out loss is lost again
LENGTH_GAP = 0.2  # between the accuracies where the longer and where the shorter answer is right
SAME_SIDE = 0.75  # part of the prompts on which a judge prefers the longer answer, or the shorter
LATE = 0.25  # the last part of a run, over which training metrics are averaged


def length_explains_reward(
    lengths_before: ArrayLike,
    rewards_before: ArrayLike,
    lengths_after: ArrayLike,
    rewards_after: ArrayLike,
    *,
    name: str = "reward",
) -> Notice | None:
    """Tell which part of the reward's gain longer or shorter completions alone would bring.

    Least squares give the reward per unit of length among the completions from before training; times the change of
    the mean length this is what length alone brings, if nothing else had changed.

    Args:
        lengths_before: Lengths of completions before training, (N,), in any unit.
        rewards_before: Their rewards, (N,).
        lengths_after: The same after training, (M,).
        rewards_after: The same, (M,).
        name: What to call the reward.
    """
    old_lengths, old_rewards, new_lengths, new_rewards = (
        np.asarray(values, dtype=float) for values in (lengths_before, rewards_before, lengths_after, rewards_after)
    )
    gain = new_rewards.mean() - old_rewards.mean() if min(len(old_rewards), len(new_rewards)) >= FEWEST else 0.0
    if gain <= 0 or np.ptp(old_lengths) == 0 or np.ptp(old_rewards) == 0:
        return None
    if _p_of_difference(old_rewards, new_rewards) > SIGNIFICANT:
        return None
    line = stats.linregress(old_lengths, old_rewards)
    share = line.slope * (new_lengths.mean() - old_lengths.mean()) / gain
    if line.pvalue > SIGNIFICANT or share < LENGTH_SHARE:
        return None
    change = "longer" if new_lengths.mean() > old_lengths.mean() else "shorter"
    part = f"{share:.0%} of" if share < 1 else "all of"
    return Notice(
        f"Length explains {part} the {name} gain: completions got {change}, from {old_lengths.mean():.0f} to "
        f"{new_lengths.mean():.0f} characters on average.",
        "Check a reward model for length bias with recipes/evaluate.py, and train it on pairs of similar length.",
    )


def exploited_reward(
    rewards_before: ArrayLike,
    rewards_after: ArrayLike,
    gold_before: ArrayLike,
    gold_after: ArrayLike,
    *,
    judge: str = "gold score",
) -> Notice | None:
    """Tell whether the reward rose while a score that training never saw fell, both beyond chance (Welch's test).

    Args:
        rewards_before: Rewards of completions before training, (N,).
        rewards_after: The same after training, (M,).
        gold_before: That score of the completions before training, (N,).
        gold_after: The same after training, (M,).
        judge: What to call it.
    """
    rewards = [np.asarray(values, dtype=float) for values in (rewards_before, rewards_after)]
    golds = [np.asarray(values, dtype=float) for values in (gold_before, gold_after)]
    if min(map(len, (*rewards, *golds))) < FEWEST:
        return None
    rose, fell = rewards[1].mean() > rewards[0].mean(), golds[1].mean() < golds[0].mean()
    if not (rose and fell) or max(_p_of_difference(*rewards), _p_of_difference(*golds)) > SIGNIFICANT:
        return None
    return Notice(
        f"The reward rose from {rewards[0].mean():.2f} to {rewards[1].mean():.2f}, and the {judge} fell from "
        f"{golds[0].mean():.2f} to {golds[1].mean():.2f}: the policy exploits its reward.",
        "Raise init_kl_coef or lower kl_target, train for fewer steps, or train the reward model on more pairs.",
    )


def gain_within_noise(name: str, before: ArrayLike, after: ArrayLike) -> Notice | None:
    """Tell whether two means differ no more than chance makes them (Welch's test).

    Args:
        name: What the values are, as the subject of a sentence.
        before: Values before training, (N,).
        after: Values after training, (M,).
    """
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if min(len(before), len(after)) < FEWEST:
        return None
    p = _p_of_difference(before, after)
    if p <= SIGNIFICANT:
        return None
    return Notice(
        f"{name} changed from {before.mean():.3f} to {after.mean():.3f}, which may be chance: samples this different "
        f"come up {p:.0%} of the time where nothing has changed.",
        "Train for longer or with a higher learning_rate, or evaluate on more rows (--max_eval_samples).",
    )


def accuracy_like_a_coin(accuracy: float, pairs: int) -> Notice | None:
    """Tell whether an accuracy could be that of a coin (exact binomial test).

    Args:
        accuracy: Between 0 and 1.
        pairs: How many it is the mean of.
    """
    if pairs < 1 or math.isnan(accuracy):
        return None
    p = stats.binomtest(round(accuracy * pairs), pairs, CHANCE, alternative="greater").pvalue
    if p <= SIGNIFICANT:
        return None
    return Notice(
        f"The accuracy of {accuracy:.2f} on {pairs} held-out pairs is not clearly better than a coin's.",
        "Train on more pairs or for longer, look for mislabelled pairs, or evaluate on more rows.",
    )


def overfitted(train_losses: Sequence[float], eval_losses: Sequence[float]) -> Notice | None:
    """Tell whether the loss on held-out rows rises again while the one of training goes on falling.

    Args:
        train_losses: In the order of steps, (T,).
        eval_losses: In the order of steps, the one before training too, (E,).
    """
    if len(train_losses) < 2 or len(eval_losses) < 2 or train_losses[-1] >= train_losses[0]:
        return None
    best, last = min(eval_losses), eval_losses[-1]
    if last - best <= OVERFITTED * abs(best):
        return None
    return Notice(
        f"The held-out loss rose from {best:.3f} at its best to {last:.3f}, while the training loss fell from "
        f"{train_losses[0]:.3f} to {train_losses[-1]:.3f}: the model learns its training rows by heart.",
        "Train for fewer epochs, lower learning_rate, add rows, or keep the best: --eval_strategy steps "
        "--load_best_model_at_end true.",
    )


def out_of_band(logged: Mapping[str, Sequence[float]], bands: Mapping[str, Band]) -> list[Notice]:
    """Tell which metrics of PPO ended outside their bands, by their mean over the last quarter of the run.

    Too small a clip fraction is one over the whole run.

    Args:
        logged: The values of each metric, in the order of steps.
        bands: As `healthy_bands` returns them.
    """
    late = {name: late_mean(logged[name]) for name in bands if logged.get(name)}
    notices = []
    if "kl/k1" in late and late["kl/k1"] > bands["kl/k1"].high:
        target = bands["kl/k1"].high / KL_TOLERANCE
        above = f"above {KL_TOLERANCE:g} times its target of {target:g}"
        found = f"The KL ended at {late['kl/k1']:.1f} nats per completion, {above}."
        notices.append(Notice(found, "Raise init_kl_coef, or lower kl_horizon so that the coefficient follows faster."))
    if "clip_fraction" in late:
        low, high, value = bands["clip_fraction"].low, bands["clip_fraction"].high, late["clip_fraction"]
        mean = float(np.mean(logged["clip_fraction"]))
        if value > high:
            found = f"{value:.0%} of the tokens were clipped at the end, more than {high:.0%}: steps are too large."
            notices.append(Notice(found, "Lower learning_rate or num_iterations."))
        if mean < low:  # over the whole run: at the end most schedules lower the learning rate to 0
            found = f"Only {mean:.1%} of the tokens were clipped, fewer than {low:.0%}: steps are small."
            notices.append(Notice(found, "There is room for a higher learning_rate or more num_iterations."))
    if "entropy" in late and late["entropy"] < bands["entropy"].low:
        first = bands["entropy"].low / ENTROPY_KEPT
        found = f"The entropy fell from {first:.2f} to {late['entropy']:.2f} nats per token: completions become alike."
        notices.append(Notice(found, "Lower learning_rate, raise init_kl_coef, or stop earlier."))
    if "value/explained_variance" in late and late["value/explained_variance"] < 0:
        found = f"The critic's explained variance ended at {late['value/explained_variance']:.2f}, below 0."
        notices.append(Notice(found, "A constant would do better: lower critic_learning_rate, or warm the critic up."))
    return notices


def cut_off(share: float, max_length: int) -> Notice | None:
    """Tell whether many completions were cut off.

    Args:
        share: The part of the completions that did not end by themselves.
        max_length: Tokens at which they were cut.
    """
    if share <= CUT_OFF:
        return None
    return Notice(
        f"{share:.0%} of the completions were cut off at max_completion_length={max_length}.",
        "Raise max_completion_length, or set missing_eos_penalty so that the policy learns to end.",
    )


def answers_cut_off(name: str, share: float, max_length: int) -> Notice | None:
    """Tell whether many answers of an evaluation were cut off.

    Args:
        name: Whose answers they are.
        share: The part that did not end by itself.
        max_length: Tokens at which they were cut.
    """
    if share <= CUT_OFF:
        return None
    found = f"{share:.0%} of the answers of {name} were cut off at max_new_tokens={max_length}."
    return Notice(found, "Raise --max_new_tokens: a judge marks an answer down for the end that it does not see.")


def judge_prefers_length(judge: str, preferences: ArrayLike, length_differences: ArrayLike) -> Notice | None:
    """Tell whether a judge mostly prefers the longer, or the shorter, of two answers (exact binomial test).

    Args:
        judge: Who judges.
        preferences: For the first answer of each pair, from 0 to 1, (N,).
        length_differences: Length of the first answer minus that of the second, (N,).
    """
    agreement = np.sign(np.asarray(preferences, dtype=float) - 0.5) * np.sign(np.asarray(length_differences, float))
    longer, decided = int((agreement > 0).sum()), int((agreement != 0).sum())
    if decided == 0 or stats.binomtest(longer, decided).pvalue > SIGNIFICANT:
        return None
    share = longer / decided
    if max(share, 1 - share) < SAME_SIDE:
        return None
    side = "longer" if share > 0.5 else "shorter"
    return Notice(
        f"{judge} prefers the {side} answer to {max(share, 1 - share):.0%} of the prompts.",
        "Where the policies differ in length, that alone decides: read the samples, or ask another judge.",
    )


def chosen_less_likely(before: float, after: float) -> Notice | None:
    """Tell whether DPO made the chosen answers less likely by more than a tenth of their log-probability.

    Args:
        before: Mean log-probability of the chosen answers before training, in nats.
        after: The same after training.
    """
    if before - after <= 0.1 * abs(before):
        return None
    return Notice(
        f"The chosen answers became less likely: their log-probability fell from {before:.1f} to {after:.1f} nats.",
        "The margin grows by pushing both answers down. Raise beta, lower learning_rate, or add a term that holds "
        "the chosen ones, or weigh it up: --loss_type sigmoid sft --loss_weights 1 1.",
    )


def prefers_length(bias: LengthBias) -> Notice | None:
    """Tell whether a reward model is right mostly where the longer (or the shorter) answer is right.

    The accuracies must differ by a fifth, and their intervals must not overlap.
    """
    longer, shorter = bias.longer_right, bias.shorter_right
    if longer is None or shorter is None:
        return None
    better, worse, side = (longer, shorter, "longer") if longer.accuracy.value > shorter.accuracy.value else (
        shorter, longer, "shorter"
    )  # fmt: skip
    if better.accuracy.value - worse.accuracy.value < LENGTH_GAP or not better.accuracy.low > worse.accuracy.high:
        return None
    return Notice(
        f"The model prefers {side} answers: its accuracy is {better.accuracy.value:.2f} where the {side} answer is "
        f"right, and {worse.accuracy.value:.2f} where it is not.",
        "Train on pairs of similar length, or on more pairs in which the other kind is right.",
    )


def late_mean(values: Sequence[float]) -> float:
    """Return the mean over the last quarter, as single batches are noisy."""
    return float(np.mean(values[-max(1, round(LATE * len(values))) :]))


def _p_of_difference(before: np.ndarray, after: np.ndarray) -> float:
    if np.ptp(before) == 0 and np.ptp(after) == 0:
        return 0.0 if before[0] != after[0] else 1.0
    return float(stats.ttest_ind(before, after, equal_var=False).pvalue)
