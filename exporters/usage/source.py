"""Names and literals as the languages write them, and the snippet that they make."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass

PYTHON, CPP, KOTLIN, SWIFT = "python", "c++", "kotlin", "swift"
LANGUAGES = (SWIFT, KOTLIN, CPP, PYTHON)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RESERVED = {
    PYTHON: frozenset({*keyword.kwlist, "np", "session", "values", "predict", "prepare", "step", "main"}),
    CPP: _words(
        """alignas auto bool break case catch char class const continue default delete do double else enum explicit
        export extern false float for friend goto if inline int long mutable namespace new operator private protected
        public register return short signed sizeof static struct switch template this throw true try typedef union
        unsigned using virtual void volatile while and or not xor std main env options session memory inputs outputs
        values"""
    ),
    KOTLIN: _words(
        """as break class continue do else false for fun if in interface is null object package return super this throw
        true try typealias val var when while env session inputs outputs"""
    ),
    SWIFT: _words(
        """as associatedtype break case catch class continue default defer deinit do else enum extension fallthrough
        false fileprivate for func guard if import in init inout internal is let nil open operator private protocol
        public repeat return self static struct subscript super switch throw throws true try typealias var where
        while model state states inputs outputs"""
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
        beside: a file of the artifact with such a program; empty where there is none.
    """

    language: str
    runtime: str
    needs: str
    code: str
    beside: str = ""


def name_in(language: str, name: str) -> str:
    """Return a variable's name for a value that has any name."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "value"
    plain = f"x{plain}" if plain[0].isdigit() or plain[0] == "_" else plain
    return f"{plain}_" if plain in _RESERVED[language] else plain


def quote(language: str, text: str) -> str:
    """Return a string's literal, of printable ASCII, in which no language sees a variable."""
    return f'"{"".join(_escaped(language, one) for one in text)}"'


def _escaped(language: str, one: str) -> str:
    if one in '"\\' or (one == "$" and language == KOTLIN):
        return f"\\{one}"
    if one.isascii() and one.isprintable():
        return one
    if language == CPP:  # three digits end an octal escape; a hexadecimal one goes on as long as there are digits
        return "".join(f"\\{byte:03o}" for byte in one.encode(errors="replace"))
    if language == SWIFT:
        return f"\\u{{{ord(one):x}}}"
    units = one.encode("utf-16-be", errors="surrogatepass") if language == KOTLIN else b""
    pairs = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
    return "".join(f"\\u{pair}" for pair in pairs) or f"\\U{ord(one):08x}"


def count(number: int, word: str) -> str:
    """Return `1 step`, `5 steps`."""
    return f"{number} {word}{'s' * (number != 1)}"


def numbers(values: Iterable[float]) -> str:
    """Return numbers one after the other, `1, 3, 224, 224`."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def swift_delay(delay: int) -> str:
    """Return the end of a comment: of which frame a step returns the prediction."""
    if not delay:
        return "for the frame."
    late = count(delay, "step")
    return (
        f"for the frame {late} ago: the first {count(delay, 'result')} of a sequence mean nothing.\n"
        f"/// After its last frame call it {count(delay, 'time')} more, with zeros and isFrame false."
    )
