"""Files of an output folder: written whole or not at all, and by one run at a time."""

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from .arguments import ArgumentError


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is either there with all of the text or as it was, whenever the process ends.

    Raises:
        OSError: It cannot be written.
    """
    _write(path, [text])


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write rows as lines of JSON, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    _write(path, (json_line(row) for row in rows))


def _write(path: Path, parts: Iterable[str]) -> None:
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def json_line(row: Any) -> str:
    """Return a row as a line of JSON that UTF-8 can hold.

    Rows of .parquet files may hold more than JSON does: dates and decimals become text, bytes become Base64. Half of a
    character, as JSON may hold one, stays an escape.
    """
    text = json.dumps(row, ensure_ascii=False, default=_to_text) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


def _to_text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def read_jsonl(path: Path) -> list[Any]:
    """Return the rows of a .jsonl file that `write_jsonl` wrote.

    Lines end with a line feed alone: texts may hold other characters that `str.splitlines` takes for an end.

    Raises:
        OSError: It cannot be read.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's contents.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_folder(folder: Path) -> AcquireReturnProxy:
    """Make an output folder and keep other runs out of it: within a `with`, or for as long as what is returned lives.

    Raises:
        ArgumentError: Another run works there, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise ArgumentError(f"another run works in --output_dir {folder}: wait, or choose another.") from None
    except OSError as error:
        reason = error.strerror or error
        raise ArgumentError(f"--output_dir {folder} cannot be written to ({reason}): choose another folder.") from error
