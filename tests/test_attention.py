"""Training does without cuDNN's attention, whose backward pass makes some gradients NaN; see tests/test_cuda.py."""

import pytest
import torch

from rlhf_ext import DPOConfig, DPOTrainer, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer
from rlhf_ext.attention import without_cudnn_attention
from rlhf_ext.demo.data import prompt_dataset

is_on = torch.backends.cuda.cudnn_sdp_enabled


def test_the_kernel_comes_back_after_an_error():
    assert is_on()
    with pytest.raises(KeyError), without_cudnn_attention():
        assert not is_on()
        raise KeyError
    assert is_on()


def test_it_stays_off_where_the_user_has_turned_it_off():
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with without_cudnn_attention():
            assert not is_on()
        assert not is_on()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def options(folder):
    common = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "bf16": False}
    return common | {
        "output_dir": str(folder),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def dpo(model, rows, folder):
    return DPOTrainer(model, args=DPOConfig(**options(folder)), train_dataset=rows)


def reward(model, rows, folder):
    return RewardTrainer(model, args=RewardConfig(**options(folder)), train_dataset=rows)


def ppo(model, rows, folder):
    args = PPOConfig(**options(folder), max_completion_length=4, num_iterations=1)
    return PPOTrainer(model, lambda completions, **_: [0.0] * len(completions), args, prompt_dataset("train", size=4))


@pytest.mark.parametrize("make", [dpo, reward, ppo])
def test_training_does_without_it(make, model_name, preferences, tmp_path):
    trainer = make(model_name, preferences.remove_columns("margin"), tmp_path)
    seen = []
    trainer.model.register_forward_pre_hook(lambda *_: seen.append((torch.is_grad_enabled(), is_on())))
    trainer.train()
    assert (True, False) in seen and all(not on for _, on in seen)
    assert is_on()
