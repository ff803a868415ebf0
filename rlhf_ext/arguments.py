"""The command line of the recipes: TRL's parser and options, and defaults for the embedded demo."""

import difflib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments
from trl import ModelConfig, ScriptArguments, TrlParser

from . import demo
from .plugins import PluginError

DEMO = "the embedded demo"


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
            "`eval_fraction` of the training rows, divided by prompt, where there is no such split."
        },
    )
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Dataset split to evaluate on. Default: `test`, if there is one."}
    )
    eval_fraction: float | None = field(
        default=None,
        metadata={"help": "Part of the training rows held out where there is no test split. Default: 0.1."},
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
