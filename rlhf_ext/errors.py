"""One line, and no traceback, for what is no fault of the program: user input, a full disk, Ctrl-C."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jinja2 import TemplateError
from safetensors import SafetensorError

# Whose constructors and loaders refuse options, and with what; a chat template refuses rows.
_LIBRARIES = ("trl", "transformers", "peft", "accelerate")
_REFUSALS = (ValueError, NotImplementedError, ImportError, TemplateError)

# What torch ("unexpected pos", "iostream") and safetensors say when the disk is full.
_NO_ROOM = ("No space left", "File too large", "Disk quota", "file write failed", "unexpected pos", "iostream error")


class NotFiniteError(FloatingPointError):
    """Scores, a loss, a gradient or probabilities are NaN or infinite; the message says of what, and what to do."""


def first_line(error: Exception) -> str:
    """Return what an error of a library says first, without its full stop; its type, where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


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
        return f"a file cannot be written, probably because the disk is full ({first_line(error)})"
    return None


def _refused_by_trainer(error: Exception) -> bool:
    """Whether a library refused the options while a trainer was set up, rather than something went wrong in a run."""
    if not _is_in_trainer(error, "__init__"):
        return False
    module = _frames(error)[-1].f_globals["__name__"]
    if type(error) is RuntimeError:  # how Transformers says that a tracker of --report_to is not installed
        return module == "transformers.integrations.integration_utils"
    return isinstance(error, _REFUSALS) and module.partition(".")[0] in _LIBRARIES


def _is_in_trainer(error: Exception, *methods: str) -> bool:
    """Whether an error comes out of one of these methods of a trainer."""
    from transformers import Trainer  # late: it takes a second, and most commands have no trainer

    named = [frame for frame in _frames(error) if frame.f_code.co_name in methods]
    return any(isinstance(frame.f_locals.get("self"), Trainer) for frame in named)


def _is_of_hub(error: Exception) -> bool:
    """Whether an error comes out of the Hub's client, and not of what a trainer does before it uploads a run."""
    return any(frame.f_globals["__name__"].partition(".")[0] == "huggingface_hub" for frame in _frames(error))


def _frames(error: Exception) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


@contextmanager
def one_line_errors(
    *expected: type[Exception], kept: str = "What was saved before is kept (see --resume_from_checkpoint)."
) -> Iterator[None]:
    """Print the `expected` errors of user input as one line and exit with status 1, without a traceback.

    The same goes for numbers that are not finite, for options that TRL or a library below it refuses in a trainer's
    constructor, for a full disk, and for a Hub that cannot be reached.

    Args:
        expected: Errors of user input.
        kept: What remains of a run that the disk or the user interrupts, and how to go on.
    """
    try:
        yield
    except Exception as error:
        refused = _refused_by_trainer(error)
        if isinstance(error, (*expected, NotFiniteError)) or refused:
            if int(os.environ.get("RANK", "0")) > 0:  # every process has the same input
                sys.exit(1)
            message = " ".join(str(error).split()) if refused else str(error)
        elif isinstance(error, OSError | RuntimeError | SafetensorError) and (reason := _no_room(error)) is not None:
            message = f"{reason}. {kept}"
        elif _is_in_trainer(error, "init_hf_repo", "push_to_hub") and _is_of_hub(error):
            words = " ".join(str(error).split()).rstrip(".")
            message = f"--push_to_hub: the Hub cannot be reached or refuses ({words}). Run `hf auth login`, or drop it."
        else:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"interrupted. {kept}", file=sys.stderr)
        sys.exit(130)
