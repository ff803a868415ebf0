"""The command line: defaults, configuration files, and one clear line for every mistake."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig, SFTConfig

from rlhf_ext import DPOConfig, PPOConfig, RewardConfig, arguments
from rlhf_ext.arguments import ArgumentError, RecipeArguments, load_tokenizer, parse_arguments
from rlhf_ext.demo import model_path
from rlhf_ext.plugins import PluginError

ROOT = Path(__file__).parents[1]
DEMO_DEFAULTS = {"learning_rate": 0.5, "max_train_samples": 7}


def parse(*args, config=DPOConfig, defaults=DEMO_DEFAULTS):
    types = (RecipeArguments, config, ModelConfig)
    return parse_arguments(types, defaults, "runs/test", ["--use_cpu", "--bf16", "false", *map(str, args)])


def write_config(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_defaults_of_the_demo_hold_only_for_the_demo(tmp_path, capsys):
    script, training, model = parse()
    assert (training.learning_rate, script.max_train_samples, model.model_name_or_path) == (0.5, 7, model_path())
    assert capsys.readouterr().out == ""
    for args in (
        ["--model_name_or_path", "mine"],
        ["--model_name_or_path=mine"],
        ["--model-name-or-path", "mine"],
        ["--config", write_config(tmp_path, "{'model_name_or_path' : mine}")],
    ):
        _, training, model = parse(*args)
        assert (training.learning_rate, model.model_name_or_path) == (DPOConfig.learning_rate, "mine")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("data", [["--dataset_name", "mine.jsonl"], ["--config", "{config}"]])
def test_demo_model_on_data_of_ones_own_has_settings_that_fit_it_and_all_of_the_data(data, tmp_path, capsys):
    config = write_config(tmp_path, "dataset_name: mine.jsonl\nmodel_name_or_path: null")
    script, training, model = parse(*[word.format(config=config) for word in data])
    assert (training.learning_rate, model.model_name_or_path) == (0.5, model_path())
    assert script.max_train_samples is None
    line = "No --model_name_or_path: the tiny model of the embedded demo is trained on mine.jsonl, with defaults that "
    assert capsys.readouterr().out == line + "fit it.\n"


def test_default_of_the_demo_groups_rows_that_are_not_streamed():
    defaults, data = {"train_sampling_strategy": "group_by_length"}, ["--dataset_name", "mine"]
    for args, strategy in ((data, "group_by_length"), ([*data, "--dataset_streaming"], "random")):
        assert parse(*args, defaults=defaults)[1].train_sampling_strategy == strategy


@pytest.mark.parametrize(
    ("args", "horizon"), [([], 300), (["--init_kl_coef", 0], 10000), (["--kl_target", "none"], 10000)]
)
def test_default_of_the_demo_goes_where_what_it_is_about_is_switched_off(args, horizon):
    defaults = {"init_kl_coef": 0.15, "kl_horizon": 300}
    assert parse(*args, config=PPOConfig, defaults=defaults)[1].kl_horizon == horizon
    with pytest.raises(ArgumentError, match="kl_horizon has no effect with init_kl_coef=0"):
        parse("--init_kl_coef", 0, "--kl_horizon", 300, config=PPOConfig, defaults=defaults)


def test_command_line_wins_over_file_wins_over_defaults(tmp_path):
    path = write_config(tmp_path, "learning_rate: 0.25\nbeta: 0.3\nloss_kwargs: {gamma: 1.0}\nloss_type: simpo")
    _, training, _ = parse("--config", path, "--beta", "0.4")
    assert (training.learning_rate, training.beta) == (0.25, 0.4)
    assert (training.loss_type, training.loss_kwargs) == (["simpo"], {"gamma": 1.0})


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        (["q_proj"], ["q_proj"]),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["self_attn.q_proj"], ["self_attn.q_proj"]),
        (["all-linear"], "all-linear"),
        ([r".*layers\.0.*q_proj"], r".*layers\.0.*q_proj"),
    ],
)
def test_single_name_of_a_layer_is_a_name_and_no_pattern(given, targets):
    _, _, model_args = parse("--use_peft", "--lora_target_modules", *given)
    assert model_args.lora_target_modules == targets


def test_losses_and_keywords_on_the_command_line():
    _, training, _ = parse("--loss_type", "sigmoid", "simpo", "--loss_weights", 1, 0.5, "--loss_kwargs", '{"gamma": 2}')
    assert training.loss_type == ["sigmoid", "simpo"]
    assert training.loss_weights == [1.0, 0.5]
    assert training.loss_kwargs == {"gamma": 2}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lerning_rate", 1], r"no option '--lerning_rate'. Did you mean '--learning_rate'\?"),
        (["--learning_rate", "fast"], "--learning_rate.*: invalid float value: 'fast'"),
        (["--config"], "--config: expected the path"),
        (["--config", "/no/such.yaml"], "--config: .*No such file"),
        (["--load_in_8bit"], "--load_in_8bit freezes the model.*add --use_peft"),
        (["--load_in_4bit"], "--load_in_4bit freezes the model.*add --use_peft"),
        (["--loss_type", "simpo", "--loss_kwargs", "gamma=1"], "loss_kwargs='gamma=1' is not a JSON object"),
        (["--loss_type", "simpo", "--loss_kwargs", "{1}"], r"loss_kwargs='\{1\}' is not a JSON object"),
        (["--label_smoothing", 0.1], "label_smoothing=0.1 has no effect"),
        (["--lora_r", 8], "--lora_r has no effect without --use_peft"),
        (["--lora_r", 8, "--use_dora"], "--lora_r, --use_dora have no effect without --use_peft"),
        (["--bnb_4bit_quant_type", "fp4"], "--bnb_4bit_quant_type has no effect without --load_in_4bit"),
        (["--use_peft", "--load_in_8bit", "--use_bnb_nested_quant"], "--use_bnb_nested_quant has no effect without"),
        (["--bnb_4bit_quant_storage", "uint8"], "--bnb_4bit_quant_storage has no effect without --load_in_4bit"),
        (["--ignore_bias_buffers"], "--ignore_bias_buffers has no effect here: drop it"),
        (["--bf16_full_eval"], "--bf16_full_eval would cast the weights that are trained and saved: drop it"),
        (
            ["--fp16_full_eval"],
            "--fp16_full_eval would cast the weights that are trained and saved: drop it. With --fp16",
        ),
        (
            ["--use_peft", "--lora_dropout", 0.1],
            "--lora_dropout 0.1 has no effect with --disable_dropout true, the default here: drop it, or add --disable",
        ),
        (
            ["--dataset_name", "mine", "--dataset_streaming", "--train_sampling_strategy", "group_by_length"],
            "--train_sampling_strategy group_by_length has no effect with --dataset_streaming true: .* Drop one of the",
        ),
        (["--model_revision", "v2"], "--model_revision has no effect on a model in a local folder"),
    ],
)
def test_mistakes_on_the_command_line(args, message):
    with pytest.raises(ArgumentError, match=message) as error:
        parse(*args)
    assert "\n" not in str(error.value)


def test_dropout_of_adapters_where_it_acts():
    wanted = ["--use_peft", "--lora_dropout", 0.1]
    for parsed in (parse(*wanted, config=SFTConfig), parse(*wanted, "--disable_dropout", "false")):
        assert parsed[2].lora_dropout == 0.1
    assert parse("--use_peft", "--lora_dropout", 0)[2].lora_dropout == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", r"there is no option 'lerning_rate'. Did you mean 'learning_rate'\?"),
        ("beta: [1,", "not valid YAML"),
        ("- beta", "must contain a YAML mapping"),
        ("loss_type: odpo\nextra_columns: null", r"needs a margin per pair: set extra_columns=\['margin'\]"),
        ("extra_columns: [3]", r"extra_columns: \[3\] is of the wrong type; expected list\[str\]"),
        ("loss_type: [3]", r"loss_type: \[3\] is of the wrong type; expected list\[str\]"),
        ("loss_weights: [1, x]", r"loss_weights: \[1, 'x'\] is of the wrong type; expected list\[float\] \| None"),
        ("loss_weights: 1", r"loss_weights: 1 is of the wrong type; expected list\[float\] \| None"),
        ("dataset_name: [a, b]", r"dataset_name: \['a', 'b'\] is of the wrong type; expected str \| None"),
        ("learning_rate: [1.0]", r"learning_rate: \[1.0\] is of the wrong type; expected float"),
        ("beta: null", "beta: None is of the wrong type; expected float"),
        ("max_train_samples: 10.5", r"max_train_samples: 10.5 is of the wrong type; expected int \| None"),
        ("max_length: true", r"max_length: True is of the wrong type; expected int \| None"),
    ],
)
def test_mistakes_in_the_configuration_file(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        parse("--config", write_config(tmp_path, text))
    assert "\n" not in str(error.value)


def test_what_yaml_reads_otherwise_than_the_command_line(tmp_path):
    text = "save_strategy: no\nloss_type: [sigmoid, sft]\nloss_weights: [1, 1e-5]\nlearning_rate: 1\nmax_length: null"
    text += "\ndataset_config: 2024\nrun_name: 7"
    script, training, _ = parse("--config", write_config(tmp_path, text))
    assert (training.save_strategy, training.loss_weights) == ("no", [1, 1e-5])
    assert (training.learning_rate, training.max_length) == (1, None)
    assert (script.dataset_config, training.run_name) == ("2024", "7")


def test_option_that_may_stand_alone_may_be_true_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which the configuration sets
    _, training, _ = parse("--config", write_config(tmp_path, "fsdp: true"))
    assert training.fsdp is True


def test_loss_that_does_not_exist():
    with pytest.raises(PluginError, match="Unknown dpo_loss 'simpoo'"):
        parse("--loss_type", "simpoo")


@pytest.mark.parametrize("flag", ["--load_in_8bit", "--load_in_4bit"])
def test_quantization_without_bitsandbytes(flag, monkeypatch):
    find_spec = arguments.importlib.util.find_spec
    monkeypatch.setattr(
        arguments.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name)
    )
    with pytest.raises(ArgumentError, match=rf"{flag} needs bitsandbytes: pip install 'rlhf-ext\[quantization\]'"):
        parse(flag, "--use_peft")


def test_missing_model_is_one_line(tmp_path):
    with pytest.raises(ArgumentError, match=r"--model_name_or_path .*nowhere: its tokenizer cannot be loaded") as error:
        load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path / "nowhere")), trust_remote_code=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_file_parses(path):
    options = yaml.safe_load(path.read_text())
    config = {"dpo": DPOConfig, "reward": RewardConfig, "ppo": PPOConfig, "sft": SFTConfig}[path.name.partition("_")[0]]
    script, training, model = parse("--config", path, config=config)
    parsed = {key: value for part in (script, training, model) for key, value in dataclasses.asdict(part).items()}
    for option, value in options.items():
        if option == "loss_type" and config in (DPOConfig, RewardConfig) and isinstance(value, str):
            value = [value]  # one name becomes a list of one
        if option != "bf16":  # which the command line above overrides
            assert parsed[option] == value, option


def test_keywords_of_a_loss_may_be_a_mapping_in_yaml(tmp_path):
    config = write_config(tmp_path, "loss_kwargs: {margin: 0.5}")
    assert parse("--config", config, config=RewardConfig)[1].loss_kwargs == {"margin": 0.5}


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_accelerate_configuration_is_understood(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem in ("cpu", "single_gpu") else 2)
