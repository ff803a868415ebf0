"""Sampling completions: against `model.generate` itself and against a loop over tokens; nothing else changes."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ext.context import context_length
from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.errors import NotFiniteError
from rlhf_ext.formatting import InputError
from rlhf_ext.generation import Decoding, generate, generate_tokens

GREEDY = Decoding(seed=0, temperature=0.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def model(model_name):
    return AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts():
    return prompt_dataset("test", size=6)["prompt"][:]


@torch.no_grad()
def likeliest(model, ids, count):
    """The likeliest tokens one after the other, without batch, padding and cache."""
    written = []
    for _ in range(count):
        written.append(model(torch.tensor([ids + written])).logits[0, -1].argmax().item())
        if written[-1] == model.config.eos_token_id:
            break
    return written


def test_greedy_completions_are_those_of_a_loop_over_tokens(model, tokenizer, prompts):
    completions = generate(model, tokenizer, prompts[:3], GREEDY, batch_size=2)
    for prompt, completion in zip(prompts, completions, strict=False):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert completion == tokenizer.decode(likeliest(model, ids, 12), skip_special_tokens=True)


def test_text_is_tokenized_as_it_is(model, tokenizer):
    for text in ("How do I boil", "<|begin|><|user|>Hi<|end|><|assistant|>"):
        expected = likeliest(model, tokenizer(text)["input_ids"], 12)
        assert generate(model, tokenizer, [text], GREEDY) == [tokenizer.decode(expected, skip_special_tokens=True)]


def test_texts_and_messages_in_one_batch(model, tokenizer, prompts):
    mixed = [prompts[0], "How do I boil"]
    assert generate(model, tokenizer, mixed, GREEDY) == [
        *generate(model, tokenizer, mixed[:1], GREEDY),
        *generate(model, tokenizer, mixed[1:], GREEDY),
    ]


def test_an_unfinished_turn_of_the_assistant_is_continued(model, tokenizer, prompts):
    begun = [*prompts[0], {"role": "assistant", "content": "First, fill"}]
    ids = tokenizer.apply_chat_template(begun, continue_final_message=True, return_dict=True)["input_ids"]
    expected = tokenizer.decode(likeliest(model, ids, 12), skip_special_tokens=True)
    assert generate(model, tokenizer, [begun], GREEDY) == [expected]


def test_the_whole_distribution_is_sampled(model, tokenizer):
    """First tokens of 2,000 samples against the model's own probabilities: no top-k, no top-p, no penalty."""
    text = "How do I"
    with torch.no_grad():
        expected = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].softmax(0)
    decoding = Decoding(max_new_tokens=1, seed=3)
    tokens = generate_tokens(model, tokenizer, [text] * 2000, decoding, batch_size=2000)
    counts = torch.bincount(torch.cat([completion for _, completion in tokens]), minlength=len(expected))
    often = expected > 5 / 2000  # where the chi-squared test holds; the others are taken together
    observed, wanted = (torch.cat([part[often], part[~often].sum()[None]]).double() for part in (counts, expected))
    assert stats.chisquare(observed, 2000 * wanted / wanted.sum()).pvalue > 0.01
    assert (counts > 0).sum() > 50  # more than top-k 50, the default of Transformers, leaves


def test_a_model_s_own_sampling_defaults_do_not_count(model, tokenizer, prompts, monkeypatch):
    expected = generate(model, tokenizer, prompts, Decoding(seed=5, max_new_tokens=8))
    own = {"top_k": 1, "top_p": 0.1, "temperature": 0.2, "repetition_penalty": 5.0, "min_p": 0.9, "min_new_tokens": 8}
    own |= {"no_repeat_ngram_size": 1, "suppress_tokens": [*range(5, 200)], "typical_p": 0.1, "num_beams": 2}
    for name, value in own.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert generate(model, tokenizer, prompts, Decoding(seed=5, max_new_tokens=8)) == expected
    assert model.generation_config.min_p == 0.9  # it is put back
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"]))  # at first it changes nothing
    try:
        assert generate(adapted, tokenizer, prompts, Decoding(seed=5, max_new_tokens=8)) == expected
    finally:
        adapted.unload()


def test_probabilities_that_are_no_numbers_are_said_to_be(model_name, tokenizer, prompts):
    """As of a model whose training diverged in its last step; in PyTorch's own words it would be a traceback."""
    diverged = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    diverged.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="The probabilities of a token are not finite: training diverged"):
        generate(diverged, tokenizer, prompts[:2], Decoding(seed=0, max_new_tokens=2))


def test_top_k_1_is_greedy(model, tokenizer, prompts):
    options = {"seed": 1, "max_new_tokens": 12}
    assert generate(model, tokenizer, prompts, Decoding(top_k=1, **options)) == generate(
        model, tokenizer, prompts, GREEDY
    )


def test_everything_is_left_as_it_was(model, tokenizer, prompts, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", "right")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other, greedy = (
            generate(model, tokenizer, prompts[:2], Decoding(seed=1, max_new_tokens=4)) for _ in range(3)
        )
    assert one == other == greedy
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state) and tokenizer.padding_side == "right"
    model.eval()


def test_head_reads_no_slice(model, tokenizer, prompts):
    """A CPU would copy the head's weights for every prompt in bfloat16."""
    seen, hooks = [], len(model.lm_head._forward_pre_hooks)
    noted = model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    generate(model, tokenizer, prompts[:3], GREEDY)
    noted.remove()
    assert seen and all(hidden.shape[:2] == (3, 1) and hidden.is_contiguous() for hidden in seen)
    assert len(model.lm_head._forward_pre_hooks) == hooks


def test_adapters_and_gradients(model_name, tokenizer, prompts):
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    plain = generate(base, tokenizer, prompts, GREEDY)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    changed = generate(adapted, tokenizer, prompts, GREEDY)
    assert changed != plain
    with adapted.disable_adapter():
        assert generate(adapted, tokenizer, prompts, GREEDY) == plain
    adapted(**tokenizer("a", return_tensors="pt")).logits.sum().backward()
    assert any(parameter.grad is not None for parameter in adapted.parameters())


def test_tokens_end_with_the_end_token_or_at_the_limit(model, tokenizer, prompts):
    decoding = Decoding(max_new_tokens=40, seed=0)
    tokens = generate_tokens(model, tokenizer, prompts, decoding)
    ends = [
        completion.tolist().index(tokenizer.eos_token_id) if tokenizer.eos_token_id in completion else None
        for _, completion in tokens
    ]
    assert any(end is not None for end in ends)
    for (_, completion), end in zip(tokens, ends, strict=True):
        assert len(completion) == (40 if end is None else end + 1)
    texts = [tokenizer.decode(completion, skip_special_tokens=True) for _, completion in tokens]
    assert texts == generate(model, tokenizer, prompts, Decoding(seed=0, max_new_tokens=40))


def test_end_token_of_the_tokenizer_counts_beside_those_of_the_model(model, model_name, tokenizer, prompts):
    """An adapter's tokenizer may end a turn with another token than its base does."""
    texts = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) for prompt in prompts]
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"]))
    decoding, other = Decoding(max_new_tokens=40, temperature=0.0), AutoTokenizer.from_pretrained(model_name)
    whole = [completion.tolist() for _, completion in generate_tokens(adapted, tokenizer, texts, decoding)]
    end = other.eos_token_id = whole[0][5]
    cut = [completion.tolist() for _, completion in generate_tokens(adapted, other, texts, decoding)]
    adapted.unload()
    assert cut == [row[: row.index(end) + 1] if end in row else row for row in whole]
    assert any(tokenizer.eos_token_id in row for row in cut)


def test_a_tokenizer_without_a_padding_token(model, model_name, tokenizer, prompts):
    bare = AutoTokenizer.from_pretrained(model_name)
    bare.pad_token = None
    assert generate(model, bare, prompts, GREEDY) == generate(model, tokenizer, prompts, GREEDY)


def test_prompts_that_cannot_be_completed_are_named(model, model_name, tokenizer):
    room = context_length(model)
    assert room == 512
    with pytest.raises(InputError, match=r"row 2 \(prompts\[1\]\): it has \d+ tokens, and with max_new_tokens=8 more"):
        generate(model, tokenizer, ["a", "a b " * room], Decoding(seed=0, max_new_tokens=8))
    with pytest.raises(InputError, match=r"row 1 .*: it is empty"):
        generate(model, tokenizer, [""], Decoding(seed=0))
    bare = AutoTokenizer.from_pretrained(model_name)
    bare.chat_template = None
    with pytest.raises(InputError, match=r"row 1 .* has no chat template. Pass plain text"):
        generate(model, bare, [[{"role": "user", "content": "Hi"}]], Decoding(seed=0))
    bare.chat_template = "{{ raise_exception('no system prompts') }}"
    with pytest.raises(InputError, match=r"refuses the conversation .no system prompts"):
        generate(model, bare, [[{"role": "user", "content": "Hi"}]], Decoding(seed=0))
    assert generate(model, tokenizer, [], Decoding(seed=0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -0.1}, "temperature must be 0 or above"),
        ({"temperature": float("nan")}, "temperature must be 0 or above"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_k": -1}, r"top_k must be 0 \(all tokens\) or above"),
        ({"temperature": 0.0, "top_k": 5}, "no effect at temperature 0"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)
