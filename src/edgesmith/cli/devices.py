"""The commands about devices that may be far away: `devices` and `estimate`. Neither measures anything."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from edgesmith.cli import options as given
from edgesmith.cli.chosen import Chosen, chooses_model
from edgesmith.cli.export import one_artifact
from edgesmith.cli.tables import Table, new_table, print_json, print_line, print_table, printing_to_stderr
from edgesmith.readers.limits import parse_limit, run_within

if TYPE_CHECKING:
    from edgesmith.bench.estimation.estimate import Estimate
    from edgesmith.bench.transport.attached import Attached
    from edgesmith.profiles.device import DeviceProfile


def devices(as_json: given.Json = False) -> None:
    """List the devices: what they take, their figures' gaps, how they are reached from here, and those attached."""
    from edgesmith.bench.transport.attached import attached
    from edgesmith.profiles.device import all_devices

    profiles = list(all_devices().values())
    found, notes = attached()
    notes.append(_over_ssh())
    if as_json:
        known = [_host(), *({**asdict(profile), "reached": _reached(profile)} for profile in profiles)]
        print_json({"devices": known, "attached": [asdict(one) for one in found], "notes": notes})
        return
    print_table(_devices_table(profiles))
    print_line(
        "estimates: the published latencies that `edgesmith estimate` is fitted on. sourced: figures with a source, of"
        " all that a profile has; --json shows each."
    )
    print_line()
    if found:
        print_table(_attached_table(found))
    else:
        print_line("attached here: nothing that was found")
    for note in notes:
        print_line(f"note: {note}")


def _devices_table(profiles: list[DeviceProfile]) -> Table:
    columns = ("device", "is", "chip", "takes", "estimates", "sourced", "reached by")
    table = new_table("devices", *columns, names=True)
    host = _host()
    table.add_row(host["name"], host["title"], host["soc"], "see doctor", "", "", host["reached"])
    for profile in profiles:
        facts = (", ".join(profile.targets), profile.fit or "", _sourced(profile), _reached(profile))
        table.add_row(profile.name, profile.title, profile.soc, *facts)
    return table


def _attached_table(found: list[Attached]) -> Table:
    table = new_table("attached here", "--device", "is", "profile", "state", names=True)
    for one in found:
        table.add_row(one.device, one.title, one.profile or "", one.hindrance or "ready")
    return table


@chooses_model
def estimate(
    chosen: Chosen,
    device: given.EstimatedDevice,
    artifact: given.OneArtifact = None,
    limit: given.Within = None,
    as_json: given.Json = False,
) -> None:
    """Estimate, not measure, how long a call takes on a device: a roofline fitted on published latencies.

    A model is exported for the device first.
    """
    if limit is not None and artifact is not None:
        arguments = ["estimate", "--device", device, *(["--json"] if as_json else []), "--", str(artifact)]
        raise typer.Exit(run_within(parse_limit(limit), arguments, str(artifact)))
    from edgesmith.bench.estimation.estimate import estimate as estimated
    from edgesmith.bench.estimation.estimate import kind_of, profile_of

    if chosen.model is not None:
        kind = kind_of(profile_of(device))
        artifact = one_artifact(artifact, chosen, kind.target, kind.precision)
    artifact = one_artifact(artifact, Chosen(), "")
    with printing_to_stderr():
        found = estimated(artifact, device)
    if as_json:
        print_json(found.as_json())
    else:
        _show_estimate(found)


def _show_estimate(found: Estimate) -> None:
    print_line(f"{found.model}, {found.precision}, on {found.title}: ESTIMATED, nothing was run")
    table = new_table("", "", "estimated")
    low, high = found.interval_ms
    table.add_row("p50", f"{found.p50_ms:.2f} ms")
    table.add_row(f"interval of {found.coverage:.0%}", f"{low:.2f} to {high:.2f} ms")
    table.add_row("a call by itself", f"{found.call_ms:.2f} ms")
    for cost in found.costliest:
        place = "module not known" if cost.module is None else cost.module or "the model itself"
        table.add_row(f"{cost.type}, {place}", f"{cost.ms:.3f} ms, {cost.share:.0%}, {cost.bound}")
    print_table(table)
    print_line(
        f"computed by {found.runtime}; {found.macs / 1e6:.0f} M multiply-accumulates in {found.operators} operators"
    )
    print_line(f"error on published rows that it was not fitted on: {found.left_out.sentence()}")
    for note in found.notes:
        print_line(f"note: {note}")


def _over_ssh() -> str:
    how = "devices over SSH are in no list: edgesmith bench ARTIFACT --device ssh://user@host"
    return how if shutil.which("ssh") else f"{how}; there is no ssh here: install openssh-client"


def _host() -> dict[str, Any]:
    return {
        "name": "host",
        "title": "this machine",
        "soc": f"{platform.system()}, {platform.machine()}",
        "targets": [],
        "reached": "itself",
    }


def _reached(profile: DeviceProfile) -> str:
    """Return what of the way to a device is here: the program that carries files and commands. Nothing is contacted."""
    if profile.reach == "itself":
        return profile.reach
    if profile.reach == "mac":
        return "this Mac" if sys.platform == "darwin" else "a Mac: not here"
    if profile.reach == "mac or ssh":
        from edgesmith.board.common import processor

        if sys.platform == "darwin" and processor() == profile.soc:
            return "itself: --device mac"
        return "ssh" if shutil.which("ssh") else "ssh: not here"
    return profile.reach if shutil.which(profile.reach) else f"{profile.reach}: not here"


def _sourced(profile: DeviceProfile) -> str:
    """Return how many of a profile's figures have a source."""
    figures = [*profile.peak.values(), *profile.memory.values(), *profile.clocks.values()]
    return f"{sum(bool(figure.source) for figure in figures)} of {len(figures)}"
