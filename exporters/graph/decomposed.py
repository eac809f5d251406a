"""torch's `run_decompositions`, without making anew for each program what is the same for all.

For the time of a trace torch gives each of some 500 operators other kernels, those that keep it whole, and finds out
before which operators they are. For a small program that is most of the call. The kernels depend on nothing but the
operator, so they are made once here; what is registered is asked for once a call, where torch asks for each namespace.

    decomposed(program, table)      what program.run_decompositions(table) returns
    kept_kernels()                  the same for what runs in a block, such as torch's ONNX exporter
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch._export import utils
from torch._ops import OpOverload
from torch._subclasses.fake_impls import op_implementations_dict as fake_rules
from torch.export import ExportedProgram, exported_program

_WHOLE = torch._C.DispatchKey.CompositeImplicitAutograd
"""The key under which an operator that consists of others has its parts, or what says that it stays whole."""

Kernels = dict[Any, Callable[..., Any]]

_made: dict[OpOverload, tuple[Kernels, Kernels, Callable[..., Any]]] = {}
"""Of an operator: its kernels as they are, as torch has them for a trace, and its rule for tensors without numbers."""

_swap_kernels = exported_program._override_composite_implicit_decomp


def decomposed(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]] | None = None) -> ExportedProgram:
    """Return a program in which operators are spelled as a table says; others that write to no input stay whole.

    Raises: what `run_decompositions` and the table's functions do.
    """
    with kept_kernels():
        made: ExportedProgram = program.run_decompositions(dict(table or {}))
    return made


@contextlib.contextmanager
def kept_kernels() -> Iterator[None]:
    """Have `run_decompositions` take the kernels that were made before, while the block lasts."""
    theirs = utils._materialize_cpp_cia_ops, exported_program._override_composite_implicit_decomp
    utils._materialize_cpp_cia_ops = cache(utils._materialize_cpp_cia_ops)
    exported_program._override_composite_implicit_decomp = _with_kernels_of_a_trace  # type: ignore[assignment]
    try:
        yield
    finally:
        utils._materialize_cpp_cia_ops, exported_program._override_composite_implicit_decomp = theirs


@contextlib.contextmanager
def _with_kernels_of_a_trace(spellings: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Give operators the kernels that torch gives them for a trace, with their spellings, while the block lasts."""
    before: dict[OpOverload, Kernels] = {}
    ruled: list[OpOverload] = []
    try:
        for op, spelling in spellings.items():
            kernels = dict(op.py_kernels)
            known = _made.get(op)
            if known is None or known[0] != kernels:
                known = _made[op] = _make(op, spelling, kernels)
            before[op] = kernels
            op.py_kernels.update(known[1])
            op.py_kernels[_WHOLE] = spelling
            op._dispatch_cache.clear()
            if op not in fake_rules:
                fake_rules[op] = known[2]
                ruled.append(op)
        yield
    finally:
        for op, kernels in before.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
        for op in ruled:
            del fake_rules[op]


def _make(
    op: OpOverload, spelling: Callable[..., Any], kernels: Kernels
) -> tuple[Kernels, Kernels, Callable[..., Any]]:
    """Make an operator's kernels by torch's own function, which forgets the rules of those that had one before."""
    rule = fake_rules.get(op)
    with _swap_kernels({op: spelling}):
        made = kernels, dict(op.py_kernels), fake_rules[op]
    if rule is not None:
        fake_rules[op] = rule
    return made
