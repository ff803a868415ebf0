"""One line for what the user can act on; a traceback for everything else."""

import re

import forked
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from rlhf_ext import DPOConfig, DPOTrainer
from rlhf_ext.errors import one_line_errors
from rlhf_ext.plugins import PluginError


@pytest.mark.parametrize(
    "code",
    [
        "torch.save(torch.ones(10**6), {path!r})",
        "save_file({{'weight': torch.ones(10**6)}}, {path!r})",
        "open({path!r}, 'w').write('x' * 10**6)",
    ],
)
def test_full_disk_is_one_line(code, tmp_path):
    """A limit on the size of files, which every library meets like a full disk."""
    program = (
        "import resource, signal, torch\nfrom safetensors.torch import save_file\n"
        "from rlhf_ext.errors import one_line_errors\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\nwith one_line_errors():\n    "
    ) + code.format(path=str(tmp_path / "file"))
    (tmp_path / "program.py").write_text(program)
    done = forked.run(tmp_path / "program.py")
    assert done.returncode == 1
    assert re.match(r"error: .+ cannot be written.+What was saved before", done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr


def constructed(tmp_path, model_name, preferences, callbacks=(), **options):
    args = DPOConfig(str(tmp_path), **{"use_cpu": True, "bf16": False, "report_to": "none"} | options)
    return DPOTrainer(model_name, args=args, train_dataset=preferences, callbacks=[*callbacks])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_type": "exo_pair"}, "error: Label smoothing must be .*'exo_pair'.*"),  # refused by TRL's constructor
        ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "error: You cannot use `sync_ref_model=True` .*"),
        (
            {"model_init_kwargs": {"attn_implementation": "nonsense"}},
            "error: .*nonsense.*",
        ),  # by Transformers below it
    ],
)
def test_option_that_a_trainer_of_trl_refuses_is_one_line(options, expected, tmp_path, model_name, preferences, capsys):
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        constructed(tmp_path, model_name, preferences, **options)
    assert exit_.value.code == 1
    assert re.fullmatch(expected, capsys.readouterr().err.strip().splitlines()[-1])


def test_tracker_that_is_not_installed_is_one_line(tmp_path, model_name, preferences, capsys, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        constructed(tmp_path, model_name, preferences, report_to="wandb")
    assert exit_.value.code == 1
    assert "error: WandbCallback requires wandb to be installed." in capsys.readouterr().err.splitlines()[-1]


def test_hub_that_cannot_be_reached_is_one_line(tmp_path, model_name, preferences, capsys, monkeypatch):
    """When the trainer makes the repository, before training, and when the finished run is uploaded."""

    def unreachable(*args, **kwargs):
        raise ConnectionError("no\nroute.")

    trainer = constructed(tmp_path, model_name, preferences)
    monkeypatch.setattr(trainer, "save_model", lambda **_: None)
    monkeypatch.setattr("huggingface_hub.hf_api.get_session", unreachable)
    for use in (lambda: constructed(tmp_path, model_name, preferences, push_to_hub=True), trainer.push_to_hub):
        with pytest.raises(SystemExit) as exit_, one_line_errors():
            use()
        assert exit_.value.code == 1
        line = "error: --push_to_hub: the Hub cannot be reached or refuses (no route). Run `hf auth login`, or drop it."
        assert capsys.readouterr().err.splitlines()[-1] == line


def test_pass_that_fails_in_the_constructor_keeps_its_traceback(tmp_path, model_name, preferences):
    """Attention is in the package that has the trackers, too."""
    model = AutoModelForCausalLM.from_pretrained(model_name, attn_implementation="sdpa")
    attention = model.model.layers[0].self_attn
    attention.v_proj = torch.nn.Linear(attention.v_proj.in_features, 3 * attention.v_proj.out_features)
    with pytest.raises(RuntimeError, match="must match the size"), one_line_errors():
        constructed(tmp_path, model, preferences, precompute_ref_log_probs=True)


def test_mistake_before_an_upload_is_not_taken_for_the_hub(tmp_path, model_name, preferences, monkeypatch):
    trainer = constructed(tmp_path, model_name, preferences)
    trainer.hub_model_id = "someone/something"
    monkeypatch.setattr(trainer, "save_model", lambda **_: {}["critic"])
    with pytest.raises(KeyError), one_line_errors():
        trainer.push_to_hub()


def test_mistake_in_a_program_keeps_its_traceback(tmp_path, model_name, preferences):
    class Mistaken(TrainerCallback):
        def on_init_end(self, *args, **kwargs):
            raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"), one_line_errors():
        constructed(tmp_path, model_name, preferences, callbacks=[Mistaken()])
    with pytest.raises(ValueError, match="another"), one_line_errors(PluginError):
        raise ValueError("another")


def test_only_one_process_says_what_is_wrong_with_the_input(monkeypatch, capsys):
    for rank, said in (("0", "error: nothing by that name\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit), one_line_errors(PluginError):
            raise PluginError("nothing by that name")
        assert capsys.readouterr().err == said
