"""Saves the gradient of PPO's first optimizer step, for every critic, and under FSDP weights that were loaded again.

Started by `test_ppo_processes.py`.
The completions follow from the prompts, so that one process and two learn from the same ones.
"""

import os
import sys

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig
from torch.distributed.tensor import DTensor

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.demo import model_path
from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.report import evaluate_before

KINDS = [("head", "full"), ("head", "lora"), ("adapter", "lora"), ("model", "full"), ("model", "lora")]


def rollout(prompts, trainer):
    texts = [prompt[0]["content"] for prompt in prompts]
    prompt_ids = trainer.processing_class.apply_chat_template(prompts, add_generation_prompt=True)["input_ids"]
    completion_ids = [ids[2 : 5 + len(text) % 7] for ids, text in zip(prompt_ids, texts, strict=True)]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "logprobs": [[0.0] * len(ids) for ids in completion_ids],
    }


def reward(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


def whole(gradient):
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


def make_trainer(critic, tuning, folder, **options):
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by the launcher
    args = PPOConfig(
        f"{folder}/{critic}-{tuning}", use_cpu=True, bf16=False, gradient_checkpointing=critic == "adapter",
        per_device_train_batch_size=4 // processes, scale_scores=True, critic=critic,
        logging_steps=1, report_to="none", disable_tqdm=True, **options,
    )  # fmt: skip
    if "ACCELERATE_USE_FSDP" in os.environ:  # accelerate looks at it on GPUs only
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if tuning == "lora" else None
    dataset = prompt_dataset("train", size=8)
    return PPOTrainer(model_path(), reward, args, dataset, dataset, peft_config=lora, rollout_func=rollout)


def named_weights(trainer):
    return [*trainer.model.named_parameters(), *trainer.critic.module.named_parameters("critic module")]


def first_gradient(critic, tuning, folder):
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0, "save_strategy": "no"}
    trainer = make_trainer(critic, tuning, folder, **options)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainer.critic.module.named_parameters():
            if name.endswith("head.weight") or name == "weight":
                parameter.normal_(std=0.1)
    gradients = {}

    def keep(args, state, control, **kwargs):
        gradients.update({name: whole(p.grad) for name, p in named_weights(trainer) if p.grad is not None})

    trainer.callback_handler.callbacks[-1].on_pre_optimizer_step = keep
    trainer.train()
    sharded = all(isinstance(weight, DTensor) for _, weight in named_weights(trainer))
    if trainer.accelerator.is_main_process:
        entry = next(entry for entry in trainer.state.log_history if "score" in entry)
        names = ("score", "kl/k1", "kl/coef", "value/mean", "ratio", "clip_fraction", "loss")
        log = {name: entry[name] for name in names}
        torch.save((gradients, log, sharded), f"{folder}/{critic}-{tuning}-{trainer.accelerator.num_processes}.pt")


def weights_with_and_without_a_break(critic, tuning, folder):
    def train(part, resume=None):
        saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-3}
        trainer = make_trainer(critic, tuning, f"{folder}/{part}", num_iterations=1, **saving)
        assert evaluate_before(trainer) == {}
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    def learned(trainer):
        weights = {name: whole(p.detach()) for name, p in named_weights(trainer) if p.requires_grad}
        return weights, trainer.kl_controller.coef

    first = f"{folder}/whole/{critic}-{tuning}/checkpoint-1"
    trainer = train("whole")
    unbroken = learned(trainer)
    resumed = learned(train("resumed", first))
    trainer.state.best_model_checkpoint = first
    trainer._load_best_model()
    best = learned(trainer)
    if PartialState().is_main_process:
        torch.save((unbroken, resumed, best), f"{folder}/{critic}-{tuning}-loaded.pt")


if __name__ == "__main__":
    for kind in KINDS:
        first_gradient(*kind, sys.argv[1])
    if "ACCELERATE_USE_FSDP" in os.environ:
        for kind in (("model", "full"), ("adapter", "lora")):
            weights_with_and_without_a_break(*kind, sys.argv[1])
    PartialState().destroy_process_group()  # else gloo's threads may be cut off at exit, which aborts the process
