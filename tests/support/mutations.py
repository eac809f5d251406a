"""Damage to files, drawn from a seed: bits, cuts, splices, swapped keys, huge numbers, deep nesting, bombs."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, -(2**63) - 1, 1e308, -1e308, 1e-320, 0.5, "", " ", "x"),
    *("\x00", "\ud800", "\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe", "../../x", "/etc/passwd", "a|b\n# c", "<script>"),
    *("a" * 100_000, [], {}, [[]], {"": {}}, [None] * 1000, {"__proto__": 1}),
)
ODD_TEXT = (
    *(b"1" * 6000, b"1e999", b"NaN", b"-Infinity", b"[" * 100_000, b'{"a":' * 100_000),
    *(b"\xef\xbb\xbf", b"\xff\xfe"),
)
SHORT_TEXT = (b"-1", b"0", b"nan", b"inf", b'""', b"[]", b"{}", b"true", b"1979-05-27", b'"../x"')

Mutate = Callable[[bytes, random.Random], bytes]


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut, splice, delete, insert, overwrite or repeat."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        if not data:
            return draw.randbytes(draw.choice((0, 1, 64)))
        at, size = draw.randrange(len(data)), draw.choice((1, 2, 4, 16, 256))
        how = draw.randrange(8)
        if how <= 1:
            data[at] ^= 1 << draw.randrange(8)
        elif how == 2:
            del data[draw.choice((at, at, len(data) - min(len(data), size))) :]
        elif how == 3:
            source = draw.randrange(len(data))
            data[at : at + size] = data[source : source + size]
        elif how == 4:
            del data[at : at + size]
        elif how == 5:
            data[at:at] = draw.choice((draw.randbytes(size), bytes(size), b"\xff" * size, draw.choice(ODD_TEXT)[:4096]))
        elif how == 6:
            data[at : at + size] = draw.choice((b"\xff", b"\0", b"\x7f")) * len(data[at : at + size])
        else:
            data[at:at] = data[at : at + size] * draw.choice((1, 2, 100))
    return bytes(data)


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """Change a document's values and keys, so that it stays JSON; or its text."""
    if draw.random() < 0.25:
        return mutate_text(content, draw)
    document = json.loads(content)
    for _ in range(draw.choice((1, 1, 2))):
        positions = list(_positions(document))
        if not positions:
            break
        holder, key = draw.choice(positions)
        other, same = draw.choice(positions)
        how = draw.randrange(6)
        if how <= 2:
            holder[key] = draw.choice(ODD_VALUES)
        elif how == 3:
            holder[key] = json.loads(_text(other[same]))  # a copy: it may hold the holder
        elif how == 4:
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw.choice((str(key)[::-1], "", "schema", "a" * 1000, "\x1b[31m"))] = holder.pop(key)
        else:
            holder *= 2
        document = json.loads(_text(document))
    return _text(document)


def mutate_text(content: bytes, draw: random.Random) -> bytes:
    """Put odd text where a number or a string was, or damage bytes."""
    found = list(re.finditer(rb'-?\d[\d.eE+-]*|"[^"\n]{0,200}"|\btrue\b|\bfalse\b|\w+', content))
    if not found or draw.random() < 0.4:
        return mutate_bytes(content, draw)
    at = draw.choice(found)
    value = draw.choice(
        (*ODD_TEXT, b"-1", b"0", b"nan", b"inf", b'""', b"[]", b"{}", b"true", b"1979-05-27", b'"../x"')
    )
    return content[: at.start()] + value + content[at.end() :]


def mutate_archive(content: bytes, draw: random.Random) -> bytes:
    """Damage an archive, or write it anew, with sound checksums, around a member that is damaged, absent or a bomb."""
    if draw.random() < 0.5:
        return mutate_bytes(content, draw)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(made, "w") as target:
        chosen = draw.choice(source.namelist())
        how = draw.randrange(5)
        for name in source.namelist():
            inner = source.read(name)
            if name == chosen and how == 0:
                continue
            if name == chosen and how <= 2:
                inner = mutate_bytes(inner, draw)
            if name == chosen and how == 3:
                target.writestr(name, bytes(20_000_000), zipfile.ZIP_DEFLATED)
                continue
            target.writestr("../" + name if name == chosen and how == 4 else name, inner)
    data = bytearray(made.getvalue())
    if how == 3:  # it declares more than anybody has
        at = data.rfind(b"PK\x01\x02")
        data[at + 24 : at + 28] = (4_000_000_000).to_bytes(4, "little")
    return bytes(data)


def _positions(document: Any) -> list[tuple[Any, Any]]:
    """Every value of a document, as what holds it and its key there."""
    found, left = [], [document]
    while left:
        one = left.pop()
        inner = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, value in inner:
            found.append((one, key))
            left.append(value)
    return found


def _text(document: Any) -> bytes:
    return json.dumps(document).encode(errors="surrogatepass")
