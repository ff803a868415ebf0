"""Supervised fine-tuning: a model learns to answer like the demonstrations it is shown.

With no arguments it trains the embedded demo model on the embedded demonstrations, offline, on any machine:

    accelerate launch recipes/sft.py

A 7B model, meant for one 24 GB GPU, your own data:

    accelerate launch recipes/sft.py \
        --config recipes/configs/sft_7b_lora_8bit.yaml --dataset_name demonstrations.jsonl

The folder it leaves, a model or an adapter, goes on with recipes/dpo.py or recipes/ppo.py as --model_name_or_path.
Every option of `trl.SFTConfig`, `trl.ModelConfig` and `trl.ScriptArguments` works; `--help` lists them.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import math
from dataclasses import dataclass, field

from trl import ModelConfig, SFTConfig, SFTTrainer

from rlhf_ext.arguments import DEMO, ArgumentError, RecipeArguments, load_tokenizer, model_init_kwargs, parse_arguments
from rlhf_ext.chat_templates import use_chat_template
from rlhf_ext.data_checks import DataError
from rlhf_ext.demo.gold import GoldScoreCallback, gold
from rlhf_ext.demonstrations import load_demonstration_splits, reads_as_chat, to_chat
from rlhf_ext.errors import one_line_errors
from rlhf_ext.formatting import InputError
from rlhf_ext.lengths import check_lengths, length_report
from rlhf_ext.policy_loading import trainer_options
from rlhf_ext.progress import say_what_is_trained, show_short_progress
from rlhf_ext.quantization import keep_gradients_on_cpu
from rlhf_ext.report import evaluate_before, save_run
from rlhf_ext.run_folder import check_output_dir
from rlhf_ext.run_report.samples import SampleCallback
from rlhf_ext.threads import use_all_cores
from rlhf_ext.trainers.length_groups import GroupsByLength
from rlhf_ext.trainers.resume import ResumesExactly

OUTPUT_DIR = "runs/sft"
# What fits the embedded model (1.7 million parameters, fully trained); other models get TRL's defaults.
DEMO_DEFAULTS = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 5,
    "max_train_samples": 1600,
    "max_eval_samples": 200,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 50,
    "num_train_epochs": 2.0,
    "max_length": 256,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
METRICS = {
    "eval_loss": "loss per token, nats",
    "eval_perplexity": "perplexity",
    "eval_mean_token_accuracy": "token accuracy",
    "eval_gold/helpfulness": "answers: helpfulness, 1 to 5",
    "eval_gold/safety": "answers: safety, 1 to 5",
}
PANELS = {"loss": ["loss"], "token accuracy": ["mean_token_accuracy"], "entropy": ["entropy"]}


@dataclass
class SFTArguments(RecipeArguments):
    """`RecipeArguments` with what to make of plain prompts."""

    as_chat: bool | None = field(
        default=None,
        metadata={
            "help": "Whether plain prompts and completions become turns of the chat template. Default: if there is one."
        },
    )


class ResumableSFTTrainer(ResumesExactly, GroupsByLength, SFTTrainer):
    """`trl.SFTTrainer` whose resumed run equals the uninterrupted one, also with rows grouped by length."""


def main(script_args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    """Check everything, then train and evaluate before and after."""
    check_output_dir(training_args, default=OUTPUT_DIR)
    if training_args.eval_packing and not training_args.packing:  # only then does TRL keep the rows of a pack apart
        raise ArgumentError(
            "--eval_packing true needs --packing true, or rows of one pack would see each other: drop it."
        )
    source = script_args.dataset_name or DEMO
    splits = load_demonstration_splits(
        script_args, text_column=training_args.dataset_text_field, seed=training_args.seed
    )
    tokenizer = load_tokenizer(model_args, trust_remote_code=training_args.trust_remote_code)
    use_chat_template(tokenizer, training_args.chat_template_path)
    if reads_as_chat(splits[0][:1].get("prompt", []), tokenizer, script_args.as_chat, source=source):
        splits = tuple(to_chat(split) for split in splits)
    if "prompt" in splits[0].column_names and training_args.truncation_mode == "keep_start":
        check_lengths(splits[0], tokenizer, training_args.max_length, source=source)
        check_lengths(splits[1], tokenizer, training_args.max_length, source=script_args.eval_dataset_name or source)
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)
    trainer = ResumableSFTTrainer(
        **trainer_options(model_args, training_args),
        args=training_args,
        train_dataset=splits[0],
        eval_dataset=splits[1],
        processing_class=tokenizer,
    )
    keep_gradients_on_cpu(trainer.model)
    say_what_is_trained(trainer, source)
    show_short_progress(trainer, ("loss", "mean_token_accuracy"))
    max_length = None if training_args.packing else training_args.max_length
    mode = training_args.truncation_mode
    if note := length_report(splits[0], trainer.train_dataset, max_length, truncation_mode=mode):
        trainer.accelerator.print(note)
    if script_args.dataset_name is None:
        trainer.add_callback(GoldScoreCallback(script_args.max_eval_samples))
    samples = SampleCallback(trainer, splits[1], {} if script_args.dataset_name else {"gold": gold})
    trainer.add_callback(samples)

    before = evaluate_before(trainer)
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = trainer.evaluate()
    for metrics, suffix in ((before, "_before"), (after, "")):
        if f"eval_loss{suffix}" in metrics:
            metrics[f"eval_perplexity{suffix}"] = math.exp(metrics[f"eval_loss{suffix}"])
    save_run(trainer, script_args, before, result.metrics, after, metrics=METRICS, panels=PANELS, samples=samples)


if __name__ == "__main__":
    use_all_cores()
    with one_line_errors(ArgumentError, DataError, InputError):
        main(*parse_arguments((SFTArguments, SFTConfig, ModelConfig), DEMO_DEFAULTS, OUTPUT_DIR))
