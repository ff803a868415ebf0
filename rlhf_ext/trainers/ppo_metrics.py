"""What PPO logs: of a batch of completions when it is new, and of each part while it is learned from.

All are means over one process; the trainer averages them over processes, by the numbers of completions or tokens.
"""

from typing import Any

import torch
from torch import Tensor

from ..advantages import masked_mean
from ..kl import per_token_kl
from ..losses.ppo import explained_variance, value_clip_fraction
from ..ppo_rewards import distinct_n


def completion_metrics(
    output: dict[str, Any], mask: Tensor, ref_logps: Tensor | None, scores: Tensor
) -> dict[str, Tensor]:
    """Return what a batch of completions shows, averaged over those that have tokens to learn from. The KL is in nats.

    Args:
        output: TRL's, with `completion_ids` (B, T) and `old_per_token_logps` (B, T).
        mask: (B, T), 1 on tokens that the policy wrote.
        ref_logps: Log-probabilities under the reference, (B, T); None without one, and then there is no KL.
        scores: Scores as they enter the rewards, (B,).
    """
    logps, learned = output["old_per_token_logps"], mask.any(1)
    estimators = () if ref_logps is None else ("k1", "k3")
    kl = {name: (per_token_kl(logps, ref_logps, estimator=name) * mask).sum(1) for name in estimators}
    return {
        "score": masked_mean(scores, learned),
        **{f"kl/{name}": masked_mean(per_completion, learned) for name, per_completion in kl.items()},
        **{f"distinct_{n}": torch.tensor(distinct_n(output["completion_ids"], mask, n)) for n in (1, 2)},
    }


def value_metrics(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return what the critic said of a batch of completions, averaged over tokens; all arguments (B, T)."""
    return {
        "value/mean": masked_mean(values, mask),
        "value/explained_variance": explained_variance(values, returns, mask),
    }


def loss_metrics(
    inputs: dict[str, Any],
    mask: Tensor,
    logps: Tensor,
    values: Tensor,
    value_losses: Tensor,
    *,
    epsilon: tuple[float, float],
    cliprange_value: float | None,
) -> dict[str, Tensor]:
    """Return what a part of a batch shows while it is learned from, averaged over tokens.

    Args:
        inputs: The part; without `old_per_token_logps` as long as the policy is that of the rollout.
        mask: (B, T), 1 on tokens that the policy wrote.
        logps: Log-probabilities now, (B, T).
        values: The critic's now, (B, T).
        value_losses: (B, T).
        epsilon: How far below and above 1 the ratio may be.
        cliprange_value: As in `PPOConfig`.
    """
    ratio = (logps - inputs.get("old_per_token_logps", logps)).exp()
    outside = ((ratio < 1 - epsilon[0]) | (ratio > 1 + epsilon[1])).float()
    return {
        "ratio": masked_mean(ratio, mask),
        "clip_fraction": masked_mean(outside, mask),
        "value/loss": masked_mean(value_losses.detach(), mask),
        "value/clip_fraction": value_clip_fraction(
            values, inputs["values"], inputs["returns"], mask, cliprange_value=cliprange_value
        ),
    }
