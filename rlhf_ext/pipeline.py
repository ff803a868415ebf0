"""Recipes run one after the other in one output folder, so that an interrupted command goes on where it stopped.

A phase is a recipe with its options, in a process of its own: what it leaves is what the recipe alone would have left,
and its memory is free when the next one starts. `pipeline.json` says which phases are finished.
"""

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .arguments import ArgumentError
from .run_folder import last_complete_checkpoint

STATE_FILE = "pipeline.json"
RECIPES = Path(__file__).parents[1] / "recipes"
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class PhaseError(RuntimeError):
    """A phase ended with an error, which it has printed itself; the message says how to go on."""


@dataclass(frozen=True)
class Phase:
    """A recipe with its options.

    Attributes:
        name: Of the phase, and of its folder in the output folder.
        recipe: File name of the recipe.
        options: Its command line, without output folder.
        trains: Whether the recipe leaves checkpoints to resume from.
    """

    name: str
    recipe: str
    options: tuple[str, ...]
    trains: bool = True

    def command(self, output_dir: Path) -> list[str]:
        """Return what one would type to run the recipe by itself."""
        return [f"recipes/{self.recipe}", "--output_dir", str(output_dir / self.name), *self.options]


class Pipeline:
    """The phases of one output folder.

    Args:
        output_dir: The folder; it is made, and locked against a second run for as long as this one lives.
        settings: What the run was asked for. A folder that was begun with others is refused.
        phases: In the order in which they run.

    Raises:
        ArgumentError: Another run works in the folder, or it was begun with other settings, or cannot be written to.
    """

    def __init__(self, output_dir: str | Path, settings: Mapping[str, Any], phases: Sequence[Phase]) -> None:
        self.output_dir, self.phases = Path(output_dir), phases
        self.is_main = int(os.environ.get("RANK", "0")) == 0
        self._path = self.output_dir / STATE_FILE
        if self.is_main:
            self._lock = _lock(self.output_dir)
        self.state = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
        self._check_settings(dict(settings))

    def run(self) -> None:
        """Run the phases that are not finished yet.

        Raises:
            PhaseError: One of them ended with an error.
        """
        finished = dict(self.state["phases"])
        for number, phase in enumerate(self.phases):
            title = f"Phase {number + 1} of {len(self.phases)}, {phase.name}"
            folder = self.output_dir / phase.name
            if phase.name in finished and folder.is_dir():
                self._print(f"{title}: finished before.")
                continue
            if phase.name in finished:
                self._print(f"{folder} was finished and is gone; it is made again, the same.")
            command = phase.command(self.output_dir)
            self._print(f"{title}: accelerate launch {shlex.join(command)}")
            start = time.monotonic()
            self._launch(phase, command, number)
            seconds = round(time.monotonic() - start, 1)
            self.state["phases"][phase.name] = {"command": shlex.join(command), "seconds": seconds}
            self._save()
        self.state["finished"] = True
        self._save()

    def _launch(self, phase: Phase, command: Sequence[str], number: int) -> None:
        folder = self.output_dir / phase.name
        resume = phase.trains and last_complete_checkpoint(folder) is not None
        if not resume and folder.is_dir() and self.is_main:
            _set_aside(folder)  # what was left before the first checkpoint is of no use
        options = ["--resume_from_checkpoint", "true"] if resume else []
        environment = dict(os.environ)
        if "MASTER_PORT" in environment:  # every process starts its part of the phase, and these meet at a new place
            environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + 1 + number)
            environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        if run_recipe([str(RECIPES / phase.recipe), *command[1:], *options], environment):
            raise PhaseError(
                f"phase {phase.name} ended with an error (above). Mend it, and give the same command again."
            )

    def _check_settings(self, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        begun = self.state.get("settings")
        if begun is not None and begun != settings:
            changed = sorted(name for name in begun.keys() | settings.keys() if begun.get(name) != settings.get(name))
            was = ", ".join(f"{name}={begun.get(name)!r}" for name in changed)
            raise ArgumentError(
                f"--output_dir {self.output_dir} holds a run with other settings ({was}). Repeat these to go on with "
                "it, or choose another folder."
            )
        if begun is None:
            self.state = {"settings": settings, "phases": {}}
            self._save()

    def _save(self) -> None:
        """Replace the file at once: it is either the old or the new one, whenever the process ends."""
        if self.is_main:
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
            temporary.replace(self._path)

    def _print(self, line: str) -> None:
        if self.is_main:
            print(line, flush=True)


def run_recipe(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a script with its options in a process of its own, which ends with this one; return its exit status."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # it got the signal too, and says goodbye
        raise


def unfinished_output_dir(output_dir: str, default: str, settings: Mapping[str, Any]) -> str:
    """Return `output_dir`; of the default folder, the first number that is free or holds this run, unfinished."""
    if output_dir != default:
        return output_dir
    number, folder = 1, Path(default)
    while (state := folder / STATE_FILE).is_file():
        contents = json.loads(state.read_text(encoding="utf-8"))
        if contents["settings"] == json.loads(json.dumps(settings)) and not contents.get("finished"):
            break
        number += 1
        folder = Path(f"{default}-{number}")
    return str(folder)


def _lock(output_dir: Path) -> FileLock:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output_dir / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ArgumentError(f"another run works in --output_dir {output_dir}: wait, or choose another.") from None
    except OSError as error:
        reason = error.strerror or error
        raise ArgumentError(
            f"--output_dir {output_dir} cannot be written to ({reason}): choose another folder."
        ) from error
    return lock


def _set_aside(folder: Path) -> None:
    """Rename a folder that cannot be gone on with; nothing is deleted that a person may want to look at."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.interrupted-{number}")).exists():
        number += 1
    folder.rename(aside)


def _die_with_parent() -> None:
    """A phase must not go on writing beside the command that was killed and started again."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
