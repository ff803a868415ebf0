"""`RewardTrainer` and `RewardConfig`: TRL's, plus losses of one's own, a margin, and calibrated scores.

How it works: TRL's `compute_loss` does the forward pass and every metric and returns the scores; the loss is computed
from those. Scores are read at the last attended token, in training as in `RewardModel` (see `pooling.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import trl
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import TrainOutput

from ..losses.preference import centering
from ..pooling import pool_by_attention_mask
from ..quantization import keep_gradients_on_cpu
from ..reward_settings import RewardModelSettings
from .plugin_losses import (
    bind_losses,
    check_extras_of,
    check_losses,
    collate_with_extras,
    parse_columns,
    parse_loss_kwargs,
    try_losses,
)
from .resume import StopsWhenComplete
from .reward_head import add_head_dropout, initialize_head, keep_in_float32, reward_head

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass
class RewardConfig(trl.RewardConfig):
    r"""`trl.RewardConfig` with plugin losses, options of the reward head, and calibration.

    Parameters:
        loss_type (`list[str]`, *optional*, defaults to `["margin"]`):
            Registered names (`rlhf_ext.list_plugins("preference_loss")`), `"package.module:function"` or
            `"path/to/file.py:function"`. A list mixes them with the weights in `loss_weights`. TRL's own loss is
            `"bradley_terry"`, or `"margin"` with `loss_kwargs={"margin": 0.0}` where the dataset has a column `margin`.
        loss_weights (`list[float]`, *optional*):
            One weight per loss; all 1 by default.
        loss_kwargs (`dict[str, Any]`, *optional*):
            Keywords for the losses. Each loss receives those that it takes; one that no loss takes is an error.
        extra_columns (`list[str]`, *optional*):
            Numeric dataset columns that losses find in `extras`. A column `margin` need not be named, as in TRL.
        head_dropout (`float`, *optional*, defaults to `0.1`):
            Dropout on the hidden state before the reward head. `disable_dropout` concerns the rest of the model.
        head_init (`str`, *optional*):
            How to initialise the reward head: `"normal"` (standard deviation 0.02) or `"inverse_sqrt"` (1 / sqrt(d + 1)
            for hidden size d, Stiennon et al. 2020, https://huggingface.co/papers/2009.01325). By default it is left as
            loaded.
        calibrate (`bool`, *optional*, defaults to `True`):
            Fit score offset and temperature on the evaluation set after training.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["margin"],
        metadata={
            "help": "Loss or losses: registered names, 'package.module:function' or 'path/to/file.py:function'. "
            "Several are mixed with `loss_weights`."
        },
    )
    loss_weights: list[float] | None = field(default=None, metadata={"help": "One weight per loss in `loss_type`."})
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords for the losses, as JSON on the command line."}
    )
    extra_columns: list[str] = field(
        default_factory=list, metadata={"help": "Numeric dataset columns that losses find in `extras`."}
    )
    head_dropout: float = field(default=0.1, metadata={"help": "Dropout on the hidden state before the reward head."})
    head_init: str | None = field(
        default=None,
        metadata={
            "help": "Initialise the reward head: 'normal' (standard deviation 0.02) or 'inverse_sqrt' (1/sqrt(d+1)). "
            "Default: as loaded.",
            "choices": ["normal", "inverse_sqrt"],
        },
    )
    calibrate: bool = field(
        default=True, metadata={"help": "Fit score offset and temperature on the evaluation set after training."}
    )

    def __post_init__(self) -> None:
        """Adds the checks of the losses, their keywords and the options of the head."""
        super().__post_init__()
        self.loss_type = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        self.extra_columns = parse_columns(self.extra_columns)
        self.loss_kwargs = parse_loss_kwargs(self.loss_kwargs)
        if self.loss_weights is None:
            self.loss_weights = [1.0] * len(self.loss_type)
        if len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"loss_weights={self.loss_weights} must have one weight per loss in {self.loss_type}.")
        if not 0.0 <= self.head_dropout < 1.0:
            raise ValueError(f"head_dropout must lie in [0, 1), got {self.head_dropout}.")
        if self.head_init not in (None, "normal", "inverse_sqrt"):
            raise ValueError(f"head_init must be 'normal' or 'inverse_sqrt', got {self.head_init!r}.")
        self.plugin_losses(self.extra_columns)

    def plugin_losses(self, extra_columns: list[str]) -> dict[str, Callable[..., Tensor]]:
        """Return the losses in `loss_type` with their keywords bound, each tried out on two pairs.

        Raises:
            PluginError: A loss does not exist, has a wrong signature or fails; or none reads a keyword or a column.
        """
        losses = bind_losses("preference_loss", self.loss_type, self.loss_kwargs, options={})
        scores = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
        try_losses(losses, extra_columns, lambda loss, extras: loss(*scores, extras=extras))
        return losses


class RewardTrainer(StopsWhenComplete, trl.RewardTrainer):
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
            DataError: An extra column is missing, not numeric or not finite.
            ValueError: The reward head would not be trained.
        """
        if args is not None and not isinstance(args, RewardConfig):
            raise TypeError(
                f"args must be an rlhf_ext.RewardConfig, got {type(args).__module__}.{type(args).__name__}."
            )
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = RewardConfig(f"{name}-Reward".split("/")[-1])
        self._extra_columns = list(args.extra_columns)
        if "margin" not in self._extra_columns and "margin" in (getattr(train_dataset, "column_names", None) or ()):
            self._extra_columns.append("margin")
        self._losses = args.plugin_losses(self._extra_columns)
        check_extras_of(train_dataset, eval_dataset, self._extra_columns)
        if peft_config is not None and peft_config.task_type not in (None, "SEQ_CLS"):
            raise ValueError(
                f"peft_config has task_type={str(peft_config.task_type)!r}, under which the reward head would not be "
                "trained. Use task_type='SEQ_CLS'."
            )
        if processing_class is None and isinstance(model, str):
            processing_class = _load_tokenizer(model, args)
        if processing_class is not None and processing_class.eos_token is None and args.eos_token is None:
            # Encoders end a text with their separator, which TRL then adds as it adds the end of sequence elsewhere.
            args.eos_token = processing_class.sep_token
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
        head = reward_head(self.model)
        if not head.weight.requires_grad:
            raise ValueError(
                "The reward head would stay as it was initialised: use a peft_config with task_type='SEQ_CLS', or name "
                "the head in its modules_to_save."
            )
        if is_peft_model(self.model):
            keep_in_float32(head)
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
            dtype=str(base.dtype).removeprefix("torch."),
        )

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
        # TRL's collator passes a column `margin` on by itself; a streamed dataset may have one that nobody knew of.
        extras = {key: inputs[key] for key in ("margin",) if key in inputs} | inputs.get("extras", {})
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
        return result

    def calibrate(self) -> RewardModelSettings:
        """Fit score offset and temperature on the evaluation set; `save_model` writes them beside the model.

        After that scores have mean 0 there, and `sigmoid(score difference / temperature)` is the probability, in the
        sense of the lowest negative log-likelihood, that the first of two texts is the preferred one.

        Raises:
            ValueError: There is no evaluation set.
        """
        from ..evaluation.calibration import fit_temperature

        chosen_rewards, rejected_rewards = self.eval_scores = self._score_evaluation_set()
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
        training = self.model.training
        self.model.eval()
        for name in names:
            for inputs in self.get_eval_dataloader(name):
                batch = {key: inputs[key] for key in ("input_ids", "attention_mask")}
                with torch.no_grad(), self.compute_loss_context_manager():
                    scores = self.model(**self._prepare_inputs(batch)).logits.squeeze(-1)
                gathered = self.accelerator.gather_for_metrics(scores.double().chunk(2))
                parts.append(torch.stack(tuple(gathered)).cpu())
        self.model.train(training)
        chosen_rewards, rejected_rewards = torch.cat(parts, dim=1)
        return chosen_rewards, rejected_rewards

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves offset, temperature and what else `RewardModel` needs beside the model."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.settings.save(output_dir or self.args.output_dir)


def _load_tokenizer(model: str, args: RewardConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    revision = (args.model_init_kwargs or {}).get("revision")
    return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
