"""AI feedback: the preference formula by hand, position bias cancels, log-probabilities as in one plain pass."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhf_ext.constitutional.ai_feedback import ChoiceError, ai_preference, choice_logps, choice_tokens, compare
from rlhf_ext.constitutional.constitution import Constitution, Principle, Templates
from rlhf_ext.formatting import InputError

LOGPS = st.floats(-30, 0)
PAIRS = st.tuples(LOGPS, LOGPS)


@pytest.fixture(scope="module")
def model(model_name):
    return AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)


def test_by_hand():
    # d1 = log 4, d2 = -log 2, so the odds are sqrt(4 * 2) and the bias is (log 4 - log 2) / 2.
    found = ai_preference((math.log(0.8), math.log(0.2)), (math.log(0.3), math.log(0.6)))
    assert found.probability == pytest.approx(8**0.5 / (1 + 8**0.5))
    assert found.position_bias == pytest.approx(math.log(2) / 2)
    assert found.agrees


@pytest.mark.parametrize(
    ("straight", "swapped", "agrees"),
    [((-1, -3), (-3, -1), True), ((-3, -1), (-1, -3), True), ((-1, -3), (-1, -2), False), ((-1, -1), (-3, -1), False)],
)
def test_agreement_of_the_two_orders(straight, swapped, agrees):
    assert ai_preference(straight, swapped).agrees == agrees


@given(PAIRS, PAIRS, st.floats(-20, 20))
def test_a_taste_for_one_place_cancels(straight, swapped, bias):
    plain = ai_preference(straight, swapped)
    biased = ai_preference((straight[0] + bias, straight[1]), (swapped[0] + bias, swapped[1]))
    assert biased.probability == pytest.approx(plain.probability, abs=1e-9)
    assert biased.position_bias == pytest.approx(plain.position_bias + bias, abs=1e-9)


@given(PAIRS, PAIRS)
def test_exchanging_the_answers_gives_the_complement(straight, swapped):
    one, other = ai_preference(straight, swapped), ai_preference(swapped, straight)
    assert one.probability + other.probability == pytest.approx(1)
    assert (one.agrees, one.position_bias) == (other.agrees, pytest.approx(other.position_bias))


def test_extreme_log_probabilities_do_not_overflow():
    assert ai_preference((0.0, -5000.0), (-5000.0, 0.0)).probability == 1
    assert ai_preference((-5000.0, 0.0), (0.0, -5000.0)).probability == 0


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_log_probabilities_are_those_of_one_plain_pass(batch_size, model, tokenizer):
    texts = ["How do I cook rice?", "Hi!", "Can you help me plant tomatoes? " * 4]
    conversations = [[{"role": "user", "content": text}] for text in texts]
    found = choice_logps(model, tokenizer, conversations, batch_size=batch_size)
    for row, conversation in zip(found, conversations, strict=True):
        ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            probabilities = model(ids).logits[0, -1].softmax(-1)
        for logp, choice in zip(row, "AB", strict=True):
            tokens = [tokenizer.convert_tokens_to_ids(token) for token in (choice, f"Ġ{choice}")]
            assert logp.exp() == pytest.approx(float(probabilities[tokens].sum()), rel=1e-3)


def test_both_orders_are_asked_for(model, tokenizer):
    """The same two answers exchanged: the probability is the complement, the bias the same."""
    principle = Principle("p", "c", "r", "Which?")
    constitution = Constitution((principle,), Templates(comparison="{conversation}{question}{response_a}|{response_b}"))
    prompt = [{"role": "user", "content": "How do I cook rice?"}]
    pairs = [(prompt, "Rinse the rice.", "No.", principle), (prompt, "No.", "Rinse the rice.", principle)]
    one, other = compare(model, tokenizer, constitution, pairs, batch_size=4)
    assert one.probability + other.probability == pytest.approx(1, abs=1e-5)
    assert one.position_bias == pytest.approx(other.position_bias, abs=1e-4)
    straight, swapped = (
        choice_logps(model, tokenizer, [constitution.comparison(*pair)], batch_size=1)[0].tolist() for pair in pairs
    )
    assert one.probability == pytest.approx(ai_preference(straight, swapped).probability, abs=1e-5)
    assert abs(one.probability - 0.5) > 1e-3


def test_choices_with_one_first_token_are_refused(tokenizer):
    expected = [sorted(tokenizer.convert_tokens_to_ids([choice, f"Ġ{choice}"])) for choice in "AB"]
    assert choice_tokens(tokenizer) == ([], expected)
    with pytest.raises(ChoiceError, match="spells the choice 'rice' with the same first token"):
        choice_tokens(tokenizer, ("rice", "rice bowl"))


def test_digits_that_begin_with_a_token_for_the_space(model):
    """As Llama 2 and Mistral spell them: "▁" and "1". The digit's probability is that after the space."""
    tokens = ["<unk>", "▁", *"12345", "▁A", "▁B", "x", "A", "B"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    spelled = Tokenizer(models.BPE(vocabulary, [("▁", "A"), ("▁", "B")], unk_token="<unk>"))
    spelled.pre_tokenizer = pre_tokenizers.Metaspace()
    llama = PreTrainedTokenizerFast(tokenizer_object=spelled)
    assert choice_tokens(llama, "12345") == ([1], [[2], [3], [4], [5], [6]])
    assert choice_tokens(llama, "AB") == ([], [[7], [8]])
    found = choice_logps(model, llama, ["x"], batch_size=1, choices="12345")
    with torch.no_grad():
        expected = model(torch.tensor([[*llama("x")["input_ids"], 1]])).logits[0, -1].log_softmax(-1)[2:7]
    assert torch.allclose(found[0], expected, atol=1e-4)


def test_comparison_longer_than_the_context_is_refused(model, tokenizer):
    conversations = [[{"role": "user", "content": text}] for text in ("Hi!", "How do I cook rice? " * 100)]
    with pytest.raises(InputError, match=r"row 2 .*: it has \d+ tokens, and with max_new_tokens=1 more than the 512"):
        choice_logps(model, tokenizer, conversations, batch_size=2)
