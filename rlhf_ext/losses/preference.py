r"""Losses for reward models: pure functions from the scores of preference pairs to one loss per pair.

Notation: $d = r_c - r_r$, the score of the chosen text minus that of the rejected one; $m$, the margin by which they
should differ; $\epsilon$ = `label_smoothing`, the probability that a label is flipped. Differences of scores
are log-odds, after training once they are divided by the calibrated temperature.

Every function takes `chosen_rewards` and `rejected_rewards` of shape (B,), and `extras`, the dataset columns named in
`config.extra_columns`, each (B,). It returns a tensor of shape (B,), in float32 at least, and reduces nothing. Other
shapes are a `ValueError`: (B, 1) against (B,) would broadcast to (B, B) silently. Register your own the same way; see
`docs/plugins.md`.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plugins import register
from .label_smoothing import check_label_smoothing


def _score_difference(chosen_rewards: Tensor, rejected_rewards: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
    """$d$, shape (B,), in float32 at least: bfloat16 has steps of 64 at 10,000."""
    tensors = {"chosen_rewards": chosen_rewards, "rejected_rewards": rejected_rewards, **extras}
    expected = (chosen_rewards.numel(),)
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; every tensor of the batch must be {expected}.")
    return _at_least_float32(chosen_rewards) - _at_least_float32(rejected_rewards)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _total_margin(margin: float, extras: Mapping[str, Tensor]) -> Tensor | float:
    return margin + _at_least_float32(extras["margin"]) if "margin" in extras else margin


def _smooth(loss: Callable[[Tensor], Tensor], difference: Tensor, label_smoothing: float) -> Tensor:
    r"""The expected loss under flipped labels, $(1 - \epsilon) L(d) + \epsilon L(-d)$.

    Raises:
        ValueError: `label_smoothing` outside [0, 0.5).
    """
    check_label_smoothing(label_smoothing)
    if label_smoothing == 0.0:
        return loss(difference)
    return (1 - label_smoothing) * loss(difference) + label_smoothing * loss(-difference)


@register("preference_loss", "bradley_terry")
def bradley_terry(
    chosen_rewards: Tensor, rejected_rewards: Tensor, *, extras: Mapping[str, Tensor], label_smoothing: float = 0.0
) -> Tensor:
    r"""The negative log-likelihood of the Bradley-Terry model, TRL's loss.

    $-\log \sigma(d)$ (Bradley and Terry 1952; Ouyang et al. 2022, https://huggingface.co/papers/2203.02155, eq. 1).
    It reads no column: the trainer refuses one, such as `margin`, unless it is mixed with a loss that does.

    Raises:
        ValueError: Wrong shapes, or `label_smoothing` outside [0, 0.5).
    """
    difference = _score_difference(chosen_rewards, rejected_rewards, extras)
    return _smooth(lambda d: -F.logsigmoid(d), difference, label_smoothing)


@register("preference_loss", "margin")
def margin(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    extras: Mapping[str, Tensor],
    margin: float = 0.1,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Bradley-Terry with a margin: the chosen text must score higher by more than $m$.

    $-\log \sigma((d - m) / T)$ with $T$ = `temperature` and $m$ = `margin`, plus the column `margin` where the dataset
    has one, in the units of the scores (Touvron et al. 2023, Llama 2, https://huggingface.co/papers/2307.09288, eq. 2).
    `margin=0` and `temperature=1` give `bradley_terry`. Under label smoothing the flipped label asks for the same
    margin the other way round.

    Raises:
        ValueError: Wrong shapes, `temperature` not above 0, or `label_smoothing` outside [0, 0.5).
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    difference = _score_difference(chosen_rewards, rejected_rewards, extras)
    total_margin = _total_margin(margin, extras)
    return _smooth(lambda d: -F.logsigmoid((d - total_margin) / temperature), difference, label_smoothing)


@register("preference_loss", "hinge")
def hinge(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    extras: Mapping[str, Tensor],
    margin: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""The margin ranking loss: pairs told apart by more than $m$ cost nothing.

    $\max(0, m - d)$ with $m$ = `margin`, plus the column `margin` where the dataset has one (Herbrich et al. 2000,
    Large Margin Rank Boundaries for Ordinal Regression).

    Raises:
        ValueError: Wrong shapes, or `label_smoothing` outside [0, 0.5).
    """
    difference = _score_difference(chosen_rewards, rejected_rewards, extras)
    total_margin = _total_margin(margin, extras)
    return _smooth(lambda d: torch.relu(total_margin - d), difference, label_smoothing)


def centering(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    r"""What keeps the scores around 0: $(r_c + r_r)^2$ per pair, shape (B,), added with a small coefficient.

    (Eisenstein et al. 2023, https://huggingface.co/papers/2312.09244, eq. 2; TRL's `center_rewards_coefficient`.)
    """
    return (_at_least_float32(chosen_rewards) + _at_least_float32(rejected_rewards)) ** 2
