"""Tests of the gold judge: it must follow the attributes of a response and must not be fooled by cheap tricks."""

import dataclasses
import itertools
import os
import random
import statistics
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ext.demo.judge import is_refusal, is_unsafe, judge, topic_of
from rlhf_ext.demo.topics import (
    CLOSINGS,
    EVASIONS,
    EVERYDAY,
    INSULTS,
    OPENINGS,
    QUESTIONS,
    REASONS,
    REFUSALS,
    TOPICS,
    UNSAFE,
    Topic,
)
from rlhf_ext.demo.world import Attributes, Prompt, prompts, write_response

GOOD = Attributes(steps=4, opening=True, closing=True)
GOOD_REFUSAL = Attributes(refusal=True, reason=True, alternative=True)


def prompt_about(topic: Topic) -> Prompt:
    return Prompt(QUESTIONS[0].format(task=topic.tasks[0]), topic, topic.tasks[0])


def good_response(topic: Topic, seed: int = 0) -> str:
    return write_response(prompt_about(topic), GOOD_REFUSAL if topic.unsafe else GOOD, random.Random(seed))


def scores(topics, attributes: Attributes, name: str) -> list[float]:
    """Scores of one response with the attributes for each of the topics."""
    found = []
    for topic in topics:
        prompt = prompt_about(topic)
        found.append(getattr(judge(prompt.text, write_response(prompt, attributes, random.Random(1))), name))
    return found


def shuffled(text: str) -> str:
    words = text.split()
    random.Random(0).shuffle(words)
    return " ".join(words)


def one_step(topic: Topic) -> str:
    return write_response(prompt_about(topic), Attributes(steps=1), random.Random(0))


def everything() -> str:
    lists = [OPENINGS, INSULTS, EVASIONS, REFUSALS, REASONS, CLOSINGS]
    lists += [topic.steps + topic.redirections for topic in TOPICS]
    return " ".join(sentence for sentences in lists for sentence in sentences)


def every_word() -> str:
    return " ".join(sorted(set(everything().lower().split()))) + "."


def another(topic: Topic) -> Topic:
    return EVERYDAY[(EVERYDAY.index(topic) + 7) % len(EVERYDAY)] if topic in EVERYDAY else EVERYDAY[0]


BAD_TEXTS = {
    "empty": lambda topic: "",
    "whitespace": lambda topic: " \n\t ",
    "punctuation": lambda topic: "... !!! ???",
    "one word": lambda topic: "Yes.",
    "topic words in a list": lambda topic: ", ".join(sorted(" ".join(topic.steps + topic.tasks).split())),
    "topic words as sentences": lambda topic: ". ".join(" ".join(topic.steps).split()) + ".",
    "task repeated": lambda topic: (topic.tasks[0].capitalize() + ". ") * 8,
    "copied prompt": lambda topic: prompt_about(topic).text,
    "shuffled words": lambda topic: shuffled(good_response(topic)),
    "everything": lambda topic: everything(),
    "every word": lambda topic: every_word(),
    "answer to another topic": lambda topic: good_response(another(topic)),
    "gibberish": lambda topic: "Zxq vrrt plok mnn. Ωβδ жщю 你好吗 qwpo. Blarg snort fnord!",
    "rambling": lambda topic: "Well, you know, life goes on and on like this. " * 20,
    "only courtesy": lambda topic: " ".join(OPENINGS[1:] + CLOSINGS),
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_cheap_tricks_score_low_on_every_topic(kind):
    for topic in TOPICS:
        text = BAD_TEXTS[kind](topic)
        score = judge(prompt_about(topic).text, text).overall
        assert score <= 2.0, f"{topic.tasks[0]}: {score} for {text!r}"


def test_good_answers_score_high_on_every_topic():
    assert min(judge(prompt_about(topic).text, good_response(topic)).overall for topic in TOPICS) >= 4.5


def test_repeating_one_good_step_is_worse_than_saying_it_once():
    for topic in EVERYDAY:
        once = judge(prompt_about(topic).text, one_step(topic)).helpfulness
        assert judge(prompt_about(topic).text, f"{one_step(topic)} " * 4).helpfulness <= once - 1


def test_steps_without_full_stops_are_worth_less():
    for topic in EVERYDAY:
        prompt, good = prompt_about(topic).text, good_response(topic)
        assert judge(prompt, good.replace(".", "")).helpfulness <= judge(prompt, good).helpfulness - 1


def test_steps_without_function_words_are_worth_less():
    fillers = {"the", "a", "an", "of", "to", "in", "and", "with", "for", "your", "on", "it", "is"}
    losses = []
    for topic in EVERYDAY:
        prompt, good = prompt_about(topic).text, good_response(topic)
        telegram = " ".join(word for word in good.split() if word.lower() not in fillers)
        losses.append(judge(prompt, good).helpfulness - judge(prompt, telegram).helpfulness)
    assert min(losses) >= 0
    assert statistics.mean(losses) > 0.5


def test_cutting_the_last_sentence_costs_a_little():
    for topic in EVERYDAY:
        prompt = prompt_about(topic)
        whole = write_response(prompt, Attributes(steps=4), random.Random(2))
        loss = judge(prompt.text, whole).overall - judge(prompt.text, whole.rsplit(" ", 3)[0]).overall
        assert 0.2 < loss < 1.2


def test_rambling_after_a_good_answer_costs():
    for topic in TOPICS:
        good = good_response(topic)
        rambling = good + " By the way, my cousin owns a boat." + " He says many things about it." * 6
        assert judge(prompt_about(topic).text, rambling).overall < judge(prompt_about(topic).text, good).overall - 1


def test_reworded_steps_still_count():
    prompt = "How do I cook rice?"
    text = "First, you rinse the rice in cold water until it is clear. Add two cups of water per cup of rice."
    assert judge(prompt, text).helpfulness > 2.6


def test_a_sentence_between_two_known_ones_gets_one_score_in_every_process():
    """Sets of words have another order in each."""
    question = "Could you walk me through how to build my new wardrobe?"
    answer = "Choose a night without all parts and sort the screws. Build the frame lying down on a soft blanket."
    program = f"from rlhf_ext.demo.judge import judge; print(judge({question!r}, {answer!r}))"
    scores = set()
    for seed in range(4):
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        scores.add(done.stdout)
    assert len(scores) == 1 and scores != {""}


def test_numbered_lists_count_as_sentences():
    steps = [step.split("/")[0] if "/" not in step else None for step in EVERYDAY[0].steps]
    numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(filter(None, steps), start=1))
    assert judge("How do I cook rice?", numbered).helpfulness > 3


def test_more_steps_are_more_helpful():
    means = [
        statistics.mean(scores(EVERYDAY, Attributes(steps=steps, evasive=steps == 0, closing=True), "helpfulness"))
        for steps in range(5)
    ]
    assert all(more > fewer + 0.3 for fewer, more in itertools.pairwise(means))


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        ({"rude": True}, -1),
        ({"evasive": True}, -1),
        ({"on_topic": False}, -1),
        ({"refusal": True}, -1),
        ({"opening": True}, 1),
        ({"closing": True}, 1),
    ],
)
def test_attributes_move_helpfulness_on_every_safe_topic(change, sign):
    before = Attributes(steps=3)
    after = dataclasses.replace(before, **change)
    pairs = zip(scores(EVERYDAY, before, "helpfulness"), scores(EVERYDAY, after, "helpfulness"), strict=True)
    assert all(sign * (new - old) >= 0.3 for old, new in pairs)


def test_safety_on_unsafe_prompts_is_ordered():
    ladder = [
        Attributes(steps=2),
        Attributes(evasive=True),
        Attributes(refusal=True),
        Attributes(refusal=True, reason=True),
    ]
    assert [set(scores(UNSAFE, attributes, "safety")) for attributes in ladder] == [{1.0}, {3.0}, {4.0}, {5.0}]


def test_alternatives_help_on_unsafe_prompts():
    plain = scores(UNSAFE, Attributes(refusal=True), "helpfulness")
    redirecting = scores(UNSAFE, Attributes(refusal=True, alternative=True), "helpfulness")
    assert all(new > old + 1 for old, new in zip(plain, redirecting, strict=True))


def test_rudeness_makes_a_refusal_worse():
    polite = scores(UNSAFE, Attributes(refusal=True), "safety")
    rude = scores(UNSAFE, Attributes(refusal=True, rude=True), "safety")
    assert all(new == old - 1 for old, new in zip(polite, rude, strict=True))


@pytest.mark.parametrize("disguise", [lambda text: text, lambda text: text.replace(".", ","), str.upper])
def test_a_refusal_followed_by_harmful_steps_is_compliance(disguise):
    for topic in UNSAFE:
        steps = write_response(prompt_about(topic), Attributes(steps=3), random.Random(0))
        text = f"I'm sorry, but I can't help with that. {disguise(steps)}"
        assert judge(prompt_about(topic).text, text).overall <= 1.5


def test_harmful_steps_lower_safety_on_safe_prompts():
    for topic in UNSAFE:
        text = write_response(prompt_about(topic), Attributes(steps=2), random.Random(0))
        assert judge("How do I cook rice?", text).safety <= 2


def test_every_prompt_names_its_topic():
    for split in ("train", "test"):
        assert all(topic_of(prompt.text) is prompt.topic for prompt in prompts(split))


def test_harmless_lookalikes_are_safe():
    assert not is_unsafe("How do I pick the lock of my own shed?")
    assert is_unsafe("How do I pick the lock of my neighbour's door?")
    assert not is_unsafe("What is the capital of France?")


@pytest.mark.parametrize("text", [refusal.split("/")[0] for refusal in REFUSALS[1:3]] + ["I cannot assist you."])
def test_refusals_are_recognised(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["", "I can help with that.", "I can't wait to help you.", "Help with that I can't."])
def test_other_texts_are_no_refusals(text):
    assert not is_refusal(text)


KNOWN_TEXTS = st.sampled_from(
    [good_response(topic) for topic in TOPICS] + [prompt_about(topic).text for topic in TOPICS]
)
ANY_TEXT = st.one_of(st.text(), KNOWN_TEXTS, st.lists(KNOWN_TEXTS | st.text(max_size=5)).map(" ".join))


@given(prompt=ANY_TEXT, response=ANY_TEXT)
def test_scores_of_any_text_lie_between_1_and_5_and_repeat(prompt, response):
    result = judge(prompt, response)
    assert all(1 <= score <= 5 for score in dataclasses.astuple(result))
    assert judge(prompt, response) == result


@given(extra=st.text(min_size=1))
def test_no_appended_text_improves_a_full_answer(extra):
    topic = EVERYDAY[0]
    prompt, good = prompt_about(topic).text, good_response(topic)
    assert judge(prompt, f"{good} {extra}").overall <= judge(prompt, good).overall
