"""Shared fixtures. The embedded demo model stands in for a real one everywhere: it is real, only small."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that needs the Hub must fail, here as on a machine without network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several multi-threaded processes slow each other down manifold

import gc

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from rlhf_ext import plugins
from rlhf_ext.demo import model_path
from rlhf_ext.evaluation import figures
from rlhf_ext.evaluation.page import Figure

torch.set_num_threads(1)


def pytest_collection_finish():
    """Spare the collector what was imported: every training run starts one, which took a tenth of all time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def own_registry(monkeypatch):
    """A registry of plugins that is gone after the test."""
    for kind in plugins.KINDS:
        plugins.list_plugins(kind)  # the built-in ones register when first asked for, and must outlast the test
    monkeypatch.setattr(plugins, "_registry", {kind: dict(known) for kind, known in plugins._registry.items()})


@pytest.fixture
def undrawn(monkeypatch):
    """Figures that are not drawn, which takes longest, for tests that do not look at them."""
    monkeypatch.setattr(figures, "draw", lambda name, plot, *texts: Figure(name, b"", *texts))


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


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory, tokenizer) -> str:
    """Folder of a tiny reward model, randomly initialised so that its scores differ by about 1."""
    folder = str(tmp_path_factory.mktemp("reward_model"))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.2, pad_token_id=0, **shape)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
