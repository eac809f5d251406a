"""The time that the command line takes: whole processes in turn, after one round for the disk cache.

python -m edgesmith.bench.experiments.commands [rounds]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from functools import partial

from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.interleave import interleaved

COMMANDS = (
    ("--help",),
    ("models",),
    ("export", "--model", "casvit_xs", "--target", "onnx", "--batch", "0"),  # refused
    ("export", "--model", "casvit_xs", "--target", "onnx"),
    ("export", "--model", "casvit_xs", "--target", "coreml"),
)


def run(words: tuple[str, ...], folder: str) -> None:
    """Run one command in a folder."""
    command = [sys.executable, "-m", "edgesmith", *words]
    subprocess.run(command, cwd=folder, check=False, capture_output=True)  # noqa: S603 - our own commands


def main() -> None:
    """Print one line for each command."""
    rounds = read_arguments(__doc__, rounds=5).rounds
    with tempfile.TemporaryDirectory() as folder:
        calls = {" ".join(words): partial(run, words, folder) for words in COMMANDS}
        samples = interleaved(calls, rounds, warm_up=1)
    table = Table(("edgesmith", 52), "median s", " least", "  most")
    for name, times in samples.items():
        seconds = [ms / 1e3 for ms in times]
        table.add(name, statistics.median(seconds), min(seconds), max(seconds))


if __name__ == "__main__":
    main()
