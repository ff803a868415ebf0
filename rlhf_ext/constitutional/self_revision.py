"""A model answers prompts, criticises and revises its answers, and compares them, chunk by chunk.

What happened to each prompt is a transcript (a dict, one line of `transcripts.jsonl`):

    prompt             messages
    answers            two sampled answers; the first one is revised
    rounds             for each round the name of the principle, the critique and the revision
    feedback           the model's comparison of the first answer with the second, or null where they are equal
    revision_feedback  its comparison of the last revision with the first answer, or null
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..formatting import InputError, Place
from ..generation import Decoding, encode_prompt, generate
from .ai_feedback import Pair, choice_tokens, compare
from .constitution import Constitution, Conversation, Principle

Transcript = dict[str, Any]
TEXT = "x"  # in the place of one that is not written yet


@dataclass(frozen=True)
class RevisionSettings:
    """How transcripts are made. Other settings, the batch size too, give other transcripts.

    Attributes:
        rounds: Of critique and revision.
        max_new_tokens: Tokens of an answer, a critique or a revision at most.
        temperature: Of sampling.
        top_p: Draw from the likeliest tokens that together have this probability.
        batch_size: Prompts in a chunk, which is also what the model reads at once.
        seed: Of all that is drawn.
    """

    rounds: int
    max_new_tokens: int
    temperature: float
    top_p: float
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Reviser:
    """A model that revises by a constitution.

    Everything drawn for a chunk follows from the seed and the chunk's name, so chunks can be made in any order.

    Raises:
        ChoiceError: The tokenizer cannot tell the letters of a comparison apart.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    constitution: Constitution
    settings: RevisionSettings

    def __post_init__(self) -> None:
        choice_tokens(self.tokenizer)  # before anything is generated

    def transcribe(
        self, prompts: Sequence[Conversation], chunk: int | str, on_step: Callable[[str], None] = lambda step: None
    ) -> list[Transcript]:
        """Return the transcripts of one chunk of prompts.

        Args:
            prompts: Lists of messages, the last one a user's.
            chunk: Name of the chunk.
            on_step: Called with the name of each step before it starts.

        Raises:
            InputError: A conversation leaves no room in the model's context; it names the prompt's place in the chunk.
        """
        first, second = (self._say(prompts, chunk, f"answer {number}", on_step) for number in (1, 2))
        rng = random.Random(f"{self.settings.seed} {chunk}")
        rounds = self.revise(prompts, first, chunk, on_step)
        last = [history[-1]["revision"] for history in rounds]
        principle = [rng.choice(self.constitution.principles) for _ in prompts]
        on_step("feedback")
        feedback = self._compare(prompts, first, second, principle)
        revision_feedback = self._compare(prompts, last, first, principle)
        columns = {
            "prompt": prompts,
            "answers": [list(pair) for pair in zip(first, second, strict=True)],
            "rounds": rounds,
            "feedback": feedback,
            "revision_feedback": revision_feedback,
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def lengths(self, prompts: Sequence[Conversation]) -> list[list[tuple[int, int]]]:
        """Return, for each prompt, how long the longest conversations about it are, before anything is written.

        These are a revision, which repeats the answer and the critique, and a comparison, each under the principle of
        most tokens. Later rounds are no longer than the first: they go on from the last revision alone.

        Returns:
            Of each conversation its tokens, and how many texts of up to `max_new_tokens` come to them. Only a text that
            has more tokens when it is read than when it was written can make it longer.

        Raises:
            InputError: The chat template refuses a conversation; it names the prompt's place.
        """
        revisions = self._counts(prompts, lambda prompt, by: self.constitution.revision(prompt, TEXT, by, TEXT))
        comparisons = self._counts(prompts, lambda prompt, by: self.constitution.comparison(prompt, TEXT, TEXT, by))
        letter = len(choice_tokens(self.tokenizer)[0]) + 1
        both = zip(revisions, comparisons, strict=True)
        return [[(revision, 3), (comparison + letter, 2)] for revision, comparison in both]

    def answer(self, prompts: Sequence[Conversation], chunk: int | str) -> list[str]:
        """Return the model's first answers to a chunk of prompts."""
        return self._say(prompts, chunk, "answer 1")

    def revise(
        self,
        prompts: Sequence[Conversation],
        answers: Sequence[str],
        chunk: int | str,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> list[list[dict[str, str]]]:
        """Return, for each prompt, its rounds of principle, critique and revision.

        Each round takes another principle, as long as there are any. An empty revision leaves the answer as it was.
        """
        rng = random.Random(f"{self.settings.seed} {chunk} principles")
        known = self.constitution.principles
        orders = [rng.sample(known, len(known)) for _ in prompts]
        rounds: list[list[dict[str, str]]] = [[] for _ in prompts]
        current = list(answers)
        for number in range(self.settings.rounds):
            principles = [order[number % len(order)] for order in orders]
            asked = [self.constitution.critique(*row) for row in zip(prompts, current, principles, strict=True)]
            critiques = self._say(asked, chunk, f"critique {number + 1}", on_step)
            rows = zip(prompts, current, principles, critiques, strict=True)
            asked = [self.constitution.revision(*row) for row in rows]
            revisions = self._say(asked, chunk, f"revision {number + 1}", on_step)
            current = [new if new.strip() else old for new, old in zip(revisions, current, strict=True)]
            for history, principle, critique, revision in zip(rounds, principles, critiques, current, strict=True):
                history.append({"principle": principle.name, "critique": critique, "revision": revision})
        return rounds

    def _counts(
        self, prompts: Sequence[Conversation], ask: Callable[[Conversation, Principle], Conversation]
    ) -> list[int]:
        """Return the tokens of what is asked about each prompt, under the principle that makes it longest."""

        def count(row: int, principle: Principle) -> int:
            return len(encode_prompt(self.tokenizer, ask(prompts[row], principle), Place("prompts", row)))

        longest = max(self.constitution.principles, key=lambda principle: count(0, principle))  # of one, so of all
        return [count(row, longest) for row in range(len(prompts))]

    def _say(
        self,
        conversations: Sequence[Conversation],
        chunk: int | str,
        step: str,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> list[str]:
        on_step(step)
        settings = self.settings
        return generate(
            self.model,
            self.tokenizer,
            conversations,
            Decoding(
                seed=_seed(settings.seed, chunk, step),
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
            ),
            batch_size=settings.batch_size,
        )

    def _compare(
        self,
        prompts: Sequence[Conversation],
        first: Sequence[str],
        second: Sequence[str],
        principles: Sequence[Principle],
    ) -> list[dict[str, Any] | None]:
        """Return a preference for each prompt whose two answers differ."""
        pairs: list[Pair] = list(zip(prompts, first, second, principles, strict=True))
        differing = [index for index, pair in enumerate(pairs) if pair[1] != pair[2]]
        asked = [pairs[index] for index in differing]
        size = self.settings.batch_size
        try:
            preferences = compare(self.model, self.tokenizer, self.constitution, asked, batch_size=size)
        except InputError as error:  # of one of the two orders
            prompt = differing[(error.place.index or 0) % len(differing)]
            raise InputError(error.problem, Place("prompts", prompt)) from error
        found: list[dict[str, Any] | None] = [None] * len(pairs)
        for index, preference in zip(differing, preferences, strict=True):
            found[index] = {"principle": principles[index].name, **asdict(preference)}
        return found


def _seed(*names: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:4], "big")
