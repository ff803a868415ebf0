"""Output folders: no run is written over, and one goes on from the last checkpoint that is complete."""

import pytest
import torch
from safetensors.torch import save_file

from rlhf_ext import DPOConfig
from rlhf_ext.arguments import ArgumentError
from rlhf_ext.run_folder import check_output_dir, last_complete_checkpoint


def training_args(folder, resume=None):
    return DPOConfig(str(folder), use_cpu=True, bf16=False, resume_from_checkpoint=resume)


def make_checkpoint(folder, step, complete=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.ones(64)}, checkpoint / "model.safetensors")
    torch.save({"step": step}, checkpoint / "optimizer.pt")
    if complete:
        (checkpoint / "trainer_state.json").write_text('{"global_step": 1}')


@pytest.mark.parametrize("left", ["checkpoint-5/x", "all_results.json", "model.safetensors", "adapter_config.json"])
def test_output_folder_of_another_run_is_refused(left, tmp_path):
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()
    with pytest.raises(ArgumentError, match=r"holds another run \(.*--resume_from_checkpoint true"):
        check_output_dir(training_args(tmp_path), default="runs/test")


def test_output_folder_with_other_files_is_used(tmp_path):
    (tmp_path / "notes.txt").touch()
    args = training_args(tmp_path)
    check_output_dir(args, default="runs/test")
    assert args.output_dir == str(tmp_path)


def test_default_output_folder_gets_a_number(tmp_path):
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all_results.json").touch()
    args = training_args(tmp_path / "run")
    check_output_dir(args, default=str(tmp_path / "run"))
    assert args.output_dir == str(tmp_path / "run-3")


def test_resume_takes_the_last_checkpoint_that_is_complete(tmp_path):
    make_checkpoint(tmp_path, 9)
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    args = training_args(tmp_path, resume="true")
    check_output_dir(args, default="runs/test")
    assert args.resume_from_checkpoint == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_resume_passes_over_a_damaged_checkpoint(file, tmp_path, capsys):
    for step in (9, 10):
        make_checkpoint(tmp_path, step)
    damaged = tmp_path / "checkpoint-10" / file
    damaged.write_bytes(damaged.read_bytes()[:-10])
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert f"checkpoint-10 is damaged ({file} cannot be read); it is passed over." in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="there is no complete checkpoint in"):
        check_output_dir(training_args(tmp_path, resume=str(tmp_path / "checkpoint-10")), default="runs/test")


@pytest.mark.parametrize("resume", ["true", "{folder}/checkpoint-20", "{folder}/checkpoint-99"])
def test_resume_without_a_complete_checkpoint(resume, tmp_path):
    make_checkpoint(tmp_path, 20, complete=False)
    with pytest.raises(ArgumentError, match="there is no complete checkpoint in"):
        check_output_dir(training_args(tmp_path, resume=resume.format(folder=tmp_path)), default="runs/test")


def test_resume_takes_a_run_folder_too(tmp_path):
    make_checkpoint(tmp_path, 9)
    (tmp_path / "trainer_state.json").touch()  # which a finished run leaves beside its checkpoints
    args = training_args(tmp_path, resume=str(tmp_path))
    check_output_dir(args, default="runs/test")
    assert args.resume_from_checkpoint == str(tmp_path / "checkpoint-9")


def test_resume_in_the_default_folder_goes_on_with_the_latest_run(tmp_path):
    make_checkpoint(tmp_path / "run", 9)
    make_checkpoint(tmp_path / "run-2", 3)
    args = training_args(tmp_path / "run", resume="true")
    check_output_dir(args, default=str(tmp_path / "run"))
    assert args.output_dir == str(tmp_path / "run-2")
    assert args.resume_from_checkpoint == str(tmp_path / "run-2" / "checkpoint-3")


def test_resume_does_not_write_over_another_run(tmp_path):
    make_checkpoint(tmp_path / "mine", 9)
    make_checkpoint(tmp_path / "other", 9)
    with pytest.raises(ArgumentError, match="is of another run than the one in --output_dir"):
        check_output_dir(
            training_args(tmp_path / "other", resume=str(tmp_path / "mine/checkpoint-9")), default="runs/x"
        )
