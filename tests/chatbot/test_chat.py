"""`rlhf-ext chat` without a run: who answers, what is remembered, and what happens when there is no more room."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_ext.arguments import ArgumentError
from rlhf_ext.chatbot.chat import Chat, Side, load_chat, talk
from rlhf_ext.formatting import InputError
from rlhf_ext.generation import Decoding, generate

QUESTION = {"role": "user", "content": "How do I cook rice?"}


class Longest:
    """Scores an answer by its length, and keeps what it was asked about."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, completions):
        self.asked += prompts
        return [float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def model(model_name):
    return AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()


@pytest.fixture
def chat(model, tokenizer):
    sides = [Side("base", model), Side("trained", model, best_of=3)]
    return Chat(sides, tokenizer, Longest(), Decoding(max_new_tokens=24, seed=4))


def test_best_of_several_answers_is_given_and_remembered(chat, model, tokenizer):
    (base, first, _), (_, best, score) = chat.reply(QUESTION["content"])
    drawn = [text.strip() for text in generate(model, tokenizer, [[QUESTION]] * 3, Decoding(seed=4, max_new_tokens=24))]
    assert best == max(drawn, key=len) and score == len(best) and len({*drawn}) == 3
    assert (
        base == "base"
        and first == generate(model, tokenizer, [[QUESTION]], Decoding(seed=4, max_new_tokens=24))[0].strip()
    )
    assert chat.reward_model.asked == [[QUESTION]] * 4
    assert chat.sides[1].messages == [QUESTION, {"role": "assistant", "content": best}]
    again = chat.reply(QUESTION["content"])
    assert chat.reward_model.asked[4] == [QUESTION, {"role": "assistant", "content": first}, QUESTION]
    assert again[0][1] != first  # another seed


def test_conversation_without_room_is_said_and_a_new_one_goes_on(chat, capsys):
    talk(chat, [QUESTION["content"], "How do I cook rice? " * 100, "Go on.", "/new", "Hi [b]!"])
    said = " ".join(capsys.readouterr().out.split())
    assert "This cannot be answered: it has" in said and "/new begins a new conversation" in said
    assert "Go on." in said and "Hi [b]!" in said
    assert chat.sides[0].messages[0]["content"] == "Hi [b]!"


def test_no_side_remembers_what_one_of_them_could_not_read(chat):
    chat.sides[1].messages = [QUESTION, {"role": "assistant", "content": "rice " * 500}]
    with pytest.raises(InputError, match="more than the 512 that the model can read"):
        chat.reply("And then?")
    assert chat.sides[0].messages == [] and len(chat.sides[1].messages) == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, r"holds no run of recipes/chatbot_rlhf.py: there is no pipeline.json"),
        ("{", r"pipeline.json is damaged"),
        ('{"settings": {"algorithm": "dpo"}, "phases": {"reward": {}}}', r"the phase dpo is not finished"),
    ],
)
def test_folders_without_a_finished_run(tmp_path, state, message):
    if state is not None:
        (tmp_path / "pipeline.json").write_text(state)
    with pytest.raises(ArgumentError, match=message):
        load_chat(str(tmp_path), Decoding())
