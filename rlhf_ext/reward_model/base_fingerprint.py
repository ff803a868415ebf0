"""Which base an adapter was trained on: shapes alone cannot tell a model from its fine-tuned twin."""

import hashlib

import torch
from torch import nn

SAMPLES = 64  # values of a weight
# What is in the names of weights that PEFT brings, beside its prefix, and of those that they take the place of.
NOT_OF_BASE = ("modules_to_save.", "original_module.", "token_adapter.")


def base_fingerprint(model: nn.Module) -> str | None:
    """Return a short text that is the same for the same weights below an adapter and the head, whatever these are.

    It is made of some values of each weight that is a plain number, so that it costs next to nothing, and holds for one
    dtype and one kind of quantization: of quantized models it knows the embeddings and norms. What an adapter may train
    is left out: biases, and layers that it saves whole.

    Args:
        model: The PEFT model around a sequence-classification model, or around a language model on the same base.

    Returns:
        None where this process does not have the weights: DeepSpeed ZeRO-3 divides them.
    """
    trunk = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    others = NOT_OF_BASE if prefix is None else (*NOT_OF_BASE, prefix)
    digest = hashlib.sha256()
    for name, weight in sorted(trunk.named_parameters()):
        if any(mark in name for mark in others) or name.endswith("bias") or not weight.is_floating_point():
            continue
        if weight.numel() == 0 or weight.is_meta:
            return None
        values = weight.detach().flatten()
        digest.update(name.replace("base_layer.", "").encode())  # which PEFT puts into the names of what it wraps
        digest.update(values[:: max(1, len(values) // SAMPLES)].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]
