"""`PPOConfig`: TRL's `GRPOConfig` with what a critic adds, and without what makes no sense beside one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import trl
from torch import Tensor

from ..advantages import DEFAULT_LAM
from ..kl import AdaptiveKLController, FixedKLController, KLEstimator
from ..plugins import PluginError, accepted_keywords, get_plugin
from .plugin_losses import parse_keywords
from .ppo_options import check_contradictions, check_counts, check_ranges, check_without_effect

Estimator = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class _Generations(int):
    """A number of generations that `GRPOConfig` does not compare with its minimum of two: ours is one."""

    def __lt__(self, other: int) -> bool:
        return False


@dataclass
class PPOConfig(trl.GRPOConfig):
    r"""`trl.GRPOConfig` for proximal policy optimization with a critic (Schulman et al. 2017).

    `epsilon` is the clip range of the ratio, `num_iterations` the number of epochs over a batch of completions, and
    `steps_per_generation` its number of parts of `per_device_train_batch_size`; the optimizer steps once every
    `gradient_accumulation_steps` parts, so it makes `steps_per_generation / gradient_accumulation_steps` steps an
    epoch. `beta` penalises the KL in the loss, as in TRL; with `beta=0` it is penalised in the reward.

    Parameters:
        num_generations (`int`, *optional*, defaults to `1`):
            Completions per prompt. The critic is the baseline, so one is enough.
        num_iterations (`int`, *optional*, defaults to `4`):
            Epochs over every batch of completions.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Train without any dropout. Completions, their log-probabilities and values are always made without.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per token.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of generalized advantage estimation.
        advantage (`str`, *optional*, defaults to `"gae"`):
            A registered name (`rlhf_ext.list_plugins("advantage")`), `"package.module:function"` or
            `"path/to/file.py:function"`.
        advantage_kwargs (`dict[str, Any]`, *optional*):
            Keywords for the estimator, as JSON on the command line.
        whiten_advantages (`bool`, *optional*, defaults to `True`):
            Scale advantages to mean 0 and variance 1 over all tokens of a generation batch, on all processes.
        init_kl_coef (`float`, *optional*, defaults to `0.2`):
            What a nat of KL to the reference costs at first, in units of reward. 0 leaves the KL out of the reward.
        kl_target (`float`, *optional*, defaults to `6.0`):
            KL per completion, in nats, that the coefficient is adapted to. `None` keeps the coefficient fixed.
        kl_horizon (`int`, *optional*, defaults to `10000`):
            Completions over which the coefficient changes by at most a fifth or so.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            The estimator in the reward: `"k1"`, `"k2"` or `"k3"`.
        kl_stop (`float`, *optional*):
            Training ends, without learning from the batch that shows it, when the mean KL per completion exceeds this.
        scale_scores (`bool`, *optional*, defaults to `False`):
            Divide scores by their running standard deviation. Their mean stays.
        clip_scores (`float`, *optional*):
            Clip scores (after scaling) to plus or minus this.
        missing_eos_penalty (`float`, *optional*):
            Subtract this from the score of a completion that does not end by itself.
        missing_eos_score (`float`, *optional*):
            Replace the score of a completion that does not end by itself.
        merge_adapter_for_generation (`bool`, *optional*, defaults to `False`):
            Merge the policy's LoRA adapter into its base while completions are generated. Saves the adapter's products
            for each token; costs a copy of the base to the memory of the CPU and back each time. Over a base in
            bfloat16 the merged weights are rounded.
        critic (`str`, *optional*, defaults to `"head"`):
            Where values come from: `"head"` reads them off the policy's own hidden states, `"adapter"` is a LoRA
            adapter of its own on the policy's frozen base, `"model"` a model of its own.
        critic_path (`str`, *optional*):
            A trained reward model that the critic starts from: its head, for `"adapter"` its adapter too, for `"model"`
            the whole. For `"model"` it may be any model; by default it is what the policy was loaded from.
        critic_learning_rate (`float`, *optional*):
            Defaults to ten times `learning_rate`.
        reward_adapter (`str`, *optional*):
            A reward model's LoRA adapter, trained from the policy's base, to score completions with. It is loaded into
            the policy, beside the policy's own adapter, and needs no second base.
        critic_stop_gradient (`bool`, *optional*, defaults to `False`):
            Keep the `head` critic's gradient out of the policy.
        critic_warmup_steps (`int`, *optional*, defaults to `0`):
            Optimizer steps in which only the critic learns.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            Clip range of the value loss around the values at rollout. `None` for no clipping.
        max_clip_fraction (`float`, *optional*, defaults to `0.3`):
            A warning is logged when a larger part of the tokens is outside the clip range.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Completions per prompt; one is enough."})
    num_iterations: int = field(default=4, metadata={"help": "Epochs over every batch of completions."})
    scale_rewards: str = field(
        default="none", metadata={"help": "Has no place beside a critic: use `scale_scores` or `whiten_advantages`."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without any dropout."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=DEFAULT_LAM, metadata={"help": "Lambda of generalized advantage estimation."})
    advantage: str = field(
        default="gae",
        metadata={"help": "Estimator: a registered name, 'package.module:function' or 'path/to/file.py:function'."},
    )
    advantage_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords for the advantage estimator, as JSON on the command line."}
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Scale advantages to mean 0 and variance 1 over the global generation batch."}
    )
    init_kl_coef: float = field(
        default=0.2, metadata={"help": "What a nat of KL costs at first, in units of reward; 0: not in the reward."}
    )
    kl_target: float | None = field(
        default=6.0, metadata={"help": "KL per completion to adapt the coefficient to; None keeps it fixed."}
    )
    kl_horizon: int = field(default=10000, metadata={"help": "How slowly the coefficient adapts, in completions."})
    kl_estimator: KLEstimator = field(
        default="k1", metadata={"help": "KL estimator in the reward.", "choices": ["k1", "k2", "k3"]}
    )
    kl_stop: float | None = field(
        default=None, metadata={"help": "End training when the mean KL per completion exceeds this."}
    )
    scale_scores: bool = field(default=False, metadata={"help": "Divide scores by their running standard deviation."})
    clip_scores: float | None = field(default=None, metadata={"help": "Clip scores to plus or minus this."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtract this from the score of a completion that does not end by itself."}
    )
    missing_eos_score: float | None = field(
        default=None, metadata={"help": "Replace the score of a completion that does not end by itself."}
    )
    merge_adapter_for_generation: bool = field(
        default=False, metadata={"help": "Merge the policy's adapter into its base while completions are generated."}
    )
    critic: Literal["head", "adapter", "model"] = field(
        default="head",
        metadata={
            "help": "Where values come from: a head on the policy, an adapter on its base, or a model of its own.",
            "choices": ["head", "adapter", "model"],
        },
    )
    critic_path: str | None = field(
        default=None, metadata={"help": "Reward model that the critic starts from; for critic=model any model."}
    )
    reward_adapter: str | None = field(
        default=None, metadata={"help": "Adapter of a reward model, to score with on the policy's own base."}
    )
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the critic; ten times the policy's by default."}
    )
    critic_stop_gradient: bool = field(
        default=False, metadata={"help": "Keep the `head` critic's gradient out of the policy."}
    )
    critic_warmup_steps: int = field(default=0, metadata={"help": "Optimizer steps in which only the critic learns."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(
        default=0.2, metadata={"help": "Clip range of the value loss; None for no clipping."}
    )
    max_clip_fraction: float = field(
        default=0.3, metadata={"help": "Warn when a larger part of the tokens is outside the clip range."}
    )

    def __post_init__(self) -> None:
        """Allows one generation per prompt, and adds the checks of the options of PPO."""
        check_counts(self)
        if self.critic == "adapter" and self.ddp_find_unused_parameters is None:
            # Transformers looks for them in every PeftModel. The policy's pass does not use the critic's adapter, which
            # would count as unused; its gradient comes with a pass of its own.
            self.ddp_find_unused_parameters = False
        generations, self.num_generations = self.num_generations, _Generations(self.num_generations)
        super().__post_init__()
        self.num_generations = generations
        self.advantage_kwargs = parse_keywords("advantage_kwargs", self.advantage_kwargs)
        check_ranges(self)
        check_contradictions(self)
        check_without_effect(self)
        self._try_estimator()
        self.kl_controller()

    @property
    def micro_steps_per_batch(self) -> int:
        """Forward and backward passes for which a batch of completions is used."""
        return self.steps_per_generation * self.num_iterations

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps for which a batch of completions is used; checkpoints are made after a multiple of it."""
        return max(1, self.micro_steps_per_batch // self.gradient_accumulation_steps)

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model is loaded."""
        return self.beta != 0 or self.init_kl_coef != 0 or self.kl_stop is not None

    def kl_controller(self) -> AdaptiveKLController | FixedKLController:
        """Return a new controller of the KL coefficient.

        Raises:
            ValueError: The coefficient, the target or the horizon is impossible.
        """
        if self.kl_target is None or self.init_kl_coef == 0:
            return FixedKLController(self.init_kl_coef)
        return AdaptiveKLController(self.init_kl_coef, self.kl_target, self.kl_horizon)

    def advantage_estimator(
        self, reduce: Callable[[Tensor], Tensor] | None = None, *, training: bool = True
    ) -> Estimator:
        """Return the function from rewards, values and mask, (B, T) each, to advantages and returns.

        Args:
            reduce: Sums a tensor over all processes; for estimators that take it.
            training: Whether prompts come `num_generations` or `num_generations_eval` times.

        Raises:
            PluginError: There is no such estimator, it does not take a keyword in `advantage_kwargs`, or it fails.
        """
        function = get_plugin("advantage", self.advantage)
        generations = self.num_generations if training else self.num_generations_eval or self.num_generations
        keywords = accepted_keywords(function, {"num_generations": generations, "reduce": reduce})
        keywords |= self.advantage_kwargs
        get_plugin("advantage", self.advantage, keywords)
        return partial(function, gamma=self.gamma, lam=self.lam, **keywords)

    def _try_estimator(self) -> None:
        """Call the estimator on made-up tensors, so that its mistakes show before the model loads."""
        trial = torch.ones(2 * self.num_generations, 3)
        try:
            shapes = [tuple(result.shape) for result in self.advantage_estimator()(trial, trial, trial)]
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"The advantage estimator {self.advantage!r} fails on a trial batch: {error}") from error
        if shapes != [tuple(trial.shape)] * 2:
            raise PluginError(
                f"The advantage estimator {self.advantage!r} returned the shapes {shapes} for tensors of shape "
                f"{tuple(trial.shape)}; it must return (advantages, returns) of that shape."
            )
