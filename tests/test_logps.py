"""Log-probabilities of completions, against one pass for each text without padding."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_ext.demo.data import prompt_dataset
from rlhf_ext.generation import Decoding, generate_tokens
from rlhf_ext.logps import completion_logps


@pytest.fixture(scope="module")
def model(model_name):
    return AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()


def test_logps_are_those_of_single_texts(model, tokenizer):
    prompts = prompt_dataset("test", size=5)["prompt"][:]
    tokens = generate_tokens(model, tokenizer, prompts, Decoding(max_new_tokens=20, seed=1))
    tokens.append((tokens[0][0], torch.tensor([], dtype=torch.long)))
    logps = completion_logps(model, tokens, batch_size=3)
    assert len({len(completion) for _, completion in tokens}) > 1
    for (prompt, completion), found in zip(tokens, logps, strict=True):
        with torch.no_grad():
            logits = model(torch.cat([prompt, completion])[None]).logits[0].double().log_softmax(-1)
        expected = [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion)]
        assert found.tolist() == pytest.approx(expected, abs=1e-4)
