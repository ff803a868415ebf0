"""Refusing bad data: one clear line, before any model loads.

A `DataError` names the file, the row (1 is the first; in `.jsonl` files it is the line), the column and the fix.
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from datasets import Dataset, IterableDataset
from trl import extract_prompt

from .surrogates import WHOLE_CHARACTERS, surrogate_problem

STREAMED_ROWS_CHECKED = 1000
NOT_TEXT = ("image", "images", "tools")  # columns that only TRL's trainers read
CHAT_OPTIONS = ("tools", "chat_template_kwargs")  # columns that concern conversations


class DataError(ValueError):
    """Bad data. The message names the place and the fix."""

    def __init__(
        self, problem: str, fix: str, *, source: str, row: int | None = None, column: str | None = None
    ) -> None:
        place = "".join([source, f", row {row}" if row else "", f", column {column!r}" if column else ""])
        super().__init__(f"{place}: {problem} {fix}")


def check_preference_rows(
    rows: Iterable[tuple[int, dict[str, Any]]], extra_columns: Sequence[str] = (), *, source: str
) -> None:
    """Check numbered rows of preference data, explicit or implicit prompt, plain or conversational, in one pass.

    Raises:
        DataError: Naming the first bad row.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise DataError("it holds no rows.", "Give it at least one.", source=source)
    columns = _find_columns(first[1], extra_columns, source)
    conversational = isinstance(first[1]["chosen"], list)
    prompt_is_repeated = "prompt" in columns
    for number, row in chain([first], rows):
        place = {"source": source, "row": number}
        if "prompt" in row and "prompt" not in columns:
            fix = "Give every row a prompt or none."
            raise DataError("earlier rows have no prompt.", fix, column="prompt", **place)
        for column in columns:
            if row.get(column) is None:
                raise DataError("it is missing here.", "Every row needs it.", column=column, **place)
            if column in extra_columns:
                check_number(row[column], column, place)
            else:
                check_text(row[column], conversational, column, place)
        check_chat_options(row, first[1], conversational, place)
        _check_pair(row, place)
        prompt_is_repeated = prompt_is_repeated and _repeats_prompt(row)
    if prompt_is_repeated:
        raise DataError(
            "every completion begins with its prompt, which would be counted twice.",
            "Remove the prompt from 'chosen' and 'rejected', or drop the column 'prompt'.",
            source=source,
            column="chosen",
        )


def _find_columns(first: dict[str, Any], extra_columns: Sequence[str], source: str) -> list[str]:
    """Return the columns to check in every row, which are those of the first."""
    for column in ("chosen", "rejected", *extra_columns):
        if column not in first:
            near = difflib.get_close_matches(column, first, n=1)
            fix = f"Rename {near[0]!r} to {column!r}." if near else f"It has: {', '.join(first) or 'no columns'}."
            raise DataError(f"there is no column {column!r}.", fix, source=source)
    return [*(("prompt",) if "prompt" in first else ()), "chosen", "rejected", *extra_columns]


def check_text(value: Any, conversational: bool, column: str, place: dict[str, Any]) -> None:
    """Check one cell of a row at `place` (source and row): text, or a list of messages if `conversational`.

    Raises:
        DataError: It is something else, mixed with the other kind, empty, or holds half of a character.
    """
    if not isinstance(value, str | list):
        fix = "It must be text, or a list of messages with 'role' and 'content'."
        raise DataError(f"it is a {type(value).__name__}.", fix, column=column, **place)
    check_characters(value, column, place)
    if isinstance(value, list) != conversational:
        kinds = (
            ("a list of messages", "plain text") if isinstance(value, list) else ("plain text", "a list of messages")
        )
        fix = "Use one of the two throughout."
        raise DataError(f"it is {kinds[0]}, but the first row has {kinds[1]}.", fix, column=column, **place)
    if isinstance(value, str):
        if not value.strip():
            raise DataError("it is empty.", "Fill it or remove the row.", column=column, **place)
        return
    if not value:
        raise DataError("the list of messages is empty.", "Fill it or remove the row.", column=column, **place)
    for message in value:
        known = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not known or not ("content" in message or message.get("tool_calls")):
            fix = "A message is {'role': ..., 'content': ...}."
            raise DataError(f"{message!r} is not a message.", fix, column=column, **place)
        content = message.get("content")
        # System prompts and tool results may be empty, and so may an assistant's turn that calls a tool.
        must_say = message["role"] in ("user", "assistant") and not message.get("tool_calls")
        if must_say and (not content or (isinstance(content, str) and not content.strip())):
            raise DataError("a message is empty.", "Fill it or remove the row.", column=column, **place)
    if column != "prompt" and value[-1]["role"] != "assistant":
        fix = "The completion's last message must be the assistant's."
        raise DataError(f"it ends with role {value[-1]['role']!r}.", fix, column=column, **place)


def check_characters(value: Any, column: str, place: dict[str, Any]) -> None:
    """Check that no text in a cell of a row at `place` holds half of a character, which no tokenizer takes.

    Raises:
        DataError: One does.
    """
    if problem := surrogate_problem(value):
        raise DataError(problem, WHOLE_CHARACTERS, column=column, **place)


def check_chat_options(row: dict[str, Any], first: dict[str, Any], conversational: bool, place: dict[str, Any]) -> None:
    """Check a row's tools and keywords for the chat template.

    Raises:
        DataError: They have no effect, as the rows are no conversations, hold half of a character, or the keywords are
            others than in `first`.
    """
    for column in CHAT_OPTIONS:
        if row.get(column) and not conversational:
            fix = "Drop the column, or write messages."
            raise DataError("it has no effect on plain text.", fix, column=column, **place)
        check_characters(row.get(column), column, place)
    if "chat_template_kwargs" in row or "chat_template_kwargs" in first:
        # In a table of the Hub, a keyword that a row lacks is None, and the template would be given that.
        given, expected = _keywords(row), _keywords(first)
        if given != expected or not given:
            held = [", ".join(names) or "no keywords" for names in (given, expected)]
            problem = f"it holds {held[0]}; in the first row, {held[1]}."
            fix = "Give every row a mapping with the same keywords, or drop the column."
            raise DataError(problem, fix, column="chat_template_kwargs", **place)


def _keywords(row: dict[str, Any]) -> list[str]:
    keywords = row.get("chat_template_kwargs")
    return sorted(key for key, value in keywords.items() if value is not None) if isinstance(keywords, dict) else []


def _check_pair(row: dict[str, Any], place: dict[str, Any]) -> None:
    if row["chosen"] == row["rejected"]:
        fix = "A pair must differ: correct one or remove the row."
        raise DataError("'chosen' and 'rejected' are equal.", fix, column="rejected", **place)
    if "prompt" not in row and not _begin_alike(row["chosen"], row["rejected"]):
        fix = "Without a column 'prompt', both must begin with it; or add that column."
        raise DataError("'chosen' and 'rejected' do not begin with the same prompt.", fix, column="chosen", **place)


def _begin_alike(chosen: str | list[dict[str, Any]], rejected: str | list[dict[str, Any]]) -> bool:
    """Whether both begin with the same prompt, so that what TRL takes for it is one."""
    if chosen[0] != rejected[0]:  # of which TRL takes all but the last character or message for the prompt, sometimes
        return False
    parts = extract_prompt({"chosen": chosen, "rejected": rejected})
    if isinstance(chosen, str):
        return bool(parts["prompt"].strip())
    # Where the completions begin with a question, these are answers to different ones.
    return bool(parts["prompt"]) and all(parts[side][0]["role"] != "user" for side in ("chosen", "rejected"))


def _repeats_prompt(row: dict[str, Any]) -> bool:
    size = len(row["prompt"])
    return row["chosen"][:size] == row["prompt"] and row["rejected"][:size] == row["prompt"]


def check_extra_columns(dataset: Dataset | IterableDataset, columns: Sequence[str], *, source: str) -> None:
    """Check that every extra column of a dataset exists and holds finite numbers.

    Raises:
        DataError: Naming the row and the column.
    """
    present = dataset.column_names or list(next(iter(dataset)))  # a streamed dataset may not know its columns
    for column in columns:
        if column not in present:
            raise DataError(f"there is no column {column!r}.", f"It has: {', '.join(present)}.", source=source)
    streamed = isinstance(dataset, IterableDataset)
    rows = islice(dataset, STREAMED_ROWS_CHECKED) if streamed else dataset.select_columns(list(columns))
    for number, row in enumerate(rows, start=1):
        for column in columns:
            check_number(row[column], column, {"source": source, "row": number})


def check_number(value: Any, column: str, place: dict[str, Any]) -> None:
    """Check that a value, of Python, NumPy or PyTorch, is one finite number."""
    try:
        finite = not isinstance(value, str | bytes) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        finite = False
    if not finite:
        problem = "it is missing here." if value is None or value == "" else f"{value!r} is not a finite number."
        raise DataError(problem, "It must hold one finite number a row.", column=column, **place)
