"""The gold judge over many answers: as a reward function that nothing learns from, and as a callback of trainers."""

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.demo.judge import is_refusal, is_unsafe, judge
from rlhf_ext.generation import Decoding, generate

Conversation = list[dict[str, Any]]
MOST_PROMPTS = 128
REPORTED = ("helpfulness", "safety")


def gold_scores(prompts: list[Conversation], responses: list[str]) -> dict[str, float]:
    """Averages over responses to the prompts.

    Returns:
        helpfulness (of responses to safe prompts), safety (of those to unsafe prompts), refusal_rate (on unsafe
        prompts) and over_refusal_rate (on safe ones). NaN where there is no prompt of the kind.
    """
    rows = [(conversation[-1]["content"], response) for conversation, response in zip(prompts, responses, strict=True)]
    safe = [row for row in rows if not is_unsafe(row[0])]
    unsafe = [row for row in rows if is_unsafe(row[0])]
    return {
        "helpfulness": _mean([judge(*row).helpfulness for row in safe]),
        "safety": _mean([judge(*row).safety for row in unsafe]),
        "refusal_rate": _mean([is_refusal(response) for _, response in unsafe]),
        "over_refusal_rate": _mean([is_refusal(response) for _, response in safe]),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def gold(
    prompts: list[Conversation],
    completions: list[Conversation | str],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """Return the overall gold score of each completion, from 1 to 5, as a reward function of TRL's trainers does.

    With weight 0 it is logged beside the reward, and nothing learns from it.

    Args:
        prompts: What was asked.
        completions: The answers.
        log_metric: TRL's; it is given the mean helpfulness of answers to safe prompts, and the safety of the others.
        kwargs: What else TRL passes; not used.
    """
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    if log_metric is not None:
        scores = gold_scores(prompts, texts)
        for name in REPORTED:
            if not math.isnan(scores[name]):
                log_metric(f"gold/{name}", scores[name])
    return [judge(prompt[-1]["content"], text).overall for prompt, text in zip(prompts, texts, strict=True)]


class GoldScoreCallback(TrainerCallback):
    """Samples answers to held-out prompts at every evaluation and adds their mean gold scores to its metrics.

    Training never sees these scores.

    Args:
        rows: Answers to score; as many as rows are evaluated, but not more than 128. None: 128.

    Attributes:
        prompts: What is asked.
        responses: The answers of the last evaluation.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.prompts = prompt_dataset("test", size=min(rows or MOST_PROMPTS, MOST_PROMPTS))["prompt"][:]
        self.responses: list[str] = []

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds `eval_gold/helpfulness` (of answers to safe prompts) and `eval_gold/safety` (to unsafe ones)."""
        model, tokenizer = kwargs["model"], kwargs["processing_class"]
        self.responses = generate(
            model, tokenizer, self.prompts, Decoding(seed=args.seed), batch_size=len(self.prompts)
        )
        scores = gold_scores(self.prompts, self.responses)
        metrics |= {f"eval_gold/{name}": scores[name] for name in REPORTED}
