"""Libraries of our `tvm` target, which need no runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.bench.peers.peer import Call, Peer, Source
from edgesmith.bench.runner import load_compiled, version_compiled

if TYPE_CHECKING:
    import numpy as np


def open_file(source: Source, file: Path, threads: int) -> Call:
    """A call of a library."""
    import numpy as np

    said, bind = load_compiled(str(file), threads)
    given, made = ([np.empty(one["shape"], one["dtype"]) for one in said[side]] for side in ("inputs", "outputs"))
    run = bind(given, made)

    def call(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        for array, own in zip(arrays, given, strict=True):
            np.copyto(own, array)
        run()
        return made

    return call


PEER = Peer(
    name="compiled",
    title="compiled",
    packages=("apache-tvm", "ziglang"),
    imports=("tvm",),
    reads=("tvm",),
    version=version_compiled,
    open=open_file,
    place=__name__,
)
