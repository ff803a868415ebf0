"""rlhf_ext: a thin, plugin-based extension of Hugging Face TRL.

The public names load on first use, so that `import rlhf_ext` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "DPOConfig": ".trainers.dpo",
    "DPOTrainer": ".trainers.dpo",
    "PPOConfig": ".trainers.ppo_config",
    "PPOTrainer": ".trainers.ppo",
    "RewardConfig": ".trainers.reward",
    "RewardModel": ".reward_model",
    "RewardModelEnsemble": ".reward_model.ensemble",
    "RewardTrainer": ".trainers.reward",
    "get_plugin": ".plugins",
    "list_plugins": ".plugins",
    "register": ".plugins",
}
__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "RewardConfig",
    "RewardModel",
    "RewardModelEnsemble",
    "RewardTrainer",
    "get_plugin",
    "list_plugins",
    "register",
]

if TYPE_CHECKING:
    from .plugins import get_plugin, list_plugins, register
    from .reward_model import RewardModel
    from .reward_model.ensemble import RewardModelEnsemble
    from .trainers.dpo import DPOConfig, DPOTrainer
    from .trainers.ppo import PPOTrainer
    from .trainers.ppo_config import PPOConfig
    from .trainers.reward import RewardConfig, RewardTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
