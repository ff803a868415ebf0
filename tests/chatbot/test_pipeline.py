"""`Pipeline` with phases that take a moment: killed, resumed, locked, refused."""

import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

from rlhf_ext.arguments import ArgumentError
from rlhf_ext.chatbot import pipeline, recipe_process
from rlhf_ext.chatbot.pipeline import Phase, PhaseError, Pipeline, unfinished_output_dir

# A recipe that counts to a number, with a checkpoint at each step, and goes on from the last one.
RECIPE = """
import json, os, pathlib, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(options["--output_dir"])
folder.mkdir(exist_ok=True)
(folder / "pid").write_text(str(os.getpid()))
environment = pathlib.Path("/proc/self/environ").read_text().split("\\0")  # as glibc has read it
(folder / "allocator").write_text(" ".join(sorted(line for line in environment if line.startswith("MALLOC_"))))
if options.get("--fail"):
    sys.exit("error: this cannot work.")
if options.get("--kill"):
    os.kill(os.getpid(), int(options["--kill"]))
total, step = 0, 0
if "--resume_from_checkpoint" in options:
    last = max(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    total, step = json.loads(last.read_text())
try:
    while step < int(options.get("--steps", 5)):
        step += 1
        total += step * int(options["--factor"])
        time.sleep(float(options.get("--sleep", 0)))
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "new").write_text(json.dumps([total, step]))
        (checkpoint / "new").rename(checkpoint / "trainer_state.json")
        with open(folder.parent / "steps", "a") as steps:
            steps.write(f"{folder.name} {step}\\n")
except KeyboardInterrupt:
    (folder / "goodbye").write_text("")
    sys.exit(130)
with open(folder.parent / "log", "a") as log:
    log.write(folder.name + "\\n")
(folder / "result").write_text(str(total))
"""
PARENT = """
if __name__ == "__main__":  # what is forked reads this file, too, and needs none of the imports
    import multiprocessing, resource, sys
    from rlhf_ext.chatbot import pipeline, recipe_process
    from rlhf_ext.errors import one_line_errors
    recipe_process.IMPORTS = []
    recipes, folder, options, *prepare = sys.argv[1:]
    for line in prepare:
        exec(line)
    pipeline.RECIPES = pipeline.Path(recipes)
    phases = [pipeline.Phase(str(n), "count.py", ("--factor", str(n), *options.split())) for n in (1, 2, 3)]
    with one_line_errors(pipeline.ArgumentError, pipeline.PhaseError, kept="The same command goes on."):
        run = pipeline.Pipeline(folder, {}, phases)
        run.run()
        run.finish()
"""
# As for users, but for the imports, which these recipes do not need.
WAYS = {
    "forked": "recipe_process._context = lambda: multiprocessing.get_context('forkserver')",
    "anew": "recipe_process._context = lambda: multiprocessing.get_context('spawn')",  # as with a GPU
}
in_both_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "count.py").write_text(RECIPE)
    (folder / "parent.py").write_text(PARENT)
    monkeypatch.setattr(pipeline, "RECIPES", folder)
    spawn = multiprocessing.get_context("spawn")  # the tests' own process to fork from has other imports
    monkeypatch.setattr(recipe_process, "_context", lambda: spawn)
    return folder


def count(*options, name="first", settings=()):
    return Phase(name, "count.py", ("--factor", "1", *options), settings=settings)


def result(folder, phase="first"):
    return (folder / phase / "result").read_text()


def test_phases_run_in_order_once_and_the_commands_are_shown(recipes, tmp_path, capfd):
    phases = [count(name="first"), count("--note", "two words", name="second")]
    Pipeline(tmp_path / "run", {"seed": 1}, phases).run()
    assert (tmp_path / "run/log").read_text() == "first\nsecond\n"
    assert result(tmp_path / "run") == result(tmp_path / "run", "second") == "15"
    printed = capfd.readouterr().out
    assert "Phase 1 of 2, first: accelerate launch recipes/count.py --output_dir" in printed
    again = Pipeline(tmp_path / "run", {"seed": 1}, phases)
    again.run()
    assert (tmp_path / "run/log").read_text() == "first\nsecond\n"
    assert "Phase 2 of 2, second: finished before." in capfd.readouterr().out
    assert "finished" not in json.loads((tmp_path / "run/pipeline.json").read_text())  # its summary is still to come
    again.finish()
    state = json.loads((tmp_path / "run/pipeline.json").read_text())
    assert state["settings"] == {"seed": 1} and state["finished"]
    words = shlex.split(state["phases"]["second"]["command"])
    assert words[-2:] == ["--note", "two words"]


def size(path):
    return path.stat().st_size if path.is_file() else 0


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@in_both_ways
def test_killed_at_ten_moments_it_ends_as_if_nothing_had_happened(recipes, tmp_path, way):
    """SIGKILL of the command alone: the phase that it has started must not go on behind its back."""
    command = [recipes / "parent.py", recipes, tmp_path / "run", "--steps 30 --sleep 0.01", way]
    steps = tmp_path / "run/steps"
    seed = random.randrange(10**6)
    rng, killed = random.Random(seed), 0
    print("seed", seed)  # shown where the test fails
    while killed < 10:
        before = size(steps)
        process = forked.start(*command)
        until(lambda before=before, process=process: size(steps) > before or not process.is_alive())
        time.sleep(rng.uniform(0, 0.06))
        killed += size(steps) > before and process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode != 0, "it was finished before it was killed ten times"
    until(lambda: forked.run(*command).returncode == 0)  # the system may still be ending the last phase
    assert [result(tmp_path / "run", phase) for phase in "123"] == ["465", "930", "1395"]
    assert len(lines := steps.read_text().splitlines()) == len({*lines})  # no step was made twice
    assert json.loads((tmp_path / "run/pipeline.json").read_text())["finished"]


@in_both_ways
@pytest.mark.parametrize("also_to_the_phase", [True, False])
def test_ctrl_c_ends_the_phase_too(recipes, tmp_path, also_to_the_phase, way):
    """A terminal sends the signal to both, `kill` to one."""
    options = "--steps 2000 --sleep 0.01"
    arguments = [recipes, tmp_path / "run", options, way, "recipe_process.GOODBYE = 0.2"]
    process = forked.start(recipes / "parent.py", *arguments, folder=tmp_path)
    until(lambda: size(tmp_path / "run/steps"))
    phase = int((tmp_path / "run/1/pid").read_text())
    os.kill(process.pid, signal.SIGINT)
    if also_to_the_phase:
        os.kill(phase, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130
    assert (tmp_path / "run/1/goodbye").exists() == also_to_the_phase
    assert not Path(f"/proc/{phase}").exists()
    said = (tmp_path / "stderr").read_text()
    assert said == "interrupted. The same command goes on.\n"


@in_both_ways
def test_phases_start_with_an_allocator_that_keeps_its_blocks(recipes, tmp_path, way):
    forget = "import os; [os.environ.pop(name, None) for name in recipe_process.KEEP_BLOCKS]"
    assert forked.run(recipes / "parent.py", recipes, tmp_path / "run", "", way, forget).returncode == 0
    read = (tmp_path / "run/1/allocator").read_text()
    assert read == "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296"


def test_what_recipes_are_forked_from_has_the_imports_and_no_thread_that_a_fork_loses(tmp_path):
    """Arrow's allocator has one, and brings it back by itself."""
    (tmp_path / "program.py").write_text(
        "import os, pathlib, sys\n"
        "assert 'rlhf_ext.chatbot.recipe_imports' in sys.modules\n"
        "tasks = pathlib.Path(f'/proc/{os.getppid()}/task').iterdir()\n"
        "print(*{(task / 'comm').read_text().strip() for task in tasks if task.name != str(os.getppid())})\n"
    )
    assert forked.run(tmp_path / "program.py").stdout in ("jemalloc_bg_thd\n", "\n")


def test_imports_begun_end_with_a_command_that_was_refused_and_say_nothing_at_ctrl_c(tmp_path):
    (tmp_path / "matplotlib").mkdir()  # in place of the imports, one that never ends
    (tmp_path / "matplotlib/__init__.py").touch()
    (tmp_path / "matplotlib/figure.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\ntime.sleep(1000)"
    )
    (tmp_path / "command.py").write_text(
        "import multiprocessing, os, signal, sys, time\n"
        "from rlhf_ext.chatbot import recipe_process\n"
        "recipe_process._context = lambda: multiprocessing.get_context('forkserver')\n"
        "recipe_process.start_imports()\n"
        f"while not os.path.exists({str(tmp_path / 'begun')!r}): time.sleep(0.01)\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.killpg(0, signal.SIGINT)\n"
        "time.sleep(0.5)\n"
        "print('refused')\n"
    )
    command = [sys.executable, tmp_path / "command.py"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 60, "start_new_session": True}
    done = subprocess.run(command, **options)  # it waits until nobody holds the output
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_full_disk_loses_nothing(recipes, tmp_path):
    """The files of the phases fit, and those of one phase in the state of the run, but not of three."""
    command = [recipes / "parent.py", recipes, tmp_path / "run", f"--note {'x' * 400}"]
    done = forked.run(*command, "resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.endswith("cannot be written: File too large. The same command goes on.\n")
    assert 0 < len(json.loads((tmp_path / "run/pipeline.json").read_text())["phases"]) < 3
    assert forked.run(*command).returncode == 0
    assert [result(tmp_path / "run", phase) for phase in "123"] == ["15", "30", "45"]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (signal.SIGKILL, "phase first was ended by SIGKILL; the system does that when memory runs out"),
        (signal.SIGTERM, r"phase first was ended by SIGTERM\. The same command goes on"),
    ],
)
def test_phase_that_was_killed_says_by_what(recipes, tmp_path, sent, message):
    with pytest.raises(PhaseError, match=message):
        Pipeline(tmp_path / "run", {}, [count("--kill", str(int(sent)))]).run()


def test_only_training_is_spread_over_the_processes_of_a_launcher(recipes, tmp_path, monkeypatch):
    environments = []
    monkeypatch.setattr(pipeline, "run_recipe", lambda command, environment: environments.append(environment) or 0)
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "4000"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    phases = [count(name="first"), count(name="second"), Phase("evaluation", "count.py", (), trains=False)]
    Pipeline(tmp_path / "run", {}, phases).run()
    assert [environment.get("WORLD_SIZE") for environment in environments] == ["2", "2", None]
    assert [environment["MASTER_PORT"] for environment in environments[:2]] == ["4001", "4002"]
    monkeypatch.setenv("RANK", "1")
    Pipeline(tmp_path / "other", {}, phases).run()
    assert [environment["RANK"] for environment in environments[3:]] == ["1", "1"]
    assert not (tmp_path / "other").exists()  # the first process writes


def test_second_run_in_the_same_folder_is_refused(recipes, tmp_path):
    first = Pipeline(tmp_path / "run", {}, [count()])
    with pytest.raises(ArgumentError, match=r"another run works in --output_dir .*run: wait, or choose another"):
        Pipeline(tmp_path / "run", {}, [count()])
    first.run()
    del first
    Pipeline(tmp_path / "run", {}, [count()])


def test_what_a_finished_phase_depends_on_is_refused_and_named(recipes, tmp_path):
    settings = {"seed": 1, "batch_size": None, "sft_config": "a.yaml", "contents of sft_config": "12ab"}
    settings["policy_config"] = "b.yaml"
    first = count(settings=("seed", "batch_size", "sft_config"))
    last = count("--fail", "yes", name="last", settings=("seed", "policy_config"))
    folder = tmp_path / "run"
    with pytest.raises(PhaseError, match=f"give the command again with --output_dir {folder}. What is finished stays"):
        Pipeline(folder, settings, [first, last]).run()
    for change, was in (
        ({"seed": 2}, "--seed was 1"),
        ({"batch_size": 2}, "--batch_size was not given"),
        ({"contents of sft_config": "34cd"}, "--sft_config a.yaml has other contents"),
        ({"sft_config": "c.yaml", "contents of sft_config": "34cd"}, "--sft_config was 'a.yaml'"),
    ):
        with pytest.raises(ArgumentError, match=rf"settings \(first\): {was}\. Repeat .* remove {folder}/first to"):
            Pipeline(folder, settings | change, [first, last])
    mended = settings | {"policy_config": "c.yaml"}
    Pipeline(folder, mended, [first, count(name="last", settings=last.settings)]).run()
    assert (folder / "log").read_text() == "first\nlast\n"  # the first one was not run again
    (folder / "first").rename(tmp_path / "elsewhere")
    with pytest.raises(ArgumentError, match=r"other settings \(last\): --seed was 1"):
        Pipeline(folder, mended | {"seed": 2}, [first, last])
    Pipeline(folder, mended | {"sft_config": "d.yaml"}, [first, last]).run()
    assert (folder / "log").read_text() == "first\nlast\nfirst\n"


def kill_after_a_checkpoint(folder, settings, monkeypatch):
    """A phase that is killed when half of its steps are made, with checkpoints."""

    def run(command, environment):
        done = folder / "first/checkpoint-3"
        done.mkdir(parents=True)
        (done / "trainer_state.json").write_text("[1000, 3]")  # as other settings would have it
        return -signal.SIGKILL

    with monkeypatch.context() as patch, pytest.raises(PhaseError):
        patch.setattr(pipeline, "run_recipe", run)
        Pipeline(folder, settings, [count(settings=("batch_size",))]).run()


def test_phase_goes_on_from_checkpoints_of_the_same_settings_alone(recipes, tmp_path, monkeypatch):
    phase = count(settings=("batch_size",))
    for batch_size, expected in ((4, "1009"), (2, "15")):
        folder = tmp_path / str(batch_size)
        kill_after_a_checkpoint(folder, {"batch_size": 4}, monkeypatch)
        Pipeline(folder, {"batch_size": batch_size}, [phase])  # killed before the phase begins
        Pipeline(folder, {"batch_size": batch_size}, [phase]).run()
        assert result(folder) == expected
    assert (folder / "first.interrupted-1/checkpoint-3").is_dir()


def test_phase_that_is_made_again_is_not_finished_until_it_is(recipes, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    Pipeline(folder, {}, [count()]).run()
    (folder / "first").rename(tmp_path / "elsewhere")
    kill_after_a_checkpoint(folder, {}, monkeypatch)
    Pipeline(folder, {}, [count()]).run()
    assert result(folder) == "1009"


def test_state_of_an_older_version_is_refused(tmp_path):
    (tmp_path / "pipeline.json").write_text('{"settings": {}, "phases": {}}')
    with pytest.raises(ArgumentError, match=r"pipeline\.json was written by an older version: choose another folder"):
        Pipeline(tmp_path, {}, [])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": 1}'])
def test_damaged_state_is_one_line(recipes, tmp_path, monkeypatch, content):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/pipeline.json").write_text(content)
    for read in (Pipeline, lambda folder, *_: unfinished_output_dir(str(folder), {})):
        with pytest.raises(ArgumentError, match=r"pipeline\.json is damaged: restore it, or remove it to begin again"):
            read(tmp_path / "runs", {}, [])


def test_error_of_a_phase_ends_the_run_and_keeps_what_is_finished(recipes, tmp_path, capfd):
    failing = [count(name="first"), count("--fail", "yes", name="second")]
    with pytest.raises(PhaseError, match="phase second ended with an error \\(above\\)"):
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


@pytest.mark.parametrize("folder", ["file/run", "/proc/run"])
def test_folder_that_cannot_be_written_to_is_refused(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"cannot be written to \(.+\): choose another folder"):
        Pipeline(tmp_path / folder, {}, [])


def test_default_folder_is_numbered_unless_this_run_is_unfinished_there(tmp_path, recipes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert unfinished_output_dir("runs/x", {"seed": 1}) == "runs/x"
    begun = Pipeline("runs/x", {"seed": 1}, [count()])
    assert unfinished_output_dir("runs/x", {"seed": 1}) == "runs/x"
    assert unfinished_output_dir("runs/x", {"seed": 2}) == str(Path("runs/x-2"))
    begun.run()
    assert unfinished_output_dir("runs/x", {"seed": 1}) == "runs/x"  # without its summary it is not finished
    begun.finish()
    assert unfinished_output_dir("runs/x", {"seed": 1}) == str(Path("runs/x-2"))
