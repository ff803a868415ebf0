"""Imports what the recipes need and does nothing else, for the process that `recipe_process.py` forks them from."""

from ..console import quiet_libraries

quiet_libraries()  # first, as every recipe does

import gc
import os
import signal
from types import FrameType


def _end_when_orphaned(*_: int | FrameType | None, command: int = os.getppid()) -> None:
    """End without a word when the command has ended: it was refused, or interrupted."""
    if os.getppid() != command:
        os._exit(0)


_on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it here, too; the command answers it
signal.signal(signal.SIGALRM, _end_when_orphaned)
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)

import matplotlib.figure
import scipy.stats
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from trl import SFTTrainer

from .. import DPOTrainer, PPOTrainer, RewardModel, RewardTrainer, report
from ..evaluation import policy_run, reward_run
from . import report as chatbot_report

signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.signal(signal.SIGINT, _on_interrupt)
gc.collect()
gc.freeze()  # or each collection in each recipe goes through all that was imported
