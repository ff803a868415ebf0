"""The three critics and the reward adapter against plain passes; what they leave alone; what they cost."""

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from rlhf_ext import PPOConfig, PPOTrainer, RewardConfig, RewardModel, RewardTrainer
from rlhf_ext.adapters import active_adapter, tuner_layers
from rlhf_ext.critic_modules import load_critic_model
from rlhf_ext.critics import AdapterCritic, HeadCritic, ModelCritic, backbone_of
from rlhf_ext.reward_model.adapter import RewardAdapter

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
ON_EMBEDDINGS = LORA | {"target_modules": ["q_proj", "embed_tokens"]}


@pytest.fixture(scope="session")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="session")
def reward_adapter(tmp_path_factory, model_name, preferences):
    """A reward model: a LoRA adapter on the demo model, and its head."""
    folder = tmp_path_factory.mktemp("reward_adapter")
    options = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 2, "learning_rate": 1e-2}
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    trainer = RewardTrainer(
        model_name,
        args=RewardConfig(str(folder), **options, **quiet),
        train_dataset=preferences,
        eval_dataset=preferences,
        peft_config=LoraConfig(task_type="SEQ_CLS", **LORA),
    )
    trainer.train()
    trainer.save_model()
    return str(folder)


@pytest.fixture
def policy(model_name):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(**LORA))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    ids = torch.randint(3, 2000, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    mask[2, -2:] = 0
    return ids, mask


def give_opinion(critic):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in critic.module.named_parameters():
            if name.endswith(("head.weight", "head.bias")) or "." not in name:
                parameter.normal_(std=0.1)


def test_value_head_starts_at_zero_and_stays_in_float32(policy, accelerator, batch):
    policy = policy.to(torch.bfloat16)
    critic = HeadCritic(policy, accelerator)
    with critic.reading(), torch.autocast("cpu", torch.bfloat16):
        policy(*batch)
    values = critic.values(*batch, 5)
    assert values.dtype == torch.float32 and values.shape == (3, 5) and not values.any()


def test_head_reads_the_policy_and_never_the_reference(policy, accelerator, batch):
    critic = HeadCritic(policy, accelerator)
    give_opinion(critic)
    policy.add_adapter("ref", LoraConfig(**LORA))
    with critic.reading():
        output = policy(batch[0], attention_mask=batch[1], output_hidden_states=True)
        with policy.disable_adapter():
            policy(batch[0], attention_mask=batch[1])
        policy.set_adapter("ref")
        policy(batch[0], attention_mask=batch[1])
        policy.set_adapter("default")
    with critic.reading(), policy.disable_adapter():
        policy(batch[0][:1])
    expected = output.hidden_states[-1] @ critic.module.weight[0] + critic.module.bias
    torch.testing.assert_close(critic.values(*batch, 5), expected[:, -6:-1])
    policy(batch[0][:1])  # outside: not read
    with pytest.raises(RuntimeError, match="saw 0 sequences in the policy's pass, not 1"):
        critic.values(batch[0][:1], batch[1][:1], 5)


def test_head_gives_the_values_of_each_pass_in_turn(policy, accelerator, batch):
    critic = HeadCritic(policy, accelerator)
    give_opinion(critic)
    ids, mask = batch
    with critic.reading():
        policy(ids, attention_mask=mask)
        policy(ids[1:, :-1], attention_mask=mask[1:, :-1])
    whole = critic.values(ids, mask, 5)
    torch.testing.assert_close(critic.values(ids[1:, :-1], mask[1:, :-1], 4), whole[1:, :-1])
    with critic.reading():
        policy(ids, attention_mask=mask)
    with pytest.raises(RuntimeError, match="saw 3 sequences in the policy's pass, not 1"):
        critic.values(ids[:1], mask[:1], 5)


def test_adapter_critic_is_the_base_with_its_own_adapter(policy, accelerator, batch):
    critic = AdapterCritic(policy, accelerator)
    give_opinion(critic)
    values = critic.values(*batch, 5)
    policy.set_adapter("critic")
    hidden = policy.get_base_model().model(*batch).last_hidden_state
    real = batch[1][:, -5:].bool()
    expected = (hidden @ critic.module.weight[0] + critic.module.bias)[:, -6:-1]
    torch.testing.assert_close(values[real], expected[real])
    policy.set_adapter("default")
    other = policy.get_base_model().model(*batch).last_hidden_state
    assert (other - hidden).abs().max() > 0.1


def test_model_critic_is_a_model_of_its_own(policy, accelerator, batch, model_name):
    critic = ModelCritic(policy, accelerator)
    give_opinion(critic)
    hidden = AutoModel.from_pretrained(model_name, dtype=torch.float32)(*batch).last_hidden_state
    head = critic.module.head
    real = batch[1][:, -5:].bool()
    expected = (hidden @ head.weight[0] + head.bias)[:, -6:-1]
    torch.testing.assert_close(critic.values(*batch, 5)[real], expected[real])
    shared = {p.data_ptr() for p in critic.parameters()} & {p.data_ptr() for p in policy.parameters()}
    assert not shared


def test_model_critic_of_another_architecture(policy, accelerator, batch, tmp_path):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=2048, n_embd=8, n_layer=1, n_head=1, n_positions=64)).save_pretrained(tmp_path)
    critic = ModelCritic(policy, accelerator, start_from=str(tmp_path))
    assert critic.values(*batch, 5).shape == (3, 5)
    GPT2Model(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows 64 tokens, and the policy has 2048"):
        ModelCritic(policy, accelerator, start_from=str(tmp_path))


def test_model_critic_whose_embeddings_are_padded_less(policy, accelerator, batch, tmp_path, tokenizer):
    """As among the models of Qwen2.5: with one tokenizer, the sizes of the matrices do not matter."""
    policy.get_base_model().resize_token_embeddings(len(tokenizer) + 64)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    critic = ModelCritic(policy, accelerator, start_from=str(tmp_path), tokenizer=tokenizer)
    batch[0][0, -3] = len(tokenizer) + 1  # which the policy may draw, though no token has it
    assert critic.values(*batch, 5).isfinite().all()
    with pytest.raises(ValueError, match="knows 2048 tokens, and the policy has 2112"):
        ModelCritic(policy, accelerator, start_from=str(tmp_path))
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) - 1, **shape)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows 2047 tokens, and the policy has 2048"):
        ModelCritic(policy, accelerator, start_from=str(tmp_path), tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["model", "reward model", "adapter"])
def test_model_critic_of_a_quantized_checkpoint_is_turned_down(kind, policy, accelerator, model_name, tmp_path):
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["score"])
    auto = AutoModelForCausalLM if kind == "model" else AutoModelForSequenceClassification
    options = {} if kind == "model" else {"num_labels": 1}
    model = auto.from_pretrained(model_name, quantization_config=quantization, **options)
    model.save_pretrained(tmp_path / "base")
    if kind == "adapter":
        model = get_peft_model(auto.from_pretrained(tmp_path / "base"), LoraConfig(task_type="SEQ_CLS", **LORA))
        model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / ("adapter" if kind == "adapter" else "base")
    with pytest.raises(ValueError, match=r"weights are quantized.* Use critic='adapter', or name an unquantized model"):
        ModelCritic(policy, accelerator, start_from=str(path))


@pytest.mark.parametrize("critic", [HeadCritic, AdapterCritic, ModelCritic])
def test_critic_of_a_model_that_narrows_its_hidden_states(critic, accelerator, batch, tmp_path, tokenizer):
    """As OPT-350m does: what its heads take is narrower than `hidden_size`."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=2048, num_hidden_layers=1, max_position_embeddings=64, init_std=0.3, **shape)
    base, reward, ids, mask = tmp_path / "base", tmp_path / "reward", batch[0], torch.ones_like(batch[0])
    OPTForCausalLM(config).save_pretrained(base)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    policies = [AutoModelForCausalLM.from_pretrained(base) for _ in range(2)]
    if critic is AdapterCritic:
        classifier = get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", **LORA))
        policies = [get_peft_model(policy, LoraConfig(**LORA)) for policy in policies]
    classifier.save_pretrained(reward)
    tokenizer.save_pretrained(reward)
    values = []
    for policy, start in zip(policies, (None, str(reward)), strict=True):
        made = critic(policy.eval(), accelerator, start_from=start)
        with made.reading():
            backbone_of(policy)(ids, attention_mask=mask)  # as TRL's fused head does
        values.append(made.values(ids, mask, 1)[:, 0])
    assert not values[0].any()
    scores = RewardModel.from_pretrained(reward).model(ids[:, :-1]).logits[:, 0]
    torch.testing.assert_close(values[1], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("critic", [HeadCritic, AdapterCritic, ModelCritic])
def test_shift_adds_a_constant_to_all_values(critic, policy, accelerator, batch):
    critic = critic(policy, accelerator)
    give_opinion(critic)
    values = []
    for constant in (0.0, -1.5):
        critic.shift(constant)
        with critic.reading():
            policy(*batch)
        values.append(critic.values(*batch, 5))
    torch.testing.assert_close(values[1], values[0] - 1.5)


@pytest.mark.parametrize("kind", ["head", "adapter", "model"])
def test_critic_starts_as_the_reward_model(kind, policy, accelerator, batch, reward_adapter):
    """The value of what follows a text is, at first, the score of the text."""
    ids = batch[0]
    reward_model = RewardModel.from_pretrained(reward_adapter)
    with torch.no_grad():
        scores = reward_model.model(ids[:, :-1]).logits[:, 0] - reward_model.settings.score_offset
    critic = {"head": HeadCritic, "adapter": AdapterCritic, "model": ModelCritic}[kind](
        policy, accelerator, start_from=reward_adapter
    )
    assert all(p.dtype == torch.float32 and p.requires_grad for p in critic.parameters())
    if kind == "head":  # the same head, on the policy's hidden states
        hidden = torch.randn(4, 192)
        expected = reward_model.model.base_model.model.score(hidden)[:, 0] - reward_model.settings.score_offset
        torch.testing.assert_close(critic.module(hidden), expected)
    else:
        torch.testing.assert_close(critic.values(ids, torch.ones_like(ids), 1)[:, 0], scores, rtol=1e-4, atol=1e-4)


def test_reward_adapter_scores_as_the_reward_model(policy, reward_adapter, preferences):
    reward = RewardAdapter(reward_adapter)
    with pytest.raises(RuntimeError, match="works with PPOTrainer only"):
        reward(prompts=[], completions=[])
    before = [p for p in policy.parameters() if p.requires_grad]
    reward.attach(policy)
    prompts, completions = preferences["prompt"], preferences["chosen"]
    expected = RewardModel.from_pretrained(reward_adapter)(prompts=prompts, completions=completions)
    assert reward(prompts=prompts, completions=completions) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01
    after = [p for p in policy.parameters() if p.requires_grad]
    assert len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("dora", [False, True])
def test_reward_adapter_on_the_embeddings(dora, accelerator, batch, model_name, preferences, tokenizer, tmp_path):
    """PEFT names its weights otherwise, and wraps a layer that is otherwise asked how many tokens there are."""
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1, dtype=torch.float32)
    config = LoraConfig(task_type="SEQ_CLS", use_dora=dora, **ON_EMBEDDINGS)
    get_peft_model(classifier, config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), LoraConfig(**ON_EMBEDDINGS))
    reward, reward_model = RewardAdapter(str(tmp_path)), RewardModel.from_pretrained(tmp_path)
    reward.attach(policy)
    rows = {"prompts": preferences["prompt"], "completions": preferences["chosen"]}
    assert reward(**rows) == pytest.approx(reward_model(**rows), abs=1e-4)
    with torch.no_grad():
        scores = reward_model.model(batch[0][:, :-1]).logits[:, 0]
    for critic in (AdapterCritic, ModelCritic):
        values = critic(policy, accelerator, start_from=str(tmp_path)).values(batch[0], torch.ones_like(batch[0]), 1)
        torch.testing.assert_close(values[:, 0], scores, rtol=1e-4, atol=1e-4)


def test_adapter_that_does_not_fit_is_refused(policy, accelerator, reward_adapter, tmp_path, model_name):
    config = LlamaConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    small = get_peft_model(LlamaForCausalLM(config), LoraConfig(**LORA))
    with pytest.raises(ValueError, match=r"does not fit the policy's base .*trained from the same one"):
        AdapterCritic(small, accelerator, start_from=reward_adapter)
    assert set(small.peft_config) == {"default"}
    with pytest.raises(ValueError, match="The reward head takes hidden states of size 192, the critic has 16"):
        HeadCritic(small, accelerator, start_from=reward_adapter)
    policy.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no LoRA adapter with a reward head"):
        AdapterCritic(policy, accelerator, start_from=str(tmp_path))
    with pytest.raises(ValueError, match=r"critic='adapter' needs a LoRA policy.*use_peft"):
        AdapterCritic(AutoModelForCausalLM.from_pretrained(model_name), accelerator)


def test_base_of_the_same_shape_with_other_weights_is_refused(policy, accelerator, reward_adapter, caplog):
    """What an SFT of the whole model leaves, for example: the scores would mean nothing."""
    other = policy.get_base_model()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.base_layer.weight.mul_(1.01)
    with pytest.raises(ValueError, match=r"does not fit the policy's base \(of the same shape, with other weights\)"):
        RewardAdapter(reward_adapter).attach(policy)
    with pytest.raises(ValueError, match="of the same shape, with other weights"):
        AdapterCritic(policy, accelerator, start_from=reward_adapter)
    assert set(policy.peft_config) == {"default"}
    other.to(torch.bfloat16)
    RewardAdapter(reward_adapter).attach(policy)
    assert "was trained on a base in float32, and the policy's is in bfloat16" in caplog.text


def test_model_critic_is_loaded_as_the_policy_was(make_trainer, model_name, monkeypatch):
    loaded = []

    def load(path, **loading):
        loaded.append((path, loading))
        return load_critic_model(path)

    monkeypatch.setattr("rlhf_ext.critics.load_critic_model", load)
    make_trainer(critic="model", model_init_kwargs={"revision": "main"})
    make_trainer(critic="model", critic_path=model_name, model_init_kwargs={"revision": "main"}, trust_remote_code=True)
    make_trainer(critic="model", lora=LORA | {"revision": "v2"})
    expected = [("main", False), (None, True), ("v2", False)]
    assert loaded == [(model_name, {"revision": r, "trust_remote_code": trust}) for r, trust in expected]


def test_active_adapter_is_restored_whatever_happens(policy, accelerator, batch):
    critic = AdapterCritic(policy, accelerator)
    learn = {name: p.requires_grad for name, p in policy.named_parameters()}
    with pytest.raises(IndexError):
        critic.values(torch.full((1, 4), 10**6), torch.ones(1, 4), 2)
    with pytest.raises(ZeroDivisionError), active_adapter(tuner_layers(policy), "critic"):
        assert all(layer.active_adapters == ["critic"] for layer in tuner_layers(policy))
        1 / 0  # noqa: B018
    assert all(layer.active_adapters == ["default"] for layer in tuner_layers(policy))
    assert learn == {name: p.requires_grad for name, p in policy.named_parameters()}
    assert all(p.requires_grad for p in critic.parameters())


# In the trainer


def count_e(completions, **kwargs):
    return [completion[0]["content"].count("e") / 5 for completion in completions]


@pytest.fixture
def make_trainer(tmp_path, model_name):
    from rlhf_ext.demo.data import prompt_dataset

    def make(critic, *, lora=LORA, reward=count_e, folder="run", quantization_config=None, **options):
        fixed = {"use_cpu": True, "bf16": False, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
        quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
        options = {"gradient_checkpointing": False, "max_completion_length": 24, "max_steps": 2} | options
        args = PPOConfig(str(tmp_path / folder), critic=critic, **fixed | quiet | options)
        return PPOTrainer(
            model_name,
            reward,
            args,
            prompt_dataset("train", size=8),
            peft_config=LoraConfig(**lora),
            quantization_config=quantization_config,
        )

    return make


def first_gradients(trainer):
    """Gradients of the first optimizer step, by name."""
    gradients = {}

    def keep(args, state, control, **kwargs):
        named = [*trainer.model.named_parameters(), *trainer.critic.module.named_parameters("critic module")]
        gradients.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.callback_handler.callbacks[-1].on_pre_optimizer_step = keep
    trainer.train()
    return gradients


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_gradient_equals_the_formula_with_and_without_checkpointing(kind, make_trainer):
    """Checkpointing repeats the forward pass in the backward pass, when the policy's adapter would be active again."""
    results, inputs = [], {}
    for checkpointing in (False, True):
        trainer = make_trainer(kind, max_steps=1, max_grad_norm=0.0, gradient_checkpointing=checkpointing)
        give_opinion(trainer.critic)
        compute_loss = trainer._compute_loss
        trainer._compute_loss = lambda model, batch: inputs.update(batch) or compute_loss(model, batch)  # noqa: B023
        results.append(first_gradients(trainer))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-3, atol=1e-6)

    fresh = make_trainer(kind, max_steps=1)  # the others have made a step
    give_opinion(fresh.critic)
    own = fresh.critic.parameters()
    ids, mask = (torch.cat([inputs[f"prompt_{k}"], inputs[f"completion_{k}"]], 1) for k in ("ids", "mask"))
    real = inputs["completion_mask"].bool()
    moved = (inputs["values"] - fresh.critic.values(ids, mask, real.size(1)))[real]  # to the mean return, all alike
    torch.testing.assert_close(moved, moved.mean().expand_as(moved), rtol=1e-4, atol=1e-4)
    fresh.critic.shift(moved.mean().item())
    values = fresh.critic.values(ids, mask, real.size(1))
    near = inputs["values"] + (values - inputs["values"]).clamp(-0.2, 0.2)
    errors = torch.maximum((values - inputs["returns"]) ** 2, (near - inputs["returns"]) ** 2)
    with fresh.critic.active():
        expected = torch.autograd.grad(0.1 * 0.5 * errors[real].mean(), own)
    named = [*fresh.model.named_parameters(), *fresh.critic.module.named_parameters("critic module")]
    names = {id(p): name for name, p in named}
    for parameter, gradient in zip(own, expected, strict=True):
        torch.testing.assert_close(results[0][names[id(parameter)]], gradient, rtol=1e-3, atol=1e-6)
    assert max(gradient.abs().max() for gradient in expected) > 1e-3


@pytest.mark.parametrize(("kind", "rate"), [("head", None), ("adapter", 8e-3), ("model", 8e-3)])
def test_critic_learns_with_its_own_rate_and_leaves_the_base_alone(kind, rate, make_trainer):
    """By default ten times the policy's."""
    trainer = make_trainer(kind, critic_learning_rate=rate, max_steps=5, critic_warmup_steps=2)
    own = trainer.critic.parameters()
    before = [p.detach().clone() for p in own]
    base = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_" not in n}
    trainer.train()
    groups = {group.get("name"): group for group in trainer.optimizer.param_groups}
    assert {id(p) for p in groups["critic"]["params"]} == {id(p) for p in own}
    assert groups["critic"]["initial_lr"] == (rate or 1e-2) and trainer.optimizer.param_groups[0]["initial_lr"] == 1e-3
    assert not {id(p) for p in own} & {id(p) for p in trainer.optimizer.param_groups[0]["params"]}
    assert sum(not torch.equal(a, b) for a, b in zip(before, own, strict=True)) >= len(own) - 1
    assert all(torch.equal(p, base[n]) for n, p in trainer.model.named_parameters() if n in base)
    assert all(layer.active_adapters == ["default"] for layer in tuner_layers(trainer.model))
    assert any(value != 0 for value in [e["value/mean"] for e in trainer.state.log_history if "value/mean" in e])


def test_critic_on_the_embeddings_learns(make_trainer):
    """PEFT puts the adapter's name at the end of these weights' names, and inside of the others'."""
    trainer = make_trainer("adapter", lora=ON_EMBEDDINGS, max_steps=3)
    named = {name: p for name, p in trainer.model.named_parameters() if "critic" in name.split(".")}
    assert len([name for name in named if "lora_embedding" in name]) == 2
    before = {name: p.detach().clone() for name, p in named.items()}
    trainer.train()
    groups = trainer.optimizer.param_groups
    in_groups = {id(p): group.get("name") for group in groups for p in group["params"]}
    assert {in_groups[id(p)] for p in named.values()} == {"critic"}
    assert all(p.requires_grad and not torch.equal(p, before[name]) for name, p in named.items())


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(kind, make_trainer, tmp_path):
    def train(folder, resume=None):
        trainer = make_trainer(kind, folder=folder, max_steps=8, save_strategy="steps", save_steps=4)
        trainer.train(resume_from_checkpoint=resume)
        policy = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        return policy, trainer.critic.module.state_dict()

    whole, resumed = train("whole"), train("resumed", str(tmp_path / "whole/checkpoint-4"))
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_saved_policy_is_a_plain_adapter_beside_critic_and_reward(make_trainer, model_name, reward_adapter, tmp_path):
    trainer = make_trainer("adapter", reward=None, reward_adapter=reward_adapter, critic_path=reward_adapter)
    trainer.train()
    assert "rewards/reward_adapter/mean" in trainer.state.log_history[0]
    trainer.save_model()
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "run")
    assert set(loaded.peft_config) == {"default"}
    ids = torch.tensor([[5, 6, 7, 8]])
    kwargs = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    trainer.model.eval()
    assert torch.equal(loaded.generate(ids, **kwargs), trainer.model.generate(ids, **kwargs))
    assert {"adapter_model.safetensors", "critic.safetensors"} <= {p.name for p in (tmp_path / "run/critic").iterdir()}


def test_reward_model_that_the_critic_starts_from_is_not_trained(make_trainer, reward_adapter):
    """One object given as value and as reward model was trained, and the reward with it, in TRL's old trainer."""
    reward_model = RewardModel.from_pretrained(reward_adapter)
    before = {name: p.clone() for name, p in reward_model.model.named_parameters()}
    for kind in ("adapter", "model"):
        trainer = make_trainer(kind, reward=reward_model, critic_path=reward_adapter)
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in reward_model.model.named_parameters())
    with_reward = make_trainer("adapter", reward=None, critic_path=reward_adapter, reward_adapter=reward_adapter)
    frozen = {n: p.clone() for n, p in with_reward.model.named_parameters() if ".reward." in n}
    with_reward.train()
    assert frozen and all(torch.equal(p, frozen[n]) for n, p in with_reward.model.named_parameters() if n in frozen)


def wide_model(folder, tokenizer):
    """One layer about as wide as those of a 2B model, where adapters weigh as little as they do there."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 1, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=2048, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    options = {"r": 16, "target_modules": "all-linear", "task_type": "SEQ_CLS"}
    get_peft_model(model, LoraConfig(**options)).to(torch.bfloat16).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return str(folder / "base"), str(folder / "reward")


def storages(*modules):
    """Bytes by data pointer of all weights, and of what quantization keeps beside them."""
    found = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            state = getattr(tensor, "quant_state", None)
            for part in (tensor, getattr(tensor, "SCB", None), getattr(state, "absmax", None)):
                if part is not None:
                    found[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return found


@pytest.mark.parametrize("bits", [8, 4])
def test_one_quantized_backbone_serves_policy_reference_critic_and_reward(bits, tmp_path, tokenizer):
    base, reward = wide_model(tmp_path, tokenizer)
    args = PPOConfig(
        str(tmp_path / "run"), use_cpu=True, bf16=False, gradient_checkpointing=False, per_device_train_batch_size=2,
        max_steps=1, max_completion_length=4, save_strategy="no", report_to="none", disable_tqdm=True,
        critic="adapter", critic_path=reward, reward_adapter=reward, model_init_kwargs={"dtype": torch.bfloat16},
    )  # fmt: skip
    trainer = PPOTrainer(
        base,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["one", "two"]}),
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
        quantization_config=BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4),
    )
    trainer.train()
    assert trainer.ref_model is None and trainer.state.global_step == 1
    classifier = trainer.reward_funcs[0].reward_model.model
    trunk = {n: p for n, p in trainer.model.named_parameters() if "lora_" not in n}
    policy = [p for n, p in trainer.model.named_parameters() if "lora_" in n and ".default." in n]
    quantized = [p for p in trunk.values() if p.dtype == {8: torch.int8, 4: torch.uint8}[bits]]
    assert len(quantized) == 7
    weights = 4 * 2048 * 2048 + 3 * 2048 * 8192  # of the layer; 4 bit keeps a float32 scale for every 64 of them
    kept = sum(storages(nn.ParameterList(quantized)).values())
    assert kept == pytest.approx(weights if bits == 8 else weights / 2 + 4 * weights / 64, rel=1e-2)
    once = storages(nn.ParameterList(trunk.values()))
    everything = storages(trainer.model, trainer.critic.module, classifier)
    with_lora = sum(once.values()) + sum(p.numel() * p.element_size() for p in policy)
    assert sum(once.values()) < sum(everything.values()) <= 1.10 * with_lora
    assert once.keys() <= everything.keys()
    assert {p.data_ptr() for n, p in classifier.model.named_parameters() if "lora_" not in n} <= once.keys()


def test_four_bit_base_learns_with_all_adapters(make_trainer, reward_adapter, model_name):
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    trainer = make_trainer(
        "adapter", reward=None, reward_adapter=reward_adapter, quantization_config=quantization, max_steps=6
    )
    learn = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
    before = [p.detach().clone() for _, p in learn]
    assert {".default." in name for name, _ in learn} == {True, False}
    trainer.train()
    moved = [not torch.equal(a, p) for a, (_, p) in zip(before, learn, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
