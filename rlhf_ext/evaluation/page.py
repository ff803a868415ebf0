"""One self-contained HTML page: figures and style are inside, so it opens from a mail or a phone without network.

A page is a title, a few headline numbers, and sections of text, notices, facts, tables, figures and samples. Any
report can be built from these; `render` fills the template `page.html.jinja`.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

WARNINGS = "warnings.jsonl"  # what `warnings_section` shows, for programs
CUT = 600  # characters of a sample text that are shown before one unfolds the rest


@dataclass(frozen=True)
class Headline:
    """A number to see first: what it is, its value, and a few words below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first column holds names, the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A PNG on white, with a sentence below it and one for those who cannot see; `name` is what its file is called."""

    name: str
    png: bytes
    caption: str
    description: str


@dataclass(frozen=True)
class Answer:
    """One answer of a sample: a label such as "chosen", its score as text, and whether it is the preferred one.

    `good` is None where neither answer is preferred, and `score` empty where nothing scored it.
    """

    label: str
    text: str
    score: str
    good: bool | None


@dataclass(frozen=True)
class Sample:
    """A prompt with its answers."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Fact:
    """Something to look up: its name and its value, which is set as code where it is meant to be copied."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Notice:
    """Something to look into: what was found, and what to try."""

    found: str
    advice: str


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and what they are about; empty parts are left out."""

    heading: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    samples: Sequence[Sample] = ()
    notices: Sequence[Notice] = ()
    facts: Sequence[Fact] = ()


def warnings_section(notices: Sequence[Notice]) -> Section:
    """Return the section that says what stands out, or that nothing does."""
    if notices:
        return Section("Warnings", notices=notices)
    return Section("Warnings", ["None of the checks found anything. docs/report.md says what is checked."])


def render(title: str, subtitle: str, headlines: Sequence[Headline], sections: Sequence[Section]) -> str:
    """Return the page as HTML. All text is escaped: it may be anything a model or a person wrote."""
    environment = Environment(
        loader=PackageLoader("rlhf_ext.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _data_uri
    return environment.get_template("page.html.jinja").render(
        title=title, subtitle=subtitle, headlines=headlines, sections=sections, cut=CUT
    )


def _data_uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(png).decode()
