"""JSON and TOML: bounded in size and depth, with finite numbers of 64 bits and text that is text.

JSON may begin with a byte-order mark. Refused beyond what the parsers refuse: two values under one key, whole numbers
that no 64 bits hold, numbers that are not finite (`1e999` as well), characters that no text has (NUL, half a
surrogate pair), more than DEEPEST levels.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from edgesmith.errors import Unreadable
from edgesmith.readers.budget import MEBIBYTE, read_bytes

DEEPEST = 64
"""Levels of a document; edgesmith's own have fewer than 16."""

LARGEST_JSON = 512 * MEBIBYTE
"""A record of `bench` has every sample: about 20 bytes each, and some millions of them at most."""

LARGEST_TOML = MEBIBYTE

_LONGEST_WHOLE = 20
_WHOLE = range(-(2**63), 2**63)


class _Refused(ValueError):
    """A value that the document may not hold; the sentence goes on with it."""


def read_json(
    source: Path | bytes | str, what: str, *, name: str = "", advice: str = "make it anew", limit: int = LARGEST_JSON
) -> Any:
    """Return the JSON in a file, in bytes or in text.

    Args:
        what: the word for such a document, such as `measurement`.
        name: what it is called in errors; without one, the file's path.
        advice: what to do about a damaged one.
        limit: bytes that it has at most.

    Raises:
        Unreadable: there is none, or it holds what no document of edgesmith's does.
    """
    name = name or (str(source) if isinstance(source, Path) else f"the {what}")
    content = read_bytes(source, what, limit) if isinstance(source, Path) else source
    if len(content) > limit:
        raise Unreadable(f"{name} is no {what}: it has {len(content)} bytes, and {limit} are the most; {advice}")
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        found = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
            object_pairs_hook=_once,
        )
    except UnicodeDecodeError as error:
        raise Unreadable(f"{name} is no {what}: it is no text; {advice}") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"{name} is damaged or no {what}: {error.msg} in line {error.lineno}; {advice}") from error
    except _Refused as error:
        raise Unreadable(f"{name} is no {what}: it holds {error}; {advice}") from error
    except RecursionError as error:
        raise Unreadable(f"{name} is no {what}: it is nested too deeply; {advice}") from error
    _check(found, name, what, advice)
    return found


def read_lines(source: Path, what: str, *, advice: str = "make it anew") -> Iterator[Any]:
    """Yield the JSON of each line of a file; a last line that was cut off is left out. Raises Unreadable."""
    for line in read_bytes(source, what, LARGEST_JSON).decode(errors="replace").splitlines():
        if line.endswith("}"):
            yield read_json(line, what, name=str(source), advice=advice)


def read_toml(path: Path, what: str, *, advice: str = "correct it") -> dict[str, Any]:
    """Return the tables of a TOML file. Raises Unreadable where it is none."""
    try:
        found = tomllib.loads(read_bytes(path, what, LARGEST_TOML).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path} is no {what}: it is no text; {advice}") from error
    except RecursionError as error:
        raise Unreadable(f"{path} is no {what}: it is nested too deeply; {advice}") from error
    except Unreadable:
        raise
    except ValueError as error:  # its own, and Python's about a number of 5,000 digits
        raise Unreadable(f"{path} is damaged or no {what}: {str(error)[:160]}; {advice}") from error
    _check(found, str(path), what, advice)
    return found


def _check(found: Any, name: str, what: str, advice: str) -> None:
    """Raise Unreadable where a document is too deep, or holds numbers or characters that it may not."""
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one
                inner += one.values()
            elif isinstance(one, list):
                inner += one
            elif (fault := _fault(one)) is not None:
                raise Unreadable(f"{name} is no {what}: it holds {fault}; {advice}")
        if not inner:
            return
        level = inner
    raise Unreadable(f"{name} is no {what}: it is nested too deeply; {advice}")


def _fault(value: Any) -> str | None:
    """Return what is wrong with a single value, in words; TOML's are seen here only."""
    if isinstance(value, str):
        if "\0" in value or (not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value)):
            return "a character that no text has"
    elif isinstance(value, float):
        return None if math.isfinite(value) else f"{value}, and numbers are finite"
    elif isinstance(value, int) and value not in _WHOLE:
        return "a whole number that 64 bits do not hold"
    return None


def _whole(text: str) -> int:
    if len(text) > _LONGEST_WHOLE or (value := int(text)) not in _WHOLE:
        raise _Refused("a whole number that 64 bits do not hold")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused(f"{text[:24]}, and numbers are finite")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name}, and numbers are finite")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"two values under {twice[:40]!r}")
    return found
