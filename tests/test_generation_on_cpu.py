"""Tokens drawn with one random number a row, as likely as those of `torch.multinomial`, and packed weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import nn
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


def passes(layer, *inputs):
    """What the layer gives for each input while the weights of any layer that is large enough are packed."""
    with torch.no_grad(), fast_on_cpu(layer):
        return [layer(hidden) for hidden in inputs], getattr(vars(layer).get("forward"), "weight", None) is not None


def large_layer(dtype=torch.float32, kind=nn.Linear, size=(512, 520)):
    torch.manual_seed(0)
    layer = kind(*size, dtype=dtype)
    layer.get_output_embeddings = lambda: None
    return layer


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (16, 1), (2, 7)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_products_with_packed_weights(dtype, tolerance, shape):
    layer = large_layer(dtype)
    hidden = torch.randn(*shape, 512, dtype=dtype)
    wide = torch.randn(*shape, 1024, dtype=dtype)[..., ::2]  # not in one block
    results, is_packed = passes(layer, hidden, hidden, wide)
    assert is_packed
    for rows, found in zip((hidden, hidden, wide), results, strict=True):
        exact = rows.double() @ layer.weight.double().T + layer.bias.double()
        assert found.dtype == dtype and (found - exact).abs().max() < tolerance


def test_packed_weights_are_those_of_now_and_gone_afterwards():
    """Weights learn between two generations."""
    layer = large_layer()
    hidden = torch.randn(2, 512)
    before, _ = passes(layer, hidden, hidden)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.bias.mul_(2)
    after, is_packed = passes(layer, hidden, hidden)
    assert is_packed and torch.allclose(after[1], 2 * before[1], atol=1e-5)
    with pytest.raises(ConnectionError), fast_on_cpu(layer):
        raise ConnectionError
    assert "forward" not in vars(layer)
    layer(hidden).sum().backward()
    assert layer.weight.grad is not None


def test_weights_are_packed_once():
    layer = large_layer()
    with torch.no_grad(), fast_on_cpu(layer):
        packed = [(layer(torch.randn(2, 512)), layer.forward.weight)[1] for _ in range(3)]
    assert packed[0] is None and packed[1] is packed[2] is not None


def test_one_pass_packs_nothing():
    """As a model that is asked for the next token alone makes; packing would take longer than it saves."""
    layer = large_layer()
    assert not passes(layer, torch.randn(1, 512))[1]


class HasOwnWay(nn.Linear):
    pass


@pytest.mark.parametrize(
    "layer",
    [
        large_layer(size=(512, 511)),
        large_layer(kind=HasOwnWay),
        large_layer(torch.float64),
        large_layer().to("meta"),
    ],
    ids=["small", "other kind", "float64", "not on a CPU"],
)
def test_what_is_not_packed(layer):
    hidden = torch.randn(1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    assert not passes(layer, hidden, hidden)[1]


def test_layer_with_a_way_of_its_own_keeps_it():
    """As accelerate gives layers that it moves between devices."""
    layer = large_layer()
    layer.forward = own = lambda hidden: hidden + 1
    found, _ = passes(layer, torch.zeros(2), torch.zeros(2))
    assert all(torch.equal(result, torch.ones(2)) for result in found) and vars(layer)["forward"] is own


def test_weights_beyond_the_limit_are_not_packed(monkeypatch):
    layer = large_layer()
    hidden = torch.randn(1, 512)
    monkeypatch.setattr(generation_on_cpu, "PACKED_SIZES", (2**18, layer.weight.numel()))
    assert passes(layer, hidden, hidden)[1]
    monkeypatch.setattr(generation_on_cpu, "PACKED_SIZES", (2**18, layer.weight.numel() - 1))
    assert not passes(layer, hidden, hidden)[1]


def test_gradients_and_other_types_come_through():
    """Autocast multiplies in bfloat16 what the weights would give in float32."""
    layer = large_layer()
    hidden = torch.randn(2, 512)
    with fast_on_cpu(layer):
        layer(hidden)
        layer(hidden).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(hidden).dtype == torch.bfloat16
        with torch.no_grad():
            layer(hidden)
        assert layer.forward.weight is not None
        layer.to(torch.bfloat16)  # as TRL does for continuous batching
        with torch.no_grad():
            assert layer(hidden.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(layer.weight.grad.float(), hidden.sum(0).expand(520, -1), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("adapter", ["none", "apart", "merged"])
def test_model_writes_the_same_with_packed_weights(adapter, model_name, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
    if adapter != "none":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    options = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24, "pad_token_id": 0}
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    expected = model.generate(input_ids=prompt, **options)
    if adapter == "merged":
        model.merge_adapter()
    packed = []
    original = generation_on_cpu._Packed.__init__
    monkeypatch.setattr(generation_on_cpu, "PACKED_SIZES", (2**15, 2**30))
    monkeypatch.setattr(
        generation_on_cpu._Packed, "__init__", lambda found, layer: (packed.append(found), original(found, layer))[1]
    )
    with fast_on_cpu(model):
        assert torch.equal(model.generate(input_ids=prompt, **options), expected)
    # Seven matrices in each of three layers and the LM head; an adapter's own are too small.
    assert len(packed) == 22 and all(found.weight is not None for found in packed)
