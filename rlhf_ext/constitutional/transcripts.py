"""Transcripts of self-revision on disk, whole after any interruption, and the training data made from them."""

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..arguments import ArgumentError
from ..context import context_length
from ..data_checks import DataError
from ..formatting import InputError
from ..output_files import json_line, write_whole
from .constitution import Conversation
from .self_revision import Reviser, Transcript

SOURCES = ("revision", "feedback")
SETTINGS = "settings.json"
TRANSCRIPTS = "transcripts.jsonl"


@dataclass(frozen=True)
class Prompts:
    """What is asked of a model.

    Attributes:
        messages: A list of messages each.
        numbers: Their rows in the source, for error messages.
        source: Where they come from.
    """

    messages: Sequence[Conversation]
    numbers: Sequence[int]
    source: str


def check_room_for_transcripts(reviser: Reviser, prompts: Prompts) -> None:
    """Check that the model can read all that is said about each prompt, even if every text is as long as it may be.

    What it cannot read would end the run in some later chunk, where what mends it would make another run of it.

    Raises:
        DataError: It cannot, or its chat template refuses a prompt; the message names the row, the worst one.
    """
    with _rows_named(prompts):
        lengths = reviser.lengths(prompts.messages)
    context, longest = context_length(reviser.model), reviser.settings.max_new_tokens
    if context is None:
        return
    rooms = [min((context - tokens) // texts for tokens, texts in row) for row in lengths]  # for each text
    worst = min(range(len(rooms)), key=rooms.__getitem__)
    if rooms[worst] >= longest:
        return
    most = max(tokens + texts * longest for tokens, texts in lengths[worst])
    short = sum(room < longest for room in rooms)
    problem = f"what is said about it can have {most} tokens, with max_new_tokens={longest} for each answer and "
    problem += f"critique, and the model can read {context} (too long: {short} of {len(rooms)} prompts)."
    lower = f", or lower --max_new_tokens to {rooms[worst]}" if rooms[worst] > 0 else ""
    fix = f"Shorten or remove such prompts{lower}."
    raise DataError(problem, fix, source=prompts.source, row=prompts.numbers[worst], column="prompt")


def transcribe_all(reviser: Reviser, prompts: Prompts, folder: Path, done: Sequence[Transcript]) -> list[Transcript]:
    """Return the transcripts of all prompts; those that are not `done` are made, and saved chunk by chunk.

    Raises:
        DataError: A conversation about a prompt is longer than the model can read; it names the row.
    """
    transcripts, size, total = list(done), reviser.settings.batch_size, len(prompts.messages)
    with tqdm(total=total, initial=len(done), desc="Revising", unit="prompt", leave=False) as progress:
        for start in range(len(done), total, size):
            chunk = prompts.messages[start : start + size]
            with _rows_named(prompts, start, "That makes it another run, so choose another --output_dir, too."):
                new = reviser.transcribe(chunk, start // size, progress.set_postfix_str)
            append_transcripts(folder, new)
            transcripts += new
            progress.update(len(chunk))
    return transcripts


@contextmanager
def _rows_named(prompts: Prompts, start: int = 0, fix: str = "") -> Iterator[None]:
    """Turn errors about a prompt into ones that name its row, where the first prompt is the one at `start`."""
    try:
        yield
    except InputError as error:
        row = None if error.place.index is None else prompts.numbers[start + error.place.index]
        raise DataError(error.problem, fix, source=prompts.source, row=row, column="prompt") from error


def open_transcripts(folder: Path, settings: dict[str, Any], *, chunk_size: int, total: int) -> list[Transcript]:
    """Return the transcripts of the chunks that an earlier run finished in `folder`; none in a new folder.

    What a killed run left of an unfinished chunk is removed.

    Args:
        folder: Where the run writes. Its settings are checked where `keep_settings` has kept some.
        settings: All that the transcripts follow from, as JSON can hold it.
        chunk_size: Prompts in a chunk.
        total: Prompts in all; the last chunk may be smaller.

    Raises:
        ArgumentError: The folder holds a run with other settings, or more transcripts than there are prompts.
    """
    path = folder / SETTINGS
    if path.is_file():
        settings = json.loads(json.dumps(settings))  # tuples become lists, as they are in the file
        _check_settings(json.loads(path.read_text(encoding="utf-8")), settings, folder)
    transcripts = folder / TRANSCRIPTS
    if not transcripts.is_file():
        return []
    lines = transcripts.read_bytes().splitlines(keepends=True)
    complete = len(lines) if not lines or lines[-1].endswith(b"\n") else len(lines) - 1
    if complete > total:
        problem = f"--output_dir {folder}: {TRANSCRIPTS} has {complete} lines for {total} prompts"
        raise ArgumentError(f"{problem}, so something else wrote there too. Remove it, or choose another folder.")
    kept = lines[: complete if complete == total else complete - complete % chunk_size]
    os.truncate(transcripts, sum(map(len, kept)))
    return [json.loads(line) for line in kept]


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run: once all is checked, as from then on the folder takes no others."""
    write_whole(folder / SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def append_transcripts(folder: Path, transcripts: Iterable[Transcript]) -> None:
    """Append the transcripts of a finished chunk, and return when they are on the disk."""
    with open(folder / TRANSCRIPTS, "ab") as file:
        file.write("".join(map(json_line, transcripts)).encode())
        file.flush()
        os.fsync(file.fileno())


def fingerprint(value: Any) -> str:
    """Return a short hash of what a row may hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def sft_rows(transcripts: Iterable[Transcript]) -> list[dict[str, Any]]:
    """Return demonstrations: each prompt with its last revision, in TRL's prompt-completion format."""
    finals = ((transcript["prompt"], _last(transcript)) for transcript in transcripts)
    return [{"prompt": prompt, "completion": _assistant(text)} for prompt, text in finals if text.strip()]


def preference_rows(transcripts: Iterable[Transcript], *, min_confidence: float = 0.0) -> list[dict[str, Any]]:
    """Return preference pairs in TRL's format, with the columns `confidence` and `source`.

    Source "revision": the last revision is chosen over the first answer. Source "feedback": that of the two sampled
    answers is chosen which the model prefers. Confidence is the probability that the model's own comparison gives to
    the chosen one: at least 0.5 for feedback, while a revision, which is chosen for being one, may have less. Left out
    are feedback below `min_confidence`, equal answers and empty ones.
    """
    rows = []
    for transcript in transcripts:
        first, second = transcript["answers"]
        pairs = []
        if comparison := transcript["revision_feedback"]:
            pairs.append(("revision", _last(transcript), first, comparison["probability"]))
        if comparison := transcript["feedback"]:
            probability = comparison["probability"]
            better, worse = (first, second) if probability >= 0.5 else (second, first)
            pairs.append(("feedback", better, worse, max(probability, 1 - probability)))
        rows += [
            {
                "prompt": transcript["prompt"],
                "chosen": _assistant(chosen),
                "rejected": _assistant(rejected),
                "confidence": confidence,
                "source": source,
            }
            for source, chosen, rejected, confidence in pairs
            if chosen.strip() and rejected.strip() and (source == "revision" or confidence >= min_confidence)
        ]
    return rows


def summary(transcripts: Sequence[Transcript]) -> dict[str, float]:
    """Return what the transcripts look like as a whole.

    Returns:
        mean_change (part of the words that differ between first answer and last revision), unchanged_revisions (part of
        the prompts), and over all comparisons feedback_agreement (part with one winner in both orders),
        position_bias (log-odds in favour of A, mean) and revision_preferred (part of the revisions that differ).
    """
    changes = [_change(transcript["answers"][0], _last(transcript)) for transcript in transcripts]
    revisions = [t["revision_feedback"] for t in transcripts if t["revision_feedback"]]
    comparisons = revisions + [t["feedback"] for t in transcripts if t["feedback"]]
    measures = {
        "mean_change": changes,
        "unchanged_revisions": [t["answers"][0] == _last(t) for t in transcripts],
        "feedback_agreement": [comparison["agrees"] for comparison in comparisons],
        "position_bias": [comparison["position_bias"] for comparison in comparisons],
        "revision_preferred": [comparison["probability"] > 0.5 for comparison in revisions],
    }
    return {name: sum(values) / len(values) for name, values in measures.items() if values}


def _check_settings(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    for name in wanted:
        if found.get(name) != wanted[name]:
            long = isinstance(wanted[name], dict)
            change = "changed" if long else f"was {found.get(name)!r} and is {wanted[name]!r} now"
            raise ArgumentError(
                f"--output_dir {folder} holds a run with other settings: {name} {change}. Start it with the "
                "same settings to go on, or choose another folder."
            )


def _change(before: str, after: str) -> float:
    return 1 - difflib.SequenceMatcher(None, before.split(), after.split(), autojunk=False).ratio()


def _last(transcript: Transcript) -> str:
    return transcript["rounds"][-1]["revision"]


def _assistant(text: str) -> Conversation:
    return [{"role": "assistant", "content": text}]
