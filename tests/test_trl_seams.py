"""The one table of what we use of TRL beyond its documented interface. A row that fails says what upstream changed.

Each row is a piece of source that our code relies on, where TRL has it, and what would break without it.
"""

import inspect
import re

import pytest
import trl
from transformers import Trainer

SEAMS = [
    # (owner, attribute, source that must be there, what relies on it)
    (trl.DPOTrainer, "_compute_loss", "model(**model_kwargs, labels=labels, fused_lm_head=True)", "one policy pass"),
    (trl.DPOTrainer, "_compute_loss", "outputs.log_probs[:, -seq_len:]", "log-probs in the model's output"),
    (trl.DPOTrainer, "_compute_loss", "zip(self.loss_types, self.loss_weights", "TRL's part of a mix of losses"),
    (trl.DPOTrainer, "_compute_loss", "loss = 0.0", "a mix without any loss of TRL's"),
    (trl.DPOTrainer, "_compute_loss", "if self.precompute_ref_logps:", "reference taken from the inputs"),
    (trl.DPOTrainer, "_compute_loss", 'inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]', "names of them"),
    (trl.DPOTrainer, "_compute_loss", 'inputs["completion_mask"]', "completion lengths"),
    (trl.DPOTrainer, "compute_loss", "self._compute_loss(model, inputs, return_outputs)", "the model we pass is used"),
    (trl.DPOTrainer, "compute_ref_log_probs", "def compute_ref_log_probs(self, model, inputs)", "the reference pass"),
    (trl.DPOTrainer, "_set_signature_columns_if_needed", "self._signature_columns = [", "keeping extra columns"),
    (trl.DPOTrainer, "__init__", "self.loss_types = args.loss_type", "plugin names pass TRL's constructor"),
    (trl.DPOTrainer, "__init__", "self.loss_weights = args.loss_weights or", "weights of a mix"),
    (Trainer, "_get_dataloader", "self.data_collator", "the collator is read when training starts"),
]


@pytest.mark.parametrize(("owner", "attribute", "source", "relies"), SEAMS)
def test_seam(owner, attribute, source, relies):
    text = re.sub(r"\s+", " ", inspect.getsource(getattr(owner, attribute)))
    assert source in text, f"{owner.__name__}.{attribute} changed upstream; we rely on it for: {relies}"


def test_tag_names_are_still_a_class_attribute():
    assert isinstance(trl.DPOTrainer._tag_names, list)
