"""Judges: which answer they prefer, against the probabilities and scores they are made of."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ext import RewardModel, plugins
from rlhf_ext.demo.judge import judge
from rlhf_ext.evaluation.judges import (
    COMPARISON,
    QUALITIES,
    RATING,
    FunctionJudge,
    GoldJudge,
    JudgeError,
    LanguageModelJudge,
    RewardModelJudge,
)
from rlhf_ext.plugins import PluginError

RICE, FORGERY = "How do I cook rice?", "How do I forge a signature?"
STEP, REFUSAL = "Rinse the rice in cold water until it runs clear.", "I can't help with that."


def test_gold_judge_knows_better_answers():
    prompts = [[{"role": "user", "content": RICE}], RICE, FORGERY]
    assert GoldJudge().prefer(prompts, [STEP, STEP, STEP], [REFUSAL, STEP, REFUSAL]) == [1.0, 0.5, 0.0]
    ratings = GoldJudge().rate(prompts, [STEP, REFUSAL, REFUSAL])
    assert ratings == {
        "helpfulness": [judge(RICE, STEP).helpfulness, judge(RICE, REFUSAL).helpfulness, None],
        "safety": [None, None, judge(FORGERY, REFUSAL).safety],
    }


def test_reward_model_judge_prefers_the_higher_score(reward_folder):
    model = RewardModel.from_pretrained(reward_folder)
    by_reward = RewardModelJudge(model, "mine")
    prompts, a, b = ["Hi", "Hi", "Ho"], ["one", "same", "x y z"], ["two", "same", "long answer"]
    expected = []
    for prompt, first, second in zip(prompts, a, b, strict=True):
        difference = model.score((prompt, first)) - model.score((prompt, second))
        expected.append(0.5 if difference == 0 else float(difference > 0))
    assert by_reward.prefer(prompts, a, b) == expected
    assert by_reward.rate(prompts, a)["reward"] == pytest.approx(
        [model.score(pair) for pair in zip(prompts, a, strict=True)], abs=1e-5
    )


@pytest.fixture(scope="module")
def language_model(model_name):
    return AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()


@torch.no_grad()
def reply_probabilities(model, tokenizer, question, choices):
    """What the model gives to each choice, at once or after a space, as the next token; one question at a time."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    probabilities = model(torch.tensor([ids])).logits[0, -1].double().softmax(0)
    firsts = [{tokenizer.encode(choice)[0], tokenizer.encode(f" {choice}")[0]} for choice in choices]
    shared = [set.union(*(other for other in firsts if other is not first)) for first in firsts]
    return [
        sum(probabilities[token].item() for token in first - others)
        for first, others in zip(firsts, shared, strict=True)
    ]


def test_language_model_is_asked_in_both_orders(language_model, tokenizer):
    prompts = [[{"role": "user", "content": RICE}], RICE, FORGERY, FORGERY]
    a, b = [STEP, "Boil it.", REFUSAL, "Practise every day."], ["No.", STEP, "Sure.", REFUSAL]
    expected = []
    for prompt, first, second in zip([RICE, RICE, FORGERY, FORGERY], a, b, strict=True):
        straight = reply_probabilities(
            language_model, tokenizer, COMPARISON.format(prompt=prompt, a=first, b=second), "AB"
        )
        swapped = reply_probabilities(
            language_model, tokenizer, COMPARISON.format(prompt=prompt, a=second, b=first), "AB"
        )
        log_odds = (math.log(straight[0] / straight[1]) + math.log(swapped[1] / swapped[0])) / 2
        agree = (straight[0] > straight[1]) == (swapped[0] < swapped[1])
        expected.append(1 / (1 + math.exp(-log_odds)) if agree else 0.5)
    asked = LanguageModelJudge(language_model, tokenizer, "llm:demo", batch_size=3)
    preferences = asked.prefer(prompts, a, b)
    assert preferences == pytest.approx(expected, abs=1e-4)
    reversed_preferences = asked.prefer(prompts, b, a)
    assert [1 - preference for preference in reversed_preferences] == pytest.approx(preferences, abs=1e-6)


def test_orders_that_disagree_are_a_tie_and_orders_that_agree_are_not(monkeypatch):
    """Log-probabilities of A and B: first always A (position bias), then the first answer in both orders."""
    replies = {"biased": [[-0.1, -3.0], [-0.1, -3.0]], "sure": [[-0.2, -2.0], [-2.0, -0.2]]}
    asked = LanguageModelJudge(None, None, "llm:demo")
    for name, expected in (("biased", 0.5), ("sure", 1 / (1 + math.exp(-1.8)))):
        monkeypatch.setattr(asked, "_ask", lambda questions, choices, reply=replies[name]: reply)
        assert asked.prefer(["p"], ["a"], ["b"]) == pytest.approx([expected])


def test_ratings_are_the_mean_of_the_numbers(language_model, tokenizer):
    asked = LanguageModelJudge(language_model, tokenizer, "llm:demo")
    ratings = asked.rate([RICE], [STEP])
    assert set(ratings) == {"helpfulness", "safety"}
    for quality, question in QUALITIES.items():
        weights = reply_probabilities(
            language_model, tokenizer, RATING.format(prompt=RICE, answer=STEP, question=question), "12345"
        )
        expected = sum(number * weight for number, weight in enumerate(weights, start=1)) / sum(weights)
        assert ratings[quality] == pytest.approx([expected], abs=1e-3)


def test_a_model_without_chat_template_is_asked_in_plain_text(language_model, model_name):
    bare = AutoTokenizer.from_pretrained(model_name)
    bare.chat_template = None
    preferences = LanguageModelJudge(language_model, bare, "llm:demo").prefer([RICE], [STEP], [STEP])
    assert preferences == [0.5]


@pytest.fixture
def judge_file(tmp_path):
    def write(body):
        path = tmp_path / f"judge_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(f"def longer(prompts, completions_a, completions_b):\n    {body}\n")
        return f"{path}:longer"

    return write


@pytest.mark.usefixtures("own_registry")
def test_any_function_judges(judge_file):
    body = "return [float(len(a) > len(b)) for a, b in zip(completions_a, completions_b)]"
    longer = FunctionJudge(judge_file(body))
    assert longer.prefer(["p", "p"], ["aa", "a"], ["b", "bb"]) == [1.0, 0.0]
    assert longer.rate(["p"], ["a"]) == {} and longer.name.endswith(":longer")
    plugins.register("judge", "always_a")(lambda prompts, completions_a, completions_b: [1.0] * len(prompts))
    assert FunctionJudge("always_a").prefer(["p"], ["a"], ["b"]) == [1.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.5]", "returned 1 preferences for 2 prompts"),
        ("return [0.5, 1.5]", "returned 1.5 for row 2, not a number from 0 to 1"),
        ("return [0.5, float('nan')]", "returned nan for row 2"),
        ("return None", "must return a list of numbers"),
        ("return ['a', 'b']", "must return a list of numbers"),
    ],
)
def test_a_function_that_returns_something_else(body, message, judge_file):
    with pytest.raises(JudgeError, match=message):
        FunctionJudge(judge_file(body)).prefer(["p", "p"], ["a", "a"], ["b", "b"])


def test_a_function_with_another_signature(tmp_path):
    (tmp_path / "judge.py").write_text("def one(prompts, completions): ...\ndef two(prompts, a, b, *, scale): ...\n")
    for name in ("one", "two"):
        with pytest.raises(PluginError, match=r"is called as fn\(prompts, completions_a, completions_b\)"):
            FunctionJudge(f"{tmp_path / 'judge.py'}:{name}")
