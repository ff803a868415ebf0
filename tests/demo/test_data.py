"""Tests of the demo data sets: format, splits, label noise and determinism."""

import os
import random
import statistics
import subprocess
import sys
import time

import pytest

from rlhf_ext.demo.data import (
    base_dataset,
    draw_preferences,
    lesson_dataset,
    preference_dataset,
    prompt_dataset,
    sft_dataset,
)
from rlhf_ext.demo.judge import is_refusal, is_unsafe, judge
from rlhf_ext.demo.topics import EVERYDAY, UNSAFE
from rlhf_ext.demo.world import Attributes, draw_attributes, draw_prompt, prompts, write_response

ALL = [preference_dataset, sft_dataset, prompt_dataset, base_dataset, lesson_dataset]


@pytest.fixture(scope="module")
def preferences():
    return preference_dataset("train")


def texts(dataset, column: str) -> list[str]:
    return [messages[0]["content"] for messages in dataset[column]]


def overall(dataset, column: str) -> list[float]:
    pairs = zip(texts(dataset, "prompt"), texts(dataset, column), strict=True)
    return [judge(prompt, response).overall for prompt, response in pairs]


def test_the_world_is_large_enough():
    assert len(EVERYDAY) >= 36
    assert len(UNSAFE) >= 10
    assert sum(topic.sounds_unsafe for topic in EVERYDAY) >= 5
    assert all(len(set(topic.steps)) >= 5 for topic in EVERYDAY + UNSAFE)


@pytest.mark.parametrize("make", ALL)
def test_data_follow_from_the_seed(make):
    first, other = (make("train", seed=seed, size=40).to_list() for seed in (3, 4))
    draw_preferences.cache_clear()
    again = make("train", seed=3, size=40).to_list()
    assert first == again
    assert first != other


def test_data_do_not_depend_on_the_hash_seed_of_the_process():
    code = (
        "import random; from rlhf_ext.demo import judge, world; rng = random.Random(0)\n"
        "for _ in range(20):\n"
        "    prompt = world.draw_prompt('train', rng)\n"
        "    text = world.write_response(prompt, world.draw_attributes(prompt.topic, rng), rng)\n"
        "    print(prompt.text, text, judge.judge(prompt.text, text))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_drawing_leaves_the_global_random_state_alone():
    state = random.getstate()
    preference_dataset("test", size=20)
    assert random.getstate() == state


@pytest.mark.parametrize("make", ALL)
def test_columns_are_conversations(make):
    row = make("test", size=1)[0]
    roles = {name: [turn["role"] for turn in row[name]] for name in row if isinstance(row[name], list)}
    assert roles.pop("prompt") == ["user"]
    assert all(role == ["assistant"] for role in roles.values())


@pytest.mark.parametrize("make", ALL)
def test_splits_share_no_prompts_even_across_seeds(make):
    train, test = (
        set(texts(make("train", seed=0, size=600), "prompt")),
        set(texts(make("test", seed=1, size=300), "prompt")),
    )
    assert not train & test
    assert len(test) > 100


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="split"):
        prompts("validation")


def test_a_tenth_of_the_labels_is_flipped_mostly_in_close_pairs(preferences):
    margins = preferences["gold_margin"]
    flipped = [abs(margin) for margin in margins if margin < 0]
    assert len(preferences) == 2000
    assert 0.08 <= len(flipped) / len(margins) <= 0.12
    close = [margin < 0 for margin in margins if abs(margin) < 1]
    clear = [margin < 0 for margin in margins if abs(margin) > 2]
    assert statistics.mean(close) > 4 * statistics.mean(clear)


def test_margins_are_those_of_the_judge_and_not_too_small(preferences):
    gaps = [
        good - bad for good, bad in zip(overall(preferences, "chosen"), overall(preferences, "rejected"), strict=True)
    ]
    assert gaps == pytest.approx(preferences["gold_margin"])
    assert min(map(abs, gaps)) >= 0.5


def test_strength_is_graded_and_rises_with_the_margin(preferences):
    strength, margins = preferences["strength"], preferences["gold_margin"]
    assert 1 <= min(strength) < 1.3 and 2.7 < max(strength) <= 3
    assert statistics.correlation(strength, [abs(margin) for margin in margins]) > 0.4
    flipped = [value for value, margin in zip(strength, margins, strict=True) if margin < 0]
    assert statistics.mean(flipped) < statistics.mean(strength) - 0.4


def test_without_noise_the_same_pairs_have_the_right_labels():
    noisy, clean = preference_dataset("test"), preference_dataset("test", noise=False)
    assert min(clean["gold_margin"]) > 0
    assert texts(noisy, "prompt") == texts(clean, "prompt")
    assert [abs(margin) for margin in noisy["gold_margin"]] == pytest.approx(clean["gold_margin"])


def test_demonstrations_are_good():
    scores = overall(sft_dataset("train", size=500), "completion")
    assert statistics.mean(scores) > 4.5
    assert min(scores) > 3.8


def test_base_responses_leave_room_above_and_show_what_good_looks_like():
    data = base_dataset("train", size=3000)
    unsafe = [is_unsafe(prompt) for prompt in texts(data, "prompt")]
    for kind in (True, False):
        scores = [score for score, harmful in zip(overall(data, "completion"), unsafe, strict=True) if harmful == kind]
        assert statistics.mean(scores) < 3
        assert 0.08 < statistics.mean(score >= 4 for score in scores) < 0.25


def test_about_a_quarter_of_the_prompts_is_unsafe():
    assert 0.25 <= statistics.mean(map(is_unsafe, texts(prompt_dataset("train"), "prompt"))) <= 0.31


def test_harmless_prompts_that_sound_unsafe_are_refused_more_often():
    rng = random.Random(0)
    refused = {True: [], False: []}
    for _ in range(2000):
        prompt = draw_prompt("train", rng)
        if not prompt.topic.unsafe:
            refused[prompt.topic.sounds_unsafe].append(draw_attributes(prompt.topic, rng).refusal)
    assert statistics.mean(refused[True]) > 3 * statistics.mean(refused[False])


def test_responses_have_the_attributes_they_were_written_with():
    rng = random.Random(0)
    for prompt in rng.sample(prompts("train"), 300):
        attributes = draw_attributes(prompt.topic, rng)
        response = write_response(prompt, attributes, rng)
        assert is_refusal(response) == attributes.refusal
        assert 4 <= len(response.split()) <= 75
        assert "/" not in response and "{" not in response


def test_the_same_attributes_are_written_in_many_ways():
    prompt = next(prompt for prompt in prompts("train") if not prompt.topic.unsafe)
    written = {write_response(prompt, Attributes(steps=2, opening=True), random.Random(seed)) for seed in range(100)}
    assert len(written) > 80


def test_the_training_pairs_are_made_quickly():
    start = time.process_time()
    preference_dataset("train", seed=7)
    assert time.process_time() - start < 3
