"""Mean and standard deviation of a stream of numbers, to scale rewards by."""

import math

import torch
from torch import Tensor


class RunningMeanStd:
    r"""Count, mean and spread of all values seen, in float64.

    Batches merge exactly, so how the stream was cut does not matter: with $\delta = \bar x_b - \bar x_a$,
    $M = M_a + M_b + \delta^2 n_a n_b / n$, where $M$ is the sum of squares about the mean (Chan, Golub and LeVeque
    1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances).

    Attributes:
        count: Values seen.
        mean: Their mean, 0 before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # sum of squares about the mean

    def update(self, values: Tensor) -> None:
        """Take in `values`, of any shape. Give every process the values of all, so that all hold the same numbers.

        Raises:
            ValueError: A value that is not finite; it would stay in the mean for ever.
        """
        if values.numel() == 0:
            return
        batch = values.detach().to("cpu", torch.float64)
        if not batch.isfinite().all():
            raise ValueError(f"{int((~batch.isfinite()).sum())} of {batch.numel()} values are not finite.")
        n, mean = batch.numel(), batch.mean().item()
        total, delta = self.count + n, mean - self.mean
        self._squares += (batch - mean).square().sum().item() + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def scale(self) -> float:
        """The standard deviation (divided by n), or 1 as long as the values do not differ beyond float32 rounding."""
        std = math.sqrt(self._squares / max(self.count, 1))
        return std if std > 1e-6 * abs(self.mean) else 1.0

    def state_dict(self) -> dict[str, float]:
        """Three numbers, which JSON keeps exactly."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict()`."""
        self.count, self.mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])
