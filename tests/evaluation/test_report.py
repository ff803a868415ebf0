"""From scores to metrics, tables and sections."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from rlhf_ext.evaluation import reward
from rlhf_ext.evaluation.pair_report import GROUPS_SHOWN, ScoredPairs, report_pairs
from rlhf_ext.evaluation.report import ScoredAnswers, report_ratings, show, show_p
from rlhf_ext.evaluation.rows import Pairs, RatedAnswers
from rlhf_ext.evaluation.statistics import Bootstrap, Estimate, MetricError

QUICK = Bootstrap(resamples=50)
COUNT = 60


def make_pairs(**columns):
    numbers = range(COUNT)
    return Pairs(
        "pairs.jsonl",
        numbers=list(numbers),
        prompts=[f"Question {i % 30}?" for i in numbers],
        chosen=[f"Answer {i}." + "!" * (i % 3) for i in numbers],
        rejected=[f"Other {i}." + "!" * (i % 5) for i in numbers],
        **columns,
    )


def scored(name, seed, good=1.0):
    rng = np.random.default_rng(seed)
    return ScoredPairs(name, rng.normal(good, 1, COUNT), rng.normal(0, 1, COUNT), temperature=1.5)


def section(report, heading):
    return next(section for section in report.sections if section.heading == heading)


@pytest.fixture(scope="module")
def compared():
    strengths = [None if i < 10 else 1.0 + i % 4 for i in range(COUNT)]
    pairs = make_pairs(strengths=strengths, subsets=["web" if i % 3 else "books" for i in range(COUNT)])
    return (
        pairs,
        [scored("one", 0), scored("two", 1, good=0.2)],
        report_pairs(pairs, [scored("one", 0), scored("two", 1, good=0.2)], QUICK),
    )


def test_metrics_are_those_of_the_functions(compared):
    pairs, (one, two), report = compared
    accuracy = reward.accuracy(one.differences, pairs.prompts, bootstrap=QUICK)
    assert report.metrics["eval_accuracy"] == accuracy.value
    assert (report.metrics["eval_accuracy_low"], report.metrics["eval_accuracy_high"]) == (accuracy.low, accuracy.high)
    assert report.metrics["eval_other_accuracy"] == reward.accuracy(two.differences, bootstrap=QUICK).value
    assert report.metrics["eval_calibration_error"] == reward.calibration(one.differences, 1.5).error
    assert report.metrics["eval_other_temperature"] == 1.5
    comparison = reward.compare(one.differences, two.differences, pairs.prompts, bootstrap=QUICK)
    for name in ("mcnemar_p", "sign_flip_p", "agreement", "kappa"):
        assert report.metrics[f"eval_{name}"] == getattr(comparison, name)
    assert report.metrics["eval_pairs"] == 60 and report.metrics["eval_prompts"] == 30


def test_length_differences_are_chosen_minus_rejected(compared):
    pairs, (one, _), report = compared
    lengths = [len(chosen) - len(rejected) for chosen, rejected in zip(pairs.chosen, pairs.rejected, strict=True)]
    shorter = [d > 0 for d, length in zip(one.differences, lengths, strict=True) if length < 0]
    assert report.metrics["eval_accuracy_shorter_right"] == pytest.approx(np.mean(shorter))


def test_groups_hold_the_rows_they_should(compared):
    pairs, (one, _), report = compared
    books = [d > 0 for d, subset in zip(one.differences, pairs.subsets, strict=True) if subset == "books"]
    assert report.metrics["eval_accuracy_by_subset/books"] == pytest.approx(np.mean(books))
    strong = [d > 0 for d, strength in zip(one.differences, pairs.strengths, strict=True) if strength == 4]
    assert report.metrics["eval_accuracy_by_strength/4"] == pytest.approx(np.mean(strong))
    assert "50 of 60 pairs" in section(report, "Strength").text[0]


def test_sections_and_figures(compared):
    report = compared[2]
    headings = [section.heading for section in report.sections]
    assert headings[:6] == ["Accuracy", "Comparison", "Calibration", "Length", "Strength", "Subsets"]
    drawn = {figure.name: figure for section in report.sections for figure in section.figures}
    assert {*drawn} == {
        *("scores", "other_scores", "length", "other_length", "reliability", "accuracy_by_strength"),
    }
    for figure in drawn.values():
        image = Image.open(io.BytesIO(figure.png)).convert("L")
        assert image.getpixel((1, 1)) == 255 and image.getextrema()[0] < 100


def test_samples_are_the_extremes(compared):
    pairs, (one, _), report = compared
    worst, best = int(np.argmin(one.differences)), int(np.argmax(one.differences))
    closest = int(np.argmin(np.abs(one.differences)))
    for heading, row in (("Most wrong", worst), ("Most right", best), ("Closest", closest)):
        sample = section(report, f"{heading} pairs of one").samples[0]
        assert sample.prompt == pairs.prompts[row]
        assert [answer.text for answer in sample.answers] == [pairs.chosen[row], pairs.rejected[row]]
        assert sample.answers[0].score == f"{one.chosen[row]:.2f}"


def test_one_model_without_extra_columns(undrawn):
    report = report_pairs(make_pairs(), [scored("one", 0)], QUICK)
    headings = [section.heading for section in report.sections]
    assert headings == ["Accuracy", "Calibration", "Length", "Most wrong pairs", "Closest pairs", "Most right pairs"]
    assert not any("other" in name for name in report.metrics)
    assert all(len(row) == 2 for row in report.table)


def test_a_perfect_model_has_no_wrong_samples(undrawn):
    perfect = ScoredPairs("one", np.ones(COUNT), np.zeros(COUNT), 1.0)
    headings = [section.heading for section in report_pairs(make_pairs(), [perfect], QUICK).sections]
    assert "Most wrong pairs" not in headings and "Most right pairs" in headings


def test_many_subsets_are_cut_on_the_page_only(undrawn):
    report = report_pairs(make_pairs(subsets=[f"s{i % 30}" for i in range(COUNT)]), [scored("one", 0)], QUICK)
    assert len(section(report, "Subsets").tables[0].rows) == GROUPS_SHOWN
    assert "20 of 30" in section(report, "Subsets").text[0]
    assert sum(name.startswith("eval_accuracy_by_subset/") for name in report.metrics) == 3 * 30


@pytest.mark.parametrize(
    ("questions", "expected"),
    [(1, "a single prompt"), (12, "whole prompts are drawn"), (12, "only 12 prompts"), (60, "2000 resamples.")],
)
def test_the_page_says_what_the_intervals_mean(questions, expected, undrawn):
    pairs = make_pairs()
    pairs.prompts[:] = [f"Question {i % questions}?" for i in range(COUNT)]
    report = report_pairs(pairs, [scored("one", 0)], Bootstrap())
    assert expected in section(report, "Accuracy").text[1]


def test_verdict_on_two_models(undrawn):
    good, bad, same = scored("good", 0, good=3.0), scored("bad", 1, good=-1.0), scored("same", 2, good=3.0)
    assert (
        "good is better on these pairs" in section(report_pairs(make_pairs(), [bad, good], QUICK), "Comparison").text[0]
    )
    assert "do not show which" in section(report_pairs(make_pairs(), [good, same], QUICK), "Comparison").text[0]


def test_ratings(undrawn):
    rng = np.random.default_rng(3)
    ratings = rng.integers(1, 6, COUNT).astype(float)
    rated = RatedAnswers(
        "rated.jsonl", [*range(COUNT)], [f"Q{i % 12}" for i in range(COUNT)], ["a"] * COUNT, ratings.tolist()
    )
    models = [ScoredAnswers("one", ratings + rng.normal(0, 1, COUNT)), ScoredAnswers("two", rng.normal(size=COUNT))]
    report = report_ratings(rated, models, QUICK)
    expected = reward.correlation_with_ratings(models[0].scores, ratings, rated.prompts, bootstrap=QUICK)
    assert report.metrics["eval_spearman"] == expected.spearman.value
    assert report.metrics["eval_within_pearson_low"] == expected.within_pearson.low
    difference = expected.spearman.value - report.metrics["eval_other_spearman"]
    assert report.metrics["eval_spearman_difference"] == pytest.approx(difference)
    assert [figure.name for figure in report.sections[0].figures] == ["ratings", "other_ratings"]


def test_nan_scores_are_refused():
    broken = scored("one", 0)
    broken.chosen[4] = math.nan
    with pytest.raises(MetricError, match="number 5 is nan"):
        report_pairs(make_pairs(), [broken], QUICK)


def test_numbers_as_text():
    assert show(Estimate(0.5, 0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert show(Estimate(0.5, math.nan, math.nan)) == show(0.5) == "0.500"
    assert show(None) == "–"
    assert (show_p(0.0004), show_p(0.04)) == ("p < 0.001", "p = 0.040")
