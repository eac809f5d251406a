"""Every `torch.fft` transform becomes matmuls with constant matrices, and every complex value a pair of real ones.

What no specialised fused op took, this takes: transforms over static axes in the arrangement that costs least (see
rewrites/fourier.py; the choice and its figures are the note in the report), complex arithmetic by the rules in
complex_values.py, complex parameters as two real ones.

An operator without a rule stays as it is, with its complex operands put together again before it and its result taken
apart behind it, and is reported. No target takes complex numbers, so lowering such a program is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.blame import line_of_node
from edgesmith.exporters.graph.edit import (
    arguments,
    aten,
    constant,
    example_sizes,
    is_changed,
    operator_name,
    rank,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrites import fourier
from edgesmith.exporters.rewrites.complex_values import (
    RULES,
    Arithmetic,
    Half,
    Pair,
    as_pair,
    is_complex,
    multiply,
)
from edgesmith.exporters.rewrites.fourier import Axis, Stage
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, Rejection, searches

_JOINTS = frozenset({"aten.complex", "aten.real", "aten.imag", "getitem"})
"""What puts values together and takes them apart, also around an operator without a rule: nothing to report."""


@searches(rule="torch.fft transforms -> matmuls; complex values -> pairs of real ones")
def dft(module: GraphModule, costs: Costs, form: str | None = None) -> Iterator[Fired | Rejection]:
    """In program order.

    Args:
        form: overrides the choice of arrangement, for measurements and tests: see `fourier.plan`.
    """
    written_out: dict[str, Counter[str]] = {}
    pairs: dict[Node, Pair] = {}
    tables: dict[Any, Node] = {}
    for node in list(module.graph.nodes):
        if not _is_concerned(node) and not any(n in pairs for n in node.all_input_nodes):
            continue
        if operator_name(node) == "aten._assert_tensor_metadata":  # the type that it asserts is gone
            module.graph.erase_node(node)
            continue
        emit, where = Arithmetic(module, node, pairs, tables), site(node)
        try:
            note = _write_out(emit, costs, form)
        except Reject as declined:
            _keep(emit)
            yield Rejection(where, f"{node.name} ({operator_name(node)}): {declined.reason}", line_of_node(node))
            continue
        if note is not None:
            yield Fired(where, note)
        elif node.op != "get_attr" and operator_name(node) not in _JOINTS:
            written_out.setdefault(where, Counter())[operator_name(node).removeprefix("aten.")] += 1
    for where, names in written_out.items():
        listed = ", ".join(f"{count} {name}" if count > 1 else name for name, count in sorted(names.items()))
        yield Fired(where, f"in real numbers: {listed}")


def _is_concerned(node: Node) -> bool:
    return is_transform(node) or operator_name(node) in _SHIFTS or is_complex(node)


def _write_out(emit: Arithmetic, costs: Costs, form: str | None) -> str | None:
    """Put real arithmetic instead of a node; a note on a transform. Raises `Reject` where there is none."""
    node = emit.before
    if node.op == "get_attr":
        emit.pairs[node] = _take_apart(emit)
        return None
    if not is_transform(node):
        _put(emit, _arithmetic(emit))
        return None
    result, note = _transform(emit, costs, form)
    _put(emit, result)
    return note


def _take_apart(emit: Arithmetic) -> Pair:
    """A complex parameter as two real ones."""
    node = emit.before
    value = constant(emit.module, node)
    assert value is not None
    value = value.resolve_conj()
    return Pair(emit.constant(f"{node.target}_re", value.real), emit.constant(f"{node.target}_im", value.imag))


def _arithmetic(emit: Arithmetic) -> Any:
    """Emit what an operator's rule makes of it, and return it: a pair, or a half."""
    node = emit.before
    rule = RULES.get(getattr(node.target, "overloadpacket", node.target)) if node.op == "call_function" else None
    if rule is None or any(is_complex(n) and n not in emit.pairs for n in node.all_input_nodes):
        raise Reject("it has no form in real numbers here")
    args = tree_map(lambda a: emit.pairs.get(a, a) if isinstance(a, Node) else a, arguments(node))
    return rule(emit, *args)


def _put(emit: Arithmetic, result: Any) -> None:
    """Let a rule's result stand for the node."""
    node = emit.before
    if is_complex(node):
        single = isinstance(node.meta["val"], Tensor)
        emit.pairs[node] = emit.settle(as_pair(result), val(node)) if single else result
        return
    new = emit.node(result.re if isinstance(result, Pair) else result)
    if new.op == "call_function" and is_changed(new):
        stand_for(new, node)
    node.replace_all_uses_with(new)


def _keep(emit: Arithmetic) -> None:
    """Leave an operator as it is: complex operands put together before it, its complex result taken apart behind it."""
    node = emit.before
    for operand in node.all_input_nodes:
        if operand in emit.pairs:
            node.replace_input_with(operand, emit(aten.complex.default, *emit.both(emit.pairs[operand])))
    if is_complex(node) and isinstance(node.meta["val"], Tensor):
        behind = Arithmetic(emit.module, _next_operator(node), emit.pairs)
        emit.pairs[node] = Pair(behind(aten.real.default, node), behind(aten.imag.default, node))


def _next_operator(node: Node) -> Node:
    """The node after this one; after an input, the one after all inputs."""
    while node.next.op == "placeholder":
        node = node.next
    return node.next


# Transforms


_SHIFTS = frozenset({"aten.fft_fftshift", "aten.fft_ifftshift"})
_KINDS = frozenset({"fft", "ifft", "rfft", "irfft", "hfft", "ihfft"})


def is_transform(node: Node) -> bool:
    """Return whether a node is one of the 18 transforms of `torch.fft`."""
    packet, _, name = operator_name(node).partition("_")
    return packet == "aten.fft" and name.rstrip("2n") in _KINDS


def transform_axes(node: Node) -> list[Axis]:
    """Return what a transform does, axis by axis. Raises `Reject` where a length is not static."""
    name = operator_name(node).removeprefix("aten.fft_")
    x, amount, over, norm = arguments(node)
    kind = name.rstrip("2n")
    if kind == name:  # one axis
        amount, over = None if amount is None else [amount], [over]
    if over is None:
        over = range(rank(x)) if amount is None else range(rank(x) - len(amount), rank(x))
    positions = [axis % rank(x) for axis in over]
    amounts = [-1] * len(positions) if amount is None else amount
    kinds = ["ifft" if kind.startswith("i") else "fft"] * (len(positions) - 1) + [kind]
    return [
        _transform_axis(one, position, val(x).shape[position], length, norm)
        for one, position, length in zip(kinds, positions, amounts, strict=True)
    ]


def _transform_axis(kind: str, position: int, given: Any, length: Any, norm: str | None) -> Axis:
    """One axis of a transform; of a real one only the last has a half spectrum.

    Args:
        length: -1 for what goes with what is given.
    """
    inverse, hermitian = kind in ("ifft", "irfft", "ihfft"), kind in ("irfft", "hfft")
    if not isinstance(given, int) or not isinstance(length, int):
        raise Reject(f"axis {position} is dynamic; a transform needs a static length")
    if length == -1:
        length = 2 * (given - 1) if hermitian else given
    made = length // 2 + 1 if kind in ("rfft", "ihfft") else length
    scale = fourier.norm_scale(norm, length, inverse)
    return Axis(position, given, made, length, 1 if inverse else -1, scale, hermitian)


def _transform(emit: Arithmetic, costs: Costs, form: str | None) -> tuple[Pair, str]:
    """The result of a transform, and a note on how it was arranged."""
    node = emit.before
    operand = node.args[0]
    if is_complex(operand) and operand not in emit.pairs:
        raise Reject("its operand has no form in real numbers here")
    axes = transform_axes(node)
    x = emit.pairs.get(operand) or Pair(operand)  # type: ignore[arg-type]  # a node, by the operator's schema
    dtype = val(node).dtype.to_real() if is_complex(node) else val(node).dtype
    x = Pair(*(emit.cast(half, dtype) if isinstance(half, Node) else half for half in (x.re, x.im)))
    shape = example_sizes(val(operand).shape)
    real_in, real_out = x.re == 0.0 or x.im == 0.0, not is_complex(node)
    chosen = fourier.plan(axes, shape, real_in, real_out, costs, dtype.itemsize, form)
    for i, stage in enumerate(chosen.stages):
        x = _stage(emit, x, stage, real_out and i == len(chosen.stages) - 1, dtype)
    over = [axis.position for axis in axes]
    lengths = "x".join(str(axis.length) for axis in axes)
    signals = max(prod(shape), 1) // max(prod(shape[i] for i in over), 1)
    name = operator_name(node).removeprefix("aten.fft_")
    return x, f"{name} over {over} {lengths}: {chosen.describe(signals)}"


def _stage(emit: Arithmetic, x: Pair, stage: Stage, real_out: bool, dtype: torch.dtype) -> Pair:
    """One step of a plan."""
    if stage.radix is not None:
        return _split(emit, x, stage.axes[0], stage.radix, real_out, dtype)
    first, last = stage.axes[0].position, stage.axes[-1].position
    shape = _shape(x)
    given, made = [axis.given for axis in stage.axes], [axis.made for axis in stage.axes]
    x = _reshaped(emit, x, [*shape[:first], prod(given), *shape[last + 1 :]])
    x = _product(emit, x, fourier.matrix(stage), first, real_out, dtype)
    return _reshaped(emit, x, [*shape[:first], *made, *shape[last + 1 :]])


def _product(emit: Arithmetic, x: Pair, m: Tensor, axis: int, real_out: bool, dtype: torch.dtype) -> Pair:
    """A complex matrix [given, made] on one axis: one real matmul for each half that is wanted."""
    shape = _shape(x)
    if x.re == 0.0:
        x, m = Pair(x.im), 1j * m
    joint, for_re, for_im = x.re, m.real, m.imag
    if x.im != 0.0:
        joint = emit(aten.cat.default, [x.re, x.im], axis)
        for_re, for_im = torch.cat([m.real, -m.imag]), torch.cat([m.imag, m.real])
    after = shape[axis + 1 :]
    if len(after) > 1:
        joint = emit.reshape(joint, [*shape[:axis], for_re.shape[0], prod(after)])

    def times(real: Tensor) -> Half:
        if not real.any():
            return 0.0
        name = f"dft_{real.shape[0]}x{real.shape[1]}"
        if after:
            y: Half = emit(aten.matmul.default, emit.table(name, real.T, dtype), joint)
        else:
            y = emit(aten.matmul.default, joint, emit.table(name, real, dtype))
        return emit.reshape(y, [*shape[:axis], real.shape[1], *after])

    return Pair(times(for_re), 0.0 if real_out else times(for_im))


def _split(emit: Arithmetic, x: Pair, axis: Axis, radix: tuple[int, int], real_out: bool, dtype: torch.dtype) -> Pair:
    """A long axis as n1 n2; a half spectrum takes the same steps backwards."""
    (n1, n2), p = radix, axis.position
    one, two = (fourier.matrix(Stage((short,))) for short in fourier.short_transforms(axis, radix))
    shape = _shape(x)
    before, after = shape[:p], shape[p + 1 :]
    ones = [1] * len(after)
    between = fourier.twiddles(axis, radix).reshape(n1, n2, *ones)
    factors = Pair(*(emit.table(f"dft_twiddles_{axis.length}", t, dtype) for t in (between.real, between.imag)))
    if axis.hermitian:
        bins = two.shape[0]
        weights = fourier.mirror_weights(axis).reshape(-1, *ones)
        x = multiply(emit, _resized(emit, x, p, axis.read), emit.table(f"dft_weights_{axis.read}", weights, dtype))
        x = _reshaped(emit, _resized(emit, x, p, bins * n1), [*before, bins, n1, *after])
        x = _product(emit, _swapped(emit, x, p), two, p + 1, False, dtype)
    else:
        rows = one.shape[0]
        x = _reshaped(emit, _resized(emit, x, p, rows * n2), [*before, rows, n2, *after])
        x = _product(emit, x, one, p, False, dtype)
    x = multiply(emit, x, factors)
    if axis.hermitian:
        x = _product(emit, x, one, p, real_out, dtype)
        return _reshaped(emit, x, [*before, axis.length, *after])
    x = _swapped(emit, _product(emit, x, two, p + 1, real_out, dtype), p)
    return _resized(emit, _reshaped(emit, x, [*before, two.shape[1] * n1, *after]), p, axis.made)


def _shape(x: Pair) -> list[Any]:
    return list(val(x.re if isinstance(x.re, Node) else x.im).shape)


def _reshaped(emit: Arithmetic, x: Pair, shape: list[Any]) -> Pair:
    return Pair(emit.reshape(x.re, shape), emit.reshape(x.im, shape))


def _swapped(emit: Arithmetic, x: Pair, axis: int) -> Pair:
    """Return the value with an axis and the next one exchanged."""
    return _each(x, lambda half: emit(aten.transpose.int, half, axis, axis + 1))


def _resized(emit: Arithmetic, x: Pair, axis: int, length: int) -> Pair:
    """An axis cut, or padded with zeros, to a length."""

    def resized(half: Node) -> Node:
        has = val(half).shape[axis]
        if has > length:
            return emit(aten.slice.Tensor, half, axis, 0, length)
        if has < length:
            behind = [0, 0] * (rank(half) - 1 - axis)
            return emit(aten.constant_pad_nd.default, half, [*behind, 0, length - has], 0.0)
        return half

    return _each(x, resized)


def _each(x: Pair, function: Callable[[Node], Node]) -> Pair:
    re, im = (function(half) if isinstance(half, Node) else half for half in (x.re, x.im))
    return Pair(re, im)
