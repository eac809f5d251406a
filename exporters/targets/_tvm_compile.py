"""Machine code: loops by TVM's LLVM, kernels and the line of calls by a C++ compiler, linked into one library.

    loops      a PrimFunc -> int symbol(const void *...), every buffer a pointer, its large blocks too
    library    loops.o + kernels + NAME.cpp + weights -> NAME.so, which is linked with the C library alone

Loops are lowered by the passes of TVM's own pipeline for CPUs, without the last: MakePackedAPI would have each call
take boxed arguments, check them, and report through TVM's runtime. Shapes are known here, and pointers are enough.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith._version import __version__
from edgesmith.errors import Unsupported
from edgesmith.exporters.targets import _tvm_plan, _tvm_schedule, _tvm_source
from edgesmith.exporters.targets._quiet import quiet
from edgesmith.exporters.targets._refusal import refuse
from edgesmith.exporters.targets._tvm_graph import Lowered, llvm
from edgesmith.exporters.targets._tvm_plan import Call, Listing, Value
from edgesmith.exporters.targets.target import Request
from edgesmith.kernels.native import toolchain

if TYPE_CHECKING:
    from edgesmith.exporters.graph.capture import Program

LIBRARIES = ("-lm", "-lpthread", "-lc")
"""All that a library is linked with; behind what needs them, or linkers leave them out."""


def write(lowered: Lowered, program: Program, path: Path, request: Request) -> None:
    """Write the library of a lowered program, and what lies beside it.

    Raises:
        Unsupported: TVM's LLVM or the C++ compiler does not know the processor, or refuses the code.
    """
    name = path.stem
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            listing = compile_loops(lowered, folder / "loops.o")
        except Exception as error:  # TVMError, InternalError, ValueError, RuntimeError alike
            raise _refuse_loops(error, lowered, program, folder / "one.o") from error
        plan = _tvm_plan.plan(listing)
        description = _describe(lowered, listing, plan, program, request)
        weights = folder / _tvm_source.WEIGHTS
        weights.write_bytes(plan.content)
        line = _tvm_source.line_of_calls(name, listing, plan, description, str(weights))
        link(lowered, line, folder / "loops.o", folder / path.name)
        path.write_bytes((folder / path.name).read_bytes())
    inputs = list(zip(program.input_names, listing.inputs, strict=True))
    outputs = list(zip(program.output_names, listing.outputs, strict=True))
    path.with_suffix(".h").write_text(_tvm_source.header(name, inputs, outputs), "utf-8")
    path.with_name("example.c").write_text(_tvm_source.example(name, inputs, outputs), "utf-8")
    path.with_name(f"load_{_tvm_source.identifier(name)}.py").write_text(_tvm_source.loader(name), "utf-8")


def _describe(
    lowered: Lowered, listing: Listing, plan: _tvm_plan.Plan, program: Program, request: Request
) -> dict[str, Any]:
    """Return what the library says of itself."""

    def named(names: Sequence[str], values: Sequence[Value]) -> list[dict[str, Any]]:
        pairs = zip(names, values, strict=True)
        return [{"name": name, "shape": list(value.shape), "dtype": value.dtype} for name, value in pairs]

    facts = {"precision": request.precision.name, "source": request.source, "licence": request.licence}
    return {
        "name": request.name,
        "edgesmith": __version__,
        "triple": lowered.processor.triple,
        "cpu": lowered.processor.cpu,
        "features": list(lowered.processor.features),
        "memory_bytes": max(plan.memory, _tvm_plan.ALIGNMENT),
        "inputs": named(program.input_names, listing.inputs),
        "outputs": named(program.output_names, listing.outputs),
        "operators": dict(lowered.operators),
        "macs": dict(lowered.macs),
        "integer_macs": lowered.integer_macs,
        "covered": {who: dict(found) for who, found in lowered.covered.items()},
        "calls": [[call.symbol, _kind(call, lowered)] for call in listing.calls],
        "facts": {key: value for key, value in facts.items() if value},
    }


def _kind(call: Call, lowered: Lowered) -> str:
    """Return what a call computes: a kernel's kind, or the operators of a loop."""
    if call.is_kernel:
        return str(lowered.kernels[call.symbol].kind)
    return re.sub(r"_+", " ", re.sub(r"^loop_(fused_)?|\\d+$", "", call.symbol)).strip()


def _refuse_loops(error: Exception, lowered: Lowered, program: Program, scratch: Path) -> Unsupported:
    """Return the refusal for loops that TVM's compiler fails on: by the first that it fails on alone."""
    for symbol, function in lowered.functions.items():
        try:
            compile_loops(replace(lowered, functions={symbol: function}), scratch)
        except Exception as found:  # as above
            return refuse(found, program.module.graph.nodes, "TVM", symbol)
    return refuse(error, program.module.graph.nodes, "TVM")


def compile_loops(lowered: Lowered, out: Path) -> Listing:
    """Write the object file of all loops, and return the listing with the blocks that they work in."""
    import tvm
    from tvm.tirx.build import codegen_build

    target = llvm(lowered.processor)
    functions: Mapping[str, Any] = lowered.functions
    blocks: dict[str, tuple[int, ...]] = {}
    tasks: dict[str, int] = {}
    with quiet(), target:
        module = tvm.IRModule({symbol: _tvm_schedule.schedule(one, symbol) for symbol, one in functions.items()})
        module = _passes()(tvm.tirx.transform.BindTarget(target.with_host(target))(module))
        made = {}
        for variable, function in module.functions.items():
            symbol = str(variable.name_hint)
            made[variable], blocks[symbol], tasks[symbol] = _tvm_schedule.with_pointers(function)
        module = tvm.ir.transform.Sequential([tvm.tirx.transform.LowerTVMBuiltin(), tvm.tirx.transform.LowerIntrin()])(
            tvm.IRModule(made)
        )
        codegen_build(module, target).write_to_file(str(out), "o")
    blocks |= {symbol: (one.unit.scratch_bytes,) for symbol, one in lowered.kernels.items() if one.unit.scratch_bytes}
    calls = tuple(
        replace(one, scratch=blocks.get(one.symbol, one.scratch), tasks=tasks.get(one.symbol, 1))
        for one in lowered.listing.calls
    )
    return replace(lowered.listing, calls=calls)


def _passes() -> Any:
    """Return the lowering of loops on a CPU: TVM's own, `tvm.s_tir.pipeline`, without what is for GPUs."""
    import tvm
    from tvm import s_tir, tirx

    s, t = s_tir.transform, tirx.transform
    return tvm.ir.transform.Sequential(
        [
            s.CanonicalizeLoop(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.CompactBufferAllocation(),
            s.LowerMatchBuffer(),
            s.StmtSimplify(),
            s.LowerOpaqueBlock(),
            t.FlattenBuffer(),
            t.NarrowDataType(32),
            s.LoopPartition(),
            t.VectorizeLoop(True),
            t.StorageRewrite(),
            s.HoistIfThenElse(),
            t.UnrollLoop(),
            s.RenormalizeSplitPattern(),
            t.StmtSimplify(),
            t.RemoveNoOp(),
            s.RewriteUnsafeSelect(),
            t.CommonSubexprElim(),
        ]
    )


def link(lowered: Lowered, line: str, loops: Path, out: Path) -> None:
    """Compile kernels and the line of calls, and link them with the loops.

    Raises:
        BackendMissing: there is no compiler for the processor, or it fails.
    """
    units = [kernel.unit for kernel in lowered.kernels.values()]
    toolchain.compile_units(
        units,
        out,
        lowered.processor.cpu_target(),
        sources=(line,),
        linked=(str(loops), *LIBRARIES),
        flags=("-Wl,-z,defs", "-Wl,-Bsymbolic"),  # each library calls its own kernels, whatever others are loaded
    )
