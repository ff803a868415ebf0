"""Letting policies answer prompts, and measuring how far they are from what they began as."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_ext import RewardModel
from rlhf_ext.arguments import ArgumentError
from rlhf_ext.data_checks import DataError
from rlhf_ext.formatting import InputError
from rlhf_ext.generation import Decoding, end_tokens, generate_tokens
from rlhf_ext.logps import completion_logps
from rlhf_ext.policy_loading import load_policy, load_policy_tokenizer

from .options import EvaluationOptions, PolicyOptions
from .prompts import EvaluationPrompts
from .rows import Text

BATCH_SIZE, PASS_SIZE = 64, 8  # prompts that a policy answers at once; texts whose logits are held at once
BASE = "its adapter's base"


@dataclass
class Written:
    """What a policy wrote.

    Attributes:
        completions: The texts.
        tokens: Prompt and completion of each, as token ids.
        logps: Of the completions' tokens under the policy.
        ref_logps: The same under its reference; None while there is none.
        reference: What that is.
        vocabulary: Which token has which id.
        ends: The ids of the tokens that end a completion.
    """

    completions: list[str]
    tokens: list[tuple[Tensor, Tensor]]
    logps: list[Tensor]
    vocabulary: dict[str, int]
    ends: list[int]
    ref_logps: list[Tensor] | None = None
    reference: str | None = None

    @property
    def cut(self) -> list[bool]:
        """Whether each completion was ended by the number of tokens alone."""
        return [int(completion[-1]) not in self.ends for _, completion in self.tokens]


def share_chat_template(names: Sequence[str], tokenizers: Sequence[PreTrainedTokenizerBase]) -> list[str]:
    """Give a tokenizer without chat template that of the other policy; return what there is to say about it.

    A base model is asked in the form in which the model that was trained from it learned to be asked.
    """
    known = [pair for pair in zip(names, tokenizers, strict=True) if pair[1].chat_template is not None]
    notes = []
    for name, tokenizer in zip(names, tokenizers, strict=True):
        if tokenizer.chat_template is None and known:
            tokenizer.chat_template = known[0][1].chat_template
            notes.append(f"{name} has no chat template; it is asked with that of {known[0][0]}.")
    return notes


def write_answers(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Text],
    prompts: EvaluationPrompts,
    decoding: Decoding,
    data: EvaluationOptions,
    options: PolicyOptions,
    *,
    best_of: int,
) -> Written:
    """Let a policy answer, several times if the best is to be chosen; an adapter's base is its reference by default.

    Args:
        name: The policy.
        tokenizer: Its tokenizer, with the chat template to use.
        asked: What it is asked: the prompts, perhaps as turns.
        prompts: Where these are from, for error messages.
        decoding: How answers are drawn.
        data: Of which the batch size counts.
        options: How policies are loaded, and who chooses the best answer.
        best_of: Answers to each prompt.

    Raises:
        ArgumentError: The policy cannot be loaded.
        DataError: A prompt that it cannot read; it names the row.
    """
    model, size = _load(name, options), data.batch_size or BATCH_SIZE
    repeated = [prompt for prompt in asked for _ in range(best_of)]
    with naming_rows(prompts, lambda index: index // best_of):
        tokens = generate_tokens(model, tokenizer, repeated, decoding, batch_size=size, show_progress=True)
    completions = [tokenizer.decode(completion, skip_special_tokens=True) for _, completion in tokens]
    known = (tokenizer.get_vocab(), end_tokens(model, tokenizer))
    if best_of > 1:
        best = best_answers(RewardModel.from_pretrained(options.best_of_model), asked, completions)
        return Written([completions[i] for i in best], [tokens[i] for i in best], [], *known)
    written = Written(completions, tokens, [], *known)
    if decoding.whole_distribution:
        written.logps = completion_logps(model, tokens, batch_size=PASS_SIZE)
        if isinstance(model, PeftModel) and not options.reference:
            with model.disable_adapter():
                written.ref_logps = completion_logps(model, tokens, batch_size=PASS_SIZE)
            written.reference = BASE
    return written


def best_answers(reward_model: RewardModel, asked: Sequence[Text], completions: Sequence[str]) -> list[int]:
    """Return the number of the best completion of each prompt, of those that stand together.

    Args:
        reward_model: Who chooses.
        asked: The prompts, (N,).
        completions: Equally many for each prompt, (N * n,).
    """
    count = len(completions) // len(asked)
    scores = reward_model([prompt for prompt in asked for _ in range(count)], list(completions))
    groups = range(0, len(completions), count)
    return [max(range(first, first + count), key=scores.__getitem__) for first in groups]


def measure_references(
    written: Sequence[Written], names: Sequence[str], decoding: Decoding, options: PolicyOptions
) -> list[str]:
    """Measure answers under the reference, where they were not under an adapter's base; return what there is to say.

    The reference of both policies is `options.reference`; without one, that of the first is the other policy.

    Raises:
        ArgumentError: `options.reference` has other tokens than a policy, or cannot be loaded.
    """
    reference = options.reference or options.other_policy
    if reference is None or not decoding.whole_distribution or options.best_of:
        return []  # the best of several answers is drawn from another distribution than the policy's
    measured = 2 if options.reference else 1
    vocabulary, notes, waiting = load_policy_tokenizer(reference).get_vocab(), [], []
    for name, one in [*zip(names, written, strict=True)][:measured]:
        if one.ref_logps is not None or name == reference:
            continue
        if one.vocabulary == vocabulary:
            waiting.append(one)
        elif options.reference:
            raise ArgumentError(f"--reference {reference} has other tokens than {name}: name the model it began as.")
        else:
            notes.append(f"The KL of {name} from {reference} cannot be measured: they have different tokens.")
    if waiting:
        model = _load(reference, options)
        for one in waiting:
            one.ref_logps, one.reference = completion_logps(model, one.tokens, batch_size=PASS_SIZE), reference
    return notes


def _load(name: str, options: PolicyOptions) -> PreTrainedModel | PeftModel:
    """Load a policy where the last one made room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return load_policy(name, dtype=options.dtype, load_in_8bit=options.load_in_8bit, load_in_4bit=options.load_in_4bit)[
        0
    ]


@contextmanager
def naming_rows(prompts: EvaluationPrompts, row_of: Callable[[int], int], what: str = "") -> Iterator[None]:
    """Name the row of a prompt that cannot be read.

    Args:
        prompts: Where they are from.
        row_of: The number of a prompt by its place among the texts.
        what: What of the prompt cannot be read, as the beginning of the message.

    Raises:
        DataError: In place of an `InputError` that names the place.
    """
    try:
        yield
    except InputError as error:
        if error.place.index is None:
            raise
        place = {"source": prompts.source, "row": prompts.numbers[row_of(error.place.index)], "column": "prompt"}
        raise DataError(f"{what}{error.problem}", "", **place) from error
