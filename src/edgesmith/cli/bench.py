"""The commands that time artifacts and show what was timed: `bench`, `compare`, `profile`; `build-on`, on a board."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesmith.errors import BadInput, OutputError

if TYPE_CHECKING:
    from rich.table import Table

    from edgesmith.bench.measurement import Measurement, Profile
    from edgesmith.bench.transport import Address
    from edgesmith.bench.verdict import Verdict


class Interrupted(Exception):
    """Ctrl-C came while something was measured; what was is kept, and that is said."""


Seconds = Annotated[float, typer.Option("--seconds", help="How long it may last, about.")]
Launches = Annotated[int, typer.Option("--launches", help="Processes, each with all artifacts in turn.")]
Threads = Annotated[int, typer.Option("--threads", help="Of the runtime.")]
Cores = Annotated[
    str | None, typer.Option("--cores", help="Pin to these: 0, or 0,2 or 0-3.", show_default="not pinned")
]
Threshold = Annotated[str, typer.Option("--threshold", help="The smallest change that matters: 5% or 0.05.")]
Confidence = Annotated[float, typer.Option("--confidence", help="Of the ratio's interval.")]
Floor = Annotated[
    Path | None,
    typer.Option("--floor", help="A record of one artifact against itself: the noise floor.", show_default=False),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="File for the record.", show_default="measurements/TIME.json")
]
_FAR = "Another device"
Where = Annotated[
    str,
    typer.Option("--device", help="host, mac, mac:IPHONE, ssh://user@host:port or adb:SERIAL.", rich_help_panel=_FAR),
]
Python = Annotated[
    str | None,
    typer.Option(
        "--python", help="Its interpreter, such as ~/venv/bin/python.", show_default="python3", rich_help_panel=_FAR
    ),
]
RemoteTmp = Annotated[
    str | None,
    typer.Option(
        "--remote-tmp", help="Where files lie there while it runs.", show_default="its TMPDIR", rich_help_panel=_FAR
    ),
]
SshConfig = Annotated[
    Path | None, typer.Option("--ssh-config", help="As ssh -F.", show_default=False, rich_help_panel=_FAR)
]
SshOptions = Annotated[
    list[str] | None,
    typer.Option("--ssh-option", help="As ssh -o; repeatable.", show_default=False, rich_help_panel=_FAR),
]
Sign = Annotated[
    list[str] | None,
    typer.Option(
        "--sign",
        help="For the app on an iPhone: team=ID, bundle=com.example.runner, profile=UUID; repeatable.",
        show_default=False,
        rich_help_panel=_FAR,
    ),
]
Units = Annotated[
    str | None,
    typer.Option(
        "--compute-units", help="Core ML alone: all, cpu_only, cpu_and_gpu or cpu_and_ne.", show_default="all"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts: folders, or the files in them.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="An artifact to compare the others with.", show_default=False)
    ] = None,
    seconds: Seconds = 30.0,
    launches: Launches = 12,
    threads: Threads = 1,
    cores: Cores = None,
    units: Units = None,
    threshold: Threshold = "5%",
    confidence: Confidence = 0.99,
    floor: Floor = None,
    ops: Annotated[
        bool, typer.Option("--ops", help="Also the time per operator, by op and by module, in processes of its own.")
    ] = False,
    out: Out = None,
    device: Where = "host",
    python: Python = None,
    remote_tmp: RemoteTmp = None,
    ssh_config: SshConfig = None,
    ssh_option: SshOptions = None,
    sign: Sign = None,
    as_json: Json = False,
) -> None:
    """Time artifacts in turn; every sample is kept. With --against, compare them."""
    from edgesmith.bench.verdict import check_options
    from edgesmith.bench.verdict import compare as judged

    where = _address(device, python, remote_tmp, ssh_config, ssh_option, sign)
    share, least = _share(threshold), _floor(floor)
    check_options(share, confidence, least)
    paths = [*([against] if against else []), *artifacts]
    measurement, record = _measured(paths, seconds, launches, threads, cores, out, where, units, ops, energy=True)
    verdicts = [
        judged(measurement, measurement, 0, i, threshold=share, confidence=confidence, floor=least)
        for i in range(1, len(paths) if against else 0)
    ]
    if as_json:
        facts = {"record": str(record), "complete": measurement.complete, "subjects": _figures(measurement)}
        print(json.dumps({**facts, "verdicts": [_plain(one) for one in verdicts]}, indent=2, ensure_ascii=False))
    else:
        _print_measurement(measurement)
        for one in verdicts:
            print(f"{one.head} against {one.base}: {one.verdict}: {one.reason}")
        print(f"record: {record}")
    if not measurement.complete:
        raise Interrupted


def compare(
    base: Annotated[Path, typer.Argument(help="A record, or an artifact.", show_default=False)],
    head: Annotated[
        Path | None,
        typer.Argument(help="The same; none for a record of several artifacts, the first is base.", show_default=False),
    ] = None,
    threshold: Threshold = "5%",
    confidence: Confidence = 0.99,
    floor: Floor = None,
    despite: Annotated[
        list[str] | None,
        typer.Option("--despite", help="Compare though this differs, such as precision; repeatable."),
    ] = None,
    seconds: Seconds = 30.0,
    launches: Launches = 12,
    threads: Threads = 1,
    cores: Cores = None,
    units: Units = None,
    out: Out = None,
    device: Where = "host",
    python: Python = None,
    remote_tmp: RemoteTmp = None,
    ssh_config: SshConfig = None,
    ssh_option: SshOptions = None,
    sign: Sign = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table for a pull request.")] = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write a JUnit XML file for a dashboard.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether head became slower than base: exit code 0 no, 1 yes, 2 not known or not comparable.

    Two artifacts are measured in turn, which is the comparison to trust. Records of two runs are compared as they are.
    """
    from edgesmith.bench import announce
    from edgesmith.bench import measurement as measurements
    from edgesmith.bench.verdict import check_options
    from edgesmith.bench.verdict import compare as judged

    where = _address(device, python, remote_tmp, ssh_config, ssh_option, sign)
    share, least = _share(threshold), _floor(floor)
    check_options(share, confidence, least)
    names = frozenset(despite or ())
    options: dict[str, Any] = {"threshold": share, "confidence": confidence, "floor": least, "despite": names}
    is_measured = head is not None and not _is_record(base) and not _is_record(head)
    if head is None:
        first = measurements.read(base)
        if len(first.subjects) < 2:
            raise BadInput(f"{base} is a record of one artifact: give a second record or artifact to compare it with")
        verdicts = [judged(first, first, 0, i, **options) for i in range(1, len(first.subjects))]
    elif _is_record(base) and _is_record(head):
        first, second = measurements.read(base), measurements.read(head)
        for path, record in ((base, first), (head, second)):
            if len(record.subjects) > 1:
                raise BadInput(
                    f"{path} is a record of {len(record.subjects)} artifacts, which compare takes alone; two records"
                    " have to be of one artifact each"
                )
        verdicts = [judged(first, second, **options)]
    elif _is_record(base) or _is_record(head):
        raise BadInput(f"{base} and {head} are a record and an artifact: give two of a kind")
    else:
        first, written = _measured([base, head], seconds, launches, threads, cores, out, where, units)
        print(f"record: {written}", file=sys.stderr)
        verdicts = [judged(first, first, 0, 1, **options)]
    if as_json:
        print(json.dumps([_plain(one) for one in verdicts], indent=2, ensure_ascii=False))
    elif markdown:
        print(announce.markdown(verdicts, first, share, confidence), end="")
    else:
        for one in verdicts:
            print(f"{one.head} against {one.base}: {one.verdict}: {one.reason}")
    if junit is not None:
        try:
            junit.write_text(announce.junit(verdicts), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {junit}: {error.strerror or error}") from error
    codes = {one.exit_code for one in verdicts}
    if is_measured and not first.complete:
        raise Interrupted
    raise typer.Exit(1 if 1 in codes else max(codes))


def profile(
    records: Annotated[
        list[Path] | None, typer.Argument(help="Records of bench to keep as profiles.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where profiles lie.", show_default="the package's own")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of this model alone.", show_default=False)] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table for a README.")] = False,
    as_json: Json = False,
) -> None:
    """Show latencies that were measured: model, target, device. With records of `bench`, keep what is in them first."""
    from edgesmith.bench import measured
    from edgesmith.bench import measurement as measurements
    from edgesmith.cli.app import _print, _table

    place = measured.FOLDER if folder is None else folder
    kept = [one for path in records or () for one in measured.condense(measurements.read(path))]
    for one in kept:
        print(f"kept: {measured.write(one, place)}", file=sys.stderr)
    found = [one for one in measured.read_all(place) if model in (None, one.model)]
    if as_json:
        print(json.dumps([measured.facts(one) for one in found], indent=2, ensure_ascii=False))
    elif markdown:
        print(measured.markdown(found), end="")
    elif not found:
        print("no profiles here; keep one: edgesmith bench ARTIFACT -o record.json, edgesmith profile record.json")
    else:
        table = _table("measured, 95 % intervals", *measured.COLUMNS)
        table.columns[0].no_wrap = True
        for one in found:
            table.add_row(*measured.row(one))
        _print(table)
        print("\n".join(dict.fromkeys(map(measured.describe_device, found))))


def build_on(
    device: Annotated[str, typer.Argument(help="ssh://user@host:port or adb:SERIAL.", show_default=False)],
    kit: Annotated[Path, typer.Argument(help="A kit's folder.", show_default=False)],
    options: Annotated[
        list[str] | None, typer.Argument(help="After --: options of build.py, such as --dla 0.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the result's folder.")] = Path("artifacts"),
    python: Python = None,
    remote_tmp: RemoteTmp = None,
    ssh_config: SshConfig = None,
    ssh_option: SshOptions = None,
    as_json: Json = False,
) -> None:
    """Have a board build a kit's engine, and bring the engine and its measurement back."""
    from edgesmith.bench import measurement as measurements
    from edgesmith.bench.build_on import MEASUREMENT
    from edgesmith.bench.build_on import build_on as build

    where = _address(device, python, remote_tmp, ssh_config, ssh_option)
    if where.kind not in ("ssh", "adb"):
        raise BadInput(f"build-on is for another device; on this machine run python3 {kit / 'build.py'} --out DIR")
    built = build(where, kit, out, lambda line: print(line, file=sys.stderr, flush=True), options or ())
    record = built / MEASUREMENT
    measurement = measurements.read(record)
    if as_json:
        print(json.dumps({"result": str(built), "record": str(record), "subjects": _figures(measurement)}, indent=2))
        return
    _print_measurement(measurement)
    print(f"{built}")


def _address(
    device: str,
    python: str | None,
    folder: str | None,
    config: Path | None,
    options: list[str] | None,
    signing: list[str] | None = None,
) -> Address:
    from edgesmith.bench import transport

    given: dict[str, Any] = {"options": options or (), "signing": signing or ()}
    return transport.parse(device, python=python, folder=folder, config=config, **given)


def _is_record(path: Path) -> bool:
    return path.is_file() and path.suffix == ".json"


def _measured(
    paths: Sequence[Path],
    seconds: float,
    launches: int,
    threads: int,
    cores: str | None,
    out: Path | None,
    device: Address,
    units: str | None = None,
    ops: bool = False,
    energy: bool = False,
) -> tuple[Measurement, Path]:
    """Measure with a progress bar. Returns the measurement and where its record lies."""
    from edgesmith.bench import measurement as measurements
    from edgesmith.bench.measure import Reports, Settings, measure

    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    record = out if out is not None else Path("measurements") / f"{stamp}.json"
    if record.suffix != ".json":
        raise BadInput(f"a record is a .json file, got {record}")
    settings = Settings(
        seconds=seconds,
        launches=launches,
        threads=threads,
        cores=_cores(cores),
        operators=ops,
        compute_units=None if units is None else units.upper().replace("-", "_"),
        energy=energy,
    )
    with _progress() as on_progress:
        reports = Reports(record, on_progress, lambda sentence: print(f"note: {sentence}", file=sys.stderr))
        measurement = measure(paths, settings, device, reports)
    if not measurement.complete:
        measurements.write(measurement, record)
        done = len(measurement.launches)
        print(f"interrupted after {done} of {launches} launches, which are kept", file=sys.stderr)
    return measurement, record


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A bar on stderr with the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measure", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _figures(measurement: Measurement) -> list[dict[str, Any]]:
    """Of each subject: latency by quantile with its interval, throughput, and what opening it took."""
    from edgesmith.bench.statistics import quantile

    rows = []
    for i, subject in enumerate(measurement.subjects):
        launches = measurement.samples(i)
        figures = (
            {f"p{share}_ms": asdict(quantile(launches, share / 100)) for share in (50, 90, 99)} if launches else {}
        )
        count, total = sum(map(len, launches)), sum(map(sum, launches))
        rate = {"samples": count, "per_second": 1e3 * count / total} if launches else {}
        steady = sum(launch.warm[i].is_steady for launch in measurement.launches)
        spent = {"energy_j": subject.energy.joules, "power_w": subject.energy.watts} if subject.energy else {}
        rows.append({**asdict(subject), **figures, **rate, **spent, "steady_launches": steady})
    return rows


def _print_measurement(measurement: Measurement) -> None:
    from edgesmith.bench.measurement import environment_line
    from edgesmith.cli.app import _print, _table

    def with_ends(figure: dict[str, float | None] | None) -> str:
        if figure is None:
            return ""
        ends = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
        return f"{figure['value']:.3f}{ends}"

    device, rows = measurement.device, _figures(measurement)
    is_metered = any("energy_j" in row for row in rows)
    held_to = dict.fromkeys(measurement.held_to(i) for i in range(len(measurement.subjects)))
    table: Table = _table(
        f"{device.name}: {', '.join(filter(None, (device.cpu, device.power_mode, *held_to)))}",
        *("artifact", "p50, ms", "p90, ms", "p99, ms", "a second", "load, ms", "first, ms", "memory", "file"),
        *(("energy, mJ", "power, W") if is_metered else ()),
    )
    table.columns[0].no_wrap = True
    for row in rows:
        cold = row["cold"] or {}
        table.add_row(
            row["name"],
            *(with_ends(row.get(f"p{share}_ms")) for share in (50, 90, 99)),
            f"{row['per_second']:.1f}" if "per_second" in row else "",
            f"{cold['load_ms']:.0f}" if cold else "",
            f"{cold['first_ms']:.1f}" if cold else "",
            f"{cold['memory_mib']:.0f} MiB" if cold.get("memory_mib") is not None else "",
            f"{row['bytes'] / 1e6:.2f} MB",
            *((f"{1e3 * row['energy_j']:.4g}", f"{row['power_w']:.3g}") if "energy_j" in row else ()),
        )
    _print(table)
    launches = len(measurement.launches)
    print(f"{launches} launches, intervals of 95 %; {environment_line(measurement.launches)}")
    for source in sorted({row["energy"]["source"] for row in rows if "energy_j" in row}):
        print(
            f"energy: an inference's share of {source}, with all that idles or runs there, over calls without a pause"
        )
    for row in rows:
        if row["steady_launches"] < launches:
            print(f"{row['name']}: not steady after its warm-up in {launches - row['steady_launches']} of {launches}")
    for subject in measurement.subjects:
        if subject.profile is not None:
            _print_profile(subject.name, subject.profile)


def _print_profile(name: str, profile: Profile) -> None:
    """What operators take, by op and by module, as shares of all of them."""
    from edgesmith.bench.operators import group_by_module, group_by_op
    from edgesmith.cli.app import _print, _table

    total = sum(one.ms for one in profile.operators) or 1.0  # a profile counts in microseconds
    of_call = f"{total:.3f} ms of a call's {profile.call_ms:.3f} ms"
    print(f"\n{name}: operators take {of_call}, {profile.calls} calls recorded")
    for kind, groups in (("op", group_by_op(profile.operators)), ("module", group_by_module(profile.operators))):
        table = _table("", kind, "ms", "share", "operators")
        for group, (ms, count) in groups.items():
            table.add_row(group, f"{ms:.3f}", f"{ms / total:.1%}", str(count))
        _print(table)


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "exit_code": verdict.exit_code}


def _floor(path: Path | None) -> float:
    from edgesmith.bench.measurement import read
    from edgesmith.bench.verdict import noise_floor

    return 0.0 if path is None else noise_floor(read(path))


def _share(text: str) -> float:
    """`5%` or `0.05`."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError as error:
        raise BadInput(f"--threshold must be a share such as 5% or 0.05, got {text!r}") from error
    return value / 100 if text.strip().endswith("%") else value


def _cores(text: str | None) -> list[int] | None:
    """`0`, `0,2` or `0-3`."""
    if text is None:
        return None
    cores: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
            raise BadInput(f"--cores must be numbers such as 0, 0,2 or 0-3, got {text!r}")
        cores += range(int(first), int(last if dash else first) + 1)
    return cores
