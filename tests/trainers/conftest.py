"""Options that every trainer test starts from."""

import pytest


@pytest.fixture
def cpu_options(tmp_path):
    """Two short steps on the CPU, with nothing saved and nothing shown."""
    return {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
