"""What PPO needs beside TRL's policy loss: the critic's loss, and two numbers that tell how the critic does.

All take (B, T) tensors. `values` are the critic's now, `old_values` those at rollout, `returns` what it should have
said; all in units of reward.
"""

import torch
from torch import Tensor

from ..advantages import check_shapes, masked_mean, masked_var


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, cliprange_value: float | None) -> Tensor:
    r"""Squared error of the critic, pessimistic about steps further than `cliprange_value` from the old values.

    $\frac{1}{2} \max((V - R)^2, (\mathrm{clip}(V, V_{old} - c, V_{old} + c) - R)^2)$ (from OpenAI's code; Huang et al.
    2022, The 37 Implementation Details of Proximal Policy Optimization, detail 9). Where the clipped error is the
    larger one there is no gradient.

    Args:
        values: $V$, (B, T). Only they get a gradient.
        old_values: $V_{old}$, (B, T).
        returns: $R$, (B, T). As `values` and `old_values`, finite in the padding too: a NaN there would reach the
            gradient even if the mean leaves it out.
        cliprange_value: $c$, or `None` for the plain squared error.

    Returns:
        One loss per token, (B, T), in float32 at least. Nothing is reduced or masked.

    Raises:
        ValueError: Tensors of several shapes, or a clip range not above 0.
    """
    plain, clipped = _squared_errors(values, old_values, returns, cliprange_value)
    return 0.5 * torch.maximum(plain, clipped)


def value_clip_fraction(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, cliprange_value: float | None
) -> Tensor:
    """Fraction of the tokens of `mask` where the clip decides the loss, so that they give the critic no gradient.

    Raises:
        ValueError: Tensors of several shapes, or a clip range not above 0.
    """
    plain, clipped = _squared_errors(values.detach(), old_values, returns, cliprange_value)
    # Rounding alone can make the clipped error the larger one; a value outside the clip range is what is meant.
    outside = (clipped > plain) if cliprange_value is None else (values.detach() - old_values).abs() > cliprange_value
    return masked_mean(((clipped > plain) & outside).float(), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    r"""$1 - \mathrm{Var}(R - V) / \mathrm{Var}(R)$ over the tokens of `mask`.

    1 is a perfect critic (up to a constant), 0 no better than a constant, below 0 worse. Returns that do not differ
    beyond float32 rounding have no variance to explain; that too gives 0.

    Raises:
        ValueError: Tensors of several shapes.
    """
    check_shapes(values=values, returns=returns, mask=mask)
    values, returns = values.detach().float(), returns.detach().float()
    total = masked_var(returns, mask)
    explained = 1 - masked_var(returns - values, mask) / total
    return torch.where(total > (1e-6 * masked_mean(returns, mask)).square(), explained, 0)


def _squared_errors(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | None
) -> tuple[Tensor, Tensor]:
    check_shapes(values=values, old_values=old_values, returns=returns)
    if cliprange_value is not None and cliprange_value <= 0:
        raise ValueError(f"cliprange_value must be above 0, or None for no clipping, got {cliprange_value}.")
    values, old_values, returns = (
        x.to(torch.promote_types(x.dtype, torch.float32)) for x in (values, old_values.detach(), returns.detach())
    )
    plain = (values - returns).square()
    if cliprange_value is None:
        return plain, plain
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return plain, (clipped - returns).square()
