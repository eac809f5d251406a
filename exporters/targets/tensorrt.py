"""TensorRT: an engine for one compute capability, built by TensorRT-RTX with no GPU, or a kit that a device builds of.

    program -> typed ONNX (_typed_onnx.py) -> network -> engine    MODEL.engine: devices whose engines are made `ahead`
                                           -> kit (kit/)           MODEL.onnx: those with a TensorRT of their own

`host-gpu` is this machine's GPU: its kit is built here at once, by the same build.py that boards run. What the device's
TensorRT has no operator for, by profiles/tensorrt-ops.toml, is refused before anything is built.

The network is strongly typed: types in the graph are the engine's, and no flag changes them. TF32, on by default, is
switched off, since it keeps 10 of fp32's 23 bits. Nothing is timed while building, so no timing cache is needed and the
same graph gives the same bytes, whatever the process, its threads and what it built before. TensorRT-RTX compiles
kernels anew on the device at the first load. No GPU is here: what runs is the typed ONNX, in ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.targets import NotHere, Request, Run, _typed_onnx
from edgesmith.exporters.targets._plain import diagnose, keeps_states, layers, traced, wide_operators
from edgesmith.exporters.targets._typed_onnx import LOWERINGS, cannot_run
from edgesmith.exporters.targets.onnx import costs as _costs
from edgesmith.exporters.tensorrt import engine
from edgesmith.exporters.tensorrt import kit as kits
from edgesmith.exporters.tensorrt.kit import FLAGS
from edgesmith.profiles import device as devices
from edgesmith.profiles import operators

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.streaming.session import Step
    from edgesmith.profiles.device import DeviceProfile

__all__ = ["LOWERINGS", "cannot_run", "diagnose", "keeps_states", "layers", "traced", "wide_operators"]  # of others

name = "tensorrt"
suffix = ".engine"
description = "engine for one NVIDIA GPU (--device) with its typed ONNX, or a kit that a Jetson builds its own of"
precisions = ("fp32", "fp16", "bf16", "int8")
options: frozenset[str] = frozenset({"streaming"})
packages = ("tensorrt_rtx", "onnx", "onnxscript", "onnxsim")
extra = "tensorrt"
runtime = "typed ONNX in ONNX Runtime, CPU"
is_interpreter = False
# One program for all that read ONNX, but that TensorRT has Winograd's forms, and tiles, of its own.
costs = replace(_costs, tile_gb_s=0.0, fetch_gb_s=math.inf)
dynamic_batch = False

FINDS_ISLANDS = True
"""Half-precision programs of this target keep in fp32 what calibration inputs say needs it; see islands.py."""

LARGEST_INT8_WEIGHT = 127
"""8 bits, symmetric; TensorRT adds up in 32."""


def check_device(profile: DeviceProfile | None) -> None:
    """Raise BadInput where there is no device to build for, BackendMissing where this machine is it, without TensorRT.

    --device                   becomes
    none, or without a GPU     a sentence with those that there are
    an older board             a sentence: its TensorRT is older than what kits and opset 20 need
    an RTX or A100             an engine, by TensorRT-RTX
    a board                    a kit
    host-gpu                   a kit with its engine, where this machine has TensorRT
    """
    names = ", ".join(device.name for device in devices.all_devices().values() if name in device.targets)
    if profile is None:
        raise BadInput(f"an engine is for one GPU: say which with --device, one of {names}")
    if profile.cuda is None:
        raise BadInput(
            f"{profile.title} has no NVIDIA GPU and takes {', '.join(profile.targets)}; engines are for {names}"
        )
    if name not in profile.targets:
        raise BadInput(
            f"{profile.title} has a TensorRT of before 8.6, which is the first that kits are built with; it takes"
            f" {', '.join(profile.targets)}, and engines are for {names}"
        )
    if profile.cuda.engines == "here":
        kits.require_tensorrt()


KIT_SUFFIX = ".onnx"
"""Of a kit's file, the typed ONNX."""


def is_kit(profile: DeviceProfile) -> bool:
    """Whether a device builds for itself, so that a kit is written for it."""
    return profile.cuda is not None and profile.cuda.engines != "ahead"


def lower(program: Program, path: Path, request: Request) -> None:
    """Write the typed ONNX, and where `path` is an engine's, the engine of it beside it."""
    if _of_kit(path):
        _typed_onnx.lower(program, path, request)
        refuse_operators(path, devices.get(request.device) if request.device else None)
        return
    if request.compute_capability not in engine.CAPABILITIES:
        raise BadInput(f"TensorRT-RTX builds for SM {', '.join(engine.CAPABILITIES)}, got {request.compute_capability}")
    _typed_onnx.lower(program, _typed(path), request)
    refuse_operators(_typed(path), None)
    content, report = build(_typed(path), request.compute_capability)
    path.write_bytes(content)
    engine.write_layers(path.parent, report)


def build(onnx: Path, compute_capability: str) -> tuple[bytes, dict[str, Any]]:
    """The engine of a typed ONNX file, and its build log condensed.

    Raises:
        Unsupported: the parser or the builder refuses a node.
    """
    import tensorrt_rtx as trt

    class Log(trt.ILogger):  # type: ignore[misc]  # the package carries no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity.name, message))

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    made_by = f"TensorRT-RTX {trt.__version__}"
    if not parser.parse_from_file(str(onnx)):
        raise Unsupported(_refused(made_by, [parser.get_error(i) for i in range(parser.num_errors)]))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = FLAGS["optimization_level"]
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{compute_capability.replace('.', '')}"), 0)
    built = builder.build_serialized_network(network, config)
    if built is None:
        node, cause = engine.refusal(log.lines)
        hint = "; use --precision fp16" if cause.startswith("FP32") else ""
        raise Unsupported(f"{made_by} does not build {_place(node)} for SM {compute_capability}: {cause}{hint}")
    return bytes(built), engine.condense(log.lines, network.num_layers)


def _refused(made_by: str, errors: Sequence[Any]) -> str:
    """A sentence for what the parser of TensorRT-RTX says."""
    if not errors:
        return f"{made_by} does not read the typed ONNX, and does not say why"
    kinds = sorted({error.node_operator() for error in errors})
    first = errors[0]
    others = f" (and {len(errors) - 1} other places, of {', '.join(kinds)})" if len(errors) > 1 else ""
    why = first.desc().strip().splitlines()[-1] if first.desc().strip() else ""
    reason = f": {why}" if why not in ("", "false") else ""
    return f"{made_by} has no {first.node_operator()} as at {_place(first.node_name())}{others}{reason}"


def _place(node: str) -> str:
    """A node of the ONNX file with its module, which its name begins with."""
    module = node.rpartition("/")[0]
    return f"{node} (module {module})" if module else node or "the network"


def refuse_operators(onnx: Path, profile: DeviceProfile | None) -> None:
    """Raise Unsupported for an operator that a device's own TensorRT, or without a device TensorRT-RTX, does not have.

    Where nobody knows the version, as for this machine's, build.py looks before it builds.
    """
    cuda = profile.cuda if profile else None
    version = cuda.tensorrt if cuda else None
    if cuda and version is None:
        return
    names = dict(_typed_onnx.operators(onnx))
    found = {node: why for node, kind in names.items() if (why := operators.lacks(kind, version))}
    if not found:
        return
    first, why = next(iter(found.items()))
    kinds = sorted({names[node] for node in found})
    others = f" (and {len(found) - 1} other places, of {', '.join(kinds)})" if len(found) > 1 else ""
    has = f"TensorRT {version}, which {profile.title} has ({profile.system})," if profile else f"{engine.RTX} 1.7"
    raise Unsupported(f"{has} has no {names[first]} as at {_place(first)}{others}: {why}")


def pack(
    path: Path,
    request: Request,
    inputs: Sequence[Sequence[np.ndarray]],
    outputs: Sequence[Sequence[np.ndarray]],
    thresholds: Mapping[str, float],
    spikes: bool,
    manifest: Mapping[str, Any],
    unjudged: Collection[str],
) -> dict[str, Any]:
    """Make a kit of the typed ONNX; see kit/. Returns what the manifest says of it."""
    assert request.device is not None
    table = operators.all_operators()
    since = {name: table[name].since if name in table else None for name in sorted(count_operators(path))}
    kit = kits.write_kit(
        path,
        devices.get(request.device),
        kits.Cases(inputs, outputs, unjudged),
        thresholds=thresholds,
        spikes=spikes,
        operators=since,
        manifest=manifest,
    )
    shown = {"board": kit["board"], "flags": kit["flags"], "thresholds": kit["thresholds"]}
    return {"kit": {**shown, "operators": kit["operators"]}}


def builds_here(profile: DeviceProfile) -> bool:
    """Whether a device is this machine's GPU."""
    return profile.cuda is not None and profile.cuda.engines == "here"


def build_here(path: Path) -> dict[str, Any]:
    """Build a kit on this machine, into a folder in it. Returns the check of the engine's numbers.

    Raises:
        Unsupported, VerificationFailed: see kit.build_here.
    """
    manifest = kits.build_here(path.parent, path.parent / engine.BUILT)
    step: dict[str, Any] = manifest["verification"]["steps"][0]
    return step


def check(path: Path) -> None:
    """The engine's header and length, or the kit's files, and the typed ONNX."""
    if not _of_kit(path):
        engine.read_header(path)
    elif (path.parent / kits.KIT).is_file():  # lowering alone has not made one yet
        kits.check_kit(path.parent)
    _typed_onnx.check(_typed(path))


def count_operators(path: Path) -> dict[str, int]:
    """Nodes of the typed ONNX; layers of the engine are in `describe`."""
    return _typed_onnx.count_operators(_typed(path))


def count_macs(path: Path) -> dict[str, int]:
    """Multiplications of the typed ONNX, all and int8."""
    return _typed_onnx.count_macs(_typed(path))


def describe(path: Path) -> dict[str, Any]:
    """What the manifest says of an engine: header, how it was built, the condensed build log. Of a kit, see `pack`."""
    if _of_kit(path):
        return {}
    header = engine.read_header(path)
    built = {
        "version": header.version,
        "compute_capabilities": list(header.compute_capabilities),
        "bytes": header.bytes,
        "flags": FLAGS,
        **engine.summarise(engine.read_layers(path.parent)),
    }
    return {"engine": built}


def run(path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]] | NotHere:
    """Execute the typed ONNX in ONNX Runtime on the CPU: the same types, not the same kernels."""
    return _typed_onnx.run(_typed(path), inputs, as_written=True)


def other_runtimes() -> dict[str, Run]:
    """The engine itself, which says that it is not executed here."""
    return {"engine": _run_engine}


def _run_engine(path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> NotHere:
    if _of_kit(path):
        built = path.parent / engine.BUILT
        if built.is_dir():
            return NotHere(f"the engine in {built.name}/ was checked when it was built; its manifest has the figures")
        return NotHere(f"engine not built here: the device builds its own, with {kits.SCRIPT}")
    capabilities = engine.sm(engine.read_header(path).compute_capabilities)
    return NotHere(f"engine not executed here: it needs a GPU of {capabilities}; the figures are the typed ONNX's")


def open_step(path: Path) -> Step | NotHere:
    """The typed ONNX of a step program, in ONNX Runtime."""
    return _typed_onnx.open_step(_typed(path))


def intermediate(path: Path, names: Sequence[str], inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Values inside the typed ONNX by the program's node names."""
    return _typed_onnx.intermediate(_typed(path), names, inputs)


def _of_kit(path: Path) -> bool:
    """Whether a file is a kit's: the typed ONNX itself."""
    return path.suffix == ".onnx"


def _typed(path: Path) -> Path:
    """The typed ONNX beside an engine."""
    return path.with_suffix(".onnx")
