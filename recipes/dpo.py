"""Direct preference optimization, with TRL's losses or your own.

With no arguments it aligns the embedded demo model on the embedded demo preferences, offline, on any machine:

    accelerate launch recipes/dpo.py

A 7B model, meant for one 24 GB GPU, your own data and your own loss:

    accelerate launch recipes/dpo.py \
        --config recipes/configs/dpo_7b_lora_8bit.yaml \
        --dataset_name preferences.jsonl \
        --loss_type my_loss.py:my_loss --loss_kwargs '{"scale": 2.0}'

Every option of `trl.DPOConfig`, `trl.ModelConfig` and `trl.ScriptArguments` works; `--help` lists them.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

from rlhf_ext import DPOConfig, DPOTrainer
from rlhf_ext.arguments import (
    DEMO,
    ArgumentError,
    ModelConfigWithoutDropout,
    RecipeArguments,
    load_tokenizer,
    model_init_kwargs,
    parse_arguments,
)
from rlhf_ext.data import load_preference_splits
from rlhf_ext.data_checks import DataError
from rlhf_ext.demo.gold import GoldScoreCallback, gold
from rlhf_ext.errors import one_line_errors
from rlhf_ext.lengths import check_lengths, truncation_report
from rlhf_ext.plugins import PluginError
from rlhf_ext.policy_loading import trainer_options
from rlhf_ext.progress import say_what_is_trained, show_short_progress
from rlhf_ext.report import evaluate_before, save_run
from rlhf_ext.run_folder import check_output_dir
from rlhf_ext.run_report.samples import SampleCallback
from rlhf_ext.threads import use_all_cores

OUTPUT_DIR = "runs/dpo"
# What fits the embedded model (1.7 million parameters, fully trained); other models get TRL's defaults.
DEMO_DEFAULTS = {
    "loss_type": ["sigmoid", "sft"],  # the second term keeps so small a model's answers fluent
    "learning_rate": 8e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 5,
    "max_train_samples": 1200,
    "max_eval_samples": 200,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 1.0,
    "train_sampling_strategy": "group_by_length",  # a third of the time went into padding
    "max_length": 256,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
METRICS = {
    "eval_loss": "loss",
    "eval_rewards/accuracies": "reward accuracy (chance: 0.5)",
    "eval_rewards/margins": "reward margin",
    "eval_gold/helpfulness": "answers: helpfulness, 1 to 5",
    "eval_gold/safety": "answers: safety, 1 to 5",
    "eval_logps/chosen": "log-prob of chosen",
    "eval_logps/rejected": "log-prob of rejected",
}
PANELS = {
    "loss": ["loss"],
    "reward accuracy": ["rewards/accuracies"],
    "rewards": ["rewards/chosen", "rewards/rejected", "rewards/margins"],
}


def main(script_args: RecipeArguments, training_args: DPOConfig, model_args: ModelConfigWithoutDropout) -> None:
    """Check everything, then train and evaluate before and after."""
    check_output_dir(training_args, default=OUTPUT_DIR)
    source = script_args.dataset_name or DEMO
    train_dataset, eval_dataset = load_preference_splits(
        script_args, extra_columns=training_args.extra_columns, seed=training_args.seed
    )
    tokenizer = load_tokenizer(model_args, trust_remote_code=training_args.trust_remote_code)
    if training_args.truncation_mode == "keep_start":  # under which TRL drops rows whose prompt fills max_length
        check_lengths(train_dataset, tokenizer, training_args.max_length, source=source)
        check_lengths(eval_dataset, tokenizer, training_args.max_length, source=script_args.eval_dataset_name or source)
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)
    with one_line_errors(ValueError):  # what the trainer refuses
        trainer = DPOTrainer(
            **trainer_options(model_args, training_args),
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
        )
    say_what_is_trained(trainer, source)
    show_short_progress(trainer, ("loss", "rewards/accuracies", "rewards/margins"))
    for rows, given, prepared in (
        ("training", train_dataset, trainer.train_dataset),
        ("evaluation", eval_dataset, trainer.eval_dataset),
    ):
        mode = training_args.truncation_mode
        if note := truncation_report(given, prepared, training_args.max_length, truncation_mode=mode, rows=rows):
            trainer.accelerator.print(note)

    if script_args.dataset_name is None:
        trainer.add_callback(GoldScoreCallback(script_args.max_eval_samples))
    samples = SampleCallback(trainer, eval_dataset, {} if script_args.dataset_name else {"gold": gold})
    trainer.add_callback(samples)

    before = evaluate_before(trainer, policy_is_reference=True)
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = trainer.evaluate()
    save_run(trainer, script_args, before, result.metrics, after, metrics=METRICS, panels=PANELS, samples=samples)


if __name__ == "__main__":
    use_all_cores()
    with one_line_errors(ArgumentError, DataError, PluginError):
        main(*parse_arguments((RecipeArguments, DPOConfig, ModelConfigWithoutDropout), DEMO_DEFAULTS, OUTPUT_DIR))
