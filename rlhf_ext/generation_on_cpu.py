"""What makes Transformers' generation faster on a CPU: multiplying with weights, and drawing a token, cost less."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from .replaced import replaced

# Weights of a matrix at least, as those of a smaller one stay in the processor's cache; and of all matrices at most, as
# packing them takes their memory once more.
PACKED_SIZES = (2**18, 2**30)


@contextmanager
def fast_on_cpu(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Generate faster inside, if the model lies on a CPU and its weights stay as they are."""
    with (
        replaced(torch, multinomial=partial(_multinomial, torch.multinomial)),
        _contiguous_hidden_states(model),
        _packed_weights(model),
    ):
        yield


def _multinomial(original: Callable[..., Tensor], probabilities: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Draw one token a row as `torch.multinomial` does, with one random number where that takes one for every token.

    A CPU makes 50 million of them a second: 85 ms for a token of 16 texts and the vocabulary of Gemma 3.
    """
    drawn = None
    one_a_row = not args and kwargs == {"num_samples": 1} and probabilities.dim() == 2
    if one_a_row and probabilities.device.type == "cpu" and probabilities.dtype == torch.float32:
        drawn = _inverse_transform(probabilities)
    return original(probabilities, *args, **kwargs) if drawn is None else drawn


def _inverse_transform(probabilities: Tensor) -> Tensor | None:
    """Return the first index of each row at which the cumulated probabilities exceed a number from [0, their sum).

    Args:
        probabilities: (B, V), at least 0.

    Returns:
        (B, 1); None if a row has no finite sum above 0, of which `torch.multinomial` says what is wrong, or one so
        small that a part of it is rounded to the whole.
    """
    cumulated = probabilities.cumsum(dim=1)
    totals = cumulated[:, -1:]
    if not (totals.isfinite() & (totals > torch.finfo(totals.dtype).tiny)).all():
        return None
    return torch.searchsorted(cumulated, torch.rand_like(totals) * totals, right=True)


@contextmanager
def _contiguous_hidden_states(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Hand the LM head the hidden states of a prompt's last token as a block, which are a slice of those of all tokens.

    PyTorch multiplies a slice text by text, and on a CPU in bfloat16 copies the head's weights for each of them
    (pytorch#151934): 4.5 GiB for 16 prompts of Gemma 3 270M, which took a minute instead of a tenth of a second.
    """
    head = model.get_output_embeddings()
    weight = None if head is None else next(head.parameters(), None)
    if weight is None or weight.device.type != "cpu":
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _packed_weights(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Multiply with copies of the weights in the layout that oneDNN's kernels read, made once for all tokens inside.

    PyTorch hands weights over as they lie, and for a few texts bringing them into such a layout, for every token anew,
    takes longer than multiplying: 148 ms in place of 36 for the LM head of Gemma 3 270M and 16 texts in float32.
    """
    layers = [layer for layer in model.modules() if _can_be_packed(layer)]
    if sum(layer.weight.numel() for layer in layers) > PACKED_SIZES[1]:
        layers = []
    for layer in layers:
        layer.forward = _Packed(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _can_be_packed(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight.data
    if type(weight) is not Tensor or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    is_supported = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return is_supported and weight.numel() >= PACKED_SIZES[0]


class _Packed:
    """The forward of a linear layer, with packed weights from its second pass on: the first may be the only one."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.dtype = layer.weight.dtype
        self.is_first = True
        self.weight: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        if self.is_first or not self._multiplies_as_it_is(hidden):
            self.is_first = False
            return nn.Linear.forward(self.layer, hidden)
        if self.weight is None:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.layer.weight.detach())
        return torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self.layer.bias, "none", [], "")

    def _multiplies_as_it_is(self, hidden: Tensor) -> bool:
        """Whether neither autocast nor autograd comes in between, and nobody has cast the model."""
        is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != self.dtype
        return hidden.dtype == self.dtype and not is_cast and not torch.is_grad_enabled()
