"""Tables of a document as frozen dataclasses, each value of the type that its field has.

str bool int float None, unions of them      a whole number is a float too, and a boolean is no number
tuple[T, ...]  tuple[T, U]                   a list
Mapping[str, T]                              a table of any keys
another dataclass                            a table
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgesmith.errors import Unreadable

T = TypeVar("T")


def as_dataclass(kind: type[T], table: object, where: str) -> T:
    """Return a table as a dataclass.

    Args:
        where: the document and the position in it, for the sentence: `a.toml: /clocks`.

    Raises:
        Unreadable: a field without a default is missing, one is unknown, or a value has another type.
    """
    if not isinstance(table, dict):
        raise Unreadable(f"{where} must be a table, got {_short(table)}")
    types, has_default = _fields(cast("Any", kind))
    if unknown := [key for key in table if key not in types]:
        raise Unreadable(f"{where} has {str(unknown[0])[:80]!r}, which is none of {', '.join(types)}")
    if missing := [name for name in types if name not in table and not has_default[name]]:
        raise Unreadable(f"{where} has no {missing[0]}")
    return kind(**{key: _value(types[key], value, f"{where}/{key}") for key, value in table.items()})


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], dict[str, bool]]:
    own = [one for one in fields(kind) if one.init]
    hints = get_type_hints(kind)
    defaults = {one.name: one.default is not MISSING or one.default_factory is not MISSING for one in own}
    return {one.name: hints[one.name] for one in own}, defaults


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _one_of(arguments, value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return as_dataclass(hint, value, where)
    if origin is tuple and isinstance(value, list):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) == len(value):
            return tuple(_value(of, one, f"{where}/{i}") for i, (of, one) in enumerate(zip(inner, value, strict=True)))
    elif origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _value(arguments[1], one, f"{where}/{key}") for key, one in value.items()}
    elif hint is Any or _is_plain(hint, value):
        return value
    raise Unreadable(f"{where} must be {_said(hint)}, got {_short(value)}")


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Return a value of one of several types; where one is a dataclass, the sentence is that of the last such."""
    for kind in kinds:
        try:
            return _value(kind, value, where)
        except Unreadable:
            continue
    for kind in reversed(kinds):
        if is_dataclass(kind):
            return _value(kind, value, where)
    raise Unreadable(f"{where} must be {' or '.join(_said(kind) for kind in kinds)}, got {_short(value)}")


def _said(hint: Any) -> str:
    """Return a type in words: `a list of 2` of `tuple[float, float]`."""
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    return "null" if hint in (None, NoneType) else str(getattr(hint, "__name__", hint))


def _is_plain(hint: Any, value: Any) -> bool:
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint in (str, bool) and isinstance(value, hint)


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
