"""The whole of RLHF in one command: demonstrations, reward model, policy, evaluation.

With no arguments the embedded demo model goes all the way, offline, on any machine:

    accelerate launch recipes/chatbot_rlhf.py
    accelerate launch recipes/chatbot_rlhf.py --algorithm dpo
    rlhf-ext chat runs/chatbot

Any language model, on your data, policy, reference, critic and reward model sharing one 8-bit base:

    accelerate launch recipes/chatbot_rlhf.py --model_name gpt2 --algorithm ppo --batch_size 4 --ppo_epochs 4 \
        --sft_dataset demonstrations.jsonl --preference_dataset preferences.jsonl --prompt_dataset prompts.jsonl \
        --use_peft --load_in_8bit

Each phase is a recipe of its own, started with the options that are printed; its folder is what that recipe leaves.
Interrupted, the same command goes on where it stopped.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

from rlhf_ext.chatbot.recipe_process import start_imports
from rlhf_ext.threads import use_all_cores

if __name__ == "__main__":  # a recipe that this starts reads the file, too
    use_all_cores()
    start_imports()

import os
from pathlib import Path

from rlhf_ext.arguments import ArgumentError, parse_options
from rlhf_ext.chatbot.data import load_data, read_configs, write_configs, write_data
from rlhf_ext.chatbot.phase_options import check_options
from rlhf_ext.chatbot.phases import OUTPUT_DIR, ChatbotArguments, phases
from rlhf_ext.chatbot.pipeline import PhaseError, Pipeline, unfinished_output_dir
from rlhf_ext.chatbot.report import summarize
from rlhf_ext.data_checks import DataError
from rlhf_ext.errors import one_line_errors
from rlhf_ext.policy_loading import load_policy_tokenizer
from rlhf_ext.trainers.reward_peft import check_whole


def main(args: ChatbotArguments) -> None:
    """Check everything, run the phases that are not finished, and show what came of them."""
    tokenizer = load_policy_tokenizer(args.base_model, "--model_name ")
    try:
        check_whole(args.base_model, None)  # or the reward model's phase would find out after SFT
    except ValueError as error:
        raise ArgumentError(f"--model_name {error}") from error
    configs = read_configs(args.config_files)
    settings = args.settings()
    args.output_dir = args.output_dir or unfinished_output_dir(OUTPUT_DIR, settings)
    steps = phases(args, has_chat_template=tokenizer.chat_template is not None, configs=configs)
    check_options(steps, args.config_files)
    is_main = int(os.environ.get("RANK", "0")) == 0
    data = load_data(args, configs, settings) if is_main else {}
    pipeline = Pipeline(args.output_dir, settings, steps)
    write_data(args.output_dir, data)
    write_configs(args, configs)
    pipeline.run()
    if is_main:
        summarize(args, pipeline.state["phases"])
        pipeline.finish()
        print(f"Talk to it: rlhf-ext chat {Path(args.output_dir)}")


if __name__ == "__main__":
    with one_line_errors(ArgumentError, DataError, PhaseError, kept="The same command goes on where it stopped."):
        main(*parse_options((ChatbotArguments,), {}))
