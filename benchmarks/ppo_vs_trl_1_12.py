"""Seconds per update and peak memory of our `PPOTrainer` against that of TRL 1.12, the last release with PPO, as JSON.

    OMP_NUM_THREADS=2 python benchmarks/ppo_vs_trl_1_12.py

Policy (LoRA r=16), reference, critic and reward model are randomly initialised 40M-parameter Llamas. An update is a
batch of 16 of 64 prompts of 32 tokens, 64 new tokens each, and one or four epochs in four mini-batches. Two releases
of TRL do not fit into one process, so every side has a process of its own and gets one update in turn, while the
others wait; the order changes from round to round. glibc keeps its blocks on all sides, so that what is timed is
not the fetching of pages. Memory: each side alone in a new process, since a peak belongs to a process; there it gives
them back. Run it with nothing else on the machine.

TRL 1.12.0 runs on today's dependencies. `--trl_1_12` names a folder with it, unpacked; without, pip fetches it.

Sides are named by critic and by the type of the base weights. TRL 1.12 ignores `bf16=True`, so that its fair rival in
bfloat16 is the side that loads all its models in that type. `--reward adapter` makes our reward model a LoRA adapter of
the policy's base, as TRL's cannot be; with `--reward model` it is a model of its own, as TRL's is. Ours generates with
the policy's adapter merged into its base (`merge_adapter_for_generation`), or with `--no-merge` beside it, the default.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dpo_vs_trl import EXACT_MEMORY, peak_memory
from ppo_vs_trl_1_12_side import write_models

from rlhf_ext.chatbot.recipe_process import KEEP_BLOCKS

SIDES = ["trl_1_12", "head", "adapter", "trl_1_12_bf16", "head_bf16", "adapter_bf16"]
BASELINE = "trl_1_12"
WORKER = Path(__file__).with_name("ppo_vs_trl_1_12_side.py")


class Side:
    """One side in a process of its own; `take_turn` gives it one update."""

    def __init__(self, name: str, settings: dict[str, Any], environment: dict[str, str]) -> None:
        self.name = name
        command = [sys.executable, str(WORKER), json.dumps({**settings, "side": name})]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.versions = self._read()
        self.memory_of_imports = peak_memory(self._process.pid)
        self.weights = self.take_turn()

    def take_turn(self) -> dict[str, Any]:
        """Let the process go on, and wait for what it reports."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("REPORT "):  # what is not, a trainer has printed
                return json.loads(line.removeprefix("REPORT "))
        raise RuntimeError(f"The process of {self.name} ended early with exit status {self._process.wait()}.")

    def peak_memory(self) -> float:
        """Peak resident memory so far above that of the imports, in MiB."""
        return peak_memory(self._process.pid) - self.memory_of_imports

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def measure_time(sides: list[Side], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Give all sides single updates in turn; the first round warms up."""
    updates: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides if number % 2 else sides[::-1]:
            seconds = side.take_turn()
            if number:
                updates[side.name].append(seconds)
    return updates


def summary(values: list[float]) -> dict[str, Any]:
    """Median and range."""
    return {"median": round(statistics.median(values), 3), "range": [round(min(values), 3), round(max(values), 3)]}


def main() -> None:
    """Run both measurements and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl_1_12", help="folder with TRL 1.12.0, unpacked")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--reward", choices=["adapter", "model"], default="adapter")
    parser.add_argument("--merge", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=7, help="timed updates of each side")
    parser.add_argument("--memory_runs", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8, help="fewer for a quick look")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=64)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"threads": os.environ.get("OMP_NUM_THREADS"), "sides": {}}
    result |= {"reward": arguments.reward, "merge_adapter_for_generation": arguments.merge}
    with tempfile.TemporaryDirectory() as folder:
        old_trl = arguments.trl_1_12 or str(Path(folder, "trl_1_12"))
        if arguments.trl_1_12 is None and any(side.startswith("trl_1_12") for side in arguments.sides):
            command = ["install", "--quiet", "--no-deps", "--target", old_trl, "trl==1.12.0"]
            subprocess.run([sys.executable, "-m", "pip", *command], check=True)
        write_models(Path(folder), layers=arguments.layers, hidden_size=arguments.hidden_size)
        settings = {name: getattr(arguments, name) for name in ("new_tokens", "reward", "merge")} | {"folder": folder}

        def start(name: str, epochs: int, **variables: str) -> Side:
            environment = {**os.environ, **(variables or KEEP_BLOCKS)}
            if name.startswith("trl_1_12"):
                environment["PYTHONPATH"] = os.pathsep.join([old_trl, *filter(None, [os.environ.get("PYTHONPATH")])])
            return Side(name, {**settings, "epochs": epochs}, environment)

        for epochs in arguments.epochs:
            sides = [start(name, epochs) for name in arguments.sides]
            for name, updates in measure_time(sides, arguments.rounds).items():
                phases = {phase: summary([update[phase] for update in updates]) for phase in updates[0]}
                result["sides"].setdefault(name, {})[f"seconds_per_update_{epochs}_epochs"] = phases
            for side in sides:
                result["sides"][side.name] |= side.versions
                side.end()
        for name in arguments.sides:
            peaks = []
            for _ in range(arguments.memory_runs):
                side = start(name, arguments.epochs[0], **EXACT_MEMORY)
                for _ in range(2):
                    side.take_turn()
                peaks.append(side.peak_memory())
                side.end()
                result["sides"][name] |= side.weights
            if peaks:
                result["sides"][name]["peak_mib_above_import"] = summary(peaks)
    print(json.dumps(result | {"times_as_fast": compare(result["sides"])}, indent=2))


def compare(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times as fast as TRL 1.12 in float32 each side is, and which part of its memory it needs."""
    if BASELINE not in sides:
        return {}
    ratios: dict[str, dict[str, float]] = {}
    for name, measures in sides.items():
        for measure, value in measures.items():
            base = sides[BASELINE].get(measure)
            if measure.startswith("seconds"):
                ratio = base["total"]["median"] / value["total"]["median"]
            elif measure.startswith("peak"):
                ratio = value["median"] / base["median"]
            else:
                continue
            ratios.setdefault(measure, {})[name] = round(ratio, 3)
    return ratios


if __name__ == "__main__":
    main()
