"""The documentation runs: Python blocks are executed, commands name files and options that exist."""

import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

from rlhf_ext.arguments import RecipeParser
from rlhf_ext.cli import _pair, _text
from rlhf_ext.data import check_preferences
from rlhf_ext.data_files import read_rows
from rlhf_ext.demonstrations import check_demonstration_rows
from rlhf_ext.evaluation.prompts import load_evaluation_prompts
from rlhf_ext.evaluation.rows import load_rows
from rlhf_ext.prompts import load_prompts

ROOT = Path(__file__).parents[1]
RECIPES = sorted(f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=lambda path: path.name)
@pytest.mark.usefixtures("own_registry")
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


READERS = {  # what the recipes under a heading of docs/data.md read a file with
    "Preference pairs": (lambda name: check_preferences(read_rows(name), name), load_rows),
    "Demonstrations": (lambda name: check_demonstration_rows(read_rows(name), source=name),),
    "Prompts": (lambda name: load_prompts(name, None, "train"), load_evaluation_prompts),
    "Rated answers": (load_rows,),
    "Texts to score": (lambda name: [(_pair if "a" in row else _text)(row, name) for _, row in read_rows(name)],),
}


def test_example_rows_are_read(tmp_path):
    sections = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("\n## ")[1:]
    assert [section.split(":")[0] for section in sections] == list(READERS)
    for section in sections:
        rows = re.findall(r"```jsonl\n(.*?)```", section, flags=re.DOTALL)
        assert rows
        for row in rows:
            (tmp_path / "rows.jsonl").write_text(row, encoding="utf-8")
            for read in READERS[section.split(":")[0]]:
                read(str(tmp_path / "rows.jsonl"))


@cache
def options_of(recipe):
    """The options of a recipe: those of the dataclasses that its `main` takes."""
    main = runpy.run_path(str(ROOT / recipe))["main"]
    types = [kind for kind in get_type_hints(main).values() if kind is not type(None)]
    return {*RecipeParser(types)._option_string_actions, "--config"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_name_files_and_options_that_exist(path):
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for recipe in set(words) & set(RECIPES):
                options = [word for word in words[words.index(recipe) :] if word.startswith("--")]
                assert set(options) <= options_of(recipe)
            for word in words:
                if word.startswith(("recipes/", "accelerate_configs/", "benchmarks/")):
                    assert (ROOT / word).exists(), word
            if words[:1] == ["make"]:
                assert f"\n{words[1]}: install" in (ROOT / "Makefile").read_text()
