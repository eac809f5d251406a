"""A peer: a runtime that could be taken instead of another, what it reads, and how it is opened.

    convert   a form of the model -> the runtime's own file, once
    open      that file -> a call: arrays in, arrays out, on so many threads of the CPU in fp32

Both run in a process of the peer's own (worker.py): a crash ends nothing else. Importing a peer's file imports neither
torch nor the runtime, so that listing is instant.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import unknown

if TYPE_CHECKING:
    import numpy as np

Call = Callable[[Sequence["np.ndarray"]], Sequence["np.ndarray"]]
"""One inference: the inputs of the model in its order, and its outputs."""

MODULE = "module"
"""The kind of a source that is PyTorch code; all other kinds are names of targets, whose files they are."""

FOLDER = "edgesmith.bench.peers.runtimes"


class Refused(Exception):
    """A peer does not take a model; the sentence says why."""


@dataclass(frozen=True)
class Source:
    """A form of a model, as a peer is given it.

    Attributes:
        kind: MODULE, or the name of the target whose file it is, such as `onnx`.
        model: what `subject.read_words` makes the model of.
        file: of every kind but MODULE.
        inputs: the names of the model's inputs, in its order.
        outputs: how many tensors the model returns.
    """

    kind: str
    model: Mapping[str, Any]
    file: str | None
    inputs: tuple[str, ...]
    outputs: int


def keep_file(source: Source, folder: Path) -> Path:
    """Return the source's own file, which the runtime reads as it is; `folder` stands in for that of a module."""
    return folder if source.file is None else Path(source.file)


@dataclass(frozen=True)
class Peer:
    """A runtime.

    Attributes:
        name: for options and records; a target whose `timed_by` it is has its files run by it.
        title: for people.
        packages: those that pip installs for it.
        imports: top-level modules of theirs, without which it is not installed.
        reads: kinds of sources that it takes.
        version: the runtime's, asked in its own process.
        open: see the module's docstring; raises whatever the runtime does.
        convert: the same. Without one the runtime reads sources as they are.
        place: the module that has it as `PEER`.
        needs: what else an environment for it needs, in words.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    imports: tuple[str, ...]
    reads: tuple[str, ...]
    version: Callable[[], str]
    open: Callable[[Source, Path, int], Call]
    convert: Callable[[Source, Path], Path] = keep_file
    place: str = ""
    needs: str = ""

    def lacks(self) -> str | None:
        """Return a sentence that says how to install it; None where it is installed."""
        if all(importlib.util.find_spec(name) is not None for name in self.imports):
            return None
        needs = f" ({self.needs})" if self.needs else ""
        return f"not installed: python -m pip install -c constraints.txt {' '.join(self.packages)}{needs}"


def find(place: str) -> Peer:
    """Return the peer of a module."""
    found: Peer = importlib.import_module(place).PEER
    return found


@cache
def all_peers() -> dict[str, Peer]:
    """Return every peer by name."""
    folder = str(Path(__file__).parent / "runtimes")
    found = [find(f"{FOLDER}.{module.name}") for module in pkgutil.iter_modules([folder])]
    return {peer.name: peer for peer in sorted(found, key=lambda peer: peer.name)}


def choose(names: Sequence[str] | None) -> list[Peer]:
    """Return the peers that are named, all without names. Raises BadInput with the nearest names."""
    known = all_peers()
    for name in names or ():
        if name not in known:
            raise unknown("peer", name, known, "edgesmith peers --help")
    return [peer for name, peer in known.items() if not names or name in names]
