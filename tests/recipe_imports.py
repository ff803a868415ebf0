"""What recipes import. `forked.py` has it imported once, by the process that recipes are then forked from."""

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
