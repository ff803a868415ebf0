"""Constitutional AI: a model criticises and revises its own answers by principles, and so writes its training data.

With no arguments a small model does so for prompts of the embedded demo, offline, on any machine:

    accelerate launch recipes/constitutional.py

Your model, your prompts, your principles; started again after an interruption it goes on where it stopped:

    accelerate launch recipes/constitutional.py \
        --model_name_or_path Qwen/Qwen2.5-7B-Instruct --load_in_8bit \
        --dataset_name prompts.jsonl --principles recipes/principles/harmless.yaml --output_dir runs/constitutional-7b

It writes `sft.jsonl` for recipes/sft.py and `preferences.jsonl` for recipes/dpo.py and recipes/reward.py. See
docs/constitutional.md.
"""

from rlhf_ext.console import print_table, quiet_libraries

quiet_libraries()

import json
import os
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf_ext.arguments import DEMO, ArgumentError, check_quantization, parse_options
from rlhf_ext.constitutional.ai_feedback import ChoiceError
from rlhf_ext.constitutional.constitution import Constitution, ConstitutionError, read_constitution
from rlhf_ext.constitutional.self_revision import Reviser, RevisionSettings
from rlhf_ext.constitutional.transcripts import (
    SOURCES,
    Prompts,
    Transcript,
    check_room_for_transcripts,
    fingerprint,
    keep_settings,
    open_transcripts,
    preference_rows,
    sft_rows,
    summary,
    transcribe_all,
)
from rlhf_ext.data_checks import DataError
from rlhf_ext.data_files import is_local
from rlhf_ext.demo import model_path
from rlhf_ext.demo.constitution import CONSTITUTION, demo_reviser, gold_metrics
from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.errors import one_line_errors
from rlhf_ext.evaluation.revisions import page, table_rows
from rlhf_ext.output_files import lock_folder, write_jsonl, write_whole
from rlhf_ext.policy_loading import load_policy
from rlhf_ext.prompts import load_prompts
from rlhf_ext.run_folder import free_output_dir
from rlhf_ext.run_report.facts import script_facts
from rlhf_ext.threads import use_all_cores

OUTPUT_DIR = "runs/constitutional"
# What fits the embedded model and two minutes on two cores.
DEMO_DEFAULTS = {
    "max_prompts": 128,
    "max_new_tokens": 72,
    "temperature": 0.7,  # at 1 so small a model loses the thread of longer texts
    "batch_size": 128,
    "min_confidence": 0.8,  # of whether an answer is better it knows next to nothing; see docs/constitutional.md
}
HELD_OUT = 96  # prompts of the demo to measure on
ERRORS = (ArgumentError, ChoiceError, ConstitutionError, DataError)
MODEL_OPTIONS = ("model_name_or_path", "dtype", "load_in_8bit", "load_in_4bit")


@dataclass
class ConstitutionalArguments:
    """The model, the prompts, the principles, and how answers are drawn."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A chat model: a folder, an adapter's folder, or a name on the Hub. Default: the demo's."},
    )
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, bfloat16, float16 or float32."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Quantize the weights to 8 bits."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantize the weights to 4 bits."})
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Prompts: a dataset on the Hub, or a local .jsonl, .json, .csv or .parquet file. Default: the "
            "embedded demo's."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    max_prompts: int | None = field(default=None, metadata={"help": "Take this many prompts at most, drawn by seed."})
    principles: str | None = field(
        default=None, metadata={"help": "YAML file of principles, such as recipes/principles/harmless.yaml."}
    )
    rounds: int = field(default=2, metadata={"help": "Rounds of critique and revision."})
    max_new_tokens: int = field(default=256, metadata={"help": "Tokens of an answer, critique or revision at most."})
    temperature: float = field(default=1.0, metadata={"help": "Of sampling."})
    top_p: float = field(default=1.0, metadata={"help": "Draw from the likeliest tokens with this probability."})
    batch_size: int = field(default=16, metadata={"help": "Prompts worked on, and saved, together."})
    min_confidence: float = field(
        default=0.5, metadata={"help": "Leave out AI feedback of which the model is less sure, 0.5 to 1."}
    )
    seed: int = field(default=42, metadata={"help": "Of all that is drawn."})
    output_dir: str = field(default=OUTPUT_DIR, metadata={"help": "Where data, results and page go."})

    def __post_init__(self) -> None:
        for name in ("rounds", "max_new_tokens", "batch_size", "max_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, not {value}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"--temperature must be above 0, not {self.temperature}: two answers are to differ.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p must be above 0 and at most 1, not {self.top_p}.")
        if not 0.5 <= self.min_confidence <= 1:
            raise ValueError(f"--min_confidence must be from 0.5 to 1, not {self.min_confidence}.")
        check_quantization(self.load_in_8bit, self.load_in_4bit)


def main(args: ConstitutionalArguments) -> None:
    """Check everything, then let the model answer, criticise, revise and compare, and write the data."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ArgumentError("generation is not spread over processes: launch it with --num_processes 1.")
    constitution, prompts = _constitution(args), _prompts(args)
    folder = Path(free_output_dir(args.output_dir, OUTPUT_DIR))
    with lock_folder(folder):
        _run(args, constitution, prompts, folder)


def _run(args: ConstitutionalArguments, constitution: Constitution, prompts: Prompts, folder: Path) -> None:
    options = {name: getattr(args, name) for name in MODEL_OPTIONS}
    settings = RevisionSettings(
        args.rounds, args.max_new_tokens, args.temperature, args.top_p, args.batch_size, args.seed
    )
    hashes = {"principles": asdict(constitution), "prompts": fingerprint(prompts.messages)}
    asked = options | asdict(settings) | hashes
    done = open_transcripts(folder, asked, chunk_size=args.batch_size, total=len(prompts.messages))
    if done:
        print(f"{folder}: going on after {len(done)} of {len(prompts.messages)} prompts.")
    name = options.pop("model_name_or_path")
    reviser = _reviser(name or model_path(), options, constitution, settings)
    if not done:
        check_room_for_transcripts(reviser, prompts)
    keep_settings(folder, asked)
    if name is None:  # the reviser reads as much as the model that it is made of
        model = str(folder / "reviser")
        demo_reviser(model, seed=args.seed)
        reviser = _reviser(model, options, constitution, settings)
    transcripts = transcribe_all(reviser, prompts, folder, done)
    held_out = gold_metrics(reviser, transcripts, HELD_OUT) if args.dataset_name is None else {}
    _save(transcripts, held_out, folder, args)


def _reviser(name: str, options: dict[str, Any], constitution: Constitution, settings: RevisionSettings) -> Reviser:
    model, tokenizer = load_policy(name, **options)
    if tokenizer.chat_template is None:
        fix = "Name an instruction-tuned model, or one that recipes/sft.py has taught to chat."
        raise ArgumentError(f"--model_name_or_path {name}: it has no chat template. {fix}")
    return Reviser(model, tokenizer, constitution, settings)


def _constitution(args: ConstitutionalArguments) -> Constitution:
    if args.principles is not None and args.model_name_or_path is None:
        raise ArgumentError("the demo model knows its own principles only: name a --model_name_or_path for yours.")
    if args.principles is not None:
        return read_constitution(args.principles)
    if args.model_name_or_path is not None:
        raise ArgumentError("name the principles, for example --principles recipes/principles/harmless.yaml.")
    return CONSTITUTION


def _prompts(args: ConstitutionalArguments) -> Prompts:
    """Return the prompts as conversations; plain text becomes a user's message."""
    if args.dataset_name is None or is_local(args.dataset_name):
        default = type(args)()
        of_the_hub = ("dataset_config", "dataset_train_split")
        unused = [f"--{name}" for name in of_the_hub if getattr(args, name) != getattr(default, name)]
        if unused:
            kind = "a local file" if args.dataset_name else "the embedded demo"
            raise ArgumentError(f"{', '.join(unused)} has no effect on {kind}: drop it.")
    if args.dataset_name is None:
        rows = prompt_dataset("train", seed=args.seed, size=args.max_prompts)["prompt"][:]
        return Prompts(rows, range(1, len(rows) + 1), DEMO)
    rows = load_prompts(args.dataset_name, args.dataset_config, args.dataset_train_split)["prompt"][:]
    numbers = range(1, len(rows) + 1)
    if args.max_prompts is not None and args.max_prompts < len(rows):
        numbers = sorted(random.Random(args.seed).sample(numbers, args.max_prompts))
    chats = [
        [{"role": "user", "content": row}] if isinstance(row, str) else row
        for row in (rows[number - 1] for number in numbers)
    ]
    for number, chat in zip(numbers, chats, strict=True):
        if chat[-1]["role"] != "user":
            fix = "It must end with the user's message, to be answered."
            problem = f"it ends with role {chat[-1]['role']!r}."
            raise DataError(problem, fix, source=args.dataset_name, row=number, column="prompt")
    return Prompts(chats, numbers, args.dataset_name)


def _save(transcripts: list[Transcript], gold: dict[str, float], folder: Path, args: ConstitutionalArguments) -> None:
    demonstrations = sft_rows(transcripts)
    pairs = preference_rows(transcripts, min_confidence=args.min_confidence)
    results = {"prompts": len(transcripts), "sft_rows": len(demonstrations), "preference_rows": len(pairs)}
    results |= {f"preference_rows_{kind}": sum(row["source"] == kind for row in pairs) for kind in SOURCES}
    results |= summary(transcripts) | gold
    write_jsonl(folder / "sft.jsonl", demonstrations)
    write_jsonl(folder / "preferences.jsonl", pairs)
    write_whole(folder / "report.html", page(transcripts, results, script_facts([args.dataset_name])))
    # Last: what marks the run as finished.
    write_whole(folder / "all_results.json", json.dumps(results, indent=4, sort_keys=True))

    print_table("What the model made of its answers", ("", "value"), table_rows(results))
    print(f"sft.jsonl, preferences.jsonl, transcripts.jsonl, report.html, all_results.json: {folder}")
    print("Next, each in a line:")
    for recipe, data in (("sft", "sft.jsonl"), ("dpo", "preferences.jsonl")):
        model = f" --model_name_or_path {args.model_name_or_path}" if args.model_name_or_path else ""
        print(f"  accelerate launch recipes/{recipe}.py{model} --dataset_name {folder / data}")


def parse() -> ConstitutionalArguments:
    """Parse the command line; the defaults are the demo's where no model is named."""
    (args,) = parse_options((ConstitutionalArguments,), {})
    if args.model_name_or_path is None:
        (args,) = parse_options((ConstitutionalArguments,), DEMO_DEFAULTS)
    return args


if __name__ == "__main__":
    use_all_cores()
    with one_line_errors(*ERRORS, kept="The same command goes on after the last batch that was saved."):
        main(parse())
