"""Policies: whole models and adapters, to train on and to write with."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl import ModelConfig, SFTConfig

from rlhf_ext import DPOConfig
from rlhf_ext.arguments import ArgumentError, RecipeArguments, parse_arguments
from rlhf_ext.policy_loading import is_adapter, load_policy, trainer_options


@pytest.fixture
def adapter(tmp_path, model_name, tokenizer):
    base = AutoModelForCausalLM.from_pretrained(model_name)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter"), adapted


def training_args(tmp_path):
    kwargs = {"dtype": "float32", "revision": "main", "attn_implementation": None}
    return SFTConfig(str(tmp_path / "run"), use_cpu=True, bf16=False, model_init_kwargs=kwargs)


def change(folder, **values):
    path = f"{folder}/adapter_config.json"
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | values, file)


def test_adapter_is_trained_on_with_its_weights(adapter, tmp_path):
    folder, adapted = adapter
    args = training_args(tmp_path)
    options = trainer_options(ModelConfig(folder, use_peft=True, lora_r=4, lora_alpha=8), args)
    assert set(options) == {"model"} and args.model_init_kwargs is None
    loaded = dict(options["model"].named_parameters())
    for name, weight in adapted.named_parameters():
        assert torch.equal(loaded[name].float(), weight.float())
        assert loaded[name].requires_grad == ("lora_" in name)


def test_dropout_is_that_of_the_new_run(adapter, tmp_path):
    change(adapter[0], lora_dropout=0.3)
    model = trainer_options(ModelConfig(adapter[0], lora_dropout=0.0), training_args(tmp_path))["model"]
    assert model.peft_config["default"].lora_dropout == 0
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p]


def test_whole_model_is_left_to_trl(model_name, tmp_path):
    args = training_args(tmp_path)
    options = trainer_options(ModelConfig(model_name, use_peft=True, lora_r=8), args)
    assert options["model"] == model_name and options["peft_config"].r == 8 and args.model_init_kwargs is not None
    assert not is_adapter(model_name)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lora_r", 8),
        ("lora_alpha", 16),
        ("use_dora", True),
        ("lora_target_modules", ["q_proj", "v_proj"]),
        ("lora_target_modules", "all-linear"),
        ("lora_target_parameters", ["mlp.experts.up"]),
        ("lora_modules_to_save", ["lm_head"]),
        ("lora_task_type", "SEQ_CLS"),
    ],
)
def test_options_that_the_adapter_contradicts(option, value, adapter, tmp_path):
    with pytest.raises(ArgumentError, match=rf"--{option} .* has no effect: .*adapter is an adapter with") as error:
        trainer_options(ModelConfig(adapter[0], use_peft=True, **{option: value}), training_args(tmp_path))
    assert "\n" not in str(error.value)


def test_default_of_trl_that_was_given_and_contradicts_the_adapter(adapter, tmp_path):
    types = (RecipeArguments, DPOConfig, ModelConfig)
    command = ["--model_name_or_path", adapter[0], "--use_peft", "--use_cpu", "--bf16", "false"]
    assert trainer_options(parse_arguments(types, {}, "runs/x", command)[2], training_args(tmp_path))
    _, _, model_args = parse_arguments(types, {}, "runs/x", [*command, "--lora_r", "16"])
    with pytest.raises(ArgumentError, match=r"--lora_r 16 has no effect: .*adapter is an adapter with 4"):
        trainer_options(model_args, training_args(tmp_path))


@pytest.mark.parametrize(
    ("made_with", "wanted"),
    [
        ("all-linear", "all-linear"),
        ("all-linear", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        (["v_proj", "q_proj"], ["q_proj", "v_proj"]),
        (["v_proj", "q_proj"], r".*\.[qv]_proj"),
    ],
)
@pytest.mark.parametrize("quantized", [False, True])
def test_target_modules_that_are_those_of_the_adapter(made_with, wanted, quantized, tmp_path, model_name):
    """As a configuration names them, which may be another way of saying the same."""
    config = LoraConfig(r=4, target_modules=made_with, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), config).save_pretrained(tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    model_args = ModelConfig(adapter, use_peft=True, lora_target_modules=wanted, load_in_8bit=quantized)
    assert trainer_options(model_args, training_args(tmp_path))["model"]


def test_revision_of_an_adapter_on_the_hub(tmp_path, model_name, monkeypatch):
    """A cache as the Hub's client leaves it, with a repository of two revisions."""
    repository = tmp_path / "models--me--adapter"
    (repository / "refs").mkdir(parents=True)
    for revision, commit, rank in (("main", "a" * 40, 4), ("v2", "b" * 40, 8)):
        (repository / "refs" / revision).write_text(commit)
        config = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), config)
        adapted.save_pretrained(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision, rank in (("main", 4), ("v2", 8)):
        options = trainer_options(ModelConfig("me/adapter", model_revision=revision), training_args(tmp_path))
        assert options["model"].peft_config["default"].r == rank


def test_policies_to_write_with(adapter, model_name):
    folder, adapted = adapter
    model, tokenizer = load_policy(folder)
    assert isinstance(model, PeftModel) and not model.training
    inputs = tokenizer("How do I", return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits.float(), adapted.eval()(**inputs).logits.float(), atol=1e-4)
        plain = load_policy(model_name, dtype="float32")[0]
        assert plain.dtype == torch.float32
        quantized = load_policy(model_name, load_in_8bit=True)[0]
        difference = (quantized(**inputs).logits - plain(**inputs).logits).abs().max()
        assert 0 < difference < 2


def test_what_cannot_be_loaded(adapter, tmp_path):
    folder, _ = adapter
    with pytest.raises(ArgumentError, match="nowhere: its tokenizer cannot be loaded"):
        load_policy(str(tmp_path / "nowhere"))
    change(folder, base_model_name_or_path=str(tmp_path / "moved"))
    with pytest.raises(ArgumentError, match=r"the base that the adapter names, .*moved, cannot be loaded"):
        load_policy(folder)
    change(folder, task_type="SEQ_CLS")
    with pytest.raises(ArgumentError, match="task_type='SEQ_CLS', and no language model's"):
        load_policy(folder)
