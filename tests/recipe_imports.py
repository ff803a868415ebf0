"""What recipes import, and the demo's pairs: `forked.py` has both once, in the process that recipes are forked from.

No thread may be started here: a fork would lose it.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()  # first, as every recipe does

import gc

import matplotlib.pyplot
import scipy.stats
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from trl import SFTTrainer

import rlhf_ext.chatbot_report
import rlhf_ext.evaluation.policy_run
import rlhf_ext.evaluation.reward_run
import rlhf_ext.report
from rlhf_ext import DPOTrainer, PPOTrainer, RewardModel, RewardTrainer
from rlhf_ext.demo.data import PREFERENCE_SIZES, draw_preferences

for split, size in PREFERENCE_SIZES.items():
    draw_preferences(split, 0, size, split == "train")
get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns, once in a process
gc.collect()
gc.freeze()  # or each collection in each recipe goes through all that was imported
