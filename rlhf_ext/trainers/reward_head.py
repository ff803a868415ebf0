"""The reward head in training: its dtype, how it begins, dropout before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..reward_model.layers import cast_inputs


def keep_in_float32(layer: nn.Module) -> None:
    """Train a layer in float32 whatever the frozen base has; TRL casts it to bfloat16 over a quantized base.

    In bfloat16 an update of less than 1/256 of a weight is lost, and most are smaller.
    """
    layer.to(torch.float32)
    cast_inputs(layer)


def initialize_head(head: nn.Linear, head_init: str, *, seed: int) -> None:
    """Draw the head's weights anew, the same ones in every process; the bias becomes 0.

    Args:
        head: The linear layer, hidden size d to 1.
        head_init: `"normal"`, standard deviation 0.02, or `"inverse_sqrt"`, standard deviation 1 / sqrt(d + 1).
        seed: The seed of the draw.

    Raises:
        ValueError: DeepSpeed ZeRO-3 has divided the weights among processes.
    """
    if head.weight.numel() == 0:
        raise ValueError("head_init cannot reach weights divided by DeepSpeed ZeRO-3: leave it unset.")
    std = {"normal": 0.02, "inverse_sqrt": (head.in_features + 1) ** -0.5}[head_init]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(std * torch.randn(head.weight.shape, generator=generator))
        if head.bias is not None:
            head.bias.zero_()


def add_head_dropout(head: nn.Linear, p: float) -> None:
    """Apply dropout to the hidden state before the head while it trains. The saved model does not change."""
    if p:
        head.register_forward_pre_hook(lambda module, args: _dropout(module, args, p))


def _dropout(module: nn.Module, args: tuple[Tensor, ...], p: float) -> tuple[Tensor, ...]:
    return (F.dropout(args[0], p, module.training), *args[1:])
