"""What the console shows during a run: progress bars and one short line per logging step, no noise from below."""

import logging
import os
import warnings
from typing import Any

import datasets
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

# Messages that no user of a recipe can act on: deprecations between the libraries below us, and optional kernels.
_NOISY_LOGGERS = ("bitsandbytes", "torch.distributed.elastic.multiprocessing.redirects")


def quiet_libraries() -> None:
    """Silence deprecation warnings of the libraries below, and progress bars of preprocessing steps."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each fork for a data loader worker warns


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
        if state.is_world_process_zero and self.training_bar is not None and shown:
            self.training_bar.write(f"step {state.global_step:>5}  " + "  ".join(shown))


def show_short_progress(trainer: Trainer, metrics: tuple[str, ...]) -> None:
    """Replace the trainer's progress display by `ShortProgressCallback`, unless progress bars are disabled."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ShortProgressCallback(metrics))
