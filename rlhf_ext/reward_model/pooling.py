"""The score is read at the last attended token.

Transformers reads it at the last token that is not the padding token. Where padding and end of sequence are the same
token, as in GPT-2 and most Llamas, that is the token before the end, which is not where a reward model says anything.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

HEAD_NAMES = ("score", "classifier")  # what Transformers calls the last layer of a sequence-classification model
_INSTALLED = "_pools_by_attention_mask"


def pool_by_attention_mask(model: nn.Module) -> None:
    """Make a sequence-classification model read its score at the last position that the attention mask keeps.

    The logit found there is put at every position, so that whichever one the model picks is the right one. Training,
    gradient checkpointing and either padding side work; a call without a mask attends to everything and is scored at
    its last position. Models whose head sees one vector a text, such as BERT's `[CLS]`, and those whose configuration
    has a `classifier_pooling`, such as EuroBERT's, are left as they are. A second call changes nothing.

    Args:
        model: A sequence-classification model, or the PEFT model around one.

    Raises:
        ValueError: The model has no head of a known name.
    """
    module = classification_module(model)
    pools_by_itself = hasattr(module.config, "classifier_pooling")
    if not pools_by_itself and not hasattr(module, _INSTALLED):
        module.register_forward_pre_hook(_before_forward, with_kwargs=True)
        module.register_forward_hook(_after_forward, always_call=True)
        setattr(module, _INSTALLED, True)


def classification_module(model: nn.Module) -> nn.Module:
    """Return the Transformers model whose child is the head, inside PEFT's wrappers if there are any.

    Raises:
        ValueError: There is no head of a known name.
    """
    module = model.get_base_model() if hasattr(model, "get_base_model") else model
    head_name(module)
    return module


def head_name(module: nn.Module) -> str:
    """Return what the head is called in what `classification_module` returns.

    Raises:
        ValueError: There is no head of a known name.
    """
    for name in HEAD_NAMES:
        if hasattr(module, name):
            return name
    raise ValueError(
        f"{type(module).__name__} has no head named {' or '.join(HEAD_NAMES)}: it is no sequence-classification model. "
        "Load it with AutoModelForSequenceClassification and num_labels=1."
    )


def head_of(module: nn.Module) -> nn.Module:
    """Return the head of what `classification_module` returned; under PEFT, the wrapper around its copies."""
    return getattr(module, head_name(module))


def _before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Install the head's hook for this one call: merging an adapter replaces the head, and with it any older hook."""
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    module._pooling_of_this_call = head_of(module).register_forward_hook(partial(_pick_last, mask))


def _after_forward(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    module._pooling_of_this_call.remove()
    del module._pooling_of_this_call


def _pick_last(mask: Tensor | None, head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor | None:
    """Put the logit of the last attended token at every position, if the head saw positions: (B, T, 1) to (B, T, 1)."""
    if logits.dim() != 3:
        return None
    length = logits.shape[1]
    if mask is None:
        return logits[:, -1:].expand(-1, length, -1)
    if mask.dim() != 2:
        raise ValueError(f"The attention mask must have shape (texts, tokens), got {tuple(mask.shape)}.")
    # With a cache the mask also covers the tokens before; virtual tokens of prompt tuning come first as well.
    last = (mask[:, -length:] != 0).to(logits.device) * torch.arange(1, length + 1, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, last.argmax(dim=1)][:, None].expand(-1, length, -1)
