"""TensorRT's engine files without TensorRT: what headers, builders and inspectors say, and which devices they fit.

    bytes  0..3    "vtrt" TensorRT-RTX; "ftrt" TensorRT
          16..23   length of the file (TensorRT-RTX)
          24..27   version: 1, 7, 1, 116 of TensorRT-RTX, 10, 3, 0, 26 of TensorRT
          32..39   compute capabilities that it loads on, a bit each, in the order of `CAPABILITIES` (TensorRT-RTX)

NVIDIA documents none of it. TensorRT-RTX's fields were told apart by building the same network for each capability and
for several, with TensorRT-RTX 1.7.1.116; little endian. Where TensorRT has its version, its maintainers say in
github.com/NVIDIA/TensorRT/issues/3073. Builder flags leave no trace in a header, nor does TensorRT's GPU, so those are
in the manifest.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.kit import KIT, read_kit
from edgesmith.exporters.kit import build as board
from edgesmith.exporters.kit.build import NO_VALUE, nodes_of, precision_of, summarise
from edgesmith.profiles import device as devices
from edgesmith.profiles.device import DeviceProfile

__all__ = ["NO_VALUE", "summarise"]

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX builds for, by their bits in a header."""

LAYERS = "layers.json"
"""Beside an engine: what the builder said of it."""

RTX, FULL = "TensorRT-RTX", "TensorRT"
_MAGIC = {b"vtrt": RTX, b"ftrt": FULL}
_HEADER_BYTES = 64


@dataclass(frozen=True)
class Header:
    """What an engine says of itself.

    Attributes:
        version: of what built it.
        compute_capabilities: on which it loads; empty where the header does not say, as TensorRT's do not.
        bytes: length of the file.
        made_by: `TensorRT-RTX` or `TensorRT`.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    bytes: int
    made_by: str = RTX


def read_header(path: Path) -> Header:
    """The header of an engine file. Raises Unsupported where the file is none, or is cut short."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}); wanted an engine of TensorRT-RTX") from error
    made_by = _MAGIC.get(head[:4])
    if len(head) < _HEADER_BYTES or made_by is None:
        raise Unsupported(
            f"{path.name} is no engine of TensorRT-RTX or TensorRT: it begins with {head[:4]!r}, not b'vtrt' or b'ftrt'"
        )
    version = ".".join(map(str, head[24:28]))
    if made_by == FULL:
        return Header(version, (), size, made_by)
    (length,) = struct.unpack_from("<Q", head, 16)
    if length != size:
        raise Unsupported(
            f"{path.name} is damaged: its header says {length} bytes, the file has {size}; export it again"
        )
    (bits,) = struct.unpack_from("<Q", head, 32)
    known = tuple(capability for i, capability in enumerate(CAPABILITIES) if bits >> i & 1)
    return Header(version, known, length)


def fits(compute_capabilities: Sequence[str]) -> list[DeviceProfile]:
    """The devices that an engine for some compute capabilities can load on."""
    return [d for d in devices.all_devices().values() if d.cuda and d.cuda.compute_capability in compute_capabilities]


def ahead() -> list[DeviceProfile]:
    """The devices that engines can be built for here."""
    return [d for d in devices.all_devices().values() if d.cuda and d.cuda.engines == "ahead"]


def inspect(path: str | Path, device: str | None = None) -> dict[str, Any]:
    """What there is to say of an engine, a kit, or an inspector's JSON, by `kind`.

    engine   its header and, where it is an artifact's, its manifest, and what it can load on
    kit      what a board builds of it, and with which TensorRT
    layers   what `trtexec --exportLayerInfo` wrote, of any TensorRT, in the form of `layers.json`, and as counts

    Args:
        path: an engine, an inspector's JSON, or the folder of an artifact.
        device: a name from `profiles/` that an engine must be able to load on.

    Raises:
        BadInput: there is no such file, or the device cannot load it.
        Unsupported: the file is neither an engine nor an inspector's JSON.
    """
    from edgesmith.exporters import artifact as artifacts  # which imports numpy, and listing targets must not

    given = Path(path)
    if given.suffix == ".json" and given.is_file():
        return {"kind": "layers", "path": str(given), **_inspect_layers(given)}
    if given.is_dir() and (given / KIT).is_file():
        return _inspect_kit(given, device)
    if given.is_dir():
        given = artifacts.read(given).file
    header = read_header(given)
    try:
        artifact = artifacts.read(given)
    except BadInput:  # an engine by itself
        artifact = None
    if artifact and (artifact.target != "tensorrt" or artifact.file.resolve() != given.resolve()):
        artifact = None
    told = artifact.manifest["engine"] if artifact else {}
    capabilities = header.compute_capabilities or tuple(told.get("compute_capabilities", ()))
    found = fits(capabilities)
    if device is not None:
        compatible = told.get("flags", {}).get("version_compatible", False)
        _refuse_other(given, header, capabilities, devices.get(device), compatible)
    described: dict[str, Any] = {
        "kind": "engine",
        "path": str(given),
        **asdict(header),
        "compute_capabilities": list(capabilities),
        "devices": [profile.name for profile in found],
    }
    if artifact is None:
        return described
    return {
        **described,
        "model": artifact.model,
        "precision": artifact.precision,
        "changed": [change for change in artifacts.changed_files(artifact) if change.startswith(given.name)],
        **{key: value for key, value in told.items() if key not in described},
    }


def _inspect_kit(folder: Path, device: str | None) -> dict[str, Any]:
    """What a kit's kit.json says, and what was built of it beside it."""
    from edgesmith.exporters import artifact as artifacts

    kit, artifact = read_kit(folder), artifacts.read(folder)
    if device is not None and device != kit["device"]:
        raise BadInput(f"{folder.name} is a kit for {kit['device']}, not for {device}; export with --device {device}")
    built = folder / BUILT
    return {
        "kind": "kit",
        "path": str(folder),
        **{key: kit[key] for key in ("model", "device", "precision", "board", "flags", "operators", "thresholds")},
        "changed": artifacts.changed_files(artifact),
        **({"engine": inspect(built)} if built.is_dir() else {}),
    }


BUILT = "engine"
"""The folder in a kit with the engine that was built of it on this machine."""


def _inspect_layers(path: Path) -> dict[str, Any]:
    """An inspector's JSON as layers and as counts."""
    try:
        information = json.loads(path.read_text(encoding="utf-8"))
        layers = board.read_inspector(information)
    except (OSError, ValueError) as error:
        raise Unsupported(
            f"{path.name} is no inspector's JSON ({error}); wanted what trtexec --exportLayerInfo writes"
        ) from error
    report = board.condense((), None, layers)
    counts = summarise(report)
    return {
        "tensors": board.tensors_of(information),
        **{key: counts[key] for key in ("precisions", "types", "synchronisations")},
        "layers": layers,
    }


def _refuse_other(
    path: Path, header: Header, capabilities: Sequence[str], profile: DeviceProfile, version_compatible: bool
) -> None:
    """Raise BadInput where a device cannot load an engine, with the devices that can."""
    if not capabilities:
        raise BadInput(
            f"{path.name} does not say which GPU it is built for, and there is no manifest beside it; TensorRT's"
            " engines load on the kind of GPU that built them"
        )
    found = fits(capabilities)
    if profile not in found:
        own = f"SM {profile.cuda.compute_capability}" if profile.cuda else "without an NVIDIA GPU"
        names = ", ".join(device.name for device in found) or "no device that is known here"
        raise BadInput(f"{path.name} is built for {sm(capabilities)} and {profile.title} is {own}; it fits {names}")
    if header.made_by == RTX and profile.cuda and profile.cuda.engines != "ahead":
        raise BadInput(f"{path.name} is TensorRT-RTX's, and {profile.title} has TensorRT; build a kit on it")
    has = profile.cuda.tensorrt if profile.cuda else None
    if header.made_by == FULL and has and not version_compatible and header.version.split(".")[:2] != has.split("."):
        raise BadInput(
            f"{path.name} is built by TensorRT {header.version} and {profile.title} has {has} ({profile.system});"
            " build its kit there"
        )


def sm(compute_capabilities: Sequence[str]) -> str:
    """`SM 8.6`, or several."""
    return "SM " + ", ".join(compute_capabilities)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        type: of kernel, in the builder's words.
        precision: of its first output, such as `fp16`; `none` where it has none.
        nodes: of the ONNX file, that became part of it.
    """

    name: str
    type: str
    precision: str
    nodes: tuple[str, ...]


def condense(log: Sequence[tuple[str, str]], network_layers: int) -> dict[str, Any]:
    """A build log as data: layers before and after fusion, memory, warnings. What the log does not say is None.

    Args:
        log: (severity, message), with detailed profiling; TensorRT-RTX 1.7 lists the layers in one message.
        network_layers: of the network that was built.
    """
    listed = next((message for _, message in log if message.startswith("Layers:")), "")
    layers = [asdict(_layer(line)) for line in listed.splitlines() if line.startswith("Name: ")]
    return board.condense(log, network_layers, layers)


def _layer(line: str) -> Layer:
    name, _, rest = line.removeprefix("Name: ").partition(", LayerType: ")
    kind = rest.partition(",")[0]
    outputs = rest.partition("Outputs: [")[2].partition("TacticName:")[0]
    found = re.search(r"Datatype: (\w+)", outputs)
    return Layer(name, kind, precision_of(found[1]) if found else NO_VALUE, tuple(nodes_of(rest)))


def write_layers(folder: Path, report: dict[str, Any]) -> None:
    """Keep a condensed log beside the engine."""
    (folder / LAYERS).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_layers(folder: Path) -> dict[str, Any]:
    """What `write_layers` kept."""
    report: dict[str, Any] = json.loads((folder / LAYERS).read_text(encoding="utf-8"))
    return report


def refusal(log: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Why a builder made no engine: the node, empty where it does not say, and the cause without places in its source.

    >>> refusal([("ERROR", "Myelin ([p.cpp:3: f] Cannot compile operation 'a/Gemm_1' for Turing: no GEMM. In g at h)")])
    ('a/Gemm_1', 'no GEMM')
    """
    errors = [message for severity, message in log if severity in ("ERROR", "INTERNAL_ERROR")]
    message = errors[0] if errors else "it says nothing"
    node = re.search(r"'([^']+)'|\{ForeignNode\[([^\]]+)\]\}", message)
    cause = message.split(" In ")[0].strip().splitlines()[0].rsplit(": ", 1)[-1].rstrip(" .)")
    return (node[1] or node[2]) if node else "", cause
