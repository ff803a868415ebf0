"""From scores to what a person reads: metrics for `all_results.json`, rows for the console, sections for the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_ext.splits import keys

from . import figures, reward
from .page import Headline, Notice, Section, Table
from .rows import RatedAnswers
from .statistics import Array, Bootstrap, Estimate

FEW_PROMPTS = 20


@dataclass(frozen=True)
class ScoredAnswers:
    """A model's scores of rated answers, (N,)."""

    name: str
    scores: Array


@dataclass
class Report:
    """What an evaluation found.

    Attributes:
        metrics: For `all_results.json`; None where a value is undefined.
        table: Label, and a text for each model.
        headlines: For the top of the page.
        sections: For the rest of it.
        notes: What one must know about the rows: some were left out, or cut.
        notices: What looks wrong.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    table: list[tuple[str, ...]] = field(default_factory=list)
    headlines: list[Headline] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def add(self, name: str, value: Estimate | float | None) -> None:
        """Add a metric; of an estimate also its interval, as `name_low` and `name_high`."""
        if isinstance(value, Estimate):
            self.add(f"{name}_low", value.low)
            self.add(f"{name}_high", value.high)
            value = value.value
        self.metrics[f"eval_{name}"] = None if value is None or math.isnan(value) else value


@dataclass(frozen=True)
class Evaluation:
    """A whole evaluation.

    Attributes:
        title: Of table and page.
        source: Where the rows came from.
        names: Of the one or two models, as the columns of the table.
        reports: What was found, one after the other.
    """

    title: str
    source: str
    names: Sequence[str]
    reports: Sequence[Report]


def show(value: Estimate | float | None) -> str:
    """Return a number as text, an estimate with its interval."""
    if value is None:
        return "–"
    if not isinstance(value, Estimate):
        return f"{value:.3f}"
    if math.isnan(value.low):
        return f"{value.value:.3f}"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def show_metric(metrics: Mapping[str, Any], name: str) -> str:
    """Return a metric of `all_results.json` as text, with its interval where there is one."""
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return show(value if low is None or high is None else Estimate(value, low, high))


def show_p(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def report_ratings(rated: RatedAnswers, models: Sequence[ScoredAnswers], bootstrap: Bootstrap) -> Report:
    """Evaluate one model, or compare two, on rated answers.

    Raises:
        MetricError: A score is not a finite number, or all scores or ratings are equal.
    """
    report = Report()
    prompts, ratings = keys(rated.prompts), np.array(rated.ratings)
    results = [reward.correlation_with_ratings(m.scores, ratings, prompts, bootstrap=bootstrap) for m in models]
    report.add("answers", len(prompts))
    report.add("answers_prompts", len(set(prompts)))
    for prefix, result in zip(prefixes(models), results, strict=True):
        for name in ("spearman", "pearson", "within_spearman", "within_pearson"):
            report.add(f"{prefix}{name}", getattr(result, name))
    report.metrics["eval_prompts_within"] = results[0].prompts_within
    rows = [
        ("Spearman with rating", *(show(result.spearman) for result in results)),
        ("Pearson with rating", *(show(result.pearson) for result in results)),
    ]
    if results[0].prompts_within:
        rows += [
            ("Spearman within prompt", *(show(result.within_spearman) for result in results)),
            ("Pearson within prompt", *(show(result.within_pearson) for result in results)),
        ]
    report.table += rows
    report.headlines.append(headline("rank correlation with ratings", results[0].spearman))
    text = [
        f"{len(prompts)} answers to {len(set(prompts))} prompts, with the ratings of {rated.source}. "
        f"{results[0].prompts_within} prompts have answers with different ratings; “within prompt” is the correlation "
        "among these, averaged over prompts. " + about_intervals(prompts, bootstrap)
    ]
    if len(models) > 1:
        difference = bootstrap.statistic(
            lambda one, other, rating: reward.spearman(one, rating) - reward.spearman(other, rating),
            models[0].scores,
            models[1].scores,
            ratings,
            clusters=prompts,
        )
        report.add("spearman_difference", difference)
        report.table.append(("difference of Spearman", show(difference), ""))
        text.append(f"Spearman of {models[0].name} minus that of {models[1].name}: {show(difference)}.")
    drawn = [
        figures.rating_scatter(f"{prefix}ratings", m.name if len(models) > 1 else "", m.scores, ratings)
        for prefix, m in zip(prefixes(models), models, strict=True)
    ]
    report.sections.append(Section("Ratings", text, [Table(["", *names(models)], rows)], drawn))
    return report


def about_intervals(prompts: Sequence[str], bootstrap: Bootstrap) -> str:
    """Return a sentence on what the numbers in brackets are, and how far to trust them."""
    text = f"In brackets: the interval that holds {bootstrap.confidence:.0%} of {bootstrap.resamples} resamples"
    count = len(set(prompts))
    if count == len(prompts):
        return text + "."
    if count == 1:
        return text + "; there is a single prompt, so all this is about that prompt alone."
    text += "; whole prompts are drawn, because the rows of one prompt are not independent."
    return text + (f" With only {count} prompts it is still too narrow." if count < FEW_PROMPTS else "")


def headline(label: str, value: Estimate, *, signed: bool = False) -> Headline:
    """Return the headline for an estimate, with its interval as the note."""
    form = "{:+.3f}" if signed else "{:.3f}"
    note = "" if math.isnan(value.low) else f"{form.format(value.low)} to {form.format(value.high)}"
    return Headline(label, form.format(value.value), note)


def prefixes(models: Sequence[Any]) -> list[str]:
    """Return what the names of each model's metrics and figures begin with."""
    return ["", "other_"][: len(models)]


def names(models: Sequence[Any]) -> list[str]:
    """Return the models' names."""
    return [m.name for m in models]
