"""PPO in plain PyTorch, without TRL and without rlhf_ext: an independent side for `ppo_learning.py`.

Policy and critic are LoRA adapters on two copies of one model. The score comes with the last token, and gamma and
lambda are 1, so that the return of every token is the score. Formulas: Schulman et al., Proximal Policy Optimization
Algorithms (arXiv:1707.06347), with a clipped value loss and whitened advantages, as in Huang et al. (arXiv:2403.17031).
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

CLIPRANGE, VF_COEF, MAX_GRAD_NORM = 0.2, 0.5, 1.0


@dataclass(frozen=True)
class Sizes:
    """What an update is made of."""

    batch: int
    mini_batches: int
    epochs: int
    places: int  # tokens of a completion at most


class Policy(nn.Module):
    """A language model with an adapter, and a critic with another."""

    def __init__(self, folder: str, rank: int = 8) -> None:
        super().__init__()
        base = AutoModelForCausalLM.from_pretrained(folder)
        lora = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
        self.stop_id = base.config.eos_token_id
        self.critic: PeftModel = get_peft_model(copy.deepcopy(base), lora)
        self.model: PeftModel = get_peft_model(base, lora)
        self.head = nn.Linear(base.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def sample(self, prompts: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Return prompts with completions, (B, P + C), and the mask of the completions' tokens, (B, C)."""
        ids = prompts
        for _ in range(places):
            probabilities = self.model(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1)], 1)
        is_stop = ids[:, prompts.size(1) :] == self.stop_id
        return ids, (is_stop.cumsum(1) - is_stop.long() == 0).float()

    def logps(self, ids: Tensor, places: int) -> Tensor:
        """Log-probabilities of the completions' tokens, (B, C)."""
        distribution = self.model(ids).logits[:, -places - 1 : -1].log_softmax(-1)
        return distribution.gather(-1, ids[:, -places:, None]).squeeze(-1)

    def values(self, ids: Tensor, places: int) -> Tensor:
        """The critic's value before each of the completions' tokens, (B, C)."""
        hidden = self.critic(ids, output_hidden_states=True).hidden_states[-1]
        return self.head(hidden[:, -places - 1 : -1]).squeeze(-1)

    def groups(self) -> Iterator[list[nn.Parameter]]:
        """The weights that learn: the policy's, then the critic's."""
        yield [weight for weight in self.model.parameters() if weight.requires_grad]
        yield [weight for weight in self.critic.parameters() if weight.requires_grad] + [*self.head.parameters()]


def train(
    folder: str,
    prompts: Tensor,
    reward: Callable[[list[list[int]]], list[float]],
    sizes: Sizes,
    *,
    updates: int,
    learning_rates: tuple[float, float],
    seed: int,
) -> tuple[PeftModel, list[float]]:
    """Train the model in `folder` on `prompts`, (N, P); return it, and the mean reward of every update.

    Args:
        folder: A causal language model.
        prompts: Token ids, all of one length.
        reward: Scores the tokens of each completion.
        sizes: What an update is made of.
        updates: How many.
        learning_rates: Of policy and critic, from which they fall to 0.
        seed: Of adapters, order and samples.
    """
    torch.manual_seed(seed)
    policy = Policy(folder)
    groups = [*policy.groups()]
    options = zip(groups, learning_rates, strict=True)
    optimizer = torch.optim.AdamW([{"params": group, "lr": rate} for group, rate in options], weight_decay=0.0)
    steps = updates * sizes.epochs * sizes.mini_batches
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order: list[int] = []
    means = []
    for _ in range(updates):
        if len(order) < sizes.batch:
            order = torch.randperm(len(prompts)).tolist()
        rows, order = order[: sizes.batch], order[sizes.batch :]
        ids, mask = policy.sample(prompts[rows], sizes.places)
        completions = [row[: int(kept.sum())].tolist() for row, kept in zip(ids[:, -sizes.places :], mask, strict=True)]
        scores = torch.tensor(reward(completions))
        means.append(scores.mean().item())
        for loss in _losses(policy, ids, mask, scores, sizes):
            optimizer.zero_grad()
            loss.backward()
            for group in groups:
                nn.utils.clip_grad_norm_(group, MAX_GRAD_NORM)
            optimizer.step()
            scheduler.step()
    return policy.model, means


def _losses(policy: Policy, ids: Tensor, mask: Tensor, scores: Tensor, sizes: Sizes) -> Iterator[Tensor]:
    """Yield the loss of each step on one batch of completions."""
    returns = scores[:, None].expand_as(mask)
    with torch.no_grad():
        old_logps, old_values = policy.logps(ids, sizes.places), policy.values(ids, sizes.places)
        shift = _mean(returns - old_values, mask)  # as ours does, the critic's bias starts from the mean return
        policy.head.bias += shift
        old_values = old_values + shift
    advantages = returns - old_values
    centered = advantages - _mean(advantages, mask)
    advantages = centered / (_mean(centered**2, mask) + 1e-8).sqrt()
    for _ in range(sizes.epochs):
        for rows in torch.arange(len(ids)).chunk(sizes.mini_batches):
            ratio = (policy.logps(ids[rows], sizes.places) - old_logps[rows]).exp()
            clipped_ratio = ratio.clamp(1 - CLIPRANGE, 1 + CLIPRANGE)
            policy_loss = -torch.min(ratio * advantages[rows], clipped_ratio * advantages[rows])
            values = policy.values(ids[rows], sizes.places)
            clipped_values = old_values[rows] + (values - old_values[rows]).clamp(-CLIPRANGE, CLIPRANGE)
            value_loss = 0.5 * torch.max((values - returns[rows]) ** 2, (clipped_values - returns[rows]) ** 2)
            losses = (policy_loss + VF_COEF * value_loss) * mask[rows]
            yield losses.sum() / (mask.sum() / sizes.mini_batches)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()
