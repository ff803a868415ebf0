"""Principles, and the conversations in which a model judges and improves its own answers by them.

Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback". A constitution is a YAML file:

    principles:
      - name: harmless
        critique_request: Say how the response above is harmful, if it is.
        revision_request: Rewrite the response so that it does no harm.
        comparison: Which response is less harmful?
    templates:            # optional, as is each of its entries
      critique: "{request}"
      revision: "{request}"
      comparison: "{conversation} {question} (A) {response_a} (B) {response_b}"
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

Message = dict[str, Any]
Conversation = list[Message]

CHOICES = ("A", "B")
# What each template must hold, and what it may.
REQUIRED = {
    "critique": {"request"},
    "revision": {"request"},
    "comparison": {"conversation", "question", "response_a", "response_b"},
}
OPTIONAL = {"critique": {"conversation"}, "revision": {"conversation"}, "comparison": set()}


class ConstitutionError(ValueError):
    """A bad file of principles. The message names the file, the entry and the fix."""

    def __init__(self, problem: str, fix: str, *, source: str, place: str = "") -> None:
        super().__init__(f"{source}{f', {place}' if place else ''}: {problem} {fix}")


@dataclass(frozen=True)
class Principle:
    """What a good answer is like, as requests to a model.

    Attributes:
        name: What the principle is called in results.
        critique_request: Asks for what is wrong with an answer.
        revision_request: Asks for the answer without it.
        comparison: Asks which of two answers is better.
    """

    name: str
    critique_request: str
    revision_request: str
    comparison: str


@dataclass(frozen=True)
class Templates:
    """How requests are put to the model; texts in braces are filled in.

    Attributes:
        critique: The message that asks for a critique; {request} is the principle's. It may repeat the prompt, as
            {conversation}, for models that lose sight of it.
        revision: The same for a revision.
        comparison: The message that asks to choose; {conversation} is the prompt, {question} the principle's
            comparison, {response_a} and {response_b} are the answers.
    """

    critique: str = "{request}"
    revision: str = "{request} Reply with the revised response only."
    comparison: str = (
        "Consider this conversation between a user and an assistant.\n\n{conversation}\n\n{question}\n\n"
        "(A) {response_a}\n\n(B) {response_b}\n\nReply with the letter A or B only."
    )


@dataclass(frozen=True)
class Constitution:
    """Principles, and how they are put to the model."""

    principles: tuple[Principle, ...]
    templates: Templates = Templates()

    def critique(self, prompt: Conversation, answer: str, principle: Principle) -> Conversation:
        """Return the conversation that the model continues with a critique of its answer."""
        request = self.templates.critique.format(request=principle.critique_request, conversation=_as_text(prompt))
        return [*prompt, _assistant(answer), _user(request)]

    def revision(self, prompt: Conversation, answer: str, principle: Principle, critique: str) -> Conversation:
        """Return the conversation that the model continues with a revision of its answer."""
        request = self.templates.revision.format(request=principle.revision_request, conversation=_as_text(prompt))
        return [*self.critique(prompt, answer, principle), _assistant(critique), _user(request)]

    def comparison(self, prompt: Conversation, a: str, b: str, principle: Principle) -> Conversation:
        """Return the conversation that the model continues with the letter of the better answer."""
        text = self.templates.comparison.format(
            conversation=_as_text(prompt), question=principle.comparison, response_a=a, response_b=b
        )
        return [_user(text)]


def read_constitution(path: str | Path) -> Constitution:
    """Read principles and templates from a YAML file.

    Raises:
        ConstitutionError: The file is missing or no YAML, or an entry is missing, empty, unknown or there twice.
    """
    source = str(path)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        fix = "Name a YAML file of principles."
        raise ConstitutionError(f"it cannot be read ({error.strerror}).", fix, source=source) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConstitutionError(f"it is not valid YAML ({reason}).", "Correct it.", source=source) from error
    if not isinstance(content, dict) or not isinstance(content.get("principles"), list) or not content["principles"]:
        fix = "Add it, with a name, critique_request, revision_request and comparison for each principle."
        raise ConstitutionError("there is no list 'principles'.", fix, source=source)
    _check_keys(content, ("principles", "templates"), required=("principles",), source=source)
    principles = tuple(_read_principle(entry, number, source) for number, entry in enumerate(content["principles"], 1))
    names = [principle.name for principle in principles]
    for number, name in enumerate(names, start=1):
        if name in names[: number - 1]:
            first = names.index(name) + 1
            place = f"principle {number}"
            raise ConstitutionError(
                f"the name {name!r} is that of principle {first}.", "Rename one.", source=source, place=place
            )
    return Constitution(principles, _read_templates(content.get("templates", {}), source))


def _read_principle(entry: Any, number: int, source: str) -> Principle:
    name = entry.get("name") if isinstance(entry, dict) else None
    place = f"principle {number}" + (f" ({name})" if isinstance(name, str) and name.strip() else "")
    keys = [field.name for field in fields(Principle)]
    _check_keys(entry, keys, required=keys, source=source, place=place)
    return Principle(**{key: entry[key].strip() for key in keys})


def _read_templates(entry: Any, source: str) -> Templates:
    _check_keys(entry, [field.name for field in fields(Templates)], required=(), source=source, place="templates")
    for key, template in entry.items():
        place = f"templates, {key!r}"
        try:
            found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        except ValueError as error:
            fix = "Write a brace that is meant as one twice."
            raise ConstitutionError(f"its braces do not match ({error}).", fix, source=source, place=place) from error
        known = REQUIRED[key] | OPTIONAL[key]
        problems = [f"{{{name}}} is unknown." for name in sorted(found - known)]
        problems += [f"{{{name}}} is missing." for name in sorted(REQUIRED[key] - found)]
        if problems:
            fix = f"It may hold {', '.join(f'{{{name}}}' for name in sorted(known))}."
            raise ConstitutionError(problems[0], fix, source=source, place=place)
    return Templates(**entry)


def _check_keys(
    entry: Any,
    known: tuple[str, ...] | list[str],
    *,
    required: tuple[str, ...] | list[str],
    source: str,
    place: str = "",
) -> None:
    """Check that an entry is a mapping with known keys only, the required ones among them, and texts as values."""
    where = {"source": source, "place": place}
    if not isinstance(entry, Mapping):
        raise ConstitutionError(f"it is a {type(entry).__name__}.", f"It must hold {', '.join(known)}.", **where)
    for key in entry:
        if key not in known:
            raise ConstitutionError(f"there is no entry {key!r}.", f"It may hold {', '.join(known)}.", **where)
    for key in required:
        if entry.get(key) is None:
            raise ConstitutionError(f"{key!r} is missing.", f"It must hold {', '.join(required)}.", **where)
    for key, value in entry.items():
        if place and not (isinstance(value, str) and value.strip()):
            raise ConstitutionError(f"{key!r} is empty or not text.", "Write a sentence.", **where)


def _as_text(prompt: Conversation) -> str:
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
