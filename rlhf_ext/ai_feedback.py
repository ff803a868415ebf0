"""Which of two answers a model prefers under a principle, from the probabilities of the letters A and B.

Each pair is judged twice, with the answers in both orders, because models favour a letter or a place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .constitution import CHOICES, Constitution, Conversation, Principle
from .formatting import InputError, Place
from .generation import encode_prompt

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


def choice_tokens(tokenizer: PreTrainedTokenizerBase, choices: Sequence[str] = CHOICES) -> list[list[int]]:
    """Return, for each choice, the tokens that it may begin with: at once or after a space.

    Raises:
        ChoiceError: A choice begins with no token that is its own.
    """
    first = [
        {tokenizer.encode(spelling, add_special_tokens=False)[0] for spelling in (choice, f" {choice}")}
        for choice in choices
    ]
    own = [tokens.difference(*(first[:index] + first[index + 1 :])) for index, tokens in enumerate(first)]
    for choice, tokens in zip(choices, own, strict=True):
        if not tokens:
            raise ChoiceError(
                f"the tokenizer spells the choice {choice!r} with the same first token as another one, so their "
                "probabilities cannot be compared: use another model for the comparisons."
            )
    return [sorted(tokens) for tokens in own]


def choice_logps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    batch_size: int,
    choices: Sequence[str] = CHOICES,
) -> Tensor:
    """Return the log-probability that the model's reply begins with each of the choices.

    Returns:
        Shape (N, C), float32, on the CPU.

    Raises:
        ChoiceError: The choices cannot be told apart.
        InputError: A conversation cannot be tokenized, or is longer than the model can read; it names which.
    """
    tokens = choice_tokens(tokenizer, choices)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids = [encode_prompt(tokenizer, text, Place("conversations", row)) for row, text in enumerate(conversations)]
    for row, text in enumerate(ids):
        if context is not None and len(text) >= context:
            problem = f"its comparison has {len(text)} tokens, and the model can read {context}. Shorten the answers."
            raise InputError(problem, Place("conversations", row))
    # Batches of one length have little padding.
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    logps = torch.empty(len(ids), len(choices))
    for start in range(0, len(ids), batch_size):
        rows = order[start : start + batch_size]
        next_token = _next_token_logps(model, tokenizer, [ids[row] for row in rows])  # (B, V)
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


@torch.no_grad()
def _next_token_logps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[Tensor]) -> Tensor:
    """Return the log-probabilities of the token after each text, shape (B, V); texts of shape (T,)."""
    pad = tokenizer.pad_token_id or 0  # any token will do, as padding is masked
    padded = pad_sequence(list(ids), batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
    # Generating one token is one pass, for which every architecture gets the positions that padding calls for.
    output = model.generate(
        input_ids=padded.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=1,
        pad_token_id=pad,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.logits[0].float().log_softmax(dim=-1)
