"""What a run leaves behind: the table, the figure, and an honest accuracy before training."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from matplotlib import image

from rlhf_ext import DPOConfig, DPOTrainer
from rlhf_ext.console import print_table
from rlhf_ext.report import (
    before_and_after,
    evaluate_before,
    push_to_hub,
    save_model_card,
    save_training_figure,
)


def fake_trainer(*, deepspeed=False, fsdp2=False, **metrics):
    return SimpleNamespace(
        is_deepspeed_enabled=deepspeed,
        accelerator=SimpleNamespace(is_fsdp2=fsdp2),
        args=SimpleNamespace(output_dir="run"),
        callback_handler=SimpleNamespace(callbacks=[]),
        evaluate=lambda: {"eval_loss": 0.69, "eval_runtime": 3.0, "epoch": 0, **metrics},
    )


@pytest.mark.parametrize("accuracy", [0.0, 0.375])
def test_a_policy_that_is_its_own_reference_has_an_accuracy_of_one_half(accuracy):
    trainer = fake_trainer(**{"eval_rewards/accuracies": accuracy, "eval_rewards/margins": 0.0})
    assert evaluate_before(trainer, policy_is_reference=True) == {
        "eval_loss_before": 0.69,
        "eval_rewards/accuracies_before": 0.5,
        "eval_rewards/margins_before": 0.0,
    }
    assert evaluate_before(trainer)["eval_rewards/accuracies_before"] == accuracy


@pytest.mark.parametrize("engine", ["deepspeed", "fsdp2"])
def test_what_is_prepared_with_its_optimizer_is_not_evaluated_before(engine):
    assert evaluate_before(fake_trainer(**{engine: True})) == {}


def test_table_shows_both_sides_and_skips_what_is_missing(capsys):
    before = {"eval_loss_before": 0.6931, "eval_entropy_before": 1.0}
    after = {"eval_loss": 0.5, "eval_margin": 1.0}
    rows = before_and_after(before, after, {"eval_loss": "loss", "eval_entropy": "entropy", "eval_margin": "margin"})
    assert rows == [("loss", "0.693", "0.500")]
    print_table("held out", ("", "before", "after"), rows)
    shown = capsys.readouterr().out
    assert all(cell in shown for cell in rows[0])


def test_figure_draws_every_curve(tmp_path):
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_loss": 0.7}]
    empty, full = tmp_path / "empty.png", tmp_path / "full.png"
    save_training_figure(history, {"eval_loss_before": 1.2}, {"loss": ["loss"]}, full)
    save_training_figure([], {}, {"loss": ["loss"]}, empty)
    drawn, blank = image.imread(full), image.imread(empty)
    assert drawn.shape == blank.shape
    assert (drawn != blank).any(axis=-1).sum() > 500  # pixels of a line and a dot


def test_model_card_is_uploaded_with_its_results(tmp_path, model_name, preferences, monkeypatch):
    args = DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", hub_model_id="me/model")
    trainer = DPOTrainer(model_name, args=args, train_dataset=preferences)
    trainer.hub_model_id = "me/model"
    save_model_card(trainer, None, [("loss", "0.693", "0.500")])
    uploaded = []
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, *, folder_path, **_: uploaded.append(folder_path))
    push_to_hub(trainer)
    assert "| loss | 0.693 | 0.500 |" in Path(*uploaded, "README.md").read_text()
