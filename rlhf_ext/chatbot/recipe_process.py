"""A recipe in a process of its own, which ends with the one that started it.

On Linux without a GPU it is forked from a process that has done the imports and nothing else, which saves it a dozen
seconds. CUDA does not survive a fork, and other systems know no safe one: there it is started anew.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext

IMPORTS = ["rlhf_ext.chatbot.recipe_imports"]
# glibc hands every large block back to the system and fetches it again page by page; keeping them saves a fifth of the
# time on a CPU. It is read when a process starts, so a recipe cannot set it for itself.
KEEP_BLOCKS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
GOODBYE = 10  # seconds that a recipe gets after Ctrl-C, in case it was sent to this process alone


def start_imports() -> BaseContext:
    """Begin the imports that recipes are forked with, beside those of this process; return the way to start a recipe.

    A command that calls it first does not wait for them when its first recipe starts.
    """
    context = _context()
    for name, value in KEEP_BLOCKS.items():
        os.environ.setdefault(name, value)  # what is started now inherits it
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(IMPORTS)
        multiprocessing.forkserver.ensure_running()
    return context


def run_recipe(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a script with its options; return its exit status, as `subprocess` has it."""
    process = start_imports().Process(target=_run, args=(list(command), dict(environment)))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join(GOODBYE)  # mostly it got the signal too, and says goodbye
        if process.exitcode is None:
            process.terminate()
            process.join()
        raise
    return process.exitcode


def _context() -> BaseContext:
    """Return the way to start a process."""
    from torch import accelerator  # not with the module: what is forked from nothing imports it, too

    can_fork = sys.platform == "linux" and not accelerator.is_available()
    return multiprocessing.get_context("forkserver" if can_fork else "spawn")


def _run(command: list[str], environment: dict[str, str]) -> None:
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
    """End this process when another one has: a phase must not go on beside its command, killed and started again."""
    wait([process])
    os.kill(os.getpid(), signal.SIGKILL)
