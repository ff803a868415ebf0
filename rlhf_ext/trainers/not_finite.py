"""Scores, losses and gradients that are NaN or infinite: a run stops before its weights or checkpoints are spoiled."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import NotFiniteError

LONGEST_EXCERPT = 200  # characters


def check_scores(scores: Tensor, first: int, prompts: Sequence[Any], completions: Sequence[Any]) -> None:
    """Raise where a completion has no finite score.

    Args:
        scores: Of all processes, (N,).
        first: Where this process's completions start.
        prompts: Of this process.
        completions: Of this process.

    Raises:
        NotFiniteError: Naming the prompt and the completion.
    """
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if not bad:
        return
    mine = [row - first for row in bad if first <= row < first + len(prompts)]
    sample = _excerpt(prompts[mine[0]], completions[mine[0]]) if mine else "another process names it"
    raise NotFiniteError(
        f"{len(bad)} of {len(scores)} completions have no finite score (None by every reward function, NaN or "
        f"infinite). Every completion needs one. The first: {sample}."
    )


def not_finite_step(done: int, folder: str) -> NotFiniteError:
    """Return the error for a loss that is not finite after so many steps, naming the last checkpoint."""
    if not done:
        return NotFiniteError(
            "The loss of the first step is not finite: the model's weights are damaged, or overflow in its dtype."
        )
    return NotFiniteError(f"The loss of step {done + 1} is not finite. {last_checkpoint(folder)}")


def not_finite_loss(rows: Tensor, prompts: Sequence[str], completions: Sequence[str], folder: str) -> NotFiniteError:
    """Return the error for a loss that is not finite, naming the sample and the last checkpoint.

    Args:
        rows: Sums per completion of what goes into the loss, (B,); not finite where the cause is.
        prompts: Texts, B of them.
        completions: Texts, B of them.
        folder: Where checkpoints are.
    """
    bad = (~rows.isfinite()).nonzero().flatten().tolist()
    sample = _excerpt(prompts[bad[0]], completions[bad[0]]) if bad else "none in particular"
    return NotFiniteError(f"The loss is not finite. The sample: {sample}. {last_checkpoint(folder)}")


def not_finite_gradient(named: Iterable[tuple[str, nn.Parameter]], folder: str) -> NotFiniteError:
    """Return the error for a gradient that is not finite, naming the first weight and the last checkpoint.

    Args:
        named: Weights with their names; of sharded ones, this process's part is looked at.
        folder: Where checkpoints are.
    """
    gradients = ((name, weight.grad) for name, weight in named if weight.grad is not None)
    local = ((name, part.to_local() if isinstance(part, DTensor) else part) for name, part in gradients)
    bad = [name for name, part in local if not part.isfinite().all()]
    first = f" It is that of {len(bad)} weights, the first of them {bad[0]}." if bad else ""
    return NotFiniteError(f"The gradient is not finite. {last_checkpoint(folder)}{first}")


def last_checkpoint(folder: str) -> str:
    """Say from where to go on."""
    steps = [int(path.name.rpartition("-")[2]) for path in Path(folder).glob("checkpoint-*")]
    if not steps:
        return "There is no checkpoint to go back to; lower the learning rate."
    return f"The last checkpoint, checkpoint-{max(steps)}, was made before: resume from it with a lower learning rate."


def _excerpt(prompt: Any, completion: Any) -> str:
    parts = (("prompt", prompt), ("completion", completion))
    return ", ".join(f"{name} {repr(value)[:LONGEST_EXCERPT]}" for name, value in parts)
