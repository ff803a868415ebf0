"""Products of a few rows with weights that are packed once, where PyTorch packs them for every product anew."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MIN_WEIGHTS_OF_A_MATRIX = 2**18  # those of a smaller one stay in the processor's cache
MAX_WEIGHTS_OF_ALL = 2**30  # packing takes their memory once more
# Packing takes as long as some six passes save, so that a short text would lose by it.
PASSES_BEFORE_PACKING = 6


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Multiply inside with copies of the weights in the layout that oneDNN's kernels read, if they lie on a CPU.

    PyTorch hands weights over as they lie. For the few rows of a step of generation, bringing them into such a layout
    takes longer than multiplying: 148 ms in place of 36 for the LM head of Gemma 3 270M and 16 texts in float32.
    Weights must stay as they are. A model that `model.compile()` has compiled is left alone: it would be compiled anew.
    """
    layers = [layer for layer in model.modules() if _can_be_packed(layer)]
    is_compiled = any(module._compiled_call_impl is not None for module in model.modules())
    if is_compiled or sum(layer.weight.numel() for layer in layers) > MAX_WEIGHTS_OF_ALL:
        layers = []
    for layer in layers:
        layer.forward = _Packed(layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _can_be_packed(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight, bias = layer.weight.data, layer.bias
    is_plain = type(weight) is Tensor and weight.layout == torch.strided and weight.device.type == "cpu"
    is_bias_plain = bias is None or (bias.is_contiguous() and len(bias) == layer.out_features)
    return (
        is_plain and is_bias_plain and weight.numel() >= MIN_WEIGHTS_OF_A_MATRIX and _has_packed_products(weight.dtype)
    )


def _has_packed_products(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Packed:
    """The forward of a linear layer, with packed weights after a few passes."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.dtype = layer.weight.dtype
        self.passes = 0
        self.weight: Tensor | None = None

    def __call__(self, input: Tensor) -> Tensor:
        self.passes += 1
        if self.passes <= PASSES_BEFORE_PACKING or not self._is_faster(input):
            return nn.Linear.forward(self.layer, input)
        if self.weight is None:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.layer.weight.detach())
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.layer.bias, "none", [], "")

    def _is_faster(self, input: Tensor) -> bool:
        """Whether the product is that of the layer's own weights, where and as they were, and not with a single row.

        For a row in float32 PyTorch has a product that reads weights as they lie. Autocast and autograd do more.
        """
        is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != self.dtype
        is_same = input.dtype == self.dtype and input.device.type == "cpu"
        is_row = self.dtype == torch.float32 and input.numel() == input.size(-1)
        return is_same and not (is_row or is_cast or torch.is_grad_enabled())
