"""Targets: one module of this folder each, found by listing it; its `TARGET` is a `Target` (target.py).

A module whose name begins with an underscore is none: it is part of the target that imports it. Targets of other
packages come from the entry points `edgesmith.targets`. Importing a target imports neither torch nor the target's own
packages, so that listing is instant.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import BadInput, unknown
from edgesmith.exporters.targets.target import Target
from edgesmith.plugins import leave_out, load_plugins

if TYPE_CHECKING:
    from edgesmith.exporters.manifest import InterfaceRecord

GROUP = "edgesmith.targets"
_NO_TARGETS = frozenset({"target"})


@cache
def all_targets() -> dict[str, Target]:
    """Return every target by name."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_") and module.name not in _NO_TARGETS:
            target: Target = importlib.import_module(f"{__name__}.{module.name}").TARGET
            found[target.name] = target
    for entry, plugin in load_plugins(GROUP, Target).items():
        if plugin.name in found:
            leave_out(GROUP, entry, f"there is a target {plugin.name} already; give it another name")
        else:
            found[plugin.name] = plugin
    return dict(sorted(found.items()))


def get(name: str) -> Target:
    """Return the target called `name`. Raises BadInput with the nearest names where there is none."""
    targets = all_targets()
    if name not in targets:
        raise unknown("target", name, targets, "edgesmith targets")
    return targets[name]


def read_interface(name: str, path: str) -> InterfaceRecord | None:
    """Return what a file of the target called `name` declares of itself; readers/apart.py calls it for foreign ones."""
    return get(name).open(Path(path)).interface()


def require_model(target: Target, device: str) -> str:
    """Return the device that a target's files can be run as, in words. Raises BadInput, which lists those that can."""
    if device in target.device_models:
        return target.device_models[device]
    known = [f"{name} for {one.name}" for one in all_targets().values() for name in one.device_models]
    raise BadInput(f"there is no model of {device!r} for target {target.name}; there are {', '.join(known)}")


def require_layers(target: Target) -> None:
    """Raise BadInput where a target does not show its operators, with the targets that do."""
    if not target.shows_operators:
        shown = [one.name for one in all_targets().values() if one.shows_operators]
        does = f"{shown[0]} does" if len(shown) == 1 else f"{', '.join(shown)} do"
        raise BadInput(f"target {target.name} does not show its operators one by one; {does}")
