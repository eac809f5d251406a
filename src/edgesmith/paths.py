"""Paths below a folder that are made of foreign words: by this function, or not at all."""

from __future__ import annotations

from pathlib import Path

from edgesmith.errors import BadInput

LONGEST = 255
"""Bytes of a name on every file system in use."""


def path_below(folder: Path, *words: str) -> Path:
    """Return the path `folder/word/word`, which is below the folder.

    Each word is one name: not empty, not `.` or `..`, without a slash, a backslash, a colon that would name a drive, or
    a character that is not visible. Where such a path is there, it does not lead out of the folder by a link.

    Raises:
        BadInput: a word is none, or a link leads out.
    """
    for word in words:
        if not is_name(word):
            raise BadInput(f"{word!r} is no name of a file or folder below {folder}; nothing is read or written there")
    path = folder.joinpath(*words)
    try:
        is_below = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: of links in a circle, up to Python 3.12
        raise BadInput(f"{path} is a link that leads to itself; nothing is read or written there") from error
    if not is_below:
        raise BadInput(f"{path} leads out of {folder} by a link; nothing is read or written there")
    return path


def path_listed(folder: Path, listed: str) -> Path:
    """Return the path of a file that a record lists as `a/b`, relative and normalised. Raises BadInput otherwise."""
    return path_below(folder, *listed.split("/"))


def is_name(word: object) -> bool:
    """Return whether a word is one plain name."""
    if not isinstance(word, str) or word in ("", ".", "..") or not word.isprintable():
        return False
    return not set(word) & set("/\\") and len(word.encode()) <= LONGEST and word[1:2] != ":"


def is_listed(path: object) -> bool:
    """Return whether a path is relative, normalised and plain: `a/b`."""
    return isinstance(path, str) and all(map(is_name, path.split("/")))
