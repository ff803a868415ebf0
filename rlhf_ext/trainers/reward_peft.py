"""Adapters on a reward model: what must train and be saved whole beside them, and what they cannot have."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from ..dropout import check_adapter_dropout
from ..policy_loading import is_adapter
from ..reward_model.layers import layers_to_save, trained_copy
from ..reward_model.pooling import classification_module, head_name


def check_whole(model: str | nn.Module, revision: str | None) -> None:
    """Refuse the name of an adapter: Transformers would put it, frozen, under a reward head or below another adapter.

    Args:
        model: What the trainer was given.
        revision: Of a model to load.

    Raises:
        ValueError: It is the name of an adapter.
    """
    if isinstance(model, str) and is_adapter(model, revision):
        base = PeftConfig.from_pretrained(model, revision=revision).base_model_name_or_path
        raise ValueError(
            f"{model} is an adapter, which would not be trained: merge it into its base first (merge_and_unload), or "
            f"name that base, {base}. A reward model's adapter is trained on as a PeftModel, loaded with "
            "is_trainable=True."
        )


def check_adapter(model: str | nn.Module, peft_config: PeftConfig | None, *, disable_dropout: bool) -> None:
    """Refuse adapters that would not give a reward model, or have an option without effect.

    Args:
        model: What the trainer was given; a PEFT model has an adapter already.
        peft_config: Of the adapter to add.
        disable_dropout: Of the trainer's configuration.

    Raises:
        ValueError: The task type is another, or a dropout would not be applied.
    """
    task_type = None if peft_config is None else peft_config.task_type or "SEQ_CLS"
    if isinstance(model, PeftModel):
        task_type = model.peft_config[model.active_adapter].task_type
    if (peft_config is not None or isinstance(model, PeftModel)) and task_type != "SEQ_CLS":
        raise ValueError(
            f"the adapter has task_type={str(task_type)!r}, under which the reward head would not be trained, or not "
            "be found again. Use task_type='SEQ_CLS'."
        )
    if disable_dropout:
        check_adapter_dropout(model, peft_config)


def layers_beside(model: str | PreTrainedModel | PeftModel, options: Mapping[str, Any]) -> list[str]:
    """Return the layers that an adapter on the model must save whole, by their names in the base model.

    Args:
        model: What the trainer was given: a name, or a model, perhaps with an adapter.
        options: `revision` and `trust_remote_code` of a model to load.

    Raises:
        OSError: There is no such model.
        ValueError: It cannot become a reward model.
    """
    if isinstance(model, str):
        return layers_to_save(model, **options)
    module = classification_module(model)
    path = module.config._name_or_path
    try:
        layers = layers_to_save(path, **options) if path else []
    except OSError:  # a model that exists in memory only; the folder may be gone, or have been a name
        layers = []
    return layers or [head_name(module)]


def with_layers(peft_config: PeftConfig, layers: Sequence[str]) -> PeftConfig:
    """Return the configuration for a reward model that saves `layers` whole; PEFT adds the head by itself."""
    peft_config = copy(peft_config)
    peft_config.task_type = "SEQ_CLS"
    others = [layer for layer in layers if layer.partition(".")[0] not in ("score", "classifier")]
    if hasattr(peft_config, "modules_to_save"):
        peft_config.modules_to_save = [*(peft_config.modules_to_save or ()), *others]
    return peft_config


def whole_layers(model: PeftModel, layers: Sequence[str]) -> list[nn.Module]:
    """Return the trained copies of `layers`.

    Raises:
        ValueError: One of them is left to the base, where another one will be when the adapter is loaded.
    """
    saved = {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, ModulesToSaveWrapper)}
    covers = {layer: next((n for n in saved if f"{layer}.".startswith(f"{n}.")), None) for layer in layers}
    lost = [layer for layer, name in covers.items() if name is None]
    if lost:
        raise ValueError(
            f"The layers {', '.join(lost)} would stay as they were initialised, and not be saved: name them in "
            "modules_to_save of the adapter's configuration, which must have task_type='SEQ_CLS'."
        )
    return [trained_copy(saved[name]) for name in dict.fromkeys(covers.values())]
