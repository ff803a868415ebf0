"""`recipes/chatbot_rlhf.py` as users start it, with short phases; killed once, then talked to."""

import json

import forked
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_ext import cli
from rlhf_ext.demo import model_path

ROOT = forked.ROOT
SCRIPT = ROOT / "recipes/chatbot_rlhf.py"
TRAINING = "max_steps: 4\nmax_train_samples: 64\nmax_eval_samples: 8\nbf16: false\ngradient_checkpointing: false\n"
TRAINING += "per_device_train_batch_size: 4\nper_device_eval_batch_size: 4\n"
CONFIGS = {
    "sft": TRAINING,
    "reward": TRAINING,
    "policy": TRAINING + "max_completion_length: 8\nsteps_per_generation: 1\nnum_iterations: 1\n",
}


def write_configs(folder, **more):
    """Short phases, and what `more` says of each."""
    options = ["--max_eval_samples", 16]
    for phase, lines in CONFIGS.items():
        (folder / f"{phase}.yaml").write_text(lines + more.get(phase, ""))
        options += [f"--{phase}_config", folder / f"{phase}.yaml"]
    return options


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return write_configs(tmp_path_factory.mktemp("configs"))


def run(*command):
    done = forked.run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mtime" not in done.stderr and "Warning" not in done.stderr
    return done


def test_killed_in_the_policy_phase_it_goes_on_and_can_be_talked_to(configs, tmp_path, capsys):
    folder = tmp_path / "run"
    forked.kill_after(folder / "ppo/checkpoint-2/trainer_state.json", SCRIPT, *configs, "--output_dir", folder)
    done = run(SCRIPT, *configs, "--output_dir", folder)
    for line in ("Phase 1 of 5, sft: finished before.", "Phase 3 of 5, ppo: accelerate launch recipes/ppo.py"):
        assert line in done.stdout
    for label in (
        "helpfulness, 1 to 5",
        "safety, 1 to 5",
        "win rate",
        "clip fraction",
        "KL per answer",
    ):
        assert label in done.stdout
    results = json.loads((folder / "all_results.json").read_text())
    assert {"eval_helpfulness_before", "eval_safety", "eval_win_rate", "seconds_ppo"} <= results.keys()
    page = (folder / "report.html").read_text()
    assert "accelerate launch recipes/sft.py" in page and "base: " in page
    assert all((folder / phase / "report.html").is_file() for phase in ("sft", "reward", "ppo", "evaluation"))
    assert all((folder / f"ppo/checkpoint-{step}").is_dir() for step in (3, 4))  # the last two

    phases = json.loads((folder / "pipeline.json").read_text())["phases"]
    alone = phases["ppo"]["command"].replace(f"{folder}/ppo", f"{tmp_path}/alone").split()
    run(ROOT / alone[0], *alone[1:])
    whole, resumed = (load_file(path / "model.safetensors") for path in (tmp_path / "alone", folder / "ppo"))
    assert all((whole[name] == resumed[name]).all() for name in whole)

    assert cli.main(["chat", str(folder), "How do I grow mint?", "/new", "--max_new_tokens", "8"]) == 0
    shown = capsys.readouterr().out
    assert "How do I grow mint?" in shown and "base, score" in shown and "trained, score" in shown
    assert cli.main(["chat", str(tmp_path)]) == 1
    assert "holds no run of recipes/chatbot_rlhf.py" in capsys.readouterr().err


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A model like GPT-2 that nobody has trained: its tokenizer has no chat template, and no padding token."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    alphabet = {letter: number for number, letter in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    letters = Tokenizer(models.BPE(alphabet, []))
    letters.pre_tokenizer, letters.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    return str(folder)


def rows(path, count, make):
    path.write_text("".join(json.dumps(make(n)) + "\n" for n in range(count)))
    return path


def own_data(folder):
    """Plain text, as the guide has it."""
    return [
        *("--sft_dataset", rows(folder / "sft.jsonl", 30, lambda n: {"prompt": f"{n}+2?", "completion": f" {n + 2}."})),
        "--preference_dataset",
        rows(folder / "pairs.jsonl", 30, lambda n: {"prompt": f"{n}+2?", "chosen": f" {n + 2}.", "rejected": " No."}),
        *("--prompt_dataset", rows(folder / "prompts.jsonl", 20, lambda n: {"prompt": f"{n}+3?"})),
    ]


def test_the_guide_s_example_with_a_base_without_chat_template(gpt2, configs, tmp_path, capsys):
    """`--model_name gpt2 --algorithm ppo --batch_size 4 --ppo_epochs 4` on plain text, to the end."""
    folder = tmp_path / "run"
    guide = ["--model_name", gpt2, "--algorithm", "ppo", "--batch_size", 4, "--ppo_epochs", 4, *own_data(tmp_path)]
    done = run(SCRIPT, *guide, *configs, "--output_dir", folder)
    assert done.stdout.count("plain text becomes turns of a chat, as all phases chat") == 3
    assert f"{gpt2} has no chat template; it is asked with that of {folder}/ppo." in " ".join(done.stdout.split())
    template = (ROOT / "recipes/configs/plain_chat.jinja").read_text()
    for phase in ("sft", "reward", "ppo"):
        assert AutoTokenizer.from_pretrained(folder / phase).chat_template == template
        first = json.loads((folder / f"data/{phase}-train.jsonl").read_text().splitlines()[0])
        assert first["prompt"][0]["role"] == "user"
    # What is asked, and what it was trained to answer, has one form in all phases.
    asked = json.loads((folder / "evaluation/completions.jsonl").read_text().splitlines()[0])
    assert asked["prompt"] == [{"role": "user", "content": "0+3?"}] and {"completion", "other_completion"} <= {*asked}
    results = json.loads((folder / "all_results.json").read_text())
    assert results["eval_reward"] != results["eval_other_reward"] == results["eval_reward_before"]
    command = json.loads((folder / "pipeline.json").read_text())["phases"]["sft"]["command"]
    again = command.replace(f"{folder}/sft", f"{tmp_path}/again").split()
    run(ROOT / again[0], *again[1:])  # what is printed can be given by itself
    once, twice = (load_file(path / "model.safetensors") for path in (folder / "sft", tmp_path / "again"))
    assert all((once[name] == twice[name]).all() for name in once)
    assert cli.main(["chat", str(folder), "2+2?", "--max_new_tokens", "8"]) == 0
    assert "trained, score" in capsys.readouterr().out


def test_adapters_of_one_8_bit_base_from_demonstrations_to_dpo(tmp_path):
    configs = write_configs(tmp_path, **dict.fromkeys(CONFIGS, "max_steps: 2\n"))
    configs = [*configs[:-1], configs[3]]  # what fits SFT fits DPO, too
    quantized = ["--use_peft", "--load_in_8bit", "--model_name", model_path(), "--max_eval_samples", 4]
    run(SCRIPT, *configs, "--algorithm", "dpo", *quantized, "--output_dir", tmp_path / "run")
    weights = {}
    for phase in ("sft", "reward", "dpo"):
        folder = tmp_path / "run" / phase
        assert not (folder / "model.safetensors").exists()
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == model_path()
        weights[phase] = load_file(folder / "adapter_model.safetensors")
    assert weights["dpo"].keys() == weights["sft"].keys()  # the same adapter, trained on
    assert any((weights["dpo"][name] != weights["sft"][name]).any() for name in weights["dpo"])
    results = json.loads((tmp_path / "run/dpo/all_results.json").read_text())
    assert results["eval_rewards/accuracies_before"] == 0.5  # the reference is the adapter as it was


def test_one_backbone_for_policy_critic_and_reward_model_in_two_processes(configs, tmp_path):
    """All are adapters of one base; the phases meet at places of their own, and the evaluations run alone."""
    folder = tmp_path / "run"
    options = ["--use_peft", "--model_name", model_path(), "--output_dir", folder]
    first, second = forked.run_together(2, SCRIPT, *configs, *options)
    assert "Phase 5 of 5, evaluation: accelerate launch" in first.stdout and "Phase" not in second.stdout
    base = json.loads((folder / "ppo/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == model_path() and not (folder / "ppo/model.safetensors").exists()
    options = json.loads((folder / "pipeline.json").read_text())["phases"]["ppo"]["command"]
    assert f"--reward_adapter {folder}/reward --critic adapter --critic_path {folder}/reward" in options
    results = json.loads((folder / "evaluation/all_results.json").read_text())
    assert results["reference"] == "its adapter's base" and 1 <= results["eval_helpfulness"] <= 5


def test_best_of_several_answers_on_own_conversations(configs, tmp_path):
    """A file with rows to evaluate SFT on is named in its configuration; nothing is trained after the reward model."""
    question = {"role": "user", "content": "How do I cook rice?"}
    held_out = rows(tmp_path / "held_out.jsonl", 3, lambda n: {"messages": [question, says(f"{n} hours.")]})
    pair = {"prompt": [question], "chosen": [says("Boil it.")], "rejected": [says("No.")]}
    pairs = [pair, pair | {"prompt": [question | {"content": "Rice?"}]}]
    data = [
        *("--sft_dataset", rows(tmp_path / "sft.jsonl", 20, lambda n: {"messages": [question, says(f"{n} minutes.")]})),
        *("--preference_dataset", rows(tmp_path / "pairs.jsonl", 20, lambda n: pairs[n % 2])),
        *("--prompt_dataset", rows(tmp_path / "prompts.jsonl", 4, lambda n: {"prompt": [question]})),
    ]
    configs = write_configs(tmp_path, sft=f"eval_dataset_name: {held_out}\n")[:-2]
    folder = tmp_path / "run"
    options = ["--algorithm", "best_of_n", "--best_of", 2, "--output_dir", folder]
    done = run(SCRIPT, *configs, *data, *options)
    assert "plain text" not in done.stdout and "Phase 3 of 3, evaluation" in done.stdout
    assert len((folder / "data/sft-eval.jsonl").read_text().splitlines()) == 3
    assert "eval_dataset_name" not in (folder / "data/sft.yaml").read_text()
    results = json.loads((folder / "evaluation/all_results.json").read_text())
    assert results["best_of"] == 2 and results["eval_kl_bound"] > 0

    again = run(SCRIPT, *configs, *data, *options)
    assert again.stdout.count("finished before") == 3
    (tmp_path / "sft.yaml").write_text((tmp_path / "sft.yaml").read_text().replace("max_steps: 4", "max_steps: 3"))
    refused = forked.run(SCRIPT, *configs, *data, *options)
    assert refused.returncode == 1
    assert f"settings (sft, evaluation): --sft_config {tmp_path}/sft.yaml has other contents. Repeat" in refused.stderr


def says(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithm", "dpo", "--ppo_epochs", "4"], "error: --ppo_epochs has no effect with --algorithm dpo"),
        (["--model_name", "/no/such/model"], "error: --model_name /no/such/model: its tokenizer cannot be loaded"),
        (["--algorithm", "sarsa"], "error: argument --algorithm: invalid choice: 'sarsa'"),
        (["--ppo_epochs", "0"], "error: phase ppo: num_iterations"),
        (["--sft_config", "no.yaml"], "error: no.yaml: it cannot be read (No such file or directory). Check the path."),
        (
            ["--sft_dataset", "a", "--preference_dataset", "b", "--prompt_dataset", "c.jsonl"],
            "error: c.jsonl: ",
        ),
    ],
)
def test_bad_options_are_one_line_before_anything_runs(options, message, tmp_path):
    done = forked.run(SCRIPT, *options, "--output_dir", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_adapter_as_the_model_is_refused_before_anything_runs(tokenizer, tmp_path):
    """SFT and PPO would go on from it; a reward model would not be trained."""
    tokenizer.save_pretrained(tmp_path / "adapter")
    LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=model_path()).save_pretrained(tmp_path / "adapter")
    done = forked.run(SCRIPT, "--model_name", tmp_path / "adapter", "--output_dir", tmp_path / "run")
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: --model_name {tmp_path}/adapter is an adapter")
