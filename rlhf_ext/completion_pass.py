"""Passes over left-padded prompts and right-padded completions that padding neither changes nor slows down.

TRL pads a generation batch to its longest prompt and completion, passes no positions, and where Triton is missing
projects every position onto the vocabulary. So a model with learned positions (GPT-2) would see a padded text elsewhere
than `generate` did, a part of a batch would be as wide as the whole, and a CPU would work for tokens that nobody reads.

Log-probabilities at rollout and in training are those of the same weights only if the same rows are in a pass, with the
same padding: in bfloat16 the shape of a matrix product changes its rounding, and in 8 bit, on a GPU, bitsandbytes
rounds all columns of the activations but those in which any token of the batch has a large value.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
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


def whole_texts(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Return ids and mask of prompts and completions, (B, P + C), and C."""
    ids, mask = (torch.cat([inputs[f"prompt_{kind}"], inputs[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    return ids, mask, inputs["completion_ids"].size(1)


def without_padding(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch without the columns that are padding in all of its rows; multimodal ones as they are.

    Args:
        inputs: TRL's, with `prompt_ids` and `prompt_mask` (B, P), padded on the left, `completion_ids` and
            `completion_mask` (B, C), padded on the right, and any other tensors (B, C).
    """
    if any(name in inputs for name in MULTIMODAL):
        return dict(inputs)
    start, end = _real_columns(inputs["prompt_mask"], inputs["completion_mask"])
    length = inputs["completion_mask"].size(1)

    def trimmed(name: str, value: Any) -> Any:
        if name in ("prompt_ids", "prompt_mask"):
            return value[:, start:]
        is_per_token = isinstance(value, Tensor) and value.dim() == 2 and value.size(1) == length
        return value[:, :end] if is_per_token else value

    return {name: trimmed(name, value) for name, value in inputs.items()}


def _real_columns(prompt_mask: Tensor, completion_mask: Tensor) -> tuple[int, int]:
    """Return the first column of prompts, and the number of columns of completions, in which any row has a token."""
    end = int(completion_mask.any(0).sum())
    return int(prompt_mask.any(0).int().argmax()), max(1, end)  # a batch of masked completions keeps a column


def interleaved(count: int, num_generations: int) -> Tensor:
    """Return an order of `count` completions, (count,), in which those of a prompt, which lie side by side, lie apart.

    Every completion keeps its place if there is one per prompt: prompts come in random order.
    """
    return (torch.arange(count) % num_generations).argsort(stable=True)


def micro_batches(
    ids: Tensor, mask: Tensor, length: int, order: Tensor, size: int, *, trim: bool
) -> list[tuple[Tensor, Tensor, int]]:
    """Return the passes over `size` texts each that training will make: ids, mask, and tokens of completions.

    Args:
        ids: Prompts and completions, (B, P + C).
        mask: (B, P + C).
        length: C.
        order: In which rows are taken, (B,).
        size: Rows of a pass.
        trim: Leave out the columns that are padding in all rows of a pass.
    """
    found = []
    for rows in order.split(size):
        part_ids, part_mask, start, end = ids[rows], mask[rows], 0, length
        if trim:
            start, end = _real_columns(part_mask[:, :-length], part_mask[:, -length:])
        columns = slice(start, ids.size(1) - length + end)
        found.append((part_ids[:, columns], part_mask[:, columns], end))
    return found


def rejoined(parts: Sequence[Tensor], order: Tensor, length: int) -> Tensor:
    """Return what the passes of `micro_batches` gave, (b, c) each, as one tensor in the order of the texts.

    Args:
        parts: What each pass gave, (b, c).
        order: What the passes were made with, (B,).
        length: C.

    Returns:
        (B, C), with zeros on the right.
    """
    whole = parts[0].new_zeros(len(order), length)
    for part, rows in zip(parts, order.split([len(part) for part in parts]), strict=True):
        whole[rows.to(part.device), : part.size(1)] = part
    return whole
