"""Sites of MIL operators: drawn, built by coremltools, saved, and judged by torch.

    Draw      what a case draws from: shapes, attributes, values
    Site      one use of an operator: tensors, attributes, and the same operation written with torch's own functions
    Placed    a site in a program

Cases are rows of a table, one for each operator; `row` makes one of what its inputs and attributes are drawn from,
`drawn` registers a function for an operator whose attributes depend on each other or on the shape.

    fp32   within 1e-6 of the peak of the reference, or of the site's scale; it is evaluated in double precision
    fp16   within one unit in the last place of what torch gives for half-precision operands, where it has the operator
           as one function on the CPU, and otherwise of the reference in double precision, rounded to half
    others equal
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

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

    def order(self, count: int) -> list[int]:
        return list(self.data.draw(st.permutations(range(count))))

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


@dataclass(frozen=True)
class Row:
    """A case of the table: where a site of an operator is drawn, and the first opset that has the operator."""

    case: Case
    since: int = 15


class Table(dict[str, Row]):
    """The cases of a file of operators, by operator."""

    def row(self, name: str, *variants: Variant, since: int = 15) -> None:
        """Add an operator of which any of the variants is drawn."""
        self[name] = Row(lambda draw: draw.choose(variants)(draw), since)

    def drawn(self, *names: str, since: int = 15) -> Callable[[Callable[..., Site]], Callable[..., Site]]:
        """Add operators by a function that draws a site; one for several takes the operator's name too."""

        def register(function: Callable[..., Site]) -> Callable[..., Site]:
            for name in names:
                case: Case = (lambda draw, name=name: function(draw, name)) if len(names) > 1 else function
                self[name] = Row(case, since)
            return function

        return register


Operand = Callable[["Draw", Sequence[int]], Tensor]
Attribute = Callable[["Draw"], Any]


@dataclass(frozen=True)
class Variant:
    """What a site is drawn from, where inputs and attributes do not depend on each other.

    Attributes:
        reference: of the tensors, in order, and the attributes by name.
        tensors: by MIL name, each drawn for a shape; all have the same, or with `broadcast` two that go together.
        attributes: by MIL name.
        half: see `Site`.
        lowest, highest: rank.
        largest: size of an axis.
    """

    reference: Reference
    tensors: Mapping[str, Operand]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    half: bool = False
    broadcast: bool = False
    lowest: int = 1
    highest: int = 4
    largest: int = 5

    def __call__(self, draw: Draw) -> Site:
        shapes = draw.broadcast() if self.broadcast else [draw.shape(self.lowest, self.highest, self.largest)] * 9
        tensors = {name: one(draw, shape) for (name, one), shape in zip(self.tensors.items(), shapes, strict=False)}
        attributes = {name: one(draw) for name, one in self.attributes.items()}
        return Site(tensors, attributes, lambda *given: self.reference(*given, **attributes), half=self.half)


def one(
    reference: Reference,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    half: bool = False,
    broadcast: bool = False,
    rank: tuple[int, int] = (1, 4),
    largest: int = 5,
    **tensors: Operand,
) -> Variant:
    """Return a variant; see there."""
    return Variant(reference, tensors, attributes or {}, half, broadcast, *rank, largest)


def floats(low: float = -3.0, high: float = 3.0) -> Operand:
    return lambda draw, shape: draw.floats(shape, low, high)


def wholes(low: int = -9, high: int = 9) -> Operand:
    return lambda draw, shape: draw.wholes(shape, low, high)


def halves(low: int, high: int) -> Operand:
    """Multiples of a half between `low` and `high`, halves, as floats."""
    return lambda draw, shape: draw.wholes(shape, low, high).to(draw.float_type) / 2


def bools(draw: Draw, shape: Sequence[int]) -> Tensor:
    return draw.bools(shape)


def long_types(draw: Draw, shape: Sequence[int]) -> Tensor:
    """Values of any type but the short integers."""
    return draw.data_of(shape, small=False)


def scalar(low: float, high: float) -> Attribute:
    return lambda draw: draw.scalar(low, high)


def whole_number(low: int, high: int) -> Attribute:
    return lambda draw: draw.whole(low, high)


def maps(draw: Draw, shape: Sequence[int]) -> Tensor:
    """Positive values, whose weighted means lose no digits by cancellation."""
    return draw.floats(shape, 0.5, 3)


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
    import coremltools as ct
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
    import coremltools as ct

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
