"""Errors of user input, of a full disk and of Ctrl-C in one line."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

# What torch ("unexpected pos", "iostream") and safetensors say when the disk is full.
_NO_ROOM = ("No space left", "File too large", "Disk quota", "file write failed", "unexpected pos", "iostream error")


def _no_room(error: Exception) -> str | None:
    """Return in words that a file could not be written, if that is what happened; every library says it differently."""
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
    ):
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
    text = str(error)
    if any(words in text for words in _NO_ROOM):
        return f"a file cannot be written, probably because the disk is full ({text.strip().splitlines()[0]})"
    return None


@contextmanager
def one_line_errors(*expected: type[Exception]) -> Iterator[None]:
    """Print the `expected` errors of user input as one line and exit with status 1, without a traceback."""
    try:
        yield
    except expected as error:
        if int(os.environ.get("RANK", "0")) == 0:  # every process checks the same input
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (OSError, RuntimeError, SafetensorError) as error:
        if (reason := _no_room(error)) is None:
            raise
        print(f"error: {reason}. What was saved before is kept (see --resume_from_checkpoint).", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; checkpoints saved so far are kept (see --resume_from_checkpoint).", file=sys.stderr)
        sys.exit(130)
