"""`PPOTrainer` against plain loops and autograd on a real, small model: rewards, advantages, loss, gradient."""

import math

import pytest
import torch
import trl
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.plugins import PluginError
from rlhf_ext.trainers import ppo_checks


def count_e(completions, **kwargs):
    """A reward that is easy to learn: the letter e."""
    return [completion[0]["content"].count("e") / 5 for completion in completions]


@pytest.fixture(scope="session")
def prompts():
    from rlhf_ext.demo.data import prompt_dataset

    return prompt_dataset("train", size=16)


@pytest.fixture
def make_trainer(cpu_options, model_name, prompts):
    """A trainer whose policy differs from its reference, and whose critic has an opinion."""

    def make(*, lora=True, reward=count_e, dataset=prompts, model=model_name, **options):
        options = cpu_options | {"max_completion_length": 12, "max_steps": 4, "learning_rate": 1e-3} | options
        torch.manual_seed(0)
        peft_config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
        trainer = PPOTrainer(model, reward, PPOConfig(**options), dataset, peft_config=peft_config)
        head = getattr(trainer.critic.module, "head", trainer.critic.module)
        with torch.no_grad():
            head.weight.normal_(std=0.1)
            head.bias.fill_(0.3)
            if lora:
                for name, weight in trainer.model.named_parameters():
                    if "lora_B" in name:
                        weight.mul_(0.3)
            else:
                next(p for n, p in trainer.model.named_parameters() if "norm.weight" in n or "ln_f" in n).mul_(1.1)
        return trainer

    return make


def rollout(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    torch.manual_seed(1)
    return trainer._generate_and_score_completions(batch)


def logps_and_hidden(model, ids, start):
    """Log-probabilities and hidden states of one sequence without padding, for the tokens from `start` on."""
    output = model(torch.tensor([ids]), output_hidden_states=True)
    logps = output.logits[0, start - 1 : -1].float().log_softmax(-1)
    return logps.gather(1, torch.tensor(ids[start:])[:, None])[:, 0], output.hidden_states[-1][0, start - 1 : -1]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_rollout_equals_a_plain_loop_over_single_sequences(lora, make_trainer):
    trainer = make_trainer(
        lora=lora, whiten_advantages=False, gamma=0.9, lam=0.8, init_kl_coef=0.5, max_completion_length=64
    )
    output = rollout(trainer)
    trainer.model.eval()
    lengths = output["completion_mask"].sum(1)
    assert lengths.min() < lengths.max()  # so that padding is tested
    differences = 0.0
    for row in range(4):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row] == 1].tolist()
        completion = output["completion_ids"][row][: lengths[row]].tolist()
        with torch.no_grad():
            logps, hidden = logps_and_hidden(trainer.model, prompt + completion, len(prompt))
            if lora:
                with trainer.model.disable_adapter():
                    ref_logps, _ = logps_and_hidden(trainer.model, prompt + completion, len(prompt))
            else:
                ref_logps, _ = logps_and_hidden(trainer.ref_model, prompt + completion, len(prompt))
        values = (hidden @ trainer.critic.module.weight[0] + trainer.critic.module.bias).tolist()
        rewards = [-0.5 * (logp - ref) for logp, ref in zip(logps.tolist(), ref_logps.tolist(), strict=True)]
        differences += sum(map(abs, rewards))
        rewards[-1] += trainer.processing_class.decode(completion, skip_special_tokens=True).count("e") / 5
        advantage, next_value = 0.0, 0.0
        for t in reversed(range(len(completion))):
            advantage = rewards[t] + 0.9 * next_value - values[t] + 0.9 * 0.8 * advantage
            next_value = values[t]
            assert output["advantages"][row, t].item() == pytest.approx(advantage, abs=2e-4)
            assert output["returns"][row, t].item() == pytest.approx(advantage + values[t], abs=2e-4)
            assert output["values"][row, t].item() == pytest.approx(values[t], abs=2e-4)
            assert output["old_per_token_logps"][row, t].item() == pytest.approx(logps[t].item(), abs=2e-4)
    assert differences > 1.0  # policy and reference do differ


def test_advantages_are_whitened_over_the_tokens_of_the_batch(make_trainer):
    output = rollout(make_trainer(max_completion_length=64))
    advantages = output["advantages"][output["completion_mask"].bool()]
    assert advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert advantages.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert (output["advantages"][~output["completion_mask"].bool()] == 0).all()


@pytest.mark.parametrize("critic", ["head", "adapter", "model"])
def test_critic_is_moved_to_the_mean_return_before_it_learns(critic, make_trainer):
    trainer = make_trainer(critic=critic, gamma=0.9, lam=1.0, init_kl_coef=0.5, max_completion_length=64)
    bias = next(p for name, p in trainer.critic.module.named_parameters() if name in ("bias", "head.bias"))
    output = rollout(trainer)
    mask = output["completion_mask"].bool()
    assert not mask.all()  # so that padding is tested
    assert abs(bias.item() - 0.3) > 0.1  # where it stood
    assert (output["returns"] - output["values"])[mask].mean().item() == pytest.approx(0, abs=1e-5)
    # The critic itself has moved, so that the same completions move it no further. Nor does lambda, which lets the
    # critic's own values into the returns.
    trainer.args.lam = 0.8
    torch.testing.assert_close(rollout(trainer)["values"][mask], output["values"][mask])


@pytest.mark.parametrize("options", [{}, {"vf_coef": 0.0}], ids=["evaluation", "critic that does not learn"])
def test_critic_that_does_not_learn_is_not_moved(options, make_trainer):
    trainer = make_trainer(**options)
    trainer.model.train(bool(options))
    rollout(trainer)
    assert trainer.critic.module.bias.item() == pytest.approx(0.3)


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("moved", [False, True], ids=["at rollout", "after a step"])
def test_loss_and_gradient_equal_the_formula(moved, stop_gradient, make_trainer):
    """Clipped surrogate plus 0.1 times clipped value loss, each a mean over all tokens, by autograd."""
    trainer = make_trainer(critic_stop_gradient=stop_gradient, max_completion_length=64)
    inputs = rollout(trainer)
    inputs["values"] = inputs["values"] + 0.25 * torch.randn(inputs["values"].shape)  # some beyond the value clip
    if moved:
        trainer._step = trainer.args.gradient_accumulation_steps
        with torch.no_grad():
            for weight in (p for n, p in trainer.model.named_parameters() if "lora_B" in n):
                weight.mul_(1.5)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    weights = [p for p in (*trainer.model.parameters(), *trainer.critic.parameters()) if p.requires_grad]
    gradients = [weight.grad for weight in weights]

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = inputs["completion_mask"].bool()
    assert not mask.all()  # so that padding is tested
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    length = mask.size(1)
    output = trainer.model(ids, attention_mask=attention, output_hidden_states=True)
    logps = output.logits[:, -length - 1 : -1].log_softmax(-1).gather(2, ids[:, -length:, None])[..., 0]
    hidden = output.hidden_states[-1][:, -length - 1 : -1]
    head = trainer.critic.module
    values = (hidden.detach() if stop_gradient else hidden) @ head.weight[0] + head.bias
    old_logps = inputs["old_per_token_logps"] if moved else logps.detach()
    ratio = (logps - old_logps).exp()
    surrogate = torch.minimum(ratio * inputs["advantages"], ratio.clamp(0.8, 1.2) * inputs["advantages"])
    near = inputs["values"] + (values - inputs["values"]).clamp(-0.2, 0.2)
    errors = torch.maximum((values - inputs["returns"]) ** 2, (near - inputs["returns"]) ** 2)
    expected = -surrogate[mask].mean() + 0.1 * 0.5 * errors[mask].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    if moved:
        assert ((ratio < 0.8) | (ratio > 1.2))[mask].any()
    assert ((values - inputs["values"]).abs() > 0.2)[mask].any()
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_gradient_does_not_depend_on_how_the_batch_is_cut(accumulation, make_trainer):
    def first_gradient(**options):
        trainer = make_trainer(max_steps=1, max_grad_norm=0.0, max_completion_length=48, **options)
        kept = {}

        def keep(args, state, control, **kwargs):
            named = [*trainer.model.named_parameters(), *trainer.critic.module.named_parameters()]
            kept.update({name: p.grad.clone() for name, p in named if p.grad is not None})

        trainer.callback_handler.callbacks[-1].on_pre_optimizer_step = keep
        trainer.train()
        return kept

    whole = first_gradient(per_device_train_batch_size=8)
    cut = first_gradient(per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation)
    assert whole.keys() == cut.keys() and "weight" in whole and len(whole) > 20
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_ratio_is_exactly_one_until_the_first_step_and_not_after(lora, make_trainer):
    trainer = make_trainer(lora=lora, max_steps=5)
    gaps = []
    compute_loss = trainer._compute_loss

    def measure(model, inputs):
        loss = compute_loss(model, inputs)
        gap = (trainer._last_logps - inputs["old_per_token_logps"]) * inputs["completion_mask"]
        gaps.append(gap.abs().max().item())
        return loss

    trainer._compute_loss = measure
    trainer.train()
    ratios = [entry["ratio"] for entry in trainer.state.log_history if "ratio" in entry]
    assert ratios[0] == ratios[4] == 1.0  # 4 epochs over a batch, then the next one
    assert all(ratio != 1.0 for ratio in ratios[1:4])
    assert max(gaps[0], gaps[4]) < 1e-5  # rollout and training pass agree without being told
    assert min(gaps[1:4]) > 1e-3


def test_reward_rises(make_trainer):
    options = {"per_device_train_batch_size": 16, "max_steps": 60, "learning_rate": 3e-4, "init_kl_coef": 0.0}
    trainer = make_trainer(lora=False, **options)
    for parameter in trainer.critic.parameters():
        parameter.data.zero_()  # the opinion that the fixture gives it is far from the truth
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 15
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])


def test_defaults_are_those_of_the_guide(cpu_options):
    args = PPOConfig(**cpu_options)
    assert (args.epsilon, args.cliprange_value, args.vf_coef) == (0.2, 0.2, 0.1)
    assert (args.gamma, args.lam, args.num_iterations) == (1.0, 0.95, 4)
    assert (args.init_kl_coef, args.kl_target) == (0.2, 6.0)
    assert type(args.num_generations) is int and args.num_generations == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_rewards": "group"}, "scale_rewards='group' has no effect"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy=.sequential. has no effect"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "Use reward_weights"),
        ({"beta": 0.1}, "penalised twice"),
        ({"init_kl_coef": 0.0, "kl_estimator": "k3"}, "kl_estimator has no effect"),
        ({"kl_estimator": "k4"}, "kl_estimator must be 'k1', 'k2' or 'k3', got 'k4'"),
        ({"kl_target": None, "kl_horizon": 5}, "kl_horizon has no effect with kl_target=None"),
        ({"missing_eos_penalty": 1.0, "missing_eos_score": 0.0}, "not both"),
        ({"mask_truncated_completions": True, "missing_eos_penalty": 1.0}, "leaves such completions out"),
        ({"vf_coef": 0.0, "critic_warmup_steps": 3}, "critic_warmup_steps has no effect with vf_coef=0"),
        ({"init_kl_coef": 0.0, "kl_target": 3.0, "kl_horizon": 5}, "kl_target and kl_horizon have no effect with"),
        ({"vf_coef": 0.0, "cliprange_value": 0.5}, "cliprange_value has no effect with vf_coef=0"),
        ({"vf_coef": 0.0, "critic_stop_gradient": True}, "critic_stop_gradient has no effect with vf_coef=0"),
        ({"vf_coef": 0.0, "critic_learning_rate": 1e-4}, "critic_learning_rate has no effect with vf_coef=0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect"),
        ({"vf_coef": 0.0, "advantage": "reinforce", "critic": "model"}, "critic has no effect with advantage='rein"),
        ({"advantage": "rlhf_ext.advantages:reinforce"}, "no use for values"),
        ({"max_clip_fraction": 0.0}, "max_clip_fraction must be above 0"),
        ({"vf_coef": -0.1}, "vf_coef must be 0 or above, got -0.1"),
        ({"cliprange_value": 0.0}, "cliprange_value must be above 0, got 0.0"),
        ({"lam": 1.5}, r"lam must lie in \[0, 1\]"),
        ({"init_kl_coef": -1.0}, "coefficient must be 0 or above"),
        ({"advantage": "gea"}, "Did you mean 'gae'"),
        ({"advantage": "gae", "advantage_kwargs": {"decay": 1}}, "does not take the keyword 'decay'"),
        ({"advantage_kwargs": "[1]"}, r"advantage_kwargs='\[1\]' is not a JSON object"),
        ({"advantage": "rloo", "vf_coef": 0.0}, "set num_generations to 2 or more"),
        ({"advantage": "reinforce"}, r"no use for values.*set vf_coef=0"),
        ({"init_kl_coef": 0.0, "kl_target": 3.0}, "kl_target has no effect with init_kl_coef=0"),
        ({"use_bias_correction_kl": False}, "use_bias_correction_kl has no effect with beta=0"),
        ({"generation_kwargs": {"temperature": 0.5}}, "use the option temperature"),
        ({"generation_kwargs": {"stop_strings": ["."]}}, "stop at tokens, with eos_token_id in generation_kwargs"),
        ({"kl_horizon": 1, "per_device_train_batch_size": 8}, r"raise kl_horizon, now 1, above 1.6"),
        ({"gradient_accumulation_steps": 3, "steps_per_generation": 2}, "would mix two batches"),
        ({"num_generations": 3}, "divisible by num_generations"),
        ({"num_generations": 0}, "num_generations must be 1 or more, got 0"),
        ({"num_iterations": 0}, "num_iterations must be 1 or more, got 0"),
        ({"steps_per_generation": -1}, "steps_per_generation must be 1 or more, got -1"),
        ({"epsilon": -0.2}, "epsilon must be 0 or above, got -0.2"),
        ({"vf_coef": float("nan")}, "vf_coef must be 0 or above, got nan"),
        ({"critic": "adapter", "ddp_find_unused_parameters": True}, "takes the critic's adapter for unused"),
    ],
)
def test_option_that_makes_no_sense_is_refused(options, message, cpu_options):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**cpu_options | options)


def test_advantage_estimator_that_returns_the_wrong_thing(cpu_options, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def total(rewards, values, mask, *, gamma, lam):\n    return rewards.sum(1), values\n")
    with pytest.raises(PluginError, match=r"returned the shapes \[\(2,\), \(2, 3\)\]"):
        PPOConfig(**cpu_options, advantage=f"{path}:total")


def test_configuration_of_trl_is_refused(cpu_options, model_name, prompts):
    options = cpu_options | {"num_generations": 2}
    with pytest.raises(TypeError, match=r"must be an rlhf_ext.PPOConfig, got trl.*GRPOConfig"):
        PPOTrainer(model_name, count_e, trl.GRPOConfig(**options), prompts)


@pytest.mark.parametrize(
    ("critic", "option"), [("model", "critic_path"), ("head", "critic_path"), ("head", "reward_adapter")]
)
def test_model_that_is_not_there_is_refused_before_the_policy_loads(critic, option, cpu_options, prompts):
    args = PPOConfig(**cpu_options, critic=critic, **{option: "/no/model"})
    with pytest.raises(ValueError, match=f"{option}='/no/model': there is no such model"):
        PPOTrainer("/no/such/policy", count_e, args, prompts)


def test_adapter_on_the_hub_is_looked_for_as_an_adapter(cpu_options, monkeypatch):
    """It has no configuration of a model."""
    asked = []
    monkeypatch.setattr(ppo_checks, "is_adapter", lambda name: True)
    monkeypatch.setattr(ppo_checks.PeftConfig, "from_pretrained", asked.append)
    ppo_checks.check_start(PPOConfig(**cpu_options, reward_adapter="organisation/reward"))
    assert asked == ["organisation/reward"]


def test_kl_coefficient_follows_the_kl(make_trainer):
    trainer = make_trainer(kl_target=0.01, kl_horizon=100, max_steps=9)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "kl/coef" in entry]
    expected = 0.2
    for entry in log:
        assert entry["kl/coef"] == pytest.approx(expected, rel=1e-6)
        expected *= 1 + max(-0.2, min(0.2, entry["kl/k1"] / 0.01 - 1)) * 4 / 100
    assert trainer.kl_controller.coef == pytest.approx(expected, rel=1e-6)
    assert not math.isclose(expected, 0.2)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, tokenizer):
    """A random GPT-2, whose learned positions show where it thinks a token stands."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("critic", ["head", "model"])
def test_padding_changes_nothing_for_a_model_with_learned_positions(critic, gpt2, make_trainer):
    """TRL passes no positions, so that GPT-2 would see a padded prompt further to the right than `generate` did."""
    options = {"whiten_advantages": False, "max_completion_length": 16, "steps_per_generation": 2}
    trainer = make_trainer(lora=False, model=gpt2, critic=critic, **options)
    output = rollout(trainer)
    trainer.model.eval()
    widths = output["prompt_mask"].sum(1)
    assert widths.min() < widths.max()
    for row in range(len(widths)):
        prompt = output["prompt_ids"][row][output["prompt_mask"][row] == 1].tolist()
        completion = output["completion_ids"][row][output["completion_mask"][row] == 1].tolist()
        with torch.no_grad():
            logps, hidden = logps_and_hidden(trainer.model, prompt + completion, len(prompt))
            if critic == "model":
                hidden = trainer.critic.module.backbone(torch.tensor([prompt + completion])).last_hidden_state
                hidden = hidden[0, len(prompt) - 1 : -1]
            head = trainer.critic.module if critic == "head" else trainer.critic.module.head
        got = {name: output[name][row, : len(completion)] for name in ("old_per_token_logps", "values")}
        torch.testing.assert_close(got["old_per_token_logps"], logps, rtol=0, atol=1e-4)
        torch.testing.assert_close(got["values"], hidden @ head.weight[0] + head.bias, rtol=0, atol=1e-4)
