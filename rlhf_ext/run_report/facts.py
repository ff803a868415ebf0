"""What ran: command, versions, data, hardware and time, so that a result can be traced and repeated."""

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import Trainer

from ..arguments import DEMO, RecipeArguments
from ..data_files import is_local
from ..demo import model_path
from ..evaluation.page import Fact
from ..output_files import sha256

PACKAGES = ("rlhf-ext", "trl", "transformers", "peft", "accelerate", "datasets", "torch", "bitsandbytes")
GIB = 2**30
# Options whose values are shown to nobody. Those of a tokenizer are none: --eos_token, --pad_token and the like.
SECRET = re.compile(r"--(?!(?:eos|bos|pad|unk)[-_]token)(?:.*[-_])?(?:token|key|secret|password)", re.IGNORECASE)


def run_facts(trainer: Trainer, script_args: RecipeArguments, train_runtime: float | None) -> list[Fact]:
    """Return what is known of a run.

    Args:
        trainer: A TRL trainer whose run has ended.
        script_args: Where the data came from.
        train_runtime: Seconds that training took, without evaluation before and after.
    """
    args = trainer.args
    training = "" if train_runtime is None else f", of which training {duration(train_runtime)}"
    name = trainer.model.config._name_or_path
    name = "the embedded demo's" if name == model_path() else name
    trained, parameters = parameter_counts(trainer)
    data = data_source(script_args.dataset_name)
    if script_args.eval_dataset_name is not None:
        data += f"; held out: {data_source(script_args.eval_dataset_name)}"
    return [
        Fact("command", command_line(sys.argv, os.environ, args.world_size), code=True),
        Fact("model", f"{name}, {parameters:,} parameters, {trained:,} of them trained"),
        Fact("data", data),
        Fact("rows", "; ".join([dataset_rows("training", trainer.train_dataset), *_held_out(trainer.eval_dataset)])),
        Fact("steps", f"{trainer.state.global_step}, with seed {args.seed}"),
        *machine_facts(args.world_size, training),
    ]


def parameter_counts(trainer: Trainer) -> tuple[int, int]:
    """Return how many parameters learn, and how many there are."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.num_parameters(only_trainable=True), model.num_parameters()


def script_facts(data: Sequence[str | None], *, seconds: float | None = None) -> list[Fact]:
    """Return what is known of a run without a trainer.

    Args:
        data: The names of its data; None for the demo's.
        seconds: How long it took; by default, since this process began.
    """
    return [
        Fact("command", command_line(sys.argv, os.environ, 1), code=True),
        Fact("data", "; ".join(data_source(name) for name in dict.fromkeys(data))),
        *machine_facts(1, seconds=seconds),
    ]


def machine_facts(processes: int, of_which: str = "", *, seconds: float | None = None) -> list[Fact]:
    """Return versions, hardware, time and peak memory of this process.

    Args:
        processes: How many ran.
        of_which: What to add to the time.
        seconds: The time; by default, since this process began.
    """
    total = time.time() - psutil.Process().create_time() if seconds is None else seconds
    return [
        Fact("versions", versions()),
        Fact("hardware", hardware(processes)),
        Fact("time", f"{duration(total)}{of_which}"),
        Fact("peak memory", peak_memory()),
    ]


def command_line(argv: list[str], environment: Mapping[str, str], processes: int) -> str:
    """Return the command that a run can be repeated with, without the values of options that hold a secret.

    Args:
        argv: As in `sys.argv`.
        environment: As in `os.environ`; Accelerate leaves its settings there.
        processes: How many ran.
    """
    script, *arguments = argv
    path = Path(script)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        script = str(path.relative_to(Path.cwd()))
    shown, secret = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if secret and not argument.startswith("--"):
            argument = "***"
        secret = SECRET.fullmatch(name) is not None
        if secret and equals:
            argument, secret = f"{name}=***", False
        shown.append(argument)
    launcher = ["python"]
    if any(name.startswith("ACCELERATE_") for name in environment):
        launcher = ["accelerate", "launch", *(["--num_processes", str(processes)] if processes > 1 else [])]
    return shlex.join([*launcher, script, *shown])


def data_source(name: str | None) -> str:
    """Return a dataset's name, for a local file with its SHA-256."""
    if name is None or not is_local(name):
        return name or DEMO
    return f"{name}, SHA-256 {sha256(name)}"


def dataset_rows(name: str, dataset: Any) -> str:
    """Return how many rows a dataset has, as it is trained on, and the fingerprint of `datasets`."""
    if not hasattr(dataset, "__len__"):
        return f"{name}: streamed"
    return f"{name}: {len(dataset):,}, fingerprint {dataset._fingerprint}"


def _held_out(dataset: Any) -> list[str]:
    parts = dataset if isinstance(dataset, dict) else {"held out": dataset}
    return [dataset_rows(name, part) for name, part in parts.items() if part is not None]


def versions() -> str:
    """Return the versions of Python and of the packages that matter here, as far as they are installed."""
    installed = {name: _version(name) for name in PACKAGES}
    shown = [f"{name} {version}" for name, version in installed.items() if version]
    return ", ".join([*shown, f"Python {platform.python_version()}"])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware(processes: int) -> str:
    """Return accelerator or processor, memory, and how many processes ran."""
    memory = f"{psutil.virtual_memory().total / GIB:.0f} GiB memory"
    parts = [f"{_processor()}, {os.cpu_count()} logical cores, {memory}"]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        parts.insert(0, f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / GIB:.0f} GiB")
    return "; ".join([*parts, f"{processes} process{'es' if processes > 1 else ''}"])


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory() -> str:
    """Return the most memory that this process has held."""
    parts = []
    if torch.cuda.is_available():
        used, reserved = (peak() / GIB for peak in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved))
        parts.append(f"{used:.2f} GiB on the GPU ({reserved:.2f} reserved)")
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        parts.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB:.2f} GiB of main memory")
    return ", ".join(parts) or "unknown"


def duration(seconds: float) -> str:
    """Return seconds as text, such as 1 h 02 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
