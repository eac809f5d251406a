"""The commands that time artifacts and show what was timed: `bench`, `compare`, `profile`; `build-on`, on a board."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgesmith.cli import options as given
from edgesmith.cli.chosen import Chosen, chooses_model
from edgesmith.cli.export import export_chosen
from edgesmith.cli.signals import Interrupted
from edgesmith.cli.tables import (
    Table,
    counted,
    describe_interval,
    new_table,
    print_json,
    print_line,
    print_lines,
    print_table,
    show_progress,
)
from edgesmith.errors import BadInput
from edgesmith.writing import refuse_unwritable, write_whole

if TYPE_CHECKING:
    from edgesmith.bench.measure import Settings
    from edgesmith.bench.measurement import Measurement, Profile
    from edgesmith.bench.transport import Address
    from edgesmith.bench.verdict import Criterion, Verdict


@chooses_model
def bench(
    chosen: Chosen,
    artifacts: given.Artifacts = None,
    target: given.TargetName = "onnx",
    against: given.Against = None,
    seconds: given.Seconds = None,
    launches: given.Launches = None,
    threads: given.Threads = 1,
    cores: given.Cores = None,
    units: given.Units = None,
    threshold: given.Threshold = "5%",
    confidence: given.Confidence = 0.995,
    floor: given.Floor = None,
    ops: given.Ops = False,
    out: given.Record = None,
    device: given.Where = "host",
    python: given.Python = None,
    remote_tmp: given.RemoteTmp = None,
    ssh_config: given.SshConfig = None,
    ssh_option: given.SshOptions = None,
    sign: given.Sign = None,
    as_json: given.Json = False,
) -> None:
    """Time artifacts in turn; every sample is kept. With --against, compare them. A model is exported first."""
    address = _parse_address(device, python, remote_tmp, ssh_config, ssh_option, sign)
    criterion = _criterion(threshold, confidence, floor)
    until = criterion if against else None
    settings = _settings(seconds, launches, threads, cores, units, operators=ops, energy=True, until=until)
    if not artifacts and chosen.model is None:
        raise BadInput("give artifacts' folders, or a model to export for this: --model NAME or --module CODE")
    made = [export_chosen(chosen, target)] if chosen.model is not None else []
    paths = [*([against] if against else []), *(artifacts or ()), *made]
    measurement, record = _measure(paths, settings, address, out)
    verdicts = criterion.judge_all(measurement) if against else []
    if as_json:
        from edgesmith.bench.verdict import describe

        facts = {"record": str(record), "complete": measurement.complete, "subjects": _figures(measurement)}
        print_json({**facts, "verdicts": [describe(one) for one in verdicts]})
    else:
        _show_measurement(measurement)
        _show_verdicts(verdicts)
        print_line(f"record: {record}")
    if not measurement.complete:
        raise Interrupted


def compare(
    base: given.Base,
    head: given.Head = None,
    threshold: given.Threshold = "5%",
    confidence: given.Confidence = 0.995,
    floor: given.Floor = None,
    despite: given.Despite = None,
    seconds: given.Seconds = None,
    launches: given.Launches = None,
    threads: given.Threads = 1,
    cores: given.Cores = None,
    units: given.Units = None,
    out: given.Record = None,
    device: given.Where = "host",
    python: given.Python = None,
    remote_tmp: given.RemoteTmp = None,
    ssh_config: given.SshConfig = None,
    ssh_option: given.SshOptions = None,
    sign: given.Sign = None,
    markdown: given.PullRequest = False,
    junit: given.Junit = None,
    as_json: given.Json = False,
) -> None:
    """Say whether head became slower than base: exit code 0 no, 8 yes, 9 not known, 10 not comparable.

    Two artifacts are measured in turn until that is known, which is the comparison to trust. Records of two runs are
    compared as they are.
    """
    address = _parse_address(device, python, remote_tmp, ssh_config, ssh_option, sign)
    criterion = _criterion(threshold, confidence, floor, frozenset(despite or ()))
    if junit is not None:
        refuse_unwritable(junit, "JUnit file")
    from edgesmith.bench.verdict import worst_code

    is_cut_short = False
    if head is None:
        measurement, verdicts = _compare_within(base, criterion)
    elif _is_record(base) or _is_record(head):
        measurement, verdicts = _compare_records(base, head, criterion)
    else:
        settings = _settings(seconds, launches, threads, cores, units, until=criterion)
        measurement, record = _measure([base, head], settings, address, out)
        print_line(f"record: {record}", to_stderr=True)
        verdicts, is_cut_short = criterion.judge_all(measurement), not measurement.complete
    if as_json:
        from edgesmith.bench.verdict import describe_all

        print_json(describe_all(verdicts))
    elif markdown:
        _show_pull_request(verdicts, measurement, criterion)
    else:
        _show_verdicts(verdicts)
    if junit is not None:
        _write_junit(junit, verdicts)
    if is_cut_short:
        raise Interrupted
    raise typer.Exit(worst_code(verdicts))


def profile(
    records: given.Records = None,
    folder: given.ProfileFolder = None,
    model: given.OfModel = None,
    markdown: given.Readme = False,
    as_json: given.Json = False,
) -> None:
    """Show latencies that were measured: model, target, device. With records of `bench`, keep what is in them first."""
    from edgesmith.bench import measured
    from edgesmith.bench import measurement as measurements

    place = measured.user_folder() if folder is None else folder
    places = (measured.FOLDER, place) if folder is None else (place,)
    kept = [one for path in records or () for one in measured.condense(measurements.read(path))]
    for one in kept:
        print_line(f"kept: {measured.write(one, place)}", to_stderr=True)
    found = [one for one in measured.read_all(*places) if model in (None, one.model)]
    if as_json:
        print_json([measured.facts(one) for one in found])
    elif markdown:
        print_lines(measured.markdown(found))
    elif not found:
        print_line("no profiles here; keep one: edgesmith bench ARTIFACT -o record.json, edgesmith profile record.json")
    else:
        table = new_table("measured, 95 % intervals", *measured.COLUMNS, names=True)
        for one in found:
            table.add_row(*measured.row(one))
        print_table(table)
        for line in dict.fromkeys(map(measured.describe_device, found)):
            print_line(line)


def build_on(
    device: given.Board,
    kit: given.Kit,
    options: given.BuildOptions = None,
    out: given.OutFolder = Path("artifacts"),
    python: given.Python = None,
    remote_tmp: given.RemoteTmp = None,
    ssh_config: given.SshConfig = None,
    ssh_option: given.SshOptions = None,
    as_json: given.Json = False,
) -> None:
    """Have a board build a kit's engine, and bring the engine and its measurement back."""
    from edgesmith.bench import measurement as measurements
    from edgesmith.bench.build_on import MEASUREMENT
    from edgesmith.bench.build_on import build_on as build

    address = _parse_address(device, python, remote_tmp, ssh_config, ssh_option)
    if address.kind not in ("ssh", "adb"):
        raise BadInput(f"build-on is for another device; on this machine run python3 {kit / 'build.py'} --out DIR")
    built = build(address, kit, out, lambda line: print_line(line, to_stderr=True), options or ())
    record = built / MEASUREMENT
    measurement = measurements.read(record)
    if as_json:
        print_json({"result": str(built), "record": str(record), "subjects": _figures(measurement)})
        return
    _show_measurement(measurement)
    print_line(f"{built}")


def _criterion(
    threshold: str, confidence: float, floor: Path | None, despite: frozenset[str] = frozenset()
) -> Criterion:
    """Return what counts as slower, checked before anything is measured for it."""
    from edgesmith.bench.measurement import read
    from edgesmith.bench.verdict import Criterion, noise_floor

    share, least = given.parse_share(threshold), 0.0 if floor is None else noise_floor(read(floor))
    return Criterion(share, confidence, least, despite)


def _parse_address(
    device: str,
    python: str | None,
    folder: str | None,
    config: Path | None,
    options: list[str] | None,
    signing: list[str] | None = None,
) -> Address:
    from edgesmith.bench import transport

    return transport.parse(
        device, python=python, folder=folder, config=config, options=options or (), signing=signing or ()
    )


def _settings(
    seconds: float | None, launches: int | None, threads: int, cores: str | None, units: str | None, **also: Any
) -> Settings:
    from edgesmith.bench.measure import Settings

    compute_units = None if units is None else units.upper().replace("-", "_")
    return Settings(seconds, launches, threads, given.parse_cores(cores), compute_units=compute_units, **also)


def _measure(paths: Sequence[Path], settings: Settings, device: Address, out: Path | None) -> tuple[Measurement, Path]:
    """Measure with a progress bar. Returns the measurement and its record.

    After Ctrl-C what was measured until then is kept, and that is said.
    """
    from edgesmith.bench import measurement as measurements
    from edgesmith.bench.measure import Reports, measure

    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    record = out if out is not None else Path("measurements") / f"{stamp}.json"
    if record.suffix != ".json":
        raise BadInput(f"a record is a .json file, got {record}")
    refuse_unwritable(record, "measurement")
    errors = sys.stderr  # the progress bar puts another in its place, which would break a note into lines
    with show_progress("measure") as on_progress:
        reports = Reports(record, on_progress, lambda sentence: print_line(f"note: {sentence}", to=errors))
        measurement = measure(paths, settings, device, reports)
    if not measurement.complete:
        measurements.write(measurement, record)
        done = len(measurement.launches)
        print_line(f"interrupted after {done} of {settings.most[1]} launches, which are kept", to_stderr=True)
    return measurement, record


def _is_record(path: Path) -> bool:
    return path.is_file() and path.suffix == ".json"


def _compare_within(record: Path, criterion: Criterion) -> tuple[Measurement, list[Verdict]]:
    """Compare the artifacts of one record."""
    from edgesmith.bench.measurement import read

    if record.is_dir():
        raise BadInput(f"{record} is a folder: give a base and a head, or one record of edgesmith bench --against")
    measurement = read(record)
    if len(measurement.subjects) < 2:
        raise BadInput(f"{record} is a record of one artifact: give a second record or artifact to compare it with")
    return measurement, criterion.judge_all(measurement)


def _compare_records(base: Path, head: Path, criterion: Criterion) -> tuple[Measurement, list[Verdict]]:
    """Compare the artifacts of two records. Returns the first of the two as well."""
    from edgesmith.bench.measurement import read

    if not (_is_record(base) and _is_record(head)):
        raise BadInput(f"{base} and {head} are a record and an artifact: give two of a kind")
    measurements = read(base), read(head)
    for path, measurement in zip((base, head), measurements, strict=True):
        if len(measurement.subjects) > 1:
            raise BadInput(
                f"{path} is a record of {len(measurement.subjects)} artifacts, which compare takes alone; two records"
                " have to be of one artifact each"
            )
    return measurements[0], [criterion.judge(*measurements)]


def _show_verdicts(verdicts: Sequence[Verdict]) -> None:
    for one in verdicts:
        print_line(f"{one.head} against {one.base}: {one.verdict}: {one.reason}")


def _show_pull_request(verdicts: Sequence[Verdict], measurement: Measurement, criterion: Criterion) -> None:
    from edgesmith.bench.announce import markdown

    print_lines(markdown(verdicts, measurement, criterion.threshold, criterion.confidence))


def _write_junit(path: Path, verdicts: Sequence[Verdict]) -> None:
    from edgesmith.bench.announce import junit

    write_whole(path, junit(verdicts), "JUnit file")


def _figures(measurement: Measurement) -> list[dict[str, Any]]:
    """Return, of each subject, latency by quantile with its interval, throughput, and what opening it took."""
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


def _show_measurement(measurement: Measurement) -> None:
    from edgesmith.bench.measurement import environment_line

    rows, launches = _figures(measurement), len(measurement.launches)
    print_table(_latency_table(measurement, rows))
    surroundings = environment_line(measurement.launches)
    print_line("; ".join(filter(None, (f"{counted(launches, 'launch', 'launches')}, intervals of 95 %", surroundings))))
    for source in sorted({row["energy"]["source"] for row in rows if "energy_j" in row}):
        print_line(
            f"energy: an inference's share of {source}, with all that idles or runs there, over calls without a pause"
        )
    for row in rows:
        if row["steady_launches"] < launches:
            print_line(
                f"{row['name']}: not steady after its warm-up in {launches - row['steady_launches']} of {launches}"
            )
    for subject in measurement.subjects:
        if subject.profile is not None:
            _show_operators(subject.name, subject.profile)


def _latency_table(measurement: Measurement, rows: Sequence[Mapping[str, Any]]) -> Table:
    device = measurement.device
    is_metered = any("energy_j" in row for row in rows)
    held_to = dict.fromkeys(measurement.held_to(i) for i in range(len(measurement.subjects)))
    table = new_table(
        f"{device.name}: {', '.join(filter(None, (device.cpu, device.power_mode, *held_to)))}",
        *("artifact", "p50, ms", "p90, ms", "p99, ms", "a second", "load, ms", "first, ms", "memory", "file"),
        *(("energy, mJ", "power, W") if is_metered else ()),
        names=True,
    )
    for row in rows:
        quantiles = (describe_interval(row.get(f"p{share}_ms")) for share in (50, 90, 99))
        rate = f"{row['per_second']:.1f}" if "per_second" in row else ""
        energy = (f"{1e3 * row['energy_j']:.4g}", f"{row['power_w']:.3g}") if "energy_j" in row else ()
        table.add_row(row["name"], *quantiles, rate, *_cold(row["cold"] or {}), f"{row['bytes'] / 1e6:.2f} MB", *energy)
    return table


def _cold(cold: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what opening a file took: to load it, its first call, and memory."""
    if not cold:
        return "", "", ""
    memory = "" if cold["memory_mib"] is None else f"{cold['memory_mib']:.0f} MiB"
    return f"{cold['load_ms']:.0f}", f"{cold['first_ms']:.1f}", memory


REST = "the rest is between them: the runtime starts each, hands values over, and records"
"""Why operators cover a part of a call alone."""


def _show_operators(name: str, profile: Profile) -> None:
    """Print what operators take, by op and by module, as shares of all of them."""
    from edgesmith.bench.operators import group_by_module, group_by_op

    total = sum(one.ms for one in profile.operators) or 1.0  # a profile counts in microseconds
    of_call = f"{total:.3f} ms of a call's {profile.call_ms:.3f} ms"
    print_line()
    print_line(f"{name}: operators take {of_call}, {profile.calls} calls recorded; {REST}")
    for kind, groups in (("op", group_by_op(profile.operators)), ("module", group_by_module(profile.operators))):
        table = new_table("", kind, "ms", "share", "operators")
        for group, (ms, count) in groups.items():
            table.add_row(group, f"{ms:.3f}", f"{ms / total:.1%}", str(count))
        print_table(table)
