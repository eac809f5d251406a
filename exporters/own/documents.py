"""Reading of what describes a module of the user's own: JSON of the command line, edgesmith.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgesmith.errors import BadInput, Unreadable
from edgesmith.readers import documents


def parse_table(text: str, option: str) -> dict[str, Any]:
    """Return the object in a text of JSON. Raises BadInput for anything else."""
    wanted = f"""{option} must be a JSON object such as '{{"width": 32}}', got {text[:80]!r}"""
    try:
        found = documents.read_json(text, option)
    except Unreadable as error:
        raise BadInput(wanted) from error
    if not isinstance(found, dict):
        raise BadInput(wanted)
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables in a TOML file. Raises BadInput where it cannot be read."""
    return documents.read_toml(path, "TOML file", advice="mend it, or remove it")
