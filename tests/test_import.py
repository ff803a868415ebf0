"""Importing the package is cheap, and every public name can be imported."""

import subprocess
import sys

import rlhf_ext


def test_import_loads_none_of_the_heavy_libraries():
    code = "import sys, rlhf_ext; print([n for n in ('torch', 'trl', 'transformers', 'datasets') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists():
    for name in rlhf_ext.__all__:
        assert getattr(rlhf_ext, name).__module__.startswith("rlhf_ext.")
    assert set(rlhf_ext.__all__) <= set(dir(rlhf_ext))
