"""Quantized bases: what training on them, and on a CPU, needs."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .adapters import tuner_layers


def is_quantized(model: Any) -> bool:
    """Whether a model's weights are bitsandbytes' 8- or 4-bit ones; the name of a model says nothing of them."""
    return any(getattr(model, f"is_loaded_in_{bits}bit", False) for bits in (8, 4))


def trained_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that learn."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def restore_float32(model: nn.Module, given: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    """Let adapters over a quantized base learn in float32, as PEFT has them over any other; TRL makes them bfloat16.

    In bfloat16 an update of less than 1/512 of a weight is lost (trl#1644; for DoRA trl#7268). And an adapter that is
    trained on, or a reward model's head beside it, would be rounded at once, but not the copy that is its reference.

    Args:
        model: The model that TRL has prepared.
        given: Weights that learn and came with the model, and what they held before.
    """
    if not is_quantized(model):
        return
    for weight, values in given:
        weight.data = values.to(weight.device)
    for layer in tuner_layers(model):
        for weight in trained_weights(layer):
            weight.data = weight.data.float()


def keep_gradients_on_cpu(model: nn.Module) -> None:
    """Let 4-bit layers stay trainable through after an evaluation or a generation on the CPU.

    On CPUs with bfloat16 instructions bitsandbytes packs a layer's weights for a faster kernel at the first pass in
    evaluation mode, and never unpacks them. That kernel has no gradient with respect to its input, so adapters below
    the layer would stop learning, without an error. On other devices, and for 8 bit, nothing is packed.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def casts_unmentioned() -> Iterator[None]:
    """Keep bitsandbytes from logging, for each 8-bit layer in each pass, that it casts float32: it is meant to."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")

    def is_of_use(record: logging.LogRecord) -> bool:
        return "inputs will be cast" not in record.getMessage()

    logger.addFilter(is_of_use)
    try:
        yield
    finally:
        logger.removeFilter(is_of_use)


def int8_layers(model: nn.Module) -> list[nn.Module]:
    """Return bitsandbytes' 8-bit layers.

    On a CPU they multiply by the dequantized weights in training mode, and in evaluation mode round activations to 8
    bits as well, in another way for every batch. So a pass that is to be compared with training's keeps their mode:
    with Gemma 3 270M the log-probability of a token would be off by 0.18 (standard deviation), and one ratio in five
    would be clipped though no weight has moved. On a GPU both modes round.
    """
    return [module for module in model.modules() if hasattr(getattr(module, "state", None), "is_training")]
