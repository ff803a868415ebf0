"""PPO on a real model and real prompts with a reward that is a plain function, as JSON and as a table.

    OMP_NUM_THREADS=2 python benchmarks/ppo_sentiment.py --model PATH --data FOLDER

The policy is a LoRA adapter over an 8-bit base; the prompts are instructions and questions that people wrote
(`sft_selfinstruct_seed`, and the last questions of `pref_hh_harmless`); the reward is VADER's compound sentiment of
the completion, from -1 to 1, a word list without a model. Before and after, on the same held-out prompts: sentiment,
the KL divergence from the base per completion, and the base's perplexity of the completions, which tells whether they
are still language. A seed whose results are in the output folder is not run again.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tables import spread
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.logps import completion_logps
from rlhf_ext.output_files import read_jsonl

MICRO_BATCH = 8
COLUMNS = {"sentiment": "sentiment", "kl": "KL, nats", "perplexity": "perplexity under the base"}


class Sentiment:
    """The reward. It remembers the last completions, for their perplexity."""

    __name__ = "sentiment"

    def __init__(self) -> None:
        self.analyzer = SentimentIntensityAnalyzer()
        self.seen: list[tuple[str, str]] = []

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        """VADER's compound score of each completion."""
        self.seen += zip(prompts, completions, strict=True)
        return [self.analyzer.polarity_scores(text)["compound"] for text in completions]


def read_prompts(folder: Path, max_characters: int = 160) -> list[str]:
    """The short prompts of both files, each once, as a question to be continued."""
    asked = [row["prompt"] for row in read_jsonl(folder / "sft_selfinstruct_seed.jsonl")]
    for row in read_jsonl(folder / "pref_hh_harmless.jsonl"):
        prompt = row["prompt"]
        asked.append(prompt if isinstance(prompt, str) else prompt[-1]["content"])
    short = [text.strip() for text in asked if 0 < len(text.strip()) <= max_characters]
    return [f"Question: {text}\nAnswer:" for text in dict.fromkeys(short)]


@torch.no_grad()
def perplexity(base: Any, tokenizer: Any, texts: list[tuple[str, str]]) -> float:
    """The base's perplexity of completions, over all their tokens."""
    pairs = []
    for prompt, completion in texts:
        first = tokenizer(prompt, return_tensors="pt").input_ids[0]
        second = tokenizer(completion, add_special_tokens=False, return_tensors="pt").input_ids[0].long()
        if len(second):
            pairs.append((first, second))
    logps = torch.cat(completion_logps(base, pairs, batch_size=4))
    return torch.exp(-logps.mean()).item()


def run(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train with one seed; return what was measured before and after."""
    prompts = Dataset.from_dict({"prompt": read_prompts(arguments.data)}).shuffle(seed=0)
    evaluated = arguments.evaluated
    train, held_out = prompts.select(range(evaluated, len(prompts))), prompts.select(range(evaluated))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    reward = Sentiment()
    args = PPOConfig(
        str(arguments.output / f"seed-{seed}"),
        seed=seed,
        learning_rate=arguments.learning_rate,
        critic_learning_rate=1e-3,
        init_kl_coef=0.05,
        kl_horizon=200,
        max_steps=arguments.updates * 2 * (arguments.completions // MICRO_BATCH),
        per_device_train_batch_size=MICRO_BATCH,
        steps_per_generation=arguments.completions // MICRO_BATCH,
        gradient_accumulation_steps=1,
        num_iterations=2,
        max_completion_length=arguments.max_completion_length,
        per_device_eval_batch_size=evaluated,
        logging_steps=2 * (arguments.completions // MICRO_BATCH),
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.accelerator.is_available(),
        model_init_kwargs={"dtype": arguments.dtype, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    targets = arguments.lora_target_modules
    targets = "all-linear" if targets == ["all-linear"] else targets
    adapter = LoraConfig(r=arguments.lora_r, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    trainer = PPOTrainer(arguments.model, reward, args, train, held_out, tokenizer, peft_config=adapter)
    trainer.remove_callback(PrinterCallback)
    base = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval().to(trainer.model.device)

    def evaluate() -> dict[str, float]:
        reward.seen.clear()
        torch.manual_seed(seed)
        metrics = trainer.evaluate()
        fluent = perplexity(base, tokenizer, reward.seen)
        return {"sentiment": metrics["eval_reward"], "kl": metrics["eval_kl/k1"], "perplexity": fluent}

    before, start = evaluate(), time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    clipped = [entry["clip_fraction"] for entry in trainer.state.log_history if "clip_fraction" in entry]
    curve = [round(entry["reward"], 3) for entry in trainer.state.log_history if "clip_fraction" in entry]
    return {
        "seed": seed,
        "before": before,
        "after": evaluate(),
        "clip_fraction": statistics.mean(clipped),
        "sentiment of each update": curve,
        "seconds": round(seconds),
        "samples": [completion for _, completion in reward.seen[:4]],
    }


def table(runs: list[dict[str, Any]]) -> str:
    """One row before training and one after."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for when in ("before", "after"):
        cells = [spread([run[when][name] for run in runs]) for name in COLUMNS]
        lines.append(f"| {when} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run every seed; print JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--data", type=Path, required=True, help="folder with the two files of prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--completions", type=int, default=16, help=f"of an update, a multiple of {MICRO_BATCH}")
    parser.add_argument("--evaluated", type=int, default=32, help="held-out prompts")
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--max_completion_length", type=int, default=24)
    parser.add_argument("--dtype", default="float32", help="of what is not quantized")
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_target_modules", nargs="+", help="layers with adapters; default: PEFT's for the model")
    parser.add_argument("--output", type=Path, default=Path("runs/ppo_sentiment"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in arguments.seeds:
        path = arguments.output / f"seed-{seed}.json"
        if not path.is_file():
            path.write_text(json.dumps(run(arguments, seed)))
        runs.append(json.loads(path.read_text()))
        print(json.dumps(runs[-1]), flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
