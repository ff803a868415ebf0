r"""Advantage estimators, and the masked statistics they stand on: pure functions of (B, T) tensors.

Notation, for a batch of B completions of at most T tokens:

- `rewards`: $r_t$, the reward of token $t$: the KL penalty of every token, plus the score on the last one.
- `values`: $V_t$, what the critic expected before token $t$ was chosen, in units of reward.
- `mask`: 1 on completion tokens, 0 elsewhere. Padding is on the right. A hole (a tool's answer within a multi-turn
  completion) is allowed: it is skipped, and the token after it follows the token before it.
- `gamma`: $\gamma$, the discount per token; `lam`: $\lambda$, how far advantages look past the critic.

Every estimator takes `rewards, values, mask, *, gamma, lam` and returns `(advantages, returns)`, both (B, T), in units
of reward, in float32 at least, without gradient, and 0 where the mask is 0. What stands in masked positions is never
read, not even a NaN. `returns` are what the critic is trained towards. Register your own the same way; see
`docs/plugins.md`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .plugins import register

DEFAULT_LAM = 0.95  # of the trainer; estimators without a lambda accept it, because nobody chose it
EPSILON = 1e-8  # added to a variance before the division


@register("advantage", "gae")
def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    r"""Generalized advantage estimation.

    $\delta_t = r_t + \gamma V_{t+1} - V_t$ and $A_t = \delta_t + \gamma \lambda A_{t+1}$, where $V$ and $A$ are 0 after
    the last token (Schulman et al. 2016, https://huggingface.co/papers/1506.02438, eq. 16). Returns are $A_t + V_t$.
    `lam=1` is the discounted return minus the value, `lam=0` the one-step TD error.

    Raises:
        ValueError: Tensors that are not of one shape (B, T), or `gamma` or `lam` outside [0, 1].
    """
    _check_arguments(rewards, values, mask, gamma, lam)
    rewards, values, mask = _real(rewards, mask), _real(values, mask), mask.bool()
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        real = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(real, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(real, values[:, t], next_value)
        advantages[:, t] = torch.where(real, next_advantage, 0)
    return advantages, advantages + values


@register("advantage", "reinforce")
def reinforce(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    lam: float,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""REINFORCE with the batch mean as baseline.

    $A_t = G_t - \bar G$ with the reward to go $G_t = r_t + \gamma G_{t+1}$ and its mean $\bar G$ over all tokens of the
    batch (Williams 1992, https://doi.org/10.1007/BF00992696). Returns are $G_t$. This estimator has no use for
    `values`: only their shape is checked. `reduce` sums a tensor over all processes, so that the mean is that of the
    global batch; without it there is one process.

    Raises:
        ValueError: Tensors that are not of one shape (B, T), `gamma` outside [0, 1], or a `lam` that was chosen
            (neither 1 nor the trainer's default 0.95), because it would have no effect.
    """
    _check_lam_is_not_chosen("reinforce", lam)
    _, returns = gae(rewards, torch.zeros_like(values), mask, gamma=gamma, lam=1.0)
    return _real(returns - _mean(returns, mask, reduce), mask), returns


@register("advantage", "rloo")
def rloo(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, num_generations: int
) -> tuple[Tensor, Tensor]:
    r"""REINFORCE leave-one-out: a completion against the other completions of its prompt.

    $A_t = R_i - \frac{1}{k - 1} \sum_{j \ne i} R_j$ for every token of completion $i$, with $R$ the sum of its rewards
    and $k$ = `num_generations` (Ahmadian et al. 2024, https://huggingface.co/papers/2402.14740). Rows of one prompt
    stand together. The whole completion is one action, so there is no discount. A row without tokens (masked because
    it was truncated) counts for nobody; a row left alone in its group has the advantage 0. Returns are the reward to
    go. This estimator has no use for `values`: only their shape is checked.

    Raises:
        ValueError: Tensors that are not of one shape (B, T), fewer than 2 generations, B not a multiple of it, `gamma`
            other than 1, or a `lam` that was chosen (neither 1 nor the trainer's default 0.95): these have no effect.
    """
    _check_lam_is_not_chosen("rloo", lam)
    if gamma != 1:
        raise ValueError(f"'rloo' takes a completion as one action and has no discount: set gamma to 1, got {gamma}.")
    if num_generations < 2:
        raise ValueError(
            f"'rloo' compares completions of one prompt: set num_generations to 2 or more, got {num_generations}."
        )
    _, returns = gae(rewards, torch.zeros_like(values), mask, gamma=1.0, lam=1.0)
    if len(rewards) % num_generations:
        raise ValueError(f"'rloo' needs whole groups: {len(rewards)} rows, but num_generations is {num_generations}.")
    totals = _real(rewards, mask).sum(1).view(-1, num_generations)
    present = mask.bool().any(1).view(-1, num_generations).to(totals.dtype)
    others = present.sum(1, keepdim=True) - present
    baselines = (totals.sum(1, keepdim=True) - totals) / others.clamp(min=1)
    advantages = torch.where(others > 0, totals - baselines, 0)
    return _real(advantages.view(-1, 1).expand_as(rewards), mask), returns


def mean_shortfall(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Return by how much values lie below the rewards to go, on average: a scalar, in units of reward.

    $\frac{1}{n} \sum (G_t - V_t)$ over the real tokens of all processes, with $G_t = r_t + \gamma G_{t+1}$. Added to
    every value it is the constant with the least squared error. No tokens: 0. `reduce` as in `reinforce`.

    Raises:
        ValueError: Tensors that are not of one shape (B, T), or `gamma` outside [0, 1].
    """
    shortfall, _ = gae(rewards, values, mask, gamma=gamma, lam=1.0)
    return _mean(shortfall, mask, reduce)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `values` where `mask` is not 0, over all elements or along `dim`; the mean of nothing is 0.

    Masked positions are never read, and no gradient flows into them.

    Raises:
        ValueError: Two shapes.
    """
    check_shapes(values=values, mask=mask)
    dims = tuple(range(values.dim())) if dim is None else dim
    return _masked(values, mask).sum(dims) / mask.bool().sum(dims).clamp(min=1)


def masked_var(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Variance of `values` where `mask` is not 0, over all elements or along `dim`, divided by n, not n - 1.

    So one element has the variance 0, and batches merge exactly. The variance of nothing is 0.

    Raises:
        ValueError: Two shapes.
    """
    check_shapes(values=values, mask=mask)
    mean = masked_mean(values, mask, dim)
    centered = _masked(values, mask) - (mean if dim is None else mean.unsqueeze(dim))
    return masked_mean(centered.square(), mask, dim)


def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    r"""Scale `values` to variance 1 where `mask` is not 0, over all processes.

    $(x - \bar x) / \sqrt{\mathrm{Var}(x) + 10^{-8}}$, with the variance divided by n as in `masked_var`. Equal values,
    and a single one, become 0. Masked positions are 0.

    Args:
        values: Any shape.
        mask: The same shape, 1 or 0.
        shift_mean: `False` adds the mean again, so that only the spread changes.
        reduce: Sums a tensor over all processes. It is called equally often everywhere, also where all is masked.

    Raises:
        ValueError: Two shapes.
    """
    check_shapes(values=values, mask=mask)
    values = _masked(values, mask)
    mean = _mean(values, mask, reduce)
    mean = mean + _mean(values - mean, mask, reduce)  # takes out what the first mean was rounded by
    variance = _mean((values - mean).square(), mask, reduce)
    whitened = (values - mean) * torch.rsqrt(variance + EPSILON)
    return _masked(whitened if shift_mean else whitened + mean, mask)


def check_shapes(**tensors: Tensor) -> None:
    """Raise a ValueError that names all shapes unless they are equal; (B, 1) and (B, T) would broadcast silently."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"These tensors must have one shape: {listed}.")


def _check_arguments(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> None:
    check_shapes(rewards=rewards, values=values, mask=mask)
    if rewards.dim() != 2:
        raise ValueError(f"rewards, values and mask must have the shape (B, T), got {tuple(rewards.shape)}.")
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {number}.")


def _check_lam_is_not_chosen(estimator: str, lam: float) -> None:
    if lam not in (1.0, DEFAULT_LAM):
        raise ValueError(f"{estimator!r} has no lambda, so lam={lam} has no effect: leave lam out, or use 'gae'.")


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with 0 in masked positions, in float32 at least: sums over many tokens need it."""
    return torch.where(mask.bool(), values.to(torch.promote_types(values.dtype, torch.float32)), 0)


def _real(values: Tensor, mask: Tensor) -> Tensor:
    return _masked(values.detach(), mask)


def _mean(values: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Mean of the real positions of all processes."""
    values = _masked(values, mask)
    totals = torch.stack([values.sum(), mask.bool().sum().to(values.dtype)])
    total, count = totals if reduce is None else reduce(totals)
    return total / count.clamp(min=1)
