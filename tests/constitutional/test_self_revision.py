"""Self-revision: which conversation follows from which text, with a scripted model and with the real small one."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_ext.constitutional import self_revision
from rlhf_ext.constitutional.ai_feedback import Preference
from rlhf_ext.constitutional.constitution import Constitution, Principle, Templates
from rlhf_ext.constitutional.self_revision import Reviser, RevisionSettings
from rlhf_ext.formatting import InputError, Place
from rlhf_ext.generation import encode_prompt

PRINCIPLES = tuple(Principle(name, f"{name} critique", f"{name} revision", f"{name}?") for name in ("one", "two"))
CONSTITUTION = Constitution(PRINCIPLES, Templates(revision="{request}"))
PROMPTS = [[{"role": "user", "content": text}] for text in ("How do I cook rice?", "Can you help me plant tomatoes?")]


def settings(**changes):
    options = {"rounds": 3, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "batch_size": 2, "seed": 0}
    return RevisionSettings(**(options | changes))


@pytest.fixture
def scripted(monkeypatch, tokenizer):
    """A reviser whose model says the number of its call and of the prompt; and what it was asked."""
    asked = []

    def generate(model, tokenizer, conversations, decoding, **options):
        asked.append((conversations, decoding.seed, options))
        return [f"{len(asked)}{'ab'[row]}" for row in range(len(conversations))]

    monkeypatch.setattr(self_revision, "generate", generate)
    monkeypatch.setattr(self_revision, "compare", lambda *a, **k: [Preference(0.75, 0.1, True)] * len(a[3]))
    return Reviser(None, tokenizer, CONSTITUTION, settings()), asked


def contents(conversation):
    return [message["content"] for message in conversation]


def test_each_round_revises_the_revision_before_it_under_another_principle(scripted):
    reviser, asked = scripted
    steps = []
    transcripts = reviser.transcribe(PROMPTS, 0, steps.append)
    rounds = [name for number in (1, 2, 3) for name in (f"critique {number}", f"revision {number}")]
    assert steps == ["answer 1", "answer 2", *rounds, "feedback"]
    assert [conversations for conversations, _, _ in asked[:2]] == [PROMPTS, PROMPTS]
    for row, transcript in enumerate(transcripts):
        letter = "ab"[row]
        assert transcript["prompt"] == PROMPTS[row]
        assert transcript["answers"] == [f"1{letter}", f"2{letter}"]
        names = [entry["principle"] for entry in transcript["rounds"]]
        assert {names[0], names[1]} == {"one", "two"} and names[2] == names[0]
        answer = f"1{letter}"
        for number, entry in enumerate(transcript["rounds"]):
            call = 2 + 2 * number
            critique, revision = f"{call + 1}{letter}", f"{call + 2}{letter}"
            request = [PROMPTS[row][0]["content"], answer, f"{entry['principle']} critique"]
            assert contents(asked[call][0][row]) == request
            assert contents(asked[call + 1][0][row]) == [*request, critique, f"{entry['principle']} revision"]
            assert (entry["critique"], entry["revision"]) == (critique, revision)
            answer = revision
    assert len({seed for _, seed, _ in asked}) == len(asked) == 8


def test_empty_revision_leaves_the_answer_and_equal_answers_are_not_compared(scripted, monkeypatch):
    reviser, _ = scripted
    monkeypatch.setattr(
        self_revision, "generate", lambda m, t, texts, d, **k: ["same" if len(texts[0]) == 1 else " "] * len(texts)
    )
    for transcript in reviser.transcribe(PROMPTS, 0):
        assert [entry["revision"] for entry in transcript["rounds"]] == ["same"] * 3
        assert transcript["feedback"] is None and transcript["revision_feedback"] is None


def test_draws_follow_from_the_seed_and_the_chunk(scripted):
    reviser, asked = scripted

    def seeds(seed, chunk):
        asked.clear()
        Reviser(None, reviser.tokenizer, CONSTITUTION, settings(seed=seed)).transcribe(PROMPTS, chunk)
        return [seed for _, seed, _ in asked]

    assert seeds(0, 1) == seeds(0, 1)
    assert not set(seeds(0, 1)) & {*seeds(0, 2), *seeds(1, 1)}


@pytest.fixture(scope="module")
def model(model_name):
    return AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)


def test_real_model(model, tokenizer):
    reviser = Reviser(model, tokenizer, CONSTITUTION, settings(rounds=1))
    transcripts = reviser.transcribe(PROMPTS, 0)
    assert transcripts == reviser.transcribe(PROMPTS, 0) != reviser.transcribe(PROMPTS, 1)
    assert [transcript["answers"][0] for transcript in transcripts] == reviser.answer(PROMPTS, 0)
    for transcript in transcripts:
        assert 0 < transcript["feedback"]["probability"] < 1
        assert transcript["feedback"]["principle"] in ("one", "two")


def test_lengths_are_those_of_the_longest_conversations(tokenizer, monkeypatch):
    """With texts of just `max_new_tokens` nothing that the model reads and writes is longer, and something as long."""
    size, asked, compared = 20, [], []
    words = [tokenizer.decode(tokenizer.encode(word, add_special_tokens=False) * size) for word in (" rice", " tea")]
    assert [len(tokenizer.encode(text, add_special_tokens=False)) for text in words] == [size, size]

    def generate(model, tokenizer, conversations, decoding, **options):
        asked.append([len(encode_prompt(tokenizer, row, Place())) + size for row in conversations])
        return [words[len(asked) % 2]] * len(conversations)

    def compare(model, tokenizer, constitution, pairs, **options):
        conversations = [constitution.comparison(*pair) for pair in pairs]
        compared.append([len(encode_prompt(tokenizer, row, Place())) + 1 for row in conversations])
        return [Preference(0.75, 0.1, True)] * len(pairs)

    monkeypatch.setattr(self_revision, "generate", generate)
    monkeypatch.setattr(self_revision, "compare", compare)
    long = Principle("long", "Could this hurt somebody?", "Write it so that it cannot.", "Which is less harmful?")
    for templates in (CONSTITUTION.templates, Templates(critique="{request} {conversation}")):
        asked.clear(), compared.clear()
        constitution = Constitution((PRINCIPLES[0], long), templates)
        reviser = Reviser(None, tokenizer, constitution, settings(max_new_tokens=size))
        monkeypatch.setattr(self_revision.random.Random, "choice", lambda self, principles: principles[-1])
        reviser.transcribe(PROMPTS, 0)
        found = [[tokens + texts * size for tokens, texts in row] for row in reviser.lengths(PROMPTS)]
        for row, (revision, comparison) in enumerate(found):
            assert 0 <= revision - max(lengths[row] for lengths in asked) <= 4  # of texts that are not written yet
            assert 0 <= comparison - max(lengths[row] for lengths in compared) <= 4


def test_what_the_model_cannot_read_is_refused_with_its_place(model, tokenizer):
    long = [{"role": "user", "content": "How do I cook rice? " * 80}]  # fits for the answer, and not for what follows
    with pytest.raises(InputError, match="more than the 512 that the model can read") as caught:
        Reviser(model, tokenizer, CONSTITUTION, settings(max_new_tokens=20)).transcribe([PROMPTS[0], long], 0)
    assert caught.value.place.index == 1
