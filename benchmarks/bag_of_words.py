"""The floor that a reward model has to beat: a logistic regression on the words of the answers."""

import re
from collections import Counter
from typing import Any

import torch


def bag_of_words(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> list[float]:
    """Return the score differences of held-out pairs, by a logistic regression on the differences of word counts.

    The L2 weight is 1, as is the default elsewhere. Words that occur once in training are left out.
    """
    counts = _counts(train)
    total = sum((count for pair in counts for count in pair), Counter())
    column = {word: index for index, word in enumerate(word for word, number in total.items() if number > 1)}
    inputs, weight = _features(counts, column), torch.zeros(len(column), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = weight.square().sum() / 2 - torch.nn.functional.logsigmoid(inputs @ weight).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (_features(_counts(held_out), column) @ weight.detach()).tolist()


def _counts(rows: list[dict[str, Any]]) -> list[list[Counter[str]]]:
    return [[Counter(re.findall(r"\w+", row[side].lower())) for side in ("chosen", "rejected")] for row in rows]


def _features(counts: list[list[Counter[str]]], column: dict[str, int]) -> torch.Tensor:
    found = torch.zeros(len(counts), len(column))
    for row, (chosen, rejected) in zip(found, counts, strict=True):
        for count, sign in ((chosen, 1), (rejected, -1)):
            for word in count.keys() & column.keys():
                row[column[word]] += sign * count[word]
    return found
