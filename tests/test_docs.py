"""The documentation runs: Python blocks are executed, commands name files and options that exist."""

import re
import shlex
from pathlib import Path

import pytest
from trl import ModelConfig

from rlhf_ext import DPOConfig, plugins
from rlhf_ext.arguments import RecipeArguments, RecipeParser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=lambda path: path.name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_registry", {kind: dict(known) for kind, known in plugins._registry.items()})
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_name_files_and_options_that_exist(path):
    known = set(RecipeParser((RecipeArguments, DPOConfig, ModelConfig))._option_string_actions) | {"--config"}
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "recipes/dpo.py" in words:
                options = words[words.index("recipes/dpo.py") :]
                assert not [word for word in options if word.startswith("--") and word not in known]
            for word in words:
                if word.startswith(("recipes/", "accelerate_configs/", "benchmarks/")):
                    assert (ROOT / word).exists(), word
            if words[:1] == ["make"]:
                assert f"\n{words[1]}: install" in (ROOT / "Makefile").read_text()
