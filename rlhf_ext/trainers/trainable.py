"""A check that there is something to train."""

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
