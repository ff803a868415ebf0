"""`PPOTrainer`: proximal policy optimization with a critic, on TRL's `GRPOTrainer`.

How it works: TRL generates the completions, scores them, computes the log-probabilities of policy and reference, and
later the clipped policy loss. In between we turn scores and KL into a reward per token, ask the critic for values, and
put advantages per token where TRL had one per completion; to TRL's loss we add the critic's. No method body of TRL is
repeated here, and the `head` critic reads its values off a pass that the policy makes anyway.
"""

import logging
import math
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import trl
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..adapters import base_as_it_was, merged_adapter
from ..advantages import masked_mean, mean_shortfall, whiten
from ..completion_pass import rejoined, whole_texts, without_padding
from ..critics import make_critic
from ..dropout import check_adapter_dropout, disable_dropout, modes_as_they_were, without_dropout
from ..generation import special_tokens_only
from ..generation_on_cpu import fast_on_cpu
from ..kl import per_token_kl
from ..losses.ppo import clipped_value_loss
from ..ppo_rewards import ended_by_itself, token_rewards
from ..quantization import keep_gradients_on_cpu
from ..replaced import replaced
from ..reward_model.adapter import RewardAdapter
from ..running_stats import RunningMeanStd
from .epoch_order import EpochSeededSampler
from .not_finite import check_scores, not_finite_loss
from .ppo_callback import PPOCallback
from .ppo_checks import (
    check_continuous_batching,
    check_dataset_size,
    check_engine,
    check_evaluation,
    check_merging,
    check_names,
    check_policy,
    check_scheduler,
    check_start,
    check_vllm,
)
from .ppo_config import PPOConfig
from .ppo_metrics import completion_metrics, loss_metrics, value_metrics
from .resume import ResumesExactly
from .same_passes import MakesSamePasses
from .trainable import check_adapter_name, check_trainable
from .trains_critic import TrainsCritic

logger = logging.getLogger(__name__)


class PPOTrainer(TrainsCritic, ResumesExactly, MakesSamePasses, trl.GRPOTrainer):
    """`trl.GRPOTrainer` with a critic: advantages per token, and one completion per prompt is enough.

    ```python
    from rlhf_ext import PPOConfig, PPOTrainer

    def reward(completions, **kwargs):
        return [float(len(set(text))) for text in completions]

    PPOTrainer("Qwen/Qwen3-0.6B", reward_funcs=reward, args=PPOConfig("out"), train_dataset=prompts).train()
    ```

    Arguments and behaviour are otherwise TRL's.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "ppo", "rlhf_ext"]
    _name = "PPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": (
            "@article{schulman2017proximal,\n"
            "    title        = {{Proximal Policy Optimization Algorithms}},\n"
            "    author       = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and "
            "Oleg Klimov},\n"
            "    year         = 2017,\n"
            "    eprint       = {arXiv:1707.06347},\n"
            "}"
        ),
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        *trl_args: Any,
        **trl_kwargs: Any,
    ) -> None:
        """Adds the critic, the KL controller and the running statistics to what TRL sets up.

        Raises:
            TypeError: `args` is not an `rlhf_ext.PPOConfig`.
            ValueError: The dataset is smaller than one batch, a dropout was asked for that would not be applied, every
                weight of the policy is frozen, or quantized and meant for vLLM, its adapter is not called "default" or
                cannot be merged, a scheduler was given, or the processes were launched with DeepSpeed or FSDP1.
        """
        if args is not None and not isinstance(args, PPOConfig):
            raise TypeError(f"args must be an rlhf_ext.PPOConfig, got {type(args).__module__}.{type(args).__name__}.")
        if args is None:
            args = PPOConfig(f"{model if isinstance(model, str) else model.config._name_or_path}-PPO".split("/")[-1])
        if args.disable_dropout:
            default = "the default of PPO: the ratio of new to old policy would measure the noise"
            check_adapter_dropout(model, trl_kwargs.get("peft_config"), default=default)
        check_adapter_name(model)
        check_engine(args)
        check_vllm(args, model, trl_kwargs.get("quantization_config"))
        check_dataset_size(train_dataset, args)
        check_start(args)
        if trl_kwargs.get("eval_dataset", trl_args[0] if trl_args else None) is not None:
            check_evaluation(args)
        if args.reward_adapter is not None:
            scorer = RewardAdapter(args.reward_adapter, trust_remote_code=args.trust_remote_code)
            reward_funcs = [*_as_list(reward_funcs), scorer]
            if isinstance(trl_kwargs.get("reward_processing_classes"), list):
                trl_kwargs["reward_processing_classes"] = [*trl_kwargs["reward_processing_classes"], None]
        # Any beta but 0 makes TRL load the reference. What it weighs in the loss is set in `_compute_loss`.
        with replaced(args, beta=args.beta or float(args.needs_reference)):
            super().__init__(model, reward_funcs, args, train_dataset, *trl_args, **trl_kwargs)
        check_vllm(args, self.model)  # which may be a checkpoint that was saved quantized
        check_trainable(self.model)
        check_policy(self.model, args, is_multimodal=self._is_vlm)
        if args.merge_adapter_for_generation:
            check_merging(self.model, self.rollout_func)
        check_names(self.reward_func_names)
        check_scheduler(self.lr_scheduler)
        stop_ids = (args.generation_kwargs or {}).get("eos_token_id")
        if stop_ids is not None:  # TRL cuts completions at `eos_token_ids`, and does not look here
            self.eos_token_ids = _as_list(stop_ids)
        keep_gradients_on_cpu(self.model)
        if self.use_vllm and not self.is_fsdp_enabled:
            self.vllm_generation.sync_weights = base_as_it_was(self.model)(self.vllm_generation.sync_weights)
        for reward_func in self.reward_funcs:
            if isinstance(reward_func, RewardAdapter):
                reward_func.attach(self.model)
        self.critic = make_critic(self.model, self.accelerator, args, self._tokenizer)
        check_continuous_batching(args, self.model)  # with the critic's adapter, if it has one
        if args.disable_dropout:
            disable_dropout(self.model)  # the critic's adapter too, which may come with a reward model's dropout
        self.kl_controller = args.kl_controller()
        self.score_stats = RunningMeanStd()
        self.kl_is_out_of_bounds = False
        self._estimators = {mode: args.advantage_estimator(self._sum, training=mode) for mode in (True, False)}
        self.add_callback(PPOCallback(self))

    # Rollout

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple:
        """Draws with the options that were given, to which Transformers adds what a model asks for itself.

        TRL puts the model into training mode after continuous batching, also in an evaluation.
        """
        merged = merged_adapter(self.model) if self.args.merge_adapter_for_generation else nullcontext()
        with (
            special_tokens_only(self.model),
            modes_as_they_were(self.model),
            merged,
            fast_on_cpu(self.model),
        ):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Tensor:
        """Keeps the scores, which TRL would normalise within groups, and refuses any that is not finite."""
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weights = self.reward_weights.to(by_function.device)
        scores = (by_function * weights).nansum(dim=1)  # a function may leave a completion to the others
        scores[by_function[:, weights != 0].isnan().all(dim=1)] = torch.nan
        first = self.accelerator.process_index * len(prompts)
        check_scores(scores, first, prompts, completions)
        self._scores = scores[first : first + len(prompts)]
        return by_function

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        """Lets the critic read along, and keeps the result."""
        with self.critic.reading():
            result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._last_logps = result[0].detach()
        return result

    def _values(self, ids: Tensor, mask: Tensor, length: int) -> Tensor:
        """Return the critic's values of the completions of one pass, (B, C)."""
        with self.accelerator.autocast():
            return self.critic.values(ids, mask, length)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Replaces one advantage per completion by one per token, from KL-penalised rewards and the critic's values."""
        # TRL leaves out the log-probabilities at rollout where a batch is used for a single step; we need them anyway.
        enough = self.args.gradient_accumulation_steps + 1
        with without_dropout(self.model), replaced(self, num_iterations=enough):
            output = super()._generate_and_score_completions(inputs)
            with torch.no_grad():
                values = [self._values(*texts) for texts in self._rollout_passes(*whole_texts(output))]
            values = rejoined(values, self._order(len(self._scores)), output["completion_ids"].size(1))
        self.critic.unfreeze()
        logps = output["old_per_token_logps"]
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        ref_logps = output.get("ref_per_token_logps")  # there is none where no KL counts

        kl = per_token_kl(logps, logps if ref_logps is None else ref_logps, estimator=self.args.kl_estimator)
        scores = self._shape_scores(self._scores, output)
        rewards = token_rewards(scores, kl, mask, kl_coef=self.kl_controller.coef)
        if self.model.training and self.args.vf_coef:
            values = self._center_critic(rewards, values, mask)
        advantages, returns = self._estimators[self.model.training](rewards, values, mask)
        self._log(completion_metrics(output, mask, ref_logps, scores), weight=mask.any(1).sum())
        self._log(value_metrics(values, returns, mask), weight=mask.sum())
        self._show_advantages(advantages, mask)
        if ref_logps is not None:
            self._follow_kl(logps, ref_logps, mask)
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, reduce=self._sum)
        return output | {"advantages": advantages, "values": values, "returns": returns}

    def _center_critic(self, rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Move the critic's bias so that its values have the mean of the returns; return the values that it has then.

        An optimizer moves the bias by as little as any of the many weights beside it. What returns have in common would
        be learned by these, which see the state, and differences between states would come out that there are not.
        """
        shortfall = mean_shortfall(rewards, values, mask, gamma=self.args.gamma, reduce=self._sum)
        self.critic.shift(shortfall.item())
        return values + shortfall

    def _shape_scores(self, scores: Tensor, output: dict[str, Tensor]) -> Tensor:
        """Scale and clip the scores, then penalise completions that do not end by themselves."""
        if self.args.scale_scores:
            if self.model.training:
                learned = self.accelerator.gather(output["completion_mask"].any(1))
                self.score_stats.update(self.accelerator.gather(scores)[learned])
            scores = scores / self.score_stats.scale
        if self.args.clip_scores is not None:
            scores = scores.clamp(-self.args.clip_scores, self.args.clip_scores)
        stop_ids = torch.tensor(self.eos_token_ids, device=scores.device)
        ids, mask = output["completion_ids"], output["completion_mask"]
        limit = min(self.max_completion_length, (self.args.generation_kwargs or {}).get("max_new_tokens", math.inf))
        ended = ended_by_itself(ids, mask, stop_ids, limit)
        if self.args.missing_eos_score is not None:
            return torch.where(ended, scores, self.args.missing_eos_score)
        return torch.where(ended, scores, scores - (self.args.missing_eos_penalty or 0.0))

    def _follow_kl(self, logps: Tensor, ref_logps: Tensor, mask: Tensor) -> None:
        """Move the KL coefficient, or give up where the KL has gone too far."""
        self._log({"kl/coef": torch.tensor(self.kl_controller.coef)}, weight=1)
        if not self.model.training:
            return
        learned = self.accelerator.gather(mask.any(1))  # mask_truncated_completions leaves some without
        if not learned.any():
            return
        per_completion = self.accelerator.gather((per_token_kl(logps, ref_logps) * mask).sum(1))[learned]
        kl = per_completion.mean().item()
        self.kl_controller.update(kl, len(per_completion))
        if self.args.kl_stop is not None and kl > self.args.kl_stop:
            self.kl_is_out_of_bounds = True
            logger.warning("Training ends: the KL per completion is %.3g, above kl_stop=%g.", kl, self.args.kl_stop)

    # Loss

    @property
    def policy_is_frozen(self) -> bool:
        """Whether only the critic learns: during its warm-up, and in the last step of a run that `kl_stop` ends."""
        return self.kl_is_out_of_bounds or self.state.global_step < self.args.critic_warmup_steps

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Adds the value loss, a mean over the tokens of the batch, as TRL's policy loss is by default."""
        if self._leaves_out_padding:
            inputs = without_padding(inputs)
        if self._policy_is_that_of_the_rollout():
            # The ratio is 1 by definition. Without the old log-probabilities TRL takes it from this pass, exactly.
            inputs = {key: value for key, value in inputs.items() if key != "old_per_token_logps"}
        with replaced(self, beta=self.args.beta):
            policy_loss = super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        with self.critic.active():
            values = self._values(*whole_texts(inputs))
            value_losses = clipped_value_loss(
                values, inputs["values"], inputs["returns"], cliprange_value=self.args.cliprange_value
            )
            value_loss = self.args.vf_coef * (value_losses * mask).sum() / self._tokens_per_step(inputs)
            self._check_finite(policy_loss + value_loss, inputs, values)
            if not self.critic.shares_pass and value_loss.requires_grad:
                # At once: the graph is freed, and with gradient checkpointing the backward pass repeats the forward,
                # which must run with the critic's adapter.
                self.accelerator.backward(value_loss)
                value_loss = value_loss.detach()
        limits = {"epsilon": (self.epsilon_low, self.epsilon_high), "cliprange_value": self.args.cliprange_value}
        self._log(loss_metrics(inputs, mask, self._last_logps, values, value_losses, **limits), weight=mask.sum())
        return policy_loss + value_loss

    def _check_finite(self, loss: Tensor, inputs: dict[str, Any], values: Tensor) -> None:
        if loss.isfinite():
            return
        mask = inputs["completion_mask"].bool()
        rows = torch.where(mask, self._last_logps + values + inputs["returns"] + inputs["advantages"], 0).sum(1)
        texts = [self._tokenizer.batch_decode(inputs[f"{part}_ids"]) for part in ("prompt", "completion")]
        raise not_finite_loss(rows, *texts, self.args.output_dir)

    def _policy_is_that_of_the_rollout(self) -> bool:
        """Whether no optimizer step was made since the completions were generated."""
        position = self._step % self.args.micro_steps_per_batch
        return not self.model.training or position < self.args.gradient_accumulation_steps

    def _tokens_per_step(self, inputs: dict[str, Any]) -> Tensor:
        """Tokens that an optimizer step averages over, a process: those of the generation batch, in equal parts."""
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if not self.model.training:
            return tokens
        return tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSeededSampler:
        """Makes the order of an epoch depend on seed and epoch alone."""
        sampler = super()._get_train_sampler(dataset)
        self.train_sampler = EpochSeededSampler(sampler, sampler.seed)
        return self.train_sampler

    # Metrics

    def _log(self, means: dict[str, Tensor], weight: Tensor | int) -> None:
        """Add to the metrics, averaged over processes with their weights."""
        device = self.accelerator.device
        stacked = torch.stack([mean.detach().to(device, torch.float32) for mean in (*means.values(), torch.ones(()))])
        *totals, total = self._sum(stacked * weight).tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics.pop("frac_reward_zero_std", None)  # of groups, which play no part
        if not total:  # all completions are masked, and a mean of 0 would count in what is logged
            return
        averaged = [value / total for value in totals]
        for name, mean in zip(means, averaged, strict=True):
            metrics[name].append(mean)

    def _show_advantages(self, advantages: Tensor, mask: Tensor) -> None:
        """Put the mean advantage of each completion into TRL's table of completions, in place of the one of groups."""
        shown = self.accelerator.gather(masked_mean(advantages, mask, dim=1)).tolist()
        table = self._logs["advantages"]  # holds one batch of training, and one of evaluation may be larger
        for _ in range(min(len(shown), len(table))):
            table.pop()
        table.extend(shown)

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")


def _as_list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]
