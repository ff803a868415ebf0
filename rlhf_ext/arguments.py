"""The command line of the recipes: TRL's parser and options, and defaults for the embedded demo."""

import argparse
import difflib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isclass
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments
from trl import ModelConfig, ScriptArguments, TrlParser

from . import demo
from .errors import first_line
from .plugins import PluginError

DEMO = "the embedded demo"
# Defaults of the demo that data of one's own must not be subject to.
ABOUT_AMOUNT = {"max_train_samples", "max_eval_samples", "max_steps", "save_strategy"}
# Those that streamed rows must not be subject to either: their lengths are not known before they come.
ABOUT_LENGTHS = {"train_sampling_strategy"}
# Those that have no effect, and are refused, where another option is 0 or None.
DEPENDENT = {"kl_horizon": ("init_kl_coef", "kl_target")}


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


@dataclass
class ModelConfigWithoutDropout(ModelConfig):
    """`ModelConfig` for trainers that take dropout away by default: without one in the adapters."""

    lora_dropout: float = field(default=0.0, metadata={"help": "Needs disable_dropout=False."})


class RecipeParser(TrlParser):
    """`TrlParser` whose errors are one line and whose configuration file is checked for unknown keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.from_file: set[str] = set()  # the keys of the configuration file

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage, which is several hundred lines here."""
        raise ArgumentError(message)

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        """Raises for a key that no option has, instead of returning it, or a bad value, and remembers the others."""
        known = [action.dest for action in self._actions]
        for key in config:
            if key not in known:
                raise ArgumentError(f"--config: there is no option {key!r}.{_suggest(key, known)}")
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        for action in self._actions:  # argparse checks the values of the command line alone, and lone texts
            if action.dest not in config or action.dest not in hints:
                continue
            value = config[action.dest] = _from_yaml(action, config[action.dest])
            is_bare = value is True and action.const is True  # as `--fsdp`, whose type says a text only
            if not (is_bare or _fits(value, hints[action.dest])):
                expected = hints[action.dest]
                expected = expected.__name__ if isclass(expected) else expected
                raise ArgumentError(f"--config: {action.dest}: {value!r} is of the wrong type; expected {expected}.")
            if action.choices and value is not None and any(item not in action.choices for item in _as_list(value)):
                choices = ", ".join(map(str, action.choices))
                raise ArgumentError(f"--config: {action.dest}: {value!r} is none of {choices}.")
        self.from_file |= {*config}
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
        demo_defaults: Defaults that fit the embedded model, which is the one that is trained where none is named. Where
            data are named, those about the amount of training do not hold, and where they are streamed, those about
            lengths.
        output_dir: Where the recipe writes by default.
        args: The command line; `sys.argv[1:]` by default.

    Returns:
        The dataclasses. A `ModelConfig` gets the attribute `options_given`, the names of the options that were given.

    Raises:
        ArgumentError: An unknown option or key, a value of the wrong type, or an option that cannot work here.
    """
    # TRL trains in bf16 by default, which needs to be told that a machine without accelerator is meant.
    defaults = {"output_dir": output_dir, "use_cpu": not torch.accelerator.is_available()}
    defaults["ddp_find_unused_parameters"] = False  # every parameter is used here, and looking for others warns
    parsed, given = _parse(dataclass_types, defaults, args)
    script_args, model_args = _find(RecipeArguments, parsed), _find(ModelConfig, parsed)
    if model_args.model_name_or_path is None:
        training_args = _find(TrainingArguments, parsed)
        unused = {name for name, others in DEPENDENT.items() if not all(getattr(training_args, o, 1) for o in others)}
        fitting = {name: value for name, value in demo_defaults.items() if name not in unused}
        if (data := script_args.dataset_name) is not None:
            dropped = ABOUT_AMOUNT | (ABOUT_LENGTHS if script_args.dataset_streaming else set())
            fitting = {name: value for name, value in fitting.items() if name not in dropped}
            PartialState().print(
                f"No --model_name_or_path: the tiny model of {DEMO} is trained on {data}, with defaults that fit it."
            )
        parsed, given = _parse(dataclass_types, defaults | fitting, args)
        script_args, model_args = _find(RecipeArguments, parsed), _find(ModelConfig, parsed)
        model_args.model_name_or_path = demo.model_path()
    model_args.options_given = given
    targets = model_args.lora_target_modules
    # To PEFT a text is a pattern of whole paths; TRL makes one of a single name, or end of a path, which matches none.
    if isinstance(targets, str) and re.fullmatch(r"\w+(\.\w+)*", targets):
        model_args.lora_target_modules = [targets]
    if script_args.ignore_bias_buffers:
        raise ArgumentError("--ignore_bias_buffers has no effect here: drop it.")
    _check_evaluation(_find(TrainingArguments, parsed))
    _check_model_config(model_args)
    _check_dropout(_find(TrainingArguments, parsed), model_args)
    _check_streaming(script_args, _find(TrainingArguments, parsed))
    return parsed


def _find(kind: type, parsed: Sequence[Any]) -> Any:
    return next(part for part in parsed if isinstance(part, kind))


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
    return _parse(dataclass_types, defaults, args)[0]


def _parse(
    dataclass_types: Sequence[type], defaults: Mapping[str, Any], args: Sequence[str] | None
) -> tuple[tuple[Any, ...], frozenset[str]]:
    """Return what `parse_options` does, and the names of the options given on the command line or in the file."""
    args = list(sys.argv[1:] if args is None else args)
    parser = RecipeParser(dataclass_types, allow_abbrev=False)
    parser.set_defaults_with_config(**defaults)
    parser.from_file.clear()
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
    except TypeError as error:  # what they do with a `null` in the file, or a list in place of a number
        raise ArgumentError(f"an option has a value of the wrong type ({' '.join(str(error).split())}).") from error
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ArgumentError(f"there is no option {unknown[0]!r}.{_suggest(unknown[0], [*known, '--config FILE'])}")
    words = {word.partition("=")[0] for word in args}
    given = {action.dest for action in parser._actions if words & {*action.option_strings}}
    return tuple(parsed), frozenset(given | parser.from_file)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _from_yaml(action: argparse.Action, value: Any) -> Any:
    """Return a value of the file as the command line would give it, where YAML has read something else.

    YAML takes `no` for false, digits for a number, and `1e-5`, which has no dot, for a text. Argparse converts a text,
    but none in a list.
    """
    if value is False and "no" in (action.choices or ()):
        return "no"
    if type(value) in (int, float) and action.type is str and action.nargs is None:  # a name or a revision of digits
        return str(value)
    if not isinstance(value, list) or action.type is None:
        return value
    try:
        return [action.type(item) if isinstance(item, str) else item for item in value]
    except (ValueError, argparse.ArgumentTypeError):
        return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of the file is of the type of its option; a lone text may be any, as argparse converts it."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if isinstance(value, str):
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if kind is list:  # for none at all, `null` will do
        return value is None or (
            isinstance(value, list) and all(_is(item, inner[0] if inner else Any) for item in value)
        )
    return _is(value, kind)


def _is(value: Any, kind: Any) -> bool:
    if not isclass(kind):  # a choice, which is checked as one, or anything
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.split("=")[0], known, n=1)
    return f" Did you mean {close[0]!r}?" if close else " See --help for all of them."


def _check_evaluation(training_args: TrainingArguments) -> None:
    """Refuse what casts the weights for good in the evaluation before training, and in the one before saving."""
    for dtype in ("bf16", "fp16"):
        if getattr(training_args, f"{dtype}_full_eval"):
            raise ArgumentError(
                f"--{dtype}_full_eval would cast the weights that are trained and saved: drop it. With --{dtype} "
                "evaluations compute in that dtype, and the weights stay as they are."
            )


def check_quantization(load_in_8bit: bool, load_in_4bit: bool) -> None:
    """Refuse to quantize a model twice, or without the library that does it.

    Raises:
        ArgumentError: One of these.
    """
    if load_in_8bit and load_in_4bit:
        raise ArgumentError("--load_in_8bit and --load_in_4bit exclude each other: drop one.")
    if (load_in_8bit or load_in_4bit) and importlib.util.find_spec("bitsandbytes") is None:
        option = "load_in_8bit" if load_in_8bit else "load_in_4bit"
        raise ArgumentError(f"--{option} needs bitsandbytes: pip install 'rlhf-ext[quantization]'.")


def _check_model_config(model_args: ModelConfig) -> None:
    """Refuse what would fail after the model is loaded, or do nothing."""
    check_quantization(model_args.load_in_8bit, model_args.load_in_4bit)
    quantized = next((name for name in ("load_in_8bit", "load_in_4bit") if getattr(model_args, name)), None)
    if quantized and not model_args.use_peft:
        raise ArgumentError(f"--{quantized} freezes the model, so there is nothing to train: add --use_peft.")
    default = type(model_args)()
    changed = [name for name in vars(default) if getattr(model_args, name) != getattr(default, name)]
    without = {
        "use_peft": [name for name in changed if name.startswith(("lora_", "use_rslora", "use_dora"))],
        "load_in_4bit": [name for name in changed if name.startswith(("bnb_", "use_bnb_"))],
    }
    for switch, unused in without.items():
        if unused and not getattr(model_args, switch):
            names = ", ".join(f"--{name}" for name in unused)
            raise ArgumentError(f"{names} {'has' if len(unused) == 1 else 'have'} no effect without --{switch}.")
    if "model_revision" in changed and Path(model_args.model_name_or_path).is_dir():
        raise ArgumentError("--model_revision has no effect on a model in a local folder: drop it.")


def _check_dropout(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """Refuse a dropout that was asked for and that the trainer would take away."""
    wanted = model_args.lora_dropout if "lora_dropout" in model_args.options_given else 0.0
    if wanted and getattr(training_args, "disable_dropout", False):
        raise ArgumentError(
            f"--lora_dropout {wanted:g} has no effect with --disable_dropout true, the default here: drop it, or add "
            "--disable_dropout false."
        )


def _check_streaming(script_args: RecipeArguments, training_args: TrainingArguments) -> None:
    """Refuse to group streamed rows, as the trainers do once the rows are loaded."""
    if script_args.dataset_streaming and training_args.train_sampling_strategy == "group_by_length":
        raise ArgumentError(
            "--train_sampling_strategy group_by_length has no effect with --dataset_streaming true: the lengths of "
            "streamed rows are not known before they come. Drop one of the two."
        )


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
        raise ArgumentError(
            f"--model_name_or_path {name}: its tokenizer cannot be loaded ({first_line(error)})."
        ) from error


def model_init_kwargs(model_args: ModelConfig, training_args: TrainingArguments) -> dict[str, Any]:
    """Return the trainer's `model_init_kwargs` with the options of `ModelConfig` about loading added."""
    return {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
