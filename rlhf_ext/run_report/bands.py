"""Where a metric should lie, as far as that is known. Figures shade it, and warnings are about what leaves it."""

from dataclasses import dataclass
from typing import Any

LEAST_CLIP_FRACTION = 0.02  # below it the policy hardly moves within a batch of completions
KL_TOLERANCE = 2.0  # how many times the target the KL may be
ENTROPY_KEPT = 0.3  # the part of its first entropy that a policy should keep
CHANCE = 0.5  # accuracy of a coin on pairs


@dataclass(frozen=True)
class Band:
    """From where to where a metric is healthy; None is open. `why` ends a sentence that begins with "healthy: "."""

    low: float | None
    high: float | None
    why: str


def healthy_bands(args: Any, start: dict[str, float]) -> dict[str, Band]:
    """Return the band of each metric that has one.

    Args:
        args: The trainer's configuration.
        start: The first value of each metric, by its name without `eval_`.
    """
    bands = {
        "accuracy": Band(CHANCE, 1, "better than a coin"),
        "rewards/accuracies": Band(CHANCE, 1, "better than a coin"),
    }
    if start.get("entropy", 0) > 0:
        least = ENTROPY_KEPT * start["entropy"]
        bands["entropy"] = Band(least, None, f"at least {ENTROPY_KEPT:.0%} of what it was at first")
    if not hasattr(args, "max_clip_fraction"):  # what follows is about PPO
        return bands
    if args.steps_per_batch > 1:  # with a single step on a batch the ratio is 1, and nothing is ever clipped
        high = args.max_clip_fraction
        bands["clip_fraction"] = Band(LEAST_CLIP_FRACTION, high, f"{LEAST_CLIP_FRACTION:g} to {high:g}")
    if args.kl_target is not None and args.init_kl_coef != 0:
        high = KL_TOLERANCE * args.kl_target
        bands["kl/k1"] = Band(0, high, f"up to {KL_TOLERANCE:g} times the target of {args.kl_target:g}")
    bands["value/explained_variance"] = Band(0, 1, "above 0, where the critic knows more than the mean")
    return bands
