"""What a folder listing finds inside the package, an entry point finds outside: things that other packages add.

    [project.entry-points."edgesmith.rewrites"]
    fold_twice = "my_package.rewrites:fold_twice"

A plugin that fails to load, or is no such thing, is one sentence that names it; everything else works. Nothing heavy is
imported here: a plugin imports what it needs itself.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any


class PluginWarning(UserWarning):
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
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        if point.name in found:
            leave_out(group, point.name, f"{_origin(point)} offers that name a second time; rename one of the two")
            continue
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:  # whatever a foreign module does while it is imported
            reason = (str(error).strip().splitlines() or [""])[0]
            leave_out(group, point.name, f"{_origin(point)} does not load ({type(error).__name__}: {reason})")
            continue
        if isinstance(plugin, kind):
            found[point.name] = plugin
        else:
            leave_out(group, point.name, f"{_origin(point)} is a {type(plugin).__name__}, wanted a {kind.__name__}")
    return found


def leave_out(group: str, name: str, reason: str) -> None:
    """Warn, in one sentence, that a plugin is not used."""
    warnings.warn(f"plugin {name!r} of {group} is left out: {reason}", PluginWarning, stacklevel=2)


def _origin(point: EntryPoint) -> str:
    """Where an entry point comes from: `my_package.rewrites:fold_twice of my-package 1.0`."""
    package = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"{point.value}{package}"
