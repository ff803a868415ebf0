"""Options of `PPOConfig` that are out of range, contradict each other, or would have no effect: each is an error."""

from dataclasses import fields
from typing import TYPE_CHECKING, get_args

from ..kl import KLEstimator

if TYPE_CHECKING:
    from .ppo_config import PPOConfig

ABOVE_ZERO = ("clip_scores", "kl_stop", "cliprange_value", "missing_eos_penalty", "max_clip_fraction")
ZERO_OR_ABOVE = ("vf_coef", "critic_learning_rate", "critic_warmup_steps", "epsilon", "epsilon_high")
COUNTS = ("num_generations", "num_generations_eval", "num_iterations", "steps_per_generation")
WITHOUT_CRITIC = ("reinforce", "rloo")  # built-in estimators that have no use for values
OF_VALUE_LOSS = ("critic_warmup_steps", "critic_learning_rate", "critic_stop_gradient", "cliprange_value")
OF_CRITIC = ("critic", "critic_path")
KL_IN_REWARD = ("kl_target", "kl_horizon", "kl_estimator")


def check_counts(args: "PPOConfig") -> None:
    """Raise a ValueError for a number of times that is below 1, before TRL computes with it."""
    for name in COUNTS:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")


def check_ranges(args: "PPOConfig") -> None:
    """Raise a ValueError for a number that cannot be meant."""
    for name in (*ABOVE_ZERO, *ZERO_OR_ABOVE):
        value = getattr(args, name)
        if value is not None and not (value > 0 or (name in ZERO_OR_ABOVE and value == 0)):
            raise ValueError(f"{name} must be {'above 0' if name in ABOVE_ZERO else '0 or above'}, got {value}.")
    for name in ("gamma", "lam"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(args, name)}.")
    if args.critic not in ("head", "adapter", "model"):
        raise ValueError(f"critic must be 'head', 'adapter' or 'model', got {args.critic!r}.")
    if args.kl_estimator not in get_args(KLEstimator):
        raise ValueError(f"kl_estimator must be 'k1', 'k2' or 'k3', got {args.kl_estimator!r}.")


def check_contradictions(args: "PPOConfig") -> None:
    """Raise a ValueError for options that cannot both be followed."""
    if args.beta and args.init_kl_coef:
        raise ValueError(
            f"The KL would be penalised twice: in the loss (beta={args.beta}) and in the reward "
            f"(init_kl_coef={args.init_kl_coef}). Set one of them to 0."
        )
    if args.missing_eos_penalty is not None and args.missing_eos_score is not None:
        raise ValueError("Set missing_eos_penalty (subtract) or missing_eos_score (replace), not both.")
    if args.critic == "adapter" and args.ddp_find_unused_parameters:
        raise ValueError(
            "ddp_find_unused_parameters takes the critic's adapter for unused, as it has a pass of its own: drop it."
        )
    if "temperature" in (args.generation_kwargs or {}):
        raise ValueError(
            "A temperature in generation_kwargs would not reach the log-probabilities: use the option temperature."
        )
    if "stop_strings" in (args.generation_kwargs or {}) and not args.use_vllm:
        raise ValueError(
            "stop_strings in generation_kwargs need the tokenizer, which TRL does not hand on: stop at tokens, with "
            "eos_token_id in generation_kwargs (a list, with the model's own end token)."
        )
    parts, accumulated = args.micro_steps_per_batch, args.gradient_accumulation_steps
    if parts % accumulated and accumulated % parts:
        raise ValueError(
            f"A batch of completions is used for steps_per_generation * num_iterations = {parts} parts, which is no "
            f"multiple of gradient_accumulation_steps = {accumulated}: an optimizer step would mix two batches."
        )
    completions = args.per_device_train_batch_size * args.steps_per_generation
    if advantage_name(args) == "rloo" and completions % args.num_generations:
        raise ValueError(
            f"'rloo' compares the completions of a prompt on one process, which has {completions} of a batch: "
            f"num_generations={args.num_generations} must divide that number."
        )
    completions *= args.world_size
    if args.init_kl_coef and args.kl_target is not None and 0.2 * completions >= args.kl_horizon:
        raise ValueError(
            f"A batch of {completions} completions could take the KL coefficient to 0 or below: raise kl_horizon, now "
            f"{args.kl_horizon}, above {0.2 * completions:g}."
        )


def check_without_effect(args: "PPOConfig") -> None:
    """Raise a ValueError for an option that was set and would do nothing."""
    defaults = {option.name: option.default for option in fields(args)}
    changed = [name for name, default in defaults.items() if getattr(args, name) != default]
    if "scale_rewards" in changed:
        raise ValueError(
            f"scale_rewards={args.scale_rewards!r} has no effect: advantages come from a critic, not from a group of "
            "completions. Use scale_scores or whiten_advantages, or TRL's GRPOTrainer."
        )
    if "multi_objective_aggregation" in changed:
        raise ValueError(
            f"multi_objective_aggregation={args.multi_objective_aggregation!r} has no effect: it normalises within "
            "groups of completions, and advantages come from a critic. Use reward_weights."
        )
    if "train_sampling_strategy" in changed:
        raise ValueError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} has no effect: TRL draws prompts at random, "
            "or in their order with shuffle_dataset=False."
        )
    if "label_smoothing_factor" in changed:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} has no effect: there are no labels. Drop it."
        )
    if not args.init_kl_coef and (unused := [name for name in KL_IN_REWARD if name in changed]):
        raise ValueError(f"{_no_effect(unused)} with init_kl_coef=0.")
    if args.kl_target is None and "kl_horizon" in changed:
        raise ValueError("kl_horizon has no effect with kl_target=None, which keeps the coefficient fixed.")
    if "use_bias_correction_kl" in changed and not args.beta:
        raise ValueError("use_bias_correction_kl has no effect with beta=0: it corrects the KL in the loss.")
    if args.merge_adapter_for_generation and args.use_vllm:
        raise ValueError("merge_adapter_for_generation has no effect with use_vllm: it is sent merged weights anyway.")
    if args.mask_truncated_completions and (args.missing_eos_penalty or args.missing_eos_score is not None):
        raise ValueError(
            "A missing EOS has no effect with mask_truncated_completions, which leaves such completions out."
        )
    if args.critic_stop_gradient and args.critic != "head":
        raise ValueError(f"critic_stop_gradient has no effect with critic={args.critic!r}, which shares no pass.")
    without_critic = advantage_name(args) in WITHOUT_CRITIC
    if args.vf_coef and without_critic:
        raise ValueError(
            f"advantage={args.advantage!r} has no use for values, and a critic would only disturb the policy: set "
            "vf_coef=0."
        )
    if not args.vf_coef and (unused := [name for name in OF_VALUE_LOSS if name in changed]):
        raise ValueError(f"{_no_effect(unused)} with vf_coef=0: the critic would not learn.")
    if without_critic and (unused := [name for name in OF_CRITIC if name in changed]):
        raise ValueError(f"{_no_effect(unused)} with advantage={args.advantage!r}: it needs no critic.")


def _no_effect(names: list[str]) -> str:
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no effect"


def advantage_name(args: "PPOConfig") -> str:
    """Return the name of the estimator, also of a built-in one that is named by its place."""
    return args.advantage.removeprefix("rlhf_ext.advantages:")
