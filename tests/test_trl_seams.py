"""The one table of what we use of TRL beyond its documented interface. A row that fails says what upstream changed.

Each row is a piece of source that our code relies on, where TRL has it, and what would break without it.
"""

import inspect
import re

import pytest
import trl
from peft.tuners.tuners_utils import BaseTunerLayer
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
    # PPO
    (trl.GRPOConfig, "__post_init__", "if self.num_generations < 2:", "one completion per prompt passes the check"),
    (trl.GRPOTrainer, "__init__", "self.beta = args.beta", "loading the reference without a KL term in the loss"),
    (trl.GRPOTrainer, "__init__", "self.eos_token_ids = eos_token_ids", "stop tokens of one's own"),
    (trl.GRPOTrainer, "_get_train_sampler", "return RepeatSampler(", "an order that depends on seed and epoch"),
    (trl.GRPOTrainer, "_prepare_inputs", "self._step % generate_every == 0", "when a new batch begins"),
    (trl.GRPOTrainer, "_prepare_inputs", "shuffle_sequence_dict(generation_batch)", "our (B, T) tensors follow"),
    (trl.GRPOTrainer, "_calculate_rewards", "rewards_per_func = gather(rewards_per_func)", "scores of all processes"),
    (trl.GRPOTrainer, "_get_per_token_logps_and_entropies", "return logps, entropies, aux_loss", "log-probs are first"),
    (trl.GRPOTrainer, "_generate_and_score_completions", 'mode = "train" if self.model.training', "no dropout"),
    (
        trl.GRPOTrainer,
        "_generate_and_score_completions",
        "generate_every = self.args.steps_per_generation * self.num_iterations # generation frequency "
        "if self.args.gradient_accumulation_steps % generate_every != 0",
        "log-probs at rollout in every case",
    ),
    (trl.GRPOTrainer, "_generate_and_score_completions", 'output["ref_per_token_logps"]', "KL in the reward"),
    (trl.GRPOTrainer, "_generate_and_score_completions", 'self._logs["advantages"].extend', "the table of completions"),
    (trl.GRPOTrainer, "_compute_loss", "if advantages.dim() == 1:", "advantages per token"),
    (trl.GRPOTrainer, "_compute_loss", "per_token_logps.detach() if old_per_token_logps is None", "ratio exactly 1"),
    (trl.GRPOTrainer, "_compute_loss", "if self.beta != 0.0:", "no KL term in the loss"),
    (trl.GRPOTrainer, "_compute_loss", 'inputs["num_items_in_batch"].clamp(min=1.0)', "the value loss's mean"),
    (BaseTunerLayer, "set_adapter", "self._active_adapter = adapter_names", "switching adapters"),
    (Trainer, "_inner_training_loop", "self._run_epoch( model=model,", "no step more where a complete run is resumed"),
    (Trainer, "_inner_training_loop", "if self.control.should_training_stop: break", "the same"),
    (Trainer, "_inner_training_loop", "self.callback_handler.on_epoch_begin", "the sampler learns the epoch"),
    (Trainer, "_run_epoch", "self._clip_grad_norm(model)", "the critic's gradient has its own norm"),
    (Trainer, "_save_checkpoint", "self.save_model(output_dir, _internal_call=True)", "critic beside the policy"),
]


@pytest.mark.parametrize(("owner", "attribute", "source", "relies"), SEAMS)
def test_seam(owner, attribute, source, relies):
    text = re.sub(r"\s+", " ", inspect.getsource(getattr(owner, attribute)))
    assert source in text, f"{owner.__name__}.{attribute} changed upstream; we rely on it for: {relies}"


def test_tag_names_are_still_a_class_attribute():
    assert isinstance(trl.DPOTrainer._tag_names, list)
