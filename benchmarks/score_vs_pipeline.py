"""Texts per second of `RewardModel.score`, as JSON: against Transformers' pipeline, and with and without prompt reuse.

    OMP_NUM_THREADS=2 python benchmarks/score_vs_pipeline.py

A randomly initialised Llama of 40 million parameters in float32 scores 256 texts of 20 to 500 tokens, drawn uniformly;
the pipeline gets batches of 16. Then 16 completions of 40 tokens to one prompt of 400 tokens are scored with prompt
reuse and without. One process gives each side one run in turn, so that a slow moment of the machine hits both, and the
order changes from round to round. Medians and ranges of the rounds are reported, and the largest difference between
the scores of the two sides. Run it with nothing else on the machine.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, TextClassificationPipeline

from rlhf_ext import RewardModel
from rlhf_ext.demo import model_path

SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}


def make_model(tokenizer: transformers.PreTrainedTokenizerBase) -> LlamaForSequenceClassification:
    """Build the model; its vocabulary is larger than the tokenizer's, which costs nothing."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=16000, num_labels=1, pad_token_id=tokenizer.pad_token_id, **SHAPE)
    return LlamaForSequenceClassification(config).eval()


def make_text(tokenizer: transformers.PreTrainedTokenizerBase, tokens: int, rng: random.Random) -> str:
    """Return random words that have exactly so many tokens, with what the tokenizer adds by itself."""
    words = [" egg", " pot", " water", " the", " and", " not", " how", " very"]
    text = ""
    while len(tokenizer(text)["input_ids"]) < tokens:
        text += rng.choice(words)
    ids = tokenizer(text)["input_ids"][:tokens]
    return tokenizer.decode(ids, skip_special_tokens=True)


def compare(sides: dict[str, Callable[[], list[float]]], rounds: int, texts: int) -> dict[str, object]:
    """Give each side one run in turn, after one that does not count."""
    names = list(sides)
    scores = {name: sides[name]() for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else names[::-1]:
            start = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - start)
    first, second = names
    ratios = [slow / fast for fast, slow in zip(seconds[first], seconds[second], strict=True)]
    return {
        "texts_per_second": {name: round(texts / statistics.median(seconds[name]), 2) for name in names},
        "speedup": {
            "median": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        },
        "largest_difference": max(abs(a - b) for a, b in zip(scores[first], scores[second], strict=True)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=16, help="Of the pipeline.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = make_model(tokenizer)
    rng = random.Random(0)
    texts = [make_text(tokenizer, rng.randint(20, 500) - 1, rng) + tokenizer.eos_token for _ in range(args.texts)]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    padded = sum(
        max(lengths[i : i + args.batch_size]) * len(lengths[i : i + args.batch_size])
        for i in range(0, len(lengths), args.batch_size)
    )
    reward_model = RewardModel(model, tokenizer, show_progress=False)
    without = RewardModel(model, tokenizer, reuse_prompts=False, show_progress=False)
    pipeline = TextClassificationPipeline(model=model, tokenizer=tokenizer, function_to_apply="none")

    def run_pipeline() -> list[float]:
        with torch.inference_mode():
            return [result["score"] for result in pipeline(texts, batch_size=args.batch_size)]

    prompt = make_text(tokenizer, 400, rng)
    pairs = [(prompt, make_text(tokenizer, 40, rng)) for _ in range(16)]
    result = {
        "against_pipeline": compare(
            {"rlhf_ext": lambda: reward_model.score(texts), "pipeline": run_pipeline}, args.rounds, len(texts)
        ),
        "prompt_reuse": compare(
            {"with": lambda: reward_model.score(pairs), "without": lambda: without.score(pairs)},
            args.rounds,
            len(pairs),
        ),
        "padding_in_pipeline": round(1 - sum(lengths) / padded, 3),
        "texts": len(texts),
        "rounds": args.rounds,
        "million_parameters": round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
