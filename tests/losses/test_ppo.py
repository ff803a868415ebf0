"""The critic's loss and its two diagnostics against hand-worked numbers, a plain loop and autograd."""

import statistics

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_ext.losses.ppo import clipped_value_loss, explained_variance, value_clip_fraction

NAN = float("nan")
quick = settings(max_examples=50, deadline=None)
number = st.floats(-5, 5)
triples = st.lists(st.tuples(number, number, number), min_size=1, max_size=6)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


# Old value 0.5 and clip range 0.2: values are clipped to 0.3 ... 0.7.
#   value 1.0, return 2.0: errors 1.0 and (0.7 - 2)^2 = 1.69, so 0.845; the clip decides, no gradient.
#   value 1.0, return 0.0: errors 1.0 and 0.49, so 0.5; gradient 1 - 0.
#   value 0.6, return 1.0: within the range, 0.4^2 / 2 = 0.08; gradient 0.6 - 1.
#   value 0.0, return -1.0: errors 1.0 and (0.3 + 1)^2 = 1.69, so 0.845; the clip decides.
VALUES, RETURNS = tensor([[1.0, 1.0], [0.6, 0.0]]), tensor([[2.0, 0.0], [1.0, -1.0]])
OLD_VALUES = torch.full_like(VALUES, 0.5)
MASK = torch.tensor([[1, 1], [1, 0]])


def test_loss_and_gradient_worked_out_by_hand():
    values = VALUES.clone().requires_grad_()
    losses = clipped_value_loss(values, OLD_VALUES, RETURNS, cliprange_value=0.2)
    torch.testing.assert_close(losses, tensor([[0.845, 0.5], [0.08, 0.845]]))
    losses.sum().backward()
    torch.testing.assert_close(values.grad, tensor([[0.0, 1.0], [-0.4, 0.0]]))


def test_no_clip_range_is_the_squared_error():
    values = VALUES.clone().requires_grad_()
    losses = clipped_value_loss(values, OLD_VALUES, RETURNS, cliprange_value=None)
    torch.testing.assert_close(losses, tensor([[0.5, 0.5], [0.08, 0.5]]))
    losses.sum().backward()
    torch.testing.assert_close(values.grad, VALUES - RETURNS)


def loss_of_one(value, old_value, target, cliprange):
    clipped = min(max(value, old_value - cliprange), old_value + cliprange)
    return max(0.5 * (value - target) ** 2, 0.5 * (clipped - target) ** 2)


@quick
@given(rows=triples, cliprange=st.floats(0.01, 3))
def test_equals_a_plain_loop(rows, cliprange):
    losses = clipped_value_loss(*tensor(rows).T[:, None], cliprange_value=cliprange)
    assert losses.shape == (1, len(rows))
    assert losses[0].tolist() == pytest.approx([loss_of_one(*row, cliprange) for row in rows], rel=1e-9, abs=1e-9)


@quick
@given(rows=triples, cliprange=st.floats(0.01, 3))
def test_clip_fraction_is_the_share_of_tokens_without_gradient(rows, cliprange):
    values, old_values, returns = tensor(rows).T[:, None]
    assume(((values - returns).abs() > 1e-6).all())  # on its target a value has no gradient either
    assume((((values - old_values).abs() - cliprange).abs() > 1e-6).all())  # nor is there one derivative at a kink
    values.requires_grad_()
    clipped_value_loss(values, old_values, returns, cliprange_value=cliprange).sum().backward()
    fraction = value_clip_fraction(values, old_values, returns, torch.ones_like(values), cliprange_value=cliprange)
    assert fraction.item() == pytest.approx((values.grad == 0).double().mean().item(), abs=1e-6)


def test_gradient_agrees_with_finite_differences():
    values = VALUES.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda values: clipped_value_loss(values, OLD_VALUES, RETURNS, cliprange_value=0.2), [values]
    )


def test_only_the_values_get_a_gradient():
    values, old_values, returns = (x.clone().requires_grad_() for x in (VALUES, OLD_VALUES, RETURNS))
    clipped_value_loss(values, old_values, returns, cliprange_value=0.2).sum().backward()
    assert old_values.grad is None
    assert returns.grad is None


def test_half_precision_is_squared_in_float32():
    values = torch.tensor([[1.0]], dtype=torch.bfloat16, requires_grad=True)
    losses = clipped_value_loss(values, values.detach(), torch.tensor([[1.001]]), cliprange_value=0.2)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(0.5e-6, rel=1e-3)


def test_clip_fraction_worked_out_by_hand():
    masked = [torch.where(MASK.bool(), rows, NAN) for rows in (VALUES, OLD_VALUES, RETURNS)]
    assert value_clip_fraction(*masked, MASK, cliprange_value=0.2).item() == pytest.approx(1 / 3)
    assert value_clip_fraction(*masked, MASK, cliprange_value=None).item() == 0.0


def test_explained_variance_worked_out_by_hand():
    # Returns 1, 2, 3 have the variance 2/3. The errors 0, 0, -1 have 2/9: 1 - 1/3.
    values, returns, mask = tensor([[1.0, 2.0], [4.0, NAN]]), tensor([[1.0, 2.0], [3.0, NAN]]), MASK
    assert explained_variance(values, returns, mask).item() == pytest.approx(2 / 3)
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(0 * values, returns, mask).item() == 0.0
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0)  # errors twice as large


@quick
@given(rows=triples, shift=number)
def test_explained_variance_equals_the_statistics_module(rows, shift):
    values, returns, _ = zip(*rows, strict=True)
    assume(statistics.pvariance(returns) > 0.01)
    errors = [r - v for v, r in zip(values, returns, strict=True)]
    expected = 1 - statistics.pvariance(errors) / statistics.pvariance(returns)
    tensors = tensor([values]), tensor([returns]), torch.ones(1, len(rows))
    assert explained_variance(*tensors).item() == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert explained_variance(tensors[0] + shift, *tensors[1:]).item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e6])
@pytest.mark.parametrize("count", [0, 1, 999])
def test_returns_without_variance_have_none_explained(constant, count):
    torch.manual_seed(0)
    values, returns = torch.randn(1, 1000), torch.full((1, 1000), constant)
    assert explained_variance(values, returns, torch.arange(1000)[None] < count).item() == 0.0


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_a_tensor_that_would_broadcast_is_refused(position):
    tensors = [torch.ones(2, 3) for _ in range(4)]
    tensors[position] = torch.ones(2, 1)
    argument = ("values", "old_values", "returns", "mask")[position]
    with pytest.raises(ValueError, match=rf"\b{argument} \(2, 1\)"):
        value_clip_fraction(*tensors, cliprange_value=0.2)
    if position < 3:
        with pytest.raises(ValueError, match=rf"must have one shape: .*\b{argument} \(2, 1\)"):
            clipped_value_loss(*tensors[:3], cliprange_value=0.2)
    if position != 1:
        with pytest.raises(ValueError, match=rf"must have one shape: .*\b{argument} \(2, 1\)"):
            explained_variance(tensors[0], *tensors[2:])


@pytest.mark.parametrize("cliprange", [0.0, -0.2])
def test_a_clip_range_not_above_0_is_refused(cliprange):
    with pytest.raises(ValueError, match="above 0, or None for no clipping"):
        clipped_value_loss(VALUES, OLD_VALUES, RETURNS, cliprange_value=cliprange)
