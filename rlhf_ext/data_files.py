"""Reading data: local files into numbered rows, or whatever `datasets` finds on the Hub."""

import csv
import difflib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset
from datasets.fingerprint import Hasher

from .data_checks import DataError

AnyDataset = Dataset | IterableDataset


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
    return Path(name).suffix in READERS


def read_rows(name: str) -> list[tuple[int, dict[str, Any]]]:
    """Read a local file into numbered rows.

    Raises:
        DataError: The file is missing, unreadable, empty, not UTF-8, or not what its name says.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        fix = f"Did you mean {path.parent / near[0]}?" if near else "Check the path (it is relative to where you are)."
        raise DataError("there is no such file.", fix, source=name)
    try:
        rows = list(READERS[path.suffix](path))
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"byte {error.object[error.start]:#04x} is not UTF-8.", "Save it as UTF-8.", source=name, row=line
        ) from error
    except DataError:
        raise
    except Exception as error:  # every reader has its own exceptions; the user needs the file's name with each
        raise DataError(f"it cannot be read: {error}.", f"It must be a {path.suffix} file.", source=name) from error
    if not rows:
        raise DataError("it holds no rows.", "Give it at least one.", source=name)
    return rows


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    return data.decode("utf-8-sig")  # a byte order mark, as some editors write it, is no content


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = json.loads(_read_text(path))
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


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(Dataset.from_parquet(str(path)), start=1)


READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
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
