"""Quantized bases: one repair that training on a CPU needs."""

from torch import nn


def keep_gradients_on_cpu(model: nn.Module) -> None:
    """Let 4-bit layers stay trainable through after an evaluation or a generation on the CPU.

    On CPUs with bfloat16 instructions bitsandbytes packs a layer's weights for a faster kernel at the first pass in
    evaluation mode, and never unpacks them. That kernel has no gradient with respect to its input, so adapters below
    the layer would stop learning, without an error. On other devices, and for 8 bit, nothing is packed.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
