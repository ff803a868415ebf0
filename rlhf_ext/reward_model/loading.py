"""Loading a reward model from a folder or the Hub so that its scores are those of training, or saying why not."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import first_line
from .base_fingerprint import base_fingerprint
from .layers import cast_inputs, layers_to_save, quiet, trained_copy, unquantized
from .pooling import HEAD_NAMES, head_name
from .settings import FILE_NAME, RewardModelSettings, dtype_name

logger = logging.getLogger(__name__)

LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
ADAPTER_WEIGHTS = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
NAME_BASE = "Name the right one as `base_model=` in Python, or as base_model_name_or_path in adapter_config.json."
HOW_TO_TRAIN = "Train a reward model from it with recipes/reward.py (RewardTrainer), and load that run's folder."


class RewardModelError(ValueError):
    """What was loaded is no usable reward model; the message says why and what to do."""


def load_settings(path: str, revision: str | None = None) -> RewardModelSettings:
    """Read `reward_model.json` of a folder or a model on the Hub; neutral settings where there is none.

    Raises:
        RewardModelError: The file holds something impossible, or there is no such model.
    """
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        found = cached_file(path, FILE_NAME, revision=revision, **optional)
        return RewardModelSettings() if found is None else RewardModelSettings.read(found)
    except OSError as error:
        raise RewardModelError(_no_such_model(path, error)) from error
    except ValueError as error:
        raise RewardModelError(str(error)) from error


def _no_such_model(path: str, error: Exception) -> str:
    if Path(path).is_dir():
        return f"{path}: there is no model in this folder ({first_line(error)}). Check the name, or the folder."
    return f"{path}: there is no such folder, nor such a model on the Hub ({first_line(error)}). Check the name."


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Say of which model a file is missing or damaged."""
    try:
        yield
    except RewardModelError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        problem = f"one of its files is missing or damaged ({first_line(error)})"
        raise RewardModelError(f"{path}: {problem}. Copy it again, or load an earlier checkpoint.") from error


def load_tokenizer(path: str, revision: str | None = None, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a reward model.

    Raises:
        RewardModelError: There is none.
    """
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        names = ("config.json", "adapter_config.json")
        if not any(Path(path, name).is_file() for name in names):
            raise RewardModelError(_no_such_model(path, error)) from error
        raise RewardModelError(
            f"{path}: its tokenizer cannot be loaded ({first_line(error)}). Copy that of training into the folder, or "
            "pass it as `tokenizer=` in Python."
        ) from error


def load_model(
    path: str,
    settings: RewardModelSettings,
    *,
    quantization_config: BitsAndBytesConfig | bool | None,
    dtype: str | torch.dtype | None,
    device: torch.device,
    base_model: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel | PeftModel:
    """Load a full reward model, or an adapter on its base.

    Args:
        path: Folder or name on the Hub.
        settings: What lies beside it.
        quantization_config: For the model or the adapter's base; False or None loads it unquantized.
        dtype: Of the weights; by default that of training, or that of the checkpoint.
        device: Where to put it.
        base_model: Base of the adapter, where it is not where the adapter says.
        revision: Of a model on the Hub.
        trust_remote_code: Allow code that comes with the model.

    Raises:
        RewardModelError: It is no reward model, its head is missing, or the adapter does not fit the base.
    """
    options = {
        "dtype": dtype or settings.dtype or "auto",
        "quantization_config": quantization_config,
        "device_map": {"": device},
        "trust_remote_code": trust_remote_code,
    }
    adapter = find_adapter_config_file(path, revision=revision)
    if adapter is None:
        if base_model is not None:
            raise RewardModelError(f"{path} is a full model, so base_model={base_model!r} has no effect. Drop it.")
        model, missing = _load_classifier(path, options | {"revision": revision})
        heads = [key for key in missing if key.startswith(HEAD_NAMES)]
        if heads:
            raise RewardModelError(f"{path}: the checkpoint has no reward head ({', '.join(heads)}). {HOW_TO_TRAIN}")
        if missing:
            raise RewardModelError(f"{path}: weights are missing from the checkpoint ({_shorten(missing)}).")
        return model
    trained = settings.dtype, bool(settings.quantization)
    fingerprint = settings.base
    if fingerprint is not None and (dtype_name(options["dtype"]), bool(quantization_config)) != trained:
        fingerprint = None
        logger.warning(
            "%s: its base is loaded in another dtype or quantization than in training, so that it cannot be told "
            "whether it is the one of training.",
            path,
        )
    return _load_adapter(path, revision, base_model, options, fingerprint)


def _load_classifier(path: str, options: dict[str, Any], *, is_base: bool = False) -> tuple[PreTrainedModel, list[str]]:
    """Load a sequence-classification model with one output; return it and the names of weights that it lacks.

    Args:
        path: Folder or name on the Hub.
        options: For `from_pretrained`.
        is_base: Whether an adapter will make it a reward model, and bring what it lacks.
    """
    options = dict(options)
    known = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    try:
        config = AutoConfig.from_pretrained(path, **known)
    except (OSError, ValueError) as error:
        raise RewardModelError(_no_such_model(path, error)) from error
    if not is_base:
        _check_config(path, config)
    quantization = options.pop("quantization_config")
    is_quantized = getattr(config, "quantization_config", None) is not None
    if is_quantized and quantization is False:
        raise RewardModelError(f"{path}: the checkpoint is quantized, so quantization_config=False has no effect.")
    try:
        if quantization and not is_quantized:  # else absent, not None, which would override the checkpoint's own
            options["quantization_config"] = unquantized(quantization, layers_to_save(path, **known))
        with quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=1, output_loading_info=True, **options
            )
        head_name(model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RewardModelError(f"{path}: it cannot be loaded as a reward model ({first_line(error)}).") from error
    return model.eval(), sorted(report["missing_keys"])


def _check_config(path: str, config: PretrainedConfig) -> None:
    architecture = (config.architectures or [""])[0]
    if architecture.endswith(LANGUAGE_MODELS):
        raise RewardModelError(f"{path} is a language model ({architecture}), not a reward model. {HOW_TO_TRAIN}")
    if not architecture.endswith("ForSequenceClassification"):
        raise RewardModelError(f"{path} ({architecture or 'of no architecture'}) has no reward head. {HOW_TO_TRAIN}")
    if config.num_labels != 1:
        raise RewardModelError(
            f"{path} is a classifier with num_labels={config.num_labels}; a reward model has num_labels=1. "
            f"{HOW_TO_TRAIN}"
        )


def _load_adapter(
    path: str, revision: str | None, base_model: str | None, options: dict[str, Any], fingerprint: str | None
) -> PeftModel:
    with _readable(path):
        config = PeftConfig.from_pretrained(path, revision=revision)
    if config.task_type != "SEQ_CLS":
        raise RewardModelError(
            f"{path} is an adapter with task_type={config.task_type!r}; a reward model's has 'SEQ_CLS'. {HOW_TO_TRAIN}"
        )
    base_name = base_model or config.base_model_name_or_path
    if not base_name:
        raise RewardModelError(f"{path}: the adapter does not say which base it belongs to. {NAME_BASE}")
    try:
        base, missing = _load_classifier(base_name, options | {"revision": config.revision}, is_base=True)
    except RewardModelError as error:
        hint = "" if base_model else f" This is the base that the adapter names. If it has moved: {NAME_BASE}"
        raise RewardModelError(f"{path}: {error}{hint}") from error
    with _readable(path):
        if Path(path).is_dir() and not any(Path(path, name).is_file() for name in ADAPTER_WEIGHTS):
            raise FileNotFoundError(f"there is no {ADAPTER_WEIGHTS[0]}")
        saved = load_peft_weights(path, device="cpu", **({"revision": revision} if revision else {}))
    own = {key.removeprefix("base_model.").removeprefix("model.") for key in saved}
    if not any(key.startswith(f"{head_name(base)}.") for key in own):
        raise RewardModelError(
            f"{path}: the adapter holds no reward head. It must be among `modules_to_save` in training, which "
            f"task_type='SEQ_CLS' sees to. {HOW_TO_TRAIN}"
        )
    if lost := [key for key in missing if key not in own]:
        raise RewardModelError(
            f"{path}: neither {base_name} nor the adapter holds {_shorten(lost)}. These layers must be among "
            f"`modules_to_save` in training, which RewardTrainer sees to. {HOW_TO_TRAIN}"
        )
    try:
        with quiet():
            model = PeftModel.from_pretrained(base, path, config=config, autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, KeyError) as error:
        raise RewardModelError(_another_base(path, base_name, first_line(error))) from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    # Below LoRA on the embeddings PEFT saves these too, in case they were resized, and has loaded them by now.
    saved = {key: weight for key, weight in saved.items() if not key.endswith(".base_layer.weight")}
    if set(saved) != set(expected):
        differing = sorted(set(saved) ^ set(expected))
        raise RewardModelError(_another_base(path, base_name, f"of one only: {_shorten(differing)}"))
    if fingerprint is not None and base_fingerprint(model) != fingerprint:
        reason = "its weights are others; delete 'base' from reward_model.json if you want this one all the same"
        raise RewardModelError(_another_base(path, base_name, reason))
    _take_exactly(model, saved)
    return model.eval()


def _another_base(path: str, base: str, reason: str) -> str:
    return f"{path}: the adapter does not fit {base}; it was trained on another base ({reason}). {NAME_BASE}"


def _take_exactly(model: PeftModel, saved: dict[str, torch.Tensor]) -> None:
    """Put the saved tensors in place with their own dtypes: PEFT casts them to the base's, which changes scores."""
    for name, parameter in model.named_parameters():
        key = name.replace(".modules_to_save.default", "").replace(".default", "")
        if key in saved and "original_module" not in name:
            parameter.data = saved[key].to(parameter.device)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            cast_inputs(trained_copy(module))


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are not numbers.

    Raises:
        RewardModelError: Naming the first such weight.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.is_meta and not torch.isfinite(weight).all():
            raise RewardModelError(
                f"the weight {name} holds NaN or infinity, so that no score would be a number. The training run "
                "diverged, or the file is damaged: load an earlier checkpoint."
            )


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for; by default the accelerator of this process, or the CPU.

    Raises:
        RewardModelError: There is no such device here.
    """
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        return torch.device(accelerator.type, torch.accelerator.current_device_index())
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise RewardModelError(f"there is no device {str(device)!r} here ({first_line(error)}).") from error


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def as_path(path: str | Path) -> str:
    """Return a folder as text, with `~` expanded."""
    return str(Path(path).expanduser()) if isinstance(path, Path) or str(path).startswith("~") else str(path)
