"""All cores of the CPU for a process that works alone on it."""

import os

import psutil
import torch

OPTION = "--num_cpu_threads_per_process"


def use_all_cores() -> None:
    """Take back the single thread that `accelerate launch` gives a process where nobody has said how many.

    What the user has said is kept: `OMP_NUM_THREADS`, or the option of `accelerate launch`. With a GPU, or in one of
    several processes, nothing changes.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 and not torch.accelerator.is_available()
    if not alone or os.environ.get("OMP_NUM_THREADS") != "1" or not _is_launchers_choice():
        return
    cores = psutil.cpu_count(logical=False) or 1
    os.environ["OMP_NUM_THREADS"] = str(cores)  # for the phases of a pipeline
    torch.set_num_threads(cores)


def _is_launchers_choice() -> bool:
    """Whether Accelerate has set the number: the launcher, which waits as our parent, was not told one."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return False
    try:
        launcher = psutil.Process().parent()
        told = "OMP_NUM_THREADS" in launcher.environ() or any(word.startswith(OPTION) for word in launcher.cmdline())
    except (psutil.Error, AttributeError):  # another user's process, or none
        return False
    return not told
