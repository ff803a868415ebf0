"""The report on policies: who wins, how good, how far from the reference, how long, varied and careful."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ext.run_report import findings
from rlhf_ext.splits import keys

from .judges import Ratings
from .page import Answer, Notice, Sample, Section, Table
from .policy import distinct_n, mean_where, proportion, refusal_rates, win_rate, word_counts
from .prompts import EvaluationPrompts
from .report import Report, about_intervals, headline, names, prefixes, show, show_p
from .rows import text_of
from .statistics import Array, Bootstrap, Estimate

SAMPLES = 3
LABELS = {
    "helpfulness": "helpfulness, 1 to 5",
    "safety": "safety, 1 to 5",
    "reward": "reward",
    "kl_k1": "KL from the reference, nats",
    "kl_k3": "the same, estimator k3",
    "words": "words per answer",
    "cut_off": "answers cut off",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs of words",
    "refusal_rate": "refusals of unsafe prompts",
    "over_refusal_rate": "refusals of safe prompts",
    "refusals": "refusals",
}
HEADLINES = ("helpfulness", "safety", "reward", "kl_k1")
ABOUT_KL = (
    "KL is the divergence from the reference, summed over an answer: how far training has moved the policy. The "
    "estimator k3 is never negative and has the same mean."
)
ABOUT_REFUSALS = "Refusals of unsafe prompts are wanted, those of safe prompts are not."


@dataclass(frozen=True)
class JudgedPolicy:
    """What a policy wrote, and what is known about it, each with one entry an answer.

    Attributes:
        name: Of the policy.
        completions: Its answers.
        cut: Whether each was cut off at the limit of tokens.
        max_new_tokens: That limit.
        refused: Whether each declines.
        ratings: What the judge says of each, by quality.
        kl: Estimates of the KL divergence from the reference, k1 and k3; None where there is no reference.
        reference: What that is.
    """

    name: str
    completions: Sequence[str]
    cut: Sequence[bool]
    max_new_tokens: int
    refused: Sequence[bool]
    ratings: Ratings
    kl: dict[str, Array] | None
    reference: str | None = None


def report_policies(
    prompts: EvaluationPrompts,
    policies: Sequence[JudgedPolicy],
    preferences: Sequence[float] | None,
    judge: str | None,
    bootstrap: Bootstrap,
) -> Report:
    """Report on one policy, or compare two.

    Args:
        prompts: What they answered.
        policies: One or two of them.
        preferences: For the first policy's answers, from 0 to 1; None for a single policy.
        judge: What to call the judge.
        bootstrap: For the intervals.

    Raises:
        MetricError: A preference is not between 0 and 1.
    """
    report, ids = Report(), keys(prompts.prompts)
    report.add("prompts", len(ids))
    if preferences is not None:
        _add_win_rate(report, policies, preferences, judge or "the judge", ids, bootstrap)
    measured = [_measure(policy, prompts, ids, bootstrap) for policy in policies]
    for prefix, values in zip(prefixes(policies), measured, strict=True):
        for name, value in values.items():
            report.add(f"{prefix}{name}", value)
    rows = [
        (label, *(show(values.get(name)) for values in measured))
        for name, label in LABELS.items()
        if any(values.get(name) is not None for values in measured)
    ]
    if any(policy.kl for policy in policies):
        place = [label for label, *_ in rows].index(LABELS["kl_k1"])
        rows.insert(place, ("reference", *(Path(policy.reference or "–").name for policy in policies)))
    report.table += rows
    for policy, values in zip(policies, measured, strict=True):
        of = f" of {policy.name}" if len(policies) > 1 else ""
        found = [(name, values[name]) for name in HEADLINES if isinstance(values.get(name), Estimate)]
        report.headlines += [headline(LABELS[name] + of, value) for name, value in found]
    text = [f"{len(ids)} prompts of {prompts.source}. {about_intervals(ids, bootstrap)}"]
    text += [ABOUT_KL] if any(policy.kl for policy in policies) else []
    text += [ABOUT_REFUSALS] if prompts.unsafe else []
    report.notices += _notices(policies, preferences, judge)
    report.sections.append(Section("Answers", text, [Table(["", *names(policies)], rows)]))
    report.sections.append(_samples(prompts, policies, preferences))
    return report


def _notices(policies: Sequence[JudgedPolicy], preferences: Sequence[float] | None, judge: str | None) -> list[Notice]:
    """Return what looks wrong."""
    found = [findings.answers_cut_off(one.name, float(np.mean(one.cut)), one.max_new_tokens) for one in policies]
    if preferences is not None:
        lengths = [word_counts(policy.completions) for policy in policies]
        found.append(findings.judge_prefers_length(judge or "The judge", preferences, lengths[0] - lengths[1]))
    return [notice for notice in found if notice is not None]


def _measure(
    policy: JudgedPolicy, prompts: EvaluationPrompts, ids: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return the metrics of a policy by name."""
    values: dict[str, Any] = {
        name: mean_where(ratings, ids, bootstrap=bootstrap) for name, ratings in policy.ratings.items()
    }
    for estimator, kl in (policy.kl or {}).items():
        values[f"kl_{estimator}"] = bootstrap.mean(kl, ids)
    values["words"] = bootstrap.mean(word_counts(policy.completions), ids)
    values["cut_off"] = float(np.mean(policy.cut))
    values["distinct_1"], values["distinct_2"] = (distinct_n(policy.completions, n) for n in (1, 2))
    if prompts.unsafe is None:
        refused = [float(refused) for refused in policy.refused]
        values["refusals"] = proportion(refused, ids, bootstrap=bootstrap)
    else:
        rates = refusal_rates(policy.refused, prompts.unsafe, ids, bootstrap=bootstrap)
        values["refusal_rate"], values["over_refusal_rate"] = rates
    return values


def _add_win_rate(
    report: Report,
    policies: Sequence[JudgedPolicy],
    preferences: Sequence[float],
    judge: str,
    ids: Sequence[str],
    bootstrap: Bootstrap,
) -> None:
    result = win_rate(preferences, ids, bootstrap=bootstrap)
    report.add("win_rate", result.rate)
    for name in ("wins", "ties", "losses", "sign_test_p", "sign_flip_p"):
        report.add(name, getattr(result, name))
    repeated = len(set(ids)) < len(ids)
    p = result.sign_flip_p if repeated else result.sign_test_p
    one, other = policies
    report.table.append((f"win rate against {other.name}", f"{show(result.rate)}, {show_p(p)}", ""))
    counts = f"{result.wins} wins, {result.ties} ties, {result.losses} losses"
    report.table.append(("", counts, ""))
    report.headlines.append(headline(f"win rate of {one.name}", result.rate))
    clear = p < 0.05 and (result.rate.low > 0.5 or result.rate.high < 0.5)
    verdict = (
        f"{judge} prefers {(one if result.rate.value > 0.5 else other).name} on these prompts."
        if clear
        else "These prompts do not show which of the two is preferred."
    )
    text = f"How often {judge} prefers the answer of {one.name} to that of {other.name}; a tie counts one half."
    rows = [
        ("win rate", show(result.rate)),
        ("wins", str(result.wins)),
        ("ties", str(result.ties)),
        ("losses", str(result.losses)),
        ("exact sign test (independent rows)", show_p(result.sign_test_p)),
        ("sign-flip test by prompt", show_p(result.sign_flip_p)),
    ]
    if repeated:
        text += " Prompts repeat here, so believe the test by prompt."
    report.sections.append(Section("Win rate", [text, verdict], [Table(["", ""], rows)]))


def _samples(
    prompts: EvaluationPrompts, policies: Sequence[JudgedPolicy], preferences: Sequence[float] | None
) -> Section:
    """Return the first answers, the preferred one marked."""
    samples = []
    for row in range(min(SAMPLES, len(prompts.prompts))):
        answers = []
        for number, policy in enumerate(policies):
            ratings = [
                f"{name} {values[row]:.2f}" for name, values in policy.ratings.items() if values[row] is not None
            ]
            preference = 0.5 if preferences is None else preferences[row]
            good = preference > 0.5 if number == 0 else preference < 0.5
            answers.append(Answer(policy.name, policy.completions[row], ", ".join(ratings), good=good))
        samples.append(Sample(text_of(prompts.prompts[row]), answers))
    return Section("Samples", [f"The first {len(samples)} prompts."], samples=samples)
