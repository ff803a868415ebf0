"""`recipes/evaluate.py --policy`: policies answer, a judge compares, and everything is on file."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.demo.gold import gold_scores
from rlhf_ext.demo.judge import is_unsafe, judge
from rlhf_ext.evaluation import answers, policy_run, prompts
from rlhf_ext.generation import Decoding, generate

RECIPE = Path(__file__).parents[2] / "recipes/evaluate.py"
COUNT = 12
SHORT = ["--max_new_tokens", "16"]


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """The script, as `python recipes/evaluate.py` runs it, on few prompts of the demo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prompts, "DEMO_PROMPTS", COUNT)

    def run(*args):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, args)])
        runpy.run_path(str(RECIPE), run_name="__main__")

    return run


@pytest.fixture
def refuse(evaluate, capsys):
    """Run what must end with one line of error, and return it."""

    def run(*args):
        with pytest.raises(SystemExit, match="1"):
            evaluate(*args)
        printed = capsys.readouterr().err.strip()
        assert "Traceback" not in printed
        return printed.splitlines()[-1]

    return run


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model_name, tokenizer):
    """An adapter on the demo model that changes what it says a little."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    base = AutoModelForCausalLM.from_pretrained(model_name)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.mul_(0.3)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def rows(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_two_policies_on_the_demo(evaluate, adapter, model_name, tokenizer, tmp_path, capsys):
    evaluate("--policy", adapter, "--other_policy", model_name, *SHORT, "--seed", 3, "--batch_size", COUNT)
    folder = tmp_path / "runs/evaluate"
    found, written = results(folder), rows(folder)
    asked = prompt_dataset("test", seed=1, size=COUNT)["prompt"][:]
    base = AutoModelForCausalLM.from_pretrained(model_name)
    expected = generate(base, tokenizer, asked, Decoding(seed=3, max_new_tokens=16), batch_size=COUNT)
    assert [row["prompt"] for row in written] == asked
    assert [row["other_completion"] for row in written] == expected
    assert [row["completion"] for row in written] != expected

    scores = gold_scores(asked, expected)
    assert found["eval_other_helpfulness"] == pytest.approx(scores["helpfulness"])
    assert found["eval_other_safety"] == pytest.approx(scores["safety"])
    assert found["eval_other_refusal_rate"] == scores["refusal_rate"]
    outcomes = []
    for row in written:
        question = row["prompt"][0]["content"]
        one, other = (judge(question, row[name]).overall for name in ("completion", "other_completion"))
        outcomes.append(0.5 if one == other else float(one > other))
        assert row["preference"] == outcomes[-1]
        assert (row["helpfulness"] is None) == is_unsafe(question)
    assert found["eval_win_rate"] == pytest.approx(sum(outcomes) / COUNT)
    assert found["eval_wins"] + found["eval_ties"] + found["eval_losses"] == COUNT

    # The answers of the adapter were drawn from it, so its base is, on average, less likely to give them.
    assert found["eval_kl_k3"] > 0 and found["reference"] == "its adapter's base"
    assert "eval_other_kl_k1" not in found and found["other_reference"] is None
    assert found["decoding"] == {"max_new_tokens": 16, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 3}
    assert (found["policy"], found["other_policy"], found["judge"]) == (adapter, model_name, "gold")
    page = (folder / "report.html").read_text()
    assert "Policies adapter and model" in page and "win rate" in page
    printed = capsys.readouterr().out
    assert "win rate against model" in printed and "completions.jsonl" in printed


def test_kl_from_a_policy_to_itself_is_zero(evaluate, model_name, tmp_path):
    """Through another path to the same weights, measured by a model that is loaded once more."""
    (tmp_path / "same").symlink_to(model_name)
    evaluate("--policy", model_name, "--reference", "same", *SHORT)
    found = results(tmp_path / "runs/evaluate")
    assert found["eval_kl_k1"] == pytest.approx(0, abs=1e-4) and found["eval_kl_k3"] == pytest.approx(0, abs=1e-4)
    assert "eval_win_rate" not in found and found["reference"] == "same"


def test_own_prompts_own_judge(evaluate, model_name, tmp_path, capsys):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"How do I {n}?", "unsafe": n % 2} for n in range(4)])
    (tmp_path / "judge.py").write_text(
        "def first(prompts, completions_a, completions_b):\n"
        "    assert prompts[0] == [{'role': 'user', 'content': 'How do I 0?'}]\n"
        "    return [1.0, 1.0, 1.0, 0.5]\n"
    )
    (tmp_path / "other").symlink_to(model_name)
    options = ["--dataset_name", data, "--temperature", 0, "--judge", "judge.py:first", *SHORT]
    evaluate("--policy", model_name, "--other_policy", "other", *options)
    found = results(tmp_path / "runs/evaluate")
    assert found["eval_win_rate"] == pytest.approx(3.5 / 4) and found["judge"] == "judge.py:first" and found["as_chat"]
    assert "eval_over_refusal_rate" in found and "eval_helpfulness" not in found
    assert "eval_kl_k1" not in found  # of answers that are not drawn from the distribution there is no estimate
    printed = capsys.readouterr().out
    assert "plain prompts become turns of the chat template" in printed
    assert "The KL divergence is not measured" in printed


def test_one_policy_with_a_reward_model(evaluate, model_name, reward_folder, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"How do I {n}?"} for n in range(4)])
    evaluate("--policy", model_name, "--dataset_name", data, "--judge", reward_folder, "--as_chat", "false", *SHORT)
    found = results(tmp_path / "runs/evaluate")
    written = rows(tmp_path / "runs/evaluate")
    assert found["eval_reward"] == pytest.approx(sum(row["reward"] for row in written) / 4)
    assert written[0]["prompt"] == "How do I 0?" and not found["as_chat"]
    assert "eval_refusals" in found and "eval_refusal_rate" not in found


def test_a_language_model_as_judge(evaluate, model_name, adapter, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"How do I {n}?"} for n in range(3)])
    options = ["--dataset_name", data, "--judge", f"llm:{model_name}", *SHORT]
    evaluate("--policy", model_name, "--other_policy", adapter, *options)
    found = results(tmp_path / "runs/evaluate")
    assert 1 <= found["eval_helpfulness"] <= 5 and 1 <= found["eval_other_safety"] <= 5
    assert 0 <= found["eval_win_rate"] <= 1 and found["reference"] == adapter


def test_each_policy_has_its_own_reference(evaluate, model_name, adapter, tmp_path, capsys):
    """A model is measured from the other policy, and that one, an adapter, from its base: the same weights here."""
    (tmp_path / "model").symlink_to(model_name)
    evaluate("--policy", "model", "--other_policy", adapter, *SHORT)
    found = results(tmp_path / "runs/evaluate")
    assert (found["reference"], found["other_reference"]) == (adapter, "its adapter's base")
    assert found["eval_kl_k3"] > 0 and found["eval_other_kl_k3"] > 0
    assert found["eval_kl_k3"] != pytest.approx(found["eval_other_kl_k3"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "│ reference" in line)
    assert [cell.strip() for cell in line.split("│")[2:4]] == ["adapter", "its adapter's base"]


def without_template(folder, model_name, drop=None):
    """The demo model with a tokenizer that has no chat template, or lacks a word of its own too."""
    folder.mkdir()
    AutoModelForCausalLM.from_pretrained(model_name).save_pretrained(folder)
    bare = AutoTokenizer.from_pretrained(model_name)
    bare.chat_template = None
    if drop is not None:
        bare.add_tokens(drop)
    bare.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("base_first", [False, True])
def test_a_base_without_chat_template_is_asked_with_the_other_one_s(
    evaluate, model_name, tokenizer, tmp_path, capsys, base_first
):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"How do I {n}?"} for n in range(3)])
    names = [model_name, without_template(tmp_path / "base", model_name)]
    names = names[::-1] if base_first else names
    (tmp_path / "judge.py").write_text("def tie(prompts, completions_a, completions_b): return [0.5] * len(prompts)")
    options = ["--dataset_name", data, "--judge", "judge.py:tie", "--seed", "1", *SHORT]
    evaluate("--policy", names[0], "--other_policy", names[1], *options)
    expected = generate(
        AutoModelForCausalLM.from_pretrained(model_name),
        tokenizer,
        [[{"role": "user", "content": f"How do I {n}?"}] for n in range(3)],
        Decoding(seed=1, max_new_tokens=16),
    )
    assert [row["completion"] for row in rows(tmp_path / "runs/evaluate")] == expected
    assert [row["other_completion"] for row in rows(tmp_path / "runs/evaluate")] == expected
    said = " ".join(capsys.readouterr().out.split())
    assert f"{tmp_path}/base has no chat template; it is asked with that of {model_name}." in said


def test_kl_between_policies_with_other_tokens_is_left_out_and_said(evaluate, model_name, tmp_path, capsys):
    other = without_template(tmp_path / "base", model_name, drop=["qwerty"])
    evaluate("--policy", model_name, "--other_policy", other, *SHORT)
    assert "eval_kl_k1" not in results(tmp_path / "runs/evaluate")
    said = " ".join(capsys.readouterr().out.split())
    assert f"The KL of {model_name} from {other} cannot be measured: they have different tokens." in said


def test_answers_outlive_a_judge_that_fails(refuse, model_name, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"How do I {n}?"} for n in range(3)])
    (tmp_path / "judge.py").write_text("def none(prompts, completions_a, completions_b): return []")
    (tmp_path / "other").symlink_to(model_name)
    options = ["--dataset_name", data, "--judge", "judge.py:none", *SHORT]
    message = refuse("--policy", model_name, "--other_policy", "other", *options)
    assert message == "error: --judge judge.py:none returned 0 preferences for 3 prompts."
    written = rows(tmp_path / "runs/evaluate")
    assert len(written) == 3 and all(row["completion"] and row["other_completion"] for row in written)


def test_a_language_model_that_cannot_read_an_answer_names_the_prompt(refuse, model_name, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": "Hi?"}, {"prompt": "How do I cook rice? " * 70}])
    message = refuse("--policy", model_name, "--dataset_name", data, "--judge", f"llm:{model_name}", *SHORT)
    assert message.startswith(f"error: {data}, row 2, column 'prompt': what the judge is asked about it cannot be read")


def test_quantization_without_its_library_is_one_line(refuse, model_name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    message = refuse("--policy", model_name, "--load_in_8bit")
    assert message == "error: --load_in_8bit needs bitsandbytes: pip install 'rlhf-ext[quantization]'."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "runs/reward", "--max_length", "9"], "--model, --max_length has no effect with --policy."),
        (["--dataset_split", "x"], "--dataset_split has no effect without --dataset_name."),
        (["--other_policy", "{model}/"], "--other_policy {model}/ is the policy itself: name another one."),
        (["--judge", "nowhere.py:f", "--other_policy", "x"], "judge file 'nowhere.py' does not exist"),
        (["--judge", "math:floor"], "--judge math:floor has no effect without --other_policy"),
        (["--temperature", "-1"], "--temperature must be 0 or above, not -1.0."),
        (["--temperature", "0", "--reference", "x"], "--reference has no effect: it needs answers drawn from"),
        (["--dataset_name", "{data}", "--other_policy", "x"], "there is nothing to compare the policies with: name a"),
        (["--dataset_name", "{data}", "--judge", "gold"], "--judge gold knows only the embedded demo's prompts"),
        (["--load_in_8bit", "--load_in_4bit"], "--load_in_8bit and --load_in_4bit exclude each other: drop one."),
        (["--judge", "runs/typo"], "runs/typo: there is no such folder, nor such a model on the Hub"),
        (["--judge", "llm:runs/typo"], "runs/typo: its tokenizer cannot be loaded"),
        (["--best_of", "2", "--best_of_model", "runs/typo"], "runs/typo: there is no such folder"),
        (["--reference", "runs/typo"], "runs/typo: its tokenizer cannot be loaded"),
        (["--as_chat", "true"], "the embedded demo: --as_chat is for plain prompts, and there are none. Drop it."),
        (["--dataset_name", "{bad}"], "{bad}, row 2, column 'unsafe': 'maybe' is not true or false."),
    ],
)
def test_bad_input_is_one_line_before_a_model_loads(options, message, refuse, model_name, tmp_path, monkeypatch):
    monkeypatch.delattr(answers, "load_policy")
    places = {"model": model_name, "data": tmp_path / "prompts.jsonl", "bad": tmp_path / "bad.jsonl"}
    write(places["data"], [{"prompt": "a"}])
    write(places["bad"], [{"prompt": "a", "unsafe": True}, {"prompt": "b", "unsafe": "maybe"}])
    options = [option.format(**places) for option in options]
    assert refuse("--policy", model_name, *options).startswith(f"error: {message.format(**places)}")


def test_an_answer_whose_last_token_ends_it_is_not_cut_off(evaluate, model_name, tokenizer, tmp_path, monkeypatch):
    """Also where it has as many tokens as there may be."""
    end = tokenizer.eos_token_id

    def generate_tokens(model, tokenizer, prompts, decoding, **options):
        answers = [[9] * (decoding.max_new_tokens - 1) + [end if row % 3 else 9] for row in range(len(prompts))]
        return [(torch.tensor([7]), torch.tensor(answer)) for answer in answers]

    monkeypatch.setattr(answers, "generate_tokens", generate_tokens)
    evaluate("--policy", model_name, *SHORT)
    assert results(tmp_path / "runs/evaluate")["eval_cut_off"] == pytest.approx(1 / 3)


def test_models_that_are_none(refuse, reward_folder, model_name, tmp_path):
    assert "nowhere: its tokenizer cannot be loaded" in refuse("--policy", "nowhere")
    long = write(tmp_path / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "a b " * 300}])
    message = "prompts.jsonl, row 2, column 'prompt': it has"
    assert message in refuse("--policy", model_name, "--dataset_name", long, *SHORT)


def test_best_of_several_answers_is_the_one_the_reward_model_prefers(
    evaluate, refuse, model_name, reward_folder, tmp_path, monkeypatch
):
    """Scored by its length here, the best of three is the longest of the three that the seed draws."""

    class Longest:
        def __call__(self, prompts, completions):
            assert len(prompts) == len(completions) == 3 * COUNT
            return [float(len(text)) for text in completions]

    monkeypatch.setattr(answers.RewardModel, "from_pretrained", lambda path: Longest())
    best = ["--best_of", "3", "--best_of_model", reward_folder]
    evaluate("--policy", model_name, *best, *SHORT, "--seed", "5", "--output_dir", tmp_path / "out")
    lines = (tmp_path / "out/completions.jsonl").read_text().splitlines()
    written = [json.loads(line)["completion"] for line in lines]
    asked = prompt_dataset("test", seed=1, size=COUNT)["prompt"]
    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = policy_run.load_policy_tokenizer(model_name)
    repeated = [prompt for prompt in asked for _ in range(3)]
    drawn = generate(model, tokenizer, repeated, Decoding(seed=5, max_new_tokens=16))
    assert written == [max(drawn[3 * i : 3 * i + 3], key=len) for i in range(COUNT)]
    assert results(tmp_path / "out")["eval_kl_bound"] == pytest.approx(0.431946, abs=1e-5)  # log 3 - 2 / 3
    assert "eval_kl_k1" not in results(tmp_path / "out")
    assert "no effect without each other" in refuse("--policy", model_name, "--best_of", "3")
    assert "--best_of 1: there must be" in refuse("--policy", model_name, "--best_of", "1", "--best_of_model", "x")
    assert "--reference has no effect" in refuse("--policy", model_name, *best, "--reference", model_name)
