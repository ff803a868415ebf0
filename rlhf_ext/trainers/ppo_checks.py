"""What PPO refuses to begin with: models, data and options of TRL's that do not go with a critic."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoConfig

from ..adapters import has_lora, merged_adapter, tuner_layers
from ..errors import first_line
from ..policy_loading import is_adapter
from ..quantization import is_quantized
from .ppo_config import PPOConfig
from .ppo_options import advantage_name

logger = logging.getLogger(__name__)

# Values under which completions are drawn from the policy's whole distribution.
NEUTRAL_SAMPLING = {
    "top_p": (1.0, None),
    "top_k": (0, None),
    "min_p": (0.0, None),
    "repetition_penalty": (1.0, None),
    "do_sample": (True,),
    "num_beams": (1, None),
    "typical_p": (1.0, None),
    "epsilon_cutoff": (0.0, None),
    "eta_cutoff": (0.0, None),
    "no_repeat_ngram_size": (0, None),
}


def check_dataset_size(dataset: Any, args: PPOConfig) -> None:
    """Raise where no batch could be filled: TRL would drop the rows, and train on nothing.

    Raises:
        ValueError: Fewer prompts than one generation batch holds.
    """
    needed = args.generation_batch_size // args.num_generations
    if isinstance(dataset, Dataset) and len(dataset) < needed:
        raise ValueError(
            f"The dataset has {len(dataset)} prompts, and one batch of completions needs {needed}: give it more, or "
            "lower per_device_train_batch_size, gradient_accumulation_steps or steps_per_generation."
        )


def check_evaluation(args: PPOConfig) -> None:
    """Raise where an evaluation could not be divided into the completions of a prompt.

    Raises:
        ValueError: The completions of a batch are no multiple of those of a prompt; under `rloo`, those of a process.
    """
    generations = args.num_generations_eval or args.num_generations
    is_rloo = advantage_name(args) == "rloo"
    completions = args.per_device_eval_batch_size * (1 if is_rloo else args.world_size)
    if completions % generations:
        raise ValueError(
            f"An evaluation makes {completions} completions at once, and {generations} of each prompt: set "
            "per_device_eval_batch_size to a multiple, or num_generations_eval."
        )
    if is_rloo and generations < 2:
        raise ValueError("'rloo' compares completions of one prompt: set num_generations_eval to 2 or more.")


def check_start(args: PPOConfig) -> None:
    """Raise where the models that scores or the critic come from are not there, before the policy loads.

    Raises:
        ValueError: There is no such model.
    """
    for option in ("reward_adapter", "critic_path"):
        path = getattr(args, option)
        if path is None:
            continue
        try:
            if is_adapter(path):
                PeftConfig.from_pretrained(path)
            else:
                AutoConfig.from_pretrained(path, trust_remote_code=args.trust_remote_code)
        except (OSError, ValueError) as error:
            raise ValueError(f"{option}={path!r}: there is no such model ({first_line(error)}).") from error


def check_scheduler(scheduler: Any) -> None:
    """Raise where a scheduler of one's own was given: it counts the groups of the optimizer, and the critic adds one.

    Raises:
        ValueError: There is one.
    """
    if scheduler is not None:
        raise ValueError(
            "A scheduler of your own knows nothing of the critic's learning rate: leave it out of optimizers, and set "
            "lr_scheduler_type and lr_scheduler_kwargs."
        )


def check_names(names: Sequence[str]) -> None:
    """Raise where metrics of two reward functions would be mixed up.

    Raises:
        ValueError: Two have one name.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Two reward functions are called {twice[0]!r}, and metrics are kept by name: give one another __name__."
        )


def check_engine(args: PPOConfig) -> None:
    """Raise where the engine that the processes were launched with cannot hold a critic.

    Raises:
        ValueError: DeepSpeed, whose engine makes an optimizer of one model's weights, and FSDP1, which flattens them;
            `reward_adapter` under FSDP2, where all processes must make the same number of passes, and
            `merge_adapter_for_generation`, where a process has a part of each weight.
    """
    fsdp_version = (args.fsdp_plugin_args or {}).get("fsdp_version")
    if fsdp_version is None and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        fsdp_version = int(os.environ.get("FSDP_VERSION", "1"))
    if args.deepspeed_plugin is not None or fsdp_version == 1:
        reason = "FSDP1 flattens" if fsdp_version else "DeepSpeed makes its optimizer from"
        raise ValueError(
            f"{reason} the weights of one model, and the critic's lie beside the policy. Use "
            "accelerate_configs/multi_gpu.yaml, with LoRA over 8 or 4 bit, or accelerate_configs/fsdp2.yaml."
        )
    if fsdp_version is not None and args.reward_adapter is not None:
        raise ValueError(
            "reward_adapter does not run under FSDP, where all processes must make the same number of passes: scoring "
            "makes as many as its texts need. Give the reward model as a reward function."
        )
    if fsdp_version is not None and args.merge_adapter_for_generation:
        raise ValueError(
            "merge_adapter_for_generation does not run under FSDP, where a process has a part of each weight: drop it."
        )


def check_vllm(args: PPOConfig, model: Any, quantization: Any = None) -> None:
    """Raise where vLLM would be sent weights that it cannot take: 8- or 4-bit ones, into which adapters are merged.

    Args:
        args: The configuration.
        model: The policy, or its name.
        quantization: The quantization to load it with.

    Raises:
        ValueError: The policy's weights are quantized.
    """
    quantization = quantization or (args.model_init_kwargs or {}).get("quantization_config")
    if getattr(quantization, "dequantize", False):  # loaded from few bits into many, as GPT-OSS is to be trained
        quantization = None
    if args.use_vllm and (quantization or is_quantized(model)):
        raise ValueError(
            "vLLM cannot take the policy's 8- or 4-bit weights (trl#4973), and merging the adapter would round them: "
            "load the policy without load_in_8bit or load_in_4bit, or drop use_vllm."
        )


def check_continuous_batching(args: PPOConfig, policy: nn.Module) -> None:
    """Raise where generation would round the weights that learn: TRL casts the policy for its continuous batching.

    Raises:
        ValueError: A weight that learns is of another type than it would be cast to.
    """
    cast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    if not args.use_transformers_continuous_batching or cast is None:
        return
    if any(weight.dtype != cast for weight in policy.parameters() if weight.requires_grad):
        raise ValueError(
            f"use_transformers_continuous_batching casts the weights that learn to {cast} for good, where small "
            "updates are rounded away: set bf16 and fp16 to False (the base may be in bfloat16), or leave it out."
        )


def check_policy(policy: nn.Module, args: PPOConfig, *, is_multimodal: bool) -> None:
    """Raise where the critic could not read what the policy reads; warn where the policy is not what is drawn from.

    Raises:
        ValueError: Images for a critic that would not see them, or prompt tuning, whose reference passes cannot be told
            from the policy's.
    """
    if is_multimodal and args.critic != "head":
        raise ValueError(f"critic={args.critic!r} would not see the images: use critic='head'.")
    if isinstance(policy, PeftModel) and any(config.is_prompt_learning for config in policy.peft_config.values()):
        raise ValueError("Prompt tuning puts no adapter into the layers, which the critics need: use LoRA.")
    asked = {name: getattr(args, name, neutral[0]) for name, neutral in NEUTRAL_SAMPLING.items()}
    asked |= {name: value for name, value in (args.generation_kwargs or {}).items() if name in NEUTRAL_SAMPLING}
    changed = [f"{name}={value}" for name, value in asked.items() if value not in NEUTRAL_SAMPLING[name]]
    if changed:
        logger.warning(
            "Completions are drawn with %s, and KL and ratio are of the whole distribution: expect them to be off.",
            ", ".join(changed),
        )


def check_merging(policy: nn.Module, rollout_func: Any) -> None:
    """Raise where `merge_adapter_for_generation` has nothing to merge, or the merged policy would be another one.

    Raises:
        ValueError: No LoRA, a quantized base, a weight that another layer shares, an adapter that PEFT cannot merge, or
            a function of the user's that generates.
    """
    option = "merge_adapter_for_generation"
    if rollout_func is not None:
        raise ValueError(f"{option} has no effect with a rollout_func, which generates by itself: drop it.")
    if not has_lora(policy):
        raise ValueError(f"{option} has no effect without LoRA: pass a peft_config (--use_peft), or drop it.")
    quantization = getattr(policy.config, "quantization_config", None)
    if is_quantized(policy) or (quantization is not None and not getattr(quantization, "dequantize", False)):
        raise ValueError(f"{option} would round the adapter to the few bits of a quantized base: drop it.")
    merged = {id(weight) for layer in tuner_layers(policy) for weight in layer.get_base_layer().parameters()}
    users = Counter(id(weight) for _, weight in policy.named_parameters(remove_duplicate=False))
    if any(users[weight] > 1 for weight in merged):
        raise ValueError(
            f"{option} would also change what shares a weight with a layer that has an adapter, as an LM head may with "
            "the embeddings: leave these out of target_modules and trainable_token_indices, or drop it."
        )
    try:
        with merged_adapter(policy):
            pass
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"{option}: PEFT cannot merge this adapter ({error}). Drop the option.") from error
