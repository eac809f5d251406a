"""Fused ops: an operation defined once by a plain PyTorch function, which is then four things.

    reference  what the op means, and what an eager call runs
    pattern    its captured graph is what a rewrite looks for in a model
    oracle     what every lowering is compared with
    fallback   what a target without a lowering inlines

Beside that an op says how it behaves where the compiler has to know: how it runs frame by frame, whether it spikes, why
int8 leaves it alone. An op is a module of this folder with an attribute `OP`; nothing else has to be registered. One of
another package is an entry point in the group `edgesmith.ops` that names a `FusedOp`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgesmith.plugins import leave_out, load_plugins

PLUGINS = "edgesmith.ops"


@dataclass(frozen=True)
class RecurrentState:
    """One state of a recurrence.

    Attributes:
        name: a word; in files the state is called after its layer and this.
        meaning: in words, to be followed by "of" and the layer.
        shape: from a call's arguments to the state's shape, with the batch.
        initial: from a call's arguments to the value of every element before the first frame.
    """

    name: str
    meaning: str
    shape: Callable[..., tuple[int, ...]]
    initial: Callable[..., float] = lambda *_: 0.0


@dataclass(frozen=True)
class Recognition:
    """The way to recognise an unrolled loop, or a scan, as an elementwise op with one state, by its numbers.

        c_t = advance(s_{t-1}, x_t)     an unrolled loop is cut here, at the first value that all later ones follow from
        y_t, s_t = settle(c_t)          where nothing comes after the cut, y_t = s_t = c_t

    Settings are what a step may differ in. By default they are the op's literals up to its last one, the time axis.

    Attributes:
        advance: `(state, frame, *settings) -> cut`.
        settle: `(cut, *settings) -> (output, next state)`.
        settings: from the numbers that stand in a step to the settings that it may have, the likeliest first. The first
            under which both halves give the step's numbers, bit for bit, is taken.
        literals: from settings and the time axis to the literals of a call, `op(x, *literals)`.
        near_miss: from a step's outputs for random states and inputs to the reason why it is not this op, where it
            looks as if it were meant to be; None otherwise.
        foreign: operators of other packages that mean the op, `name(x [T, ...], state, *others) -> (output, ...)`: from
            their other arguments to the settings.
    """

    advance: Callable[..., Tensor]
    settle: Callable[..., tuple[Tensor, Tensor]]
    settings: Callable[[Sequence[float]], Iterable[tuple[Any, ...]]]
    literals: Callable[[tuple[Any, ...], int], tuple[Any, ...]] = lambda settings, axis: (*settings, axis)
    near_miss: Callable[[Tensor], str | None] = lambda _: None
    foreign: Mapping[str, Callable[..., tuple[Any, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recurrence:
    """The way an op with a time axis runs one frame at a time. A call's arguments are those of `FusedOp.shape`.

    Attributes:
        step: plain PyTorch, `(states, frame, *others) -> (output, next states)`. `frame` is one of the call's first
            argument, without the time axis, and so is `output`; `others` are the call's other arguments, as they are.
        states: in the order of `step`.
        axes: from a call's arguments to the time axes of its first argument and of its output, counted from the front.
        sequences: positions of other arguments with that time axis, of which `step` is given the frame too.
        cannot_step: from a call's arguments to the reason why it cannot run frame by frame; None where it can.
        runs: what the op does along its time axis, a verb.
        recognition: for loops and scans that the op is to take the place of; None where there are no such.
    """

    step: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
    states: tuple[RecurrentState, ...]
    axes: Callable[..., tuple[int, int]]
    sequences: tuple[int, ...] = ()
    cannot_step: Callable[..., str | None] = lambda *_: None
    runs: str = "runs"
    recognition: Recognition | None = None


@dataclass(frozen=True)
class LinearRecurrence:
    """The knowledge of an op that means m_t = A m_{t-1} + b u_t for a signal u, and has several forms of it.

    The op is called `op(u [B, T], impulse [M, T], a [M, M], b [M], form)` and returns [B, M, T]; a and b may be None.

    Attributes:
        impulse_response: `(a, b, length) -> [M, T]`, the columns A^j b.
        scaled: `(scale [M], impulse, a, b) -> (impulse, a, b)` of the memory diag(scale) m, in float64; None stays.
        forms: `convolution` first, which needs the impulse response alone; `chunked`, where the sequence is cut into
            chunks that run at once; `recurrent`, step by step.
        chunks: from a length to the steps of a chunk and how many chunks there are.
    """

    impulse_response: Callable[[Tensor, Tensor, int], Tensor]
    scaled: Callable[[Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor | None, ...]]
    forms: tuple[str, ...]
    chunks: Callable[[int], tuple[int, int]]


@dataclass(frozen=True)
class Forms:
    """The forms of an op whose last argument, `form`, says how it is computed, and what each costs.

    Attributes:
        names: the default first.
        looped: those that run step by step and have lowerings; every target inlines the reference of the others.
        times: from the arguments, as tensors of the right shapes, and a target's costs (`exporters.costs.Costs`) to
            microseconds by form; a form that cannot be is left out.
    """

    names: tuple[str, ...]
    looped: tuple[str, ...]
    times: Callable[..., Mapping[str, float]]


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
        centre: operators by which one knows a site of the op, such as "aten.softmax", each computed from the one before
            it. Where a graph has them nearly as close together as the reference and is no site, a report says why.
            Default: the operator that occurs least often in the reference, unless graphs of every kind have it.
        variants: of a region, settings of further literals under which it is another function of the same kind.
        layouts: of a region, orders that a site may have the axes of its first argument, and of its output, in.
        is_region: whether the op is what lies between the first and the last operator of its centre, and reads, beside
            its first argument, only weights there. Then it is also found in other spellings, by its numbers.
        is_pattern: whether rewrites look for the reference's graph. Not for a recurrence, which would be unrolled: that
            is one op in our models, and in foreign ones rewrites of its own look for it.
        recurrence: how it runs frame by frame, for an op with a time axis.
        linear: what is known of it as a linear recurrence, for one that is.
        normalised_axis: the axis that a norm takes mean and variance over; its other axes do not mix.
        stays_float: why int8 leaves the whole op in float; empty where int8 may open it and round the layers inside.
        spikes: its outputs are 0 or 1, and rounding before it flips some of them.
        choice: of an op that has several forms, what each costs.
        no_step: why it cannot run frame by frame, where that is its nature.
        dtype: of its outputs, where it is another one than that of the first argument.
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
    centre: tuple[str, ...] = ()
    is_region: bool = False
    variants: tuple[Mapping[str, Any], ...] = ()
    layouts: tuple[tuple[int, ...], ...] = ()
    is_pattern: bool = True
    recurrence: Recurrence | None = None
    linear: LinearRecurrence | None = None
    normalised_axis: int | None = None
    stays_float: str = ""
    spikes: bool = False
    choice: Forms | None = None
    no_step: str = ""
    dtype: torch.dtype | None = None

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The op as it stands in a graph: `torch.ops.edgesmith.<name>.default`."""
        return getattr(torch.ops.edgesmith, self.name).default  # type: ignore[no-any-return]  # built at run time

    def positional(self, literals: Mapping[str, Any]) -> list[Any]:
        """Literal arguments by position, up to the last one that is not at its default."""
        parameters = list(inspect.signature(self.reference).parameters.values())[len(self.example()) :]
        values = [literals.get(p.name, p.default) for p in parameters]
        while values and values[-1] == parameters[len(values) - 1].default:
            values.pop()
        return values


_defined_in: dict[str, str] = {}
"""The module that defines each op; torch would let a second one take its place."""


def define(op: FusedOp) -> FusedOp:
    """Make `torch.ops.edgesmith.<name>`: eager calls run the reference, fake tensors go through the shape rule.

    Raises:
        ValueError: another module defines an op of that name.
    """
    module = op.reference.__module__
    if _defined_in.setdefault(op.name, module) != module:
        raise ValueError(f"{_defined_in[op.name]} defines edgesmith.{op.name} too; rename the op of {module}")
    custom = torch.library.custom_op(f"edgesmith::{op.name}", op.reference, mutates_args=())

    def fake(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        first: Tensor = args[0]
        shape: tuple[Any, ...] = op.shape(*args, **kwargs)
        if shape and isinstance(shape[0], tuple):
            return tuple(first.new_empty(one, dtype=op.dtype) for one in shape)
        return first.new_empty(shape, dtype=op.dtype)

    custom.register_fake(fake)
    return op


@cache
def all_ops() -> dict[str, FusedOp]:
    """Every fused op by name, found by listing this folder and then the entry points of other packages."""
    found: dict[str, FusedOp] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        op = getattr(importlib.import_module(f"edgesmith.kernels.{module.name}"), "OP", None)
        if isinstance(op, FusedOp):
            found[op.name] = op
    for entry, plugin in load_plugins(PLUGINS, FusedOp).items():
        if plugin.name in found:
            leave_out(PLUGINS, entry, f"it is edgesmith.{plugin.name}, which another plugin or edgesmith itself has")
        else:
            found[plugin.name] = plugin
    return found


def find(overload: object) -> FusedOp | None:
    """The fused op that a graph node's target is, or None."""
    if not isinstance(overload, torch._ops.OpOverload) or overload.namespace != "edgesmith":
        return None
    return all_ops().get(overload._opname)


def linear_recurrence() -> FusedOp | None:
    """The op that means a linear recurrence; the first by name where there are several, None where there is none."""
    return next((op for _, op in sorted(all_ops().items()) if op.linear is not None), None)


def spikes_in(operators: Iterable[str]) -> bool:
    """Return whether neurons spike among some operators, called as reports and manifests do: `edgesmith.lif`."""
    spiking = {f"edgesmith.{op.name}" for op in all_ops().values() if op.spikes}
    return not spiking.isdisjoint(operators)
