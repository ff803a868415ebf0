"""An order of the training rows that depends on seed and epoch alone."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochSeededSampler(Sampler):
    """A sampler whose order depends on seed and epoch alone, so that a resumed run finds the batches it would have had.

    TRL's goes on with one generator, Transformers' order by length with the global one.

    Args:
        sampler: One that draws from its attribute `generator`.
        seed: Of the run.

    Attributes:
        epoch: `ResumesExactly` sets it when an epoch begins. Accelerate would tell a method `set_epoch`, but does not
            find the sampler in a run of several processes that goes on from a checkpoint.
    """

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
