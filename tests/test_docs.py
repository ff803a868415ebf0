"""The documentation runs: Python blocks are executed, commands name files and options that exist."""

import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

from rlhf_ext.arguments import RecipeParser

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
