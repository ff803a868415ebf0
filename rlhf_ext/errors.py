"""One line, and no traceback, for what is no fault of the program: user input, a full disk, Ctrl-C."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import Trainer

# Whose constructors and loaders refuse options, and with what; a chat template refuses rows.
_LIBRARIES = ("trl", "transformers", "peft", "accelerate")
_REFUSALS = (ValueError, NotImplementedError, ImportError, TemplateError)

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
        verb = "opened" if error.errno == errno.EACCES else "written"
        return f"{error.filename or 'a file'} cannot be {verb}: {error.strerror}"
    text = str(error)
    if any(words in text for words in _NO_ROOM):
        return f"a file cannot be written, probably because the disk is full ({text.strip().splitlines()[0]})"
    return None


def _refused_by_trainer(error: Exception) -> bool:
    """Whether a library refused the options while a trainer was set up, rather than something went wrong in a run."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    in_constructor = any(
        frame.f_code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), Trainer) for frame in frames
    )
    return in_constructor and frames[-1].f_globals["__name__"].partition(".")[0] in _LIBRARIES


@contextmanager
def one_line_errors(
    *expected: type[Exception], kept: str = "What was saved before is kept (see --resume_from_checkpoint)."
) -> Iterator[None]:
    """Print the `expected` errors of user input as one line and exit with status 1, without a traceback.

    The same goes for options that TRL or a library below it refuses in a trainer's constructor, and for a full disk.

    Args:
        expected: Errors of user input.
        kept: What remains of a run that the disk or the user interrupts, and how to go on.
    """
    try:
        yield
    except Exception as error:
        refused = isinstance(error, _REFUSALS) and _refused_by_trainer(error)
        if isinstance(error, expected) or refused:
            if int(os.environ.get("RANK", "0")) > 0:  # every process has the same input
                sys.exit(1)
            message = " ".join(str(error).split()) if refused else str(error)
        elif isinstance(error, OSError | RuntimeError | SafetensorError) and (reason := _no_room(error)) is not None:
            message = f"{reason}. {kept}"
        else:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"interrupted. {kept}", file=sys.stderr)
        sys.exit(130)
