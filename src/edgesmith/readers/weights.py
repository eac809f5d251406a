"""The first look at a file of weights, which takes no torch."""

from __future__ import annotations

from pathlib import Path

from edgesmith.errors import CheckpointError


def check_weights(path: Path) -> None:
    """Refuse a file of weights that is not there or cannot be opened. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}; give a .pth, .pt or .safetensors file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its permissions") from error
