"""The benchmark of generation runs at a tiny size, and its two sides draw in the two ways."""

import json
import sys

import torch

from rlhf_ext.demo import model_path


def test_each_side_draws_in_its_way(monkeypatch, capsys):
    import generation_on_cpu

    seeds, multinomial = {}, torch.multinomial

    def noted(*args, **kwargs):
        seeds[torch.initial_seed()] = seeds.get(torch.initial_seed(), 0) + 1
        return multinomial(*args, **kwargs)

    monkeypatch.setattr(torch, "multinomial", noted)
    options = ["--model", model_path(), "--rounds", "2", "--new_tokens", "1"]
    monkeypatch.setattr(sys, "argv", ["generation_on_cpu.py", *options])
    generation_on_cpu.main()
    assert seeds == {0: 2, 1: 2, 2: 2}  # a token with each seed and in each type, by one of the two sides alone
    result = json.loads(capsys.readouterr().out)
    for dtype in ("torch.bfloat16", "torch.float32"):
        assert set(result[dtype]) == {"torch.multinomial", "one number a text"}
        assert all(seconds["median"] > 0 for seconds in result[dtype].values())
