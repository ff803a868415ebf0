"""A trainer whose rollout makes the passes that training will make: the same texts side by side, with the same padding.

`completion_pass.py` says why. Batches with images stay as TRL makes them.
"""

from typing import Any

import torch
import trl
from torch import Tensor, nn
from trl.trainer import grpo_trainer

from ..adapters import causal_lm_of
from ..completion_pass import completion_pass, interleaved, micro_batches, rejoined
from ..replaced import replaced


class MakesSamePasses(trl.GRPOTrainer):
    """`trl.GRPOTrainer` whose log-probabilities at rollout differ from those in training by what was learned alone."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Takes completions in the order of the rollout's passes, where TRL shuffles them, as it still does images."""
        with replaced(grpo_trainer, **({} if self._is_vlm else {"shuffle_sequence_dict": self._in_order})):
            return super()._prepare_inputs(generation_batch)

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, ids: Tensor, mask: Tensor, length: int, batch_size: int | None = None, **kwargs: Any
    ) -> tuple:
        """Makes at rollout the passes that training will make, and leaves out what padding and prompts would add."""
        compute = super()._get_per_token_logps_and_entropies
        causal_lm = causal_lm_of(self.accelerator.unwrap_model(model))

        def one_pass(ids: Tensor, mask: Tensor, length: int, batch_size: int | None = None) -> tuple:
            with completion_pass(model, causal_lm, length, count_positions=not self._is_vlm):
                return compute(model, ids, mask, length, batch_size, **kwargs)

        if batch_size is None or self._is_vlm:  # batch_size is given at rollout
            return one_pass(ids, mask, length, batch_size)
        logps = [one_pass(*texts)[0] for texts in self._rollout_passes(ids, mask, length)]
        return rejoined(logps, self._order(len(ids)), length), None, None

    def _rollout_passes(self, ids: Tensor, mask: Tensor, length: int) -> list[tuple[Tensor, Tensor, int]]:
        """Return ids, mask and tokens of completions of each pass over prompts and completions."""
        size = getattr(self.args, f"per_device_{'train' if self.model.training else 'eval'}_batch_size")
        return micro_batches(ids, mask, length, self._order(len(ids)), size, trim=self._leaves_out_padding)

    def _order(self, count: int) -> Tensor:
        """The order in which `count` completions are taken into passes and steps."""
        return torch.arange(count) if self._is_vlm else interleaved(count, self.num_generations)

    def _in_order(self, batch: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        order = self._order(len(batch["completion_ids"]))
        return {name: value if value is None or not value.dim() else value[order] for name, value in batch.items()}

    @property
    def _leaves_out_padding(self) -> bool:
        return self.args.pad_to_multiple_of is None and not self._is_vlm
