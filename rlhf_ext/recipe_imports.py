"""Imports what the recipes need and does nothing else, for the process that `recipe_process.py` forks them from."""

from .console import quiet_libraries

quiet_libraries()  # first, as every recipe does

import gc

import matplotlib.pyplot
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

from . import DPOTrainer, PPOTrainer, RewardModel, RewardTrainer, chatbot_report, report
from .evaluation import policy_run, reward_run

gc.collect()
gc.freeze()  # or each collection in each recipe goes through all that was imported
