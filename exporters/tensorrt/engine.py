"""TensorRT's engine files, read without TensorRT: their headers, build logs and layers, and the devices that load them.

An engine begins with a header of 64 bytes, little endian, which NVIDIA does not document:

    bytes  0..3    "vtrt" of TensorRT-RTX, "ftrt" of TensorRT
          16..23   the file's length                       TensorRT-RTX only
          24..27   the version, such as 1, 7, 1, 116 or 10, 3, 0, 26
          32..39   the compute capabilities that it loads on, one bit each, in the order of `CAPABILITIES`
                                                           TensorRT-RTX only

The fields of TensorRT-RTX were found by building one network for each capability, and for several, with version
1.7.1.116; the position of TensorRT's version is said by its maintainers in github.com/NVIDIA/TensorRT/issues/3073. A
header says nothing of the builder's flags, and TensorRT's nothing of the GPU: those are in the manifest.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.board.common import Cuda, Refusal
from edgesmith.errors import BackendMissing, BadInput, Unreadable, Unsupported
from edgesmith.exporters.tensorrt.kit import build
from edgesmith.exporters.tensorrt.kit.build import NO_VALUE, nodes_of, precision_of, summarise
from edgesmith.exporters.tensorrt.kit.record import KIT, read_kit
from edgesmith.profiles import device as devices
from edgesmith.profiles.device import DeviceProfile
from edgesmith.readers.budget import GIBIBYTE, check_file
from edgesmith.readers.documents import read_json

if TYPE_CHECKING:
    from edgesmith.exporters.artifact import Artifact
    from edgesmith.exporters.engine_record import EngineRecord

__all__ = ["NO_VALUE", "summarise"]

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX builds for, by their bits in a header."""

AMPERE = (8, 0)
"""The oldest compute capability that hardware compatible engines are for."""

LAYERS = "layers.json"
"""Beside an engine: what the builder said of it."""

RTX, FULL = "TensorRT-RTX", "TensorRT"
RUNTIMES = {RTX: "tensorrt_rtx", FULL: "tensorrt"}
"""The Python module that runs what each of them has built."""

_MAGIC = {b"vtrt": RTX, b"ftrt": FULL}
_HEADER_BYTES = 64
_LARGEST = 256 * GIBIBYTE  # only the header is read

NEWEST = (20, 60)
"""Far above TensorRT 10.16 and TensorRT-RTX 1.7: a random file's four bytes are most likely no version."""


@dataclass(frozen=True)
class Header:
    """An engine's words of itself.

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
        size = check_file(path, "engine of TensorRT", _LARGEST)
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}); wanted an engine of TensorRT-RTX") from error
    made_by = _MAGIC.get(head[:4])
    if len(head) < _HEADER_BYTES or made_by is None:
        raise Unsupported(
            f"{path.name} is no engine of TensorRT-RTX or TensorRT: it begins with {head[:4]!r}, not b'vtrt' or b'ftrt'"
        )
    version = ".".join(map(str, head[24:28]))
    if head[24] > NEWEST[0] or head[25] > NEWEST[1]:
        raise Unsupported(f"{path.name} is no engine of {made_by}: it begins like one, and says version {version}")
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


def cannot_run() -> str | None:
    """Return why neither TensorRT runs engines on this machine, or None: the reason of the one that can be imported."""
    why = "neither tensorrt nor tensorrt_rtx is installed"
    for module in reversed(RUNTIMES.values()):
        try:
            importlib.import_module(module)
            Cuda().compute_capability()
        except ImportError:
            continue
        except Exception as error:  # a broken installation can raise anything at import
            why = str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
            continue
        return None
    return why


def fits(compute_capabilities: Sequence[str], hardware_compatible: bool = False) -> list[DeviceProfile]:
    """The devices whose GPU takes an engine for some compute capabilities.

    Args:
        hardware_compatible: built for every GPU from SM 8.0 on, which TensorRT does not do for and on JetPack; NVIDIA's
            documentation of TensorRT, Hardware Compatibility.
    """
    found = [d for d in devices.all_devices().values() if d.cuda and d.cuda.compute_capability]
    return [d for d in found if _takes(d, compute_capabilities, hardware_compatible)]


def _takes(profile: DeviceProfile, compute_capabilities: Sequence[str], hardware_compatible: bool) -> bool:
    cuda = profile.cuda
    if cuda is None or not cuda.compute_capability:
        return False
    is_wide = hardware_compatible and cuda.jetpack is None and bool(compute_capabilities)
    return cuda.compute_capability in compute_capabilities or (
        is_wide and min(map(_parts, (*compute_capabilities, cuda.compute_capability))) >= AMPERE
    )


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def ahead() -> list[DeviceProfile]:
    """The devices that engines can be built for here."""
    return [d for d in devices.all_devices().values() if d.cuda and d.cuda.engines == "ahead"]


def inspect(path: str | Path, device: str | None = None) -> dict[str, Any]:
    """Return all that can be said of an engine, a kit, or an inspector's JSON, by `kind`.

    engine   its header and, where it is an artifact's, its manifest, and what it can load on
    kit      what a board builds of it, and with which TensorRT
    layers   what `trtexec --exportLayerInfo` wrote, of any TensorRT, in the form of `layers.json`, and as counts

    Args:
        path: an engine, an inspector's JSON, or the folder of an artifact.
        device: a name from `profiles/` that an engine must be able to load on.

    Raises:
        BadInput: there is no such file, its manifest is damaged, or the device cannot load it.
        BackendMissing: the device is this machine's GPU, and there is nothing that finds it.
        Unreadable: the file is neither an engine nor an inspector's JSON.
    """
    from edgesmith.exporters import artifact as artifacts  # which imports numpy, and listing targets must not

    given = Path(path)
    if given.suffix == ".json" and given.is_file():
        return {"kind": "layers", "path": str(given), **_inspect_layers(given)}
    if given.is_dir() and (given / KIT).is_file():
        return _inspect_kit(given, device)
    return _inspect_engine(artifacts.read(given).file if given.is_dir() else given, device)


def _inspect_engine(path: Path, device: str | None) -> dict[str, Any]:
    """An engine's header, the devices that load it, and its manifest's words where it is an artifact's."""
    from edgesmith.exporters import artifact as artifacts

    try:
        header = read_header(path)
    except Unsupported as error:
        raise Unreadable(str(error)) from error
    artifact = _artifact_of(path)
    recorded: Mapping[str, Any] = _recorded(artifact) if artifact else {}
    capabilities = header.compute_capabilities or tuple(recorded.get("compute_capabilities", ()))
    flags = recorded.get("flags", {})
    found = _loading(header, capabilities, flags)
    if device is not None:
        _refuse_other(path, header, capabilities, devices.get(device), flags)
    described: dict[str, Any] = {
        "kind": "engine",
        "path": str(path),
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
        "changed": [change for change in artifacts.changed_files(artifact) if change.startswith(path.name)],
        **{key: value for key, value in recorded.items() if key not in described},
    }


def _artifact_of(path: Path) -> Artifact | None:
    """The artifact whose file an engine is; None for an engine by itself."""
    from edgesmith.exporters import artifact as artifacts

    try:
        artifact = artifacts.read(path)
    except BadInput:
        return None
    return artifact if artifact.file.resolve() == path.resolve() else None


def _recorded(artifact: Artifact) -> EngineRecord:
    """Return a manifest's entry of its engine. Raises BadInput where it has none."""
    if "engine" not in artifact.manifest:
        raise BadInput(f"{artifact.path / 'manifest.json'} says nothing of the engine; build or export it again")
    return artifact.manifest["engine"]


def _inspect_kit(folder: Path, device: str | None) -> dict[str, Any]:
    """A kit's record, and the engine that was built of it beside it."""
    from edgesmith.exporters import artifact as artifacts

    kit, artifact = read_kit(folder), artifacts.read(folder)
    if device is not None and device != kit["device"]:
        raise BadInput(f"{folder.name} is a kit for {kit['device']}, not for {device}; export with --device {device}")
    built = folder / BUILT
    return {
        "kind": "kit",
        "path": str(folder),
        "model": kit["model"],
        "device": kit["device"],
        "precision": kit["precision"],
        "board": kit["board"],
        "flags": kit["flags"],
        "operators": kit["operators"],
        "thresholds": kit["thresholds"],
        "changed": artifacts.changed_files(artifact),
        **({"engine": inspect(built)} if built.is_dir() else {}),
    }


BUILT = "engine"
"""The folder in a kit with the engine that was built of it on this machine."""


def _inspect_layers(path: Path) -> dict[str, Any]:
    """An inspector's JSON as layers and as counts."""
    try:
        information = read_json(path, "inspector's JSON")
        layers = build.read_inspector(information)
        tensors = build.tensors_of(information)
    except Unreadable as error:
        raise Unreadable(
            f"{path.name} is no inspector's JSON that can be read; wanted what trtexec --exportLayerInfo writes"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(
            f"{path.name} is no inspector's JSON ({error}); wanted what trtexec --exportLayerInfo writes"
        ) from error
    report = build.condense((), None, layers)
    counts = summarise(report)
    return {
        "tensors": tensors,
        **{key: counts[key] for key in ("precisions", "types", "synchronisations")},
        "layers": layers,
    }


def _refuse_other(
    path: Path, header: Header, capabilities: Sequence[str], profile: DeviceProfile, flags: Mapping[str, Any]
) -> None:
    """Raise BadInput where a device cannot load an engine, with the devices that can."""
    if not capabilities:
        raise BadInput(
            f"{path.name} does not say which GPU it is built for, and there is no manifest beside it; TensorRT's"
            " engines load on the kind of GPU that built them"
        )
    has = profile.cuda.tensorrt if profile.cuda else None
    if profile.cuda and profile.cuda.engines == "here":
        profile, has = _this_machine(path, profile, capabilities, header.made_by)
    is_wide = bool(flags.get("hardware_compatible"))
    if not _takes(profile, capabilities, is_wide):
        own = f"SM {profile.cuda.compute_capability}" if profile.cuda else "without an NVIDIA GPU"
        names = ", ".join(device.name for device in _loading(header, capabilities, flags))
        wide = ", and for every GPU from SM 8.0 on but a Jetson's," if is_wide else ""
        raise BadInput(
            f"{path.name} is built for {sm(capabilities)}{wide} and {profile.title} is {own}; it fits"
            f" {names or 'no device that is known here'}"
        )
    _refuse_other_tensorrt(path, header, profile, has, bool(flags.get("version_compatible")))


def _refuse_other_tensorrt(
    path: Path, header: Header, profile: DeviceProfile, has: str | None, version_compatible: bool
) -> None:
    """Raise BadInput where a device whose GPU takes an engine has another TensorRT than it needs."""
    cuda = profile.cuda
    if header.made_by == RTX and cuda and cuda.engines == "on the board":
        raise BadInput(f"{path.name} is TensorRT-RTX's, and {profile.title} has TensorRT; build a kit on it")
    if header.made_by == FULL and has and not _loads(header.version, has, version_compatible):
        later = ", for later TensorRTs of the same major version too," if version_compatible else ""
        by = f" ({profile.system})" if cuda and cuda.jetpack else ""
        raise BadInput(
            f"{path.name} is built by TensorRT {header.version}{later} and {profile.title} has {has}{by};"
            " build its kit there"
        )


def _loading(header: Header, capabilities: Sequence[str], flags: Mapping[str, Any]) -> list[DeviceProfile]:
    """The devices that can load an engine: their GPU takes it, and their TensorRT, where their system fixes that."""
    is_later = bool(flags.get("version_compatible"))
    fixed = {d.name: d.cuda.tensorrt for d in devices.all_devices().values() if d.cuda and header.made_by == FULL}
    return [
        d
        for d in fits(capabilities, bool(flags.get("hardware_compatible")))
        if not (has := fixed.get(d.name)) or _loads(header.version, has, is_later)
    ]


def _loads(built_by: str, has: str, version_compatible: bool) -> bool:
    """Return whether a TensorRT loads another one's engine: of its own version, or made by an earlier one to that end.

    >>> _loads("10.0.1.6", "10.3", True), _loads("10.13.0.35", "10.3", True), _loads("10.0.1.6", "10.3", False)
    (True, False, False)
    """
    built, own = _parts(built_by), _parts(has)
    return built == own or (version_compatible and built[0] == own[0] and built < own)


def _this_machine(
    path: Path, profile: DeviceProfile, capabilities: Sequence[str], made_by: str
) -> tuple[DeviceProfile, str | None]:
    """The profile of this machine with the GPU that CUDA finds, and its TensorRT, where it is a module here.

    Raises:
        BackendMissing: nothing here can be asked.
    """
    assert profile.cuda is not None
    try:
        own = Cuda().compute_capability()
    except Refusal as refusal:
        raise BackendMissing(
            f"{path.name} is built for {sm(capabilities)}, and which GPU this machine has cannot be found: {refusal}"
        ) from refusal
    has = None
    if made_by == FULL:
        with contextlib.suppress(ImportError, AttributeError):
            has = str(importlib.import_module("tensorrt").__version__)
    return replace(profile, cuda=replace(profile.cuda, compute_capability=own)), has


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
    return build.condense(log, network_layers, layers)


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
    """Read what `write_layers` kept."""
    report: dict[str, Any] = read_json(folder / LAYERS, "list of layers", advice="build or export it again")
    return report


def refusal(log: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the node for which a builder made no engine, empty where it does not say, and the cause.

    >>> refusal([("ERROR", "Myelin ([p.cpp:3: f] Cannot compile operation 'a/Gemm_1' for Turing: no GEMM. In g at h)")])
    ('a/Gemm_1', 'no GEMM')
    """
    errors = [message for severity, message in log if severity in ("ERROR", "INTERNAL_ERROR")]
    message = errors[0] if errors else "it says nothing"
    node = re.search(r"'([^']+)'|\{ForeignNode\[([^\]]+)\]\}", message)
    cause = message.split(" In ")[0].strip().splitlines()[0].rsplit(": ", 1)[-1].rstrip(" .)")
    return (node[1] or node[2]) if node else "", cause
