"""Which of two answers a model prefers under a principle, from the probabilities of the letters A and B.

Each pair is judged twice, with the answers in both orders, because models favour a letter or a place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..formatting import Place
from ..generation import Prompt, check_room, encode_prompt, next_token_logps
from .constitution import CHOICES, Constitution, Conversation, Principle

Pair = tuple[Conversation, str, str, Principle]


class ChoiceError(ValueError):
    """The tokenizer cannot tell the choices apart by one token."""


@dataclass(frozen=True)
class Preference:
    """What a model thinks of two answers.

    Attributes:
        probability: That the first answer is better, free of position bias.
        position_bias: By how much the model favours the place A, in log-odds.
        agrees: Whether it prefers the same answer in both orders.
    """

    probability: float
    position_bias: float
    agrees: bool


def ai_preference(straight: tuple[float, float], swapped: tuple[float, float]) -> Preference:
    """Return the preference that the log-probabilities of A and B express.

    With `d1 = log p(A) - log p(B)` where the first answer is A, and `d2 = log p(A) - log p(B)` where it is B,

        probability = sigmoid((d1 - d2) / 2)        position_bias = (d1 + d2) / 2

    Each order alone gives the normalised probability `p(A) / (p(A) + p(B)) = sigmoid(d)`. The mean is taken of the
    log-odds and not of these, so that whatever is added to A's log-probability in both orders cancels exactly.

    Args:
        straight: Log-probabilities of A and B with the first answer as A.
        swapped: The same with the first answer as B.
    """
    d1, d2 = straight[0] - straight[1], swapped[0] - swapped[1]
    half = (d1 - d2) / 4  # sigmoid(x) = (1 + tanh(x / 2)) / 2, which cannot overflow
    return Preference((1 + math.tanh(half)) / 2, (d1 + d2) / 2, d1 * d2 < 0)


def choice_tokens(
    tokenizer: PreTrainedTokenizerBase, choices: Sequence[str] = CHOICES
) -> tuple[list[int], list[list[int]]]:
    """Return the tokens that all choices begin with, mostly none, and those by which each of them goes on.

    A choice may be spelled at once or after a space, each with a token of its own. Some tokenizers spell a digit as a
    token for the space and one for the digit: there the first is what all choices begin with.

    Raises:
        ChoiceError: Even so a choice has no token of its own.
    """
    at_once, after_space = (
        [tokenizer.encode(f"{before}{choice}", add_special_tokens=False) for choice in choices] for before in ("", " ")
    )
    own = _own([{ids[0] for ids in spelled} for spelled in zip(at_once, after_space, strict=True)])
    begin = {ids[0] for ids in at_once}
    if all(own):
        return [], own
    if len(begin) == 1 and all(own := _own([set(ids[1:2]) for ids in at_once])):
        return [*begin], own
    problem = f"the tokenizer spells the choice {choices[own.index([])]!r} with the same first token as another one"
    fix = "use another model for the comparisons"
    raise ChoiceError(f"{problem}, so their probabilities cannot be compared: {fix}.")


def _own(tokens: Sequence[set[int]]) -> list[list[int]]:
    """Return, of each set, the tokens that are in no other."""
    return [sorted(part.difference(*(tokens[:index] + tokens[index + 1 :]))) for index, part in enumerate(tokens)]


def choice_logps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Prompt],
    *,
    batch_size: int,
    choices: Sequence[str] = CHOICES,
) -> Tensor:
    """Return the log-probability that the model's reply begins with each of the choices.

    Where all choices begin with the same token, it is that of the reply given that token.

    Returns:
        Shape (N, C), float32, on the CPU.

    Raises:
        ChoiceError: The choices cannot be told apart.
        InputError: A conversation cannot be tokenized, or is longer than the model can read; it names which.
    """
    begin, tokens = choice_tokens(tokenizer, choices)
    texts = (encode_prompt(tokenizer, text, Place("conversations", row)) for row, text in enumerate(conversations))
    ids = [torch.cat([text, torch.tensor(begin, dtype=text.dtype)]) for text in texts]
    check_room(model, ids, 1, "conversations")
    # Batches of one length have little padding.
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    logps = torch.empty(len(ids), len(choices))
    for start in range(0, len(ids), batch_size):
        rows = order[start : start + batch_size]
        next_token = next_token_logps(model, tokenizer, [ids[row] for row in rows])  # (B, V)
        logps[rows] = torch.stack([next_token[:, group].logsumexp(dim=1) for group in tokens], dim=1).cpu()
    return logps


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    constitution: Constitution,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
) -> list[Preference]:
    """Return what the model thinks of each pair: a prompt, two answers and the principle to compare them by.

    Raises:
        ChoiceError: As in `choice_tokens`.
        InputError: As in `choice_logps`.
    """
    straight = [constitution.comparison(prompt, first, second, principle) for prompt, first, second, principle in pairs]
    swapped = [constitution.comparison(prompt, second, first, principle) for prompt, first, second, principle in pairs]
    logps = choice_logps(model, tokenizer, straight + swapped, batch_size=batch_size).tolist()
    return [ai_preference(*both) for both in zip(logps[: len(pairs)], logps[len(pairs) :], strict=True)]
