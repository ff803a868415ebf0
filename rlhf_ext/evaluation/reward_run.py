"""Evaluating reward models: loading rows and models, scoring, and what follows from the scores."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rlhf_ext import RewardModel
from rlhf_ext.arguments import ArgumentError
from rlhf_ext.data_checks import DataError
from rlhf_ext.demo.reward import demo_reward_model
from rlhf_ext.formatting import Example, InputError, count_prompt_tokens, parse
from rlhf_ext.reward_model.settings import FILE_NAME

from .options import EvaluationOptions, RewardOptions, refuse_without_dataset, short_names
from .pair_report import ScoredPairs, report_pairs
from .report import Evaluation, Report, ScoredAnswers, report_ratings
from .rows import Pairs, RatedAnswers, Text, demo_pairs, demo_ratings, inputs, load_rows, select
from .statistics import Bootstrap

DEMO_MODEL = "runs/reward-demo"  # trained where the demo is to be evaluated and there is nothing yet
REWARD_RUNS = "runs/reward*"  # where recipes/reward.py leaves its models
Scores = dict[str, list[np.ndarray]]  # of each model, by its name: the scores of each column of answers


def evaluate_reward_models(data: EvaluationOptions, options: RewardOptions) -> Evaluation:
    """Score the rows with one model or two, and report.

    Raises:
        ArgumentError: An option that cannot work.
        DataError: Bad rows.
        InputError: A text that cannot be scored.
        MetricError: Scores from which nothing follows.
        RewardModelError: No usable reward model.
    """
    rows = _load(data, options)
    names = [options.model or _newest_model(data), *([options.other_model] if options.other_model else [])]
    if len({Path(name).absolute() for name in names}) < len(names):
        raise ArgumentError(f"--other_model {options.other_model} is the model itself: name another one.")
    loaded = [RewardModel.from_pretrained(name, max_length=options.max_length) for name in names]
    models = dict(zip(short_names(names), loaded, strict=True))
    reports = _evaluate(rows, models, data, options)
    title = "Reward models {} and {}" if len(names) > 1 else "Reward model {}"
    return Evaluation(title.format(*models), rows.source, [*models], reports)


def _load(data: EvaluationOptions, options: RewardOptions) -> Pairs | RatedAnswers:
    if data.dataset_name is None:
        columns = ("strength_column", "subset_column")
        refuse_without_dataset(data, *((column, getattr(options, column)) for column in columns))
        return demo_pairs(data.max_samples)
    return load_rows(
        data.dataset_name,
        data.dataset_config,
        split=data.dataset_split,
        strength_column=options.strength_column,
        subset_column=options.subset_column,
        max_samples=data.max_samples,
        seed=data.seed,
    )


def _newest_model(data: EvaluationOptions) -> str:
    """Return the newest reward model; for the demo, train one if there is none."""
    found = list(Path().glob(f"{REWARD_RUNS}/{FILE_NAME}"))
    if not found and data.dataset_name is None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        demo_reward_model(DEMO_MODEL, seed=42)
        return DEMO_MODEL
    if not found:
        raise ArgumentError(
            f"there is no reward model in {REWARD_RUNS}: run recipes/reward.py first, or name a --model."
        )
    newest = str(max(found, key=lambda path: path.stat().st_mtime).parent)
    print(f"Evaluating {newest}, the newest reward model.")
    return newest


def _evaluate(
    rows: Pairs | RatedAnswers, models: dict[str, RewardModel], data: EvaluationOptions, options: RewardOptions
) -> list[Report]:
    fitting = _without_long_prompts(rows, models.values(), drop=options.drop_long_prompts)
    with warnings.catch_warnings(record=True) as caught:  # of texts that are cut; shown below and on the page
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        scores = {name: _scores(model, fitting, data.batch_size) for name, model in models.items()}
    evaluated: list[tuple[Pairs | RatedAnswers, Scores]] = [(fitting, scores)]
    if data.dataset_name is None:  # the gold judge rates the same answers
        joined = {name: [np.concatenate(columns)] for name, columns in scores.items()}
        evaluated.append((demo_ratings(fitting), joined))
    reports = []
    for part, columns in evaluated:
        report = _report(part, columns, models, Bootstrap(seed=data.seed))
        total = len(rows.prompts) * len(part.prompts) // len(fitting.prompts)
        left_out = total - len(part.prompts)
        report.metrics["eval_left_out"] = left_out
        if left_out:
            report.notes.append(f"{left_out} of {total} rows are left out: their prompt fills max_length.")
        report.notes += [str(warning.message) for warning in caught]
        reports.append(report)
    return reports


def _report(rows: Pairs | RatedAnswers, scores: Scores, models: dict[str, RewardModel], bootstrap: Bootstrap) -> Report:
    if isinstance(rows, Pairs):
        pairs = [ScoredPairs(name, *columns, models[name].temperature) for name, columns in scores.items()]
        return report_pairs(rows, pairs, bootstrap)
    return report_ratings(rows, [ScoredAnswers(name, *columns) for name, columns in scores.items()], bootstrap)


def _without_long_prompts(
    rows: Pairs | RatedAnswers, models: Iterable[RewardModel], *, drop: bool
) -> Pairs | RatedAnswers:
    """Return the rows whose prompt leaves room for an answer, in every model."""
    examples, _ = parse(inputs(rows, next(iter(_answers(rows).values()))))
    limited = [model for model in models if model.max_length is not None]
    long = {
        row
        for model in limited
        for row, example in enumerate(examples)
        if _prompt_tokens(model, example, rows.source, rows.numbers[row]) >= model.max_length
    }
    if long and (not drop or len(long) == len(examples)):
        limit = min(model.max_length for model in limited)
        problem = (
            f"{len(long)} of {len(examples)} prompts have at least {limit} tokens and leave no room for an answer."
        )
        fix = "Raise --max_length, or leave these rows out with --drop_long_prompts."
        raise DataError(problem, fix, source=rows.source, column="prompt")
    return select(rows, [row for row in range(len(examples)) if row not in long]) if long else rows


def _prompt_tokens(model: RewardModel, example: Example, source: str, number: int) -> int:
    try:
        return count_prompt_tokens(example, model.tokenizer)
    except InputError as error:
        reader = f"It is the reward model {model.__name__} that reads it."
        raise DataError(error.problem, reader, source=source, row=number) from error


def _scores(model: RewardModel, rows: Pairs | RatedAnswers, batch_size: int | None) -> list[np.ndarray]:
    """Return the scores of each column of answers, scored together: a prompt that they share is run once."""
    answers = _answers(rows)
    texts = [text for column in answers.values() for text in inputs(rows, column)]
    try:
        scores = model.score(texts, batch_size=batch_size)
    except InputError as error:
        if error.place.index is None:
            raise
        column, row = divmod(error.place.index, len(rows.prompts))
        place = {"source": rows.source, "row": rows.numbers[row], "column": [*answers][column]}
        raise DataError(error.problem, "", **place) from error
    return np.split(np.array(scores, dtype=np.float64), len(answers))


def _answers(rows: Pairs | RatedAnswers) -> dict[str, list[Text]]:
    return {"chosen": rows.chosen, "rejected": rows.rejected} if isinstance(rows, Pairs) else {"answer": rows.answers}
