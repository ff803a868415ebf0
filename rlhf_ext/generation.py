"""Completions of prompts, sampled reproducibly: the same arguments give the same texts, and nothing else changes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .adapters import causal_lm_of
from .context import context_length
from .dropout import evaluation_mode
from .errors import NotFiniteError
from .formatting import InputError, Place
from .generation_on_cpu import fast_on_cpu

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn from a model.

    Args:
        max_new_tokens: Tokens of a completion at most.
        temperature: What the logits are divided by; 0 always takes the likeliest token.
        top_p: Draw from the likeliest tokens that together have this probability.
        top_k: Draw from this many of the likeliest tokens; 0 from all.
        seed: Another seed gives other completions.

    Raises:
        ValueError: A value out of range, or one that has no effect at temperature 0.
    """

    max_new_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or above, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or above, not {self.top_k}.")
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            raise ValueError("top_p and top_k have no effect at temperature 0: drop them or raise the temperature.")

    @property
    def whole_distribution(self) -> bool:
        """Whether completions are drawn from the model's distribution as it is."""
        return (self.temperature, self.top_p, self.top_k) == (1, 1, 0)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    **options: Any,
) -> list[str]:
    """Return one completion per prompt, in their order.

    By default it is sampled from the model's whole distribution: of a model's own generation configuration only the
    special tokens count, and the tokenizer's end token ends a completion too. The model's mode, the tokenizer and the
    global random state are left as they were. Sampled completions depend on `batch_size`, as all of a batch share one
    random state.

    Args:
        model: A causal language model, quantized or with adapters too.
        tokenizer: Its tokenizer.
        prompts: Texts, which are tokenized as they are, or lists of messages, which go through the chat template.
        decoding: How completions are drawn.
        options: As for `generate_tokens`.

    Raises:
        InputError: A prompt that cannot be tokenized, or leaves no room for `max_new_tokens`; it names the row.
        NotFiniteError: The model's probabilities are NaN or infinite.
    """
    written = generate_tokens(model, tokenizer, prompts, decoding, **options)
    return [tokenizer.decode(completion, skip_special_tokens=True) for _, completion in written]


def generate_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    template_options: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 64,
    show_progress: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Do what `generate` does, and return the tokens of each prompt and its completion, shapes (P,) and (C,).

    A completion ends with the end token, unless it was cut off.

    Args:
        model: As in `generate`.
        tokenizer: Its tokenizer.
        prompts: As in `generate`.
        decoding: How completions are drawn.
        template_options: Keywords for the chat template, one mapping a prompt.
        batch_size: Prompts completed at once.
        show_progress: Show a progress bar.

    Raises:
        InputError: As in `generate`.
        NotFiniteError: The same.
    """
    options = template_options or [{}] * len(prompts)
    asked = enumerate(zip(prompts, options, strict=True))
    token_ids = [encode_prompt(tokenizer, prompt, Place("prompts", i), **more) for i, (prompt, more) in asked]
    check_room(model, token_ids, decoding.max_new_tokens, "prompts")
    completions: list[Tensor] = []
    with (
        evaluation_mode(model),
        _own_random_state(model),
        torch.no_grad(),  # and not inference mode: what 8-bit layers keep from it could not be trained through
        tqdm(total=len(prompts), desc="Generating", unit="text", disable=not show_progress, leave=False) as progress,
    ):
        torch.manual_seed(decoding.seed)
        for start in range(0, len(prompts), batch_size):
            batch = token_ids[start : start + batch_size]
            completions += _complete(model, tokenizer, batch, decoding)
            progress.update(len(batch))
    return list(zip(token_ids, completions, strict=True))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, place: Place, **template_options: Any) -> Tensor:
    """Return the token ids of a prompt, shape (T,); the options are more keywords for its chat template.

    Messages end with the opening of the assistant's turn; where the assistant has the last word, it is continued.

    Raises:
        InputError: There are no tokens, or the tokenizer has no chat template or one that refuses the messages.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt, verbose=False)["input_ids"]
    elif tokenizer.chat_template is None:
        raise InputError("it is a conversation, and the tokenizer has no chat template. Pass plain text.", place)
    else:
        goes_on = bool(prompt) and prompt[-1]["role"] == "assistant"
        try:
            opening = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
            text = tokenizer.apply_chat_template(prompt, tokenize=False, **opening, **template_options)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"the chat template refuses the conversation ({error}).", place) from error
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise InputError("it is empty. Fill it, or leave the row out.", place)
    return torch.tensor(ids)


def check_room(model: PreTrainedModel, token_ids: Sequence[Tensor], max_new_tokens: int, column: str) -> None:
    """Check that the model can read each text and as many tokens more.

    Raises:
        InputError: It cannot; the place is that of the text in `column`.
    """
    context = context_length(model) or math.inf
    for index, ids in enumerate(token_ids):
        if len(ids) + max_new_tokens > context:
            fix = "Shorten it, or lower max_new_tokens." if max_new_tokens > 1 else "Shorten it."
            problem = f"it has {len(ids)} tokens, and with max_new_tokens={max_new_tokens} more than the {context}"
            raise InputError(f"{problem} that the model can read. {fix}", Place(column, index))


def _complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[Tensor], decoding: Decoding
) -> list[Tensor]:
    sampled = decoding.temperature > 0
    settings = {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
    settings = {"do_sample": sampled, "max_new_tokens": decoding.max_new_tokens, **(settings if sampled else {})}
    ends = end_tokens(model, tokenizer)
    output = _generate(model, tokenizer, token_ids, eos_token_id=ends or None, **settings)
    written = output.sequences[:, max(map(len, token_ids)) :].cpu()
    end_ids = torch.tensor(ends, dtype=torch.long)
    return [_until_end(row, end_ids) for row in written]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the end tokens of the model and of the tokenizer, which for an adapter may be another than its base's."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({*own, tokenizer.eos_token_id} - {None})


@torch.no_grad()
def next_token_logps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[Tensor]) -> Tensor:
    """Return the log-probabilities of the token after each text, shape (B, V), float32.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        token_ids: Texts, each of shape (T,).
    """
    # Generating one token is one pass, for which every architecture gets the positions that padding calls for.
    output = _generate(model, tokenizer, token_ids, do_sample=False, max_new_tokens=1, output_logits=True)
    return output.logits[0].float().log_softmax(dim=-1)


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[Tensor], **settings: Any
) -> Any:
    """Run `model.generate` on texts of different lengths, with these settings and none of the model's own."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    pad = 0 if pad is None else pad  # any token will do, as padding is masked
    ones = [torch.ones_like(ids) for ids in token_ids]
    input_ids = pad_sequence(list(token_ids), batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence(ones, batch_first=True, padding_side="left")
    try:
        with special_tokens_only(model), fast_on_cpu(model):
            return model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                pad_token_id=pad,
                return_dict_in_generate=True,
                **settings,
            )
    except RuntimeError as error:
        if "probability tensor" not in str(error):  # what torch.multinomial says on a CPU
            raise
        fix = "Load an earlier checkpoint, and if you train, lower the learning rate."
        problem = "The probabilities of a token are not finite: training diverged, or the weights are damaged."
        raise NotFiniteError(f"{problem} {fix}") from error


@contextmanager
def special_tokens_only(model: nn.Module) -> Iterator[None]:
    """Put aside what a model asks for itself: penalties, minima, filters. `generate` adds it to what it is told."""
    owner = causal_lm_of(model)
    own = owner.generation_config
    tokens = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    owner.generation_config = GenerationConfig(**tokens)
    try:
        yield
    finally:
        owner.generation_config = own


def _until_end(completion: Tensor, ends: Tensor) -> Tensor:
    """Cut off what follows the first end token: padding up to the longest of the batch."""
    found = torch.isin(completion, ends).nonzero()
    return completion[: found[0] + 1] if len(found) else completion


def _own_random_state(model: nn.Module) -> AbstractContextManager[None]:
    """Restore, at the end, the random state of the CPU and of the devices that hold the model."""
    devices = {parameter.device for parameter in model.parameters()}
    devices = [device for device in devices if device.type not in ("cpu", "mps")]  # mps has one state without device
    kind = devices[0].type if devices else "cuda"
    return torch.random.fork_rng(devices=devices, device_type=kind)
