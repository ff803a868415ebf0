"""Programs in processes of their own, which can be killed and leave nothing behind, without the seconds of imports.

They are forked from a process that has imported everything and done nothing else. What a user's first command meets
besides, the imports and `accelerate launch`, is tested in `recipes/test_dpo.py`. Figures are plotted, but only rendered
where a test says `renders=True`: that takes as long as all else in a short run.
"""

import base64
import io
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
OUTPUT, ERRORS = "stdout", "stderr"
PIXEL = base64.b64decode(  # a PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)


@cache
def _start_forkserver():
    """Start the process that all others are forked from. It is given our path in the environment, not as `sys.path`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    CONTEXT.set_forkserver_preload(["recipe_imports"])
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def _main(script, arguments, environment, folder, cwd, renders):
    from accelerate import PartialState
    from matplotlib.figure import Figure

    from rlhf_ext.chatbot import recipe_process

    # A phase of a pipeline is forked from its command, which has the imports, and forgets what that knows of processes.
    recipe_process._context = lambda: multiprocessing.get_context("fork")
    os.register_at_fork(after_in_child=PartialState._reset_state)
    if not renders:
        Figure.savefig = _save_pixel
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test run in the background ignores
    os.environ.update(environment)
    for name, descriptor in ((OUTPUT, 1), (ERRORS, 2)):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if cwd is not None:
        os.chdir(cwd)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    _run_script(script, arguments)


def _save_pixel(figure, target, **options):
    """Write what takes the place of the rendered figure."""
    if isinstance(target, io.BytesIO):
        target.write(PIXEL)
    else:
        Path(target).write_bytes(PIXEL)


def _run_script(script, arguments):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def start(script, *arguments, environment=None, folder=None, cwd=None, renders=False):
    """Start a program; its standard output and error go into files of `folder`."""
    _start_forkserver()
    folder = folder or tempfile.mkdtemp()
    words = [str(word) for word in arguments]
    process = CONTEXT.Process(target=_main, args=(str(script), words, environment or {}, str(folder), cwd, renders))
    process.start()
    return process


def kill_after(path, script, *arguments, delay=0.0, timeout=200):
    """Start a program and kill it, with the signal that it cannot catch, some seconds after it has written a file."""
    process = start(script, *arguments)
    deadline = time.monotonic() + timeout
    while not Path(path).is_file():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.join()


def run(script, *arguments, environment=None, cwd=None, renders=False, timeout=250):
    """Do what `subprocess.run` does with captured output."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(script, *arguments, environment=environment, folder=folder, cwd=cwd, renders=renders)
        return _result(process, folder, [script, *arguments], time.monotonic() + timeout)


def launched_environment(config, *options):
    """What `accelerate launch` with one of our configurations tells the processes that it starts."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    command = ["--config_file", str(ROOT / "accelerate_configs" / config), *options, "script.py"]
    launched = prepare_multi_gpu_env(_validate_launch_command(launch_command_parser().parse_args(command))[0])
    return {name: value for name, value in launched.items() if os.environ.get(name) != value}


def run_together(processes, script, *arguments, environment=None, renders=False, timeout=250):
    """Run a program in several processes that find each other, as a launcher would start them."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    meeting |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": str(processes)} | (environment or {})
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, str(rank)) for rank in range(processes)]
        started = []
        for rank, own in enumerate(folders):
            own.mkdir()
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(start(script, *arguments, environment=meeting | place, folder=own, renders=renders))
        deadline = time.monotonic() + timeout
        results = [_result(p, own, script, deadline) for p, own in zip(started, folders, strict=True)]
    for result in results:
        assert result.returncode == 0, result.stderr[-3000:]
    return results


def _result(process, folder, command, deadline):
    process.join(max(0.0, deadline - time.monotonic()))
    if process.exitcode is None:
        process.kill()
        process.join()
    texts = (Path(folder, name).read_text(encoding="utf-8") for name in (OUTPUT, ERRORS))
    return CompletedProcess(command, process.exitcode, *texts)
