"""What recipes import, and the demo's pairs: `forked.py` has both once, in the process that recipes are forked from."""

from rlhf_ext.console import quiet_libraries

quiet_libraries()  # first, as every recipe does

import matplotlib.pyplot
import scipy.stats
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from trl import SFTTrainer

import rlhf_ext.chatbot_report
import rlhf_ext.evaluation.policy_run
import rlhf_ext.evaluation.reward_run
import rlhf_ext.report
from rlhf_ext import DPOTrainer, PPOTrainer, RewardModel, RewardTrainer
from rlhf_ext.demo.data import PREFERENCE_SIZES, draw_preferences

for split, size in PREFERENCE_SIZES.items():  # of the demo, in pure Python: no thread is started that a fork would lose
    draw_preferences(split, 0, size, split == "train")
