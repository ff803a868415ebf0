"""What only a GPU shows: every trainer in bfloat16 with gradient checkpointing, fully and over a quantized base."""

import math

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from rlhf_ext import DPOConfig, DPOTrainer, PPOConfig, PPOTrainer, RewardConfig, RewardModel, RewardTrainer
from rlhf_ext.attention import without_cudnn_attention
from rlhf_ext.demo.data import prompt_dataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
BITS = pytest.mark.parametrize("bits", [None, 8, 4])


def options(folder, **given):
    common = {"bf16": True, "gradient_checkpointing": True, "logging_steps": 1, "report_to": "none"}
    common |= {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True}
    return common | {"output_dir": str(folder), "max_steps": 6} | given


def adapters(bits, task_type="CAUSAL_LM"):
    if bits is None:
        return {}
    quantization = BitsAndBytesConfig(
        load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.bfloat16
    )
    lora = LoraConfig(r=8, target_modules="all-linear", task_type=task_type)
    return {"quantization_config": quantization, "peft_config": lora}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@BITS
@pytest.mark.parametrize("loss", ["sigmoid", "cdpo"])
def test_dpo_learns(loss, bits, tmp_path, model_name, preferences):
    args = DPOConfig(**options(tmp_path, loss_type=loss, max_steps=12))
    trainer = DPOTrainer(model_name, args=args, train_dataset=preferences, **adapters(bits))
    trainer.train()
    assert trainer.model.device.type == "cuda"
    losses = logged(trainer, "loss")
    assert losses[-1] < losses[0] - 0.05


def test_plugin_loss_equals_trls(tmp_path, model_name, preferences):
    """`cdpo` without smoothing is `sigmoid`."""
    runs = []
    for loss, kwargs in (("sigmoid", {}), ("cdpo", {"label_smoothing": 0.0})):
        args = DPOConfig(**options(tmp_path, loss_type=loss, loss_kwargs=kwargs, bf16=False))
        trainer = DPOTrainer(model_name, args=args, train_dataset=preferences, **adapters(8))
        trainer.train()
        runs.append(logged(trainer, "loss"))
    assert runs[0] == pytest.approx(runs[1], abs=2e-3)


@BITS
def test_reward_model_learns_and_comes_back(bits, tmp_path, model_name, preferences):
    args = RewardConfig(**options(tmp_path, max_steps=12))
    rows = preferences.remove_columns("margin")
    trainer = RewardTrainer(model_name, args=args, train_dataset=rows, eval_dataset=rows, **adapters(bits, "SEQ_CLS"))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    model = RewardModel.from_pretrained(tmp_path / "saved", show_progress=False)
    assert model.model.device.type == "cuda"
    pairs = [(row["prompt"], row["chosen"]) for row in rows]
    together, alone = model.score(pairs), [model.score([pair])[0] for pair in pairs]
    assert together == pytest.approx(alone, abs=0.05)  # bfloat16 products depend on the shape of a batch
    chosen, rejected = together, model.score([(row["prompt"], row["rejected"]) for row in rows])
    assert sum(c > r for c, r in zip(chosen, rejected, strict=True)) >= 6


def letters(completions, **kwargs):
    return [float(sum(map(str.isalpha, completion[0]["content"]))) for completion in completions]


@BITS
@pytest.mark.parametrize("critic", ["head", "adapter", "model"])
def test_ppo_trains_and_resumes(critic, bits, tmp_path, model_name):
    if critic == "adapter" and bits is None:
        pytest.skip("an adapter critic needs a policy with adapters")

    def train(folder, resume=None):
        saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8, "num_iterations": 2}
        given = options(tmp_path / folder, critic=critic, max_completion_length=12, learning_rate=1e-4, **saving)
        args = PPOConfig(**given | {"steps_per_generation": 2, "gradient_accumulation_steps": 1})
        trainer = PPOTrainer(model_name, letters, args, prompt_dataset("train", size=32), **adapters(bits))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    trainer = train("whole")
    ratios, rewards, kl = (logged(trainer, name) for name in ("ratio", "reward", "kl/k1"))
    assert trainer.state.global_step == 8 and all(map(math.isfinite, [*ratios, *rewards, *kl]))
    assert ratios[0] == pytest.approx(1.0, abs=0.01) and abs(kl[0]) < 0.2
    resumed = train("resumed", str(tmp_path / "whole/checkpoint-4"))
    assert logged(resumed, "reward")[-1] == pytest.approx(rewards[-1], rel=0.2)


def test_one_backbone_serves_everything(tmp_path, model_name, preferences):
    reward = RewardTrainer(
        model_name,
        args=RewardConfig(**options(tmp_path / "reward", max_steps=2)),
        train_dataset=preferences.remove_columns("margin"),
        **adapters(8, "SEQ_CLS"),
    )
    reward.train()
    reward.save_model(str(tmp_path / "adapter"))
    args = PPOConfig(
        **options(tmp_path / "ppo", critic="adapter", max_steps=2, max_completion_length=8),
        reward_adapter=str(tmp_path / "adapter"),
        critic_path=str(tmp_path / "adapter"),
    )
    rows = prompt_dataset("train", size=16)
    trainer = PPOTrainer(model_name, args=args, train_dataset=rows, eval_dataset=rows, **adapters(8))
    trainer.train()
    quantized = [p for p in trainer.model.parameters() if p.dtype == torch.int8]
    assert quantized and all(p.device.type == "cuda" for p in trainer.model.parameters())
    assert math.isfinite(trainer.evaluate()["eval_reward"])


@pytest.mark.parametrize("length", [64, 192])
def test_queries_that_see_nothing_get_finite_gradients(length):
    """With cuDNN's attention of PyTorch 2.11 they are NaN on an H100, at these lengths."""
    query, key, value = (
        torch.randn(2, 2, length, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    mask = torch.ones(2, 1, length, length, device="cuda", dtype=torch.bool).tril()
    mask[1, :, :, :20] = False  # padding on the left
    with without_cudnn_attention():
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output[:, :, 20:].float().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))
