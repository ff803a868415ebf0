"""Rows of preference data, and files of them, for the tests."""

import json

import pytest

from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.data import check_preferences, load_preference_splits
from rlhf_ext.data_checks import DataError
from rlhf_ext.data_files import read_splits

GOOD = {"prompt": "How do I boil an egg?", "chosen": "Use a pot.", "rejected": "No.", "margin": 1.5}


def message(role, content):
    return {"role": role, "content": content}


CHAT = {
    "prompt": [message("user", "How do I boil an egg?")],
    "chosen": [message("assistant", "Use a pot.")],
    "rejected": [message("assistant", "No.")],
}


def write(tmp_path, rows, name="pairs.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def streamed(folder, write_file):
    """Write a folder of two splits; return the options that stream it."""
    folder.mkdir()
    for split in ("train", "test"):
        write_file(folder / f"{split}.jsonl")
    return ["--dataset_name", folder, "--dataset_streaming", "true"]


def load(path, **options):
    return check_preferences(read_splits(path)["train"], path, **options)


def refusal(path, **options):
    with pytest.raises(DataError) as error:
        load(path, **options)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def splits(path, **options):
    return load_preference_splits(RecipeArguments(dataset_name=path, **options), extra_columns=[], seed=7)
