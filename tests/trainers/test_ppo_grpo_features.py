"""What `GRPOTrainer` has stays usable beside a critic: async and several rewards, tools, vLLM."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Mxfp4Config
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.adapters import base_as_it_was, merged_adapter, tuner_layers
from rlhf_ext.packed_weights import _has_packed_products
from rlhf_ext.trainers.ppo_checks import check_vllm


def count_e(completions, **kwargs):
    return [completion[-1]["content"].count("e") / 5 for completion in completions]


@pytest.fixture
def make_trainer(cpu_options, model_name):
    from rlhf_ext.demo.data import prompt_dataset

    def make(*, lora=True, reward=count_e, trl_options=None, **options):
        args = PPOConfig(**cpu_options | {"max_completion_length": 12, "max_steps": 2} | options)
        trl_options = trl_options or {}
        if lora:
            trl_options["peft_config"] = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        return PPOTrainer(model_name, reward, args, prompt_dataset("train", size=8), **trl_options)

    return make


def first_batch(trainer):
    return trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(4)])


def gradients(trainer, inputs):
    """The loss, and its gradient in all weights that learn."""
    weights = [p for p in (*trainer.model.parameters(), *trainer.critic.parameters()) if p.requires_grad]
    for weight in weights:
        weight.grad = None
    loss = trainer._compute_loss(trainer.model, inputs)
    if loss.requires_grad:
        loss.backward()
    return loss.item(), [weight.grad for weight in weights]


def test_async_reward_function_beside_another_with_weights(make_trainer):
    """The score is the weighted sum, and it is what the last token is rewarded with."""
    seen = []

    async def shortness(completions, **kwargs):
        seen.append(completions)
        return [-float(len(completion[0]["content"])) for completion in completions]

    trainer = make_trainer(reward=[count_e, shortness], reward_weights=[2.0, 0.5], init_kl_coef=0.0, lam=1.0)
    output = first_batch(trainer)
    (completions,) = seen
    texts = [completion[0]["content"] for completion in completions]
    expected = [2.0 * text.count("e") / 5 - 0.5 * len(text) for text in texts]
    assert len(set(expected)) > 1
    assert output["returns"][:, 0].tolist() == pytest.approx(expected, abs=1e-4)
    trainer.train()
    entry = trainer.state.log_history[0]
    both = 2.0 * entry["rewards/count_e/mean"] + 0.5 * entry["rewards/shortness/mean"]
    assert entry["score"] == pytest.approx(both, abs=1e-4)


# Tools


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: The first.
        b: The second.

    Returns:
        The product.
    """
    return a * b


@pytest.fixture
def with_tools(make_trainer, model_name):
    """A trainer whose model asks the tool in two of four conversations, and then answers."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    call = '<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": 7}}\n</tool_call>'

    def ids(text):
        return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]

    def make(**options):
        trl_options = {"tools": [multiply], "processing_class": tokenizer}
        trainer = make_trainer(trl_options=trl_options, max_completion_length=512, **options)
        turns = [[ids(call), ids("No."), ids(call), ids("It is green.")], [ids("The sea is 42."), ids("Yes")]]

        def generate(prompt_ids, *args, **kwargs):
            turn = turns[0] if len(prompt_ids) == 4 else turns[1]
            assert len(turn) == len(prompt_ids)
            return turn, None

        trainer._generate_single_turn = generate
        trainer.model.config.max_position_embeddings = 2048  # TRL leaves out answers of tools that would exceed it
        with torch.no_grad():
            for parameter in trainer.critic.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        return trainer

    return make


@pytest.mark.parametrize("critic", ["head", "adapter", "model"])
def test_answers_of_tools_earn_nothing_and_teach_nothing(critic, with_tools):
    """Rewards run over the model's own tokens as if the tool's were not there; whatever stands at those is not read."""
    trainer = with_tools(critic=critic, gamma=0.9, lam=0.8, init_kl_coef=0.5, whiten_advantages=False)
    output = first_batch(trainer)
    own = (output["completion_mask"] * output["tool_mask"]).bool()
    of_tool = output["completion_mask"].bool() & ~own
    assert of_tool.any(1).tolist() == [True, False, True, False]
    assert "42" in trainer.processing_class.decode(output["completion_ids"][0][of_tool[0]])
    for name in ("advantages", "returns"):
        assert not output[name][of_tool].any() and output[name][own].any()
    for row, score in enumerate([2 / 5, 0.0, 1 / 5, 2 / 5]):  # "The sea is 42.", "No.", "Yes", "It is green."
        kl = output["old_per_token_logps"][row] - output["ref_per_token_logps"][row]
        rewards = (-0.5 * kl)[own[row]].tolist()
        rewards[-1] += score
        values = output["values"][row][own[row]].tolist()
        advantage, next_value, expected = 0.0, 0.0, []
        for reward, value in zip(reversed(rewards), reversed(values), strict=True):
            advantage = reward + 0.9 * next_value - value + 0.9 * 0.8 * advantage
            next_value = value
            expected.insert(0, advantage)
        assert output["advantages"][row][own[row]].tolist() == pytest.approx(expected, abs=1e-4)

    trainer.current_gradient_accumulation_steps = 1
    trainer._step = trainer.args.gradient_accumulation_steps  # the ratio is taken from what the rollout kept
    loss, wanted = gradients(trainer, output)
    spoiled = {name: tensor.clone() if torch.is_tensor(tensor) else tensor for name, tensor in output.items()}
    for name in ("advantages", "returns", "values"):
        spoiled[name][of_tool] = 50.0
    spoiled["old_per_token_logps"][of_tool] -= 1.0
    spoiled_loss, found = gradients(trainer, spoiled)
    assert spoiled_loss == pytest.approx(loss, rel=1e-6)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    spoiled["returns"][own] += 1.0
    assert gradients(trainer, spoiled)[0] != pytest.approx(loss, rel=1e-3)


def test_tools_with_a_template_that_knows_none(make_trainer):
    with pytest.raises(ValueError, match="chat template does not support tool calling"):
        make_trainer(trl_options={"tools": [multiply]})


# vLLM, which is not installed here: what TRL reads of the policy, and what it adds to a batch


def synced(trainer):
    """The weights that TRL would send to vLLM."""
    sender = object.__new__(VLLMGeneration)
    sender.model, sender.accelerator, sender._dist = trainer.model, trainer.accelerator, trainer._dist
    return {name: weight.clone() for name, weight in sender._iter_named_params()}


@pytest.mark.parametrize(("critic", "lora"), [("head", False), ("head", True), ("adapter", True), ("model", False)])
def test_vllm_is_sent_the_policy_and_nothing_of_the_critic(critic, lora, make_trainer, model_name):
    """By the names of the plain model; with LoRA the weights with the policy's adapter merged, and no other's."""
    trainer = make_trainer(lora=lora, critic=critic)
    with torch.no_grad():
        for parameter in trainer.critic.parameters():
            parameter.add_(0.1)
    plain = {name: p.clone() for name, p in trainer.model.named_parameters()}
    sent = synced(trainer)
    if not lora:
        assert sent.keys() == dict(AutoModelForCausalLM.from_pretrained(model_name).named_parameters()).keys()
        assert all(torch.equal(sent[name], plain[name]) for name in sent)
        return
    reference = make_trainer().model  # has no critic's adapter
    reference.load_state_dict({n: plain[n] for n, _ in reference.named_parameters()}, strict=False)
    merged = dict(reference.merge_and_unload().named_parameters())
    assert sent.keys() == merged.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(sent[name], weight)
    for name, weight in trainer.model.named_parameters():  # and the adapter is taken out again
        torch.testing.assert_close(weight, plain[name])


def test_vllm_leaves_the_base_in_bfloat16_as_it_was(make_trainer, monkeypatch):
    """TRL merges the adapter into the weights that it sends, and subtracts it again, which is not exact."""

    class Engine(VLLMGeneration):
        def __init__(self, model, accelerator, **options):
            self.model, self.accelerator = model, accelerator
            self._dist = DistributedBackend(accelerator)
            self.sent = None

        def sync_weights(self):
            self.sent = {name: weight.clone() for name, weight in self._iter_named_params()}

    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Engine)
    trainer = make_trainer(use_vllm=True, vllm_mode="colocate", model_init_kwargs={"dtype": torch.bfloat16})
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    for _ in range(3):
        trainer.vllm_generation.sync_weights()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    name = "model.layers.0.mlp.up_proj"
    layer = trainer.model.get_submodule(f"base_model.model.{name}")
    merged = layer.get_base_layer().weight + layer.get_delta_weight("default")
    torch.testing.assert_close(trainer.vllm_generation.sent[f"{name}.weight"], merged.to(torch.bfloat16))
    assert not layer.merged


def test_base_and_adapter_are_as_they_were_after_an_engine_has_failed(model_name):
    """Layers that count as merged would run without their adapter."""
    model = AutoModelForCausalLM.from_pretrained(model_name)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    ids = torch.arange(4)[None]
    before = model(ids).logits
    with pytest.raises(ConnectionError), base_as_it_was(model):
        model.merge_adapter()
        raise ConnectionError
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize(("critic", "bf16_base"), [("head", False), ("adapter", False), ("head", True)])
def test_merged_adapter_is_that_of_generation_alone(critic, bf16_base, make_trainer, monkeypatch):
    """In float32 the completions are the same; base and log-probabilities are those without, to the last bit."""
    merged_in_generation = []
    generate = trl.GRPOTrainer._generate_single_turn

    def noted(trainer, *args):
        merged_in_generation.append({tuple(layer.merged_adapters) for layer in tuner_layers(trainer.model)})
        lm_head = trainer.model.get_output_embeddings()
        packed.append(hasattr(vars(lm_head).get("forward"), "weight"))
        lm_head.register_forward_hook(lambda _, inputs, __: contiguous.append(inputs[0].is_contiguous()))
        return generate(trainer, *args)

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", noted)
    outputs, contiguous, packed = [], [], []
    dtype = torch.bfloat16 if bf16_base else torch.float32
    for merge in (False, True):
        trainer = make_trainer(
            critic=critic, merge_adapter_for_generation=merge, model_init_kwargs={"dtype": dtype}, bf16=False
        )
        before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
        outputs.append(first_batch(trainer))
        assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
        assert not any(layer.merged for layer in tuner_layers(trainer.model))
    assert merged_in_generation == [{()}, {("default",)}]
    assert contiguous and all(contiguous)
    assert packed == 2 * [_has_packed_products(dtype)]
    if not bf16_base:
        for name in ("completion_ids", "old_per_token_logps", "values", "advantages"):
            assert torch.equal(outputs[0][name], outputs[1][name])


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # PEFT says it too, early
@pytest.mark.parametrize(
    ("lora", "options", "message"),
    [
        (None, {}, "no effect without LoRA: pass a peft_config"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, {}, "shares a weight .* leave these out of target_modules"),
        ({}, {"model_init_kwargs": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}}, "bits of a"),
        ({"lora_bias": True}, {}, r"PEFT cannot merge this adapter \(Impossible to merge"),
        ({}, {"use_vllm": True}, "no effect with use_vllm"),
    ],
    ids=["full", "tied", "8 bit", "no bias", "vllm"],
)
def test_adapter_that_cannot_be_merged(lora, options, message, cpu_options, model_name):
    from rlhf_ext.demo.data import prompt_dataset

    config = None if lora is None else LoraConfig(r=4, **{"target_modules": "all-linear"} | lora)
    with pytest.raises(ValueError, match=f"merge_adapter_for_generation.* {message}"):
        args = PPOConfig(**cpu_options | options, merge_adapter_for_generation=True)
        PPOTrainer(model_name, count_e, args, prompt_dataset("train", size=8), peft_config=config)


def test_merging_into_bfloat16_moves_the_policy_less_than_learning_does(model_name):
    """The merged weights are rounded: small updates of large weights are lost, of small weights they are not."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.bfloat16)
    targets = ["q_proj", "v_proj", "gate_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=8, target_modules=targets, init_lora_weights=False)).eval()
    ids = torch.randint(3, model.config.vocab_size, (8, 32))

    @torch.no_grad()
    def divergence(context):
        policy = model(ids).logits.float().log_softmax(-1)
        with context:
            other = model(ids).logits.float().log_softmax(-1)
        return (policy.exp() * (policy - other)).sum(-1).mean().item()

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.mul_(0.15)
    learned, rounded = divergence(model.disable_adapter()), divergence(merged_adapter(model))
    assert 0.01 < learned < 0.05  # nats a token: what a short run reaches
    assert 0 < rounded < 0.001


def test_adapter_is_not_merged_for_a_function_that_generates(make_trainer, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    with pytest.raises(ValueError, match="merge_adapter_for_generation has no effect with a rollout_func"):
        make_trainer(merge_adapter_for_generation=True, trl_options={"rollout_func": lambda prompts, trainer: {}})


def test_adapter_is_taken_out_again_when_generation_fails(make_trainer, monkeypatch):
    def fail(trainer, *args):
        raise ConnectionError

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", fail)
    trainer = make_trainer(merge_adapter_for_generation=True)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    with pytest.raises(ConnectionError):
        first_batch(trainer)
    assert not any(layer.merged for layer in tuner_layers(trainer.model))
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    assert not trainer.model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("given", ["quantization_config", "model_init_kwargs", "model"])
def test_vllm_is_not_sent_quantized_weights(given, cpu_options, model_name):
    """It would fail on the shape of the first one, once model and engine are loaded."""
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    model, trl_options, options = "/no/such/model", {}, {"use_vllm": True}
    if given == "model":
        model = AutoModelForCausalLM.from_pretrained(model_name, quantization_config=quantization)
    elif given == "model_init_kwargs":
        options["model_init_kwargs"] = {"quantization_config": quantization}
    else:
        trl_options["quantization_config"] = quantization
    with pytest.raises(ValueError, match="vLLM cannot take the policy's 8- or 4-bit weights"):
        PPOTrainer(model, count_e, PPOConfig(**cpu_options | options), **trl_options)


def test_vllm_may_be_sent_weights_that_are_dequantized(cpu_options):
    args = PPOConfig(**cpu_options, use_vllm=True)
    check_vllm(args, "openai/gpt-oss-20b", Mxfp4Config(dequantize=True))
    with pytest.raises(ValueError, match="vLLM cannot take"):
        check_vllm(args, "openai/gpt-oss-20b", Mxfp4Config())


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_importance_sampling_of_vllm_weighs_the_policy_loss_alone(mode, make_trainer):
    """vLLM's probabilities are a little off; the policy loss of each token is weighed, the value loss is not."""
    trainer = make_trainer(vllm_importance_sampling_mode=mode, whiten_advantages=False)
    trainer.model.eval()
    plain = first_batch(trainer)
    lengths = plain["completion_mask"].sum(1).tolist()
    rows = [ids[:length].tolist() for ids, length in zip(plain["completion_ids"], lengths, strict=True)]
    shift = torch.linspace(-0.1, 0.1, 4)[:, None].expand_as(plain["old_per_token_logps"])
    sampled = plain["old_per_token_logps"] - shift
    logprobs = [[[value] for value in row[:length].tolist()] for row, length in zip(sampled, lengths, strict=True)]
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    trainer.vllm_generation = SimpleNamespace(
        sync_weights=lambda: None, generate=lambda prompts, **kwargs: (prompts, rows, logprobs, None)
    )
    output = first_batch(trainer)
    mask = output["completion_mask"].bool()
    ratio = output["importance_sampling_ratio"].expand_as(mask)
    power = torch.tensor(lengths)[:, None] if mode.startswith("sequence") else 1
    expected, bound = (shift * power).exp(), trainer.vllm_importance_sampling_clip_max
    expected = expected.clamp(max=bound) if mode.endswith("truncate") else torch.where(expected > bound, 0, expected)
    torch.testing.assert_close(ratio[mask], expected[mask], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output["advantages"], plain["advantages"], rtol=1e-3, atol=1e-3)

    losses = {}
    for factor in (0.0, 0.1):
        trainer.args.vf_coef = factor
        losses[factor] = trainer._compute_loss(trainer.model, output).item()
    policy = -(ratio * output["advantages"])[mask].mean().item()
    value = 0.5 * ((output["values"] - output["returns"]) ** 2)[mask].mean().item()
    assert losses[0.0] == pytest.approx(policy, rel=1e-3)
    assert losses[0.1] - losses[0.0] == pytest.approx(0.1 * value, rel=1e-3)
    assert value > 0.001


# Engines that cannot hold a critic


@pytest.mark.parametrize(
    ("engine", "reason"), [("DeepSpeed", "makes its optimizer from the weights"), ("FSDP1", "flattens the weights")]
)
def test_engine_is_refused_before_the_model_loads(engine, reason, cpu_options, monkeypatch):
    args = PPOConfig(**cpu_options)
    if engine == "DeepSpeed":
        args.deepspeed_plugin = object()
    else:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "1")
    message = f"{engine} {reason} of one model, and the critic's lie beside the policy. Use accelerate_configs"
    with pytest.raises(ValueError, match=message):
        PPOTrainer("/no/such/model", count_e, args)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("reward_adapter", "x", "the same number of passes"),
        ("merge_adapter_for_generation", True, "a part of each weight: drop it"),
    ],
)
def test_option_is_refused_under_fsdp(option, value, reason, cpu_options, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match=rf"{option} does not run under FSDP.*{reason}"):
        PPOTrainer("/no/such/model", None, PPOConfig(**cpu_options, **{option: value}))


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
def test_continuous_batching_may_not_round_the_weights_that_learn(lora, make_trainer):
    """TRL casts the whole policy for it, and leaves it so."""
    with pytest.raises(ValueError, match="small updates are rounded away: set bf16 and fp16 to False"):
        make_trainer(lora=lora, use_transformers_continuous_batching=True, bf16=True)
    make_trainer(lora=lora, use_transformers_continuous_batching=True, bf16=False)


def test_continuous_batching_may_not_round_the_adapter_of_the_critic(cpu_options, model_name):
    from rlhf_ext.demo.data import prompt_dataset

    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"), autocast_adapter_dtype=False)
    options = {"critic": "adapter", "use_transformers_continuous_batching": True, "bf16": True}
    with pytest.raises(ValueError, match="small updates are rounded away"):
        PPOTrainer(model, count_e, PPOConfig(**cpu_options | options), prompt_dataset("train", size=8))
