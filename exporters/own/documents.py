"""Reading of what describes a module of the user's own: JSON of the command line, edgesmith.toml, an `.npz`."""

from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BadInput

if TYPE_CHECKING:
    import numpy as np


def parse_table(text: str, option: str) -> dict[str, Any]:
    """Return the object in a text of JSON. Raises BadInput for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"""{option} must be a JSON object such as '{{"width": 32}}', got {text[:80]!r}""") from error
    if not isinstance(found, dict):
        raise BadInput(f"""{option} must be a JSON object such as '{{"width": 32}}', got {text[:80]!r}""")
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables in a TOML file. Raises BadInput where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read as TOML: {error}; mend it, or remove it") from error


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in an `.npz` by name. Raises BadInput where it holds anything else."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as opened:
            found = {name: opened[name] for name in opened.files} if isinstance(opened, np.lib.npyio.NpzFile) else {}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, RuntimeError, TypeError) as error:
        raise BadInput(f"--inputs: {path} is no .npz of plain arrays; write it with numpy.savez") from error
    if not found:
        raise BadInput(f"--inputs: {path} holds no arrays by name; write it with numpy.savez({path.name!r}, x=array)")
    return found
