"""What `max_length` does to rows: checked before the model loads, and said once TRL has tokenized them."""

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow.compute
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl import extract_prompt

from .adapters import causal_lm_of
from .context import context_length
from .data_checks import STREAMED_ROWS_CHECKED, DataError
from .data_files import AnyDataset
from .formatting import chat_options
from .reward_model import RewardModel

if TYPE_CHECKING:
    from .trainers.ppo import PPOTrainer

Conversation = list[dict[str, Any]]


def check_lengths(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, source: str
) -> None:
    """Check that at least one prompt leaves room for a completion within `max_length` tokens (None: no limit).

    TRL drops rows whose prompt alone fills `max_length`, and fails obscurely when none is left. One row that fits is
    enough, so this usually tokenizes a single prompt.

    Raises:
        DataError: No prompt fits.
    """
    if max_length is None:
        max_length = math.inf
    shortest = math.inf
    for row in _rows_to_measure(dataset):
        prompt = row["prompt"] if "prompt" in row else extract_prompt(dict(row))["prompt"]
        shortest = min(shortest, _count_tokens(prompt, tokenizer, source, row, add_generation_prompt=True))
        if shortest < max_length:
            return
    fix = f"Raise --max_length above {shortest}, or shorten the prompts."
    raise DataError(f"every prompt has at least max_length={max_length} tokens.", fix, source=source, column="prompt")


def check_pair_lengths(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, source: str
) -> None:
    """Check that at least one pair, each completion with its prompt, fits `max_length` tokens (None: no limit).

    TRL's reward trainer drops pairs that do not, and fails obscurely when none is left.

    Raises:
        DataError: No pair fits.
    """
    if max_length is None:
        max_length = math.inf
    shortest = math.inf
    for row in _rows_to_measure(dataset):
        texts = [row["prompt"] + row[side] if "prompt" in row else row[side] for side in ("chosen", "rejected")]
        ends = 1 if isinstance(texts[0], str) else 0  # the end-of-sequence token; chat templates bring their own
        shortest = min(shortest, max(_count_tokens(text, tokenizer, source, row) for text in texts) + ends)
        if shortest <= max_length:
            return
    fix = f"Raise --max_length to {shortest} or more, or shorten the texts."
    raise DataError(f"every pair is longer than max_length={max_length} tokens.", fix, source=source)


def check_room_for_prompts(trainer: "PPOTrainer", prompts: Iterable[str | Conversation], *, source: str) -> None:
    """Check that policy and reward models can take every prompt: one that is too long ends the run in some later step.

    Args:
        trainer: With the models.
        prompts: What it will be asked.
        source: What to call them.

    Raises:
        DataError: Quoting the first that is too long.
    """
    context = context_length(causal_lm_of(trainer.model))
    longest = trainer.max_completion_length
    fix = f"Shorten or remove the prompt, or lower max_completion_length={longest}."
    keywords = {"chat_template_kwargs": trainer.chat_template_kwargs}  # which reward models are not given
    readers = [("the policy", trainer._tokenizer, context, longest, fix, keywords)]
    for name, function in zip(trainer.reward_func_names, trainer.reward_funcs, strict=True):
        scorer = getattr(function, "reward_model", function)
        if isinstance(scorer, RewardModel):
            fix = "Shorten or remove the prompt, or score with a reward model that takes more."
            readers.append((name, scorer.tokenizer, scorer.max_length, 1, fix, {}))
    for reader, tokenizer, most, needed, fix, keywords in readers:
        for prompt in prompts if most is not None else ():
            count = _count_tokens(prompt, tokenizer, source, keywords, add_generation_prompt=True)
            if count + needed > most:
                text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
                problem = f"{text[:60]!r}... has {count} tokens, and {reader} takes {most} with the completion."
                raise DataError(problem, fix, source=source, column="prompt")


def _rows_to_measure(dataset: Dataset | IterableDataset) -> Iterable[dict[str, Any]]:
    return islice(dataset, STREAMED_ROWS_CHECKED) if isinstance(dataset, IterableDataset) else dataset


def _count_tokens(
    text: str | Conversation, tokenizer: PreTrainedTokenizerBase, source: str, row: Mapping[str, Any], **options: Any
) -> int:
    """Return the tokens of a text, in a conversation with the tools and template keywords of its row."""
    if isinstance(text, str):
        return len(tokenizer(text)["input_ids"])
    if tokenizer.chat_template is None:
        fix = "Use an instruction-tuned model, or data with plain text."
        raise DataError("it holds conversations, but the model's tokenizer has no chat template.", fix, source=source)
    try:
        return len(tokenizer.apply_chat_template(text, return_dict=True, **options, **chat_options(row))["input_ids"])
    except (TemplateError, TypeError, ValueError) as error:
        fix = "Correct or remove the row, or give the model another template."
        raise DataError(f"the chat template refuses {text[0]!r:.80}... ({error}).", fix, source=source) from error


def truncation_report(
    dataset: AnyDataset,
    prepared: AnyDataset,
    max_length: int | None,
    *,
    truncation_mode: str = "keep_start",
    rows: str = "training",
) -> str | None:
    """Say how many rows TRL's DPO trainer dropped because their prompt fills `max_length`, and how many it will cut.

    Args:
        dataset: What was passed to the trainer.
        prepared: The trainer's dataset, tokenized.
        max_length: The trainer's `max_length`.
        truncation_mode: The trainer's `truncation_mode`; under `keep_end` nothing is dropped.
        rows: What to call them.
    """
    if max_length is None or isinstance(prepared, IterableDataset):
        return None
    dropped = len(dataset) - len(prepared)
    tokens = prepared.with_format("arrow")[:]
    size = pyarrow.compute.list_value_length
    longest = pyarrow.compute.max_element_wise(size(tokens["chosen_ids"]), size(tokens["rejected_ids"]))
    total = pyarrow.compute.add(size(tokens["prompt_ids"]), longest)
    cut = pyarrow.compute.sum(pyarrow.compute.greater(total, max_length)).as_py() or 0
    if not dropped and not cut:
        return None
    lost = "their start" if truncation_mode == "keep_end" else "the end of a completion"
    return f"{_dropped(dataset, dropped, max_length, rows)} and {cut} lose {lost}."


def dropped_report(
    dataset: AnyDataset, prepared: AnyDataset, max_length: int | None, *, rows: str = "training"
) -> str | None:
    """Say how many rows TRL's reward trainer dropped because they are longer than `max_length`.

    Args:
        dataset: What was passed to the trainer.
        prepared: The trainer's dataset, tokenized.
        max_length: The trainer's `max_length`.
        rows: What to call them.
    """
    if max_length is None or isinstance(prepared, IterableDataset) or len(prepared) == len(dataset):
        return None
    dropped = len(dataset) - len(prepared)
    return f"max_length={max_length}: {dropped} of {len(dataset)} {rows} rows are longer, and dropped."


def length_report(
    dataset: Dataset,
    prepared: Dataset,
    max_length: int | None,
    *,
    truncation_mode: str = "keep_start",
    rows: str = "training",
) -> str | None:
    """Say how many rows TRL's SFT trainer dropped because their prompt fills `max_length`, and how many fill it.

    Args:
        dataset: What was passed to the trainer.
        prepared: The trainer's dataset, tokenized and not packed.
        max_length: The trainer's `max_length`.
        truncation_mode: The trainer's `truncation_mode`; under `keep_end` nothing is dropped.
        rows: What to call them.
    """
    if max_length is None:
        return None
    dropped = len(dataset) - len(prepared)
    full = sum(len(ids) >= max_length for ids in prepared["input_ids"])
    if not dropped and not full:
        return None
    lost = "start" if truncation_mode == "keep_end" else "end"
    return f"{_dropped(dataset, dropped, max_length, rows)} and {full} fill it, so that longer ones lose their {lost}."


def _dropped(dataset: AnyDataset, dropped: int, max_length: int, rows: str) -> str:
    return f"max_length={max_length}: of {len(dataset)} {rows} rows, {dropped} are dropped (the prompt alone fills it)"
