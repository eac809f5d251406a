"""TensorRT-RTX's engine files without TensorRT: what a header says, which devices it fits, what a build log says.

    bytes  0..3    "vtrt"
          16..23   length of the file
          24..27   version of TensorRT-RTX: 1, 7, 1, 116
          32..39   compute capabilities that it loads on, a bit each, in the order of `CAPABILITIES`

NVIDIA documents none of it. Fields were told apart by building the same network for each capability and for several,
with TensorRT-RTX 1.7.1.116; little endian. Builder flags leave no trace in a header, so those are in the manifest.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesmith.errors import BadInput, Unsupported
from edgesmith.profiles import device as devices
from edgesmith.profiles.device import DeviceProfile

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX builds for, by their bits in a header."""

LAYERS = "layers.json"
"""Beside an engine: what the builder said of it."""

_MAGIC = b"vtrt"
_HEADER_BYTES = 64


@dataclass(frozen=True)
class Header:
    """What an engine says of itself.

    Attributes:
        version: of the TensorRT-RTX that built it.
        compute_capabilities: on which it loads.
        bytes: length of the file.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    bytes: int


def read_header(path: Path) -> Header:
    """The header of an engine file. Raises Unsupported where the file is none, or is cut short."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}); wanted an engine of TensorRT-RTX") from error
    if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC):
        raise Unsupported(f"{path.name} is no engine of TensorRT-RTX: it begins with {head[:4]!r}, not {_MAGIC!r}")
    (length,) = struct.unpack_from("<Q", head, 16)
    if length != size:
        raise Unsupported(
            f"{path.name} is damaged: its header says {length} bytes, the file has {size}; export it again"
        )
    (bits,) = struct.unpack_from("<Q", head, 32)
    known = tuple(capability for i, capability in enumerate(CAPABILITIES) if bits >> i & 1)
    return Header(".".join(map(str, head[24:28])), known, length)


def fits(header: Header) -> list[DeviceProfile]:
    """The devices that an engine can load on."""
    return [
        d for d in devices.all_devices().values() if d.cuda and d.cuda.compute_capability in header.compute_capabilities
    ]


def ahead() -> list[DeviceProfile]:
    """The devices that engines can be built for here."""
    return [d for d in devices.all_devices().values() if d.cuda and d.cuda.engines == "ahead"]


def inspect(path: str | Path, device: str | None = None) -> dict[str, Any]:
    """What an engine's header and, where it is an artifact's, the manifest say of it, and what it can load on.

    Args:
        path: an engine, or an artifact's folder.
        device: a name from `profiles/` that it must be able to load on.

    Raises:
        BadInput: there is no such file, or the device cannot load it.
        Unsupported: the file is no engine.
    """
    from edgesmith.exporters import artifact as artifacts  # which imports numpy, and listing targets must not

    given = Path(path)
    if given.is_dir():
        given = artifacts.read(given).file
    header = read_header(given)
    found = fits(header)
    if device is not None:
        _refuse_other(given, header, devices.get(device), found)
    described: dict[str, Any] = {"path": str(given), **asdict(header), "devices": [profile.name for profile in found]}
    try:
        artifact = artifacts.read(given)
    except BadInput:  # an engine by itself
        return described
    if artifact.target != "tensorrt" or artifact.file.resolve() != given.resolve():
        return described
    manifest = artifact.manifest
    return {
        **described,
        "model": artifact.model,
        "precision": artifact.precision,
        "changed": [change for change in artifacts.changed_files(artifact) if change.startswith(given.name)],
        **{key: value for key, value in manifest["engine"].items() if key not in described},
    }


def _refuse_other(path: Path, header: Header, profile: DeviceProfile, found: Sequence[DeviceProfile]) -> None:
    if profile in found:
        return
    own = f"SM {profile.cuda.compute_capability}" if profile.cuda else "without an NVIDIA GPU"
    names = ", ".join(device.name for device in found) or "no device that is known here"
    raise BadInput(
        f"{path.name} is built for {sm(header.compute_capabilities)} and {profile.title} is {own}; it fits {names}"
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


NO_VALUE = "none"
"""The precision of a layer without outputs."""

_PRECISIONS = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "Int8": "int8", "Int32": "int32", "Int64": "int64"}

_MEMORY = {
    "weights_bytes": re.compile(r"^Total Weights Memory: (\d+) bytes"),
    "activations_bytes": re.compile(r"^Total Activation Memory: (\d+) bytes"),
    "workspace_bytes": re.compile(r"^Max Scratch Memory: (\d+) bytes"),
}


def condense(log: Sequence[tuple[str, str]], network_layers: int) -> dict[str, Any]:
    """A build log as data: layers before and after fusion, memory, warnings. What the log does not say is None.

    Args:
        log: (severity, message), with detailed profiling; TensorRT-RTX 1.7 lists the layers in one message.
        network_layers: of the network that was built.
    """
    listed = next((message for _, message in log if message.startswith("Layers:")), "")
    memory: dict[str, int | None] = dict.fromkeys(_MEMORY)
    for _, message in log:
        for key, pattern in _MEMORY.items():
            if match := pattern.match(message):
                memory[key] = int(match[1])
    warnings = [message.strip().splitlines()[0] for severity, message in log if severity == "WARNING"]
    return {
        "network_layers": network_layers,
        **memory,
        "warnings": list(dict.fromkeys(warnings)),
        "layers": [asdict(_layer(line)) for line in listed.splitlines() if line.startswith("Name: ")],
    }


def _layer(line: str) -> Layer:
    name, _, rest = line.removeprefix("Name: ").partition(", LayerType: ")
    kind = rest.partition(",")[0]
    outputs = rest.partition("Outputs: [")[2].partition("TacticName:")[0]
    found = re.search(r"Datatype: (\w+)", outputs)
    precision = _PRECISIONS.get(found[1], found[1].lower()) if found else NO_VALUE
    return Layer(name, kind, precision, tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", rest)))


def summarise(report: dict[str, Any]) -> dict[str, Any]:
    """What the manifest has of `condense`: counts instead of layers; what makes no value only keeps streams in step."""
    layers = [layer for layer in report["layers"] if layer["precision"] != NO_VALUE]
    precisions, types = (Counter(layer[key] for layer in layers) for key in ("precision", "type"))
    return {
        "layers": {"network": report["network_layers"], "engine": len(layers)},
        "precisions": dict(sorted(precisions.items())),
        "synchronisations": len(report["layers"]) - len(layers),
        "types": dict(sorted(types.items(), key=lambda item: (-item[1], item[0]))),
        **{key: report[key] for key in _MEMORY},
        "warnings": report["warnings"],
    }


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
