r"""Losses for direct preference optimization: pure functions from a `DPOBatch` to one loss per pair.

Notation, for a pair with prompt $x$, chosen completion $y_c$ and rejected completion $y_r$:

- `logps`: $\log \pi(y|x)$, the sum over completion tokens, in nats; `ref_logps`: the same under the reference.
- log-ratio $\rho(y) = \log \pi(y|x) - \log \pi_{ref}(y|x)$, and $h = \rho(y_c) - \rho(y_r)$.
- $|y|$: the number of completion tokens; `beta`: $\beta > 0$, how strongly the policy is held to the reference.

Every function takes `batch` and `beta`, returns a tensor of shape (B,) in nats, and reduces nothing. Register your
own the same way; see `docs/plugins.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plugins import register
from .label_smoothing import check_label_smoothing


@dataclass(frozen=True)
class DPOBatch:
    """What a DPO loss sees of a batch of B preference pairs.

    Attributes:
        chosen_logps, rejected_logps: Policy log-probabilities, summed over completion tokens, shape (B,), in nats.
        ref_chosen_logps, ref_rejected_logps: The same under the reference model, without gradient, shape (B,).
        chosen_lengths, rejected_lengths: Completion tokens, shape (B,), at least 1.
        extras: The dataset columns named in `config.extra_columns`, each of shape (B,).

    Raises:
        ValueError: A tensor is not of shape (B,). Broadcasting (B, 1) against (B,) would give (B, B) silently.
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = {name: value for name, value in vars(self).items() if name != "extras"} | dict(self.extras)
        expected = (self.chosen_logps.numel(),)
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; every tensor of the batch must be {expected}."
                )

    @property
    def chosen_logratios(self) -> Tensor:
        r"""$\rho(y_c)$, shape (B,)."""
        return self.chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self) -> Tensor:
        r"""$\rho(y_r)$, shape (B,)."""
        return self.rejected_logps - self.ref_rejected_logps


def _logratio_difference(batch: DPOBatch) -> Tensor:
    """$h$, shape (B,)."""
    return batch.chosen_logratios - batch.rejected_logratios


def _average_logratio_difference(batch: DPOBatch) -> Tensor:
    r"""$\rho(y_c) / |y_c| - \rho(y_r) / |y_r|$, shape (B,)."""
    return batch.chosen_logratios / batch.chosen_lengths - batch.rejected_logratios / batch.rejected_lengths


@register("dpo_loss", "sigmoid")
def sigmoid(batch: DPOBatch, *, beta: float) -> Tensor:
    r"""The original DPO loss.

    $-\log \sigma(\beta h)$ (Rafailov et al. 2023, https://huggingface.co/papers/2305.18290, eq. 7).
    """
    return -F.logsigmoid(beta * _logratio_difference(batch))


@register("dpo_loss", "average_logp")
def average_logp(batch: DPOBatch, *, beta: float) -> Tensor:
    r"""DPO on log-ratios divided by completion length, so that longer answers earn no larger reward.

    $-\log \sigma(\beta (\rho(y_c) / |y_c| - \rho(y_r) / |y_r|))$ (Lambert et al. 2024, Tulu 3,
    https://huggingface.co/papers/2411.15124, eq. 6). The average is some tens of times smaller than the sum: `beta`
    is usually 1 to 10 here, not 0.1.
    """
    return -F.logsigmoid(beta * _average_logratio_difference(batch))


@register("dpo_loss", "cdpo")
def cdpo(batch: DPOBatch, *, beta: float, label_smoothing: float = 0.1) -> Tensor:
    r"""Conservative DPO: cross-entropy against a label that is wrong with probability $\epsilon$ = `label_smoothing`.

    $-(1 - \epsilon) \log \sigma(\beta h) - \epsilon \log \sigma(-\beta h)$ (Mitchell 2023,
    https://ericmitchell.ai/cdpo.pdf, eq. 3). Its minimum lies at $\beta h = \log((1 - \epsilon) / \epsilon)$, so the
    margin stops growing there. `label_smoothing=0` is `sigmoid`.

    Raises:
        ValueError: `label_smoothing` outside [0, 0.5).
    """
    check_label_smoothing(label_smoothing)
    logits = beta * _logratio_difference(batch)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


@register("dpo_loss", "odpo")
def odpo(
    batch: DPOBatch, *, beta: float, alpha: float = 1.0, transform: Literal["identity", "log"] = "identity"
) -> Tensor:
    r"""DPO with an offset: a pair that differs more must be told apart by more.

    $-\log \sigma(\beta h - \alpha f(m))$ with the per-example margin $m$ from the dataset column `margin`, in the units
    of that column (Amini et al. 2024, https://huggingface.co/papers/2402.10571, eq. 7). The paper takes the
    difference of two ratings as $m$ and $f = \log$; `transform="identity"` takes the column as it is.

    Raises:
        ValueError: No column `margin` among the extras, an unknown transform, or `log` of a margin not above 0.
    """
    if "margin" not in batch.extras:
        raise ValueError("The loss 'odpo' needs a margin per pair: set extra_columns=['margin'].")
    margin = batch.extras["margin"]
    if transform == "log":
        if (margin <= 0).any():
            raise ValueError(f"transform='log' needs positive margins, got {margin.min().item():g}.")
        margin = margin.log()
    elif transform != "identity":
        raise ValueError(f"transform must be 'identity' or 'log', got {transform!r}.")
    return -F.logsigmoid(beta * _logratio_difference(batch) - alpha * margin)


@register("dpo_loss", "simpo")
def simpo(batch: DPOBatch, *, beta: float, gamma: float = 0.5) -> Tensor:
    r"""SimPO: the average log-probability is the reward, and there is no reference model in it.

    $-\log \sigma(\beta \log \pi(y_c|x) / |y_c| - \beta \log \pi(y_r|x) / |y_r| - \gamma)$ with the target reward margin
    $\gamma$ = `gamma` (Meng et al. 2024, https://huggingface.co/papers/2405.14734, eq. 6). The paper uses `beta` 2 to
    2.5 and `gamma` 0.5 to 1.6.
    """
    average_difference = batch.chosen_logps / batch.chosen_lengths - batch.rejected_logps / batch.rejected_lengths
    return -F.logsigmoid(beta * average_difference - gamma)


@register("dpo_loss", "ipo")
def ipo(batch: DPOBatch, *, beta: float) -> Tensor:
    r"""Identity preference optimization: regress the log-ratio difference to $1 / (2 \beta)$ instead of to infinity.

    $(\rho(y_c) / |y_c| - \rho(y_r) / |y_r| - 1 / (2 \beta))^2$ (Azar et al. 2023,
    https://huggingface.co/papers/2310.12036, eq. 17, with log-ratios averaged over tokens as TRL does on the authors'
    advice). The unit is nats squared.
    """
    return (_average_logratio_difference(batch) - 1 / (2 * beta)) ** 2


@register("dpo_loss", "hinge")
def hinge(batch: DPOBatch, *, beta: float) -> Tensor:
    r"""The margin loss $\max(0, 1 - \beta h)$ (Zhao et al. 2023, SLiC-HF, https://huggingface.co/papers/2305.10425)."""
    return torch.relu(1 - beta * _logratio_difference(batch))
