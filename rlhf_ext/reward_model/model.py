"""`RewardModel`: scores of texts, comparisons and rankings, fast, and the same for a text whatever comes with it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..context import context_length
from ..dropout import evaluation_mode
from ..formatting import Example, InputError, check_says_something, count_prompt_tokens, tokenize
from ..quantization import casts_unmentioned, keep_gradients_on_cpu
from .base_fingerprint import base_fingerprint
from .loading import (
    RewardModelError,
    as_path,
    check_weights,
    choose_device,
    load_model,
    load_settings,
    load_tokenizer,
)
from .pooling import classification_module, pool_by_attention_mask
from .scoring import can_reuse_prompts, plan_batches, run_batches
from .settings import RewardModelSettings, dtype_name
from .text_scorer import TextScorer, warn_of_truncation

CPU_TOKENS, ACCELERATOR_TOKENS = 4096, 16384  # in a batch


class RewardModel(TextScorer):
    """A reward model with its tokenizer: a text in, a score out.

    ```python
    from rlhf_ext import RewardModel

    reward_model = RewardModel.from_pretrained("runs/reward")
    reward_model.score(("What is 2 + 2?", "4."))
    reward_model.compare("The answer is 4.", "I do not know.")
    GRPOTrainer(policy, reward_funcs=reward_model, ...)
    ```

    A score depends on its text alone: not on the padding side, nor on what else is in the batch. Texts are tokenized
    as in training. What is longer than `max_length` loses its beginning, and a warning says how many texts did.

    Args:
        model: A sequence-classification model with one output, or the PEFT model around one.
        tokenizer: The one it was trained with.
        settings: Score offset, temperature and maximum length of training; neutral by default.
        max_length: Tokens of a text at most. By default that of training, or what the model takes.
        token_budget: Tokens in a batch, padding included. By default 4096 on the CPU and 16384 elsewhere; but over
            8-bit weights every text is by itself, unless a `batch_size` is asked for: bitsandbytes rounds a number
            according to what else is in the batch, and scores would differ by some hundredths.
        reuse_prompts: Run a prompt that several texts share only once, where the model's cache allows it.
        show_progress: Show a progress bar; by default on a terminal, once scoring takes longer than two seconds.
        name: What TRL calls this reward function in its metrics.

    Raises:
        RewardModelError: The model is no reward model, or its weights are not numbers.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        settings: RewardModelSettings | None = None,
        max_length: int | None = None,
        token_budget: int | None = None,
        reuse_prompts: bool = True,
        show_progress: bool | None = None,
        name: str = "reward_model",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.settings = settings or RewardModelSettings()
        self.temperature = self.settings.temperature
        self._alone = token_budget is None and getattr(model, "is_loaded_in_8bit", False)
        self.token_budget = token_budget or (CPU_TOKENS if model.device.type == "cpu" else ACCELERATOR_TOKENS)
        self.show_progress, self.__name__ = show_progress, name
        try:
            module = classification_module(model)
        except (AttributeError, ValueError) as error:
            raise RewardModelError(str(error)) from error
        if module.config.num_labels != 1:
            raise RewardModelError(f"the model has num_labels={module.config.num_labels}; a reward model has 1.")
        check_weights(model)
        config = module.config.get_text_config()
        if config.pad_token_id is None:  # Transformers refuses a batch without one; which it is does not matter here
            config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        # Not `num_embeddings`, which PEFT's layer for LoRA on the embeddings lacks.
        self._pad_token_id, self._embeddings = config.pad_token_id, module.get_input_embeddings().weight.size(0)
        self.max_length = self._choose_max_length(max_length, context_length(module))
        self.reuse_prompts = reuse_prompts and can_reuse_prompts(model)
        pool_by_attention_mask(model)
        keep_gradients_on_cpu(model)  # the same kernels as in training, and weights that are saved as they were loaded

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        quantization_config: BitsAndBytesConfig | dict[str, Any] | bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_length: int | None = None,
        base_model: str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> "RewardModel":
        """Load a reward model: a folder that `RewardTrainer` wrote, or any Hugging Face one with a single output.

        Args:
            path: Folder or name on the Hub, of a full model or of an adapter.
            quantization_config: How to quantize the weights. By default as in training, so that scores are the same;
                False loads them unquantized.
            device: By default this process's accelerator, or the CPU.
            dtype: Of the weights. By default that of training, or that of the checkpoint.
            max_length: Tokens of a text at most. By default that of training, or what the model takes.
            base_model: The adapter's base, where it is not where the adapter says.
            tokenizer: By default the one that lies beside the model.
            revision: Of a model on the Hub.
            trust_remote_code: Allow code that comes with the model.
            options: As for the constructor.

        Raises:
            RewardModelError: There is no such model, it is no reward model, its head is missing, the adapter belongs to
                another base, or weights are not numbers.
        """
        path = as_path(path)
        settings = load_settings(path, revision)
        if quantization_config is None and settings.quantization is not None:
            quantization_config = settings.quantization
        if isinstance(quantization_config, dict):
            quantization_config = BitsAndBytesConfig(**quantization_config)
        tokenizer = tokenizer or load_tokenizer(path, revision, trust_remote_code=trust_remote_code)
        model = load_model(
            path,
            settings,
            quantization_config=quantization_config,
            dtype=dtype,
            device=choose_device(device),
            base_model=None if base_model is None else as_path(base_model),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        options = {"name": Path(path).name, **options}
        return cls(model, tokenizer, settings=settings, max_length=max_length, **options)

    def save_pretrained(self, path: str | Path) -> None:
        """Write model or adapter, tokenizer and settings; `from_pretrained` gives the same scores.

        Raises:
            RewardModelError: The adapter's base is not on disk or the Hub, so that nothing could load it again.
        """
        module = classification_module(self.model)
        if isinstance(self.model, PeftModel) and not module.config._name_or_path:
            raise RewardModelError(
                "the adapter's base was never saved, so the adapter alone could not be loaded. Save the base with its "
                "`save_pretrained` and load it from there first, or `merge()` the adapter into it."
            )
        quantization = getattr(module.config, "quantization_config", None)
        if quantization is not None and not isinstance(self.model, PeftModel):
            # Without naming it, the head would be taken for quantized when the model is loaded again.
            quantization.llm_int8_skip_modules = [n for n, part in module.named_modules() if type(part) is nn.Linear]
        # The original format is one that Transformers cannot write of a model loaded from quantized weights.
        self.model.save_pretrained(path, **({} if quantization is None else {"save_original_format": False}))
        self.tokenizer.save_pretrained(path)
        replace(
            self.settings,
            quantization=None if quantization is None else quantization.to_dict(),
            dtype=dtype_name(module.dtype),
            base=base_fingerprint(self.model) if isinstance(self.model, PeftModel) else None,
        ).save(path)

    def merge(self) -> "RewardModel":
        """Fold the adapter into the base's weights, in place, and return this reward model, now without adapter.

        Raises:
            RewardModelError: There is no adapter, or the base is quantized or below float32, where merging would change
                the scores.
        """
        if not isinstance(self.model, PeftModel):
            raise RewardModelError("there is no adapter to merge.")
        if getattr(classification_module(self.model).config, "quantization_config", None) is not None:
            raise RewardModelError(
                "merging into quantized weights would round the adapter away. Load with quantization_config=False and "
                "merge then; the scores change by what quantization had changed."
            )
        if self.model.dtype.itemsize < 4:
            raise RewardModelError(
                f"merging into {dtype_name(self.model.dtype)} weights would round the adapter and the head. Load with "
                "dtype='float32' and merge then; the scores change by what the dtype had rounded."
            )
        self.model = self.model.merge_and_unload()
        self.model.to(self.model.dtype)
        pool_by_attention_mask(self.model)
        return self

    def _scores(self, examples: Sequence[Example], batch_size: int | None, allow_empty_completion: bool) -> Tensor:
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise InputError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        if batch_size is None and self._alone:
            batch_size = 1
        check_says_something(examples, self.tokenizer, allow_empty_completion=allow_empty_completion)
        token_ids = self._truncate(examples, tokenize(examples, self.tokenizer))
        self._check_vocabulary(examples, token_ids)
        raw = self._run(examples, token_ids, batch_size)
        for example, finite, score in zip(examples, raw.isfinite().tolist(), raw.tolist(), strict=True):
            if not finite:
                fix = "In float16 activations overflow: load with dtype='bfloat16' or 'float32'."
                raise RewardModelError(f"{example.place}the score is {score}. {fix}")
        return raw - self.settings.score_offset

    def _run(self, examples: Sequence[Example], token_ids: list[list[int]], batch_size: int | None) -> Tensor:
        """Return the model's outputs, the same for equal texts: two rows of a batch would differ in their last bits."""
        first: dict[tuple[int, ...], int] = {}
        for row, ids in enumerate(token_ids):
            first.setdefault(tuple(ids), row)
        distinct = [*first]
        keys = [examples[row].prompt_key() for row in first.values()] if self.reuse_prompts else None
        batches = plan_batches(distinct, keys, token_budget=self.token_budget, batch_size=batch_size)
        with evaluation_mode(self.model), casts_unmentioned():  # its layers may be a policy's, too
            raw = run_batches(
                self.model, distinct, batches, pad_token_id=self._pad_token_id, show_progress=self.show_progress
            )
        place = {ids: number for number, ids in enumerate(distinct)}
        return raw[[place[tuple(ids)] for ids in token_ids]]

    def _choose_max_length(self, asked: int | None, positions: int | None) -> int | None:
        """Return the tokens a text may have: what was asked for, else as in training, else what the model takes."""
        limits = [limit for limit in (positions, self.tokenizer.model_max_length) if limit and limit < 10**9]
        context = min(limits, default=None)
        if asked is None:
            asked = self.settings.max_length
            return context if asked is None else min(asked, positions or asked)
        if asked < 2 or (positions and asked > positions):
            raise RewardModelError(
                f"max_length={asked}: it must be at least 2 and at most {positions or 'the context'}."
            )
        return asked

    def _truncate(self, examples: Sequence[Example], token_ids: list[list[int]]) -> list[list[int]]:
        """Take the oldest tokens from what is too long, except a token that must stand first, such as `[CLS]`."""
        if self.max_length is None:
            return token_ids
        first_tokens = {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id} - {None}
        kept, cut = [], 0
        for example, ids in zip(examples, token_ids, strict=True):
            if len(ids) > self.max_length:
                prompt_length = count_prompt_tokens(example, self.tokenizer)
                if prompt_length >= self.max_length:
                    raise InputError(
                        f"its prompt alone has {prompt_length} tokens, and a text may have {self.max_length} "
                        "(max_length). Shorten the prompt.",
                        example.place,
                    )
                start = ids[:1] if ids[0] in first_tokens else []
                ids = start + ids[len(ids) - self.max_length + len(start) :]
                cut += 1
            kept.append(ids)
        if cut:
            warn_of_truncation(
                f"{cut} of {len(examples)} texts are longer than max_length={self.max_length} tokens and lose their "
                "beginning, the oldest part of the prompt first."
            )
        return kept

    def _check_vocabulary(self, examples: Sequence[Example], token_ids: Sequence[Sequence[int]]) -> None:
        for example, ids in zip(examples, token_ids, strict=True):
            if not ids:
                raise InputError("the tokenizer makes no tokens of it.", example.place)
            if max(ids) >= self._embeddings:
                raise RewardModelError(
                    f"{example.place}it has token {max(ids)}, and the model knows {self._embeddings}. The tokenizer is "
                    "another model's: pass the one of training."
                )
