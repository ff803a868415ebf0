"""Reading files: every format, and one clear line where something is not what its name says."""

import errno
import json
import os
from pathlib import Path

import pytest
from datasets import Dataset
from preference_rows import CHAT, GOOD, load, message, refusal, splits, write

from rlhf_ext.data_checks import DataError
from rlhf_ext.data_files import read_splits


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
    loaded = load(path, extra_columns=extra)
    assert loaded.to_list() == dataset.to_list()


def test_the_hub_reader_takes_whatever_datasets_takes(tmp_path):
    write(tmp_path, [GOOD, GOOD], "train.jsonl")
    write(tmp_path, [GOOD], "test.jsonl")
    loaded = splits(str(tmp_path))
    assert [len(part) for part in loaded] == [2, 1]


def test_a_file_is_cached_on_disk_so_that_processes_share_what_is_computed_from_it(tmp_path):
    path = write(tmp_path, [GOOD])
    first, second = (load(path) for _ in range(2))
    assert first.cache_files == second.cache_files != []


def test_long_and_strange_csv_cells(tmp_path):
    path = write(tmp_path, ["prompt,chosen,rejected", f"a\u2028b,{'c' * 200_000},d"], "pairs.csv")
    assert load(path)["prompt"] == ["a\u2028b"]


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = write(tmp_path, ["\ufeff" + json.dumps(GOOD), "", "  ", json.dumps(GOOD), ""])
    assert len(load(path)) == 2


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, [GOOD], "preferences.jsonl")
    assert "there is no such file. Did you mean" in refusal(str(tmp_path / "preference.jsonl"))


def test_missing_dataset_says_what_a_local_file_looks_like():
    with pytest.raises(DataError, match=r"no-such-user/no-such-dataset: it cannot be loaded .*\.jsonl"):
        read_splits("no-such-user/no-such-dataset")


def test_empty_file(tmp_path):
    assert "it holds no rows" in refusal(write(tmp_path, []))


def test_file_that_is_not_what_its_name_says(tmp_path):
    (tmp_path / "pairs.parquet").write_bytes(b"not parquet")
    assert "it cannot be read" in refusal(str(tmp_path / "pairs.parquet"))


def test_file_that_fails_to_be_read(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    path = write(tmp_path, [GOOD])
    monkeypatch.setattr(Path, "read_bytes", fail)
    assert "it cannot be read (Input/output error). Check that you may read it." in refusal(path)


@pytest.mark.parametrize("denied", ["file", "folder"])
def test_file_that_one_may_not_read(denied, tmp_path):
    path = tmp_path / "private" / "pairs.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(GOOD))
    closed = path if denied == "file" else path.parent
    closed.chmod(0)
    try:
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
        assert "it cannot be read (Permission denied). Check that you may read it." in refusal(str(path))
    finally:
        closed.chmod(0o700)


def test_invalid_json_line(tmp_path):
    text = refusal(write(tmp_path, [GOOD, '{"prompt": "a", ']))
    assert ", row 2: it is not valid JSON" in text


def test_line_that_is_no_object(tmp_path):
    assert ", row 1: it is a list. Each row must be a JSON object." in refusal(write(tmp_path, ["[1, 2]"]))


def test_json_file_that_is_no_list(tmp_path):
    assert "must be a list of objects" in refusal(write(tmp_path, ["3"], "pairs.json"))


@pytest.mark.parametrize("count", [1, 2])
def test_json_lines_under_the_other_name(count, tmp_path):
    text = refusal(write(tmp_path, [GOOD] * count, "pairs.json"))
    assert "If each line holds one object, rename it to pairs.jsonl." in text


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("pairs.jsonl", json.dumps(GOOD) + '\n{"prompt": "caf\xe9"}', "row 2"),
        ("pairs.json", '[\n{"prompt": "caf\xe9"}]', "line 2"),
        ("pairs.csv", "prompt,chosen,rejected\na,b,c\n\xe9,d,e\n", "row 2"),
        ("pairs.csv", 'prompt,chosen,rejected\n"two\nlines",b,c\nd,"caf\xe9",e\n', "row 2"),
        ("pairs.csv", "prompt,chosen,caf\xe9\na,b,c\n", "the header"),
    ],
)
def test_wrong_encoding_names_the_place(name, text, place, tmp_path):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert f", {place}: byte 0xe9 is not UTF-8. Save it as UTF-8." in refusal(str(tmp_path / name))


def test_csv_with_a_loose_comma(tmp_path):
    path = write(tmp_path, ["prompt,chosen,rejected", "a b,c,d", "a, b,c,d"], "pairs.csv")
    assert ", row 2: it has another number of fields" in refusal(path)


@pytest.mark.parametrize("tools", [("[]", [1]), ([{"name": "a"}], 5), ([{"name": "a"}], {"name": "b"}), ("5", 5)])
def test_columns_that_fit_no_table(tools, tmp_path):
    text = refusal(write(tmp_path, [CHAT | {"tools": value} for value in tools]))
    assert "column 'tools': its rows do not fit one table (" in text
    assert text.endswith("Every column needs one type throughout.")


def call(name, arguments):
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


@pytest.mark.parametrize(
    "arguments",
    [
        [{"city": "Rome"}, {"minutes": 5}],
        [{}, {}],
        [{"amount": 5}, {"amount": 2.5}],
        [{"amount": 5}, {"amount": "5"}],
        [{"amount": 5}, '{"amount": 5}'],
        [{"from": "Rome", "to": "Bern"}, {"to": "Rome", "from": "Bern"}],
        [{"stops": [{"city": "Rome"}, {"minutes": 5}]}, {"stops": None}],
    ],
)
def test_objects_hold_what_the_file_has_and_no_more(arguments, tmp_path):
    """Arrow has one type for a column: it would fill up, convert or reorder what differs between rows."""
    rows = [CHAT | {"chosen": [call("act", a), *CHAT["chosen"]], "tools": [{"parameters": a}]} for a in arguments]
    loaded = load(write(tmp_path, rows))
    assert repr(loaded.to_list()) == repr(rows)
    assert repr(loaded.map(lambda row: {"size": 1}).remove_columns("size").to_list()) == repr(rows)


def test_text_in_messages_stays_text_beside_parts(tmp_path):
    parts = [{"type": "text", "text": "How do I boil an egg?"}]
    rows = [CHAT | {"prompt": [message("user", content)]} for content in ("42", parts)]
    assert load(write(tmp_path, rows)).to_list() == rows


@pytest.mark.parametrize(
    ("number", "expected"),
    [("NaN", "nan would become None."), ("1e-12", "1e-12 would become 0.0."), ("1" + "0" * 30, "")],
)
def test_numbers_that_no_table_keeps(number, expected, tmp_path):
    rows = [CHAT | {"tools": [{"name": 1}]}, json.dumps(CHAT | {"tools": [{"size": 0}]}).replace("0", number)]
    text = refusal(write(tmp_path, rows))
    assert f"column 'tools': in a table, {expected}" in text and text.endswith(" Write it as text.")
