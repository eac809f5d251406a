"""The user's own line in an exception or a captured node: the last one that is neither torch's nor edgesmith's.

A line of an installed package, such as timm, is named where there is none of the user's own files.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import linecache
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.fx import Node

from edgesmith import errors


@functools.cache
def _folders() -> tuple[list[Path], list[Path]]:
    """Return the folders of code that is nobody's model: torch's and edgesmith's; and those of installed packages."""
    here = Path(__file__).resolve().parents[1]
    ours = [Path(torch.__file__), here / "_", here.parent / "kernels" / "_", Path(errors.__file__).parent / "cli" / "_"]
    installed = (*site.getsitepackages(), sysconfig.get_path("purelib"))
    return [one.resolve().parent for one in ours], [Path(one).resolve() for one in installed]


def _is_within(file: Path, folders: Iterable[Path]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


@functools.cache
def _is_torchs(file: str) -> bool:
    return _is_within(Path(file).resolve(), [Path(torch.__file__).resolve().parent])


@functools.cache
def distance_of(file: str) -> int | None:
    """Return how near a source file is to the user: 0 for their own, 1 for an installed package; None for nobody's."""
    if file.startswith("<"):
        return None
    path, (ours, installed) = Path(file).resolve(), _folders()
    if _is_within(path, ours):
        return None
    if _is_within(path, installed):
        return 1
    return None if _is_stdlib(file) else 0


def line_of_error(error: BaseException, *, below_torch: bool = False) -> str | None:
    """Return `net.py:12 (y = f(x))` for the last line of the user's code that an exception came through.

    Args:
        below_torch: torch called the user's code. A line above torch's first is then of whoever wraps the call: a
            profiler, a debugger, a test.
    """
    for one in _chain(error):
        frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(one.__traceback__)]
        if below_torch and one is error:
            frames = list(itertools.dropwhile(lambda frame: not _is_torchs(frame[0]), frames)) or frames
        if found := _last(frames):
            return found
    return None


def is_torchs(error: BaseException) -> bool:
    """Return whether an exception comes from where torch was called, and through nobody else's code below that."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    below = list(itertools.dropwhile(lambda file: not _is_torchs(file), files))
    _, *ours = _folders()[0]  # and torch's
    return bool(below) and not any(distance_of(file) == 0 or _is_within(Path(file).resolve(), ours) for file in below)


def _is_stdlib(file: str) -> bool:
    return _is_within(Path(file).resolve(), [Path(sysconfig.get_path("stdlib")).resolve()])


def line_of_node(node: Node) -> str | None:
    """Return `net.py:12 (y = f(x))` for the user's line that a captured operator stands in."""
    return _last(_frames_of(str(node.meta.get("stack_trace") or "")))


def line_of_attribute(model: nn.Module, where: str) -> str | None:
    """Return the line at which a module's own class sets something outside of `__init__`.

    Args:
        where: as `state.py` says it: `the attribute last of the model`, `the buffer count of blocks.0`.
    """
    found = re.fullmatch(r"the \w+ (\w+)(?:\[.*\])? of (?:the model|([\w.]+))", where)
    if found is None:
        return None
    name, path = found[1], found[2] or ""
    try:
        kind = type(model.get_submodule(path))
        lines, start = inspect.getsourcelines(kind)
        file = inspect.getsourcefile(kind) or ""
    except (AttributeError, OSError, TypeError):
        return None
    me = _first_argument(lines)
    sets = re.compile(
        rf"\b{me}\.{name}\b(\[.*\])?\s*([-+*/@|&^%]|//|\*\*)?=(?!=)|\b{me}\.{name}\.(\w+_|append|update|add)\("
    )
    function = ""
    for i, line in enumerate(lines):
        if line.lstrip().startswith("def "):
            function = line.split("def ")[1].partition("(")[0]
        if function != "__init__" and sets.search(line):
            return _last([(file, start + i)])
    return None


def _first_argument(lines: Sequence[str]) -> str:
    """Return what the methods of a class call their module, `self` by custom."""
    found = next((one for line in lines if (one := re.search(r"\bdef \w+\(\s*(\w+)", line))), None)
    return found[1] if found else "self"


def line_of_code(model: nn.Module, pattern: str) -> str | None:
    """Return the first line in the classes of a model's modules, below their `__init__`, that matches a pattern."""
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        file = inspect.getsourcefile(kind.forward) if inspect.isfunction(kind.forward) else None
        if file is None or distance_of(file) is None:
            continue
        try:
            lines, start = inspect.getsourcelines(kind.forward)
        except OSError:
            continue
        for i, line in enumerate(lines):
            if re.search(pattern, line):
                return _last([(file, start + i)])
    return None


def _frames_of(trace: str) -> Iterator[tuple[str, int]]:
    for line in trace.splitlines():
        if line.strip().startswith("File "):
            file, _, rest = line.strip().removeprefix('File "').partition('", line ')
            number = rest.partition(",")[0]
            yield file, int(number) if number.isdigit() else 0


def _last(frames: Iterable[tuple[str, int]]) -> str | None:
    known = [(distance_of(file), file, number) for file, number in frames]
    nearest = min((one[0] for one in known if one[0] is not None), default=None)
    if nearest is None:
        return None
    _, file, number = [one for one in known if one[0] == nearest][-1]
    code = linecache.getline(file, number).strip()
    return f"{_shorten(file)}:{number}" + (f" ({code})" if code else "")


def _shorten(file: str) -> str:
    """Return a path relative to the current folder or to Python's path, where it lies below one of them."""
    path = Path(file).resolve()
    for folder in (Path.cwd(), *(Path(one).resolve() for one in sys.path if one)):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return file


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from, the first cause first.

    A refusal among them is another model's: this one is exported in the handler of that.
    """
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found and not (found and isinstance(one, errors.EdgesmithError)):
        found.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    yield from reversed(found)
