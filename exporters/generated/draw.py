"""Recipes from nnsmith, a generator of models for testing compilers (Liu et al., ASPLOS 2023).

    pip install -c constraints.txt nnsmith
    PYTHONHASHSEED=0 python -m edgesmith.exporters.generated.draw --count 300 > exporters/generated/models.jsonl

Models are of 5 to 15 operators, one size after another. Left out are those with complex numbers, which no target here
has, and those that PyTorch itself does not run on what is drawn for them: a whole number divided by zero. nnsmith draws
types, shapes, operators and their attributes by the seed, as long as PYTHONHASHSEED is fixed; its own limits are of
time, so that another machine may draw other models. The recipes that `make conformance` goes through are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from edgesmith.exporters.generated.recipes import DRAWS, Generated, Recipe, Step, Typed, draw_inputs

SIZES = range(5, 16)
"""Operators of a model."""

DTYPES = ("float32", "float16", "float64", "int32", "int64", "int8", "uint8", "bool")
"""Types that values of a model are drawn of, of which the floating ones are four times as frequent."""

_SAME = {
    **{name: name.lower() for name in ("ReLU", "GELU", "Sigmoid", "Sin", "Cos", "Asin", "Acos", "Tan", "Atan", "Abs")},
    **{name: name.lower() for name in ("Where", "Add", "Sub", "Mul", "Max", "Min", "Pow", "Floor", "Ceil", "Round")},
    **{name: name.lower() for name in ("Sqrt", "Log2", "Neg", "Flatten", "MatMul")},
    "PTMatMul": "matmul",
    "PReLU": "PReLU",
    "LeakyReLU": "leaky_relu",
    "Equal": "eq",
    "Greater": "gt",
    "Less": "lt",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
}
"""Operators of nnsmith without attributes, by what they are called here."""

_PADS: dict[str, dict[str, Any]] = {"ConstPad": {"mode": "constant", "value": 0.5}, "ReflectPad": {"mode": "reflect"}}
_PADS["ReplicatePad"] = {"mode": "replicate"}
_MODES = {"NearestInterp": "nearest", "LinearInterp": "linear", "BilinearInterp": "bilinear"}
_MODES |= {"BicubicInterp": "bicubic", "TrilinearInterp": "trilinear"}
_REDUCTIONS = {"TorchReduceSum": "sum", "ReduceMean": "mean", "ArgMin": "argmin", "ArgMax": "argmax"}


def _window(op: Any) -> dict[str, Any]:
    kernel = [op.kernel_h_size, op.kernel_w_size]
    return {"kernel_size": kernel, "stride": op.stride, "padding": op.padding}


def _conv(op: Any) -> dict[str, Any]:
    return {"in_channels": op.in_channels, "out_channels": op.out_channels, "stride": op.stride, "padding": op.padding}


def _clip(op: Any) -> tuple[str, dict[str, Any]]:
    bound = 1.5 if op.input_like[0].dtype.torch().is_floating_point else 1
    return "clip", {"min": -bound, "max": bound}


def _slice(op: Any) -> tuple[str, dict[str, Any]]:
    region, axis = op.extra_attrs["region"], op.extra_attrs["axis"]
    size = op.input_like[0].shape[axis]
    start, stop = op.start, op.end
    if region in ("left", "mid"):
        start -= size
    if region == "left" and stop < size and stop != op.INT_MAX:
        stop -= size
    return "slice", {"axis": axis, "start": start, "stop": stop, "step": op.step}


def _reduce(op: Any) -> tuple[str, dict[str, Any]]:
    name, axis = type(op).__name__, op.extra_attrs["reduce_dim"]
    if name in _REDUCTIONS:
        return _REDUCTIONS[name], {} if axis is None else {"dim": axis}
    of = name.removeprefix("Reduce").lower()
    return (of, {}) if axis is None else (f"{of}_along", {"dim": axis})


def _transpose(op: Any) -> tuple[str, dict[str, Any]]:
    dim0, dim1 = op._init_swap_dims(op.input_like[0].shape)
    return "transpose", {"dim0": dim0, "dim1": dim1}


def _squeeze(op: Any) -> tuple[str, dict[str, Any]]:
    axis = op.extra_attrs["reduce_dim"]
    return "squeeze", {} if axis is None else {"dim": axis}


def _divide(op: Any) -> tuple[str, dict[str, Any]]:
    dtype = op.input_like[0].dtype.torch()
    whole = not (dtype.is_floating_point or dtype.is_complex)
    return ("floor_div" if whole else "div"), {}


_WITH_ATTRIBUTES: dict[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    "Clip": _clip,
    "Slice": _slice,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Div": _divide,
    "Softmax": lambda op: ("softmax", {"dim": op.dim}),
    "MaxPool2d": lambda op: ("MaxPool2d", _window(op)),
    "AvgPool2d": lambda op: ("AvgPool2d", _window(op)),
    "BatchNorm2d": lambda op: ("BatchNorm2d", {"num_features": op.nfeat}),
    "Conv1d": lambda op: ("Conv1d", {**_conv(op), "kernel_size": op.kernel_size, "dilation": op.dilation}),
    "NCHWConv2d": lambda op: ("Conv2d", {**_window(op), **_conv(op), "dilation": [op.dilation_h, op.dilation_w]}),
    "Linear": lambda op: ("Linear", {"in_features": op.ifeat, "out_features": op.ofeat}),
    "Reshape": lambda op: ("reshape", {"shape": list(op.target_shape)}),
    "Tril": lambda op: ("tril", {"diagonal": op.diagonal}),
    "Triu": lambda op: ("triu", {"diagonal": op.diagonal}),
    **{name: lambda op: ("pad", {"pad": list(op.padding_list), **_PADS[type(op).__name__]}) for name in _PADS},
    **{name: lambda op: ("interpolate", {"size": list(op.size), "mode": _MODES[type(op).__name__]}) for name in _MODES},
    **dict.fromkeys((*_REDUCTIONS, "ReduceMin", "ReduceMax"), _reduce),
    **{f"ExpandLast{k}": lambda op: ("expand", {"shape": list(op.output_like[0].shape)}) for k in range(1, 5)},
    **{f"Concat{k}": lambda op: ("cat", {"dim": op.extra_attrs["axis"]}) for k in range(1, 6)},
    **{
        f"Cast{short}": lambda op: ("to", {"dtype": str(op.extra_attrs["to"])})
        for short in ("Bool", "F32", "F64", "I32", "I64")
    },
}


def _recipe(name: str, graph: Any) -> Recipe | None:
    """Return the recipe of nnsmith's graph; None where it has complex numbers."""
    inputs, constants, steps = list[Typed](), list[Typed](), list[Step]()
    if any("complex" in str(value.dtype) for value in graph.vars.values()):
        return None
    short = {value: f"v{k}" for k, value in enumerate(value for one in graph.insts for value in one.retvals())}
    for one in graph.insts:
        op, kind = one.iexpr.op, type(one.iexpr.op).__name__
        (out,) = one.retvals()
        if kind in ("Input", "Constant"):
            made = graph.vars[out]
            (inputs if kind == "Input" else constants).append((short[out], str(made.dtype), tuple(made.shape)))
            continue
        function, fixed = (_SAME[kind], {}) if kind in _SAME else _WITH_ATTRIBUTES[kind](op)
        steps.append((short[out], function, tuple(short[x] for x in one.iexpr.args), fixed))
    outputs = tuple(short[value] for value in graph.leaf_var())
    return Recipe(name, tuple(inputs), tuple(constants), tuple(steps), outputs)


def _runs(recipe: Recipe) -> bool:
    """Return whether PyTorch runs a model on all that is drawn for it."""
    model = Generated(recipe).eval()
    try:
        with torch.no_grad():
            for one in DRAWS:
                model(*draw_inputs(recipe, one))
    except RuntimeError:  # a whole number divided by zero, or an operator without a kernel for the type
        return False
    return True


def draw(seeds: Sequence[int] | range) -> Iterator[Recipe]:
    """Yield nnsmith's models of these seeds, but for those that are left out."""
    from nnsmith.abstract.extension import activate_ext
    from nnsmith.graph_gen import model_gen
    from nnsmith.materialize import Model
    from nnsmith.narrow_spec import auto_opset

    kind = Model.init("torch", backend_target="cpu")
    kind.add_seed_setter()
    operators = auto_opset(kind, None)
    activate_ext(opset=operators, factory=None)
    for seed in seeds:
        size = SIZES[seed % len(SIZES)]
        made = model_gen(operators, "symbolic-cinit", max_nodes=size, seed=seed, dtype_choices=list(DTYPES))
        recipe = _recipe(f"nnsmith-{seed}", made.make_concrete())
        if recipe is not None and _runs(recipe):
            yield recipe


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the recipes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=300, help="models that are wanted")
    given = parser.parse_args(arguments)
    found = draw(range(given.first, given.first + 10 * given.count))
    for _ in range(given.count):
        print(next(found).dump())


if __name__ == "__main__":
    main()
