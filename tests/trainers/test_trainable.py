"""A model with nothing to train is refused, by every trainer."""

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
