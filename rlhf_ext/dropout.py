"""Dropout and modes of a model: off for a while, off for good, and a dropout that would have no effect is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import nn

from .quantization import int8_layers


@contextmanager
def modes_as_they_were(model: nn.Module) -> Iterator[None]:
    """Put each layer back into the mode that it was in, whatever happens inside."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model and all of its layers into evaluation mode, and each one back into the mode that it was in."""
    with modes_as_they_were(model):
        model.eval()
        yield


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Put everything below `model` into evaluation mode, and back; `model.training` itself stays as it is.

    TRL asks `model.training` whether it trains or evaluates, so that the model itself must not change. 8-bit layers
    would compute something else.
    """
    kept = {model, *int8_layers(model)}
    training = [module for module in model.modules() if module.training and module not in kept]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability in `model` to 0, also those of attention, which are numbers and no modules."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def check_adapter_dropout(model: Any, peft_config: Any, *, default: str = "TRL's default") -> None:
    """Raise where adapters were given a dropout that `disable_dropout` would silently take away.

    Args:
        model: What a trainer was given; a PEFT model has adapters already.
        peft_config: Of the adapter to add.
        default: Whose default `disable_dropout=True` is, and perhaps why.

    Raises:
        ValueError: A `lora_dropout` above 0.
    """
    configs = model.peft_config if isinstance(model, PeftModel) else {None: peft_config}
    for name, config in configs.items():
        if dropout := getattr(config, "lora_dropout", None):
            option = "lora_dropout=0" if name is None else f"model.peft_config[{name!r}].lora_dropout = 0"
            raise ValueError(
                f"lora_dropout={dropout:g} has no effect with disable_dropout=True, {default}. Set {option}, or "
                "disable_dropout=False if you want it."
            )
