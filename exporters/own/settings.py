"""edgesmith.toml: modules of the user's own under names, so that a team's `edgesmith export --model ours` works.

    [models.ours]
    module = "nets/ours.py:build"          # path relative to this file, or package.module:callable
    kwargs = { width = 32 }
    input = ["1x3x224x224"]                # or inputs = "example.npz"
    fixed = { return_dict = true }
    weights = "ours.pth"
    key = "model_ema"
    strict = false

It is read from the current folder alone, since a name in it runs code. Options on the command line come before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edgesmith.errors import BadInput
from edgesmith.exporters.own.documents import read_toml

FILE = "edgesmith.toml"

_KINDS: dict[str, tuple[type, str]] = {
    "module": (str, "a text"),
    "kwargs": (dict, "a table"),
    "input": (list, "a list of texts"),
    "inputs": (str, "a text"),
    "fixed": (dict, "a table"),
    "weights": (str, "a text"),
    "key": (str, "a text"),
    "strict": (bool, "true or false"),
}
_PATHS = ("inputs", "weights")


def find(name: str, folder: Path = Path()) -> dict[str, Any] | None:
    """Return what edgesmith.toml says of a model, paths made relative to it; None where it has no such name.

    Raises:
        BadInput: a file that cannot be read, or a table with anything else in it.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    models = read_toml(path).get("models", {})
    if not isinstance(models, Mapping):
        raise BadInput(f"{path}: models must be tables [models.NAME], got {type(models).__name__}")
    if name not in models:
        return None
    found = models[name]
    if not isinstance(found, Mapping):
        raise BadInput(f"{path}: models.{name} must be a table, got {type(found).__name__}")
    return {key: _checked(path, name, key, value) for key, value in _complete(path, name, found).items()}


def names(folder: Path = Path()) -> list[str]:
    """Return the names that edgesmith.toml has; none where it is not there."""
    models = read_toml(folder / FILE).get("models", {}) if (folder / FILE).is_file() else {}
    return list(models) if isinstance(models, Mapping) else []


def _complete(path: Path, name: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
    if "module" not in table:
        raise BadInput(f'{path}: models.{name} has no module; wanted module = "file.py:callable"')
    return table


def _checked(path: Path, name: str, key: str, value: object) -> object:
    """Return one value, as the option of that name has it."""
    if key not in _KINDS:
        nearest = get_close_matches(key, _KINDS, n=1, cutoff=0.4) or [", ".join(_KINDS)]
        raise BadInput(f"{path}: models.{name} has {key!r}, which is no option; the nearest: {nearest[0]}")
    kind, words = _KINDS[key]
    if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
        raise BadInput(f"{path}: models.{name}.{key} must be {words}, got {value!r}")
    return path.parent / str(value) if key in _PATHS else value
