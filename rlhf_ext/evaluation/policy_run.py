"""Evaluating policies: they write answers to the same prompts, and a judge compares them."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_ext import RewardModel
from rlhf_ext.arguments import ArgumentError
from rlhf_ext.demonstrations import as_messages, reads_as_chat
from rlhf_ext.generation import Decoding
from rlhf_ext.output_files import write_jsonl
from rlhf_ext.plugins import list_plugins
from rlhf_ext.policy_loading import load_policy, load_policy_tokenizer
from rlhf_ext.reward_model.loading import load_tokenizer

from .answers import (
    BATCH_SIZE,
    PASS_SIZE,
    Written,
    measure_references,
    naming_rows,
    share_chat_template,
    write_answers,
)
from .judges import FunctionJudge, GoldJudge, Judge, LanguageModelJudge, Ratings, RewardModelJudge
from .options import COMPLETIONS, EvaluationOptions, PolicyOptions, refuse_without_dataset, short_names
from .policy import refuses, sequence_kl
from .policy_report import JudgedPolicy, report_policies
from .prompts import EvaluationPrompts, demo_prompts, load_evaluation_prompts
from .report import Evaluation
from .rows import Text
from .statistics import Bootstrap

LANGUAGE_MODEL = "llm:"
JUDGED = "what the judge is asked about it cannot be read: "


def evaluate_policies(data: EvaluationOptions, options: PolicyOptions, output_dir: Path) -> Evaluation:
    """Let one policy or two answer, judge the answers, write them to `completions.jsonl`, and report.

    Raises:
        ArgumentError: An option that cannot work.
        DataError: Bad rows.
        JudgeError: A judge that does not judge.
        PluginError: A judge's function that cannot be found.
        RewardModelError: No usable reward model.
    """
    decoding = options.decoding(data.seed)
    names = [options.policy, *([options.other_policy] if options.other_policy else [])]
    if len({Path(name).absolute() for name in names}) < len(names):
        raise ArgumentError(f"--other_policy {options.other_policy} is the policy itself: name another one.")
    if options.reference and options.best_of:
        raise ArgumentError("--reference has no effect with --best_of: the KL of a best answer cannot be measured.")
    if options.reference and not decoding.whole_distribution:
        raise ArgumentError(f"--reference has no effect: {_NO_KL}")
    prompts = _load_prompts(data)
    spec = _judge_spec(options, prompts, is_demo=data.dataset_name is None)
    _check_models(spec, options)
    asked, written, notes = _ask(names, prompts, decoding, data, options)
    _save_completions(output_dir / COMPLETIONS, asked, written)  # a judge may fail, and they took longest
    notes += measure_references(written, names, decoding, options)
    judge = None if spec is None else _load_judge(spec, options)
    policies = [
        _judged(name, one, asked, prompts, judge, decoding)
        for name, one in zip(short_names(names), written, strict=True)
    ]
    preferences = None
    if len(names) > 1:
        with naming_rows(prompts, lambda index: index % len(asked), JUDGED):
            preferences = judge.prefer(asked, *(one.completions for one in written))
    _save_completions(output_dir / COMPLETIONS, asked, written, [policy.ratings for policy in policies], preferences)
    report = report_policies(prompts, policies, preferences, judge and judge.name, Bootstrap(seed=data.seed))
    report.notes += notes
    if not decoding.whole_distribution:
        report.notes.append(f"The KL divergence is not measured: {_NO_KL}")
    if options.best_of:
        bound = math.log(options.best_of) - (options.best_of - 1) / options.best_of
        report.metrics["eval_kl_bound"] = bound
        report.notes.append(
            f"{names[0]} wrote {options.best_of} answers to each prompt, of which {options.best_of_model} chose one. "
            f"That is at most {bound:.2f} nats of KL away from its single answers (log n - (n - 1) / n)."
        )
    report.metrics |= {
        "policy": options.policy,
        "other_policy": options.other_policy,
        "reference": written[0].reference,
        "other_reference": written[1].reference if len(written) > 1 else None,
        "judge": spec,
        "best_of": options.best_of,
        "best_of_model": options.best_of_model,
        "as_chat": asked is not prompts.prompts,
        "batch_size": data.batch_size or BATCH_SIZE,
        "decoding": asdict(decoding),
    }
    title = "Policies {} and {}" if len(names) > 1 else "Policy {}"
    return Evaluation(title.format(*short_names(names)), prompts.source, short_names(names), [report])


_NO_KL = "it needs answers drawn from the whole distribution, so temperature 1, top_p 1 and top_k 0."


def _load_prompts(data: EvaluationOptions) -> EvaluationPrompts:
    if data.dataset_name is None:
        refuse_without_dataset(data)
        return demo_prompts(data.max_samples)
    return load_evaluation_prompts(
        data.dataset_name,
        data.dataset_config,
        split=data.dataset_split,
        max_samples=data.max_samples,
        seed=data.seed,
    )


def _ask(
    names: Sequence[str],
    prompts: EvaluationPrompts,
    decoding: Decoding,
    data: EvaluationOptions,
    options: PolicyOptions,
) -> tuple[Sequence[Text], list[Written], list[str]]:
    """Return what the policies are asked, what they answer, and what there is to say about it."""
    tokenizers = [load_policy_tokenizer(name) for name in names]
    with_template = next((tokenizer for tokenizer in tokenizers if tokenizer.chat_template), tokenizers[0])
    as_chat = reads_as_chat(prompts.prompts, with_template, options.as_chat, source=prompts.source)
    asked = [as_messages(prompt) for prompt in prompts.prompts] if as_chat else prompts.prompts
    notes = [] if isinstance(asked[0], str) else share_chat_template(names, tokenizers)
    written = [
        write_answers(name, tokenizer, asked, prompts, decoding, data, options, best_of=best_of)
        for name, tokenizer, best_of in zip(names, tokenizers, (options.best_of or 1, 1), strict=False)
    ]
    return asked, written, notes


def _judge_spec(options: PolicyOptions, prompts: EvaluationPrompts, *, is_demo: bool) -> str | None:
    """Return which judge is meant, once it is clear that it can judge these prompts."""
    spec = options.judge or ("gold" if is_demo else None)
    if spec is None and options.other_policy:
        raise ArgumentError(
            "there is nothing to compare the policies with: name a --judge, a reward model's folder, llm:MODEL or "
            "file.py:function."
        )
    if spec == "gold" and not is_demo:
        raise ArgumentError(
            f"--judge gold knows only the embedded demo's prompts, and not those of {prompts.source}. Name another one."
        )
    if _is_function(spec):
        if not options.other_policy:
            raise ArgumentError(f"--judge {spec} has no effect without --other_policy: a function only compares.")
        FunctionJudge(spec)
    return spec


def _check_models(spec: str | None, options: PolicyOptions) -> None:
    """Look for the models that are loaded once the policies have answered, by their tokenizers, which is quick."""
    reward_models, policies = [options.best_of_model], [options.reference]
    if spec is not None and spec.startswith(LANGUAGE_MODEL):
        policies.append(spec.removeprefix(LANGUAGE_MODEL))
    elif spec != "gold" and not _is_function(spec):
        reward_models.append(spec)
    for name in filter(None, reward_models):
        load_tokenizer(name, trust_remote_code=False)
    for name in filter(None, policies):
        load_policy_tokenizer(name)


def _is_function(spec: str | None) -> bool:
    if spec is None or spec.startswith(LANGUAGE_MODEL):
        return False
    return ":" in spec or spec in list_plugins("judge")


def _load_judge(spec: str, options: PolicyOptions) -> Judge:
    if spec == "gold":
        return GoldJudge()
    if _is_function(spec):
        return FunctionJudge(spec)
    if spec.startswith(LANGUAGE_MODEL):
        name = spec.removeprefix(LANGUAGE_MODEL)
        return LanguageModelJudge(*load_policy(name, dtype=options.dtype), spec, batch_size=PASS_SIZE)
    return RewardModelJudge(RewardModel.from_pretrained(spec), spec)


def _judged(
    name: str,
    written: Written,
    asked: Sequence[Text],
    prompts: EvaluationPrompts,
    judge: Judge | None,
    decoding: Decoding,
) -> JudgedPolicy:
    declines: Any = refuses
    if isinstance(judge, GoldJudge):
        from rlhf_ext.demo.judge import is_refusal

        declines = is_refusal
    ratings: Ratings = {}
    if judge is not None:
        with naming_rows(prompts, lambda index: index % len(asked), JUDGED):
            ratings = judge.rate(asked, written.completions)
    return JudgedPolicy(
        name,
        completions=written.completions,
        cut=written.cut,
        max_new_tokens=decoding.max_new_tokens,
        refused=[declines(completion) for completion in written.completions],
        ratings=ratings,
        kl=None if written.ref_logps is None else sequence_kl(written.logps, written.ref_logps),
        reference=written.reference,
    )


def _save_completions(
    path: Path,
    asked: Sequence[Text],
    written: Sequence[Written],
    ratings: Sequence[Ratings] = ({}, {}),
    preferences: Sequence[float] | None = None,
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in asked]
    for prefix, one, rated in zip(("", "other_"), written, ratings, strict=False):
        for number, row in enumerate(rows):
            row[f"{prefix}completion"] = one.completions[number]
            row |= {f"{prefix}{name}": values[number] for name, values in rated.items()}
    for number, preference in enumerate(preferences or ()):
        rows[number]["preference"] = preference
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, rows)
