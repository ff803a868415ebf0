"""Two CPU processes learn what one does, each with all weights or with half of them under FSDP2."""

import runpy
from pathlib import Path

import forked
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
KINDS = ["head-full", "head-lora", "adapter-lora", "model-full", "model-lora"]


def two_processes(folder, config, *options):
    environment = forked.launched_environment(config, "--num_processes", "2", *options) | {"CUDA_VISIBLE_DEVICES": ""}
    for done in forked.run_together(2, HERE / "first_step.py", folder, environment=environment, timeout=280):
        assert "view tensor" not in done.stderr  # FSDP's warning about outputs whose gradient it might lose
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """First gradients of all kinds, computed by one process."""
    folder = tmp_path_factory.mktemp("one")
    first_step = runpy.run_path(str(HERE / "first_step.py"))
    for kind in first_step["KINDS"]:
        first_step["first_gradient"](*kind, str(folder))
    return folder


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    return two_processes(tmp_path_factory.mktemp("replicated"), "cpu.yaml")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return two_processes(tmp_path_factory.mktemp("sharded"), "fsdp2.yaml", "--mixed_precision", "no")


@pytest.mark.parametrize("engine", ["replicated", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_first_gradient_of_one(kind, engine, one, request):
    folder = request.getfixturevalue(engine)
    one, log_of_one, _ = torch.load(one / f"{kind}-1.pt")
    two, log_of_two, is_sharded = torch.load(folder / f"{kind}-2.pt")
    assert is_sharded == (engine == "sharded")
    assert one.keys() == two.keys() and any(name.startswith("critic module") for name in one)
    assert ("adapter" in kind) == any(".critic." in name for name in one)
    for name, gradient in one.items():
        torch.testing.assert_close(
            two[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert sum(gradient.abs().max() > 1e-3 for gradient in one.values()) > 10
    for name, value in log_of_one.items():
        assert log_of_two[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def check_checkpoint(folder, weights, model_name):
    """A plain policy and the critic beside it, with these weights."""
    head = load_file(folder / "critic/critic.safetensors")
    assert all(torch.equal(weight, weights[f"critic module.{name}"]) for name, weight in head.items())
    if (folder / "adapter_config.json").is_file():
        policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_name), folder, is_trainable=True)
        policy.load_adapter(folder / "critic", "critic", is_trainable=True)
    else:
        policy, problems = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(problems.values())
    for name, weight in policy.named_parameters():
        assert not weight.requires_grad or torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("kind", ["model-full", "adapter-lora"])
def test_sharded_run_goes_on_as_if_it_had_not_been_broken_and_back_to_its_best(kind, sharded, model_name):
    """Bit for bit from a checkpoint of FSDP2."""
    (unbroken, coef), (resumed, coef_of_resumed), (best, _) = torch.load(sharded / f"{kind}-loaded.pt")
    assert unbroken.keys() == resumed.keys() == best.keys() and coef == coef_of_resumed != 0.2
    assert all(torch.equal(resumed[name], weight) for name, weight in unbroken.items())
    folder = sharded / "whole" / kind
    check_checkpoint(folder / "checkpoint-2", unbroken, model_name)
    check_checkpoint(folder / "checkpoint-1", best, model_name)
