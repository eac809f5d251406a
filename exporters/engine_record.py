"""The part of a manifest about TensorRT: of a kit what a board needs, of an engine how it came about.

The kit's own record (tensorrt/kit/record.py) shares the first three.
"""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

from edgesmith.records import Keyword

Digest = Annotated[str, Keyword("pattern", "^[0-9a-f]{64}$")]


class Board(TypedDict):
    """The device that builds, as far as its profile says.

    Attributes:
        compute_capability: of its GPU, such as 8.7; null where that is this machine's, whatever it is.
        tensorrt: the version that its system brings; null where any will do.
        jetpack: the system's version on a Jetson.
        dla_cores: deep learning accelerators.
    """

    title: str
    compute_capability: str | None
    tensorrt: str | None
    jetpack: str | None
    dla_cores: int


class Thresholds(TypedDict):
    """Limits that the engine's outputs must hold.

    Attributes:
        relative_error: the largest error, as a share of PyTorch's largest output.
        snr_db: the least signal-to-noise ratio, dB.
        other_whole: of outputs that are integers, the share of numbers that may be others than PyTorch's.
    """

    relative_error: float
    snr_db: float
    other_whole: NotRequired[float]


class Flags(TypedDict):
    """Settings of every build; others, such as a DLA, are build.py's options."""

    strongly_typed: bool
    tf32: bool
    optimization_level: int


class KitSummary(TypedDict):
    """The needs of a board that builds an engine of a kit.

    Attributes:
        operators: of the file, each with the TensorRT since which there is one; `never` for none, null for unknown.
    """

    board: Board
    flags: Flags
    thresholds: Thresholds
    operators: dict[str, str | None]


class KitDigests(TypedDict):
    """Digests of the files of the kit that an engine was built of."""

    onnx: Digest
    cases: Digest


class EngineFlags(TypedDict):
    """Settings of one build.

    Attributes:
        version_compatible, hardware_compatible, dla: of a board's build; `dla` is the core, or null.
    """

    strongly_typed: bool
    tf32: bool
    optimization_level: int
    version_compatible: NotRequired[bool]
    hardware_compatible: NotRequired[bool]
    dla: NotRequired[int | None]


class EngineLayers(TypedDict):
    """Layers before and after the builder has fused them; of the network where the builder said how many."""

    network: int | None
    engine: int


class EngineRecord(TypedDict):
    """An engine: what built it, how, and what the builder said.

    Attributes:
        compute_capabilities: that it loads on; empty where nobody said.
        precisions, types: layers by what they compute in, and by their type.
        synchronisations: layers that only wait for another stream.
        weights_bytes, activations_bytes, workspace_bytes: of memory; null where the builder did not say.
    """

    version: str
    compute_capabilities: list[str]
    bytes: Annotated[int, Keyword("minimum", 0)]
    flags: EngineFlags
    layers: NotRequired[EngineLayers]
    precisions: NotRequired[dict[str, int]]
    synchronisations: NotRequired[int]
    types: NotRequired[dict[str, int]]
    weights_bytes: NotRequired[int | None]
    activations_bytes: NotRequired[int | None]
    workspace_bytes: NotRequired[int | None]
    warnings: NotRequired[list[str]]


class BuildingDevice(TypedDict):
    """The machine that built an engine.

    Attributes:
        name: its profile's.
        machine: a hash that tells two machines apart.
        board, gpu, l4t: as its system calls them; null where it does not.
    """

    name: str
    system: str
    cpu: str
    machine: str
    power_mode: str | None
    board: str | None
    compute_capability: str | None
    l4t: str | None
    gpu: str | None
