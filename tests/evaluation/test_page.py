"""The page is self-contained, escapes what models wrote, and describes its figures."""

import base64
import re
from html.parser import HTMLParser

import pytest

from rlhf_ext.evaluation.page import CUT, Answer, Figure, Headline, Sample, Section, Table, render

VOID = {"meta", "link", "img"}


class Checker(HTMLParser):
    """Collects text and attributes, and checks that elements close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def check(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def page():
    hostile = "<script>alert('x')</script> & \"quotes\""
    long = "word " * CUT
    figure = Figure("points", b"\x89PNG", "a caption", 'described "so"')
    sections = [
        Section("Numbers", ["A paragraph."], [Table(["", "value"], [("accuracy", "0.9")], "a table")], [figure]),
        Section("Samples", samples=[Sample(hostile, [Answer("chosen", long, "1.5", good=True)])]),
    ]
    return render("A <title>", "on data", [Headline("accuracy", "0.9", "0.8 to 1.0")], sections)


def test_everything_is_shown(page):
    text = " ".join(check(page).text.split())
    for expected in ("A <title>", "on data", "0.8 to 1.0", "A paragraph.", "a table", "accuracy", "a caption", "· 1.5"):
        assert expected in text
    assert text.count("word") == CUT  # what is folded is there too


def test_hostile_text_is_only_text(page):
    assert "<script" not in page
    assert "<script>alert('x')</script> & \"quotes\"" in check(page).text


def test_it_needs_no_network(page):
    for tag, name, value in check(page).attributes:
        if name in ("src", "href"):
            assert value.startswith("data:"), (tag, name)
    assert not re.search(r"https?://|@import|url\(", page)


def test_figures_are_inside_and_described(page):
    values = {name: value for tag, name, value in check(page).attributes if tag == "img"}
    assert base64.b64decode(values["src"].partition(",")[2]) == b"\x89PNG"
    assert values["alt"] == 'described "so"'


def test_it_is_made_for_phones_and_both_colour_schemes(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "@media (prefers-color-scheme: dark)" in page


def test_parts_may_be_missing():
    assert "<table" not in render("A", "b", [], [Section("Only text", ["Hello."])])
