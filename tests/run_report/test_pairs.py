"""What the report says of a reward model's held-out pairs: intervals know the prompts, lengths are the right ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from rlhf_ext.evaluation import reward
from rlhf_ext.evaluation.report import show
from rlhf_ext.evaluation.statistics import Bootstrap
from rlhf_ext.run_report.pairs import RESAMPLES, pair_sections

# Of each prompt's eight pairs all are right or all are wrong; the chosen answer is the longer one where it is right.
ROWS = [
    {"prompt": f"Question {i // 8}?", "chosen": " a" * (i // 8 % 3 + 1), "rejected": " b" * 2, "right": i // 8 % 3 > 0}
    for i in range(96)
]
pytestmark = pytest.mark.usefixtures("undrawn")
DIFFERENCES = np.array([1.0 if row["right"] else -0.5 for row in ROWS])


def trainer_of(dataset, differences=DIFFERENCES):
    scores = torch.tensor(differences), torch.zeros(len(differences), dtype=torch.float64)
    return SimpleNamespace(
        eval_scores=scores,
        settings=SimpleNamespace(temperature=1.0),
        eval_dataset=dataset,
    )


def cells(section):
    return {row[0]: row[1:] for table in section.tables for row in table.rows}


def test_intervals_draw_whole_prompts():
    dataset = Dataset.from_list(ROWS)
    calibration, length = pair_sections(trainer_of(dataset), dataset).sections
    prompts = [row["prompt"] for row in ROWS]
    by_prompt = reward.accuracy(DIFFERENCES, prompts, bootstrap=Bootstrap(RESAMPLES))
    alone = reward.accuracy(DIFFERENCES, bootstrap=Bootstrap(RESAMPLES))
    assert by_prompt.high - by_prompt.low > 2 * (alone.high - alone.low)
    assert cells(calibration)["accuracy"] == (show(by_prompt),)
    bias = reward.length_bias(
        DIFFERENCES, [2.0 * (i // 8 % 3 - 1) for i in range(96)], prompts, bootstrap=Bootstrap(RESAMPLES)
    )
    assert cells(length)["Spearman with length"] == ("96", show(bias.spearman))
    assert cells(length)["accuracy, longer right"] == ("32", show(bias.longer_right.accuracy))


def test_rows_that_were_dropped_are_counted_and_the_others_keep_their_lengths():
    """As TRL leaves them: with the prompt before each answer, and an end token."""
    kept = [row for row in ROWS if row["chosen"] != " a a a"]
    prepared = Dataset.from_list(
        [row | {side: row["prompt"] + row[side] + "<|end|>" for side in ("chosen", "rejected")} for row in kept]
    )
    trainer = trainer_of(prepared, [1.0 if row["right"] else -0.5 for row in kept])
    calibration, length = pair_sections(trainer, Dataset.from_list(ROWS)).sections
    assert "Without 32 of 96 held-out pairs, longer than max_length." in calibration.text[1]
    assert cells(length)["accuracy, shorter right"][0] == "32" and cells(length)["Spearman with length"][0] == "64"


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.from_list(ROWS).to_iterable_dataset(),
        Dataset.from_dict({"chosen_ids": [[1]] * 96, "rejected_ids": [[2]] * 96}),
        Dataset.from_list(ROWS[:50]),
    ],
    ids=["streamed", "tokenized", "not those that were scored"],
)
def test_texts_that_are_not_known_are_said_to_be(dataset):
    (section,) = pair_sections(trainer_of(dataset), dataset).sections
    assert "Their texts are not known here" in section.text[1]


def test_several_sets_follow_each_other():
    parts = {"one": Dataset.from_list(ROWS[:40]), "two": Dataset.from_list(ROWS[40:])}
    whole = Dataset.from_list(ROWS)
    assert list(map(cells, pair_sections(trainer_of(parts), parts).sections)) == list(
        map(cells, pair_sections(trainer_of(whole), whole).sections)
    )


def test_other_trainers_have_no_such_section():
    assert not pair_sections(SimpleNamespace(), None).sections
