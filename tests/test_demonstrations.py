"""Demonstrations: read from files, checked, divided, and turned into turns of a chat."""

import json

import pytest
from datasets import Dataset

from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.data_checks import DataError
from rlhf_ext.demonstrations import as_messages, load_demonstration_splits, reads_as_chat, to_chat

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def load(path, rows, **options):
    return load_demonstration_splits(RecipeArguments(dataset_name=write(path / "rows.jsonl", rows), **options), seed=0)


def test_demo_writes_as_many_as_are_asked_for():
    train, held_out = load_demonstration_splits(RecipeArguments(max_train_samples=2500, max_eval_samples=5), seed=0)
    assert (len(train), len(held_out)) == (2500, 5)
    assert train[0]["completion"][0]["role"] == "assistant"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "Hi", "completion": "Hello."}, ["prompt", "completion"]),
        ({"prompt": [USER], "completion": [ASSISTANT]}, ["prompt", "completion"]),
        ({"messages": [USER, ASSISTANT]}, ["messages"]),
        ({"prompt": "Hi", "messages": [USER, ASSISTANT]}, ["messages"]),
        ({"text": "Hi. Hello."}, ["text"]),
        ({"messages": [USER, ASSISTANT], "tools": "[]"}, ["messages", "tools"]),
    ],
)
def test_formats_and_what_is_not_read(row, columns, tmp_path, capsys):
    numbered = [
        json.loads(json.dumps(row).replace("Hi", f"Hi {n}")) | {"id": n, "source": "web"} for n in range(10)
    ]  # rows of one prompt cannot be divided
    train, held_out = load(tmp_path, numbered, eval_fraction=0.2)
    assert train.column_names == held_out.column_names == columns
    assert (len(train), len(held_out)) == (8, 2)
    assert f"training reads {', '.join(columns)}, and not id," in capsys.readouterr().out


def test_tools_that_only_later_rows_have_are_kept(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, ASSISTANT]} for n in range(4)]
    train, held_out = load(tmp_path, [*rows, rows[0] | {"tools": "[1]"}], eval_fraction=0.5)
    assert [*train["tools"], *held_out["tools"]].count("[1]") == 1


def test_rows_to_evaluate_on_need_no_tools(tmp_path):
    rows = [{"messages": [USER, ASSISTANT], "tools": "[1]"}]
    other = write(tmp_path / "other.jsonl", [{"messages": [USER, ASSISTANT]}])
    assert load(tmp_path, rows, eval_dataset_name=other)[1].column_names == ["messages"]


def test_keywords_for_the_template_in_some_rows_only(tmp_path):
    row = {"messages": [USER, ASSISTANT]}
    with pytest.raises(DataError, match=r"row 2, column 'chat_template_kwargs': it holds thinking; in the first row"):
        load(tmp_path, [row, row | {"chat_template_kwargs": {"thinking": True}}])


def test_text_column_of_another_name(tmp_path):
    rows = [{"story": f"Once {n}."} for n in range(4)]
    arguments = RecipeArguments(dataset_name=write(tmp_path / "rows.jsonl", rows))
    train, held_out = load_demonstration_splits(arguments, text_column="story", seed=0)
    assert sorted([*train["story"], *held_out["story"]]) == [row["story"] for row in rows]


def test_rows_to_evaluate_on_of_their_own(tmp_path):
    other = write(tmp_path / "other.jsonl", [{"text": "c"}])
    train, held_out = load(tmp_path, [{"text": "a"}, {"text": "b"}], eval_dataset_name=other)
    assert (sorted(train["text"]), held_out["text"][:]) == (["a", "b"], ["c"])
    with pytest.raises(DataError, match=r"other.jsonl: it has the columns text. Give it those of the training rows"):
        load(tmp_path, [{"prompt": "a", "completion": "b"}], eval_dataset_name=other)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completions": "b"}], r"a row needs .* Rename 'completions' to 'completion'"),
        ([{"instruction": "a", "output": "b"}], r"a row needs 'prompt' and 'completion', .* It has: instruction, out"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "c"}], r"row 2, column 'completion': it is missing here"),
        ([{"prompt": "a", "completion": " "}], r"row 1, column 'completion': it is empty"),
        ([{"prompt": "a", "completion": [ASSISTANT]}], r"row 1, column 'completion': it is a list of messages, but"),
        ([{"prompt": [USER], "completion": [USER]}], r"column 'completion': it ends with role 'user'"),
        ([{"messages": "Hi"}], r"row 1, column 'messages': it is no list"),
        ([{"messages": [USER, ASSISTANT]}, {"messages": [USER]}], r"row 2, column 'messages': it ends with role"),
        ([{"text": [USER, ASSISTANT]}], r"row 1, column 'text': it is a list. .* name it 'messages'"),
        ([{"text": 3}], r"row 1, column 'text': it is a int"),
        ([{"prompt": "a", "completion": "a b"}, {"prompt": "c", "completion": "c d"}], "begins with its prompt"),
    ],
)
def test_bad_row_is_named(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(tmp_path, rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_fraction": 1.0}, "cannot be held out"),
        ({"max_eval_samples": 0}, "--max_eval_samples must be at least 1"),
        ({"dataset_streaming": True}, "Drop dataset_streaming"),
    ],
)
def test_option_that_cannot_work(options, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(tmp_path, [{"text": "a"}, {"text": "b"}], **options)


def test_transcripts_become_their_turns():
    transcript = "\n\nHuman: How far\nis it?\n\nAssistant: Far.\n\nHuman: How far?\n\nAssistant:"
    assert as_messages(transcript) == [
        {"role": "user", "content": "How far\nis it?"},
        {"role": "assistant", "content": "Far."},
        {"role": "user", "content": "How far?"},
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        "How far is it?",
        "  two spaces",
        "The form is\n\nHuman: a question\n\nAssistant:",  # says something before the first turn
        "\n\nHuman: a\n\nHuman: b\n\nAssistant:",
        "\n\nHuman: a\n\nAssistant: b",  # it is not the assistant's turn
        "\n\nAssistant:",
    ],
)
def test_any_other_prompt_is_one_turn_as_it_is(prompt):
    assert as_messages(prompt) == [{"role": "user", "content": prompt}]


def test_plain_rows_become_messages():
    rows = to_chat(Dataset.from_list([{"prompt": "Hi", "completion": " Hello."}] * 2))
    assert rows[1] == {"prompt": [USER], "completion": [{"role": "assistant", "content": " Hello."}]}


def test_who_decides_whether_plain_prompts_are_chat(tokenizer, monkeypatch, capsys):
    assert reads_as_chat(["a"], tokenizer, None, source="rows.jsonl")
    assert "rows.jsonl: plain prompts become turns of the chat template" in capsys.readouterr().out
    assert not reads_as_chat(["a"], tokenizer, False, source="rows.jsonl")
    assert not reads_as_chat([[USER]], tokenizer, None, source="rows.jsonl")
    for prompts in ([[USER]], []):
        with pytest.raises(DataError, match="--as_chat is for plain prompts, and there are none"):
            reads_as_chat(prompts, tokenizer, False, source="rows.jsonl")
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert not reads_as_chat(["a"], tokenizer, None, source="rows.jsonl")
    with pytest.raises(DataError, match="has no chat template"):
        reads_as_chat(["a"], tokenizer, True, source="rows.jsonl")
    assert capsys.readouterr().out == ""
