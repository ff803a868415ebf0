"""Preference pairs: which rows are refused, each with file, row, column and fix named, and what becomes of others."""

import math

import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from preference_rows import CHAT, GOOD, load, message, refusal, splits, write
from trl import extract_prompt

from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.data import load_preference_splits
from rlhf_ext.data_checks import DataError, check_extra_columns, check_preference_rows


def test_unused_columns_may_hold_anything(tmp_path):
    path = write(tmp_path, [GOOD | {"meta": 1}, GOOD | {"meta": {"a": [None]}}])
    assert load(path).column_names == ["prompt", "chosen", "rejected"]


def test_columns_that_only_later_rows_have_are_kept(tmp_path):
    path = write(tmp_path, [CHAT, CHAT | {"tools": "[]"}])
    assert load(path)["tools"] == [None, "[]"]


def test_numbers_of_different_types_become_one(tmp_path):
    path = write(tmp_path, [GOOD | {"margin": True}, GOOD | {"margin": 10**20}, GOOD])
    assert load(path, extra_columns=["margin"])["margin"] == [1.0, 1e20, 1.5]


def test_legitimate_chats_are_accepted(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    prompt = [message("system", ""), message("user", "Hi"), call, message("tool", "")]
    load(write(tmp_path, [CHAT | {"prompt": prompt}]))


def test_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="the recipes train on text"):
        splits(write(tmp_path, [GOOD | {"image": "a.png"}] * 3))


BAD_ROWS = {
    "no chosen": ({"prompt": "a", "rejected": "b"}, "there is no column 'chosen'"),
    "misspelt": ({"prompt": "a", "choosen": "b", "rejected": "c"}, "Rename 'choosen' to 'chosen'"),
    "no margin": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "there is no column 'margin'"),
    "equal": (GOOD | {"chosen": "No."}, "column 'rejected': 'chosen' and 'rejected' are equal"),
    "empty": (GOOD | {"chosen": " \n"}, "column 'chosen': it is empty"),
    "empty prompt": (GOOD | {"prompt": ""}, "column 'prompt': it is empty"),
    "null": (GOOD | {"rejected": None}, "column 'rejected': it is missing here"),
    "number": (GOOD | {"chosen": 3}, "column 'chosen': it is a int. It must be text"),
    "mixed columns": (GOOD | {"rejected": CHAT["rejected"]}, "column 'rejected': it is a list of messages, but"),
    "no message": (CHAT | {"margin": 1, "prompt": ["hello"]}, "column 'prompt': 'hello' is not a message"),
    "no messages": (CHAT | {"margin": 1, "prompt": []}, "column 'prompt': the list of messages is empty"),
    "empty message": (
        CHAT | {"margin": 1, "chosen": [message("assistant", "")]},
        "column 'chosen': a message is empty",
    ),
    "wrong role": (CHAT | {"margin": 1, "chosen": [message("user", "a")]}, "column 'chosen': it ends with role 'user'"),
    "half an emoji": (GOOD | {"chosen": "Use \ud83d"}, r"column 'chosen': it holds '\ud83d', half of a character"),
    "half an emoji in a message": (
        CHAT | {"margin": 1, "prompt": [message("user", "Use \ud83d")]},
        "column 'prompt': it holds",
    ),
    "half an emoji in tools": (CHAT | {"margin": 1, "tools": [{"\ude00": 1}]}, "column 'tools': it holds"),
    "nan": (GOOD | {"margin": math.nan}, "column 'margin': nan is not a finite number"),
    "infinite": (GOOD | {"margin": math.inf}, "column 'margin': inf is not a finite number"),
    "text margin": (GOOD | {"margin": "high"}, "column 'margin': 'high' is not a finite number"),
    "no margin here": (GOOD | {"margin": None}, "column 'margin': it is missing here"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row(case, tmp_path):
    row, expected = BAD_ROWS[case]
    assert expected in refusal(write(tmp_path, [row]), extra_columns=["margin"])


@pytest.mark.parametrize("case", [name for name in BAD_ROWS if "message" not in name and "role" not in name])
def test_bad_row_further_down_is_named_by_its_number(case, tmp_path):
    row, _ = BAD_ROWS[case]
    assert ", row 3" in refusal(write(tmp_path, [GOOD, GOOD, row]), extra_columns=["margin"])


def test_plain_and_conversational_rows_do_not_mix(tmp_path):
    text = refusal(write(tmp_path, [CHAT, GOOD]))
    assert "row 2, column 'prompt': it is plain text, but the first row has a list of messages" in text


def test_some_rows_with_prompt_and_some_without(tmp_path):
    implicit = {"chosen": "Q: a? A: b", "rejected": "Q: a? A: c"}
    assert "row 2, column 'prompt': earlier rows have no prompt" in refusal(write(tmp_path, [implicit, GOOD]))
    assert "row 2, column 'prompt': it is missing here" in refusal(write(tmp_path, [GOOD, implicit]))


ASKED, OTHER = message("user", "Why?"), message("user", "How?")
YES, NO = message("assistant", "Yes."), message("assistant", "No.")


@pytest.mark.parametrize(
    ("good", "chosen", "rejected"),
    [
        ("Q: why? A: ", "Yes, do.", "Q: why? A: no"),
        ("Q: why? A: ", "Yes, do that. ", "No, never."),  # the last space makes TRL take all the rest for the prompt
        ("Q: why? A: ", " Yes", " No"),
        ("Q: why? A: ", "\nYes", "\nNo"),
        ([ASKED], [ASKED, YES], [OTHER, YES]),
        ([ASKED], [YES], [NO]),
        ([ASKED], [message("system", "Be kind."), ASKED, YES], [message("system", "Be kind."), OTHER, NO]),
    ],
)
def test_implicit_prompt_that_is_no_common_beginning(good, chosen, rejected, tmp_path):
    plain = isinstance(good, str)
    first = (
        {"chosen": good + "yes", "rejected": good + "no"}
        if plain
        else {"chosen": [ASKED, YES], "rejected": [ASKED, NO]}
    )
    text = refusal(write(tmp_path, [first, {"chosen": chosen, "rejected": rejected}]))
    assert "row 2, column 'chosen': 'chosen' and 'rejected' do not begin with the same prompt" in text


def test_implicit_prompts_that_are_accepted(tmp_path):
    later = [ASKED, YES, OTHER]
    pairs = [([ASKED, YES], [ASKED, NO]), ([*later, YES], [*later, NO]), ([ASKED, YES], [ASKED, NO, OTHER, NO])]
    loaded = load(write(tmp_path, [{"chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]))
    assert [extract_prompt(row)["prompt"] for row in loaded] == [[ASKED], later, [ASKED]]


def test_prompt_repeated_in_every_completion(tmp_path):
    row = {"prompt": "Q: why?", "chosen": "Q: why? A: b", "rejected": "Q: why? A: c"}
    assert "counted twice" in refusal(write(tmp_path, [row, row | {"chosen": "Q: why? A: d"}]))


texts = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.tuples(texts, texts, texts).filter(lambda t: t[1] != t[2]), min_size=1, max_size=5))
def test_any_text_that_differs_is_accepted(rows):
    """Except where every completion begins with its prompt."""
    named = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
    if all(c.startswith(p) and r.startswith(p) for p, c, r in rows):
        with pytest.raises(DataError):
            check_preference_rows(enumerate(named, 1), source="rows")
    else:
        check_preference_rows(enumerate(named, 1), source="rows")


def test_streamed_extra_columns_are_checked_too(tmp_path):
    path = write(tmp_path, [GOOD, GOOD | {"margin": None}])
    stream = load_dataset("json", data_files=path, split="train", streaming=True)
    with pytest.raises(DataError, match=r"the train dataset, row 2, column 'margin'"):
        check_extra_columns(stream, ["margin"], source="the train dataset")


def test_columns_that_training_does_not_read_are_named(tmp_path, capsys):
    path = write(tmp_path, [GOOD | {"source": "web", "meta": i} for i in range(4)])
    load(path, extra_columns=["margin"])
    assert f"{path}: training does not read the columns meta, source (--extra_columns" in capsys.readouterr().out
    load(write(tmp_path, [GOOD], "other.jsonl"), extra_columns=["margin"])
    assert capsys.readouterr().out == ""


def test_optional_column_is_kept_and_checked_where_it_is(tmp_path):
    bare = {key: value for key, value in GOOD.items() if key != "margin"}
    with_margin, without = write(tmp_path, [GOOD]), write(tmp_path, [bare], "bare.jsonl")
    assert load(with_margin, optional_columns=["margin"])["margin"] == [1.5]
    assert "margin" not in load(without, optional_columns=["margin"]).column_names
    with pytest.raises(DataError, match="row 2, column 'margin': nan is not a finite number"):
        load(write(tmp_path, [GOOD, GOOD | {"margin": float("nan")}], "nan.jsonl"), optional_columns=["margin"])


def test_chat_template_keywords_are_kept_for_trl(tmp_path):
    path = write(tmp_path, [CHAT | {"chat_template_kwargs": {"thinking": False}}])
    assert load(path)["chat_template_kwargs"] == [{"thinking": False}]


THINKING = CHAT | {"chat_template_kwargs": {"thinking": False}}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([THINKING, CHAT], "row 2, column 'chat_template_kwargs': it holds no keywords; in the first row, thinking."),
        ([CHAT, THINKING], "row 2, column 'chat_template_kwargs': it holds thinking; in the first row, no keywords."),
        ([THINKING, CHAT | {"chat_template_kwargs": {"date": "1"}}], "it holds date; in the first row, thinking."),
        ([CHAT | {"chat_template_kwargs": None}], "row 1, column 'chat_template_kwargs': it holds no keywords"),
        ([CHAT | {"chat_template_kwargs": "thinking"}], "Give every row a mapping with the same keywords, or drop"),
        ([GOOD | {"chat_template_kwargs": {"thinking": False}}], "it has no effect on plain text."),
        ([GOOD | {"tools": "[]"}], "row 1, column 'tools': it has no effect on plain text. Drop the column"),
    ],
)
def test_chat_options_that_would_be_ignored_or_fail_are_refused(rows, expected, tmp_path):
    assert expected in refusal(write(tmp_path, rows))


def test_demo_writes_as_many_pairs_as_are_asked_for():
    args = RecipeArguments(max_train_samples=2100, max_eval_samples=310)
    train, held_out = load_preference_splits(args, extra_columns=[], seed=7)
    assert len(train) == 2100 and len({str(row) for row in train}) > 2000
    assert len(held_out) == 310


def test_demo_without_a_name_is_evaluated_without_label_noise():
    train, held_out = splits(None)
    assert min(train["gold_margin"]) < 0 < min(held_out["gold_margin"])
