"""The options and arguments of the commands: a type each, which carries its flag and its help.

A command's signature names them, `def bench(artifacts: Artifacts, seconds: Seconds = 30.0)`, and says the default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from unicodedata import category

import typer

from edgesmith.cli import names
from edgesmith.errors import BadInput, Unreadable
from edgesmith.readers.budget import MEBIBYTE, read_bytes

LARGEST_LABELS = MEBIBYTE

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also what the compiler did, and every check.")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for the artifact's folder.")]

# What is exported.

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Name from `edgesmith models`, or from edgesmith.toml.",
        show_default=False,
        autocompletion=names.models,
    ),
]
_OWN = "A module of your own"
Module = Annotated[
    str | None,
    typer.Option(
        "--module",
        help="Python to import and call: path/to/file.py:callable or package.module:callable. Its code runs.",
        show_default=False,
        rich_help_panel=_OWN,
    ),
]
ModuleKwargs = Annotated[
    str | None,
    typer.Option("--kwargs", help="JSON: arguments of the callable.", show_default=False, rich_help_panel=_OWN),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="An argument of forward: 1x3x224x224, 1x16:int64:0-999, mask=1x16:bool; repeatable.",
        show_default=False,
        rich_help_panel=_OWN,
    ),
]
FixedArguments = Annotated[
    str | None,
    typer.Option(
        "--fixed",
        help="JSON: arguments of forward that are no tensors, fixed in the file.",
        show_default=False,
        rich_help_panel=_OWN,
    ),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        "--key", help="Where --weights has the state dict, such as model_ema.", show_default=False, rich_help_panel=_OWN
    ),
]
NotStrict = Annotated[
    bool, typer.Option("--no-strict", help="Take of --weights what fits, and say what does not.", rich_help_panel=_OWN)
]
TargetName = Annotated[
    str, typer.Option("--target", "-t", help="Name from `edgesmith targets`.", autocompletion=names.targets)
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", "-w", help="Checkpoint: .pth, .pt or .safetensors.", show_default="random weights"),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        "-p",
        help="Of weights and arithmetic.",
        show_default="the model's, or the target's",
        autocompletion=names.precisions,
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option("--input-size", help="224, or HEIGHTxWIDTH such as 192x256.", show_default="published size"),
]
Frames = Annotated[
    int | None, typer.Option("--frames", help="Length of the sequences.", show_default="the published length")
]
Batch = Annotated[int, typer.Option("--batch", "-b", help="Images or sequences in one call.")]
DynamicBatch = Annotated[bool, typer.Option("--dynamic-batch", help="Leave the batch free (onnx).")]
Features = Annotated[bool, typer.Option("--features", help="Dense features instead of logits.")]
Segmentation = Annotated[
    str | None,
    typer.Option(
        "--segmentation",
        help="logits, or labels of pixels; with a head on dense features: fpn, upernet, fpn-labels, upernet-labels.",
        show_default="logits",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="A forecaster's config.json, for ttm and patchtsmixer.", show_default=False),
]
ObservedMask = Annotated[
    bool, typer.Option("--observed-mask", help="A forecaster's second input: which values were observed.")
]
TakesImage = Annotated[bool, typer.Option("--image-input", help="Take an image; normalisation is folded in (coreml).")]
FrontEnd = Annotated[
    bool, typer.Option("--front-end", help="Take sound at 16 kHz; the file makes log mel frames of it (lmuformer).")
]
Streaming = Annotated[bool, typer.Option("--streaming", help="One step of a sequence model, states in and out.")]
WithSequence = Annotated[
    bool,
    typer.Option(
        "--with-sequence", help="With --streaming: the whole sequence's program too, sharing weights (coreml)."
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", help="Class names, one a line: a classifier (coreml), metadata (onnx, coreai).", show_default=False
    ),
]
DeploymentTarget = Annotated[
    str | None,
    typer.Option("--deployment-target", help="Oldest system: iOS16 or later (coreml).", show_default="iOS17"),
]
ForDevice = Annotated[
    str | None,
    typer.Option(
        "--device", help="Device that it is for, such as iphone15.", show_default=False, autocompletion=names.devices
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="Folder of images, or .npz, that int8 is calibrated and judged on.",
        show_default="random inputs",
    ),
]
VerifyInputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        help="Folder of images, or .npz, that the file is verified on; the example itself of --module without --input.",
        show_default="drawn inputs",
    ),
]
AllowInaccurate = Annotated[
    bool, typer.Option("--allow-inaccurate", help="Publish a file that misses the thresholds, and say so in it.")
]

# What exists and is looked at.

ArtifactPath = Annotated[Path, typer.Argument(help="An artifact's folder, or the file in it.", show_default=False)]
Layers = Annotated[
    bool, typer.Option("--layers", help="Also every operator: its range, and what its precision costs (coreml).")
]
AsDevice = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="DEVICE",
        help="Also as a device is documented to depart from the file, a model and no measurement: ane (coreml).",
        show_default=False,
    ),
]
OneArtifact = Annotated[
    Path | None, typer.Argument(help="An artifact's folder, or the file in it.", show_default=False)
]
Within = Annotated[
    str | None,
    typer.Option(
        "--limit",
        metavar="SECONDS[,GIB]",
        help="Read the file in a process that is stopped after that time, or above that memory (4).",
        show_default="none",
    ),
]
Linted = Annotated[
    Path | None,
    typer.Argument(help="An artifact's or kit's folder, or any .mlpackage, .aimodel or .onnx.", show_default=False),
]
ReadFor = Annotated[
    list[str] | None,
    typer.Option(
        "--for",
        metavar="WHO[@VERSION]",
        help="Who computes an ONNX file: ort@1.31, tensorrt@10.3, qnn, litert, xnnpack, tvm; repeatable.",
        show_default="ort; a kit's TensorRT",
    ),
]
ComputedOn = Annotated[
    str | None,
    typer.Option("--device", help="Only what holds on this device, such as iphone15.", show_default=False),
]
Format = Annotated[str, typer.Option("--format", help="What to print: table, json or sarif.")]
Sarif = Annotated[Path | None, typer.Option("--sarif", help="Write SARIF 2.1.0 here too.", show_default=False)]
Explain = Annotated[
    str | None,
    typer.Option("--explain", metavar="ID", help="Say what a finding's id means, such as TR10.", show_default=False),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 where there are errors or warnings; notes pass.")]
Every = Annotated[bool, typer.Option("--all", help="A line for each position, not for each kind of position.")]
Engine = Annotated[
    Path,
    typer.Argument(help="An engine, an artifact's folder, or JSON of trtexec --exportLayerInfo.", show_default=False),
]
OnDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Refuse an engine that this device cannot load.",
        show_default=False,
        autocompletion=names.devices,
    ),
]
OperatorName = Annotated[
    str | None, typer.Argument(help="An operator's name or part of it, such as softmax.", show_default=False)
]
ListedTarget = Annotated[
    str | None,
    typer.Option("--target", "-t", help="One target only.", show_default=False, autocompletion=names.targets),
]
ListDevices = Annotated[bool, typer.Option("--devices", help="List the devices that --device knows.")]
EstimatedDevice = Annotated[
    str,
    typer.Option("--device", help="Name from `edgesmith devices`.", show_default=False, autocompletion=names.devices),
]

Language = Annotated[
    str | None,
    typer.Option(
        "--lang",
        help="Print one program alone: swift, kotlin, c++ or python.",
        show_default=False,
        autocompletion=names.languages,
    ),
]

# How artifacts are timed.

Artifacts = Annotated[
    list[Path] | None, typer.Argument(help="Artifacts: folders, or the files in them.", show_default=False)
]
Against = Annotated[
    Path | None, typer.Option("--against", help="An artifact to compare the others with.", show_default=False)
]
Seconds = Annotated[
    float | None,
    typer.Option("--seconds", help="How long it may last, about.", show_default="30; 90 at most, to compare"),
]
Launches = Annotated[
    int | None,
    typer.Option(
        "--launches", help="Processes, each with all artifacts in turn.", show_default="12; 36 at most, to compare"
    ),
]
Threads = Annotated[int, typer.Option("--threads", help="Of the runtime.")]
Cores = Annotated[
    str | None, typer.Option("--cores", help="Pin to these: 0, or 0,2 or 0-3.", show_default="not pinned")
]
Units = Annotated[
    str | None,
    typer.Option(
        "--compute-units", help="Core ML alone: all, cpu_only, cpu_and_gpu or cpu_and_ne.", show_default="all"
    ),
]
Ops = Annotated[
    bool, typer.Option("--ops", help="Also the time per operator, by op and by module, in processes of its own.")
]
Record = Annotated[
    Path | None, typer.Option("--out", "-o", help="File for the record.", show_default="measurements/TIME.json")
]

# Runtimes that are compared.

PeersModels = Annotated[
    list[str] | None,
    typer.Argument(help="Names from `edgesmith models`, or of edgesmith.toml.", show_default=False),
]
PeerNames = Annotated[
    list[str] | None,
    typer.Option("--peer", help="This runtime, such as openvino; repeatable.", show_default="all"),
]
PeersSeconds = Annotated[float, typer.Option("--seconds", help="Of timing for each model; launching adds to it.")]
PeersLaunches = Annotated[int, typer.Option("--launches", help="Of fresh processes, one for each peer and form.")]
PeersRecordFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="File for the record.", show_default="measurements/peers-TIME.json"),
]

# What counts as slower.

Base = Annotated[Path, typer.Argument(help="A record, or an artifact.", show_default=False)]
Head = Annotated[
    Path | None,
    typer.Argument(help="The same; none for a record of several artifacts, the first is base.", show_default=False),
]
Threshold = Annotated[str, typer.Option("--threshold", help="The smallest change that matters: 5% or 0.05.")]
Confidence = Annotated[float, typer.Option("--confidence", help="Of the ratio's interval.")]
Floor = Annotated[
    Path | None,
    typer.Option("--floor", help="A record of one artifact against itself: the noise floor.", show_default=False),
]
Despite = Annotated[
    list[str] | None,
    typer.Option("--despite", help="Compare though this differs, such as precision; repeatable."),
]
PullRequest = Annotated[bool, typer.Option("--markdown", help="Print a table for a pull request.")]
Junit = Annotated[
    Path | None, typer.Option("--junit", help="Write a JUnit XML file for a dashboard.", show_default=False)
]

# Another device, and the way to it.

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
Board = Annotated[str, typer.Argument(help="ssh://user@host:port or adb:SERIAL.", show_default=False)]
Kit = Annotated[Path, typer.Argument(help="A kit's folder.", show_default=False)]
BuildOptions = Annotated[
    list[str] | None, typer.Argument(help="After --: options of build.py, such as --dla 0.", show_default=False)
]

# What was measured before.

Records = Annotated[list[Path] | None, typer.Argument(help="Records of bench to keep as profiles.", show_default=False)]
ProfileFolder = Annotated[
    Path | None,
    typer.Option("--folder", help="Where profiles are kept.", show_default="the user's, shown with the package's own"),
]
OfModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Of this model alone.", show_default=False, autocompletion=names.models),
]
Readme = Annotated[bool, typer.Option("--markdown", help="Print a table for a README.")]
HistoryFile = Annotated[Path, typer.Option("--file", "-f", help="The history: one SQLite file.")]
NewRecords = Annotated[list[Path], typer.Argument(help="Records of `edgesmith bench`.", show_default=False)]
ReportFolder = Annotated[
    Path,
    typer.Argument(help="Where artifacts, records, estimates and histories lie, at any depth.", show_default=False),
]
EstimateFor = Annotated[
    list[str] | None,
    typer.Option(
        help="Also estimate every artifact for this device, apart from what was measured; may be repeated. Names:"
        " edgesmith devices.",
        metavar="DEVICE",
        show_default=False,
    ),
]
PagePath = Annotated[Path, typer.Option("--out", "-o", help="The page.")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return height and width of `224` or `192x256`. Raises BadInput."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise BadInput(f"--input-size must be 224 or HEIGHTxWIDTH such as 192x256, got {text!r}")
    return int(parts[0]), int(parts[-1])


def read_labels(path: Path | None) -> list[str] | None:
    """Return the class names in a text, one a line. Raises BadInput where it cannot be read, or is empty."""
    if path is None:
        return None
    wanted = "wanted a UTF-8 text, one name a line"
    try:
        text = read_bytes(path, "labels", LARGEST_LABELS).decode("utf-8-sig")
    except Unreadable as error:
        raise BadInput(f"{error}; {wanted}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"cannot read labels from {path}: it is no text; {wanted}") from error
    labels = [line.strip() for line in text.splitlines() if line.strip()]
    if not labels:
        raise BadInput(f"{path} holds no labels; {wanted}")
    if (odd := next((one for one in labels if any(category(x) == "Cc" for x in one)), None)) is not None:
        raise BadInput(f"{path} has a label with a control character, {odd[:40]!r}; {wanted}")
    return labels


def parse_share(text: str) -> float:
    """Return 0.05 of `5%` or `0.05`. Raises BadInput."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError as error:
        raise BadInput(f"--threshold must be a share such as 5% or 0.05, got {text!r}") from error
    return value / 100 if text.strip().endswith("%") else value


def parse_cores(text: str | None) -> list[int] | None:
    """Return the numbers in `0`, `0,2` or `0-3`. Raises BadInput."""
    if text is None:
        return None
    cores: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
            raise BadInput(f"--cores must be numbers such as 0, 0,2 or 0-3, got {text!r}")
        cores += range(int(first), int(last if dash else first) + 1)
    return cores
