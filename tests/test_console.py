"""What the console keeps of the messages of the libraries below."""

import logging
from types import SimpleNamespace

import pytest
from transformers.trainer_utils import compare_trainer_and_checkpoint_args

from rlhf_ext.console import quiet_libraries


@pytest.fixture
def messages():
    quiet_libraries()
    kept = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger("transformers.trainer_utils")
    logger.addHandler(handler)
    yield kept
    logger.removeHandler(handler)


@pytest.mark.parametrize(("save_steps", "logging_steps", "told"), [(0.2, 8, 0), (3, 8, 0), (0.2, 9, 1), (4, 8, 1)])
def test_of_other_settings_at_resume_one_hears_but_not_of_a_fraction_that_came_to_steps(
    messages, save_steps, logging_steps, told
):
    args = {"save_steps": save_steps, "logging_steps": logging_steps, "eval_steps": None}
    state = {"save_steps": 3, "logging_steps": 8, "eval_steps": 500, "train_batch_size": 4}
    compare_trainer_and_checkpoint_args.__globals__["logger"].warning_once.cache_clear()
    compare_trainer_and_checkpoint_args(
        SimpleNamespace(**args, per_device_train_batch_size=4, n_gpu=1), SimpleNamespace(**state)
    )
    assert len(messages) == told


def test_checkpoints_within_a_second_are_no_news(messages):
    logger = logging.getLogger("transformers.trainer_utils")
    logger.warning("mtime may not be reliable on this filesystem, falling back to numerical ordering")
    logger.warning("something else")
    assert messages == ["something else"]
