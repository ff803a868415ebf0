"""The one table of what we use of TRL beyond its documented interface. A row that fails says what upstream changed.

Each row is a piece of source that our code relies on, where TRL has it, and what would break without it.
"""

import inspect
import re
from importlib.resources import files

import pytest
import trl
from accelerate import Accelerator
from bitsandbytes.autograd import _functions
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, deepspeed
from transformers.trainer_callback import ProgressCallback
from transformers.utils import peft_utils
from trl.trainer import grpo_trainer, reward_trainer

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
    (trl.DPOTrainer, "__init__", "self.precompute_ref_logps = args.precompute_ref_log_probs", "what we set for a pass"),
    (trl.DPOTrainer, "__init__", "self.padding_free = False", "refusing an option that TRL switches off"),
    (trl.DPOTrainer, "_precompute_ref_logps", "self.compute_ref_log_probs(model, padded", "4-bit bases"),
    (trl.DPOTrainer, "compute_ref_log_probs", "self.ref_model is None and is_peft_model(", "adapters"),
    (Accelerator, "prepare_model", "model._is_accelerate_prepared = True", "training after an evaluation"),
    (Accelerator, "prepare_model", "self._models.append(model)", "the same"),
    (Trainer, "_get_dataloader", "self.data_collator", "the collator is read when training starts"),
    (Trainer, "_get_train_sampler", "train_dataset[self.args.length_column_name]", "grouping pairs by length"),
    (Trainer, "_get_train_sampler", "return LengthGroupedSampler(", "grouping by length in an order of seed and epoch"),
    (Trainer, "_get_eval_sampler", 'self.args.train_sampling_strategy == "group_by_length"', "held-out rows in order"),
    # Reward models
    (trl.RewardTrainer, "_set_signature_columns_if_needed", '"chosen_ids", "rejected_ids", "margin"', "extra columns"),
    (trl.RewardTrainer, "compute_loss", "rewards_chosen, rewards_rejected = torch.chunk(", "chosen first"),
    (trl.RewardTrainer, "compute_loss", "return (loss, outputs) if return_outputs", "the scores of TRL's own pass"),
    (trl.RewardTrainer, "compute_loss", 'if "margin" in inputs:', "the margin is left to our loss"),
    (reward_trainer.DataCollatorForPreference, "torch_call", 'output["margin"] = margins', "margins in streamed rows"),
    (reward_trainer.DataCollatorForPreference, "torch_call", "= chosen_ids + rejected_ids", "chosen first in a batch"),
    (deepspeed, "is_deepspeed_zero3_enabled", "_hf_deepspeed_config_weak_ref() is not None", "outlines under ZeRO-3"),
    # PPO
    (trl.GRPOConfig, "__post_init__", "if self.num_generations < 2:", "one completion per prompt passes the check"),
    (trl.GRPOTrainer, "__init__", "self.beta = args.beta", "loading the reference without a KL term in the loss"),
    (trl.GRPOTrainer, "__init__", "self.eos_token_ids = eos_token_ids", "stop tokens of one's own"),
    (trl.GRPOTrainer, "_get_train_sampler", "return RepeatSampler(", "an order that depends on seed and epoch"),
    (trl.GRPOTrainer, "_prepare_inputs", "self._step % generate_every == 0", "when a new batch begins"),
    (trl.GRPOTrainer, "_prepare_inputs", "= shuffle_sequence_dict(generation_batch)", "steps in the order of passes"),
    (grpo_trainer, "shuffle_sequence_dict", "def shuffle_sequence_dict(", "the same"),
    (
        trl.GRPOTrainer,
        "_generate_and_score_completions",
        "self._get_per_token_logps_and_entropies( self.model, prompt_completion_ids, attention_mask, logits_to_keep, "
        "batch_size",
        "telling the passes of a rollout from one of training",
    ),
    (trl.GRPOTrainer, "_generate_single_turn", "generation_config=self.generation_config", "sampling as it was asked"),
    (trl.GRPOTrainer, "_generate_single_turn", "self.vllm_generation.sync_weights()", "a base as it was"),
    (trl.GRPOTrainer, "_generate_single_turn", "unwrapped_model.to(torch.bfloat16)", "weights that would be rounded"),
    *(
        (trainer, "__init__", "param.data = param.data.to(torch.bfloat16)", "adapters go back to float32")
        for trainer in (trl.DPOTrainer, trl.RewardTrainer, trl.GRPOTrainer, trl.SFTTrainer)
    ),
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
    (trl.GRPOTrainer, "__init__", "self._tokenizer = processing_class", "the critic's texts and the samples"),
    (trl.GRPOTrainer, "__init__", "self._buffered_inputs = None", "a new batch where training starts"),
    (trl.GRPOTrainer, "_prepare_inputs", "self._buffered_inputs is None", "the same"),
    (trl.GRPOTrainer, "__init__", "self.reward_func_names.append(", "names of the scores in the report"),
    (trl.GRPOTrainer, "__init__", "self.reward_weights = torch.ones(len(reward_funcs)", "the weighted score"),
    (trl.GRPOTrainer, "__init__", "self._metrics = {", "our metrics beside TRL's"),
    (trl.GRPOTrainer, "log", "self._metrics[mode].clear()", "metrics are means since the last log"),
    (
        trl.GRPOTrainer,
        "_generate_and_score_completions",
        'self._metrics[mode]["frac_reward_zero_std"].append',
        "left out, as PPO has no groups",
    ),
    *(
        (trl.GRPOTrainer, "_generate_and_score_completions", f'self._logs["{key}"].extend', "samples in the report")
        for key in ("prompt", "completion")
    ),
    (trl.GRPOTrainer, "_generate_and_score_completions", 'self._logs["rewards"][name].extend', "their scores"),
    (trl.GRPOTrainer, "_get_per_token_logps_and_entropies", "fused_lm_head=True", "projecting the last tokens"),
    (BaseTunerLayer, "set_adapter", "self._active_adapter = adapter_names", "switching adapters"),
    (Trainer, "_inner_training_loop", "self._run_epoch( model=model,", "no step more where a complete run is resumed"),
    (Trainer, "_inner_training_loop", "if self.control.should_training_stop: break", "the same"),
    (
        Trainer,
        "_inner_training_loop",
        "self._initial_global_step = self.state.global_step",
        "saying that none was left",
    ),
    (Trainer, "_inner_training_loop", "self.callback_handler.on_epoch_begin", "the sampler learns the epoch"),
    (Trainer, "_run_epoch", "self._clip_grad_norm(model)", "the critic's gradient has its own norm"),
    (Trainer, "_save_checkpoint", "self.save_model(output_dir, _internal_call=True)", "critic beside the policy"),
    (Trainer, "_save_checkpoint", "self._save_optimizer_and_scheduler(output_dir)", "the critic's optimizer"),
    (Trainer, "_prepare_for_training", "self._load_optimizer_and_scheduler(", "the same, resumed"),
    (Trainer, "_finalize_training", "self._load_best_model()", "the critic of the best checkpoint"),
    (Trainer, "train", "self._load_from_checkpoint(resume_from_checkpoint)", "the critic and the types of adapters"),
    (Trainer, "_load_from_checkpoint", "def _load_from_checkpoint(self, resume_from_checkpoint", "the same"),
    (TrainingArguments, "__post_init__", "self.device", "options are checked without a device"),
    (trl.GRPOConfig, "__post_init__", "num_processes = self.world_size", "and for all processes"),
    # Functions, callbacks and layers
    (trl.trainer.utils, "create_model_from_path", "def create_model_from_path( model_id: str, arch", "loading a base"),
    (trl.trainer.utils, "selective_log_softmax", "def selective_log_softmax( logits: torch.Tensor, index", "log-probs"),
    (tuners_utils, "_maybe_include_all_linear_layers", "target_modules = linear_module_names", "all-linear"),
    (tuners_utils, "check_target_module_exists", "def check_target_module_exists(config, key", "layers of an adapter"),
    (peft_utils, "find_adapter_config_file", "revision: str | None = None", "telling adapters from models"),
    (ProgressCallback, "on_train_begin", "self.training_bar = tqdm(", "one short line per logging step"),
    (TensorBoardCallback, "__init__", "self.logging_dir =", "one folder for evaluations before and after"),
    (TrackioCallback, "setup", "def setup(self, args, state, model", "one run for evaluations before and after"),
    (Linear4bit, "__init__", "self.support_avx512bf16_for_cpu = ", "4-bit layers keep their gradient on a CPU"),
    (Linear4bit, "forward", "and self.support_avx512bf16_for_cpu", "the same"),
    (Linear8bitLt, "forward", "self.state.is_training = self.training", "8-bit layers that keep their mode"),
    (_functions, "matmul", "if state.is_training: if A.device.type in", "the same"),
    (nn.Module, "compile", "self._compiled_call_impl = torch.compile(", "leaving compiled models alone"),
]


@pytest.mark.parametrize(("owner", "attribute", "source", "relies"), SEAMS)
def test_seam(owner, attribute, source, relies):
    text = re.sub(r"\s+", " ", inspect.getsource(getattr(owner, attribute)))
    assert source in text, f"{owner.__name__}.{attribute} changed upstream; we rely on it for: {relies}"


@pytest.mark.parametrize("template", ["lm_model_card.md", "rm_model_card.md"])
@pytest.mark.parametrize(
    "source",
    [
        "[{{ base_model }}](https://huggingface.co/{{ base_model }})",  # "None" where the base is a local folder
        'model="{{ hub_model_id }}"',
        "## Training procedure",
    ],
)
def test_seam_of_the_model_card(template, source):
    text = (files("trl") / "templates" / template).read_text(encoding="utf-8")
    assert source in text, f"TRL's {template} changed; rlhf_ext/report.py puts local names and the results there"


def test_tag_names_are_still_a_class_attribute():
    assert isinstance(trl.DPOTrainer._tag_names, list)
