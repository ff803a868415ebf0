"""The rows to train on and those to evaluate on: named by the options, or held out by prompt."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from trl import extract_prompt

from .arguments import DEMO, RecipeArguments
from .data_checks import DataError
from .data_files import AnyDataset, Rows, is_local, read_splits

EVAL_FRACTION = 0.1


def load_splits(
    script_args: RecipeArguments, seed: int, *, demo: Callable[[str], Dataset], check: Callable[[Rows, str], AnyDataset]
) -> tuple[AnyDataset, AnyDataset]:
    """Load and check the rows to train on and the rows to evaluate on.

    Without `dataset_name` they are the embedded demo's. Without a test split or `eval_dataset_name`, the rows of some
    prompts, chosen by `seed`, are held out. Says in one line where rows to evaluate on share prompts with training.

    Args:
        script_args: What the user asked for.
        seed: For the rows that are held out, and those that `max_train_samples` and `max_eval_samples` take.
        demo: Returns a split, train or test, of the embedded demo.
        check: Takes the rows of a split and what to call them, and returns the dataset or raises.

    Raises:
        DataError: Naming the file or split and the fix; an option that cannot work or has no effect.
    """
    _check_options(script_args)
    name, eval_name = script_args.dataset_name, script_args.eval_dataset_name
    held_out = None
    if name is None:
        train = demo("train")
        held_out = demo("test") if eval_name is None else None
    else:
        splits = read_splits(name, script_args.dataset_config, streaming=script_args.dataset_streaming)
        train = take_split(splits, script_args.dataset_train_split, name, check)
        if eval_name is None and (split := _find_test_split(splits, script_args, name)):
            held_out = take_split(splits, split, name, check)
    if eval_name is not None:
        streaming = script_args.dataset_streaming and not is_local(eval_name)
        splits = read_splits(eval_name, streaming=streaming)
        split = _find_test_split(splits, script_args, eval_name) or "train"
        held_out = take_split(splits, split, eval_name, check)
    is_given = held_out is not None and not (name is None and eval_name is None)
    if held_out is None:
        fraction = EVAL_FRACTION if script_args.eval_fraction is None else script_args.eval_fraction
        train, held_out = hold_out(train, fraction, seed, source=name)
    train = at_most(train, script_args.max_train_samples, seed)
    held_out = at_most(held_out, script_args.max_eval_samples, seed)
    if is_given:
        _say_shared_prompts(train, held_out, eval_name or name)
    return train, held_out


def _check_options(script_args: RecipeArguments) -> None:
    """Refuse what cannot work, or has no effect, whatever the rows turn out to be."""
    name, evaluated = script_args.dataset_name, script_args.eval_dataset_name or script_args.dataset_name
    source = name or DEMO
    for option in ("max_train_samples", "max_eval_samples"):
        if getattr(script_args, option) is not None and getattr(script_args, option) < 1:
            raise DataError(f"--{option} must be at least 1.", "Drop it to use all rows.", source=source)
    without_effect = []  # option, its default, and the data on which it has none
    if name is None or is_local(name):
        if script_args.dataset_train_split != "train":
            problem = f"there is no split {script_args.dataset_train_split!r}."
            raise DataError(problem, "It has: train.", source=source)
        without_effect += [("dataset_config", None, name), ("dataset_streaming", False, name)]
    if evaluated is None or is_local(evaluated):
        without_effect += [("dataset_test_split", None, evaluated)]
    if evaluated is None or script_args.eval_dataset_name is not None:
        without_effect += [("eval_fraction", None, evaluated)]
    for option, default, on in without_effect:
        if getattr(script_args, option) != default:
            kind = DEMO if on is None else "a local file" if is_local(on) else "rows that are all evaluated on"
            raise DataError(f"--{option} has no effect on {kind}.", "Drop the option.", source=on or DEMO)


def take_split(
    splits: Mapping[str, Rows], split: str, name: str, check: Callable[[Rows, str], AnyDataset]
) -> AnyDataset:
    """Return a checked split of `read_splits(name)`.

    Raises:
        DataError: There is none by that name, or what `check` raises.
    """
    if split not in splits:
        raise DataError(f"there is no split {split!r}.", f"It has: {', '.join(splits)}.", source=name)
    return check(splits[split], name if is_local(name) else f"{name}, split {split}")


def _find_test_split(splits: Mapping[str, Rows], script_args: RecipeArguments, name: str) -> str | None:
    """Return the split to evaluate on: the one asked for, whether it is there or not, else `test` if it is."""
    found = script_args.dataset_test_split or ("test" if "test" in splits else None)
    if found is not None and script_args.eval_fraction is not None:
        problem = f"--eval_fraction has no effect: there is a split {found!r} to evaluate on."
        raise DataError(problem, "Drop the option.", source=name)
    return found


def _say_shared_prompts(train: AnyDataset, held_out: AnyDataset, source: str) -> None:
    if isinstance(train, IterableDataset) or isinstance(held_out, IterableDataset):
        return
    trained_on = {*prompt_keys(train)}
    shared = sum(key in trained_on for key in prompt_keys(held_out))
    if shared:
        PartialState().print(
            f"{source}: {shared} of {len(held_out)} rows to evaluate on have a prompt that is trained on, so results "
            "will look better than they are."
        )


def hold_out(train: AnyDataset, fraction: float, seed: int, *, source: str) -> tuple[Dataset, Dataset]:
    """Divide the rows, at random by `seed`, into those to train on and about a `fraction` to evaluate on.

    All rows of a prompt come to the same side: what a model learned about a prompt says nothing of how it does on
    others.

    Raises:
        DataError: That would leave one of them empty, or the rows are streamed.
    """
    if isinstance(train, IterableDataset):
        fix = "Name one with --dataset_test_split or --eval_dataset_name."
        raise DataError("a streamed dataset needs a split to evaluate on.", fix, source=source)
    rows_of = defaultdict(list)
    for row, key in enumerate(prompt_keys(train)):
        rows_of[key].append(row)
    if not 0 < fraction < 1 or len(rows_of) < 2:
        prompts = f"{len(rows_of)} prompt{'s' if len(rows_of) > 1 else ''}"
        fix = "It needs at least 2 prompts and an --eval_fraction between 0 and 1, or an --eval_dataset_name."
        raise DataError(f"{fraction:g} of {len(train)} rows with {prompts} cannot be held out.", fix, source=source)
    wanted = min(max(1, round(fraction * len(train))), len(train) - 1)
    groups = list(rows_of.values())
    random.Random(seed).shuffle(groups)
    held_out: list[int] = []
    for group in groups:
        if len(held_out) + len(group) <= wanted:
            held_out += group
    held_out = held_out or min(groups, key=len)  # where every prompt has more rows than are wanted
    kept = sorted({*range(len(train))}.difference(held_out))
    return train.select(kept), train.select(sorted(held_out))


def prompt_keys(dataset: Dataset) -> list[str]:
    """Return a string for every row, the same for rows with the same prompt.

    The prompt is the column of that name, what chosen and rejected begin with, the messages before the first answer,
    or else the whole text.
    """
    if "prompt" in dataset.column_names:
        prompts = dataset["prompt"]
    elif "chosen" in dataset.column_names:
        prompts = (extract_prompt(row)["prompt"] for row in dataset.select_columns(["chosen", "rejected"]))
    elif "messages" in dataset.column_names:
        prompts = (_before_the_first_answer(messages) for messages in dataset["messages"])
    else:
        prompts = dataset[dataset.column_names[0]]
    return keys(prompts)


def keys(prompts: Iterable[str | list[dict[str, Any]]]) -> list[str]:
    """Return a string for each prompt, text or messages, the same for the same prompt."""
    return [
        prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str) for prompt in prompts
    ]


def _before_the_first_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    asked = False
    for number, message in enumerate(messages):
        if asked and message["role"] == "assistant":
            return messages[:number]
        asked = asked or message["role"] == "user"
    return messages


def at_most(dataset: AnyDataset, rows: int | None, seed: int) -> AnyDataset:
    """Return `rows` rows drawn by `seed`: the first ones of a file often belong together."""
    if rows is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(rows)
    return dataset.shuffle(seed=seed).select(range(min(rows, len(dataset))))
