"""The reward model of the demo: trained in minutes from the demo's noisy preferences, never from its gold judge."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_ext import RewardModel

# What fits the embedded model (1.7 million parameters, fully trained), here and in recipes/reward.py, so that what
# docs/results.md says of the one holds for the other.
TRAINING: dict[str, Any] = {
    "center_rewards_coefficient": 0.02,  # makes scores of different prompts comparable, which pairs alone do not
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "num_train_epochs": 1.0,
    "train_sampling_strategy": "group_by_length",  # a third of the time went into padding
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 50,
    "max_length": 256,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
PAIRS = {"train": 3000, "test": 600}


def demo_reward_model(folder: str | Path, *, seed: int, pairs: int = PAIRS["train"]) -> "RewardModel":
    """Return the reward model in `folder`; train it first if there is none yet.

    All processes must call this together.

    Args:
        folder: Where the reward model is, or will be.
        seed: Of the training run.
        pairs: How many to train on.
    """
    import torch
    from transformers import PrinterCallback

    from rlhf_ext import RewardConfig, RewardModel, RewardTrainer
    from rlhf_ext.demo import model_path
    from rlhf_ext.demo.data import preference_dataset
    from rlhf_ext.reward_model.settings import FILE_NAME

    if not Path(folder, FILE_NAME).is_file():
        args = RewardConfig(
            str(folder),
            **TRAINING,
            seed=seed,
            use_cpu=not torch.accelerator.is_available(),
            ddp_find_unused_parameters=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(
            model_path(),
            args=args,
            train_dataset=preference_dataset("train", size=pairs),
            eval_dataset=preference_dataset("test", size=min(pairs, PAIRS["test"]), noise=False),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.accelerator.print("Training the demo's reward model on its preference pairs.")
        trainer.train()
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
    return RewardModel.from_pretrained(folder, name="reward_model", show_progress=False)
