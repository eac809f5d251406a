"""Device profiles: what a device is and which files it takes. A device is `<name>.toml` in this folder, no Python.

One of another package is an entry point in the group `edgesmith.devices`: `my_boards` for all TOML files of a package,
`my_boards:board7` for `board7.toml` in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgesmith.errors import Unreadable, unknown
from edgesmith.plugins import Facts, leave_out, use_facts
from edgesmith.readers.documents import read_toml
from edgesmith.readers.typed import as_dataclass

PLUGINS = "edgesmith.devices"


@dataclass(frozen=True)
class Systems:
    """Operating systems that a device runs, such as `iOS17`, and where that is written."""

    oldest: str
    newest: str
    source: str


@dataclass(frozen=True)
class Cuda:
    """An NVIDIA GPU, as far as files depend on it.

    Attributes:
        compute_capability: such as `8.9`, NVIDIA's SM 8.9; empty for whatever this machine has.
        engines: where TensorRT engines for it are built: `ahead`, on any machine, by TensorRT-RTX; `on the board`, by
            its own TensorRT; `here`, by this machine's TensorRT.
        source: where that is written.
        tensorrt: the version that its system brings, such as `10.3`, where that is fixed.
        jetpack: the JetPack that brings it.
        dla_cores: deep learning accelerators beside the GPU.
    """

    compute_capability: str
    engines: str
    source: str
    tensorrt: str | None = None
    jetpack: str | None = None
    dla_cores: int = 0


@dataclass(frozen=True)
class Cpu:
    """The processor of a device, as far as compiled models depend on it.

    Attributes:
        triple: of the system, such as `aarch64-linux-gnu`.
        core: the kind of core, as LLVM and GCC call it; the smallest one where there are several.
        source: where that is written.
        features: that all its cores have, by the names of Linux' /proc/cpuinfo.
    """

    triple: str
    core: str
    source: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """One figure of a device, and where it is from: exactly one of the three is said.

    Attributes:
        value: in the unit that its name ends with; None where nobody gives it.
        source: where it is written.
        derived: how it follows from other figures.
        unsourced: that, or why, it has no source.
    """

    value: float | None = None
    source: str = ""
    derived: str = ""
    unsourced: str = ""


@dataclass(frozen=True)
class DeviceProfile:
    """One device.

    Attributes:
        targets: formats that it can run.
        systems: None where the format does not depend on the system.
        cuda: None where it has no NVIDIA GPU.
        cpu: what models are compiled for; None where nothing is compiled for its processor.
        reach: how it is spoken to: `ssh`, `adb`, `mac`, through a Mac that it is connected to, `mac or ssh`, a Mac, or
            `itself`, this machine.
        models: what Android calls it, with `*` for any further letters.
        fit: the published latencies that estimates for it are fitted on (bench/estimation); None where there are none.
        peak: what a processor could do at the clocks below, dense: `gpu_fp16_tflops`, `npu_int8_tops` ...
        memory: `bandwidth_gb_s` in 10^9 bytes a second, `capacity_gb`.
        clocks: of the fastest core, `cpu_ghz`, `gpu_ghz`.
    """

    name: str
    title: str
    soc: str
    targets: tuple[str, ...]
    systems: Systems | None = None
    cuda: Cuda | None = None
    cpu: Cpu | None = None
    reach: str = "ssh"
    fit: str | None = None
    models: tuple[str, ...] = ()
    peak: Mapping[str, Figure] = field(default_factory=dict)
    memory: Mapping[str, Figure] = field(default_factory=dict)
    clocks: Mapping[str, Figure] = field(default_factory=dict)

    @property
    def system(self) -> str:
        """The system that brings its TensorRT, in words."""
        return f"JetPack {self.cuda.jetpack}" if self.cuda and self.cuda.jetpack else "its own"


COMPUTE_CAPABILITY = re.compile(r"(\d{1,3}\.\d{1,3})?")

TABLES = frozenset({"tensorrt-ops"})
"""Files of this folder that are no devices."""


@cache
def all_devices() -> dict[str, DeviceProfile]:
    """Every device by name, those of other packages last."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        if path.stem not in TABLES:
            found[path.stem] = read_profile(path)

    def add(name: str, facts: dict[str, Any], whose: Facts) -> None:
        profile = _profile(name, facts, f"{name}.toml")
        if name in found:
            leave_out(
                PLUGINS, whose.name, f"{whose.origin} has a device {name}, and so has {found[name].title}; rename it"
            )
        else:
            found[name] = profile

    use_facts(PLUGINS, add)
    return found


def read_profile(path: Path) -> DeviceProfile:
    """Return the device of a TOML file. Raises Unreadable where the file is damaged, or says what no profile does."""
    return _profile(path.stem, read_toml(path, "device profile"), str(path))


def _profile(name: str, facts: dict[str, Any], where: str) -> DeviceProfile:
    profile = as_dataclass(DeviceProfile, {**facts, "name": name}, where)
    for figure, said in {**profile.peak, **profile.memory, **profile.clocks}.items():
        if said.value is not None and not said.value > 0:
            raise Unreadable(f"{where}: {figure} must be above 0, got {said.value}")
    if profile.cuda is not None and not COMPUTE_CAPABILITY.fullmatch(profile.cuda.compute_capability):
        raise Unreadable(f"{where}: a compute capability is like 8.7, got {profile.cuda.compute_capability[:40]!r}")
    return profile


def get(name: str) -> DeviceProfile:
    """The device called `name`. Raises BadInput with the nearest names when there is none."""
    devices = all_devices()
    if name not in devices:
        raise unknown("device", name, devices, "edgesmith devices")
    return devices[name]
