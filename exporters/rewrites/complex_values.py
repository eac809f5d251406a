"""Complex arithmetic on pairs of real nodes: one rule for each operator, in the table at the end.

A half of a pair is a node, or the number 0.0 where it is known to be zero. The arithmetic below knows what zeros and
ones do, so the rules are the textbook's, and still a complex number times a real one is two multiplies:

    (a + 0.0 i) (c + d i)  =  (a c - 0.0) + (a d + 0.0) i

A rule takes the emitter and the operator's arguments by position, complex ones as pairs, and returns a pair, or a half
where the operator's result is real; it raises `Reject` where there is no such form. Halves that nobody reads disappear
with the other dead nodes.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from edgesmith.exporters.graph.edit import Emitter, aten, constant, operator_name, rank, same_shape, site, val
from edgesmith.exporters.rewrites.canonicalise_layers import reshaping
from edgesmith.exporters.rewrites.rewrite import Reject

Half = Node | float


@dataclass(frozen=True)
class Pair:
    """A complex value: `re` + i `im`. Once settled, each half is a node of the value's own shape, or 0.0, not both."""

    re: Half
    im: Half = 0.0


class Arithmetic(Emitter):
    """Emits real operators on halves. What is computed from constants alone becomes a constant at once.

    Attributes:
        before: the node that a rule replaces.
        pairs: the complex nodes so far, as pairs.
        tables: constants by their bytes, so that transforms of one size share theirs.
    """

    def __init__(
        self,
        module: GraphModule,
        before: Node,
        pairs: dict[Node, Pair] | None = None,
        tables: dict[Any, Node] | None = None,
    ) -> None:
        super().__init__(module, before)
        self.pairs = {} if pairs is None else pairs
        self.tables = {} if tables is None else tables

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        known: list[Tensor | None] = []
        torch.fx.map_arg((args, kwargs), lambda n: known.append(constant(self.module, n)))
        if known and all(value is not None for value in known):
            real, other = torch.fx.map_arg((args, kwargs), lambda n: constant(self.module, n))
            value = target(*real, **other)
            if isinstance(value, Tensor):
                return self.constant(".".join(filter(None, (site(self.before), self.before.name))), value)
        return super().__call__(target, *args, **kwargs)

    def table(self, name: str, value: Tensor, dtype: torch.dtype) -> Node:
        """A constant, shared with whoever has asked for the same numbers before."""
        value = value.to(dtype).contiguous()
        key = (dtype, tuple(value.shape), value.numpy().tobytes())
        if key not in self.tables:
            self.tables[key] = self.constant(name, value)
        return self.tables[key]

    def add(self, a: Half, b: Half) -> Half:
        """A sum."""
        if isinstance(a, Node) and isinstance(b, Node):
            return self(aten.add.Tensor, a, b)
        if isinstance(b, Node):
            a, b = b, a
        if isinstance(a, Node):
            return a if b == 0 else self(aten.add.Tensor, a, b)
        return a + float(b)  # type: ignore[arg-type]  # both are numbers

    def neg(self, a: Half) -> Half:
        """The other sign."""
        return self(aten.neg.default, a) if isinstance(a, Node) else -a if a else 0.0

    def sub(self, a: Half, b: Half) -> Half:
        """Return a minus b."""
        if isinstance(a, Node) and isinstance(b, Node):
            return self(aten.sub.Tensor, a, b)
        return self.add(self.neg(b), a)

    def mul(self, a: Half, b: Half) -> Half:
        """Return a times b."""
        if isinstance(a, Node) and isinstance(b, Node):
            return self(aten.mul.Tensor, a, b)
        if isinstance(b, Node):
            a, b = b, a
        if isinstance(a, Node):
            if b in (0, 1, -1):
                return 0.0 if b == 0 else a if b == 1 else self.neg(a)
            return self(aten.mul.Tensor, a, b)
        return a * float(b)  # type: ignore[arg-type]  # both are numbers

    def div(self, a: Half, b: Half) -> Half:
        """A quotient."""
        if not isinstance(a, Node) and a == 0:
            return 0.0
        if isinstance(a, Node):
            return a if b == 1 else self(aten.div.Tensor, a, b)
        return self.mul(self(aten.reciprocal.default, b), a) if isinstance(b, Node) else a / b

    def function(self, target: Any, a: Half) -> Node:
        """A real function of one value."""
        return self(target, self.node(a))

    def node(self, a: Half, like: Node | None = None) -> Node:
        """A half as a node, of the shape of `like`, or of the result where that is static."""
        if isinstance(a, Node):
            return a
        if like is not None:
            return self(aten.full_like.default, like, a)
        value = val(self.before)
        if not all(isinstance(n, int) for n in value.shape):
            raise Reject("it is constant, and its shape is not")
        dtype = value.dtype.to_real() if value.is_complex() else value.dtype
        return self.constant(f"{self.before.name}", torch.full(tuple(value.shape), a, dtype=dtype))

    def both(self, pair: Pair) -> tuple[Node, Node]:
        """Both halves as nodes, zeros made where needed."""
        if isinstance(pair.re, Node):
            return pair.re, self.node(pair.im, pair.re)
        im = self.node(pair.im)
        return self.node(pair.re, im), im

    def settle(self, pair: Pair, like: Tensor) -> Pair:
        """The halves in the shape and type of the complex value that they stand for."""
        re, im = (self._fit(half, other, like) for half, other in ((pair.re, pair.im), (pair.im, pair.re)))
        return Pair(self.node(re) if re == 0 and im == 0 else re, im)

    def _fit(self, half: Half, other: Half, like: Tensor) -> Half:
        if not isinstance(half, Node):
            return self.node(half, other if isinstance(other, Node) else None) if half else 0.0
        half = self.cast(half, like.dtype.to_real())
        if same_shape(val(half), like):
            return half
        if isinstance(other, Node) and same_shape(val(other), like):
            return self(aten.expand_as.default, half, other)
        return self(aten.expand.default, half, sizes(like.shape))

    def cast(self, half: Node, dtype: torch.dtype) -> Node:
        """A node in another type."""
        return half if val(half).dtype == dtype else self(aten._to_copy.default, half, dtype=dtype)

    def reshape(self, half: Half, shape: Sequence[Any]) -> Half:
        """A node in another shape."""
        if not isinstance(half, Node) or same_shape(val(half), shape):
            return half
        target, *rest = reshaping(val(half).shape, shape)
        return self(target, half, *([sizes(shape)] if target is aten.reshape.default else rest))


def sizes(shape: Sequence[Any]) -> list[int]:
    """A shape as a list of numbers, -1 for the one that may be dynamic."""
    numbers = [n if isinstance(n, int) else -1 for n in shape]
    if numbers.count(-1) > 1:
        raise Reject("more than one axis is dynamic")
    return numbers


def as_pair(value: Any) -> Pair:
    """An operand as a pair: a pair, a real node or a number."""
    if isinstance(value, Pair):
        return value
    return Pair(value) if isinstance(value, Node) else Pair(complex(value).real, complex(value).imag)


def is_complex(node: object) -> bool:
    """Return whether a node's value, or the first of several, is complex."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return isinstance(value, Tensor) and value.is_complex()


# Rules


def each(emit: Arithmetic, *args: Any) -> Pair:
    """An operator that treats both halves alike: it moves, repeats or sums numbers."""
    return Pair(_half(emit, "re"), _half(emit, "im"))


def _half(emit: Arithmetic, part: str) -> Half:
    node = emit.before
    pairs = [emit.pairs[n] for n in node.all_input_nodes if n in emit.pairs]
    if all(getattr(pair, part) == 0.0 for pair in pairs):
        return 0.0

    def argument(n: Node) -> Node:
        if n not in emit.pairs:
            return n
        pair = emit.pairs[n]
        half: Half = getattr(pair, part)
        return half if isinstance(half, Node) else emit.both(pair)[0 if part == "re" else 1]

    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), argument)
    args, kwargs = tree_map(lambda a: a.to_real() if isinstance(a, torch.dtype) and a.is_complex else a, (args, kwargs))
    target = aten.reshape.default if node.target in _VIEWS else node.target  # halves may lie otherwise in memory
    return emit(target, *args, **kwargs)


_VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})


def _join(emit: Arithmetic, values: Sequence[Any], axis: int = 0) -> Pair:
    """Concatenation and stacking, where a real part among complex ones has an imaginary part of zeros."""
    pairs = [as_pair(value) for value in values]
    target = emit.before.target
    dtype = val(emit.before).dtype.to_real()

    def joined(part: str) -> Half:
        if all(getattr(pair, part) == 0.0 for pair in pairs):
            return 0.0
        halves = [emit.both(pair)[0 if part == "re" else 1] for pair in pairs]
        return emit(target, [emit.cast(half, dtype) for half in halves], axis)

    return Pair(joined("re"), joined("im"))


def multilinear(emit: Arithmetic, factors: Sequence[Any], function: Callable[..., Half]) -> Pair:
    """Return a function that is linear in each of several factors: brackets expanded, zeros left out."""
    sums: list[Half] = [0.0, 0.0]
    for choice in itertools.product((0, 1), repeat=len(factors)):
        pairs = zip(map(as_pair, factors), choice, strict=True)
        halves = [pair.im if imaginary else pair.re for pair, imaginary in pairs]
        if any(half == 0.0 for half in halves):
            continue
        turns = sum(choice)  # i ** turns
        combine = emit.add if turns % 4 < 2 else emit.sub
        sums[turns % 2] = combine(sums[turns % 2], function(*halves))
    return Pair(*sums)


def _bilinear(emit: Arithmetic, a: Any, b: Any, *rest: Any) -> Pair:
    """Return the product of two tensors: of `mul`, and of the matmuls."""
    target = emit.before.target
    if target in (aten.mul.Tensor, aten.mul.Scalar):
        return multilinear(emit, (a, b), emit.mul)
    return multilinear(emit, (a, b), lambda x, y: emit(target, emit.node(x), emit.node(y), *rest))


def _affine(emit: Arithmetic, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Pair:
    """Linear layers and convolutions."""
    target = emit.before.target
    y = multilinear(emit, (x, weight), lambda a, w: emit(target, a, w, None, *rest))
    if bias is None:
        return y
    shape = [-1] + [1] * (0 if target is aten.linear.default else rank(emit.before) - 2)
    bias = as_pair(bias)
    return Pair(emit.add(y.re, emit.reshape(bias.re, shape)), emit.add(y.im, emit.reshape(bias.im, shape)))


def _einsum(emit: Arithmetic, equation: str, operands: Sequence[Any], path: Any = None) -> Pair:
    return multilinear(emit, operands, lambda *halves: emit(aten.einsum.default, equation, list(halves)))


def _add(emit: Arithmetic, a: Any, b: Any, alpha: Any = 1) -> Pair:
    a, b = as_pair(a), multiply(emit, b, alpha)
    return Pair(emit.add(a.re, b.re), emit.add(a.im, b.im))


def _sub(emit: Arithmetic, a: Any, b: Any, alpha: Any = 1) -> Pair:
    a, b = as_pair(a), multiply(emit, b, alpha)
    return Pair(emit.sub(a.re, b.re), emit.sub(a.im, b.im))


def _rsub(emit: Arithmetic, a: Any, b: Any, alpha: Any = 1) -> Pair:
    return _sub(emit, b, a, alpha)


def multiply(emit: Arithmetic, a: Any, b: Any) -> Pair:
    """Return the product of two pairs, nodes or numbers."""
    return multilinear(emit, (a, b), emit.mul)


def _div(emit: Arithmetic, a: Any, b: Any, rounding: Any = None) -> Pair:
    if rounding is not None:
        raise Reject("it rounds")
    a, b = as_pair(a), as_pair(b)
    if b.im == 0.0:
        return Pair(emit.div(a.re, b.re), emit.div(a.im, b.re))
    return multiply(emit, a, _reciprocal(emit, b))


def _reciprocal(emit: Arithmetic, z: Any) -> Pair:
    """1 / z, divided by the magnitude twice: its square would leave the range of half precision."""
    z = as_pair(z)
    if z.im == 0.0:
        return Pair(emit.div(1.0, z.re))
    if not isinstance(z.re, Node) and not isinstance(z.im, Node):
        return as_pair(1 / complex(z.re, z.im))
    size = _magnitude(emit, z)
    unit = Pair(emit.div(z.re, size), emit.div(z.im, size))
    return Pair(emit.div(unit.re, size), emit.neg(emit.div(unit.im, size)))


def _magnitude(emit: Arithmetic, z: Pair) -> Half:
    """M sqrt(1 + (l / m)^2), m the larger half and l the smaller: a square of its own would overflow in fp16 from 256.

    Where m is 0 so is the result; the quotient is then taken by 1.
    """
    if z.im == 0.0 or z.re == 0.0:
        return emit.function(aten.abs.default, z.re if z.im == 0.0 else z.im)
    re, im = emit.function(aten.abs.default, z.re), emit.function(aten.abs.default, z.im)
    large, small = emit(aten.maximum.default, re, im), emit(aten.minimum.default, re, im)
    divisor = emit(aten.where.ScalarOther, emit(aten.gt.Scalar, large, 0), large, 1.0)
    ratio = emit(aten.div.Tensor, small, divisor)
    root = emit(aten.sqrt.default, emit(aten.add.Tensor, emit(aten.mul.Tensor, ratio, ratio), 1.0))
    return emit(aten.mul.Tensor, large, root)


_GIVEN = frozenset(
    f"aten.{name}"
    for name in (
        *("neg", "alias", "clone", "contiguous", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("expand", "permute", "transpose", "slice", "select", "cat", "stack", "flip", "gather", "index_select"),
        *("unbind", "split", "split_with_sizes", "chunk", "to", "_to_copy", "relu", "where"),
    )
)
"""Operators that keep the sign of a zero, or say it."""


def _is_given(node: Node) -> bool:
    """Return whether a value is what a model is given, or has: no sum has been at the signs of its zeros."""
    waiting, seen = [node], {node}
    while waiting:
        one = waiting.pop()
        is_kept = operator_name(one) in _GIVEN or one.target is operator.getitem
        if one.op == "call_function" and not (is_kept and one.all_input_nodes):
            return False
        waiting += [source for source in one.all_input_nodes if source not in seen]
        seen |= {*one.all_input_nodes}
    return True


def _angle(emit: Arithmetic, z: Pair) -> Half:
    """atan2(l, m); l = -0 of a sum of products is taken as 0: its sign is an accident of the order of the sum."""
    re, im = emit.both(z)
    if _is_given(im):
        return emit(aten.atan2.default, im, re)
    positive = emit(aten.where.self, emit(aten.eq.Scalar, im, 0), emit(aten.abs.default, im), im)
    return emit(aten.atan2.default, positive, re)


def _polar(emit: Arithmetic, size: Any, angle: Any) -> Pair:
    return Pair(
        emit.mul(size, emit.function(aten.cos.default, angle)), emit.mul(size, emit.function(aten.sin.default, angle))
    )


def _exp(emit: Arithmetic, z: Pair) -> Pair:
    if z.im == 0.0:
        return Pair(emit.function(aten.exp.default, z.re))
    size = emit.function(aten.exp.default, z.re) if isinstance(z.re, Node) else math.exp(z.re)
    return _polar(emit, size, z.im)


def _log(emit: Arithmetic, z: Pair) -> Pair:
    return Pair(emit.function(aten.log.default, _magnitude(emit, z)), _angle(emit, z))


def _pow(emit: Arithmetic, z: Any, exponent: Any) -> Pair:
    """Whole powers by squaring."""
    is_whole = isinstance(exponent, int | float) and float(exponent).is_integer()
    if not is_whole or abs(exponent) > _LARGEST_POWER:
        raise Reject(f"only whole powers from -{_LARGEST_POWER} to {_LARGEST_POWER} are written out")
    result, square, left = Pair(1.0), as_pair(z), abs(int(exponent))
    while left:
        if left % 2:
            result = multiply(emit, result, square)
        left //= 2
        if left:
            square = _square(emit, square)
    return _reciprocal(emit, result) if exponent < 0 else result


_LARGEST_POWER = 8


def _square(emit: Arithmetic, z: Pair) -> Pair:
    cross = emit.mul(z.re, z.im)
    return Pair(emit.sub(emit.mul(z.re, z.re), emit.mul(z.im, z.im)), emit.add(cross, cross) if cross else 0.0)


def _conj(emit: Arithmetic, z: Pair) -> Pair:
    return Pair(z.re, emit.neg(z.im))


def _transposed(emit: Arithmetic, z: Pair) -> Pair:
    def swap(half: Half) -> Half:
        return emit(aten.transpose.int, half, -2, -1) if isinstance(half, Node) else half

    return Pair(swap(z.re), swap(z.im))


def _adjoint(emit: Arithmetic, z: Pair) -> Pair:
    return _conj(emit, _transposed(emit, z))


def _same(emit: Arithmetic, z: Any, *rest: Any) -> Any:
    return z


def _cast(emit: Arithmetic, z: Any, *rest: Any) -> Any:
    """A change of type: settling does it; a real result is the real half."""
    if is_complex(emit.before):
        return as_pair(z)
    half = as_pair(z).re
    return emit.cast(emit.node(half), val(emit.before).dtype)


def _view_as_complex(emit: Arithmetic, x: Node) -> Pair:
    """[..., 2] -> its two halves."""
    return Pair(*(emit(aten.select.int, x, rank(x) - 1, i) for i in (0, 1)))


def _view_as_real(emit: Arithmetic, z: Pair) -> Half:
    """The halves side by side, [..., 2]; the `unstack` rewrite removes both where they are only read apart."""
    return emit(aten.stack.default, list(emit.both(z)), rank(emit.before) - 1)


def _full_like(number: float | None) -> Callable[..., Pair]:
    def rule(emit: Arithmetic, z: Any, *rest: Any) -> Pair:
        like = next(half for half in (as_pair(z).re, as_pair(z).im) if isinstance(half, Node))
        value = as_pair(rest[0] if number is None else number)
        return Pair(emit.node(value.re, like), emit.node(value.im, like) if value.im else 0.0)

    return rule


def _where(emit: Arithmetic, condition: Node, a: Any = None, b: Any = None) -> Pair:
    a, b = as_pair(a), as_pair(b)
    like = next((half for pair in (a, b) for half in (pair.re, pair.im) if isinstance(half, Node)), None)

    def choose(x: Half, y: Half) -> Half:
        if x == 0.0 and y == 0.0:
            return 0.0
        return emit(aten.where.self, condition, emit.node(x, like), emit.node(y, like))

    return Pair(choose(a.re, b.re), choose(a.im, b.im))


def _masked_fill(emit: Arithmetic, z: Pair, mask: Node, value: Any) -> Pair:
    value = as_pair(value)
    if isinstance(value.re, Node):
        raise Reject("the value that it fills in is a tensor")
    re, im = emit.both(z)
    return Pair(emit(aten.masked_fill.Scalar, re, mask, value.re), emit(aten.masked_fill.Scalar, im, mask, value.im))


def _pad(emit: Arithmetic, z: Pair, amounts: Sequence[int], *rest: Any) -> Pair:
    """Padding with reflections and the like treats halves alike; a constant is split."""
    mode = next((r for r in rest if isinstance(r, str)), "constant")
    value = next((r for r in rest if isinstance(r, int | float | complex)), 0)
    if mode != "constant":
        return each(emit)
    halves = [
        half if half == 0.0 and not number else emit(aten.constant_pad_nd.default, node, list(amounts), number)
        for half, node, number in zip(
            (z.re, z.im), emit.both(z), (complex(value).real, complex(value).imag), strict=True
        )
    ]
    return Pair(*halves)


def shift(emit: Arithmetic, z: Any, axes: Sequence[int] | None, forwards: bool) -> Any:
    """`fftshift` (forwards) and its inverse: each axis cut in two, the second part first. Of real values too."""
    if isinstance(z, Pair):
        re, im = (shift(emit, half, axes, forwards) if isinstance(half, Node) else half for half in (z.re, z.im))
        return Pair(re, im)
    for axis in range(rank(z)) if axes is None else axes:
        length = val(z).shape[axis]
        if not isinstance(length, int):
            raise Reject(f"axis {axis} is dynamic")
        cut = (length + 1) // 2 if forwards else length // 2
        if 0 < cut < length:
            parts = [emit(aten.slice.Tensor, z, axis, a, b) for a, b in ((cut, length), (0, cut))]
            z = emit(aten.cat.default, parts, axis)
    return z


def _getitem(emit: Arithmetic, values: Pair, index: int) -> Pair:
    halves = [
        emit(operator.getitem, half, index) if isinstance(half, Node) else half for half in (values.re, values.im)
    ]
    return Pair(*halves)


_ALIKE = """
    alias _unsafe_view broadcast_to chunk clone contiguous cumsum detach diagonal diff expand expand_as flatten flip
    fliplr flipud gather index index_select lift_fresh_copy mean movedim moveaxis mT narrow numpy_T permute repeat
    repeat_interleave reshape roll rot90 select select_scatter slice slice_scatter split split_with_sizes squeeze sum
    swapaxes swapdims t tensor_split tile trace transpose tril triu unbind unflatten unfold unsqueeze view view_as
""".split()  # noqa: SIM905  # sixty names read better as prose than as a column

RULES: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name): each for name in _ALIKE},
    operator.getitem: _getitem,
    aten.cat: _join,
    aten.concat: _join,
    aten.stack: _join,
    aten.add: _add,
    aten.sub: _sub,
    aten.rsub: _rsub,
    aten.neg: lambda emit, z: Pair(emit.neg(z.re), emit.neg(z.im)),
    aten.mul: _bilinear,
    aten.matmul: _bilinear,
    aten.mm: _bilinear,
    aten.bmm: _bilinear,
    aten.mv: _bilinear,
    aten.outer: _bilinear,
    aten.dot: _bilinear,
    aten.einsum: _einsum,
    aten.linear: _affine,
    aten.conv1d: _affine,
    aten.conv2d: _affine,
    aten.div: _div,
    aten.true_divide: _div,
    aten.reciprocal: _reciprocal,
    aten.square: _square,
    aten.pow: _pow,
    aten.exp: _exp,
    aten.log: _log,
    aten.real: lambda _, z: as_pair(z).re,
    aten.imag: lambda _, z: as_pair(z).im,
    aten.abs: _magnitude,
    aten.angle: _angle,
    aten.conj: _conj,
    aten._conj: _conj,
    aten.conj_physical: _conj,
    aten._conj_physical: _conj,
    aten.resolve_conj: _same,
    aten.resolve_neg: _same,
    aten.mH: _adjoint,
    aten.adjoint: _adjoint,
    aten.complex: lambda _, re, im: Pair(re, im),
    aten.polar: _polar,
    aten.view_as_real: _view_as_real,
    aten.view_as_complex: _view_as_complex,
    aten.to: _cast,
    aten._to_copy: _cast,
    aten.type_as: _cast,
    aten.zeros_like: _full_like(0.0),
    aten.ones_like: _full_like(1.0),
    aten.full_like: _full_like(None),
    aten.fill: _full_like(None),
    aten.where: _where,
    aten.masked_fill: _masked_fill,
    aten.pad: _pad,
    aten.constant_pad_nd: _pad,
    aten.fft_fftshift: lambda emit, z, axes: shift(emit, z, axes, True),
    aten.fft_ifftshift: lambda emit, z, axes: shift(emit, z, axes, False),
}
