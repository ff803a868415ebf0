"""Options of recipes/evaluate.py: what both of its jobs take, what only one does, and refusing those of the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rlhf_ext.arguments import ArgumentError, check_quantization
from rlhf_ext.generation import Decoding

OUTPUT_DIR = "runs/evaluate"
COMPLETIONS = "completions.jsonl"  # what policies wrote, in the output folder


@dataclass
class EvaluationOptions:
    """The rows to evaluate on, and where the results go."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset on the Hub, or a local .jsonl, .json, .csv or .parquet file. Default: the embedded demo."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_split: str | None = field(
        default=None, metadata={"help": "Split of a dataset on the Hub. Default: 'test', or the only one."}
    )
    max_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many rows at most; of the embedded demo on this many."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Texts scored or written at once. Default: what fits the job."}
    )
    seed: int = field(
        default=0, metadata={"help": "For the rows that max_samples draws, for sampling and for the bootstrap."}
    )
    output_dir: str = field(default=OUTPUT_DIR, metadata={"help": "Where results, figures and page go."})

    def __post_init__(self) -> None:
        """Refuse to evaluate on nothing."""
        if self.max_samples is not None and self.max_samples < 1:
            raise ArgumentError(f"--max_samples {self.max_samples} must be at least 1. Drop it to use all rows.")


@dataclass
class RewardOptions:
    """Which reward models to evaluate, and how."""

    model: str | None = field(
        default=None,
        metadata={"help": "The reward model's folder or name on the Hub. Default: the newest runs/reward*."},
    )
    other_model: str | None = field(default=None, metadata={"help": "A second reward model to compare it with."})
    strength_column: str | None = field(
        default=None, metadata={"help": "How clearly the chosen answer was preferred. Default: 'strength', if present."}
    )
    subset_column: str | None = field(
        default=None,
        metadata={"help": "What to group pairs by; outer.inner if nested. Default: 'source', if present."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a text at most. Default: as in training, or what the model takes."}
    )
    drop_long_prompts: bool = field(
        default=False,
        metadata={"help": "Leave out rows whose prompt alone fills max_length, instead of refusing them."},
    )


@dataclass
class PolicyOptions:
    """Which policies write, how, and who judges what they write."""

    policy: str | None = field(
        default=None,
        metadata={"help": "A language model, or an adapter: evaluate its answers instead of a reward model."},
    )
    other_policy: str | None = field(default=None, metadata={"help": "Whose answers to compare with."})
    reference: str | None = field(
        default=None,
        metadata={"help": "What to measure the KL divergence from. Default: an adapter's base, or the other policy."},
    )
    judge: str | None = field(
        default=None,
        metadata={
            "help": "gold (the embedded demo's), a reward model's folder, llm:MODEL, or a function as file.py:function "
            "or module:function. Default: gold for the embedded demo's prompts."
        },
    )
    best_of: int | None = field(
        default=None,
        metadata={"help": "Let the policy write this many answers to each prompt; best_of_model chooses one."},
    )
    best_of_model: str | None = field(default=None, metadata={"help": "The reward model that chooses."})
    as_chat: bool | None = field(
        default=None,
        metadata={"help": "Whether plain prompts become turns of the chat template. Default: if there is one."},
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Tokens of an answer at most."})
    temperature: float = field(default=1.0, metadata={"help": "0 always takes the likeliest token."})
    top_p: float = field(default=1.0, metadata={"help": "Draw from the likeliest tokens with this probability."})
    top_k: int = field(default=0, metadata={"help": "Draw from this many of the likeliest tokens; 0 from all."})
    dtype: str = field(default="auto", metadata={"help": "Of the policies' weights; auto for that of the checkpoint."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Quantize the policies."})
    load_in_4bit: bool = field(default=False, metadata={"help": "The same, to 4 bits."})

    def __post_init__(self) -> None:
        """Refuse half of a best-of-n, or one that does not choose, and quantization that cannot be."""
        check_quantization(self.load_in_8bit, self.load_in_4bit)
        if (self.best_of is None) != (self.best_of_model is None):
            raise ArgumentError("--best_of and --best_of_model have no effect without each other: name both.")
        if self.best_of is not None and self.best_of < 2:
            raise ArgumentError(f"--best_of {self.best_of}: there must be at least 2 answers to choose from.")

    def decoding(self, seed: int) -> Decoding:
        """Return how the policies write.

        Raises:
            ArgumentError: A value out of range, or without effect.
        """
        try:
            return Decoding(self.max_new_tokens, self.temperature, self.top_p, self.top_k, seed)
        except ValueError as error:
            raise ArgumentError(f"--{error}") from error


def refuse_all(options: Any, reason: str) -> None:
    """Refuse options of the job that does not run.

    Raises:
        ArgumentError: One of them is set.
    """
    unused = [f"--{option.name}" for option in fields(options) if getattr(options, option.name) != option.default]
    if unused:
        raise ArgumentError(f"{', '.join(unused)} has no effect {reason}.")


def refuse_without_dataset(options: EvaluationOptions, *others: tuple[str, Any]) -> None:
    """Refuse options about rows where these are the embedded demo's.

    Args:
        options: Of which `dataset_name` is not set.
        others: More options of this kind: name and value.

    Raises:
        ArgumentError: One of them is set.
    """
    own = [(name, getattr(options, name)) for name in ("dataset_config", "dataset_split")]
    unused = [f"--{name}" for name, value in (*own, *others) if value is not None]
    if unused:
        raise ArgumentError(f"{', '.join(unused)} has no effect without --dataset_name.")


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last part of each path, unless these are the same."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(names) else [*names]
