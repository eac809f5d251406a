"""Fused ops: an operation defined once by a plain PyTorch function, which is then four things.

    reference  what the op means, and what an eager call runs
    pattern    its captured graph is what a rewrite looks for in a model
    oracle     what every lowering is compared with
    fallback   what a target without a lowering inlines

An op is a module of this folder with an attribute `OP`; nothing else has to be registered.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FusedOp:
    """One fused op.

    Attributes:
        name: the op is `torch.ops.edgesmith.<name>`.
        reference: plain PyTorch, annotated so that `torch.library` can read its schema; tensors first, then literals
            with defaults. The defaults are the form that the pattern has.
        shape: from the same arguments to the output's shape, or to a tuple of them where the reference returns several
            tensors. Raises ValueError, in one sentence, for arguments that do not fit together; a rewrite turns that
            sentence into the reason for a rejected site.
        example: tensor arguments at a small size, to capture the pattern and to test lowerings.
        lowerings: target name to a function in that target's own terms (see the target's file).
        inlined: target name to a PyTorch function, called like the reference, that is inlined for that target instead
            of it: for targets that read ATen and would make something worse of the reference.
        tolerance: largest error against the reference, relative to the reference's peak, in fp32.
        literals: the literal parameters that a site may set, each with a probe: any value other than its default. What
            differs between the reference's graph with the default and with the probe is where a site has its own value.
        forms: settings of other literals under which an op computes the same numbers in another way, the default first.
        is_pattern: whether rewrites look for the reference's graph. Not for a recurrence, which would be unrolled: that
            is one op in our models, and in foreign ones rewrites of its own look for it.
    """

    name: str
    reference: Callable[..., Tensor | tuple[Tensor, ...]]
    shape: Callable[..., tuple[int, ...] | tuple[tuple[int, ...], ...]]
    example: Callable[[], tuple[Tensor, ...]]
    lowerings: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    inlined: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    tolerance: float = 1e-5
    literals: Mapping[str, Any] = field(default_factory=dict)
    forms: tuple[Mapping[str, Any], ...] = ({},)
    is_pattern: bool = True

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The op as it stands in a graph: `torch.ops.edgesmith.<name>.default`."""
        return getattr(torch.ops.edgesmith, self.name).default  # type: ignore[no-any-return]  # built at run time


def define(op: FusedOp) -> FusedOp:
    """Make `torch.ops.edgesmith.<name>`: eager calls run the reference, fake tensors go through the shape rule."""
    custom = torch.library.custom_op(f"edgesmith::{op.name}", op.reference, mutates_args=())

    def fake(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        first: Tensor = args[0]
        shape: tuple[Any, ...] = op.shape(*args, **kwargs)
        if shape and isinstance(shape[0], tuple):
            return tuple(first.new_empty(one) for one in shape)
        return first.new_empty(shape)

    custom.register_fake(fake)
    return op


@cache
def all_ops() -> dict[str, FusedOp]:
    """Every fused op by name, found by listing this folder."""
    found: dict[str, FusedOp] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        op = getattr(importlib.import_module(f"edgesmith.kernels.{module.name}"), "OP", None)
        if isinstance(op, FusedOp):
            found[op.name] = op
    return found


def find(overload: object) -> FusedOp | None:
    """The fused op that a graph node's target is, or None."""
    return next((op for op in all_ops().values() if op.overload is overload), None)
