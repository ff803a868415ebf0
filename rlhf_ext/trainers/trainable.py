"""Checks that there is something to train, and that TRL finds it."""

from typing import Any

from peft import PeftModel
from torch import nn


def check_trainable(model: nn.Module) -> None:
    """Raise where no weight would learn: the log would look as if some did.

    Args:
        model: What a trainer has made of the model that it was given.

    Raises:
        ValueError: Every weight is frozen.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "every weight of the model is frozen, so nothing would be trained: load its adapter with "
            "is_trainable=True, or pass a peft_config."
        )


def check_adapter_name(model: Any) -> None:
    """Raise where a policy's adapter has another name than the one that TRL makes the reference of.

    Args:
        model: The policy as it is given, or its name.

    Raises:
        ValueError: It has adapters, and none is called "default".
    """
    if isinstance(model, PeftModel) and "default" not in model.peft_config:
        raise ValueError(
            f"the policy's adapter is called {model.active_adapter!r}, and TRL looks for one called 'default': load it "
            "without an adapter_name."
        )
