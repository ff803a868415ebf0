"""Output folders: none is written over, and a run goes on from its last complete checkpoint."""

import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments

from .arguments import ArgumentError

CHECKPOINT = re.compile(r"checkpoint-\d+")


def check_output_dir(training_args: TrainingArguments, default: str) -> None:
    """Refuse an output folder that holds another run; give the default one a number instead. Settle what to resume.

    Raises:
        ArgumentError: The folder holds a run and no checkpoint of it is to be resumed, or there is none to resume.
    """
    # Every process must look before any of them writes, so the main one looks for all.
    chosen = [None]
    if PartialState().is_main_process:
        resume = training_args.resume_from_checkpoint
        try:
            if resume:
                chosen = [_to_resume(training_args, default)]
            else:
                fix = "Continue it with --resume_from_checkpoint true, or choose another folder."
                chosen = [(free_output_dir(training_args.output_dir, default, fix), None)]
        except ArgumentError as error:
            chosen = [error]
    broadcast_object_list(chosen)
    if isinstance(chosen[0], ArgumentError):
        raise chosen[0]
    training_args.output_dir, training_args.resume_from_checkpoint = chosen[0]


def _to_resume(training_args: TrainingArguments, default: str) -> tuple[str, str]:
    """Return the output folder and the checkpoint to go on from."""
    output_dir, wanted = training_args.output_dir, str(training_args.resume_from_checkpoint)
    if wanted.lower() == "true":
        if output_dir == default:  # the default folder's latest number is the latest run
            output_dir = _numbered(default)[-1]
        folder = Path(output_dir)
    else:
        folder = Path(wanted)
    checkpoint = folder if CHECKPOINT.fullmatch(folder.name) else last_complete_checkpoint(folder)
    if checkpoint is None or not _is_complete(checkpoint):
        raise ArgumentError(f"--resume_from_checkpoint {wanted}: there is no complete checkpoint in {folder}.")
    if _run_in(Path(output_dir)) and checkpoint.resolve().parent != Path(output_dir).resolve():
        raise ArgumentError(
            f"--resume_from_checkpoint {wanted}: {checkpoint} is of another run than the one in --output_dir "
            f"{output_dir}. Set --output_dir {checkpoint.parent} to go on there, or a new folder."
        )
    return output_dir, str(checkpoint)


def free_output_dir(output_dir: str, default: str, fix: str = "Choose another folder.") -> str:
    """Return `output_dir`, or the default folder with a number where that one holds a run.

    Raises:
        ArgumentError: Another folder than the default holds a run; `fix` says what to do.
    """
    found = _run_in(Path(output_dir))
    if found and output_dir != default:
        raise ArgumentError(f"--output_dir {output_dir} holds another run ({found}). {fix}")
    if found:
        output_dir = f"{default}-{len(_numbered(default)) + 1}"
        print(f"{default} holds another run; this one writes to {output_dir}.")
    return output_dir


def _numbered(default: str) -> list[str]:
    """Return the default folder and those numbered after it that hold runs, in order."""
    folders = [default]
    while _run_in(Path(f"{default}-{len(folders) + 1}")):
        folders.append(f"{default}-{len(folders) + 1}")
    return folders


def _run_in(folder: Path) -> str | None:
    """Return the name of something in `folder` that a training run left there."""
    for pattern in ("checkpoint-*", "*_results.json", "trainer_state.json", "*.safetensors", "adapter_config.json"):
        for found in sorted(folder.glob(pattern)):
            return found.name
    return None


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint written to its end; a run killed while saving leaves a newer one that is not."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    complete = [checkpoint for checkpoint in checkpoints if _is_complete(checkpoint)]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_complete(checkpoint: Path) -> bool:
    if not (checkpoint / "trainer_state.json").is_file():  # the Trainer writes it last
        return False
    damaged = [path for path in checkpoint.rglob("*") if path.suffix in _READABLE and not _READABLE[path.suffix](path)]
    if damaged:
        print(f"{checkpoint} is damaged ({damaged[0].name} cannot be read); it is passed over.", file=sys.stderr)
    return not damaged


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _is_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, "pt"):  # checks the header, and that the file has the length it promises
            return True
    except SafetensorError:
        return False


# How a file that a full disk or a failing one cut short is told from a whole one, without reading all of it.
_READABLE: dict[str, Callable[[Path], bool]] = {
    ".json": _is_json,
    ".safetensors": _is_safetensors,
    ".pt": zipfile.is_zipfile,
    ".pth": zipfile.is_zipfile,
}
