"""`RewardModel`: loading one so that its scores are those of training, and scoring, comparing and ranking texts."""

from typing import TYPE_CHECKING, Any

__all__ = ["RewardModel"]

if TYPE_CHECKING:
    from .model import RewardModel


def __getattr__(name: str) -> Any:
    # On first use: parts of this package are read by modules that the model itself needs.
    if name != "RewardModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .model import RewardModel

    return RewardModel
