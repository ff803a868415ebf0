"""An ensemble's scores are worked out by hand from its members', and it has the interface of one model."""

import pytest
import torch

from rlhf_ext import RewardModelEnsemble
from rlhf_ext.formatting import InputError
from rlhf_ext.reward_model.text_scorer import TextScorer


class Fixed(TextScorer):
    """Scores each text by a table."""

    def __init__(self, table, temperature=1.0):
        self.table, self.temperature = table, temperature

    def _scores(self, examples, batch_size, allow_empty_completion):
        return torch.tensor([self.table[example.completion] for example in examples])


@pytest.fixture
def members():
    return [Fixed({"x": 1.0, "y": 2.0}, 1.0), Fixed({"x": 3.0, "y": 2.5}, 2.0), Fixed({"x": 5.0, "y": 3.0}, 6.0)]


@pytest.mark.parametrize(
    ("options", "x", "y"),
    [
        ({}, 3.0, 2.5),
        ({"reduction": "mean"}, 3.0, 2.5),
        ({"reduction": "min"}, 1.0, 2.0),
        # Deviations of (1, 3, 5): sqrt(8 / 3); of (2, 2.5, 3): sqrt(1 / 6).
        ({"reduction": "mean_minus_std"}, 3.0 - (8 / 3) ** 0.5, 2.5 - (1 / 6) ** 0.5),
        ({"reduction": "mean_minus_std", "k": 0.5}, 3.0 - 0.5 * (8 / 3) ** 0.5, 2.5 - 0.5 * (1 / 6) ** 0.5),
        ({"reduction": "mean_minus_std", "k": 0.0}, 3.0, 2.5),
    ],
)
def test_reductions_by_hand(options, x, y, members):
    ensemble = RewardModelEnsemble(members, **options)
    assert ensemble.score(["x", "y"]) == pytest.approx([x, y])
    assert type(ensemble.score("x")) is float
    compared = ensemble.compare("x", "y")
    assert compared["score_diff"] == pytest.approx(x - y) and compared["preference"] == ("a" if x > y else "b")
    assert compared["probability"] == pytest.approx(1 / (1 + 2.718281828459045 ** (-(x - y) / 3.0)))  # mean temperature
    assert [entry["text"] for entry in ensemble.rank(["x", "y"])] == (["x", "y"] if x > y else ["y", "x"])
    assert ensemble.best_of_n("", ["x", "y"]) == ("x" if x > y else "y")
    assert ensemble(prompts=["", ""], completions=["y", "x"]) == pytest.approx([y, x])


def test_one_model_is_itself(members):
    for reduction in ("mean", "min", "mean_minus_std"):
        assert RewardModelEnsemble(members[:1], reduction).score(["x", "y"]) == [1.0, 2.0]


def test_ensembles_nest(members):
    inner = RewardModelEnsemble(members[:2], "min")
    assert RewardModelEnsemble([inner, members[2]], "mean").score("x") == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "at least one reward model"),
        (2, {"reduction": "max"}, "reduction must be one of mean, min, mean_minus_std"),
        (2, {"k": 2.0}, "k=2.0 has no effect with reduction='mean'"),
        (2, {"reduction": "mean_minus_std", "k": float("nan")}, "k=nan must be 0 or above and finite"),
        (2, {"reduction": "mean_minus_std", "k": -1.0}, "below 0 it would reward disagreement"),
    ],
)
def test_bad_option_is_refused(count, options, message, members):
    with pytest.raises(ValueError, match=message):
        RewardModelEnsemble(iter(members[:count]), **options)


def test_folder_name_instead_of_a_model_is_refused():
    with pytest.raises(ValueError, match="str is no RewardModel"):
        RewardModelEnsemble(["runs/reward"])


def test_bad_text_is_refused(members):
    with pytest.raises(InputError, match=r"row 2 \(texts\[1\]\)"):
        RewardModelEnsemble(members).score(["x", None])
