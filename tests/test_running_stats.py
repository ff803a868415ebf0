"""Running mean and standard deviation against the statistics module, however the stream is cut."""

import json
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ext.running_stats import RunningMeanStd

quick = settings(max_examples=50, deadline=None)


def after(*batches, dtype=torch.float64):
    stats = RunningMeanStd()
    for batch in batches:
        stats.update(torch.tensor(batch, dtype=dtype))
    return stats


def test_worked_out_by_hand():
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, variance 14 / 4 = 3.5.
    stats = after([1.0, 2.0], [[3.0], [6.0]])
    assert (stats.count, stats.mean) == (4, 3.0)
    assert stats.scale == pytest.approx(3.5**0.5, rel=1e-12)


@quick
@given(batches=st.lists(st.lists(st.floats(-100, 100), max_size=5), max_size=6))
def test_equals_the_statistics_module_on_the_whole_stream(batches):
    stats, whole = after(*batches), [x for batch in batches for x in batch]
    assert stats.count == len(whole)
    assert stats.mean == pytest.approx(statistics.fmean(whole) if whole else 0.0, rel=1e-9, abs=1e-9)
    spread = statistics.pstdev(whole) if whole else 0.0
    if spread > 1e-3:
        assert stats.scale == pytest.approx(spread, rel=1e-6)


def test_a_small_spread_beside_a_large_mean_is_not_lost():
    """A sum of squares would lose it: 1e16 does not hold a fraction in float64."""
    torch.manual_seed(0)
    numbers = (1e8 + 1000 * torch.randn(1000, dtype=torch.float64)).tolist()
    stats = after(*(numbers[i : i + 7] for i in range(0, 1000, 7)))
    assert stats.scale == pytest.approx(statistics.pstdev(numbers), rel=1e-6)


@pytest.mark.parametrize("batches", [[], [[]], [[5.0]], [[0.1] * 3, [0.1] * 4], [[0.0, 0.0]], [[3.0, 3.000001]]])
def test_scale_is_1_before_values_differ_beyond_rounding(batches):
    assert after(*batches, dtype=torch.float32).scale == 1.0


def test_shifting_the_stream_leaves_the_scale():
    assert after([1.0, 4.0], [9.0]).scale == pytest.approx(after([-99.0, -96.0], [-91.0]).scale, rel=1e-12)


def test_half_precision_is_counted_in_float64():
    assert after([1.0, 1.0078125], dtype=torch.bfloat16).mean == 1.00390625  # halfway between two bfloat16 numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_leave_no_trace(bad):
    stats = after([1.0, 2.0])
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        stats.update(torch.tensor([1.0, bad, 2.0]))
    assert stats.state_dict() == after([1.0, 2.0]).state_dict()


def test_a_restored_state_goes_on_bit_for_bit():
    first, second = after([0.1, 0.7, 1.9]), RunningMeanStd()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for stats in (first, second):
        stats.update(torch.tensor([0.3, -5.0]))
    assert first.state_dict() == second.state_dict()
    assert first.scale == second.scale
