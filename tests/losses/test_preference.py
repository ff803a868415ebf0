"""The reward-model losses against numbers worked out by hand, a loop in plain Python, TRL's formula and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ext import get_plugin, list_plugins
from rlhf_ext.losses.preference import centering

NAMES = ["bradley_terry", "margin", "hinge"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def call(name, chosen, rejected, margin_column=None, **keywords):
    extras = {} if margin_column is None else {"margin": tensor(margin_column)}
    return get_plugin("preference_loss", name)(tensor(chosen), tensor(rejected), extras=extras, **keywords)


# Scores 2 and 1.5: d = 0.5.
BY_HAND = {
    ("bradley_terry", None, ()): math.log(1 + math.exp(-0.5)),
    ("bradley_terry", None, (("label_smoothing", 0.2),)): 0.8 * math.log(1 + math.exp(-0.5))
    + 0.2 * math.log(1 + math.exp(0.5)),
    ("margin", None, ()): math.log(1 + math.exp(-0.4)),
    ("margin", 0.3, ()): math.log(1 + math.exp(-0.1)),
    ("margin", 0.3, (("margin", 0.0), ("temperature", 0.1))): math.log(1 + math.exp(-2.0)),
    ("margin", None, (("label_smoothing", 0.25),)): 0.75 * math.log(1 + math.exp(-0.4))
    + 0.25 * math.log(1 + math.exp(0.6)),
    ("hinge", None, ()): 0.5,
    ("hinge", 0.25, ()): 0.75,
    ("hinge", None, (("margin", 0.5),)): 0.0,
    ("hinge", None, (("label_smoothing", 0.1),)): 0.9 * 0.5 + 0.1 * 1.5,
}


@pytest.mark.parametrize(("name", "margin", "keywords"), BY_HAND)
def test_value_worked_out_by_hand(name, margin, keywords):
    losses = call(name, [2.0], [1.5], None if margin is None else [margin], **dict(keywords))
    assert losses.tolist() == pytest.approx([BY_HAND[name, margin, keywords]], rel=1e-12)


def test_every_built_in_loss_has_a_value_worked_out_by_hand():
    assert {name for name, *_ in BY_HAND} == set(NAMES) == set(list_plugins("preference_loss"))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


# One pair at a time in plain floats: c, r, margin of the column, label smoothing.
LOOP = {
    "bradley_terry": lambda c, r, m, e: -(1 - e) * log_sigmoid(c - r) - e * log_sigmoid(r - c),
    "margin": lambda c, r, m, e: -(1 - e) * log_sigmoid(c - r - 0.1 - m) - e * log_sigmoid(r - c - 0.1 - m),
    "hinge": lambda c, r, m, e: (1 - e) * max(0.0, 1 + m - c + r) + e * max(0.0, 1 + m - r + c),
}
scores = st.floats(-100, 100)


@pytest.mark.parametrize("name", NAMES)
@given(
    rows=st.lists(st.tuples(scores, scores, st.floats(-3, 3)), min_size=1, max_size=6),
    smoothing=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_equals_a_plain_loop(name, rows, smoothing):
    chosen, rejected, margins = map(list, zip(*rows, strict=True))
    margins = [0.0] * len(rows) if name == "bradley_terry" else margins
    losses = call(name, chosen, rejected, None if name == "bradley_terry" else margins, label_smoothing=smoothing)
    assert losses.shape == (len(rows),)
    expected = [LOOP[name](*row, smoothing) for row in zip(chosen, rejected, margins, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_pulls_chosen_up_and_rejected_down(name):
    chosen, rejected = (tensor([value]).requires_grad_() for value in (0.3, 0.2))
    get_plugin("preference_loss", name)(chosen, rejected, extras={}).sum().backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradient_agrees_with_finite_differences(name, smoothing):
    chosen, rejected = (tensor(values).requires_grad_() for values in ([0.3, -2.0, 5.0], [0.1, 1.0, 4.5]))

    def loss(chosen, rejected):
        return get_plugin("preference_loss", name)(chosen, rejected, extras={}, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, [chosen, rejected])


@pytest.mark.parametrize("name", ["margin", "hinge"])
@given(score=st.floats(-10, 10), low=st.floats(-3, 3), step=st.floats(0.01, 3), smoothing=st.sampled_from([0.0, 0.3]))
def test_larger_margin_never_costs_less(name, score, low, step, smoothing):
    small, large = (
        call(name, [score], [0.0], margin_column=m, label_smoothing=smoothing) for m in ([low], [low + step])
    )
    assert large.item() >= small.item()
    if name == "margin":
        assert large.item() > small.item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gap", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_stays_finite_at_extreme_differences(name, gap, dtype, smoothing):
    chosen = torch.full((2,), gap, dtype=dtype, requires_grad=True)
    loss = get_plugin("preference_loss", name)
    losses = loss(chosen, torch.zeros(2, dtype=dtype), extras={}, label_smoothing=smoothing)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert losses.isfinite().all() and chosen.grad.isfinite().all()
    # The wrong way round it costs about the gap itself; the right way round, what smoothing takes of it.
    assert losses[0].item() == pytest.approx(1e4 * (1 - smoothing if gap < 0 else smoothing), rel=0.01, abs=1.0)


def test_margin_of_zero_is_bradley_terry_and_that_is_the_formula_of_trl():
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64)
    plain = get_plugin("preference_loss", "bradley_terry")(chosen, rejected, extras={})
    assert torch.equal(get_plugin("preference_loss", "margin")(chosen, rejected, extras={}, margin=0.0), plain)
    torch.testing.assert_close(plain.mean(), -torch.nn.functional.logsigmoid(chosen - rejected).mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, 1.0])
def test_label_smoothing_outside_its_range_is_refused(name, label_smoothing):
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        call(name, [1.0], [0.0], label_smoothing=label_smoothing)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        call("margin", [1.0], [0.0], temperature=temperature)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_would_broadcast_are_refused(name):
    loss = get_plugin("preference_loss", name)
    column, row = torch.zeros(3, 1), torch.zeros(3)
    with pytest.raises(ValueError, match=r"rejected_rewards has shape \(3, 1\)"):
        loss(row, column, extras={})
    with pytest.raises(ValueError, match=r"chosen_rewards has shape \(3, 1\)"):
        loss(column, column, extras={})
    with pytest.raises(ValueError, match=r"weight has shape \(3, 1\)"):
        loss(row, row, extras={"weight": column})


def test_centering_is_the_squared_sum_of_the_scores():
    chosen, rejected = tensor([1.0, -2.0]).requires_grad_(), tensor([0.5, 2.0])
    penalty = centering(chosen, rejected)
    assert penalty.tolist() == [2.25, 0.0]
    penalty.sum().backward()
    assert chosen.grad.tolist() == [3.0, 0.0]
