"""Preference data: local files, the Hub or the embedded demo, checked row by row (see `data_checks.py`)."""

from collections.abc import Iterable, Sequence
from functools import partial

from accelerate import PartialState
from datasets import Dataset

from .arguments import DEMO, RecipeArguments
from .data_checks import DataError, check_extra_columns, check_preference_rows
from .data_files import AnyDataset, Rows, ending, number_or_text, numbered, to_dataset
from .splits import load_splits

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")


def load_preference_splits(
    script_args: RecipeArguments, *, extra_columns: Sequence[str], optional_columns: Sequence[str] = (), seed: int
) -> tuple[AnyDataset, AnyDataset]:
    """Load and check the pairs to train on and the pairs to evaluate on (see `load_splits`).

    Args:
        script_args: What the user asked for.
        extra_columns: Numeric columns to keep and check besides those of a preference dataset.
        optional_columns: The same for columns that need not be there.
        seed: For the rows that are held out or drawn.

    Raises:
        DataError: Anything that would make the run fail or go wrong later.
    """

    def demo(split: str) -> Dataset:
        from .demo.data import PREFERENCE_SIZES, preference_dataset

        # The embedded world writes as many pairs as are asked for. Held-out labels are free of noise, so that accuracy
        # measures what was learned and not the labels.
        wanted = script_args.max_train_samples if split == "train" else script_args.max_eval_samples
        rows = preference_dataset(split, size=max(PREFERENCE_SIZES[split], wanted or 0), noise=split == "train")
        check_extra_columns(rows, extra_columns, source=DEMO)
        return rows

    check = partial(check_preferences, extra_columns=extra_columns, optional_columns=optional_columns)
    return load_splits(script_args, seed, demo=demo, check=check)


def check_preferences(
    rows: Rows, source: str, *, extra_columns: Sequence[str] = (), optional_columns: Sequence[str] = ()
) -> AnyDataset:
    """Check every pair (of a streamed split the first ones), and return those of a file as a dataset.

    Args:
        rows: A split of `read_splits`.
        source: What to call them; of a file its name.
        extra_columns: Numeric columns to keep and check besides those of a preference dataset.
        optional_columns: The same for columns that need not be there.

    Raises:
        DataError: Naming the file or split, the row, the column and the fix.
    """
    is_file = isinstance(rows, list)
    columns = {key for _, row in rows for key in row} if is_file else {*(rows.column_names or ())}
    if columns & {"image", "images"}:
        fix = "Use DPOTrainer from Python with a processor."
        raise DataError("it holds images, and the recipes train on text.", fix, source=source)
    numeric = [*extra_columns, *(name for name in optional_columns if name in columns and name not in extra_columns)]
    if is_file and ending(source) == ".csv":  # where every cell is text
        rows = [(n, row | {c: number_or_text(row[c]) for c in numeric if c in row}) for n, row in rows]
    check_preference_rows(numbered(rows), numeric, source=source)
    _say_what_is_not_read(columns, numeric, source=source)
    if not is_file:
        return rows
    # Other columns may hold anything, mixed types too.
    texts = {key: [row.get(key) for _, row in rows] for key in PREFERENCE_COLUMNS if key in columns}
    return to_dataset(texts | {key: [float(row[key]) for _, row in rows] for key in numeric}, source=source)


def _say_what_is_not_read(columns: Iterable[str], extra_columns: Sequence[str], *, source: str) -> None:
    unread = sorted({*columns} - {*PREFERENCE_COLUMNS, *extra_columns})
    if unread:
        hint = "--extra_columns passes numeric ones on to the loss"
        PartialState().print(f"{source}: training does not read the columns {', '.join(unread)} ({hint}).")
