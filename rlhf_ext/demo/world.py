"""The demo world: which prompts users write, and responses to them with attributes known in advance.

A response is drawn in two steps. First its attributes (how many steps, polite or rude, refusing or not), then a text
that has them. The distribution of attributes is meant to be that of an untuned assistant: fluent, and often off topic,
vague, rude, too eager to refuse harmless requests and too willing to serve harmful ones.
"""

import random
import re
from dataclasses import dataclass
from functools import cache

from rlhf_ext.demo.topics import (
    CLOSINGS,
    EVASIONS,
    EVERYDAY,
    GREETINGS,
    INSULTS,
    OPENINGS,
    QUESTIONS,
    REASONS,
    REFUSALS,
    TOPICS,
    Topic,
)

CHOICE = re.compile(r"([\w'-]+)/([\w'-]+)")
UNSAFE_SHARE = 0.28
TEST_SHARE = 0.1
CONNECTIVES = ("First", "Then", "Next", "After that")


@dataclass(frozen=True)
class Prompt:
    """A user's question and the topic it is about."""

    text: str
    topic: Topic
    task: str


@dataclass(frozen=True)
class Attributes:
    """What a response is like, decided before it is written.

    Attributes:
        steps: Number of concrete steps, 0 to 4. On an unsafe prompt they are harmful: the response complies.
        on_topic: Whether the steps belong to the prompt's topic.
        opening: Whether it opens with a courtesy.
        closing: Whether it closes with a courtesy.
        evasive: Whether it says something that commits to nothing.
        rude: Whether it insults the user.
        refusal: Whether it declines the request.
        reason: Whether a refusal says why.
        alternative: Whether a refusal of an unsafe request offers something safe instead.
    """

    steps: int = 0
    on_topic: bool = True
    opening: bool = False
    closing: bool = False
    evasive: bool = False
    rude: bool = False
    refusal: bool = False
    reason: bool = False
    alternative: bool = False


@cache
def prompts(split: str) -> tuple[Prompt, ...]:
    """All prompts of a split, "train" or "test". The partition is fixed, so no two data sets can mix the splits."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    everything = [
        Prompt(greeting + question.format(task=task), topic, task)
        for topic in TOPICS
        for task in topic.tasks
        for question in QUESTIONS
        for greeting in GREETINGS
    ]
    random.Random(0).shuffle(everything)
    boundary = round(len(everything) * TEST_SHARE)
    return tuple(everything[:boundary] if split == "test" else everything[boundary:])


@cache
def _prompts_of_kind(split: str, unsafe: bool) -> tuple[Prompt, ...]:
    return tuple(prompt for prompt in prompts(split) if prompt.topic.unsafe == unsafe)


def draw_prompt(split: str, rng: random.Random) -> Prompt:
    """A prompt of the split, unsafe with probability `UNSAFE_SHARE`."""
    return rng.choice(_prompts_of_kind(split, rng.random() < UNSAFE_SHARE))


def draw_attributes(topic: Topic, rng: random.Random) -> Attributes:
    """Attributes of what an untuned assistant would answer."""

    def chance(probability: float) -> bool:
        return rng.random() < probability

    manner = {"rude": chance(0.1), "opening": chance(0.5), "closing": chance(0.4)}
    if topic.unsafe:
        reaction = rng.choices(("comply", "evade", "refuse"), (0.55, 0.2, 0.25))[0]
        if reaction == "comply":
            return Attributes(steps=rng.randint(1, 3), **manner)
        if reaction == "evade":
            return Attributes(evasive=True, **manner)
    elif not chance(0.35 if topic.sounds_unsafe else 0.1):
        steps = rng.choices(range(5), (0.2, 0.25, 0.2, 0.2, 0.15))[0]
        return Attributes(steps=steps, on_topic=chance(0.85), evasive=steps == 0 or chance(0.1), **manner)
    manner["opening"] = False
    return Attributes(refusal=True, reason=chance(0.4), alternative=topic.unsafe and chance(0.4), **manner)


def draw_good_attributes(topic: Topic, rng: random.Random) -> Attributes:
    """Attributes of what a careful demonstrator would answer."""
    if topic.unsafe:
        return Attributes(refusal=True, reason=rng.random() < 0.7, alternative=True, closing=rng.random() < 0.5)
    return Attributes(steps=rng.choice((3, 4)), opening=rng.random() < 0.8, closing=rng.random() < 0.8)


def draw_informed_attributes(topic: Topic, rng: random.Random) -> Attributes:
    """Attributes of an answer that shows what there is to know, for teaching a model the topics."""
    if topic.unsafe and rng.random() < 0.5:
        return Attributes(refusal=True, reason=True, alternative=True)
    return Attributes(steps=4)


def write_response(prompt: Prompt, attributes: Attributes, rng: random.Random) -> str:
    """A response to the prompt with the given attributes."""

    def pick(templates: tuple[str, ...], count: int = 1) -> list[str]:
        return [_fill(template, prompt.task, rng) for template in rng.sample(templates, count)]

    sentences = []
    if attributes.rude:
        sentences += pick(INSULTS)
    if attributes.opening:
        sentences += pick(OPENINGS)
    if attributes.refusal:
        sentences += pick(REFUSALS)
    if attributes.reason:
        sentences += pick(REASONS)
    if attributes.alternative:
        sentences += pick(prompt.topic.redirections)
    if attributes.evasive:
        sentences += pick(EVASIONS, 1 if attributes.steps else 2)
    if attributes.steps:
        topic = prompt.topic if attributes.on_topic else _another_topic(prompt.topic, rng)
        sentences += _connected(_in_order(topic.steps, attributes.steps, rng, prompt.task), rng)
    if attributes.closing:
        sentences += pick(CLOSINGS)
    return " ".join(sentences)


def _fill(template: str, task: str, rng: random.Random) -> str:
    chosen = CHOICE.sub(lambda match: match.group(rng.choice((1, 2))), template)
    return chosen.format(task=task)


def _another_topic(topic: Topic, rng: random.Random) -> Topic:
    return rng.choice([other for other in EVERYDAY if other is not topic])


def _in_order(steps: tuple[str, ...], count: int, rng: random.Random, task: str) -> list[str]:
    chosen = sorted(rng.sample(range(len(steps)), count))
    return [_fill(steps[index], task, rng) for index in chosen]


def _connected(steps: list[str], rng: random.Random) -> list[str]:
    """Joins steps with "First", "Then" and so on, half of the time."""
    if len(steps) < 2 or rng.random() < 0.5:
        return steps
    connectives = list(CONNECTIVES[: len(steps)])
    connectives[-1] = "Finally"
    return [f"{connective}, {step[0].lower()}{step[1:]}" for connective, step in zip(connectives, steps, strict=True)]
