"""`--report_to` around a run: what is evaluated before training and after it belongs to the run's own record too.

The trackers of Transformers open with training and close with it. What comes earlier or later they put elsewhere:
TensorBoard into a folder `runs` of the working directory, Trackio into another run. TRL's online trainers log to
Trackio from within an evaluation, and fail where no run is open.
"""

import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback


class ReopenTrackioCallback(TrainerCallback):
    """Goes on with Trackio's run after training, for the evaluation that follows; `end_tracking` closes it."""

    def __init__(self, trackio_callback: TrackioCallback) -> None:
        self.trackio_callback = trackio_callback

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the run again, by its name."""
        self.trackio_callback.setup(args, state, kwargs["model"])


def begin_tracking(trainer: Trainer) -> None:
    """Settle where the run is recorded, and open it, before anything is logged."""
    args = trainer.args
    now = time.strftime("%Y%m%d-%H%M%S")
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(args.output_dir, "tensorboard", now))
        if isinstance(callback, TrackioCallback):
            args.run_name = args.run_name or f"{Path(args.output_dir).name}-{now}"  # what has a name can be reopened
            callback.setup(args, trainer.state, trainer.model)
            trainer.add_callback(ReopenTrackioCallback(callback))


def end_tracking(trainer: Trainer) -> None:
    """Close what was left open for the evaluation after training."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback | TrackioCallback):
            callback.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
