"""Walks a guide: every command and program in it, in order, and nothing else, in a folder of its own.

    python tests/walks/walk.py docs/guides/coreml.md FOLDER [BLOCKS]

walks the first so many blocks, or all. A guide's `sh` blocks run in bash, its `python` blocks in Python, in FOLDER, one
after the other; the first that fails ends the walk with its code. Before it, FOLDER gets what the guide says that its
reader has: a checkpoint as its authors save it, and labels. A board is what bin/ssh and bin/scp reach: a folder here,
with the stand-in for TensorRT.
"""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each block that is to be typed."""
    yield from BLOCK.findall(page.read_text(encoding="utf-8"))


def save_checkpoint(model: str, path: Path, key: str | None) -> None:
    """Save weights as the authors of a model do, of random numbers."""
    import torch

    from edgesmith.exporters.load import load
    from edgesmith.exporters.options import ModelOptions

    state = load(ModelOptions(model=model)).module.state_dict()
    torch.save({key: state} if key else state, path)


def bring_classifier(folder: Path) -> None:
    save_checkpoint("casvit_xs", folder / "rcvit_xs.pth", "model")
    (folder / "labels.txt").write_text("".join(f"class {number}\n" for number in range(1000)))


def bring_keywords(folder: Path) -> None:
    save_checkpoint("lmuformer", folder / "lmuformer.pth", None)
    noise = random.Random(0)  # a sound, and no secret
    with wave.open(str(folder / "word.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        file.writeframes(b"".join(struct.pack("<h", int(noise.gauss(0, 2000))) for _ in range(16000)))


BROUGHT: dict[str, Callable[[Path], None]] = {"coreml": bring_classifier, "jetson": bring_keywords}
"""What the reader of a guide has, by the guide's name."""


def walk(page: Path, folder: Path, count: int | None = None) -> int:
    """Walk a guide, or its first blocks, in a folder. Return the exit code of what failed, or 0."""
    folder.mkdir(parents=True, exist_ok=True)
    BROUGHT.get(page.stem, lambda _: None)(folder)
    path = os.pathsep.join([str(HERE / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    board = folder.parent / f"{folder.name}-board"
    board.mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": path, "BOARD": str(board), "BOARD_PYTHON": str(HERE.parent / "standins")}
    for language, text in islice(blocks(page), count):
        print(f"== {page.name}: {language}\n{text}", flush=True)
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            print(f"== {page.name}: {done.returncode} of\n{text}", file=sys.stderr)
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(walk(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), *map(int, sys.argv[3:])))
