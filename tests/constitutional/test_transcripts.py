"""Transcripts on disk: whole after any interruption; the data made from them, against rows worked out by hand."""

import json
from datetime import date

import pytest

from rlhf_ext.arguments import ArgumentError
from rlhf_ext.constitutional.ai_feedback import ChoiceError
from rlhf_ext.constitutional.self_revision import RevisionSettings
from rlhf_ext.constitutional.transcripts import (
    Prompts,
    append_transcripts,
    fingerprint,
    keep_settings,
    open_transcripts,
    preference_rows,
    sft_rows,
    summary,
    transcribe_all,
)
from rlhf_ext.data_checks import DataError, check_preference_rows
from rlhf_ext.formatting import InputError, Place
from rlhf_ext.output_files import json_line, read_jsonl, write_jsonl

PROMPT = [{"role": "user", "content": "How?"}]
SETTINGS = {"seed": 0, "principles": {"names": ("harmless", "kind")}}


def judged(probability, bias=0.0, agrees=True):
    return {"principle": "p", "probability": probability, "position_bias": bias, "agrees": agrees}


def transcript(first, second, last, feedback, revision_feedback):
    rounds = [{"principle": "p", "critique": "c", "revision": text} for text in ("draft", last)]
    pair = {"feedback": feedback, "revision_feedback": revision_feedback}
    return {"prompt": PROMPT, "answers": [first, second], "rounds": rounds, **pair}


def says(text):
    return [{"role": "assistant", "content": text}]


TRANSCRIPTS = [
    transcript("a b c d", "x", "a b c e", judged(0.2, 0.5), judged(0.9, 0.1)),
    transcript("a", "y", "a", judged(0.7, -0.2, False), None),
    transcript("", "z", "b", judged(0.6, 0.0), judged(0.4, 0.0)),
]


def test_rows_by_hand():
    assert sft_rows(TRANSCRIPTS) == [{"prompt": PROMPT, "completion": says(text)} for text in ("a b c e", "a", "b")]
    rows = [("a b c e", "a b c d", 0.9, "revision"), ("x", "a b c d", 0.8, "feedback"), ("a", "y", 0.7, "feedback")]
    keys = ("chosen", "rejected", "confidence", "source")
    expected = [
        {"prompt": PROMPT, **dict(zip(keys, (says(chosen), says(rejected), confidence, source), strict=True))}
        for chosen, rejected, confidence, source in rows
    ]
    found = preference_rows(TRANSCRIPTS)
    assert [row | {"confidence": round(row["confidence"], 9)} for row in found] == expected
    unsure = transcript("a", "a", "b", None, judged(0.3))  # a revision is chosen all the same
    assert [row["confidence"] for row in preference_rows([*TRANSCRIPTS, unsure], min_confidence=0.75)] == [
        0.9,
        0.8,
        0.3,
    ]
    check_preference_rows(enumerate(found, start=1), ["confidence"], source="preferences.jsonl")


def test_summary_by_hand():
    # Words: one of four replaced on either side, none, and all.
    assert summary(TRANSCRIPTS) == pytest.approx(
        {
            "mean_change": (0.25 + 0 + 1) / 3,
            "unchanged_revisions": 1 / 3,
            "feedback_agreement": 4 / 5,
            "position_bias": (0.5 + 0.1 - 0.2) / 5,
            "revision_preferred": 1 / 2,
        }
    )
    assert summary(TRANSCRIPTS[1:2])["feedback_agreement"] == 0 and "revision_preferred" not in summary(
        TRANSCRIPTS[1:2]
    )


def test_folder_goes_on_after_the_last_whole_chunk(tmp_path):
    folder = tmp_path / "run"
    rows = [{"prompt": f"\u2028 {number}\n"} for number in range(5)]  # with what some take for the end of a line
    options = {"chunk_size": 2, "total": 5}
    folder.mkdir()
    assert open_transcripts(folder, SETTINGS, **options) == []
    append_transcripts(folder, rows[:2])
    append_transcripts(folder, rows[2:4])
    assert open_transcripts(folder, SETTINGS, **options) == rows[:4]
    whole = (folder / "transcripts.jsonl").read_bytes()
    append_transcripts(folder, rows[4:])
    assert open_transcripts(folder, SETTINGS, **options) == rows
    everything = (folder / "transcripts.jsonl").read_bytes()
    for cut in range(len(everything)):  # killed while writing the byte after
        (folder / "transcripts.jsonl").write_bytes(everything[:cut])
        found = open_transcripts(folder, SETTINGS, **options)
        assert found == rows[: everything[:cut].count(b"\n") // 2 * 2]
        assert (folder / "transcripts.jsonl").read_bytes() == whole[: len("".join(map(json_line, found)).encode())]


def test_more_transcripts_than_prompts_are_refused(tmp_path):
    open_transcripts(tmp_path, SETTINGS, chunk_size=2, total=3)
    append_transcripts(tmp_path, [{}] * 4)
    with pytest.raises(ArgumentError, match=r"transcripts.jsonl has 4 lines for 3 prompts, so something else wrote"):
        open_transcripts(tmp_path, SETTINGS, chunk_size=2, total=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 1}, "seed was 0 and is 1 now"), ({"principles": {}}, "principles changed. Start it")],
)
def test_other_settings_are_refused(change, message, tmp_path):
    assert open_transcripts(tmp_path, SETTINGS | change, chunk_size=1, total=1) == []  # nothing is settled yet
    keep_settings(tmp_path, SETTINGS)
    assert open_transcripts(tmp_path, SETTINGS, chunk_size=1, total=1) == []
    with pytest.raises(ArgumentError, match=f"holds a run with other settings: {message}"):
        open_transcripts(tmp_path, SETTINGS | change, chunk_size=1, total=1)


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


class Reviser:
    """Counts the chunks; fails in the one that `fails` names."""

    settings = RevisionSettings(rounds=1, max_new_tokens=1, temperature=1, top_p=1, batch_size=2, seed=0)

    def __init__(self, error=None):
        self.error, self.chunks = error, []

    def transcribe(self, prompts, chunk, on_step):
        self.chunks.append(chunk)
        if self.error and chunk == 1:
            raise self.error
        return [{"prompt": prompt, "chunk": chunk} for prompt in prompts]


def test_interrupted_run_makes_only_what_is_missing(tmp_path):
    prompts = Prompts([[text] for text in "abcde"], [1, 3, 5, 7, 9], "prompts.jsonl")

    def run(reviser):
        done = open_transcripts(tmp_path, SETTINGS, chunk_size=2, total=5)
        return transcribe_all(reviser, prompts, tmp_path, done)

    with pytest.raises(ChoiceError):
        run(Reviser(ChoiceError()))
    resumed = Reviser()
    found = run(resumed)
    assert resumed.chunks == [1, 2]
    assert [(row["prompt"], row["chunk"]) for row in found] == [
        (["a"], 0), (["b"], 0), (["c"], 1), (["d"], 1), (["e"], 2)
    ]  # fmt: skip
    assert [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()] == found
    finished = Reviser()
    assert run(finished) == found and finished.chunks == []


def test_bad_prompt_is_named_by_its_row(tmp_path):
    prompts = Prompts([[text] for text in "abcde"], [1, 3, 5, 7, 9], "prompts.jsonl")
    with pytest.raises(
        DataError, match=r"^prompts.jsonl, row 7, column 'prompt': too long. .* choose another --output_dir"
    ):
        transcribe_all(Reviser(InputError("too long.", Place("prompts", 1))), prompts, tmp_path, [])


def test_prompts_may_hold_what_json_cannot(tmp_path):
    """Messages of .parquet files may have a date, for example."""
    prompts = [[{"role": "user", "content": "Hi", "at": date(2024, 2, day)}] for day in (1, 2)]
    assert fingerprint(prompts[0]) != fingerprint(prompts[1])
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    assert [prompt["at"] for (prompt,) in read_jsonl(tmp_path / "prompts.jsonl")] == ["2024-02-01", "2024-02-02"]
