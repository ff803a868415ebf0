"""`RewardTrainer` against TRL's own trainer on a real, small model; its head, its calibration, and what it saves."""

import json
import math

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    BitsAndBytesConfig,
)

from rlhf_ext import RewardConfig, RewardModel, RewardTrainer
from rlhf_ext.data_checks import DataError
from rlhf_ext.errors import NotFiniteError
from rlhf_ext.plugins import PluginError
from rlhf_ext.reward_model.layers import score_layer
from rlhf_ext.reward_model.settings import RewardModelSettings
from rlhf_ext.trainers.reward_head import add_head_dropout, initialize_head

SEEN = []
QUANTIZED = {
    8: {"load_in_8bit": True},
    4: {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
}


def remember(chosen_rewards, rejected_rewards, *, extras):
    """A loss that keeps the extra columns it is called with, and computes with them."""
    SEEN.append(extras)
    return rejected_rewards - chosen_rewards + sum(0 * column for column in extras.values())


def weighted(chosen_rewards, rejected_rewards, *, extras):
    return (rejected_rewards - chosen_rewards) * extras["margin"]


def infinite(chosen_rewards, rejected_rewards, *, extras):
    return (rejected_rewards - chosen_rewards).log()


def no_gradient(chosen_rewards, rejected_rewards, *, extras):
    return (rejected_rewards - chosen_rewards).detach()


def lora(**options):
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS"} | options)


@pytest.fixture
def config(cpu_options):
    def make(cls=RewardConfig, **options):
        return cls(**cpu_options | options)

    return make


@pytest.fixture
def plain(preferences):
    """The same pairs without the column `margin`, which TRL and we would take into the loss."""
    return preferences.remove_columns("margin")


def history_and_weights(trainer):
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return history, weights


@pytest.mark.parametrize(
    ("options", "peft_config"),
    [
        ({}, None),
        ({}, lora()),
        ({"gradient_checkpointing": True}, None),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, None),
        ({"center_rewards_coefficient": 0.1}, None),
    ],
    ids=["full", "lora", "checkpointed", "accumulated", "centered"],
)
def test_bradley_terry_trains_exactly_as_trl(options, peft_config, config, model_name, plain):
    """Metrics equal to the digits the log keeps; weights to fp32 rounding, which Adam's division magnifies."""
    ours = config(loss_type="bradley_terry", head_dropout=0.0, **options)
    theirs = config(trl.RewardConfig, **options)
    (history, weights), (their_history, their_weights) = (
        history_and_weights(cls(model_name, args=args, train_dataset=plain, peft_config=peft_config))
        for cls, args in ((RewardTrainer, ours), (trl.RewardTrainer, theirs))
    )
    for entry, their_entry in zip(history, their_history, strict=True):
        assert entry == pytest.approx(their_entry, rel=1e-4, abs=1e-5)
    assert weights.keys() == their_weights.keys()
    for name, weight in their_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)


def test_margin_column_is_read_without_being_named_as_in_trl(config, model_name, preferences):
    ours = config(loss_type="margin", loss_kwargs={"margin": 0.0}, head_dropout=0.0)
    (history, _), (their_history, _) = (
        history_and_weights(cls(model_name, args=args, train_dataset=preferences))
        for cls, args in ((RewardTrainer, ours), (trl.RewardTrainer, config(trl.RewardConfig)))
    )
    assert [entry["loss"] for entry in history] == pytest.approx([entry["loss"] for entry in their_history], rel=1e-4)
    with pytest.raises(PluginError, match="The column 'margin': no loss in loss_type computes with"):
        RewardTrainer("/no/such/model", args=config(loss_type="bradley_terry"), train_dataset=preferences)


def test_loss_of_ones_own_may_read_a_margin_that_is_not_named(config, model_name, preferences, plain):
    args = config(loss_type=f"{__name__}:weighted", max_steps=1)
    RewardTrainer(model_name, args=args, train_dataset=preferences).train()
    with pytest.raises(PluginError, match=r"reads 'margin', which is not there.* extra_columns=\['margin'\]"):
        RewardTrainer("/no/such/model", args=args, train_dataset=plain)


def test_bradley_terry_mixes_with_a_loss_that_reads_the_margin(config, model_name, preferences):
    def first_loss(data=preferences, **options):
        trainer = RewardTrainer(model_name, args=config(head_dropout=0.0, **options), train_dataset=data)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        return trainer.compute_loss(trainer.model, batch).item()

    parts = first_loss(preferences.remove_columns("margin"), loss_type="bradley_terry"), first_loss(loss_type="margin")
    mixed = first_loss(loss_type=["bradley_terry", "margin"], loss_weights=[1.0, 0.5])
    assert mixed == pytest.approx(parts[0] + 0.5 * parts[1], rel=1e-5)


def test_margin_column_of_a_streamed_dataset_reaches_the_loss(config, model_name, preferences):
    SEEN.clear()
    args = config(loss_type=f"{__name__}:remember", max_steps=1)
    RewardTrainer(model_name, args=args, train_dataset=preferences.to_iterable_dataset()).train()
    assert SEEN[-1]["margin"].tolist() == pytest.approx(preferences["margin"][:4])


def test_extra_columns_follow_their_rows_through_shuffling(config, model_name, plain):
    SEEN.clear()
    column = [float(number) for number in range(8)]
    dataset = plain.add_column("weight", column).add_column("margin", [10.0 * value for value in column])
    args = config(loss_type=f"{__name__}:remember", extra_columns=["weight"])
    RewardTrainer(model_name, args=args, train_dataset=dataset).train()
    batches = SEEN[-2:]
    assert sorted(value for extras in batches for value in extras["weight"].tolist()) == column
    for extras in batches:
        assert extras["margin"].tolist() == [10 * value for value in extras["weight"].tolist()]


def test_mix_of_losses_is_the_weighted_sum(config, model_name, plain):
    def first_loss(**options):
        args = config(head_dropout=0.0, **options)
        trainer = RewardTrainer(model_name, args=args, train_dataset=plain)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        return trainer.compute_loss(trainer.model, batch).item()

    parts = [first_loss(loss_type=name) for name in ("margin", "hinge")]
    mixed = first_loss(loss_type=["margin", "hinge"], loss_weights=[0.5, 2.0])
    assert mixed == pytest.approx(0.5 * parts[0] + 2.0 * parts[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "magin"}, "Did you mean 'margin'"),
        ({"loss_kwargs": {"smoothing": 0.1}}, "no plugin loss .* takes it"),
        ({"loss_type": "bradley_terry", "loss_kwargs": {"margin": 0.1}}, "no plugin loss .* takes it"),
        ({"loss_kwargs": "0.1"}, "not a JSON object"),
        ({"loss_kwargs": {"temperature": 0.0}}, "fails on a trial batch: temperature must be above 0"),
        ({"loss_weights": [1.0, 2.0]}, "one weight per loss"),
        ({"loss_type": []}, "loss_type names no loss"),
        ({"loss_weights": [float("nan")]}, "they must be 0 or above, finite, and not all 0"),
        ({"loss_weights": [-1.0]}, "they must be 0 or above, finite, and not all 0"),
        ({"loss_weights": [0.0]}, "they must be 0 or above, finite, and not all 0"),
        ({"center_rewards_coefficient": -0.1}, "center_rewards_coefficient must be 0 or above and finite, got -0.1"),
        ({"label_smoothing_factor": 0.1}, r"no effect, .* use loss_kwargs=\{'label_smoothing': 0.1\}"),
        ({"head_dropout": 1.0}, r"head_dropout must lie in \[0, 1\)"),
        ({"head_init": "zeros"}, "head_init must be 'normal' or 'inverse_sqrt'"),
        ({"loss_type": f"{__name__}:no_gradient"}, "without gradient"),
        ({"loss_kwargs": {"margin": float("nan")}}, "loss_kwargs 'margin' is nan: it must be a finite number"),
        ({"loss_kwargs": '{"temperature": Infinity}'}, "loss_kwargs 'temperature' is inf"),
        ({"loss_type": f"{__name__}:infinite"}, "every loss must be a finite number"),
    ],
)
def test_bad_option_is_refused(options, message, config):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize("values", [[1.0] * 7 + [float("nan")], [1.0] * 7 + [None]])
def test_bad_extra_column_is_refused_before_the_model_loads(values, config, plain):
    with pytest.raises(DataError, match="the train dataset, row 8, column 'margin'"):
        RewardTrainer("/no/such/model", args=config(), train_dataset=plain.add_column("margin", values))


def test_data_of_which_nothing_is_left_are_refused(config, model_name, plain):
    with pytest.raises(DataError, match="the train dataset: it holds no rows"):
        RewardTrainer("/no/such/model", args=config(), train_dataset=plain.select([]))
    with pytest.raises(DataError, match="the train dataset: every pair is longer than max_length=2"):
        RewardTrainer(model_name, args=config(max_length=2), train_dataset=plain)


def test_run_that_diverges_stops_and_says_from_where_to_go_on(config, model_name, plain):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5}
    args = config(learning_rate=1e20, lr_scheduler_type="constant", **saving)
    trainer = RewardTrainer(model_name, args=args, train_dataset=plain, eval_dataset=plain)
    with pytest.raises(NotFiniteError, match=r"The loss of step \d is not finite. The last checkpoint, checkpoint-"):
        trainer.train()
    trainer.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="The scores are not finite after training"):
        trainer.calibrate()


def test_model_whose_weights_are_no_numbers_ends_at_the_first_step(config, model_name, plain):
    trainer = RewardTrainer(model_name, args=config(), train_dataset=plain)
    trainer.model.score.weight.data.fill_(float("nan"))
    message = "The loss of the first step is not finite: the model's weights are damaged"
    with pytest.raises(NotFiniteError, match=message):
        trainer.train()


def test_configuration_of_trl_is_refused(config, model_name, plain):
    with pytest.raises(TypeError, match=r"must be an rlhf_ext.RewardConfig"):
        RewardTrainer(model_name, args=config(trl.RewardConfig), train_dataset=plain)


@pytest.mark.parametrize(
    ("peft_config", "message"),
    [
        (lora(task_type="CAUSAL_LM", target_modules=["q_proj"]), r"reward head would .* task_type='SEQ_CLS'"),
        (lora(lora_dropout=0.05), "lora_dropout=0.05 has no effect .* TRL's default. Set lora_dropout=0, or disable"),
    ],
)
def test_adapter_that_cannot_work_is_refused_before_the_model_loads(peft_config, message, config, plain):
    with pytest.raises(ValueError, match=message):
        RewardTrainer("/no/such/model", args=config(), train_dataset=plain, peft_config=peft_config)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "lora"])
def test_name_of_an_adapter_is_refused_before_its_base_loads(peft_config, task_type, config, plain, tmp_path):
    """Of a policy, as recipes/sft.py leaves one, or of a reward model."""
    lora(task_type=task_type, base_model_name_or_path="/no/such/base").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is an adapter.* merge it .* first .* or name that base, /no/such/base"):
        RewardTrainer(str(tmp_path), args=config(), train_dataset=plain, peft_config=peft_config)


def test_adapter_of_a_reward_model_is_trained_on(config, model_name, plain, tmp_path):
    """As the message for its name says."""
    base = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1)
    get_peft_model(base, lora()).save_pretrained(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    RewardTrainer(model, args=config(calibrate=False), train_dataset=plain).train()
    after = dict(model.named_parameters())
    assert {name.split(".")[-3] for name in before} == {"lora_A", "lora_B", "modules_to_save"}
    assert not any(torch.equal(after[name], weight) for name, weight in before.items() if "lora_A" not in name)


def test_reward_model_over_a_quantized_base_is_not_rounded_where_it_is_trained_on(config, model_name, plain):
    """Neither its adapter nor its head, both of which TRL casts to bfloat16."""
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["score"])
    options = {"num_labels": 1, "quantization_config": quantization, "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(model_name, **options)
    model = get_peft_model(model, lora(init_lora_weights=False))
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    after = dict(RewardTrainer(model, args=config(), train_dataset=plain).model.named_parameters())
    assert {name.split(".")[-3] for name in before} == {"lora_A", "lora_B", "modules_to_save"}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_dropout_of_adapters_acts_where_it_is_wanted(config, model_name, plain):
    args = config(disable_dropout=False)
    trainer = RewardTrainer(model_name, args=args, train_dataset=plain, peft_config=lora(lora_dropout=0.05))
    assert {m.p for n, m in trainer.model.named_modules() if n.endswith("lora_dropout.default")} == {0.05}


def test_soft_prompts_are_found_again_with_their_head(config, model_name, plain):
    args = config(max_steps=2, calibrate=False)
    peft_config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    trainer = RewardTrainer(model_name, args=args, train_dataset=plain, peft_config=peft_config)
    trainer.train()
    trainer.save_model()
    texts = ["Hello.", "How do I boil an egg?"]
    scores = RewardModel(trainer.model, trainer.processing_class).score(texts)
    assert RewardModel.from_pretrained(args.output_dir).score(texts) == pytest.approx(scores, abs=1e-6)


def test_margin_that_only_the_held_out_rows_have_is_refused(config, preferences, plain):
    for train_dataset in (plain, plain.to_iterable_dataset()):
        with pytest.raises(DataError, match="the eval dataset, column 'margin': the train dataset has no such column"):
            RewardTrainer("/no/such/model", args=config(), train_dataset=train_dataset, eval_dataset=preferences)


def test_head_is_initialised_as_asked():
    head = torch.nn.Linear(4095, 1)
    initialize_head(head, "normal", seed=0)
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.05) and head.bias.item() == 0
    initialize_head(head, "inverse_sqrt", seed=0)
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(4096), rel=0.05)
    first = head.weight.clone()
    initialize_head(head, "inverse_sqrt", seed=0)
    assert torch.equal(head.weight, first)
    initialize_head(head, "inverse_sqrt", seed=1)
    assert not torch.equal(head.weight, first)


@pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "lora"])
def test_trainer_initialises_the_head_that_trains(peft_config, config, model_name, plain):
    args = config(head_init="inverse_sqrt")
    trainer = RewardTrainer(model_name, args=args, train_dataset=plain, peft_config=peft_config)
    head = score_layer(trainer.model)
    expected = torch.nn.Linear(head.in_features, 1, bias=False)
    initialize_head(expected, "inverse_sqrt", seed=args.seed)
    assert head.weight.requires_grad and torch.equal(head.weight, expected.weight)


def test_dropout_before_the_head_acts_in_training_only():
    torch.manual_seed(0)
    head = torch.nn.Linear(1000, 1, bias=False)
    head.weight.data.fill_(1.0)
    add_head_dropout(head, 0.25)
    hidden = torch.ones(400, 1000)
    assert torch.equal(head.eval()(hidden), torch.full((400, 1), 1000.0))
    scores = head.train()(hidden)
    # Each score is 1000 * kept / 0.75 with kept ~ Binomial(1000, 0.75) / 1000.
    assert scores.mean().item() == pytest.approx(1000, rel=0.01)
    assert scores.std().item() == pytest.approx(1000 * math.sqrt(0.75 * 0.25 / 1000) / 0.75, rel=0.15)


def test_dropout_changes_the_training_loss_and_not_the_evaluation(config, model_name, plain):
    losses = {}
    for p in (0.0, 0.5):
        args = config(head_dropout=p, calibrate=False)
        trainer = RewardTrainer(model_name, args=args, train_dataset=plain, eval_dataset=plain)
        evaluated = trainer.evaluate()["eval_loss"]
        trainer.train()
        losses[p] = (evaluated, next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    assert losses[0.0][0] == losses[0.5][0]
    assert abs(losses[0.0][1] - losses[0.5][1]) > 1e-3


def test_calibration_centers_the_scores_and_minimises_the_negative_log_likelihood(config, model_name, plain):
    args = config(max_steps=8, per_device_train_batch_size=8, learning_rate=3e-3, per_device_eval_batch_size=3)
    trainer = RewardTrainer(model_name, args=args, train_dataset=plain, eval_dataset=plain)
    trainer.train()
    chosen, rejected = [], []
    trainer.model.eval()
    for row in trainer.eval_dataset:
        for ids, scores in ((row["chosen_ids"], chosen), (row["rejected_ids"], rejected)):
            with torch.no_grad():
                scores.append(trainer.model(torch.tensor([ids])).logits.item())
    settings = trainer.settings
    assert settings.score_offset == pytest.approx(sum(chosen + rejected) / 16, abs=1e-4)
    difference = torch.tensor(chosen, dtype=torch.float64) - torch.tensor(rejected, dtype=torch.float64)

    def loss(temperature):
        return -torch.nn.functional.logsigmoid(difference / temperature).mean().item()

    # Where all pairs are ordered rightly, the best temperature is the smallest one allowed.
    for factor in (0.9, 1.1):
        if (difference < 0).any():
            assert loss(settings.temperature) <= loss(settings.temperature * factor) + 1e-6


def test_calibration_without_held_out_pairs_says_what_to_do(config, model_name, plain, caplog):
    for calibrate in (False, True):
        trainer = RewardTrainer(model_name, args=config(max_steps=1, calibrate=calibrate), train_dataset=plain)
        trainer.train()
        said = [r.getMessage() for r in caplog.records if r.name == "rlhf_ext.trainers.reward"]
        assert len(said) == calibrate and all(
            "are not calibrated, for want of an eval_dataset" in text for text in said
        )
    with pytest.raises(ValueError, match="pass an eval_dataset"):
        trainer.calibrate()


def test_saved_model_is_plain_and_its_settings_lie_beside_it(config, model_name, plain, tmp_path):
    args = config(max_length=128)
    trainer = RewardTrainer(model_name, args=args, train_dataset=plain, eval_dataset=plain)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "run"
    settings = RewardModelSettings.load(folder)
    assert settings == trainer.settings and settings.max_length == 128 and settings.dtype == "float32"
    assert json.loads((folder / "reward_model.json").read_text())["score_offset"] == settings.score_offset != 0
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_base_with_lora_trains_its_head_and_adapters_only(bits, config, model_name, plain):
    trainer = RewardTrainer(
        model_name,
        args=config(per_device_train_batch_size=8, max_steps=4, head_dropout=0.0),
        train_dataset=plain,
        eval_dataset=plain,
        quantization_config=BitsAndBytesConfig(**QUANTIZED[bits]),
        peft_config=lora(),
    )
    quantized = {n: p.clone() for n, p in trainer.model.named_parameters() if p.dtype in (torch.int8, torch.uint8)}
    assert len(quantized) > 20
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    head = score_layer(trainer.model)
    before = head.weight.detach().clone()
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < history[0]  # the same eight pairs in every step
    assert not torch.equal(head.weight, before)
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in quantized.items())
    assert trainer.settings.quantization[f"load_in_{bits}bit"] is True


@pytest.mark.parametrize("bits", [8, 4])
def test_checkpoint_that_was_saved_quantized(bits, config, model_name, tokenizer, plain, tmp_path):
    quantization = BitsAndBytesConfig(**QUANTIZED[bits])
    base = AutoModelForCausalLM.from_pretrained(model_name, quantization_config=quantization)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    args = config(calibrate=False, max_steps=1)
    trainer = RewardTrainer(str(tmp_path / "base"), args=args, train_dataset=plain, peft_config=lora())
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad and "lora" not in name}
    assert trained == {"base_model.model.score.modules_to_save.default.weight"}
    trainer.train()
    trainer.save_model()
    score = RewardModel(trainer.model, trainer.processing_class).score("Hello.")
    assert RewardModel.from_pretrained(args.output_dir).score("Hello.") == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "lora"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(peft_config, config, model_name, plain, tmp_path):
    """With dropout on, whose random state a checkpoint must hold."""

    def train(folder, resume=None):
        args = config(
            output_dir=str(tmp_path / folder),
            max_steps=4,
            per_device_train_batch_size=2,
            save_strategy="steps",
            save_steps=2,
        )
        trainer = RewardTrainer(model_name, args=args, train_dataset=plain, eval_dataset=plain, peft_config=peft_config)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 4
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        return weights, trainer.settings

    whole, settings = train("whole")
    for step in (2, 4):  # the last one is complete
        resumed, resumed_settings = train(f"resumed-{step}", resume=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert settings == resumed_settings


@pytest.fixture
def encoder(tmp_path):
    """A tiny BERT with a vocabulary of letters, which has no end-of-sequence token."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
    tokenizer = BertTokenizerFast(vocab={token: number for number, token in enumerate(vocabulary)})
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(vocabulary), num_labels=1, max_position_embeddings=64, **sizes)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "lora"])
def test_encoder_as_backbone(peft_config, config, encoder, caplog):
    rows = [{"prompt": "abc", "chosen": " d" * n, "rejected": " e" * n} for n in range(1, 9)]
    dataset = Dataset.from_list(rows)
    args = config(max_steps=12, per_device_train_batch_size=8, learning_rate=5e-2, head_dropout=0.0)
    trainer = RewardTrainer(encoder, args=args, train_dataset=dataset, eval_dataset=dataset, peft_config=peft_config)
    tokenizer = trainer.processing_class
    assert tokenizer.convert_ids_to_tokens(trainer.train_dataset[0]["chosen_ids"])[-2:] == ["[SEP]", "[SEP]"]
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < history[0] and score_layer(trainer.model).weight.requires_grad
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(args.output_dir).eos_token == "[SEP]"  # for those who score with it
    assert not [record for record in caplog.records if record.name.startswith("transformers")]


def test_pad_token_that_is_the_end_token_does_not_hide_the_end(config, model_name, plain):
    """Transformers looks for the last token that is not padding, and would score the token before the end."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    rows = [{side: "".join(m["content"] for m in row[side]) for side in row} for row in plain]
    dataset = plain.from_list(rows)
    trainer = RewardTrainer(
        model_name,
        args=config(head_dropout=0.0, calibrate=False),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    scores = {}
    for pad_token_id in (trainer.model.config.pad_token_id, tokenizer.eos_token_id):
        trainer.model.config.pad_token_id = pad_token_id
        padded = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, pad_token_id)
        with torch.no_grad():
            scores[pad_token_id] = trainer.model(padded, attention_mask=batch["attention_mask"]).logits
    first, second = scores.values()
    assert len(scores) == 2
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
