r"""The KL divergence of the policy from its reference: estimators per token, and what sets the penalty's coefficient.

For a token sampled from the policy $\pi$ with the log-ratio $\rho = \log \pi - \log \pi_{ref}$, each estimator has the
mean $KL(\pi || \pi_{ref})$, exactly (k1, k3) or nearly (k2), in nats.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
LARGEST_EXPONENT = 20.0  # exp(20) squared is still finite in float32


def per_token_kl(logps: Tensor, ref_logps: Tensor, *, estimator: KLEstimator = "k1") -> Tensor:
    r"""Estimate the KL divergence at every token from its log-probability under policy and reference.

    k1 is $\rho$ (unbiased, either sign), k2 is $\rho^2 / 2$ (biased, small variance, its gradient is that of the KL),
    and k3 is $e^{-\rho} - 1 + \rho$ (unbiased, never negative) (Schulman 2020, http://joschu.net/blog/kl-approx.html).
    Where $-\rho$ exceeds 20, k3 goes on along its tangent, so that neither it nor its gradient overflows.

    Args:
        logps: Log-probabilities of the sampled tokens under the policy, any shape, usually (B, T), in nats.
        ref_logps: The same under the reference, of the same shape.
        estimator: `"k1"`, `"k2"` or `"k3"`.

    Returns:
        The estimates, of the same shape, in nats and in float32 at least.

    Raises:
        ValueError: Two shapes, or an unknown estimator.
    """
    if logps.shape != ref_logps.shape:
        raise ValueError(
            f"logps and ref_logps must have one shape, got {tuple(logps.shape)} and {tuple(ref_logps.shape)}."
        )
    wide = torch.promote_types(torch.promote_types(logps.dtype, ref_logps.dtype), torch.float32)
    logratios = logps.to(wide) - ref_logps.to(wide)
    if estimator == "k1":
        return logratios
    if estimator == "k2":
        return logratios.square() / 2
    if estimator == "k3":
        exponents = (-logratios).clamp(max=LARGEST_EXPONENT)
        excess = (-logratios - LARGEST_EXPONENT).clamp(min=0)
        return torch.expm1(exponents) - exponents + math.expm1(LARGEST_EXPONENT) * excess
    raise ValueError(f"The KL estimator must be 'k1', 'k2' or 'k3', got {estimator!r}.")


class FixedKLController:
    """A coefficient that stays as it is.

    Attributes:
        coef: What a nat of KL costs, in units of reward.

    Raises:
        ValueError: A negative or non-finite coefficient.
    """

    def __init__(self, coef: float) -> None:
        self._coef = _checked_coef(coef)

    @property
    def coef(self) -> float:
        """What a nat of KL costs, in units of reward."""
        return self._coef

    def update(self, kl: float, n_steps: int) -> None:
        """Check the KL and change nothing.

        Raises:
            ValueError: The KL is not finite.
        """
        _checked_kl(kl)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"controller": "fixed", "coef": self._coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the checkpoint was made with this coefficient.

        Raises:
            ValueError: It was made with an adaptive controller or with another coefficient.
        """
        _check_controller(state, "fixed")
        if state["coef"] != self._coef:
            raise ValueError(
                f"The checkpoint was made with the fixed KL coefficient {state['coef']}, this run has {self._coef}: "
                f"set init_kl_coef to {state['coef']}, or start a new run."
            )


class AdaptiveKLController:
    r"""A coefficient that follows the KL to a target.

    $e = \mathrm{clip}(KL / \mathrm{target} - 1, -0.2, 0.2)$, then $coef \leftarrow coef (1 + e\, n / \mathrm{horizon})$
    (Ziegler et al. 2019, https://huggingface.co/papers/1909.08593, section 2.2).

    Args:
        init_kl_coef: The coefficient before the first update, in units of reward per nat.
        target: The KL to hold, summed over a sequence, in nats.
        horizon: Sequences over which the coefficient grows by a factor of at most e^0.2, or 1.22.

    Raises:
        ValueError: A coefficient below 0, or a target or horizon not above 0, or one of them not finite.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: int) -> None:
        for name, number in (("target", target), ("horizon", horizon)):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"The {name} of the adaptive KL controller must be above 0, got {number}.")
        self._coef = _checked_coef(init_kl_coef)
        self.target, self.horizon = target, horizon

    @property
    def coef(self) -> float:
        """What a nat of KL costs now, in units of reward."""
        return self._coef

    def update(self, kl: float, n_steps: int) -> None:
        """Move the coefficient, once per batch of new completions.

        Args:
            kl: The mean KL of a sequence in this batch, in nats. A k1 estimate may be negative.
            n_steps: Sequences in this batch, over all processes.

        Raises:
            ValueError: The KL is not finite, or a batch so large for the horizon that the coefficient could fall to 0.
        """
        error = min(max(_checked_kl(kl) / self.target - 1, -0.2), 0.2)
        if 0.2 * n_steps >= self.horizon:
            raise ValueError(
                f"A batch of {n_steps} sequences could take the KL coefficient to 0 or below: raise the horizon, now "
                f"{self.horizon}, above {0.2 * n_steps:g}."
            )
        self._coef *= 1 + error * n_steps / self.horizon

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; target and horizon come from the configuration."""
        return {"controller": "adaptive", "coef": self._coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the coefficient of a checkpoint.

        Raises:
            ValueError: It was made with a fixed controller.
        """
        _check_controller(state, "adaptive")
        self._coef = _checked_coef(state["coef"])


def _checked_coef(coef: float) -> float:
    if not (math.isfinite(coef) and coef >= 0):
        raise ValueError(f"The KL coefficient must be 0 or above, got {coef}.")
    return float(coef)


def _checked_kl(kl: float) -> float:
    if not math.isfinite(kl):
        raise ValueError(f"The KL is {float(kl)}: the policy has diverged. Lower the learning rate.")
    return float(kl)


def _check_controller(state: dict[str, Any], wanted: str) -> None:
    if state["controller"] != wanted:
        raise ValueError(
            f"The checkpoint was made with the {state['controller']} KL controller, this run has the {wanted} one: "
            "choose the same, or start a new run."
        )
