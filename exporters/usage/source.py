"""Names and literals as the languages write them, and the snippet that they make."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass

PYTHON, CPP, KOTLIN, SWIFT = "python", "c++", "kotlin", "swift"
LANGUAGES = (SWIFT, KOTLIN, CPP, PYTHON)

_RESERVED = {
    PYTHON: frozenset({*keyword.kwlist, "np", "session", "values", "predict", "prepare", "step", "main"}),
    CPP: frozenset(
        "alignas auto bool break case catch char class const continue default delete do double else enum explicit"
        " export extern false float for friend goto if inline int long mutable namespace new operator private protected"
        " public register return short signed sizeof static struct switch template this throw true try typedef union"
        " unsigned using virtual void volatile while and or not xor std main env options session memory inputs outputs"
        " values".split()
    ),
    KOTLIN: frozenset(
        "as break class continue do else false for fun if in interface is null object package return super this throw"
        " true try typealias val var when while env session inputs outputs".split()
    ),
    SWIFT: frozenset(
        "as associatedtype break case catch class continue default defer deinit do else enum extension fallthrough"
        " false fileprivate for func guard if import in init inout internal is let nil open operator private protocol"
        " public repeat return self static struct subscript super switch throw throws true try typealias var where"
        " while model state states inputs outputs".split()
    ),
}
"""Words that no value may be called in a language: its own, and those of the snippets."""


@dataclass(frozen=True)
class Snippet:
    """A program that runs one file.

    Attributes:
        language: of `LANGUAGES`.
        runtime: in words, for a heading.
        needs: what it needs, and how that is had; a sentence, or a command.
        code: the program.
    """

    language: str
    runtime: str
    needs: str
    code: str


def name_in(language: str, name: str) -> str:
    """Return a variable's name for a value that has any name."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "value"
    plain = f"x{plain}" if plain[0].isdigit() or plain[0] == "_" else plain
    return f"{plain}_" if plain in _RESERVED[language] else plain


def quote(language: str, text: str) -> str:
    """Return a string's literal: JSON's, which all of them read, and no `$` or `\\(` of Kotlin or Swift in it."""
    written = json.dumps(text)  # ASCII
    if language == CPP:  # JSON's \u escapes of control characters are none of C++'s
        written = re.sub(r"\\u([0-9a-f]{4})", lambda found: f'\\x{found[1]}""', written)
    if language == SWIFT:
        written = re.sub(r"\\u([0-9a-f]{4})", r"\\u{\1}", written)
    return written.replace("$", "\\$") if language == KOTLIN else written


def numbers(values: Iterable[float]) -> str:
    """Return numbers one after the other, `1, 3, 224, 224`."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def indent(text: str, by: int) -> str:
    """Return lines moved to the right, but for empty ones."""
    return "".join(f"{' ' * by}{line}" if line.strip() else line for line in text.splitlines(keepends=True))
