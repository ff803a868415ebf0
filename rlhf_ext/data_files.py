"""Reading data: local files into numbered rows, or whatever `datasets` finds on the Hub."""

import csv
import difflib
import io
import json
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Json,
    List,
    concatenate_datasets,
    load_dataset,
)
from datasets.fingerprint import Hasher

from .data_checks import STREAMED_ROWS_CHECKED, DataError

AnyDataset = Dataset | IterableDataset
NumberedRow = tuple[int, dict[str, Any]]
Rows = AnyDataset | list[NumberedRow]  # of a split: as `datasets` loads them, or as they stand in a file


def read_splits(name: str, config: str | None = None, *, streaming: bool = False) -> Mapping[str, Rows]:
    """Return the splits of a dataset, unchecked; a local file is one split, `train`.

    Args:
        name: A local `.jsonl`, `.json`, `.csv` or `.parquet` file, or whatever `datasets.load_dataset` takes.
        config: The configuration's name, for `datasets.load_dataset`.
        streaming: As in `datasets.load_dataset`.

    Raises:
        DataError: It cannot be read.
    """
    return {"train": read_rows(name)} if is_local(name) else load_from_hub(name, config, streaming=streaming)


def numbered(rows: Rows) -> Iterable[NumberedRow]:
    """Return the rows with their numbers, to be checked; of streamed ones those at the beginning."""
    if isinstance(rows, list):
        return rows
    return enumerate(islice(rows, STREAMED_ROWS_CHECKED) if isinstance(rows, IterableDataset) else rows, start=1)


def to_dataset(columns: Mapping[str, list[Any]], *, source: str) -> Dataset:
    """Return the columns as a dataset on disk, in which every row holds what its file has and no more.

    Raises:
        DataError: A column holds values of several types, or numbers that no table keeps.
    """
    parts = [_to_column(name, values, source) for name, values in columns.items()]
    return on_disk(concatenate_datasets(parts, axis=1))


def _to_column(name: str, values: list[Any], source: str) -> Dataset:
    """Return a column as a dataset.

    Arrow has one type for all rows of a column. Of objects, such as tools or messages that call them, it would give
    each the keys of all others, and turn 5 into 5.0 beside 2.5. The parts that differ become JSON, and where that would
    read the text "5" as a number, the whole objects do.
    """
    lists = all(isinstance(value, list | None) for value in values)
    items = chain.from_iterable(value or [] for value in values) if lists else values
    ways: list[dict[str, Any]] = [{}]
    if all(isinstance(item, dict | None) for item in items):
        whole = Features({name: List(Json()) if lists else Json()})
        ways = [{"on_mixed_types": "use_json"}, {"features": whole}]
    for way in ways:
        try:
            column = Dataset.from_dict({name: values}, **way)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            reason = " ".join(str(error).split())
            problem, fix = f"its rows do not fit one table ({reason}).", "Every column needs one type throughout."
            continue
        changed = next(_changes(values, column[name]), None) if way else None
        if changed is None:
            return column
        problem, fix = "in a table, {} would become {}.".format(*map(reprlib.repr, changed)), "Write it as text."
    raise DataError(problem, fix, source=source, column=name)


def _changes(given: Iterable[Any], kept: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each value that a table changed and what it is there, but for the rounding of JSON: to ten digits."""
    for old, new in zip(given, kept, strict=True):
        if repr(old) == repr(new):  # fast, and unlike == it tells 5 from 5.0 and one order of keys from another
            continue
        if isinstance(old, dict) and isinstance(new, dict) and [*old] == [*new]:
            yield from _changes(old.values(), new.values())
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            yield from _changes(old, new)
        elif isinstance(old, float) and isinstance(new, float) and math.isclose(old, new, rel_tol=1e-9):
            continue
        elif old != new or isinstance(old, dict | int | float):
            yield old, new


def load_from_hub(
    name: str, config: str | None = None, *, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """Load what `datasets.load_dataset` finds under `name`, unchecked.

    Raises:
        DataError: It cannot be loaded.
    """
    try:
        return load_dataset(name, config, streaming=streaming)
    except Exception as error:  # the Hub client's exceptions are many
        fix = f"Local files end in {', '.join(READERS)}; any other name is looked up on the Hub."
        reason = " ".join(str(error).split())
        raise DataError(f"it cannot be loaded ({type(error).__name__}: {reason}).", fix, source=name) from error


def is_local(name: str) -> bool:
    """Whether `name` names a local file by its ending, rather than a dataset on the Hub."""
    return ending(name) in READERS


def ending(name: str | Path) -> str:
    """Return what a file's name ends in, `.csv` for `ROWS.CSV`."""
    return Path(name).suffix.lower()


def read_rows(name: str) -> list[NumberedRow]:
    """Read a local file into numbered rows.

    Raises:
        DataError: The file is missing, unreadable, empty, not UTF-8, or not what its name says.
    """
    path = Path(name).expanduser()
    try:
        if not path.is_file():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
            fix = f"Did you mean {path.parent / near[0]}?" if near else "Check the path, relative to where you are."
            raise DataError("there is no such file.", fix, source=name)
        rows = list(READERS[ending(path)](path))
    except OSError as error:
        fix = "Check that you may read it."
        raise DataError(f"it cannot be read ({error.strerror or error}).", fix, source=name) from error
    except UnicodeDecodeError as error:
        place = _place(path, error.object[: error.start].decode())
        byte = f"byte {error.object[error.start]:#04x}"
        raise DataError(f"{byte} is not UTF-8.", "Save it as UTF-8.", source=f"{name}, {place}") from error
    except DataError:
        raise
    except Exception as error:  # every reader has its own exceptions; the user needs the file's name with each
        raise DataError(f"it cannot be read: {error}.", f"It must be a {ending(path)} file.", source=name) from error
    if not rows:
        raise DataError("it holds no rows.", "Give it at least one.", source=name)
    return rows


def _place(path: Path, before: str) -> str:
    """Say where in a file the text `before` ends, as its row if rows can be counted without reading on."""
    lines = before.count("\n") + 1
    if ending(path) == ".csv":
        lines = len(list(csv.reader(io.StringIO(before + "?", newline=""))))
        return "the header" if lines == 1 else f"row {lines - 1}"
    return f"{'row' if ending(path) == '.jsonl' else 'line'} {lines}"


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    return data.decode("utf-8-sig")  # a byte order mark, as some editors write it, is no content


def _read_jsonl(path: Path) -> Iterator[NumberedRow]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"it is not valid JSON ({error.msg} at character {error.pos + 1}).",
                "Each line must be one JSON object.",
                source=str(path),
                row=number,
            ) from error
        yield number, _require_object(row, path, number)


def _read_json(path: Path) -> Iterator[NumberedRow]:
    text = _read_text(path)
    if text.lstrip().startswith("{"):
        fix = f"A .json file must be a list of objects. If each line holds one object, rename it to {path.stem}.jsonl."
        raise DataError("it holds an object.", fix, source=str(path))
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise DataError("it does not hold a list.", "A .json file must be a list of objects.", source=str(path))
    for number, row in enumerate(rows, start=1):
        yield number, _require_object(row, path, number)


def _require_object(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"it is a {type(row).__name__}.", "Each row must be a JSON object.", source=str(path), row=number
        )
    return row


def _read_csv(path: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(2**31 - 1)  # 131,072 characters by default, less than a long conversation has
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    for number, row in enumerate(reader, start=1):
        if None in row or None in row.values():
            fix = "Quote fields that hold commas or line breaks."
            raise DataError("it has another number of fields than the header.", fix, source=str(path), row=number)
        yield number, row


def number_or_text(value: str) -> str | float:
    """Return the number that a cell of a CSV file says, or the text where it says none."""
    try:
        return float(value)
    except ValueError:
        return value


def _read_parquet(path: Path) -> Iterator[NumberedRow]:
    return enumerate(Dataset.from_parquet(str(path)), start=1)


READERS: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def on_disk(dataset: Dataset) -> Dataset:
    """Move a dataset to the cache, where all processes and later runs share what is computed from it.

    TRL keeps precomputed reference log-probabilities beside the dataset's file; without one, every process would look
    for them in a place of its own.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "rlhf_ext"
    path = folder / f"{Hasher.hash(dataset.to_dict())}.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        dataset.to_parquet(part)
        part.replace(path)  # at once: another process may be reading
    return Dataset.from_parquet(str(path))
