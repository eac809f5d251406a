"""The command line. Each command parses, calls one function of the layers below, and shows what came back.

Progress goes to stderr, results to stdout. Errors are one sentence and an exit code (errors.py). Whatever imports
torch or a backend is imported inside the command that uses it, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer

from edgesmith._version import __version__
from edgesmith.cli import bench as cli_bench
from edgesmith.cli import devices as cli_devices
from edgesmith.cli import report as cli_report
from edgesmith.errors import BackendMissing, BadInput, EdgesmithError, VerificationFailed

if TYPE_CHECKING:
    from rich.table import Table

    from edgesmith.exporters.artifact import Artifact
    from edgesmith.exporters.mil.lint import Report
    from edgesmith.exporters.rewrites.rewrite import RewriteReport
    from edgesmith.exporters.targets import Target

INTERRUPTED = 130
# The base of everything that parsing raises, from click or from typer's own copy of it.
_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="edgesmith",
    help="From a PyTorch definition to verified files for phones and edge boards.",
    epilog="Exit codes: 0 done, 2 bad input, 3 verification failed, 4 backend missing, 5 output not writable,"
    " 6 model or operator unsupported, 7 device failed, 130 interrupted, 1 a bug. --debug, anywhere, shows the"
    " traceback.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelName = Annotated[str, typer.Option("--model", "-m", help="Name from `edgesmith models`.", show_default=False)]
TargetName = Annotated[str, typer.Option("--target", "-t", help="Name from `edgesmith targets`.")]
InputSize = Annotated[
    str | None,
    typer.Option("--input-size", help="224, or HEIGHTxWIDTH such as 192x256.", show_default="published size"),
]
Frames = Annotated[
    int | None, typer.Option("--frames", help="Length of the sequences.", show_default="the published length")
]
Features = Annotated[bool, typer.Option("--features", help="Dense features instead of logits.")]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", "-w", help="Checkpoint: .pth, .pt or .safetensors.", show_default="random weights"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"edgesmith {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def export(
    model: ModelName,
    target: TargetName,
    weights: Weights = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            "-p",
            help="fp32, fp16, bf16 (tensorrt), mixed (coreml), int8 (onnx, tensorrt).",
            show_default="the target's",
        ),
    ] = None,
    input_size: InputSize = None,
    frames: Frames = None,
    batch: Annotated[int, typer.Option("--batch", "-b", help="Images or sequences in one call.")] = 1,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Leave the batch free (onnx).")] = False,
    features: Features = False,
    image_input: Annotated[
        bool, typer.Option("--image-input", help="Take an image; normalisation is folded in (coreml).")
    ] = False,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="One step of a sequence model, states in and out.")
    ] = False,
    with_sequence: Annotated[
        bool,
        typer.Option(
            "--with-sequence", help="With --streaming: the whole sequence's program too, sharing weights (coreml)."
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Class names, one a line: a classifier (coreml), metadata (onnx, coreai).",
            show_default=False,
        ),
    ] = None,
    deployment_target: Annotated[
        str | None,
        typer.Option("--deployment-target", help="Oldest system: iOS16 or later (coreml).", show_default="iOS17"),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device that it is for, such as iphone15.", show_default=False)
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Folder of images, or .npz, that int8 is calibrated and judged on.",
            show_default="random inputs",
        ),
    ] = None,
    allow_inaccurate: Annotated[
        bool, typer.Option("--allow-inaccurate", help="Publish a file that misses the thresholds, and say so in it.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the artifact's folder.")] = Path("artifacts"),
    as_json: Json = False,
) -> None:
    """Write a model as a checked file for a target."""
    size = _parse_size(input_size)
    names = None if labels is None else _read_labels(labels)
    _check_names(model, target, device)
    with _stages() as watch:
        with watch("import"):
            from edgesmith.exporters import export as pipeline
            from edgesmith.exporters.precision import calibration as calibrations

        if precision == "int8" and calibration is None:
            print(f"edgesmith: WARNING: {calibrations.WARNING}", file=sys.stderr)
            warnings.simplefilter("ignore", calibrations.RandomCalibration)  # which says the same
        artifact = pipeline.export(
            model,
            target,
            weights=weights,
            precision=precision,
            input_size=size,
            frames=frames,
            batch=batch,
            dynamic_batch=dynamic_batch,
            features=features,
            labels=names,
            image_input=image_input,
            streaming=streaming,
            with_sequence=with_sequence,
            deployment_target=deployment_target,
            device=device,
            calibration=calibration,
            allow_inaccurate=allow_inaccurate,
            out=out,
            watch=watch,
        )
    if as_json:
        print(json.dumps({"path": str(artifact.path), **artifact.manifest}, indent=2, ensure_ascii=False))
    else:
        _print(_export_table(artifact))
    for sentence in artifact.manifest["verification"].get("missed", []):
        print(f"edgesmith: INACCURATE, published because of --allow-inaccurate: {sentence}", file=sys.stderr)


@app.command()
def explain(
    model: ModelName,
    target: TargetName = "onnx",
    weights: Weights = None,
    input_size: InputSize = None,
    frames: Frames = None,
    features: Features = False,
    as_json: Json = False,
) -> None:
    """Show every site where a rewrite fired, and every near miss with its reason."""
    size = _parse_size(input_size)
    _check_names(model, target, None, for_a_file=False)
    with _stages() as watch:
        with watch("import"):
            from edgesmith.exporters import export as pipeline
            from edgesmith.exporters.graph import edit as graph
        with watch("capture and rewrite"):
            before, after, reports = pipeline.explain(
                model, target, weights=weights, input_size=size, frames=frames, features=features
            )
    counts = graph.count_operators(before.module), graph.count_operators(after.module)
    if as_json:
        from dataclasses import asdict

        print(
            json.dumps(
                {
                    "model": model,
                    "target": target,
                    "rewrites": [asdict(report) for report in reports],
                    "operators": {"captured": counts[0], "rewritten": counts[1]},
                },
                indent=2,
            )
        )
        return
    for report in reports:
        if report.applied or report.rejected:
            _print(_explain_table(report))
    idle = [report.name for report in reports if not report.applied and not report.rejected]
    if idle:
        print(f"found nothing: {', '.join(idle)}\n")
    table = _table(f"{model}: operators", "operator", "captured", "rewritten")
    for name in {**counts[0], **counts[1]}:
        table.add_row(name, str(counts[0].get(name, 0)), str(counts[1].get(name, 0)))
    table.add_row("all", str(sum(counts[0].values())), str(sum(counts[1].values())))
    _print(table)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact's folder, or the file in it.", show_default=False)],
    layers: Annotated[
        bool, typer.Option("--layers", help="Also every operator: its range, and what its precision costs (coreml).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check an artifact again: its files, its format, and its numbers where it can run."""
    from edgesmith.exporters.artifact import read

    found = read(artifact)  # a wrong path is answered before torch is imported
    if layers:
        from edgesmith.exporters import targets as known_targets

        known_targets.require_layers(known_targets.get(found.target))
    with _stages() as watch:
        with watch("import"):
            from edgesmith.exporters import export as pipeline
        failure = None
        try:
            found, steps = pipeline.verify_artifact(artifact, watch)
        except VerificationFailed as error:
            if not error.steps:
                raise
            failure, steps = error, [dict(step) for step in error.steps]
        operators = []
        if layers:
            with watch("operators"):
                operators = pipeline.verify_layers(artifact)
    if as_json:
        also: dict[str, Any] = {"operators": operators} if layers else {}
        also |= {"error": str(failure), "exit_code": failure.exit_code} if failure else {}
        print(json.dumps({"path": str(found.path), "steps": steps, **also}, indent=2, ensure_ascii=False))
    else:
        table = _table(f"{found.path.name}", "check", "result")
        for step in steps:
            table.add_row(step["step"], _describe_step(step))
        _print(table)
        if layers:
            _print(_layers_table(operators))
    if failure:
        print(f"edgesmith: {failure}", file=sys.stderr)
        raise typer.Exit(failure.exit_code)


@app.command()
def lint(
    artifact: Annotated[
        Path, typer.Argument(help="A Core ML artifact's folder, or any .mlpackage.", show_default=False)
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 where there are errors or warnings; notes pass.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="A line for each place, not for each kind of place.")] = False,
    as_json: Json = False,
) -> None:
    """Check a Core ML package against what is published about the Neural Engine."""
    with _stages() as watch:
        with watch("import"):
            from edgesmith.exporters.mil.lint import lint as check
        with watch("lint"):
            report = check(artifact)
    if as_json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        _print_lint(report, every)
    if strict and not report.passes:
        raise typer.Exit(VerificationFailed.exit_code)


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="An engine, an artifact's folder, or JSON of trtexec --exportLayerInfo.", show_default=False
        ),
    ],
    device: Annotated[
        str | None, typer.Option("--device", help="Refuse an engine that this device cannot load.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a TensorRT engine was built with, how, and on which devices it can load; also of kits and inspectors."""
    from edgesmith.exporters.tensorrt import engine

    found = engine.inspect(path, device)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    table = _table(Path(found["path"]).name, "", "")
    table.show_header = False
    for row in _inspect_rows(found):
        table.add_row(*row)
    _print(table)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models: parameters, MACs, input, published accuracy, source, licence."""
    from dataclasses import asdict

    from edgesmith.models.registry import all_models

    if as_json:
        print(json.dumps([asdict(spec) for spec in all_models().values()], indent=2))
        return
    table = _table("models", "model", "params", "MACs", "input", "top-1, published", "licence")
    sources = {}
    for spec in all_models().values():
        table.add_row(
            spec.name,
            f"{spec.params / 1e6:.2f} M",
            f"{spec.macs / 1e6:.0f} M",
            "x".join(map(str, spec.input.shape)),
            " / ".join(f"{value:.1f}" for value in spec.top1) + " %" if spec.top1 else "",
            spec.licence,
        )
        sources[spec.family] = f"{spec.family}: {spec.paper}, {spec.source}"
    _print(table)
    print("\n".join(sources.values()))


@app.command()
def targets(
    devices: Annotated[bool, typer.Option("--devices", help="List the devices that --device knows.")] = False,
    as_json: Json = False,
) -> None:
    """List the targets, or the devices."""
    if devices:
        from dataclasses import asdict

        from edgesmith.profiles.device import all_devices

        profiles = all_devices().values()
        if as_json:
            print(json.dumps([asdict(profile) for profile in profiles], indent=2))
            return
        table = _table("devices", "device", "is", "chip", "takes", "systems", "SM")
        for profile in profiles:
            systems = f"{profile.systems.oldest} to {profile.systems.newest}" if profile.systems else ""
            capability = profile.cuda.compute_capability if profile.cuda else ""
            table.add_row(profile.name, profile.title, profile.soc, ", ".join(profile.targets), systems, capability)
        _print(table)
        return
    from edgesmith.exporters.targets import all_targets

    rows = [
        {
            "name": target.name,
            "description": target.description,
            "precisions": list(target.precisions),
            "suffix": target.suffix,
            "extra": target.extra,
            "runtime": target.runtime,
        }
        for target in all_targets().values()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = _table("targets", "target", "is", "file", "precisions", "runs in", "comes with")
    for row in rows:
        comes = f"edgesmith[{row['extra']}]" if row["extra"] else "edgesmith"
        precisions = ", ".join(map(str, row["precisions"] if isinstance(row["precisions"], list) else []))
        table.add_row(*(str(row[k]) for k in ("name", "description", "suffix")), precisions, str(row["runtime"]), comes)
    _print(table)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say which targets can lower, run and time on this machine, and what to install for the others."""
    from edgesmith.exporters.targets import all_targets

    with _stages() as watch:
        rows = []
        for target in all_targets().values():
            with watch(f"try {target.name}"):
                rows.append({"target": target.name, **_examine(target)})
    if as_json:
        print(json.dumps({"python": sys.version.split()[0], "edgesmith": __version__, "targets": rows}, indent=2))
        return
    table = _table(f"edgesmith {__version__}, Python {sys.version.split()[0]}", "target", "lower", "run", "time", "do")
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("target", "lower", "run", "time", "do")))
    _print(table)


app.command()(cli_bench.bench)
app.command()(cli_bench.compare)
app.command()(cli_bench.profile)
app.command()(cli_bench.build_on)
app.command()(cli_report.report)
app.add_typer(cli_report.history, name="history")
app.command()(cli_devices.devices)
app.command()(cli_devices.estimate)


def main() -> Never:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    code = run([argument for argument in arguments if argument != "--debug"], debug)
    if code == INTERRUPTED:
        # An interrupt inside an extension module's import leaves a mark that makes Python's own exit a death by SIGINT.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command. Returns the exit code; errors become a sentence on stderr, and JSON on stdout with --json."""
    try:
        result = app(args=arguments, prog_name="edgesmith", standalone_mode=False)
        if result == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except EdgesmithError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code, arguments)
    except _USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "edgesmith"
        said = error.format_message().rstrip(".")
        return _fail(f"{said}. See: {command} --help", BadInput.exit_code, arguments)
    except cli_bench.Interrupted:
        return INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing was published", INTERRUPTED, arguments)
    except BrokenPipeError:  # `edgesmith models | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        if debug:
            raise
        sentence = f"a bug in edgesmith: {type(error).__name__}: {error}. Please report it with the output of --debug"
        return _fail(sentence, EdgesmithError.exit_code, arguments)


def _fail(sentence: str, code: int, arguments: list[str]) -> int:
    print(f"edgesmith: {sentence}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": sentence, "exit_code": code}, ensure_ascii=False))
    return code


def _check_names(model: str, target: str, device: str | None, for_a_file: bool = True) -> None:
    """Answer wrong names before torch is imported."""
    from edgesmith.exporters import targets as known_targets
    from edgesmith.models import registry
    from edgesmith.profiles import device as devices

    registry.get(model)
    backend = known_targets.get(target)
    known_targets.require(backend)
    profile = devices.get(device) if device is not None else None
    if for_a_file and hasattr(backend, "check_device"):
        backend.check_device(profile)


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise BadInput(f"--input-size must be 224 or HEIGHTxWIDTH such as 192x256, got {text!r}")
    return int(parts[0]), int(parts[-1])


def _read_labels(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read labels from {path} ({error}); wanted a UTF-8 text, one name a line") from error
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise BadInput(f"{path} holds no labels; wanted one name a line")
    return labels


def _examine(target: Target) -> dict[str, str]:
    """What this machine can do with a target, found by importing what it needs."""
    import importlib
    import importlib.metadata
    import logging
    import warnings

    from edgesmith.exporters.targets import install_line, require

    row = {"lower": "", "run": "", "time": "", "do": ""}
    try:
        require(target)
        versions = []
        logging.disable(logging.ERROR)  # coremltools logs what it lacks off macOS; the row below says it
        for package in target.packages:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(package)
            versions.append(f"{package} {importlib.metadata.version(package)}")
        row["lower"] = f"yes ({', '.join(versions)})"
    except BackendMissing:
        row |= {"lower": "no", "do": install_line(target)}
    except Exception as error:  # a broken installation can raise anything at import
        row |= {"lower": f"no: {type(error).__name__}: {error}", "do": install_line(target)}
    finally:
        logging.disable(logging.NOTSET)
    reason = target.cannot_run()
    row["run"] = f"no: {reason}" if reason else f"yes ({target.runtime})"
    unable = target.cannot_time()
    row["time"] = f"no: {unable}" if unable else f"yes ({target.timed_by})"
    if reason and not row["do"]:
        row["do"] = "copy the artifact to a machine that can, and type: edgesmith verify ARTIFACT"
    return row


@contextlib.contextmanager
def _stages() -> Iterator[Any]:
    """A `Watch` that shows a line for each stage: running, then done with its time."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)

    @contextlib.contextmanager
    def watch(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        with console.status(f"{stage} ..."):
            yield
        console.print(f"  {stage:<20} {time.perf_counter() - start:6.1f} s")

    yield watch


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def _explain_table(report: RewriteReport) -> Table:
    fired, missed = len(report.applied), len(report.rejected)
    table = _table(f"{report.name}: fired at {fired} sites, {missed} near misses", "", "site", "how, or why not")
    for site, note in report.applied:
        table.add_row("fired", site, note)
    for rejection in report.rejected:
        table.add_row("no", rejection.site, rejection.reason)
    return table


def _print_lint(report: Report, every: bool) -> None:
    """A table for each severity, what was legalized, the rules that were broken, and a line that sums up."""
    from edgesmith.exporters.mil.lint import group, label

    for severity, count in report.counts.items():
        found = group([finding for finding in report.findings if finding.severity == severity])
        if not found:
            continue
        table = _table(f"{severity}s: {count}", "rule", "operators", "at" if every else "first at", "found")
        for one in found:
            kinds = ", ".join(f"{kind} {number}" for kind, number in one.operators.items())
            others = f" (and {one.facts - 1} other facts)" if one.facts > 1 else ""
            for finding in one.findings if every else one.findings[:1]:
                row = (finding.operator, finding.position, finding.fact)
                table.add_row(one.rule, *(row if every else (kinds, finding.position, finding.fact + others)))
        _print(table)
    if report.legalized:
        table = _table("legalized while lowering", "rule", "at", "change")
        for legalized in report.legalized:
            table.add_row(legalized.rule, legalized.name, legalized.change)
        _print(table)
    if report.rules:
        table = _table("rules", "rule", "why", "what to do", "source")
        for rule in report.rules:
            table.add_row(rule.name, rule.why, rule.do, "\n".join(map(label, rule.sources)))
        _print(table)
    counts = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in report.counts.items())
    own, padded = report.bytes / 2**20, report.padded_bytes / 2**20
    print(
        f"{report.path.name}: {counts} in {report.operators} operators. All values take {own:.1f} MiB, with their last"
        f" axes padded {padded:.1f} MiB. This reads the program; where it runs, a compute plan on the device says."
    )


def _export_table(artifact: Artifact) -> Table:
    manifest = artifact.manifest
    shapes = ", ".join(f"{i['name']} {'x'.join(map(str, i['shape']))}" for i in manifest["model"]["inputs"])
    table = _table(f"{artifact.model} for {artifact.target}, {artifact.precision}", "", "")
    table.show_header = False
    table.add_row("input", shapes)
    origin = manifest["weights"]["origin"]
    if origin.startswith("random"):
        origin += ": for trying out only; give a checkpoint with --weights"
    table.add_row("weights", "\n".join([origin, *manifest["weights"]["notes"]]))
    for report in manifest["rewrites"]:
        if not report["applied"] and not report["rejected"]:
            continue
        line = f"fired {len(report['applied'])}"
        if report["rejected"]:
            line += f", rejected {len(report['rejected'])} (first: {report['rejected'][0]['reason']})"
        table.add_row(report["name"], line)
    if "mended" in manifest:
        table.add_row("mended", "\n".join(f"{one['name']}: {one['change']}" for one in manifest["mended"]))
    if manifest.get("wide"):
        reasons = list(manifest["wide"].values())
        table.add_row("stay fp32", f"{len(reasons)} operators (first: {reasons[0]})")
    if "int8" in manifest:
        table.add_row("int8", _describe_int8(manifest["int8"]))
    counts = manifest["operators"]
    table.add_row("operators", " -> ".join(f"{stage} {sum(c.values())}" for stage, c in counts.items()))
    for stage, found in counts.items():
        table.add_row(f"  {stage}", ", ".join(f"{name.removeprefix('aten.')} {n}" for name, n in found.items()))
    if "kit" in manifest:
        board = manifest["kit"]["board"]
        has = f", with TensorRT {board['tensorrt']} of JetPack {board['jetpack']}" if board["jetpack"] else ""
        table.add_row("kit for", f"{board['title']}{has}; copy the folder there and type: python3 build.py --out DIR")
    if "engine" in manifest:
        built = manifest["engine"]
        table.add_row("engine", f"TensorRT-RTX {built['version']}, for SM {', '.join(built['compute_capabilities'])}")
        for row in _engine_rows(built):
            table.add_row(*row)
    if "streaming" in manifest:
        table.add_row("streaming", _describe_streaming(manifest["streaming"]))
    if "functions" in manifest:
        shared = manifest["functions"]["shared_bytes"] / 1e6
        table.add_row("functions", f"step (the default) and sequence; sharing weights saves {shared:.2f} MB")
    for step in manifest["verification"]["steps"]:
        table.add_row(step["step"], _describe_step(step))
    own = [entry for entry in manifest["files"] if entry["path"].startswith(manifest["file"])]
    table.add_row("size", f"{sum(entry['bytes'] for entry in own) / 1e6:.2f} MB")
    table.add_row("file", str(artifact.file))
    return table


def _inspect_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What `engine.inspect` found, by its kind."""
    from edgesmith.exporters.tensorrt.kit import needs

    if found["kind"] == "layers":
        return [
            ("inputs and outputs", ", ".join(found["tensors"])),
            ("layers", f"{len(found['layers'])}, {found['synchronisations']} of them signals and waits"),
            ("  precisions", _counts(found["precisions"])),
            ("  kernels", _counts(found["types"])),
        ]
    rows = [("model", f"{found['model']}, {found['precision']}")] if "model" in found else []
    if found["kind"] == "kit":
        board = found["board"]
        brings = f"; JetPack {board['jetpack']} brings TensorRT {board['tensorrt']}" if board["jetpack"] else ""
        sm = f", SM {board['compute_capability']}" if board["compute_capability"] else ""
        rows += [
            ("kit for", f"{found['device']}: {board['title']}{sm}{brings}"),
            ("needs", f"{needs(found)} or later"),
            ("flags", _flags(found["flags"])),
        ]
        rows += [("changed", change) for change in found["changed"]]
        if "engine" in found:
            return [*rows, *_inspect_rows(found["engine"])]
        return [*rows, ("engine", "not built here; on the device: python3 build.py --out DIR")]
    rows += [
        ("built by", f"{found['made_by']} {found['version']}"),
        (
            "built for",
            f"SM {', '.join(found['compute_capabilities']) or 'unknown: not in the header, and no manifest'}",
        ),
        ("can load on", ", ".join(found["devices"]) or "no device that is known here"),
        ("size", f"{found['bytes'] / 1e6:.2f} MB"),
    ]
    rows += [
        ("changed", f"{change} since it was published; the rest is the manifest's")
        for change in found.get("changed", ())
    ]
    no_manifest = [("flags", "not in the header, and there is no manifest beside it")]
    return rows + (_engine_rows(found) if "flags" in found else no_manifest)


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items())


def _flags(flags: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value).lower()}" for name, value in flags.items())


def _engine_rows(built: dict[str, Any]) -> list[tuple[str, str]]:
    """How an engine was built, and what its builder said, as far as the manifest has it."""

    def megabytes(key: str) -> str:
        return "unknown" if built.get(key) is None else f"{built[key] / 1e6:.2f} MB"

    rows = [("  flags", _flags(built["flags"]))]
    if "layers" in built:
        before = built["layers"]["network"]
        layers = f"network {'unknown' if before is None else before} -> fused {built['layers']['engine']}"
        rows.append(("  layers", f"{layers}, and {built.get('synchronisations', 'unknown')} signals and waits"))
    rows += [(f"  {title}", _counts(built[key])) for title, key in ENGINE_COUNTS.items() if key in built]
    memory = ", ".join(f"{key} {megabytes(f'{key}_bytes')}" for key in ("weights", "activations", "workspace"))
    return [*rows, ("  memory", memory), *(("  warning", warning) for warning in built.get("warnings", ()))]


ENGINE_COUNTS = {"precisions": "precisions", "kernels": "types"}


def _layers_table(operators: list[dict[str, Any]]) -> Table:
    columns = ["operator", "type", "module", "minimum", "maximum", "error", "SNR, dB", "loses, dB"]
    is_planned = any("device" in one for one in operators)  # on a Mac
    columns += ["runs on", "share of time"] if is_planned else []
    table = _table("operators, at their own precision against a wider one", *columns)

    def number(value: float | None, form: str) -> str:
        return "" if value is None else f"{value:{form}}"

    for one in operators:
        name = f"{one['function']}: {one['operator']}" if "function" in one else one["operator"]
        extremes = [number(one[key], ".3g") for key in ("minimum", "maximum")]
        if "overflowed" in one:
            extremes[1] += f", {one['overflowed']} overflowed"
        loss = number(one["loss_db"] or None, ".1f")
        figures = (number(one["relative_error"], ".1e"), number(one["snr_db"], ".1f"), loss)
        plan = (one.get("device") or "", number(one.get("cost"), ".1%")) if is_planned else ()
        table.add_row(name, f"{one['type']} {one['dtype']}", one["module"] or "", *extremes, *figures, *plan)
    return table


def _describe_streaming(streaming: dict[str, Any]) -> str:
    states = streaming["states"]
    size = sum(4 * math.prod(state["shape"]) for state in states)
    delay = f"predictions {streaming['delay']} steps behind" if streaming["delay"] else "predictions at once"
    return f"{len(states)} states, {size / 1024:.1f} KiB; {delay}; run it with edgesmith.StreamingSession"


def _describe_int8(int8: dict[str, Any]) -> str:
    data = int8["calibration"]
    words = f"{int8['layers']} layers, {int8['share_of_macs']:.1%} of the MACs, {int8['weight_bits']}-bit weights"
    judged = f"calibrated on {data['calls']} calls, judged on {data['held_out']} others"
    return f"{words}; {judged}" + (f"\nWARNING: {data['warning']}" if "warning" in data else "")


def _describe_step(step: dict[str, Any]) -> str:
    if "not_checked_here" in step:
        return f"not checked here: {step['not_checked_here']}"
    if "matching" in step:
        return f"{step['matching']} files, as published"
    if "max_abs_error" not in step:
        return f"valid, {step['operators']} operators"
    parts = [f"MISSED: {step['missed']}"] if "missed" in step else []
    if step["max_abs_error"] is None:
        parts.append("not finite where PyTorch is")
    elif step["relative_error"] is None:
        parts.append(f"max error {step['max_abs_error']:.1e}, and PyTorch has nothing but zeros")
    elif step["snr_db"] is None:
        parts.append("equal")
    else:
        parts.append(f"max error {step['max_abs_error']:.1e} ({step['relative_error']:.1e} of the peak)")
        parts.append(f"SNR {step['snr_db']:.1f} dB")
    if "finite" in step:
        parts.append(f"compared {step['finite']:.1%} of the values, the others are not finite in PyTorch")
    if "spike_for_spike" in step:
        parts.append(
            f"spike for spike on {step['spike_for_spike']['inputs']} of {step['spike_for_spike']['of']} inputs"
        )
    if "noise" in step:
        parts.append(f"allowed {step['allowed']:.1e}: eager is {step['noise']:.1e} from itself in float64")
    if "top1" in step:
        top1 = step["top1"]
        ties = f", {top1['ties']} ties" if top1["ties"] else ""
        parts.append(f"top-1 {top1['agreeing']}/{top1['decided']}{ties}")
    if "runtime" in step:
        parts.append(step["runtime"])
    return "; ".join(parts)
