"""Padding is left out of passes, and what is left is the same; positions are counted from the first real token."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from rlhf_ext.completion_pass import (
    completion_pass,
    interleaved,
    micro_batches,
    positions,
    rejoined,
    whole_texts,
    without_padding,
)

LENGTH = 3


def make_batch():
    prompt_mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    completion_mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    return {
        "prompt_ids": torch.arange(8).view(2, 4) + 10,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.arange(10).view(2, 5) + 30,
        "completion_mask": completion_mask,
        "advantages": torch.rand(2, 5),
        "importance_sampling_ratio": torch.rand(2, 1),
        "num_items_in_batch": torch.tensor(5),
    }


def test_columns_that_are_padding_in_all_rows_are_dropped():
    batch = make_batch()
    cut = without_padding(batch)
    assert cut["prompt_ids"].tolist() == batch["prompt_ids"][:, 1:].tolist()
    assert cut["prompt_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    for name in ("completion_ids", "completion_mask", "advantages"):
        assert torch.equal(cut[name], batch[name][:, :3])
    for name in ("importance_sampling_ratio", "num_items_in_batch"):
        assert cut[name] is batch[name]


def test_nothing_is_dropped_where_there_is_no_padding_or_there_are_images():
    batch = make_batch()
    whole = batch | {"prompt_mask": torch.ones(2, 4), "completion_mask": torch.ones(2, 5)}
    assert all(torch.equal(value, whole[name]) for name, value in without_padding(whole).items())
    pictured = batch | {"pixel_values": torch.zeros(2, 3)}
    assert without_padding(pictured) == pictured


def test_a_batch_of_masked_completions_keeps_a_column():
    batch = make_batch()
    batch["completion_mask"] = torch.zeros(2, 5, dtype=torch.long)
    assert without_padding(batch)["completion_ids"].shape == (2, 1)


def test_completions_of_a_prompt_are_dealt_apart():
    assert interleaved(6, 3).tolist() == [0, 3, 1, 4, 2, 5]
    assert interleaved(4, 1).tolist() == [0, 1, 2, 3]
    assert interleaved(5, 2).tolist() == [0, 2, 4, 1, 3]  # a process may hold a part of a group


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.data())
def test_micro_batches_are_the_batches_of_training_and_join_to_the_whole(count, num_generations, size, data):
    """Whatever a pass computes of each token comes back in its place, with zeros where there is none."""
    before = data.draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    after = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    prompt_mask = torch.tensor([[0] * (4 - n) + [1] * n for n in before])
    completion_mask = torch.tensor([[1] * n + [0] * (5 - n) for n in after])
    batch = {"prompt_mask": prompt_mask, "completion_mask": completion_mask}
    batch |= {
        "prompt_ids": torch.rand(count, 4) * prompt_mask,
        "completion_ids": torch.rand(count, 5) * completion_mask,
    }
    order = interleaved(count, num_generations)
    passes = micro_batches(*whole_texts(batch), order, size, trim=True)
    for rows, (ids, mask, length) in zip(order.split(size), passes, strict=True):
        trained = whole_texts(without_padding({name: value[rows] for name, value in batch.items()}))
        assert torch.equal(ids, trained[0]) and torch.equal(mask, trained[1]) and length == trained[2]
    assert torch.equal(rejoined([ids[:, -length:] for ids, _, length in passes], order, 5), batch["completion_ids"])
    untrimmed = micro_batches(*whole_texts(batch), order, size, trim=False)
    assert all(ids.shape[1] == 9 and length == 5 for ids, _, length in untrimmed)


def test_positions_count_from_the_first_real_token(model_name):
    model = AutoModelForCausalLM.from_pretrained(model_name)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    assert positions(model, mask)["position_ids"].tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]]
    assert positions(torch.nn.Linear(1, 1), mask) == {}


def test_only_completions_are_projected_and_their_log_probabilities_stay(model_name):
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    torch.manual_seed(0)
    ids, mask = torch.randint(3, 2000, (2, 10)), torch.ones(2, 10, dtype=torch.long)
    labels = ids.clone()
    labels[:, :-LENGTH] = -100
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True}
    plain = model(**inputs)
    seen = []
    model.model.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state.shape[1]))
    with completion_pass(model, model, LENGTH, count_positions=True):
        lean = model(**inputs)
    assert seen == [LENGTH + 1] and lean.log_probs.shape == (2, LENGTH)
    torch.testing.assert_close(lean.log_probs, plain.log_probs[:, -LENGTH:])
    torch.testing.assert_close(lean.entropy, plain.entropy[:, -LENGTH:])
    assert model(**inputs).log_probs.shape == (2, 9)  # the hooks are gone
