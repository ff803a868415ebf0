"""The demo's worked examples: what is said fits the response, and what is learned from them comes from the rules."""

import random
import re

import pytest
import torch

from rlhf_ext.demo import constitution
from rlhf_ext.demo import judge as judge_module
from rlhf_ext.demo.constitution import (
    CONSTITUTION,
    comparison_dataset,
    critique,
    demo_reviser,
    quality,
    revision_dataset,
)
from rlhf_ext.demo.judge import is_refusal, is_unsafe, judge
from rlhf_ext.demo.world import Attributes, draw_attributes, draw_good_attributes, draw_prompt, prompts, write_response
from rlhf_ext.policy_loading import load_policy

COMPARISON = re.compile(r"User: (?P<prompt>.*) \(A\) (?P<a>.*) \(B\) (?P<b>.*) (?P<question>Which.*\?)", re.DOTALL)


def prompt_of(unsafe):
    return next(
        prompt for prompt in prompts("train") if prompt.topic.unsafe == unsafe and not prompt.topic.sounds_unsafe
    )


@pytest.mark.parametrize(
    ("unsafe", "attributes", "flaw"),
    [
        (True, Attributes(steps=2, rude=True), "could hurt somebody"),
        (True, Attributes(evasive=True), "does not refuse to help"),
        (True, Attributes(refusal=True, alternative=True, rude=True), "is not kind"),
        (True, Attributes(refusal=True, reason=True), "does not offer something else"),
        (True, Attributes(refusal=True, alternative=True), "is good"),
        (False, Attributes(steps=4, rude=True), "is not kind"),
        (False, Attributes(refusal=True), "does not help, but nobody is hurt"),
        (False, Attributes(steps=3, on_topic=False), "is about something else"),
        (False, Attributes(steps=2), "does not say enough"),
        (False, Attributes(steps=4, evasive=True), "does not say enough"),
        (False, Attributes(steps=3), "is good"),
    ],
)
def test_critique_names_the_worst_flaw(unsafe, attributes, flaw):
    prompt = prompt_of(unsafe)
    advice = f"I should {'refuse' if unsafe else 'help'} to {prompt.task}."
    assert critique(prompt, attributes, "(A)") == f"(A) {flaw}. {advice}"


def test_rules_agree_with_the_gold_judge_that_they_never_ask():
    """They are two accounts of the same world; a flipped sign in either would show."""
    rng = random.Random(0)
    agreed = []
    while len(agreed) < 300:
        prompt = draw_prompt("train", rng)
        pair = [draw_attributes(prompt.topic, rng) for _ in range(2)]
        gap = quality(prompt.topic, pair[0]) - quality(prompt.topic, pair[1])
        gold = [judge(prompt.text, write_response(prompt, attributes, rng)).overall for attributes in pair]
        if abs(gap) >= constitution.SMALLEST_GAP and gold[0] != gold[1]:
            agreed.append((gap > 0) == (gold[0] > gold[1]))
    assert sum(agreed) / len(agreed) > 0.9


def test_revisions_are_good_and_follow_the_conversation():
    good = 0
    rows = revision_dataset(seed=1, size=200)["messages"]
    for messages in rows:
        assert [message["role"] for message in messages] == ["user", "assistant"] * 3
        prompt, first, request, fault, revise, revision = (message["content"] for message in messages)
        asked = {principle.critique_request: principle.revision_request for principle in CONSTITUTION.principles}
        assert revise == f"{asked[request.removesuffix(f' User: {prompt}')]} User: {prompt}"
        assert is_refusal(revision) == is_unsafe(prompt)
        scores = judge(prompt, revision)
        assert (scores.safety if is_unsafe(prompt) else scores.helpfulness) >= 3.4
        assert fault.startswith("It ") and first
        good += fault.startswith("It is good.")
    assert 0.05 < good / len(rows) < 0.4
    assert 0.35 < sum(is_unsafe(messages[0]["content"]) for messages in rows) / len(rows) < 0.65


def test_comparisons_choose_the_better_and_say_what_is_wrong_with_the_other():
    rows = comparison_dataset(seed=1, size=300)["messages"]
    right = letters = 0
    other = {"A": "B", "B": "A"}
    for question, reply in rows:
        found = COMPARISON.fullmatch(question["content"])
        text = reply["content"]
        letters += text[0] == "A"
        assert text[0] in "AB" and text[1:].startswith(f". ({other[text[0]]})")
        better, worse = (found["a"], found["b"])[:: 1 if text[0] == "A" else -1]
        right += judge(found["prompt"], better).overall >= judge(found["prompt"], worse).overall
    assert right / len(rows) > 0.85
    assert 0.4 < letters / len(rows) < 0.6


def test_examples_follow_from_the_seed_and_keep_to_the_training_prompts():
    test_prompts = {prompt.text for prompt in prompts("test")}
    for make in (revision_dataset, comparison_dataset):
        first, again, other = (make(seed=seed, size=30).to_list() for seed in (3, 3, 4))
        assert first == again != other
        assert not [
            text for row in first for text in test_prompts if text in row["messages"][0]["content"].split(" (A)")
        ]


def _asks(row, prompt):
    return row["messages"][0]["content"].removeprefix("User: ").split(" (A)")[0] == prompt


def test_gold_judge_is_not_used_for_examples(monkeypatch):
    def forbidden(*args):
        raise AssertionError("the gold judge only measures")

    monkeypatch.setattr(constitution, "judge", forbidden)
    monkeypatch.setattr(judge_module, "judge", forbidden)
    revision_dataset(size=20)
    comparison_dataset(size=20)


def test_good_demonstrations_have_nothing_to_criticise():
    rng = random.Random(0)
    for _ in range(100):
        prompt = draw_prompt("train", rng)
        assert critique(prompt, draw_good_attributes(prompt.topic, rng)).startswith("It is good.")


def test_critic_learns_and_is_trained_once(tmp_path, model_name, tokenizer):
    demo_reviser(tmp_path / "reviser", seed=0, examples={"revision": 40, "comparison": 8}, show_progress=False)
    asked = revision_dataset(seed=9, size=8)["messages"][:]
    losses = {}
    for name in (model_name, tmp_path / "reviser"):
        model, own = load_policy(str(name), dtype="float32")
        assert own.chat_template == tokenizer.chat_template
        batch = own.apply_chat_template(asked, return_dict=True, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.no_grad():
            losses[name] = float(model(**batch, labels=labels).loss)
    assert losses[tmp_path / "reviser"] < losses[model_name] - 0.3
    before = (tmp_path / "reviser/model.safetensors").read_bytes()
    demo_reviser(tmp_path / "reviser", seed=1, examples={"revision": 8, "comparison": 8})
    assert (tmp_path / "reviser/model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["reviser"]
