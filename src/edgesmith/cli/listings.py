"""The commands that list what there is: `models`, `targets` and `operators`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, TypedDict

from edgesmith.cli import options as given
from edgesmith.cli.tables import new_table, print_json, print_line, print_table

if TYPE_CHECKING:
    from edgesmith.exporters.verification.verdicts import Entry
    from edgesmith.models.registry import ModelSpec
    from edgesmith.profiles.device import DeviceProfile


def models(as_json: given.Json = False) -> None:
    """List the models: parameters, MACs, input, published accuracy, source, licence."""
    from itertools import groupby

    from edgesmith.models.registry import all_models

    found = sorted(all_models().values(), key=lambda spec: spec.family)
    if as_json:
        published = [{name: fact for name, fact in asdict(spec).items() if name != "module"} for spec in found]
        print_json(published)
        return
    for family, specs in groupby(found, key=lambda spec: spec.family):
        _list_family(family, list(specs))


def _list_family(family: str, specs: list[ModelSpec]) -> None:
    """Show the models of a family, then where they come from, which is the same for all of them."""
    rows = [_model_row(spec) for spec in specs]
    columns = ("model", "params", "MACs", "input", "top-1, published")
    shown = columns if any(row[-1] for row in rows) else columns[:-1]
    table = new_table(family, *shown, names=True)
    for row in rows:
        table.add_row(*row[: len(shown)])
    print_table(table, after=f"{specs[0].paper}, {specs[0].source}; licence: {specs[0].licence}")


def _model_row(spec: ModelSpec) -> tuple[str, ...]:
    accuracy = " / ".join(f"{value:.1f}" for value in spec.top1) + " %" if spec.top1 else ""
    shape = "x".join(map(str, spec.input.shape))
    return spec.name, f"{spec.params / 1e6:.2f} M", f"{spec.macs / 1e6:.0f} M", shape, accuracy


def targets(devices: given.ListDevices = False, as_json: given.Json = False) -> None:
    """List the targets, or the devices."""
    if devices:
        from edgesmith.profiles.device import all_devices

        _list_devices(all_devices().values(), as_json)
    else:
        _list_targets(as_json)


def _list_devices(profiles: Iterable[DeviceProfile], as_json: bool) -> None:
    if as_json:
        print_json([asdict(profile) for profile in profiles])
        return
    table = new_table("devices", "device", "is", "chip", "takes", "systems", "SM")
    for profile in profiles:
        systems = f"{profile.systems.oldest} to {profile.systems.newest}" if profile.systems else ""
        capability = profile.cuda.compute_capability if profile.cuda else ""
        table.add_row(profile.name, profile.title, profile.soc, ", ".join(profile.targets), systems, capability)
    print_table(table)


class TargetFacts(TypedDict):
    """A target, as `edgesmith targets --json` lists it.

    Attributes:
        extra: the pip extra that brings its packages; null where the base does.
    """

    name: str
    description: str
    precisions: list[str]
    suffix: str
    extra: str | None
    runtime: str


def _list_targets(as_json: bool) -> None:
    from edgesmith.exporters.precision.table import for_target
    from edgesmith.exporters.targets import all_targets

    found: list[TargetFacts] = [
        {
            "name": target.name,
            "description": target.description,
            "precisions": list(for_target(target.name, target.precisions)),
            "suffix": target.suffix,
            "extra": target.extra,
            "runtime": target.runtime,
        }
        for target in all_targets().values()
    ]
    if as_json:
        print_json(found)
        return
    table = new_table("targets", "target", "is", "file", "precisions", "runs in", "comes with")
    for one in found:
        comes_with = f"edgesmith[{one['extra']}]" if one["extra"] else "edgesmith"
        row = (one["name"], one["description"], one["suffix"], ", ".join(one["precisions"]), one["runtime"], comes_with)
        table.add_row(*row)
    print_table(table)


def operators(name: given.OperatorName = None, target: given.ListedTarget = None, as_json: given.Json = False) -> None:
    """List PyTorch's operators by target: right, mended by edgesmith, or refused. With a name, also why.

    The table comes with edgesmith; it was made by running each operator on each target.
    """
    from edgesmith.exporters.verification import verdicts

    entries = verdicts.find(name, target)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    columns = sorted(dict.fromkeys(entry.column for entry in entries))
    by_operator: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        by_operator.setdefault(entry.operator, {})[entry.column] = entry
    shown = new_table("operators", "operator", *columns, names=True)
    for operator, row in by_operator.items():
        shown.add_row(
            operator, *(row[column].describe() if column in row else verdicts.NOT_TRIED for column in columns)
        )
    print_table(shown)
    if name is None:
        run, known = verdicts.tried(entries), len({entry.operator for entry in verdicts.table()})
        for column, counts in verdicts.totals(entries).items():
            verdict = ", ".join(f"{counts[kind]} {kind}" for kind in verdicts.ORDER if counts[kind])
            print_line(f"{column}: {run[column]} of {known} operators tried: {verdict}")
        return
    for entry in entries:
        for kind, example in entry.examples.items():
            print_line(f"{entry.operator}, {example['case']}, {entry.column}: {kind}. {example['why']}")
