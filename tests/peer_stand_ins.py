"""Stand-ins for runtimes, as a peer's process finds them: each computes y = 2 x + 1, or what its name says instead.

`test_peers.py` writes a module for each that is used, whose `PEER` is one of these.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.bench.peers.peer import Call, Peer, Refused, Source


def version() -> str:
    return "1.2"


def double(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [2 * arrays[0] + 1]


def open_exact(source: Source, file: Path, threads: int) -> Call:
    print("what a library prints is no event")
    return double


def open_slow(source: Source, file: Path, threads: int) -> Call:
    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        time.sleep(0.01)
        return double(arrays)

    return call


def open_wrong(source: Source, file: Path, threads: int) -> Call:
    return lambda arrays: [2.1 * arrays[0] + 1]


def open_flat(source: Source, file: Path, threads: int) -> Call:
    return lambda arrays: [double(arrays)[0].reshape(-1)]


def open_other(source: Source, file: Path, threads: int) -> Call:
    return lambda arrays: [double(arrays)[0][:1]]


def open_dying(source: Source, file: Path, threads: int) -> Call:
    """Run the first time; later processes die at their first call."""
    mark = file.with_name("was_here")
    if not mark.exists():
        mark.write_text("")
        return double

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        os.kill(os.getpid(), signal.SIGSEGV)
        return double(arrays)

    return call


def open_waiting(source: Source, file: Path, threads: int) -> Call:
    time.sleep(60)
    return double


def open_reporting(source: Source, file: Path, threads: int) -> Call:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
    return double


def refuse(source: Source, folder: Path) -> Path:
    raise Refused("no kernel for aten::roll in /somewhere/else/file.cc:12\nand much more")


def break_import() -> str:
    raise ImportError("libpeer.so: undefined symbol")


def peer(name: str, **also: Any) -> Peer:
    usual: dict[str, Any] = {"open": open_exact, "version": version, "imports": ("sys",), "reads": ("module",)}
    return Peer(name=name, title=name.title(), packages=(f"{name}-runtime",), place=name, **{**usual, **also})


PEERS = {
    one.name: one
    for one in (
        peer("exact_peer"),
        peer("slow_peer", open=open_slow),
        peer("wrong_peer", open=open_wrong),
        peer("flat_peer", open=open_flat),
        peer("other_peer", open=open_other),
        peer("dying_peer", open=open_dying),
        peer("waiting_peer", open=open_waiting),
        peer("reporting_peer", open=open_reporting),
        peer("refusing_peer", convert=refuse),
        peer("broken_peer", version=break_import),
        peer("missing_peer", imports=("no_such_module_at_all",)),
    )
}
