"""Reading files and refusing bad rows: each refusal names the file, the row, the column and the fix."""

import json
import math

import pytest
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.data import load_preference_dataset, load_preference_splits
from rlhf_ext.data_checks import DataError, check_extra_columns, check_preference_rows
from rlhf_ext.lengths import check_lengths, check_pair_lengths, dropped_report, truncation_report

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


def refusal(path, **options):
    with pytest.raises(DataError) as error:
        load_preference_dataset(path, **options)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("suffix", "row"),
    [
        *((suffix, GOOD) for suffix in ("jsonl", "json", "csv", "parquet")),
        *((suffix, CHAT) for suffix in ("jsonl", "json", "parquet")),  # a CSV cell cannot hold messages
    ],
)
def test_every_format_reads_the_same_rows(suffix, row, tmp_path):
    rows = [row, row | {"chosen": row["rejected"], "rejected": row["chosen"]}]
    path = str(tmp_path / f"pairs.{suffix}")
    dataset = Dataset.from_list(rows)
    if suffix == "json":
        write(tmp_path, [json.dumps(rows)], "pairs.json")
    elif suffix == "jsonl":
        write(tmp_path, rows)
    else:
        getattr(dataset, f"to_{suffix}")(path)
    extra = ["margin"] if "margin" in row else []
    loaded = load_preference_dataset(path, extra_columns=extra)["train"]
    assert loaded.to_list() == dataset.to_list()


def test_the_hub_reader_takes_whatever_datasets_takes(tmp_path):
    write(tmp_path, [GOOD, GOOD], "train.jsonl")
    write(tmp_path, [GOOD], "test.jsonl")
    splits = load_preference_dataset(str(tmp_path), extra_columns=["margin"])
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "test": 1}


def test_unused_columns_may_hold_anything(tmp_path):
    path = write(tmp_path, [GOOD | {"meta": 1}, GOOD | {"meta": {"a": [None]}}])
    assert load_preference_dataset(path)["train"].column_names == ["prompt", "chosen", "rejected"]


def test_columns_that_only_later_rows_have_are_kept(tmp_path):
    path = write(tmp_path, [GOOD, GOOD | {"tools": "[]"}])
    assert load_preference_dataset(path)["train"]["tools"] == [None, "[]"]


def test_numbers_of_different_types_become_one(tmp_path):
    path = write(tmp_path, [GOOD | {"margin": True}, GOOD | {"margin": 10**20}, GOOD])
    assert load_preference_dataset(path, extra_columns=["margin"])["train"]["margin"] == [1.0, 1e20, 1.5]


def test_columns_that_fit_no_table(tmp_path):
    assert "do not fit one table" in refusal(write(tmp_path, [GOOD | {"tools": "[]"}, GOOD | {"tools": [1]}]))


def test_a_file_is_cached_on_disk_so_that_processes_share_what_is_computed_from_it(tmp_path):
    path = write(tmp_path, [GOOD])
    first, second = (load_preference_dataset(path)["train"] for _ in range(2))
    assert first.cache_files == second.cache_files != []


def test_legitimate_chats_are_accepted(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    prompt = [message("system", ""), message("user", "Hi"), call, message("tool", "")]
    load_preference_dataset(write(tmp_path, [CHAT | {"prompt": prompt}]))


def test_long_and_strange_csv_cells(tmp_path):
    path = write(tmp_path, ["prompt,chosen,rejected", f"a\u2028b,{'c' * 200_000},d"], "pairs.csv")
    assert load_preference_dataset(path)["train"]["prompt"] == ["a\u2028b"]


def test_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="the recipes train on text"):
        splits(write(tmp_path, [GOOD | {"image": "a.png"}] * 3))


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = write(tmp_path, ["\ufeff" + json.dumps(GOOD), "", "  ", json.dumps(GOOD), ""])
    assert len(load_preference_dataset(path)["train"]) == 2


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, [GOOD], "preferences.jsonl")
    assert "there is no such file. Did you mean" in refusal(str(tmp_path / "preference.jsonl"))


def test_missing_dataset_says_what_a_local_file_looks_like():
    text = refusal("no-such-user/no-such-dataset")
    assert "cannot be loaded" in text and ".jsonl" in text


def test_empty_file(tmp_path):
    assert "it holds no rows" in refusal(write(tmp_path, []))


def test_unreadable_file(tmp_path):
    (tmp_path / "pairs.parquet").write_bytes(b"not parquet")
    assert "it cannot be read" in refusal(str(tmp_path / "pairs.parquet"))


def test_invalid_json_line(tmp_path):
    text = refusal(write(tmp_path, [GOOD, '{"prompt": "a", ']))
    assert ", row 2: it is not valid JSON" in text


def test_line_that_is_no_object(tmp_path):
    assert ", row 1: it is a list. Each row must be a JSON object." in refusal(write(tmp_path, ["[1, 2]"]))


def test_json_file_that_is_no_list(tmp_path):
    assert "must be a list of objects" in refusal(write(tmp_path, [GOOD], "pairs.json"))


def test_wrong_encoding_names_the_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + '{"prompt": "caf\xe9"}'.encode("latin-1"))
    assert ", row 2: byte 0xe9 is not UTF-8. Save it as UTF-8." in refusal(str(path))


def test_csv_with_a_loose_comma(tmp_path):
    path = write(tmp_path, ["prompt,chosen,rejected", "a b,c,d", "a, b,c,d"], "pairs.csv")
    assert ", row 2: it has another number of fields" in refusal(path)


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


def test_implicit_prompt_that_is_no_common_beginning(tmp_path):
    good = {"chosen": "Q: why? A: yes", "rejected": "Q: why? A: no"}
    text = refusal(write(tmp_path, [good, {"chosen": "Yes, do.", "rejected": "Q: why? A: no"}]))
    assert "row 2, column 'chosen': 'chosen' and 'rejected' do not begin with the same prompt" in text


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


@pytest.mark.parametrize("kind", ["plain", "conversational", "implicit"])
def test_prompts_that_all_fill_max_length(kind, tokenizer):
    row = {"plain": GOOD, "conversational": CHAT, "implicit": {"chosen": "Q: a? A: b", "rejected": "Q: a? A: c"}}[kind]
    dataset = Dataset.from_list([row])
    check_lengths(dataset, tokenizer, 100, source="pairs.jsonl")
    check_lengths(dataset, tokenizer, None, source="pairs.jsonl")
    with pytest.raises(DataError, match=r"every prompt has at least max_length=2 tokens. Raise --max_length above \d+"):
        check_lengths(dataset, tokenizer, 2, source="pairs.jsonl")


@pytest.mark.parametrize("kind", ["plain", "conversational", "implicit"])
def test_pairs_that_are_all_longer_than_max_length(kind, tokenizer):
    """The length that the message asks for is the one at which the pair fits, and not before."""
    row = {"plain": GOOD, "conversational": CHAT, "implicit": {"chosen": "Q: a? A: b", "rejected": "Q: a? A: c"}}[kind]
    dataset = Dataset.from_list([row])
    check_pair_lengths(dataset, tokenizer, None, source="pairs.jsonl")
    with pytest.raises(
        DataError, match=r"every pair is longer than max_length=2 tokens. Raise --max_length to"
    ) as error:
        check_pair_lengths(dataset, tokenizer, 2, source="pairs.jsonl")
    needed = int(str(error.value).partition("--max_length to ")[2].split()[0])
    check_pair_lengths(dataset, tokenizer, needed, source="pairs.jsonl")
    with pytest.raises(DataError):
        check_pair_lengths(dataset, tokenizer, needed - 1, source="pairs.jsonl")


def test_dropped_report_counts_the_rows_that_were_too_long():
    rows = Dataset.from_list([GOOD] * 5)
    assert "3 of 5 training rows are longer" in dropped_report(rows, rows.select(range(2)), 7)
    assert dropped_report(rows, rows, 7) is None
    assert dropped_report(rows, rows.select(range(2)), None) is None


def test_conversations_need_a_chat_template(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(DataError, match="has no chat template"):
        check_lengths(Dataset.from_list([CHAT]), tokenizer, 100, source="pairs.jsonl")


def test_truncation_report_counts_dropped_and_cut_rows():
    prepared = Dataset.from_list(
        [
            {"prompt_ids": [1] * 3, "chosen_ids": [1] * 2, "rejected_ids": [1] * 5},
            {"prompt_ids": [1] * 3, "chosen_ids": [1] * 2, "rejected_ids": [1] * 4},
        ]
    )
    assert "of 5 training rows, 3 are dropped" in truncation_report(Dataset.from_list([GOOD] * 5), prepared, 7)
    assert "and 1 lose the end" in truncation_report(Dataset.from_list([GOOD] * 5), prepared, 7)
    assert truncation_report(prepared, prepared, 8) is None
    assert truncation_report(prepared, prepared, None) is None


def splits(path, **options):
    return load_preference_splits(RecipeArguments(dataset_name=path, **options), extra_columns=[], seed=7)


def rows(count, offset=0):
    return [GOOD | {"chosen": f"Use pot {i + offset}."} for i in range(count)]


def test_held_out_rows_are_not_trained_on(tmp_path):
    train, held_out = splits(write(tmp_path, rows(20)), eval_fraction=0.25)
    assert (len(train), len(held_out)) == (15, 5)
    assert not set(train["chosen"]) & set(held_out["chosen"])
    assert splits(write(tmp_path, rows(20)), eval_fraction=0.25)[1]["chosen"] == held_out["chosen"]


def test_columns_that_training_does_not_read_are_named(tmp_path, capsys):
    path = write(tmp_path, [GOOD | {"source": "web", "meta": i} for i in range(4)])
    load_preference_dataset(path, extra_columns=["margin"])
    assert f"{path}: training does not read the columns meta, source (--extra_columns" in capsys.readouterr().out
    load_preference_dataset(write(tmp_path, [GOOD], "other.jsonl"), extra_columns=["margin"])
    assert capsys.readouterr().out == ""


def test_optional_column_is_kept_and_checked_where_it_is(tmp_path):
    bare = {key: value for key, value in GOOD.items() if key != "margin"}
    with_margin, without = write(tmp_path, [GOOD]), write(tmp_path, [bare], "bare.jsonl")
    assert load_preference_dataset(with_margin, optional_columns=["margin"])["train"]["margin"] == [1.5]
    assert "margin" not in load_preference_dataset(without, optional_columns=["margin"])["train"].column_names
    with pytest.raises(DataError, match="row 2, column 'margin': nan is not a finite number"):
        load_preference_dataset(
            write(tmp_path, [GOOD, GOOD | {"margin": float("nan")}], "nan.jsonl"), optional_columns=["margin"]
        )


def test_chat_template_keywords_are_kept_for_trl(tmp_path):
    path = write(tmp_path, [CHAT | {"chat_template_kwargs": {"thinking": False}}])
    assert load_preference_dataset(path)["train"]["chat_template_kwargs"] == [{"thinking": False}]


def test_evaluation_file_and_sample_limits(tmp_path):
    path, other = write(tmp_path, rows(20)), write(tmp_path, rows(9, offset=50), "eval.jsonl")
    train, held_out = splits(path, eval_dataset_name=other, max_train_samples=4, max_eval_samples=100)
    assert (len(train), len(held_out)) == (4, 9)
    assert "Use pot 50." in held_out["chosen"]


def test_evaluation_file_with_the_demo(tmp_path):
    assert len(splits(None, eval_dataset_name=write(tmp_path, rows(4)))[1]) == 4


def test_at_least_one_row_is_left_to_train_on(tmp_path):
    assert [len(part) for part in splits(write(tmp_path, rows(3)), eval_fraction=0.9)] == [1, 2]


def test_demo_writes_as_many_pairs_as_are_asked_for():
    args = RecipeArguments(max_train_samples=2100, max_eval_samples=310)
    train, held_out = load_preference_splits(args, extra_columns=[], seed=7)
    assert len(train) == 2100 and len({str(row) for row in train}) > 2000
    assert len(held_out) == 310


def test_demo_without_a_name_is_evaluated_without_label_noise():
    train, held_out = splits(None)
    assert min(train["gold_margin"]) < 0 < min(held_out["gold_margin"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset_train_split": "training"}, "there is no split 'training'. It has: train"),
        ({"eval_fraction": 0.0}, "0 of 20 rows cannot be held out"),
        ({"max_train_samples": 0}, "--max_train_samples must be at least 1"),
        ({"dataset_streaming": True}, "dataset_streaming has no effect on a local file"),
    ],
)
def test_options_that_do_not_fit_the_data(options, expected, tmp_path):
    with pytest.raises(DataError, match=expected):
        splits(write(tmp_path, rows(20)), **options)
