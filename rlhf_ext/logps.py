"""Log-probabilities that a model gives to completions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl.trainer.utils import selective_log_softmax


@torch.no_grad()
def completion_logps(
    model: PreTrainedModel, tokens: Sequence[tuple[Tensor, Tensor]], *, batch_size: int = 8
) -> list[Tensor]:
    """Return the log-probability of every completion token after its prompt, shapes (C,), float32, on the CPU.

    Args:
        model: A causal language model in evaluation mode.
        tokens: Prompt and completion, shapes (P,) and (C,), as `generate_tokens` returns them.
        batch_size: Texts in one pass.
    """
    logps: list[Tensor] = []
    for start in range(0, len(tokens), batch_size):
        batch = tokens[start : start + batch_size]
        texts = [torch.cat(pair) for pair in batch]
        # Padded on the right, so that positions are right for any model; what comes after a token does not change it.
        input_ids = pad_sequence(texts, batch_first=True).to(model.device)
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True).to(model.device)
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        every = selective_log_softmax(logits[:, :-1].float(), input_ids[:, 1:]).cpu()  # (B, T - 1)
        for row, (prompt, completion) in zip(every, batch, strict=True):
            logps.append(row[len(prompt) - 1 : len(prompt) + len(completion) - 1])
    return logps
