"""Tokens drawn with one random number a row: as likely as those of `torch.multinomial`, which is there for the rest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForCausalLM

from rlhf_ext import generation_on_cpu
from rlhf_ext.generation_on_cpu import fast_on_cpu

LARGEST = 1 - 2**-24  # of the numbers that `torch.rand` draws
TINY = torch.finfo(torch.float32).tiny


@pytest.fixture(scope="module")
def model(model_name):
    return AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()


@pytest.fixture
def draw(model):
    with fast_on_cpu(model):
        yield torch.multinomial


def test_every_token_is_as_likely_as_it_shall_be(draw):
    torch.manual_seed(0)
    rows = torch.tensor([[0.5, 0.0, 0.3, 0.15, 0.05], [0.0, 0.1, 0.1, 0.8, 0.0]])
    drawn = torch.cat([draw(rows, num_samples=1) for _ in range(5000)], dim=1)
    for tokens, row in zip(drawn, rows, strict=True):
        counts = torch.bincount(tokens, minlength=5)
        assert not counts[row == 0].any()
        assert stats.chisquare(counts[row > 0], 5000 * row[row > 0].double() / row.double().sum()).pvalue > 0.01


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (0.2499, 1), (0.25, 3), (0.74, 3), (0.75, 4), (LARGEST, 4)])
def test_by_hand(draw, monkeypatch, number, token):
    monkeypatch.setattr(torch, "rand_like", lambda totals: torch.full_like(totals, number))
    for scale in (1, 2, 0.5):  # what is cumulated need not end at 1
        row = scale * torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
        assert draw(row, num_samples=1).tolist() == [[token]]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40).filter(any), st.sampled_from([0.0, 0.5, LARGEST]))
@settings(deadline=None)
def test_no_impossible_token_is_drawn(probabilities, number):
    """Rounding cannot lead beyond the last possible one."""
    row = torch.tensor([probabilities])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda totals: torch.full_like(totals, number))
        drawn = generation_on_cpu._inverse_transform(row)
    assert (drawn is None and row.sum() <= 2 * TINY) or row[0, drawn.item()] > 0


@pytest.mark.parametrize("total", [TINY, TINY / 2, 1e-45])
def test_rows_too_small_to_divide_are_left_to_torch(draw, total):
    """A number just below 1, times such a total, is the total."""
    assert generation_on_cpu._inverse_transform(torch.tensor([[0.0, total, 0.0]])) is None
    assert draw(torch.tensor([[0.0, total, 0.0]]), num_samples=1).item() == 1


def test_rows_are_drawn_apart(draw):
    tokens = draw(torch.full((64, 1000), 1e-3), num_samples=1)
    assert tokens.shape == (64, 1) and len(tokens.unique()) > 32


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 0.0])
def test_what_is_no_probability_is_refused_as_ever(draw, wrong):
    rows = torch.tensor([[0.5, 0.5], [wrong, 0.0]])
    original = draw.args[0]
    with pytest.raises(RuntimeError) as theirs:
        original(rows, num_samples=1)
    with pytest.raises(RuntimeError) as ours:
        draw(rows, num_samples=1)
    assert ours.value.args == theirs.value.args


@pytest.mark.parametrize("options", [{"num_samples": 3}, {"num_samples": 1, "generator": torch.Generator()}])
def test_all_else_is_drawn_by_torch(draw, options):
    row = torch.tensor([[0.2, 0.3, 0.5]])
    torch.manual_seed(0)
    found = draw(row, **options)
    torch.manual_seed(0)
    if "generator" in options:
        options["generator"] = torch.Generator()
    assert torch.equal(found, draw.args[0](row, **options))


def test_transformers_draws_so_and_torch_as_ever_afterwards(model, monkeypatch):
    drawn, original = [], torch.multinomial
    inverse_transform = generation_on_cpu._inverse_transform

    def noted(probabilities):
        drawn.append(inverse_transform(probabilities))
        return drawn[-1]

    monkeypatch.setattr(generation_on_cpu, "_inverse_transform", noted)
    prompt = torch.tensor([[5, 6, 7]])
    with fast_on_cpu(model):
        written = model.generate(prompt, do_sample=True, max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    assert written[0, 3:].tolist() == [tokens.item() for tokens in drawn]
    with pytest.raises(ConnectionError), fast_on_cpu(model):
        raise ConnectionError
    assert torch.multinomial is original
