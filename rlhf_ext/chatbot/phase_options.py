"""The options of all phases, parsed as their recipes do, before the first one runs."""

import io
import os
import runpy
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import is_dataclass
from typing import get_type_hints

import torch
from transformers import TrainingArguments

from ..arguments import ArgumentError, parse_arguments, parse_options
from ..plugins import PluginError
from .pipeline import RECIPES, Phase, alone


def check_options(phases: Sequence[Phase], files: Mapping[str, str]) -> None:
    """Refuse what a recipe would refuse when its phase starts, which may be hours later.

    Args:
        phases: With their options.
        files: The YAML files that are named, by phase. The one that a phase reads may not be written yet.

    Raises:
        ArgumentError: An unknown option, or a value that is impossible or contradicts another.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for phase in phases:
        options, path = [*phase.options], files.get(phase.name)
        if path is not None:
            options[options.index("--config") + 1] = path
        try:
            with alone(), redirect_stdout(io.StringIO()):
                _parse(phase, options, processes)
        except (ArgumentError, PluginError) as error:
            where = f"phase {phase.name}" if path is None else path
            raise ArgumentError(f"{where}: {str(error).removeprefix('--config: ')}") from error


def _parse(phase: Phase, options: Sequence[str], processes: int) -> None:
    recipe = runpy.run_path(str(RECIPES / phase.recipe))
    kinds = [kind for kind in get_type_hints(recipe["main"]).values() if is_dataclass(kind)]
    if phase.trains:
        kinds = [_without_devices(kind, processes) if issubclass(kind, TrainingArguments) else kind for kind in kinds]
        parse_arguments(kinds, recipe["DEMO_DEFAULTS"], recipe["OUTPUT_DIR"], options)
    else:
        parse_options(kinds, {}, options)


def _without_devices(kind: type[TrainingArguments], processes: int) -> type[TrainingArguments]:
    """Return a class that takes no memory of a GPU, which would lack in the phases, and waits for no other process."""
    return type(kind.__name__, (kind,), {"_setup_devices": torch.device("cpu"), "world_size": processes})
