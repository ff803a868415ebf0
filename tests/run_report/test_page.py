"""A report of a short PPO run of the embedded demo, in a real browser: phone and desktop, light and dark."""

import json
import os
import shutil
import sys

import pytest

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.demo.gold import gold
from rlhf_ext.report import evaluate_before, save_run
from rlhf_ext.run_report.samples import SampleCallback

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}


def length(completions, **kwargs):
    return [len(completion[0]["content"]) / 50 for completion in completions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_name):
    folder = tmp_path_factory.mktemp("run")
    limits = {"max_completion_length": 16, "per_device_train_batch_size": 12, "per_device_eval_batch_size": 12}
    counts = {"max_steps": 4, "logging_steps": 1, "num_iterations": 2, "steps_per_generation": 1}
    quiet = {"disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    args = PPOConfig(str(folder), reward_weights=[1.0, 0.0], save_strategy="no", **limits, **counts, **quiet)
    prompts = prompt_dataset("test", size=12)
    trainer = PPOTrainer(model_name, [length, gold], args, prompt_dataset(size=24), prompts)
    samples = SampleCallback(trainer, prompts)
    trainer.add_callback(samples)
    before = evaluate_before(trainer)
    result = trainer.train()
    metrics = {"eval_reward": "reward", "eval_rewards/gold/mean": "gold score"}
    panels = {"reward": ["reward"], "KL": ["kl/k1", "kl/k3"], "clip fraction": ["clip_fraction"], "none": ["absent"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["recipes/ppo.py", "--hub_token", "secret", "--note", "x" * 200])
        script_args, after = RecipeArguments(), trainer.evaluate()
        save_run(trainer, script_args, before, result.metrics, after, metrics=metrics, panels=panels, samples=samples)
    return folder


@pytest.fixture(scope="module")
def browser():
    """A Chromium of this machine. CI installs one; elsewhere its absence is no failure of the code."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        message = "there is no Chromium: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_renders_in_a_browser(folder, browser, size, scheme):
    page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{folder}/report.html")
    widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    # reward, KL, clip fraction, and reward over KL; the panel of a metric that was never logged is left out
    assert len(widths) == 4 and min(widths) > 300
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 30)"
    assert dark == (scheme == "dark")
    shown = page.evaluate("[...document.images].map(image => image.currentSrc)")
    light = page.evaluate("[...document.images].map(image => image.src)")
    assert (shown != light) == (scheme == "dark")  # dark figures on dark pages
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [f"file://{folder}/report.html"]
    page.close()


def test_it_says_what_ran_without_secrets(folder):
    page = (folder / "report.html").read_text()
    for expected in ("--hub_token", "the embedded demo", "with seed 42", "trl 1.", "logical cores", "fingerprint"):
        assert expected in page
    assert "secret" not in page


def test_completions_before_and_after_are_those_of_the_evaluation(folder):
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    held_out = [row["prompt"] for row in prompt_dataset("test", size=12)]
    assert len(rows) == 6 and all(row["prompt"] in held_out for row in rows)
    for row in rows:
        for name in ("before", "after"):
            assert row[f"scores_{name}"]["reward"] == pytest.approx(len(row[name]) / 50)
            expected = gold([row["prompt"]], [row[name]])[0]
            assert row[f"scores_{name}"]["gold"] == pytest.approx(expected)
            assert set(row[f"scores_{name}"]) == {"reward", "gold"}
        assert row["decoding"]["max_new_tokens"] == 16 and row["decoding"]["seed"] == 42
