"""The whole pipeline on a real model and human data, judged by a model that had no part in it, as JSON.

    OMP_NUM_THREADS=2 python benchmarks/chatbot_human_data.py --model PATH --judge_model PATH --data FOLDER

`recipes/chatbot_rlhf.py` trains LoRA adapters over one 8-bit base: SFT on `sft_oasst_en100` and
`sft_selfinstruct_seed`, a reward model on `pref_oasst_en100` and `pref_hh_harmless`, then PPO; `recipes/dpo.py` starts
from the same SFT model. Both policies answer held-out prompts beside the SFT model, and are compared by the run's own
reward model and by one of another backbone and seed. Long rows are left out to bound the time. What is finished in the
output folder is not run again.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from chatbot_demo import recipe, results
from dpo_human_preferences import TARGETS_HELP

from rlhf_ext import RewardModel
from rlhf_ext.evaluation.judges import RewardModelJudge
from rlhf_ext.evaluation.policy import win_rate
from rlhf_ext.evaluation.rows import text_of
from rlhf_ext.output_files import read_jsonl, write_jsonl

SHARED: dict[str, Any] = {
    "max_length": 256,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "logging_steps": 5,
}
PHASES = {
    "sft": {**SHARED, "learning_rate": 2e-4, "num_train_epochs": 2},
    "reward": {**SHARED, "learning_rate": 5e-4, "num_train_epochs": 1, "max_eval_samples": 60},
    "ppo": {
        **{name: value for name, value in SHARED.items() if name != "max_length"},
        "learning_rate": 1e-4,
        "critic_learning_rate": 1e-3,
        "init_kl_coef": 0.05,
        "kl_horizon": 200,
        "gradient_accumulation_steps": 1,
        "num_iterations": 2,
        "max_eval_samples": 8,
    },
    "dpo": {**SHARED, "learning_rate": 1e-4, "max_eval_samples": 40},
}
COMPARED = ("prompt", "completion", "other_completion")


def characters(row: dict[str, Any]) -> int:
    """How long a row is, with the longer of two answers."""
    answers = [len(row[column]) for column in ("completion", "chosen", "rejected") if column in row]
    return len(row["prompt"]) + max(answers)


def prepare(data: Path, folder: Path, held_out_prompts: int) -> dict[str, Path]:
    """Write the files of the run, with rows of a bounded length; return them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    read = {path.stem: list(read_jsonl(path)) for path in data.glob("*.jsonl")}
    named = ("sft_oasst_en100", "sft_selfinstruct_seed")
    demonstrations = [row for name in named for row in read[name] if characters(row) <= 600]
    preferences = [row for row in read["pref_oasst_en100"] if characters(row) <= 600]
    preferences += [row for row in read["pref_hh_harmless"] if characters(row) <= 300]
    asked = dict.fromkeys(row["prompt"] for row in (*preferences, *demonstrations) if len(row["prompt"]) <= 300)
    held_out = []
    for name in ("eval_hh_harmless", "eval_truthfulqa"):
        prompts = dict.fromkeys(row["prompt"] for row in read[name] if len(row["prompt"]) <= 250)
        held_out += list(prompts)[:held_out_prompts]
    rows = {
        "demonstrations": [{key: row[key] for key in ("prompt", "completion")} for row in demonstrations],
        "preferences": [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in preferences],
        "prompts": [{"prompt": prompt} for prompt in asked],
        "held_out": [{"prompt": prompt} for prompt in held_out],
    }
    for name, found in rows.items():
        write_jsonl(folder / f"{name}.jsonl", found)
    return {name: folder / f"{name}.jsonl" for name in rows}


def write_configs(arguments: argparse.Namespace) -> dict[str, Path]:
    """Write the YAML file of each phase; return them by name."""
    adapters = {"lora_r": arguments.lora_r, "lora_target_modules": arguments.lora_target_modules}
    asked = {phase: options | adapters for phase, options in PHASES.items()}
    asked["dpo"]["max_steps"] = arguments.dpo_steps
    asked["ppo"] |= {
        "max_steps": arguments.ppo_steps,
        "steps_per_generation": arguments.completions // SHARED["per_device_train_batch_size"],
        "max_completion_length": arguments.max_completion_length,
    }
    for phase, options in asked.items():
        (arguments.output / f"{phase}.yaml").write_text(yaml.safe_dump(options))
    return {phase: arguments.output / f"{phase}.yaml" for phase in asked}


def train(arguments: argparse.Namespace, files: dict[str, Path], configs: dict[str, Path]) -> dict[str, Path]:
    """Run the pipeline with PPO, and DPO from its SFT model; return the folders."""
    run, dpo = arguments.output / "chatbot", arguments.output / "dpo"
    adapters = ["--use_peft", "--load_in_8bit"]
    data = ["--sft_dataset", files["demonstrations"], "--preference_dataset", files["preferences"]]
    data += ["--prompt_dataset", files["prompts"], "--eval_prompt_dataset", files["held_out"]]
    yamls = ["--sft_config", configs["sft"], "--reward_config", configs["reward"], "--policy_config", configs["ppo"]]
    options = ["--model_name", arguments.model, *adapters, *data, *yamls, "--output_dir", run]
    recipe("chatbot_rlhf.py", *options, "--seed", arguments.seed, "--max_eval_samples", 2 * arguments.held_out_prompts)
    pairs = ["--dataset_name", run / "data/reward-train.jsonl", "--eval_dataset_name", run / "data/reward-eval.jsonl"]
    options = ["--config", configs["dpo"], "--model_name_or_path", run / "sft", *pairs, *adapters]
    options += ["--seed", arguments.seed, "--save_strategy", "no"]
    recipe("dpo.py", *options, "--output_dir", dpo)
    return {"sft": run / "sft", "reward": run / "reward", "ppo": run / "ppo", "dpo": dpo}


def train_judge(arguments: argparse.Namespace, files: dict[str, Path]) -> Path:
    """Train a reward model on the same pairs, from another backbone and seed; return its folder."""
    judge = arguments.output / "judge"
    options = ["--model_name_or_path", arguments.judge_model, "--dataset_name", files["preferences"]]
    options += ["--max_length", 256, "--bf16", "false", "--gradient_checkpointing", "false", "--learning_rate", 2e-4]
    options += ["--per_device_train_batch_size", 16, "--num_train_epochs", 2, "--seed", arguments.seed + 1]
    recipe("reward.py", *options, "--save_strategy", "no", "--output_dir", judge)
    return judge


def compare(arguments: argparse.Namespace, files: dict[str, Path], folders: dict[str, Path]) -> dict[str, Any]:
    """Let each policy and the SFT model answer the held-out prompts; return the results by policy."""
    found = {}
    for name in ("dpo", "ppo"):
        place = arguments.output / f"evaluate-{name}"
        options = ["--policy", folders[name], "--other_policy", folders["sft"], "--reference", folders["sft"]]
        options += ["--judge", folders["reward"], "--dataset_name", files["held_out"], "--load_in_8bit"]
        options += ["--max_new_tokens", arguments.max_completion_length]
        recipe("evaluate.py", *options, "--seed", arguments.seed, "--output_dir", place)
        found[name] = results(place)
    return found


def independent(arguments: argparse.Namespace, judge: Path) -> dict[str, Any]:
    """Let the independent judge compare the answers that `compare` left; return win rates by policy."""
    other = RewardModelJudge(RewardModel.from_pretrained(judge, show_progress=False), "judge")
    found = {}
    for name in ("dpo", "ppo"):
        rows = list(read_jsonl(arguments.output / f"evaluate-{name}" / "completions.jsonl"))
        # Plain text, as the judge learned from: its tokenizer has no chat template.
        prompts, *answers = ([text_of(row[column]) for row in rows] for column in COMPARED)
        rates = win_rate(other.prefer(prompts, *answers))
        found[name] = {"win_rate": [rates.rate.value, rates.rate.low, rates.rate.high], "p": rates.sign_test_p}
    return found


def main() -> None:
    """Run everything and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--judge_model", help="folder of the independent judge's backbone; default: no such judge")
    parser.add_argument("--data", type=Path, required=True, help="folder with the data")
    parser.add_argument("--ppo_steps", type=int, default=60, help="optimizer steps; four to an update of 16")
    parser.add_argument("--completions", type=int, default=16, help="of an update of PPO")
    parser.add_argument("--max_completion_length", type=int, default=48)
    parser.add_argument("--dpo_steps", type=int, default=25)
    parser.add_argument("--held_out_prompts", type=int, default=24, help="of each of the two kinds")
    parser.add_argument("--lora_r", type=int, default=4)
    parser.add_argument("--lora_target_modules", nargs="+", default=["q_proj", "v_proj"], help=TARGETS_HELP)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/chatbot_human_data"))
    arguments = parser.parse_args()
    files = prepare(arguments.data, arguments.output / "data", arguments.held_out_prompts)
    folders = train(arguments, files, write_configs(arguments))
    found = {"evaluation": compare(arguments, files, folders)}
    if arguments.judge_model:
        folders["judge"] = train_judge(arguments, files)
        found["independent judge"] = independent(arguments, folders["judge"])
    found["training"] = {name: results(folder) for name, folder in folders.items()}
    print(json.dumps(found, indent=2, default=str))


if __name__ == "__main__":
    main()
