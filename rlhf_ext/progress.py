"""The progress bar of a run, with one short line per logging step."""

from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback


class ShortProgressCallback(ProgressCallback):
    """`ProgressCallback` that prints a few named metrics as one line; all of them are in `trainer_state.json`."""

    def __init__(self, metrics: tuple[str, ...]) -> None:
        super().__init__()
        self.metrics = metrics

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Prints the chosen metrics instead of the whole dictionary."""
        shown = [f"{name.rpartition('/')[2]} {float(logs[name]):.3f}" for name in self.metrics if name in logs]
        if state.is_world_process_zero and self.training_bar is not None and len(shown) == len(self.metrics):
            self.training_bar.write(f"step {state.global_step:>5}  " + "  ".join(shown))


def show_short_progress(trainer: Trainer, metrics: tuple[str, ...]) -> None:
    """Replace the trainer's progress display by `ShortProgressCallback`, unless progress bars are disabled."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ShortProgressCallback(metrics))
