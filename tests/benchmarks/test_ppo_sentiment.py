"""The sentiment benchmark: its reward has the right sign, and its perplexity is the one that a loss gives."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM


@pytest.fixture
def benchmark():
    import ppo_sentiment

    return ppo_sentiment


def test_reward_prefers_friendly_words_and_remembers_what_it_saw(benchmark):
    reward = benchmark.Sentiment()
    good, bad = reward(
        prompts=["a", "b"], completions=[" I love it, thank you!", " I hate this awful mess."], trainer=0
    )
    assert good > 0.5 and bad < -0.5
    assert reward.seen == [("a", " I love it, thank you!"), ("b", " I hate this awful mess.")]


def test_prompts_are_short_and_different(benchmark, tmp_path):
    rows = {"sft_selfinstruct_seed": ["Why?", "Why?", "long " * 50], "pref_hh_harmless": [[{"content": "Who?"}]]}
    for name, prompts in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    assert benchmark.read_prompts(tmp_path) == ["Question: Why?\nAnswer:", "Question: Who?\nAnswer:"]


def test_perplexity_is_that_of_the_completion(benchmark, model_name, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
    prompt, completion = "How do I boil an egg?", " Fill a pot with water."
    second = tokenizer(completion, add_special_tokens=False).input_ids
    ids = torch.tensor([tokenizer(prompt).input_ids + second])
    labels = ids.clone()
    labels[:, : -len(second)] = -100
    expected = model(input_ids=ids, labels=labels).loss.exp().item()
    assert benchmark.perplexity(model, tokenizer, [(prompt, completion)]) == pytest.approx(expected, rel=1e-4)
