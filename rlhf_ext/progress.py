"""What a run shows while it goes on: a line about what is trained, a progress bar, one short line per logging step."""

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from .demo import model_path
from .run_report.facts import parameter_counts


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


def say_what_is_trained(trainer: Trainer, source: str) -> None:
    """Print one line: how much of which model learns, and from how many rows of what.

    Args:
        trainer: A TRL trainer.
        source: What to call the data.
    """
    trained, total = parameter_counts(trainer)
    path = trainer.model.config._name_or_path
    name = "the embedded model" if path == model_path() else Path(path).name
    rows = [
        f"{len(dataset):,} rows" if hasattr(dataset, "__len__") else "streamed rows"
        for dataset in (trainer.train_dataset, trainer.eval_dataset)
    ]
    trainer.accelerator.print(
        f"Training {trained:,} of {total:,} parameters of {name} on {rows[0]} of {source}; {rows[1]} are held out."
    )
