"""How long the command line takes, as whole processes: median of five, after one to warm the disk cache.

python -m edgesmith.bench.experiments.commands
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from time import perf_counter_ns

COMMANDS = (
    ("--help",),
    ("models",),
    ("export", "--model", "casvit_xs", "--target", "onnx"),
    ("export", "--model", "casvit_xs", "--target", "coreml"),
)
RUNS = 5


def measure(arguments: tuple[str, ...], runs: int = RUNS) -> list[float]:
    """Seconds of each of `runs` runs. Raises CalledProcessError when one fails."""
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs + 1):
            start = perf_counter_ns()
            command = [sys.executable, "-m", "edgesmith", *arguments]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603 - our own commands
            samples.append((perf_counter_ns() - start) / 1e9)
    return samples[1:]


def main() -> None:
    """Print one line for each command."""
    for arguments in COMMANDS:
        samples = measure(arguments)
        low, middle, high = min(samples), statistics.median(samples), max(samples)
        print(f"edgesmith {' '.join(arguments):<48} {middle:6.2f} s   ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
