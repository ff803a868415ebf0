"""Run the 7B configurations of `recipes/configs` on one GPU, and print memory and time of each as a table.

    python benchmarks/gpu_configs.py --bits 8

The recipes run as a user runs them, with `--config`, on a randomly initialised Llama of Qwen2.5-7B's sizes (random
weights need the memory and the time of trained ones) and on rows of the full `max_length`, for a few optimizer steps.
SFT, DPO and reward model run first, then PPO with the reward model's adapter and the whole batch of completions that
its configuration has. `--together` starts the first three side by side, for a GPU with room for them: memory is each
one's own, but time is not worth reporting then. Peak memory is that of PyTorch's allocator, tensors and reserved.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from memory_table import SHAPE
from ppo_vs_trl_1_12_side import word_tokenizer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_ext.output_files import write_jsonl

ROOT = Path(__file__).parents[1]
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
SHORTER = {  # than the configuration says, so that a run takes a minute; memory does not depend on them
    "logging_steps": 1,
    "save_strategy": "no",
    "max_eval_samples": 8,
    "report_to": "none",
}
ROWS = {"sft": 48, "reward": 48, "dpo": 48, "ppo": 160}  # PPO generates the configuration's 128 completions at once


def write_checkpoint(folder: Path, shape: dict[str, Any]) -> None:
    """Write a random model, a file a layer; all layers get the same weights, so that it is quickly drawn."""
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=0, dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(config).state_dict().items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"  # where normal numbers are quickly drawn
    drawn: dict[str, torch.Tensor] = {}
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, size in shapes.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        kind = name.replace(layer[0], "") if layer else name
        if kind not in drawn:
            weight = torch.empty(size, dtype=torch.bfloat16, device=device)
            drawn[kind] = (weight.fill_(1.0) if len(size) == 1 else weight.normal_(std=0.02)).cpu()
        files.setdefault(f"model-{layer[1] if layer else 'rest'}.safetensors", {})[name] = drawn[kind]
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    word_tokenizer(config.vocab_size).save_pretrained(folder)
    for file, weights in files.items():
        save_file(weights, folder / file, metadata={"format": "pt"})
    index = {name: file for file, weights in files.items() for name in weights}
    size = sum(2 * shape.numel() for shape in shapes.values())
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def write_data(folder: Path, vocabulary: int, length: int) -> dict[str, Path]:
    """Write rows whose prompt and answer have `length` tokens together; return the files by recipe."""
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        return " ".join(map(str, torch.randint(0, vocabulary - 2, (count,), generator=generator).tolist()))

    prompt, answer = length // 2, length - length // 2 - 1  # the last token is the end of the text
    rows = [
        {"prompt": words(prompt) + " ", "chosen": words(answer), "rejected": words(answer)}
        for _ in range(max(ROWS.values()))
    ]
    kinds = {
        "sft": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows],
        "reward": rows,
        "dpo": rows,
        "ppo": [{"prompt": row["prompt"]} for row in rows],
    }
    for kind, found in kinds.items():
        write_jsonl(folder / f"{kind}.jsonl", found[: ROWS[kind]])
    return {kind: folder / f"{kind}.jsonl" for kind in kinds}


def command(arguments: argparse.Namespace, kind: str, data: Path, model: Path) -> list[str]:
    """The command line of a recipe with its configuration."""
    config = ROOT / "recipes" / "configs" / f"{kind}_7b_lora_{arguments.bits}bit.yaml"
    options = SHORTER | {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": arguments.output / f"{kind}-{arguments.bits}bit",
        "max_steps": arguments.steps,
    }
    if kind == "ppo":
        reward = arguments.output / f"reward-{arguments.bits}bit"
        options |= {"reward_adapter": reward, "critic_path": reward, "critic_warmup_steps": 0, "num_iterations": 1}
        options["max_completion_length"] = arguments.new_tokens
    else:
        options |= {"max_length": arguments.length, "gradient_accumulation_steps": 2}
    if arguments.cpu:
        options |= {"use_cpu": "true", "bf16": "false", "dtype": "float32"}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, str(ROOT / "recipes" / f"{kind}.py"), "--config", str(config), *flags]


def start(arguments: argparse.Namespace, kind: str, data: Path, model: Path) -> subprocess.Popen[bytes]:
    """Start a recipe, with a log beside its folder."""
    with open(arguments.output / f"{kind}-{arguments.bits}bit.log", "wb") as log:
        return subprocess.Popen(command(arguments, kind, data, model), stdout=log, stderr=subprocess.STDOUT)


def finished(arguments: argparse.Namespace, kinds: list[str], files: dict[str, Path], model: Path) -> Iterator[str]:
    """Run recipes, side by side or one after the other; yield those that ended well, and print the log of others."""
    groups = [kinds] if arguments.together else [[kind] for kind in kinds]
    for group in groups:
        running = {kind: start(arguments, kind, files[kind], model) for kind in group}
        for kind, process in running.items():
            if process.wait() == 0:
                yield kind
            else:
                log = (arguments.output / f"{kind}-{arguments.bits}bit.log").read_text(errors="replace")
                print(f"{kind} failed:\n{log[-3000:]}", flush=True)


def row(folder: Path) -> str:
    """Return the table's row of a run: what its report says of memory, and the seconds of a step."""
    peak = re.search(r"([\d.]+) GiB on the GPU \(([\d.]+) reserved\)", (folder / "report.html").read_text())
    memory = list(peak.groups()) if peak else ["no GPU", ""]
    measured = json.loads((folder / "all_results.json").read_text())
    state = json.loads((folder / "trainer_state.json").read_text())
    seconds = measured["train_runtime"] / state["global_step"]
    return f"| {folder.name} | {' | '.join([*memory, f'{seconds:.2f}'])} |"


def main() -> None:
    """Write model and data, run the recipes, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, choices=[4, 8], default=8)
    parser.add_argument("--recipes", nargs="+", choices=["sft", "reward", "dpo", "ppo"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024, help="tokens of prompt and answer; PPO's prompts: half")
    parser.add_argument("--new_tokens", type=int, default=512, help="of a completion that PPO samples")
    parser.add_argument("--together", action="store_true", help="all but PPO side by side")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, with --tiny: no memory is measured")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_configs"))
    arguments = parser.parse_args()
    if not (arguments.cpu or torch.cuda.is_available()):
        parser.error("There is no CUDA device here. Use --cpu with --tiny.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    shape = SHAPE | TINY if arguments.tiny else SHAPE
    model = arguments.output / "model"
    if not (model / "model.safetensors.index.json").is_file():
        write_checkpoint(model, shape)
    files = write_data(arguments.output, shape["vocab_size"], arguments.length)
    asked = arguments.recipes or ["sft", "reward", "dpo", "ppo"]
    began = time.perf_counter()
    device = "CPU" if arguments.cpu else torch.cuda.get_device_name()
    print(f"| {device} | GiB of tensors | GiB reserved | seconds a step |")
    print("|---|---|---|---|", flush=True)
    for kinds in ([kind for kind in asked if kind != "ppo"], [kind for kind in asked if kind == "ppo"]):
        for kind in finished(arguments, kinds, files, model) if kinds else ():
            print(row(arguments.output / f"{kind}-{arguments.bits}bit"), flush=True)
    print(f"{time.perf_counter() - began:.0f} seconds in all")


if __name__ == "__main__":
    main()
