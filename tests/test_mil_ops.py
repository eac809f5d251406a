"""Every MIL operator on drawn shapes and attributes: coremltools builds and saves it, we evaluate it, torch judges.

A case draws one site of an operator: tensors, attributes, and the same operation written with torch's own functions.
Sites of a whole family go into one program, in fp32 and in fp16, since conversion costs far more than evaluation.

    fp32   within 1e-6 of the peak of the reference, or of the site's scale; it is evaluated in double precision
    fp16   within one unit in the last place of what torch gives for half-precision operands, where it has the operator
           as one function on the CPU, and otherwise of the reference in double precision, rounded to half
    others equal
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.mil import ops as table

ct = pytest.importorskip("coremltools")

OPSETS = (15, 16, 17, 18)
KINDS = ("fp32", "fp16")
PROGRAMS = 5
"""Programs for each family and opset; each has at least one site of each operator in each precision."""
DRAWN = 40
"""Sites of each operator that the whole file draws, at least."""

Reference = Callable[..., Any]


@dataclass
class Site:
    """One use of an operator.

    Attributes:
        tensors: run-time operands by MIL name; a tuple for an operator that takes several.
        attributes: constants as coremltools' builder takes them.
        reference: the same from the tensors, in torch's functions; None where `check` judges.
        half: torch has this as one function for half precision on the CPU, which judges then.
        check: looks at the results themselves, where there are no numbers to compare with.
        scale: the largest number on the way to the results, where it may be larger than they are: fp32 rounds that.
    """

    tensors: dict[str, Any]
    attributes: dict[str, Any]
    reference: Reference | None
    half: bool = False
    check: Callable[..., None] | None = None
    scale: float = 0.0


@dataclass
class Draw:
    """What a case draws from: hypothesis chooses shapes, attributes and a seed for the values."""

    data: st.DataObject
    kind: str
    opset: int
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.data.draw(st.integers(0, 2**31 - 1)))

    @property
    def float_type(self) -> torch.dtype:
        return torch.float16 if self.kind == "fp16" else torch.float32

    def whole(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.data.draw(st.booleans())

    def choose(self, options: Sequence[Any]) -> Any:
        return self.data.draw(st.sampled_from(list(options)))

    def shape(self, low: int = 1, high: int = 4, largest: int = 5) -> list[int]:
        return self.data.draw(st.lists(st.integers(1, largest), min_size=low, max_size=high))

    def floats(self, shape: Sequence[int], low: float = -3.0, high: float = 3.0) -> Tensor:
        values = torch.rand(list(shape), generator=self.generator, dtype=torch.float64) * (high - low) + low
        return values.to(self.float_type)

    def wholes(self, shape: Sequence[int], low: int = -9, high: int = 9) -> Tensor:
        return torch.randint(low, high + 1, list(shape), generator=self.generator, dtype=torch.int32)

    def bools(self, shape: Sequence[int]) -> Tensor:
        return self.wholes(shape, 0, 1).bool()

    def distinct(self, shape: Sequence[int]) -> Tensor:
        order = torch.randperm(math.prod(shape), generator=self.generator)
        return (order - math.prod(shape) // 2).reshape(list(shape)).to(self.float_type)

    def data_of(self, shape: Sequence[int], small: bool = True) -> Tensor:
        """Values of a type that operators without arithmetic take; the short integers from iOS17 on."""
        types = ["float", "float", "int32", "bool"]
        if small and self.opset >= 17:
            types += ["int8", "uint8", "int16", "uint16"]
        chosen = self.choose(types)
        if chosen == "float":
            return self.floats(shape)
        if chosen == "bool":
            return self.bools(shape)
        low = 0 if chosen.startswith("u") else -100
        return self.wholes(shape, low, 100).to(getattr(torch, chosen))

    def scalar(self, low: float, high: float) -> Any:
        """A constant of the site's float type."""
        value = low + (high - low) * self.whole(0, 1000) / 1000
        return np.float16(value) if self.kind == "fp16" else np.float32(value)

    def vector(self, length: int, low: float, high: float) -> Any:
        return self.floats([length], low, high).numpy()

    def axis(self, rank: int) -> int:
        return self.whole(-rank, rank - 1)

    def axes(self, rank: int) -> list[int]:
        chosen = [axis for axis in range(rank) if self.flag()] or [self.whole(0, rank - 1)]
        return [axis - rank if self.flag() else axis for axis in chosen]

    def broadcast(self) -> tuple[list[int], list[int]]:
        """Two shapes that go together."""
        shape = self.shape(1, 4, 4)
        other = [1 if self.flag() else size for size in shape][self.whole(0, len(shape) - 1) :]
        return (shape, other) if self.flag() else (other, shape)


Case = Callable[[Draw], Site]
FAMILIES: dict[str, dict[str, tuple[Case, int]]] = {}


def case(family: str, *names: str, since: int = 15) -> Callable[[Callable[..., Site]], Callable[..., Site]]:
    """Register a case for operators; one for several gets the operator's name as its second argument."""

    def register(function: Callable[..., Site]) -> Callable[..., Site]:
        for name in names:
            one: Case = (lambda draw, name=name: function(draw, name)) if len(names) > 1 else function
            FAMILIES.setdefault(family, {})[name] = (one, since)
        return function

    return register


# ---------------------------------------------------------------------------------------------- elementwise

DOMAINS = {
    "acos": (-1, 1), "asin": (-1, 1), "atanh": (-0.9, 0.9), "cosh": (-4, 4), "exp": (-4, 4), "sinh": (-4, 4),
    "sqrt": (0, 9), "tan": (-1.4, 1.4), "exp2": (-6, 6),
}  # fmt: skip
UNARY = "abs acos asin atan atanh ceil cos cosh erf exp exp2 floor round sign sin sinh sqrt square tan tanh"
TORCH_UNARY = {name: getattr(torch, name) for name in UNARY.split()}


@case("elementwise", *TORCH_UNARY)
def unary(draw: Draw, name: str) -> Site:
    shape = draw.shape()
    if name in ("abs", "sign", "square", "exp2") and draw.flag():
        x = draw.wholes(shape, 0 if name == "exp2" else -9, 9)
        return Site({"x": x}, {}, lambda x: TORCH_UNARY[name](x.double()).int())
    if name in ("round", "ceil", "floor", "sign"):  # halves and zeros among them
        return Site({"x": draw.wholes(shape, -7, 7).to(draw.float_type) / 2}, {}, TORCH_UNARY[name], half=True)
    return Site({"x": draw.floats(shape, *DOMAINS.get(name, (-3, 3)))}, {}, TORCH_UNARY[name], half=True)


TORCH_BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "maximum": torch.maximum, "minimum": torch.minimum,
    "floor_div": torch.floor_divide, "mod": torch.remainder, "real_div": torch.div, "pow": torch.pow,
}  # fmt: skip


@case("elementwise", *TORCH_BINARY)
def binary(draw: Draw, name: str) -> Site:
    first, second = draw.broadcast()
    if draw.flag():
        x, y = draw.wholes(first), draw.wholes(second)
        if name in ("floor_div", "mod", "real_div"):
            y = torch.where(y == 0, 7, y).int()
        if name == "pow":
            return Site({"x": draw.wholes(first, -4, 4), "y": draw.wholes(second, 0, 5)}, {}, torch.pow)
        if name == "real_div":
            return Site({"x": x, "y": y}, {}, lambda x, y: torch.div(x, y, rounding_mode="trunc"))
        return Site({"x": x, "y": y}, {}, TORCH_BINARY[name])
    x = draw.floats(first, 0.1, 4) if name == "pow" else draw.floats(first, -20, 20)
    y = draw.floats(second, 0.5, 3)
    y = y * torch.where(draw.bools(second), 1, -1).to(y.dtype)
    return Site({"x": x, "y": y}, {}, TORCH_BINARY[name], half=name != "pow")


COMPARISONS = {
    "equal": torch.eq, "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt,
    "less_equal": torch.le,
}  # fmt: skip


@case("elementwise", *COMPARISONS)
def comparison(draw: Draw, name: str) -> Site:
    first, second = draw.broadcast()
    kind = torch.int32 if draw.flag() else draw.float_type
    tensors = {"x": draw.wholes(first, -2, 2).to(kind), "y": draw.wholes(second, -2, 2).to(kind)}
    return Site(tensors, {}, COMPARISONS[name], half=True)


@case("elementwise", "logical_and", "logical_or", "logical_xor")
def logical(draw: Draw, name: str) -> Site:
    first, second = draw.broadcast()
    return Site({"x": draw.bools(first), "y": draw.bools(second)}, {}, getattr(torch, name))


@case("elementwise", "logical_not")
def logical_not(draw: Draw) -> Site:
    return Site({"x": draw.bools(draw.shape())}, {}, torch.logical_not)


@case("elementwise", "select")
def select(draw: Draw) -> Site:
    shape = draw.shape()
    where = [1 if draw.flag() else size for size in shape]
    tensors = {"cond": draw.bools(where), "a": draw.floats(shape), "b": draw.floats(shape)}
    return Site(tensors, {}, torch.where, half=True)


@case("elementwise", "cast")
def cast(draw: Draw) -> Site:
    x = draw.data_of(draw.shape())
    if x.is_floating_point():
        x = x * 30
    names = {"fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}
    if draw.opset >= 17:
        names |= {name: getattr(torch, name) for name in ("int8", "uint8", "int16", "uint16")}
    wanted = draw.choose(names)

    def reference(x: Tensor) -> Tensor:
        if names[wanted].is_floating_point or wanted == "bool":
            return x.to(names[wanted])
        bits = x.double().trunc().to(torch.int64)
        size, signed = int(wanted.lstrip("uint")), not wanted.startswith("u")
        wrapped = bits % 2**size
        return torch.where(wrapped >= 2 ** (size - 1), wrapped - 2**size, wrapped) if signed else wrapped

    return Site({"x": x}, {"dtype": wanted}, reference)


@case("elementwise", "clip")
def clip(draw: Draw) -> Site:
    low, high = draw.scalar(-2, 0), draw.scalar(0.1, 2)
    return Site(
        {"x": draw.floats(draw.shape())},
        {"alpha": low, "beta": high},
        lambda x: torch.clip(x, float(low), float(high)),
        half=True,
    )


@case("elementwise", "threshold")
def threshold(draw: Draw) -> Site:
    if draw.flag():
        least = draw.whole(-5, 5)
        x = draw.wholes(draw.shape())
        return Site({"x": x}, {"alpha": np.int32(least)}, lambda x: torch.clamp_min(x, least))
    alpha = draw.scalar(-2, 2)
    return Site(
        {"x": draw.floats(draw.shape())}, {"alpha": alpha}, lambda x: torch.clamp_min(x, float(alpha)), half=True
    )


@case("elementwise", "inverse", "log", "rsqrt")
def shifted(draw: Draw, name: str) -> Site:
    default = {"inverse": 1e-4, "log": 1e-45, "rsqrt": 1e-12}[name]
    kind = np.float16 if draw.kind == "fp16" else np.float32
    epsilon = kind(default)
    attributes = {}
    if draw.flag():
        epsilon = (np.float32 if draw.opset >= 17 and draw.flag() else kind)(draw.whole(1, 500) / 1000)
        attributes["epsilon"] = epsilon
    function = {"inverse": torch.reciprocal, "log": torch.log, "rsqrt": torch.rsqrt}[name]
    low = 1.2 if name == "log" else 0.05
    return Site({"x": draw.floats(draw.shape(), low, 6)}, attributes, lambda x: function(x + float(epsilon)))


# ---------------------------------------------------------------------------------------------- activations

TORCH_ACTIVATIONS = {
    "relu": F.relu, "relu6": F.relu6, "sigmoid": torch.sigmoid, "silu": F.silu, "softplus": F.softplus,
    "softsign": F.softsign,
}  # fmt: skip


@case("activations", *TORCH_ACTIVATIONS)
def activation(draw: Draw, name: str) -> Site:
    x = draw.floats(draw.shape(), -8, 8)
    return Site({"x": x}, {}, TORCH_ACTIVATIONS[name], half=name != "softsign")


@case("activations", "leaky_relu", "elu", "thresholded_relu")
def activation_alpha(draw: Draw, name: str) -> Site:
    alpha = draw.scalar(0.01, 1.5)
    value = float(alpha)
    references = {
        "leaky_relu": lambda x: F.leaky_relu(x, value),
        "elu": lambda x: F.elu(x, value),
        "thresholded_relu": lambda x: F.threshold(x, math.nextafter(value, -math.inf), 0.0) if x.dtype == torch.float64
        else torch.where(x >= value, x, 0),
    }  # fmt: skip
    return Site({"x": draw.floats(draw.shape())}, {"alpha": alpha}, references[name], half=True)


@case("activations", "clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard")
def activation_alpha_beta(draw: Draw, name: str) -> Site:
    alpha, beta = draw.scalar(0.1, 1.5), draw.scalar(0.1, 1.5)
    a, b = float(alpha), float(beta)
    references = {
        "clamped_relu": lambda x: torch.minimum(torch.where(x >= 0, x, a * x), torch.full_like(x, b)),
        "linear_activation": lambda x: torch.addcmul(torch.full_like(x, b), x, torch.full_like(x, a)),
        "scaled_tanh": lambda x: a * torch.tanh(b * x),
        "sigmoid_hard": lambda x: torch.maximum(torch.minimum(a * x + b, torch.ones_like(x)), torch.zeros_like(x)),
    }
    x = draw.floats(draw.shape(), 0, 3) if name == "linear_activation" else draw.floats(draw.shape())
    return Site({"x": x}, {"alpha": alpha, "beta": beta}, references[name])


@case("activations", "gelu")
def gelu(draw: Draw) -> Site:
    mode = draw.choose([None, "EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
    references = {
        "TANH_APPROXIMATION": lambda x: F.gelu(x, approximate="tanh"),
        "SIGMOID_APPROXIMATION": lambda x: x / (1 + torch.exp(-1.702 * x)),
    }
    reference = references.get(mode, F.gelu)
    return Site(
        {"x": draw.floats(draw.shape(), -3.5, 5)},  # beyond, torch's half-precision result is off itself; see below
        {} if mode is None else {"mode": mode},
        reference,
        half=mode != "SIGMOID_APPROXIMATION",
    )


@case("activations", "prelu")
def prelu(draw: Draw) -> Site:
    shape = draw.shape(3, 5, 4)
    alpha = draw.vector(shape[1], 0.1, 1)
    if len(shape) != 4:  # coremltools wants equal ones there
        alpha = np.full_like(alpha, alpha[0])
    slope = torch.from_numpy(alpha)
    return Site({"x": draw.floats(shape)}, {"alpha": alpha}, lambda x: F.prelu(x, slope.to(x.dtype)), half=True)


@case("activations", "softplus_parametric")
def softplus_parametric(draw: Draw) -> Site:
    shape = draw.shape(3, 4, 4)
    alpha, beta = draw.vector(shape[1], 0.1, 2), draw.vector(shape[1], 0.1, 2)

    def reference(x: Tensor) -> Tensor:
        parts = [a * F.softplus(one * b) for one, a, b in zip(x.unbind(1), alpha.tolist(), beta.tolist(), strict=True)]
        return torch.stack(parts, 1)

    return Site({"x": draw.floats(shape)}, {"alpha": alpha, "beta": beta}, reference)


@case("activations", "softmax")
def softmax(draw: Draw) -> Site:
    shape = draw.shape()
    axis = draw.axis(len(shape))
    attributes = {} if axis == -1 and draw.flag() else {"axis": axis}
    return Site({"x": draw.floats(shape, -8, 8)}, attributes, lambda x: F.softmax(x, axis), half=True)


# ---------------------------------------------------------------------------------------------- reductions


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


TORCH_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 1, axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "reduce_log_sum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_prod": product,
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep) ** 2,
}


@case("reductions", *TORCH_REDUCTIONS)
def reduction(draw: Draw, name: str) -> Site:
    shape = draw.shape(1, 4, 4)
    axes, keep = draw.axes(len(shape)), draw.flag()
    attributes: dict[str, Any] = {"keep_dims": True} if keep else {}
    if draw.flag():
        attributes["axes"] = axes
    else:
        axes = list(range(len(shape)))
        if not keep:  # a model's output has an axis
            attributes["keep_dims"] = keep = True
    if not keep and len(axes) == len(shape):
        attributes["keep_dims"] = keep = True
    function = TORCH_REDUCTIONS[name]
    if draw.flag() and draw.flag():
        low = 2 if name == "reduce_log_sum" else 1 if name == "reduce_prod" else -9
        x = draw.wholes(shape, low, 3 if name == "reduce_prod" else 9)
        x = x % 3 if name == "reduce_prod" else x

        def whole(x: Tensor) -> Tensor:  # 1e-9: the double's square may miss an integer from below
            result = function(x.double(), axes, keep)
            return (result + result.sign() * 1e-9).int()

        return Site({"x": x}, attributes, whole)
    ranges = {"reduce_log_sum": (1.1, 3), "reduce_log_sum_exp": (0.5, 4), "reduce_prod": (0.8, 1.2)}
    x = draw.floats(shape, *ranges.get(name, (-1, 3)))
    half = name in ("reduce_max", "reduce_min", "reduce_sum", "reduce_mean")
    return Site({"x": x}, attributes, lambda x: function(x, axes, keep), half=half)


@case("reductions", "reduce_argmax", "reduce_argmin")
def reduce_arg(draw: Draw, name: str) -> Site:
    shape = draw.shape(2, 4)
    axis, keep = draw.axis(len(shape)), draw.flag()
    attributes: dict[str, Any] = {"axis": axis, "keep_dims": keep}
    if axis == -1 and not keep and draw.flag():
        attributes = {}
    if draw.opset >= 17 and draw.flag():
        attributes["output_dtype"] = draw.choose(["int32", "uint16"])
    function = torch.argmax if name == "reduce_argmax" else torch.argmin
    x = draw.distinct(shape)
    return Site({"x": x.int() if draw.flag() else x}, attributes, lambda x: function(x, axis, keep))


@case("reductions", "cumsum")
def cumsum(draw: Draw) -> Site:
    shape = draw.shape()
    axis, exclusive, backwards = draw.whole(-1, len(shape) - 1), draw.flag(), draw.flag()
    attributes = {"axis": axis, "exclusive": exclusive, "reverse": backwards}
    x = draw.wholes(shape) if draw.flag() else draw.floats(shape, -1, 3)

    def reference(x: Tensor) -> Tensor:
        size = x.shape[axis]
        up_to = torch.ones(size, size, dtype=torch.float64).tril(-1 if exclusive else 0)
        up_to = up_to.T if backwards else up_to
        return (x.double().movedim(axis, -1) @ up_to.T).movedim(-1, axis).to(x.dtype)

    return Site({"x": x}, attributes, reference)


@case("reductions", "argsort")
def argsort(draw: Draw) -> Site:
    shape = draw.shape()
    axis, ascending = draw.axis(len(shape)), draw.flag()
    attributes = {} if axis == -1 and not ascending else {"axis": axis, "ascending": ascending}
    x = draw.distinct(shape)
    x = x.int() if draw.flag() else x
    return Site({"x": x}, attributes, lambda x: torch.argsort(x, axis, descending=not ascending))


@case("reductions", "topk")
def topk(draw: Draw) -> Site:
    shape = draw.shape()
    axis, ascending = draw.axis(len(shape)), draw.flag()
    k = draw.whole(1, shape[axis])
    attributes: dict[str, Any] = {"k": k, "axis": axis, "ascending": ascending}
    only = False
    if draw.opset >= 16:
        only = draw.flag()
        attributes |= {"return_indices": not only, "sort": True}
    if draw.opset >= 17 and not only:
        attributes["output_indices_dtype"] = draw.choose(["int32", "uint16"])
    x = draw.distinct(shape)
    x = x.int() if draw.flag() else x

    def reference(x: Tensor) -> Any:
        values, indices = torch.topk(x, k, axis, largest=not ascending, sorted=True)
        return values if only else (values, indices)

    return Site({"x": x}, attributes, reference, half=True)


# ---------------------------------------------------------------------------------------------- shapes


def factors(draw: Draw, total: int) -> list[int]:
    """A drawn shape with this many elements."""
    shape = []
    while total > 1:
        size = draw.choose([n for n in range(1, total + 1) if total % n == 0])
        shape.append(size)
        total //= size
        if len(shape) == 3:
            break
    return [*shape, total]


@case("shapes", "reshape")
def reshape(draw: Draw) -> Site:
    shape = draw.shape()
    wanted = factors(draw, math.prod(shape))
    given = list(wanted)
    if draw.flag():
        given[draw.whole(0, len(given) - 1)] = -1
    elif draw.opset >= 17 or len(wanted) == len(shape):  # a 0 stands for the axis as far from the end
        for back in range(1, len(given) + 1):
            if (shape[-back] if back <= len(shape) else 1) == given[-back]:
                given[-back] = 0
    kind = draw.choose([np.int8, np.int16, np.int32]) if draw.opset >= 17 else np.int32
    return Site({"x": draw.data_of(shape)}, {"shape": np.array(given, kind)}, lambda x: torch.reshape(x, wanted))


@case("shapes", "reshape_like", since=16)
def reshape_like(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    cut = draw.whole(1, len(shape) - 1)
    first, second = [*shape[:cut], draw.whole(1, 3)], [draw.whole(1, 3), *shape[cut:]]
    to_the_end = draw.flag()
    attributes = {
        "begins": (0, 1), "ends": (cut, 0 if to_the_end else len(second)), "end_masks": (False, to_the_end),
    }  # fmt: skip
    tensors = {
        "x": draw.data_of([math.prod(shape)], small=False),
        "ref_tensors": (draw.floats(first), draw.floats(second)),
    }
    return Site(tensors, attributes, lambda x, ref_tensors: x.view(shape))


@case("shapes", "transpose")
def transpose(draw: Draw) -> Site:
    shape = draw.shape()
    order = draw.data.draw(st.permutations(range(len(shape))))
    perm = [axis - len(shape) if draw.flag() else axis for axis in order]
    return Site({"x": draw.data_of(shape)}, {"perm": perm}, lambda x: torch.permute(x, order))


@case("shapes", "squeeze")
def squeeze(draw: Draw) -> Site:
    shape = [2, *(1 if draw.flag() else draw.whole(2, 3) for _ in range(draw.whole(1, 3)))]
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    if not ones or draw.flag():
        wanted, attributes = [size for size in shape if size != 1], {}
    else:
        axis = draw.choose(ones)
        wanted = shape[:axis] + shape[axis + 1 :]
        attributes = {"axes": [axis - len(shape) if draw.flag() else axis]}
    return Site({"x": draw.data_of(shape)}, attributes, lambda x: x.reshape(wanted))


@case("shapes", "expand_dims")
def expand_dims(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    count = draw.whole(1, 2)
    rank = len(shape) + count
    places = sorted(draw.data.draw(st.permutations(range(rank)))[:count])
    wanted, rest = [], iter(shape)
    for axis in range(rank):
        wanted.append(1 if axis in places else next(rest))
    axes = [axis - rank if draw.flag() else axis for axis in places]
    return Site({"x": draw.data_of(shape)}, {"axes": axes}, lambda x: x.reshape(wanted))


@case("shapes", "flatten2d")
def flatten2d(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    axis = draw.choose([a for a in range(-len(shape), len(shape)) if a % len(shape)])
    attributes = {} if axis == 1 else {"axis": axis}
    return Site(
        {"x": draw.data_of(shape, small=False)},
        attributes,
        lambda x: torch.flatten(torch.flatten(x, axis % len(shape)), 0, axis % len(shape) - 1),
    )


@case("shapes", "concat")
def concat(draw: Draw) -> Site:
    shape = draw.shape(1, 4)
    axis, interleave = draw.axis(len(shape)), draw.flag()
    shapes = [list(shape) for _ in range(draw.whole(1, 3))]
    first = draw.data_of(shapes[0], small=False)
    if not interleave:
        for one in shapes:
            one[axis] = draw.whole(1, 4)
    values = tuple((draw.floats(one, 0, 99) if first.is_floating_point() else draw.wholes(one, 0, 99)).to(first.dtype)
                   for one in shapes)  # fmt: skip

    def reference(values: Sequence[Tensor]) -> Tensor:
        if not interleave:
            return torch.concatenate(list(values), axis)
        rows = [one.select(axis, row) for row in range(shape[axis]) for one in values]
        return torch.stack(rows, axis)

    return Site({"values": values}, {"axis": axis, "interleave": interleave}, reference)


@case("shapes", "stack")
def stack(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    axis = draw.whole(-len(shape) - 1, len(shape))
    values = tuple(draw.floats(shape) for _ in range(draw.whole(1, 3)))
    at = axis % (len(shape) + 1)
    return Site({"values": values}, {"axis": axis}, lambda values: torch.cat([v.unsqueeze(at) for v in values], at))


@case("shapes", "split")
def split(draw: Draw) -> Site:
    shape = draw.shape()
    axis = draw.axis(len(shape))
    if draw.flag():
        sizes = [draw.whole(1, 3) for _ in range(draw.whole(1, 3))]
        attributes: dict[str, Any] = {"split_sizes": sizes}
        if draw.flag():
            attributes["num_splits"] = len(sizes)
    else:
        sizes = [draw.whole(1, 3)] * draw.whole(1, 3)
        attributes = {"num_splits": len(sizes)}
    shape[axis] = sum(sizes)
    starts = [0, *itertools.accumulate(sizes)]

    def reference(x: Tensor) -> Any:
        parts = [x.narrow(axis, start, size) for start, size in zip(starts, sizes, strict=False)]
        return tuple(parts)

    return Site({"x": draw.data_of(shape, small=False)}, {"axis": axis, **attributes}, reference)


def draw_slice(draw: Draw, shape: list[int]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """A slice as MIL's attributes and as numpy's index; it takes something and drops no axis but one."""
    begin, end, stride = [], [], []
    masks: dict[str, list[bool]] = {"begin_mask": [], "end_mask": [], "squeeze_mask": []}
    index: list[Any] = []
    for axis, size in enumerate(shape):
        step = draw.choose([1, 1, 2, 3, -1, -2])
        first = draw.whole(0, size - 1)
        squeezed = axis > 0 and not any(masks["squeeze_mask"]) and draw.whole(0, 5) == 0
        open_begin = not squeezed and draw.flag() and draw.flag()
        if open_begin:
            first = 0 if step > 0 else size - 1
        last = draw.whole(first + 1, size) if step > 0 else draw.whole(-1, first - 1)
        open_end = last == -1 or (not squeezed and draw.flag() and draw.flag())
        index.append(first if squeezed else slice(None if open_begin else first, None if open_end else last, step))
        begin.append(first - size if draw.flag() else first)
        end.append(last - size if 0 <= last < size and (step < 0 or draw.flag()) and last - size < 0 else last)
        if step < 0:  # both from the end, so that no shape rule meets one of each
            begin[-1] = first - size
        stride.append(step)
        for name, value in (("begin_mask", open_begin), ("end_mask", open_end), ("squeeze_mask", squeezed)):
            masks[name].append(value)
    attributes: dict[str, Any] = {"begin": np.array(begin, np.int32), "end": np.array(end, np.int32)}
    if any(step != 1 for step in stride) or draw.flag():
        attributes["stride"] = np.array(stride, np.int32)
    for name, mask in masks.items():
        if any(mask) or draw.flag():
            attributes[name] = mask
    return attributes, tuple(index)


@case("shapes", "slice_by_index")
def slice_by_index(draw: Draw) -> Site:
    shape = draw.shape(1, 4, 6)
    attributes, index = draw_slice(draw, shape)
    x = draw.data_of(shape, small=False)
    return Site({"x": x}, attributes, lambda x: torch.from_numpy(x.numpy()[index].copy()))


@case("shapes", "slice_update", since=18)
def slice_update(draw: Draw) -> Site:
    shape = draw.shape(1, 4, 6)
    attributes, index = draw_slice(draw, shape)
    x = draw.floats(shape)
    update = draw.floats(x.numpy()[index].shape)

    def reference(x: Tensor, update: Tensor) -> Tensor:
        result = x.numpy().copy()
        result[index] = update.numpy()
        return torch.from_numpy(result)

    return Site({"x": x, "update": update}, attributes, reference)


@case("shapes", "slice_by_size")
def slice_by_size(draw: Draw) -> Site:
    shape = draw.shape(1, 4, 6)
    first = [draw.whole(0, size - 1) for size in shape]
    count = [draw.whole(1, size - start) for size, start in zip(shape, first, strict=True)]
    rest = [draw.flag() for _ in shape]
    index = tuple(
        slice(start, None if to_the_end else start + size)
        for start, size, to_the_end in zip(first, count, rest, strict=True)
    )
    begin = [
        start - size if draw.flag() and not r else start for start, size, r in zip(first, shape, rest, strict=True)
    ]
    attributes = {"begin": begin, "size": [-1 if r else size for r, size in zip(rest, count, strict=True)]}
    return Site({"x": draw.data_of(shape)}, attributes, lambda x: torch.from_numpy(x.numpy()[index].copy()))


@case("shapes", "crop")
def crop(draw: Draw) -> Site:
    shape = draw.shape(3, 4)
    sides = [draw.whole(0, 2) for _ in range(4)]
    shape[-2] += sides[0] + sides[1]
    shape[-1] += sides[2] + sides[3]
    top, bottom, left, right = sides
    return Site(
        {"x": draw.floats(shape)},
        {"crop_height": [top, bottom], "crop_width": [left, right]},
        lambda x: F.pad(x, [-left, -right, -top, -bottom]),
    )


@case("shapes", "tile")
def tile(draw: Draw) -> Site:
    shape = draw.shape()
    reps = [draw.whole(1, 3) for _ in shape]
    return Site({"x": draw.data_of(shape, small=False)}, {"reps": reps}, lambda x: torch.tile(x, reps))


@case("shapes", "reverse")
def reverse(draw: Draw) -> Site:
    shape = draw.shape()
    axes = draw.axes(len(shape))
    every = draw.flag()
    return Site(
        {"x": draw.data_of(shape)},
        {} if every else {"axes": axes},
        lambda x: torch.from_numpy(np.flip(x.numpy(), None if every else axes).copy()),
    )


@case("shapes", "reverse_sequence")
def reverse_sequence(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    sequence, batch = draw.data.draw(st.permutations(range(len(shape))))[:2]
    lengths = draw.wholes([shape[batch]], 0, shape[sequence])

    def reference(x: Tensor, lengths: Tensor) -> Tensor:
        rows = []
        for row, length in zip(x.unbind(batch), lengths.tolist(), strict=True):
            axis = sequence - (batch < sequence)
            rows.append(
                torch.cat(
                    [row.narrow(axis, 0, length).flip(axis), row.narrow(axis, length, row.shape[axis] - length)], axis
                )
            )
        return torch.stack(rows, batch)

    attributes = {"seq_axis": sequence, "batch_axis": batch}
    return Site({"x": draw.data_of(shape, small=False), "lengths": lengths}, attributes, reference)


@case("shapes", "pad")
def pad(draw: Draw) -> Site:
    shape = draw.shape(1, 4)
    mode = draw.choose([None, "constant", "reflect", "replicate"])
    count = draw.whole(1, len(shape))
    pairs = []
    for size in shape[len(shape) - count :]:
        most = {"reflect": size - 1, "replicate": size}.get(mode, 3)
        pairs.append((draw.whole(0, most), draw.whole(0, most)))
    attributes: dict[str, Any] = {"pad": [amount for pair in pairs for amount in pair]}
    if mode is not None:
        attributes["mode"] = mode
    value = draw.scalar(-2, 2)
    if mode == "constant":
        attributes["constant_val"] = value
    every = [(0, 0)] * (len(shape) - count) + pairs

    def reference(x: Tensor) -> Tensor:
        options = {"constant_values": float(value) if mode == "constant" else 0.0} if mode in (None, "constant") else {}
        names = {None: "constant", "replicate": "edge"}
        return torch.from_numpy(np.pad(x.numpy(), every, names.get(mode, mode), **options))

    return Site({"x": draw.floats(shape)}, attributes, reference)


@case("shapes", "depth_to_space", "space_to_depth")
def depth(draw: Draw, name: str) -> Site:
    batch, channels, height, width = draw.shape(4, 4, 3)
    size = draw.whole(2, 3)
    if name == "depth_to_space":
        x = draw.floats([batch, channels * size**2, height, width])
    else:
        x = draw.floats([batch, channels, height * size, width * size])

    def reference(x: Tensor) -> Tensor:  # torch's shuffle, once the channels count the block last
        if name == "depth_to_space":
            return F.pixel_shuffle(x.unflatten(1, (size**2, channels)).transpose(1, 2).flatten(1, 2), size)
        return F.pixel_unshuffle(x, size).unflatten(1, (channels, size**2)).transpose(1, 2).flatten(1, 2)

    return Site({"x": x}, {"block_size": size}, reference)


@case("shapes", "pixel_shuffle")
def pixel_shuffle(draw: Draw) -> Site:
    batch, channels, height, width = draw.shape(4, 4, 3)
    size = draw.whole(1, 3)

    def reference(x: Tensor) -> Tensor:
        result = torch.empty(batch, channels, height * size, width * size, dtype=x.dtype)
        for row, column in itertools.product(range(size), repeat=2):
            result[..., row::size, column::size] = x[:, row * size + column :: size**2]
        return result

    return Site({"x": draw.floats([batch, channels * size**2, height, width])}, {"upscale_factor": size}, reference)


@case("shapes", "pixel_unshuffle", since=16)
def pixel_unshuffle(draw: Draw) -> Site:
    batch, channels, height, width = draw.shape(4, 4, 3)
    size = draw.whole(1, 3)

    def reference(x: Tensor) -> Tensor:
        result = torch.empty(batch, channels * size**2, height, width, dtype=x.dtype)
        for row, column in itertools.product(range(size), repeat=2):
            result[:, row * size + column :: size**2] = x[..., row::size, column::size]
        return result

    x = draw.floats([batch, channels, height * size, width * size])
    return Site({"x": x}, {"downscale_factor": np.uint32(size)}, reference)


@case("shapes", "space_to_batch", "batch_to_space")
def batch_space(draw: Draw, name: str) -> Site:
    batch, channels, height, width = draw.shape(4, 4, 3)
    block = [draw.whole(1, 3), draw.whole(1, 3)]
    whole = [height * block[0], width * block[1]]
    edges = [[draw.whole(0, (size - 1) // 2), draw.whole(0, (size - 1) // 2)] for size in whole]
    (top, bottom), (left, right) = edges
    places = list(itertools.product(range(block[0]), range(block[1])))
    if name == "space_to_batch":
        x = draw.floats([batch, channels, whole[0] - top - bottom, whole[1] - left - right])

        def reference(x: Tensor) -> Tensor:
            padded = F.pad(x, [left, right, top, bottom])
            return torch.cat([padded[..., row :: block[0], column :: block[1]] for row, column in places])

        return Site({"x": x}, {"block_shape": block, "paddings": edges}, reference)
    x = draw.floats([batch * block[0] * block[1], channels, height, width])

    def back(x: Tensor) -> Tensor:
        result = torch.empty(batch, channels, *whole, dtype=x.dtype)
        for part, (row, column) in zip(x.split(batch), places, strict=True):
            result[..., row :: block[0], column :: block[1]] = part
        return F.pad(result, [-left, -right, -top, -bottom])

    return Site({"x": x}, {"block_shape": block, "crops": edges}, back)


@case("shapes", "sliding_windows")
def sliding_windows(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    axis = draw.axis(len(shape))
    size, stride = draw.whole(1, 3), draw.whole(1, 3)
    shape[axis] = size + draw.whole(0, 5)
    starts = range(0, shape[axis] - size + 1, stride)
    attributes = {"axis": axis, "size": size} | ({} if stride == 1 else {"stride": stride})
    at = axis % len(shape)
    return Site(
        {"x": draw.floats(shape)},
        attributes,
        lambda x: torch.stack([x.narrow(at, start, size) for start in starts], at),
    )


@case("shapes", "band_part")
def band_part(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    lower, upper = draw.whole(-1, 4), draw.whole(-1, 4)

    def reference(x: Tensor) -> Tensor:
        x = x if upper < 0 else torch.tril(x, upper)
        return x if lower < 0 else torch.triu(x, -lower)

    return Site({"x": draw.data_of(shape, small=False)}, {"lower": lower, "upper": upper}, reference)


@case("shapes", "fill")
def fill(draw: Draw) -> Site:
    shape = draw.shape()
    value = draw.choose([draw.scalar(-2, 2), np.int32(7), np.bool_(True), None])
    attributes = {"shape": shape} | ({} if value is None else {"value": value})
    expected = torch.full(shape, 0.0 if value is None else value.item())
    return Site({}, attributes, lambda: expected)


@case("shapes", "fill_like", since=16)
def fill_like(draw: Draw) -> Site:
    value = draw.choose([draw.scalar(-2, 2), np.int32(7), np.bool_(True)])
    tensors = {"ref_tensor": draw.data_of(draw.shape(), small=False)}
    return Site(tensors, {"value": value}, lambda ref_tensor: torch.full(ref_tensor.shape, value.item()))


@case("shapes", "one_hot")
def one_hot(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    size, axis = draw.whole(1, 5), draw.whole(-len(shape) - 1, len(shape))
    on, off = draw.scalar(-2, 2), draw.scalar(-2, 2)
    plain = axis == -1 and draw.flag()
    attributes = {"one_hot_vector_size": size} | ({} if plain else {"axis": axis, "on_value": on, "off_value": off})

    def reference(indices: Tensor) -> Tensor:
        hot = F.one_hot(indices.long(), size + 1)[..., :size]
        hot = hot if plain else torch.where(hot.bool(), float(on), float(off))
        return hot.movedim(-1, axis % (len(shape) + 1))

    return Site({"indices": draw.wholes(shape, 0, size)}, attributes, reference)  # `size` itself is out of range


@case("shapes", "range_1d")
def range_1d(draw: Draw) -> Site:
    whole = draw.flag()
    step = draw.choose([1, 2, 3, -1, -2]) if whole else draw.choose([0.25, 0.5, 1.5, -0.75])
    start = draw.whole(-5, 5)
    end = start + step * draw.whole(1, 6) + draw.choose([0, -0.125]) * (not whole) * np.sign(step)
    kind = np.int32 if whole else np.float16 if draw.kind == "fp16" else np.float32
    attributes = {"start": kind(start), "end": kind(end), "step": kind(step)}
    return Site({}, attributes, lambda: torch.arange(start, float(end), step))


@case("shapes", "shape")
def shape(draw: Draw) -> Site:
    return Site({"x": draw.data_of(draw.shape(), small=False)}, {}, lambda x: torch.tensor(tuple(x.shape)))


@case("shapes", "non_zero")
def non_zero(draw: Draw) -> Site:
    x = draw.bools(draw.shape())
    return Site({"x": x.to(draw.choose([torch.int32, torch.bool, draw.float_type]))}, {}, lambda x: torch.argwhere(x))


@case("shapes", "non_maximum_suppression")
def non_maximum_suppression(draw: Draw) -> Site:
    batch, count, classes = draw.whole(1, 2), draw.whole(1, 8), draw.whole(1, 3)
    centre = draw.wholes([batch, count, 2], 0, 6).to(draw.float_type)
    boxes = torch.cat([centre, draw.wholes([batch, count, 2], 1, 6).to(draw.float_type)], 2)
    scores = draw.distinct([batch, count, classes])
    limit, most, by_class = draw.choose([0.125, 0.3, 0.6]), draw.whole(1, 6), draw.flag()
    kind = np.float16 if draw.kind == "fp16" else np.float32
    late = draw.opset >= 17
    least = -math.inf if late else draw.choose([-3.0, 0.5, 99.0])
    attributes: dict[str, Any] = {"iou_threshold": kind(limit), "max_boxes": most, "per_class_suppression": by_class}
    if not late:
        attributes["score_threshold"] = kind(least)

    def area(low: Any, high: Any) -> float:
        return max(high[0] - low[0], 0.0) * max(high[1] - low[1], 0.0)

    def reference(boxes: Tensor, scores: Tensor) -> Any:
        boxes, scores = (boxes.mT, scores.mT) if late else (boxes, scores)
        rows = []
        for box, score in zip(boxes.tolist(), scores.tolist(), strict=True):
            left = sorted(
                (n for n in range(count) if max(score[n]) >= least), key=lambda n, score=score: -max(score[n])
            )
            kept: list[int] = []
            while left:
                best = left.pop(0)
                kept.append(best)
                for other in list(left):
                    corners = [([b[i] - b[i + 2] / 2 for i in (0, 1)], [b[i] + b[i + 2] / 2 for i in (0, 1)])
                               for b in (box[best], box[other])]  # fmt: skip
                    shared = area([max(corners[0][0][i], corners[1][0][i]) for i in (0, 1)],
                                  [min(corners[0][1][i], corners[1][1][i]) for i in (0, 1)])  # fmt: skip
                    union = area(*corners[0]) + area(*corners[1]) - shared
                    same = score[best].index(max(score[best])) == score[other].index(max(score[other]))
                    if shared / union > float(attributes["iou_threshold"]) and (same or not by_class):
                        left.remove(other)
            kept = kept or [max(range(count), key=lambda n, score=score: max(score[n]))]
            rows.append(kept[:most])
        out = [torch.zeros(batch, most, 4), torch.zeros(batch, most, classes), torch.full((batch, most), -1)]
        for image, kept in enumerate(rows):
            out[0][image, : len(kept)] = boxes[image, kept].float()
            out[1][image, : len(kept)] = scores[image, kept].float()
            out[2][image, : len(kept)] = torch.tensor(kept)
        if late:
            return out[0].mT, out[1].mT, out[2]
        return (*out, torch.tensor([len(kept) for kept in rows]))

    tensors = {"boxes": boxes, "scores": scores}
    return Site(
        {name: one.mT.contiguous() for name, one in tensors.items()} if late else tensors, attributes, reference
    )


# ---------------------------------------------------------------------------------------------- gathers


def strictness(draw: Draw) -> dict[str, Any]:
    return {"validate_indices": draw.flag()} if draw.opset >= 17 else {}


def signed(draw: Draw, indices: Tensor, size: int) -> Tensor:
    """Some indices counted from the end, where MIL defines that."""
    return torch.where(draw.bools(indices.shape), indices - size, indices).int() if draw.opset < 17 else indices


@case("gathers", "gather")
def gather(draw: Draw) -> Site:
    shape = draw.shape(1, 4)
    batches = draw.whole(0, len(shape) - 1) if draw.opset >= 16 else 0
    axis = draw.whole(batches, len(shape) - 1)
    indices = draw.wholes([*shape[:batches], *draw.shape(1, 2, 3)], 0, shape[axis] - 1)
    if len(shape) + indices.dim() - 1 - batches > 5:
        indices = indices.flatten(batches)
    attributes = {"axis": axis - len(shape) if draw.flag() and not batches else axis, **strictness(draw)}
    if batches or (draw.opset >= 16 and draw.flag()):
        attributes["batch_dims"] = batches

    def reference(x: Tensor, indices: Tensor) -> Tensor:
        where = indices.long()
        if not batches:
            return torch.from_numpy(np.take(x.numpy(), where.numpy(), axis))
        rows = [
            np.take(x[place].numpy(), where[place].numpy(), axis - batches)
            for place in itertools.product(*(range(size) for size in shape[:batches]))
        ]
        return torch.from_numpy(np.stack(rows)).reshape(*shape[:batches], *rows[0].shape)

    return Site({"x": draw.floats(shape), "indices": signed(draw, indices, shape[axis])}, attributes, reference)


@case("gathers", "gather_along_axis")
def gather_along_axis(draw: Draw) -> Site:
    shape = draw.shape()
    axis = draw.axis(len(shape))
    wanted = list(shape)
    wanted[axis] = draw.whole(1, 5)
    indices = draw.wholes(wanted, 0, shape[axis] - 1)
    size = shape[axis]
    return Site(
        {"x": draw.floats(shape), "indices": signed(draw, indices, size)},
        {"axis": axis, **strictness(draw)},
        lambda x, indices: torch.take_along_dim(x, indices.long() % size, axis),
    )


@case("gathers", "gather_nd")
def gather_nd(draw: Draw) -> Site:
    shape = draw.shape(1, 4)
    batches = draw.whole(0, len(shape) - 1) if draw.opset >= 16 else 0
    depth = draw.whole(1, len(shape) - batches)
    outer = draw.shape(1, 2, 3)
    columns = [draw.wholes([*shape[:batches], *outer], 0, size - 1) for size in shape[batches : batches + depth]]
    if len(shape) - depth - batches + batches + len(outer) > 5:
        columns = [column.flatten(batches) for column in columns]
    attributes: dict[str, Any] = dict(strictness(draw))
    if attributes and len(set(shape)) > 1:  # coremltools compares constant indices with the whole shape
        attributes["validate_indices"] = False
    if batches or (draw.opset >= 16 and draw.flag()):
        attributes["batch_dims"] = batches

    def reference(x: Tensor, indices: Tensor) -> Tensor:
        result = torch.stack(
            [
                x[place][tuple(indices[place].long().unbind(-1))]
                for place in itertools.product(*(range(size) for size in shape[:batches]))
            ]
        )
        return result.reshape(*shape[:batches], *result.shape[1:])

    return Site({"x": draw.floats(shape), "indices": torch.stack(columns, -1)}, attributes, reference)


SCATTER_MODES = ("update", "add", "sub", "mul", "div", "max", "min")


def combined(mode: str, old: Any, new: Any) -> Any:
    return {
        "update": lambda: new, "add": lambda: old + new, "sub": lambda: old - new, "mul": lambda: old * new,
        "div": lambda: np.trunc(old / new) if np.asarray(old).dtype.kind == "i" else old / new,
        "max": lambda: np.maximum(old, new), "min": lambda: np.minimum(old, new),
    }[mode]()  # fmt: skip


def scatter_values(draw: Draw, shape: Sequence[int]) -> Tensor:
    """Values whose products and quotients stay harmless."""
    return draw.floats(shape, 0.5, 2)


@case("gathers", "scatter")
def scatter(draw: Draw) -> Site:
    shape = draw.shape()
    axis, mode = draw.axis(len(shape)), draw.choose([None, *SCATTER_MODES])
    count = draw.whole(1, 4)
    indices = draw.wholes([count], 0, shape[axis] - 1)
    if mode == "update":
        indices = indices.unique()
        count = len(indices)
    wanted = list(shape)
    wanted[axis] = count
    size = shape[axis]

    def reference(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        result, new = np.moveaxis(data.numpy().copy(), axis, 0), np.moveaxis(updates.numpy(), axis, 0)
        for row, index in zip(new, indices.tolist(), strict=True):
            result[index % size] = combined(mode or "add", result[index % size], row)
        return torch.from_numpy(np.moveaxis(result, 0, axis).copy())

    attributes = {"axis": axis, **strictness(draw)} | ({} if mode is None else {"mode": mode})
    tensors = {"data": scatter_values(draw, shape), "indices": indices, "updates": scatter_values(draw, wanted)}
    return Site(tensors, attributes, reference)


@case("gathers", "scatter_along_axis")
def scatter_along_axis(draw: Draw) -> Site:
    shape = draw.shape()
    axis, mode = draw.axis(len(shape)), draw.choose([None, *SCATTER_MODES])
    wanted = list(shape)
    wanted[axis] = draw.whole(1, shape[axis])
    order = torch.rand(shape, generator=draw.generator).argsort(axis).int().narrow(axis, 0, wanted[axis])
    indices = order if mode == "update" else draw.wholes(wanted, 0, shape[axis] - 1)

    def reference(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        result = data.numpy().copy()
        for place in itertools.product(*(range(size) for size in wanted)):
            at = list(place)
            at[axis] = int(indices[place])
            result[tuple(at)] = combined(mode or "add", result[tuple(at)], updates.numpy()[place])
        return torch.from_numpy(result)

    attributes = {"axis": axis, **strictness(draw)} | ({} if mode is None else {"mode": mode})
    data, updates = scatter_values(draw, shape), scatter_values(draw, wanted)
    if draw.flag() and draw.flag():
        data, updates = draw.wholes(shape, -50, 50), draw.wholes(wanted, 1, 3)
    return Site({"data": data, "indices": indices.contiguous(), "updates": updates}, attributes, reference)


@case("gathers", "scatter_nd")
def scatter_nd(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    depth, mode = draw.whole(1, len(shape)), draw.choose([None, *SCATTER_MODES])
    rows = list(itertools.product(*(range(size) for size in shape[:depth])))
    count = draw.whole(1, min(4, len(rows)))
    if mode == "update":
        order = torch.randperm(len(rows), generator=draw.generator)[:count].tolist()
    else:
        order = draw.wholes([count], 0, len(rows) - 1).tolist()
    indices = torch.tensor([rows[n] for n in order], dtype=torch.int32)

    def reference(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        result = data.numpy().copy()
        for row, at in zip(updates.numpy(), indices.tolist(), strict=True):
            result[tuple(at)] = combined(mode or "add", result[tuple(at)], row)
        return torch.from_numpy(result)

    attributes = {} if mode is None else {"mode": mode}
    tensors = {
        "data": scatter_values(draw, shape),
        "indices": indices,
        "updates": scatter_values(draw, [count, *shape[depth:]]),
    }
    return Site(tensors, attributes, reference)


# ---------------------------------------------------------------------------------------------- pooling

AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
POWERS = (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)


@case("pooling", "avg_pool", "max_pool", "l2_pool")
def pooling(draw: Draw, name: str) -> Site:
    rank = draw.whole(1, 2 if name == "l2_pool" else 3)
    kernel = [draw.whole(1, 4) for _ in range(rank)]
    stride = [draw.whole(1, size) for size in kernel]
    space = [size + draw.whole(0, 4) for size in kernel]
    kinds = ["valid", "custom", "same"] + (["same_lower"] if draw.opset >= 16 else [])
    kind = draw.choose(kinds)
    ceil = rank < 3 and kind in ("valid", "custom") and draw.flag()
    exclude = name == "avg_pool" and draw.flag()
    attributes: dict[str, Any] = {"kernel_sizes": kernel, "pad_type": kind}
    if any(step != 1 for step in stride):
        attributes["strides"] = stride
    if ceil:
        attributes["ceil_mode"] = True
    if exclude:
        attributes["exclude_padding_from_average"] = True
    pairs = [(0, 0)] * rank
    if kind == "custom":
        pairs = [(draw.whole(0, size // 2), draw.whole(0, size // 2)) for size in kernel]
        pairs = [(before, before) for before, _ in pairs] if ceil else pairs
        attributes["pad"] = [amount for pair in pairs for amount in pair]
    elif kind != "valid":
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(space, stride, kernel, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
        pairs = [pair[::-1] for pair in pairs] if kind == "same_lower" else pairs
    padding = [before for before, _ in pairs]

    def reference(x: Tensor) -> Tensor:
        if ceil and name == "avg_pool":
            return AVERAGES[rank - 1](x, kernel, stride, padding, True, not exclude)
        if ceil and name == "max_pool":
            return MAXIMA[rank - 1](x, kernel, stride, padding, 1, True)
        edges = [amount for pair in reversed(pairs) for amount in pair]
        padded = F.pad(x, edges, value=-math.inf if name == "max_pool" else 0.0)
        if name == "max_pool":
            return MAXIMA[rank - 1](padded, kernel, stride)
        if name == "l2_pool":
            more = AVERAGES[rank - 1](padded**2, kernel, stride, 0, ceil, False) if ceil else None
            if more is None:
                return POWERS[rank - 1](padded, 2, kernel if rank > 1 else kernel[0], stride if rank > 1 else stride[0])
            ones = F.pad(padded, [amount for size in reversed(kernel) for amount in (0, size)])
            window = [slice(0, size) for size in more.shape[2:]]
            size = kernel if rank > 1 else kernel[0]
            return POWERS[rank - 1](ones, 2, size, stride if rank > 1 else stride[0])[
                (slice(None), slice(None), *window)
            ]
        ones = F.pad(torch.ones_like(x), edges)
        counted = AVERAGES[rank - 1](ones, kernel, stride) if exclude else 1
        return AVERAGES[rank - 1](padded, kernel, stride) / counted

    low = -3 if name == "max_pool" else 0.5
    plain = name == "max_pool" or (name == "avg_pool" and not exclude and rank < 3)
    return Site(
        {"x": draw.floats([draw.whole(1, 2), draw.whole(1, 3), *space], low, 3)}, attributes, reference, half=plain
    )


# ---------------------------------------------------------------------------------------------- images


def grid(mode: str, size: int, count: int) -> list[float]:
    """Where an axis is sampled: coremltools' documentation, word for word."""
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        spacing = (size - 1) / (count - 1) if count > 1 else 0.0
        points = [i * spacing for i in range(count)]
        if mode == "ALIGN_CORNERS" and count == 1:
            points = [(size - 1) / 2]
    elif mode == "DEFAULT":
        spacing = (size - size / count) / (count - 1) if count > 1 else 0.0
        points = [i * spacing for i in range(count)]
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        points = [0.5 * delta + i * delta for i in range(count)]
    else:
        spacing = size / count
        points = [i * spacing + 0.5 * spacing - 0.5 for i in range(count)]
    return [min(size - 1, max(0, point)) for point in points]


def hats(points: Sequence[float], size: int) -> Tensor:
    """Linear interpolation as a matrix (samples, pixels): a hat around each pixel."""
    distance = torch.tensor(points, dtype=torch.float64)[:, None] - torch.arange(size, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0)


def maps(draw: Draw, shape: Sequence[int]) -> Tensor:
    """Positive values, whose weighted means lose no digits by cancellation."""
    return draw.floats(shape, 0.5, 3)


MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def resized(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    if mode in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):  # torch has these
        flat = x.reshape(1, -1, *x.shape[-2:])
        aligned = mode == "STRICT_ALIGN_CORNERS"
        return F.interpolate(flat, (height, width), mode="bilinear", align_corners=aligned).reshape(
            *x.shape[:-2], height, width
        )
    rows, columns = (
        hats(grid(mode, x.shape[-2], height), x.shape[-2]),
        hats(grid(mode, x.shape[-1], width), x.shape[-1]),
    )
    return (rows @ x.double() @ columns.T).to(x.dtype)


@case("images", "resize_bilinear")
def resize_bilinear(draw: Draw) -> Site:
    shape = draw.shape(3, 4)
    height, width, mode = draw.whole(1, 8), draw.whole(1, 8), draw.choose([None, *MODES])
    attributes = {"target_size_height": height, "target_size_width": width}
    attributes |= {} if mode is None else {"sampling_mode": mode}
    return Site({"x": maps(draw, shape)}, attributes, lambda x: resized(x, height, width, mode or "DEFAULT"))


@case("images", "resize_nearest_neighbor")
def resize_nearest_neighbor(draw: Draw) -> Site:
    shape = draw.shape(4, 4)
    height, width = draw.whole(1, 9), draw.whole(1, 9)
    return Site(
        {"x": maps(draw, shape)},
        {"target_size_height": height, "target_size_width": width},
        lambda x: F.interpolate(x, (height, width), mode="nearest-exact"),
        half=True,
    )


def scale(draw: Draw, size: int) -> tuple[Any, int]:
    """A factor, and the size that it makes of another."""
    if draw.flag():
        factor = draw.whole(1, 3)
        return np.int32(factor), size * factor
    factor = np.float32(draw.choose([0.5, 1.5, 2.0, 2.6, 3.17]))
    factor = np.float32(1.0) if math.floor(factor * size) == 0 else factor
    return factor, int(np.floor(factor * np.float32(size)))


@case("images", "upsample_nearest_neighbor", "upsample_bilinear")
def upsample(draw: Draw, name: str) -> Site:
    shape = draw.shape(4, 4)
    (height, rows), (width, columns) = scale(draw, shape[2]), scale(draw, shape[3])
    if height.dtype != width.dtype:
        height, width = np.float32(height), np.float32(width)
    attributes: dict[str, Any] = {"scale_factor_height": height, "scale_factor_width": width}
    if name == "upsample_nearest_neighbor":
        x = draw.floats(shape)
        return Site({"x": x}, attributes, lambda x: F.interpolate(x, (rows, columns), mode="nearest"), half=True)
    aligned = draw.flag()
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS"
    if not aligned or draw.flag():
        attributes["align_corners"] = aligned
    if draw.opset >= 16 and draw.flag():
        attributes["half_pixel_centers"] = centred = not aligned and draw.flag()
        mode = mode if aligned or centred else "DEFAULT"
    return Site({"x": maps(draw, shape)}, attributes, lambda x: resized(x, rows, columns, mode))


@case("images", "resize", since=17)
def resize(draw: Draw) -> Site:
    shape = draw.shape(4, 4)
    sizes, mode = [draw.whole(0, 8), draw.whole(0, 8)], draw.choose(MODES)
    wanted = [size or shape[axis] for axis, size in zip((2, 3), sizes, strict=True)]
    nearest = draw.flag()
    attributes = {
        "shape": np.array([1, *sizes], np.int32), "resized_dims": np.uint32(2), "sampling_mode": mode,
        "interpolation_mode": "NEAREST_NEIGHBOR" if nearest else "LINEAR",
    }  # fmt: skip

    def reference(x: Tensor) -> Tensor:
        if not nearest:
            return resized(x, *wanted, mode)
        if mode in ("DEFAULT", "UNALIGN_CORNERS"):
            return F.interpolate(x, tuple(wanted), mode="nearest-exact")
        at = [[min(math.floor(p + 0.5), size - 1) for p in grid(mode, size, count)]
              for size, count in zip(shape[2:], wanted, strict=True)]  # fmt: skip
        return x[:, :, at[0]][..., at[1]]

    return Site({"x": maps(draw, shape)}, attributes, reference)


@case("images", "crop_resize")
def crop_resize(draw: Draw) -> Site:
    shape = [draw.whole(1, 2), draw.whole(1, 3), draw.whole(2, 6), draw.whole(2, 6)]
    boxes, height, width = draw.whole(1, 3), draw.whole(1, 4), draw.whole(1, 4)
    mode, normalised = draw.choose(MODES), draw.flag()
    order = draw.choose(
        ["CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST"]
    )
    factor = draw.choose([1.0, 0.5])
    attributes: dict[str, Any] = {
        "target_height": height, "target_width": width, "normalized_coordinates": normalised,
        "spatial_scale": np.float32(factor), "box_coordinate_mode": order, "sampling_mode": mode,
    }  # fmt: skip
    outside = 0.0
    if draw.opset >= 16 and draw.flag():
        value = draw.scalar(-1, 1)
        attributes["pad_value"], outside = value, float(value)
    extent = [1.0, 1.0] if normalised else [shape[2] - 1.0, shape[3] - 1.0]
    low = torch.stack([draw.floats([boxes], -0.2 * e, 0.6 * e).float() for e in extent], 1)
    high = low + torch.stack([draw.floats([boxes], 0.1 * e, 0.7 * e).float() for e in extent], 1)
    given = torch.cat([(low + high) / 2, high - low] if order.startswith("CENTER") else [low, high], 1) / factor
    given = given[:, [1, 0, 3, 2]] if order.endswith("WIDTH_FIRST") else given
    given = given.to(draw.float_type)
    late, every = draw.opset >= 17, shape[0] > 1 or draw.flag()  # coremltools declares B results for either kind of roi
    images = draw.wholes([boxes], 0, shape[0] - 1)
    tensors: dict[str, Tensor] = {"x": maps(draw, shape)}
    if late:
        tensors |= {"boxes": given, "box_indices": images}
    else:
        images = torch.zeros_like(images) if not every else images
        tensors["roi"] = (given if every else torch.cat([images[:, None].to(given), given], 1)).reshape(
            boxes, 1, -1, 1, 1
        )

    def line(first: float, last: float, size: int, count: int) -> list[float]:
        """A box's grid is that of an axis as long as the box."""
        unit = grid_of_span(mode, last - first, count)
        points = [first + p for p in unit]
        return [p if -1e-9 <= p <= size - 1 + 1e-9 else math.nan for p in points]

    def reference(x: Tensor, *others: Tensor) -> Tensor:
        box = given.double() * factor
        box = box[:, [1, 0, 3, 2]] if order.endswith("WIDTH_FIRST") else box
        if order.startswith("CENTER"):
            box = torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1)
        scales = [shape[2] - 1, shape[3] - 1] * 2 if normalised else [1] * 4
        results = []
        for row, image in zip((box * torch.tensor(scales)).tolist(), images.tolist(), strict=True):
            rows, columns = line(row[0], row[2], shape[2], height), line(row[1], row[3], shape[3], width)
            maps = x if not late and every else x[[image]]
            sampled = hats(rows, shape[2]) @ maps.double() @ hats(columns, shape[3]).T
            results.append(torch.where(sampled.isnan(), outside, sampled))
        return torch.cat(results) if late else torch.stack(results)

    return Site(tensors, attributes, reference)


def grid_of_span(mode: str, span: float, count: int) -> list[float]:
    """The documented grid for an axis of span + 1 pixels, which need not be whole."""
    return grid(mode, span + 1, count)  # type: ignore[arg-type]


@case("images", "resample")
def resample(draw: Draw) -> Site:
    batch, channels, height, width = draw.whole(1, 2), draw.whole(1, 3), draw.whole(2, 5), draw.whole(2, 5)
    rows, columns = draw.whole(1, 4), draw.whole(1, 4)
    padding, sampling = (
        draw.choose(["constant", "border", "reflection", "symmetric"]),
        draw.choose(["bilinear", "nearest"]),
    )
    unit, aligned = draw.choose(["unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"]), draw.flag()
    value = draw.scalar(-2, 2)
    pixels = torch.stack(  # from beyond one edge to beyond the other, and no halves, which have two nearest pixels
        [draw.wholes([batch, rows, columns], -4 * n, 8 * n).double() / 4 + 0.0625 for n in (width, height)], -1
    )
    sizes = torch.tensor([width, height], dtype=torch.float64)
    share = pixels / (sizes - 1) if aligned else (pixels + 0.5) / sizes
    given = {"unnormalized": pixels, "normalized_zero_to_one": share, "normalized_minus_one_to_one": 2 * share - 1}[
        unit
    ]
    coordinates = given.float()  # iOS15 takes no others
    attributes = {
        "sampling_mode": sampling, "padding_mode": padding, "padding_value": value, "coordinates_mode": unit,
        "align_corners": aligned,
    }  # fmt: skip

    def reference(x: Tensor, coordinates: Tensor) -> Tensor:
        if unit == "unnormalized":
            at = coordinates.double()
        else:
            whole = coordinates.double() if unit == "normalized_zero_to_one" else (coordinates.double() + 1) / 2
            at = whole * (sizes - 1) if aligned else whole * sizes - 0.5
        names = {"constant": "constant", "border": "edge", "reflection": "reflect", "symmetric": "symmetric"}
        options = {"constant_values": float(value)} if padding == "constant" else {}
        edge = 3 * max(height, width)  # a larger map, which nothing lies outside of
        larger = np.pad(x.double().numpy(), [(0, 0), (0, 0), (edge, edge), (edge, edge)], names[padding], **options)
        places = 2 * (at + edge) / (sizes + 2 * edge - 1) - 1
        return F.grid_sample(torch.from_numpy(larger), places, sampling, "zeros", align_corners=True).to(x.dtype)

    return Site({"x": maps(draw, [batch, channels, height, width]), "coordinates": coordinates}, attributes, reference)


@case("images", "affine")
def affine(draw: Draw) -> Site:
    batch = draw.whole(1, 2)
    shape = [batch, draw.whole(1, 3), draw.whole(2, 5), draw.whole(2, 5)]
    height, width, aligned = draw.whole(1, 5), draw.whole(1, 5), draw.flag()
    matrix = draw.floats([draw.choose([1, batch]), 6], -1, 1)
    kind = np.float16 if draw.kind == "fp16" else np.float32
    attributes = {
        "output_height": height, "output_width": width, "sampling_mode": "bilinear", "padding_mode": "constant",
        "padding_value": kind(0), "coordinates_mode": "normalized_minus_one_to_one", "align_corners": aligned,
    }  # fmt: skip

    def reference(x: Tensor, transform_matrix: Tensor) -> Tensor:
        theta = transform_matrix.double().reshape(-1, 2, 3).expand(batch, -1, -1)
        where = F.affine_grid(theta, [batch, shape[1], height, width], align_corners=aligned)
        return F.grid_sample(x.double(), where, align_corners=aligned)

    return Site({"x": maps(draw, shape), "transform_matrix": matrix}, attributes, reference)


# ---------------------------------------------------------------------------------------------- random numbers


@case("randoms", "random_uniform", "random_normal", "random_bernoulli")
def random_numbers(draw: Draw, name: str) -> Site:
    shape = [draw.whole(30, 60), draw.whole(30, 60)]
    attributes: dict[str, Any] = {"shape": shape}
    if draw.flag():
        attributes["seed"] = draw.whole(0, 99)
    low, high = draw.scalar(-2, 0), draw.scalar(1, 3)
    chance = draw.scalar(0.1, 0.9)
    names = {"random_uniform": ("low", "high"), "random_normal": ("mean", "stddev"), "random_bernoulli": ("prob",)}
    given = dict(zip(names[name], (chance,) if name == "random_bernoulli" else (low, high), strict=True))

    def check(values: Tensor) -> None:
        values = values.double()
        assert list(values.shape) == shape
        least, most = float(low), float(high)
        mean, deviation = {
            "random_uniform": ((least + most) / 2, (most - least) / math.sqrt(12)),
            "random_normal": (least, most),
            "random_bernoulli": (float(chance), math.sqrt(float(chance) * (1 - float(chance)))),
        }[name]
        error = deviation / math.sqrt(values.numel())
        assert abs(values.mean() - mean) < 6 * error
        assert abs(values.std() / deviation - 1) < 0.15
        if name == "random_uniform":
            assert least <= values.min()
            assert values.max() <= most
        if name == "random_bernoulli":
            assert set(values.unique().tolist()) == {0.0, 1.0}

    return Site({}, attributes | given, None, check=check)


@case("randoms", "random_categorical")
def random_categorical(draw: Draw) -> Site:
    classes, mode = draw.whole(2, 4), draw.choose([None, "logits", "probs"])
    size = draw.whole(800, 1600)
    share = draw.floats([draw.whole(1, 2), classes], 0.2, 1)
    share = (share / share.sum(-1, keepdim=True)).to(share.dtype)
    x = share if mode == "probs" else share.log()
    attributes = {"size": size, "seed": draw.whole(0, 99)} | ({} if mode is None else {"mode": mode})

    def check(values: Tensor) -> None:
        assert values.shape == (len(share), size)
        for row, wanted in zip(values, share.double(), strict=True):
            found = torch.bincount(row.long(), minlength=classes) / size
            assert (found - wanted).abs().max() < 6 * 0.5 / math.sqrt(size)

    return Site({"x": x}, attributes, None, check=check)


# ---------------------------------------------------------------------------------------------- the harness


def mil_name(tensor: Tensor) -> str:
    names = {torch.float16: "fp16", torch.float32: "fp32"}
    return names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))


@dataclass
class Placed:
    """A site in a program: its operator, and the names of its inputs and outputs there."""

    name: str
    site: Site
    kind: str
    inputs: dict[str, Any]
    outputs: list[str]

    def __str__(self) -> str:
        shapes = {
            name: [list(t.shape) for t in one] if isinstance(one, tuple) else f"{mil_name(one)} {list(one.shape)}"
            for name, one in self.site.tensors.items()
        }
        return f"{self.name} {shapes} {self.site.attributes}"


def carried(tensor: Tensor) -> Tensor:
    """What a model's input can be: fp32 and int32, which the program casts."""
    return tensor.float() if tensor.is_floating_point() else tensor.int()


def build(placed: list[Placed], opset: int, path: Path) -> dict[str, Tensor]:
    """Save a program with all sites to `path`; returns its inputs."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    feeds: dict[str, Tensor] = {}
    specs: dict[str, Any] = {}
    for number, one in enumerate(placed):
        for name, operand in one.site.tensors.items():
            parts = operand if isinstance(operand, tuple) else (operand,)
            one.inputs[name] = [f"i{number}_{name}_{part}" for part in range(len(parts))]
            for label, tensor in zip(one.inputs[name], parts, strict=True):
                feeds[label] = carried(tensor)
                kind = types.fp32 if tensor.is_floating_point() else types.int32
                specs[label] = mb.TensorSpec(tuple(tensor.shape), dtype=kind)
    if not specs:  # Core ML knows no model without inputs
        feeds["unused"], specs["unused"] = torch.zeros(1), mb.TensorSpec((1,), dtype=types.fp32)

    def body(**variables: Any) -> Any:
        results = []
        for number, one in enumerate(placed):
            operands: dict[str, Any] = {}
            for name, operand in one.site.tensors.items():
                parts = operand if isinstance(operand, tuple) else (operand,)
                own = []
                for label, tensor in zip(one.inputs[name], parts, strict=True):
                    variable = variables[label]
                    wanted = mil_name(tensor)
                    own.append(variable if wanted in ("fp32", "int32") else mb.cast(x=variable, dtype=wanted))
                operands[name] = tuple(own) if isinstance(operand, tuple) else own[0]
            made = getattr(mb, one.name)(**operands, **one.site.attributes)
            for part, variable in enumerate(made if isinstance(made, list | tuple) else (made,)):
                label = f"o{number}_{part}"
                wanted = "fp32" if variable.dtype in (types.fp32, types.fp16) else "int32"
                results.append(mb.cast(x=variable, dtype=wanted, name=label))
                one.outputs.append(label)
        return tuple(results)

    program = _program(body, specs, opset, mb)
    model = ct.convert(
        program,
        convert_to="mlprogram",
        pass_pipeline=ct.PassPipeline.EMPTY,
        minimum_deployment_target=getattr(ct.target, f"iOS{opset}"),
        skip_model_load=True,
    )
    model.save(str(path))
    return feeds


def _program(body: Callable[..., Any], specs: dict[str, Any], opset: int, mb: Any) -> Any:
    """mb.program reads the names of its function's parameters, so the function is written for these."""
    names = ", ".join(specs)
    scope: dict[str, Any] = {"body": body}
    exec(f"def main({names}):\n    return body(**locals())", scope)
    return mb.program(input_specs=list(specs.values()), opset_version=getattr(ct.target, f"iOS{opset}"))(scope["main"])


def units_apart(first: Tensor, second: Tensor) -> int:
    """The largest distance of two half-precision tensors in units in the last place; infinities must agree."""

    def line(x: Tensor) -> Tensor:
        bits = x.half().view(torch.int16).int()
        return torch.where(bits < 0, -32768 - bits, bits)

    return int((line(first) - line(second)).abs().max()) if first.numel() else 0


def judge(placed: Placed, results: list[Tensor]) -> None:
    """Compare a site's results with its reference."""
    site = placed.site
    if site.check is not None:
        site.check(*results)
        return
    assert site.reference is not None

    def references(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        given = {
            name: tuple(change(t) for t in one) if isinstance(one, tuple) else change(one)
            for name, one in site.tensors.items()
        }
        found = site.reference(*given.values())
        return list(found) if isinstance(found, tuple) else [found]

    by_half = placed.kind == "fp16" and site.half
    wanted = references(lambda t: t.double() if t.is_floating_point() and not by_half else t)
    assert len(wanted) == len(results), f"{placed}: {len(results)} results, {len(wanted)} wanted"
    for result, expected in zip(results, wanted, strict=True):
        assert result.shape == expected.shape, f"{placed}: shape {list(result.shape)}, wanted {list(expected.shape)}"
        assert not result.isnan().any(), f"{placed}: not a number"
        if not result.is_floating_point():
            assert torch.equal(result.long(), expected.long()), f"{placed}: {result.tolist()}, not {expected.tolist()}"
        elif placed.kind == "fp16":
            units = units_apart(result, expected)
            assert units <= 1, f"{placed}: {units} units in the last place apart"
        else:
            error = float((result.double() - expected.double()).abs().max())
            peak = max(float(expected.double().abs().max()), site.scale)
            assert error <= 1e-6 * peak, f"{placed}: off by {error:.3g}, where the peak is {peak:.3g}"


def sites_in_a_program(since: int) -> int:
    """How many sites of an operator in each precision a program has, so that newer operators are drawn as often."""
    return -(-DRAWN // (PROGRAMS * len(KINDS) * len([opset for opset in OPSETS if opset >= since])))


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid", "ignore:overflow encountered in cast")
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_operators_agree_with_torch(family: str, opset: int, tmp_path: Path) -> None:
    from edgesmith.exporters.mil.evaluate import Evaluator

    numbers: Iterator[int] = itertools.count()

    @settings(max_examples=PROGRAMS, phases=[Phase.generate])  # nothing to shrink: the message names the site
    @given(st.data())
    def run(data: st.DataObject) -> None:
        placed = [
            Placed(name, one(Draw(data, kind, opset)), kind, {}, [])
            for name, (one, since) in FAMILIES[family].items()
            if opset >= since
            for kind in KINDS
            for _ in range(sites_in_a_program(since))
        ]
        path = tmp_path / f"{next(numbers)}.mlpackage"
        inputs = build(placed, opset, path)
        outputs = Evaluator(path).run(inputs)
        for one in placed:
            judge(one, [outputs[name] for name in one.outputs])
        for precision in ("fp32", "fp64"):  # the same program in other arithmetic: every operator takes it
            other = Evaluator(path, precision=precision).run(inputs)
            assert {name: value.shape for name, value in other.items()} == {n: v.shape for n, v in outputs.items()}

    run()


def test_gelu_is_right_for_every_half() -> None:
    """In the tail torch's gelu is up to two units off in half precision and six in fp32; ours is rounded correctly."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = x[x.isfinite()]
    result = table.all_ops()["gelu"].function(x=x).half()
    assert units_apart(result, F.gelu(x.double())) == 0
    near = x >= -3.5
    assert units_apart(result[near], F.gelu(x)[near]) <= 1


def function(name: str) -> Callable[..., Any]:
    return table.all_ops()[name].function


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


MATRIX = torch.arange(6.0).reshape(2, 3)
WRONG_MODES: dict[str, dict[str, Any]] = {
    "gelu": {"x": MATRIX, "mode": "FAST"},
    "pad": {"x": MATRIX, "pad": indices(1, 1), "mode": "circular"},
    "scatter": {"data": MATRIX, "indices": indices(0), "updates": MATRIX[:1], "mode": "xor"},
    "max_pool": {"x": MATRIX[None], "kernel_sizes": indices(2), "pad_type": "half"},
    "resize_bilinear": {"x": MATRIX[None], "target_size_height": 2, "target_size_width": 2, "sampling_mode": "CUBIC"},
    "resize": {"x": MATRIX, "shape": indices(2, 2), "resized_dims": 2, "interpolation_mode": "CUBIC"},
    "upsample_bilinear": {"x": MATRIX[None], "align_corners": True, "half_pixel_centers": True},
    "crop_resize": {"x": MATRIX[None, None], "boxes": MATRIX[:1].new_zeros(1, 4), "box_coordinate_mode": "XYXY"},
}
"""Operators with a mode that MIL does not have."""

RESAMPLED: dict[str, Any] = {
    "x": MATRIX[None, None], "coordinates": torch.zeros(1, 1, 1, 2), "sampling_mode": "bilinear",
    "padding_mode": "border", "padding_value": 0.0, "coordinates_mode": "unnormalized", "align_corners": True,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_MODES)
def test_an_unknown_mode_is_refused(name: str) -> None:
    with pytest.raises(Unsupported, match=r"not|no |both"):
        function(name)(**WRONG_MODES[name])


@pytest.mark.parametrize("wrong", ["sampling_mode", "padding_mode", "coordinates_mode"])
def test_resampling_refuses_unknown_modes(wrong: str) -> None:
    with pytest.raises(Unsupported, match="cubic"):
        function("resample")(**RESAMPLED | {wrong: "cubic"})


def test_affine_takes_coordinates_from_minus_one_to_one_only() -> None:
    given = {name: value for name, value in RESAMPLED.items() if name != "coordinates"}
    with pytest.raises(Unsupported, match="unnormalized"):
        function("affine")(**given, transform_matrix=torch.zeros(1, 6), output_height=1, output_width=1)


def test_random_categorical_refuses_an_unknown_mode() -> None:
    with pytest.raises(Unsupported, match="odds"):
        function("random_categorical")(None, x=MATRIX, mode="odds")


@pytest.mark.parametrize("given", [{"indices": indices(2)}, {"indices": indices(-3)}])
def test_indices_out_of_bounds_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="not all in"):
        function("gather")(x=MATRIX, **given)


def test_validated_indices_are_not_counted_from_the_end() -> None:
    assert torch.equal(function("gather")(x=MATRIX, indices=indices(-1)), MATRIX[1:])
    with pytest.raises(BadInput, match=r"\[0, 2\)"):
        function("gather")(x=MATRIX, indices=indices(-1), validate_indices=True)


def test_a_squeezed_index_lies_within_its_axis() -> None:
    take = function("slice_by_index")
    with pytest.raises(BadInput, match="index 5 of axis 0"):
        take(x=MATRIX, begin=indices(5, 0), end=indices(0, 3), squeeze_mask=torch.tensor([True, False]))


def test_slices_may_be_empty() -> None:
    empty = function("slice_by_index")(x=MATRIX, begin=indices(1, 0), end=indices(1, 3))
    assert empty.shape == (0, 3)
    kept = function("slice_update")(x=MATRIX, update=empty, begin=indices(1, 0), end=indices(1, 3))
    assert torch.equal(kept, MATRIX)


def test_scattering_adds_unless_told_otherwise() -> None:
    given = {"data": MATRIX, "updates": torch.ones(2, 3), "indices": indices(1, 1)}
    assert torch.equal(function("scatter")(**given), MATRIX + torch.tensor([[0.0], [2.0]]))


def test_no_window_starts_in_the_padding_behind() -> None:
    x = torch.arange(3.0).reshape(1, 1, 3)
    given = {"kernel_sizes": indices(2), "strides": indices(2), "pad_type": "custom", "pad": indices(1, 1)}
    for name, plain in (("max_pool", F.max_pool1d), ("avg_pool", F.avg_pool1d)):
        result = function(name)(x=x, **given, ceil_mode=True)
        assert torch.equal(result, plain(x, 2, 2, 1, ceil_mode=True))
        assert result.shape == (1, 1, 2)


def test_boxes_of_other_classes_are_no_rivals() -> None:
    """Two boxes that overlap by a half, of two classes, and one far away."""
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 3.0], [1.0, 0.0, 4.0, 3.0], [9.0, 9.0, 1.0, 1.0]]])
    scores = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.3, 0.1]]])
    given = {"boxes": boxes, "scores": scores, "iou_threshold": 0.25, "score_threshold": 0.0, "max_boxes": 3}
    suppress = function("non_maximum_suppression")
    assert [one.tolist() for one in suppress(**given)[2:]] == [[[0, 2, -1]], [2]]
    assert [one.tolist() for one in suppress(**given, per_class_suppression=True)[2:]] == [[[0, 1, 2]], [3]]


def test_all_values_sorted_by_topk() -> None:
    """k = -1 from iOS17 on, which coremltools 9 itself cannot declare."""
    values, where = function("topk")(x=torch.tensor([2.0, 3.0, 1.0]), k=-1)
    assert values.tolist() == [3, 2, 1]
    assert where.tolist() == [1, 0, 2]


@pytest.mark.parametrize(("name", "default"), [("inverse", 1e-4), ("log", 1e-45), ("rsqrt", 1e-12)])
def test_an_epsilon_left_out_has_the_operands_type(name: str, default: float) -> None:
    """coremltools writes every default into the program; other writers need not."""
    plain = {"inverse": torch.reciprocal, "log": torch.log, "rsqrt": torch.rsqrt}[name]
    for kind in (torch.float16, torch.float32):
        x = torch.tensor([0.0, 0.5], dtype=kind)
        wanted = plain(x.float() + float(torch.tensor(default, dtype=kind)))
        assert torch.equal(function(name)(x=x), wanted)


def test_reductions_of_no_axis_and_of_a_scalar() -> None:
    reduce = function("reduce_sum_square")
    assert torch.equal(reduce(x=MATRIX, axes=indices()), MATRIX.square())
    assert reduce(x=torch.tensor(3.0)) == 9


def test_scalars_are_joined_to_a_vector() -> None:
    joined = function("concat")(values=(torch.tensor(1), torch.tensor(2)), axis=0)
    assert joined.tolist() == [1, 2]


def test_negative_numbers_wrap_in_unsigned_types(tmp_path: Path) -> None:
    placed = Placed("cast", Site({"x": torch.tensor([-1.5, 3.9])}, {"dtype": "uint16"}, None), "fp32", {}, [])
    inputs = build([placed], 17, tmp_path / "cast.mlpackage")
    from edgesmith.exporters.mil.evaluate import Evaluator

    assert Evaluator(tmp_path / "cast.mlpackage").run(inputs)[placed.outputs[0]].tolist() == [65535, 3]


def test_boxes_of_every_map_and_of_one() -> None:
    """Before iOS17 a roi of five values names its map, and one of four takes its box from each."""
    x = torch.stack([MATRIX, 10 + MATRIX])[:, None]
    box = [0.0, 0.0, 1.0, 2.0]
    size = {"target_height": 2, "target_width": 3, "sampling_mode": "ALIGN_CORNERS"}
    every = function("crop_resize")(x=x, roi=torch.tensor(box).reshape(1, 1, 4, 1, 1), **size)
    assert torch.equal(every, x[None])
    one = function("crop_resize")(x=x, roi=torch.tensor([1.0, *box]).reshape(1, 1, 5, 1, 1), **size)
    assert torch.equal(one, x[None, 1:])
    assert torch.equal(function("crop_resize")(x=x, boxes=torch.tensor([box, box]), **size), x)
    mirrored = function("crop_resize")(x=x, boxes=torch.tensor([[1.0, 2.0, 0.0, 0.0]]), **size)
    assert torch.equal(mirrored, x[:1].flip(-1, -2))


def test_resampling_a_map_of_one_pixel_by_reflection() -> None:
    given = RESAMPLED | {"x": torch.tensor([[[[5.0]]]]), "coordinates": torch.tensor([[[[3.0, -2.0]]]])}
    assert function("resample")(**given | {"padding_mode": "reflection"}).item() == 5


def test_whole_numbers_are_resized_without_their_fraction() -> None:
    given = {"shape": indices(4), "resized_dims": 1, "sampling_mode": "UNALIGN_CORNERS"}
    assert function("resize")(x=torch.tensor([0, 10]).int(), **given).tolist() == [0, 2, 7, 10]


MINE = ("elementwise", "activations", "reductions", "shapes", "gathers", "pooling", "images", "randoms")
"""The files of operators that this file tests; test_mil_*.py beside it test the others."""

NOT_EVALUATED = {
    "_const_symbolic": "coremltools makes it while it converts, and never saves it",
    "conv_quantized": "made from TensorFlow's quantised graphs; only the neural network backend has a lowering for it",
}
"""Operators that coremltools registers and the table lacks, each with the reason."""


def test_every_operator_of_these_files_has_a_case() -> None:
    own = {name for name, entry in table.all_ops().items() if entry.function.__module__.rpartition(".")[2] in MINE}
    assert own == {name for family in FAMILIES.values() for name in family}


def test_every_other_operator_is_named_in_a_test() -> None:
    """The operators of the other files are judged in the files beside this one; a new one has to be named there."""
    beside = sorted(set(Path(__file__).parent.glob("test_mil_*.py")) - {Path(__file__)})
    text = "\n".join(path.read_text(encoding="utf-8") for path in beside)
    own = {name for family in FAMILIES.values() for name in family}
    by_another_name = {"classify": "ClassifierConfig"}  # coremltools writes the operator for a configuration
    others = {by_another_name.get(name, name) for name in set(table.all_ops()) - own}
    assert not {name for name in others if re.search(rf"\b{name}\b", text) is None}


def test_the_table_covers_what_coremltools_registers() -> None:
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    assert len(table.all_ops()) >= 120
    assert set(SSAOpRegistry.core_ops) - set(table.all_ops()) == set(NOT_EVALUATED)
