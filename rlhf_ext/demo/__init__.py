"""The embedded default: a tiny synthetic chat world with data, a gold judge and a small language model.

It lets every recipe run offline on a CPU in minutes, with a judge that knows the truth. Importing this package
imports neither torch nor datasets; take what you need from its modules.
"""

from pathlib import Path


def model_path() -> str:
    """Folder of the packaged language model, to be passed to `from_pretrained`."""
    return str(Path(__file__).with_name("model"))
