"""Rows grouped by length: less padding, each once, the same order in a resumed run, held-out rows in theirs."""

import runpy

import forked
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import SFTConfig, SFTTrainer

from rlhf_ext import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from rlhf_ext.demo.data import preference_dataset
from rlhf_ext.trainers.length_groups import pair_lengths

KINDS = {
    "dpo": (DPOTrainer, DPOConfig),
    "reward": (RewardTrainer, RewardConfig),
    "sft": (runpy.run_path(str(forked.ROOT / "recipes/sft.py"))["ResumableSFTTrainer"], SFTConfig),
}
PAIRS = 64


@pytest.fixture(scope="module")
def pairs():
    return preference_dataset("train", size=PAIRS).select_columns(["prompt", "chosen", "rejected"])


@pytest.fixture
def make(cpu_options, model_name, pairs):
    def make(kind, rows=PAIRS, **options):
        trainer, config = KINDS[kind]
        args = config(**cpu_options | {"train_sampling_strategy": "group_by_length"} | options)
        data = pairs
        if kind == "sft":
            data = pairs.rename_column("chosen", "completion").remove_columns("rejected")
        return trainer(model_name, args=args, train_dataset=data.select(range(rows)), eval_dataset=data)

    return make


def padding(trainer):
    batches = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
    texts = 1 if isinstance(trainer, SFTTrainer) else 2  # chosen and rejected
    assert sum(len(mask) for mask in batches) == texts * PAIRS
    return sum((mask == 0).sum().item() for mask in batches) / sum(mask.numel() for mask in batches)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_need_less_padding(kind, make):
    assert padding(make(kind)) < 0.8 * padding(make(kind, train_sampling_strategy="random"))


def test_length_of_a_pair_is_that_of_its_longer_side_with_the_prompt():
    rows = {"chosen_ids": [[1, 2], [1]], "rejected_ids": [[1], [1, 2, 3]]}
    assert pair_lengths(Dataset.from_dict(rows)) == [2, 3]
    assert pair_lengths(Dataset.from_dict(rows | {"prompt_ids": [[1, 2, 3, 4], [1]]})) == [6, 4]


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_every_row_comes_once_in_an_order_of_seed_and_epoch(kind, make):
    sampler, again = make(kind)._get_train_sampler(), make(kind)._get_train_sampler()
    torch.manual_seed(1)
    first = list(sampler)
    torch.manual_seed(2)
    assert sorted(first) == list(range(PAIRS)) and first == list(sampler) == list(again)
    sampler.epoch = 1
    second = list(sampler)
    assert sorted(second) == list(range(PAIRS)) and second != first
    assert list(make(kind, seed=7)._get_train_sampler()) != first


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_rows_keep_their_order(kind, make):
    trainer = make(kind)
    assert isinstance(trainer._get_eval_sampler(trainer.eval_dataset), SequentialSampler)
    assert trainer.args.train_sampling_strategy == "group_by_length"


def train(trainer, resume=None):
    trainer.train(resume_from_checkpoint=resume)
    return dict(trainer.model.named_parameters())


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(kind, make, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, "per_device_train_batch_size": 4}
    whole = train(make(kind, rows=16, output_dir=str(tmp_path), **saving))
    for step in (2, 5):  # in the first epoch and in the second
        again = make(kind, rows=16, output_dir=str(tmp_path / f"again-{step}"), **saving)
        resumed = train(again, str(tmp_path / f"checkpoint-{step}"))
        assert all(torch.equal(whole[name], weight) for name, weight in resumed.items())


def test_one_of_two_processes_finds_its_batches_again_in_a_later_epoch(make, tmp_path, monkeypatch):
    """Accelerate, which divides batches among processes, loses the sampler when it skips those that were seen."""
    single = DPOTrainer.get_train_dataloader

    def of_two(trainer):
        return prepare_data_loader(single(trainer), num_processes=2, process_index=0, put_on_device=False)

    monkeypatch.setattr(DPOTrainer, "get_train_dataloader", of_two)
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "per_device_train_batch_size": 4}
    whole = train(make("dpo", rows=16, output_dir=str(tmp_path), **saving))
    resumed = train(make("dpo", rows=16, output_dir=str(tmp_path / "again"), **saving), str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(whole[name], weight) for name, weight in resumed.items())


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_streamed_pairs_are_refused_before_the_model_loads(kind, cpu_options, pairs):
    trainer, config = KINDS[kind]
    args = config(**cpu_options | {"train_sampling_strategy": "group_by_length"})
    with pytest.raises(ValueError, match="has no effect on streamed rows"):
        trainer("/no/such/model", args=args, train_dataset=pairs.to_iterable_dataset())


def test_streamed_rows_that_come_later_are_refused_too(make, pairs):
    trainer = make("dpo")
    trainer.train_dataset = pairs.to_iterable_dataset()
    with pytest.raises(ValueError, match="has no effect on streamed rows"):
        trainer.train()


def test_lengths_that_are_not_known_are_asked_for():
    with pytest.raises(ValueError, match="Give them a column of lengths and name it as length_column_name"):
        pair_lengths(Dataset.from_dict({"images": [1]}))
