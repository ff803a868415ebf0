"""A reward model that is no model: an adapter and a head on the policy's own frozen base."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ..adapters import LinearHead, active_adapter, add_reward_adapter, require_lora, tuner_layers
from .layers import cast_inputs
from .loading import load_tokenizer
from .model import RewardModel
from .pooling import classification_module
from .settings import RewardModelSettings


class RewardAdapter:
    """A reward function for `PPOTrainer`: the scores of `RewardModel.from_pretrained(path)` without a second base.

    Args:
        path: A folder that `RewardTrainer` wrote with a LoRA adapter, trained from the policy's base.
        name: What to call the adapter in the policy.
        trust_remote_code: Allow code that comes with the model.
    """

    __name__ = "reward_adapter"  # in the metrics

    def __init__(self, path: str, name: str = "reward", *, trust_remote_code: bool = False) -> None:
        self.path, self.name, self.trust_remote_code = path, name, trust_remote_code
        self.reward_model: RewardModel | None = None

    def attach(self, policy: nn.Module) -> None:
        """Add the adapter to the policy. The trainer calls this once it has the policy.

        Raises:
            ValueError: The policy is no LoRA adapter, or this adapter does not fit its base.
        """
        policy = require_lora(policy, "reward_adapter")
        head = add_reward_adapter(policy, self.path, self.name)
        settings = replace(RewardModelSettings.load(self.path), score_offset=0.0)  # it is in the head's bias
        tokenizer = load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)
        model = _classifier_on(policy, head, trust_remote_code=self.trust_remote_code)
        self.reward_model = RewardModel(model, tokenizer, settings=settings)
        self._layers = tuner_layers(policy)

    def __call__(self, **kwargs: Any) -> list[float]:
        """Return the scores of completions, as a reward function of TRL's trainers does.

        Raises:
            RuntimeError: No trainer has attached it.
        """
        if self.reward_model is None:
            raise RuntimeError("A RewardAdapter works with PPOTrainer only, which attaches it to the policy.")
        with active_adapter(self._layers, self.name):
            return self.reward_model(**kwargs)


def _classifier_on(policy: PeftModel, head: LinearHead, *, trust_remote_code: bool) -> PreTrainedModel:
    """Return a sequence-classification model whose trunk is the policy's."""
    base = policy.get_base_model()
    config = deepcopy(base.config)
    config.num_labels = 1
    if hasattr(config, "quantization_config"):  # the trunk that is put in is quantized already
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    setattr(model, model.base_model_prefix, base.base_model)
    for name in ("is_loaded_in_8bit", "is_loaded_in_4bit"):  # upon which scores are made text by text
        setattr(model, name, getattr(base, name, False))
    linear = nn.Linear(head.weight.size(1), 1).requires_grad_(False)
    linear.weight.data, linear.bias.data = head.weight.to(policy.device), head.bias.to(policy.device)
    cast_inputs(linear)
    name = "score" if hasattr(classification_module(model), "score") else "classifier"
    setattr(model, name, linear)
    return model.eval()
