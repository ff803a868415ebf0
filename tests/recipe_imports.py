"""What recipes import, and the demo's pairs: `forked.py` has both once, in the process that recipes are forked from.

No thread may be started here: a fork would lose it.
"""

import rlhf_ext.chatbot.recipe_imports  # first, because it quiets the libraries

# isort: split
import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from rlhf_ext.demo.data import PREFERENCE_SIZES, draw_preferences

for split, size in PREFERENCE_SIZES.items():
    draw_preferences(split, 0, size, split == "train")
get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns, once in a process
gc.collect()
gc.freeze()  # or each collection in each recipe goes through all that was imported
