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
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BadInput, Unsupported, VerificationFailed
from edgesmith.exporters.targets import _typed_onnx
from edgesmith.exporters.targets._typed_onnx import LOWERINGS, OnnxFile, cannot_run
from edgesmith.exporters.targets.onnx import COSTS
from edgesmith.exporters.targets.target import (
    Arrays,
    Delivered,
    Delivery,
    NotHere,
    Package,
    Request,
    Run,
    Target,
    TargetFile,
)
from edgesmith.exporters.tensorrt import engine
from edgesmith.exporters.tensorrt import kit as kits
from edgesmith.exporters.tensorrt.kit import FLAGS
from edgesmith.exporters.usage import tensorrt as usage
from edgesmith.profiles import device as devices
from edgesmith.profiles import operators
from edgesmith.profiles.device import DeviceProfile
from edgesmith.readers import apart
from edgesmith.readers.limits import Limit

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.manifest import InterfaceRecord, Manifest
    from edgesmith.exporters.streaming.step import Step
    from edgesmith.exporters.usage.facts import Facts
    from edgesmith.exporters.usage.source import Snippet

ONNX = ".onnx"
"""Suffix of the typed ONNX: of a kit's file, and of what lies beside an engine."""

BUILDER = "tensorrt_rtx"
"""The package that builds engines ahead."""

FILE_RUNTIME = "typed ONNX in ONNX Runtime, CPU"


class TensorRt(Target):
    """An engine for one NVIDIA GPU, or a kit that a device builds its own of."""

    def check_device(self, profile: DeviceProfile | None) -> None:
        """Refuse what is no NVIDIA GPU, and this machine's without TensorRT.

        --device                   becomes
        none, or without a GPU     a sentence with those that there are
        an older board             a sentence: its TensorRT is older than what kits and opset 20 need
        an RTX or A100             an engine, by TensorRT-RTX
        a board                    a kit
        host-gpu                   a kit with its engine, where this machine has TensorRT
        """
        names = ", ".join(device.name for device in devices.all_devices().values() if self.name in device.targets)
        if profile is None:
            raise BadInput(f"an engine is for one GPU: say which with --device, one of {names}")
        if profile.cuda is None:
            raise BadInput(
                f"{profile.title} has no NVIDIA GPU and takes {', '.join(profile.targets)}; engines are for {names}"
            )
        if self.name not in profile.targets:
            raise BadInput(
                f"{profile.title} has a TensorRT of before 8.6, which is the first that kits are built with; it takes"
                f" {', '.join(profile.targets)}, and engines are for {names}"
            )
        if profile.cuda.engines == "here":
            kits.require_tensorrt()

    def delivery(self, profile: DeviceProfile | None) -> Delivery:
        """Return a kit for devices that build for themselves, an engine for the others."""
        if profile is None or profile.cuda is None or profile.cuda.engines == "ahead":
            return Delivery(self.suffix)
        return KitDelivery(ONNX, is_kit=True, profile=profile)

    def packages_for(self, suffix: str) -> tuple[str, ...]:
        """Return what a kit takes, which is no TensorRT: its board has one of its own; or all, for an engine."""
        return tuple(one for one in self.packages if one != BUILDER) if suffix == ONNX else self.packages

    def lower(self, program: Program, path: Path, request: Request) -> None:
        """Write the typed ONNX, and where `path` is an engine's, the engine of it beside it."""
        from edgesmith.exporters.graph.plain_types import with_plain_types

        program = with_plain_types(program)  # TensorRT computes in no less than int32
        if _of_kit(path):
            _typed_onnx.lower(program, path, request)
            refuse_operators(_open_onnx(path), request.profile)
            return
        cuda = request.profile.cuda if request.profile else None
        capability = cuda.compute_capability if cuda else None
        if capability not in engine.CAPABILITIES:
            raise BadInput(f"TensorRT-RTX builds for SM {', '.join(engine.CAPABILITIES)}, got {capability}")
        onnx = path.with_suffix(ONNX)
        _typed_onnx.lower(program, onnx, request)
        refuse_operators(_open_onnx(onnx), None)
        engine.write_layers(path.parent, _build_apart(onnx, capability, path))

    def open(self, path: Path) -> TargetFile:
        """Open an engine with the typed ONNX beside it, or the typed ONNX of a kit."""
        return KitFile(path) if _of_kit(path) else EngineFile(path)

    def own_translations(self) -> frozenset[str]:
        """Return what `_typed_onnx.py` translates itself."""
        return _typed_onnx.OWN_TRANSLATIONS

    def snippets(self, facts: Facts, manifest: Manifest) -> tuple[Snippet, ...]:
        """Return programs for the runtime of the TensorRT that builds the engine."""
        is_rtx = "kit" not in manifest  # what a board builds refers to its kit
        return usage.snippets(facts, is_rtx=is_rtx, is_kit=_of_kit(Path(facts.file)))

    def cannot_run(self) -> str | None:
        """Return why ONNX Runtime cannot run here: it stands in, with the typed ONNX."""
        return cannot_run()

    def cannot_time(self) -> str | None:
        """Return why neither TensorRT runs engines on this machine, or None."""
        return engine.cannot_run()

    def timed_in(self, path: Path) -> str:
        """Return the module of the TensorRT that has built an engine."""
        return engine.RUNTIMES[engine.read_header(path).made_by]


class _TypedFile(TargetFile):
    """The common part of an engine and a kit: the typed ONNX, which answers for both."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, FILE_RUNTIME)

    @cached_property
    def onnx(self) -> OnnxFile:
        """The typed ONNX."""
        return _open_onnx(self.path.with_suffix(ONNX))

    def check(self) -> None:
        """Check the typed ONNX."""
        self.onnx.check()

    def count_operators(self) -> dict[str, int]:
        """Return the nodes of the typed ONNX; layers of an engine are in `describe`."""
        return self.onnx.count_operators()

    def interface(self) -> InterfaceRecord:
        """Return inputs and outputs of the typed ONNX, which are the engine's."""
        return self.onnx.interface()

    def legalizations(self) -> list[dict[str, str]]:
        """Return what was changed in the typed ONNX."""
        return self.onnx.legalizations()

    def count_macs(self) -> dict[str, int]:
        """Return the multiply-accumulates of the typed ONNX, all and int8."""
        return self.onnx.count_macs()

    def run(self, calls: Sequence[Arrays]) -> list[list[np.ndarray]] | NotHere:
        """Execute the typed ONNX in ONNX Runtime on the CPU: the same types, not the same kernels."""
        return self.onnx.run(calls)

    def open_step(self, threads: int = 1) -> Step | NotHere:
        """Open the typed ONNX of a step program in ONNX Runtime."""
        return self.onnx.open_step(threads)

    def intermediate(self, names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray]:
        """Return values inside the typed ONNX by the program's node names."""
        return self.onnx.intermediate(names, inputs)

    def other_runtimes(self) -> dict[str, Run]:
        """Return the engine itself, which says that it is not executed here."""
        return {"engine": lambda _: NotHere(self._why_not_executed())}

    @abstractmethod
    def _why_not_executed(self) -> str:
        """Return why the engine itself is not executed here."""


class EngineFile(_TypedFile):
    """An engine, with the typed ONNX beside it."""

    def check(self) -> None:
        """Check the engine's header and length, and the typed ONNX."""
        engine.read_header(self.path)
        super().check()

    def describe(self) -> dict[str, Any]:
        """Return an engine's header, how it was built, and the condensed build log."""
        header = engine.read_header(self.path)
        built = {
            "version": header.version,
            "compute_capabilities": list(header.compute_capabilities),
            "bytes": header.bytes,
            "flags": FLAGS,
            **engine.summarise(engine.read_layers(self.path.parent)),
        }
        return {"engine": built}

    def _why_not_executed(self) -> str:
        capabilities = engine.sm(engine.read_header(self.path).compute_capabilities)
        return f"engine not executed here: it needs a GPU of {capabilities}; the figures are the typed ONNX's"


class KitFile(_TypedFile):
    """The typed ONNX of a kit."""

    def check(self) -> None:
        """Check the kit's files and the typed ONNX."""
        if (self.path.parent / kits.KIT).is_file():  # lowering alone has not made one yet
            kits.check_kit(self.path.parent)
        super().check()

    def _why_not_executed(self) -> str:
        built = self.path.parent / engine.BUILT
        if built.is_dir():
            return f"the engine in {built.name}/ was checked when it was built; its manifest has the figures"
        return f"engine not built here: the device builds its own, with {kits.SCRIPT}"


@dataclass(frozen=True)
class KitDelivery(Delivery):
    """A kit; see tensorrt/kit/. For this machine's own GPU also the engine, built at once as a board would."""

    profile: DeviceProfile | None = None

    def accept(self, missed: Sequence[str]) -> None:
        """Refuse numbers that a board would refuse."""
        if missed:
            raise VerificationFailed(
                f"{'; '.join(missed)}; a board refuses what it builds of that, so no kit is written"
            )

    def complete(self, file: TargetFile, package: Package) -> Delivered:
        """Write the kit, and build it where this machine is the device."""
        assert self.profile is not None
        table = operators.all_operators()
        since = {name: table[name].since if name in table else None for name in sorted(file.count_operators())}
        kit = kits.write_kit(
            file.path,
            self.profile,
            kits.Cases(package.inputs, package.outputs, package.unjudged),
            thresholds=package.thresholds,
            spikes=package.spikes,
            operators=since,
            manifest=package.manifest,
        )
        shown = {"board": kit["board"], "flags": kit["flags"], "thresholds": kit["thresholds"]}
        entries = {"kit": {**shown, "operators": kit["operators"]}}
        if self.profile.cuda is None or self.profile.cuda.engines != "here":
            return Delivered(entries)
        folder = file.path.parent
        manifest = kits.build_here(folder, folder / engine.BUILT)
        return Delivered(entries, manifest["verification"]["steps"][:1])


def _of_kit(path: Path) -> bool:
    """Return whether a file is a kit's: the typed ONNX itself."""
    return path.suffix == ONNX


def _open_onnx(path: Path) -> OnnxFile:
    return OnnxFile(path, FILE_RUNTIME, as_written=True)


BUILD = f"{__name__}:build_into"

BUILD_LIMIT = Limit(7200, 256)
"""Seconds and GiB that an engine may take: more than any was seen to."""


def _build_apart(onnx: Path, compute_capability: str, path: Path) -> dict[str, Any]:
    """Build an engine in a process of its own, which the builder may end: 1.7 does over some networks.

    Returns: its build log condensed.

    Raises:
        Unsupported: as `build`, and where the builder ends its process.
    """
    try:
        report: dict[str, Any] = apart.call(
            BUILD, [str(onnx.absolute()), compute_capability, str(path.absolute())], onnx.name, BUILD_LIMIT
        )
    except apart.Died as error:
        raise Unsupported(f"the builder of TensorRT-RTX {error.how} over this model{_OF_A_BUILDER}") from None
    return report


def build_into(onnx: str, compute_capability: str, path: str) -> dict[str, Any]:
    """Write the engine of a typed ONNX file to `path`, in this process. Returns and raises as `build`."""
    content, report = build(Path(onnx), compute_capability)
    Path(path).write_bytes(content)
    return report


_OF_A_BUILDER = (
    "; spell its unusual parts with other operators, or choose another target: edgesmith operators says what each takes"
)


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
        raise Unsupported(
            f"{made_by} does not build {_place(node)} for SM {compute_capability}: {_CAUSES.get(cause, _OTHER_CAUSE)}"
        )
    return bytes(built), engine.condense(log.lines, network.num_layers)


_CAUSES = {"FP32 GEMM is not supported": "FP32 GEMM is not supported; use --precision fp16"}
"""Causes that the builder gives, each with the way out."""

_OTHER_CAUSE = (
    "its builder finds no kernel for it, or asks for a GPU that is not here; spell that part of the model with other"
    " operators, choose another precision, or build where the GPU is, from a kit"
)


def _refused(made_by: str, errors: Sequence[Any]) -> str:
    """A sentence for what the parser of TensorRT-RTX says."""
    if not errors:
        return f"{made_by} does not read the typed ONNX, and does not say why"
    kinds = sorted({error.node_operator() for error in errors})
    first = errors[0]
    others = f" (and {len(errors) - 1} other places, of {', '.join(kinds)})" if len(errors) > 1 else ""
    return (
        f"{made_by} does not take {first.node_operator()} as at {_place(first.node_name())}{others}; spell that part of"
        " the model with other operators, or choose another target: edgesmith operators says what each takes"
    )


def _place(node: str) -> str:
    """A node of the ONNX file with its module, which its name begins with."""
    module = node.rpartition("/")[0]
    return f"{node} (module {module})" if module else node or "the network"


def refuse_operators(onnx: OnnxFile, profile: DeviceProfile | None) -> None:
    """Raise Unsupported for an operator that a device's own TensorRT, or without a device TensorRT-RTX, does not have.

    Where nobody knows the version, as for this machine's, build.py looks before it builds.
    """
    cuda = profile.cuda if profile else None
    version = cuda.tensorrt if cuda else None
    if cuda and version is None:
        return
    names = dict(onnx.operators())
    found = {node: why for node, kind in names.items() if (why := operators.lacks(kind, version))}
    if not found:
        return
    first, why = next(iter(found.items()))
    kinds = sorted({names[node] for node in found})
    others = f" (and {len(found) - 1} other places, of {', '.join(kinds)})" if len(found) > 1 else ""
    has = f"TensorRT {version}, which {profile.title} has ({profile.system})," if profile else f"{engine.RTX} 1.7"
    raise Unsupported(f"{has} has no {names[first]} as at {_place(first)}{others}: {why}")


TARGET = TensorRt(
    name="tensorrt",
    suffix=".engine",
    description="engine for one NVIDIA GPU (--device) with its typed ONNX, or a kit that a Jetson builds its own of",
    precisions=("fp32", "fp16", "bf16", "int8"),
    options=frozenset({"streaming"}),
    packages=(BUILDER, "onnx", "onnxscript", "onnxsim"),
    extra="tensorrt",
    runtime=FILE_RUNTIME,
    timed_by=engine.RUNTIMES[engine.FULL],
    unthreaded="an engine runs on the GPU, and has none",
    lowerings=LOWERINGS,
    traces_again=True,
    # One program for all that read ONNX, but that TensorRT has Winograd's forms, and tiles, of its own.
    costs=replace(COSTS, tile_gb_s=0.0, fetch_gb_s=math.inf, adds_left_bias=False),
    finds_islands=True,
    largest_int8_weight=127,  # 8 bits, symmetric; TensorRT adds up in 32
    marks_device=True,
)
