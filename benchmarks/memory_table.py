"""Bytes that weights, gradients and optimizer of a 7B model need, computed from its shape: the table of the README.

    python benchmarks/memory_table.py

The model is built on the meta device with the shape of Qwen2.5-7B. bitsandbytes quantizes its linear layers and leaves
embeddings, norms and the output layer in bfloat16. LoRA r=16 on every linear layer; adapters are float32, and so are
the gradient and Adam's two numbers for each trained weight. What grows with batch and length is not in it:
activations, key-value cache, logits.
"""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPE = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
GIB = 2**30
BYTES = {
    "bfloat16": 2.0,
    "8 bit": 1.0,
    "4 bit": 0.5 + 4 / 64,
}  # of a linear weight; 4 bit: a float32 scale for 64 of them


def count() -> tuple[int, int, int]:
    """Return how many weights are in quantized layers, in others, and in one adapter."""
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
        linear = sum(
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        )
        total = sum(parameter.numel() for parameter in model.parameters())
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        adapter = sum(weight.numel() for name, weight in adapted.named_parameters() if "lora_" in name)
    return linear, total - linear, adapter


def gibibytes(linear: int, rest: int, adapter: int, *, kind: str, copies: int, adapters: int, trained: int) -> float:
    """Return the GiB of `copies` of the base and `adapters`, of which `trained` have gradients and Adam's moments."""
    base = linear * BYTES[kind] + rest * 2
    return (copies * base + adapters * adapter * 4 + trained * adapter * (4 + 8)) / GIB


def main() -> None:
    """Print the table."""
    linear, rest, adapter = count()
    rows = {
        "SFT, DPO or reward model": {"copies": 1, "adapters": 1, "trained": 1},
        "PPO, one backbone for all four": {"copies": 1, "adapters": 3, "trained": 2},
        "PPO with four models (not ours)": {"copies": 4, "adapters": 2, "trained": 2},
    }
    print(
        f"{(linear + rest) / 1e9:.2f} billion weights, of them {rest / 1e9:.2f} not quantized; an adapter has", end=" "
    )
    print(f"{adapter / 1e6:.0f} million\n| GiB | {' | '.join(BYTES)} |\n|{'---|' * (len(BYTES) + 1)}")
    for name, amounts in rows.items():
        cells = [f"{gibibytes(linear, rest, adapter, kind=kind, **amounts):.1f}" for kind in BYTES]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
