"""Proximal policy optimization against a reward model, with a critic.

With no arguments it trains a reward model on the embedded demo preferences and the embedded demo model against it,
offline, on any machine:

    accelerate launch recipes/ppo.py

A 7B model, meant for one 24 GB GPU: policy, reference, critic and reward model as adapters of one 8-bit base.

    accelerate launch recipes/ppo.py \
        --config recipes/configs/ppo_7b_lora_8bit.yaml \
        --dataset_name prompts.jsonl --reward_adapter runs/reward-7b-8bit

Rewards of your own, functions as TRL's `GRPOTrainer` takes them, alone or beside a reward model:

    accelerate launch recipes/ppo.py --dataset_name prompts.jsonl --reward_funcs my_rewards.py:polite

Every option of `rlhf_ext.PPOConfig`, `trl.ModelConfig` and `trl.ScriptArguments` works; `--help` lists them.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ext import PPOConfig, PPOTrainer, RewardModel
from rlhf_ext.arguments import (
    DEMO,
    ArgumentError,
    ModelConfigWithoutDropout,
    RecipeArguments,
    load_tokenizer,
    model_init_kwargs,
    parse_arguments,
)
from rlhf_ext.data_checks import DataError
from rlhf_ext.demo.gold import gold
from rlhf_ext.demo.reward import demo_reward_model
from rlhf_ext.errors import one_line_errors
from rlhf_ext.evaluation.options import short_names
from rlhf_ext.formatting import InputError
from rlhf_ext.lengths import check_room_for_prompts
from rlhf_ext.plugins import PluginError, get_plugin
from rlhf_ext.policy_loading import trainer_options
from rlhf_ext.progress import say_what_is_trained, show_short_progress
from rlhf_ext.prompts import load_prompt_splits
from rlhf_ext.report import evaluate_before, save_run
from rlhf_ext.reward_model.loading import RewardModelError
from rlhf_ext.run_folder import check_output_dir
from rlhf_ext.run_report.samples import SampleCallback
from rlhf_ext.threads import use_all_cores

OUTPUT_DIR = "runs/ppo"
# What fits the embedded model (1.7 million parameters, fully trained); other models get the trainer's defaults.
DEMO_DEFAULTS = {
    "learning_rate": 4e-4,
    "lr_scheduler_type": "linear",
    "init_kl_coef": 0.15,
    "kl_horizon": 300,  # short runs: the coefficient must follow within a few hundred answers
    "lam": 1.0,  # with 0.95 a score after 50 tokens would count 0.95^50 = 8% for the first, which decides to refuse
    "max_completion_length": 64,
    "per_device_train_batch_size": 16,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": 120,
    "per_device_eval_batch_size": 128,
    "max_eval_samples": 128,
    "logging_steps": 8,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
METRICS = {
    "eval_reward": "reward",
    "eval_kl/k1": "KL per answer, nats",
    "eval_gold/helpfulness": "answers: helpfulness, 1 to 5",
    "eval_gold/safety": "answers: safety, 1 to 5",
    "eval_entropy": "entropy per token, nats",
    "eval_completions/mean_length": "tokens per answer",
    "eval_distinct_2": "distinct pairs of tokens",
}
PANELS = {
    "reward": ["reward"],
    "KL per completion": ["kl/k1", "kl/k3"],
    "entropy": ["entropy"],
    "clip fraction": ["clip_fraction"],
    "critic: explained variance": ["value/explained_variance"],
}


@dataclass
class PPOArguments(RecipeArguments):
    """`RecipeArguments` with what completions are scored with."""

    reward_model: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward models, each a folder that recipes/reward.py wrote or a model on the Hub; several are "
            "added up with reward_weights. Default: reward_adapter, or for the embedded demo one trained on the spot."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions of your own, called as TRL calls them: `package.module:function`, "
            "`file.py:function` or a registered name. They come after the reward models in reward_weights."
        },
    )


def main(script_args: PPOArguments, training_args: PPOConfig, model_args: ModelConfigWithoutDropout) -> None:
    """Check everything, then train and evaluate before and after."""
    check_output_dir(training_args, default=OUTPUT_DIR)
    is_demo = script_args.dataset_name is None
    if not (script_args.reward_model or script_args.reward_funcs or training_args.reward_adapter or is_demo):
        raise ArgumentError(
            "there is nothing to score completions with: name a --reward_model, or with --use_peft the adapter of one "
            "as --reward_adapter (recipes/reward.py trains both), or a function of your own as --reward_funcs."
        )
    functions = [get_plugin("reward", reference) for reference in script_args.reward_funcs or []]
    train_dataset, eval_dataset = load_prompt_splits(script_args, seed=training_args.seed, all_columns=bool(functions))
    tokenizer = load_tokenizer(model_args, trust_remote_code=training_args.trust_remote_code)
    paths = script_args.reward_model or []
    named = zip(paths, short_names(paths), strict=True)
    options = {"trust_remote_code": training_args.trust_remote_code, "show_progress": False}
    reward_funcs = [RewardModel.from_pretrained(path, name=name, **options) for path, name in named]
    reward_funcs += functions
    if not (reward_funcs or training_args.reward_adapter):
        reward_funcs = [demo_reward_model(Path(training_args.output_dir, "reward_model"), seed=training_args.seed)]
    if is_demo:  # the gold judge is logged, and with weight 0 nothing learns from it
        weights = training_args.reward_weights or [1.0] * (len(reward_funcs) + bool(training_args.reward_adapter))
        training_args.reward_weights = [*weights[: len(reward_funcs)], 0.0, *weights[len(reward_funcs) :]]
        reward_funcs.append(gold)
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)
    with one_line_errors(ValueError):  # what the trainer refuses
        trainer = PPOTrainer(
            **trainer_options(model_args, training_args),
            reward_funcs=reward_funcs,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
        )
    prompts = [*train_dataset["prompt"], *eval_dataset["prompt"]]
    check_room_for_prompts(trainer, prompts, source=script_args.dataset_name or DEMO)
    say_what_is_trained(trainer, script_args.dataset_name or DEMO)
    show_short_progress(trainer, ("reward", "kl/k1", "clip_fraction"))
    samples = SampleCallback(trainer, eval_dataset)
    trainer.add_callback(samples)

    before = evaluate_before(trainer)
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = trainer.evaluate()
    save_run(trainer, script_args, before, result.metrics, after, metrics=METRICS, panels=PANELS, samples=samples)


if __name__ == "__main__":
    use_all_cores()
    with one_line_errors(ArgumentError, DataError, PluginError, RewardModelError, InputError):
        main(*parse_arguments((PPOArguments, PPOConfig, ModelConfigWithoutDropout), DEMO_DEFAULTS, OUTPUT_DIR))
