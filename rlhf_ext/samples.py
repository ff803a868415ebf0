"""A few answers of the policy to held-out prompts, before and after training, to see what numbers do not show."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice

from datasets import Dataset
from transformers import Trainer

from .formatting import Place
from .generation import Decoding, Prompt, context_length, encode_prompt, generate

FILE_NAME = "samples.jsonl"


def held_out_prompts(dataset: Dataset, trainer: Trainer, count: int, max_new_tokens: int) -> list[Prompt]:
    """Return the first `count` prompts that leave room for an answer: the column prompt, or messages but the last.

    Rows of plain text, and conversations that the assistant opens, have no prompt.
    """
    if "prompt" in dataset.column_names:
        prompts = iter(dataset["prompt"])
    elif "messages" in dataset.column_names:
        prompts = (messages[:-1] for messages in dataset["messages"] if len(messages) > 1)
    else:
        return []
    room = context_length(trainer.model) - max_new_tokens
    place = Place("prompts")
    return list(islice((p for p in prompts if len(encode_prompt(trainer.processing_class, p, place)) <= room), count))


def sample(trainer: Trainer, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
    """Return the policy's answers, on the main process; nothing on others, and where no process has all weights."""
    is_sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if is_sharded or not prompts or not trainer.is_world_process_zero():
        return []
    model = trainer.accelerator.unwrap_model(trainer.model)
    return generate(model, trainer.processing_class, prompts, **asdict(decoding))
