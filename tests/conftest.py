"""Shared fixtures. The embedded demo model stands in for a real one everywhere: it is real, only small."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the Hub must fail, here as on a machine without network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several multi-threaded processes slow each other down manifold

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from rlhf_ext.demo import model_path

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_name() -> str:
    return model_path()


@pytest.fixture(scope="session")
def tokenizer(model_name):
    return AutoTokenizer.from_pretrained(model_name)


@pytest.fixture(scope="session")
def preferences() -> Dataset:
    """Eight pairs of different lengths, with a numeric column `margin`."""
    from rlhf_ext.demo.data import preference_dataset

    return preference_dataset("train", size=8).rename_column("strength", "margin").remove_columns("gold_margin")
