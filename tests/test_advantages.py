"""The advantage estimators and masked statistics against hand-worked numbers, plain loops and their properties."""

import statistics
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_ext import get_plugin, list_plugins
from rlhf_ext.advantages import gae, masked_mean, masked_var, mean_shortfall, reinforce, rloo, whiten

NAN = float("nan")
NAMES = ("gae", "reinforce", "rloo")
quick = settings(max_examples=50, deadline=None)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def estimate(name, rewards, values, mask, *, gamma=1.0, lam=0.95, num_generations=2):
    """Any estimator by its name; `rloo` with its group size and without the discount, which it refuses."""
    if name == "rloo":
        return rloo(rewards, values, mask, gamma=1.0, lam=lam, num_generations=num_generations)
    return get_plugin("advantage", name)(rewards, values, mask, gamma=gamma, lam=1.0 if name == "reinforce" else lam)


# Two completions of 3 and 2 tokens; the last position of the second is padding.
REWARDS = tensor([[1.0, 0.0, 2.0], [-1.0, 3.0, NAN]])
VALUES = tensor([[0.5, 1.0, 1.5], [2.0, 0.0, NAN]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
BY_HAND = {
    # gamma 0.9, lambda 0.5, their product 0.45. First row: deltas 1 + 0.9 * 1 - 0.5 = 1.4, 0.9 * 1.5 - 1 = 0.35 and
    # 2 - 1.5 = 0.5, so the advantages are 0.5, 0.35 + 0.45 * 0.5 = 0.575 and 1.4 + 0.45 * 0.575 = 1.65875.
    # Second row: deltas -1 + 0.9 * 0 - 2 = -3 and 3 - 0 = 3, so 3 and -3 + 0.45 * 3 = -1.65.
    "gae": (
        {"gamma": 0.9, "lam": 0.5},
        [[1.65875, 0.575, 0.5], [-1.65, 3.0, 0.0]],
        [[2.15875, 1.575, 2.0], [0.35, 3.0, 0.0]],
    ),
    # gamma 0.5. Rewards to go 2, 0 + 1 = 1, 1 + 0.5 = 1.5 and 3, -1 + 1.5 = 0.5; their mean is 8 / 5 = 1.6.
    "reinforce": (
        {"gamma": 0.5, "lam": 1.0},
        [[-0.1, -0.6, 0.4], [-1.1, 1.4, 0.0]],
        [[1.5, 1.0, 2.0], [0.5, 3.0, 0.0]],
    ),
    # Totals 3 and 2: 3 - 2 = 1 and 2 - 3 = -1.
    "rloo": (
        {"gamma": 1.0, "lam": 1.0, "num_generations": 2},
        [[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]],
        [[3.0, 2.0, 2.0], [2.0, 3.0, 0.0]],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_value_worked_out_by_hand(name):
    keywords, advantages, returns = BY_HAND[name]
    found = get_plugin("advantage", name)(REWARDS, VALUES, MASK, **keywords)
    torch.testing.assert_close(found, (tensor(advantages), tensor(returns)), rtol=1e-12, atol=1e-12)


def test_every_built_in_estimator_has_a_value_worked_out_by_hand():
    assert set(BY_HAND) == set(NAMES) == set(list_plugins("advantage"))


def test_rloo_leaves_out_the_completion_itself():
    # Totals 3, 2 and -2 of one prompt: 3 - (2 - 2) / 2 = 3, 2 - (3 - 2) / 2 = 1.5 and -2 - (3 + 2) / 2 = -4.5.
    # Totals 1, 1 and 7 of the next: 1 - 4 = -3, 1 - 4 = -3 and 7 - 1 = 6.
    totals = tensor([[3.0], [2.0], [-2.0], [1.0], [1.0], [7.0]])
    advantages, _ = rloo(totals, totals, torch.ones(6, 1), gamma=1.0, lam=1.0, num_generations=3)
    assert advantages.flatten().tolist() == pytest.approx([3.0, 1.5, -4.5, -3.0, -3.0, 6.0])


@st.composite
def rollouts(draw, holes=True, multiple_of=2):
    """Rewards, values and mask as lists: completions of 0 to 6 tokens, with holes, padded to one length."""
    rows = multiple_of * draw(st.integers(1, 2))
    columns = draw(st.integers(1, 6))
    number = st.floats(-5, 5)
    grid = st.lists(st.lists(number, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    lengths = draw(st.lists(st.integers(0, columns), min_size=rows, max_size=rows))
    kept = st.booleans() if holes else st.just(True)
    mask = [[int(t < length and draw(kept)) for t in range(columns)] for length in lengths]
    return draw(grid), draw(grid), mask


unit = st.floats(0, 1)


def gae_of_one(rewards, values, gamma, lam):
    """The definition: a sum over all later one-step errors, for a completion without padding and holes."""
    values = [*values, 0.0]
    advantages = []
    for t in range(len(rewards)):
        total = 0.0
        for k in range(t, len(rewards)):
            total += (gamma * lam) ** (k - t) * (rewards[k] + gamma * values[k + 1] - values[k])
        advantages.append(total)
    return advantages


def reward_to_go_of_one(rewards, gamma):
    return [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]


def real(row, mask):
    return [x for x, m in zip(row, mask, strict=True) if m]


def spread(rows, mask):
    """Put numbers of real tokens back where they stood, with 0 elsewhere."""
    spread_rows = []
    for row, kept in zip(rows, mask, strict=True):
        left = iter(row)
        spread_rows.append([next(left) if m else 0.0 for m in kept])
    return tensor(spread_rows)


@quick
@given(rollout=rollouts(), gamma=unit, lam=unit)
def test_gae_equals_a_plain_double_loop(rollout, gamma, lam):
    rewards, values, mask = rollout
    per_row = [gae_of_one(real(r, m), real(v, m), gamma, lam) for r, v, m in zip(rewards, values, mask, strict=True)]
    advantages, returns = gae(tensor(rewards), tensor(values), torch.tensor(mask), gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, spread(per_row, mask))
    torch.testing.assert_close(returns, (spread(per_row, mask) + tensor(values)) * torch.tensor(mask))


@quick
@given(rollout=rollouts(), gamma=unit)
def test_reinforce_equals_a_plain_double_loop(rollout, gamma):
    rewards, values, mask = rollout
    to_go = [reward_to_go_of_one(real(r, m), gamma) for r, m in zip(rewards, mask, strict=True)]
    mean = statistics.fmean([g for row in to_go for g in row] or [0.0])
    advantages, returns = reinforce(tensor(rewards), tensor(values), torch.tensor(mask), gamma=gamma, lam=1.0)
    torch.testing.assert_close(returns, spread(to_go, mask))
    torch.testing.assert_close(advantages, spread([[g - mean for g in row] for row in to_go], mask))


@quick
@given(rollout=rollouts(), gamma=unit)
def test_mean_shortfall_equals_a_plain_double_loop(rollout, gamma):
    rewards, values, mask = rollout
    rows = [(reward_to_go_of_one(real(r, m), gamma), real(v, m)) for r, v, m in zip(rewards, values, mask, strict=True)]
    shortfalls = [g - v for to_go, row in rows for g, v in zip(to_go, row, strict=True)]
    given = tensor(rewards), tensor(values), torch.tensor(mask)
    expected = tensor(statistics.fmean(shortfalls or [0.0]))
    torch.testing.assert_close(mean_shortfall(*given, gamma=gamma), expected, rtol=1e-5, atol=1e-5)


@quick
@given(rollout=rollouts(), gamma=unit)
def test_mean_shortfall_in_two_processes_equals_one(rollout, gamma):
    tensors = list(map(tensor, rollout))

    def function(*tensors, reduce=None):
        return (mean_shortfall(*tensors, gamma=gamma, reduce=reduce),)

    for (part,) in in_processes(function, [[rows[:1] for rows in tensors], [rows[1:] for rows in tensors]]):
        torch.testing.assert_close(part, *function(*tensors), rtol=1e-5, atol=1e-5)


@quick
@given(rollout=rollouts(multiple_of=3))
def test_rloo_equals_a_plain_double_loop(rollout):
    rewards, values, mask = rollout
    totals = [sum(real(r, m)) for r, m in zip(rewards, mask, strict=True)]
    expected = []
    for i, row in enumerate(mask):
        first = i - i % 3
        others = [totals[j] for j in range(first, first + 3) if j != i and any(mask[j])]
        advantage = totals[i] - statistics.fmean(others) if others else 0.0
        expected.append([advantage * m for m in row])
    found, _ = rloo(tensor(rewards), tensor(values), torch.tensor(mask), gamma=1.0, lam=1.0, num_generations=3)
    torch.testing.assert_close(found, tensor(expected))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(rollout=rollouts(), at=st.integers(0, 6), junk=st.sampled_from([NAN, float("inf"), 1e30]))
def test_a_masked_column_changes_nothing(name, rollout, at, junk):
    """At the right it is padding, between tokens a hole."""
    rewards, values, mask = map(tensor, rollout)
    at = min(at, rewards.shape[1])

    def insert(rows, value):
        column = torch.full((len(rows), 1), value, dtype=rows.dtype)
        return torch.cat([rows[:, :at], column, rows[:, at:]], 1)

    plain = estimate(name, rewards, values, mask, gamma=0.9)
    wider = estimate(name, insert(rewards, junk), insert(values, junk), insert(mask, 0), gamma=0.9)
    torch.testing.assert_close(wider, tuple(insert(rows, 0) for rows in plain), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(rollout=rollouts())
def test_what_stands_in_masked_positions_is_never_read(name, rollout):
    rewards, values, mask = map(tensor, rollout)
    junk = [torch.where(mask.bool(), rows, NAN) for rows in (rewards, values)]
    torch.testing.assert_close(estimate(name, *junk, mask), estimate(name, rewards, values, mask), rtol=0, atol=0)


@quick
@given(rollout=rollouts(), gamma=unit)
def test_lambda_1_is_the_discounted_return_minus_the_value(rollout, gamma):
    rewards, values, mask = map(tensor, rollout)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=1.0)
    _, to_go = reinforce(rewards, values, mask, gamma=gamma, lam=1.0)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, (to_go - values) * mask)


@quick
@given(rollout=rollouts(holes=False), gamma=unit)
def test_lambda_0_is_the_one_step_error(rollout, gamma):
    rewards, values, mask = map(tensor, rollout)
    padded = torch.nn.functional.pad(values * mask, (0, 1))
    advantages, _ = gae(rewards, values, mask, gamma=gamma, lam=0.0)
    torch.testing.assert_close(advantages, (rewards + gamma * padded[:, 1:] - values) * mask)


@quick
@given(rollout=rollouts(), lam=unit, shift=st.floats(-5, 5))
def test_shifting_the_values_shifts_the_returns_by_what_is_not_yet_seen(rollout, lam, shift):
    """Undiscounted, a constant cancels in every error but the last: it remains as far as lambda forgets the end."""
    rewards, values, mask = map(tensor, rollout)
    tokens_after = (mask.flip(1).cumsum(1).flip(1) - 1).clamp(min=0)
    _, before = gae(rewards, values, mask, gamma=1.0, lam=lam)
    _, after = gae(rewards, values + shift, mask, gamma=1.0, lam=lam)
    torch.testing.assert_close(after - before, shift * (1 - lam**tokens_after) * mask)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(rollout=rollouts(), factor=st.floats(-3, 3))
def test_advantages_scale_with_the_rewards(name, rollout, factor):
    rewards, values, mask = map(tensor, rollout)
    expected = tuple(factor * rows for rows in estimate(name, rewards, values, mask))
    torch.testing.assert_close(estimate(name, factor * rewards, factor * values, mask), expected)


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
def test_values_have_no_effect_without_a_critic(name):
    torch.testing.assert_close(
        estimate(name, REWARDS, VALUES * 7, MASK), estimate(name, REWARDS, VALUES, MASK), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_better_completion_has_the_larger_advantage(name):
    rewards, zero = tensor([[0.0, 2.0], [0.0, -2.0]]), torch.zeros(2, 2)
    advantages, _ = estimate(name, rewards, zero, torch.ones(2, 2))
    assert (advantages[0] > 0).all()
    assert (advantages[1] < 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mask_type", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_type(name, mask_type):
    torch.testing.assert_close(
        estimate(name, REWARDS, VALUES, MASK.to(mask_type)), estimate(name, REWARDS, VALUES, MASK), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_summed_in_float32(name):
    ones = torch.ones(2, 1000, dtype=torch.bfloat16)  # bfloat16 cannot count beyond 256
    advantages, returns = estimate(name, ones, 0 * ones, ones, lam=1.0)
    assert advantages.dtype == returns.dtype == torch.float32
    assert returns[0, 0] == 1000


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_and_no_change_of_the_inputs(name):
    rewards, values = REWARDS.clone().requires_grad_(), VALUES.clone().requires_grad_()
    advantages, returns = estimate(name, rewards, values, MASK)
    assert not advantages.requires_grad
    assert not returns.requires_grad
    assert torch.equal(rewards.nan_to_num(), REWARDS.nan_to_num())
    assert torch.equal(values.nan_to_num(), VALUES.nan_to_num())


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_a_token(name):
    for found in estimate(name, REWARDS, VALUES, 0 * MASK):
        assert torch.equal(found, torch.zeros(2, 3, dtype=torch.float64))
    for found in estimate(name, *[torch.zeros(2, 0)] * 3):
        assert found.shape == (2, 0)


def test_rloo_does_not_compare_with_a_row_without_tokens():
    rewards = tensor([[4.0], [1.0], [100.0], [5.0], [100.0], [100.0]])
    mask = torch.tensor([[1], [1], [0], [1], [0], [0]])
    advantages, _ = rloo(rewards, rewards, mask, gamma=1.0, lam=1.0, num_generations=3)
    assert advantages.flatten().tolist() == [3.0, -3.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2,), (3, 2)])
def test_a_tensor_that_would_broadcast_is_refused(name, position, shape):
    tensors = [torch.ones(2, 3) for _ in range(3)]
    tensors[position] = torch.ones(shape)
    argument = ("rewards", "values", "mask")[position]
    with pytest.raises(ValueError, match=rf"must have one shape: .*{argument} \({', '.join(map(str, shape))}"):
        estimate(name, *tensors)


@pytest.mark.parametrize("name", NAMES)
def test_only_two_dimensions(name):
    with pytest.raises(ValueError, match=r"\(B, T\), got \(4,\)"):
        estimate(name, *[torch.ones(4)] * 3)


@pytest.mark.parametrize(
    ("gamma", "lam", "wrong"), [(1.1, 1, "gamma"), (-0.1, 1, "gamma"), (1, 1.1, "lam"), (1, NAN, "lam")]
)
def test_discounts_outside_their_range(gamma, lam, wrong):
    with pytest.raises(ValueError, match=rf"{wrong} must lie in \[0, 1\]"):
        gae(REWARDS, VALUES, MASK, gamma=gamma, lam=lam)


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
def test_a_lambda_without_effect_is_refused_unless_it_is_the_default(name):
    function = get_plugin("advantage", name)
    groups = {"num_generations": 2} if name == "rloo" else {}
    for lam in (0.95, 1.0):
        function(REWARDS, VALUES, MASK, gamma=1.0, lam=lam, **groups)
    with pytest.raises(ValueError, match=rf"'{name}' has no lambda, so lam=0.9 has no effect: .*'gae'"):
        function(REWARDS, VALUES, MASK, gamma=1.0, lam=0.9, **groups)


def test_what_rloo_cannot_use_is_refused():
    with pytest.raises(ValueError, match=r"set gamma to 1, got 0.9"):
        rloo(REWARDS, VALUES, MASK, gamma=0.9, lam=1.0, num_generations=2)
    with pytest.raises(ValueError, match=r"set num_generations to 2 or more, got 1"):
        rloo(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0, num_generations=1)
    with pytest.raises(ValueError, match=r"whole groups: 2 rows, but num_generations is 3"):
        rloo(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0, num_generations=3)


@quick
@given(rollout=rollouts())
def test_masked_mean_and_variance_equal_the_statistics_module(rollout):
    rows, _, mask = rollout
    kept = [real(row, m) for row, m in zip(rows, mask, strict=True)]
    values, mask = torch.where(torch.tensor(mask).bool(), tensor(rows), NAN), torch.tensor(mask)
    for function, reference in ((masked_mean, statistics.fmean), (masked_var, statistics.pvariance)):
        expected = reference([x for row in kept for x in row] or [0.0])
        assert function(values, mask).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        by_row = [reference(row or [0.0]) for row in kept]
        assert function(values, mask, dim=1).tolist() == pytest.approx(by_row, rel=1e-9, abs=1e-12)
        assert torch.equal(function(values.T, mask.T, dim=0), function(values, mask, dim=1))


def test_masked_mean_gives_masked_positions_no_gradient():
    values = tensor([[1.0, 2.0, NAN]]).requires_grad_()
    masked_mean(values, torch.tensor([[1, 1, 0]])).backward()
    assert values.grad.tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("function", [masked_mean, masked_var, whiten])
def test_statistics_refuse_two_shapes(function):
    with pytest.raises(ValueError, match=r"values \(2, 3\), mask \(2, 1\)"):
        function(torch.ones(2, 3), torch.ones(2, 1))


def test_whiten_worked_out_by_hand():
    # 1, 2, 3 and 6 have the mean 3 and the variance (4 + 1 + 0 + 9) / 4 = 3.5.
    values, mask = tensor([[1.0, 2.0, NAN], [3.0, 6.0, NAN]]), torch.tensor([[1, 1, 0], [1, 1, 0]])
    expected = tensor([[-2.0, -1.0, 0.0], [0.0, 3.0, 0.0]]) / 3.5**0.5
    torch.testing.assert_close(whiten(values, mask), expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(whiten(values, mask, shift_mean=False), expected + 3 * mask, rtol=0, atol=1e-8)


@quick
@given(rollout=rollouts(), scale=st.floats(0.5, 4), shift=st.floats(-10, 10))
def test_whitening_takes_out_scale_and_shift_but_not_the_sign(rollout, scale, shift):
    values, _, mask = map(tensor, rollout)
    assume(masked_var(values, mask) > 0.01)  # else the 1e-8 beside the variance shows
    whitened = whiten(values, mask)
    torch.testing.assert_close(whiten(scale * values + shift, mask), whitened, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whiten(shift - scale * values, mask), -whitened, rtol=1e-5, atol=1e-5)
    assert not whitened[mask == 0].any()


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("constant", [0.0, 0.1, -3e6])
@pytest.mark.parametrize("count", [0, 1, 999])
def test_whitening_what_does_not_vary(shift_mean, constant, count):
    values = torch.full((1, 1000), constant)
    mask = torch.arange(1000)[None] < count
    expected = torch.where(mask, 0.0 if shift_mean else constant, 0.0)
    torch.testing.assert_close(whiten(values, mask, shift_mean=shift_mean), expected, rtol=1e-6, atol=1e-6)


def in_processes(function, parts):
    """Call `function(*part, reduce=...)` for all parts at once, where `reduce` waits for the others and sums."""
    barrier, board = threading.Barrier(len(parts), timeout=20), {}

    def one(rank):
        def reduce(local):
            board[rank] = local
            barrier.wait()
            total = sum(board[other] for other in range(len(parts)))
            barrier.wait()  # nobody writes the next one before all have read
            return total

        return function(*parts[rank], reduce=reduce)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(one, range(len(parts))))


@pytest.mark.parametrize("shift_mean", [True, False])
@quick
@given(rollout=rollouts(), at=st.integers(0, 4))
def test_whitening_in_two_processes_equals_one(shift_mean, rollout, at):
    """Also where one process has nothing but padding, or no rows at all."""
    values, _, mask = map(tensor, rollout)

    def function(values, mask, reduce=None):
        return whiten(values, mask, shift_mean=shift_mean, reduce=reduce)

    parts = in_processes(function, [(values[:at], mask[:at]), (values[at:], mask[at:])])
    torch.testing.assert_close(torch.cat(parts), function(values, mask), rtol=1e-6, atol=1e-6)


def test_whitening_each_process_by_itself_would_differ():
    values, mask = tensor([[1.0, 2.0], [10.0, 20.0]]), torch.ones(2, 2)
    apart = torch.cat([whiten(values[:1], mask[:1]), whiten(values[1:], mask[1:])])
    assert (apart - whiten(values, mask)).abs().max() > 0.5


@quick
@given(rollout=rollouts(), gamma=unit)
def test_reinforce_in_two_processes_equals_one(rollout, gamma):
    tensors = list(map(tensor, rollout))

    def function(*tensors, reduce=None):
        return reinforce(*tensors, gamma=gamma, lam=1.0, reduce=reduce)

    parts = in_processes(function, [[rows[:1] for rows in tensors], [rows[1:] for rows in tensors]])
    together = tuple(torch.cat(halves) for halves in zip(*parts, strict=True))
    torch.testing.assert_close(together, function(*tensors))
