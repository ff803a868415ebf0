r"""Halves of characters: JSON may hold one, as "\ud83d" where an emoji was cut in two, and no tokenizer takes it."""

import re
from collections.abc import Mapping
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")
WHOLE_CHARACTERS = "Write the whole character, or remove it."


def surrogate_problem(value: Any) -> str | None:
    """Say which half of a character a text holds, or any text in a message, tools and whatever else; None if none."""
    if isinstance(value, str):
        found = SURROGATE.search(value)
        return f"it holds {found[0]!r}, half of a character that was cut in two." if found else None
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if not isinstance(value, list | tuple):
        return None
    return next(filter(None, map(surrogate_problem, value)), None)
