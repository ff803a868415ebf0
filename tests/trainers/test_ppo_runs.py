"""Whole runs of `PPOTrainer`: resumed, saved, stopped, misled. What TRL's old trainer got wrong is tested here too."""

import logging
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    TrainerCallback,
    get_constant_schedule,
)

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.critics import HeadCritic
from rlhf_ext.errors import NotFiniteError
from rlhf_ext.trainers.ppo_metrics import completion_metrics


def count_e(completions, **kwargs):
    return [completion[0]["content"].count("e") / 5 for completion in completions]


@pytest.fixture
def prompts():
    from rlhf_ext.demo.data import prompt_dataset

    return prompt_dataset("train", size=8)


@pytest.fixture
def make_trainer(cpu_options, model_name, prompts, tmp_path):
    def make(*, lora=None, model=None, reward=count_e, dataset=prompts, eval_dataset=None, folder="run", **options):
        options = cpu_options | {"max_completion_length": 12, "max_steps": 4} | options
        options["output_dir"] = str(tmp_path / folder)
        trl_options = {"peft_config": LoraConfig(r=4, target_modules="all-linear", **lora)} if lora is not None else {}
        return PPOTrainer(model or model_name, reward, PPOConfig(**options), dataset, eval_dataset, **trl_options)

    return make


def log_of(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(lora, make_trainer, tmp_path):
    """Two batches of completions an epoch, two epochs: resumed within the first, between both, and in the second."""

    def train(folder, resume=None):
        seen = []

        def reward(prompts, completions, **kwargs):
            seen.extend((prompt[0]["content"], c[0]["content"]) for prompt, c in zip(prompts, completions, strict=True))
            return count_e(completions)

        options = {"scale_scores": True, "kl_target": 0.1, "kl_horizon": 50, "num_train_epochs": 2, "max_steps": -1}
        saving = {"save_strategy": "steps", "save_steps": 1}
        trainer = make_trainer(lora=lora, reward=reward, folder=folder, **options, **saving)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 16
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        optimizer = trainer.optimizer.state_dict()["state"]
        rest = (trainer.kl_controller.coef, trainer.score_stats.state_dict())
        return weights, trainer.critic.module.state_dict(), optimizer, rest, seen

    whole = train("whole")
    assert sorted(path.name for path in (tmp_path / "whole").glob("checkpoint-*")) == [
        f"checkpoint-{n}" for n in (12, 16, 4, 8)
    ]
    assert len(whole[4]) == 16
    for step in (4, 8, 12):
        resumed = train(f"resumed-{step}", str(tmp_path / f"whole/checkpoint-{step}"))
        assert resumed[4] == whole[4][step:]
        assert resumed[3] == whole[3]
        for ours, theirs in zip(resumed[:2], whole[:2], strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        for number, state in whole[2].items():
            ours = resumed[2][number]
            assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(state[key])) for key in state)


def test_complete_run_makes_no_step_more_when_it_is_resumed(make_trainer, tmp_path, caplog):
    """Transformers would make one; a constant learning rate shows it in the weights."""

    def train(resume=None):
        options = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant", "max_steps": 6}
        trainer = make_trainer(scale_scores=True, **options)
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 6
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        return weights, trainer.kl_controller.coef, trainer.score_stats.state_dict()

    whole = train()
    assert "Nothing was left to train" not in caplog.text
    resumed = train(str(tmp_path / "run/checkpoint-6"))  # in the middle of a batch, and of an epoch
    assert "the checkpoint is of step 6, and the run ends at step 6. To go on, raise" in " ".join(caplog.text.split())
    assert resumed[1:] == whole[1:]
    assert all(torch.equal(weight, whole[0][name]) for name, weight in resumed[0].items())


def test_resuming_from_the_middle_of_a_batch_raises(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=4, max_steps=6).train()  # the last one is saved at step 6
    with pytest.raises(ValueError, match="made at step 6, and batches of completions end every 4 steps"):
        make_trainer(max_steps=8).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-6"))


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
def test_saved_policy_needs_nothing_of_ours_and_the_critic_lies_beside_it(lora, make_trainer, tmp_path, model_name):
    trainer = make_trainer(lora=lora)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "run"
    if lora is None:
        loaded, problems = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", output_loading_info=True)
        assert not any(problems.values())
    else:
        base = AutoModelForCausalLM.from_pretrained(model_name, dtype="float32")
        loaded = PeftModel.from_pretrained(base, folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    kwargs = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    trainer.model.eval()
    assert torch.equal(loaded.generate(ids, **kwargs), trainer.model.generate(ids, **kwargs))
    assert torch.equal(loaded(ids).logits, trainer.model(ids).logits)
    critic = HeadCritic(loaded, trainer.accelerator)
    critic.load(folder / "critic")
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), trainer.critic.parameters(), strict=True))
    assert critic.module.weight.any()


def test_missing_critic_names_the_file(make_trainer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"critic.safetensors: there are no weights of a critic here"):
        make_trainer().critic.load(tmp_path)


def test_policy_starts_from_an_adapter_which_stays_the_reference(make_trainer, model_name, tmp_path):
    """The KL is 0 at first, which the base would not give, and then grows; the reference does not move."""
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    trainer = make_trainer(model=model, max_steps=5)
    reference = {name: p.clone() for name, p in model.named_parameters() if ".ref." in name}
    trainer.train()
    first, second = log_of(trainer, "kl/k3")
    assert first == pytest.approx(0, abs=1e-6) and second > 1e-4
    assert reference and all(torch.equal(p, reference[n]) for n, p in model.named_parameters() if ".ref." in n)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_score_that_is_not_finite_names_the_sample(bad, make_trainer):
    def reward(completions, **kwargs):
        return [0.0, 0.0, bad, 0.0]

    trainer = make_trainer(reward=reward)
    with pytest.raises(NotFiniteError, match=r"1 of 4 completions have no finite score.*The first: prompt .*'user'"):
        trainer.train()


def test_function_may_return_none_where_another_scores(make_trainer):
    def sometimes(completions, **kwargs):
        return [None, 1.0, None, 1.0]

    trainer = make_trainer(reward=[count_e, sometimes], reward_weights=[1.0, 2.0], max_steps=1)
    trainer.train()
    assert log_of(trainer, "score") == pytest.approx(log_of(trainer, "reward"))


def test_loss_that_is_not_finite_stops_before_the_checkpoints_are_spoiled(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=4, max_steps=8, save_total_limit=1)

    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                with torch.no_grad():
                    trainer._buffered_inputs[0]["returns"][2, 0] = float("nan")
                    trainer.critic.module.weight[0, 0] = float("nan")

    trainer.add_callback(Spoil())
    with pytest.raises(
        NotFiniteError, match=r"The sample: prompt .*The last checkpoint, checkpoint-4, was made before"
    ):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


def test_gradient_that_is_not_finite_never_reaches_the_weights(make_trainer):
    trainer = make_trainer(max_grad_norm=0.0)
    trainer.critic.module.weight.register_hook(lambda gradient: gradient * float("inf"))
    message = r"The gradient is not finite. There is no checkpoint to go back to.*of 1 weights, .* them critic.weight."
    with pytest.raises(NotFiniteError, match=message):
        trainer.train()
    assert all(p.isfinite().all() for p in (*trainer.model.parameters(), *trainer.critic.parameters()))


def test_hard_kl_stop_learns_nothing_from_the_batch_that_shows_it(make_trainer, caplog):
    trainer = make_trainer(max_steps=40, kl_stop=0.05, learning_rate=3e-3, weight_decay=0.1)
    kept = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept.append([p.detach().clone() for p in trainer.model.parameters()])

    trainer.add_callback(Keep())
    with caplog.at_level(logging.WARNING, "rlhf_ext"):
        trainer.train()
    steps = trainer.state.global_step
    assert steps < 40 and steps % 4 == 1
    assert log_of(trainer, "kl/k1")[-1] > 0.05 > max(log_of(trainer, "kl/k1")[:-1])
    assert all(torch.equal(a, b) for a, b in zip(kept[-1], kept[-2], strict=True))
    assert "above kl_stop=0.05" in caplog.text


def test_critic_warmup_leaves_the_policy_as_it_is(make_trainer):
    trainer = make_trainer(critic_warmup_steps=4, max_steps=5, weight_decay=0.1)
    policy = [p.detach().clone() for p in trainer.model.parameters()]
    same = []

    class Compare(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            same.append(all(torch.equal(a, b) for a, b in zip(policy, trainer.model.parameters(), strict=True)))

    trainer.add_callback(Compare())
    trainer.train()
    assert same == [True] * 4 + [False]
    assert trainer.critic.module.weight.any()
    assert log_of(trainer, "kl/k3")[1] == 0  # of the second batch, whose policy is still the reference


def test_scores_are_scaled_by_their_running_deviation_then_clipped(make_trainer):
    def reward(completions, **kwargs):
        return [10.0, 12.0, 14.0, 100.0]

    options = {"scale_scores": True, "clip_scores": 1.0, "max_steps": 5}
    trainer = make_trainer(reward=reward, **options)
    trainer.train()
    deviation = torch.tensor([10.0, 12.0, 14.0, 100.0]).std(correction=0).item()
    expected = (10 / deviation + 12 / deviation + 14 / deviation + 1.0) / 4
    assert log_of(trainer, "score") == pytest.approx([expected, expected], rel=1e-5)
    assert log_of(trainer, "reward") == pytest.approx([34.0, 34.0])
    assert trainer.score_stats.count == 8


@pytest.mark.parametrize(
    ("options", "expected"), [({"missing_eos_penalty": 3.0}, -1.0), ({"missing_eos_score": -7.0}, -7.0)]
)
@pytest.mark.parametrize("stop", ["default", "custom"])
def test_missing_eos(stop, options, expected, make_trainer, tokenizer):
    """Scores of completions that were cut off change; one that ends with a custom stop token was not cut off."""
    space = tokenizer.encode(" the", add_special_tokens=False)[0]
    if stop == "custom":
        options = options | {"generation_kwargs": {"eos_token_id": [space, tokenizer.eos_token_id]}}
    trainer = make_trainer(reward=lambda completions, **kwargs: [2.0] * len(completions), **options)
    trainer._scores = torch.full((3,), 2.0)
    ids = torch.tensor([[9, 10, 11], [9, 10, space], [9, tokenizer.eos_token_id, 0]])
    trainer.max_completion_length = 3
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    scores = trainer._shape_scores(trainer._scores, {"completion_ids": ids, "completion_mask": mask})
    assert scores.tolist() == [expected, 2.0 if stop == "custom" else expected, 2.0]


def test_completions_are_cut_at_the_custom_stop_token(make_trainer, tokenizer):
    space = tokenizer.encode(" the", add_special_tokens=False)[0]
    trainer = make_trainer(generation_kwargs={"eos_token_id": space}, max_completion_length=40)
    output = trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(4)])
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
    ]
    assert any(len(row) < 40 for row in rows)
    assert all(row[-1] == space and space not in row[:-1] for row in rows if len(row) < 40)


def test_unhealthy_clip_fraction_and_kl_are_warned_about_once(make_trainer, caplog):
    trainer = make_trainer(max_clip_fraction=0.01, learning_rate=1e-2, kl_target=0.001, kl_horizon=100, max_steps=9)
    with caplog.at_level(logging.WARNING, "rlhf_ext"):
        trainer.train()
    assert caplog.text.count("kl/k1 is") == 1 and "above 0.002" in caplog.text
    assert "clip_fraction is" in caplog.text and "above 0.01. Lower learning_rate" in caplog.text


def test_metrics_of_a_batch(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    names = {
        "score", "kl/k1", "kl/k3", "kl/coef", "entropy", "ratio", "clip_fraction", "value/loss",
        "value/mean", "value/clip_fraction", "value/explained_variance", "distinct_1", "distinct_2", "grad_norm",
        "completions/mean_length", "reward", "reward_std",
    }  # fmt: skip
    assert names <= trainer.state.log_history[0].keys()
    assert "frac_reward_zero_std" not in trainer.state.log_history[0]


# What TRL's old trainer got wrong.


def test_dataset_smaller_than_a_batch_is_refused_at_once(make_trainer, prompts):
    with pytest.raises(ValueError, match="The dataset has 3 prompts, and one batch of completions needs 4"):
        make_trainer(dataset=prompts.select(range(3)))


def test_mini_batches_with_accumulation_make_all_their_steps(make_trainer):
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "steps_per_generation": 8}
    trainer = make_trainer(**options, num_iterations=2, num_train_epochs=1, max_steps=-1, learning_rate=1e-5)
    trainer.train()
    assert trainer.state.global_step == 8  # one batch of 8, in 4 mini-batches of 2, for 2 epochs
    ratios = log_of(trainer, "ratio")
    assert ratios[0] == 1.0 and all(abs(ratio - 1) < 0.05 for ratio in ratios)  # means, not diluted ones


def gaps_to_rollout(trainer):
    """Return a list that gets, at every step, the largest gaps to the log-probabilities and values of the rollout.

    Those of values are to their mean, as the bias has moved by a constant.
    """
    gaps, values = [], []
    value_pass, loss = trainer.critic.values, trainer._compute_loss

    def noting(*texts):
        values.append(value_pass(*texts))
        return values[-1]

    def compare(model, inputs):
        result = loss(model, inputs)
        length = values[-1].size(1)
        mask = inputs["completion_mask"][:, :length].bool()
        moved = [
            (now.detach() - inputs[name][:, :length])[mask]
            for now, name in ((trainer._last_logps, "old_per_token_logps"), (values[-1], "values"))
        ]
        gaps.append((moved[0].abs().max().item(), (moved[1] - moved[1].mean()).abs().max().item()))
        return result

    trainer.critic.values, trainer._compute_loss = noting, compare
    return gaps


@pytest.mark.parametrize("critic", ["head", "adapter", "model"])
def test_weights_that_stay_as_they_are_give_what_they_gave_at_rollout(critic, make_trainer):
    """In bfloat16 other rows beside a text, or more padding, would change both log-probabilities and values."""
    options = {"num_generations": 2, "per_device_train_batch_size": 2, "steps_per_generation": 4, "num_iterations": 2}
    options |= {"model_init_kwargs": {"dtype": "bfloat16"}, "learning_rate": 1e-12, "critic_learning_rate": 1e-12}
    lora = {} if critic == "adapter" else None
    trainer = make_trainer(critic=critic, lora=lora, **options, num_train_epochs=1, max_steps=-1)
    head = trainer.critic.module.head if critic == "model" else trainer.critic.module
    torch.nn.init.normal_(head.weight, std=0.1)
    prompts = []
    compute = trainer._compute_loss

    def note_prompts(model, inputs):
        prompts.append(inputs["prompt_ids"].tolist())
        return compute(model, inputs)

    trainer._compute_loss = note_prompts
    gaps = gaps_to_rollout(trainer)
    trainer.train()
    assert len(gaps) == 16  # two batches of 4 parts, for two epochs
    assert max(logps for logps, _ in gaps) == 0.0
    assert max(values for _, values in gaps) < 1e-5  # float32, shifted
    assert all(one != other for one, other in prompts)  # two completions of a prompt lie apart


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_8_bit_layers_compute_at_rollout_what_they_compute_in_training(critic, make_trainer, model_name, tmp_path):
    """On a CPU they round activations in evaluation mode, which a reward model on the same layers asks for."""
    from rlhf_ext import RewardConfig, RewardTrainer
    from rlhf_ext.demo.data import preference_dataset

    quantization = BitsAndBytesConfig(load_in_8bit=True)
    reward = RewardTrainer(
        model_name,
        args=RewardConfig(str(tmp_path / "reward"), use_cpu=True, bf16=False, report_to="none", max_steps=1),
        train_dataset=preference_dataset("train", size=4),
        eval_dataset=preference_dataset("test", size=4),
        quantization_config=quantization,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"),
    )
    reward.train()
    reward.save_model()
    options = {name: str(tmp_path / "reward") for name in ("reward_adapter", "critic_path")}
    options |= {"critic": critic, "steps_per_generation": 2, "max_steps": 2}
    options["model_init_kwargs"] = {"quantization_config": quantization, "dtype": "float32"}
    trainer = make_trainer(lora={}, reward=None, **options, learning_rate=1e-9, critic_learning_rate=1e-9)
    gaps = gaps_to_rollout(trainer)
    trainer.train()
    assert len(gaps) == 2 and max(map(max, gaps)) < 1e-5
    assert max(log_of(trainer, "kl/k3")) < 1e-6  # the reference is the same base, with the adapter off


def test_generation_leaves_the_mode_of_an_evaluation(make_trainer, prompts, monkeypatch):
    """TRL's continuous batching puts the model into training mode, and an evaluation would train the KL controller."""
    generate = trl.GRPOTrainer._generate_single_turn

    def then_train(self, *args, **kwargs):
        result = generate(self, *args, **kwargs)
        self.model.train()
        return result

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", then_train)
    trainer = make_trainer(eval_dataset=prompts, scale_scores=True)
    before = trainer.score_stats.state_dict(), trainer.kl_controller.coef
    metrics = trainer.evaluate()
    assert "eval_kl/k1" in metrics and not any(module.training for module in trainer.model.modules())
    assert (trainer.score_stats.state_dict(), trainer.kl_controller.coef) == before


def test_a_part_without_tokens_does_not_dilute_what_is_logged(make_trainer):
    trainer = make_trainer()
    trainer.model.train()
    trainer._log({"ratio": torch.tensor(0.0)}, weight=torch.tensor(0))
    trainer._log({"ratio": torch.tensor(1.0)}, weight=torch.tensor(3))
    assert trainer._metrics["train"]["ratio"] == [1.0]


@pytest.mark.parametrize("disable", [True, False])
def test_rollout_has_no_dropout_and_training_only_if_asked(disable, make_trainer, model_name):
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32, attention_dropout=0.5)
    trainer = make_trainer(model=model.train(), disable_dropout=disable)
    output = trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(4)])
    assert all(module.training for module in model.modules())
    ids, mask = (torch.cat([output[f"prompt_{kind}"], output[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    length = output["completion_ids"].size(1)

    def gap(training):
        logps = trainer._get_per_token_logps_and_entropies(model.train(training), ids, mask, length)[0]
        return (logps - output["old_per_token_logps"]).abs().max().item()

    assert gap(training=False) < 1e-5
    assert gap(training=True) < 1e-5 if disable else gap(training=True) > 0.01


def test_lora_dropout_is_not_taken_away_silently(make_trainer):
    with pytest.raises(ValueError, match=r"lora_dropout=0.05 has no effect .* the default of PPO: the ratio"):
        make_trainer(lora={"lora_dropout": 0.05})
    trainer = make_trainer(lora={"lora_dropout": 0.05}, disable_dropout=False)
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.05 for m in trainer.model.modules())


def test_optimizer_of_ones_own_gets_the_critic_and_takes_no_scheduler(cpu_options, model_name, prompts):
    """A scheduler that was made before the critic's weights came would fail after the first step."""
    model, args = AutoModelForCausalLM.from_pretrained(model_name), PPOConfig(**cpu_options, max_completion_length=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = get_constant_schedule(optimizer)
    with pytest.raises(ValueError, match="leave it out of optimizers, and set lr_scheduler_type"):
        PPOTrainer(model, count_e, args, prompts, optimizers=(optimizer, scheduler))
    trainer = PPOTrainer(model, count_e, args, prompts, optimizers=(optimizer, None))
    trainer.train()
    assert optimizer.param_groups[-1]["name"] == "critic" and trainer.critic.module.weight.any()


def test_order_of_prompts_and_mini_batches_follows_the_seed(make_trainer):
    def orders(seed):
        trainer = make_trainer(seed=seed, steps_per_generation=2, per_device_train_batch_size=4, num_train_epochs=2)
        sampler = trainer._get_train_sampler()
        epochs = []
        for epoch in (0, 1, 0):
            sampler.epoch = epoch
            epochs.append(list(sampler))
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        trainer._prepare_inputs(batch)
        return epochs, [row.tolist() for part in trainer._buffered_inputs for row in part["prompt_ids"]]

    one, again, other = orders(1), orders(1), orders(2)
    assert one == again
    assert one[0] != other[0] and one[1] != other[1]
    assert one[0][0] == one[0][2] != one[0][1]


def test_training_arguments_are_obeyed(make_trainer):
    """A bound on the gradient, gradient checkpointing, a number of steps, and a callback's wish to stop."""
    norms = []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            norms.append([torch.stack([p.grad.norm() for p in group if p.grad is not None]).norm() for group in groups])
            control.should_training_stop = state.global_step == 1
            assert trainer.model.is_gradient_checkpointing

    trainer = make_trainer(max_grad_norm=1e-3, gradient_checkpointing=True, max_steps=4)
    groups = (list(trainer.model.parameters()), trainer.critic.parameters())
    trainer.callback_handler.callbacks.insert(0, Watch())
    trainer.train()
    assert trainer.state.global_step == 2
    assert all(norm <= 1.001e-3 for pair in norms for norm in pair)


def test_bf16_is_obeyed(make_trainer):
    trainer = make_trainer(bf16=True, max_steps=1)
    dtypes = []
    trainer.model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda m, a, output: dtypes.append(output.dtype))
    trainer.train()
    assert dtypes[-1] == torch.bfloat16
    assert trainer.critic.module.weight.dtype == torch.float32


def test_evaluation_changes_nothing(make_trainer, prompts):
    trainer = make_trainer(scale_scores=True)
    trainer.train()
    before = (trainer.kl_controller.coef, trainer.score_stats.state_dict(), trainer._step)
    metrics = trainer.evaluate(prompts)
    assert {"eval_loss", "eval_reward", "eval_kl/k1", "eval_score"} <= metrics.keys() | trainer.state.log_history[
        -1
    ].keys()
    assert before == (trainer.kl_controller.coef, trainer.score_stats.state_dict(), trainer._step)


def test_batches_of_evaluation_may_be_larger_than_those_of_training(make_trainer, prompts):
    trainer = make_trainer(per_device_eval_batch_size=8, log_completions=False)
    metrics = trainer.evaluate(prompts)
    assert metrics["eval_reward"] == pytest.approx(metrics["eval_rewards/count_e/mean"])
    assert len(trainer._logs["advantages"]) == len(trainer._logs["completion"]) == 4  # what a batch of training holds


def test_plain_text_prompts_several_generations_and_other_losses(make_trainer):
    dataset = Dataset.from_dict({"prompt": [f"Say something about {n}." for n in range(8)]})

    def length(completions, **kwargs):
        return [float(len(text)) for text in completions]

    for loss_type in ("grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo"):
        options = {"num_generations": 2, "loss_type": loss_type, "entropy_coef": 0.01, "max_steps": 5}
        trainer = make_trainer(dataset=dataset, reward=length, **options)
        trainer.train()
        assert all(torch.isfinite(torch.tensor(log_of(trainer, "loss"))))


@pytest.mark.parametrize("advantage", ["gae", "reinforce", "rloo"])
def test_advantage_estimators_by_name(advantage, make_trainer):
    vf_coef = 0.1 if advantage == "gae" else 0.0
    trainer = make_trainer(advantage=advantage, num_generations=2, vf_coef=vf_coef, max_steps=2, num_generations_eval=1)
    trainer.train()
    assert log_of(trainer, "ratio")[1] != 1


def test_kl_in_the_loss(make_trainer):
    """With `beta` the KL is TRL's term in the loss, and the rewards hold the scores alone."""
    trainer = make_trainer(beta=0.5, init_kl_coef=0.0, max_steps=5)
    trainer.train()
    assert len(log_of(trainer, "kl")) == 5  # TRL's own metric, of the loss
    assert log_of(trainer, "kl/coef") == [0.0, 0.0]
    without = make_trainer(init_kl_coef=0.0, max_steps=1)
    assert without.ref_model is None
    assert make_trainer(max_steps=1).ref_model is not None


def test_critics_adapter_has_no_dropout_and_obeys_bf16(make_trainer, model_name, tokenizer, tmp_path):
    """Also where it comes from a reward model that was trained with dropout."""
    torch.manual_seed(0)
    reward = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, task_type="SEQ_CLS")
    get_peft_model(reward, config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    trainer = make_trainer(lora={}, critic="adapter", critic_path=str(tmp_path / "reward"), bf16=True, max_steps=1)
    assert all(module.p == 0 for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout))
    dtypes = []
    layer = trainer.model.get_base_model().model.layers[0].mlp.gate_proj.lora_A["critic"]
    layer.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    trainer.train()
    assert dtypes and set(dtypes) == {torch.bfloat16}


def test_gradients_of_fp16_are_unscaled_once(make_trainer):
    """A second time raises in torch's scaler, which does not run in fp16 on a CPU."""
    trainer = make_trainer(max_grad_norm=0.5)
    calls = []
    trainer.accelerator.unscale_gradients = lambda *_: calls.append(1)
    trainer.train()
    assert len(calls) == trainer.state.global_step == 4


@pytest.mark.parametrize("kind", ["lora", "adapter critic"])
def test_resumed_run_over_an_8_bit_base_equals_the_uninterrupted_one_bit_for_bit(kind, make_trainer, tmp_path):
    """Where all that is trained is float32."""

    def train(folder, resume=None):
        saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "num_iterations": 2}
        critic = "adapter" if kind == "adapter critic" else "head"
        model_init = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
        trainer = make_trainer(lora={}, folder=folder, critic=critic, model_init_kwargs=model_init, **saving)
        trainer.train(resume_from_checkpoint=resume)
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        return weights, trainer.critic.module.state_dict()

    whole = train("whole")
    resumed = train("resumed", str(tmp_path / "whole/checkpoint-2"))
    assert {weight.dtype for weight in whole[0].values()} == {torch.float32}
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.keys() == theirs.keys()
        for name, weight in theirs.items():
            assert ours[name].dtype == weight.dtype and torch.equal(ours[name], weight), name


def test_a_reference_that_moves_is_not_resumed(make_trainer, tmp_path):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 2, "save_strategy": "steps", "save_steps": 4}
    make_trainer(**options).train()
    with pytest.raises(ValueError, match="such a run cannot be resumed"):
        make_trainer(max_steps=8, **options).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "eval_first", "save_strategy": "steps"}
BEST |= {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "max_steps": 8}


class FirstIsBest(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **kwargs):
        metrics["eval_first"] = -state.global_step


@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_best_model_comes_back_with_its_critic(critic, make_trainer, prompts):
    trainer = make_trainer(lora={}, critic=critic, eval_dataset=prompts.select(range(4)), **BEST)
    trainer.add_callback(FirstIsBest())
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-4"
    saved = load_file(best / "critic/critic.safetensors")
    assert all(torch.equal(weight, saved[name]) for name, weight in trainer.critic.module.state_dict().items())
    adapters = {"default": best} | ({"critic": best / "critic"} if critic == "adapter" else {})
    for name, folder in adapters.items():
        saved = load_file(folder / "adapter_model.safetensors")
        loaded = {key.replace(f".{name}.", "."): p for key, p in trainer.model.named_parameters() if f".{name}." in key}
        assert loaded.keys() == saved.keys() and all(torch.equal(loaded[key], saved[key]) for key in saved)
        last = load_file(best.with_name("checkpoint-8") / folder.relative_to(best) / "adapter_model.safetensors")
        assert any((saved[key] != last[key]).any() for key in saved)


def test_evaluation_inside_a_batch_finds_no_best_checkpoint(make_trainer, prompts):
    trainer = make_trainer(eval_dataset=prompts.select(range(4)), **BEST | {"eval_steps": 6, "save_steps": 6})
    with pytest.raises(
        ValueError, match="every 6 steps, and checkpoints at the end of a batch of completions, every 4"
    ):
        trainer.train()


def test_without_a_reference_there_is_no_kl(make_trainer, prompts):
    trainer = make_trainer(init_kl_coef=0.0, eval_dataset=prompts.select(range(4)))
    trainer.train()
    names = {*trainer.evaluate(), *(name for entry in trainer.state.log_history for name in entry)}
    assert "clip_fraction" in names and not any("kl/" in name for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 2, "per_device_eval_batch_size": 3}, "3 completions at once, and 2 of each prompt"),
        ({"num_generations_eval": 8}, "4 completions at once, and 8 of each prompt"),
        (
            {"advantage": "rloo", "vf_coef": 0.0, "num_generations": 2, "num_generations_eval": 1},
            "set num_generations_eval to 2 or more",
        ),
    ],
)
def test_evaluation_that_cannot_be_divided_is_refused(options, message, make_trainer, prompts):
    make_trainer(**options)
    with pytest.raises(ValueError, match=message):
        make_trainer(eval_dataset=prompts, **options)


def test_two_reward_functions_of_one_name_are_refused(make_trainer):
    with pytest.raises(ValueError, match="Two reward functions are called 'count_e'"):
        make_trainer(reward=[count_e, count_e])


def test_only_functions_that_count_must_score(make_trainer):
    def never(completions, **kwargs):
        return [None] * len(completions)

    trainer = make_trainer(reward=[never, count_e], reward_weights=[1.0, 0.0])
    with pytest.raises(NotFiniteError, match="4 of 4 completions have no finite score"):
        trainer.train()


def test_sampling_from_another_distribution_is_warned_about(make_trainer, caplog):
    with caplog.at_level(logging.WARNING, "rlhf_ext"):
        make_trainer(top_p=0.9, generation_kwargs={"min_p": 0.1})
    assert "drawn with top_p=0.9, min_p=0.1" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "rlhf_ext"):
        make_trainer(generation_kwargs={"do_sample": False, "num_beams": 1, "top_k": 0})
    assert "drawn with do_sample=False, and" in caplog.text
    caplog.clear()
    make_trainer(generation_kwargs={"do_sample": True, "num_beams": 1, "top_k": 0, "typical_p": 1.0})
    assert "drawn with" not in caplog.text


def test_kl_is_that_of_completions_which_are_learned_from(make_trainer):
    """mask_truncated_completions leaves some without tokens: they have no KL, and not one of 0."""
    trainer = make_trainer(kl_target=4.5, kl_horizon=1000)
    trainer.model.train()
    logps, ref_logps = torch.full((4, 3), -1.0), torch.full((4, 3), -3.0)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
    trainer._follow_kl(logps, ref_logps, mask)
    expected = 0.2 * (1 + (5 / 4.5 - 1) * 2 / 1000)  # a KL of 5, two completions
    assert trainer.kl_controller.coef == pytest.approx(expected, rel=1e-6)
    trainer._follow_kl(logps, ref_logps, torch.zeros_like(mask))
    assert trainer.kl_controller.coef == pytest.approx(expected, rel=1e-6)
    output = {"old_per_token_logps": logps, "completion_ids": torch.ones(4, 3, dtype=torch.long)}
    metrics = completion_metrics(output, mask, ref_logps, torch.tensor([1.0, 50.0, 3.0, 50.0]))
    assert metrics["kl/k1"].item() == pytest.approx(5.0) and metrics["score"].item() == 2.0


def test_running_deviation_is_that_of_completions_which_are_learned_from(make_trainer):
    trainer = make_trainer(scale_scores=True)
    trainer.model.train()
    mask = torch.tensor([[1, 1], [0, 0], [1, 0]])
    output = {"completion_ids": torch.ones(3, 2, dtype=torch.long), "completion_mask": mask}
    trainer._shape_scores(torch.tensor([1.0, 50.0, 3.0]), output)
    assert (trainer.score_stats.count, trainer.score_stats.mean) == (2, 2.0)


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
def test_filters_that_a_model_asks_for_itself_are_not_sampled_with(lora, make_trainer, model_name, monkeypatch):
    """Transformers takes what an option leaves open from the model: it is no part of the policy that learns."""
    policy = AutoModelForCausalLM.from_pretrained(model_name)
    own = {"min_p": 0.3, "no_repeat_ngram_size": 2, "typical_p": 0.5, "repetition_penalty": 1.3, "min_new_tokens": 5}
    policy.generation_config.update(**own)
    seen = []

    def processors(model, generation_config, *args, **kwargs):
        found = untouched(model, generation_config, *args, **kwargs)
        seen.append([type(processor).__name__ for processor in found])
        return found

    untouched = type(policy)._get_logits_processor
    monkeypatch.setattr(type(policy), "_get_logits_processor", processors)
    make_trainer(model=policy, lora=lora, max_steps=1).train()
    assert seen == [[]]
    assert {name: getattr(policy.generation_config, name) for name in own} == own  # and is saved with it
    make_trainer(model=model_name, lora=lora, max_steps=1, generation_kwargs={"min_p": 0.1}).train()
    assert seen[1:] == [["MinPLogitsWarper"]]


def test_completion_cut_by_max_new_tokens_has_no_end(make_trainer):
    trainer = make_trainer(generation_kwargs={"max_new_tokens": 3}, missing_eos_penalty=1.0, max_completion_length=12)
    ids, mask = torch.tensor([[9, 10, 11]]), torch.ones(1, 3, dtype=torch.long)
    output = {"completion_ids": ids, "completion_mask": mask}
    assert trainer._shape_scores(torch.tensor([2.0]), output).tolist() == [1.0]
