"""`RewardConfig`: TRL's, plus losses of one's own, options of the reward head, and calibration."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from torch import Tensor

from ..plugins import PluginError
from .plugin_losses import bind_losses, check_loss_weights, parse_columns, parse_keywords, try_losses


@dataclass
class RewardConfig(trl.RewardConfig):
    r"""`trl.RewardConfig` with plugin losses, options of the reward head, and calibration.

    Parameters:
        loss_type (`list[str]`, *optional*, defaults to `["margin"]`):
            Registered names (`rlhf_ext.list_plugins("preference_loss")`), `"package.module:function"` or
            `"path/to/file.py:function"`. A list mixes them with the weights in `loss_weights`. TRL's own loss is
            `"bradley_terry"`, or `"margin"` with `loss_kwargs={"margin": 0.0}` where the dataset has a column `margin`.
        loss_weights (`list[float]`, *optional*):
            One weight per loss; all 1 by default.
        loss_kwargs (`dict[str, Any]`, *optional*):
            Keywords for the losses. Each loss receives those that it takes; one that no loss takes is an error.
        extra_columns (`list[str]`, *optional*):
            Numeric dataset columns that losses find in `extras`. A column `margin` need not be named, as in TRL.
        head_dropout (`float`, *optional*, defaults to `0.1`):
            Dropout on the hidden state before the reward head. `disable_dropout` concerns the rest of the model.
        head_init (`str`, *optional*):
            How to initialise the reward head: `"normal"` (standard deviation 0.02) or `"inverse_sqrt"` (1 / sqrt(d + 1)
            for hidden size d, Stiennon et al. 2020, https://huggingface.co/papers/2009.01325). By default it is left as
            loaded.
        calibrate (`bool`, *optional*, defaults to `True`):
            Fit score offset and temperature on the evaluation set after training.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["margin"],
        metadata={
            "help": "Loss or losses: registered names, 'package.module:function' or 'path/to/file.py:function'. "
            "Several are mixed with `loss_weights`."
        },
    )
    loss_weights: list[float] | None = field(default=None, metadata={"help": "One weight per loss in `loss_type`."})
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords for the losses, as JSON on the command line."}
    )
    extra_columns: list[str] = field(
        default_factory=list, metadata={"help": "Numeric dataset columns that losses find in `extras`."}
    )
    head_dropout: float = field(default=0.1, metadata={"help": "Dropout on the hidden state before the reward head."})
    head_init: str | None = field(
        default=None,
        metadata={
            "help": "Initialise the reward head: 'normal' (standard deviation 0.02) or 'inverse_sqrt' (1/sqrt(d+1)). "
            "Default: as loaded.",
            "choices": ["normal", "inverse_sqrt"],
        },
    )
    calibrate: bool = field(
        default=True, metadata={"help": "Fit score offset and temperature on the evaluation set after training."}
    )

    def __post_init__(self) -> None:
        """Adds the checks of the losses, their keywords and the options of the head."""
        super().__post_init__()
        self.loss_type = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        self.extra_columns = parse_columns(self.extra_columns)
        self.loss_kwargs = parse_keywords("loss_kwargs", self.loss_kwargs)
        if self.loss_weights is None:
            self.loss_weights = [1.0] * len(self.loss_type)
        check_loss_weights(self.loss_type, self.loss_weights)
        centering = self.center_rewards_coefficient
        if centering is not None and not 0 <= centering < math.inf:
            raise ValueError(f"center_rewards_coefficient must be 0 or above and finite, got {centering}.")
        if self.label_smoothing_factor:
            factor = self.label_smoothing_factor
            raise ValueError(
                f"label_smoothing_factor={factor} has no effect, as there are no labels of tokens: use "
                f"loss_kwargs={{'label_smoothing': {factor}}}."
            )
        if not 0.0 <= self.head_dropout < 1.0:
            raise ValueError(f"head_dropout must lie in [0, 1), got {self.head_dropout}.")
        if self.head_init not in (None, "normal", "inverse_sqrt"):
            raise ValueError(f"head_init must be 'normal' or 'inverse_sqrt', got {self.head_init!r}.")
        for name, value in self.loss_kwargs.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"loss_kwargs {name!r} is {value}: it must be a finite number.")
        try:
            self.plugin_losses(self.extra_columns)
        except PluginError as error:
            try:  # a column `margin` need not be named, and whether there is one shows once there is a dataset
                self.plugin_losses([*self.extra_columns, "margin"])
            except PluginError:
                raise error from None

    def plugin_losses(self, extra_columns: list[str]) -> dict[str, Callable[..., Tensor]]:
        """Return the losses in `loss_type` with their keywords bound, each tried out on two pairs.

        Raises:
            PluginError: A loss does not exist, has a wrong signature, fails or is not finite; or none of them reads a
                keyword or a column.
        """
        losses = bind_losses("preference_loss", self.loss_type, self.loss_kwargs, options={})
        scores = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
        try_losses(losses, extra_columns, lambda loss, extras: _finite(loss(*scores, extras=extras)))
        return losses


def _finite(losses: Any) -> Any:
    if isinstance(losses, Tensor) and not losses.isfinite().all():
        raise ValueError(f"it returned {losses.tolist()}, where every loss must be a finite number.")
    return losses
