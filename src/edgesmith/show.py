r"""Foreign text made fit for where it is shown: `in_terminal`, `in_markdown`, `in_xml`, `in_html`, `in_json`.

Names of files, devices, models and operators, keys of checkpoints, and what boards write come from elsewhere. Shown as
they are, they could move a terminal's cursor or set its title, turn a line's direction around, end a table's row, or be
markup. Each such character is written as its escape, `\x1b` or `\u202e`, and a text beyond LONGEST loses its middle.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 2000
"""Characters of one text."""

_ODD = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what is no visible character: control, format (bidi among it), surrogate, line separators."""

_KNOWN = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

_MARKS = re.compile(r"[\\`*\[\]<>|~@#$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown or GitHub makes something of: emphasis, links, markup, cells, mentions, issues, formulas."""

_LINKS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)


def in_terminal(text: str, *, lines: bool = False, longest: int = LONGEST) -> str:
    """Return a text for a terminal.

    Args:
        lines: whether it may have several lines.
        longest: characters from which on its middle is left out.
    """
    text = _shortened(str(text), longest)
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if lines and one == "\n" else _visible(one) for one in text)


def in_markdown(text: str) -> str:
    """Return a text for a cell or a line of Markdown, as GitHub has it."""
    return _LINKS.sub(
        _entity, _MARKS.sub(lambda one: _entity(one) if one[0] in "@<>&" else f"\\{one[0]}", in_terminal(text))
    )


def in_xml(text: str) -> str:
    """Return a text for an XML element or attribute, whose writer escapes markup: XML has no control characters."""
    return in_terminal(text)


def in_html(text: str) -> str:
    """Return a text for an HTML template, which escapes markup."""
    return in_terminal(text, lines=True)


def in_json(document: str) -> str:
    """Return JSON text in which every odd character of its strings is an escape; the document stays the same."""
    if document.isascii():
        return document.replace("\x7f", "\\u007f")
    return "".join(one if one == "\n" else _json_escape(one) for one in document)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    left = longest // 2
    return f"{text[:left]} ... {len(text) - 2 * left} characters left out ... {text[-left:]}"


def _entity(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"


def _visible(one: str) -> str:
    if unicodedata.category(one) not in _ODD:
        return one
    code = ord(one)
    if one in _KNOWN:
        return _KNOWN[one]
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _json_escape(one: str) -> str:
    if unicodedata.category(one) not in _ODD:
        return one
    code = ord(one)
    if code < 65536:
        return f"\\u{code:04x}"
    high, low = divmod(code - 65536, 1024)
    return f"\\u{55296 + high:04x}\\u{56320 + low:04x}"
