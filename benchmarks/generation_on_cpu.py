"""Seconds of generating on a CPU with each thing that makes it faster here, as JSON.

    OMP_NUM_THREADS=2 python benchmarks/generation_on_cpu.py --model PATH

16 completions of 24 tokens with the model's weights in bfloat16 and in float32, the ways in turn. All
hand the LM head one block of hidden states: without, Transformers takes a minute in bfloat16 (pytorch#151934).
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import time
from contextlib import ExitStack

import torch
from ppo_vs_trl_1_12 import summary
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ext import generation_on_cpu, packed_weights
from rlhf_ext.generation import Decoding, generate
from rlhf_ext.replaced import replaced

WAYS = ("torch.multinomial", "one number a text", "packed weights, too")
PROMPTS = ["Tell me a story about the sea."] * 16


def way(name: str) -> ExitStack:
    """Take back some of what `fast_on_cpu` does. `None` hands a draw over to `torch.multinomial`."""
    stack = ExitStack()
    if name != "packed weights, too":
        stack.enter_context(replaced(packed_weights, MAX_WEIGHTS_OF_ALL=0))
    if name == "torch.multinomial":
        stack.enter_context(replaced(generation_on_cpu, _inverse_transform=lambda _: None))
    return stack


def main() -> None:
    """Time all ways and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new_tokens", type=int, default=24)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    result: dict[str, object] = {"threads": torch.get_num_threads(), "words": len(tokenizer)}
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for number in range(arguments.rounds + 1):  # the first round warms up
            for name, found in seconds.items():
                start = time.perf_counter()
                with way(name):
                    generate(model, tokenizer, PROMPTS, Decoding(seed=number, max_new_tokens=arguments.new_tokens))
                found += [time.perf_counter() - start] if number else []
        result[str(dtype)] = {name: summary(found) for name, found in seconds.items()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
