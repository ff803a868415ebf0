"""Reward model from preference pairs, with a margin loss, TRL's loss or your own.

With no arguments it trains the embedded demo model on the embedded demo preferences, offline, on any machine:

    accelerate launch recipes/reward.py

A 7B model, meant for one 24 GB GPU, your own data, and a column that says how much better the chosen text is:

    accelerate launch recipes/reward.py \
        --config recipes/configs/reward_7b_lora_8bit.yaml \
        --dataset_name preferences.jsonl \
        --extra_columns margin

Then `rlhf-ext score` and `rlhf-ext compare` on the command line, or `rlhf_ext.RewardModel` from Python, use it.
Every option of `rlhf_ext.RewardConfig`, `trl.ModelConfig` and `trl.ScriptArguments` works; `--help` lists them.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

from dataclasses import dataclass, field

from trl import get_peft_config, get_quantization_config

from rlhf_ext import RewardConfig, RewardTrainer
from rlhf_ext.arguments import (
    DEMO,
    ArgumentError,
    ModelConfigWithoutDropout,
    RecipeArguments,
    load_tokenizer,
    model_init_kwargs,
    parse_arguments,
)
from rlhf_ext.chat_templates import use_chat_template
from rlhf_ext.data import load_preference_splits
from rlhf_ext.data_checks import DataError
from rlhf_ext.demo.reward import PAIRS, TRAINING
from rlhf_ext.errors import one_line_errors
from rlhf_ext.lengths import check_pair_lengths, dropped_report
from rlhf_ext.plugins import PluginError
from rlhf_ext.progress import say_what_is_trained, show_short_progress
from rlhf_ext.report import evaluate_before, save_run
from rlhf_ext.run_folder import check_output_dir
from rlhf_ext.threads import use_all_cores

OUTPUT_DIR = "runs/reward"
DEMO_DEFAULTS = {**TRAINING, "max_train_samples": PAIRS["train"], "max_eval_samples": PAIRS["test"]}
METRICS = {
    "eval_loss": "loss",
    "eval_accuracy": "accuracy",
    "eval_margin": "score difference",
    "eval_mean_reward": "mean score, before the offset",
}
PANELS = {
    "loss": ["loss"],
    "accuracy": ["accuracy"],
    "scores": ["min_reward", "mean_reward", "max_reward", "margin"],
}


@dataclass
class RewardModelConfig(ModelConfigWithoutDropout):
    """`ModelConfigWithoutDropout` with the task type of a reward model's adapters."""

    lora_task_type: str = field(default="SEQ_CLS", metadata={"help": "Under another the head would not be trained."})


def main(script_args: RecipeArguments, training_args: RewardConfig, model_args: RewardModelConfig) -> None:
    """Check everything, then train, calibrate, and evaluate before and after."""
    check_output_dir(training_args, default=OUTPUT_DIR)
    source = script_args.dataset_name or DEMO
    train_dataset, eval_dataset = load_preference_splits(
        script_args, extra_columns=training_args.extra_columns, optional_columns=["margin"], seed=training_args.seed
    )
    tokenizer = load_tokenizer(model_args, trust_remote_code=training_args.trust_remote_code)
    use_chat_template(tokenizer, training_args.chat_template_path)
    check_pair_lengths(train_dataset, tokenizer, training_args.max_length, source=source)
    check_pair_lengths(
        eval_dataset, tokenizer, training_args.max_length, source=script_args.eval_dataset_name or source
    )
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)
    with one_line_errors(ValueError):  # what the trainer refuses
        trainer = RewardTrainer(
            model_args.model_name_or_path,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    say_what_is_trained(trainer, source)
    show_short_progress(trainer, ("loss", "accuracy", "margin"))
    for name, given, kept in (
        ("training", train_dataset, trainer.train_dataset),
        ("held-out", eval_dataset, trainer.eval_dataset),
    ):
        if note := dropped_report(given, kept, training_args.max_length, rows=name):
            trainer.accelerator.print(note)

    before = evaluate_before(trainer)
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = trainer.evaluate() | {
        "eval_score_offset": trainer.settings.score_offset,
        "eval_temperature": trainer.settings.temperature,
    }
    save_run(
        trainer, script_args, before, result.metrics, after, metrics=METRICS, panels=PANELS, eval_rows=eval_dataset
    )


if __name__ == "__main__":
    use_all_cores()
    with one_line_errors(ArgumentError, DataError, PluginError):
        main(*parse_arguments((RecipeArguments, RewardConfig, RewardModelConfig), DEMO_DEFAULTS, OUTPUT_DIR))
