"""`DPOTrainer` and `DPOConfig`: TRL's, plus losses of one's own.

How it works: TRL's `compute_loss` does the one forward pass of the policy, its own losses and every metric. We hand it
the reference log-probabilities and a model that remembers its output; from that output come the plugin losses, which
are added to TRL's. No method body of TRL is repeated here, and no pass is made twice.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

import torch
import trl
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..dropout import check_adapter_dropout
from ..losses.dpo import DPOBatch
from ..plugins import KINDS, PluginError, find_entry_points, find_registered
from ..quantization import keep_gradients_on_cpu
from ..replaced import replaced
from .length_groups import GroupsByLength, check_not_streamed
from .plugin_losses import (
    bind_losses,
    check_extras_of,
    check_losses,
    collate_with_extras,
    parse_columns,
    parse_keywords,
    try_losses,
)
from .resume import ResumesExactly
from .trainable import check_adapter_name, check_trainable

# TRL keeps its loss names in an if/elif whose error for an unknown one lists them; a test compares this set with it.
# fmt: off
TRL_LOSSES = frozenset([
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
])
# fmt: on
# Options that TRL applies inside its losses, with the losses that read them (None: all of TRL's).
_TRL_LOSS_OPTIONS: dict[str, frozenset[str] | None] = {
    "f_divergence_type": None,
    "f_alpha_divergence_coef": None,
    "ld_alpha": None,
    "use_weighting": None,
    "discopop_tau": frozenset({"discopop"}),
    "label_smoothing": frozenset({"robust", "exo_pair", "aot", "aot_unpaired"}),
}


@dataclass
class DPOConfig(trl.DPOConfig):
    r"""`trl.DPOConfig` with plugin losses.

    Parameters:
        loss_type (`list[str]`, *optional*, defaults to `["sigmoid"]`):
            TRL's names, registered names (`rlhf_ext.list_plugins("dpo_loss")`), `"package.module:function"` or
            `"path/to/file.py:function"`. A list mixes any of them with the weights in `loss_weights`. A name that TRL
            has runs TRL's code.
        loss_kwargs (`dict[str, Any]`, *optional*):
            Keywords for the plugin losses. Each loss receives those that it takes; one that no loss takes is an error.
        extra_columns (`list[str]`, *optional*):
            Numeric dataset columns that plugin losses find in `batch.extras`, such as a margin or a weight.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={
            "help": "Loss or losses: TRL's names, registered names, 'package.module:function' or "
            "'path/to/file.py:function'. Several are mixed with `loss_weights`."
        },
    )
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords for the plugin losses, as JSON on the command line."}
    )
    extra_columns: list[str] = field(
        default_factory=list, metadata={"help": "Numeric dataset columns that plugin losses find in `batch.extras`."}
    )

    def __post_init__(self) -> None:
        """Adds the checks of the losses, their keywords and options that would have no effect."""
        super().__post_init__()
        self._check_unread()
        self.loss_kwargs = parse_keywords("loss_kwargs", self.loss_kwargs)
        self.extra_columns = parse_columns(self.extra_columns)
        self.plugin_losses()

    def plugin_losses(self) -> dict[str, Callable[..., Tensor]]:
        """Return the losses in `loss_type` that are not TRL's, with their keywords bound, each tried out on two pairs.

        Raises:
            PluginError: A loss does not exist, has a wrong signature or fails; or none reads a keyword or a column.
            ValueError: An option has no effect under these losses.
        """
        _check_names(self.loss_type)
        names = [name for name in self.loss_type if name not in TRL_LOSSES]
        # At 0, TRL's default, a loss keeps its own default.
        options = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        losses = bind_losses("dpo_loss", names, self.loss_kwargs, options)
        self._check_options(losses)
        try_losses(losses, self.extra_columns, lambda loss, extras: loss(_trial_batch(extras), beta=self.beta))
        return losses

    def _check_unread(self) -> None:
        """Raise for options of Transformers and TRL that no loss reads."""
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} has no effect, as DPO has no labels of tokens. "
                "Use label_smoothing; for the sigmoid loss with loss_type='cdpo'."
            )
        if self.padding_free:
            raise ValueError(
                "padding_free=True has no effect: TRL pads all the same. Drop it; "
                "train_sampling_strategy='group_by_length' leaves less to pad."
            )

    def _check_options(self, losses: Mapping[str, Callable[..., Tensor]]) -> None:
        """Raise where an option would have no effect."""
        if self.label_smoothing and "label_smoothing" in self.loss_kwargs:
            raise ValueError("label_smoothing is set twice: remove it from loss_kwargs or unset the option.")
        if self.extra_columns and not losses:
            raise ValueError(
                f"extra_columns={self.extra_columns} has no effect: loss_type={self.loss_type} holds only TRL's own "
                "losses, which read no extra columns. Use a plugin loss such as 'odpo', or drop the option."
            )
        defaults = {option.name: option.default for option in fields(self)}
        coefficient, divergence = self.f_alpha_divergence_coef, self.f_divergence_type
        if coefficient != defaults["f_alpha_divergence_coef"] and divergence != "alpha_divergence":
            raise ValueError(
                f"f_alpha_divergence_coef={coefficient} has no effect under f_divergence_type={divergence!r}: set "
                "f_divergence_type='alpha_divergence', or drop it."
            )
        for option, readers in _TRL_LOSS_OPTIONS.items():
            if getattr(self, option) == defaults[option]:
                continue
            if readers is None:
                ignored_by = {*losses}
            else:
                is_read = readers & {*self.loss_type} or any(option in loss.keywords for loss in losses.values())
                ignored_by = {} if is_read else self.loss_type
            if ignored_by:
                smoothed = " For the sigmoid loss with label smoothing use loss_type='cdpo'."
                hint = smoothed if option == "label_smoothing" else ""
                raise ValueError(
                    f"{option}={getattr(self, option)!r} has no effect on the loss "
                    f"{', '.join(map(repr, sorted(ignored_by)))}. Leave it at {defaults[option]!r}, or use TRL losses "
                    f"that read it: {', '.join(sorted(readers or TRL_LOSSES))}.{hint}"
                )


def _check_names(loss_type: list[str]) -> None:
    """Our own `sigmoid`, `hinge` and `ipo` equal TRL's (tested); any other plugin by a name of TRL's is ambiguous."""
    for name in TRL_LOSSES & {*loss_type}:
        registered = find_registered("dpo_loss", name)
        if registered is not None and registered.__module__ != KINDS["dpo_loss"].builtin_module:
            raise PluginError(
                f"dpo_loss {name!r} is registered, but TRL has a loss by that name too. Register yours under another."
            )
        if offered := find_entry_points("dpo_loss", name):  # which the user has perhaps only installed
            warnings.warn(
                f"loss_type {name!r} is TRL's loss. Write 'module:function' for that of {', '.join(offered)}.",
                stacklevel=2,
            )


class DPOTrainer(ResumesExactly, GroupsByLength, trl.DPOTrainer):
    """`trl.DPOTrainer` whose `loss_type` also takes plugin losses. Arguments and behaviour are otherwise TRL's.

    ```python
    from rlhf_ext import DPOConfig, DPOTrainer, register

    @register("dpo_loss", "my_loss")
    def my_loss(batch, *, beta, scale=1.0):
        return scale * (beta * (batch.rejected_logratios - batch.chosen_logratios)).exp()

    args = DPOConfig(output_dir="out", loss_type="my_loss", loss_kwargs={"scale": 2.0})
    DPOTrainer("Qwen/Qwen3-0.6B", args=args, train_dataset=dataset).train()
    ```
    """

    _tag_names: ClassVar[list[str]] = ["trl", "dpo", "rlhf_ext"]

    def __init__(
        self,
        model: str | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        *trl_args: Any,
        **trl_kwargs: Any,
    ) -> None:
        """Resolves the plugin losses and checks the extra columns before TRL loads the model.

        Raises:
            TypeError: `args` is not an `rlhf_ext.DPOConfig`.
            DataError: An extra column is missing, not numeric or not finite.
            ValueError: Every weight of the model is frozen, its adapter is not called "default", a dropout was asked
                for that would not be applied, or streamed rows are to be grouped by length.
        """
        if args is not None and not isinstance(args, DPOConfig):
            raise TypeError(f"args must be an rlhf_ext.DPOConfig, got {type(args).__module__}.{type(args).__name__}.")
        if args is None:
            args = DPOConfig(f"{model if isinstance(model, str) else model.config._name_or_path}-DPO".split("/")[-1])
        if args.disable_dropout:
            check_adapter_dropout(model, trl_kwargs.get("peft_config"))
        check_adapter_name(model)
        check_not_streamed(args, train_dataset)
        losses = args.plugin_losses()
        self._plugin_losses: list[tuple[str, float, Callable[..., Tensor]]] | None = (
            None  # until TRL has set up the rest
        )
        check_extras_of(train_dataset, eval_dataset, args.extra_columns)
        super().__init__(model, ref_model, args, data_collator, train_dataset, eval_dataset, *trl_args, **trl_kwargs)
        check_trainable(self.model)
        keep_gradients_on_cpu(self.model)
        weights = self.loss_weights
        self.loss_types = [name for name in args.loss_type if name not in losses]
        self.loss_weights = [w for name, w in zip(args.loss_type, weights, strict=True) if name not in losses]
        self._plugin_losses = [
            (name, weight, losses[name]) for name, weight in zip(args.loss_type, weights, strict=True) if name in losses
        ]
        if args.extra_columns:
            # A partial, not a closure: data loader workers started by spawn pickle their collator.
            self.data_collator = partial(collate_with_extras, collator=self.data_collator, columns=args.extra_columns)

    def _set_signature_columns_if_needed(self) -> None:
        """Keeps the extra columns, which `remove_unused_columns` would drop."""
        super()._set_signature_columns_if_needed()
        missing = [name for name in self.args.extra_columns if name not in self._signature_columns]
        self._signature_columns += missing

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Leaves out the extra columns, which the model's forward does not know.

        With `precompute_ref_log_probs` TRL's constructor comes here, which makes it the first pass through the model.
        """
        if self._plugin_losses is None:
            keep_gradients_on_cpu(self.model)
        return super().compute_ref_log_probs(model, {key: value for key, value in inputs.items() if key != "extras"})

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Adds the weighted plugin losses, computed from the same forward pass, to what TRL returns.

        Raises:
            ValueError: A plugin loss returns anything but a differentiable tensor of shape (B,).
        """
        extras = inputs.get("extras", {})
        inputs = {key: value for key, value in inputs.items() if key != "extras"}
        if not self._plugin_losses:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        if not self.precompute_ref_logps:
            reference = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = reference
        policy = _RecordOutput(model)
        # The reference is in the inputs now: TRL must read it from there, as it does after precomputing it.
        with replaced(self, precompute_ref_logps=True):
            result = super().compute_loss(policy, inputs, return_outputs, num_items_in_batch)

        batch = _make_batch(policy.output.log_probs, inputs, extras)
        plugin_loss = sum(
            weight * check_losses(name, loss(batch, beta=self.beta), batch.chosen_logps.numel()).mean()
            for name, weight, loss in self._plugin_losses
        )
        return (result[0] + plugin_loss, result[1]) if return_outputs else result + plugin_loss


class _RecordOutput:
    """Calls the model and keeps the output of the first call (`return_outputs` makes a second, for the logits)."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.output = model, None

    def __call__(self, **inputs: Any) -> Any:
        output = self.model(**inputs)
        if self.output is None:
            self.output = output
        return output


def _make_batch(log_probs: Tensor, inputs: Mapping[str, Tensor], extras: Mapping[str, Tensor]) -> DPOBatch:
    """Sum per-token log-probabilities over completions; chosen rows come first, then rejected ones.

    Args:
        log_probs: (2B, T), zero outside the completion. Prompt-learning adapters prepend virtual tokens, cut off here.
        inputs: The batch, with `completion_mask` (2B, T + 1) and the reference log-probabilities (B,).
        extras: The extra columns, each (B,).
    """
    completion_mask = inputs["completion_mask"][:, 1:]
    chosen_logps, rejected_logps = log_probs[:, -completion_mask.size(1) :].sum(dim=1).chunk(2)
    # A completion may be cut off entirely by max_length; its log-probability is 0 and must not become 0 / 0.
    chosen_lengths, rejected_lengths = completion_mask.sum(dim=1).clamp(min=1).chunk(2)
    return DPOBatch(
        chosen_logps,
        rejected_logps,
        inputs["ref_chosen_logps"],
        inputs["ref_rejected_logps"],
        chosen_lengths,
        rejected_lengths,
        extras,
    )


def _trial_batch(extras: Mapping[str, Tensor]) -> DPOBatch:
    """Two made-up pairs."""
    logps = [torch.tensor([-3.0, -4.0 - number]).requires_grad_(number < 2) for number in range(4)]
    lengths = [torch.tensor([3, 2]), torch.tensor([2, 4])]
    return DPOBatch(*logps, *lengths, extras)
