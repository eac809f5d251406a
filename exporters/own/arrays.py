"""Reading of the example of a module of the user's own: an `.npz` of arrays by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgesmith.errors import BadInput
from edgesmith.readers.tensors import read_npz

_EXAMPLE = "--inputs: example"
_ADVICE = "write it with numpy.savez"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in an `.npz` by name. Raises BadInput where it holds anything else."""
    names, _ = read_npz(path, (), _EXAMPLE, _ADVICE)
    if not names:
        raise BadInput(f"--inputs: {path} holds no arrays by name; write it with numpy.savez({path.name!r}, x=array)")
    return read_npz(path, names, _EXAMPLE, _ADVICE)[1]
