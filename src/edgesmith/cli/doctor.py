"""The command `doctor`: what this machine can do with each target, found by trying, and what to do for the rest."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Literal, TypedDict

from edgesmith._version import __version__
from edgesmith.cli import options as given
from edgesmith.cli.tables import new_table, print_json, print_table, show_stage
from edgesmith.errors import BackendMissing

if TYPE_CHECKING:
    from edgesmith.exporters.targets.target import Target

SCHEMA: Literal[1] = 1


class TargetRecord(TypedDict):
    """The readiness of one target on this machine.

    Attributes:
        lower, run, time: `yes` or `no`, and by what or why.
        do: what to type to do more; empty where nothing is to be done.
    """

    target: str
    lower: str
    run: str
    time: str
    do: str


class DoctorRecord(TypedDict):
    """The readiness of this machine, as `edgesmith doctor --json` prints it.

    Attributes:
        python, edgesmith: versions.
    """

    schema: Literal[1]
    python: str
    edgesmith: str
    targets: list[TargetRecord]


def doctor(as_json: given.Json = False) -> None:
    """Say which targets can lower, run and time on this machine, and what to install for the others."""
    from edgesmith.exporters.targets import all_targets

    rows: list[TargetRecord] = []
    for target in all_targets().values():
        with show_stage(f"try {target.name}"):
            rows.append(examine(target))
    record: DoctorRecord = {
        "schema": SCHEMA,
        "python": sys.version.split()[0],
        "edgesmith": __version__,
        "targets": rows,
    }
    if as_json:
        print_json(record)
        return
    title = f"edgesmith {record['edgesmith']}, Python {record['python']}"
    table = new_table(title, "target", "lower", "run", "time", "do")
    for row in rows:
        table.add_row(row["target"], row["lower"], row["run"], row["time"], row["do"])
    print_table(table)


def examine(target: Target) -> TargetRecord:
    """Return what this machine can do with a target, by importing what it needs."""
    lower, do = _try_packages(target)
    cannot_run, untimed = target.cannot_run(), target.cannot_time()
    if cannot_run and not do:
        do = "copy the artifact to a machine that can, and type: edgesmith verify ARTIFACT"
    return {
        "target": target.name,
        "lower": lower,
        "run": f"no: {cannot_run}" if cannot_run else f"yes ({target.runtime})",
        "time": f"no: {untimed}" if untimed else f"yes ({target.timed_by})",
        "do": do,
    }


def _try_packages(target: Target) -> tuple[str, str]:
    """Return whether what lowering needs can be imported, with the versions or the reason, and what to type if not."""
    try:
        target.require()
        versions = [f"{package} {_try_package(package)}" for package in target.packages]
    except BackendMissing:
        return "no", target.install_line()
    except Exception as error:  # a broken installation can raise anything at import
        return f"no: {type(error).__name__}: {error}", target.install_line()
    return f"yes ({', '.join(versions)})", ""


def _try_package(package: str) -> str:
    """Import a package. Returns its version."""
    from importlib.metadata import version  # which takes its time, and every command imports this module

    logging.disable(logging.ERROR)  # coremltools logs what it lacks off macOS; the table says it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(package)
    finally:
        logging.disable(logging.NOTSET)
    return version(package)
