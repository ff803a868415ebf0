"""What self-revision changed, as rows of a table and as a page with samples and warnings."""

from collections.abc import Mapping, Sequence
from typing import Any

from .page import Answer, Fact, Headline, Notice, Sample, Section, Table, render, warnings_section

SAMPLES = 12
AGREES = 0.6  # part of the comparisons with one winner in both orders, below which they say next to nothing
UNCHANGED = 0.5  # part of the answers that revising may leave as they were
PERCENT = "percent"
# What each result is called, and how it is written.
LABELS = {
    "prompts": ("prompts", "d"),
    "sft_rows": ("rows of sft.jsonl", "d"),
    "preference_rows_revision": ("preference pairs: revision over first answer", "d"),
    "preference_rows_feedback": ("preference pairs: AI feedback", "d"),
    "mean_change": ("words changed by revising", PERCENT),
    "unchanged_revisions": ("answers left as they were", PERCENT),
    "revision_preferred": ("revisions that the model itself prefers", PERCENT),
    "feedback_agreement": ("comparisons with one winner in both orders", PERCENT),
    "position_bias": ("position bias towards A, log-odds", ".2f"),
    "feedback_gold_agreement": ("AI feedback that agrees with the gold judge", PERCENT),
    "eval_gold/helpfulness": ("held out: helpfulness, 1 to 5", ".3f"),
    "eval_gold/safety": ("held out: safety, 1 to 5", ".3f"),
}


def table_rows(results: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return label and value of each result there is; "before -> after" where there is a before."""
    rows = []
    for name, (label, style) in LABELS.items():
        if name in results:
            values = [results[key] for key in (f"{name}_before", name) if key in results]
            rows.append((label, " -> ".join(_written(value, style) for value in values)))
    return rows


def notices(results: Mapping[str, float]) -> list[Notice]:
    """Return what looks wrong: a model that does not understand what it is asked to do."""
    found = []
    if results.get("feedback_agreement", 1) < AGREES:
        share = f"{results['feedback_agreement']:.0%}"
        problem = f"The same answer won in both orders in only {share} of the comparisons."
        advice = "AI feedback of this model says little: use a larger one, or leave feedback out with --min_confidence."
        found.append(Notice(problem, advice))
    if results.get("unchanged_revisions", 0) > UNCHANGED:
        share = f"{results['unchanged_revisions']:.0%}"
        problem = f"Revising left {share} of the answers as they were."
        found.append(Notice(problem, "Read the critiques: the model may not understand them, or the principles."))
    if results.get("revision_preferred", 1) < 0.5:
        share = f"{results['revision_preferred']:.0%}"
        problem = f"The model prefers its own revision in only {share} of the cases."
        found.append(Notice(problem, "Read the samples before training on the pairs of source 'revision'."))
    return found


def page(transcripts: Sequence[Mapping[str, Any]], results: Mapping[str, float], facts: Sequence[Fact]) -> str:
    """Return the page as HTML: the table, what became of the first prompts, and what ran."""
    rows = table_rows(results)
    first = [name for name in ("eval_gold/safety", "eval_gold/helpfulness", "revision_preferred") if name in results]
    shown = dict(rows)
    headlines = [Headline(LABELS[name][0], shown[LABELS[name][0]]) for name in first]
    sections = [
        warnings_section(notices(results)),
        Section("Results", tables=[Table(("", "value"), rows)]),
        Section(
            "Samples",
            text=["The first answer, and for each round the critique and the revision that came of it."],
            samples=[_sample(transcript) for transcript in transcripts[:SAMPLES]],
        ),
        Section("What ran", facts=facts),
    ]
    subtitle = f"{results['prompts']} prompts, {len(transcripts[0]['rounds'])} rounds of critique and revision."
    return render("Constitutional AI", subtitle, headlines, sections)


def _sample(transcript: Mapping[str, Any]) -> Sample:
    answers = [Answer("first answer", transcript["answers"][0], "as sampled", False)]
    for number, entry in enumerate(transcript["rounds"], start=1):
        answers.append(Answer(f"critique {number}", entry["critique"], entry["principle"], False))
        answers.append(Answer(f"revision {number}", entry["revision"], entry["principle"], True))
    return Sample(transcript["prompt"][-1]["content"], answers)


def _written(value: float, style: str) -> str:
    return f"{value:.0%}" if style == PERCENT else f"{value:{style}}"
