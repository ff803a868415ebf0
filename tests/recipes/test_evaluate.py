"""`recipes/evaluate.py`: what it leaves behind, and what it refuses before it loads a model."""

import json
import os
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_ext import RewardModel
from rlhf_ext.arguments import ArgumentError, parse_options
from rlhf_ext.data_checks import DataError
from rlhf_ext.demo.data import preference_dataset
from rlhf_ext.evaluation import reward_run
from rlhf_ext.evaluation.rows import text_of
from rlhf_ext.evaluation.statistics import MetricError
from rlhf_ext.formatting import InputError, Place

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/evaluate.py"


class LengthModel:
    """A reward model that likes long answers, or short ones; it remembers how it was asked."""

    temperature = 20.0
    asked = None

    def __init__(self, name, max_length):
        self.__name__ = name
        self.sign, self.max_length = -1 if "short" in name else 1, max_length

    @classmethod
    def from_pretrained(cls, name, max_length=None):
        return cls(name, max_length)

    def tokenizer(self, text, **options):
        return {"input_ids": text.split(), "special_tokens_mask": [0] * len(text.split())}

    def score(self, texts, batch_size=None):
        self.asked.append((texts, batch_size))
        answers = [text[1] if isinstance(text, tuple) else text_of(text[-1:]) for text in texts]
        return [float(self.sign * len(answer)) for answer in answers]


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reward_run, "RewardModel", LengthModel)
    monkeypatch.setattr(LengthModel, "asked", [])
    recipe = runpy.run_path(str(RECIPE))

    def run(*args):
        recipe["main"](*parse_options(recipe["OPTIONS"], {}, [*map(str, args)]))

    return run


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write_pairs(path, count=30):
    """The chosen answer is the longer one in two of three pairs."""
    return write(
        path,
        [
            {
                "prompt": f"Question {i % 20}?",
                "chosen": "a" * (10 + i % 7),
                "rejected": "b" * (9 if i % 3 else 20 + i),
                "strength": 1 + i % 2,
                "source": "web" if i % 2 else "books",
            }
            for i in range(count)
        ],
    )


def write_rated(path):
    return write(path, [{"prompt": f"Q{i % 5}", "response": "a" * (i + 1), "rating": i} for i in range(20)])


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def test_pairs_leave_results_figures_and_page(evaluate, tmp_path, capsys):
    evaluate("--model", "long", "--dataset_name", write_pairs(tmp_path / "pairs.jsonl"), "--batch_size", 7)
    folder = tmp_path / "runs/evaluate"
    assert results(folder)["eval_accuracy"] == pytest.approx(2 / 3)
    assert results(folder)["eval_accuracy_shorter_right"] == 0 and results(folder)["eval_accuracy_longer_right"] == 1
    assert {"eval_accuracy_by_subset/web", "eval_accuracy_by_strength/2"} <= {*results(folder)}
    figures = {path.name for path in folder.glob("*.png")}
    assert figures == {"scores.png", "reliability.png", "length.png", "accuracy_by_strength.png"}
    assert all((folder / figure).read_bytes().startswith(b"\x89PNG") for figure in figures)
    page = (folder / "report.html").read_text()
    assert "Evaluated on pairs.jsonl." in page and "Most wrong pairs" in page
    assert page.count(str(tmp_path)) == 1 and f"{tmp_path}/pairs.jsonl, SHA-256 " in page
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "0.667" in printed and "runs/evaluate" in printed
    assert len(printed.splitlines()) < 20
    ((texts, batch_size),) = LengthModel.asked
    assert texts[0] == ("Question 0?", "a" * 10) and texts[30] == ("Question 0?", "b" * 20) and batch_size == 7


def test_two_models_on_the_same_pairs(evaluate, tmp_path, undrawn):
    data = write_pairs(tmp_path / "pairs.jsonl")
    evaluate("--model", "a/long", "--other_model", "a/short", "--dataset_name", data, "--output_dir", "out")
    found = results(tmp_path / "out")
    assert found["eval_other_accuracy"] == pytest.approx(1 / 3)
    assert found["eval_accuracy_difference"] == pytest.approx(1 / 3)
    assert found["eval_agreement"] == 0
    assert "Reward models long and short" in (tmp_path / "out/report.html").read_text()


def test_models_of_one_name_are_told_apart(evaluate, tmp_path, undrawn):
    data = write_rated(tmp_path / "rated.jsonl")
    evaluate("--model", "long/final", "--other_model", "short/final", "--dataset_name", data)
    assert "Reward models long/final and short/final" in (tmp_path / "runs/evaluate/report.html").read_text()


def test_rated_rows(evaluate, tmp_path):
    evaluate("--model", "long", "--dataset_name", write_rated(tmp_path / "rated.jsonl"))
    found = results(tmp_path / "runs/evaluate")
    assert found["eval_spearman"] == pytest.approx(1) and found["eval_within_spearman"] == pytest.approx(1)
    assert "eval_accuracy" not in found
    assert (tmp_path / "runs/evaluate/ratings.png").is_file()


def test_default_is_the_newest_model_on_the_demo(evaluate, tmp_path, capsys, undrawn):
    for age, name in enumerate(("reward-2", "reward-short", "reward")):
        settings = tmp_path / f"runs/{name}/reward_model.json"
        settings.parent.mkdir(parents=True)
        settings.write_text("{}")
        os.utime(settings, (1000 - age, 1000 - age))
    evaluate()
    assert "Evaluating runs/reward-2" in capsys.readouterr().out
    found = results(tmp_path / "runs/evaluate")
    assert found["eval_pairs"] == 1000 and found["eval_answers"] == 2000  # pairs, and the gold judge's ratings
    assert [len(texts) for texts, _ in LengthModel.asked] == [2000]  # of the same answers, which are scored once
    assert found["eval_accuracy"] > 0.5 and found["eval_spearman"] > 0  # better answers of the demo have more steps


@pytest.fixture
def trained(monkeypatch):
    """The folders of models that would have been trained."""
    folders = []
    monkeypatch.setattr(reward_run, "demo_reward_model", lambda folder, *, seed: folders.append(folder))
    return folders


def test_default_trains_a_model_where_there_is_none(trained, evaluate, tmp_path, undrawn):
    evaluate()
    assert trained == ["runs/reward-demo"] and results(tmp_path / "runs/evaluate")["eval_pairs"] == 1000


def test_data_without_a_model_says_what_to_do(evaluate, tmp_path):
    with pytest.raises(ArgumentError, match=r"no reward model in runs/reward\*: run recipes/reward.py first"):
        evaluate("--dataset_name", write_rated(tmp_path / "rated.jsonl"))


def test_only_the_first_of_several_processes_works(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    evaluate("--model", "long", "--dataset_name", write_rated(tmp_path / "rated.jsonl"))
    assert not (tmp_path / "runs").exists() and LengthModel.asked == []


def test_other_runs_are_kept(evaluate, tmp_path, undrawn):
    data = write_rated(tmp_path / "rated.jsonl")
    for _ in range(2):
        evaluate("--model", "long", "--dataset_name", data)
    assert (tmp_path / "runs/evaluate-2/report.html").is_file()
    with pytest.raises(ArgumentError, match=r"--output_dir runs/evaluate-2 holds another run"):
        evaluate("--model", "long", "--dataset_name", data, "--output_dir", "runs/evaluate-2")


def test_what_would_have_no_effect_is_refused(evaluate):
    with pytest.raises(ArgumentError, match="--subset_column has no effect without --dataset_name"):
        evaluate("--model", "long", "--subset_column", "source")
    with pytest.raises(ArgumentError, match="--other_model a/long/ is the model itself: name another one"):
        evaluate("--model", "a/long", "--other_model", "a/long/")
    with pytest.raises(ArgumentError, match="--judge, --top_k has no effect without --policy"):
        evaluate("--model", "long", "--judge", "gold", "--top_k", 5)
    with pytest.raises(ArgumentError, match=r"there is no option '--datset_name'. Did you mean '--dataset_name'"):
        evaluate("--datset_name", "pairs.jsonl")


def test_bad_data_is_refused_before_the_model_loads(evaluate, tmp_path, monkeypatch):
    monkeypatch.delattr(LengthModel, "from_pretrained")
    path = write(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"it has the columns text. Preference rows have"):
        evaluate("--model", "long", "--dataset_name", path)


def test_prompts_without_room_for_an_answer(evaluate, tmp_path, capsys, undrawn):
    rows = [{"prompt": "word " * (i % 6 + 1), "response": "a" * (i + 1), "rating": i} for i in range(12)]
    command = ["--model", "long", "--dataset_name", write(tmp_path / "rated.jsonl", rows), "--max_length", 5]
    with pytest.raises(DataError, match=r"4 of 12 prompts have at least 5 tokens .* --drop_long_prompts"):
        evaluate(*command)
    evaluate(*command, "--drop_long_prompts")
    found = results(tmp_path / "runs/evaluate")
    assert (found["eval_answers"], found["eval_left_out"]) == (8, 4)
    for shown in (capsys.readouterr().out, (tmp_path / "runs/evaluate/report.html").read_text()):
        assert "4 of 12 rows are left out" in shown
    with pytest.raises(DataError, match="12 of 12 prompts"):
        evaluate(*command[:-1], 1, "--drop_long_prompts")


def test_a_conversation_that_a_model_cannot_read_is_named_with_the_model(evaluate, tmp_path, monkeypatch):
    """Here one of two models, whose tokenizer has no chat template."""
    question, answer = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    row = {"prompt": question, "chosen": answer, "rejected": [answer[0] | {"content": "c"}]}
    monkeypatch.setattr(LengthModel.tokenizer, "chat_template", None, raising=False)
    data = write(tmp_path / "pairs.jsonl", [row] * 3)
    message = r"pairs.jsonl, row 1: it is a conversation, .* It is the reward model short that reads it"
    with pytest.raises(DataError, match=message):
        evaluate("--model", "short", "--other_model", "other", "--dataset_name", data, "--max_length", 5)


def test_a_text_that_cannot_be_scored_is_named_by_its_row(evaluate, tmp_path, monkeypatch):
    """Also where earlier rows were left out: here the prompts of rows 1 and 2 are too long."""
    rows = [
        {"prompt": "word " * (9 if i < 2 else 1), "chosen": f"a{i}", "rejected": "bad" if i == 5 else "b"}
        for i in range(8)
    ]

    def score(self, texts, batch_size=None):
        raise InputError("it holds only special tokens.", Place(index=texts.index(("word ", "bad"))))

    monkeypatch.setattr(LengthModel, "score", score)
    data = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match=r"pairs.jsonl, row 6, column 'rejected': it holds only special tokens."):
        evaluate("--model", "long", "--dataset_name", data, "--max_length", 5, "--drop_long_prompts")


def test_warnings_of_the_model_are_notes(evaluate, tmp_path, monkeypatch, capsys, undrawn):
    def score(self, texts, batch_size=None):
        warnings.warn("3 of 20 texts are cut.", stacklevel=2)
        return [float(len(answer)) for _, answer in texts]

    monkeypatch.setattr(LengthModel, "score", score)
    evaluate("--model", "long", "--dataset_name", write_rated(tmp_path / "rated.jsonl"))
    assert "3 of 20 texts are cut.\n" in capsys.readouterr().out
    assert "3 of 20 texts are cut." in (tmp_path / "runs/evaluate/report.html").read_text()


def test_nan_scores_are_refused(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr(LengthModel, "score", lambda self, texts, batch_size=None: [float("nan")] * len(texts))
    with pytest.raises(MetricError, match="number 1 is nan"):
        evaluate("--model", "long", "--dataset_name", write_pairs(tmp_path / "pairs.jsonl"))


@pytest.fixture
def command_line(monkeypatch, tmp_path):
    """The script with the real `RewardModel`, as `python recipes/evaluate.py` runs it."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, args)])
        runpy.run_path(str(RECIPE), run_name="__main__")

    return run


def test_real_reward_model(command_line, tmp_path, model_name, tokenizer, undrawn):
    """An untrained head on the demo model: the accuracy is that of its scores, taken one by one."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    pairs = preference_dataset("test", size=20)
    rows = [{column: row[column] for column in ("prompt", "chosen", "rejected")} for row in pairs]
    command_line("--model", "model", "--dataset_name", write(tmp_path / "pairs.jsonl", rows))
    reward_model = RewardModel.from_pretrained(tmp_path / "model")
    one, two = ([reward_model.score(row["prompt"] + row[side]) for row in rows] for side in ("chosen", "rejected"))
    expected = sum(chosen > rejected for chosen, rejected in zip(one, two, strict=True)) / len(rows)
    assert 0 < expected < 1
    assert results(tmp_path / "runs/evaluate")["eval_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{model}"], "error: {model} is a language model (LlamaForCausalLM), not a reward model."),
        (["--max_samples", "many"], "error: argument --max_samples/--max-samples: invalid int value: 'many'"),
        (["--max_samples", "0"], "error: --max_samples 0 must be at least 1. Drop it to use all rows."),
        (["--dataset_name", "missing.jsonl"], "error: missing.jsonl: there is no such file."),
    ],
)
def test_errors_are_one_line(options, message, command_line, model_name, capsys):
    with pytest.raises(SystemExit, match="1"):
        command_line(*[option.format(model=model_name) for option in options])
    printed = capsys.readouterr().err.strip()
    assert printed.splitlines()[-1].startswith(message.format(model=model_name))
    assert "Traceback" not in printed
