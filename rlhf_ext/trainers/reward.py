"""`RewardTrainer`: TRL's, plus losses of one's own, a margin, and calibrated scores.

How it works: TRL's `compute_loss` does the forward pass and every metric and returns the scores; the loss is computed
from those. Scores are read at the last attended token, in training as in `RewardModel` (see `reward_model/pooling.py`).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow.compute
import torch
import trl
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import TrainOutput

from ..context import context_length
from ..data_checks import STREAMED_ROWS_CHECKED, DataError
from ..dropout import evaluation_mode
from ..errors import NotFiniteError
from ..loading_options import loading_options
from ..losses.preference import centering
from ..quantization import keep_gradients_on_cpu
from ..reward_model.base_fingerprint import base_fingerprint
from ..reward_model.layers import score_layer, unquantized
from ..reward_model.pooling import classification_module, pool_by_attention_mask
from ..reward_model.settings import RewardModelSettings, dtype_name
from .length_groups import GroupsByLength, check_not_streamed
from .not_finite import last_checkpoint
from .plugin_losses import check_extras_of, check_losses, collate_with_extras
from .resume import ResumesExactly
from .reward_config import RewardConfig
from .reward_head import add_head_dropout, initialize_head, keep_in_float32
from .reward_peft import check_adapter, check_whole, layers_beside, whole_layers, with_layers
from .trainable import check_trainable

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.getLogger(__name__)


class RewardTrainer(ResumesExactly, GroupsByLength, trl.RewardTrainer):
    """`trl.RewardTrainer` whose loss is a plugin, with a margin by default. Arguments are otherwise TRL's.

    ```python
    from rlhf_ext import RewardConfig, RewardModel, RewardTrainer

    args = RewardConfig(output_dir="out", loss_kwargs={"margin": 0.1})
    trainer = RewardTrainer("Qwen/Qwen3-0.6B", args=args, train_dataset=train, eval_dataset=held_out)
    trainer.train()
    trainer.save_model()
    RewardModel.from_pretrained("out").compare("The answer is 4.", "I do not know.")
    ```
    """

    _tag_names: ClassVar[list[str]] = ["trl", "reward-trainer", "rlhf_ext"]

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RewardConfig | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        peft_config: "PeftConfig | None" = None,
        **trl_kwargs: Any,
    ) -> None:
        """Resolves the losses and checks the extra columns before TRL loads the model; prepares the reward head after.

        Raises:
            TypeError: `args` is not an `rlhf_ext.RewardConfig`.
            DataError: There are no rows, or none within `max_length`; an extra column is missing, not numeric or not
                finite; or a row is longer than the model takes.
            ValueError: `model` names an adapter, or all its weights are frozen; the head, or another layer that the
                model's checkpoint lacks, would not be trained or saved; a dropout would not be applied; streamed rows
                are to be grouped by length; or there is no tokenizer, or none with an end token.
        """
        if args is not None and not isinstance(args, RewardConfig):
            raise TypeError(
                f"args must be an rlhf_ext.RewardConfig, got {type(args).__module__}.{type(args).__name__}."
            )
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = RewardConfig(f"{name}-Reward".split("/")[-1])
        check_not_streamed(args, train_dataset)
        if isinstance(train_dataset, Dataset) and not len(train_dataset):
            raise DataError("it holds no rows.", "Give it at least one.", source="the train dataset")
        self._extra_columns = _columns_for_losses(args, train_dataset, eval_dataset)
        self._losses = args.plugin_losses(self._extra_columns)
        check_extras_of(train_dataset, eval_dataset, self._extra_columns)
        check_adapter(model, peft_config, disable_dropout=args.disable_dropout)
        check_whole(model, loading_options(args)["revision"])
        if processing_class is None:
            processing_class = _load_tokenizer(model, args)
        _settle_end_token(processing_class, args, train_dataset)
        layers = layers_beside(model, loading_options(args)) if peft_config or isinstance(model, PeftModel) else []
        if peft_config is not None:
            peft_config = with_layers(peft_config, layers)
            for options in (trl_kwargs, args.model_init_kwargs or {}):
                if "quantization_config" in options:
                    options["quantization_config"] = unquantized(options["quantization_config"], layers)
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            **trl_kwargs,
        )
        check_trainable(self.model)
        if isinstance(self.train_dataset, Dataset) and not len(self.train_dataset):
            fix = "Raise max_length, or shorten the texts."
            raise DataError(f"every pair is longer than max_length={args.max_length}.", fix, source="the train dataset")
        if is_peft_model(self.model):
            for layer in whole_layers(self.model, layers):
                keep_in_float32(layer)
        self._check_lengths()
        head = score_layer(self.model)
        if args.head_init is not None:
            initialize_head(head, args.head_init, seed=args.seed)
        add_head_dropout(head, args.head_dropout)
        pool_by_attention_mask(self.model)
        keep_gradients_on_cpu(self.model)
        if self._extra_columns:
            # A partial, not a closure: data loader workers started by spawn pickle their collator.
            self.data_collator = partial(collate_with_extras, collator=self.data_collator, columns=self._extra_columns)
        self.settings = self._initial_settings()
        self.eval_scores: tuple[Tensor, Tensor] | None = None  # of chosen and rejected, from the last calibration

    def _initial_settings(self) -> RewardModelSettings:
        """What `RewardModel` needs to know to score as in training; offset and temperature are not fitted yet."""
        base = self.model.get_base_model() if is_peft_model(self.model) else self.model
        quantization = getattr(base.config, "quantization_config", None)
        return RewardModelSettings(
            max_length=self.args.max_length,
            quantization=None if quantization is None else quantization.to_dict(),
            dtype=dtype_name(base.dtype),
            base=base_fingerprint(self.model) if is_peft_model(self.model) else None,
        )

    def _check_lengths(self) -> None:
        """Refuse rows that the model cannot take; in its own words it would be an index out of range, in some step."""
        context = context_length(classification_module(self.model))
        if context is None or (self.args.max_length or math.inf) <= context:
            return
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for name, dataset in {"train": self.train_dataset, **evaluated}.items():
            longest = 0 if dataset is None else _longest(dataset)
            if longest > context:
                problem = f"it has a row of {longest} tokens, and the model takes {context}."
                fix = f"Set max_length={context}: longer rows are then dropped."
                raise DataError(problem, fix, source=f"the {name} dataset")

    def _set_signature_columns_if_needed(self) -> None:
        """Keeps the extra columns, which `remove_unused_columns` would drop."""
        super()._set_signature_columns_if_needed()
        missing = [name for name in self._extra_columns if name not in self._signature_columns]
        self._signature_columns += missing

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Returns the weighted losses of `loss_type` on the scores of TRL's pass, in place of TRL's loss.

        Raises:
            ValueError: A loss returns anything but a differentiable tensor of shape (B,).
        """
        extras = inputs.get("extras", {})
        inputs = {key: value for key, value in inputs.items() if key not in ("extras", "margin")}
        _, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        chosen_rewards, rejected_rewards = outputs.logits.squeeze(-1).chunk(2)
        loss = sum(
            weight
            * check_losses(name, loss(chosen_rewards, rejected_rewards, extras=extras), len(chosen_rewards)).mean()
            for (name, loss), weight in zip(self._losses.items(), self.args.loss_weights, strict=True)
        )
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * centering(chosen_rewards, rejected_rewards).mean()
        return (loss, outputs) if return_outputs else loss

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Calibrates the scores on the evaluation set once training has ended."""
        result = super().train(*args, **kwargs)
        if self.args.calibrate and self.eval_dataset is not None:
            self.calibrate()
        elif self.args.calibrate and self.is_world_process_zero():
            logger.warning("The scores are not calibrated, for want of an eval_dataset (calibrate=False says so).")
        return result

    def calibrate(self) -> RewardModelSettings:
        """Fit score offset and temperature on the evaluation set; `save_model` writes them beside the model.

        After that scores have mean 0 there, and `sigmoid(score difference / temperature)` is the probability, in the
        sense of the lowest negative log-likelihood, that the first of two texts is the preferred one.

        Raises:
            NotFiniteError: A score is NaN or infinite.
            ValueError: There is no evaluation set.
        """
        from ..evaluation.calibration import fit_temperature

        chosen_rewards, rejected_rewards = self.eval_scores = self._score_evaluation_set()
        if not (chosen_rewards + rejected_rewards).isfinite().all():
            raise NotFiniteError(f"The scores are not finite after training. {last_checkpoint(self.args.output_dir)}")
        self.settings = replace(
            self.settings,
            score_offset=torch.cat([chosen_rewards, rejected_rewards]).mean().item(),
            temperature=fit_temperature((chosen_rewards - rejected_rewards).numpy()),
        )
        return self.settings

    def _score_evaluation_set(self) -> tuple[Tensor, Tensor]:
        """Scores of the evaluation pairs, gathered from all processes, each of shape (pairs,), float64 on the CPU."""
        if self.eval_dataset is None:
            raise ValueError("Calibration needs held-out pairs: pass an eval_dataset, or set calibrate=False.")
        names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]
        parts = []
        with evaluation_mode(self.model):
            for name in names:
                for inputs in self.get_eval_dataloader(name):
                    batch = {key: inputs[key] for key in ("input_ids", "attention_mask")}
                    with torch.no_grad(), self.compute_loss_context_manager():
                        scores = self.model(**self._prepare_inputs(batch)).logits.squeeze(-1)
                    gathered = self.accelerator.gather_for_metrics(scores.double().chunk(2))
                    parts.append(torch.stack(tuple(gathered)).cpu())
        chosen_rewards, rejected_rewards = torch.cat(parts, dim=1)
        return chosen_rewards, rejected_rewards

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves offset, temperature and what else `RewardModel` needs beside the model."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.settings.save(output_dir or self.args.output_dir)


def _columns_for_losses(args: RewardConfig, train_dataset: Any, eval_dataset: Any) -> list[str]:
    """Return the extra columns, and `margin` where the rows have it, which need not be named, as in TRL.

    Raises:
        DataError: Only the rows to evaluate on have it.
    """
    evaluated = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    if "margin" in args.extra_columns or _has_margin(train_dataset):
        return list(dict.fromkeys([*args.extra_columns, "margin"]))
    if any(map(_has_margin, evaluated)):
        fix = "Remove it, or give the train dataset one."
        raise DataError("the train dataset has no such column.", fix, source="the eval dataset", column="margin")
    return list(args.extra_columns)


def _has_margin(dataset: Dataset | IterableDataset | None) -> bool:
    # A streamed dataset may not know its columns.
    return dataset is not None and "margin" in (dataset.column_names or next(iter(dataset), ()))


def _longest(dataset: Dataset | IterableDataset) -> int:
    """Return the most tokens that a text of a prepared dataset has, in its first rows if it is streamed."""
    columns = ["chosen_ids", "rejected_ids"]
    if isinstance(dataset, IterableDataset):
        return max(len(row[name]) for row in islice(dataset, STREAMED_ROWS_CHECKED) for name in columns)
    table = dataset.select_columns(columns).with_format("arrow")[:]
    lengths = [pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py() for column in table.columns]
    return max(length or 0 for length in lengths)


def _load_tokenizer(model: str | PreTrainedModel, args: RewardConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if isinstance(model, str):
        return AutoTokenizer.from_pretrained(model, **loading_options(args))
    if not model.config._name_or_path:
        raise ValueError("the model was never saved, so there is no tokenizer beside it: pass a processing_class.")
    return AutoTokenizer.from_pretrained(model.config._name_or_path, trust_remote_code=args.trust_remote_code)


def _settle_end_token(tokenizer: PreTrainedTokenizerBase, args: RewardConfig, train_dataset: Any) -> None:
    """Let encoders, which have no end token, end a text with their separator."""
    if tokenizer.eos_token is not None or args.eos_token is not None:
        return
    args.eos_token = tokenizer.sep_token
    plain = train_dataset is not None and isinstance(next(iter(train_dataset), {}).get("chosen"), str)
    if args.eos_token is None and plain:  # a chat template ends a conversation by itself
        raise ValueError(
            "the tokenizer has neither an end-of-sequence token nor a separator to end a text with: name one of its "
            "tokens as eos_token in the configuration."
        )
