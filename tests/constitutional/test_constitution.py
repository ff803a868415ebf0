"""Principles: read from YAML, refused in one line, put to the model in the right conversations."""

from pathlib import Path

import pytest
import yaml

from rlhf_ext.constitutional.constitution import (
    Constitution,
    ConstitutionError,
    Principle,
    Templates,
    read_constitution,
)

HARMLESS = {"name": "harmless", "critique_request": "Harm?", "revision_request": "Less harm.", "comparison": "Which?"}
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}]


def write(folder, content):
    path = folder / "principles.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_shipped_principles():
    folder = Path(__file__).parents[2] / "recipes/principles"
    found = {path.name: read_constitution(path) for path in folder.glob("*.yaml")}
    assert len(found["harmless.yaml"].principles) >= 5
    for constitution in found.values():
        for principle in constitution.principles:
            assert principle.critique_request.endswith(("?", "."))
            assert "\n" not in principle.comparison and principle.comparison.endswith("?")


def test_templates_may_be_changed_one_by_one(tmp_path):
    path = write(tmp_path, {"principles": [HARMLESS], "templates": {"critique": "Task: {request}"}})
    constitution = read_constitution(path)
    assert constitution.principles == (Principle("harmless", "Harm?", "Less harm.", "Which?"),)
    assert constitution.templates == Templates(critique="Task: {request}")


def test_conversations():
    principle = Principle("harmless", "Harm?", "Less harm.", "Which {one}?")  # braces in a text stay as they are
    templates = Templates(
        "C: {request}", "R: {request} {conversation}", "{conversation}|{question}|{response_a}|{response_b}"
    )
    constitution = Constitution((principle,), templates)
    asked = [*PROMPT, {"role": "assistant", "content": "So."}, {"role": "user", "content": "C: Harm?"}]
    assert constitution.critique(PROMPT, "So.", principle) == asked
    critique = {"role": "assistant", "content": "Yes."}
    assert constitution.revision(PROMPT, "So.", principle, "Yes.") == [
        *asked,
        critique,
        {"role": "user", "content": "R: Less harm. System: Be brief.\n\nUser: How?"},
    ]
    text = "System: Be brief.\n\nUser: How?|Which {one}?|{x}|y"
    assert constitution.comparison(PROMPT, "{x}", "y", principle) == [{"role": "user", "content": text}]
    assert len(PROMPT) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "it is not valid YAML ("),
        ("- a", "there is no list 'principles'. Add it, with a name, critique_request,"),
        ({"principles": []}, "there is no list 'principles'."),
        (
            {"principles": [HARMLESS], "template": {}},
            "there is no entry 'template'. It may hold principles, templates.",
        ),
        ({"principles": ["Be kind."]}, "principle 1: it is a str. It must hold name, critique_request,"),
        ({"principles": [HARMLESS, {"name": "b"}]}, "principle 2 (b): 'critique_request' is missing. It must hold"),
        (
            {"principles": [HARMLESS | {"comparison": " "}]},
            "principle 1 (harmless): 'comparison' is empty or not text.",
        ),
        ({"principles": [HARMLESS | {"name": 3}]}, "principle 1: 'name' is empty or not text. Write a sentence."),
        ({"principles": [HARMLESS | {"weight": "1"}]}, "principle 1 (harmless): there is no entry 'weight'."),
        ({"principles": [HARMLESS, HARMLESS]}, "principle 2: the name 'harmless' is that of principle 1. Rename one."),
        ({"principles": [HARMLESS], "templates": {"critic": "a"}}, "templates: there is no entry 'critic'."),
        (
            {"principles": [HARMLESS], "templates": {"revision": "Please."}},
            "templates, 'revision': {request} is missing. It may hold {conversation}, {request}.",
        ),
        (
            {"principles": [HARMLESS], "templates": {"critique": "{request} {critique}"}},
            "templates, 'critique': {critique} is unknown. It may hold {conversation}, {request}.",
        ),
        ({"principles": [HARMLESS], "templates": {"critique": "{request"}}, "templates, 'critique': its braces do not"),
    ],
)
def test_bad_file_is_one_line_that_names_the_place(content, message, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(ConstitutionError) as caught:
        read_constitution(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, {message}") or text.startswith(f"{path}: {message}")
    assert "\n" not in text


def test_missing_file(tmp_path):
    with pytest.raises(ConstitutionError, match=r"no\.yaml: it cannot be read \(No such file or directory\)"):
        read_constitution(tmp_path / "no.yaml")
