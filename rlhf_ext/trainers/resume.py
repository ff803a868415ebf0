"""What the trainers share so that a resumed run equals the uninterrupted one."""

from typing import Any

from transformers import Trainer


class StopsWhenComplete(Trainer):
    """A `Trainer` that makes no step beyond the last one.

    A run that was killed after its last checkpoint, while the results were saved, is complete when it is resumed.
    """

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Ends at once where no step is left: Transformers looks only after a step, and would make one too many."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True
