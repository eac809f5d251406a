"""The whole protocol of a target: what it can do, as fields and methods with defaults, and what its files answer.

    Target       facts, and the questions that need no program       one value `TARGET` a module of this folder
    Request      what a target writes into a file beside the program
    TargetFile   a file that has been opened, once, and says everything about itself
    Delivery     what is published: the file as it is, or a kit that a device builds its own file of

Nothing here imports torch or a target's own packages, so that listing is instant. A target that is made elsewhere is a
subclass of `Target`, found by the entry point `edgesmith.targets`.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BackendMissing, BadInput
from edgesmith.exporters.costs import Costs

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.exporters.engine_record import Thresholds
    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.manifest import CheckRecord, InterfaceRecord, Manifest
    from edgesmith.exporters.precision.table import Precision
    from edgesmith.exporters.streaming.description import StreamingDescription
    from edgesmith.exporters.streaming.step import Step
    from edgesmith.exporters.usage.facts import Facts
    from edgesmith.exporters.usage.source import Snippet
    from edgesmith.models.registry import ImageInput, SequenceInput
    from edgesmith.models.series import SeriesInput
    from edgesmith.profiles.device import DeviceProfile

Arrays = Sequence["np.ndarray"]
"""The values of all inputs, or of all outputs, of one call."""


@dataclass(frozen=True)
class NotHere:
    """An answer instead of outputs: this machine cannot run the file, because."""

    reason: str


Run = Callable[[Sequence[Arrays]], "list[list[np.ndarray]] | NotHere"]
"""Executes an opened file: outputs of each of several calls, in float32, in the order of the file's outputs."""


@dataclass(frozen=True)
class Request:
    """The facts that a target writes into a file beside the program.

    Attributes:
        name: of the model; also the file's stem.
        precision: of weights and arithmetic. Where the target's converter types the program it follows this; the
            program of other targets is typed already. Outputs are float32.
        keep_fp32: operators that stay fp32 where others are half or int8, each with the reason: by the converter's
            names where that types the program, or else by the program's nodes.
        image: how the model's input relates to RGB images, where it reads images.
        sequence: what its frames are, where it reads sequences.
        series: what it reads and returns, where it is a forecaster.
        streaming: the description of a step program, for one.
        sequence_program: beside a step program, that of the whole sequence, for a file that holds both.
        version: of the model: its weights.
        labels: class names, in the order of the logits.
        segments: whether the output is a map of classes, of which the labels are names; a file for it classifies none.
        image_input: take images instead of normalised tensors.
        deployment_target: oldest system that the file must run on, in the target's own words.
        profile: the device that the file is for.
        licence, source: of the model.
    """

    name: str
    precision: Precision
    image: ImageInput | None = None
    sequence: SequenceInput | None = None
    series: SeriesInput | None = None
    streaming: StreamingDescription | None = None
    sequence_program: Program | None = None
    keep_fp32: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    segments: bool = False
    image_input: bool = False
    deployment_target: str | None = None
    profile: DeviceProfile | None = None
    licence: str = ""
    source: str = ""
    version: str = ""

    @property
    def classifies(self) -> bool:
        """Return whether the labels are those of one class for each input."""
        return self.labels is not None and not self.segments

    @property
    def keeps_states(self) -> bool:
        """Return whether this is a step program whose states the runtime keeps."""
        return self.streaming is not None and self.streaming["kept_by"] == "runtime"


class TargetFile(ABC):
    """A file of a target, opened. What costs time to read is read once, when it is first asked for.

    Attributes:
        path: the file, or the package's folder.
        runtime: what executes it in `run`.
    """

    def __init__(self, path: Path, runtime: str) -> None:
        self.path = path
        self.runtime = runtime

    @abstractmethod
    def check(self) -> None:
        """Raise Unsupported where the file is not what the format asks for."""

    @abstractmethod
    def count_operators(self) -> dict[str, int]:
        """Return how often each of the format's operators occurs, constants left out, most frequent first."""

    @abstractmethod
    def run(self, calls: Sequence[Arrays]) -> list[list[np.ndarray]] | NotHere:
        """Return the outputs of several calls, in float32, in the order of the file's outputs."""

    @abstractmethod
    def open_step(self, threads: int = 1) -> Step | NotHere:
        """Return the step program of the file, ready to run; its values are float32.

        Args:
            threads: of the runtime, where it takes a number.
        """

    def other_runtimes(self) -> dict[str, Run]:
        """Return what else can execute the file, or says why not here, by name."""
        return {}

    def levels(self) -> dict[str, Run]:
        """Return the first runtime at other levels of optimisation, by name, where `other_runtimes` has them not."""
        return {}

    def run_as(self, device: str, calls: Sequence[Arrays]) -> list[list[np.ndarray]]:
        """Return the outputs of several calls as one of the target's `device_models` has them; nothing is measured."""
        raise NotImplementedError

    def intermediate(self, names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray]:
        """Return values inside the file by the program's node names, as far as both know them."""
        return {}

    def diagnose(self, inputs: Arrays) -> str | None:
        """Say where a file's own precision spoils its numbers; None where it does not, or nobody can say."""
        return None

    def layers(self, calls: Sequence[Arrays]) -> list[dict[str, Any]]:
        """Return what every operator met and what its precision costs, in order.

        Each has `operator`, `module`, `type`, `dtype`, `minimum`, `maximum`, `relative_error`, `snr_db` and `loss_db`.
        Asked of targets with `shows_operators` only.
        """
        return []

    def trace(self, inputs: Arrays) -> dict[str, tuple[float, float]]:
        """Return two figures of every operator's result for one call, in order, by where the operator is.

        They are its root mean square, and that of the result with alternating weights. Empty where the target has other
        ways to find where numbers diverge.
        """
        return {}

    def lossy_operators(self, calls: Sequence[Arrays], snr_db: float) -> dict[str, str]:
        """Return operators that must stay fp32 for the outputs to reach an SNR, by the converter's names, with reasons.

        Asked of targets whose converter types the program, see `Target.types_programs`.
        """
        return {}

    def operators_in(self, modules: Sequence[str]) -> dict[str, str]:
        """Return the operators of some modules by the converter's names, each with its module.

        Asked of targets whose converter types the program, see `Target.types_programs`.
        """
        return {}

    def count_macs(self) -> dict[str, int]:
        """Return the multiply-accumulates of the first batch: `all`, and `int8`. Asked of targets that have int8."""
        raise NotImplementedError(f"{type(self).__name__} counts no multiply-accumulates")

    def shared_bytes(self) -> int:
        """Return the bytes that functions of one file save because they share weights."""
        return 0

    def legalizations(self) -> list[dict[str, str]]:
        """Return what the lowering changed to keep a device's rules: `rule`, operator's `name`, `change` in words."""
        return []

    def interface(self) -> InterfaceRecord | None:
        """Return inputs and outputs as the file has them; None where nobody says."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return what else the manifest says of the file.

        A plugin's target returns `{"details": {"plugin": its name, "values": plain values by their names}}`.
        """
        return {}


@dataclass(frozen=True)
class Delivery:
    """The published part of a lowered file: the file itself. A target whose devices build their own has another.

    Attributes:
        suffix: of the file, with the dot.
        is_kit: whether a device builds its own file of it.
    """

    suffix: str
    is_kit: bool = False

    def accept(self, missed: Sequence[str]) -> None:
        """Raise VerificationFailed where what is published must not miss a threshold."""

    def complete(self, file: TargetFile, package: Package) -> Delivered:
        """Write what belongs beside the file.

        Raises:
            Unsupported, VerificationFailed: where the device is this machine, and its own file cannot be built.
        """
        return Delivered()


@dataclass(frozen=True)
class Delivered:
    """The outcome of a delivery.

    Attributes:
        entries: for the manifest.
        checks: of a file that the device, this machine, has built; they replace those of the same name.
    """

    entries: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[CheckRecord] = ()


@dataclass(frozen=True)
class Package:
    """The facts that a delivery writes beside a file.

    Attributes:
        request: as the file was lowered.
        inputs, outputs: of a few calls, outputs by PyTorch.
        unjudged: names of outputs that are another number in every runtime.
        thresholds: that a device's own file must hold.
        spikes: whether neurons spike.
        manifest: of the artifact, so far.
    """

    request: Request
    inputs: Sequence[Arrays]
    outputs: Sequence[Arrays]
    unjudged: frozenset[str]
    thresholds: Thresholds
    spikes: bool
    manifest: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A file format, and how to write, open and run it.

    Attributes:
        name: on the command line and in manifests.
        suffix: of the file, with the dot.
        description: half a line for `edgesmith targets`.
        precisions: names of those that it takes by itself, the default first; a precision may name further targets.
        packages: import names that lowering needs; `extra` is the pip extra that brings them, None when the base does.
        runtime: what executes the file here.
        costs: for rewrites that choose between forms.
        options: names of the options that this target serves beyond every target's.
        lowerings: under which name fused ops have their lowerings for it; default: its own.
        dynamic_batch: whether the format takes a free batch axis here.
        traces_again: whether its converter traces an exported program once more itself, as torch's ONNX exporter does.
        types_programs: whether the program itself is made half or int8 before it is lowered. Otherwise the target's
            converter does that, by the request.
        finds_islands: whether a half-precision program keeps in fp32 what calibration inputs say needs it.
        largest_int8_weight: 127, or 63 for runtimes that add two 8-bit products in 16 bits; None without int8.
        int8_joins: whether its runtime takes integers for what lies between layers too, and is slow without
            (int8_joined.py).
        int8_is_dense: whether int8 is for dense products alone, since nothing else is faster in it: convolutions of
            groups, the layers inside fused ops and the sums behind layers stay float.
        coarse_from: lengths from which the runtime's reductions round more coarsely than PyTorch's, by the format's
            operators; lowering takes another form from there on.
        is_interpreter: whether running is so slow that fewer long sequences are streamed through it for verification.
        shows_operators: whether its files answer `layers`.
        device_models: devices whose documented departures its files can be run with, by name, and what they are.
        classifies: whether labels make a classifier of the file, which returns probabilities; elsewhere they are
            metadata.
        deployment_targets: oldest systems that a file can be made for, in order.
        default_deployment_target: of those.
        timed_by: what a benchmark's runner runs its files in, by the runner's name; empty where nothing does. See
            `timed_in` for files that say it of themselves.
        compute_units: that the runtime may be held to, by its own names, all of them first.
        unthreaded: why the runtime takes no number of threads; empty where it does.
        runs_alone: whether its files run without the packages that lowering needs.
        marks_device: whether files for different devices differ, so that the artifact's folder names the device.
        smallest_rank: of an input; one without axes has that many axes of 1 in the file.
        reserved_names: words of the format's own; an input or output that is called so has a _ behind it in the file.
    """

    name: str
    suffix: str
    description: str
    precisions: tuple[str, ...]
    packages: tuple[str, ...]
    runtime: str
    costs: Costs
    timed_by: str = ""
    compute_units: tuple[str, ...] = ()
    unthreaded: str = ""
    options: frozenset[str] = frozenset()
    extra: str | None = None
    lowerings: str = ""
    dynamic_batch: bool = False
    traces_again: bool = False
    types_programs: bool = True
    finds_islands: bool = False
    largest_int8_weight: int | None = None
    int8_is_dense: bool = False
    int8_joins: bool = False
    coarse_from: Mapping[str, int] = field(default_factory=dict)
    is_interpreter: bool = False
    shows_operators: bool = False
    device_models: Mapping[str, str] = field(default_factory=dict)
    classifies: bool = False
    deployment_targets: tuple[str, ...] = ()
    default_deployment_target: str | None = None
    runs_alone: bool = False
    marks_device: bool = False
    smallest_rank: int = 0
    reserved_names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if "int8" in self.precisions and self.largest_int8_weight is None:
            raise ValueError(f"target {self.name} lists int8 and must say its largest_int8_weight, 127 or 63")

    @abstractmethod
    def lower(self, program: Program, path: Path, request: Request) -> None:
        """Write `program` to `path`, byte for byte the same for the same program and request.

        Raises:
            Unsupported: an operator that the format or its converter refuses.
        """

    @abstractmethod
    def open(self, path: Path) -> TargetFile:
        """Return a file of this target, opened."""

    @abstractmethod
    def cannot_run(self) -> str | None:
        """Return why files of this target cannot be executed on this machine, or None."""

    def cannot_time(self) -> str | None:
        """Return why what is timed is not on this machine, or None."""
        if self.timed_by:
            return self.cannot_run()
        if self.is_interpreter:
            return f"{self.runtime} is an interpreter, whose times say nothing"
        return "bench has nothing that runs such files"

    def timed_in(self, path: Path) -> str:
        """Return the runner's name of what runs a file of this target. Raises Unsupported for a damaged file."""
        return self.timed_by

    def missing_packages(self) -> list[str]:
        """Return the packages that lowering needs and this environment does not have."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]

    def packages_for(self, suffix: str) -> tuple[str, ...]:
        """Return those of its packages that making or reading a file of a suffix takes."""
        return self.packages

    def install_line(self) -> str:
        """Return what to type to get the target's packages."""
        return f'pip install "edgesmith[{self.extra}]"' if self.extra else "pip install --force-reinstall edgesmith"

    def require_for(self, suffix: str) -> None:
        """Raise BackendMissing, as `require` does, where a file of a suffix cannot be made or read here."""
        if self.packages_for(suffix) == self.packages:
            self.require()
        else:
            self._refuse([package for package in self.missing_packages() if package in self.packages_for(suffix)])

    def require(self) -> None:
        """Raise BackendMissing, with the pip line, where packages are missing or not those that it is made for."""
        self._refuse(self.missing_packages())

    def _refuse(self, missing: Sequence[str]) -> None:
        if missing:
            raise BackendMissing(
                f"target {self.name} needs {', '.join(missing)}, which is not installed: {self.install_line()}"
            )

    def check_device(self, profile: DeviceProfile | None) -> None:
        """Raise BadInput where a device does not take the target's files; asked first of all.

        Args:
            profile: None where no device was named.

        Raises:
            BackendMissing: the device is this machine, and it lacks what its files are built with.
        """
        if profile is not None and self.name not in profile.targets:
            raise BadInput(f"{profile.title} takes {', '.join(profile.targets)}, not {self.name}; choose --target")

    def share(self, program: Program) -> Mapping[str, Mapping[str, int]] | None:
        """Return what computes which part of a rewritten program; None where one thing computes it all.

        Operators by how often they occur, under what computes them, such as `kernels`; and under `macs` the
        multiply-accumulates of each.
        """
        return None

    def own_translations(self) -> frozenset[str]:
        """Return PyTorch's operators, such as `aten.group_norm`, that are lowered by a translation of edgesmith's."""
        return frozenset()

    def keeps_states(self, deployment_target: str | None) -> bool:
        """Return whether the runtime keeps the states of a step program; otherwise they are inputs and outputs."""
        return False

    def snippets(self, facts: Facts, manifest: Manifest) -> tuple[Snippet, ...]:
        """Return the programs that run a file of this target, a language each; see usage/."""
        return ()

    def delivery(self, profile: DeviceProfile | None) -> Delivery:
        """Return what is published for a device."""
        return Delivery(self.suffix)

    @property
    def lowers_as(self) -> str:
        """The name under which fused ops have their lowerings for this target."""
        return self.lowerings or self.name
