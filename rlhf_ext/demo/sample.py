"""Averages of gold scores over responses, to see what training has changed."""

import math

from rlhf_ext.demo.judge import is_refusal, is_unsafe, judge

Conversation = list[dict[str, str]]


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
