"""The command line of the recipes: TRL's parser and options, errors in one line, defaults for the embedded demo."""

import difflib
import errno
import importlib.util
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments
from trl import ModelConfig, ScriptArguments, TrlParser

from . import demo
from .plugins import PluginError

DEMO = "the embedded demo"
CHECKPOINT = re.compile(r"checkpoint-\d+")


class ArgumentError(ValueError):
    """An option that does not exist, cannot work here, or contradicts another; the message says what to do."""


@dataclass
class RecipeArguments(ScriptArguments):
    """`trl.ScriptArguments` for recipes that also read local files and evaluate on held-out rows."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset on the Hub, or a local .jsonl, .json, .csv or .parquet file. Default: the embedded demo."
        },
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset or local file to evaluate on. Default: the split `dataset_test_split`, or "
            "`eval_fraction` of the training rows where there is no such split."
        },
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Part of the training rows held out where there is no test split."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many rows at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many rows at most."})


class RecipeParser(TrlParser):
    """`TrlParser` whose errors are one line and whose configuration file is checked for unknown keys."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage, which is several hundred lines here."""
        raise ArgumentError(message)

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        """Raises for a key that no option has, instead of returning it."""
        known = [action.dest for action in self._actions]
        for key in config:
            if key not in known:
                raise ArgumentError(f"--config: there is no option {key!r}.{_suggest(key, known)}")
        return super().set_defaults_with_config(**config)


def parse_arguments(
    dataclass_types: Sequence[type],
    demo_defaults: Mapping[str, Any],
    output_dir: str,
    args: Sequence[str] | None = None,
) -> tuple[Any, ...]:
    """Parse the command line and `--config file.yaml`, the command line winning.

    Args:
        dataclass_types: As for `TrlParser`: `RecipeArguments`, the trainer's configuration, `ModelConfig`.
        demo_defaults: Defaults that fit the embedded model; they hold only where no other model is named.
        output_dir: Where the recipe writes by default.
        args: The command line; `sys.argv[1:]` by default.

    Raises:
        ArgumentError: An unknown option or key, a value of the wrong type, or an option that cannot work here.
    """
    args = list(sys.argv[1:] if args is None else args)
    # TRL trains in bf16 by default, which needs to be told that a machine without accelerator is meant.
    defaults = {"output_dir": output_dir, "use_cpu": not torch.accelerator.is_available()}
    defaults["ddp_find_unused_parameters"] = False  # every parameter is used here, and looking for others warns
    parsed = parse_options(dataclass_types, defaults, args)
    if any(isinstance(part, ModelConfig) and part.model_name_or_path is None for part in parsed):
        demo_model = {"model_name_or_path": demo.model_path(), **demo_defaults}
        parsed = parse_options(dataclass_types, defaults | demo_model, args)
    for arguments in parsed:
        if isinstance(arguments, ModelConfig):
            _check_model_config(arguments)
    return parsed


def parse_options(
    dataclass_types: Sequence[type], defaults: Mapping[str, Any], args: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Parse the command line and `--config file.yaml` into the dataclasses, and no more.

    Args:
        dataclass_types: Any dataclasses.
        defaults: What replaces the defaults of their fields.
        args: The command line; `sys.argv[1:]` by default.

    Raises:
        ArgumentError: An unknown option or key, or a value of the wrong type.
    """
    args = list(sys.argv[1:] if args is None else args)
    parser = RecipeParser(dataclass_types, allow_abbrev=False)
    parser.set_defaults_with_config(**defaults)
    if args and args[-1] == "--config":
        raise ArgumentError("--config: expected the path of a YAML file.")
    try:
        *parsed, unknown = parser.parse_args_and_config(args, return_remaining_strings=True)
    except OSError as error:
        raise ArgumentError(f"--config: {error}.") from error
    except yaml.YAMLError as error:
        raise ArgumentError(f"--config: not valid YAML: {' '.join(str(error).split())}.") from error
    except (ArgumentError, PluginError):
        raise
    except ValueError as error:  # how the configurations of TRL and Transformers refuse a value
        raise ArgumentError(" ".join(str(error).split())) from error
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ArgumentError(f"there is no option {unknown[0]!r}.{_suggest(unknown[0], [*known, '--config FILE'])}")
    return tuple(parsed)


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.split("=")[0], known, n=1)
    return f" Did you mean {close[0]!r}?" if close else " See --help for all of them."


def _check_model_config(model_args: ModelConfig) -> None:
    """Refuse what would fail after the model is loaded, or do nothing."""
    quantized = next((name for name in ("load_in_8bit", "load_in_4bit") if getattr(model_args, name)), None)
    if quantized and importlib.util.find_spec("bitsandbytes") is None:
        raise ArgumentError(f"--{quantized} needs bitsandbytes: pip install 'rlhf-ext[quantization]'.")
    if quantized and not model_args.use_peft:
        raise ArgumentError(f"--{quantized} freezes the model, so there is nothing to train: add --use_peft.")
    if model_args.use_peft and importlib.util.find_spec("peft") is None:
        raise ArgumentError("--use_peft needs peft: pip install peft.")
    if not model_args.use_peft:
        default = type(model_args)()
        lora = [n for n in vars(default) if n.startswith(("lora_", "use_rslora", "use_dora"))]
        unused = [f"--{name}" for name in lora if getattr(model_args, name) != getattr(default, name)]
        if unused:
            raise ArgumentError(f"{', '.join(unused)} has no effect without --use_peft.")


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


def load_tokenizer(model_args: ModelConfig, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, which is quick and shows whether there is such a model at all.

    Raises:
        ArgumentError: There is no such model.
    """
    name = model_args.model_name_or_path
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArgumentError(f"--model_name_or_path {name}: its tokenizer cannot be loaded ({reason}).") from error


def model_init_kwargs(model_args: ModelConfig, training_args: TrainingArguments) -> dict[str, Any]:
    """Return the trainer's `model_init_kwargs` with the options of `ModelConfig` about loading added."""
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


# What torch ("unexpected pos", "iostream") and safetensors say when the disk is full.
_NO_ROOM = ("No space left", "File too large", "Disk quota", "file write failed", "unexpected pos", "iostream error")


def _no_room(error: Exception) -> str | None:
    """Return in words that a file could not be written, if that is what happened; every library says it differently."""
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
    ):
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
    text = str(error)
    if any(words in text for words in _NO_ROOM):
        return f"a file cannot be written, probably because the disk is full ({text.strip().splitlines()[0]})"
    return None


@contextmanager
def one_line_errors(*expected: type[Exception]) -> Iterator[None]:
    """Print the `expected` errors of user input as one line and exit with status 1, without a traceback."""
    try:
        yield
    except expected as error:
        if int(os.environ.get("RANK", "0")) == 0:  # every process checks the same input
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (OSError, RuntimeError, SafetensorError) as error:
        if (reason := _no_room(error)) is None:
            raise
        print(f"error: {reason}. What was saved before is kept (see --resume_from_checkpoint).", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; checkpoints saved so far are kept (see --resume_from_checkpoint).", file=sys.stderr)
        sys.exit(130)
