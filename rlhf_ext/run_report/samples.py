"""Completions of held-out prompts before and after training, with the scores of whatever judges them."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

from ..context import context_length
from ..demo.gold import GoldScoreCallback
from ..evaluation.rows import text_of
from ..formatting import Place, chat_options
from ..generation import Decoding, Prompt, encode_prompt, generate
from ..output_files import write_jsonl

FILE_NAME = "samples.jsonl"
SHOWN = 6
Judge = Callable[[list[Prompt], list[str]], list[float]]


@dataclass(frozen=True)
class Completions:
    """Completions with their scores, column by column.

    Attributes:
        prompts: What was asked.
        texts: The completions.
        scores: By the name of what scored them, one for each completion; None where it had nothing to say.
    """

    prompts: list[Prompt] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    scores: dict[str, list[float | None]] = field(default_factory=dict)


class SampleCallback(TrainerCallback):
    """Keeps completions of held-out prompts from the evaluations before and after training.

    Those of PPO and GRPO are made by the evaluation itself, and on the demo those of other trainers by a
    `GoldScoreCallback` that was added before this one. Else a few are sampled here.

    Args:
        trainer: A TRL trainer.
        rows: Held-out rows as they were loaded.
        judges: What to score sampled completions with, by name.

    Attributes:
        before: Completions from before training; None where none were made.
        after: The same from after it.
    """

    def __init__(self, trainer: Trainer, rows: Any, judges: Mapping[str, Judge] | None = None) -> None:
        self.trainer, self.judges = trainer, judges or {}
        self.before: Completions | None = None
        self.after: Completions | None = None
        self.prompts: list[Prompt] = []
        self.template_options: list[dict[str, Any]] = []
        args = trainer.args
        self._evaluation_samples = isinstance(trainer, GRPOTrainer)
        callbacks = trainer.callback_handler.callbacks
        self._gold = next((callback for callback in callbacks if isinstance(callback, GoldScoreCallback)), None)
        if self._evaluation_samples:
            limits = (args.max_completion_length, args.temperature, args.top_p, args.top_k)
            self.decoding = Decoding(*limits, seed=args.seed)
        else:
            self.decoding = Decoding(seed=args.seed)
            if self._gold is None and isinstance(rows, Dataset):
                found = held_out_prompts(rows, trainer, SHOWN, self.decoding.max_new_tokens)
                self.prompts = [prompt for prompt, _ in found]
                self.template_options = [options for _, options in found]

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes samples, unless training is under way and they would cost time."""
        if state.global_step == 0:
            self.before = self._take()
        elif self._evaluation_samples or control.should_training_stop or state.global_step >= state.max_steps:
            self.after = self._take()

    def rows(self, count: int = SHOWN) -> list[dict[str, Any]]:
        """Return prompts with their completions and scores before and after, as far as there are any."""
        taken = {name: part for name in ("before", "after") if (part := getattr(self, name)) is not None}
        by_prompt: dict[str, dict[str, Any]] = {}
        for name, completions in taken.items():
            for index, prompt in enumerate(completions.prompts):
                row = by_prompt.setdefault(_key(prompt), {"prompt": prompt})
                if name not in row:
                    scores = {judge: values[index] for judge, values in completions.scores.items()}
                    row |= {name: completions.texts[index], f"scores_{name}": scores}
        return [row for row in by_prompt.values() if all(name in row for name in taken)][:count]

    def save(self, folder: str | Path) -> None:
        """Write `rows` to `samples.jsonl`, each with the settings of sampling."""
        write_jsonl(Path(folder, FILE_NAME), (row | {"decoding": asdict(self.decoding)} for row in self.rows()))

    def _take(self) -> Completions | None:
        if self._evaluation_samples:
            return self._logged()
        prompts, texts = self.prompts, sample(self.trainer, self.prompts, self.decoding, self.template_options)
        if self._gold is not None:
            prompts, texts = self._gold.prompts, self._gold.responses
        if not texts:
            return None
        return Completions(prompts, texts, {name: judge(prompts, texts) for name, judge in self.judges.items()})

    def _logged(self) -> Completions:
        """Return those completions of the evaluation that TRL still holds, as many as fit into a generation batch."""
        logs = self.trainer._logs
        weights = dict(zip(self.trainer.reward_func_names, self.trainer.reward_weights.tolist(), strict=True))
        wanted = Counter(_key(prompt) for prompt in self._evaluated_prompts())
        found = []
        for index in reversed(range(len(logs["prompt"]))):
            key = _key(logs["prompt"][index])
            if wanted[key]:  # others are left over from training
                wanted[key] -= 1
                found.append(index)
        found.reverse()
        counted = [name for name, weight in weights.items() if weight]
        shown = [name for name in weights if counted != [name]]  # the only one that counts is the reward itself
        scores: dict[str, list[float | None]] = defaultdict(list)
        for index in found:
            given = {name: logs["rewards"][name][index] for name in weights}
            scores["reward"].append(
                sum(weights[name] * score for name, score in given.items() if not math.isnan(score))
            )
            for name in shown:
                scores[name].append(None if math.isnan(given[name]) else given[name])
        texts = [text_of(logs["completion"][index]) for index in found]
        return Completions([logs["prompt"][index] for index in found], texts, dict(scores))

    def _evaluated_prompts(self) -> Iterator[Prompt]:
        datasets = self.trainer.eval_dataset
        for dataset in datasets.values() if isinstance(datasets, dict) else [datasets]:
            yield from (row["prompt"] for row in dataset)


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)


def held_out_prompts(
    dataset: Dataset, trainer: Trainer, count: int, max_new_tokens: int
) -> list[tuple[Prompt, dict[str, Any]]]:
    """Return the first `count` prompts that leave room for an answer, with their keywords for the chat template.

    A prompt is the column of that name, or messages but the last. Rows of plain text, and conversations that the
    assistant opens, have none.
    """
    if "prompt" in dataset.column_names:
        rows = ((row["prompt"], row) for row in dataset)
    elif "messages" in dataset.column_names:
        rows = ((row["messages"][:-1], row) for row in dataset if len(row["messages"]) > 1)
    else:
        return []
    prompts = ((prompt, chat_options(row)) for prompt, row in rows)
    room = (context_length(trainer.model) or math.inf) - max_new_tokens

    def fits(prompt: Prompt, options: dict[str, Any]) -> bool:
        return len(encode_prompt(trainer.processing_class, prompt, Place("prompts"), **options)) <= room

    return list(islice((pair for pair in prompts if fits(*pair)), count))


def sample(
    trainer: Trainer,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    template_options: Sequence[Mapping[str, Any]] | None = None,
) -> list[str]:
    """Return the policy's answers, on the main process; nothing on others, and where no process has all weights."""
    is_sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if is_sharded or not prompts or not trainer.is_world_process_zero():
        return []
    model = trainer.accelerator.unwrap_model(trainer.model)
    return generate(model, trainer.processing_class, prompts, decoding, template_options=template_options)
