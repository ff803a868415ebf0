"""Loading policies: a model, or an adapter on its base, to go on training or to write completions."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, check_target_module_exists
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.utils.peft_utils import find_adapter_config_file
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.utils import create_model_from_path

from .arguments import ArgumentError
from .errors import first_line
from .quantization import keep_gradients_on_cpu

# Options of `ModelConfig` that say what an adapter is, and what they are called in its configuration.
SHAPE = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_task_type": "task_type",
}


def trainer_options(model_args: ModelConfig, training_args: TrainingArguments) -> dict[str, Any]:
    """Return what a TRL trainer takes as `model`, `quantization_config` and `peft_config`.

    TRL loads a model by its name. Where the name is that of an adapter, as recipes/sft.py leaves one, the adapter is
    loaded here, on the base it names and trainable, and `training_args.model_init_kwargs` is used up.

    Raises:
        ArgumentError: The adapter's base cannot be loaded, or an option contradicts the adapter.
    """
    name, quantization = model_args.model_name_or_path, get_quantization_config(model_args)
    if not is_adapter(name, model_args.model_revision):
        return {"model": name, "quantization_config": quantization, "peft_config": get_peft_config(model_args)}
    revision = model_args.model_revision
    config = PeftConfig.from_pretrained(name, revision=revision)
    _check_shape(name, config, model_args)
    options = {**(training_args.model_init_kwargs or {}), "revision": config.revision}
    options["trust_remote_code"] = getattr(training_args, "trust_remote_code", False)
    if quantization is not None:
        options["quantization_config"] = quantization
    if training_args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None  # every process holds the whole model
    base = _load_base(name, config, lambda base: create_model_from_path(base, **options))
    training_args.model_init_kwargs = None
    if hasattr(config, "lora_dropout"):
        config.lora_dropout = model_args.lora_dropout  # how to train, and no part of the weights
    model = PeftModel.from_pretrained(base, name, config=config, is_trainable=True, revision=revision)
    _check_target_modules(name, model, model_args)
    return {"model": model}


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether a folder, or a model on the Hub, is an adapter without its base."""
    if Path(name).is_dir():
        # A folder may hold a whole model and, of a later training, an adapter: the model counts, as it does for TRL.
        return Path(name, "adapter_config.json").is_file() and not Path(name, "config.json").is_file()
    return find_adapter_config_file(name, revision=revision) is not None


def _check_shape(name: str, config: PeftConfig, model_args: ModelConfig) -> None:
    """Refuse options for a new adapter that the loaded one does not have."""
    default = type(model_args)()
    for option, key in SHAPE.items():
        wanted, found = getattr(model_args, option), getattr(config, key, None)
        is_given = option in getattr(model_args, "options_given", ()) or wanted != getattr(default, option)
        is_same = {*wanted} == {*(found or ())} if isinstance(wanted, list) else wanted == found
        if is_given and not is_same:
            raise ArgumentError(_no_effect(option, wanted, name, found))


def _check_target_modules(name: str, model: PeftModel, model_args: ModelConfig) -> None:
    """Refuse `--lora_target_modules` that names other layers than the adapter has, in whatever way it names them."""
    wanted = model_args.lora_target_modules
    if wanted is None:
        return
    base = model.get_base_model()
    # PEFT resolves "all-linear", and leaves everything else as it is.
    config = _maybe_include_all_linear_layers(LoraConfig(target_modules=wanted, task_type="CAUSAL_LM"), base)
    adapted = {path for path, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    within = tuple(f"{path}." for path in adapted)
    layers = (path for path, _ in base.named_modules() if not path.startswith(within))
    if {path for path in layers if check_target_module_exists(config, path)} != adapted:
        found = sorted({path.rpartition(".")[2] for path in adapted})
        raise ArgumentError(_no_effect("lora_target_modules", wanted, name, found))


def _no_effect(option: str, wanted: Any, name: str, found: Any) -> str:
    wanted, found = (" ".join(map(str, value)) if isinstance(value, list) else value for value in (wanted, found))
    return (
        f"--{option} {wanted} has no effect: {name} is an adapter with {found}, which is trained on. Drop the option."
    )


def load_policy(
    name: str, *, dtype: str | None = "auto", load_in_8bit: bool = False, load_in_4bit: bool = False
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a causal language model, or an adapter on its base, and its tokenizer, to write completions with.

    Args:
        name: Folder or name on the Hub.
        dtype: Of the weights; "auto" for that of the checkpoint.
        load_in_8bit: Quantize the weights.
        load_in_4bit: The same, to 4 bits.

    Raises:
        ArgumentError: There is no such model.
    """
    tokenizer = load_policy_tokenizer(name)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if load_in_8bit or load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=load_in_8bit, load_in_4bit=load_in_4bit)
    try:
        if is_adapter(name):
            config = PeftConfig.from_pretrained(name)
            base = _load_base(name, config, lambda base: AutoModelForCausalLM.from_pretrained(base, **options))
            model = PeftModel.from_pretrained(base, name)
        else:
            model = AutoModelForCausalLM.from_pretrained(name, **options)
    except ArgumentError:
        raise
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{name}: it cannot be loaded as a language model ({first_line(error)}).") from error
    keep_gradients_on_cpu(model)  # the same kernels as in training
    return model.eval(), tokenizer


def load_policy_tokenizer(name: str, option: str = "") -> PreTrainedTokenizerBase:
    """Load a policy's tokenizer, which is quick and shows whether there is such a model at all.

    Args:
        name: Folder or name on the Hub.
        option: What named it, such as "--model_name ", for the error.

    Raises:
        ArgumentError: There is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{option}{name}: its tokenizer cannot be loaded ({first_line(error)}).") from error


def _load_base(name: str, config: PeftConfig, load: Any) -> PreTrainedModel:
    if config.task_type not in ("CAUSAL_LM", None):
        raise ArgumentError(f"{name} is an adapter with task_type={config.task_type!r}, and no language model's.")
    try:
        return load(config.base_model_name_or_path)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{name}: the base that the adapter names, {config.base_model_name_or_path}, cannot be loaded "
            f"({first_line(error)})."
        ) from error
