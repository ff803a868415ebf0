"""Evaluating policies: they write answers to the same prompts, and a judge compares them."""

import gc
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ext import RewardModel
from rlhf_ext.arguments import ArgumentError
from rlhf_ext.data_checks import DataError
from rlhf_ext.demonstrations import as_messages, reads_as_chat
from rlhf_ext.formatting import InputError
from rlhf_ext.generation import Decoding, generate_tokens
from rlhf_ext.logps import completion_logps
from rlhf_ext.plugins import list_plugins
from rlhf_ext.policy_loading import load_policy, load_policy_tokenizer

from .judges import FunctionJudge, GoldJudge, Judge, LanguageModelJudge, RewardModelJudge
from .options import EvaluationOptions, PolicyOptions, refuse_without_dataset, short_names
from .policy import refuses, sequence_kl
from .policy_report import JudgedPolicy, report_policies
from .prompts import EvaluationPrompts, demo_prompts, load_evaluation_prompts
from .report import Evaluation
from .rows import Text
from .statistics import Bootstrap

COMPLETIONS = "completions.jsonl"
LANGUAGE_MODEL = "llm:"
BATCH_SIZE, PASS_SIZE = 64, 8  # prompts that a policy answers at once; texts whose logits are held at once


@dataclass
class Written:
    """What a policy wrote.

    Attributes:
        completions: The texts.
        tokens: Prompt and completion of each, as token ids.
        logps: Of the completions' tokens under the policy.
        ref_logps: The same under its reference; None while there is none.
        vocabulary: Which token has which id.
    """

    completions: list[str]
    tokens: list[tuple[Tensor, Tensor]]
    logps: list[Tensor]
    ref_logps: list[Tensor] | None
    vocabulary: dict[str, int]


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
    if len({Path(name) for name in names}) < len(names):
        raise ArgumentError(f"--other_policy {options.other_policy} is the policy itself: name another one.")
    if options.reference and options.best_of:
        raise ArgumentError("--reference has no effect with --best_of: the KL of a best answer cannot be measured.")
    if options.reference and not decoding.whole_distribution:
        raise ArgumentError(f"--reference has no effect: {_NO_KL}")
    prompts = _load_prompts(data)
    spec = _judge_spec(options, prompts, is_demo=data.dataset_name is None)
    tokenizer = load_policy_tokenizer(options.policy)
    as_chat = reads_as_chat(prompts.prompts, tokenizer, options.as_chat, source=prompts.source)
    asked = [as_messages(prompt) for prompt in prompts.prompts] if as_chat else prompts.prompts

    best_of = [options.best_of or 1, 1]
    written = [
        _write(name, asked, prompts, decoding, data, options, best_of=n)
        for name, n in zip(names, best_of, strict=False)
    ]
    reference = _measure_reference(written, names, decoding, data, options)
    judge = None if spec is None else _load_judge(spec, options)
    policies = [
        _judged(name, one, asked, prompts, judge, decoding)
        for name, one in zip(short_names(names), written, strict=True)
    ]
    answers = [one.completions for one in written]
    preferences = judge.prefer(asked, *answers) if len(names) > 1 else None
    report = report_policies(prompts, policies, preferences, judge and judge.name, Bootstrap(seed=data.seed))
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
        "reference": reference,
        "judge": spec,
        "best_of": options.best_of,
        "best_of_model": options.best_of_model,
        "as_chat": as_chat,
        "batch_size": data.batch_size or BATCH_SIZE,
        "decoding": asdict(decoding),
    }
    _save_completions(output_dir / COMPLETIONS, asked, policies, preferences)
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


@contextmanager
def _loaded(name: str, options: PolicyOptions) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """Load a policy, and make room for the next one afterwards."""
    quantized = {"load_in_8bit": options.load_in_8bit, "load_in_4bit": options.load_in_4bit}
    model, tokenizer = load_policy(name, dtype=options.dtype, **quantized)
    yield model, tokenizer
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write(
    name: str,
    asked: Sequence[Text],
    prompts: EvaluationPrompts,
    decoding: Decoding,
    data: EvaluationOptions,
    options: PolicyOptions,
    *,
    best_of: int,
) -> Written:
    """Let a policy answer, several times if the best is to be chosen; an adapter's base is its reference by default."""
    with _loaded(name, options) as (model, tokenizer):
        try:
            tokens = generate_tokens(
                model,
                tokenizer,
                [prompt for prompt in asked for _ in range(best_of)],
                decoding,
                batch_size=data.batch_size or BATCH_SIZE,
                show_progress=True,
            )
        except InputError as error:
            if error.place.index is None:
                raise
            row = prompts.numbers[error.place.index // best_of]
            raise DataError(error.problem, "", source=prompts.source, row=row, column="prompt") from error
        completions = [tokenizer.decode(completion, skip_special_tokens=True) for _, completion in tokens]
        if best_of > 1:
            best = _best(asked, completions, best_of, options)
            return Written([completions[i] for i in best], [tokens[i] for i in best], [], None, tokenizer.get_vocab())
        logps, ref_logps = [], None
        if decoding.whole_distribution:
            logps = completion_logps(model, tokens, batch_size=PASS_SIZE)
            if isinstance(model, PeftModel) and not options.reference:
                with model.disable_adapter():
                    ref_logps = completion_logps(model, tokens, batch_size=PASS_SIZE)
        return Written(completions, tokens, logps, ref_logps, tokenizer.get_vocab())


def _best(asked: Sequence[Text], completions: Sequence[str], best_of: int, options: PolicyOptions) -> list[int]:
    """Return the number of the best completion of each prompt, of those that stand together."""
    reward_model = RewardModel.from_pretrained(options.best_of_model)
    scores = reward_model([prompt for prompt in asked for _ in range(best_of)], list(completions))
    groups = range(0, len(completions), best_of)
    return [max(range(first, first + best_of), key=scores.__getitem__) for first in groups]


def _measure_reference(
    written: Sequence[Written],
    names: Sequence[str],
    decoding: Decoding,
    data: EvaluationOptions,
    options: PolicyOptions,
) -> str | None:
    """Measure the first policy's answers, and the second's, under a model of its own; return what the reference is."""
    if not decoding.whole_distribution or options.best_of:  # the best of several is drawn from another distribution
        return None
    if written[0].ref_logps is not None:
        return "the adapter's base"
    name = options.reference or options.other_policy
    if name is None:
        return None
    with _loaded(name, options) as (model, tokenizer):
        for own_name, one in zip(names, written, strict=True):
            if one.ref_logps is not None or own_name == name:
                continue
            if one.vocabulary != tokenizer.get_vocab():
                if options.reference is None:
                    return None
                raise ArgumentError(f"--reference {name} has other tokens than {own_name}: name the model it began as.")
            one.ref_logps = completion_logps(model, one.tokens, batch_size=PASS_SIZE)
    return name


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
    cut = [len(completion) == decoding.max_new_tokens for _, completion in written.tokens]
    return JudgedPolicy(
        name,
        completions=written.completions,
        cut=cut,
        refused=[declines(completion) for completion in written.completions],
        ratings={} if judge is None else judge.rate(asked, written.completions),
        kl=None if written.ref_logps is None else sequence_kl(written.logps, written.ref_logps),
    )


def _save_completions(
    path: Path, asked: Sequence[Text], policies: Sequence[JudgedPolicy], preferences: Sequence[float] | None
) -> None:
    rows = [{"prompt": prompt} for prompt in asked]
    for prefix, policy in zip(("", "other_"), policies, strict=False):
        for number, row in enumerate(rows):
            row[f"{prefix}completion"] = policy.completions[number]
            row |= {f"{prefix}{name}": values[number] for name, values in policy.ratings.items()}
    for number, preference in enumerate(preferences or ()):
        rows[number]["preference"] = preference
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
