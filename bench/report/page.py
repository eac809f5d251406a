"""One HTML page of what lies below a folder: artifacts, records and histories, each found by what it is.

    artifact   a folder with manifest.json            checks, rewrites, sizes, and the findings of lint
    record     a .json file of `edgesmith bench`      devices, samples, operators
    estimate   a .json file of `edgesmith estimate`   devices that were not measured
    history    a .sqlite file of `edgesmith history`  series and changes

The page is whole: no script, nothing from the network, the same bytes for the same folder. It is a list of sections of
blocks (blocks.py), which `page.html` writes with everything escaped. Estimates have a section of their own
(estimated.py): those that lie in the folder, and of every artifact for the devices that were asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from edgesmith._version import __version__
from edgesmith.bench import history as histories
from edgesmith.bench import measurement as measurements
from edgesmith.bench.estimation import estimate as estimates
from edgesmith.bench.estimation.estimate import Estimate
from edgesmith.bench.history import Series
from edgesmith.bench.measurement import Cold, Device, Energy, Measurement, Profile, environment_line
from edgesmith.bench.operators import group_by_module, group_by_op
from edgesmith.bench.report import figures
from edgesmith.bench.report.answers import Origin, answer_blocks, origin_of
from edgesmith.bench.report.blocks import (
    Block,
    Figure,
    Figures,
    Folded,
    Pair,
    Saved,
    Section,
    Share,
    Table,
    Text,
    drawing,
    interval,
    markup,
)
from edgesmith.bench.report.estimated import Entry, estimate_blocks, list_entries
from edgesmith.bench.report.figures import number
from edgesmith.bench.report.tradeoff import LEAST_ERROR, Point, draw_tradeoff
from edgesmith.bench.statistics import Interval, quantile
from edgesmith.errors import BadInput, EdgesmithError, Unreadable
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.manifest import MANIFEST, CheckRecord, OperatorCounts, RewriteRecord, own_files
from edgesmith.exporters.tensorrt import engine as engines
from edgesmith.models import registry
from edgesmith.readers.documents import read_json
from edgesmith.show import in_html
from edgesmith.writing import write_whole

WANTED = "artifacts, records of bench, estimates or a history"

MOST_OPERATORS = 30
"""Operators of one profile that the page lists; the record has all."""

VIEWERS = {"Model Explorer": "https://github.com/google-ai-edge/model-explorer", "Netron": "https://netron.app"}
"""Programs in which a file's graph is looked at."""


@dataclass(frozen=True)
class Found:
    """All that lies below a folder, each with its path in it. unread: files that look like ours, and their damage."""

    artifacts: tuple[tuple[str, Artifact], ...]
    records: tuple[tuple[str, Measurement], ...]
    histories: tuple[tuple[str, tuple[Series, ...]], ...]
    unread: tuple[tuple[str, str], ...]
    estimates: tuple[tuple[str, Estimate], ...] = ()


def write_report(folder: Path, out: Path, devices: Sequence[str] = ()) -> Found:
    """Write the page of a folder. Returns what lies in it.

    Args:
        devices: names of profiles; the page has an estimate of every artifact for each, or why there is none.

    Raises:
        BadInput: there is no such folder or device, or nothing in the folder that a page could show.
        OutputError: the page cannot be written.
    """
    profiles = [estimates.profile_of(name) for name in dict.fromkeys(devices)]
    found = find(folder)
    if not (found.artifacts or found.records or found.histories or found.estimates):
        why = f"; {found.unread[0][0]}: {found.unread[0][1]}" if found.unread else ""
        raise BadInput(f"nothing to report below {folder}: wanted {WANTED}{why}")
    if profiles and not found.artifacts:
        raise BadInput(f"nothing to estimate below {folder}: wanted artifacts, as `edgesmith export` writes them")
    page = render(found, list_entries(found.artifacts, found.estimates, profiles), origin_of(folder))
    write_whole(out, page, "report")
    return found


def find(folder: Path) -> Found:
    """Everything below a folder that the page shows, in order of paths. Raises BadInput where there is no folder."""
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: wanted one with {WANTED} below it")
    made: list[tuple[str, Artifact]] = []
    records: list[tuple[str, Measurement]] = []
    kept: list[tuple[str, tuple[Series, ...]]] = []
    guessed: list[tuple[str, Estimate]] = []
    unread: list[tuple[str, str]] = []
    for path in _candidates(folder):
        name = path.relative_to(folder).as_posix()
        try:
            if path.name == MANIFEST:
                made.append((path.parent.relative_to(folder).as_posix(), artifacts.read(path.parent)))
            elif path.suffix == ".sqlite":
                kept.append((name, tuple(histories.read(path))))
            elif _is_estimate(path):
                guessed.append((name, estimates.read(path)))
            elif _is_record(path):
                records.append((name, measurements.read(path)))
        except EdgesmithError as error:
            unread.append((name, str(error).replace(str(path), path.name)))
    return Found(tuple(made), tuple(records), tuple(kept), tuple(unread), tuple(guessed))


def _candidates(folder: Path) -> Iterator[Path]:
    """Manifests, and .json and .sqlite files outside artifacts; hidden folders are somebody's own.

    What else lies in an artifact's folder is described by its manifest, but for the record that a board's build has,
    and for such a build in a kit.
    """
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if MANIFEST in files:
            inner[:] = [name for name in inner if name == engines.BUILT]
            yield from (Path(place) / name for name in (MANIFEST, "measurement.json") if name in files)
            continue
        yield from (Path(place) / name for name in sorted(files) if name.endswith((".json", ".sqlite")))


def _is_record(path: Path) -> bool:
    """Return whether a JSON file is a record, or damaged, which only reading it as one can say in a sentence."""
    try:
        content = read_json(path, "record")
    except Unreadable:
        return True
    return isinstance(content, dict) and {"launches", "subjects"} <= content.keys()


def _is_estimate(path: Path) -> bool:
    """Return whether a JSON file says that it is an estimate."""
    try:
        return estimates.is_estimate(read_json(path, "estimate"))
    except Unreadable:
        return False


def render(found: Found, entries: Sequence[Entry] = (), origin: Origin | None = None) -> str:
    """Return the page, as text.

    Args:
        entries: what its section of estimates shows.
        origin: the checkout that the folder lies in.
    """
    import jinja2

    # `select_autoescape` goes by the name: everything in page.html is escaped but the style sheet and the drawings.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: in_html(value) if type(value) is str else value,  # markup is a class of its own
    )
    style = (Path(__file__).with_name("page.css")).read_text(encoding="utf-8")
    sections = [section for section in _sections(found, entries) if section.blocks]
    counts = (
        (len(found.artifacts), "artifact"),
        (len(found.records), "record"),
        (sum(isinstance(one.found, Estimate) for one in entries), "estimate"),
        (sum(len(series) for _, series in found.histories), "series of a history"),
    )
    said = ", ".join(f"{count} {word}{'s' * (count > 1 and word[-1] != 'y')}" for count, word in counts if count)
    return environment.get_template("page.html").render(
        style=markup(style),
        sections=sections,
        summary=said,
        origin=_origin_line(origin or Origin(), found),
        version=__version__,
    )


def _origin_line(origin: Origin, found: Found) -> str:
    """Return project, commit and the date of the newest measurement, as far as they are known."""
    dates = [measurement.started for _, measurement in found.records]
    dates += [series.points[-1].started for _, several in found.histories for series in several if series.points]
    parts = [origin.project, f"commit {origin.commit[:12]}" if origin.commit else ""]
    parts += [f"measured {max(dates)[:10]}" if dates else ""]
    return ", ".join(filter(None, parts))


def _sections(found: Found, entries: Sequence[Entry]) -> Iterator[Section]:
    answers = answer_blocks(found.artifacts, found.records, found.histories, _by_device(found.records))
    yield Section("answers", "At a glance", tuple(answers))
    yield Section("artifacts", "Artifacts", tuple(_artifact_blocks(found.artifacts)))
    yield Section("tradeoffs", "Latency against error and accuracy", tuple(_tradeoff_blocks(found)))
    yield Section("devices", "Devices", tuple(_device_blocks(found.records)))
    errors = {artifact.digest: _relative_error(artifact) for _, artifact in found.artifacts}
    blocks = tuple(estimate_blocks(entries, errors))
    yield Section("estimates", "Devices that are not here", blocks, badge="ESTIMATED")
    yield Section("operators", "Time per operator", tuple(_operator_blocks(found.records)), is_detail=True)
    yield Section("samples", "Samples", tuple(_sample_blocks(found.records)), is_detail=True)
    yield Section("history", "History", tuple(_history_blocks(found.histories)))
    yield Section("rewrites", "Rewrites", tuple(_rewrite_blocks(found.artifacts)), is_detail=True)
    yield Section("checks", "Checks against PyTorch", tuple(_check_blocks(found.artifacts)), is_detail=True)
    yield Section("lint", "What devices are known to get wrong", tuple(_lint_blocks(found.artifacts)), is_detail=True)
    yield Section("unread", "Not read", tuple(_unread_blocks(found.unread)), is_detail=True)


def _artifact_blocks(found: Sequence[tuple[str, Artifact]]) -> Iterator[Block]:
    rows = []
    for name, artifact in found:
        manifest = artifact.manifest
        step = _file_step(artifact)
        size = sum(one["bytes"] for one in own_files(manifest))
        counts = manifest.get("operators")  # what a board built of a kit has none, nor rewrites: the kit has
        rows.append(
            (
                name,
                artifact.model,
                artifact.target,
                artifact.precision,
                f"{size / 1e6:.2f}",
                _count(counts),
                _error(step),
                _snr(step),
                _top1(step),
                manifest["weights"]["origin"],
            )
        )
    columns = (
        "artifact",
        "model",
        "target",
        "precision",
        "size, MB",
        "operators",
        "error",
        "SNR, dB",
        "top-1 as PyTorch",
    )
    if rows:
        yield Text(
            "Operators are those captured, after the rewrites, and in the file. The error is the file's, relative to"
            " PyTorch's largest output, on its seeded inputs."
        )
        yield Table("Artifacts", (*columns, "weights"), tuple(rows), figures=(4, 6, 7, 8))


def _tradeoff_blocks(found: Found) -> Iterator[Block]:
    """Latencies on a device for a task, against the files' errors and the models' published accuracies."""
    made = {artifact.digest: artifact for _, artifact in found.artifacts}
    models, several = registry.all_models(), len(found.records) > 1
    drawn: list[Figure] = []
    for device, subjects in _by_device(found.records).items():
        errors: dict[str, list[Point]] = {}
        accuracies: dict[str, list[Point]] = {}
        for name, measurement, i in subjects:
            samples = measurement.samples(i)
            if not samples:
                continue
            subject = measurement.subjects[i]
            spec = models.get(subject.model)
            task = spec.task if spec else subject.model
            label = subject.name + (f"{_how(measurement, i)}, {name}" if several else "")
            p50 = quantile(samples, 0.5)
            error = _relative_error(made[subject.sha256]) if subject.sha256 in made else None
            if error is not None:
                errors.setdefault(task, []).append((label, p50, max(error, LEAST_ERROR)))
            if spec and spec.top1:
                accuracies.setdefault(task, []).append((label, p50, max(spec.top1)))
        for kind, tasks in (("error", errors), ("accuracy", accuracies)):
            drawn += [
                draw_tradeoff(f"{kind}-{len(drawn) + i}", f"{task}, {device}", kind, points)
                for i, (task, points) in enumerate(tasks.items())
            ]
    if drawn:
        yield Text(
            "A line joins the front: files that no other beats on both axes. Errors are the files' own, against"
            " PyTorch. Accuracies are those that the models' authors published for their best weights, whatever weights"
            " a file here has."
        )
        yield Figures(tuple(drawn))


def _device_blocks(records: Sequence[tuple[str, Measurement]]) -> Iterator[Block]:
    """A table of what was measured on each device. Estimates have a section of their own."""
    times = ("p50, ms", "p90, ms", "p99, ms", "a second", "load, ms", "first call, ms")
    rest = ("memory, MiB", "file, MB", "precision", "runtime", "threads", "launches", "record")
    for title, subjects in _by_device(records).items():
        sources = {one.source: None for _, measurement, i in subjects if (one := measurement.subjects[i].energy)}
        metered = ("energy, mJ", "power, W") if sources else ()
        rows = tuple(_device_row(name, measurement, i, bool(sources)) for name, measurement, i in subjects)
        yield Text(title, level=3)
        yield Text(subjects[0][1].device.system)
        yield Text("Measured", level=4)
        columns = ("artifact", *times, *rest[:2], *metered, *rest[2:])
        yield Table(f"Measured on {title}", columns, rows, figures=tuple(range(1, 9 + len(metered))))
        if sources:
            covered = "; ".join(sources)
            yield Text(f"Energy is an inference's share of {covered}, with all that idles or runs there.")


def _device_row(name: str, measurement: Measurement, i: int, is_metered: bool) -> tuple[str, ...]:
    """The cells of one subject of a record, which is called `name`."""
    subject, samples = measurement.subjects[i], measurement.samples(i)
    spent = sum(map(sum, samples))
    return (
        subject.name,
        *(interval(quantile(samples, share)) if samples else "" for share in (0.5, 0.9, 0.99)),
        f"{1e3 * sum(map(len, samples)) / spent:.1f}" if spent else "",
        *_cold(subject.cold),
        f"{subject.bytes / 1e6:.2f}",
        *(_energy(subject.energy) if is_metered else ()),
        subject.precision,
        f"{subject.runs_by} {measurement.runtimes.get(subject.runtime, '')}".strip(),
        str(measurement.threads) + ("" if measurement.cores is None else ", pinned"),
        str(len(samples)) + ("" if measurement.complete else ", interrupted"),
        name,
    )


def _cold(cold: Cold | None) -> tuple[str, str, str]:
    """Milliseconds to load and of the first call, and MiB held."""
    if cold is None:
        return "", "", ""
    held = "" if cold.memory_mib is None else f"{cold.memory_mib:.0f}"
    return f"{cold.load_ms:.0f}", f"{cold.first_ms:.1f}", held


def _energy(energy: Energy | None) -> tuple[str, str]:
    """Millijoules of an inference, and watts meanwhile."""
    return (f"{1e3 * energy.joules:.4g}", f"{energy.watts:.3g}") if energy else ("", "")


def _operator_blocks(records: Sequence[tuple[str, Measurement]]) -> Iterator[Block]:
    for name, measurement in records:
        for i, subject in enumerate(measurement.subjects):
            if subject.profile is None:
                continue
            profile = subject.profile
            total = sum(one.ms for one in profile.operators)
            yield Text(f"{subject.name}{_how(measurement, i)}, {name}", level=3)
            yield Text(
                f"Operators take {total:.3f} ms of a call's {profile.call_ms:.3f} ms; medians of {profile.calls} calls,"
                " recorded apart from the samples."
            )
            yield Pair(
                (
                    _bars(f"By op: {subject.name}", "op", group_by_op(profile.operators)),
                    _bars(f"By module: {subject.name}", "module", group_by_module(profile.operators)),
                )
            )
            yield Folded(
                f"The {min(MOST_OPERATORS, len(profile.operators))} slowest of {len(profile.operators)} operators",
                (_slowest(subject.name, profile),),
            )
            yield _node_data(subject.name, profile)


def _node_data(name: str, profile: Profile) -> Saved:
    """Return operators' times as Model Explorer's node data: a value for each node, by the node's name.

    Source: google-ai-edge/model-explorer, node_data_builder.py (0609144): `results` of a graph, and a `gradient`.
    """
    times: dict[str, float] = {}
    for one in profile.operators:
        times[one.name] = times.get(one.name, 0.0) + one.ms
    stops = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#d95f0e"}]
    content = {"results": {node: {"value": ms} for node, ms in times.items()}, "gradient": stops}
    return Saved(
        f"{name}.node_data.json",
        content,
        "colours the file's nodes by milliseconds, as node data of Model Explorer; Netron opens an ONNX file alone:",
        VIEWERS,
    )


def _bars(caption: str, kind: str, groups: dict[str, tuple[float, int]]) -> Table:
    total = sum(ms for ms, _ in groups.values()) or 1.0
    longest = max((ms for ms, _ in groups.values()), default=0.0) or 1.0
    rows = tuple(
        (group, Share(ms / total, ms / longest), f"{ms:.3f}", str(count)) for group, (ms, count) in groups.items()
    )
    return Table(caption, (kind, "share", "ms", "operators"), rows, figures=(2, 3))


def _slowest(name: str, profile: Profile) -> Table:
    slowest = sorted(profile.operators, key=lambda one: (-one.ms, one.name))[:MOST_OPERATORS]
    rows = tuple((one.name, one.type, one.op or "", one.module or "", f"{one.ms:.3f}") for one in slowest)
    return Table(f"Slowest operators of {name}", ("operator", "type", "op", "module", "ms"), rows, figures=(4,))


def _sample_blocks(records: Sequence[tuple[str, Measurement]]) -> Iterator[Block]:
    for r, (name, measurement) in enumerate(records, 1):
        if not measurement.launches:
            continue
        ways = dict.fromkeys(_how(measurement, i) for i in range(len(measurement.subjects)))
        yield Text(f"{name}{''.join(ways)}", level=3)
        state = environment_line(measurement.launches)
        yield Text(f"Begun {measurement.started}, {len(measurement.launches)} launches; {state or 'nothing is known'}.")
        drawn = []
        for i, subject in enumerate(measurement.subjects):
            drawn += [_distribution(f"samples-{r}-{i}", subject.name, measurement.samples(i))]
            drawn += [_launches(f"launches-{r}-{i}", subject.name, measurement, i)]
        yield Folded("Histogram and launches of each artifact", figures=tuple(drawn))


def _distribution(name: str, subject: str, launches: Sequence[Sequence[float]]) -> Figure:
    samples = [ms for launch in launches for ms in launch]
    found = {f"p{share}": quantile([samples], share / 100).value for share in (50, 90, 99)}
    ends = {"fastest": min(samples), **found, "slowest": max(samples)}
    title = f"Samples: {subject}"
    summary = f"{len(samples)} calls: {', '.join(f'{word} {value:.3f} ms' for word, value in ends.items())}."
    rows = tuple((word, f"{value:.3f}") for word, value in ends.items())
    svg = figures.draw_histogram(name, title, summary, samples, tuple(found.items()))
    every = tuple((str(n), f"{ms:.6g}") for n, launch in enumerate(launches, 1) for ms in launch)
    data = Table(title, ("launch", "ms"), every)
    table = Table(title, ("quantile", "ms"), rows, figures=(1,))
    return Figure(name, title, summary, drawing(svg), table, data=data)


def _launches(name: str, subject: str, measurement: Measurement, i: int) -> Figure:
    rounds = [[median(one) for one in launch] for launch in measurement.rounds(i)]
    samples = measurement.samples(i)
    medians = [median(launch) for launch in samples]
    title = f"Launch by launch: {subject}"
    summary = (
        f"Medians of {len(medians)} launches lie between {min(medians):.3f} and {max(medians):.3f} ms;"
        " a dot is the median of a round, a line that of a launch."
    )
    rows = tuple(
        (
            str(n),
            f"{median(own):.3f}",
            f"{quantile([own], 0.9).value:.3f}",
            f"{min(own):.3f}",
            f"{max(own):.3f}",
            str(len(own)),
            "yes" if launch.warm[i].is_steady else "no",
            number(launch.before["load"]) if "load" in launch.before else "",
        )
        for n, (own, launch) in enumerate(zip(samples, measurement.launches, strict=True), 1)
    )
    columns = ("launch", "median, ms", "p90, ms", "fastest, ms", "slowest, ms", "calls", "steady", "load before")
    table = Table(title, columns, rows, figures=(1, 2, 3, 4, 5, 7))
    return Figure(name, title, summary, drawing(figures.draw_launches(name, title, summary, rounds)), table)


def _history_blocks(found: Sequence[tuple[str, Sequence[Series]]]) -> Iterator[Block]:
    for h, (file, several) in enumerate(found, 1):
        yield Text(file, level=3)
        drawn = tuple(_history_figure(f"history-{h}-{s}", series) for s, series in enumerate(several, 1))
        if drawn:
            yield Figures(drawn)


def _history_figure(name: str, series: Series) -> Figure:
    """One series, with its changes."""
    title = series.key.words
    words = [f"{change.after_ms / change.before_ms - 1:+.1%}" for change in series.changes]
    first, last = series.points[0].started[:10], series.points[-1].started[:10]
    changes = ", ".join(
        f"{word} at {series.points[change.at].started}" + (f" (new: {', '.join(change.cause)})" if change.cause else "")
        for word, change in zip(words, series.changes, strict=True)
    )
    runs = f"{len(series.points)} run{'s' * (len(series.points) != 1)}"
    summary = f"{runs}, {first} to {last}. Changes: {changes or 'none'}."
    starts = [change.at for change in series.changes]
    marks = dict(zip(starts, words, strict=True))
    rows = tuple(
        (
            point.started,
            interval(Interval(point.p50_ms, point.low_ms, point.high_ms)),
            f"{point.p90_ms:.3f}",
            point.edgesmith,
            point.version,
            point.sha256[:8],
            marks.get(i, ""),
        )
        for i, point in enumerate(series.points)
    )
    columns = ("measured", "p50, ms", "p90, ms", "edgesmith", "runtime", "file", "change")
    values = [(point.p50_ms, point.low_ms, point.high_ms) for point in series.points]
    dates = [point.started[:10] for point in series.points]
    svg = figures.draw_history(name, title, summary, values, starts, words, dates)
    return Figure(name, title, summary, drawing(svg), Table(title, columns, rows, figures=(1, 2, 6)))


def _rewrite_blocks(found: Sequence[tuple[str, Artifact]]) -> Iterator[Block]:
    rows, folded = [], []
    for name, artifact in found:
        rewrites = artifact.manifest.get("rewrites")
        if rewrites is None:
            continue
        fired = [f"{one['name']} {len(one['applied'])}" for one in rewrites if one["applied"]]
        missed = [f"{one['name']} {len(one['rejected'])}" for one in rewrites if one["rejected"]]
        rows.append((name, ", ".join(fired) or "none", ", ".join(missed) or "none"))
        folded.append(_folded_rewrites(name, rewrites))
    if rows:
        yield Table("Rewrites", ("artifact", "fired, at so many sites", "near misses"), tuple(rows))
        yield from (one for one in folded if one.tables)


def _folded_rewrites(name: str, rewrites: Sequence[RewriteRecord]) -> Folded:
    """Every site and every near miss of an artifact's rewrites."""
    misses = tuple((one["name"], entry["site"], entry["reason"]) for one in rewrites for entry in one["rejected"])
    sites = tuple((one["name"], entry["site"], entry["note"]) for one in rewrites for entry in one["applied"])
    tables = (
        Table(f"Near misses in {name}", ("rewrite", "site", "why not"), misses),
        Table(f"Sites in {name}", ("rewrite", "site", "how"), sites),
    )
    said = f"{name}: {len(sites)} sites, {len(misses)} near misses"
    return Folded(said, tuple(table for table in tables if table.rows))


def _check_blocks(found: Sequence[tuple[str, Artifact]]) -> Iterator[Block]:
    rows = []
    for name, artifact in found:
        for step in artifact.manifest["verification"]["steps"]:
            said = step.get("runtime", "")
            if "missed" in step:
                said = f"MISSED: {step['missed']}"
            elif "not_checked_here" in step:
                said = f"not checked here: {step['not_checked_here']}"
            elif "operators" in step:
                said = f"valid, {step['operators']} operators"
            rows.append((name, step["step"], _error(step), _snr(step), _top1(step), said))
    if rows:
        columns = ("artifact", "check", "error", "SNR, dB", "top-1", "in, or why not")
        yield Table("Checks against PyTorch", columns, tuple(rows), figures=(2, 3, 4))


def _lint_blocks(found: Sequence[tuple[str, Artifact]]) -> Iterator[Block]:
    """Yield the findings of `edgesmith lint` in each artifact whose file has a graph to read."""
    from edgesmith.exporters.departures.lint import SUFFIXES, lint
    from edgesmith.exporters.mil.lint import group, label

    for name, artifact in found:
        if artifact.file.suffix not in SUFFIXES:
            continue
        yield Text(name, level=3)
        try:
            report = lint(artifact.path)
        except EdgesmithError as error:
            yield Text(f"Not checked: {str(error).replace(str(artifact.path), name)}")
            continue
        counts = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in report.counts.items())
        said = f"For {', '.join(report.read_for)}: {counts} in {report.operators} operators"
        yield Text(f"{said}. This reads the program, and measures nothing.")
        rules = {rule.name: rule for rule in report.rules}
        rows = tuple(
            (
                rules[one.rule].severity,
                one.rule,
                str(len(one.findings)),
                f"{one.findings[0].position}: {one.findings[0].fact}",
                rules[one.rule].do,
                ", ".join(map(label, rules[one.rule].sources)),
            )
            for one in group(report.findings)
        )
        if rows:
            columns = ("severity", "rule", "places", "first", "what to do", "source")
            yield Table(f"Lint findings of {name}", columns, rows, figures=(2,))


def _unread_blocks(unread: Sequence[tuple[str, str]]) -> Iterator[Block]:
    if unread:
        yield Table("Files that could not be read", ("file", "why"), tuple(unread))


def _by_device(records: Sequence[tuple[str, Measurement]]) -> dict[str, list[tuple[str, Measurement, int]]]:
    """Subjects by the device that they were measured on; machines with the same parts are told apart by a number."""
    devices: dict[Device, list[tuple[str, Measurement, int]]] = {}
    for name, measurement in records:
        own = devices.setdefault(measurement.device, [])
        own += [(name, measurement, i) for i in range(len(measurement.subjects))]
    titled: dict[str, list[tuple[str, Measurement, int]]] = {}
    for device, subjects in devices.items():
        title = f"{device.name} ({device.cpu}{', ' + device.power_mode if device.power_mode else ''})"
        count = 1 + sum(known == title or known.startswith(f"{title}, machine") for known in titled)
        titled[title if count == 1 else f"{title}, machine {count}"] = subjects
    return titled


def _file_step(artifact: Artifact) -> CheckRecord | None:
    """The check of the file itself: the last of PyTorch against it that has figures."""
    steps = [one for one in artifact.manifest["verification"]["steps"] if one["step"].startswith("eager -> ")]
    own = [one for one in steps if "relative_error" in one and one["step"].split(" -> ")[1] not in _PROGRAMS]
    return own[-1] if own else None


_PROGRAMS = ("captured", "rewritten", "step")


def _relative_error(artifact: Artifact) -> float | None:
    """The file's own error, relative to PyTorch's largest output."""
    step = _file_step(artifact)
    return step.get("relative_error") if step else None


def _count(counts: OperatorCounts | None) -> str:
    """The numbers of operators: captured, rewritten, and in the file."""
    stages: Mapping[str, dict[str, int]] = counts or {}  # type: ignore[assignment]  # each key of it has the same type
    return " -> ".join(str(sum(one.values())) for one in stages.values())


def _error(step: CheckRecord | None) -> str:
    value = step.get("relative_error") if step else None
    return "" if value is None else number(value)


def _snr(step: CheckRecord | None) -> str:
    if not step or "snr_db" not in step:
        return ""
    return "equal" if step["snr_db"] is None else f"{step['snr_db']:.1f}"


def _top1(step: CheckRecord | None) -> str:
    top1 = step.get("top1") if step else None
    return f"{top1['agreeing']}/{top1['decided']}" if top1 else ""


def _how(measurement: Measurement, subject: int) -> str:
    held_to = measurement.held_to(subject)
    return f", {held_to}" if held_to else ""
