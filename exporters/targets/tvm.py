"""TVM: a shared library that runs a model on a CPU by itself, compiled ahead for one processor.

    program  -> Relax, by TVM's importer              _tvm_graph.py
             -> kernels where there are some, fused loops where there are none
             -> a listing of calls, with a position for every value    _tvm_plan.py
             -> loops by TVM's LLVM, kernels and the line of calls by a C++ compiler    _tvm_compile.py
             -> NAME.so, NAME.h, example.c, load_NAME.py   _tvm_source.py

The library needs the C library alone: no TVM where it runs, no allocation in a call, no state between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BackendMissing, BadInput
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.targets import _tvm_library
from edgesmith.exporters.targets._tvm_processor import Processor, of_device
from edgesmith.exporters.targets.target import Arrays, NotHere, Request, Target, TargetFile
from edgesmith.exporters.usage import library
from edgesmith.kernels.native import toolchain
from edgesmith.profiles import device as devices
from edgesmith.profiles.device import DeviceProfile

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.manifest import InterfaceRecord, Manifest, ValueRecord
    from edgesmith.exporters.streaming.step import Step
    from edgesmith.exporters.usage.facts import Facts
    from edgesmith.exporters.usage.source import Snippet


class Tvm(Target):
    """Shared libraries for CPUs."""

    def check_device(self, profile: DeviceProfile | None) -> None:
        """Refuse a device whose processor no profile describes, or that no compiler here compiles for."""
        if profile is not None and self.name not in profile.targets:
            names = ", ".join(one.name for one in devices.all_devices().values() if self.name in one.targets)
            raise BadInput(
                f"{profile.title} takes {', '.join(profile.targets)}, and no processor of it is known to compile for;"
                f" compiled models are for host, {names}"
            )
        super().require()
        processor = _processor(profile)
        if "android" in processor.triple:
            raise BackendMissing(
                f"a library for {profile.title if profile else 'Android'} needs the headers of Android's NDK, which the"
                " package ziglang has not; choose --target onnx"
            )
        toolchain.find_compiler(processor.cpu_target())

    def lower(self, program: Program, path: Path, request: Request) -> None:
        """Write the library, its header, an example in C, and a loader in Python."""
        from edgesmith.exporters.targets import _tvm_compile, _tvm_graph, _tvm_integers

        self.require()
        processor = _processor(request.profile, _tvm_integers.has_rounding(program))
        made = _tvm_graph.lower(program, self.lowers_as, processor)
        _tvm_compile.write(made, program, path, request)

    def open(self, path: Path) -> CompiledFile:
        """Open a library."""
        return CompiledFile(path, self.runtime)

    def snippets(self, facts: Facts, manifest: Manifest) -> tuple[Snippet, ...]:
        """Return the program that runs a library by the loader beside it."""
        from edgesmith.exporters.targets._tvm_source import identifier

        return library.snippets(facts, f"load_{identifier(Path(facts.file).stem)}")

    def cannot_run(self) -> str | None:
        """A library runs by itself, on Linux, on the processor that it is for; its file says which that is."""
        return None

    def share(self, program: Program) -> dict[str, dict[str, int]]:
        """Return what kernels compute of a program, and what TVM's own code does."""
        from edgesmith.exporters.targets import _tvm_graph

        super().require()
        return _tvm_graph.share(program, self.lowers_as, of_device(None))


class CompiledFile(TargetFile):
    """A library, which its processor runs."""

    @cached_property
    def library(self) -> _tvm_library.Library:
        """The library, with what it says of itself."""
        return _tvm_library.read(self.path)

    def check(self) -> None:
        """Check that the library is whole, and says what it is."""
        _tvm_library.read(self.path)

    def count_operators(self) -> dict[str, int]:
        """Return how often each operator occurs, kernels by their names."""
        return dict(sorted(self.library.description.operators.items(), key=lambda item: (-item[1], item[0])))

    def count_macs(self) -> dict[str, int]:
        """Return the multiply-accumulates: all, and those of integers."""
        said = self.library.description
        return {"int8": said.integer_macs, "all": sum(said.macs.values())}

    def interface(self) -> InterfaceRecord:
        """Return inputs and outputs, as the library describes them."""
        said = self.library.description
        return {"inputs": [_record(one) for one in said.inputs], "outputs": [_record(one) for one in said.outputs]}

    def run(self, calls: Sequence[Arrays]) -> list[list[np.ndarray]] | NotHere:
        """Run the library in this process, where its processor is this machine's."""
        from edgesmith.exporters.outputs import as_compared

        if (reason := self.library.cannot_run()) is not None:
            return NotHere(reason)
        session = self.library.load()
        return [[as_compared(value) for value in session(given)] for given in calls]

    def open_step(self, threads: int = 1) -> Step | NotHere:
        """Load the library of a step program."""
        import numpy as np

        from edgesmith.exporters.streaming.step import Step

        if (reason := self.library.cannot_run()) is not None:
            return NotHere(reason)
        session = self.library.load()
        return Step(lambda values: [value.astype(np.float32) for value in session(values)])

    def describe(self) -> dict[str, Any]:
        """Return what the library is compiled for, its working memory, and what computes which part of it."""
        said = self.library.description
        return {
            "details": {
                "triple": said.triple,
                "cpu": said.cpu,
                "memory_bytes": said.memory_bytes,
                "macs": said.macs,
                "covered": said.covered,
            }
        }


def _record(one: _tvm_library.Described) -> ValueRecord:
    return {"name": one.name, "type": one.dtype, "shape": list(one.shape)}


def _processor(profile: DeviceProfile | None, multiplies_integers: bool = False) -> Processor:
    return of_device(profile.cpu if profile is not None else None, multiplies_integers)


TARGET = Tvm(
    name="tvm",
    suffix=".so",
    description="a shared library for one CPU, by TVM and kernels, which needs the C library alone",
    precisions=("fp32", "int8"),
    largest_int8_weight=127,  # products are summed in 32 bits, and nothing saturates
    int8_is_dense=True,  # depthwise kernels and fused ops wait for their loads
    options=frozenset({"streaming"}),
    packages=("tvm",),
    extra="tvm",
    runtime="the library itself, CPU",
    timed_by="compiled",
    # Assumed, not measured: a call costs nothing to start, and loops are unrolled, so that closed forms are better.
    costs=Costs(launch_us=0.1, copy_gb_s=10.0, gmac_s=50.0, stream_gb_s=25.0, depthwise_gmac_s=20.0, loop_us=5.0),
    runs_alone=True,
    marks_device=True,
)
