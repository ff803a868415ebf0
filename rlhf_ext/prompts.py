"""Prompts to sample completions for: reading and checking them, and a part held out to evaluate on."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from datasets import Dataset

from .arguments import DEMO, RecipeArguments
from .data_checks import NOT_TEXT, DataError, check_characters, check_text
from .data_files import Rows, numbered, read_splits, to_dataset
from .splits import load_splits, take_split


def load_prompt_splits(
    script_args: RecipeArguments, *, seed: int, all_columns: bool = False
) -> tuple[Dataset, Dataset]:
    """Load and check the prompts to train on and those to evaluate on (see `load_splits`).

    Data of preference pairs will do: only its prompts are used.

    Args:
        script_args: Where the data are.
        seed: Of the part that is held out.
        all_columns: Keep the other columns, which TRL hands to reward functions.

    Raises:
        DataError: Naming the file or split, the row, the column and the fix.
    """
    if script_args.dataset_streaming:
        source = script_args.dataset_name or DEMO
        raise DataError("prompts are not streamed.", "Drop dataset_streaming.", source=source)

    def demo(split: str) -> Dataset:
        from .demo.data import prompt_dataset

        return prompt_dataset(split)

    return load_splits(script_args, seed, demo=demo, check=partial(_check_prompts, all_columns=all_columns))


def load_prompts(name: str, config: str | None, split: str) -> Dataset:
    """Return the prompts of a split; a local file is one split, `train`.

    Raises:
        DataError: As in `load_prompt_splits`, or there is no such split.
    """
    return take_split(read_splits(name, config), split, name, _check_prompts)


def check_prompt_rows(rows: Iterable[tuple[int, dict[str, Any]]], *, source: str, all_columns: bool = False) -> None:
    """Check that every row has a prompt, all of them text or all conversations.

    Args:
        rows: The rows with their numbers.
        source: What to call them.
        all_columns: Whether the other columns are kept. If not, images and tools would be lost, and are refused.

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
        if row.get("chat_template_kwargs"):
            fix = "Drop the column. For recipes/ppo.py, --chat_template_kwargs sets them for all prompts."
            raise DataError("it would have no effect on prompts.", fix, column="chat_template_kwargs", **place)
        for column in row if all_columns else ():
            check_characters(row[column], column, place)
        for column in () if all_columns else NOT_TEXT:
            if row.get(column):
                fix = "Drop the column, or use the trainer from Python, which takes what TRL's takes."
                raise DataError("it would be lost: prompts are text here.", fix, column=column, **place)


def _check_prompts(rows: Rows, source: str, *, all_columns: bool = False) -> Dataset:
    check_prompt_rows(numbered(rows), source=source, all_columns=all_columns)
    if isinstance(rows, list):
        columns = list(dict.fromkeys(name for _, row in rows for name in row)) if all_columns else ["prompt"]
        return to_dataset({name: [row.get(name) for _, row in rows] for name in columns}, source=source)
    return rows if all_columns else rows.select_columns(["prompt"])
