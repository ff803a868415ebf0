"""Passes over left-padded prompts and right-padded completions that padding neither changes nor slows down.

TRL pads a generation batch to its longest prompt and completion, passes no positions, and where Triton is missing
projects every position onto the vocabulary. So a model with learned positions (GPT-2) would see a padded text elsewhere
than `generate` did, a part of a batch would be as wide as the whole, and a CPU would work for tokens that nobody reads.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

MULTIMODAL = ("pixel_values", "token_type_ids", "mm_token_type_ids")  # of whole texts, or tied to their tokens


def positions(model: nn.Module, attention_mask: Tensor) -> dict[str, Tensor]:
    """Return `position_ids` (B, T), counted from the first real token as in `generate`, if the model takes any."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (attention_mask.long().cumsum(1) - 1).clamp(min=0)}


@contextmanager
def completion_pass(model: nn.Module, causal_lm: nn.Module, length: int, *, count_positions: bool) -> Iterator[None]:
    """Let the passes inside count positions from the first real token, and project the last `length` tokens only.

    Args:
        model: What is called, with TRL's `fused_lm_head`; it may wrap the language model.
        causal_lm: The language model itself, without adapters' wrappers.
        length: Tokens whose log-probabilities are wanted.
        count_positions: Whether to pass positions; multimodal models count theirs in their own way.
    """

    def shorten_labels(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        counted = positions(causal_lm, kwargs["attention_mask"]) if count_positions else {}
        return args, kwargs | counted | {"labels": kwargs["labels"][:, -length - 1 :]}

    def shorten_hidden(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, -length - 1 :]
        return output

    hooks = [
        model.register_forward_pre_hook(shorten_labels, with_kwargs=True),
        causal_lm.base_model.register_forward_hook(shorten_hidden, prepend=True),  # before a critic reads along
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def without_padding(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch without the columns that are padding in all of its rows; multimodal ones as they are.

    Args:
        inputs: TRL's, with `prompt_ids` and `prompt_mask` (B, P), padded on the left, `completion_ids` and
            `completion_mask` (B, C), padded on the right, and any other tensors (B, C).
    """
    if any(name in inputs for name in MULTIMODAL):
        return dict(inputs)
    start = int(inputs["prompt_mask"].any(0).int().argmax())
    length = inputs["completion_mask"].size(1)
    end = max(1, int(inputs["completion_mask"].any(0).sum()))  # a batch of masked completions keeps a column

    def trimmed(name: str, value: Any) -> Any:
        if name in ("prompt_ids", "prompt_mask"):
            return value[:, start:]
        is_per_token = isinstance(value, Tensor) and value.dim() == 2 and value.size(1) == length
        return value[:, :end] if is_per_token else value

    return {name: trimmed(name, value) for name, value in inputs.items()}
