"""Which processes get all cores: those alone on the CPU to which the launcher gave one thread unasked."""

import os
import types

import psutil
import pytest
import torch

from rlhf_ext import threads

CORES = 7


@pytest.fixture
def machine(monkeypatch):
    """Seven cores, and a launcher that was told what `launcher` says."""

    def make(launcher=(), words=(), error=None, **environment):
        def parent():
            if error is not None:
                raise error
            return types.SimpleNamespace(environ=lambda: dict(launcher), cmdline=lambda: ["accelerate", *words])

        monkeypatch.setattr(psutil, "Process", lambda: types.SimpleNamespace(parent=parent))
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 2 * CORES if logical else CORES)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: "gpu" in words)
        for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no", **environment}.items():
            monkeypatch.setenv(name, value)

    yield make
    torch.set_num_threads(1)


def test_the_launchers_own_choice_of_one_thread_is_taken_back(machine):
    machine()
    threads.use_all_cores()
    assert torch.get_num_threads() == CORES and os.environ["OMP_NUM_THREADS"] == str(CORES)


@pytest.mark.parametrize(
    "said",
    [
        {"launcher": {"OMP_NUM_THREADS": "1"}},
        {"words": ["launch", "--num_cpu_threads_per_process", "1"]},
        {"words": ["launch", "--num_cpu_threads_per_process=1"]},
        {"words": ["gpu"]},
        {"OMP_NUM_THREADS": "3"},
        {"WORLD_SIZE": "2"},
        {"error": psutil.AccessDenied()},
    ],
)
def test_what_the_user_has_said_is_kept(said, machine):
    machine(**said)
    before = os.environ["OMP_NUM_THREADS"]
    threads.use_all_cores()
    assert torch.get_num_threads() == 1 and os.environ["OMP_NUM_THREADS"] == before


def test_a_process_that_accelerate_did_not_launch_is_left_alone(machine, monkeypatch):
    machine()
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    threads.use_all_cores()
    assert torch.get_num_threads() == 1
