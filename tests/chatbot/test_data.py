"""Data and YAML files of a chatbot run: checked before anything trains, and turns in every phase."""

import json
from pathlib import Path

import pytest
import yaml

from rlhf_ext.arguments import ArgumentError
from rlhf_ext.chatbot.data import (
    as_turns,
    config_path,
    held_out_path,
    load_data,
    read_configs,
    train_path,
    write_configs,
    write_data,
)
from rlhf_ext.chatbot.phases import ChatbotArguments
from rlhf_ext.data_checks import DataError

USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}


def says(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "Hi?"}, {"prompt": [USER]}),
        ({"prompt": "Hi?", "completion": "Yes."}, {"prompt": [USER], "completion": [ANSWER]}),
        (
            {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "margin": 2.0},
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [NO], "margin": 2.0},
        ),
        (
            {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [NO]},
        ),
        (
            {"prompt": "\n\nHuman: Hi?\n\nAssistant: Yes.\n\nHuman: Hi?\n\nAssistant:"},
            {"prompt": [USER, ANSWER, USER]},
        ),
        ({"prompt": [USER], "completion": [ANSWER]}, None),
        ({"chosen": [USER, ANSWER], "rejected": [USER, NO]}, None),
        ({"messages": [USER, ANSWER]}, None),
        ({"text": "Hi? Yes."}, None),
    ],
)
def test_plain_text_becomes_turns_and_conversations_stay(row, turns):
    assert as_turns(row, source="rows") == (turns or row)


def test_pairs_whose_answers_begin_somewhere_are_refused():
    for chosen, rejected in (("Hi? Yes.", "Hi? No."), ("\n\nHuman: A\n\nAssistant: B", "\n\nHuman: C\n\nAssistant: D")):
        with pytest.raises(DataError, match=r"rows, column 'chosen': .* does not show where its answers begin"):
            as_turns({"chosen": chosen, "rejected": rejected}, source="rows")


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        ("", r"column 'rejected': the answer to 'Human: Hi\?\\n\\nAssistant:' is empty"),
        (" Yes. ", "are equal but for white"),
    ],
)
def test_answers_of_transcripts_that_are_empty_or_equal_are_refused(rejected, message):
    start = "\n\nHuman: Hi?\n\nAssistant:"
    with pytest.raises(DataError, match=message):
        as_turns({"chosen": f"{start} Yes.", "rejected": start + rejected}, source="rows")


@pytest.fixture
def data(tmp_path):
    """Plain demonstrations, pairs in messages, plain prompts; and a run that reads them."""

    def rows(name, count, make):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(make(n)) + "\n" for n in range(count)))
        return str(path)

    def demonstration(n):
        return {"prompt": f"What is {n}?", "completion": f"It is\u2028{n}."}

    def pair(n):
        question = [{"role": "user", "content": f"What is {n}?"}]
        return {"prompt": question, "chosen": [ANSWER], "rejected": [NO], "margin": n}

    named = {
        "sft_dataset": rows("sft", 10, demonstration),
        "preference_dataset": rows("pairs", 20, pair),
        "prompt_dataset": rows("prompts", 10, lambda n: {"prompt": f"How is {n}?"}),
    }
    return named | {"output_dir": str(tmp_path / "run")}


def read(path):
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


def prepare(args, configs=None):
    loaded = load_data(args, configs or {}, args.settings())
    Path(args.output_dir).mkdir(exist_ok=True)
    write_data(args.output_dir, loaded)
    write_configs(args, configs or {})
    return loaded


def test_every_phase_gets_turns_to_train_and_to_evaluate_on(data, capsys):
    args = ChatbotArguments(**data)
    assert prepare(args)
    sizes = {}
    for phase in ("sft", "reward", "ppo"):
        parts = [read(path(args.output_dir, phase)) for path in (train_path, held_out_path)]
        sizes[phase] = tuple(map(len, parts))
        for row in parts[0] + parts[1]:
            assert all(isinstance(value, list | float) for value in row.values())
    assert sizes == {"sft": (9, 1), "reward": (18, 2), "ppo": (9, 1)}  # a tenth is held out
    sft = [row for path in (train_path, held_out_path) for row in read(path(args.output_dir, "sft"))]
    assert sorted(row["completion"][0]["content"] for row in sft) == [f"It is\u2028{n}." for n in range(10)]
    assert "margin" in read(train_path(args.output_dir, "reward"))[0]
    said = capsys.readouterr().out
    assert "sft.jsonl: plain text becomes turns of a chat" in said and "pairs.jsonl: plain" not in said
    assert load_data(args, {}, args.settings()) == {}  # the second start has nothing to do


def test_what_a_configuration_says_about_data_is_done_once(data, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "Who?", "completion": "Me."}\n')
    config = {"eval_dataset_name": str(other), "max_train_samples": 4, "learning_rate": 1e-3}
    args = ChatbotArguments(**data, algorithm="dpo")
    prepare(args, {"sft": config, "dpo": {"eval_fraction": 0.5, "extra_columns": "margin"}})
    assert len(read(train_path(args.output_dir, "sft"))) == 4
    assert [row["completion"] for row in read(held_out_path(args.output_dir, "sft"))] == [says("Me.")]
    assert yaml.safe_load(Path(config_path(args.output_dir, "sft")).read_text()) == {"learning_rate": 1e-3}
    assert len(read(held_out_path(args.output_dir, "dpo"))) == 10
    assert len(read(held_out_path(args.output_dir, "reward"))) == 2
    assert read(train_path(args.output_dir, "dpo"))[0]["margin"] >= 0


def test_what_has_changed_is_written_again(data):
    args = ChatbotArguments(**data)
    prepare(args, {"ppo": {"learning_rate": 1e-3}})
    assert {*prepare(args, {"ppo": {"learning_rate": 2e-3, "max_train_samples": 3}})} == {"ppo"}
    assert yaml.safe_load(Path(config_path(args.output_dir, "ppo")).read_text()) == {"learning_rate": 2e-3}
    assert len(read(train_path(args.output_dir, "ppo"))) == 3
    with open(args.sft_dataset, "a") as file:
        file.write('{"prompt": "Who?", "completion": "Me."}\n')
    assert {*prepare(args)} == {"sft", "ppo"}


def test_rows_to_evaluate_on_are_limited_unless_the_configuration_says(data):
    def sizes(args):
        return [len(read(held_out_path(args.output_dir, phase))) for phase in ("sft", "reward", "ppo")]

    half = {phase: {"eval_fraction": 0.5} for phase in ("sft", "reward", "ppo")}
    half["ppo"] |= {"max_eval_samples": 4}
    args = ChatbotArguments(**data)
    prepare(args, half)
    assert sizes(args) == [5, 10, 4]
    args = ChatbotArguments(**data, max_eval_samples=3)
    assert {*prepare(args, half)} == {"sft", "reward"}
    assert sizes(args) == [3, 3, 4] and load_data(args, half, args.settings()) == {}
    assert {*prepare(ChatbotArguments(**data, max_eval_samples=2), half)} == {"sft", "reward"}
    assert sizes(args) == [2, 2, 4]


def test_other_processes_wait_for_the_configuration_of_this_start(data, monkeypatch):
    args = ChatbotArguments(**data)
    prepare(args, {"ppo": {"learning_rate": 1e-3}})
    path = Path(config_path(args.output_dir, "ppo"))
    first_process = iter([lambda: None, lambda: path.write_text("learning_rate: 0.002\n")])
    monkeypatch.setattr("time.sleep", lambda seconds: next(first_process)())
    monkeypatch.setenv("RANK", "1")
    write_configs(args, {"ppo": {"learning_rate": 2e-3}})
    assert next(first_process, None) is None


def test_bad_rows_of_the_last_phase_are_found_before_the_first(data, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    args = ChatbotArguments(**data)
    with pytest.raises(DataError, match=r"pairs.jsonl, row 1, column 'rejected': 'chosen' and 'rejected' are equal"):
        load_data(args, {}, args.settings())
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(DataError, match=r"prompts.jsonl, row 2, column 'prompt': it is empty"):
        load_data(args, {}, args.settings())


@pytest.mark.parametrize(
    ("phase", "content", "message"),
    [
        ("sft", "seed: 1\nmodel_name_or_path: gpt2", "model_name_or_path, seed cannot be set for one phase: remove it"),
        ("ppo", "reward_adapter: runs/reward", "reward_adapter cannot be set for one phase"),
        ("reward", "- 1", "it must hold options, as `name: value`"),
        ("reward", "a: [", "it is not valid YAML"),
        ("reward", None, r"it cannot be read \(No such file or directory\)"),
    ],
)
def test_configurations_that_contradict_the_run_or_are_misspelt(phase, content, message, tmp_path):
    path = tmp_path / "phase.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArgumentError, match=f"{path}: {message}"):
        read_configs({phase: str(path)})


def test_configurations_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rate: 1.0e-3\nlora_target_modules: [q_proj]\n")
    (tmp_path / "b.yaml").write_text("")
    found = read_configs({"sft": str(tmp_path / "a.yaml"), "ppo": str(tmp_path / "b.yaml")})
    assert found == {"sft": {"learning_rate": 1e-3, "lora_target_modules": ["q_proj"]}, "ppo": {}}
