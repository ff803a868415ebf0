"""Rows to train on and rows to evaluate on: where each come from, and that no prompt is on both sides."""

import json
import random

import pytest
from datasets import Dataset
from preference_rows import GOOD, splits, write

from rlhf_ext.data_checks import DataError
from rlhf_ext.splits import hold_out, prompt_keys


def rows(count, offset=0, pairs=1):
    return [GOOD | {"prompt": f"Egg {i // pairs + offset}?", "chosen": f"Use pot {i + offset}."} for i in range(count)]


def test_held_out_rows_are_not_trained_on(tmp_path):
    train, held_out = splits(write(tmp_path, rows(20)), eval_fraction=0.25)
    assert (len(train), len(held_out)) == (15, 5)
    assert not set(train["chosen"]) & set(held_out["chosen"])
    assert splits(write(tmp_path, rows(20)), eval_fraction=0.25)[1]["chosen"] == held_out["chosen"]


def hold_out_from(prompts, fraction=0.1, seed=0):
    """Hold out from rows with these prompts, and check that each row is on one side and each prompt too."""
    data = Dataset.from_dict({"prompt": prompts, "row": range(len(prompts))})
    train, held_out = hold_out(data, fraction, seed, source="pairs.jsonl")
    assert sorted([*train["row"], *held_out["row"]]) == [*range(len(prompts))]
    assert not {*train["prompt"]} & {*held_out["prompt"]} and len(train) and len(held_out)
    return train, held_out


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.95])
def test_about_the_fraction_asked_for_is_held_out_by_prompt(fraction):
    """Questions with two to seven pairs each, as in TruthfulQA: off by less than the pairs of one question."""
    draw = random.Random(0)
    prompts = [f"Question {i}?" for i in range(200) for _ in range(draw.randint(2, 7))]
    draw.shuffle(prompts)
    wanted = fraction * len(prompts)
    assert wanted - 7 < len(hold_out_from(prompts, fraction)[1]) <= max(wanted, 7) + 1


def test_what_is_held_out_depends_on_the_seed_alone():
    prompts = [f"Question {i % 30}?" for i in range(90)]
    parts = [hold_out_from(prompts, seed=seed)[1]["row"][:] for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2]


def test_a_prompt_that_most_rows_share_is_trained_on():
    assert "often" not in hold_out_from(["often"] * 90 + [f"once {i}" for i in range(10)])[1]["prompt"]
    assert hold_out_from(["often"] * 9 + ["less"] * 8)[1]["prompt"][:] == ["less"] * 8


def test_rows_of_one_prompt_cannot_be_divided():
    with pytest.raises(DataError, match=r"0.1 of 9 rows with 1 prompt cannot be held out. It needs at least 2 prompts"):
        hold_out_from(["the same"] * 9)


USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
GREETING, SYSTEM = {"role": "assistant", "content": "Hi!"}, {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Why?", "chosen": "a", "rejected": "b"}, "Why?"),
        ({"prompt": [USER], "completion": [ANSWER]}, [USER]),
        ({"chosen": "Q: why? A: yes", "rejected": "Q: why? A: no"}, "Q: why? A:"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, GREETING]}, [USER]),
        ({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]}, [SYSTEM, USER]),
        ({"messages": [GREETING, USER, ANSWER]}, [GREETING, USER]),
        ({"text": "Once."}, "Once."),
    ],
)
def test_what_counts_as_the_prompt_of_a_row(row, prompt):
    (key,) = prompt_keys(Dataset.from_list([row]))
    assert (key if isinstance(prompt, str) else json.loads(key)) == prompt


def test_shared_prompts_are_counted(tmp_path, capsys):
    path, other = write(tmp_path, rows(20)), write(tmp_path, rows(6, offset=17), "eval.jsonl")
    splits(path, eval_dataset_name=other)
    assert f"{other}: 3 of 6 rows to evaluate on have a prompt that is trained on" in capsys.readouterr().out
    splits(path, eval_dataset_name=write(tmp_path, rows(6, offset=20), "fresh.jsonl"))
    splits(path)
    splits(None)
    assert capsys.readouterr().out.count("trained on") == 0


def hub(tmp_path, **parts):
    for name, part in parts.items():
        write(tmp_path, part, f"{name}.jsonl")
    return str(tmp_path)


def test_splits_of_the_hub(tmp_path, capsys):
    name = hub(tmp_path, train=rows(8), test=rows(4, offset=7))
    assert [len(part) for part in splits(name)] == [8, 4]
    assert "1 of 4 rows to evaluate on have a prompt that is trained on" in capsys.readouterr().out
    assert [len(part) for part in splits(name, dataset_test_split="train")] == [8, 8]


def test_evaluation_file_and_sample_limits(tmp_path):
    path, other = write(tmp_path, rows(20)), write(tmp_path, rows(9, offset=50), "eval.jsonl")
    train, held_out = splits(path, eval_dataset_name=other, max_train_samples=4, max_eval_samples=100)
    assert (len(train), len(held_out)) == (4, 9)
    assert "Use pot 50." in held_out["chosen"]


def test_evaluation_file_with_the_demo(tmp_path):
    assert len(splits(None, eval_dataset_name=write(tmp_path, rows(4)))[1]) == 4


def test_at_least_one_row_is_left_to_train_on(tmp_path):
    assert [len(part) for part in splits(write(tmp_path, rows(3)), eval_fraction=0.9)] == [1, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset_train_split": "training"}, "there is no split 'training'. It has: train"),
        ({"eval_fraction": 0.0}, "0 of 20 rows with 20 prompts cannot be held out"),
        ({"max_train_samples": 0}, "--max_train_samples must be at least 1"),
        ({"dataset_streaming": True}, "--dataset_streaming has no effect on a local file"),
        ({"dataset_config": "en"}, "--dataset_config has no effect on a local file"),
        ({"dataset_test_split": "test"}, "--dataset_test_split has no effect on a local file"),
        ({"eval_fraction": 0.1, "eval_dataset_name": "x.jsonl"}, "x.jsonl: --eval_fraction has no effect on a local f"),
    ],
)
def test_options_that_do_not_fit_a_file(options, expected, tmp_path):
    with pytest.raises(DataError, match=expected):
        splits(write(tmp_path, rows(20)), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"dataset_config": "en"},
        {"dataset_streaming": True},
        {"dataset_test_split": "test"},
        {"eval_fraction": 0.2},
        {"dataset_train_split": "training"},
    ],
)
def test_options_that_do_not_fit_the_demo(options):
    with pytest.raises(DataError, match=r"^the embedded demo: (--\w+ has no effect|there is no split)"):
        splits(None, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset_test_split": "tset"}, "there is no split 'tset'. It has: "),
        (
            {"dataset_test_split": "test", "eval_fraction": 0.1},
            "--eval_fraction has no effect: there is a split 'test'",
        ),
        ({"eval_fraction": 0.1}, "--eval_fraction has no effect: there is a split 'test' to evaluate on. Drop"),
    ],
)
def test_options_that_do_not_fit_the_hub(options, expected, tmp_path):
    with pytest.raises(DataError, match=expected):
        splits(hub(tmp_path, train=rows(8), test=rows(4)), **options)
