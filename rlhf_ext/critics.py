"""Where PPO's values come from: what a critic expected the rest of a completion to be worth, before each token.

The value of token t is read off the hidden state of the token before it, which is what the policy chose token t by. A
critic keeps its weights out of the policy, so that the saved policy is a plain model and vLLM finds the names it knows.

- `HeadCritic` reads the hidden states of the policy's own pass; policy and critic share one backward pass.
- `AdapterCritic` runs the policy's frozen base with an adapter of its own.
- `ModelCritic` runs a model of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate import Accelerator, PartialState
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from .adapters import (
    LinearHead,
    active_adapter,
    adapter_parameters,
    add_reward_adapter,
    as_pass_of,
    causal_lm_of,
    read_reward_head,
    require_lora,
    tuner_layers,
)
from .completion_pass import positions
from .critic_modules import (
    CriticModel,
    ValueHead,
    check_reads_from_left_to_right,
    check_tokens_are_those_of,
    distributed,
    hidden_width,
    load_critic_model,
)
from .dropout import disable_dropout
from .loading_options import loading_options

if TYPE_CHECKING:
    from .trainers.ppo_config import PPOConfig

WEIGHTS_FILE = "critic.safetensors"
ADAPTER = "critic"


class Critic(ABC):
    """One interface for the three critics.

    Attributes:
        module: The weights that lie outside the policy.
        shares_pass: Whether values come from the policy's own pass, and their gradient with the policy's.
    """

    module: nn.Module
    shares_pass: ClassVar[bool] = False

    def parameters(self) -> list[nn.Parameter]:
        """All weights that are the critic's own."""
        return list(self.module.parameters())

    @abstractmethod
    def values(self, input_ids: Tensor, attention_mask: Tensor, length: int) -> Tensor:
        """Return the values of the last `length` tokens.

        Args:
            input_ids: Prompts and completions, (B, P + C).
            attention_mask: (B, P + C).
            length: C.

        Returns:
            (B, C), float32.
        """

    @torch.no_grad()
    def shift(self, constant: float) -> None:
        """Add a constant to all values from now on."""
        if isinstance(self.module, FSDPModule):
            self.module.reshard()  # after a pass without gradient it holds whole weights, which are thrown away
        head = self.module.head if isinstance(self.module, CriticModel) else self.module
        head.bias.add_(constant)

    def reading(self) -> Any:
        """Return the context for passes of the policy that the critic may read its values off."""
        return nullcontext()

    def active(self) -> Any:
        """Return the context for passes of this critic and for their backward passes, which may repeat the forward."""
        return nullcontext()

    def unfreeze(self) -> None:
        """Let all weights of the critic learn again, after PEFT has frozen what was inactive in a reference pass."""
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def save(self, folder: str | Path) -> None:
        """Write the weights that lie outside the policy into `folder`. All processes call it, and the first writes."""
        weights = get_model_state_dict(self.module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if PartialState().is_main_process:
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_file(weights, Path(folder, WEIGHTS_FILE))

    def load(self, folder: str | Path) -> None:
        """Read the weights that `save` wrote.

        Raises:
            FileNotFoundError: There are none.
        """
        path = Path(folder, WEIGHTS_FILE)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there are no weights of a critic here.")
        set_model_state_dict(self.module, load_file(path), options=StateDictOptions(full_state_dict=True))


class HeadCritic(Critic):
    """A value head on the policy's own hidden states: the policy's pass is the critic's too.

    Args:
        policy: The policy, with or without adapters.
        accelerator: Places the head, and averages its gradient over processes.
        stop_gradient: Keep the critic's gradient out of the policy.
        start_from: A reward model, whose head is taken.
    """

    shares_pass = True

    def __init__(
        self,
        policy: nn.Module,
        accelerator: Accelerator,
        *,
        stop_gradient: bool = False,
        start_from: str | None = None,
    ) -> None:
        self.module = _value_head(policy, accelerator, None if start_from is None else read_reward_head(start_from))
        self.stop_gradient = stop_gradient
        self._distributed_head = distributed(self.module, accelerator)
        self._values: list[Tensor] = []
        self._read_now: list[Tensor] | None = None
        self._layer = next(iter(tuner_layers(policy)), None)
        backbone_of(policy).register_forward_hook(self._read)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read along in the passes that the policy makes inside; `values` then returns the values of each in turn."""
        self._read_now = []
        try:
            yield
        finally:
            self._values, self._read_now = self._read_now or self._values, None

    def values(self, input_ids: Tensor, attention_mask: Tensor, length: int) -> Tensor:
        """Return the values read off the policy's next pass, which must have been over `input_ids`."""
        values = self._values.pop(0) if self._values else torch.empty(0)
        if len(values) != len(input_ids):
            raise RuntimeError(f"The critic saw {len(values)} sequences in the policy's pass, not {len(input_ids)}.")
        return values[:, -length - 1 : -1]

    def _read(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._read_now is None or not self._policy_is_active():
            return
        hidden = output.last_hidden_state
        self._read_now.append(self._distributed_head(hidden.detach() if self.stop_gradient else hidden))

    def _policy_is_active(self) -> bool:
        """Whether a pass is the policy's: the reference is the same model with the adapter off, or with another one."""
        layer = self._layer
        return layer is None or (not layer.disable_adapters and "default" in layer.active_adapters)


class AdapterCritic(Critic):
    """A LoRA adapter of its own on the policy's frozen base, with a head.

    Args:
        policy: A LoRA adapter on a base.
        accelerator: Places the head, and averages its gradient over processes.
        start_from: Adapter of a reward model on the same base, which is copied. By default the critic starts as the
            base, with an adapter shaped as the policy's, and with values of 0.

    Raises:
        ValueError: The policy is no LoRA adapter, or the reward model's adapter does not fit its base.
    """

    def __init__(self, policy: nn.Module, accelerator: Accelerator, *, start_from: str | None = None) -> None:
        self.policy = require_lora(policy, "critic='adapter'")
        head = None
        if start_from is None:
            self.policy.add_adapter(ADAPTER, deepcopy(self.policy.peft_config["default"]))
        else:
            head = add_reward_adapter(self.policy, start_from, ADAPTER)
            for parameter in self._adapter_parameters():
                parameter.data = parameter.data.float()
        self.module = _value_head(policy, accelerator, head)
        self._layers, self._backbone = tuner_layers(policy), backbone_of(policy)
        self._distributed_head = distributed(self.module, accelerator)
        self.unfreeze()

    def _adapter_parameters(self) -> list[nn.Parameter]:
        return list(adapter_parameters(self.policy, ADAPTER).values())

    def parameters(self) -> list[nn.Parameter]:
        """Those of head and adapter."""
        return [*super().parameters(), *self._adapter_parameters()]

    def load_adapter(self, folder: str | Path) -> None:
        """Read the adapter from the folder that PEFT saved it in."""
        set_peft_model_state_dict(self.policy, load_peft_weights(str(folder)), adapter_name=ADAPTER)

    def active(self) -> Any:
        """Return the context in which the critic's adapter is the active one."""
        return active_adapter(self._layers, ADAPTER)

    def values(self, input_ids: Tensor, attention_mask: Tensor, length: int) -> Tensor:
        """Return the values of the last `length` tokens, from a pass of the base with the critic's adapter."""
        with self.active():
            backbone = as_pass_of(self.policy, self._backbone)
            counted = positions(self._backbone, attention_mask)
            output = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **counted)
            return self._distributed_head(output.last_hidden_state[:, -length - 1 : -1])


class ModelCritic(Critic):
    """A model of its own, fully trained, in float32. It may be of another architecture; tokens must be the policy's.

    Args:
        policy: The policy.
        accelerator: Places the model, and averages its gradient over processes.
        start_from: A reward model, whose head is taken too, or any model. By default what the policy was loaded from.
        gradient_checkpointing: Repeat the forward pass in the backward pass to save memory.
        loading: `revision` and `trust_remote_code` of the model.
        tokenizer: The policy's, to compare with one that lies beside the model.

    Raises:
        ValueError: The model's weights are quantized, it knows other tokens than the policy, or it sees tokens before
            it values them.
    """

    def __init__(
        self,
        policy: nn.Module,
        accelerator: Accelerator,
        *,
        start_from: str | None = None,
        gradient_checkpointing: bool = False,
        loading: Mapping[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        path = start_from or policy.config._name_or_path
        backbone, head = load_critic_model(path, **(loading or {}))
        disable_dropout(backbone)
        known, needed = (m.get_input_embeddings().weight.size(0) for m in (backbone, policy))
        if tokenizer is not None:  # models of one family pad their matrices to different sizes
            needed = min(needed, max(tokenizer.get_vocab().values()) + 1)
        if known < needed:
            raise ValueError(f"{path} knows {known} tokens, and the policy has {needed}: it is no critic for it.")
        if tokenizer is not None:
            check_tokens_are_those_of(tokenizer, path)
        self._last_id = known - 1
        check_reads_from_left_to_right(backbone, path)
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable()
        backbone.train().requires_grad_(True)
        self.module = CriticModel(backbone, ValueHead(hidden_width(backbone), head)).to(accelerator.device)
        self._distributed = distributed(self.module, accelerator)

    def values(self, input_ids: Tensor, attention_mask: Tensor, length: int) -> Tensor:
        """Return the values of the last `length` tokens, from a pass of the critic's model."""
        ids = input_ids.clamp(max=self._last_id)  # a policy may draw ids from its padding, which the critic may lack
        return self._distributed(ids, attention_mask, length).float()


def make_critic(
    policy: nn.Module, accelerator: Accelerator, args: "PPOConfig", tokenizer: PreTrainedTokenizerBase | None = None
) -> Critic:
    """Return the critic that the configuration asks for, starting with the same weights in every process.

    Args:
        policy: The policy.
        accelerator: Places the critic's own weights, and averages their gradient over processes.
        args: The configuration.
        tokenizer: The policy's.

    Raises:
        ValueError: The policy or `critic_path` does not suit this critic.
    """
    start = {"start_from": args.critic_path}
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        if args.critic == "head":
            return HeadCritic(policy, accelerator, stop_gradient=args.critic_stop_gradient, **start)
        if args.critic == "adapter":
            return AdapterCritic(policy, accelerator, **start)
        return ModelCritic(
            policy,
            accelerator,
            gradient_checkpointing=args.gradient_checkpointing,
            loading=_loading_of_twin(policy, args),
            tokenizer=tokenizer,
            **start,
        )


def _loading_of_twin(policy: nn.Module, args: "PPOConfig") -> dict[str, Any]:
    """Return how the model that the critic starts from is loaded: of the policy's own, the same files."""
    loading = loading_options(args)
    if args.critic_path is not None:
        return loading | {"revision": None}
    if isinstance(policy, PeftModel) and loading["revision"] is None:
        loading["revision"] = policy.peft_config["default"].revision  # of the base
    return loading


def backbone_of(policy: nn.Module) -> nn.Module:
    """Return the policy without its language-model head."""
    return causal_lm_of(policy).base_model


def _value_head(policy: nn.Module, accelerator: Accelerator, start: LinearHead | None) -> ValueHead:
    return ValueHead(hidden_width(causal_lm_of(policy)), start).to(accelerator.device)
