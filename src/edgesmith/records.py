"""Records: what edgesmith writes as JSON. A TypedDict says what is in one, and its JSON Schema follows from that.

    class Kit(TypedDict):               an object with these properties and no others; nested ones are in $defs
    its docstring                       `description`; below `Attributes:` those of its properties
    schema: Literal[1]                  `const`: a reader refuses another number in a sentence of its own
    files: dict[str, Digest]            an object with any keys
    note: NotRequired[str]              not in `required`
    str bool int float None Any, Literal, unions, list, tuple, Sequence, Mapping       what JSON has for them
    Digest = Annotated[str, Keyword("pattern", "^[0-9a-f]{64}$")]                       any other keyword

A test derives every schema anew and compares it with the file that is committed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from edgesmith.errors import BadInput
from edgesmith.readers.documents import read_json
from edgesmith.writing import write_whole

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}
LONGEST_COMPLAINT = 160
"""Characters of what a validator says; more would repeat much of the record."""


@dataclass(frozen=True)
class Keyword:
    """A keyword of JSON Schema that a type is annotated with, such as `minimum`."""

    name: str
    value: Any


@cache
def schema_of(record: type) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a TypedDict. It is shared: do not write to it.

    Raises:
        TypeError: a type that JSON has nothing for, a class that is not total, or two of one name.
    """
    known: dict[type, dict[str, Any]] = {}
    _add_object(record, known)
    own = known.pop(record)
    schema = {"$schema": DRAFT, "title": f"edgesmith {_in_words(record.__name__)}", **own}
    nested = {kind.__name__: known[kind] for kind in sorted(known, key=lambda kind: kind.__name__)}
    if len(nested) < len(known) or record.__name__ in nested:
        raise TypeError(f"{record.__name__} has two TypedDicts of one name, which $defs cannot tell apart")
    return {**schema, "$defs": nested} if nested else schema


def _add_object(record: type, known: dict[type, dict[str, Any]]) -> None:
    """Add the schema of a TypedDict, and of those that it refers to, to those that are known."""
    if not is_typeddict(record) or not vars(record)["__total__"]:
        raise TypeError(f"{record!r} is no total TypedDict: mark what may be missing as NotRequired")
    if record in known:
        return
    known[record] = {}  # it may refer to itself
    description, notes = _documented(record)
    required, properties = [], {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        if get_origin(hint) is not NotRequired:
            required.append(name)
        properties[name] = _schema(hint, known) | ({"description": notes[name]} if name in notes else {})
    known[record] = {
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def _schema(hint: Any, known: dict[type, dict[str, Any]]) -> dict[str, Any]:
    """The schema of one type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is Annotated:
        keywords = {extra.name: extra.value for extra in arguments[1:] if isinstance(extra, Keyword)}
        return _schema(arguments[0], known) | keywords
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if hint is next(iter(known)):
        return {"$ref": "#"}
    if is_typeddict(hint):
        _add_object(hint, known)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is NotRequired:
        return _schema(arguments[0], known)
    if origin is Literal:
        return {"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return _schema_of_union([_schema(one, known) for one in arguments])
    return _schema_of_collection(hint, known)


def _schema_of_union(members: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of what is one of several types: their names, where those say all."""
    if all(member.keys() == {"type"} for member in members):
        return {"type": [member["type"] for member in members]}
    return {"anyOf": members}


def _schema_of_collection(hint: Any, known: dict[type, dict[str, Any]]) -> dict[str, Any]:
    """The schema of a list, a tuple or a dict."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and arguments[-1] is not Ellipsis:
        items = [_schema(one, known) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": _schema(arguments[0], known)}
    if origin in (dict, Mapping) and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema(arguments[1], known)}
    raise TypeError(f"JSON has nothing for {hint!r}")


def _documented(record: type) -> tuple[str, dict[str, str]]:
    """A class's description, and those of its fields under `Attributes:`, each on one line."""
    text, _, listed = cleandoc(record.__doc__ or "").partition("\nAttributes:\n")
    notes: dict[str, str] = {}
    for entry in re.split(r"\n {4}(?! )", f"\n{listed}")[1:]:
        names, _, note = entry.partition(":")
        notes |= dict.fromkeys(re.split(r",\s*", names), " ".join(note.split()))
    return " ".join(text.split()), notes


def _in_words(name: str) -> str:
    """A class's name as words: `BuiltEngine` is `built engine`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def read_record(
    source: Path | bytes, schema: Mapping[str, Any], what: str, *, name: str = "", advice: str = "make it anew"
) -> dict[str, Any]:
    """Read a record and check it.

    Args:
        source: the file, or what is in it.
        schema: what `schema_of` returns for the record, or a schema file's content.
        what: the word for such a record, such as `measurement`.
        name: what it is called in errors; without one, the file's path.
        advice: what to do about a damaged record, such as `export the model again`.

    Raises:
        BadInput: it cannot be read, is no JSON, has another schema number, or holds what the schema does not allow. The
            sentence has the JSON pointer of that position.
    """
    content = parse(source, what, name=name, advice=advice)
    check(content, schema, what, name=name or str(source), advice=advice)
    return dict(content)


def parse(source: Path | bytes, what: str, *, name: str = "", advice: str = "make it anew") -> Any:
    """Return the JSON in a file or in bytes, see `readers.documents`. Raises BadInput where there is none."""
    return read_json(source, what, name=name, advice=advice)


def check(content: Any, schema: Mapping[str, Any], what: str, *, name: str, advice: str = "make it anew") -> None:
    """Raise BadInput, with the JSON pointer of the position, where content is not as its schema says."""
    import jsonschema

    if not isinstance(content, dict):
        raise BadInput(f"{name} is no {what}: it holds no object; {advice}")
    numbers = schema_numbers(schema)
    if numbers and "schema" not in content:
        raise BadInput(f"{name} is no {what}: it names no schema; {advice}")
    if numbers and content["schema"] not in numbers:
        reads = " and ".join(map(str, numbers))
        raise BadInput(
            f"{name} has schema {content['schema']!r}, and this edgesmith reads {reads}: {advice}, or read it with the"
            " one that wrote it"
        )
    worst = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(content))
    if worst is not None:
        position = "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in worst.absolute_path)
        said = worst.message
        short = said if len(said) < LONGEST_COMPLAINT else f"{said[: LONGEST_COMPLAINT - 3]}..."
        raise BadInput(f"{name} is no sound {what}: at {position or 'the top'}, {short}; {advice}")


def schema_numbers(schema: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the values that a record's `schema` may have; none where it has no such field."""
    field = schema.get("properties", {}).get("schema", {})
    return (field["const"],) if "const" in field else tuple(field.get("enum", ()))


def to_text(record: Mapping[str, Any], indent: int | None = 2) -> str:
    """Return a record as JSON, in the order of its keys; the same record gives the same text."""
    return json.dumps(record, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def write(record: Mapping[str, Any], path: Path, what: str, indent: int | None = 2) -> None:
    """Write a record, whole or not at all.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    write_whole(path, to_text(record, indent), what)
