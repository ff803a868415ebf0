"""Peak memory and tokens per second of PPO on one quantized backbone, as JSON.

    python benchmarks/gpu_ppo_memory.py
    python benchmarks/gpu_ppo_memory.py --size tiny --device cpu

Policy, reference, critic and reward model are LoRA adapters (r=16) on one randomly initialised Llama in 8 or 4 bit;
random weights need the memory and the time of trained ones. Prompts have 512 tokens, completions exactly 512. A few
tokens and a backward pass come first, untimed, and load the kernels. On a GPU the peak is that of PyTorch's allocator,
`allocated` by tensors and `reserved` from the device; on a CPU it is the resident memory of the process, imports
included.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
import transformers
import trl
from datasets import Dataset
from dpo_vs_trl import peak_memory
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from ppo_vs_trl_1_12_side import PhaseClock, word_tokenizer
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PrinterCallback,
)

from rlhf_ext import PPOConfig, PPOTrainer

SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY = {"7b": 32000, "1b": 32000, "tiny": 256}
LORA = {"r": 16, "target_modules": "all-linear"}


def llama_config(size: str) -> LlamaConfig:
    """The shape of the backbone."""
    return LlamaConfig(
        vocab_size=VOCABULARY[size], pad_token_id=0, bos_token_id=None, eos_token_id=1, num_labels=1, **SIZES[size]
    )


def quantized_model(config: LlamaConfig, bits: int, device: str) -> PreTrainedModel:
    """A randomly initialised model, quantized on the way to the device, so that it never exists in full precision.

    All layers get the same random weights: one layer is all that the CPU has to hold.
    """
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).state_dict()
    drawn: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        kind = ".".join(part for part in name.split(".") if not part.isdigit())
        if kind not in drawn:
            weight = torch.empty(shape.shape, dtype=torch.bfloat16)
            drawn[kind] = weight.fill_(1.0) if shape.dim() == 1 else weight.normal_(std=0.02)
    weights = {name: drawn[".".join(part for part in name.split(".") if not part.isdigit())] for name in shapes}
    return LlamaForCausalLM.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.bfloat16,
        device_map={"": device},
        quantization_config=BitsAndBytesConfig(
            load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.bfloat16
        ),
    )


def write_reward_adapter(folder: Path, config: LlamaConfig) -> str:
    """Write a random adapter with a reward head, as `RewardTrainer` would; return its folder."""
    lora = LoraConfig(task_type="SEQ_CLS", **LORA)
    with torch.device("meta"):
        shapes = get_peft_model_state_dict(
            get_peft_model(AutoModelForSequenceClassification.from_config(config), lora), save_embedding_layers=False
        )
    folder.mkdir()
    weights = {name: torch.randn(shape.shape).mul_(0.01) for name, shape in shapes.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    lora.save_pretrained(folder)
    word_tokenizer(config.vocab_size).save_pretrained(folder)
    return str(folder)


def make_trainer(arguments: argparse.Namespace, folder: Path) -> PPOTrainer:
    """Build policy, critic and reward adapter on one backbone."""
    config = llama_config(arguments.size)
    batch, tokens = arguments.batch_size, arguments.prompt_tokens
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, config.vocab_size - 2, (batch * 2, tokens), generator=generator).tolist()
    options: dict[str, Any] = {
        "critic": arguments.critic,
        "reward_adapter": write_reward_adapter(folder / "reward_adapter", config),
        "max_completion_length": arguments.new_tokens,
        "generation_kwargs": {"min_new_tokens": arguments.new_tokens},
        "per_device_train_batch_size": arguments.micro_batch_size,
        "steps_per_generation": batch // arguments.micro_batch_size,
        "num_iterations": arguments.epochs,
        "gradient_checkpointing": True,
        "bf16": arguments.device == "cuda",
        "use_cpu": arguments.device == "cpu",
        "num_train_epochs": 100_000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    options["max_steps"] = PPOConfig(str(folder), **options).steps_per_batch * arguments.updates
    trainer = PPOTrainer(
        quantized_model(config, arguments.bits, arguments.device),
        args=PPOConfig(str(folder), **options),
        train_dataset=Dataset.from_list([{"prompt": " ".join(map(str, words)) + " "} for words in rows]),
        processing_class=word_tokenizer(config.vocab_size),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def warm_up(trainer: PPOTrainer) -> None:
    """Load the kernels: what is used first takes seconds that later updates do not."""
    ids = torch.full((1, 8), 5, device=trainer.model.device)
    trainer.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    trainer.model(ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    trainer.model.zero_grad()


def memory(device: str) -> dict[str, float]:
    """Peak memory so far, in GiB."""
    if device == "cpu":
        return {"resident": round(peak_memory() / 1024, 3)}
    kinds = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {kind: round(value / 2**30, 3) for kind, value in kinds.items()}


def main() -> None:
    """Train for some updates, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--bits", type=int, choices=[4, 8], default=8)
    parser.add_argument("--critic", choices=["head", "adapter"], default="adapter")
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=8, help="completions an update")
    parser.add_argument("--micro_batch_size", type=int, default=1, help="completions a forward and backward pass")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--updates", type=int, default=2, help="timed updates")
    parser.add_argument("--limit_gib", type=float, help="allocate no more than that, as on a smaller GPU")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("There is no CUDA device here. Use --device cpu, with --size tiny.")
    if arguments.device == "cpu" and arguments.limit_gib is not None:
        parser.error("--limit_gib is for a GPU.")
    if arguments.limit_gib is not None:
        torch.cuda.set_per_process_memory_fraction(arguments.limit_gib * 2**30 / torch.cuda.mem_get_info()[1])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(arguments, Path(folder))
        loaded = memory(arguments.device)
        warm_up(trainer)
        clock = PhaseClock(trainer.args.steps_per_batch)
        trainer.add_callback(clock)
        trainer.train()
    updates = clock.updates
    tokens = arguments.batch_size * arguments.new_tokens
    seconds = {phase: statistics.median(update[phase] for update in updates) for phase in updates[0]}
    result = {name: getattr(arguments, name) for name in vars(arguments)}
    result |= {module.__name__: module.__version__ for module in (torch, transformers, trl, bitsandbytes)}
    result["device_name"] = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    result |= {"gib_when_loaded": loaded, "peak_gib": memory(arguments.device)}
    result["seconds_per_update"] = {phase: round(value, 3) for phase, value in seconds.items()}
    result["generated_tokens_per_second"] = round(tokens / seconds["generation"], 1)
    result["trained_tokens_per_second"] = round(tokens / seconds["total"], 1)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
