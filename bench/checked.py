"""JSON files that hold what their schema says, or a sentence that says what they hold instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from edgesmith.errors import BadInput


def load(path: Path, what: str) -> Any:
    """What a JSON file holds. what: the word for such a file, such as `measurement`.

    Raises:
        BadInput: no such file, no text, no JSON, or a number that is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise BadInput(f"cannot read the {what} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no {what}: it is no text") from error
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is damaged or no {what}: {error.msg} in line {error.lineno}") from error
    except _NoNumber as error:
        raise BadInput(f"{path} is no {what}: it holds {error}, and times are finite numbers") from error


def check(content: Any, schema: Mapping[str, Any], path: Path, what: str) -> None:
    """Raise BadInput, with the place, where something is not as the JSON Schema says."""
    import jsonschema

    errors = jsonschema.Draft202012Validator(schema).iter_errors(content)
    worst = jsonschema.exceptions.best_match(errors)
    if worst is not None:
        place = ".".join(map(str, worst.absolute_path)) or "the top"
        raise BadInput(f"{path} is no sound {what}: at {place}, {_shortened(worst.message)}")


class _NoNumber(ValueError):
    """NaN or an infinity."""


def _no_number(name: str) -> NoReturn:
    raise _NoNumber(name)


def _shortened(message: str) -> str:
    return message if len(message) < 160 else message[:157] + "..."
