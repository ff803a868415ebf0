"""Prompts to sample completions for: reading and checking them, and a part held out to evaluate on."""

from collections.abc import Iterable
from typing import Any

import pyarrow
from datasets import Dataset

from .arguments import DEMO, RecipeArguments
from .data_checks import DataError, check_text
from .data_files import is_local, load_from_hub, read_rows


def load_prompt_splits(script_args: RecipeArguments, *, seed: int) -> tuple[Dataset, Dataset]:
    """Load and check the prompts to train on and those to evaluate on.

    Without `dataset_name` they are the embedded demo's. Without a test split or `eval_dataset_name`, a part of the
    training rows, chosen by `seed`, is held out. Data of preference pairs will do: only its prompts are used.

    Raises:
        DataError: Naming the file or split, the row, the column and the fix.
    """
    name, eval_name = script_args.dataset_name, script_args.eval_dataset_name
    train_split, test_split = script_args.dataset_train_split, script_args.dataset_test_split
    source = name or DEMO
    if script_args.dataset_streaming:
        raise DataError("prompts are not streamed.", "Drop dataset_streaming.", source=source)
    if name is None:
        from .demo.data import prompt_dataset

        train, held_out = prompt_dataset("train"), prompt_dataset("test")
    else:
        train = load_prompts(name, script_args.dataset_config, train_split)
        held_out = (
            None if is_local(name) or eval_name else load_prompts(name, script_args.dataset_config, test_split, ())
        )
    if eval_name is not None:
        held_out = load_prompts(eval_name, None, test_split, (train_split,))
    if held_out is None:
        fraction, rows = script_args.eval_fraction, len(train)
        if not 0 < fraction < 1 or rows < 2:
            fix = "It needs at least 2 rows and an --eval_fraction between 0 and 1, or an --eval_dataset_name."
            raise DataError(f"{fraction:g} of {rows} rows cannot be held out.", fix, source=source)
        parts = train.train_test_split(test_size=min(max(1, round(fraction * rows)), rows - 1), seed=seed)
        train, held_out = parts["train"], parts["test"]
    bounds = {"max_train_samples": script_args.max_train_samples, "max_eval_samples": script_args.max_eval_samples}
    for option, bound in bounds.items():
        if bound is not None and bound < 1:
            raise DataError(f"--{option} must be at least 1.", "Drop it to use all rows.", source=source)
    return tuple(
        part if bound is None else part.shuffle(seed=seed).select(range(min(bound, len(part))))
        for part, bound in zip((train, held_out), bounds.values(), strict=True)
    )


def check_prompt_rows(rows: Iterable[tuple[int, dict[str, Any]]], *, source: str) -> None:
    """Check that every row has a prompt, all of them text or all conversations.

    Raises:
        DataError: Naming the first row that has not.
    """
    kind = None
    for number, row in rows:
        prompt = row.get("prompt")
        place = {"source": source, "row": number}
        if prompt is None:
            fix = "Every row needs one: text, or a list of messages."
            raise DataError("it is missing here.", fix, column="prompt", **place)
        kind = isinstance(prompt, list) if kind is None else kind
        check_text(prompt, kind, "prompt", place)


def load_prompts(name: str, config: str | None, split: str, otherwise: tuple[str, ...] | None = None) -> Dataset | None:
    """Return the prompts of a file or a split; of the first split in `otherwise` if there is none, or None.

    Raises:
        DataError: As in `load_prompt_splits`; without `otherwise` also if there is no such split.
    """
    if is_local(name):
        rows = read_rows(name)
        check_prompt_rows(rows, source=name)
        try:
            return Dataset.from_dict({"prompt": [row["prompt"] for _, row in rows]})
        except (pyarrow.ArrowException, TypeError) as error:
            reason = " ".join(str(error).split())
            fix = "All prompts need one form."
            raise DataError(f"its prompts do not fit one table ({reason}).", fix, source=name) from error
    splits = load_from_hub(name, config)
    found = next((part for part in (split, *(otherwise or ())) if part in splits), None)
    if found is None and otherwise is None:
        raise DataError(f"there is no split {split!r}.", f"It has: {', '.join(splits)}.", source=name)
    if found is None:
        return None
    check_prompt_rows(enumerate(splits[found], start=1), source=f"{name}, split {found}")
    return splits[found].select_columns(["prompt"])
