"""Products with packed weights are those of the layers themselves, and everything else is left to these."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from rlhf_ext import packed_weights
from rlhf_ext.packed_weights import PASSES_BEFORE_PACKING

CAN_MULTIPLY = packed_weights._has_packed_products


def passes(layer, *inputs):
    """What the layer gives for each input, the last of them with packed weights; and whether they were packed."""
    with torch.no_grad(), packed_weights.packed_weights(layer):
        for _ in range(PASSES_BEFORE_PACKING):
            layer(inputs[0])
        return [layer(rows) for rows in inputs], getattr(vars(layer).get("forward"), "weight", None) is not None


def large_layer(dtype=torch.float32, kind=nn.Linear, size=(512, 520), **options):
    torch.manual_seed(0)
    return kind(*size, dtype=dtype, **options)


@pytest.mark.parametrize("shape", [(2, 1), (16, 1), (2, 7), (700,), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [True, False])
def test_products(dtype, tolerance, bias, shape):
    layer = large_layer(dtype, bias=bias)
    rows = torch.randn(*shape, 512, dtype=dtype)
    wide = torch.randn(*shape, 1024, dtype=dtype)[..., ::2]  # not in one block
    results, is_packed = passes(layer, rows, wide)
    assert is_packed == (CAN_MULTIPLY(dtype) and (dtype == torch.bfloat16 or shape != (1, 1)))
    for given, found in zip((rows, wide), results, strict=True):
        exact = given.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
        assert found.dtype == dtype and (found - exact).abs().max() < tolerance


needs_packing = pytest.mark.skipif(not CAN_MULTIPLY(torch.float32), reason="PyTorch was built without oneDNN")


@needs_packing
def test_packed_weights_are_those_of_now_and_gone_afterwards():
    """Weights learn between two generations."""
    layer = large_layer()
    rows = torch.randn(2, 512)
    before, _ = passes(layer, rows)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.bias.mul_(2)
    after, is_packed = passes(layer, rows)
    assert is_packed and torch.allclose(after[0], 2 * before[0], atol=1e-5)
    with pytest.raises(ConnectionError), packed_weights.packed_weights(layer):
        raise ConnectionError
    assert "forward" not in vars(layer)
    layer(rows).sum().backward()
    assert layer.weight.grad is not None


@needs_packing
def test_weights_are_packed_once_and_late():
    """A short text would take longer with them."""
    layer, found = large_layer(), []
    with torch.no_grad(), packed_weights.packed_weights(layer):
        for _ in range(PASSES_BEFORE_PACKING + 2):
            layer(torch.randn(2, 512))
            found.append(layer.forward.weight)
    assert found[:-2] == [None] * PASSES_BEFORE_PACKING and found[-2] is found[-1] is not None


class HasOwnWay(nn.Linear):
    pass


class OwnTensor(torch.Tensor):
    pass


def with_weight(layer, weight):
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def with_bias(layer, bias):
    layer.bias = nn.Parameter(bias)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        large_layer(size=(512, 511)),
        large_layer(kind=HasOwnWay),
        large_layer(torch.float64),
        large_layer().to("meta"),
        with_weight(large_layer(), torch.randn(520, 512).as_subclass(OwnTensor)),
        with_bias(large_layer(), torch.randn(1040)[::2]),
        with_bias(large_layer(), torch.randn(1)),
    ],
    ids=["small", "other kind", "float64", "not on a CPU", "other tensor", "strided bias", "one bias"],
)
def test_what_is_not_packed(layer):
    rows = torch.randn(2, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    expected = layer(rows)
    (found,), _ = passes(layer, rows)
    assert rows.is_meta or torch.equal(found, expected)
    with packed_weights.packed_weights(layer):
        assert "forward" not in vars(layer)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_weights_are_not_packed():
    layer = large_layer(bias=False)
    with_weight(layer, layer.weight.detach().to_sparse_csr())
    assert not passes(layer, torch.randn(2, 512))[1]


@pytest.mark.parametrize(
    ("owner", "name", "value", "dtype"),
    [
        (torch.backends.mkldnn, "is_available", lambda: False, torch.float32),
        (torch.backends.mkldnn, "enabled", False, torch.float32),
        (torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, torch.bfloat16),
    ],
)
def test_machine_without_such_products(owner, name, value, dtype, monkeypatch):
    monkeypatch.setattr(owner, name, value)
    assert not passes(large_layer(dtype), torch.randn(2, 512, dtype=dtype))[1]


def test_compiled_model_is_left_alone():
    """Dynamo would compile it again for every new forward, until it gives up."""
    model = nn.Sequential(large_layer())
    model.compile(backend="eager")
    with packed_weights.packed_weights(model):
        assert "forward" not in vars(model[0])


def test_layer_with_a_way_of_its_own_keeps_it():
    """As accelerate gives layers that it moves between devices."""
    layer = large_layer()
    layer.forward = own = lambda rows: rows + 1
    (found,), _ = passes(layer, torch.zeros(2))
    assert torch.equal(found, torch.ones(2)) and vars(layer)["forward"] is own


@needs_packing
def test_weights_beyond_the_limit_are_not_packed(monkeypatch):
    layer = large_layer()
    rows = torch.randn(2, 512)
    monkeypatch.setattr(packed_weights, "MAX_WEIGHTS_OF_ALL", layer.weight.numel())
    assert passes(layer, rows)[1]
    monkeypatch.setattr(packed_weights, "MAX_WEIGHTS_OF_ALL", layer.weight.numel() - 1)
    assert not passes(layer, rows)[1]


@needs_packing
def test_gradients_types_and_devices_come_through():
    """Once weights are packed. Autocast multiplies in bfloat16 what the weights would give in float32."""
    layer = large_layer()
    rows = torch.randn(2, 512)
    with packed_weights.packed_weights(layer):
        with torch.no_grad():
            for _ in range(PASSES_BEFORE_PACKING + 1):
                layer(rows)
        assert layer.forward.weight is not None
        layer(rows).sum().backward()
        gradient = layer.weight.grad.clone()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(rows).dtype == torch.bfloat16
        layer.to(torch.bfloat16)  # as TRL does for continuous batching
        with torch.no_grad():
            assert layer(rows.bfloat16()).dtype == torch.bfloat16
            assert layer.to("meta", torch.float32)(rows.to("meta")).is_meta  # as accelerate moves models
    assert torch.allclose(gradient, rows.sum(0).expand(520, -1), atol=1e-5)


@pytest.mark.skipif(not CAN_MULTIPLY(torch.bfloat16), reason="this processor has no products in bfloat16")
def test_autocast_to_the_type_of_the_weights_changes_nothing():
    with torch.autocast("cpu", torch.bfloat16):
        assert passes(large_layer(torch.bfloat16), torch.randn(2, 512, dtype=torch.bfloat16))[1]


@needs_packing
@pytest.mark.parametrize("adapter", ["none", "apart", "merged"])
def test_model_writes_the_same(adapter, model_name, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
    if adapter != "none":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    options = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24, "pad_token_id": 0}
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    expected = model.generate(input_ids=prompt, **options)
    if adapter == "merged":
        model.merge_adapter()
    monkeypatch.setattr(packed_weights, "MIN_WEIGHTS_OF_A_MATRIX", 2**15)
    with packed_weights.packed_weights(model):
        written = model.generate(input_ids=prompt, **options)
        packed = [layer.forward for layer in model.modules() if "forward" in vars(layer)]
    assert torch.equal(written, expected)
    # Seven matrices in each of three layers and the LM head; an adapter's own are too small.
    assert len(packed) == 22 and all(found.weight is not None for found in packed)
    assert not any("forward" in vars(layer) for layer in model.modules())
