"""Seconds per step and peak memory of our `DPOTrainer` against TRL's, as JSON.

    OMP_NUM_THREADS=2 python benchmarks/dpo_vs_trl.py

Both train the same randomly initialised 40M-parameter Llama with LoRA r=16 on the same batches with the same loss:
TRL's `sigmoid`, and our plugin of the same formula. Time: one process holds both trainers and gives them one step in
turn, so that a slow moment of the machine hits both; the order changes from pair to pair. Memory: each trainer alone in
a process of its own, since a peak belongs to a process. Run it with nothing else on the machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import rlhf_ext
from rlhf_ext.demo import model_path

SIDES = {
    "rlhf_ext": (rlhf_ext.DPOTrainer, rlhf_ext.DPOConfig, "rlhf_ext.losses.dpo:sigmoid"),
    "trl": (trl.DPOTrainer, trl.DPOConfig, "sigmoid"),
}

# Every tensor gets pages of its own and gives them back when it is freed, so that the peak is that of live tensors.
# By default glibc keeps and fragments freed blocks, and the peak varies by several percent from run to run.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}


def make_trainer(side: str, folder: str, batch_size: int) -> trl.DPOTrainer:
    """Build one side's trainer; both start from the same weights and see the same rows."""
    trainer_class, config_class, loss = SIDES[side]
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    path = Path(folder) / "model"
    if not path.exists():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=16000, **shape)).save_pretrained(path)
    words = [f"word{i}" for i in range(50)]
    rows = [
        {
            "prompt": " ".join(words[(i + j) % 50] for j in range(12)),
            "chosen": " " + " ".join(words[(i * 3 + j) % 50] for j in range(12)),
            "rejected": " " + " ".join(words[(i * 7 + j) % 50] for j in range(12)),
        }
        for i in range(256)
    ]
    args = config_class(
        output_dir=folder,
        loss_type=[loss],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=batch_size,
        save_strategy="no",
        disable_tqdm=True,
    )
    return trainer_class(
        str(path),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def step(trainer: trl.DPOTrainer, batch: dict, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step through the trainer's own loss."""
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    optimizer.step()
    optimizer.zero_grad()


def prepare(trainer: trl.DPOTrainer) -> tuple[dict, torch.optim.Optimizer]:
    """Take the first batch, which is the same for both, and make an optimizer."""
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return batch, torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad])


def measure_time(folder: str, pairs: int, batch_size: int) -> dict[str, list[float]]:
    """Alternate single steps of both sides; the first two pairs warm up."""
    sides = {name: make_trainer(name, folder, batch_size) for name in SIDES}
    prepared = {name: prepare(trainer) for name, trainer in sides.items()}
    seconds = {name: [] for name in SIDES}
    for pair in range(pairs + 2):
        for name in list(SIDES) if pair % 2 else list(SIDES)[::-1]:
            start = time.perf_counter()
            step(sides[name], *prepared[name])
            if pair >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(process: int | str = "self") -> float:
    """Peak resident memory of a process in MiB; `getrusage` would report the parent's, if that was higher."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_memory(side: str, folder: str, batch_size: int) -> float:
    """Peak resident memory of three steps, in MiB, minus that after the imports."""
    imports = peak_memory()
    trainer = make_trainer(side, folder, batch_size)
    batch, optimizer = prepare(trainer)
    for _ in range(3):
        step(trainer, batch, optimizer)
    return peak_memory() - imports


def main() -> None:
    """Run both measurements and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="timed steps of each side")
    parser.add_argument("--memory_runs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--memory_of", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, arguments.folder, arguments.batch_size))
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure_time(folder, arguments.pairs, arguments.batch_size)
        memory = {name: [] for name in SIDES}
        for _ in range(arguments.memory_runs):
            for name in SIDES:
                command = [sys.executable, __file__, "--memory_of", name, "--folder", folder]
                command += ["--batch_size", str(arguments.batch_size)]
                environment = {**os.environ, **EXACT_MEMORY}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                memory[name].append(float(done.stdout.split()[-1]))
    result = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    result |= {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    for unit, values in (("seconds_per_step", seconds), ("peak_mib_above_import", memory)):
        for name, numbers in values.items():
            spread = [round(min(numbers), 4), round(max(numbers), 4)]
            result[f"{unit}_{name}"] = {"median": round(statistics.median(numbers), 4), "range": spread}
        ratio = statistics.median(values["rlhf_ext"]) / statistics.median(values["trl"])
        result[f"ratio_{unit}"] = round(ratio, 4)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
