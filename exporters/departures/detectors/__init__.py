"""Detectors: each finds one construct of the book in a graph, and says what it met at every position.

    @detector
    def log_of_softmax(graph: Graph) -> Found:
        for node in graph.of("log"): ...
            yield node, "log of a softmax of [1, 10]"

The function's name is what a row has under `detector`; several rows may share one. A position is a node, or the name of
an input, an output or a state. A module of this folder holds those of one class, and is found by listing it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from edgesmith.exporters.departures.graph import Graph, Node

Position = Node | str
Found = Iterator[tuple[Position, str]]
Detector = Callable[[Graph], Found]

_found: dict[str, Detector] = {}


def detector(function: Detector) -> Detector:
    """Make a function the detector of its name. Raises ValueError where another one has it."""
    name = function.__name__
    if name in _found:
        raise ValueError(f"{_found[name].__module__} has a detector {name} already")
    _found[name] = function
    return function


@cache
def all_detectors() -> Mapping[str, Detector]:
    """Return every detector by name."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(_found)


def words(graph: Graph, name: str) -> str:
    """Return a value's shape in words: `[1, ?, 8]`."""
    found = graph.value(name)
    if found is None or found.shape is None:
        return "[...]"
    return f"[{', '.join('?' if size is None else str(size) for size in found.shape)}]"
