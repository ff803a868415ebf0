"""From scores of completions to rewards of tokens: pure functions, and the running scale of scores."""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    r"""Rewards of tokens: $r_t = -\beta\, kl_t$, plus the score on the last token.

    (Ziegler et al. 2019, https://huggingface.co/papers/1909.08593, section 2.2.)

    Args:
        scores: Scores of completions, (B,).
        kl: KL to the reference at every token, (B, T), in nats.
        mask: (B, T), 1 on completion tokens that the policy wrote, 0 elsewhere. What stands there is never read.
        kl_coef: $\beta$, in units of reward per nat.

    Returns:
        Rewards, (B, T), in float32 at least; 0 where the mask is 0. A row without tokens has no reward.
    """
    rewards = torch.where(mask.bool(), -kl_coef * kl.to(torch.promote_types(kl.dtype, torch.float32)), 0)
    ends = mask.bool() & (mask.bool().flip(1).cumsum(1).flip(1) == 1)
    return torch.where(ends, rewards + scores[:, None].to(rewards.dtype), rewards)


def ended_by_itself(completion_ids: Tensor, mask: Tensor, stop_ids: Tensor, max_length: float) -> Tensor:
    """Whether a completion ends with a stop token, or was ended early by whatever else can stop generation.

    Args:
        completion_ids: (B, T).
        mask: (B, T), 1 on tokens of the completion.
        stop_ids: All token ids that end a completion, (S,).
        max_length: The length at which completions are cut.

    Returns:
        (B,), bool.
    """
    lengths = mask.sum(1).long()
    last = completion_ids.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
    return torch.isin(last, stop_ids) | (lengths < max_length)


def distinct_n(completion_ids: Tensor, mask: Tensor, n: int) -> float:
    """Distinct n-grams over all n-grams of the completions (Li et al. 2016, https://aclanthology.org/N16-1014).

    1 is a batch in which no n-gram comes twice; a policy that collapses goes towards 0. No n-gram at all gives 0.

    Args:
        completion_ids: (B, T).
        mask: (B, T), 1 on tokens of the completion.
        n: Tokens in an n-gram.
    """
    rows = [ids[keep].tolist() for ids, keep in zip(completion_ids, mask.bool(), strict=True)]
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)
