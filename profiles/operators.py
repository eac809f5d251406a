"""ONNX operators and the versions of TensorRT that have them, from `tensorrt-ops.toml`; each row has its source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgesmith.readers.documents import read_toml

NEVER = "never"
"""The `since` of an operator that no TensorRT has."""


@dataclass(frozen=True)
class Operator:
    """One row.

    Attributes:
        since: the first version of TensorRT that has it, such as `10.5`, or `never`.
        rtx: whether TensorRT-RTX 1.7 has it.
        source: where `since` is from.
    """

    name: str
    since: str
    rtx: bool
    source: str


@cache
def all_operators() -> dict[str, Operator]:
    """Every operator of the table by name."""
    table = read_toml(Path(__file__).with_name("tensorrt-ops.toml"), "table of operators")
    sources = table["sources"]
    return {
        name: Operator(name, row["since"], row["rtx"], sources[row["source"]])
        for name, row in table["operators"].items()
    }


def lacks(operator: str, tensorrt: str | None) -> str | None:
    """Return why a version of TensorRT, or with None TensorRT-RTX, lacks an operator; None where it may have it.

    >>> lacks("STFT", "10.3")
    'TensorRT has it from 10.5 on'
    """
    row = all_operators().get(operator)
    if row is None:
        return None
    if row.rtx if tensorrt is None else row.since != NEVER and _parts(tensorrt) >= _parts(row.since):
        return None
    return "no TensorRT up to 11.4 has it" if row.since == NEVER else f"TensorRT has it from {row.since} on"


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
