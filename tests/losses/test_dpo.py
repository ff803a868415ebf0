"""The DPO losses against numbers worked out by hand, a loop in plain Python, TRL's own code, and their properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ext import get_plugin, list_plugins
from rlhf_ext.losses.dpo import DPOBatch


def make_batch(chosen, rejected, ref_chosen, ref_rejected, chosen_lengths=None, rejected_lengths=None, **extras):
    def tensor(values):
        return torch.tensor(values, dtype=torch.float64)

    return DPOBatch(
        tensor(chosen),
        tensor(rejected),
        tensor(ref_chosen),
        tensor(ref_rejected),
        tensor(chosen_lengths or [1.0] * len(chosen)),
        tensor(rejected_lengths or [1.0] * len(chosen)),
        {name: tensor(values) for name, values in extras.items()},
    )


# Log-ratios +2 and -4, lengths 4 and 2: h = 6, average difference = 2/4 - (-4/2) = 2.5. SimPO: -10/4 - (-12/2) = 3.5.
BATCH = make_batch([-10.0], [-12.0], [-12.0], [-8.0], [4.0], [2.0], margin=[0.5])
BY_HAND = {
    ("sigmoid", 0.1, ()): math.log(1 + math.exp(-0.6)),
    ("average_logp", 0.4, ()): math.log(1 + math.exp(-1.0)),
    ("cdpo", 0.1, (("label_smoothing", 0.2),)): 0.8 * math.log(1 + math.exp(-0.6)) + 0.2 * math.log(1 + math.exp(0.6)),
    ("odpo", 0.1, ()): math.log(1 + math.exp(-(0.6 - 0.5))),
    ("odpo", 0.1, (("alpha", 2.0), ("transform", "log"))): math.log(1 + math.exp(-(0.6 - 2 * math.log(0.5)))),
    ("simpo", 2.0, (("gamma", 1.0),)): math.log(1 + math.exp(-(7.0 - 1.0))),
    ("ipo", 0.25, ()): (2.5 - 2.0) ** 2,
    ("hinge", 0.1, ()): 0.4,
    ("hinge", 0.5, ()): 0.0,
}


@pytest.mark.parametrize(("name", "beta", "keywords"), BY_HAND)
def test_value_worked_out_by_hand(name, beta, keywords):
    losses = get_plugin("dpo_loss", name)(BATCH, beta=beta, **dict(keywords))
    assert losses.tolist() == pytest.approx([BY_HAND[name, beta, keywords]], rel=1e-12)


def test_every_built_in_loss_has_a_value_worked_out_by_hand():
    assert {name for name, _, _ in BY_HAND} == set(list_plugins("dpo_loss"))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


# One pair at a time in plain floats: no tensors, no shared helpers.
LOOP = {
    "sigmoid": lambda c, r, rc, rr, nc, nr, m, b: -log_sigmoid(b * (c - rc - r + rr)),
    "average_logp": lambda c, r, rc, rr, nc, nr, m, b: -log_sigmoid(b * ((c - rc) / nc - (r - rr) / nr)),
    "cdpo": lambda c, r, rc, rr, nc, nr, m, b: (
        -0.9 * log_sigmoid(b * (c - rc - r + rr)) - 0.1 * log_sigmoid(-b * (c - rc - r + rr))
    ),
    "odpo": lambda c, r, rc, rr, nc, nr, m, b: -log_sigmoid(b * (c - rc - r + rr) - m),
    "simpo": lambda c, r, rc, rr, nc, nr, m, b: -log_sigmoid(b * (c / nc - r / nr) - 0.5),
    "ipo": lambda c, r, rc, rr, nc, nr, m, b: ((c - rc) / nc - (r - rr) / nr - 0.5 / b) ** 2,
    "hinge": lambda c, r, rc, rr, nc, nr, m, b: max(0.0, 1 - b * (c - rc - r + rr)),
}
logps = st.floats(-200, 0)
pairs = st.lists(
    st.tuples(logps, logps, logps, logps, st.integers(1, 50), st.integers(1, 50), st.floats(-3, 3)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", LOOP)
@given(rows=pairs, beta=st.floats(0.01, 5))
def test_equals_a_plain_loop(name, rows, beta):
    *columns, margin = zip(*rows, strict=True)
    losses = get_plugin("dpo_loss", name)(make_batch(*map(list, columns), margin=list(margin)), beta=beta)
    assert losses.shape == (len(rows),)
    assert losses.tolist() == pytest.approx([LOOP[name](*row, beta) for row in rows], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", LOOP)
def test_gradient_pulls_chosen_up_and_rejected_down(name):
    chosen, rejected = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (-9.0, -9.5))
    other = torch.full((1,), -9.0, dtype=torch.float64)
    batch = DPOBatch(
        chosen, rejected, other, other, torch.full((1,), 3.0), torch.full((1,), 4.0), {"margin": other * 0}
    )
    get_plugin("dpo_loss", name)(batch, beta=0.1).sum().backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()


@pytest.mark.parametrize("name", LOOP)
def test_gradient_agrees_with_finite_differences(name):
    torch.manual_seed(0)
    inputs = [(-20 * torch.rand(3, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    fixed = [-20 * torch.rand(3, dtype=torch.float64) for _ in range(2)]
    lengths = [torch.tensor([3.0, 5.0, 7.0]), torch.tensor([2.0, 9.0, 4.0])]
    margin = {"margin": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)}

    def loss(chosen, rejected):
        return get_plugin("dpo_loss", name)(DPOBatch(chosen, rejected, *fixed, *lengths, margin), beta=0.3)

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", ["sigmoid", "average_logp", "cdpo", "odpo", "simpo", "hinge"])
@pytest.mark.parametrize("gap", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stays_finite_at_extreme_log_ratios(name, gap, dtype):
    zero, one = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)
    chosen = torch.full((2,), gap, dtype=dtype, requires_grad=True)
    losses = get_plugin("dpo_loss", name)(DPOBatch(chosen, zero, zero, zero, one, one, {"margin": one}), beta=1.0)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.isfinite().all()


@given(rows=pairs)
def test_label_smoothing_of_zero_is_the_sigmoid_loss(rows):
    *columns, _ = zip(*rows, strict=True)
    batch = make_batch(*map(list, columns))
    smoothed = get_plugin("dpo_loss", "cdpo")(batch, beta=0.1, label_smoothing=0.0)
    assert torch.equal(smoothed, get_plugin("dpo_loss", "sigmoid")(batch, beta=0.1))


def test_label_smoothing_puts_the_minimum_where_the_paper_says():
    gaps = torch.linspace(0, 60, 6001, dtype=torch.float64)
    zero = torch.zeros_like(gaps)
    losses = get_plugin("dpo_loss", "cdpo")(DPOBatch(gaps, zero, zero, zero, zero + 1, zero + 1), beta=0.1)
    assert gaps[losses.argmin()].item() * 0.1 == pytest.approx(math.log(0.9 / 0.1), abs=1e-3)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, 1.0])
def test_label_smoothing_outside_its_range_is_refused(label_smoothing):
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        get_plugin("dpo_loss", "cdpo")(BATCH, beta=0.1, label_smoothing=label_smoothing)


def test_odpo_names_the_missing_column():
    with pytest.raises(ValueError, match=r"extra_columns=\['margin'\]"):
        get_plugin("dpo_loss", "odpo")(make_batch([-1.0], [-2.0], [-1.0], [-1.0]), beta=0.1)


def test_odpo_refuses_the_log_of_a_margin_not_above_zero():
    batch = make_batch([-1.0], [-2.0], [-1.0], [-1.0], margin=[0.0])
    with pytest.raises(ValueError, match="positive margins, got 0"):
        get_plugin("dpo_loss", "odpo")(batch, beta=0.1, transform="log")
    with pytest.raises(ValueError, match="'identity' or 'log', got 'sqrt'"):
        get_plugin("dpo_loss", "odpo")(batch, beta=0.1, transform="sqrt")


def test_simpo_ignores_the_reference():
    moved = make_batch([-10.0], [-12.0], [-99.0], [-1.0], [4.0], [2.0])
    simpo = get_plugin("dpo_loss", "simpo")
    assert torch.equal(simpo(moved, beta=2.0), simpo(BATCH, beta=2.0))


@pytest.mark.parametrize("field", ["rejected_logps", "ref_chosen_logps", "chosen_lengths", "margin"])
def test_a_tensor_that_would_broadcast_is_refused(field):
    column, row = torch.zeros(3, 1), torch.zeros(3)
    fields = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps"]
    tensors = {name: column if name == field else row for name in [*fields, "chosen_lengths", "rejected_lengths"]}
    extras = {"margin": column if field == "margin" else row}
    with pytest.raises(ValueError, match=rf"{field} has shape \(3, 1\)"):
        DPOBatch(**tensors, extras=extras)
