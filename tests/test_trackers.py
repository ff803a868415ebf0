"""`--report_to` of every trainer: evaluation before, training and evaluation after are one run, in one place."""

import os

import pytest
from trl import SFTConfig, SFTTrainer

from rlhf_ext import DPOConfig, DPOTrainer, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer
from rlhf_ext.arguments import RecipeArguments
from rlhf_ext.demo.data import preference_dataset, prompt_dataset, sft_dataset
from rlhf_ext.report import evaluate_before, save_run

METRICS = {"dpo": "rewards/margins", "reward": "accuracy", "ppo": "kl/k1", "sft": "mean_token_accuracy"}
SHORT = {
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def make_trainer(kind, model_name, folder, report_to):
    options = SHORT | {"report_to": report_to}
    if kind == "ppo":
        limits = {"max_completion_length": 4, "num_iterations": 1, "steps_per_generation": 1}
        args = PPOConfig(str(folder), **options, **limits)
        prompts = prompt_dataset(size=8)

        def length(completions, **kwargs):
            return [float(len(completion[0]["content"])) for completion in completions]

        return PPOTrainer(model_name, length, args, prompts, prompts.select(range(4)))
    trainer, config = {
        "dpo": (DPOTrainer, DPOConfig),
        "reward": (RewardTrainer, RewardConfig),
        "sft": (SFTTrainer, SFTConfig),
    }[kind]
    rows = sft_dataset(size=8) if kind == "sft" else preference_dataset(size=8).remove_columns("gold_margin")
    return trainer(
        model_name, args=config(str(folder), **options), train_dataset=rows, eval_dataset=rows.select(range(4))
    )


def run(kind, model_name, folder, report_to):
    trainer = make_trainer(kind, model_name, folder, report_to)
    before = evaluate_before(trainer)
    result = trainer.train()
    panels = {"loss": ["loss"]}
    save_run(trainer, RecipeArguments(), before, result.metrics, trainer.evaluate(), metrics={}, panels=panels)
    return trainer


@pytest.mark.parametrize("kind", METRICS)
def test_tensorboard_has_the_whole_run_in_the_output_folder(kind, model_name, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    run(kind, model_name, tmp_path / "run", "tensorboard")
    assert sorted(os.listdir(tmp_path)) == ["run"]  # TensorBoard's default is a folder beside it
    (folder,) = (tmp_path / "run/tensorboard").iterdir()
    record = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in record.Scalars(f"eval/{METRICS[kind]}")] == [0, 2]
    assert [event.step for event in record.Scalars(f"train/{METRICS[kind]}")] == [1, 2]


@pytest.mark.parametrize("kind", METRICS)
def test_trackio_has_the_whole_run_in_one_run(kind, model_name, tmp_path, monkeypatch):
    import trackio
    from trackio import sqlite_storage, utils

    monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    trainer = run(kind, model_name, tmp_path / "run", "trackio")
    assert trackio.context_vars.current_run.get() is None  # closed
    api = sqlite_storage.SQLiteStorage
    assert list(api.get_runs(trainer.args.project)) == [trainer.args.run_name]
    logs = api.get_logs(trainer.args.project, trainer.args.run_name)
    steps = {
        part: [log["train/global_step"] for log in logs if f"{part}/{METRICS[kind]}" in log]
        for part in ("eval", "train")
    }
    assert steps == {"eval": [0, 2], "train": [1, 2]}
