"""What PPO does at fixed places of the training loop: checkpoints between batches, critic warm-up, health warnings."""

import logging
import math
from typing import TYPE_CHECKING, Any

from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..run_report.bands import KL_TOLERANCE
from .not_finite import not_finite_gradient

if TYPE_CHECKING:
    from .ppo import PPOTrainer

logger = logging.getLogger(__name__)


class PPOCallback(TrainerCallback):
    """Keeps a run resumable and the critic in step with the policy.

    A batch of completions is used for several optimizer steps and is not part of a checkpoint, so checkpoints wait
    until it is used up.
    """

    def __init__(self, trainer: "PPOTrainer") -> None:
        self.trainer = trainer
        self._save_is_due = False
        self._warned: set[tuple[str, str]] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts with a new batch of completions, and refuses to go on differently than an uninterrupted run."""
        if state.global_step % args.steps_per_batch and state.global_step < state.max_steps:
            raise ValueError(
                f"The checkpoint was made at step {state.global_step}, and batches of completions end every "
                f"{args.steps_per_batch} steps: the run would go on differently. Resume from an earlier checkpoint."
            )
        of_best = args.load_best_model_at_end or args.save_strategy == "best"
        if of_best and args.eval_strategy == "steps" and state.eval_steps % args.steps_per_batch:
            raise ValueError(
                f"The best checkpoint is made at an evaluation, every {state.eval_steps} steps, and checkpoints at the "
                f"end of a batch of completions, every {args.steps_per_batch}: set eval_steps (and save_steps) to a "
                "multiple of that."
            )
        if state.global_step and args.sync_ref_model:
            raise ValueError(
                "A reference that moves (sync_ref_model) is in no checkpoint: such a run cannot be resumed."
            )
        self.trainer._step, self.trainer._buffered_inputs = 0, None
        self.trainer.kl_is_out_of_bounds = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops at a bad gradient, and keeps a policy that must not learn as it is."""
        trainer = self.trainer
        critic = trainer.critic.parameters()
        own = {id(parameter) for parameter in critic}
        policy = [p for p in trainer.model.parameters() if p.grad is not None and id(p) not in own]
        gradients = [p.grad for p in (*policy, *critic) if p.grad is not None]
        norm = get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not args.fp16 and not norm.isfinite():  # fp16 scaling skips such steps by itself
            named = (*trainer.model.named_parameters(), *trainer.critic.module.named_parameters("critic"))
            raise not_finite_gradient(named, args.output_dir)
        if trainer.policy_is_frozen:
            for parameter in policy:
                parameter.grad = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clears the critic's gradient; Transformers clears the policy's."""
        for parameter in self.trainer.critic.parameters():
            parameter.grad = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Puts off a checkpoint to the end of the batch, unless the run ends here."""
        self._save_is_due |= control.should_save
        if self._save_is_due and (state.global_step % args.steps_per_batch == 0 or control.should_training_stop):
            control.should_save, self._save_is_due = True, False
        else:
            control.should_save = False
        if self.trainer.kl_is_out_of_bounds:
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Warns once each time the clip fraction or the KL leaves the healthy band."""
        for name, low, high, remedy in self._bands(args):
            value = (logs or {}).get(name)
            if value is None:
                continue
            if low <= value <= high:
                self._warned.discard((name, remedy))
            elif (name, remedy) not in self._warned:
                self._warned.add((name, remedy))
                side, bound = ("above", high) if value > high else ("below", low)
                logger.warning("Step %d: %s is %.3g, %s %.3g. %s", state.global_step, name, value, side, bound, remedy)

    @staticmethod
    def _bands(args: TrainingArguments) -> list[tuple[str, float, float, str]]:
        """Metrics, the bounds of their healthy bands, and what to do outside of them."""
        bands = [
            ("clip_fraction", 0.0, args.max_clip_fraction, "Lower learning_rate or num_iterations."),
            ("kl/k1", -1.0, math.inf, "The policy is not what completions are drawn from: look at sampling settings."),
        ]
        if args.kl_target and args.init_kl_coef:
            remedy = f"{KL_TOLERANCE:g} times kl_target: raise init_kl_coef or lower kl_horizon."
            bands.append(("kl/k1", -math.inf, KL_TOLERANCE * args.kl_target, remedy))
        return bands
