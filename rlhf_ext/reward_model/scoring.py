"""Running a reward model over many token sequences quickly: little padding, and a shared prompt only once.

Texts are sorted by length and cut into batches of about equally many tokens. Where several texts begin with the same
prompt, the prompt is run once, and their rests on top of its key-value cache. Every batch is padded on the right, so
that positions are right for any model.
"""

import inspect
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel

from .pooling import classification_module

SHORTEST_REUSED_PROMPT = 16  # tokens; below, a pass of its own costs more than it saves
SMALLEST_SAVING = 0.2  # of a group's tokens
TOKENS_PER_PADDING = 128  # the budget's tokens for each one of padding, beyond which another pass is cheaper
CACHE_LAYERS = {"full_attention", "sliding_attention"}  # layers whose cache is the keys and values of every token


@dataclass(frozen=True)
class Batch:
    """Rows to score in one pass, after the prompts that they begin with.

    Attributes:
        rows: Indices of token sequences.
        prompt_length: Tokens that come from the cache; 0 without one.
        prompt_of: For each row, which prompt it continues, counted from 0 in order of appearance.
    """

    rows: tuple[int, ...]
    prompt_length: int = 0
    prompt_of: tuple[int, ...] = ()


def plan_batches(
    token_ids: Sequence[Sequence[int]],
    prompt_keys: Sequence[Hashable | None] | None = None,
    *,
    token_budget: int,
    batch_size: int | None = None,
) -> list[Batch]:
    """Divide token sequences into batches, the longest first.

    Args:
        token_ids: The sequences.
        prompt_keys: Sequences with an equal key (not None) share a prompt, which is run once where that saves time.
        token_budget: Tokens in a batch, padding included; a longer sequence gets a batch of its own.
        batch_size: Sequences in a batch at most.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(prompt_keys or ()):
        if key is not None and batch_size != 1:
            groups[key].append(row)
    shared = [(_prompt_length([token_ids[row] for row in rows]), rows) for rows in groups.values()]
    shared = [(length, rows) for length, rows in shared if length]
    reused = {row for _, rows in shared for row in rows}
    alone = [row for row in range(len(token_ids)) if row not in reused]
    lengths = [len(ids) for ids in token_ids]
    return _shared_batches(shared, lengths, token_budget, batch_size) + _plain_batches(
        alone, lengths, token_budget, batch_size
    )


def _prompt_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens to run once for all sequences; 0 where that is not worth it."""
    if len(sequences) < 2:
        return 0
    low, high = min(sequences), max(sequences)  # what these two have in common, all have
    common = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    common = min(common, min(map(len, sequences)) - 1)  # a token must remain for the score to be read at
    saving = common * (len(sequences) - 1) / sum(map(len, sequences))
    return common if common >= SHORTEST_REUSED_PROMPT and saving >= SMALLEST_SAVING else 0


def _plain_batches(rows: list[int], lengths: list[int], token_budget: int, batch_size: int | None) -> list[Batch]:
    """Fill batches in order of length; a new one begins where the last would hold more padding than a pass costs."""
    batches: list[list[int]] = []
    padding = 0
    for row in sorted(rows, key=lambda row: -lengths[row]):
        if batches:
            current, longest = batches[-1], lengths[batches[-1][0]]
            padding += longest - lengths[row]
            full = (len(current) + 1) * longest > token_budget or len(current) == batch_size
            if not full and padding <= token_budget // TOKENS_PER_PADDING:
                current.append(row)
                continue
        batches.append([row])
        padding = 0
    return [Batch(tuple(batch)) for batch in batches]


def _shared_batches(
    groups: list[tuple[int, list[int]]], lengths: list[int], token_budget: int, batch_size: int | None
) -> list[Batch]:
    """Pack groups with prompts of similar length together, all cut to the shortest of them, so that none is padded."""
    batches: list[Batch] = []
    pending: list[list[int]] = []
    first = last = count = longest = 0  # of what is pending: longest and shortest prompt, rows, longest row
    for prompt_length, rows in sorted(groups, key=lambda group: -group[0]):
        rows = sorted(rows, key=lambda row: -lengths[row])
        while rows:
            size = max(1, (token_budget - prompt_length) // (lengths[rows[0]] - prompt_length))
            size = min(size, batch_size or size)
            chunk, rows = rows[:size], rows[size:]
            count, longest = count + len(chunk), max(longest, lengths[chunk[0]])
            tokens = (len(pending) + 1) * prompt_length + count * (longest - prompt_length)
            full = tokens > token_budget or (batch_size and count > batch_size)
            if pending and (full or prompt_length < 0.9 * first):
                batches.append(_with_prompts(pending, last))
                pending, count, longest = [], len(chunk), lengths[chunk[0]]
            first, last = first if pending else prompt_length, prompt_length
            pending.append(chunk)
    return batches + ([_with_prompts(pending, last)] if pending else [])


def _with_prompts(groups: list[list[int]], prompt_length: int) -> Batch:
    rows = tuple(row for group in groups for row in group)
    return Batch(rows, prompt_length, tuple(number for number, group in enumerate(groups) for _ in group))


def can_reuse_prompts(model: nn.Module) -> bool:
    """Whether the model is a decoder whose cache holds nothing but keys and values, so that one prompt serves many."""
    module = classification_module(model)
    config = module.config.get_text_config()
    adapters = getattr(model, "peft_config", {})
    return (
        _cache_argument(model) is not None
        and not config.is_encoder_decoder
        and not module._is_stateful
        and not getattr(config, "use_bidirectional_attention", False)
        and set(getattr(config, "layer_types", None) or ()) <= CACHE_LAYERS
        and not any(adapter.is_prompt_learning for adapter in adapters.values())
    )


def run_batches(
    model: PreTrainedModel,
    token_ids: Sequence[Sequence[int]],
    batches: Sequence[Batch],
    *,
    pad_token_id: int,
    show_progress: bool | None = None,
) -> Tensor:
    """Return the model's output for each sequence, shape (sequences,), float32 on the CPU.

    Args:
        model: A sequence-classification model with one output that pools by attention mask.
        token_ids: The sequences.
        batches: What `plan_batches` returned for them.
        pad_token_id: Any token; padding is masked.
        show_progress: Show a progress bar; by default on a terminal, once it takes longer than two seconds.
    """
    scores = torch.empty(len(token_ids), dtype=torch.float32)
    hidden = None if show_progress is None else not show_progress
    with (
        torch.inference_mode(),
        tqdm(total=len(token_ids), desc="Scoring", unit="text", delay=2, disable=hidden, leave=False) as progress,
    ):
        for batch in batches:
            scores[list(batch.rows)] = _run(model, token_ids, batch, pad_token_id).float().cpu()
            progress.update(len(batch.rows))
    return scores


def _run(model: PreTrainedModel, token_ids: Sequence[Sequence[int]], batch: Batch, pad_token_id: int) -> Tensor:
    rests = [token_ids[row][batch.prompt_length :] for row in batch.rows]
    longest = max(map(len, rests))
    device = model.device
    input_ids = torch.tensor([[*ids, *[pad_token_id] * (longest - len(ids))] for ids in rests], device=device)
    lengths = torch.tensor([len(ids) for ids in rests], device=device)
    mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
    if not batch.prompt_length:
        return model(input_ids=input_ids, attention_mask=mask, **_no_cache(model)).logits[:, 0]
    firsts = [batch.prompt_of.index(number) for number in range(batch.prompt_of[-1] + 1)]
    prompts = torch.tensor([token_ids[batch.rows[i]][: batch.prompt_length] for i in firsts], device=device)
    # Without the model's configuration the cache keeps every token, where sliding layers would drop some; the mask
    # alone then hides what is out of their reach.
    cache = DynamicCache()
    with_cache = {_cache_argument(model): cache, "use_cache": True}
    model(input_ids=prompts, attention_mask=torch.ones_like(prompts), **with_cache)
    cache.batch_select_indices(torch.tensor(batch.prompt_of, device=device))
    mask = torch.cat([mask.new_ones(len(mask), batch.prompt_length), mask], dim=1)
    return model(input_ids=input_ids, attention_mask=mask, **with_cache).logits[:, 0]


def _no_cache(model: PreTrainedModel) -> dict[str, bool]:
    """Keep decoders from filling a cache that nobody reads; encoders have none."""
    return {} if _cache_argument(model) is None else {"use_cache": False}


def _cache_argument(model: nn.Module) -> str | None:
    """Return what the model calls its key-value cache: `past_key_values`, since Transformers 5.24 `cache`."""
    taken = inspect.signature(classification_module(model).forward).parameters
    return next((name for name in ("past_key_values", "cache") if name in taken), None)
