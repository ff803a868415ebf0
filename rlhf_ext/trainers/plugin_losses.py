"""What the trainers with plugin losses share: reading keywords, calling a loss and checking it, extra columns."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from ..data_checks import check_extra_columns, check_number
from ..plugins import PluginError, accepted_keywords

Loss = Callable[..., Tensor]


def parse_loss_kwargs(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return `loss_kwargs` as a dict; on the command line it is JSON.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            raise ValueError(f"""loss_kwargs={value!r} is not a JSON object such as '{{"label_smoothing": 0.1}}'.""")
        return parsed
    if not isinstance(value, dict | None):
        raise ValueError(f"loss_kwargs must be a dict, got {value!r}.")
    return dict(value or {})


def keywords_taken(losses: Mapping[str, Loss], loss_kwargs: Mapping[str, Any]) -> set[str]:
    """Return the names among `loss_kwargs` that at least one of the losses takes."""
    return {key for loss in losses.values() for key in accepted_keywords(loss, loss_kwargs)}


def check_trial(name: str, trial: Callable[[], Tensor], pairs: int) -> None:
    """Call a loss on made-up pairs (`trial` does), so that its mistakes show before the model loads.

    Raises:
        PluginError: It fails, or returns anything but a differentiable tensor of shape (pairs,).
    """
    try:
        with torch.enable_grad():
            check_losses(name, trial(), pairs)
    except Exception as error:
        raise PluginError(f"The loss {name!r} fails on a trial batch: {' '.join(str(error).split())}") from error


def check_losses(name: str, losses: Any, pairs: int) -> Tensor:
    """Return what the loss `name` returned, if it is one differentiable loss per pair.

    Raises:
        ValueError: It is not.
    """
    expected = (pairs,)
    if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"The loss {name!r} returned {got}; it must return a tensor of shape {expected}, one loss per pair, "
            "not reduced (the trainer takes the mean)."
        )
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise ValueError(
            f"The loss {name!r} returned a tensor without gradient: it must be computed from the chosen and rejected "
            "tensors that it is given, without detach() or item()."
        )
    return losses


def check_extras_of(
    train_dataset: Dataset | IterableDataset | None,
    eval_dataset: Dataset | IterableDataset | Mapping[str, Dataset | IterableDataset] | None,
    columns: Sequence[str],
) -> None:
    """Check the extra columns of a trainer's datasets.

    Raises:
        DataError: An extra column is missing, not numeric or not finite.
    """
    evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    for name, dataset in [("train", train_dataset), *((f"eval {key}".strip(), d) for key, d in evaluated.items())]:
        if dataset is not None and columns:
            check_extra_columns(dataset, columns, source=f"the {name} dataset")


def collate_with_extras(
    examples: list[dict[str, Any]], *, collator: Callable[[list[dict[str, Any]]], dict[str, Any]], columns: list[str]
) -> dict[str, Any]:
    """Return what `collator` returns, and under `extras` each column as a float32 tensor of shape (B,).

    Raises:
        DataError: A value is missing or not finite, in a row that was not there to be checked before training.
    """
    for example in examples:
        for name in columns:
            check_number(example.get(name), name, {"source": "a batch"})
    extras = {name: torch.tensor([float(example[name]) for example in examples]) for name in columns}
    return {**collator(examples), "extras": extras}
