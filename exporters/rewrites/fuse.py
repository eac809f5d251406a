"""The graph of a fused op's reference becomes that fused op.

Sites are found with the pattern captured at the op's example shapes, literals ignored; then the reference is captured
again at each site's own shapes and compared exactly. A site is refused, with its reason, when an operator or a literal
differs, when the op's shape rule does not hold, or when a value in between is read from outside.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from edgesmith.exporters.capture import capture
from edgesmith.exporters.graph import operators, site, stand_for, val
from edgesmith.exporters.match import Comparison, compare, escapes, output_of
from edgesmith.exporters.rewrite import Rejection, RewriteReport
from edgesmith.exporters.rewrites.canonicalise import pattern_form
from edgesmith.exporters.targets import Costs
from edgesmith.kernels.op import FusedOp, all_ops

NEAR = 0.5
"""Fraction of the reference's operators from which a place that does not match is worth reporting."""


class Fuse:
    """Fuse one op. The rewrite is called `fuse_<op>`."""

    def __init__(self, op: FusedOp) -> None:
        self.op = op
        self.name = f"fuse_{op.name}"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fuse every site in place."""
        applied, rejected = [], []
        sizes = tuple(tuple(x.shape) for x in self.op.example())
        loose = _pattern(self.op.name, sizes)
        target = output_of(loose).target
        for anchor in operators(module):
            if anchor.target is not target or anchor.graph is not module.graph or anchor._erased:
                continue
            found = compare(loose, anchor, literals=False)
            if found.likeness < NEAR:
                continue
            where = site(*found.matched)
            inputs, reason = self._accept(loose, found, anchor)
            if reason is not None or inputs is None:
                rejected.append(Rejection(where, reason or "an argument of the reference is missing"))
                continue
            with module.graph.inserting_before(anchor):
                fused = module.graph.call_function(self.op.overload, tuple(inputs))
            fused.meta.update({key: anchor.meta[key] for key in ("val", "stack_trace") if key in anchor.meta})
            if "nn_module_stack" in anchor.meta:
                fused.meta["nn_module_stack"] = _enclosing(anchor, where)
            stand_for(fused, anchor)
            anchor.replace_all_uses_with(fused)
            module.graph.eliminate_dead_code()
            applied.append((where, f"{len(found.matched)} operators -> edgesmith.{self.op.name}"))
        return RewriteReport(self.name, tuple(applied), tuple(rejected))

    def _accept(self, loose: Graph, found: Comparison, anchor: Node) -> tuple[list[Node] | None, str | None]:
        """The op's arguments at a site, or the reason why it is none."""
        if found.mismatches:
            return None, found.mismatches[0]
        inputs = found.inputs(loose)
        if inputs is None:
            return None, None
        values = [val(node) for node in inputs]
        try:
            self.op.shape(*values)
        except ValueError as error:
            return None, str(error)
        if any(value.dtype != values[0].dtype for value in values):
            return None, "its arguments are of different types"
        pattern = _pattern(self.op.name, tuple(_hints(value) for value in values))
        exact = compare(pattern, anchor, literals=True)
        if exact.mismatches:
            return None, exact.mismatches[0]
        # Literals can decide which operand of a sum is which, so the arguments are those of the exact comparison.
        return exact.inputs(pattern), escapes(exact, anchor)


class _Reference(nn.Module):
    def __init__(self, op: FusedOp) -> None:
        super().__init__()
        self.op = op

    def forward(self, *args: Tensor) -> Tensor:
        return self.op.reference(*args)


@cache
def _pattern(name: str, sizes: tuple[tuple[int, ...], ...]) -> Graph:
    """The reference's graph at given argument shapes, spelled canonically."""
    op = all_ops()[name]
    program = capture(_Reference(op), [torch.zeros(size) for size in sizes])
    graph = pattern_form(program.module).graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder, parameter in zip(placeholders, inspect.signature(op.reference).parameters, strict=False):
        placeholder.name = parameter
    return graph


def _hints(value: Tensor) -> tuple[int, ...]:
    """Sizes as integers; a dynamic batch counts as the size that it was captured with."""
    return tuple(int(getattr(getattr(n, "node", None), "hint", n)) for n in value.shape)


def _enclosing(anchor: Node, where: str) -> dict[str, Any]:
    """The anchor's module stack, cut where it goes deeper than the whole site."""
    stack = anchor.meta["nn_module_stack"]
    return {
        key: entry
        for key, entry in stack.items()
        if entry[0] == where or where.startswith(f"{entry[0]}.") or not entry[0]
    }
