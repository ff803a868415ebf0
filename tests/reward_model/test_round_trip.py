"""What `RewardTrainer` trains is what `RewardModel` loads: the same scores, calibrated, head and all."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, load_peft_weights
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
)

from rlhf_ext import RewardConfig, RewardModel, RewardTrainer

QUANTIZED = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}}


@pytest.fixture
def config(tmp_path):
    return RewardConfig(
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_steps=2,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        loss_kwargs={"margin": 0.5},
    )


def trained(model, config, pairs, **options):
    """A trainer that has trained on the pairs, and saved."""
    trainer = RewardTrainer(model, args=config, train_dataset=pairs, eval_dataset=pairs, **options)
    trainer.train()
    trainer.save_model()
    return trainer


def scores_in_training(trainer):
    """What the trainer's own forward pass gives for its evaluation pairs, chosen then rejected, calibrated."""
    trainer.model.eval()
    batch = trainer.data_collator(list(trainer.eval_dataset))
    with torch.no_grad():
        scores = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    return (scores.float() - trainer.settings.score_offset).tolist()


def texts_of(pairs):
    return [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in pairs]


@pytest.mark.parametrize(("lora", "bits"), [(False, None), (True, None), (True, 8), (True, 4)])
def test_decoder(lora, bits, config, model_name, preferences, tmp_path):
    pairs = preferences.remove_columns("margin")
    quantization = BitsAndBytesConfig(**QUANTIZED[bits]) if bits else None
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS") if lora else None
    trainer = trained(model_name, config, pairs, peft_config=adapter, quantization_config=quantization)
    loaded = RewardModel.from_pretrained(config.output_dir)
    texts = texts_of(pairs)
    scores = loaded.score(texts)
    in_process = RewardModel(trainer.model, trainer.processing_class, settings=trainer.settings).score(texts)
    assert scores == pytest.approx(in_process, abs=1e-6)
    assert torch.tensor(scores).std() > 0.01
    # In 8 bit, and in bfloat16, a pass depends a little on what else is in the trainer's batch.
    assert scores == pytest.approx(scores_in_training(trainer), abs=5e-2 if bits else 1e-5)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=2e-2 if bits else 1e-4)
    assert loaded.temperature == trainer.settings.temperature
    if lora and not bits:
        merged = loaded.merge()
        assert merged.score(texts) == pytest.approx(scores, abs=5e-6)  # some roundings of float32
        merged.save_pretrained(tmp_path / "merged")
        assert RewardModel.from_pretrained(tmp_path / "merged").score(texts) == merged.score(texts)


def test_adapter_on_the_embeddings(config, model_name, preferences):
    """Beside such an adapter PEFT saves the whole embedding matrix."""
    pairs = preferences.remove_columns("margin")
    adapter = LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)
    trainer = trained(model_name, config, pairs, peft_config=adapter)
    assert any(key.endswith("base_layer.weight") for key in load_peft_weights(config.output_dir))
    loaded = RewardModel.from_pretrained(config.output_dir)
    scores = loaded.score(texts_of(pairs))
    assert scores == pytest.approx(scores_in_training(trainer), abs=1e-5)
    half = RewardModel.from_pretrained(config.output_dir, dtype="bfloat16").score(texts_of(pairs))
    assert half == pytest.approx(scores, abs=0.1)
    assert loaded.merge().score(texts_of(pairs)) == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_encoder(lora, config, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "how", "do", "i", "boil", "an", "egg", "no", "idea", "in", "a", "pot"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(
        BertConfig(vocab_size=len(words), max_position_embeddings=32, initializer_range=0.5, **shape)
    ).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [
        {"prompt": "how do i boil an egg", "chosen": " in a pot" + " egg" * n, "rejected": " no idea" + " i" * n}
        for n in range(4)
    ]
    pairs = Dataset.from_list(rows)
    adapter = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS") if lora else None
    trainer = trained(str(tmp_path / "base"), config, pairs, peft_config=adapter)
    scores = RewardModel.from_pretrained(config.output_dir).score(texts_of(pairs))
    assert scores == pytest.approx(scores_in_training(trainer), abs=1e-5)
    assert torch.tensor(scores).std() > 1e-4
