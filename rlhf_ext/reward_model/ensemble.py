"""`RewardModelEnsemble`: several reward models that score as one, so that what fools one of them earns less."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..formatting import Example
from .text_scorer import TextScorer, truncation_collected, warn_of_truncation

Reduction = Literal["mean", "min", "mean_minus_std"]


class RewardModelEnsemble(TextScorer):
    """Reward models whose scores s_1 to s_M of a text become one score; otherwise it is used as a `RewardModel` is.

    Reductions (T. Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization", 2024,
    https://huggingface.co/papers/2310.02743):

    - `"mean"`: the mean of s_1 to s_M;
    - `"min"`: the smallest, worst-case optimisation;
    - `"mean_minus_std"`: mean - k * standard deviation, where the deviation is that of the M scores (divided by M),
      0 for a single model.

    Scores should be on one scale: train the models alike. The temperature is the mean of the models' temperatures. That
    is a guess, because a mean of scores is surer than each of them: for probabilities to believe, set `temperature` to
    what `evaluation.reward.fit_temperature` finds on the score differences of held-out pairs.

    Args:
        models: The reward models; their tokenizers may differ.
        reduction: How their scores become one.
        k: Weight of the standard deviation in `"mean_minus_std"`; must be left alone otherwise.
        name: What TRL calls this reward function in its metrics.

    Raises:
        ValueError: There is no model, the reduction does not exist, or k has no effect or is negative.
    """

    def __init__(
        self,
        models: Iterable[TextScorer],
        reduction: Reduction = "mean",
        k: float = 1.0,
        *,
        name: str = "reward_model_ensemble",
    ) -> None:
        models = list(models)
        if not models:
            raise ValueError("an ensemble needs at least one reward model.")
        for model in models:
            if not isinstance(model, TextScorer):
                raise ValueError(f"{type(model).__name__} is no RewardModel. Load it with RewardModel.from_pretrained.")
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}.")
        if k != 1.0 and reduction != "mean_minus_std":
            raise ValueError(f"k={k} has no effect with reduction={reduction!r}. Use 'mean_minus_std' or drop it.")
        if not 0 <= k < math.inf:
            raise ValueError(f"k={k} must be 0 or above and finite; below 0 it would reward disagreement.")
        self.models, self.reduction, self.k, self.__name__ = models, reduction, k, name
        self.temperature = sum(model.temperature for model in models) / len(models)

    def _scores(self, examples: Sequence[Example], batch_size: int | None, allow_empty_completion: bool) -> Tensor:
        with truncation_collected() as messages:
            scores = torch.stack([model._scores(examples, batch_size, allow_empty_completion) for model in self.models])
        for message in messages:  # once, where the members say the same
            warn_of_truncation(message)
        if self.reduction == "min":
            return scores.amin(dim=0)
        mean = scores.mean(dim=0)
        return mean if self.reduction == "mean" else mean - self.k * scores.std(dim=0, correction=0)
