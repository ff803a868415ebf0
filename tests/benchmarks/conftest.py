"""Benchmarks are scripts, which import one another from their own folder."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Put the folder of the benchmarks where `import` looks."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
