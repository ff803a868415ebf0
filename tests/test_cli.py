"""The command `rlhf-ext`: arguments, files and standard input in, JSON lines out, errors in one line."""

import io
import json
import os
import subprocess
import sys
from datetime import date
from decimal import Decimal

import pytest
from datasets import Dataset

from rlhf_ext import RewardModel, RewardModelEnsemble
from rlhf_ext.cli import main

QUESTION = [{"role": "user", "content": "How do I boil an egg?"}]
ANSWER = [{"role": "assistant", "content": "In a pot of water."}]
OTHER = [{"role": "assistant", "content": "No idea."}]


@pytest.fixture(scope="module")
def reward_model(reward_folder):
    return RewardModel.from_pretrained(reward_folder)


@pytest.fixture
def run(reward_folder, capsys, monkeypatch):
    """A function that runs a command on the tiny reward model and returns its JSON lines."""

    def run(command, *options, stdin=None, status=0):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8"))))
        assert main([command, "--model", reward_folder, *options]) == status
        out, err = capsys.readouterr()
        if status:
            assert err.startswith("error: ") and len(err.splitlines()) == 1 and not out
            return err
        return [json.loads(line) for line in out.splitlines()]

    return run


def test_texts_as_arguments(run, reward_model):
    texts = ["Hello.", "How do I boil an egg?"]
    lines = run("score", *texts)
    assert [line["text"] for line in lines] == texts
    assert [line["score"] for line in lines] == pytest.approx(reward_model.score(texts), abs=1e-5)


def test_completions_of_a_prompt_as_arguments(run, reward_model):
    lines = run("score", "--prompt", "How do I boil an egg?", " In a pot.", " No.")
    assert [set(line) for line in lines] == [{"prompt", "completion", "score"}] * 2
    pairs = [("How do I boil an egg?", " In a pot."), ("How do I boil an egg?", " No.")]
    assert [line["score"] for line in lines] == pytest.approx(reward_model.score(pairs), abs=1e-5)


def test_standard_input_holds_texts_and_objects(run, reward_model):
    row = {"prompt": QUESTION, "completion": ANSWER, "id": 7}
    lines = run("score", stdin=f"Hello.\r\n\n  {json.dumps(row)}\nÄ word.\n")
    assert [line.get("text") for line in lines] == ["Hello.", None, "Ä word."]
    assert lines[1]["id"] == 7 and lines[1]["prompt"] == QUESTION  # a row comes out as it was
    expected = reward_model.score(["Hello.", (QUESTION, ANSWER), "Ä word."])
    assert [line["score"] for line in lines] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "rows.jsonl",
            '{"prompt": "Hi ", "response": "there.", "rating": 3}\n\n{"prompt": "Hi ", "response": "you."}\n',
        ),
        ("rows.json", '[{"prompt": "Hi ", "completion": "there."}, {"prompt": "Hi ", "completion": "you."}]'),
        ("rows.csv", "prompt,response\nHi ,there.\nHi ,you.\n"),
        ("ROWS.CSV", "prompt,response\nHi ,there.\nHi ,you.\n"),
        ("texts.txt", "Hi there.\nHi you.\n"),
    ],
)
def test_files(name, content, run, reward_model, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    lines = run("score", "--file", str(path))
    assert [line["score"] for line in lines] == pytest.approx(reward_model.score(["Hi there.", "Hi you."]), abs=1e-5)
    assert lines[0].get("rating") == (3 if name == "rows.jsonl" else None)


def test_conversations_in_a_csv_file_are_refused(run, tmp_path):
    """There every cell is text, and would be scored as such."""
    path = tmp_path / "rows.csv"
    path.write_text('messages\n"[{""role"": ""user"", ""content"": ""Hi""}]"\n')
    message = run("score", "--file", str(path), status=1)
    assert "row 1, column 'messages': it is no list of messages. A .csv file holds text alone: use .jsonl." in message


def test_conversations_in_a_file(run, reward_model, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": QUESTION + ANSWER}) + "\n")
    assert run("score", "--file", str(path))[0]["score"] == pytest.approx(
        reward_model.score(QUESTION + ANSWER), abs=1e-5
    )


def test_columns_that_json_cannot_hold_come_out_as_text(run, tmp_path):
    others = {"day": date(2024, 2, 29), "price": Decimal("1.50"), "raw": b"\xff\x00"}
    path = str(tmp_path / "rows.parquet")
    Dataset.from_list([{"text": "Hello.", "meta": others, **others}]).to_parquet(path)
    (line,) = run("score", "--file", path)
    expected = {"day": "2024-02-29", "price": "1.50", "raw": "/wA="}
    assert line == {"text": "Hello.", "meta": expected, **expected, "score": line["score"]}


def test_column_with_half_a_character_comes_out_as_it_was(run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "Hello.", "note": "\ud83d"}))
    assert run("score", "--file", str(path))[0]["note"] == "\ud83d"


def test_compare_two_arguments(run, reward_model):
    line = run("compare", "--prompt", "How do I boil an egg?", " In a pot.", " No.")[0]
    expected = reward_model.compare(" In a pot.", " No.", prompt="How do I boil an egg?")
    for key, value in expected.items():
        assert line[key] == (value if key == "preference" else pytest.approx(value, abs=1e-5))
    assert (line["prompt"], line["a"], line["b"]) == ("How do I boil an egg?", " In a pot.", " No.")


def test_compare_rows_of_a_file(run, reward_model, tmp_path):
    rows = [
        {"prompt": "Hi ", "chosen": "there.", "rejected": "you.", "id": 1},
        {"prompt": QUESTION, "chosen": ANSWER, "rejected": OTHER},
        {"chosen": QUESTION + ANSWER, "rejected": QUESTION + OTHER},
        {"a": "One.", "b": "Two."},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = run("compare", "--file", str(path), "--batch_size", "3")
    first = [("Hi ", "there."), (QUESTION, ANSWER), (QUESTION, ANSWER), "One."]
    second = [("Hi ", "you."), (QUESTION, OTHER), (QUESTION, OTHER), "Two."]
    for line, row, a, b in zip(lines, rows, first, second, strict=True):
        assert {key: line[key] for key in row} == row
        assert line["score_diff"] == pytest.approx(reward_model.score(a) - reward_model.score(b), abs=1e-5)
        assert line["preference"] == ("a" if line["score_diff"] >= 0 else "b")


def test_several_models_are_an_ensemble(run, reward_folder, reward_model):
    lines = run("score", "--model", reward_folder, "--reduction", "mean_minus_std", "Hello.")
    expected = RewardModelEnsemble([reward_model] * 2, "mean_minus_std").score("Hello.")
    assert lines[0]["score"] == pytest.approx(expected, abs=1e-5)


def test_truncation_is_one_line_on_standard_error(reward_folder, capsys):
    assert main(["score", "--model", reward_folder, "--max_length", "8", "word " * 20]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err.startswith("warning: 1 of 1 texts are longer than max_length=8") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "options", "stdin", "message"),
    [
        ("score", ["fine", ""], None, "arguments, row 2: it is empty"),
        ("score", [], "", "standard input: it holds no rows"),
        ("score", [], 'fine\n{"text": 3}\n', "standard input, row 2, column 'text': 'text' is a int"),
        (
            "score",
            [],
            '{"messages": "x"}',
            "row 1, column 'messages': it is no list of messages. A .csv file holds text",
        ),
        ("score", [], '[{"text": "a"}]', "row 1: it is a list. Write one object a line"),
        ("score", [], "\n{oops\n", "standard input, row 2: it is not valid JSON"),
        ("score", [], '{"chosen": "a", "rejected": "b"}', "Use `rlhf-ext compare`"),
        ("score", [], '{"txt": "a"}', "row 1: it has 'txt'. It needs one of"),
        ("score", [], '{"text": "a", "completion": "b"}', "row 1: it has 'completion', 'text'. It needs one of"),
        ("score", [], '{"text": "a", "score": 1}', "row 1: it already has 'score'"),
        ("score", ["--prompt", "p"], '{"prompt": "a", "completion": "b"}', "a prompt of its own. Drop --prompt"),
        ("score", ["--file", "x.jsonl", "text"], None, "were both given"),
        ("score", ["--file", "missing.txt"], None, "missing.txt: No such file"),
        ("score", ["--file", "missing.jsonl"], None, "missing.jsonl: there is no such file"),
        ("score", ["--reduction", "min", "a"], None, "has no effect on one model"),
        ("score", ["--device", "nowhere", "a"], None, "there is no device 'nowhere' here"),
        ("score", ["--max_length", "1", "a"], None, "max_length=1: it must be at least 2"),
        ("compare", ["a"], None, "compare takes two texts, got 1"),
        ("compare", [], '{"a": "x", "c": "y"}', "row 1: it has 'a', 'c'. It needs 'a' and 'b'"),
        ("compare", [], '{"a": "x", "b": null}', "standard input, row 1, column 'b': "),
        ("compare", [], '{"a": "x", "b": "y", "messages": []}', "it has 'a', 'b', 'messages'. It needs 'a' and 'b'"),
        ("compare", [], '{"a": "x", "b": ""}', "standard input, row 1: it is empty"),
    ],
)
def test_bad_input_is_one_line(command, options, stdin, message, run):
    assert message in run(command, *options, stdin=stdin, status=1)


def test_row_of_a_file_is_its_line(run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": " "}\n')
    assert f"{path}, row 3: it is empty" in run("score", "--file", str(path), status=1)
    (tmp_path / "latin.txt").write_bytes("Ä".encode("latin-1"))
    assert "not UTF-8" in run("score", "--file", str(tmp_path / "latin.txt"), status=1)


@pytest.mark.parametrize(
    ("command", "row"),
    [
        ("score", {"text": "b\ud83d"}),
        ("compare", {"a": "b", "b": "c\ud83d"}),
        ("compare", {"chosen": [{"role": "assistant", "content": "\ud83d"}], "rejected": ANSWER}),
    ],
)
def test_half_a_character_is_refused_before_a_model_loads(command, row, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    whole = {key: "a" if isinstance(value, str) else OTHER for key, value in row.items()}
    path.write_text(json.dumps(whole) + "\n\n" + json.dumps(row))
    assert main([command, "--model", "no/such/model", "--file", str(path)]) == 1
    column = [*row][-1 if "b" in row else 0]
    expected = f"error: {path}, row 3, column '{column}': it holds '\\ud83d', half of a character that was cut in two."
    assert capsys.readouterr().err.startswith(expected)


def test_language_model_is_refused_in_one_line(model_name, capsys):
    assert main(["score", "--model", model_name, "a"]) == 1
    assert "is a language model" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["score"], ["score", "--model", "x", "--dtype", "int3", "a"]])
def test_command_line_that_makes_no_sense_exits_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "rlhf-ext" in capsys.readouterr().err


def test_process_of_its_own_writes_json_lines_only_and_bears_a_closed_pipe(reward_folder):
    command = [sys.executable, "-m", "rlhf_ext.cli", "score", "--model", reward_folder]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, input=b"Hello.\n" * 3, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 0 and done.stderr == b""
