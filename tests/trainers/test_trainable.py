"""A model with nothing to train, or with an adapter that TRL would not find, is refused."""

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ext import DPOConfig, DPOTrainer, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer


def length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


TRAINERS = {
    "dpo": (DPOTrainer, DPOConfig, {}),
    "ppo": (PPOTrainer, PPOConfig, {"reward_funcs": length}),  # whose critic would learn
    "reward": (RewardTrainer, RewardConfig, {}),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_adapter_that_was_not_loaded_to_be_trained(name, cpu_options, model_name, preferences, tmp_path):
    trainer, config, options = TRAINERS[name]
    kind, task_type = AutoModelForCausalLM, "CAUSAL_LM"
    if name == "reward":
        kind, task_type = AutoModelForSequenceClassification, "SEQ_CLS"
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type=task_type)
    get_peft_model(kind.from_pretrained(model_name, num_labels=1), lora).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(kind.from_pretrained(model_name, num_labels=1), tmp_path)
    with pytest.raises(
        ValueError, match=r"every weight of the model is frozen.* is_trainable=True, or pass a peft_con"
    ):
        trainer(model, args=config(**cpu_options), train_dataset=preferences, **options)


@pytest.mark.parametrize("name", ["dpo", "ppo"])
def test_adapter_that_trl_would_not_find(name, cpu_options, model_name, preferences):
    """TRL copies the one called "default" for the reference, and ends in a KeyError."""
    trainer, config, options = TRAINERS[name]
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), lora, adapter_name="mine")
    with pytest.raises(ValueError, match="adapter is called 'mine', and TRL looks for one called 'default': load it"):
        trainer(model, args=config(**cpu_options), train_dataset=preferences, **options)
