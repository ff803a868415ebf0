"""The benchmark of generation runs at a tiny size, and each side draws and multiplies in its way."""

import json
import sys

import torch

from rlhf_ext import packed_weights
from rlhf_ext.demo import model_path


def test_each_side_generates_in_its_way(monkeypatch, capsys):
    import generation_on_cpu

    seeds, multinomial, packed = {}, torch.multinomial, packed_weights._Packed
    packings = []

    def noted(*args, **kwargs):
        seeds[torch.initial_seed()] = seeds.get(torch.initial_seed(), 0) + 1
        return multinomial(*args, **kwargs)

    monkeypatch.setattr(torch, "multinomial", noted)
    monkeypatch.setattr(packed_weights, "_Packed", lambda layer: (packings.append(layer), packed(layer))[1])
    options = ["--model", model_path(), "--rounds", "2", "--new_tokens", "1"]
    monkeypatch.setattr(sys, "argv", ["generation_on_cpu.py", *options])
    generation_on_cpu.main()
    assert seeds == {0: 2, 1: 2, 2: 2}  # a token with each seed and in each type, by one of the sides alone
    result = json.loads(capsys.readouterr().out)
    for dtype in ("torch.bfloat16", "torch.float32"):
        assert list(result[dtype]) == list(generation_on_cpu.WAYS)
        assert all(seconds["median"] > 0 for seconds in result[dtype].values())
    # The LM head, by one of the sides alone, in each of the types that the processor has such products for.
    assert len(packings) == 3 * sum(map(packed_weights._has_packed_products, (torch.bfloat16, torch.float32)))
