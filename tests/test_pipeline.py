"""`Pipeline` with phases that take a moment: killed, resumed, locked, refused."""

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ext import pipeline
from rlhf_ext.arguments import ArgumentError
from rlhf_ext.pipeline import Phase, PhaseError, Pipeline, unfinished_output_dir

# A recipe that counts to five, with a checkpoint at each step, and goes on from the last one.
RECIPE = """
import json, pathlib, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(options["--output_dir"])
folder.mkdir(exist_ok=True)
if options.get("--fail"):
    sys.exit("error: this cannot work.")
total, step = 0, 0
if "--resume_from_checkpoint" in options:
    last = max(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    total, step = json.loads(last.read_text())
while step < 5:
    step += 1
    total += step * int(options["--factor"])
    time.sleep(float(options.get("--sleep", 0)))
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "new").write_text(json.dumps([total, step]))
    (checkpoint / "new").rename(checkpoint / "trainer_state.json")
with open(folder.parent / "log", "a") as log:
    log.write(folder.name + "\\n")
(folder / "result").write_text(str(total))
"""
PARENT = """
import sys
from rlhf_ext import pipeline
from rlhf_ext.pipeline import Phase, Pipeline
pipeline.RECIPES = pipeline.Path(sys.argv[1])
phases = [Phase(str(n), "count.py", ("--factor", str(n), "--sleep", "0.05")) for n in (1, 2, 3)]
Pipeline(sys.argv[2], {}, phases).run()
"""


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "count.py").write_text(RECIPE)
    monkeypatch.setattr(pipeline, "RECIPES", folder)
    return folder


def count(*options, name="first"):
    return Phase(name, "count.py", ("--factor", "1", *options))


def result(folder, phase="first"):
    return (folder / phase / "result").read_text()


def test_phases_run_in_order_once_and_the_commands_are_shown(recipes, tmp_path, capfd):
    phases = [count(name="first"), count("--note", "two words", name="second")]
    Pipeline(tmp_path / "run", {"seed": 1}, phases).run()
    assert (tmp_path / "run/log").read_text() == "first\nsecond\n"
    assert result(tmp_path / "run") == result(tmp_path / "run", "second") == "15"
    printed = capfd.readouterr().out
    assert "Phase 1 of 2, first: accelerate launch recipes/count.py --output_dir" in printed
    Pipeline(tmp_path / "run", {"seed": 1}, phases).run()
    assert (tmp_path / "run/log").read_text() == "first\nsecond\n"
    assert "Phase 2 of 2, second: finished before." in capfd.readouterr().out
    state = json.loads((tmp_path / "run/pipeline.json").read_text())
    assert state["settings"] == {"seed": 1} and state["finished"]
    words = shlex.split(state["phases"]["second"]["command"])
    assert words[-2:] == ["--note", "two words"]


def test_killed_at_ten_moments_it_ends_as_if_nothing_had_happened(recipes, tmp_path):
    """SIGKILL of the command alone: the phase that it has started must not go on behind its back."""
    command = [sys.executable, "-c", PARENT, str(recipes), str(tmp_path / "run")]
    rng = random.Random(time.time())
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (tmp_path / "run/1").is_dir() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert [result(tmp_path / "run", phase) for phase in "123"] == ["15", "30", "45"]
    assert (tmp_path / "run/log").read_text().split() == ["1", "2", "3"]


def test_second_run_in_the_same_folder_is_refused(recipes, tmp_path):
    first = Pipeline(tmp_path / "run", {}, [count()])
    with pytest.raises(ArgumentError, match=r"another run works in --output_dir .*run: wait, or choose another"):
        Pipeline(tmp_path / "run", {}, [count()])
    first.run()
    del first
    Pipeline(tmp_path / "run", {}, [count()])


def test_other_settings_are_refused_and_named(recipes, tmp_path):
    Pipeline(tmp_path / "run", {"seed": 1, "algorithm": "ppo"}, [])
    with pytest.raises(ArgumentError, match=r"a run with other settings \(seed=1\)\. Repeat these"):
        Pipeline(tmp_path / "run", {"seed": 2, "algorithm": "ppo"}, [])


def test_error_of_a_phase_ends_the_run_and_keeps_what_is_finished(recipes, tmp_path, capfd):
    failing = [count(name="first"), count("--fail", "yes", name="second")]
    with pytest.raises(PhaseError, match="phase second ended with an error"):
        Pipeline(tmp_path / "run", {}, failing).run()
    assert "error: this cannot work." in capfd.readouterr().err
    Pipeline(tmp_path / "run", {}, [count(name="first"), count(name="second")]).run()
    assert (tmp_path / "run/log").read_text() == "first\nsecond\n"


def test_removed_folder_is_made_again(recipes, tmp_path, capfd):
    Pipeline(tmp_path / "run", {}, [count()]).run()
    (tmp_path / "run/first").rename(tmp_path / "elsewhere")
    Pipeline(tmp_path / "run", {}, [count()]).run()
    assert result(tmp_path / "run") == "15"
    assert "was finished and is gone; it is made again" in capfd.readouterr().out


def test_what_was_left_before_a_checkpoint_is_set_aside(recipes, tmp_path):
    (tmp_path / "run/first").mkdir(parents=True)
    (tmp_path / "run/first/all_results.json").write_text("{}")
    Pipeline(tmp_path / "run", {}, [count()]).run()
    assert (tmp_path / "run/first.interrupted-1/all_results.json").is_file()
    assert not (tmp_path / "run/first/all_results.json").exists()


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"cannot be written to \(.+\): choose another folder"):
        Pipeline(tmp_path / "file/run", {}, [])


def test_default_folder_is_numbered_unless_this_run_is_unfinished_there(tmp_path, recipes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert unfinished_output_dir("mine", "runs/x", {}) == "mine"
    assert unfinished_output_dir("runs/x", "runs/x", {"seed": 1}) == "runs/x"
    begun = Pipeline("runs/x", {"seed": 1}, [count()])
    assert unfinished_output_dir("runs/x", "runs/x", {"seed": 1}) == "runs/x"
    assert unfinished_output_dir("runs/x", "runs/x", {"seed": 2}) == str(Path("runs/x-2"))
    begun.run()
    assert unfinished_output_dir("runs/x", "runs/x", {"seed": 1}) == str(Path("runs/x-2"))
