"""The same construct in other spellings of ONNX is found, and what only looks like one is not."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgesmith.errors import Unreadable
from edgesmith.exporters.departures.graph import same_pads
from edgesmith.exporters.departures.lint import lint

node = helper.make_node
EVERYBODY = ("ort", "tensorrt", "qnn", "litert", "xnnpack", "tvm")
TYPES = {"float": TensorProto.FLOAT, "half": TensorProto.FLOAT16, "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8}
Nodes = list[onnx.NodeProto]


def value(name: str, shape: list[int] | None, kind: str = "float") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[kind], shape)


def model(nodes: Nodes, shape: list[int], opset: int = 17, kind: str = "float", **constants: Any) -> onnx.ModelProto:
    """A model of one input x and one output y; other inputs are those that no node makes."""
    made = {name for one in nodes for name in one.output} | set(constants)
    read = dict.fromkeys(name for one in nodes for name in one.input if name and name not in made)
    stored = [numpy_helper.from_array(np.asarray(given), name) for name, given in constants.items()]
    graph = helper.make_graph(nodes, "g", [value(name, shape, kind) for name in read], [value("y", None, kind)], stored)
    domains = {one.domain for one in nodes if one.domain}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def norm(scale: Any, twice: bool = False) -> onnx.ModelProto:
    difference = "d2" if twice else "d"
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[-1]),
        node("Sub", ["x", "m"], ["d"]),
        *([node("Sub", ["x", "m"], ["d2"])] if twice else []),
        node("Pow", ["d", "two"], ["s"]),
        node("ReduceMean", ["s"], ["v"], axes=[-1]),
        node("Add", ["v", "eps"], ["e"]),
        node("Sqrt", ["e"], ["r"]),
        node("Div", [difference, "r"], ["n"]),
        node("Mul", ["n", "g"], ["y"]),
    ]
    return model(nodes, [2, 3, 8], two=np.float32(2), eps=np.float32(1e-5), g=np.asarray(scale, np.float32))


def quantised_sigmoid(scale: float) -> onnx.ModelProto:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("QuantizeLinear", ["s", "k", "z"], ["q"])]
    return model([*nodes, node("DequantizeLinear", ["q", "k", "z"], ["y"])], [2, 8], k=np.float32(scale), z=np.uint8(0))


def attention(product: bool = True, exponentials: bool = False) -> onnx.ModelProto:
    scores = node("Einsum", ["x", "k"], ["s"], equation="bqd,bkd->bqk")
    if product:
        scores = node("MatMul", ["x", "k"], ["s"])
    chances = [node("Softmax", ["s"], ["p"], axis=-1)]
    if exponentials:
        chances = [
            node("ReduceMax", ["s"], ["m"], axes=[-1]),
            node("Sub", ["s", "m"], ["t"]),
            node("Exp", ["t"], ["e"]),
        ]
        chances += [node("ReduceSum", ["e", "last"], ["a"]), node("Div", ["e", "a"], ["p"])]
    after = node("MatMul", ["p", "v"], ["y"])
    return model([scores, *chances, after], [2, 8, 8], last=np.array([-1]))


def pool(count: int = 1, **settings: Any) -> onnx.ModelProto:
    return model([node("AveragePool", ["x"], ["y"], count_include_pad=count, **settings)], [1, 3, 9, 9])


def conv(kernel: list[int], **settings: Any) -> onnx.ModelProto:
    return model([node("Conv", ["x", "w"], ["y"], **settings)], [1, 3, 9, 9], w=np.ones([4, 3, *kernel], np.float32))


def padded(opset: int) -> onnx.ModelProto:
    pads = [0, 2, 0, 0, 0, 0]
    nodes = [node("Pad", ["x"], ["y"], pads=pads)] if opset < 11 else [node("Pad", ["x", "p"], ["y"])]
    return model(nodes, [1, 4, 8], opset, **({"p": np.array(pads)} if opset >= 11 else {}))


def reduced(kind: str, shape: list[int], **settings: Any) -> onnx.ModelProto:
    return model([node(kind, ["x"], ["y"], **settings)], shape)


def samples(joined: str) -> onnx.ModelProto:
    grids = [node("GridSample", [f"x{i}", f"k{i}"], [f"s{i}"]) for i in range(3)]
    return model([*grids, node(joined, ["s0", "s1", "s2"], ["y"])], [1, 4, 4, 2])


def integers(level: int, dynamic: bool) -> onnx.ModelProto:
    first = node("QuantizeLinear", ["x", "k", "z"], ["q"])
    if dynamic:
        first = node("DynamicQuantizeLinear", ["x"], ["q", "k2", "z2"])
    nodes = [
        first,
        node("MatMulInteger", ["q", "w", "z2" if dynamic else "z"], ["i"]),
        node("Cast", ["i"], ["y"], to=1),
    ]
    return model(nodes, [2, 8], k=np.float32(0.1), z=np.uint8(0), w=np.full((8, 4), level, np.int8))


def quantised_layer(kind: str, level: int) -> onnx.ModelProto:
    is_conv = kind == "QLinearConv"
    weight = np.full([4, 3, 3, 3] if is_conv else [8, 4], level, np.int8)
    read = ["q", "k", "z", "w", "k", "c", "k", "z"]
    nodes = [node("QuantizeLinear", ["x", "k", "z"], ["q"]), node(kind, read, ["r"])]
    nodes.append(node("DequantizeLinear", ["r", "k", "z"], ["y"]))
    shape = [1, 3, 9, 9] if is_conv else [2, 8]
    return model(nodes, shape, k=np.float32(0.1), z=np.uint8(0), c=np.int8(0), w=weight)


def gelu(one: float, multiplied: str = "x") -> onnx.ModelProto:
    nodes = [node("Div", ["x", "r"], ["a"]), node("Erf", ["a"], ["e"]), node("Add", ["e", "one"], ["o"])]
    nodes += [node("Mul", [multiplied, "o"], ["m"]), node("Mul", ["m", "half"], ["y"])]
    numbers = {"r": 1.414, "one": one, "half": 0.5}
    return model(nodes, [2, 8], kind="half", **{name: np.float16(number) for name, number in numbers.items()})


def heads(count: int) -> onnx.ModelProto:
    given = {"q_num_heads": count, "kv_num_heads": count}
    return model([node("Attention", ["x", "k", "v"], ["y"], **given)], [1, 8, 1024], 23, "half")


def foreign() -> onnx.ModelProto:
    nodes = [node("CumSum", ["x"], ["s"], domain="my"), node("CumSum", ["x"], ["t"], domain="my", reverse=1)]
    nodes += [node("Mean", ["s", "t"], ["m"], domain="my")]
    return model([*nodes, node("AveragePool", ["m"], ["y"], domain="my", count_include_pad=1, pads=[0, 1])], [2, 8])


def contributed() -> onnx.ModelProto:
    """ONNX Runtime's own Attention, whose first input is no query."""
    taken = node("Attention", ["x", "w"], ["o", "present"], domain="com.microsoft", num_heads=2)
    made = model([taken, node("Add", ["o", "present"], ["y"])], [1, 8, 1024], kind="half")
    made.graph.initializer.append(numpy_helper.from_array(np.ones((1024, 4), np.float16), "w"))
    return made


def chain() -> onnx.ModelProto:
    nodes = [node("Mul", ["x", "x"], ["a"]), node("Sub", ["x", "a"], ["b"]), node("Add", ["x", "b"], ["y"])]
    made = model(nodes, [4])
    made.graph.output.append(value("b", [4]))
    return made


FOUND: dict[str, tuple[str, onnx.ModelProto]] = {
    "norm": ("OR3", norm(2.0)),
    "norm, its difference taken twice": ("OR3", norm(2.0, twice=True)),
    "quantised sigmoid": ("QN1", quantised_sigmoid(0.01)),
    "attention": ("LR3", attention()),
    "attention by einsum": ("LR3", attention(product=False)),
    "attention by exponentials": ("LR3", attention(exponentials=True)),
    "borders of a pool": ("OR6", pool(kernel_shape=[2, 2], pads=[0, 0, 1, 1])),
    "borders of a pool that keep the size": ("OR6", pool(kernel_shape=[2, 2], auto_pad="SAME_UPPER")),
    "borders of a convolution that keep the size": ("OR9", conv([2, 2], auto_pad="SAME_UPPER")),
    "pads of opset 10": ("LR4", padded(10)),
    "pads": ("LR4", padded(13)),
    "a mean as a pool": ("LR5", reduced("AveragePool", [1, 4, 64, 64], kernel_shape=[64, 64])),
    "squares": ("LR9", reduced("ReduceSumSquare", [2, 2048], axes=[-1])),
    "a norm": ("LR9", reduced("ReduceL2", [2, 2048], axes=[-1])),
    "a sum of three": ("TR5", samples("Sum")),
    "integers": ("OR5", integers(100, dynamic=False)),
    "integers, quantised as they come": ("OR5", integers(100, dynamic=True)),
    "a quantised convolution": ("OR5", quantised_layer("QLinearConv", 100)),
    "a quantised product": ("OR5", quantised_layer("QLinearMatMul", 100)),
    "gelu by its formula": ("XN2", gelu(1.0)),
    "heads side by side": ("OR8", heads(2)),
    "a chain by its second operands": ("TR20", chain()),
    "a comparison": ("LR2", model([node("Greater", ["x", "w"], ["y"])], [1, 2, 3, 8], w=np.ones((3, 8), np.int64))),
}

NOT_FOUND: dict[str, tuple[str, onnx.ModelProto]] = {
    "norm": ("OR3", norm(np.ones(8))),
    "quantised sigmoid": ("QN1", quantised_sigmoid(1 / 256)),
    "even borders": ("OR6", pool(kernel_shape=[3, 3], auto_pad="SAME_UPPER")),
    "borders that do not count": ("OR6", pool(0, kernel_shape=[2, 2], auto_pad="SAME_UPPER")),
    "no borders": ("OR6", pool(kernel_shape=[2, 2], auto_pad="VALID")),
    "borders at the beginning": ("OR9", conv([2, 2], auto_pad="SAME_LOWER")),
    "a reduction over nothing": ("LR5", reduced("ReduceSum", [1, 4, 64, 64], noop_with_empty_axes=1)),
    "a small pool": ("LR5", reduced("AveragePool", [1, 4, 64, 64], kernel_shape=[8, 8])),
    "a short row": ("LR9", reduced("ReduceSumSquare", [2, 512], axes=[-1])),
    "small integers": ("OR5", integers(64, dynamic=True)),
    "a small quantised product": ("OR5", quantised_layer("QLinearMatMul", 64)),
    "an error function": ("XN2", gelu(0.5)),
    "an error function that multiplies another": ("XN2", gelu(1.0, "w")),
    "narrow heads": ("OR8", heads(16)),
    "sums of another domain": ("TR10", foreign()),
    "a mean of another domain": ("TR17", foreign()),
    "a pool of another domain": ("OR6", foreign()),
    "attention of another domain": ("OR8", contributed()),
    "results of attention of another domain": ("OR7", contributed()),
}


def same(given: onnx.ModelProto) -> onnx.ModelProto:
    return given


def through_copies(given: onnx.ModelProto) -> onnx.ModelProto:
    """Every value is read through an Identity."""
    kept, copies, outputs = [], {}, {one.name for one in given.graph.output}
    for one in given.graph.node:
        one.input[:] = [copies.get(name, name) for name in one.input]
        kept.append(one)
        for name in set(one.output) - outputs - {""}:
            copies[name] = f"{name}_copy"
            kept.append(node("Identity", [name], [copies[name]]))
    made = list(map(copy.deepcopy, kept))
    del given.graph.node[:]
    given.graph.node.extend(made)
    return given


def as_nodes(given: onnx.ModelProto) -> onnx.ModelProto:
    """Constants are nodes."""
    constants = [node("Constant", [], [one.name], value=one) for one in given.graph.initializer]
    return with_nodes(given, constants + list(given.graph.node))


def with_nodes(given: onnx.ModelProto, nodes: Nodes) -> onnx.ModelProto:
    made = [copy.deepcopy(one) for one in nodes]
    del given.graph.node[:], given.graph.initializer[:]
    given.graph.node.extend(made)
    return given


def as_function(given: onnx.ModelProto) -> onnx.ModelProto:
    """All is a function of the model, behind another function."""
    given = as_nodes(given)
    names = [[one.name for one in those] for those in (given.graph.input, given.graph.output)]
    opsets = [*given.opset_import, helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "Inner", *names, list(given.graph.node), opsets)
    outer = helper.make_function("own", "Outer", *names, [node("Inner", *names, domain="own")], opsets)
    given.functions.extend([inner, outer])
    given.opset_import.append(opsets[-1])
    return with_nodes(given, [node("Outer", *names, domain="own")])


def in_branch(given: onnx.ModelProto) -> onnx.ModelProto:
    """All is in a branch, and the other one has other values of the same names."""
    given = as_nodes(given)
    outputs = [copy.deepcopy(one) for one in given.graph.output]
    names = [name for one in given.graph.node for name in one.output if name]
    other = [node("Constant", [], [name], value_float=1.0) for name in names]
    branches = [helper.make_graph(nodes, "b", [], outputs) for nodes in (other, list(given.graph.node))]
    results = [f"{one.name}_of_if" for one in outputs]
    given.graph.input.append(value("which", [], "bool"))
    for one, name in zip(given.graph.output, results, strict=True):
        one.name = name
    return with_nodes(given, [node("If", ["which"], results, then_branch=branches[0], else_branch=branches[1])])


SPELLINGS: tuple[Callable[[onnx.ModelProto], onnx.ModelProto], ...] = (
    *(same, through_copies, as_nodes, as_function, in_branch),
)


def rules(given: onnx.ModelProto, folder: Path) -> set[str]:
    onnx.save(given, folder / "m.onnx")
    return {one.rule for one in lint(folder / "m.onnx", EVERYBODY).findings}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", FOUND)
def test_a_construct_is_found_however_it_is_spelled(name: str, spelling: Callable[..., Any], tmp_path: Path) -> None:
    wanted, given = FOUND[name]
    if spelling is in_branch and wanted == "TR20":
        return  # the tap of a chain is an output of the graph
    assert wanted in rules(spelling(copy.deepcopy(given)), tmp_path)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_only_looks_like_one_is_not_found(name: str, spelling: Callable[..., Any], tmp_path: Path) -> None:
    missing, given = NOT_FOUND[name]
    assert missing not in rules(spelling(copy.deepcopy(given)), tmp_path)


def functions(calls: dict[str, list[str]]) -> onnx.ModelProto:
    """A model of functions that call others, each on the result of the one before."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = model([node("F0", ["x"], ["y"], domain="own")], [2])
    for name, called in calls.items():
        values = ["x", *(f"v{i}" for i in range(len(called) - 1)), "y"]
        domains = ["own" if one in calls else "" for one in called]
        nodes = [
            node(one, [values[i]], [values[i + 1]], domain=domain)
            for i, (one, domain) in enumerate(zip(called, domains, strict=True))
        ]
        made.functions.append(helper.make_function("own", name, ["x"], ["y"], nodes, opsets))
    return made


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ({"F0": ["F0"]}, "without end"),
        ({"F0": ["Relu", "F1"], "F1": ["F0"]}, "without end"),
        ({**{f"F{i}": [f"F{i + 1}"] * 10 for i in range(12)}, "F12": ["Relu"]}, "too many to read"),
    ],
)
def test_functions_without_end_are_refused_at_once(calls: dict[str, list[str]], said: str, tmp_path: Path) -> None:
    begun = time.perf_counter()
    with pytest.raises(Unreadable, match=said):
        rules(functions(calls), tmp_path)
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"), [(9, 2, 1, 1), (9, 3, 2, 1), (8, 3, 2, 1), (7, 5, 3, 2)]
)
def test_borders_that_keep_a_size_are_those_of_onnx(
    size: int, kernel: int, stride: int, dilation: int, lower: bool, transposed: bool
) -> None:
    from onnx.reference import ReferenceEvaluator

    if transposed and dilation > 1:
        return  # ONNX's own evaluator has none
    kind, how = "ConvTranspose" if transposed else "Conv", "SAME_LOWER" if lower else "SAME_UPPER"
    pads = same_pads(None if transposed else [size], [kernel], [stride], [dilation], lower)
    given = np.random.default_rng(0).random((1, 1, size), np.float32)
    weight = np.random.default_rng(1).random((1, 1, kernel), np.float32)
    results = []
    for settings in ({"auto_pad": how}, {"pads": pads}):
        one = node(kind, ["x", "w"], ["y"], kernel_shape=[kernel], strides=[stride], dilations=[dilation], **settings)
        evaluator = ReferenceEvaluator(model([one], [1, 1, size], w=weight))
        results.append(evaluator.run(None, {"x": given})[0])
    if transposed and stride > kernel:
        return
    np.testing.assert_allclose(*results, rtol=1e-5)
