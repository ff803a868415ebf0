"""Kill `recipes/chatbot_rlhf.py` at random moments and start it again: is the end that of an undisturbed run? As JSON.

    OMP_NUM_THREADS=2 python benchmarks/chatbot_kills.py

The embedded demo runs once undisturbed. In another folder it is ended with SIGKILL ten times, each after a random part
of one and a half minutes, and started again with the same command; then it goes on to its end. Compared are the weights
of every phase and the answers of the evaluation, byte for byte. A phase that is finished must not begin again.
"""

from rlhf_ext.console import quiet_libraries

quiet_libraries()

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rlhf_ext.chatbot.pipeline import STATE_FILE, read_state

RECIPE = Path(__file__).parents[1] / "recipes" / "chatbot_rlhf.py"
COMPARED = ("sft/model.safetensors", "reward/model.safetensors", "evaluation/completions.jsonl")
BEGINS = re.compile(r"^Phase \d+ of \d+, ([\w-]+): accelerate launch", re.MULTILINE)


def start(folder: Path, options: list[str], log: Path) -> subprocess.Popen:
    """Start the command; what it prints goes into a file."""
    command = [sys.executable, str(RECIPE), "--output_dir", str(folder), *options]
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def finished(folder: Path) -> set[str]:
    """Return the phases that the run in a folder has finished."""
    return {*read_state(folder)["phases"]} if (folder / STATE_FILE).is_file() else set()


def run_to_the_end(folder: Path, options: list[str], log: Path) -> None:
    """Run the command, and fail if it does.

    Raises:
        RuntimeError: It ended with an error.
    """
    if start(folder, options, log).wait():
        raise RuntimeError(f"the command failed:\n{log.read_text()[-3000:]}")


def main() -> None:
    """Run both, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=90, help="seconds until a kill, at most; some 20 are imports")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--algorithm", default="ppo", choices=["ppo", "dpo"])
    arguments = parser.parse_args()
    options, rng = ["--algorithm", arguments.algorithm], random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as top:
        whole, killed, log = Path(top, "whole"), Path(top, "killed"), Path(top, "log")
        run_to_the_end(whole, options, log)
        starts, repeated = [], []  # the phases that each start began; those of them that were finished
        for number in range(arguments.kills + 1):
            before = finished(killed)
            if number == arguments.kills:
                run_to_the_end(killed, options, log)
            else:
                process = start(killed, options, log)
                time.sleep(rng.uniform(0, arguments.longest))
                process.kill()
                if process.wait() == 0:
                    raise RuntimeError(f"finished after {number} kills: use a smaller --longest")
            starts.append(BEGINS.findall(log.read_text()))
            repeated += [name for name in starts[-1] if name in before]
        files = [*COMPARED, f"{arguments.algorithm}/model.safetensors"]
        same = {file: (whole / file).read_bytes() == (killed / file).read_bytes() for file in files}
    killed_in = [names[-1] if names else "start" for names in starts[:-1]]
    begun = Counter(name for names in starts for name in names)
    report = {"killed_in": killed_in, "begun": begun, "begun_when_finished": repeated, "same_bytes": same}
    print(json.dumps(report, indent=2))
    if repeated or not all(same.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
