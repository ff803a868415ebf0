"""Recipes run one after the other in one output folder, so that an interrupted command goes on where it stopped.

A phase is a recipe with its options, in a process of its own: what it leaves is what the recipe alone would have left,
and its memory is free when the next one starts. `pipeline.json` says which phases are finished.
"""

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments import ArgumentError
from ..output_files import lock_folder, write_whole
from ..run_folder import last_complete_checkpoint
from .recipe_process import run_recipe

STATE_FILE = "pipeline.json"
RECIPES = Path(__file__).parents[2] / "recipes"
# What a launcher tells each of its processes. A process without it works alone, and waits for no other.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
CONTENTS = "contents of "  # begins a setting that is the hash of the file that another one names


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
        settings: Names of those that what it leaves depends on, through the phases that it starts from too.
    """

    name: str
    recipe: str
    options: tuple[str, ...]
    trains: bool = True
    settings: tuple[str, ...] = ()

    def command(self, output_dir: Path) -> list[str]:
        """Return what one would type to run the recipe by itself."""
        return [f"recipes/{self.recipe}", "--output_dir", str(output_dir / self.name), *self.options]


class Pipeline:
    """The phases of one output folder.

    Args:
        output_dir: The folder; it is made, and locked against a second run for as long as this one lives.
        settings: What the run was asked for. What a finished phase depends on must be as it was.
        phases: In the order in which they run.

    Raises:
        ArgumentError: Another run works in the folder, or a phase in it is finished with other settings, or it cannot
            be written to.
    """

    def __init__(self, output_dir: str | Path, settings: Mapping[str, Any], phases: Sequence[Phase]) -> None:
        self.output_dir, self.phases = Path(output_dir), phases
        self.is_main = int(os.environ.get("RANK", "0")) == 0
        self._path = self.output_dir / STATE_FILE
        if self.is_main:
            self._lock = lock_folder(self.output_dir)
        begun = self._path.is_file()
        self.state = read_state(self.output_dir) if begun else {"settings": {}, "begun": {}, "phases": {}}
        self._take_over(json.loads(json.dumps(dict(settings))))

    def run(self) -> None:
        """Run the phases that are not finished yet.

        Raises:
            PhaseError: One of them ended with an error.
        """
        for number, phase in enumerate(self.phases):
            title = f"Phase {number + 1} of {len(self.phases)}, {phase.name}"
            if phase.name in self.state["phases"]:
                self._print(f"{title}: finished before.")
                continue
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
        begun = phase.name in self.state["begun"]  # with these settings
        resume = phase.trains and begun and last_complete_checkpoint(folder) is not None
        if not resume and folder.is_dir() and self.is_main:
            _set_aside(folder)  # what was left before the first checkpoint, or with other settings, is of no use
        self.state["begun"][phase.name] = _settings_of(phase, self.state["settings"])
        self._save()
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
            raise PhaseError(f"phase {phase.name} {_how_it_ended(status, phase.trains, self.output_dir)}")

    def _take_over(self, settings: dict[str, Any]) -> None:
        """Go on with these settings: phases that are gone, or were begun with others, are begun again."""
        if "begun" not in self.state:
            raise ArgumentError(f"{self._path} was written by an older version: choose another folder.")
        phases, begun = self.state["phases"], self.state["begun"]
        gone = [name for name in phases if not (self.output_dir / name).is_dir()]
        self._refuse_changes({name: begun[name] for name in phases if name not in gone}, settings)
        for name in gone:
            self._print(f"{self.output_dir / name} was finished and is gone; it is made again.")
            del phases[name]
        as_now = {phase.name: _settings_of(phase, settings) for phase in self.phases}
        kept = {name: made_with for name, made_with in begun.items() if name in phases or as_now.get(name) == made_with}
        self.state |= {"settings": settings, "begun": kept}
        self._save()

    def _refuse_changes(self, finished: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
        was = {name: value for made_with in finished.values() for name, value in made_with.items()}
        changed = {name: value for name, value in was.items() if settings.get(name) != value}
        if not changed:
            return
        phases = [phase for phase, made_with in finished.items() if changed.keys() & made_with.keys()]
        folders = ", ".join(str(self.output_dir / phase) for phase in phases)
        raise ArgumentError(
            f"--output_dir {self.output_dir} holds what was made with other settings ({', '.join(phases)}): "
            f"{', '.join(_changes(changed, settings))}. Repeat these to go on with it, remove {folders} to make that "
            "again, or choose another folder."
        )

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


@contextmanager
def alone() -> Iterator[None]:
    """Hide the launcher from Accelerate, which would wait for the other processes; these do not come along."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


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


def _settings_of(phase: Phase, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.removeprefix(CONTENTS) in phase.settings}


def _changes(changed: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return in words what has changed, given what it was."""
    given = {name: value for name, value in changed.items() if not name.startswith(CONTENTS)}
    options = [f"--{name} was {'not given' if value is None else repr(value)}" for name, value in given.items()]
    named = [name.removeprefix(CONTENTS) for name in changed if name.startswith(CONTENTS)]
    return options + [f"--{name} {settings[name]} has other contents" for name in named if name not in changed]


def _how_it_ended(status: int, trains: bool, output_dir: Path) -> str:
    """Return what an exit status means: negative ones are signals, as in `subprocess`."""
    if status > 0:
        return (
            f"ended with an error (above). Mend it, and give the command again with --output_dir {output_dir}. What is "
            "finished stays, and options that it does not depend on may change."
        )
    hint = "; the system does that when memory runs out" if status == -signal.SIGKILL else ""
    if hint and trains:
        hint += f": try a smaller per_device_train_batch_size in its YAML file, with --output_dir {output_dir}"
    return f"was ended by {signal.Signals(-status).name}{hint}. The same command goes on from its last checkpoint."
