"""Several LoRA adapters on one frozen base: switching between them, and taking in a reward model's.

The base is the policy's; a critic or a reward model is nothing but another adapter on it, and a head.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from .reward_model.base_fingerprint import base_fingerprint
from .reward_model.pooling import HEAD_NAMES, classification_module, head_of
from .reward_model.settings import RewardModelSettings, dtype_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinearHead:
    """Weights of a reward head: `hidden @ weight.T + bias` is the score, with mean 0 on the held-out data."""

    weight: Tensor  # (1, d)
    bias: Tensor  # (1,)


def tuner_layers(model: nn.Module) -> list[BaseTunerLayer]:
    """Return the layers that hold adapters."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Return the weights of the adapter `name`, by the keys that PEFT saves them under: without that name.

    It is inside of most weights' names (`lora_A.NAME.weight`), and at the end of those of LoRA on embeddings
    (`lora_embedding_A.NAME`). Of DoRA's `lora_magnitude_vector.NAME.weight`, PEFT also leaves out the end.
    """
    mark, magnitude = f".{name}.", ".lora_magnitude_vector"
    found = {}
    for key, parameter in model.named_parameters():
        if mark in f"{key}.":
            key = f"{key}.".replace(mark, ".").removesuffix(".")
            found[key.replace(f"{magnitude}.weight", magnitude)] = parameter
    return found


@contextmanager
def active_adapter(layers: Iterable[BaseTunerLayer], name: str) -> Iterator[None]:
    """Run the passes inside with the adapter `name`, and restore what was active, whatever happens.

    `PeftModel.set_adapter` also takes `requires_grad` from the adapters that it leaves, upon which autograd drops their
    gradients without a word. Which weights learn does not change here.
    """
    before = [(layer, layer._active_adapter) for layer in layers]
    for layer, _ in before:
        layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, adapters in before:
            layer._active_adapter = adapters


@contextmanager
def base_as_it_was(model: nn.Module) -> Iterator[None]:
    """Give the base its own weights back at the end, after adapters were merged into them.

    PEFT subtracts them again, as TRL has it do after sending weights to vLLM. In bfloat16 a sixth of the weights are
    others then, and errors add up (trl#6688): the adapter would be trained on another base than it is saved for, and
    reference, critic and reward model run on it too. The copy is kept in the memory of the CPU.
    """
    layers = tuner_layers(model)
    weights = [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    before = [weight.detach().to("cpu", copy=True) for weight in weights]
    try:
        yield
    finally:
        for layer in layers:
            if layer.merged:
                layer.unmerge()
        for weight, values in zip(weights, before, strict=True):
            weight.data.copy_(values)


@contextmanager
def merged_adapter(model: PeftModel) -> Iterator[None]:
    """Run the passes inside with the active adapter merged into the base, which saves all of its own products."""
    with base_as_it_was(model):
        model.merge_adapter()
        yield


def as_pass_of(model: nn.Module, function: nn.Module) -> Callable[..., Any]:
    """Return a part of the model as a pass of the whole, for which FSDP gathers the weights that belong to no layer."""
    if not isinstance(model, FSDPModule):
        return function
    model.pass_of_part = function.__call__
    register_fsdp_forward_method(model, "pass_of_part")
    return model.pass_of_part


def causal_lm_of(policy: nn.Module) -> nn.Module:
    """Return the language model inside the wrappers of adapters."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def has_lora(model: nn.Module) -> bool:
    """Whether the model is a LoRA adapter on a base, by the name that PEFT and TRL give the first adapter."""
    return isinstance(model, PeftModel) and isinstance(model.peft_config["default"], LoraConfig)


def require_lora(policy: nn.Module, option: str) -> PeftModel:
    """Return the policy, if it is a LoRA adapter on a frozen base.

    Raises:
        ValueError: It is not.
    """
    if not has_lora(policy):
        raise ValueError(f"{option} needs a LoRA policy, whose base stays frozen: pass a peft_config (--use_peft).")
    if policy.peft_config["default"].modules_to_save:
        raise ValueError(f"{option} needs a base that no adapter replaces parts of: drop modules_to_save.")
    return policy


def add_reward_adapter(policy: PeftModel, path: str, name: str) -> LinearHead:
    """Add the adapter of a reward model to the policy, under `name`, frozen, with the dtypes that it was saved with.

    Args:
        policy: A LoRA adapter on the base that the reward model was trained from too.
        path: A folder that `RewardTrainer` wrote.
        name: What to call the adapter.

    Returns:
        The reward model's head.

    Raises:
        ValueError: There is no such adapter, it is no reward model's, or it does not fit the base.
    """
    config, weights, head = _read(path)
    config.task_type, config.modules_to_save, config.inference_mode = None, None, True
    policy.add_adapter(name, config, autocast_adapter_dtype=False)
    placed = get_peft_model_state_dict(policy, adapter_name=name)
    wrong = set(placed) ^ set(weights) or {key for key in placed if placed[key].shape != weights[key].shape}
    if reason := min(wrong, default=None) or _other_base(policy, RewardModelSettings.load(path), path):
        policy.delete_adapter(name)
        raise ValueError(
            f"{path}: this adapter does not fit the policy's base ({reason}). It must be trained from the same one."
        )
    for key, parameter in adapter_parameters(policy, name).items():
        parameter.data = weights[key].to(parameter.device)
        parameter.requires_grad_(False)
    return head


def _other_base(policy: PeftModel, settings: RewardModelSettings, path: str) -> str | None:
    """Say how the base differs from the one in training, if it does; warn where it is kept otherwise and may differ."""
    if settings.base is None:
        return None
    base = policy.get_base_model()
    quantization = getattr(base.config, "quantization_config", None)
    kept = _form(base.dtype, None if quantization is None else quantization.to_dict())
    trained = _form(settings.dtype, settings.quantization)
    if kept == trained:
        return None if base_fingerprint(policy) == settings.base else "of the same shape, with other weights"
    logger.warning(
        "%s was trained on a base in %s, and the policy's is in %s: scores differ a little, and whether it is the same "
        "base cannot be told.",
        *(path, trained, kept),
    )
    return None


def _form(dtype: Any, quantization: dict[str, Any] | None) -> str:
    """Say how weights are kept."""
    bits = [number for number in (8, 4) if (quantization or {}).get(f"load_in_{number}bit")]
    return ", ".join([dtype_name(dtype), *(f"{number} bit" for number in bits)])


def read_reward_head(path: str) -> LinearHead:
    """Return the head of a reward model, full or an adapter.

    Raises:
        ValueError: It is no reward model.
    """
    if Path(path, "adapter_config.json").is_file():
        return _read(path)[2]
    from .reward_model import RewardModel

    return head_of_reward_model(RewardModel.from_pretrained(path, device="cpu"))


def head_of_reward_model(reward_model: Any) -> LinearHead:
    """Return the head of a loaded `RewardModel`."""
    head = head_of(classification_module(reward_model.model))
    return _head(head.weight.detach(), getattr(head, "bias", None), reward_model.settings)


def _read(path: str) -> tuple[PeftConfig, dict[str, Tensor], LinearHead]:
    """Return configuration, weights on the base, and the head of a reward model's adapter."""
    try:
        config = PeftConfig.from_pretrained(path)
        weights = load_peft_weights(path, device="cpu")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: there is no adapter of a reward model here ({reason}).") from error
    heads = {key: weights.pop(key) for key in list(weights) if any(f".{name}." in key for name in HEAD_NAMES)}
    if not isinstance(config, LoraConfig) or not any(key.endswith("weight") for key in heads):
        raise ValueError(
            f"{path}: this is no LoRA adapter with a reward head. Train one with recipes/reward.py --use_peft."
        )
    by_kind = {key.rpartition(".")[2]: tensor for key, tensor in heads.items()}
    return config, weights, _head(by_kind["weight"], by_kind.get("bias"), RewardModelSettings.load(path))


def _head(weight: Tensor, bias: Tensor | None, settings: RewardModelSettings) -> LinearHead:
    bias = torch.zeros(1) if bias is None else bias.detach().float().cpu()
    return LinearHead(weight.float().cpu(), bias - settings.score_offset)
