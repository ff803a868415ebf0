"""Batches hold every row once within their limits, and prompt reuse gives the scores of one text at a time."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    JambaConfig,
    JambaForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
)

from rlhf_ext.reward_model import scoring
from rlhf_ext.reward_model.pooling import pool_by_attention_mask
from rlhf_ext.reward_model.scoring import (
    SHORTEST_REUSED_PROMPT,
    _shared_batches,
    can_reuse_prompts,
    plan_batches,
    run_batches,
)

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = {"vocab_size": 64, "num_labels": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
DECODERS = {
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**COMMON, **SHAPE)),
    "gemma3": lambda: Gemma3TextForSequenceClassification(
        Gemma3TextConfig(
            **COMMON, **SHAPE, **GROUPED, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "mistral": lambda: MistralForSequenceClassification(MistralConfig(**COMMON, **SHAPE, **GROUPED, sliding_window=8)),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4)),
    "bloom": lambda: BloomForSequenceClassification(BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4)),
    "opt": lambda: OPTForSequenceClassification(
        OPTConfig(**COMMON, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64)
    ),
}


def pooled(model):
    """Give it weights that make scores differ clearly."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    pool_by_attention_mask(model)
    return model.eval()


def sequences(*, groups=5, per_group=3, prompt=30):
    """Five prompts of different lengths with three completions each, and two texts by themselves."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count):
        return torch.randint(5, 60, (count,), generator=generator).tolist()

    token_ids, keys = [], []
    for group in range(groups):
        start = tokens(prompt + 3 * group)
        for completion in range(per_group):
            token_ids.append(start + tokens(1 + 4 * completion))
            keys.append(group)
    return [*token_ids, tokens(9), tokens(21)], [*keys, None, None]


def scores_of(model, token_ids, batches):
    return run_batches(model, token_ids, batches, pad_token_id=0)


def one_by_one(model, token_ids):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in token_ids])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("token_budget", [60, 300, 4096])
def test_reuse_of_prompts_never_changes_a_score(name, token_budget):
    model = pooled(DECODERS[name]())
    token_ids, keys = sequences()
    expected = one_by_one(model, token_ids)
    assert expected.std() > 0.2 and can_reuse_prompts(model)
    batches = plan_batches(token_ids, keys, token_budget=token_budget)
    assert any(batch.prompt_length for batch in batches)
    torch.testing.assert_close(scores_of(model, token_ids, batches), expected, rtol=0, atol=1e-5)
    plain = plan_batches(token_ids, token_budget=token_budget)
    torch.testing.assert_close(scores_of(model, token_ids, plain), expected, rtol=0, atol=1e-5)


def test_reuse_under_lora():
    model = pooled(get_peft_model(DECODERS["llama"](), LoraConfig(task_type="SEQ_CLS", target_modules="all-linear")))
    token_ids, keys = sequences()
    batches = plan_batches(token_ids, keys, token_budget=300)
    expected = one_by_one(model, token_ids)
    torch.testing.assert_close(scores_of(model, token_ids, batches), expected, rtol=0, atol=1e-5)
    assert can_reuse_prompts(model)


def test_models_whose_cache_is_no_list_of_keys_and_values_are_left_out():
    assert not can_reuse_prompts(BertForSequenceClassification(BertConfig(**COMMON, **SHAPE)))
    jamba = JambaConfig(**COMMON, **SHAPE, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1)
    assert not can_reuse_prompts(JambaForSequenceClassification(jamba))
    prefix = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    assert not can_reuse_prompts(get_peft_model(DECODERS["llama"](), prefix))
    bidirectional = Gemma3TextConfig(**COMMON, **SHAPE, **GROUPED, use_bidirectional_attention=True)
    assert not can_reuse_prompts(Gemma3TextForSequenceClassification(bidirectional))


def test_prompt_runs_once_however_many_completions_it_has():
    model = pooled(DECODERS["llama"]())
    token_ids, keys = sequences(groups=1, per_group=8, prompt=40)
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    scores_of(model, token_ids[:8], plan_batches(token_ids[:8], keys[:8], token_budget=4096))
    assert seen == [(1, 40), (8, 29)]


texts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), min_size=1, max_size=30)


@given(texts, st.integers(1, 200), st.none() | st.integers(1, 5), st.data())
@settings(max_examples=100, deadline=None)
def test_batches_hold_every_row_once_within_their_limits(token_ids, token_budget, batch_size, data):
    prompt = [1, 0] * 20
    keys = [data.draw(st.sampled_from([None, "a", "b"])) for _ in token_ids]
    token_ids = [ids if key is None else prompt + ids for ids, key in zip(token_ids, keys, strict=True)]
    batches = plan_batches(token_ids, keys, token_budget=token_budget, batch_size=batch_size)
    rows = [row for batch in batches for row in batch.rows]
    assert sorted(rows) == list(range(len(token_ids)))
    for batch in batches:
        lengths = [len(token_ids[row]) for row in batch.rows]
        assert not batch_size or len(batch.rows) <= batch_size
        prompts = len(set(batch.prompt_of))
        tokens = prompts * batch.prompt_length + len(lengths) * (max(lengths) - batch.prompt_length)
        assert len(lengths) == 1 or tokens <= token_budget
        if batch.prompt_length:
            assert batch.prompt_length >= SHORTEST_REUSED_PROMPT and min(lengths) > batch.prompt_length
            assert len(batch.prompt_of) == len(batch.rows) and sorted(set(batch.prompt_of)) == list(range(prompts))
            starts = [tuple(token_ids[row][: batch.prompt_length]) for row in batch.rows]
            for number in range(prompts):
                assert len({start for start, of in zip(starts, batch.prompt_of, strict=True) if of == number}) == 1


def test_longest_come_first_and_little_is_padded():
    generator = torch.Generator().manual_seed(0)
    token_ids = [[1] * int(length) for length in torch.randint(20, 500, (256,), generator=generator)]
    batches = plan_batches(token_ids, token_budget=4096)
    longest = [max(len(token_ids[row]) for row in batch.rows) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    padded = sum(length * len(batch.rows) for length, batch in zip(longest, batches, strict=True))
    assert padded < 1.02 * sum(map(len, token_ids))


@pytest.mark.parametrize(
    ("token_ids", "reused"),
    [
        ([[1] * 40 + [2], [1] * 40 + [3]], 40),
        ([[1] * 40 + [2], [1] * 40], 39),  # a token remains for the score to be read at
        ([[1] * 40, [1] * 40], 39),
        ([[1] * 40 + [2]], 0),  # nobody shares it
        ([[1] * 8 + [2], [1] * 8 + [3]], 0),  # too short
        ([[1] * 20 + [2] * 100, [1] * 20 + [3] * 100], 0),  # saves little
        ([[2] + [1] * 40, [3] + [1] * 40], 0),  # the tokens differ although the prompts are said to be equal
    ],
)
def test_prompt_is_reused_where_tokens_agree_and_it_pays(token_ids, reused):
    batches = plan_batches(token_ids, ["key"] * len(token_ids), token_budget=4096)
    assert max(batch.prompt_length for batch in batches) == reused


class CountedLengths(list):
    """Lengths that count how often they are looked up."""

    asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return super().__getitem__(index)


def test_many_completions_of_one_prompt_are_planned_in_one_pass():
    lengths = CountedLengths(300 + row % 90 for row in range(4000))
    batches = _shared_batches([(250, list(range(4000)))], lengths, 4096, None)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(4000))
    assert lengths.asked < 4 * 4000  # not once for every size that is tried


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bar_counts_texts(shown, capsys, monkeypatch):
    at_once, bar = {"delay": 0, "mininterval": 0, "miniters": 1}, scoring.tqdm
    monkeypatch.setattr(scoring, "tqdm", lambda **options: bar(**options | at_once))
    model, (token_ids, keys) = pooled(DECODERS["llama"]()), sequences()
    batches = plan_batches(token_ids, keys, token_budget=60)
    run_batches(model, token_ids, batches, pad_token_id=0, show_progress=shown)
    written = capsys.readouterr().err
    assert ("17/17" in written and "text/s" in written) if shown else not written


def test_scoring_needs_no_gradient_and_no_cache():
    model = pooled(DECODERS["llama"]())
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((torch.is_grad_enabled(), kwargs["use_cache"])), with_kwargs=True
    )
    scores_of(model, [[5, 6]], plan_batches([[5, 6]], token_budget=10))
    assert seen == [(False, False)]
    assert "use_cache" in inspect.signature(model.forward).parameters
