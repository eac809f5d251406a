"""Entry points of other packages: they find outside what a folder listing finds inside.

    [project.entry-points."edgesmith.rewrites"]
    fold_twice = "my_package.rewrites:fold_twice"

A plugin that fails to load, or is no such thing, is one sentence that names it; everything else works. Nothing heavy is
imported here: a plugin imports what it needs itself, and facts in TOML files are read without importing anything.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgesmith.errors import EdgesmithError, EdgesmithWarning
from edgesmith.readers.documents import read_toml

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Facts(NamedTuple):
    """The tables of facts that an entry point offers.

    Attributes:
        name: of the entry point.
        module: that it names.
        origin: where it comes from, in words.
        tables: by name: of a TOML file its stem, of a table in Python the entry point's name.
    """

    name: str
    module: str
    origin: str
    tables: Mapping[str, dict[str, Any]]


class PluginWarning(EdgesmithWarning):
    """A plugin that is left out, in one sentence."""


def load_plugins(group: str, kind: type) -> dict[str, Any]:
    """Return what installed packages offer in an entry point group, by the entry points' names, in their order.

    What a group offers is loaded once in a process, and what is wrong with it said once.

    Args:
        group: such as `edgesmith.rewrites`.
        kind: the type that each of them has to have: a class, or `types.ModuleType`.
    """
    return dict(_loaded(group, kind))


@cache
def _loaded(group: str, kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for point in _points(group):
        if point.name in found:
            leave_out(group, point.name, f"{_origin(point)} offers that name a second time; rename one of the two")
            continue
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:  # whatever a foreign module does while it is imported
            leave_out(group, point.name, _complaint(f"{_origin(point)} does not load", error))
            continue
        if isinstance(plugin, kind):
            found[point.name] = plugin
        else:
            leave_out(group, point.name, f"{_origin(point)} is a {type(plugin).__name__}, wanted a {kind.__name__}")
    return found


def use_facts(group: str, use: Callable[[str, dict[str, Any], Facts], None]) -> None:
    """Give every table of facts that installed packages offer in an entry point group to a function.

    What it raises is what is wrong with the table: that plugin is left out with one sentence.

    Args:
        group: such as `edgesmith.devices`.
        use: called with a table's name, the table, which is its own, and whose it is.
    """
    for facts in _facts(group):
        for name, table in facts.tables.items():
            try:
                use(name, copy.deepcopy(table), facts)
            except Exception as error:
                leave_out(group, facts.name, _complaint(f"{facts.origin} is wrong in {name}", error))


@cache
def _facts(group: str) -> tuple[Facts, ...]:
    """Return the facts of a group of entry points:

    a.b    a module: the file b.toml beside it. A package: all TOML files in its folder
    a.b:c  a package: the file c.toml in its folder. A module: its attribute `c`, a table; this imports the module
    """
    found = []
    for point in _points(group):
        try:
            found.append(Facts(point.name, point.module, _origin(point), _tables(point)))
        except (Exception, SystemExit) as error:  # as above: a package around the module is imported
            leave_out(group, point.name, _complaint(f"{_origin(point)} does not load", error))
    return tuple(found)


def _tables(point: EntryPoint) -> dict[str, dict[str, Any]]:
    spec = importlib.util.find_spec(point.module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {point.module!r}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders and point.attr:
        return {point.name: dict(point.load())}
    if not folders:
        paths = [Path(str(spec.origin)).with_suffix(".toml")]
    elif point.attr:
        paths = [folders[0] / f"{point.attr}.toml"]
    else:
        paths = sorted(path for folder in folders for path in folder.glob("*.toml"))
        if not paths:
            raise FileNotFoundError(f"no TOML file in {point.module}")
    return {path.stem: read_toml(path, "table of facts") for path in paths}


@cache
def _installed() -> Any:
    """Return every entry point of every installed package, read once: it takes milliseconds, and there are six groups.

    The type is EntryPoints, or before Python 3.12 another with the same `select`.
    """
    from importlib.metadata import entry_points  # takes its time, and every command imports this module

    return entry_points()


def _points(group: str) -> list[EntryPoint]:
    return sorted(_installed().select(group=group), key=lambda point: (point.name, point.value))


def forget() -> None:
    """Forget what was found, so that what has been installed since is found too."""
    for remembered in (_installed, _loaded, _facts):
        remembered.cache_clear()


def leave_out(group: str, name: str, reason: str) -> None:
    """Warn, in one sentence, that a plugin is not used."""
    warnings.warn(f"plugin {name!r} of {group} is left out: {reason}", PluginWarning, stacklevel=2)


def _origin(point: EntryPoint) -> str:
    """Return the origin of an entry point: `my_package.rewrites:fold_twice of my-package 1.0`."""
    package = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"{point.value}{package}"


def _complaint(what: str, error: BaseException) -> str:
    """Return the sentence for what is wrong, with the error's first line."""
    if isinstance(error, EdgesmithError):
        return f"{what} ({error})"
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"{what} ({type(error).__name__}: {reason})"
