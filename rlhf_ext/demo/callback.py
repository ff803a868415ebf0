"""Shows during training what no metric of the trainer can: how good the policy's own answers are."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.demo.sample import gold_scores
from rlhf_ext.generation import generate


class GoldScoreCallback(TrainerCallback):
    """Samples answers to held-out prompts at every evaluation and adds their mean gold scores to its metrics.

    Training never sees these scores.
    """

    def __init__(self, prompts: int = 128) -> None:
        self.prompts = prompt_dataset("test", size=prompts)["prompt"]

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
        responses = generate(model, tokenizer, self.prompts, seed=args.seed, batch_size=len(self.prompts))
        scores = gold_scores(self.prompts, responses)
        metrics |= {f"eval_gold/{name}": scores[name] for name in ("helpfulness", "safety")}
