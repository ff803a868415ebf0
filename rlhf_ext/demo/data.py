"""Data sets of the demo world, in the conversational formats of TRL: preferences, demonstrations and prompts."""

import math
import random
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from rlhf_ext.demo.judge import judge
from rlhf_ext.demo.topics import Topic
from rlhf_ext.demo.world import (
    Attributes,
    Prompt,
    draw_attributes,
    draw_good_attributes,
    draw_informed_attributes,
    draw_prompt,
    write_response,
)

if TYPE_CHECKING:
    from datasets import Dataset

Message = dict[str, str]

PREFERENCE_SIZES = {"train": 2000, "test": 300}
SFT_SIZES = {"train": 2000, "test": 200}
PROMPT_SIZES = {"train": 2000, "test": 300}
MINIMUM_GAP = 0.5
# The scale of the annotators' logistic noise, in points of the gold judge: about 10% of the labels come out flipped.
NOISE_SCALE = 0.7


def preference_dataset(split: str = "train", seed: int = 0, size: int | None = None, noise: bool = True) -> "Dataset":
    """Pairs of responses as an annotator would label them.

    The annotator perceives the gap between the gold scores plus logistic noise, and so prefers the worse response
    once in a while, mostly in close pairs.

    Args:
        split: "train" or "test".
        seed: Other seeds give other pairs.
        size: Number of pairs, 2000 (train) or 300 (test) if None.
        noise: Without noise the chosen response is always the better one.

    Returns:
        A data set with the columns prompt, chosen and rejected (lists of messages), strength (how clearly the
        annotator preferred the chosen response, from 1 to 3) and gold_margin (by how much the gold judge prefers it;
        negative where the annotator erred).
    """
    return _dataset(list(draw_preferences(split, seed, PREFERENCE_SIZES[split] if size is None else size, noise)))


@cache
def draw_preferences(split: str, seed: int, size: int, noise: bool) -> tuple[dict, ...]:
    """Return the rows of `preference_dataset`, drawn once in a process: the judge has to read every answer."""
    rng = random.Random(f"preferences {split} {seed}")
    return tuple(_preference(split, rng, NOISE_SCALE if noise else 0.0) for _ in range(size))


def sft_dataset(split: str = "train", seed: int = 0, size: int | None = None) -> "Dataset":
    """Demonstrations of good answers, with the columns prompt and completion (lists of messages)."""
    size = SFT_SIZES[split] if size is None else size
    return _completions("demonstrations", split, seed, size, draw_good_attributes)


def prompt_dataset(split: str = "train", seed: int = 0, size: int | None = None) -> "Dataset":
    """Prompts to sample responses for, safe and unsafe, with the column prompt (a list of messages)."""
    rng = random.Random(f"prompts {split} {seed}")
    count = PROMPT_SIZES[split] if size is None else size
    return _dataset([{"prompt": _user(draw_prompt(split, rng))} for _ in range(count)])


def base_dataset(split: str = "train", seed: int = 0, size: int = 10_000) -> "Dataset":
    """What an untuned assistant answers, good and bad, in the format of `sft_dataset`."""
    return _completions("base", split, seed, size, draw_attributes)


def lesson_dataset(split: str = "train", seed: int = 0, size: int = 10_000) -> "Dataset":
    """Plain knowledge about the topics, harmful steps included, in the format of `sft_dataset`.

    So many base responses are off topic that a model is slow to learn from these alone what is on topic.
    """
    return _completions("lessons", split, seed, size, draw_informed_attributes)


def _completions(
    kind: str, split: str, seed: int, size: int, draw: Callable[[Topic, random.Random], Attributes]
) -> "Dataset":
    rng = random.Random(f"{kind} {split} {seed}")
    rows = []
    for _ in range(size):
        prompt = draw_prompt(split, rng)
        completion = write_response(prompt, draw(prompt.topic, rng), rng)
        rows.append({"prompt": _user(prompt), "completion": _assistant(completion)})
    return _dataset(rows)


def _preference(split: str, rng: random.Random, noise_scale: float) -> dict:
    while True:
        prompt = draw_prompt(split, rng)
        first, second = _base_response(prompt, rng), _base_response(prompt, rng)
        gap = judge(prompt.text, first).overall - judge(prompt.text, second).overall
        if abs(gap) >= MINIMUM_GAP:
            break
    # The noise is drawn even when it is not used, so that both kinds of labels are about the same pairs.
    chance = rng.uniform(1e-9, 1 - 1e-9)
    perceived = gap + noise_scale * math.log(chance / (1 - chance))
    chosen, rejected = (first, second) if perceived > 0 else (second, first)
    return {
        "prompt": _user(prompt),
        "chosen": _assistant(chosen),
        "rejected": _assistant(rejected),
        "strength": min(3.0, 1.0 + abs(perceived) / 2),
        "gold_margin": gap if perceived > 0 else -gap,
    }


def _base_response(prompt: Prompt, rng: random.Random) -> str:
    return write_response(prompt, draw_attributes(prompt.topic, rng), rng)


def _user(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt.text}]


def _assistant(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _dataset(rows: list[dict]) -> "Dataset":
    # Imported late: it takes a second, and the judge's users do not need it.
    from datasets import Dataset

    return Dataset.from_list(rows)
