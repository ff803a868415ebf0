"""What critics are made of: a value head, alone or on a model of its own; loaded, and spread over processes."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftConfig
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from .adapters import LinearHead, head_of_reward_model
from .completion_pass import positions
from .reward_model.pooling import classification_module


class ValueHead(nn.Module):
    """A linear layer from hidden states (..., d) to values (...), in float32; it starts at 0, or as a reward head."""

    def __init__(self, hidden_size: int, start: LinearHead | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))
        if start is None:
            return
        if start.weight.shape != self.weight.shape:
            raise ValueError(
                f"The reward head takes hidden states of size {start.weight.size(1)}, the critic has {hidden_size}."
            )
        with torch.no_grad():
            self.weight.copy_(start.weight)
            self.bias.copy_(start.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return one value per hidden state."""
        with torch.autocast(hidden.device.type, enabled=False):
            # The last layers of a model that is split over GPUs are on another one.
            return hidden.to(self.weight.device, self.weight.dtype) @ self.weight[0] + self.bias


class CriticModel(nn.Module):
    """A backbone with a value head."""

    def __init__(self, backbone: nn.Module, head: ValueHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, length: int) -> Tensor:
        """Return the values of the last `length` tokens, (B, length), for ids and mask (B, L)."""
        counted = positions(self.backbone, attention_mask)
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **counted)
        return self.head(output.last_hidden_state[:, -length - 1 : -1])


def hidden_width(model: nn.Module) -> int:
    """Return the size of a model's last hidden states, which some models narrow, such as OPT-350m: what its head takes.

    Args:
        model: A language model, or one without a head, of which the configuration tells.
    """
    width = getattr(model.get_output_embeddings(), "in_features", None)
    config = model.config.get_text_config()
    return width or getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def distributed(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return the module with its gradient averaged over processes. FSDP2 shards it, apart from the policy."""
    if not accelerator.is_fsdp2:
        return accelerator.prepare_model(module)
    for tensor in module.state_dict().values():  # with cpu_ram_efficient_loading only the first process has loaded any
        torch.distributed.broadcast(tensor, src=0)
    plugin = accelerator.state.fsdp_plugin
    mixed = {"mp_policy": plugin.mixed_precision_policy} if plugin.mixed_precision_policy else {}
    if isinstance(module, CriticModel):
        names = module.backbone._no_split_modules or ()
        layers = [child for child in module.backbone.modules() if type(child).__name__ in names]
        for part in (*layers, module.backbone):
            fully_shard(part, **mixed)
    return fully_shard(module)


def load_critic_model(path: str, **loading: Any) -> tuple[nn.Module, LinearHead | None]:
    """Load a model without its head; and the head, if it is a reward model.

    Args:
        path: The model's folder or name.
        loading: `revision` and `trust_remote_code`, for `from_pretrained`.

    Raises:
        ValueError: Its weights are quantized, or it is an adapter on such a base.
    """
    is_adapter = Path(path, "adapter_config.json").is_file()
    config = _config_of_base(path) if is_adapter else AutoConfig.from_pretrained(path, **loading)
    architectures = getattr(config, "architectures", None) or []
    if not is_adapter and not any(name.endswith("ForSequenceClassification") for name in architectures):
        model = AutoModel.from_pretrained(path, dtype=torch.float32, **loading)
        _refuse_quantized(model.config, path)  # only now: some kinds are unpacked in loading
        return model, None
    _refuse_quantized(config, path)
    from .reward_model import RewardModel

    reward_model = RewardModel.from_pretrained(
        path, quantization_config=False, dtype=torch.float32, device="cpu", **loading
    )
    head = head_of_reward_model(reward_model)
    if is_adapter:
        reward_model.merge()
    return classification_module(reward_model.model).base_model, head


def _config_of_base(path: str) -> PretrainedConfig | None:
    """Return the configuration of an adapter's base; None without one, of which `RewardModel` says more."""
    try:
        return AutoConfig.from_pretrained(PeftConfig.from_pretrained(path).base_model_name_or_path)
    except (OSError, ValueError):
        return None


def _refuse_quantized(config: PretrainedConfig | None, path: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{path}: its weights are quantized, and cannot learn. Use critic='adapter', or name an unquantized model "
            "as critic_path."
        )


def check_tokens_are_those_of(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Refuse a model to which the policy's token ids mean other tokens; one without a tokenizer cannot be asked.

    Raises:
        ValueError: It has another vocabulary.
    """
    try:
        own = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return
    if own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"{path} has another vocabulary than the policy: it is no critic for it. Use one of its family."
        )


@torch.no_grad()
def check_reads_from_left_to_right(backbone: nn.Module, path: str) -> None:
    """Refuse a model that sees the tokens to come: a value must not know the token that it is the baseline of.

    Raises:
        ValueError: The first hidden state depends on the second token.
    """
    first, second = backbone.eval()(input_ids=torch.tensor([[2, 3], [2, 4]])).last_hidden_state[:, 0]
    if not torch.allclose(first, second, atol=1e-5):
        raise ValueError(
            f"{path} is an encoder, and its values would know the tokens to come: use a decoder, or critic='head'."
        )
