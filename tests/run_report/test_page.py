"""The pages that recipes leave, in a real browser: phone and desktop, light and dark."""

import io
import json
import os
import runpy
import shutil
import sys

import forked
import numpy as np
import pytest
from PIL import Image

from rlhf_ext import PPOConfig, PPOTrainer, RewardConfig, RewardTrainer
from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.chatbot.phases import ChatbotArguments
from rlhf_ext.chatbot.report import summarize
from rlhf_ext.demo.data import preference_dataset, prompt_dataset
from rlhf_ext.demo.gold import gold
from rlhf_ext.evaluation.pair_report import ScoredPairs, report_pairs
from rlhf_ext.evaluation.policy_report import JudgedPolicy, report_policies
from rlhf_ext.evaluation.prompts import EvaluationPrompts
from rlhf_ext.evaluation.report import Evaluation
from rlhf_ext.evaluation.revisions import page as revisions_page
from rlhf_ext.evaluation.rows import Pairs
from rlhf_ext.evaluation.statistics import Bootstrap
from rlhf_ext.output_files import write_jsonl
from rlhf_ext.report import evaluate_before, save_run
from rlhf_ext.run_report.facts import script_facts
from rlhf_ext.run_report.samples import SampleCallback

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}
QUICK = Bootstrap(resamples=50)
SHORT = {"max_steps": 4, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
SHORT |= {"per_device_train_batch_size": 12, "per_device_eval_batch_size": 12}
SHORT |= {"disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
COMMAND = ["recipes/ppo.py", "--hub-token", "secret", "--note", "x" * 200]
# With what some take for the end of a line.
STRANGE = "a\u2028b\u0085c<script>alert('x')</script>"


def length(completions, **kwargs):
    return [len(completion[0]["content"]) / 50 for completion in completions]


@pytest.fixture(scope="module")
def command():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", COMMAND)
        yield


@pytest.fixture(scope="module")
def ppo(tmp_path_factory, model_name, command):
    folder = tmp_path_factory.mktemp("ppo")
    limits = {"max_completion_length": 16, "num_iterations": 2, "steps_per_generation": 1}
    args = PPOConfig(str(folder), reward_weights=[1.0, 0.0], **limits, **SHORT)
    prompts = prompt_dataset("test", size=12)
    trainer = PPOTrainer(model_name, [length, gold], args, prompt_dataset(size=24), prompts)
    samples = SampleCallback(trainer, prompts)
    trainer.add_callback(samples)
    before = evaluate_before(trainer)
    result = trainer.train()
    metrics = {"eval_reward": "reward", "eval_rewards/gold/mean": "gold score"}
    panels = {"reward": ["reward"], "KL": ["kl/k1", "kl/k3"], "clip fraction": ["clip_fraction"], "none": ["absent"]}
    kept = {"metrics": metrics, "panels": panels, "samples": samples}
    save_run(trainer, RecipeArguments(), before, result.metrics, trainer.evaluate(), **kept)
    return folder


@pytest.fixture(scope="module")
def reward(tmp_path_factory, model_name, command):
    folder = tmp_path_factory.mktemp("reward")
    rows = preference_dataset("test", size=24).remove_columns("gold_margin")
    trainer = RewardTrainer(model_name, RewardConfig(str(folder), **SHORT), train_dataset=rows, eval_dataset=rows)
    before = evaluate_before(trainer)
    result = trainer.train()
    kept = {"metrics": {"eval_accuracy": "accuracy"}, "panels": {"loss": ["loss"]}, "eval_rows": rows}
    save_run(trainer, RecipeArguments(), before, result.metrics, trainer.evaluate(), **kept)
    return folder


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, command):
    """What recipes/evaluate.py writes of answers and scores that nobody had to generate."""
    folder, count, rng = tmp_path_factory.mktemp("evaluation"), 30, np.random.default_rng(0)
    numbers = list(range(count))
    asked = [[{"role": "user", "content": f"Question {n}? {STRANGE}"}] for n in numbers]
    policies = [
        JudgedPolicy(
            name, [f"{STRANGE} {n} " * length for n in numbers], [False] * count, 16, [n % 2 == 0 for n in numbers],
            {"helpfulness": list(rng.uniform(1, 5, count)), "safety": [None] * count},
            {"k1": rng.normal(1, 1, count), "k3": rng.uniform(0, 2, count)}, "base",
        )
        for name, length in (("trained", 3), ("base", 1))
    ]  # fmt: skip
    prompts = EvaluationPrompts("prompts.jsonl", numbers, asked, None)
    of_policies = report_policies(prompts, policies, [1.0] * 25 + [0.0] * 5, "gold", QUICK)
    of_policies.metrics |= {"judge": "gold"}
    pairs = Pairs("pairs.jsonl", numbers, [f"Q{n}?" for n in numbers], [f"A {n}." for n in numbers], ["B."] * count)
    scored = ScoredPairs("judge", rng.normal(1, 1, count), rng.normal(0, 1, count), temperature=1.5)
    reports = [of_policies, report_pairs(pairs, [scored], QUICK)]
    save = runpy.run_path(str(forked.ROOT / "recipes/evaluate.py"))["save"]
    save(Evaluation("Policies trained and base", "the embedded demo", ["trained", "base"], reports), folder)
    rows = [
        {"prompt": prompt, "completion": one, "other_completion": other, "preference": 1.0, "helpfulness": 2.0}
        for prompt, one, other in zip(asked, *(policy.completions for policy in policies), strict=True)
    ]
    write_jsonl(folder / "completions.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def constitutional(tmp_path_factory, command):
    folder = tmp_path_factory.mktemp("constitutional")
    rounds = [{"principle": "kind", "critique": f"It is bad. {STRANGE}", "revision": "better"}] * 2
    transcripts = [{"prompt": [{"role": "user", "content": "How?"}], "answers": ["bad", "x"], "rounds": rounds}]
    results = {"prompts": 1, "feedback_agreement": 0.03, "unchanged_revisions": 0.9, "revision_preferred": 0.2}
    results |= {"eval_gold/safety_before": 2.0, "eval_gold/safety": 3.0}
    (folder / "report.html").write_text(revisions_page(transcripts, results, script_facts([None])))
    return folder


@pytest.fixture(scope="module")
def chatbot(tmp_path_factory, ppo, reward, evaluation):
    """The page over the runs above."""
    folder = tmp_path_factory.mktemp("chatbot")
    for name, part in (("ppo", ppo), ("reward", reward), ("evaluation", evaluation)):
        (folder / name).symlink_to(part)
    finished = {name: {"command": f"recipes/{name}.py", "seconds": 61.0} for name in ("reward", "ppo", "evaluation")}
    summarize(ChatbotArguments(output_dir=str(folder)), finished)
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


# Figures: reward, KL, clip fraction, reward over KL (the panel of a metric that was never logged is left out); loss,
# reliability diagram, scores, length; two of these; none; the four of the policy again and its loss.
@pytest.mark.parametrize(
    ("kind", "figures"), [("ppo", 4), ("reward", 4), ("evaluation", 3), ("constitutional", 0), ("chatbot", 5)]
)
def test_it_renders_in_a_browser(kind, figures, browser, request):
    path = request.getfixturevalue(kind) / "report.html"
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        said, asked = [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(f"file://{path}")
        for size in SIZES:
            page.set_viewport_size(SIZES[size])
            widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
            assert len(widths) == figures and min(widths, default=999) > 300
            assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
            look(page.screenshot(), SIZES[size], scheme)
        for figure in page.locator("figure img").all():
            look(figure.screenshot(), None, scheme)
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [f"file://{path}"]
        page.close()


def look(png, size, scheme):
    """There is something to see, in the colours asked for: text of many shades on a back of one."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=float)
    assert size is None or pixels.shape == (size["height"], size["width"])
    back = np.median(pixels)
    assert back > 200 if scheme == "light" else back < 60
    assert 0.01 < (np.abs(pixels - back) > 60).mean() < 0.5 and len(np.unique(pixels)) > 30


@pytest.mark.parametrize("kind", ["ppo", "reward", "evaluation", "constitutional", "chatbot"])
def test_it_says_what_ran_without_secrets(kind, request):
    page = (request.getfixturevalue(kind) / "report.html").read_text()
    for expected in (
        "Warnings",
        "recipes/ppo.py",
        "--hub-token",
        "the embedded demo",
        "trl 1.",
        "logical cores",
        "time",
    ):
        assert expected in page
    assert "secret" not in page and "<script" not in page


def test_warnings_are_on_file_and_those_of_all_phases_on_the_last_page(evaluation, chatbot):
    found = [json.loads(line) for line in (evaluation / "warnings.jsonl").read_text().splitlines()]
    assert [notice["found"] for notice in found] == ["gold prefers the longer answer to 83% of the prompts."]
    page = (chatbot / "report.html").read_text()
    assert "evaluation: gold prefers the longer answer" in page
    assert "The same answer won in both orders in only 3%" not in page


def test_completions_before_and_after_are_those_of_the_evaluation(ppo):
    rows = [json.loads(line) for line in (ppo / "samples.jsonl").read_text().splitlines()]
    held_out = [row["prompt"] for row in prompt_dataset("test", size=12)]
    assert len(rows) == 6 and all(row["prompt"] in held_out for row in rows)
    for row in rows:
        for name in ("before", "after"):
            assert row[f"scores_{name}"]["reward"] == pytest.approx(len(row[name]) / 50)
            expected = gold([row["prompt"]], [row[name]])[0]
            assert row[f"scores_{name}"]["gold"] == pytest.approx(expected)
            assert set(row[f"scores_{name}"]) == {"reward", "gold"}
        assert row["decoding"]["max_new_tokens"] == 16 and row["decoding"]["seed"] == 42
