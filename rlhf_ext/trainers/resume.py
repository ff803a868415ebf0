"""What the trainers share: a resumed run equals the uninterrupted one, and gradients are what they should be."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from ..attention import without_cudnn_attention
from ..preparation import prepare_for_training
from ..quantization import is_quantized, restore_float32, trained_weights
from .epoch_order import EpochSeededSampler
from .not_finite import not_finite_step

logger = logging.getLogger(__name__)


class ResumesExactly(Trainer):
    """A `Trainer` that goes on from a checkpoint as if uninterrupted, with weights and gradients as they should be."""

    train_sampler: EpochSeededSampler | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Lets adapters over a quantized base learn in float32; FSDP and DeepSpeed want weights of one type."""
        model = kwargs.get("model", next(iter(args), None))
        given = [(weight, weight.data) for weight in trained_weights(model)] if is_quantized(model) else []
        super().__init__(*args, **kwargs)
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            restore_float32(self.model, given)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Synchronises gradients also where an evaluation came before, and does without a kernel that spoils them."""
        prepare_for_training(self)
        with without_cudnn_attention():
            result = super().train(*args, **kwargs)
        if result.global_step == self._initial_global_step and self.is_world_process_zero():
            logger.warning(
                "Nothing was left to train: the checkpoint is of step %d, and the run ends at step %d. To go on, raise "
                "max_steps or num_train_epochs.",
                *(result.global_step, self.state.max_steps),
            )
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Ends a run whose loss is not finite before its weights and checkpoints are spoiled; fp16 skips such steps.

        Transformers leaves such a loss out of what it logs, and trains on.
        """
        loss = super().training_step(*args, **kwargs)
        if not self.args.fp16 and not loss.isfinite():
            raise not_finite_step(self.state.global_step, self.args.output_dir)
        return loss

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        """Tells our sampler the epoch, and ends at once where no step is left.

        Transformers looks only after a step, and would make one too many: a run that was killed after its last
        checkpoint, while the results were saved, is complete when it is resumed.
        """
        if self.train_sampler is not None:
            self.train_sampler.epoch = epoch
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, epoch=epoch, **kwargs)
        else:
            self.control.should_training_stop = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Keeps the types of adapters."""
        with self._same_dtypes():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Keeps the types of adapters."""
        with self._same_dtypes():
            super()._load_best_model()

    @contextmanager
    def _same_dtypes(self) -> Iterator[None]:
        """Give weights the types back that they had: PEFT loads float32, and whoever made the adapter may not have."""
        dtypes = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        yield
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])
