"""A trainer whose optimizer and checkpoints hold a critic beside the model."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

from ..critics import AdapterCritic, Critic
from ..kl import AdaptiveKLController, FixedKLController
from ..replaced import replaced
from ..running_stats import RunningMeanStd

CRITIC = "critic"  # folder beside the policy, and group in the optimizer
STATE_FILE = "ppo_state.json"


class TrainsCritic(Trainer):
    """A `Trainer` that trains, clips, saves and restores a critic too, whose weights lie beside the model's.

    Attributes:
        critic: The critic.
        kl_controller: Of the KL coefficient.
        score_stats: Running statistics of the scores.
    """

    critic: Critic
    kl_controller: AdaptiveKLController | FixedKLController
    score_stats: RunningMeanStd

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """Gives the critic's weights a group with their own learning rate; only now has FSDP sharded the policy's."""
        optimizer = optimizer or self.optimizer
        if not any(group.get("name") == CRITIC for group in optimizer.param_groups):  # `train` was not called before
            critic = self.critic.parameters()
            own = set(map(id, critic))
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            rate = self.args.critic_learning_rate
            rate = 10 * self.args.learning_rate if rate is None else rate
            group = {"params": critic, "lr": rate, "weight_decay": 0.0, "name": CRITIC}
            optimizer.add_param_group(group)
        return super().create_scheduler(num_training_steps, optimizer)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float:
        """Clips the critic's gradient by its own norm, so that neither takes from the other's."""
        critic = self.critic.parameters()
        self.accelerator.clip_grad_norm_(critic, self.args.max_grad_norm)
        gradients = [parameter.grad for parameter in critic]
        for parameter in critic:  # some may be among the policy's
            parameter.grad = None
        # With fp16 the first call has unscaled the gradients of both, and a second one would raise.
        with replaced(self.accelerator, unscale_gradients=lambda *_: None):
            norm = super()._clip_grad_norm(model)
        for parameter, gradient in zip(critic, gradients, strict=True):
            parameter.grad = gradient
        return norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the critic, the KL coefficient and the running statistics in a folder beside the policy."""
        folder = Path(output_dir or self.args.output_dir, CRITIC)
        self.critic.save(folder)
        if self.args.should_save:
            state = {"kl_controller": self.kl_controller.state_dict(), "score_stats": self.score_stats.state_dict()}
            Path(folder, STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Restores what `save_model` saved."""
        with self._critic_beside_policy():
            super()._load_from_checkpoint(resume_from_checkpoint, self.model if self.is_fsdp_enabled else model)
        self._load_critic(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Goes back to the critic of the best checkpoint, too."""
        with self._critic_beside_policy():
            super()._load_best_model()
        if isinstance(self.critic, AdapterCritic):  # Transformers brings back the active adapter alone
            self.critic.load_adapter(Path(self.state.best_model_checkpoint, CRITIC))
        self._load_critic(self.state.best_model_checkpoint)

    def _load_critic(self, checkpoint: str) -> None:
        self.critic.unfreeze()
        folder = Path(checkpoint, CRITIC)
        self.critic.load(folder)
        state = json.loads(Path(folder, STATE_FILE).read_text(encoding="utf-8"))
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.score_stats.load_state_dict(state["score_stats"])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._critic_beside_policy():
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._critic_beside_policy():
            super()._load_optimizer_and_scheduler(checkpoint)

    def _critic_beside_policy(self) -> AbstractContextManager[None]:
        """FSDP saves and loads an optimizer by the names of its weights, and looks for them in one model."""
        if not self.is_fsdp_enabled:
            return nullcontext()
        return replaced(self, model=nn.ModuleDict({"policy": self.model, CRITIC: self.critic.module}))
