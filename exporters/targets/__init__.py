"""Targets: one module of this folder each, found by listing it. A target module is a `Target`.

A module whose name begins with an underscore is none: it is part of the target that imports it.
Nothing here or at the top of a target module imports torch or the target's own packages, so that listing is instant.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgesmith.errors import BackendMissing, BadInput, unknown
from edgesmith.exporters.costs import Costs

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.streaming.step import Step
    from edgesmith.models.registry import ImageInput, SequenceInput
    from edgesmith.profiles.device import DeviceProfile


@dataclass(frozen=True)
class Request:
    """What a target writes into a file beside the program.

    Attributes:
        name: of the model; also the file's stem.
        precision: `fp32`, `fp16` or `bf16`, of weights and arithmetic, or `mixed`: fp16 but for `wide`, or `int8`:
            layers of integers in float32; outputs stay float32.
        wide: operators that stay fp32 where others are half or int8, by the target's own names for them, or, where the
            program itself is made half or int8, by its nodes; each with the reason.
        image: how the model's input relates to RGB images, where it reads images.
        sequence: what its frames are, where it reads sequences.
        streaming: what the manifest says of a step program, for one.
        whole: beside a step program, the sequence program that it is the step of, for a file that holds both.
        labels: class names, in the order of the logits.
        image_input: take images instead of normalised tensors.
        deployment_target: oldest system that the file must run on, in the target's own words.
        compute_capability: of the GPU that the file is for, such as `8.9`, where the device has one.
        device: that the file is for, by its profile's name.
        licence, source: of the model.
    """

    name: str
    precision: str
    image: ImageInput | None = None
    sequence: SequenceInput | None = None
    streaming: Mapping[str, Any] | None = None
    whole: Program | None = None
    wide: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    image_input: bool = False
    deployment_target: str | None = None
    compute_capability: str | None = None
    device: str | None = None
    licence: str = ""
    source: str = ""

    @property
    def half(self) -> bool:
        """Whether most of the arithmetic is of half precision."""
        return self.precision not in ("fp32", "int8")

    @property
    def keeps_states(self) -> bool:
        """Whether this is a step program whose states the runtime keeps."""
        return self.streaming is not None and self.streaming["kept_by"] == "runtime"


@dataclass(frozen=True)
class NotHere:
    """An answer instead of outputs: this machine cannot run the file, because."""

    reason: str


Run = Callable[[Path, Sequence[Sequence["np.ndarray"]]], "list[list[np.ndarray]] | NotHere"]
"""Executes a file: outputs for each of several input tuples, in float32, in the order of the file's outputs."""


class Target(Protocol):
    """A file format, and how to write, inspect and run it.

    Attributes:
        name: of the module, on the command line, in lowerings.
        suffix: of the file, with the dot.
        description: half a line for `edgesmith targets`.
        precisions: the first is the default.
        options: names of options that this target can serve beyond every target's.
        packages: import names that lowering needs; `extra` is the pip extra that brings them, None when the base does.
        runtime: what executes the file.
        is_interpreter: whether that is so slow that fewer long sequences are streamed through it for verification.
        costs: for rewrites that choose between forms.
        dynamic_batch: whether the format takes a free batch axis here.
    """

    name: str
    suffix: str
    description: str
    precisions: tuple[str, ...]
    options: frozenset[str]
    packages: tuple[str, ...]
    extra: str | None
    runtime: str
    is_interpreter: bool
    costs: Costs
    dynamic_batch: bool

    def lower(self, program: Program, path: Path, request: Request) -> None:
        """Write `program` to `path`, byte for byte the same for the same program and request.

        Raises:
            Unsupported: an operator that the format or its converter refuses.
        """
        ...

    def check(self, path: Path) -> None:
        """Raise Unsupported where the file is not what the format asks for."""
        ...

    def count_operators(self, path: Path) -> dict[str, int]:
        """How often each of the format's operators occurs, constants left out, most frequent first."""
        ...

    def cannot_run(self) -> str | None:
        """Why files of this target cannot be executed on this machine, or None."""
        ...

    def run(self, path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]] | NotHere:
        """Outputs for each of several input tuples, in float32, in the order of the file's outputs."""
        ...

    def wide_operators(self, path: Path, inputs: Sequence[Sequence[np.ndarray]], snr_db: float) -> dict[str, str]:
        """What has to be added to `Request.wide` so that a file of mixed precision reaches an SNR; see mil/mixed.py."""
        ...

    def diagnose(self, path: Path, inputs: Sequence[np.ndarray]) -> str | None:
        """Where a file's own precision spoils its numbers, in words; None where it does not, or nobody can say."""
        ...

    def layers(self, path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> list[dict[str, Any]]:
        """What every operator met and what its precision costs, in order.

        Each has `operator`, `module`, `type`, `dtype`, `minimum`, `maximum`, `relative_error`, `snr_db` and `loss_db`.
        Asked of targets that say `shows_operators = True` only.
        """
        ...

    def traced(self, path: Path, inputs: Sequence[np.ndarray]) -> dict[str, tuple[float, float]]:
        """Of every operator in order, by where it is, for the file's first call: its result's root mean square, and
        that of the result with alternating weights. Empty where the target knows other ways to find what parts.
        """
        ...

    def other_runtimes(self) -> dict[str, Run]:
        """What else can execute a file here, beside `runtime`, by name."""
        ...

    def keeps_states(self, deployment_target: str | None) -> bool:
        """Whether the runtime keeps the states of a step program; otherwise they are inputs and outputs."""
        ...

    def open_step(self, path: Path, threads: int = 1) -> Step | NotHere:
        """A step program, ready to run; its values are float32. `threads` is for runtimes that can be told."""
        ...

    def intermediate(self, path: Path, names: Sequence[str], inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Values inside the file by the program's node names, as far as both know them."""
        ...


class MakesKits(Protocol):
    """What a target has beyond the others that writes kits, for devices that build their own files.

    Attributes:
        KIT_SUFFIX: of the file in a kit.
    """

    KIT_SUFFIX: str

    def is_kit(self, profile: DeviceProfile) -> bool:
        """Whether a kit is written for a device."""
        ...

    def pack(
        self,
        path: Path,
        request: Request,
        inputs: Sequence[Sequence[np.ndarray]],
        outputs: Sequence[Sequence[np.ndarray]],
        thresholds: Mapping[str, float],
        spikes: bool,
        manifest: Mapping[str, Any],
        unjudged: Collection[str],
    ) -> dict[str, Any]:
        """Make a kit of the lowered file: inputs, PyTorch's outputs, and what the device's own must hold.

        `unjudged` are names of outputs that are another number in every runtime.
        Returns what comes into the manifest.
        """
        ...

    def builds_here(self, profile: DeviceProfile) -> bool:
        """Whether the device is this machine."""
        ...

    def build_here(self, path: Path) -> dict[str, Any]:
        """Build of a kit on this machine. Returns the check of its numbers, as in a manifest."""
        ...


def kits_for(target: Target, profile: DeviceProfile | None) -> MakesKits | None:
    """The target as a maker of kits, where it writes one for a device."""
    if profile is None or not hasattr(target, "is_kit") or not target.is_kit(profile):
        return None
    return cast(MakesKits, target)


@cache
def all_targets() -> dict[str, Target]:
    """Every target by name."""
    folder = str(Path(__file__).parent)
    names = sorted(module.name for module in pkgutil.iter_modules([folder]) if not module.name.startswith("_"))
    modules = {name: importlib.import_module(f"edgesmith.exporters.targets.{name}") for name in names}
    return {name: cast(Target, module) for name, module in modules.items()}


def get(name: str) -> Target:
    """The target called `name`. Raises BadInput with the nearest names when there is none."""
    targets = all_targets()
    if name not in targets:
        raise unknown("target", name, targets, "edgesmith targets")
    return targets[name]


def missing_packages(target: Target) -> list[str]:
    """Packages that lowering to a target needs and this environment does not have."""
    return [package for package in target.packages if importlib.util.find_spec(package) is None]


def require(target: Target) -> None:
    """Raise BackendMissing, with the pip line, where a target's packages are not installed or not those it needs."""
    missing = missing_packages(target)
    if missing:
        raise BackendMissing(
            f"target {target.name} needs {', '.join(missing)}, which is not installed: {install_line(target)}"
        )
    getattr(target, "require", lambda: None)()  # a target that is made for certain versions


def require_layers(target: Target) -> None:
    """Raise BadInput where a target does not show its operators, with the targets that do."""
    if not getattr(target, "shows_operators", False):
        shown = [one.name for one in all_targets().values() if getattr(one, "shows_operators", False)]
        does = f"{shown[0]} does" if len(shown) == 1 else f"{', '.join(shown)} do"
        raise BadInput(f"target {target.name} does not show its operators one by one; {does}")


def install_line(target: Target) -> str:
    """What to type to get a target's packages."""
    return f'pip install "edgesmith[{target.extra}]"' if target.extra else "pip install --force-reinstall edgesmith"
