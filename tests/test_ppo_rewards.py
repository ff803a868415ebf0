"""Rewards of tokens, by hand and by properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ext.ppo_rewards import distinct_n, ended_by_itself, token_rewards


def test_token_rewards_by_hand():
    """The score falls on the last token that the policy wrote, after a tool's answer too; a row of padding has none."""
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    kl = torch.tensor([[0.1, 0.2, 0.3], [1.0, float("nan"), float("nan")], [1.0, 2.0, -3.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0]])
    rewards = token_rewards(scores, kl, mask, kl_coef=0.5)
    expected = torch.tensor([[-0.05, -0.10, 0.85], [1.5, 0.0, 0.0], [-0.5, 0.0, 4.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(rewards, expected)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.floats(0, 2), st.integers(0, 3))
def test_rewards_of_a_row_sum_to_the_score_minus_the_kl_whatever_the_padding(lengths, coef, padding):
    torch.manual_seed(len(lengths))
    width = max(lengths) + padding
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    kl, scores = torch.randn(len(lengths), width), torch.randn(len(lengths))
    rewards = token_rewards(scores, kl, mask, kl_coef=coef)
    for row, length in enumerate(lengths):
        expected = scores[row] - coef * kl[row, :length].sum() if length else torch.tensor(0.0)
        torch.testing.assert_close(rewards[row].sum(), expected, rtol=1e-4, atol=1e-4)
        assert not rewards[row, length:].any()


def test_ended_by_itself():
    ids = torch.tensor([[4, 2, 0], [4, 5, 6], [4, 5, 2], [4, 0, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]])
    # The last one has no stop token, but is short: a stop string, or a tool, ended it.
    assert ended_by_itself(ids, mask, torch.tensor([2]), 3).tolist() == [True, False, True, True]


@pytest.mark.parametrize(("n", "expected"), [(1, 3 / 7), (2, 2 / 4), (3, 2 / 2), (4, 1.0), (5, 0.0)])
def test_distinct_n_by_hand(n, expected):
    ids = torch.tensor([[1, 2, 1, 2], [1, 2, 3, 9], [7, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    # 1-grams: 1 2 1 2 1 2 7, of which 1 2 7 differ; 2-grams: 12 21 12 12.
    assert distinct_n(ids, mask, n) == pytest.approx(expected)
