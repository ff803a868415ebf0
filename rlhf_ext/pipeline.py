"""Recipes run one after the other in one output folder, so that an interrupted command goes on where it stopped.

A phase is a recipe with its options, in a process of its own: what it leaves is what the recipe alone would have left,
and its memory is free when the next one starts. `pipeline.json` says which phases are finished.
"""

import json
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arguments import ArgumentError
from .output_files import lock_folder, write_whole
from .recipe_process import run_recipe
from .run_folder import last_complete_checkpoint

STATE_FILE = "pipeline.json"
RECIPES = Path(__file__).parents[1] / "recipes"
# What a launcher tells each of its processes. A process without it works alone, and waits for no other.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
CONTENTS = "contents of "  # begins a setting that is the hash of a file


class PhaseError(RuntimeError):
    """A phase ended with an error, which it has printed itself; the message says how to go on."""


@dataclass(frozen=True)
class Phase:
    """A recipe with its options.

    Attributes:
        name: Of the phase, and of its folder in the output folder.
        recipe: File name of the recipe.
        options: Its command line, without output folder.
        trains: Whether the recipe leaves checkpoints to resume from, and runs in all processes of the launcher.
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
            self._lock = lock_folder(self.output_dir)
        self.state = read_state(self.output_dir) if self._path.is_file() else {}
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

    def finish(self) -> None:
        """Mark the run as finished, once all that it leaves is written: from then on the command starts another."""
        self.state["finished"] = True
        self._save()

    def _launch(self, phase: Phase, command: Sequence[str], number: int) -> None:
        folder = self.output_dir / phase.name
        resume = phase.trains and last_complete_checkpoint(folder) is not None
        if not resume and folder.is_dir() and self.is_main:
            _set_aside(folder)  # what was left before the first checkpoint is of no use
        options = ["--resume_from_checkpoint", "true"] if resume else []
        environment = dict(os.environ)
        if not phase.trains:
            if not self.is_main:
                return
            environment = {name: value for name, value in environment.items() if name not in LAUNCHED}
        elif "MASTER_PORT" in environment:  # all processes start their part of the phase, and meet at a new place
            environment["MASTER_PORT"] = str(int(environment["MASTER_PORT"]) + 1 + number)
            environment["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        status = run_recipe([str(RECIPES / phase.recipe), *command[1:], *options], environment)
        if status:
            raise PhaseError(f"phase {phase.name} {_how_it_ended(status)}")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        begun = self.state.get("settings")
        if begun is not None and begun != settings:
            changed = sorted(name for name in begun.keys() | settings.keys() if begun.get(name) != settings.get(name))
            files = [f"{name.removeprefix(CONTENTS)} has changed" for name in changed if name.startswith(CONTENTS)]
            was = [f"{name}={begun.get(name)!r}" for name in changed if not name.startswith(CONTENTS)]
            raise ArgumentError(
                f"--output_dir {self.output_dir} holds a run with other settings ({', '.join([*was, *files])}). Repeat "
                "these to go on with it, or choose another folder."
            )
        if begun is None:
            self.state = {"settings": settings, "phases": {}}
            self._save()

    def _save(self) -> None:
        if self.is_main:
            write_whole(self._path, json.dumps(self.state, indent=2) + "\n")

    def _print(self, line: str) -> None:
        if self.is_main:
            print(line, flush=True)


def read_state(output_dir: Path) -> dict[str, Any]:
    """Return what `pipeline.json` says of the run in a folder: its `settings`, and the finished `phases`.

    Raises:
        ArgumentError: There is no such file, or it is damaged.
    """
    path = output_dir / STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArgumentError(
            f"{output_dir} holds no run of recipes/chatbot_rlhf.py: there is no {STATE_FILE}."
        ) from None
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in ("settings", "phases")):
        raise ArgumentError(f"{path} is damaged: restore it, or remove it to begin again in this folder.")
    return state


def unfinished_output_dir(default: str, settings: Mapping[str, Any]) -> str:
    """Return the default folder with the first number that is free or holds this run, unfinished.

    Raises:
        ArgumentError: The state of a run there is damaged.
    """
    number, folder = 1, Path(default)
    while (folder / STATE_FILE).is_file():
        state = read_state(folder)
        if state["settings"] == json.loads(json.dumps(settings)) and not state.get("finished"):
            break
        number += 1
        folder = Path(f"{default}-{number}")
    return str(folder)


def _set_aside(folder: Path) -> None:
    """Rename a folder that cannot be gone on with; nothing is deleted that a person may want to look at."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.interrupted-{number}")).exists():
        number += 1
    folder.rename(aside)


def _how_it_ended(status: int) -> str:
    """Return what an exit status means: negative ones are signals, as in `subprocess`."""
    if status > 0:
        return "ended with an error (above). Mend it, and give the same command again."
    killed = status == -signal.SIGKILL
    hint = "; the system does that when memory runs out: try a smaller --batch_size" if killed else ""
    return f"was ended by {signal.Signals(-status).name}{hint}. The same command goes on from its last checkpoint."
