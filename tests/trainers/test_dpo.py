"""`DPOTrainer` against TRL's own trainer on a real, small model: same losses, metrics and gradients, and no more."""

import importlib.metadata
import math

import bitsandbytes
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

from rlhf_ext import DPOConfig, DPOTrainer
from rlhf_ext.data_checks import DataError
from rlhf_ext.errors import NotFiniteError
from rlhf_ext.losses.dpo import DPOBatch
from rlhf_ext.plugins import PluginError
from rlhf_ext.run_folder import last_complete_checkpoint
from rlhf_ext.trainers.dpo import TRL_LOSSES

SEEN: list[DPOBatch] = []
# TRL's loss, and the plugin that must do exactly the same.
TWINS = {
    "sigmoid": "rlhf_ext.losses.dpo:sigmoid",
    "hinge": "rlhf_ext.losses.dpo:hinge",
    "ipo": "rlhf_ext.losses.dpo:ipo",
    "sigmoid_norm": "average_logp",
}


def remember(batch, *, beta):
    """A loss that keeps the batches it is called with."""
    SEEN.append(batch)
    return -(batch.chosen_logps - batch.rejected_logps) * batch.extras.get("margin", 1.0)


def looks_at_shapes(batch, *, beta):
    """A loss that checks the extras and computes nothing with them."""
    assert {**batch.extras}["margin"].shape == batch.chosen_logps.shape
    return batch.rejected_logps - batch.chosen_logps


def wrong_shape(batch, *, beta):
    return (batch.chosen_logps - batch.rejected_logps).mean()


def no_tensor(batch, *, beta):
    return 0.5


def detached(batch, *, beta):
    return (batch.rejected_logps - batch.chosen_logps).detach()


def config(tmp_path, cls=DPOConfig, **options):
    defaults = {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return cls(**defaults | options)


def lora(**options):
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, **options)


def losses_and_weights(trainer):
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluation = trainer.evaluate()
    drop = ("runtime", "per_second")
    evaluation = {key: value for key, value in evaluation.items() if not key.endswith(drop)}
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return history, evaluation, weights


def assert_same_run(ours, theirs):
    """Metrics equal to the digits the log keeps; weights to fp32 rounding, which Adam's division magnifies."""
    for our_entry, their_entry in zip(ours[0], theirs[0], strict=True):
        assert our_entry == pytest.approx(their_entry, rel=1e-4, abs=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4, abs=1e-5)
    for name, weight in theirs[2].items():
        torch.testing.assert_close(ours[2][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "setting"),
    [
        *((name, "full") for name in TWINS),
        *(("sigmoid", setting) for setting in ("lora", "precomputed", "checkpointed", "accumulated")),
    ],
)
def test_plugin_loss_trains_exactly_as_the_same_loss_in_trl(theirs, setting, tmp_path, model_name, preferences):
    options = {
        "full": {},
        "lora": {},
        "precomputed": {"precompute_ref_log_probs": True},
        "checkpointed": {"gradient_checkpointing": True},
        "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    }[setting]
    runs = []
    for trainer_class, config_class, loss in (
        (DPOTrainer, DPOConfig, TWINS[theirs]),
        (trl.DPOTrainer, trl.DPOConfig, theirs),
    ):
        trainer = trainer_class(
            model_name,
            args=config(tmp_path, config_class, loss_type=[loss], **options),
            train_dataset=preferences,
            eval_dataset=preferences,
            peft_config=lora() if setting == "lora" else None,
        )
        runs.append(losses_and_weights(trainer))
    assert_same_run(*runs)
    assert runs[0][0][-1]["rewards/margins"] != 0


def test_mix_of_trl_and_plugin_losses_is_the_weighted_sum(tmp_path, model_name, preferences):
    def first_loss(**options):
        args = config(tmp_path, max_steps=1, **options)
        trainer = DPOTrainer(model_name, args=args, train_dataset=preferences, peft_config=lora())
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        return trainer.compute_loss(trainer.model, batch).item()

    parts = [first_loss(loss_type=[name]) for name in ("sft", "simpo", "cdpo")]
    mixed = first_loss(loss_type=["sft", "simpo", "cdpo"], loss_weights=[0.5, 2.0, 0.25])
    assert mixed == pytest.approx(0.5 * parts[0] + 2.0 * parts[1] + 0.25 * parts[2], rel=1e-5)


def test_batch_holds_sums_over_completion_tokens_only(tmp_path, model_name, preferences, tokenizer):
    """Log-probabilities, reference and lengths against a loop over single, unpadded sequences."""
    SEEN.clear()
    args = config(tmp_path, loss_type=f"{__name__}:remember", extra_columns=["margin"])
    trainer = DPOTrainer(model_name, args=args, train_dataset=preferences, peft_config=lora())
    trainer.model.eval()
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        trainer.compute_loss(trainer.model, inputs)
    batch = SEEN[-1]
    assert batch.extras["margin"].tolist() == pytest.approx(preferences["margin"][:4])
    for side in ("chosen", "rejected"):
        for index in range(4):
            row = trainer.train_dataset[index]
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            start = len(row["prompt_ids"])
            for disable, prefix in ((False, ""), (True, "ref_")):
                with torch.no_grad():
                    if disable:
                        with trainer.model.disable_adapter():
                            logits = trainer.model(ids).logits
                    else:
                        logits = trainer.model(ids).logits
                by_token = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[start - 1 :]
                got = getattr(batch, f"{prefix}{side}_logps")[index].item()
                assert got == pytest.approx(by_token.sum().item(), rel=1e-4)
            assert getattr(batch, f"{side}_lengths")[index].item() == len(row[f"{side}_ids"])


def test_extra_columns_follow_their_rows_through_shuffling(tmp_path, model_name, preferences):
    """`margin` is made the length of the chosen completion, which the batch knows too."""
    SEEN.clear()
    args = config(tmp_path, loss_type=f"{__name__}:remember", extra_columns=["margin"], per_device_train_batch_size=2)
    trainer = DPOTrainer(model_name, args=args, train_dataset=preferences, peft_config=lora())
    SEEN.clear()  # of the trial batches
    tokenized = trainer.train_dataset.remove_columns("margin")
    lengths = [float(len(ids)) for ids in tokenized["chosen_ids"]]
    trainer.train_dataset = tokenized.add_column("margin", lengths)
    trainer.train()
    assert len(SEEN) == 2
    for batch in SEEN:
        assert batch.extras["margin"].tolist() == batch.chosen_lengths.tolist()


def test_extra_columns_with_precomputed_reference_and_a_new_evaluation_set(tmp_path, model_name, preferences):
    args = config(tmp_path, loss_type="odpo", extra_columns=["margin"], precompute_ref_log_probs=True)
    trainer = DPOTrainer(model_name, args=args, train_dataset=preferences, peft_config=lora())
    trainer.train()
    assert math.isfinite(trainer.evaluate(preferences.select(range(4)))["eval_loss"])


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_base_with_lora(bits, tmp_path, model_name, preferences):
    quantization = (
        BitsAndBytesConfig(load_in_8bit=True)
        if bits == 8
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    )
    trainer = DPOTrainer(
        model_name,
        args=config(tmp_path, loss_type="simpo", beta=2.0, per_device_train_batch_size=8, max_steps=4),
        train_dataset=preferences,
        quantization_config=quantization,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    quantized = {n: p.clone() for n, p in trainer.model.named_parameters() if p.dtype in (torch.int8, torch.uint8)}
    assert len(quantized) > 20
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < history[0]  # the same eight pairs in every step
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in quantized.items())


def test_evaluation_before_training_on_a_4_bit_base_leaves_the_gradients_as_they_are(tmp_path, model_name, preferences):
    """On a CPU bitsandbytes would repack the weights for a kernel without gradient."""
    losses = []
    for evaluate_first in (False, True):
        trainer = DPOTrainer(
            model_name,
            args=config(tmp_path, loss_type="simpo", beta=2.0, per_device_train_batch_size=4, max_steps=2),
            train_dataset=preferences,
            eval_dataset=preferences,
            quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        if evaluate_first:
            trainer.evaluate()
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def test_reference_precomputed_on_a_4_bit_base_leaves_the_gradients_as_they_are(
    tmp_path, model_name, preferences, monkeypatch
):
    """TRL precomputes in its constructor: layers must not be repacked even then, also on a CPU that would."""
    passes = []

    def forward(layer, inputs):
        passes.append(layer.support_avx512bf16_for_cpu)
        return untouched(layer, inputs)

    untouched = bitsandbytes.nn.Linear4bit.forward
    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", forward)
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    DPOTrainer(
        model_name,
        args=config(tmp_path, loss_type="simpo", precompute_ref_log_probs=True),
        train_dataset=preferences,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    assert passes and not any(passes)


def test_pretrained_adapter_is_its_own_reference(tmp_path, model_name, preferences):
    """TRL keeps a frozen copy of the adapter as reference: rewards start at 0, which the base would not give."""
    SEEN.clear()
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    get_peft_model(base, lora()).save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    args = config(tmp_path, loss_type=f"{__name__}:remember")
    trainer = DPOTrainer(model, args=args, train_dataset=preferences)
    SEEN.clear()  # of the trial batches
    trainer.train()
    torch.testing.assert_close(SEEN[0].chosen_logps, SEEN[0].ref_chosen_logps, rtol=1e-5, atol=1e-4)
    assert (SEEN[1].chosen_logps - SEEN[1].ref_chosen_logps).abs().max() > 1e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_adapter_over_a_quantized_base_is_not_rounded(bits, tmp_path, model_name, preferences):
    """TRL casts it to bfloat16: small updates of its weights would be lost, and rewards would not start at 0."""
    SEEN.clear()
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    get_peft_model(base, lora()).save_pretrained(tmp_path / "adapter")
    quantization = BitsAndBytesConfig(
        load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(model_name, quantization_config=quantization)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    args = config(tmp_path, loss_type=f"{__name__}:remember", learning_rate=1e-6)
    trainer = DPOTrainer(model, args=args, train_dataset=preferences)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained.keys() == before.keys() and all(torch.equal(trained[name], before[name]) for name in before)
    SEEN.clear()  # of the trial batches
    trainer.train()
    assert torch.equal(SEEN[0].chosen_logps, SEEN[0].ref_chosen_logps)
    changed = torch.cat([(trained[name] != before[name]).flatten() for name in before])
    assert changed.float().mean() > 0.9


def test_lora_dropout_is_not_taken_away_silently(tmp_path, model_name, preferences):
    """Also that of a model with an adapter, where doing what the message says is enough."""

    def train(model, **options):
        peft_config = lora(lora_dropout=0.05) if isinstance(model, str) else None
        return DPOTrainer(model, args=config(tmp_path, **options), train_dataset=preferences, peft_config=peft_config)

    with pytest.raises(ValueError, match=r"lora_dropout=0.05 has no effect .* TRL's default. Set lora_dropout=0, or"):
        train("/no/such/model")
    trainer = train(model_name, disable_dropout=False)
    assert {m.p for n, m in trainer.model.named_modules() if n.endswith("lora_dropout.default")} == {0.05}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model_name), lora(lora_dropout=0.05))
    with pytest.raises(ValueError, match=r"Set model.peft_config\['default'\].lora_dropout = 0, or disable_dropout=F"):
        train(adapted)
    adapted.peft_config["default"].lora_dropout = 0
    assert not any(m.p for m in train(adapted).model.modules() if isinstance(m, torch.nn.Dropout))


@pytest.mark.parametrize("peft_config", [None, lora()], ids=["full", "lora"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(peft_config, tmp_path, model_name, preferences):
    def train(folder, resume=None, **options):
        args = config(
            tmp_path / folder,
            loss_type="cdpo",
            max_steps=4,
            per_device_train_batch_size=2,
            save_strategy="steps",
            save_steps=2,
            **options,
        )
        trainer = DPOTrainer(model_name, args=args, train_dataset=preferences, peft_config=peft_config)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 4
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}

    whole = train("whole")
    for step in (2, 4):  # the last one is complete, in the middle of an epoch
        resumed = train(f"resumed-{step}", resume=str(tmp_path / "whole" / "run" / f"checkpoint-{step}"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("loss", ["sigmoid", "average_logp"])
def test_run_that_diverges_stops_and_leaves_its_checkpoint_whole(loss, tmp_path, model_name, preferences):
    """Transformers would leave the loss out of its log, and save weights that are no numbers."""
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5, "beta": 1.0}
    args = config(tmp_path, loss_type=loss, learning_rate=1e-3, lr_scheduler_type="constant", **saving)
    trainer = DPOTrainer(model_name, args=args, train_dataset=preferences)

    class Spoil(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                trainer.model.lm_head.weight.data.fill_(float("inf"))

    trainer.add_callback(Spoil())
    with pytest.raises(
        NotFiniteError, match=r"The loss of step 3 is not finite. The last checkpoint, checkpoint-2, was"
    ):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_complete_run_that_ends_with_an_epoch_says_so_when_it_is_resumed(tmp_path, model_name, preferences, caplog):
    """Transformers begins no other epoch then."""
    args = config(tmp_path, max_steps=2, per_device_train_batch_size=4, save_strategy="steps", save_steps=2)
    DPOTrainer(model_name, args=args, train_dataset=preferences).train()
    assert "Nothing was left" not in caplog.text
    trainer = DPOTrainer(model_name, args=args, train_dataset=preferences)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert "is of step 2, and the run ends at step 2. To go on, raise" in " ".join(caplog.text.split())


@pytest.mark.parametrize("while_saving", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_run_interrupted_while_saving_keeps_a_complete_checkpoint(
    while_saving, tmp_path, model_name, preferences, monkeypatch
):
    """With room for one checkpoint, the older one goes only when the newer one is complete."""

    def trainer():
        saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 4}
        return DPOTrainer(model_name, args=config(tmp_path, **saving), train_dataset=preferences, peft_config=lora())

    def interrupt(self, *args, **kwargs):
        untouched(self, *args, **kwargs)
        if self.state.global_step == 3:
            raise KeyboardInterrupt

    untouched = getattr(DPOTrainer, while_saving)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DPOTrainer, while_saving, interrupt)
        trainer().train()
    folder = tmp_path / "run"
    assert last_complete_checkpoint(folder) == folder / "checkpoint-2"
    trainer().train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert last_complete_checkpoint(folder) == folder / "checkpoint-4"
    assert len([*folder.glob("checkpoint-*")]) == 1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("wrong_shape", r"returned shape \(\); it must return a tensor of shape \(2,\), one loss per pair"),
        ("no_tensor", "returned float"),
        ("detached", "without gradient"),
    ],
)
def test_loss_that_returns_the_wrong_thing(loss, message, tmp_path):
    with pytest.raises(PluginError, match=message):
        config(tmp_path, loss_type=f"{__name__}:{loss}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "simpoo"}, "Did you mean 'simpo'"),
        ({"loss_type": "cdpo", "loss_kwargs": {"smoothing": 0.1}}, "no plugin loss in loss_type takes it"),
        ({"loss_type": "sigmoid", "loss_kwargs": {"gamma": 0.1}}, "takes it. The plugin losses are: none"),
        ({"loss_type": ["simpo", "simpo"]}, "names 'simpo' twice: name it once, and add up its loss_weights"),
        ({"loss_type": "simpo", "extra_columns": ["margin"]}, r"no loss in loss_type computes with extras\['margin'\]"),
        ({"loss_type": ["odpo", "simpo"], "extra_columns": ["margin", "weight"]}, "The column 'weight': no loss"),
        ({"loss_type": f"{__name__}:looks_at_shapes", "extra_columns": ["margin"]}, "The column 'margin': no loss"),
        ({"loss_type": "odpo", "extra_columns": [3]}, "must be names of dataset columns"),
        ({"f_alpha_divergence_coef": 0.3}, "0.3 has no effect under f_divergence_type='reverse_kl': set f_divergence"),
        ({"loss_type": "simpo", "loss_kwargs": {"beta": 2.0}}, "beta is an option of its own"),
        ({"loss_type": "sigmoid", "label_smoothing": 0.1}, "use loss_type='cdpo'"),
        ({"loss_type": "simpo", "label_smoothing": 0.1}, "no effect on the loss 'simpo'"),
        ({"loss_type": "cdpo", "label_smoothing": 0.1, "loss_kwargs": {"label_smoothing": 0.2}}, "set twice"),
        ({"loss_type": "odpo"}, r"fails on a trial batch: .* extra_columns=\['margin'\]"),
        ({"loss_type": "cdpo", "label_smoothing": 0.7}, r"must lie in \[0, 0.5\)"),
        ({"loss_type": "simpo", "loss_kwargs": ["gamma"]}, "loss_kwargs must be a dict"),
        ({"loss_type": "simpo", "f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef=0.3 has no effect"),
        ({"loss_type": "simpo", "f_divergence_type": "js_divergence"}, "f_divergence_type='js_divergence' has no"),
        ({"loss_type": ["sigmoid", "simpo"], "ld_alpha": 0.5}, "ld_alpha=0.5 has no effect on the loss 'simpo'"),
        ({"loss_type": "cdpo", "use_weighting": True}, "use_weighting=True has no effect on the loss 'cdpo'"),
        ({"loss_type": "sigmoid", "discopop_tau": 0.1}, "discopop_tau=0.1 has no effect"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect.* Use label_smoothing;"),
        ({"padding_free": True}, "padding_free=True has no effect.* train_sampling_strategy='group_by_length'"),
        ({"loss_type": "sigmoid", "extra_columns": ["margin"]}, "read no extra columns"),
        ({"loss_type": ["sigmoid", "simpo"], "loss_weights": [1.0]}, "same length as `loss_type`"),
    ],
)
def test_option_without_effect_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_type": "aot", "label_smoothing": 0.1},
        {"loss_type": "odpo", "extra_columns": "margin"},
        {"loss_type": ["robust", "simpo"], "label_smoothing": 0.1},
        {"loss_type": "cdpo", "label_smoothing": 0.2},
        {"loss_type": "discopop", "discopop_tau": 0.1},
        {"loss_type": "sigmoid", "f_divergence_type": "js_divergence", "use_weighting": True},
        {"loss_type": ["simpo", "cdpo"], "loss_kwargs": {"gamma": 1.0, "label_smoothing": 0.3}},
        {"loss_type": "simpo", "loss_kwargs": '{"gamma": 1.0}'},
        {"loss_type": "simpo", "extra_columns": None},
        {"loss_type": ["simpo", "odpo"], "extra_columns": ["margin"]},
        {"loss_type": f"{__name__}:remember", "extra_columns": ["margin"]},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    ],
)
def test_option_with_effect_is_accepted(options, tmp_path):
    config(tmp_path, **options)


def test_label_smoothing_option_reaches_the_plugin(tmp_path):
    args = config(tmp_path, loss_type=["cdpo", "simpo"], label_smoothing=0.2, loss_kwargs={"gamma": 1.0})
    losses = args.plugin_losses()
    assert losses["cdpo"].keywords == {"label_smoothing": 0.2}
    assert losses["simpo"].keywords == {"gamma": 1.0}


def test_plugin_by_a_name_of_trl_is_ambiguous(tmp_path, monkeypatch):
    from rlhf_ext import plugins

    monkeypatch.setitem(plugins._registry["dpo_loss"], "robust", remember)
    with pytest.raises(PluginError, match="'robust' is registered, but TRL has a loss by that name"):
        config(tmp_path, loss_type="robust")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # pytest.warns repeats it as if it were ours
def test_entry_point_by_a_name_of_trl_does_not_hide_that_of_trl(tmp_path, monkeypatch):
    from rlhf_ext import plugins

    entry = importlib.metadata.EntryPoint("robust", "their_package:robust", "rlhf_ext.dpo_loss")
    monkeypatch.setattr(plugins, "_entry_points", lambda kind: importlib.metadata.EntryPoints([entry]))
    with pytest.warns(UserWarning, match=r"'robust' is TRL's loss. Write 'module:function' .*their_package"):
        assert config(tmp_path, loss_type="robust").plugin_losses() == {}


def test_configuration_of_trl_is_refused(tmp_path, model_name, preferences):
    with pytest.raises(TypeError, match=r"must be an rlhf_ext.DPOConfig, got trl.*DPOConfig"):
        DPOTrainer(model_name, args=config(tmp_path, trl.DPOConfig), train_dataset=preferences)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, float("nan")], r"the train dataset, row 2, column 'margin': nan is not a finite number"),
        ([1.0, None], r"row 2, column 'margin': it is missing here"),
        (["1", "2"], r"row 1, column 'margin': '1' is not a finite number"),
    ],
)
def test_bad_extra_column_is_refused_before_the_model_loads(values, message, tmp_path, preferences):
    dataset = preferences.select(range(2)).remove_columns("margin").add_column("margin", values)
    args = config(tmp_path, loss_type="odpo", extra_columns=["margin"])
    with pytest.raises(DataError, match=message):
        DPOTrainer("/no/such/model", args=args, train_dataset=dataset)


def test_bad_extra_column_that_could_not_be_checked_before_is_refused_in_its_batch(tmp_path, model_name, preferences):
    args = config(tmp_path, loss_type="odpo", extra_columns=["margin"])
    trainer = DPOTrainer(model_name, args=args, train_dataset=preferences)
    later = preferences.remove_columns("margin").add_column("margin", [1.0] * 7 + [float("nan")])
    with pytest.raises(DataError, match="column 'margin': nan is not a finite number"):
        trainer.evaluate(later)


def test_evaluation_set_named_train_does_not_hide_the_training_set(tmp_path, preferences):
    bad = preferences.remove_columns("margin").add_column("margin", [float("nan")] * 8)
    args = config(tmp_path, loss_type="odpo", extra_columns=["margin"])
    with pytest.raises(DataError, match="the train dataset, row 1"):
        DPOTrainer("/no/such/model", args=args, train_dataset=bad, eval_dataset={"train": preferences})


def test_missing_extra_column_is_refused_before_the_model_loads(tmp_path, preferences: Dataset):
    args = config(tmp_path, loss_type="odpo", extra_columns=["margin"])
    with pytest.raises(DataError, match="no column 'margin'"):
        DPOTrainer("/no/such/model", args=args, train_dataset=preferences.remove_columns("margin"))


def test_trl_losses_are_those_of_the_installed_trl(tmp_path, model_name, preferences):
    """TRL names its losses in the error for an unknown one; ours must be the same set."""
    trainer = trl.DPOTrainer(
        model_name, args=config(tmp_path, trl.DPOConfig, loss_type=["no_such_loss"]), train_dataset=preferences
    )
    with pytest.raises(ValueError, match="Unknown loss type") as error:
        trainer.train()
    named = str(error.value).partition("one of [")[2]
    assert {name.strip(" '\"]") for name in named.split(",")} == TRL_LOSSES
