"""Direct preference optimization, with TRL's losses or your own.

With no arguments it aligns the embedded demo model on the embedded demo preferences, offline, on any machine:

    accelerate launch recipes/dpo.py

A 7B model on one 24 GB GPU, your own data and your own loss:

    accelerate launch recipes/dpo.py \
        --config recipes/configs/dpo_7b_lora_8bit.yaml \
        --dataset_name preferences.jsonl \
        --loss_type my_loss.py:my_loss --loss_kwargs '{"scale": 2.0}'

Every option of `trl.DPOConfig`, `trl.ModelConfig` and `trl.ScriptArguments` works; `--help` lists them.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

from trl import ModelConfig, get_peft_config, get_quantization_config

from rlhf_ext import DPOConfig, DPOTrainer
from rlhf_ext.arguments import (
    DEMO,
    ArgumentError,
    RecipeArguments,
    check_output_dir,
    load_tokenizer,
    one_line_errors,
    parse_arguments,
)
from rlhf_ext.data import is_local, load_preference_splits, truncation_report
from rlhf_ext.data_checks import DataError, check_lengths
from rlhf_ext.demo.callback import GoldScoreCallback
from rlhf_ext.plugins import PluginError
from rlhf_ext.progress import show_short_progress
from rlhf_ext.report import before_and_after, evaluate_before, print_table, save_model_card, save_training_figure

OUTPUT_DIR = "runs/dpo"
# What fits the embedded model (1.7 million parameters, fully trained); other models get TRL's defaults.
DEMO_DEFAULTS = {
    "loss_type": ["sigmoid", "sft"],  # the second term keeps so small a model's answers fluent
    "learning_rate": 8e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 5,
    "max_train_samples": 1500,
    "max_eval_samples": 200,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 40,
    "num_train_epochs": 1.0,
    "max_length": 256,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
METRICS = {
    "eval_loss": "loss",
    "eval_rewards/accuracies": "reward accuracy",
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


def main(script_args: RecipeArguments, training_args: DPOConfig, model_args: ModelConfig) -> None:
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
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = DPOTrainer(
        model_args.model_name_or_path,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    show_short_progress(trainer, ("loss", "rewards/accuracies", "rewards/margins"))
    if note := truncation_report(train_dataset, trainer.train_dataset, training_args.max_length):
        trainer.accelerator.print(note)

    if script_args.dataset_name is None:
        trainer.add_callback(GoldScoreCallback())

    # DeepSpeed makes its engine when training starts, and cannot evaluate before.
    before = {} if trainer.is_deepspeed_enabled else evaluate_before(trainer)
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = trainer.evaluate()

    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_metrics("eval", before | after)
    trainer.save_state()
    rows = before_and_after(before, after, METRICS)
    hub_dataset = None if script_args.dataset_name is None or is_local(source) else source
    save_model_card(trainer, hub_dataset, rows)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=hub_dataset)
    if trainer.is_world_process_zero():
        figure = f"{training_args.output_dir}/training.png"
        save_training_figure(trainer.state.log_history, before, PANELS, figure)
        print_table(f"Held-out pairs of {script_args.eval_dataset_name or source}", rows)
        print(f"Model, all_results.json, training.png and model card: {training_args.output_dir}")
    # Together: a process that leaves while another still saves would keep that one waiting for it at exit.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    with one_line_errors(ArgumentError, DataError, PluginError):
        main(*parse_arguments((RecipeArguments, DPOConfig, ModelConfig), DEMO_DEFAULTS, OUTPUT_DIR))
