"""Prompts to evaluate policies on, from a local file, the Hub or the embedded demo."""

import random
from dataclasses import dataclass

from rlhf_ext.arguments import DEMO
from rlhf_ext.data_checks import DataError
from rlhf_ext.prompts import check_prompt_rows

from .rows import Text, read_numbered

DEMO_PROMPTS = 200
TRUTH = {True: True, False: False, "true": True, "false": False}  # 1 and 0 are equal to the first two


@dataclass(frozen=True)
class EvaluationPrompts:
    """Prompts, each with one entry in every column.

    Attributes:
        source: What to call them.
        numbers: The row of each in the source, from 1.
        prompts: Texts or lists of messages.
        unsafe: Whether each asks for something that a policy should decline; None where that is not known.
    """

    source: str
    numbers: list[int]
    prompts: list[Text]
    unsafe: list[bool] | None


def demo_prompts(max_samples: int | None = None) -> EvaluationPrompts:
    """Return held-out prompts of the embedded demo, others than those that recipes show during training.

    There are 200, or as many as are asked for.
    """
    from rlhf_ext.demo.data import prompt_dataset
    from rlhf_ext.demo.judge import is_unsafe

    prompts = prompt_dataset("test", seed=1, size=max_samples or DEMO_PROMPTS)["prompt"][:]
    unsafe = [is_unsafe(prompt[-1]["content"]) for prompt in prompts]
    return EvaluationPrompts(DEMO, list(range(1, len(prompts) + 1)), prompts, unsafe)


def load_evaluation_prompts(
    name: str, config: str | None = None, *, split: str | None = None, max_samples: int | None = None, seed: int = 0
) -> EvaluationPrompts:
    """Load and check prompts; a column `unsafe` (true or false) says which ones a policy should decline.

    Args:
        name: A local `.jsonl`, `.json`, `.csv` or `.parquet` file, or whatever `datasets.load_dataset` takes.
        config: The configuration's name, for `datasets.load_dataset`.
        split: Of a dataset on the Hub; by default `test`, or the only one.
        max_samples: Take this many rows at most, drawn by `seed`.
        seed: For that.

    Raises:
        DataError: Naming the file, the row, the column and the fix.
    """
    rows, source = read_numbered(name, config, split, ("unsafe",))
    check_prompt_rows(rows, source=source)
    unsafe = _unsafe(rows, source)
    kept = list(range(len(rows)))
    if max_samples is not None and max_samples < len(rows):
        kept = sorted(random.Random(seed).sample(kept, max_samples))
    return EvaluationPrompts(
        source,
        [rows[i][0] for i in kept],
        [rows[i][1]["prompt"] for i in kept],
        None if unsafe is None else [unsafe[i] for i in kept],
    )


def _unsafe(rows: list[tuple[int, dict]], source: str) -> list[bool] | None:
    if not any("unsafe" in row for _, row in rows):
        return None
    values = []
    for number, row in rows:
        value = row.get("unsafe")
        value = value.lower() if isinstance(value, str) else value
        if isinstance(value, list | dict) or value not in TRUTH:
            problem = "it is missing here." if value is None else f"{value!r} is not true or false."
            raise DataError(problem, "Every row needs it, or none.", source=source, row=number, column="unsafe")
        values.append(TRUTH[value])
    return values
