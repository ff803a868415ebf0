"""Prompts: read from files, checked, divided."""

import json

import pytest

from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.data_checks import DataError
from rlhf_ext.prompts import load_prompt_splits


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_demo():
    train, held_out = load_prompt_splits(RecipeArguments(max_train_samples=20, max_eval_samples=5), seed=0)
    assert (len(train), len(held_out)) == (20, 5)
    assert train.column_names == ["prompt"] and train[0]["prompt"][0]["role"] == "user"


def test_file_with_a_part_held_out(tmp_path):
    path = write(tmp_path / "prompts.jsonl", [{"prompt": f"Question {n}?", "chosen": n} for n in range(10)])
    train, held_out = load_prompt_splits(RecipeArguments(dataset_name=path, eval_fraction=0.2), seed=0)
    assert (len(train), len(held_out)) == (8, 2)
    assert train.column_names == ["prompt"] and not set(train["prompt"]) & set(held_out["prompt"])
    other = write(tmp_path / "other.jsonl", [{"prompt": "Other?"}])
    train, held_out = load_prompt_splits(RecipeArguments(dataset_name=path, eval_dataset_name=other), seed=0)
    assert (len(train), held_out["prompt"][:]) == (10, ["Other?"])


def test_other_columns_are_kept_for_reward_functions(tmp_path):
    path = write(tmp_path / "prompts.jsonl", [{"prompt": f"Question {n}?", "answer": n} for n in range(10)])
    parts = load_prompt_splits(RecipeArguments(dataset_name=path, eval_fraction=0.2), seed=0, all_columns=True)
    for part in parts:
        assert part["prompt"][:] == [f"Question {n}?" for n in part["answer"]]


def test_prompts_of_preference_pairs_are_divided_by_prompt(tmp_path):
    """Data of pairs often have several for a prompt."""
    path = write(tmp_path / "pairs.jsonl", [{"prompt": f"Question {n // 4}?"} for n in range(40)])
    train, held_out = load_prompt_splits(RecipeArguments(dataset_name=path, eval_fraction=0.2), seed=0)
    assert (len(train), len(held_out)) == (32, 8)
    assert not {*train["prompt"]} & {*held_out["prompt"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, {"question": "b"}], r"row 2, column 'prompt': it is missing here. Every row needs one"),
        ([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}], r"row 2, .*Use one of the two throughout"),
        ([{"prompt": " "}], r"row 1, column 'prompt': it is empty"),
        ([{"prompt": 3}], r"row 1, column 'prompt': it is a int"),
        ([{"prompt": "a", "tools": []}, {"prompt": "b", "tools": [{"name": "c"}]}], r"row 2, column 'tools': it would"),
        (
            [{"prompt": "a", "chat_template_kwargs": {"b": 1}}],
            r"column 'chat_template_kwargs': it would have no effect",
        ),
    ],
)
def test_bad_prompt_names_its_row(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_prompt_splits(RecipeArguments(dataset_name=write(tmp_path / "prompts.jsonl", rows)), seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_fraction": 1.0}, "cannot be held out"),
        ({"max_train_samples": 0}, "--max_train_samples must be at least 1"),
        ({"dataset_streaming": True}, "Drop dataset_streaming"),
    ],
)
def test_option_that_cannot_work(options, message, tmp_path):
    path = write(tmp_path / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(DataError, match=message):
        load_prompt_splits(RecipeArguments(dataset_name=path, **options), seed=0)


def test_half_a_character_in_a_column_for_reward_functions_names_its_row(tmp_path):
    path = write(tmp_path / "prompts.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d\ud83d"}])
    with pytest.raises(DataError, match=r"row 2, column 'answer': it holds '\\ud83d', half of a character"):
        load_prompt_splits(RecipeArguments(dataset_name=path), seed=0, all_columns=True)
