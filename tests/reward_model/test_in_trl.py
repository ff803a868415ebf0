"""A `RewardModel` is a reward function in TRL's own trainers, with another tokenizer than the policy's."""

import math

import pytest
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlhf_ext import RewardModel, RewardModelEnsemble

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PROMPTS = ["How do I boil an egg?", "Tell me about cats.", "What is rain?", "Say hello."]


@pytest.fixture(scope="module")
def other_tokenizer():
    """One token a character, which no tokenizer of a policy is."""
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=512
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    return tokenizer


@pytest.fixture
def reward_model(other_tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(other_tokenizer), num_labels=1, initializer_range=0.3, **SHAPE)
    return RewardModel(LlamaForSequenceClassification(config), other_tokenizer, name="judge")


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "conversational"),
    [(trl.GRPOTrainer, trl.GRPOConfig, True), (trl.RLOOTrainer, trl.RLOOConfig, False)],
)
def test_two_steps(trainer_class, config_class, conversational, model_name, reward_model, tmp_path, monkeypatch):
    prompts = [[{"role": "user", "content": text}] for text in PROMPTS] if conversational else PROMPTS
    scored, original = [], RewardModel._scores

    def remember(self, examples, *args):
        scores = original(self, examples, *args)
        scored.append((examples, scores))
        return scores

    monkeypatch.setattr(RewardModel, "_scores", remember)
    args = config_class(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        learning_rate=1e-3,
    )
    dataset = Dataset.from_dict({"prompt": prompts, "note": ["unused"] * 4})
    trainer = trainer_class(model_name, reward_funcs=reward_model, args=args, train_dataset=dataset)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/judge/mean" in entry]
    assert len(logged) == 2
    for entry, (examples, scores) in zip(logged, scored, strict=False):
        assert math.isfinite(entry["rewards/judge/mean"])
        assert entry["rewards/judge/mean"] == pytest.approx(scores.mean().item(), abs=1e-5)
        alone = [original(reward_model, [example], None, True).item() for example in examples]
        assert scores.tolist() == pytest.approx(alone, abs=1e-5)
        assert all(example.is_conversation == conversational for example in examples)
    assert any(not torch.equal(new, old) for new, old in zip(trainer.model.parameters(), before, strict=True))


def test_ensemble_is_a_reward_function_too(reward_model):
    ensemble = RewardModelEnsemble([reward_model, reward_model], "min", name="committee")
    rewards = ensemble(prompts=PROMPTS, completions=["a", "b", "", "d"], completion_ids=[[1]] * 4)
    assert rewards == pytest.approx(reward_model(prompts=PROMPTS, completions=["a", "b", "", "d"]))
    assert ensemble.__name__ == "committee"
