"""Seconds that `import rlhf_ext` adds to the start of Python, as JSON: median and range over interleaved runs."""

import json
import statistics
import subprocess
import sys
import time


def seconds(code: str) -> float:
    """Run `code` in a fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Alternate an empty program with the import."""
    seconds("import rlhf_ext")  # writes the byte code
    cost = [seconds("import rlhf_ext") - seconds("pass") for _ in range(15)]
    print(
        json.dumps({"median": round(statistics.median(cost), 3), "range": [round(min(cost), 3), round(max(cost), 3)]})
    )


if __name__ == "__main__":
    main()
