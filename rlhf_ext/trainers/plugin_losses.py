"""What the trainers with plugin losses share: reading keywords, calling a loss and checking it, extra columns."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..data_checks import check_extra_columns, check_number
from ..plugins import KINDS, PluginError, accepted_keywords, check_signature, get_plugin

Loss = Callable[..., Tensor]
Losses = dict[str, Loss]


def parse_keywords(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return an option that holds keywords, such as `loss_kwargs`, as a dict; on the command line it is JSON.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            raise ValueError(f"""{name}={value!r} is not a JSON object such as '{{"keyword": 0.1}}'.""")
        return parsed
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} must be a dict, got {value!r}.")
    return dict(value or {})


def check_loss_weights(names: Sequence[str], weights: Sequence[float]) -> None:
    """Check that there are losses, and what each of them weighs.

    Raises:
        ValueError: No loss; not one weight for each, or one that is negative or not finite; or all are 0.
    """
    if not names:
        raise ValueError("loss_type names no loss: name at least one, or drop it.")
    if len(weights) != len(names):
        raise ValueError(f"loss_weights={weights} must have one weight per loss in {names}.")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(f"loss_weights={weights}: they must be 0 or above, finite, and not all 0.")


def parse_columns(value: Sequence[str] | str | None) -> list[str]:
    """Return `extra_columns` as a list; one name, or `null` in a YAML file, is taken as well.

    Raises:
        ValueError: It is anything else than names.
    """
    names = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"extra_columns={value!r} must be names of dataset columns.")
    return names


def bind_losses(kind: str, names: Sequence[str], loss_kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Losses:
    """Return the plugins in `names`, each with the keywords bound that it takes.

    Args:
        kind: The plugins' kind.
        names: What `get_plugin` takes.
        loss_kwargs: The user's keywords. At least one loss must take each of them.
        options: Options of the trainer that reach the losses which take them.

    Raises:
        PluginError: A loss does not exist, is named twice, has a wrong signature or misses a keyword; or none of them
            takes one.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PluginError(f"loss_type names {twice[0]!r} twice: name it once, and add up its loss_weights.")
    losses = {name: get_plugin(kind, name) for name in names}
    reserved = {*KINDS[kind].positional, *KINDS[kind].keywords}
    taken = {key for loss in losses.values() for key in accepted_keywords(loss, loss_kwargs)} - reserved
    if unused := [key for key in sorted(loss_kwargs) if key not in taken]:
        is_beta = kind == "dpo_loss" and "beta" in unused
        hint = " (beta is an option of its own: set `beta`)" if is_beta else ""
        raise PluginError(
            f"loss_kwargs {', '.join(map(repr, unused))}: no plugin loss in loss_type takes "
            f"{'it' if len(unused) == 1 else 'them'}{hint}. The plugin losses are: {', '.join(names) or 'none'}."
        )
    bound = {}
    for name, loss in losses.items():
        keywords = accepted_keywords(loss, {**options, **loss_kwargs})
        check_signature(kind, name, loss, keywords)
        bound[name] = partial(loss, **keywords)
    return bound


def try_losses(losses: Losses, extra_columns: Sequence[str], call: Callable[[Loss, dict[str, Tensor]], Tensor]) -> None:
    """Call losses on two made-up pairs, so that mistakes show before the model loads.

    Args:
        losses: As `bind_losses` returns them.
        extra_columns: The dataset columns that they are given.
        call: Calls a loss with extras, as the trainer does, on two pairs.

    Raises:
        PluginError: A loss fails, or returns anything but a differentiable tensor of shape (2,); or none of them
            computes with one of the columns.
    """
    extras = {column: torch.ones(2).as_subclass(_Watched) for column in extra_columns}
    for name, loss in losses.items():
        try:
            with torch.enable_grad():
                check_losses(name, call(loss, extras), pairs=2)
        except KeyError as error:
            raise PluginError(
                f"The loss {name!r} reads {error}, which is not there. If it is a column of the dataset, add "
                f"extra_columns={[*extra_columns, *error.args]}."
            ) from error
        except Exception as error:
            raise PluginError(f"The loss {name!r} fails on a trial batch: {' '.join(str(error).split())}") from error
    if unread := [column for column, values in extras.items() if not values.is_read]:
        raise PluginError(
            f"The column {unread[0]!r}: no loss in loss_type computes with extras[{unread[0]!r}]. Drop it from "
            "extra_columns or from the dataset, rename it to one that a loss reads, or use a loss that reads it."
        )


class _Watched(Tensor):
    """A tensor that notes when something is computed with it; a look at its shape is no computation."""

    is_read = False

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Marks the watched tensors among the arguments, and returns plain tensors."""
        if getattr(function, "__name__", "") != "__get__":  # of `shape`, `dtype` and the like
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, cls):
                    leaf.is_read = True
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


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
