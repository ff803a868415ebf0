"""Demonstrations of good answers: reading and checking them, and turning plain text into turns of a chat."""

import difflib
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import pyarrow
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .arguments import DEMO, RecipeArguments
from .data import at_most, hold_out
from .data_checks import DataError, check_text
from .data_files import is_local, load_from_hub, on_disk, read_rows

OPTIONS = ("tools", "chat_template_kwargs")  # of conversations
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def load_demonstration_splits(
    script_args: RecipeArguments, *, text_column: str = "text", seed: int
) -> tuple[Dataset, Dataset]:
    """Load and check the demonstrations to train on and those to evaluate on.

    Rows have the columns prompt and completion (text or messages), or messages, or text; what else they have is left
    out. Without `dataset_name` they are the embedded demo's. Without a test split or `eval_dataset_name`, a part of
    the training rows, chosen by `seed`, is held out.

    Raises:
        DataError: Naming the file or split, the row, the column and the fix.
    """
    name, eval_name = script_args.dataset_name, script_args.eval_dataset_name
    train_split, test_split = script_args.dataset_train_split, script_args.dataset_test_split
    source = name or DEMO
    if script_args.dataset_streaming:
        raise DataError("demonstrations are not streamed.", "Drop dataset_streaming.", source=source)
    for option in ("max_train_samples", "max_eval_samples"):
        if getattr(script_args, option) is not None and getattr(script_args, option) < 1:
            raise DataError(f"--{option} must be at least 1.", "Drop it to use all rows.", source=source)
    if name is None:
        from .demo.data import SFT_SIZES, sft_dataset

        # The embedded world writes as many demonstrations as are asked for.
        train = sft_dataset("train", size=max(SFT_SIZES["train"], script_args.max_train_samples or 0))
        held_out = sft_dataset("test", size=max(SFT_SIZES["test"], script_args.max_eval_samples or 0))
    else:
        train = _load(name, script_args.dataset_config, (train_split,), text_column)
        held_out = None
        if not (eval_name or is_local(name)):
            held_out = _load(name, script_args.dataset_config, (test_split,), text_column, required=False)
    if eval_name is not None:
        held_out = _load(eval_name, None, (test_split, train_split), text_column)
    if held_out is None:
        train, held_out = hold_out(train, script_args.eval_fraction, seed, source=source)
    if set(train.column_names) != set(held_out.column_names):
        fix = f"Give it those of the training rows: {', '.join(train.column_names)}."
        raise DataError(f"it has the columns {', '.join(held_out.column_names)}.", fix, source=eval_name or source)
    return at_most(train, script_args.max_train_samples, seed), at_most(held_out, script_args.max_eval_samples, seed)


def check_demonstration_rows(
    rows: Iterable[tuple[int, dict[str, Any]]], *, source: str, text_column: str = "text"
) -> list[str]:
    """Check numbered rows in one pass, and return the columns to train on, which are those of the first row.

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
    for number, row in chain([first], rows):
        place = {"source": source, "row": number}
        for column in columns:
            if row.get(column) is None:
                raise DataError("it is missing here.", "Every row needs it.", column=column, **place)
            check_text(row[column], conversational, column, place)
        prompt_is_repeated = prompt_is_repeated and row["completion"].startswith(row["prompt"])
    if prompt_is_repeated:
        fix = "Remove the prompt from 'completion', or name that column 'text' and drop 'prompt'."
        raise DataError("every completion begins with its prompt.", fix, source=source, column="completion")
    return [*columns, *(option for option in OPTIONS if conversational and option in first[1])]


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


def _load(
    name: str, config: str | None, splits: tuple[str, ...], text_column: str, *, required: bool = True
) -> Dataset | None:
    """Return the demonstrations of a file or of the first of the `splits` that there is, or None."""
    if is_local(name):
        rows = read_rows(name)
        columns = check_demonstration_rows(rows, source=name, text_column=text_column)
        _say_what_is_not_read({key for _, row in rows for key in row}, columns, name)
        try:
            return on_disk(Dataset.from_dict({column: [row.get(column) for _, row in rows] for column in columns}))
        except (pyarrow.ArrowException, TypeError) as error:
            reason = " ".join(str(error).split())
            fix = "Every column needs one type throughout."
            raise DataError(f"its rows do not fit one table ({reason}).", fix, source=name) from error
    loaded = load_from_hub(name, config)
    split = next((split for split in splits if split in loaded), None)
    if split is None:
        if required:
            raise DataError(f"there is no split {splits[0]!r}.", f"It has: {', '.join(loaded)}.", source=name)
        return None
    rows = enumerate(loaded[split], start=1)
    columns = check_demonstration_rows(rows, source=f"{name}, split {split}", text_column=text_column)
    _say_what_is_not_read(loaded[split].column_names, columns, name)
    return loaded[split].select_columns(columns)


def _say_what_is_not_read(present: Iterable[str], columns: list[str], source: str) -> None:
    unread = sorted(set(present) - set(columns))
    if unread:
        PartialState().print(f"{source}: training reads {', '.join(columns)}, and not {', '.join(unread)}.")


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
