"""`recipes/constitutional.py` as users start it: the embedded default, a kill at any moment, bad input in one line."""

import importlib.util
import json
import sys
from pathlib import Path

import forked
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.data import load_preference_splits
from rlhf_ext.demonstrations import load_demonstration_splits
from rlhf_ext.output_files import lock_folder

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes/constitutional.py"
PRINCIPLES = ["--principles", str(ROOT / "recipes/principles/harmless.yaml")]
SHORT = ["--max_prompts", "6", "--batch_size", "2", "--rounds", "2", "--max_new_tokens", "12"]
OUTPUTS = ("transcripts.jsonl", "sft.jsonl", "preferences.jsonl", "all_results.json", "settings.json")


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("constitutional", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    module.HELD_OUT = 8
    return module


@pytest.fixture
def start(recipe, monkeypatch):
    def start(*args):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, args)])
        with recipe.one_line_errors(*recipe.ERRORS):
            recipe.main(recipe.parse())

    return start


def untrained_critic(folder, model_name):
    """In place of the one that the recipe would train."""
    folder.mkdir()
    (folder / "reviser").symlink_to(model_name)
    return folder


def test_embedded_default_leaves_everything_behind(tmp_path, start, model_name, capsys):
    folder = untrained_critic(tmp_path / "run", model_name)
    start(*SHORT, "--min_confidence", 0.5, "--output_dir", folder)
    results = json.loads((folder / "all_results.json").read_text())
    for metric in ("eval_gold/helpfulness", "eval_gold/safety"):
        assert 1 <= results[metric] <= 5 and 1 <= results[f"{metric}_before"] <= 5
    assert results["prompts"] == results["sft_rows"] == 6
    assert results["preference_rows"] == results["preference_rows_revision"] + results["preference_rows_feedback"] > 6
    page = (folder / "report.html").read_text()
    assert "critique 2" in page and "held out: safety" in page
    for fact in ("What ran", "the embedded demo", "logical cores", "trl 1.", "Warnings"):
        assert fact in page
    said = capsys.readouterr()
    assert f"recipes/dpo.py --dataset_name {folder}/preferences.jsonl" in said.out.replace("\n", "")
    assert "Warning" not in said.out + said.err

    demonstrations, _ = load_demonstration_splits(RecipeArguments(str(folder / "sft.jsonl")), seed=0)
    assert set(demonstrations.column_names) == {"prompt", "completion"}
    options = {"extra_columns": ["confidence"], "optional_columns": (), "seed": 0}
    pairs, _ = load_preference_splits(RecipeArguments(str(folder / "preferences.jsonl")), **options)
    assert pairs[0]["chosen"][0]["role"] == "assistant" and 0 <= pairs[0]["confidence"] <= 1


def test_killed_run_ends_with_the_same_files(tmp_path, start, model_name):
    """SIGKILL after the first chunk; started again it ends as if nothing had happened."""
    whole, killed = (untrained_critic(tmp_path / name, model_name) for name in ("whole", "killed"))
    options = [*SHORT, "--max_new_tokens", "40", "--seed", "3"]
    forked.kill_after(killed / "transcripts.jsonl", SCRIPT, *options, "--output_dir", killed)
    assert not (killed / "sft.jsonl").exists()
    with open(killed / "transcripts.jsonl", "ab") as file:  # and as if killed while writing, too
        file.write(b'{"prompt": [{"role"')
    with pytest.raises(SystemExit):
        start(*options, "--rounds", "1", "--output_dir", killed)
    start(*options, "--output_dir", killed)
    start(*options, "--output_dir", whole)
    for name in OUTPUTS:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_own_model_prompts_and_principles(tmp_path, start, model_name, tokenizer):
    """A LoRA adapter on a 4-bit base; plain prompts, two of three."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"How do I cook rice {n}?"}) for n in range(3)))
    principles = tmp_path / "principles.yaml"
    principles.write_text(
        "principles: [{name: a, critique_request: 'Bad?', revision_request: Better., comparison: 'Which?'}]\n"
        "templates: {comparison: '{conversation} {question} (A) {response_a} (B) {response_b}'}"
    )
    options = ["--model_name_or_path", tmp_path / "adapter", "--load_in_4bit", "--dataset_name", prompts]
    options += ["--principles", principles, "--max_prompts", 2, "--max_new_tokens", 8, "--rounds", 1]
    start(*options, "--output_dir", tmp_path / "run")
    results = json.loads((tmp_path / "run/all_results.json").read_text())
    assert results["prompts"] == 2 and "eval_gold/safety" not in results
    rows = [json.loads(line) for line in (tmp_path / "run/transcripts.jsonl").read_text().splitlines()]
    assert all(row["prompt"][0]["content"].startswith("How do I cook rice") for row in rows)


def test_prompt_that_may_get_too_long_is_refused_before_any_is_answered(tmp_path, start, model_name, capsys):
    """Each of the remedies that the message names is taken in the same folder."""
    data, folder = tmp_path / "prompts.jsonl", tmp_path / "run"
    prompts = ["Hi", "How do I cook rice?" * 20, "How do I cook rice?" * 40, "Bye"]
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    options = [*PRINCIPLES, "--model_name_or_path", model_name, "--dataset_name", data]
    options += ["--batch_size", 1, "--rounds", 1]

    def error(*more):
        with pytest.raises(SystemExit):
            start(*options, *more, "--output_dir", folder)
        assert not (folder / "transcripts.jsonl").exists()
        return capsys.readouterr().err

    said = error("--max_new_tokens", 100)
    assert f"error: {data}, row 3, column 'prompt': what is said about it can have " in said
    assert "the model can read 512 (too long: 2 of 4 prompts). Shorten or remove such prompts, or lower" in said
    room = int(said.rpartition("--max_new_tokens to ")[2].rstrip(".\n"))
    assert f"or lower --max_new_tokens to {room}." in error("--max_new_tokens", room + 1)
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts[1:3]))
    start(*options, "--max_new_tokens", room, "--output_dir", folder)
    assert len((folder / "transcripts.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset_name", "{data}", *PRINCIPLES], "{data}, row 2, column 'prompt': it ends with role 'assistant'."),
        ([], "name the principles, for example --principles recipes/principles/harmless.yaml."),
        (["--principles", "{data}"], "{data}: it is not valid YAML ("),
        (["--rounds", "0"], "--rounds must be at least 1, not 0."),
        (["--temperature", "0"], "--temperature must be above 0, not 0.0: two answers are to differ."),
        (["--load_in_8bit", "--load_in_4bit"], "--load_in_8bit and --load_in_4bit exclude each other: drop one."),
        (
            ["--dataset_name", "{data}", *PRINCIPLES, "--dataset_config", "x"],
            "--dataset_config has no effect on a local file: drop",
        ),
        (["--dataset_train_split", "x", *PRINCIPLES], "--dataset_train_split has no effect on the embedded demo: drop"),
        (["--round", "1"], "there is no option '--round'. Did you mean '--rounds'?"),
    ],
)
def test_bad_input_is_one_line_before_the_model_loads(options, message, tmp_path, start, capsys):
    data = tmp_path / "prompts.jsonl"
    rows = [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    ]
    data.write_text("\n".join(json.dumps({"prompt": row}) for row in rows))
    options = [option.format(data=data) for option in options]
    with pytest.raises(SystemExit):
        start("--model_name_or_path", "/no/such/model", *options, "--output_dir", tmp_path / "run")
    assert f"error: {message.format(data=data)}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_second_run_in_the_same_folder_is_refused(tmp_path, start, capsys):
    with lock_folder(tmp_path / "run"), pytest.raises(SystemExit):
        start(*SHORT, "--output_dir", tmp_path / "run")
    assert (
        capsys.readouterr().err
        == f"error: another run works in --output_dir {tmp_path}/run: wait, or choose another.\n"
    )


def test_principles_without_a_model_are_refused(tmp_path, start, capsys):
    with pytest.raises(SystemExit):
        start(*PRINCIPLES, "--output_dir", tmp_path / "run")
    assert capsys.readouterr().err.startswith("error: the demo model knows its own principles only")
