"""The GPU benchmark: a model, rows of the right length, recipes with their configuration, memory from their reports."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def benchmark():
    import gpu_configs

    return gpu_configs


def test_model_and_rows_fit_each_other(benchmark, tmp_path):
    shape = benchmark.SHAPE | benchmark.TINY
    benchmark.write_checkpoint(tmp_path / "model", shape)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    layers = model.model.layers
    assert len(layers) == 2 and (layers[0].mlp.up_proj.weight == layers[1].mlp.up_proj.weight).all()
    assert 0.015 < layers[0].mlp.up_proj.weight.float().std() < 0.025
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    files = benchmark.write_data(tmp_path, shape["vocab_size"], 64)
    row = json.loads(files["dpo"].read_text().splitlines()[0])
    assert len(tokenizer(row["prompt"] + row["chosen"]).input_ids) == 63  # and the end token
    assert len(tokenizer(row["prompt"]).input_ids) == 32


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo", "ppo"])
def test_recipes_run_with_their_configuration(kind, benchmark, tmp_path):
    options = {"bits": 4, "steps": 2, "output": tmp_path, "new_tokens": 16, "length": 64, "cpu": False}
    python, recipe, *rest = benchmark.command(SimpleNamespace(**options), kind, Path("rows"), Path("model"))
    assert python == sys.executable and Path(recipe).is_file() and Path(recipe).stem == kind
    said = dict(zip(rest[::2], rest[1::2], strict=True))
    assert Path(said["--config"]).is_file() and said["--config"].endswith(f"{kind}_7b_lora_4bit.yaml")
    adapter = str(tmp_path / "reward-4bit") if kind == "ppo" else None
    assert said.get("--reward_adapter") == said.get("--critic_path") == adapter
    assert said.get("--max_length") == (None if kind == "ppo" else "64")


def test_memory_is_read_from_the_report(benchmark, tmp_path):
    folder = tmp_path / "dpo-8bit"
    folder.mkdir()
    (folder / "report.html").write_text("<td>21.27 GiB on the GPU (22.87 reserved), 3.00 GiB of main memory</td>")
    (folder / "all_results.json").write_text('{"train_runtime": 10.0}')
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    assert benchmark.row(folder) == "| dpo-8bit | 21.27 | 22.87 | 2.50 |"
