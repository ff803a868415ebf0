"""Does PPO learn? The part of a known optimum that each critic reaches, beside TRL's own RLOO, as JSON and as a table.

    OMP_NUM_THREADS=1 python benchmarks/ppo_learning.py

The policy is a randomly initialised Llama of two layers over 32 words, with LoRA r=8 on every linear layer. The
reward is the part of a completion's 16 places that hold one given word. A random policy gets 1/32; the optimum is 1
and is known. A completion that ends early loses the places behind its end. There is no KL penalty, which would move
the optimum.

All sides start from the same weights, generate the same number of tokens (a batch of 32 completions an update; RLOO:
8 prompts with 4 completions each) and make the same number of optimizer steps, with a learning rate that falls to 0.
`plain` is PPO in plain PyTorch (`plain_ppo.py`), which shares no line with ours.
Every side has the learning rate that was best for it among those of `--search`, which runs them all on seeds that the
table does not use (`plain` those of the `adapter` critic); the critics' own settings were chosen on such seeds, too.
The score comes with the last token only, so lambda is 1. Reported are the
mean reward of 512 completions sampled after training, and the mean reward at quarters of the way, over seeds: median,
lowest to highest.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import plain_ppo
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from ppo_vs_trl_1_12_side import word_tokenizer
from tables import spread
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PrinterCallback
from transformers.utils.logging import disable_progress_bar

from rlhf_ext import PPOConfig, PPOTrainer

WORDS, PLACES, TARGET = 32, 16, 7
BATCH, MINI_BATCHES, EPOCHS, GENERATIONS = 32, 2, 2, 4
CRITICS = PPOConfig.__dataclass_fields__["critic"].metadata["choices"]
SIDES = ["rloo", *CRITICS, "plain"]
# The best of those that `--search` tries.
LEARNING_RATES = {"rloo": 2e-2, "head": 2e-2, "adapter": 2e-2, "model": 2e-2, "plain": 2e-2}
SEARCHED = [5e-3, 1e-2, 2e-2]
CRITIC_OPTIONS: dict[str, dict[str, Any]] = {
    "head": {"critic_learning_rate": 1e-2, "critic_stop_gradient": True},
    "adapter": {"critic_learning_rate": 1e-2},
    "model": {"critic_learning_rate": 5e-3},
}


def part_of_places(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The reward: places that hold the target, over all places."""
    return [ids.count(TARGET) / PLACES for ids in completion_ids]


def prompts() -> list[str]:
    """256 prompts of four words."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, WORDS - 2, (256, 4), generator=generator).tolist()
    return [" ".join(map(str, words)) + " " for words in rows]


def write_policy(folder: Path, seed: int) -> str:
    """Write a randomly initialised policy; return its folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,  # with the usual 0.02 the frozen LM head could not even express the optimum
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer(WORDS).save_pretrained(folder)
    return str(folder)


def make_trainer(
    side: str, policy: str, *, updates: int, learning_rate: float, seed: int, entropy_coef: float = 0.0
) -> trl.GRPOTrainer:
    """Build one side's trainer."""
    options: dict[str, Any] = {
        "output_dir": f"{policy}/out",
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "max_steps": updates * MINI_BATCHES * EPOCHS,
        "num_iterations": EPOCHS,
        "steps_per_generation": MINI_BATCHES,
        "per_device_train_batch_size": BATCH // MINI_BATCHES,
        "max_completion_length": PLACES,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": seed,
    }
    dataset = Dataset.from_dict({"prompt": prompts()})
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    if side == "rloo":
        config = trl.RLOOConfig(**options, num_generations=GENERATIONS, beta=0.0)
        return trl.RLOOTrainer(policy, part_of_places, config, dataset, peft_config=adapter)
    options |= {"critic": side, "init_kl_coef": 0.0, "lam": 1.0, "vf_coef": 0.5, "entropy_coef": entropy_coef}
    config = PPOConfig(**options, **CRITIC_OPTIONS[side])
    return PPOTrainer(policy, part_of_places, config, dataset, peft_config=adapter)


def token_ids(policy: str) -> torch.Tensor:
    """The prompts' tokens."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    return tokenizer(prompts(), return_tensors="pt").input_ids


@torch.no_grad()
def mean_reward(model: PreTrainedModel, ids: torch.Tensor, completions: int = 512) -> float:
    """Mean reward of completions of the training prompts, sampled from the trained policy."""
    ids = ids[torch.arange(completions) % len(ids)]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": PLACES, "do_sample": True, "top_k": 0}
    written = model.eval().generate(input_ids=ids, **options)[:, ids.size(1) :]
    return statistics.mean(part_of_places(written.tolist()))


def train_plain(policy: str, *, updates: int, learning_rate: float, seed: int) -> tuple[PreTrainedModel, list[float]]:
    """Train with PPO in plain PyTorch; return the policy and the rewards."""
    rates = (learning_rate, CRITIC_OPTIONS["adapter"]["critic_learning_rate"])
    sizes = plain_ppo.Sizes(BATCH, MINI_BATCHES, EPOCHS, PLACES)
    options = {"updates": updates, "learning_rates": rates, "seed": seed}
    return plain_ppo.train(policy, token_ids(policy), part_of_places, sizes, **options)


def train_trainer(side: str, policy: str, **options: Any) -> tuple[PreTrainedModel, list[float]]:
    """Train with a trainer of ours or TRL's; return the policy and the rewards."""
    trainer = make_trainer(side, policy, **options)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model, [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


def run(side: str, *, updates: int, learning_rate: float, seed: int, entropy_coef: float = 0.0) -> dict[str, Any]:
    """Train one side with one seed."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        policy = write_policy(Path(folder), seed)
        options: dict[str, Any] = {"updates": updates, "learning_rate": learning_rate, "seed": seed}
        if side == "plain":
            model, rewards = train_plain(policy, **options)
        else:
            model, rewards = train_trainer(side, policy, **options, entropy_coef=entropy_coef)
        quarters = [statistics.mean(rewards[updates * i // 4 : updates * (i + 1) // 4]) for i in range(4)]
        return {
            "side": side,
            "seed": seed,
            "learning_rate": learning_rate,
            "generated_tokens": updates * BATCH * PLACES,
            "optimum_reached": round(mean_reward(model, token_ids(policy)), 4),
            "mean_reward_by_quarter": [round(quarter, 4) for quarter in quarters],
            "seconds": round(time.perf_counter() - start, 1),
        }


def table(runs: list[dict[str, Any]]) -> str:
    """One row a side and learning rate."""
    columns = ["side", "learning rate", "seeds", "optimum reached", *(f"quarter {i}" for i in (1, 2, 3, 4))]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for side, rate in dict.fromkeys((run["side"], run["learning_rate"]) for run in runs):
        same = [run for run in runs if (run["side"], run["learning_rate"]) == (side, rate)]
        cells = [spread([run["optimum_reached"] for run in same], 3)]
        cells += [spread([run["mean_reward_by_quarter"][i] for run in same], 3) for i in range(4)]
        lines.append(f"| {side} | {rate:g} | {len(same)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run every side with every seed; print JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--entropy_coef", type=float, default=0.0, help="of the entropy bonus of our critics")
    parser.add_argument("--search", action="store_true", help="try several learning rates, on seeds of their own")
    arguments = parser.parse_args()
    if arguments.entropy_coef and not {*arguments.sides} <= {*CRITICS}:
        parser.error("--entropy_coef has no effect on rloo and plain: leave them out with --sides")
    disable_progress_bar()
    first = 1000 if arguments.search else 0
    runs = []
    for seed in range(first, first + arguments.seeds):
        for side in arguments.sides:
            for rate in SEARCHED if arguments.search else [LEARNING_RATES[side]]:
                options = {"updates": arguments.updates, "entropy_coef": arguments.entropy_coef}
                runs.append(run(side, learning_rate=rate, seed=seed, **options))
                print(runs[-1], file=sys.stderr, flush=True)
    print(json.dumps({"torch": torch.__version__, "trl": trl.__version__, "runs": runs}, indent=2))
    print(table(runs))


if __name__ == "__main__":
    main()
