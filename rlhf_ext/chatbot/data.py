"""The data and YAML files of `recipes/chatbot_rlhf.py`, checked before anything trains.

All phases chat, so all of them must read turns. By themselves, recipes/sft.py makes turns of plain text and the others
do not. So what the phases read is written into `data/` of the output folder: plain text as turns, conversations as they
are, and the rows to evaluate on beside those to train on.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from ..arguments import ArgumentError, RecipeArguments
from ..data import load_preference_splits
from ..data_checks import DataError
from ..demonstrations import as_messages, load_demonstration_splits
from ..evaluation.prompts import load_evaluation_prompts
from ..output_files import write_jsonl, write_whole
from ..prompts import load_prompt_splits
from .pipeline import CONTENTS, alone

if TYPE_CHECKING:
    from .phases import ChatbotArguments

Row = dict[str, Any]
Config = Mapping[str, Any]
ANSWER = "\n\nAssistant:"  # of a transcript
# What the YAML file of a phase must leave to the run, because phases share it or depend on it.
SETTLED = {"model_name_or_path", "dataset_name", "output_dir", "resume_from_checkpoint", "seed"}
SETTLED |= {"use_peft", "load_in_8bit", "load_in_4bit", "chat_template_path", "as_chat"}
SETTLED |= {"save_strategy", "save_steps", "save_total_limit"}
SETTLED |= {"reward_model", "reward_adapter", "critic", "critic_path"}
# What it may say about data. Data of one's own are divided here, and the phase gets the parts.
DATA_KEYS = ("dataset_config", "dataset_train_split", "dataset_test_split", "eval_dataset_name", "eval_fraction")
DATA_KEYS += ("max_train_samples", "max_eval_samples", "dataset_streaming")


class Parts(NamedTuple):
    """The rows of a phase, to train and to evaluate on, and what they follow from."""

    train: list[Row]
    evaluation: list[Row]
    origin: str


def train_path(output_dir: str, phase: str) -> str:
    """Return the file of the rows that a phase trains on."""
    return str(Path(output_dir, "data", f"{phase}-train.jsonl"))


def held_out_path(output_dir: str, phase: str) -> str:
    """Return the file of the rows that a phase evaluates on."""
    return str(Path(output_dir, "data", f"{phase}-eval.jsonl"))


def config_path(output_dir: str, phase: str) -> str:
    """Return the YAML file of a phase without what it says about data, which is done."""
    return str(Path(output_dir, "data", f"{phase}.yaml"))


def read_configs(files: Mapping[str, str]) -> dict[str, Config]:
    """Read the YAML files of phases, and check that they do not contradict the run.

    Args:
        files: Phase and path.

    Raises:
        ArgumentError: A file that cannot be read, or a key that the run sets itself.
    """
    configs = {}
    for phase, path in files.items():
        try:
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ArgumentError(f"{path}: it cannot be read ({error.strerror}). Check the path.") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ArgumentError(f"{path}: it is not valid YAML ({' '.join(str(error).split())}).") from error
        if not isinstance(config, dict):
            raise ArgumentError(f"{path}: it must hold options, as `name: value`.")
        if settled := sorted(SETTLED & config.keys()):
            raise ArgumentError(
                f"{path}: {', '.join(settled)} cannot be set for one phase: remove it. Model, data, seed, adapters and "
                "quantization are options of the command itself."
            )
        configs[phase] = config
    return configs


def load_data(args: "ChatbotArguments", configs: Mapping[str, Config], settings: Mapping[str, Any]) -> dict[str, Parts]:
    """Load and check all data of one's own, and make turns of plain text.

    Args:
        args: The command line, with an output folder.
        configs: As `read_configs` returns them.
        settings: As `args.settings` returned them before, with the hashes of the files.

    Returns:
        For each phase that trains its rows to train and to evaluate on; not those that an earlier start has written,
        from the same file with the same options, and nothing where the demo's data are used.

    Raises:
        DataError: Bad rows, or plain text of which no turns can be made.
    """
    if args.is_demo:
        return {}
    configs = {phase: _limited(configs.get(phase, {}), args.max_eval_samples) for phase in _data_options(args)}
    missing = {}
    for phase, option in _data_options(args).items():
        origin = _origin(settings, option, configs[phase])
        if _read(_origin_path(args.output_dir, phase)) != origin:
            missing[phase] = settings[option], origin
    with alone():
        load_evaluation_prompts(args.eval_prompt_dataset or args.prompt_dataset)
        return {
            phase: Parts(*_load(phase, source, configs[phase], args), origin)
            for phase, (source, origin) in missing.items()
        }


def write_data(output_dir: str, loaded: Mapping[str, Parts]) -> None:
    """Write what `load_data` returned as the files that the phases read."""
    for phase, parts in loaded.items():
        origin = _origin_path(output_dir, phase)
        origin.parent.mkdir(exist_ok=True)
        origin.unlink(missing_ok=True)
        write_jsonl(Path(train_path(output_dir, phase)), parts.train)
        write_jsonl(Path(held_out_path(output_dir, phase)), parts.evaluation)
        write_whole(origin, parts.origin)  # last: what marks the others as complete


def write_configs(args: "ChatbotArguments", configs: Mapping[str, Config]) -> None:
    """Write the YAML files of the phases without the data, which are done; all processes wait for the first one."""
    for phase in configs if not args.is_demo else ():
        path = Path(config_path(args.output_dir, phase))
        kept = {key: value for key, value in configs[phase].items() if key not in DATA_KEYS}
        text = yaml.safe_dump(kept, sort_keys=False)
        if int(os.environ.get("RANK", "0")) == 0:
            write_whole(path, text)
        while _read(path) != text:
            time.sleep(0.1)


def _origin_path(output_dir: str, phase: str) -> Path:
    return Path(output_dir, "data", f"{phase}-origin.yaml")


def _origin(settings: Mapping[str, Any], option: str, config: Config) -> str:
    """Return what the files of a phase follow from, of which `option` names the data."""
    facts = {"source": settings[option], "contents": settings.get(f"{CONTENTS}{option}"), "seed": settings["seed"]}
    return yaml.safe_dump(facts | {"options": dict(config)}, sort_keys=False)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _data_options(args: "ChatbotArguments") -> dict[str, str]:
    """Return the option that names the data of each phase that trains."""
    options = {"sft": "sft_dataset", "reward": "preference_dataset"}
    if args.algorithm != "best_of_n":
        options[args.algorithm] = "prompt_dataset" if args.algorithm == "ppo" else "preference_dataset"
    return options


def _limited(config: Config, rows: int | None) -> Config:
    """Return what a phase's YAML file says, with the command's number of rows to evaluate on where it says none."""
    return config if rows is None or "max_eval_samples" in config else {**config, "max_eval_samples": rows}


def _load(phase: str, source: str, config: Config, args: "ChatbotArguments") -> tuple[list[Row], list[Row]]:
    """Load and check what a phase trains and evaluates on, as its recipe does, and say what becomes of plain text."""
    if config.get("dataset_streaming"):
        raise DataError("a run of all phases reads it as a whole.", "Drop dataset_streaming.", source=source)
    named = RecipeArguments(source, **{key: config[key] for key in DATA_KEYS if key in config})
    if phase == "sft":
        text_column = config.get("dataset_text_field", "text")
        parts = load_demonstration_splits(named, text_column=text_column, seed=args.seed)
    elif phase == "ppo":
        parts = load_prompt_splits(named, seed=args.seed)
    else:
        extra = config.get("extra_columns") or []
        extra = [extra] if isinstance(extra, str) else extra
        optional = ["margin"] if phase == "reward" else []
        parts = load_preference_splits(named, extra_columns=extra, optional_columns=optional, seed=args.seed)
    train, held_out = ([as_turns(row, source=source) for row in part] for part in parts)
    kept = parts[0][0]
    if kept != train[0]:
        print(f"{source}: plain text becomes turns of a chat, as all phases chat.")
    elif any(isinstance(value, str) for value in kept.values()):
        print(f"{source}: text without a prompt is trained on as it is, and not as turns of a chat.")
    return train, held_out


def as_turns(row: Row, *, source: str) -> Row:
    """Return a row with its plain prompt and completions as messages; one of messages, or of text alone, as it is.

    Args:
        row: Of demonstrations, preference pairs or prompts.
        source: What to call the rows.

    Raises:
        DataError: A pair without a prompt, in which nothing says where the answers begin.
    """
    answers = [column for column in ("completion", "chosen", "rejected") if isinstance(row.get(column), str)]
    if "chosen" in answers and "prompt" not in row:
        row = row | _without_prompt(row["chosen"], row["rejected"], source)
    if not isinstance(row.get("prompt"), str):
        return row
    said = {column: [{"role": "assistant", "content": row[column]}] for column in answers}
    return row | {"prompt": as_messages(row["prompt"])} | said


def _without_prompt(chosen: str, rejected: str, source: str) -> Row:
    """Return prompt and answers of two transcripts that begin with the same turns."""
    end = chosen.rfind(ANSWER) + len(ANSWER)
    if end < len(ANSWER) or chosen[:end] != rejected[:end]:
        problem = "a pair of plain text without a prompt does not show where its answers begin."
        fix = "Add a column 'prompt', or write both as transcripts, '\\n\\nHuman: ...\\n\\nAssistant: ...'."
        raise DataError(problem, fix, source=source, column="chosen")
    answers = {"chosen": chosen[end:].strip(), "rejected": rejected[end:].strip()}
    for column, answer in answers.items():
        if not answer:
            problem = f"the answer to {chosen[:end].strip()[-60:]!r} is empty."
            raise DataError(problem, "Correct or remove the row.", source=source, column=column)
    if answers["chosen"] == answers["rejected"]:
        problem = f"'chosen' and 'rejected' are equal but for white space: {answers['chosen'][:60]!r}."
        raise DataError(problem, "A pair must differ: correct or remove the row.", source=source, column="chosen")
    return {"prompt": chosen[:end], **answers}
