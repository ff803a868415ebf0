"""Samples responses from a model and averages their gold scores, to see what training has changed."""

import math
from typing import TYPE_CHECKING

from rlhf_ext.demo.judge import is_refusal, is_unsafe, judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Conversation = list[dict[str, str]]


def sample_responses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[Conversation],
    *,
    seed: int,
    max_new_tokens: int = 96,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> list[str]:
    """One response per prompt, sampled from the whole distribution (no top-k, no top-p).

    The tokenizer, the model's mode and the global random state are left as they were.
    """
    import torch

    def generate(batch: list[Conversation]) -> list[str]:
        inputs = tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    padding_side, training = tokenizer.padding_side, model.training
    responses: list[str] = []
    try:
        tokenizer.padding_side = "left"
        model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch_size):
                responses += generate(prompts[start : start + batch_size])
    finally:
        tokenizer.padding_side = padding_side
        model.train(training)
    return responses


def gold_scores(prompts: list[Conversation], responses: list[str]) -> dict[str, float]:
    """Averages over responses to the prompts.

    Returns:
        helpfulness (of responses to safe prompts), safety (of those to unsafe prompts), overall, refusal_rate (on
        unsafe prompts) and over_refusal_rate (on safe ones). NaN where there is no prompt of the kind.
    """
    rows = [(conversation[-1]["content"], response) for conversation, response in zip(prompts, responses, strict=True)]
    safe = [row for row in rows if not is_unsafe(row[0])]
    unsafe = [row for row in rows if is_unsafe(row[0])]
    return {
        "helpfulness": _mean([judge(*row).helpfulness for row in safe]),
        "safety": _mean([judge(*row).safety for row in unsafe]),
        "overall": _mean([judge(*row).overall for row in rows]),
        "refusal_rate": _mean([is_refusal(response) for _, response in unsafe]),
        "over_refusal_rate": _mean([is_refusal(response) for _, response in safe]),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
