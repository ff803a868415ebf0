"""Demonstrations of good answers: reading and checking them, and turning plain text into turns of a chat."""

import difflib
import re
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .arguments import DEMO, RecipeArguments
from .data_checks import CHAT_OPTIONS, DataError, check_chat_options, check_text
from .data_files import Rows, numbered, to_dataset
from .splits import load_splits

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def load_demonstration_splits(
    script_args: RecipeArguments, *, text_column: str = "text", seed: int
) -> tuple[Dataset, Dataset]:
    """Load and check the demonstrations to train on and those to evaluate on (see `load_splits`).

    Rows have the columns prompt and completion (text or messages), or messages, or text; what else they have is left
    out.

    Raises:
        DataError: Naming the file or split, the row, the column and the fix.
    """
    name = script_args.dataset_name or DEMO
    if script_args.dataset_streaming:
        raise DataError("demonstrations are not streamed.", "Drop dataset_streaming.", source=name)

    def demo(split: str) -> Dataset:
        from .demo.data import SFT_SIZES, sft_dataset

        # The embedded world writes as many demonstrations as are asked for.
        wanted = script_args.max_train_samples if split == "train" else script_args.max_eval_samples
        return sft_dataset(split, size=max(SFT_SIZES[split], wanted or 0))

    check = partial(_check_demonstrations, text_column=text_column)
    train, held_out = load_splits(script_args, seed, demo=demo, check=check)
    if {*train.column_names} - {*CHAT_OPTIONS} != {*held_out.column_names} - {*CHAT_OPTIONS}:
        fix = f"Give it those of the training rows: {', '.join(train.column_names)}."
        problem = f"it has the columns {', '.join(held_out.column_names)}."
        raise DataError(problem, fix, source=script_args.eval_dataset_name or name)
    return train, held_out


def check_demonstration_rows(
    rows: Iterable[tuple[int, dict[str, Any]]], *, source: str, text_column: str = "text"
) -> list[str]:
    """Check numbered rows in one pass, and return the columns to train on.

    Raises:
        DataError: Naming the first bad row.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise DataError("it holds no rows.", "Give it at least one.", source=source)
    columns = _find_columns(first[1], text_column, source)
    conversational = isinstance(first[1][columns[0]], list)
    _check_form(columns[0], conversational, text_column, {"source": source, "row": first[0]})
    prompt_is_repeated = len(columns) == 2 and not conversational
    options = set()
    for number, row in chain([first], rows):
        place = {"source": source, "row": number}
        for column in columns:
            if row.get(column) is None:
                raise DataError("it is missing here.", "Every row needs it.", column=column, **place)
            check_text(row[column], conversational, column, place)
        check_chat_options(row, first[1], conversational, place)
        options |= {option for option in CHAT_OPTIONS if row.get(option)}
        prompt_is_repeated = prompt_is_repeated and row["completion"].startswith(row["prompt"])
    if prompt_is_repeated:
        fix = "Remove the prompt from 'completion', or name that column 'text' and drop 'prompt'."
        raise DataError("every completion begins with its prompt.", fix, source=source, column="completion")
    return [*columns, *sorted(options)]


def _find_columns(first: dict[str, Any], text_column: str, source: str) -> tuple[str, ...]:
    forms = (("prompt", "completion"), ("messages",), (text_column,))
    found = next((form for form in forms if all(column in first for column in form)), None)
    if found is not None:
        return found
    wanted = ["completion"] if "prompt" in first else ["prompt", "completion", "messages", text_column]
    near = [(key, match) for key in first for match in difflib.get_close_matches(key, wanted, n=1)]
    fix = f"Rename {near[0][0]!r} to {near[0][1]!r}." if near else f"It has: {', '.join(first) or 'no columns'}."
    problem = f"a row needs 'prompt' and 'completion', or 'messages', or {text_column!r}."
    raise DataError(problem, fix, source=source)


def _check_form(column: str, conversational: bool, text_column: str, place: dict[str, Any]) -> None:
    """Check that messages are messages and text is text; a prompt may be either."""
    if column == "messages" and not conversational:
        fix = "It must be a list of messages with 'role' and 'content'; name a column of plain text 'text'."
        raise DataError("it is no list.", fix, column=column, **place)
    if column == text_column and conversational:
        raise DataError("it is a list.", "It must be plain text; name it 'messages'.", column=column, **place)


def _check_demonstrations(rows: Rows, source: str, *, text_column: str) -> Dataset:
    columns = check_demonstration_rows(numbered(rows), source=source, text_column=text_column)
    present = {key for _, row in rows for key in row} if isinstance(rows, list) else {*rows.column_names}
    if unread := sorted(present - {*columns}):
        PartialState().print(f"{source}: training reads {', '.join(columns)}, and not {', '.join(unread)}.")
    if isinstance(rows, list):
        return to_dataset({column: [row.get(column) for _, row in rows] for column in columns}, source=source)
    return rows.select_columns(columns)


def as_messages(prompt: str) -> list[dict[str, str]]:
    r"""Return a plain prompt as messages: one user turn, or those of a transcript.

    A transcript has the form "\n\nHuman: ...\n\nAssistant:", with the assistant to speak next and no one twice in a
    row.
    """
    start, *parts = TURN.split(prompt.strip())
    turns = [
        {"role": SPEAKERS[speaker], "content": text.strip()}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    roles = [turn["role"] for turn in turns]
    is_transcript = not start and len(turns) > 1 and not turns[-1]["content"] and all(t["content"] for t in turns[:-1])
    if is_transcript and roles == ["user", "assistant"] * (len(roles) // 2):
        return turns[:-1]
    return [{"role": "user", "content": prompt}]


def reads_as_chat(
    prompts: Iterable[Any], tokenizer: PreTrainedTokenizerBase, as_chat: bool | None, *, source: str
) -> bool:
    """Whether plain prompts become turns of the chat template; says so where they do.

    Args:
        prompts: All text, or all messages; empty for rows without prompts.
        tokenizer: It may have a chat template.
        as_chat: What the user wants; None for turns wherever there is a template.
        source: What to call the rows.

    Raises:
        DataError: The user wants what cannot be, or what has no effect.
    """
    if not isinstance(next(iter(prompts), None), str):
        if as_chat is not None:
            raise DataError("--as_chat is for plain prompts, and there are none.", "Drop it.", source=source)
        return False
    if as_chat and tokenizer.chat_template is None:
        fix = "Drop --as_chat, or use an instruction-tuned model."
        raise DataError("the model's tokenizer has no chat template.", fix, source=source)
    as_chat = tokenizer.chat_template is not None if as_chat is None else as_chat
    if as_chat:
        note = "plain prompts become turns of the chat template; --as_chat false keeps them as they are."
        PartialState().print(f"{source}: {note}")
    return as_chat


def to_chat(dataset: Dataset) -> Dataset:
    """Turn plain prompts and completions into messages."""
    return dataset.map(
        lambda row: {
            "prompt": as_messages(row["prompt"]),
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
    )
