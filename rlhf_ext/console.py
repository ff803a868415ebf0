"""Quiet libraries: what the console shows of a run is progress, results and what the user can act on."""

import logging
import os
import re
import warnings
from collections.abc import Iterable, Sequence

# `save_steps` as a part of the run, which a checkpoint holds as the number of steps it came to.
_FRACTION = re.compile(r"\n\t\w+_steps: 0\.\d+ \(from args\) != \d+ \(from trainer_state\.json\)")


def quiet_libraries() -> None:
    """Silence deprecations and preprocessing bars of the libraries below. Call it before importing them.

    Some of them warn or read the environment while they are imported, so this module imports none of them.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("transformers.trainer_utils").addFilter(_is_of_use)
    # An optional 4-bit kernel that is missing, and one line for every 8-bit layer about a cast that is meant.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each fork for a data loader worker warns


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first column names what is in the others."""
    from rich.console import Console  # late: libraries are to be imported after they are quieted
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _is_of_use(record: logging.LogRecord) -> bool:
    """Return whether a message about checkpoints says something that the user can act on."""
    message = _FRACTION.sub("", record.getMessage())
    # Checkpoints less than a second apart are sorted by their number, which is right.
    return "mtime may not be" not in message and not message.endswith("within the checkpoint directory: ")
