"""Reading preference data: local files, the Hub or the embedded demo, checked row by row (see `data_checks.py`)."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import pyarrow
from accelerate import PartialState
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from .arguments import DEMO, RecipeArguments
from .data_checks import STREAMED_ROWS_CHECKED, DataError, check_extra_columns, check_preference_rows
from .data_files import AnyDataset, is_local, load_from_hub, number_or_text, on_disk, read_rows

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "image", "images")


def load_preference_splits(
    script_args: RecipeArguments, *, extra_columns: Sequence[str], optional_columns: Sequence[str] = (), seed: int
) -> tuple[AnyDataset, AnyDataset]:
    """Load and check the rows to train on and the rows to evaluate on.

    Without `dataset_name` they are the embedded demo's. Without a test split or `eval_dataset_name`, a part of the
    training rows, chosen by `seed`, is held out.

    Raises:
        DataError: Anything that would make the run fail or go wrong later.
    """
    name, train_split, test_split = (
        script_args.dataset_name,
        script_args.dataset_train_split,
        script_args.dataset_test_split,
    )
    eval_name, streaming = script_args.eval_dataset_name, script_args.dataset_streaming
    for option in ("max_train_samples", "max_eval_samples"):
        if getattr(script_args, option) is not None and getattr(script_args, option) < 1:
            raise DataError(f"--{option} must be at least 1.", "Drop it to use all rows.", source=name or DEMO)
    if name is None:
        from .demo.data import PREFERENCE_SIZES, preference_dataset

        # The embedded world writes as many pairs as are asked for.
        train_size = max(PREFERENCE_SIZES["train"], script_args.max_train_samples or 0)
        test_size = max(PREFERENCE_SIZES["test"], script_args.max_eval_samples or 0)
        # Held-out labels are free of noise, so that accuracy measures what was learned and not the labels.
        held_out = preference_dataset("test", size=test_size, noise=False)
        splits = {train_split: preference_dataset("train", size=train_size), test_split: held_out}
        check_extra_columns(splits[train_split], extra_columns, source=DEMO)
    else:
        wanted = (train_split,) if eval_name else (train_split, test_split)
        splits = load_preference_dataset(
            name,
            script_args.dataset_config,
            splits=wanted,
            extra_columns=extra_columns,
            optional_columns=optional_columns,
            streaming=streaming,
        )
    train = _take_split(splits, train_split, name)
    if eval_name is not None:
        eval_splits = load_preference_dataset(
            eval_name,
            extra_columns=extra_columns,
            optional_columns=optional_columns,
            streaming=streaming and not is_local(eval_name),
        )
        held_out = _take_split(eval_splits, test_split if test_split in eval_splits else "train", eval_name)
    elif test_split in splits:
        held_out = splits[test_split]
    elif isinstance(train, IterableDataset):
        fix = "Name one with --dataset_test_split or --eval_dataset_name."
        raise DataError("a streamed dataset needs a split to evaluate on.", fix, source=name)
    else:
        train, held_out = hold_out(train, script_args.eval_fraction, seed, source=name)
    return at_most(train, script_args.max_train_samples, seed), at_most(held_out, script_args.max_eval_samples, seed)


def load_preference_dataset(
    name: str,
    config: str | None = None,
    *,
    splits: Sequence[str] | None = None,
    extra_columns: Sequence[str] = (),
    optional_columns: Sequence[str] = (),
    streaming: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """Load preference data from a local file or the Hub, and check every row of it.

    Args:
        name: A local `.jsonl`, `.json`, `.csv` or `.parquet` file, which becomes the split `train`; or whatever
            `datasets.load_dataset` takes.
        config: The configuration's name, for `datasets.load_dataset`.
        splits: The splits to check; all of them by default.
        extra_columns: Numeric columns to keep and check besides those of a preference dataset.
        optional_columns: The same for columns that need not be there.
        streaming: As in `datasets.load_dataset`; only the first rows are checked then.

    Raises:
        DataError: Naming the file or split, the row, the column and the fix.
    """
    if is_local(name):
        if streaming:
            raise DataError("dataset_streaming has no effect on a local file.", "Drop the option.", source=name)
        return DatasetDict(train=_load_file(name, extra_columns, optional_columns))
    loaded = load_from_hub(name, config, streaming=streaming)
    for split, dataset in loaded.items():
        if splits is None or split in splits:
            rows = enumerate(islice(dataset, STREAMED_ROWS_CHECKED) if streaming else dataset, start=1)
            numeric = _present(dataset.column_names or (), extra_columns, optional_columns)
            check_preference_rows(rows, numeric, source=f"{name}, split {split}")
            _say_what_is_not_read(dataset.column_names or (), numeric, source=name)
    return loaded


def _present(columns: Iterable[str], extra_columns: Sequence[str], optional_columns: Sequence[str]) -> list[str]:
    """The extra columns, and the optional ones that are there."""
    return [*extra_columns, *(name for name in optional_columns if name in columns and name not in extra_columns)]


def _say_what_is_not_read(columns: Iterable[str], extra_columns: Sequence[str], *, source: str) -> None:
    unread = sorted(set(columns) - {*PREFERENCE_COLUMNS, *extra_columns})
    if unread:
        hint = "--extra_columns passes numeric ones on to the loss"
        PartialState().print(f"{source}: training does not read the columns {', '.join(unread)} ({hint}).")


def _load_file(name: str, extra_columns: Sequence[str], optional_columns: Sequence[str]) -> Dataset:
    rows = read_rows(name)
    columns = {key for _, row in rows for key in row}
    extra_columns = _present(columns, extra_columns, optional_columns)
    if Path(name).suffix == ".csv":  # where every cell is text
        rows = [(n, row | {c: number_or_text(row[c]) for c in extra_columns if c in row}) for n, row in rows]
    check_preference_rows(rows, extra_columns, source=name)
    # Other columns may hold anything, mixed types too.
    _say_what_is_not_read(columns, extra_columns, source=name)
    kept = [key for key in (*PREFERENCE_COLUMNS, *extra_columns) if key in columns]
    numbers = set(extra_columns)
    table = {key: [float(row[key]) if key in numbers else row.get(key) for _, row in rows] for key in kept}
    try:
        return on_disk(Dataset.from_dict(table))
    except (pyarrow.ArrowException, TypeError) as error:
        reason = " ".join(str(error).split())
        fix = "Every column needs one type throughout."
        raise DataError(f"its rows do not fit one table ({reason}).", fix, source=name) from error


def _take_split(splits: Mapping[str, AnyDataset], split: str, name: str | None) -> AnyDataset:
    if split not in splits:
        raise DataError(f"there is no split {split!r}.", f"It has: {', '.join(splits)}.", source=name or DEMO)
    if {"image", "images"} & set(splits[split].column_names or ()):
        fix = "Use DPOTrainer from Python with a processor."
        raise DataError("it holds images, and the recipes train on text.", fix, source=name or DEMO)
    return splits[split]


def hold_out(train: Dataset, fraction: float, seed: int, *, source: str) -> tuple[Dataset, Dataset]:
    """Divide the rows, at random by `seed`, into those to train on and a `fraction` to evaluate on.

    Raises:
        DataError: That would leave one of them empty.
    """
    if not 0 < fraction < 1 or len(train) < 2:
        fix = "It needs at least 2 rows and an --eval_fraction between 0 and 1, or an --eval_dataset_name."
        raise DataError(f"{fraction:g} of {len(train)} rows cannot be held out.", fix, source=source)
    rows = min(max(1, round(fraction * len(train))), len(train) - 1)
    parts = train.train_test_split(test_size=rows, seed=seed)
    return parts["train"], parts["test"]


def at_most(dataset: AnyDataset, rows: int | None, seed: int) -> AnyDataset:
    """Return `rows` rows drawn by `seed`: the first ones of a file often belong together."""
    if rows is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(rows)
    return dataset.shuffle(seed=seed).select(range(min(rows, len(dataset))))
