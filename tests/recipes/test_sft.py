"""`recipes/sft.py` in one process and in two; its folder goes on in the other recipes."""

import json
import math
import runpy
import sys

import forked
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ext.demo import model_path

SCRIPT = forked.ROOT / "recipes/sft.py"
SHORT = ["--max_train_samples", "32", "--max_eval_samples", "8", "--logging_steps", "1", "--max_steps", "2"]


def launch(*args, processes=1, renders=False):
    done = forked.run_together(processes, SCRIPT, *args, renders=renders)[0]
    for noise in ("Warning", "warning", "deprecated", "Failed", "MatMul8bitLt", "The following values"):
        assert noise not in done.stdout + done.stderr
    return done


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The script in this process, which saves the time to import everything again."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["sft.py", *map(str, args)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def losses(folder, metric="loss"):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[metric] for entry in history if metric in entry]


def write_rows(path, count=40):
    rows = [{"prompt": f"What is {i} + 2?", "completion": f"It is {i + 2}.", "source": "me"} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_embedded_default_leaves_everything_behind_and_is_quiet(tmp_path):
    folder = tmp_path / "run"
    done = launch(*SHORT, "--output_dir", folder, renders=True)
    found = results(folder)
    for metric in ("eval_loss", "eval_perplexity", "eval_mean_token_accuracy", "eval_gold/helpfulness"):
        assert metric in found and f"{metric}_before" in found
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    assert found["eval_perplexity_before"] == pytest.approx(math.exp(found["eval_loss_before"]))
    assert found["eval_perplexity"] < found["eval_perplexity_before"]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert samples and all({"prompt", "before", "after"} <= {*row} for row in samples)
    for file in ("model.safetensors", "tokenizer.json", "training.png", "trainer_state.json"):
        assert (folder / file).is_file()
    assert "| perplexity |" in (folder / "README.md").read_text()
    assert "perplexity" in done.stdout


def test_plain_rows_on_an_8_bit_base_and_on_from_there(run, tmp_path, capsys):
    """What is trained is the assistant's turn of the chat template; the adapter is trained on by the next run."""
    data = write_rows(tmp_path / "rows.jsonl")
    quantized = ["--load_in_8bit", "--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear"]
    options = ["--dataset_name", data, "--max_steps", "2", "--bf16", "false", "--learning_rate", "0.01"]
    run(*options, *quantized, "--output_dir", tmp_path / "one")
    printed = capsys.readouterr().out
    assert "plain prompts become turns of the chat template" in printed
    assert "training reads prompt, completion, and not source" in printed
    sample = json.loads((tmp_path / "one/samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"][0]["role"] == "user"
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path()), tmp_path / "one")
    assert any("lora_B" in name and weight.any() for name, weight in adapted.named_parameters())
    saved = load_file(tmp_path / "one/adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}

    run(*options, "--model_name_or_path", tmp_path / "one", *quantized, "--output_dir", tmp_path / "two")
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    # It starts where the first run ended, and not from a new adapter.
    assert two["eval_loss_before"] == pytest.approx(one["eval_loss"], rel=0.02)
    assert two["eval_loss"] < 0.9 * two["eval_loss_before"]
    assert json.loads((tmp_path / "two/adapter_config.json").read_text())["base_model_name_or_path"] == model_path()


@pytest.mark.parametrize(("mode", "lost"), [("keep_start", "end"), ("keep_end", "start")])
def test_what_longer_rows_lose_is_said(mode, lost, run, tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl")
    options = ["--dataset_name", data, "--as_chat", "false", "--max_length", "16", "--max_steps", "1"]
    run(*options, "--truncation_mode", mode, "--bf16", "false", "--output_dir", tmp_path / "run")
    assert f"fill it, so that longer ones lose their {lost}." in capsys.readouterr().out


def test_two_processes_equal_one_on_the_same_global_batch(run, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl")
    options = ["--dataset_name", data, "--max_steps", "3", "--logging_steps", "1", "--bf16", "false"]
    batches = ["--per_device_train_batch_size", "--per_device_eval_batch_size"]
    run(*options, *(part for option in batches for part in (option, 8)), "--output_dir", tmp_path / "1")
    launch(*options, *(part for o in batches for part in (o, 4)), "--output_dir", tmp_path / "2", processes=2)
    for metric in ("loss", "grad_norm"):
        assert losses(tmp_path / "1", metric) == pytest.approx(losses(tmp_path / "2", metric), rel=1e-3)
    for key in ("eval_loss", "eval_perplexity_before"):
        assert results(tmp_path / "1")[key] == pytest.approx(results(tmp_path / "2")[key], rel=1e-2)
    assert (tmp_path / "2/samples.jsonl").read_text()  # drawn on one process, for all


def test_interrupted_run_goes_on_as_if_nothing_had_happened(run, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl")
    options = ["--dataset_name", data, "--logging_steps", "1", "--lr_scheduler_type", "constant"]
    options += ["--warmup_steps", "0", "--save_strategy", "steps", "--save_steps", "2"]
    run(*options, "--max_steps", "4", "--output_dir", tmp_path / "whole")
    run(*options, "--max_steps", "2", "--output_dir", tmp_path / "halves")
    options += ["--max_steps", "4", "--resume_from_checkpoint", "true"]
    for _ in range(2):  # the second time nothing is left to do
        run(*options, "--output_dir", tmp_path / "halves")
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 4
    for key in ("eval_loss", "eval_loss_before"):
        assert results(tmp_path / "halves")[key] == results(tmp_path / "whole")[key]
    assert (tmp_path / "halves/samples.jsonl").read_text() == (tmp_path / "whole/samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--dataset_name", "{data}"], "error: {data}, row 2, column 'completion': it is empty."),
        (["--model_name_or_path", "{adapter}", "--use_peft", "--lora_r", "8"], "error: --lora_r 8 has no effect: "),
        (["--as_chat", "false"], "error: the embedded demo: --as_chat is for plain prompts, and there are none."),
        (["--eval_packing", "true"], "error: --eval_packing true needs --packing true, or rows of one pack would"),
        (["--max_length", "3"], "error: the embedded demo, column 'prompt': every prompt has at least max_length=3"),
    ],
)
def test_bad_input_is_one_line_before_the_model_loads(options, expected, run, tmp_path, capsys):
    places = {"data": tmp_path / "rows.jsonl", "adapter": tmp_path / "adapter"}
    places["data"].write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": ""}')
    places["adapter"].mkdir()
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(places["adapter"])
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "base_model_name_or_path": "/no/such/model"}
    (places["adapter"] / "adapter_config.json").write_text(json.dumps(config))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        run(*(option.format(**places) for option in options))
    printed = capsys.readouterr().err
    assert printed.strip().splitlines()[-1].startswith(expected.format(**places))
    assert "Traceback" not in printed and "Loading weights" not in printed
