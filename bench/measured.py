"""Latencies of models on devices, kept as `<device>/<model>.<target>.<precision>.json`.

Those that come with the package lie in `profiles/measured/`; what users keep goes to a folder of their own, never into
an installation, which the next one would replace.

What is not usual is in the name too: `casvit_xs.coreml.fp16.cpu_only.json`, `casvit_xs.onnx.fp32.2threads.json`, and a
power mode, `casvit_xs.tensorrt.fp16.15w.json`.

A record of `bench` has every sample, some megabytes of them. Of it, a file for each artifact is kept: the quantiles of
every launch, from which intervals follow, what opening the file took, and what was timed where. None is an estimate.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from edgesmith import profiles, records
from edgesmith.bench.measurement import LONGEST_MS, Cold, Device, Measurement, environment_line, takes_threads
from edgesmith.bench.statistics import Interval, order_rank, with_ends
from edgesmith.errors import BadInput
from edgesmith.paths import path_below
from edgesmith.records import Keyword
from edgesmith.show import in_markdown, in_terminal

SCHEMA = 1

QUANTILES = (50, 90, 99)

FOLDER = Path(profiles.__file__).parent / "measured"
"""What comes with the package."""

_DATA = {"darwin": ("", "Library/Application Support"), "win32": ("LOCALAPPDATA", "AppData/Local")}
"""By system, the variable that names the folder of applications' data, and that folder below the home folder."""


def user_folder() -> Path:
    """Return the folder of the user's own profiles, where the system keeps data of applications.

    On Linux and others that follow the XDG Base Directory Specification 0.8, `$XDG_DATA_HOME/edgesmith/measured`.

    Raises:
        BadInput: the user has no home folder.
    """
    variable, below = _DATA.get(sys.platform, ("XDG_DATA_HOME", ".local/share"))
    named = Path(os.environ.get(variable, "") if variable else "")
    if named.is_absolute():
        return named / "edgesmith" / "measured"
    try:
        return Path.home() / below / "edgesmith" / "measured"
    except RuntimeError:
        raise BadInput("this user has no home folder to keep profiles in; name a folder: --folder PATH") from None


Milliseconds = Annotated[float, Keyword("exclusiveMinimum", 0), Keyword("maximum", LONGEST_MS)]


class DeviceRecord(TypedDict):
    """A machine. machine: a hash that tells two with the same parts apart."""

    name: str
    system: str
    cpu: str
    machine: str
    power_mode: str | None


class ColdRecord(TypedDict):
    """Opening a file alone, in a fresh process; memory is null where nobody says it."""

    load_ms: Milliseconds
    first_ms: Milliseconds
    memory_mib: float | None


class MeasuredProfile(TypedDict):
    """Latencies of one artifact on one device, condensed from a record of `edgesmith bench`.

    Attributes:
        versions: of what ran it.
        quantiles_ms: of each launch its p50, p90 and p99.
        samples: of all launches.
        state: what the system showed meanwhile, in words.
        compute_units: that Core ML was allowed.
    """

    schema: Literal[1]
    device: DeviceRecord
    model: str
    target: str
    precision: str
    runtime: str
    versions: dict[str, str]
    threads: int
    started: str
    sha256: str
    bytes: int
    cold: ColdRecord | None
    quantiles_ms: Annotated[list[tuple[Milliseconds, Milliseconds, Milliseconds]], Keyword("minItems", 1)]
    samples: int
    state: str
    compute_units: NotRequired[str]


@dataclass(frozen=True)
class Profile:
    """One artifact on one device.

    Attributes:
        quantiles_ms: of each launch its p50, p90 and p99, milliseconds.
        samples: of all launches.
        state: what the system showed meanwhile, in words.
        versions: of what ran it.
    """

    device: Device
    model: str
    target: str
    precision: str
    runtime: str
    versions: dict[str, str]
    threads: int
    started: str
    sha256: str
    bytes: int
    cold: Cold | None
    quantiles_ms: tuple[tuple[float, ...], ...]
    samples: int
    state: str
    compute_units: str | None = None

    def latency_ms(self, share: int, confidence: float = 0.95) -> Interval:
        """p50, p90 or p99 with its interval, as `statistics.quantile` has it. Raises KeyError for another share."""
        import numpy as np

        if share not in QUANTILES:
            raise KeyError(share)
        values = sorted(launch[QUANTILES.index(share)] for launch in self.quantiles_ms)
        rank = order_rank(len(values), confidence)
        ends = (None, None) if rank is None else (values[rank], values[-1 - rank])
        return Interval(float(np.median(values)), *ends)

    @property
    def words(self) -> tuple[str, str]:
        """The names of its folder and file below `measured/`; they come from a record, and may be none."""
        words = [self.model, self.target, self.precision]
        words += [] if self.compute_units in (None, "ALL") else [self.compute_units.lower()]
        words += [] if self.threads == 1 or not takes_threads(self.target) else [f"{self.threads}threads"]
        words += [re.sub(r"[^a-z0-9]+", "-", self.device.power_mode.lower())] if self.device.power_mode else []
        return self.device.name, ".".join([*words, "json"])


def condense(measurement: Measurement) -> Iterator[Profile]:
    """A profile of each artifact of a record. Raises BadInput where the record is of an interrupted run."""
    import numpy as np

    if not measurement.complete:
        raise BadInput(f"the record of {measurement.started} is of an interrupted run; measure again to keep it")
    for i, subject in enumerate(measurement.subjects):
        launches = measurement.samples(i)
        yield Profile(
            measurement.device,
            subject.model,
            subject.target,
            subject.precision,
            subject.runtime,
            dict(measurement.runtimes),
            measurement.threads,
            measurement.started,
            subject.sha256,
            subject.bytes,
            subject.cold,
            tuple(tuple(round(float(np.quantile(one, q / 100)), 4) for q in QUANTILES) for one in launches),
            sum(map(len, launches)),
            environment_line(measurement.launches),
            subject.compute_units,
        )


def write(profile: Profile, folder: Path) -> Path:
    """Keep a profile, in place of an older one.

    Raises:
        BadInput: its device or model is no name of a folder or file.
        OutputError: the folder cannot be written.
    """
    path = path_below(folder, *profile.words)
    facts = {name: value for name, value in asdict(profile).items() if (name, value) != ("compute_units", None)}
    records.write({"schema": SCHEMA, **facts}, path, "profile", indent=1)
    return path


def read(path: Path) -> Profile:
    """Read a profile. Raises BadInput where the file is none, is damaged, or is of another schema."""
    advice = "measure again: edgesmith bench, edgesmith profile"
    found = records.read_record(path, records.schema_of(MeasuredProfile), "profile", advice=advice)
    del found["schema"]
    found["device"] = Device(**found["device"])
    found["cold"] = found["cold"] and Cold(**found["cold"])
    found["quantiles_ms"] = tuple(tuple(map(float, launch)) for launch in found["quantiles_ms"])
    return Profile(**found)


def read_all(*folders: Path) -> list[Profile]:
    """Every profile below folders, by device, model, target and precision: of two with one name, the later folder's.

    Without folders, those that come with the package.
    """
    found = {str(path.relative_to(folder)): path for folder in folders or (FOLDER,) for path in folder.glob("*/*.json")}
    return [read(found[name]) for name in sorted(found)]


COLUMNS = ("model", "target", "precision", "device", "threads", "p50, ms", "p90, ms", "load, ms", "memory", "file")


def row(profile: Profile) -> tuple[str, ...]:
    """A profile in words, one for each of `COLUMNS`."""
    p50, p90 = profile.latency_ms(50), profile.latency_ms(90)
    cold = profile.cold
    return (
        profile.model,
        profile.target if profile.compute_units in (None, "ALL") else f"{profile.target}, {profile.compute_units}",
        profile.precision,
        ", ".join(filter(None, (profile.device.name, profile.device.power_mode))),
        str(profile.threads) if takes_threads(profile.target) else "",
        with_ends(p50.value, p50.low, p50.high, 2),
        f"{p90.value:.2f}",
        f"{cold.load_ms:.0f}" if cold else "",
        f"{cold.memory_mib:.0f} MiB" if cold and cold.memory_mib is not None else "",
        f"{profile.bytes / 1e6:.1f} MB",
    )


def markdown(found: Sequence[Profile]) -> str:
    """The table of profiles in docs/latency.md, and below it what they were measured on."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(map(in_markdown, row(profile))) + " |" for profile in found]
    return "\n".join([*lines, "", *dict.fromkeys(describe_device(profile, in_markdown) for profile in found)]) + "\n"


def describe_device(profile: Profile, shown: Callable[[str], str] = str) -> str:
    """`host`: which processor and runtime, and when. `shown` makes foreign words fit for where they go."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(profile.versions.items()))
    device = profile.device
    mode = f", {device.power_mode}" if device.power_mode else ""
    name = in_terminal(device.name).replace("`", "'")  # which nothing escapes between two of them
    return f"`{name}`: " + shown(f"{device.cpu}{mode}, {device.system}; {versions}; {profile.started[:10]}.")


def facts(profile: Profile) -> dict[str, Any]:
    """A profile as data, with its intervals."""
    return {**asdict(profile), **{f"p{share}_ms": asdict(profile.latency_ms(share)) for share in QUANTILES}}
