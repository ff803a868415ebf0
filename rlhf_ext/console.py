"""Quiet libraries: what the console shows of a run is progress, results and what the user can act on."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Silence deprecations and preprocessing bars of the libraries below. Call it before importing them.

    Some of them warn or read the environment while they are imported, so this module imports none of them.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # An optional 4-bit kernel that is missing, and one line for every 8-bit layer about a cast that is meant.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each fork for a data loader worker warns
