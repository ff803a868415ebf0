"""The score is read at the last attended token, whatever the padding token, the side and the wrapper."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from rlhf_ext.reward_model.pooling import pool_by_attention_mask

EOS = 2
TEXTS = [[5, 6, 7, EOS], [8, 9, EOS], [10, EOS, 11, 12, 13, EOS], [EOS]]


def llama(**options):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, num_labels=1, pad_token_id=EOS, initializer_range=0.5, **shape, **options)
    return LlamaForSequenceClassification(config).eval()


def lora(model):
    model = get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False))
    torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
    return model.eval()


def padded(side):
    longest = max(map(len, TEXTS))
    rows, masks = [], []
    for ids in TEXTS:
        padding, kept = [EOS] * (longest - len(ids)), [1] * len(ids)
        gap = [0] * len(padding)
        rows.append(padding + ids if side == "left" else ids + padding)
        masks.append(gap + kept if side == "left" else kept + gap)
    mask = torch.tensor(masks)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": torch.tensor(rows), "attention_mask": mask, "position_ids": positions}


def at_last_position(model):
    """The independent reference: the head applied to the backbone's last hidden state, one unpadded text at a time."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return torch.cat([inner.score(inner.model(torch.tensor([ids])).last_hidden_state[:, -1]) for ids in TEXTS])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["plain", "lora"])
def test_padding_that_is_the_end_token_never_hides_the_end(side, wrap):
    model = wrap(llama())
    expected = at_last_position(model)
    assert not torch.allclose(model(**padded(side)).logits, expected, atol=1e-2)  # what Transformers does by itself
    pool_by_attention_mask(model)
    torch.testing.assert_close(model(**padded(side)).logits, expected, rtol=0, atol=1e-5)


def test_text_without_mask_is_scored_at_its_last_position():
    model = llama()
    expected = at_last_position(model)
    pool_by_attention_mask(model)
    for ids, score in zip(TEXTS, expected, strict=True):
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], score, rtol=0, atol=1e-5)


def test_tokens_after_a_cached_prompt_are_pooled_by_their_part_of_the_mask():
    model = llama()
    pool_by_attention_mask(model)
    prompt = model(torch.tensor([[5, 6, 7]] * 2), use_cache=True)
    rest, mask = torch.tensor([[8, 9, EOS], [10, EOS, EOS]]), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    scores = model(rest, attention_mask=mask, past_key_values=prompt.past_key_values).logits
    for ids, score in zip([[5, 6, 7, 8, 9, EOS], [5, 6, 7, 10, EOS]], scores, strict=True):
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], score, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_reaches_every_weight_and_is_the_right_one(checkpointing):
    reference, model = llama(), llama()
    at_last_position(reference).square().sum().backward()
    pool_by_attention_mask(model)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**padded("right"), use_cache=False).logits.square().sum().backward()
    for (name, weight), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_merging_the_adapter_keeps_the_pooling():
    model = lora(llama())
    pool_by_attention_mask(model)
    expected = model(**padded("right")).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**padded("right")).logits, expected, rtol=0, atol=1e-5)


def test_twice_is_once_and_survives_errors_and_copies():
    model = llama()
    pool_by_attention_mask(model)
    pooled = model(**padded("right")).logits
    pool_by_attention_mask(model)
    assert torch.equal(model(**padded("right")).logits, pooled)
    with pytest.raises(ValueError, match=r"shape \(texts, tokens\)"):
        model(padded("right")["input_ids"], attention_mask=torch.zeros(4, 1, 6, 6))
    torch.testing.assert_close(model(**padded("right")).logits, pooled)
    torch.testing.assert_close(copy.deepcopy(model)(**padded("right")).logits, pooled)


def test_encoder_with_a_pooled_vector_is_left_alone():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=32, num_labels=1, **shape)).eval()
    inputs = {key: value for key, value in padded("right").items() if key != "position_ids"}
    before = model(**inputs).logits
    pool_by_attention_mask(model)
    assert torch.equal(model(**inputs).logits, before)


def test_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="no sequence-classification model"):
        pool_by_attention_mask(llama().model)
