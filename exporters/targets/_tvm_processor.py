"""The processors that models are compiled for: a triple, a kind of core, and what the core must have.

    x86-64-v4      AVX-512 (F, BW, CD, DQ, VL)       x86-64-v3      AVX2, FMA       x86-64      SSE2

These are the levels of the x86-64 psABI. Code for this machine takes its level, and runs on every machine of it.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from edgesmith.errors import Unsupported
from edgesmith.exporters.targets._tvm_library import features_here
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.profiles.device import Cpu

LEVELS = {
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v3": ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"),
    "x86-64-v2": ("sse4_2", "ssse3", "popcnt"),
    "x86-64": (),
}
"""What each level has beyond the one below, by Linux' names; the highest first."""

_KERNELS = {"x86-64-v4": ("avx512", "avx2"), "x86-64-v3": ("avx2",)}

_DOTS = {"avx512_vnni": "vnni", "asimddp": "sdot"}
"""Products of integers that a processor may have beside its level, by Linux' names."""


@dataclass(frozen=True)
class Processor:
    """A kind of processor.

    Attributes:
        triple: such as `aarch64-linux-gnu`.
        cpu: as LLVM and GCC call the kind of core.
        features: that the core must have, by Linux' names.
    """

    triple: str
    cpu: str
    features: tuple[str, ...] = ()

    def cpu_target(self) -> CpuTarget:
        """Return what kernels are compiled for."""
        own = ("neon",) if self.triple.startswith("aarch64") else _KERNELS.get(self.cpu, ())
        return CpuTarget(self.triple, (*own, *(dot for name, dot in _DOTS.items() if name in self.features and own)))


def of_device(cpu: Cpu | None, multiplies_integers: bool = False) -> Processor:
    """Return the processor of a device's profile, and this machine's where there is none; see `here`."""
    return here(multiplies_integers) if cpu is None else Processor(cpu.triple, cpu.core, cpu.features)


def here(multiplies_integers: bool = False) -> Processor:
    """Return this machine's processor.

    Args:
        multiplies_integers: whether a model does. Then the processor is one that has this machine's instructions for
            that; others need not have them to run a model in floats.

    Raises:
        Unsupported: it is none that this target knows.
    """
    machine = platform.machine()
    found = features_here()
    dots = tuple(name for name in _DOTS if multiplies_integers and name in found)
    if machine == "aarch64":
        return Processor("aarch64-linux-gnu", "generic", ("asimd", *dots))
    if machine != "x86_64":
        raise Unsupported(f"target tvm compiles for x86-64 and aarch64, and this machine has {machine}; say --device")
    needed: list[str] = []
    best, has = "x86-64", tuple[str, ...]()
    for level, features in reversed(LEVELS.items()):
        needed += features
        if not set(needed) <= found:
            break
        best, has = level, tuple(needed)
    return Processor("x86_64-linux-gnu", best, (*has, *dots) if best == "x86-64-v4" else has)
