"""What follows from scores: comparisons, rankings, the best of several, and the form of a TRL reward function."""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..formatting import Example, InputError, Place, Text, parse, parse_answers

Completion = TypeVar("Completion")


class TruncationWarning(UserWarning):
    """Texts were longer than a reward model takes."""


def warn_of_truncation(message: str) -> None:
    """Warn at the line outside this package from which a scorer was called, by whichever of its methods."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("rlhf_ext."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, TruncationWarning, stacklevel=level)


@contextmanager
def truncation_collected() -> Iterator[list[str]]:
    """Put what `warn_of_truncation` says inside into the list, each message once; other warnings are shown as ever."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TruncationWarning)
        yield messages
    for warning in caught:
        if issubclass(warning.category, TruncationWarning):
            messages += [str(warning.message)] * (str(warning.message) not in messages)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


class TextScorer(ABC):
    """What `RewardModel` and `RewardModelEnsemble` share: everything that follows from scores.

    Attributes:
        temperature: `sigmoid(score difference / temperature)` is the probability that the first text is preferred.
    """

    __name__ = "reward_model"  # TRL names the metrics of a reward function by it
    temperature: float = 1.0

    @abstractmethod
    def _scores(self, examples: Sequence[Example], batch_size: int | None, allow_empty_completion: bool) -> Tensor:
        """Return the scores, shape (examples,), float32 on the CPU."""

    def score(
        self, texts: Text | Sequence[Text], return_tensors: bool = False, batch_size: int | None = None
    ) -> float | list[float] | Tensor:
        """Return how good each text is: a float for one input, else a list, in the order given.

        Args:
            texts: A text or a list of them. A text is a string, a (prompt, completion) pair, a conversation (a list of
                messages), or a row with the keys prompt and completion, messages, or text, where a conversation may
                have tools and chat_template_kwargs as well.
            return_tensors: Return a tensor of shape (texts,), float32 on the CPU, for one input as well.
            batch_size: Texts in a batch at most. By default batches hold about equally many tokens.

        Raises:
            InputError: A text is missing, empty, of a wrong type, or its prompt alone is too long; it names the row.
            RewardModelError: A score is not a number.
        """
        examples, single = parse(texts)
        scores = self._scores(examples, batch_size, False)
        if return_tensors:
            return scores
        return scores.item() if single else scores.tolist()

    def compare(
        self, a: Any, b: Any, *, prompt: Any = None, batch_size: int | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Say which of two texts is better.

        Args:
            a: A text as in `score`, or a list of them.
            b: The same.
            prompt: What both answer, if they are completions.
            batch_size: As in `score`.

        Returns:
            A dict with `preference` ("a" or "b"; "a" where both are equal), `confidence` (|score_a - score_b|),
            `score_a`, `score_b`, `score_diff` (score_a - score_b) and `probability` (that a is preferred: sigmoid of
            the difference over the calibrated temperature, which is 1 where none was fitted: without an evaluation set,
            and in the checkpoints of a run). Two lists give a list.

        Raises:
            InputError: As in `score`; or the two lists differ in length.
        """
        (first, single), (second, other_single) = (parse_answers(x, prompt, name) for x, name in ((a, "a"), (b, "b")))
        if single != other_single:
            raise InputError("one of a and b is a single text and the other a list. Pass two texts, or two lists.")
        if len(first) != len(second):
            raise InputError(f"a has {len(first)} and b has {len(second)} texts. Each needs one to compare it with.")
        scores = self._scores([*first, *second], batch_size, False).tolist()
        pairs = zip(scores[: len(first)], scores[len(first) :], strict=True)
        compared = [self._comparison(score_a, score_b) for score_a, score_b in pairs]
        return compared[0] if single else compared

    def _comparison(self, score_a: float, score_b: float) -> dict[str, Any]:
        difference = score_a - score_b
        return {
            "preference": "a" if difference >= 0 else "b",
            "confidence": abs(difference),
            "score_a": score_a,
            "score_b": score_b,
            "score_diff": difference,
            "probability": torch.tensor(difference / self.temperature, dtype=torch.float64).sigmoid().item(),
        }

    def rank(self, texts: Sequence[Text], *, prompt: Any = None, batch_size: int | None = None) -> list[dict[str, Any]]:
        """Return the texts, best first, each as a dict with `index` (in `texts`), `score` and `text`.

        Args:
            texts: Texts as in `score`.
            prompt: What all answer, if they are completions.
            batch_size: As in `score`.

        Raises:
            InputError: As in `score`.
        """
        texts = [*texts] if isinstance(texts, Iterator) else texts
        examples, single = parse_answers(texts, prompt, "texts")
        if single:
            raise InputError("a single text. Pass a list of texts to rank.")
        scores = self._scores(examples, batch_size, False).tolist()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return [{"index": index, "score": scores[index], "text": texts[index]} for index in order]

    def best_of_n(self, prompt: Any, completions: Sequence[Completion], batch_size: int | None = None) -> Completion:
        """Return the completion that scores highest after the prompt, the first of them where several do.

        Args:
            prompt: Text or messages.
            completions: Texts, or, after messages, texts or messages.
            batch_size: As in `score`.

        Raises:
            InputError: As in `score`.
        """
        if prompt is None:
            raise InputError("it is None. Use `rank` for texts without a prompt.", Place("prompt"))
        return self.rank(completions, prompt=prompt, batch_size=batch_size)[0]["text"]

    def __call__(
        self, prompts: Sequence[Any] | None = None, completions: Sequence[Any] | None = None, **kwargs: Any
    ) -> list[float]:
        """Return the scores of completions, as a reward function of TRL's trainers does.

        Args:
            prompts: Texts or lists of messages, one a completion; None for completions that are whole texts.
            completions: Texts or lists of messages. An empty one is scored as it is: policies produce them.
            kwargs: What TRL passes to every reward function; not used.

        Raises:
            InputError: As in `score`; or there is not one prompt for each completion.
        """
        if completions is None:
            raise InputError("it is None. Pass the completions to score.", Place("completions"))
        if prompts is not None and len(prompts) != len(completions):
            raise InputError(f"{len(prompts)} prompts for {len(completions)} completions. Give one for each.")
        texts = list(completions) if prompts is None else list(zip(prompts, completions, strict=True))
        examples, _ = parse(texts, "completions")
        return self._scores(examples, None, True).tolist()
