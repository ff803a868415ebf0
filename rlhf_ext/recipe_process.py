"""A recipe in a process of its own, which ends with the one that started it.

On Linux without a GPU it is forked from a process that has done the imports and nothing else, which saves it a dozen
seconds. CUDA does not survive a fork, and other systems know no safe one: there it is a program like any other.
"""

import atexit
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait

IMPORTS = ["rlhf_ext.recipe_imports"]
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
# glibc hands every large block back to the system and fetches it again page by page; keeping them saves a fifth of the
# time on a CPU. It is read when a process starts, so a recipe cannot set it for itself.
KEEP_BLOCKS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
GOODBYE = 10  # seconds that a recipe gets after Ctrl-C, in case it was sent to this process alone


def run_recipe(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a script with its options; return its exit status, as `subprocess` has it."""
    return _fork(command, environment) if _can_fork() else _start(command, environment)


def _can_fork() -> bool:
    from torch import accelerator  # not with the module: what is forked from nothing imports it, too

    return sys.platform == "linux" and not accelerator.is_available()


def _start(command: Sequence[str], environment: Mapping[str, str]) -> int:
    process = subprocess.Popen(
        [sys.executable, *command],
        env=KEEP_BLOCKS | dict(environment),
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(GOODBYE)  # mostly it got the signal too, and says goodbye
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise


def _fork(command: Sequence[str], environment: Mapping[str, str]) -> int:
    CONTEXT.set_forkserver_preload(IMPORTS)
    for name, value in KEEP_BLOCKS.items():
        os.environ.setdefault(name, value)  # for the process to fork from, which starts now if it has not
    process = CONTEXT.Process(target=_run_forked, args=(list(command), dict(environment)))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join(GOODBYE)
        if process.exitcode is None:
            process.terminate()
            process.join()
        raise
    return process.exitcode


def _run_forked(command: list[str], environment: dict[str, str]) -> None:
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a process of `multiprocessing` ends without


def _die_with(process: int) -> None:
    """Wait until a process has ended, and end this one."""
    wait([process])
    os.kill(os.getpid(), signal.SIGKILL)


def _die_with_parent() -> None:
    """A phase must not go on writing beside the command that was killed and started again."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
