"""From a text, a (prompt, completion) pair or a conversation to token ids, exactly as in reward training.

The rules are those of TRL's `RewardTrainer._prepare_dataset` (a test compares the two): plain text ends with the end
token, a prompt and its completion are joined without anything between, a conversation goes through the chat template.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from .surrogates import WHOLE_CHARACTERS, surrogate_problem

Message = Mapping[str, Any]
Text = str | tuple[Any, Any] | Sequence[Message] | Mapping[str, Any]
ROW_KEYS = ({"text"}, {"messages"}, {"prompt", "completion"})
ROW_OPTIONS = {"tools", "chat_template_kwargs"}
LOOKED_AT = 200  # characters, among which a text nearly always says something
KINDS = (
    "A text is a string, a (prompt, completion) pair, a list of messages {'role': ..., 'content': ...}, "
    "or a row {'prompt': ..., 'completion': ...}, {'messages': ...} or {'text': ...}."
)


@dataclass(frozen=True)
class Place:
    """Where a text stands in what the user passed: the argument, and the position if that is a list."""

    argument: str = "texts"
    index: int | None = None

    def __str__(self) -> str:
        if self.index is not None:
            return f"row {self.index + 1} ({self.argument}[{self.index}]): "
        return "" if self.argument == "texts" else f"{self.argument}: "


class InputError(ValueError, TypeError):
    """A text that cannot be scored; the message says which one and what to do.

    Attributes:
        problem: The message without the place.
        place: Which text it is.
    """

    def __init__(self, problem: str, place: Place = Place()) -> None:
        self.problem, self.place = problem, place
        super().__init__(f"{place}{problem}")


@dataclass(frozen=True)
class Example:
    """One text to score, divided into what was asked and what was answered.

    Attributes:
        prompt: Text, or the messages before the last; None where plain text comes without a prompt.
        completion: Text, or messages.
        tools: Tools for the chat template.
        chat_template_kwargs: More keywords for the chat template.
        place: Where it stands, for error messages.
    """

    prompt: str | list[Message] | None
    completion: str | list[Message]
    tools: list[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    place: Place = Place()

    @property
    def is_conversation(self) -> bool:
        """Whether it goes through the chat template."""
        return isinstance(self.completion, list)

    def prompt_key(self) -> str | None:
        """Return a hashable value that texts with the same prompt share; None without a prompt."""
        if not self.is_conversation:
            return self.prompt or None
        options = [self.tools, dict(self.chat_template_kwargs)]
        return json.dumps([self.prompt, *options], default=str) if self.prompt else None


def parse(texts: Any, argument: str = "texts") -> tuple[list[Example], bool]:
    """Return the examples in `texts`, and whether it was a single one rather than a list.

    Args:
        texts: Anything that `RewardModel.score` takes.
        argument: What to call it in error messages.

    Raises:
        InputError: It is something else, or holds something else.
    """
    place = Place(argument)
    is_pair = isinstance(texts, tuple) and not all(isinstance(item, tuple) for item in texts)
    if texts is None or is_pair or isinstance(texts, str | Mapping) or _is_conversation(texts):
        return [_parse_one(texts, place)], True
    if isinstance(texts, bytes | set | frozenset) or not isinstance(texts, Iterable):
        raise InputError(f"it is a {type(texts).__name__}. {KINDS}", place)
    items = list(texts)
    if not items:
        raise InputError("the list of texts is empty. Give at least one.", place)
    return [_parse_one(item, Place(argument, index)) for index, item in enumerate(items)], False


def parse_answers(texts: Any, prompt: Any, argument: str) -> tuple[list[Example], bool]:
    """Return what `parse` does, for texts that are completions of one prompt unless that is None."""
    if prompt is None or texts is None:
        return parse(texts, argument)
    if isinstance(texts, str) or _is_conversation(texts):
        return parse((prompt, texts), argument)
    if not isinstance(texts, list | tuple):
        raise InputError(f"it is a {type(texts).__name__}. Pass a completion or a list of them.", Place(argument))
    return parse([(prompt, text) for text in texts], argument)


def _parse_one(item: Any, place: Place) -> Example:
    if problem := surrogate_problem(item):
        raise InputError(f"{problem} {WHOLE_CHARACTERS}", place)
    if isinstance(item, str):
        return Example(None, str(item), place=place)
    if _is_conversation(item):
        return _conversation(item, place)
    if isinstance(item, tuple | list) and len(item) == 2:
        return _pair(*item, place)
    if isinstance(item, Mapping):
        return _row(item, place)
    if isinstance(item, tuple) and item:
        raise InputError(
            f"a tuple of {len(item)}. A pair is (prompt, completion); pass several texts as a list.", place
        )
    what = "None" if item is None else "empty" if item in ([], ()) else f"a {type(item).__name__}"
    raise InputError(f"it is {what}. {KINDS}", place)


def _is_conversation(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and isinstance(item[0], Mapping) and "role" in item[0]


def _conversation(messages: list[Message], place: Place, **options: Any) -> Example:
    _check_messages(messages, place)
    return Example(messages[:-1], messages[-1:], place=place, **options)


def _pair(prompt: Any, completion: Any, place: Place, **options: Any) -> Example:
    """Join text with text, or messages with messages; text after messages is the assistant's answer."""
    if isinstance(prompt, str) and isinstance(completion, str) and not options:
        return Example(prompt, completion, place=place)
    if _is_conversation(prompt) and (isinstance(completion, str) or _is_conversation(completion)):
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        _check_messages([*prompt, *completion], place)
        return Example(prompt, completion, place=place, **options)
    names = ["None" if part is None else type(part).__name__ for part in (prompt, completion)]
    raise InputError(f"a pair of {names[0]} and {names[1]}. Both must be text, or both lists of messages.", place)


def _row(row: Mapping[str, Any], place: Place) -> Example:
    if set(row) - ROW_OPTIONS not in ROW_KEYS:
        raise InputError(f"it has the keys {', '.join(map(repr, row)) or '(none)'}. {KINDS}", place)
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise InputError(f"'tools' is not valid JSON ({error.msg}).", place) from error
    options = {"tools": tools, "chat_template_kwargs": row.get("chat_template_kwargs")}
    options = {key: value for key, value in options.items() if value}
    content = row.get("messages", row.get("prompt"))
    if options and not _is_conversation(content):
        raise InputError(f"{' and '.join(options)} would have no effect on plain text. Use messages.", place)
    if "messages" in row:
        if not _is_conversation(content):
            raise InputError(f"'messages' is a {type(content).__name__}, not a list of messages.", place)
        return _conversation(content, place, **options)
    if "prompt" in row:
        return _pair(content, row["completion"], place, **options)
    if not isinstance(row["text"], str):
        raise InputError(f"'text' is a {type(row['text']).__name__}. It must be a string.", place)
    return Example(None, row["text"], place=place)


def _check_messages(messages: Sequence[Any], place: Place) -> None:
    for message in messages:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
            raise InputError(f"{message!r} is not a message {{'role': ..., 'content': ...}}.", place)
        content = message.get("content")
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            raise InputError(f"the content of a message of role {message['role']!r} is {content!r}, not text.", place)


def check_says_something(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, allow_empty_completion: bool = False
) -> None:
    """Refuse a text, or a pair whose completion, is empty or nothing but padding and special tokens.

    Args:
        examples: The texts.
        tokenizer: It knows the special tokens, and may make no tokens of what only looks like a text.
        allow_empty_completion: Accept an empty completion after a prompt that says something, as a policy may produce.

    Raises:
        InputError: Naming the first text that says nothing.
    """
    added = {token for token, content in tokenizer.added_tokens_decoder.items() if content.special}
    # The unknown token is special as well, but it stands for something.
    special = (added | {*tokenizer.all_special_ids}) - {tokenizer.unk_token_id}

    def says_something(text: str) -> bool:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return any(token not in special and tokenizer.decode([token]).strip() for token in ids)

    for example in examples:
        said = _content(example.completion)
        if allow_empty_completion:
            said += _content(example.prompt or "")
        part = "the completion" if example.prompt and not allow_empty_completion else "it"
        if not said.strip():
            raise InputError(f"{part} is empty. Fill it, or leave the row out.", example.place)
        if not (says_something(said[:LOOKED_AT]) or says_something(said)):
            problem = f"{part} holds only padding or special tokens, or what the tokenizer drops."
            raise InputError(f"{problem} Fill it, or leave the row out.", example.place)


def _content(part: str | list[Message]) -> str:
    return part if isinstance(part, str) else "\n".join(map(_message_content, part))


def _message_content(message: Message) -> str:
    if message.get("tool_calls"):
        return json.dumps(message["tool_calls"], default=str)
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(piece.get("text") or "" for piece in content if isinstance(piece, Mapping))


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each example, as TRL's `RewardTrainer` makes them.

    Raises:
        InputError: A conversation that the tokenizer's chat template refuses, or a tokenizer without one.
    """
    token_ids: list[list[int]] = [[] for _ in examples]
    for conversations in (False, True):
        rows = [row for row, example in enumerate(examples) if example.is_conversation == conversations]
        if not rows:
            continue
        texts = [_render(examples[row], tokenizer) for row in rows]
        # A chat template writes the special tokens itself.
        encoded = tokenizer(texts, add_special_tokens=not conversations, verbose=False)["input_ids"]
        for row, ids in zip(rows, encoded, strict=True):
            token_ids[row] = ids
    return token_ids


def chat_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that a row gives the chat template, as in TRL: its `tools` and `chat_template_kwargs`."""
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {**({"tools": tools} if tools else {}), **(row.get("chat_template_kwargs") or {})}


def count_prompt_tokens(example: Example, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the prompt has by itself, without an end token; 0 where there is no prompt."""
    if not example.prompt:
        return 0
    if not example.is_conversation:
        added = tokenizer(example.prompt, verbose=False, return_special_tokens_mask=True)["special_tokens_mask"]
        # What the tokenizer adds at the end, such as BERT's [SEP], would come after the completion.
        return max((position for position, by_tokenizer in enumerate(added) if not by_tokenizer), default=-1) + 1
    alone = replace(example, prompt=[], completion=example.prompt)
    return len(tokenizer(_render(alone, tokenizer), add_special_tokens=False, verbose=False)["input_ids"])


def _render(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what is tokenized: plain text with its end token, or a conversation as the chat template writes it."""
    if not example.is_conversation:
        end = tokenizer.eos_token
        # Encoders as they come from elsewhere often have no end token, and were trained without one.
        end = "" if end is None or example.completion.endswith(end) else end
        return (example.prompt or "") + example.completion + end
    if tokenizer.chat_template is None:
        raise InputError(
            "it is a conversation, and the tokenizer has no chat template. Pass plain text.", example.place
        )
    try:
        return tokenizer.apply_chat_template(
            [*example.prompt, *example.completion], tokenize=False, tools=example.tools, **example.chat_template_kwargs
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the chat template refuses the conversation ({error}).", example.place) from error
