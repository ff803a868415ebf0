"""Encoders of several families as reward models: layers that their checkpoints lack are trained, saved and found."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_encoders import ENCODERS, POSITIONS, save_encoder, tokenizer
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.integrations import deepspeed

from rlhf_ext import RewardConfig, RewardModel, RewardTrainer
from rlhf_ext.data_checks import DataError
from rlhf_ext.reward_model.layers import layers_to_save, score_layer
from rlhf_ext.reward_model.loading import RewardModelError
from rlhf_ext.reward_model.text_scorer import TruncationWarning

SIDES = ("chosen", "rejected")
QUESTION = "how do i boil an egg"
TEXTS = [QUESTION, "no idea", (QUESTION, " in a pot"), (QUESTION, " no idea no idea")]
BASES = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "8 bit": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    "8 bit, bfloat16": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "dtype": torch.bfloat16},
    "4 bit": {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)},
}
LACKING = {
    "bert": {"classifier"},
    "bert-mlm": {"bert.pooler.dense", "classifier"},
    "distilbert": {"pre_classifier", "classifier"},
    "deberta": {"pooler.dense", "classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "eurobert": {"dense", "classifier"},
    "modernbert": {"head.dense", "head.norm", "classifier"},
}
PAIRS = [{"prompt": QUESTION, "chosen": " in a pot", "rejected": " no idea" * n} for n in (1, 2)]
CASES = [(name, "float32") for name in ENCODERS] + [
    *((name, base) for name in ("distilbert", "roberta") for base in BASES if base != "float32"),
    ("bert", "8 bit"),
    ("deberta", "8 bit"),
]


def tokenized(rows=PAIRS):
    """Pairs as TRL tokenizes them, which it then leaves alone: quicker."""
    ids = {side: [tokenizer()(row["prompt"] + row[side] + " [SEP]")["input_ids"] for row in rows] for side in SIDES}
    return Dataset.from_dict({f"{side}_ids": ids[side] for side in SIDES})


def config(tmp_path, **options):
    return RewardConfig(
        **{
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "max_length": POSITIONS,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "calibrate": False,
        }
        | options
    )


def lora(**options):
    return LoraConfig(**{"r": 2, "target_modules": "all-linear", "task_type": "SEQ_CLS"} | options)


@pytest.mark.parametrize(("name", "base"), CASES)
def test_adapter_keeps_every_layer_that_the_checkpoint_lacks(name, base, tmp_path):
    encoder = save_encoder(name, tmp_path / "encoder")
    args = config(tmp_path, model_init_kwargs=BASES[base])
    trainer = RewardTrainer(encoder, args=args, train_dataset=tokenized(), peft_config=lora())
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_" not in n}
    names = [n.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for n in before]
    assert {n.rpartition(".")[0] for n in names} == LACKING[name]
    assert all(weight.dtype == torch.float32 for weight in before.values())
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert not [n for n, weight in before.items() if n.endswith("weight") and torch.equal(weight, after[n])]
    trainer.save_model()
    scores = RewardModel(trainer.model, trainer.processing_class, settings=trainer.settings).score(TEXTS)
    loaded = RewardModel.from_pretrained(args.output_dir)
    assert isinstance(loaded.model, PeftModel) and torch.tensor(scores).std() > 1e-3
    assert loaded.score(TEXTS) == pytest.approx(scores, abs=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    assert RewardModel.from_pretrained(tmp_path / "again").score(TEXTS) == pytest.approx(scores, abs=1e-6)


def test_layers_to_save_are_found_where_deepspeed_divides_the_weights(tmp_path):
    """DeepSpeed itself is not installed: that ZeRO-3 is on is what Transformers asks before it loads."""
    encoder = save_encoder("roberta", tmp_path / "encoder")
    zero3 = type("ZeRO3", (), {"is_zero3": lambda self: True})()
    deepspeed.set_hf_deepspeed_config(zero3)
    try:
        found = layers_to_save(encoder)
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert {*found} == LACKING["roberta"]


def one_by_one(model, texts):
    """The independent reference: each text by itself, unpadded, through the bare model."""
    with torch.no_grad():
        ids = [tokenizer()("".join(text) + " [SEP]", return_tensors="pt") for text in texts]
        return [model(**inputs).logits.item() for inputs in ids]


@pytest.mark.parametrize("name", ENCODERS)
def test_full_model_scores_as_transformers_does(name, tmp_path):
    encoder = save_encoder(name, tmp_path / "encoder")
    args = config(tmp_path)
    trainer = RewardTrainer(encoder, args=args, train_dataset=tokenized())
    trainer.train()
    trainer.save_model()
    plain = AutoModelForSequenceClassification.from_pretrained(args.output_dir)
    expected = one_by_one(plain, TEXTS)
    assert torch.tensor(expected).std() > 1e-3
    assert RewardModel.from_pretrained(args.output_dir).score(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_head_of_a_full_encoder_is_not_quantized(tmp_path):
    """Transformers leaves the last layer as it is, but takes the bias for it where there is one."""
    encoder = save_encoder("bert", tmp_path / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    RewardModel(model, tokenizer(eos_token="[SEP]")).save_pretrained(tmp_path / "full")
    loaded = RewardModel.from_pretrained(tmp_path / "full", quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert torch.equal(score_layer(loaded.model).weight, model.classifier.weight)


@pytest.mark.parametrize("target_modules", [["query"], ["query", "dense"]])
def test_adapter_of_trl_examples_is_made_one_of_a_reward_model(target_modules, tmp_path):
    """TRL's documentation names the head in modules_to_save and leaves the task type open."""
    encoder, args = save_encoder("bert-mlm", tmp_path / "encoder"), config(tmp_path)
    given = lora(task_type=None, modules_to_save=["classifier"], target_modules=target_modules)
    trainer = RewardTrainer(encoder, args=args, train_dataset=tokenized(), peft_config=given)
    assert given.task_type is None and given.modules_to_save == ["classifier"]  # the caller's stays as it was
    trainer.train()
    trainer.save_model()
    scores = RewardModel(trainer.model, trainer.processing_class).score(TEXTS)
    assert RewardModel.from_pretrained(args.output_dir).score(TEXTS) == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_type": None, "modules_to_save": ["classifier"]}, "task_type='None'.* Use task_type='SEQ_CLS'"),
        ({"task_type": "FEATURE_EXTRACTION"}, "task_type='FEATURE_EXTRACTION'"),
        ({}, "The layers pooler.dense would stay as they were initialised, and not be saved: name them"),
        ({"lora_dropout": 0.1}, "lora_dropout=0.1 has no effect with disable_dropout=True, TRL's default"),
        ({"modules_to_save": ["pooler.dense"]}, None),
    ],
)
def test_adapter_that_is_there_already_must_be_complete(options, message, tmp_path):
    encoder = save_encoder("deberta", tmp_path / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    model = get_peft_model(model, lora(**{"target_modules": ["query_proj"]} | options))

    def train():
        return RewardTrainer(model, args=config(tmp_path), train_dataset=tokenized())

    if message is None:
        assert score_layer(train().model).weight.dtype == torch.float32
    else:
        with pytest.raises(ValueError, match=message):
            train()


def test_adapter_that_lost_a_layer_is_refused(tmp_path):
    encoder = save_encoder("deberta", tmp_path / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    model = get_peft_model(model, lora(target_modules=["query_proj"]))
    RewardModel(model, tokenizer()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RewardModelError, match=r"neither .*encoder nor the adapter holds pooler\.dense\.bias"):
        RewardModel.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("max_length", [1024, None])
def test_rows_beyond_the_positions_are_refused_before_training(max_length, tmp_path):
    """RoBERTa has a position more than it takes tokens; and 1024 is TRL's default."""
    encoder, long = save_encoder("roberta", tmp_path / "encoder"), {**PAIRS[0], "chosen": " egg" * 40}
    args = config(tmp_path, max_length=max_length)
    fits = Dataset.from_dict({f"{side}_ids": [[5] * POSITIONS] for side in SIDES})
    RewardTrainer(encoder, args=args, train_dataset=fits).train()
    for options in ({"train_dataset": tokenized([long])}, {"train_dataset": fits, "eval_dataset": tokenized([long])}):
        name = "eval" if "eval_dataset" in options else "train"
        message = f"the {name} dataset: it has a row of 49 tokens, and the model takes 32. Set max_length=32"
        with pytest.raises(DataError, match=message):
            RewardTrainer(encoder, args=args, **options)
    stream = tokenized([long]).to_iterable_dataset()
    with pytest.raises(DataError, match="a row of 49 tokens"):
        RewardTrainer(encoder, args=args, train_dataset=stream)


def test_scoring_cuts_to_what_the_positions_take(tmp_path):
    """Whatever a settings file says, as of a model that was trained elsewhere."""
    encoder = save_encoder("roberta", tmp_path / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    RewardModel(model, tokenizer(eos_token="[SEP]")).save_pretrained(tmp_path / "full")
    (tmp_path / "full/reward_model.json").write_text('{"max_length": 1024}')
    loaded = RewardModel.from_pretrained(tmp_path / "full")
    assert loaded.max_length == POSITIONS
    with pytest.warns(TruncationWarning):
        assert isinstance(loaded.score("egg " * 60), float)
    with pytest.raises(RewardModelError, match="at most 32"):
        RewardModel.from_pretrained(tmp_path / "full", max_length=POSITIONS + 1)


def test_encoder_as_an_object_finds_its_tokenizer(tmp_path):
    encoder = save_encoder("distilbert", tmp_path / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    trainer = RewardTrainer(model, args=config(tmp_path), train_dataset=Dataset.from_list(PAIRS))
    ids = trainer.train_dataset[0]["chosen_ids"]
    assert trainer.processing_class.convert_ids_to_tokens(ids)[-2:] == ["[SEP]", "[SEP]"]
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="pass a processing_class"):
        RewardTrainer(model, args=config(tmp_path), train_dataset=Dataset.from_list(PAIRS))


def test_tokenizer_without_any_end_is_refused(tmp_path):
    encoder = save_encoder("bert", tmp_path / "encoder")
    options = {"train_dataset": Dataset.from_list(PAIRS), "processing_class": tokenizer(sep_token=None)}
    with pytest.raises(ValueError, match="neither an end-of-sequence token nor a separator"):
        RewardTrainer(encoder, args=config(tmp_path), **options)
    RewardTrainer(encoder, args=config(tmp_path, eos_token="pot"), **options)
