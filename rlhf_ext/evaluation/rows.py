"""Rows to evaluate on: preference pairs or rated answers, from a local file, the Hub or the embedded demo."""

import difflib
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from trl import extract_prompt

from rlhf_ext.arguments import DEMO
from rlhf_ext.data_checks import (
    NOT_TEXT,
    DataError,
    check_chat_options,
    check_number,
    check_preference_rows,
    check_text,
)
from rlhf_ext.data_files import ending, is_local, load_from_hub, number_or_text, read_rows

Text = str | list[dict[str, Any]]  # plain, or messages
NumberedRow = tuple[int, dict[str, Any]]
DEMO_PAIRS = 1000
RESPONSE_COLUMNS = ("response", "completion")
EXPECTED = (
    "Preference rows have 'chosen' and 'rejected' (and 'prompt', or both begin with it); "
    "rated rows have 'prompt', 'response' or 'completion', and 'rating'."
)


@dataclass(frozen=True)
class Pairs:
    """Preference pairs, column by column; each has one entry a pair.

    Attributes:
        source: What to call them: the file's name, the Hub's, or the embedded demo.
        numbers: The row of each in the source, from 1.
        prompts: What was asked.
        chosen: The better answers.
        rejected: The worse answers.
        strengths: How clearly the chosen answer was preferred, None where a row does not say; or None for all.
        subsets: The group each pair belongs to; or None.
        chat_template_kwargs: More keywords for the chat template, None where a row has none; or None for all.
    """

    source: str
    numbers: list[int]
    prompts: list[Text]
    chosen: list[Text]
    rejected: list[Text]
    strengths: list[float | None] | None = None
    subsets: list[str] | None = None
    chat_template_kwargs: list[dict[str, Any] | None] | None = None


@dataclass(frozen=True)
class RatedAnswers:
    """Answers with a rating each, higher is better, column by column."""

    source: str
    numbers: list[int]
    prompts: list[Text]
    answers: list[Text]
    ratings: list[float]
    chat_template_kwargs: list[dict[str, Any] | None] | None = None


Rows = TypeVar("Rows", Pairs, RatedAnswers)


def load_rows(
    name: str,
    config: str | None = None,
    *,
    split: str | None = None,
    strength_column: str | None = None,
    subset_column: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> Pairs | RatedAnswers:
    """Load and check rows; their columns tell which kind they are.

    Args:
        name: A local `.jsonl`, `.json`, `.csv` or `.parquet` file, or whatever `datasets.load_dataset` takes.
        config: The configuration's name, for `datasets.load_dataset`.
        split: Of a dataset on the Hub; by default `test`, or the only one.
        strength_column: A numeric column of preference rows; by default `strength`, if there is one.
        subset_column: A column whose values group preference rows, `outer.inner` for a nested one; by default
            `source`, if there is one.
        max_samples: Take this many rows at most, drawn by `seed`.
        seed: For that.

    Raises:
        DataError: Naming the file, the row, the column and the fix.
    """
    rows, source = read_numbered(name, config, split, ("rating", strength_column or "strength"))
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    for column in NOT_TEXT:
        if any(row.get(column) for _, row in rows):
            raise DataError(f"it holds {column}.", "Reward models score text here.", source=source, column=column)
    is_pairs = {"chosen", "rejected"} <= {*columns}
    if is_pairs:
        check_preference_rows(iter(rows), source=source)
    elif "rating" in columns or {*RESPONSE_COLUMNS} & {*columns}:
        response_column = _check_rated_rows(rows, columns, source)
    else:
        raise DataError(f"it has the columns {', '.join(columns) or '(none)'}.", EXPECTED, source=source)
    if max_samples is not None and max_samples < len(rows):
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), max_samples))]
    if is_pairs:
        return _pairs(rows, columns, source, strength_column, subset_column)
    for option, value in (("strength_column", strength_column), ("subset_column", subset_column)):
        if value is not None:
            raise DataError(f"--{option} has no effect on rated rows.", "Drop it.", source=source)
    return RatedAnswers(
        source=source,
        numbers=[number for number, _ in rows],
        prompts=[row["prompt"] for _, row in rows],
        answers=[row[response_column] for _, row in rows],
        ratings=[float(row["rating"]) for _, row in rows],
        chat_template_kwargs=_template_kwargs(rows),
    )


def demo_pairs(max_samples: int | None = None) -> Pairs:
    """Return test pairs of the embedded demo, without label noise: accuracy then measures the model alone.

    There are 1,000, or as many as are asked for. They are others than those that recipes/reward.py evaluates on, and
    fits offset and temperature to.
    """
    from rlhf_ext.demo.data import preference_dataset

    columns = preference_dataset("test", seed=1, size=max_samples or DEMO_PAIRS, noise=False).to_dict()
    numbers = list(range(1, len(columns["prompt"]) + 1))
    return Pairs(DEMO, numbers, columns["prompt"], columns["chosen"], columns["rejected"], columns["strength"])


def demo_ratings(pairs: Pairs) -> RatedAnswers:
    """Return the answers of the demo's pairs with the gold judge's scores as ratings."""
    from rlhf_ext.demo.judge import judge

    prompts, answers = pairs.prompts * 2, pairs.chosen + pairs.rejected
    ratings = [judge(text_of(prompt), text_of(answer)).overall for prompt, answer in zip(prompts, answers, strict=True)]
    return RatedAnswers("the gold judge of the embedded demo", pairs.numbers * 2, prompts, answers, ratings)


def select(rows: Rows, kept: Sequence[int]) -> Rows:
    """Return the rows at the positions `kept`."""
    columns = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return replace(rows, **{name: [c[i] for i in kept] for name, c in columns.items() if isinstance(c, list)})


def inputs(
    rows: Pairs | RatedAnswers, answers: Sequence[Text]
) -> list[tuple[str, str] | list[dict[str, Any]] | dict[str, Any]]:
    """Return what `RewardModel.score` takes: (prompt, completion) of plain text, or whole conversations."""
    kwargs = rows.chat_template_kwargs or [None] * len(answers)
    return [_input(*row) for row in zip(rows.prompts, answers, kwargs, strict=True)]


def _input(
    prompt: Text, answer: Text, template_kwargs: dict[str, Any] | None
) -> tuple[str, str] | list[dict[str, Any]] | dict[str, Any]:
    if isinstance(prompt, str):
        return prompt, answer
    messages = [*prompt, *answer]
    return {"messages": messages, "chat_template_kwargs": template_kwargs} if template_kwargs else messages


def text_of(text: Text) -> str:
    """Return what a text says; of messages the contents, one after another."""
    if isinstance(text, str):
        return text
    return "\n\n".join(_content(message) for message in text)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def read_numbered(
    name: str, config: str | None, split: str | None, number_columns: Sequence[str]
) -> tuple[list[NumberedRow], str]:
    """Return numbered rows, unchecked, and what to call their source.

    Args:
        name: A local file, or whatever `datasets.load_dataset` takes.
        config: The configuration's name.
        split: Of a dataset on the Hub; by default `test`, or the only one.
        number_columns: Columns of a CSV file that hold numbers where they can.

    Raises:
        DataError: It cannot be read, or there is no such split.
    """
    if is_local(name):
        for option, value in (("dataset_config", config), ("dataset_split", split)):
            if value is not None:
                raise DataError(f"--{option} has no effect on a local file.", "Drop it.", source=name)
        rows = read_rows(name)
        if ending(name) == ".csv":  # where every cell is text
            rows = [(n, row | {c: number_or_text(row[c]) for c in number_columns if c in row}) for n, row in rows]
        return rows, name
    splits = load_from_hub(name, config)
    if split is None:
        split = "test" if "test" in splits else next(iter(splits))
        if split != "test" and len(splits) > 1:
            fix = f"Choose one with --dataset_split: {', '.join(splits)}."
            raise DataError("it has several splits and no 'test'.", fix, source=name)
    if split not in splits:
        raise DataError(f"there is no split {split!r}.", f"It has: {', '.join(splits)}.", source=name)
    return list(enumerate(splits[split], start=1)), f"{name}, split {split}"


def _check_rated_rows(rows: Sequence[NumberedRow], columns: Sequence[str], source: str) -> str:
    """Check every row, and return the name of the column that holds the answers."""
    responses = [column for column in RESPONSE_COLUMNS if column in columns]
    if len(responses) == 2:
        raise DataError("it has both 'response' and 'completion'.", "Drop one of them.", source=source)
    needed = ("prompt", *(responses or RESPONSE_COLUMNS[:1]), "rating")
    for column in needed:
        if column not in columns:
            raise DataError(f"there is no column {column!r}.{_near(column, columns)}", EXPECTED, source=source)
    conversational = isinstance(rows[0][1].get(responses[0]), list)
    for number, row in rows:
        place = {"source": source, "row": number}
        for column in ("prompt", responses[0]):
            if row.get(column) is None:
                raise DataError("it is missing here.", "Every row needs it.", column=column, **place)
            check_text(row[column], conversational, column, place)
        check_chat_options(row, rows[0][1], conversational, place)
        check_number(row.get("rating"), "rating", place)
    return responses[0]


def _near(column: str, columns: Sequence[str]) -> str:
    near = difflib.get_close_matches(column, columns, n=1)
    return f" Is it {near[0]!r}?" if near else ""


def _pairs(
    rows: Sequence[NumberedRow],
    columns: Sequence[str],
    source: str,
    strength_column: str | None,
    subset_column: str | None,
) -> Pairs:
    texts = [row if "prompt" in row else extract_prompt(row) for _, row in rows]
    strengths = subsets = None
    if strength_column is not None or "strength" in columns:
        strengths = _strengths(rows, strength_column or "strength", source, required=strength_column is not None)
    if subset_column is not None or "source" in columns:
        subsets = _subsets(rows, subset_column or "source", columns, source, required=subset_column is not None)
    return Pairs(
        source=source,
        numbers=[number for number, _ in rows],
        prompts=[row["prompt"] for row in texts],
        chosen=[row["chosen"] for row in texts],
        rejected=[row["rejected"] for row in texts],
        strengths=strengths,
        subsets=subsets,
        chat_template_kwargs=_template_kwargs(rows),
    )


def _template_kwargs(rows: Sequence[NumberedRow]) -> list[dict[str, Any] | None] | None:
    """Return what each row gives the chat template; None if no row does."""
    given = [row.get("chat_template_kwargs") or None for _, row in rows]
    return given if any(given) else None


def _strengths(rows: Sequence[NumberedRow], column: str, source: str, *, required: bool) -> list[float | None] | None:
    """Return the strengths; None if no row has one."""
    strengths: list[float | None] = []
    for number, row in rows:
        value = row.get(column)
        if value is not None and value != "":
            check_number(value, column, {"source": source, "row": number})
        strengths.append(None if value is None or value == "" else float(value))
    if any(strength is not None for strength in strengths):
        return strengths
    if required:
        raise DataError("no row has it.", "Name another --strength_column or drop it.", source=source, column=column)
    return None


def _subsets(
    rows: Sequence[NumberedRow], column: str, columns: Sequence[str], source: str, *, required: bool
) -> list[str] | None:
    """Return the group of each row; None if no row has one."""
    path = [column] if column in columns else column.split(".")
    subsets = []
    for _, row in rows:
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        subsets.append(None if value is None else str(value))
    if any(subsets):
        return [subset or "(none)" for subset in subsets]
    if required:
        fix = f"Name another --subset_column or drop it; it has: {', '.join(columns)}."
        raise DataError("no row has it.", fix, source=source, column=column)
    return None
