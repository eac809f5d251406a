"""Loops of TVM's, as they run well enough where no kernel is, and as functions of plain pointers.

schedule        what is elementwise is computed where it is read, unless that is dear; innermost loops are vectors, and
                the outermost loop of what is elementwise throughout is cut into tasks for threads
with_pointers   buffers, and blocks of more than a few kilobytes, become pointers that the caller gives; of a loop over
                tasks there is one task, whose number the caller gives
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

LANES = 16
"""Numbers in a vector: 64 bytes of fp32. LLVM splits it where the processor's vectors are narrower."""

LEAST_LANES = 4
"""Numbers in the smallest vector that is worth it."""

MOST_AGAIN = 16
"""Loads and calls that are computed again rather than kept in memory: about what a load and a store of a value cost.

A value that is read twice doubles what it takes, and a chain of n such values would be computed 2^n times."""

LEAST_SHARED = 16384
"""Numbers from which a loop is shared by threads: as many as take longer than to call a thread."""

MOST_TASKS = 16
"""Tasks of a loop: two or more for each of a few threads."""

TASKS = "edgesmith_tasks"
"""The annotation of a loop over tasks."""

ON_STACK = 1024
"""Bytes from which TVM takes a block from its runtime, which is not there: the caller gives it instead."""


def schedule(function: Any, symbol: str) -> Any:
    """Return a function, under a name, whose elementwise blocks are inlined and whose innermost loops are vectors."""
    from tvm import s_tir

    function = function.with_attr("global_symbol", symbol)
    if function.body.block.name_hint != "root":  # one block: loops that are written out as they run
        return function
    found = s_tir.Schedule(function)
    reads = _count_reads(function.body)
    for block in _blocks(found):
        if _computed_again(found.get(block), reads) <= MOST_AGAIN:
            _inline(found, block)
    blocks = _blocks(found)
    for block in blocks:
        _vectorize(found, block)
    if len(blocks) == 1:
        _cut(found, blocks[0])
    return found.mod["main"].with_attr("global_symbol", symbol)


def _blocks(found: Any) -> list[Any]:
    return list(found.get_child_blocks(found.get_sblock("root")))


def _count_reads(body: Any) -> Counter[Any]:
    """Return at how many places each buffer is read."""
    return Counter(load.source for load in _found_in(body, "TensorLoad"))


def _computed_again(block: Any, reads: Counter[Any]) -> int:
    """Return the loads and calls that are added where a block, with what is in it, is computed at its readers."""
    places = max((reads[one.source] for one in block.writes), default=0)
    return (places - 1) * len(_found_in(block.body, "TensorLoad", "Call")) if places > 1 else 0


def _found_in(body: Any, *kinds: str) -> list[Any]:
    """Return the expressions of some kinds in a statement, by the names of `tvm.ir`."""
    import tvm
    from tvm_ffi import structural_walk

    found: list[Any] = []
    structural_walk(body, [(vars(tvm.ir)[kind], found.append) for kind in kinds])
    return found


def _inline(found: Any, block: Any) -> None:
    """Compute an elementwise block where it is read, if nothing stands against that."""
    from tvm.s_tir import ScheduleError

    with contextlib.suppress(ScheduleError):  # a reduction, an output, or one that is read in other forms
        found.compute_inline(block)


def _vectorize(found: Any, block: Any) -> None:
    """Make the innermost loop of an elementwise block a vector; of a reduction the rows that lie beside each other."""
    loops = found.get_loops(block)
    if found.get(block).init is not None:
        loops = _with_rows_innermost(found, block, loops)
    if not loops:
        return
    extent = found.get(loops[-1]).extent
    if not hasattr(extent, "value") or extent.value < 2:
        return
    inner, lanes = loops[-1], _lanes(int(extent.value))
    if extent.value > lanes:
        _, inner = found.split(inner, factors=[None, lanes])
    found.vectorize(inner)


def _cut(found: Any, block: Any) -> None:
    """Cut the outermost loop of an elementwise block into tasks, if it is long enough and no number is left over."""
    from tvm.tirx import IterVar

    statement, loops = found.get(block), found.get_loops(block)
    extents = [getattr(found.get(loop).extent, "value", 0) for loop in loops]
    if any(one.iter_type != IterVar.DataPar for one in statement.iter_vars) or math.prod(extents) < LEAST_SHARED:
        return
    first = next(i for i, extent in enumerate(extents) if extent > 1)
    tasks = max(count for count in range(1, MOST_TASKS + 1) if extents[first] % count == 0)
    if tasks == 1 or first == len(loops) - 1:
        return
    task, _ = found.split(loops[first], factors=[tasks, None])
    if first:
        found.reorder(task, *loops[:first])
    found.annotate(task, TASKS, tasks)


def _with_rows_innermost(found: Any, block: Any, loops: Sequence[Any]) -> Sequence[Any]:
    """Return a reduction's loops with the one over its rows innermost; none where rows do not lie beside each other."""
    from tvm.tirx import IterVar

    statement = found.get(block)
    kept = [i for i, one in enumerate(statement.iter_vars) if one.iter_type == IterVar.DataPar]
    if len(loops) != len(statement.iter_vars) or not kept:
        return ()
    made = [one.source for one in statement.writes]
    read = [load for load in _found_in(statement.body, "TensorLoad") if load.indices and load.source not in made]
    summed = [one for i, one in enumerate(statement.iter_vars) if i not in kept]
    beside = partial(_lie_beside, read, statement.iter_vars)
    if not beside(statement.iter_vars[kept[-1]]) or any(map(beside, summed)):
        return ()
    found.reorder(*[loop for i, loop in enumerate(loops) if i not in kept], loops[kept[-1]])
    return list(found.get_loops(block))


def _lie_beside(loads: Sequence[Any], variables: Sequence[Any], along: Any) -> bool:
    """Return whether some of what is loaded lies beside each other along one of a block's variables."""
    from tvm import sym

    analyzer = sym.Analyzer()
    for one in variables:
        analyzer.bind(one.var, one.dom)
    found = [sym.detect_linear_equation(analyzer.simplify(load.indices[-1]), [along.var]) for load in loads]
    return any(getattr(one[0], "value", None) == 1 for one in found if one)


def _lanes(extent: int) -> int:
    """Return the numbers of a vector: as many as leave no rest, which TVM computes number by number, all of them."""
    if extent <= LANES:
        return extent
    whole = math.gcd(extent, LANES)
    return whole if whole >= LEAST_LANES else LANES


def with_pointers(function: Any) -> tuple[Any, tuple[int, ...], int]:
    """Return a lowered function of pointers that returns 0, the bytes of the blocks that it is given, and its tasks.

    Where it has more than one task it is given the number of one, last.
    """
    import tvm
    from tvm import tirx

    blocks: list[Any] = []
    body = _give_blocks(function.body, blocks)
    parameters, declared = [], []
    for buffer in (*function.params, *blocks):
        kind = tvm.ir.PointerType(buffer.ty.dtype, "global")
        pointer = tirx.Var(f"{buffer.name}_pointer", kind)
        parameters.append(pointer)
        declared.append(tirx.DeclBuffer(buffer, data=pointer))
    ended = tirx.Evaluate(tirx.ret(0)) if hasattr(tirx, "ret") else None
    body, task, tasks = _one_task(body)
    if task is not None:
        parameters.append(task)
    made = tirx.PrimFunc(parameters, tirx.SeqStmt([*declared, body, ended]), tvm.ir.PrimType("int32"), function.attrs)
    return made, tuple(_bytes(one) for one in blocks), tasks


def _one_task(body: Any) -> tuple[Any, Any, int]:
    """Return the body of a loop over tasks that is all of a statement, its variable, and how many tasks there are."""
    from tvm import tirx

    if isinstance(body, tirx.For) and TASKS in body.annotations:
        return body.body, body.loop_var, int(body.extent)
    if isinstance(body, tirx.SeqStmt) and all(isinstance(one, tirx.DeclBuffer) for one in body.seq[:-1]):
        inner, task, tasks = _one_task(body.seq[-1])
        return tirx.SeqStmt([*body.seq[:-1], inner]), task, tasks
    return body, None, 1


def _give_blocks(body: Any, blocks: list[Any]) -> Any:
    """Return a statement without the allocations of large blocks, which are added to a list."""
    from tvm import tirx

    if isinstance(body, tirx.AllocBuffer) and _bytes(body.buffer) >= ON_STACK:
        blocks.append(body.buffer)
        return tirx.Evaluate(0)
    if isinstance(body, tirx.SeqStmt):
        return tirx.SeqStmt([_give_blocks(one, blocks) for one in body.seq])
    if isinstance(body, tirx.For):
        inner = _give_blocks(body.body, blocks)
        return tirx.For(body.loop_var, body.min, body.extent, body.kind, inner, body.thread_binding, body.annotations)
    if isinstance(body, tirx.AttrStmt):
        return tirx.AttrStmt(body.node, body.attr_key, body.value, _give_blocks(body.body, blocks))
    return body


def _bytes(buffer: Any) -> int:
    return math.prod(int(size) for size in buffer.ty.shape) * int(buffer.ty.dtype.dtype.itemsize)
