"""ONNX Runtime's own cases of the book: files run with its optimisations and without, and how exports avoid them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import edgesmith
from edgesmith.exporters.departures.book import all_departures
from edgesmith.exporters.departures.from_onnx import graph_of_onnx
from edgesmith.exporters.departures.lint import find
from edgesmith.exporters.departures.subjects import parse_subject
from edgesmith.exporters.targets import _onnx_norms, _onnx_projections, _onnx_samples, _onnx_sums
from edgesmith.profiles import device as devices

ROWS = all_departures()
HERE = parse_subject(f"ort@{ort.__version__.split('+')[0]}").version
FLAGS = {*(Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else ())}
PLAIN, BASIC, ALL = (
    getattr(ort.GraphOptimizationLevel, name) for name in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL")
)


def run(model: onnx.ModelProto, level: Any, x: np.ndarray) -> np.ndarray | str:
    """The output at a level of optimisation, or the error in words."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
    except Exception as error:
        return str(error)


def differs(model: onnx.ModelProto, x: np.ndarray) -> bool:
    """Whether what is optimised fails, or is beyond rounding from what is not."""
    plain, optimised = run(model, PLAIN, x), run(model, ALL, x)
    assert not isinstance(plain, str), plain
    if isinstance(optimised, str):
        return True
    return bool(np.abs(plain - optimised).max() > 1e-5 * np.abs(plain).max())


def held(name: str, value: Any, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model(nodes: list[Any], shape: tuple[int, ...], constants: list[Any]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def quantised(node: Any, weight: np.ndarray, bias: Any, bias_scale: float) -> onnx.ModelProto:
    """A convolution or product between quantize and dequantize: input scale 0.01, weight scale 0.02."""
    constants = [
        *(held("s", 0.01), held("t", 0.02), held("u", bias_scale), held("o", 0.5)),
        *(held("z", 0, np.uint8), held("zw", 0, np.int8), held("zb", 0, np.int32)),
        *(held("w", weight, np.int8), held("b", bias, np.int32)),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "t", "zw"], ["wf"]),
        *([helper.make_node("DequantizeLinear", ["b", "u", "zb"], ["bf"])] if "bf" in node.input else []),
        node,
        helper.make_node("QuantizeLinear", ["c", "o", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "o", "z"], ["y"]),
    ]
    shape = (1, weight.shape[1], 4, 4) if node.op_type == "Conv" else (1, weight.shape[0])
    return model(nodes, shape, constants)


def biased(scale: float) -> onnx.ModelProto:
    node = helper.make_node("Conv", ["a", "wf", "bf"], ["c"], "conv")
    return quantised(node, np.full((2, 4, 1, 1), 3), np.full(2, int(40 / scale)), scale)


def spelled(shape: tuple[int, ...], scale: tuple[int, ...], keep: int = 1) -> onnx.ModelProto:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=keep),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["q"]),
        helper.make_node("ReduceMean", ["q", "axes"], ["v"]),
        helper.make_node("Add", ["v", "e"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["n"]),
        helper.make_node("Mul", ["n", "g"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    numbers = 1.5 + np.arange(int(np.prod(scale))).reshape(scale)
    constants = [held("axes", [-1], np.int64), held("two", 2), held("e", 1e-5), held("g", numbers), held("b", numbers)]
    return model(nodes, shape, constants)


X = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def test_or1_a_bias_of_its_own_scale_is_as_the_book_has_it() -> None:
    """Fixed in 1.26 by the book: there the levels differ before, and agree from then on."""
    x = np.full((1, 4, 4, 4), 1.0, np.float32)
    assert find(ROWS["OR1"], graph_of_onnx(biased(0.5)))
    assert find(ROWS["OR1"], graph_of_onnx(biased(0.0002))) == []
    assert not differs(biased(0.0002), x)
    assert differs(biased(0.5), x) == ROWS["OR1"].concerns(HERE)


def test_or2_a_mean_that_drops_its_axis_is_fused_wrongly() -> None:
    broken, kept = spelled((4, 4), (4,), keep=0), spelled((4, 4), (4,))
    assert find(ROWS["OR2"], graph_of_onnx(broken))
    assert find(ROWS["OR2"], graph_of_onnx(kept)) == []
    assert differs(broken, X)
    assert not differs(kept, X)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1)])
def test_or3_a_scale_that_broadcasts_the_result_fails_when_optimised(shape: tuple[int, int]) -> None:
    broken = spelled(shape, (2,))
    assert find(ROWS["OR3"], graph_of_onnx(broken))
    assert isinstance(run(broken, ALL, X[: shape[0], :1]), str)
    assert differs(broken, X[: shape[0], :1])
    assert not differs(spelled((4, 4), (1,)), X)


def test_or5_sums_of_two_products_saturate_without_vnni() -> None:
    def product(weight: int) -> onnx.ModelProto:  # of 8 terms, whose sum the output's own scale still holds
        node = helper.make_node("MatMul", ["a", "wf"], ["c"], "product")
        return quantised(node, np.full((8, 8), weight), 0, 1.0)

    x = np.full((1, 8), 2.5, np.float32)
    assert find(ROWS["OR5"], graph_of_onnx(product(127)))
    assert find(ROWS["OR5"], graph_of_onnx(product(63))) == []
    assert not differs(product(63), x)
    assert differs(product(127), x) == ("avx2" in FLAGS and not FLAGS & {"avx512_vnni", "avx_vnni"})


class Dropped(nn.Module):
    """A layer norm in primitives whose mean drops its axis: of a square input, another function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference = x - x.mean(-1)
        return difference / torch.sqrt((difference**2).mean(-1, keepdim=True) + 1e-5) * 2 + 1


class Kept(nn.Module):
    """A layer norm in primitives that may well be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 1.5, 2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference = x - x.mean(-1, keepdim=True)
        return difference / torch.sqrt((difference**2).mean(-1, keepdim=True) + 1e-5) * self.scale + self.scale


@pytest.mark.parametrize(("module", "rule"), [(Dropped, "OR2"), (Kept, None)])
def test_exports_avoid_what_onnx_runtime_fuses_wrongly(
    module: Callable[[], nn.Module], rule: str | None, tmp_path: Path
) -> None:
    artifact = edgesmith.export(module().eval(), "onnx", inputs=(torch.from_numpy(X),), name="norm", out=tmp_path)
    written = onnx.load(artifact.file)
    assert not differs(written, X)
    assert [one["rule"] for one in artifact.manifest.get("legalized", [])] == ([rule] if rule else [])
    assert not {"OR1", "OR2", "OR3", "OR5"} & {one.rule for one in edgesmith.lint(artifact.path).findings}


@pytest.mark.parametrize(
    ("built", "rule"),
    [(spelled((4, 4), (4,), keep=0), "OR2"), (spelled((3, 1), (2,)), "OR3"), (spelled((4, 4), (4,)), None)],
)
def test_quotients_of_such_norms_become_products(built: onnx.ModelProto, rule: str | None) -> None:
    x = X[:3, :1] if rule == "OR3" else X
    before = run(built, PLAIN, x)
    assert differs(built, x) == (rule is not None)
    for _ in range(2):  # again, nothing changes
        _onnx_norms.record(built, _onnx_norms.keep_apart(built))
        assert [one["rule"] for one in _onnx_norms.legalizations(built)] == ([rule] if rule else [])
    assert not differs(built, x)
    np.testing.assert_allclose(run(built, ALL, x), before, rtol=1e-6, atol=1e-6)
    assert not {"OR2", "OR3"} & {name for name in ("OR2", "OR3") if find(ROWS[name], graph_of_onnx(built))}


class Widened(nn.Module):
    """A layer norm in primitives over one number, whose scale makes two of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference = x - x.mean(-1, keepdim=True)
        scale = torch.tensor([0.5, 1.0])
        return difference / torch.sqrt((difference**2).mean(-1, keepdim=True) + 1e-5) * scale + scale


def test_an_export_avoids_a_scale_that_widens(tmp_path: Path) -> None:
    """OR3: its outputs do not depend on the input, so the file alone is looked at."""
    x = torch.from_numpy(X[:3, :1])
    with pytest.warns(UserWarning, match="not verified"):
        artifact = edgesmith.export(Widened().eval(), "onnx", inputs=(x,), name="norm", out=tmp_path)
    written = onnx.load(artifact.file)
    assert not isinstance(run(written, ALL, x.numpy()), str)
    assert "OR3" not in {one.rule for one in edgesmith.lint(artifact.path).findings}


def test_int8_exports_have_the_biases_and_types_that_are_computed_right(tmp_path: Path) -> None:
    """OR1: biases at the scale of input times weight; OR5: no unsigned data by signed weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    data = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", input_1=data)
    options = {"precision": "int8", "calibration": tmp_path / "data.npz", "out": tmp_path, "name": "net"}
    artifact = edgesmith.export(net, "onnx", inputs=(torch.from_numpy(data[:1]),), **options)  # type: ignore[arg-type]
    written = onnx.load(artifact.file)
    assert any(node.op_type == "Conv" and len(node.input) > 2 for node in written.graph.node)
    for rule in ("OR1", "OR5", "QN3"):
        assert find(ROWS[rule], graph_of_onnx(written)) == [], rule


def sums(*settings: tuple[int, int, int]) -> onnx.ModelProto:
    """Running sums of one input, each with axis, reverse and exclusive, side by side."""
    nodes, constants = [], []
    for k, (axis, reverse, exclusive) in enumerate(settings):
        node = helper.make_node("CumSum", ["x", f"a{k}"], [f"s{k}"], f"sum{k}", reverse=reverse, exclusive=exclusive)
        nodes.append(node)
        constants.append(held(f"a{k}", axis, np.int64))
    nodes.append(helper.make_node("Concat", [f"s{k}" for k in range(len(settings))], ["y"], axis=0))
    return model(nodes, (2, 3, 4), constants)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ([(0, 0, 0), (1, 0, 0), (2, 1, 0)], ["sum1", "sum2"]),
        ([(2, 0, 1), (-1, 1, 0), (2, 1, 1)], ["sum0", "sum1", "sum2"]),
        ([(1, 0, 0), (-2, 0, 1)], []),
        ([(1, 1, 0)], []),
    ],
)
def test_unlike_sums_become_alike(settings: list[tuple[int, int, int]], changed: list[str]) -> None:
    """TR10: they fire on unlike ones, leave the others, keep every bit, and change nothing again."""
    built = sums(*settings)
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    before = run(built, PLAIN, x)
    assert bool(find(ROWS["TR10"], graph_of_onnx(built))) == bool(changed)
    done = _onnx_sums.align_sums(built)
    assert [one["name"] for one in done] == changed
    assert {one["rule"] for one in done} <= {"TR10"}
    onnx.shape_inference.infer_shapes(built, check_type=True, strict_mode=True)
    np.testing.assert_array_equal(run(built, PLAIN, x), before)
    assert find(ROWS["TR10"], graph_of_onnx(built)) == []
    assert _onnx_sums.align_sums(built) == []


class Sums(nn.Module):
    """Running sums along two axes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 0) + torch.cumsum(x, 1)


@pytest.mark.parametrize(("device", "rules"), [("jetson-orin-nano", ["TR10"]), (None, [])])
def test_sums_are_aligned_for_devices_with_tensorrt(device: str | None, rules: list[str], tmp_path: Path) -> None:
    x = torch.from_numpy(X)
    artifact = edgesmith.export(Sums().eval(), "onnx", inputs=(x,), name="sums", device=device, out=tmp_path)
    assert [one["rule"] for one in artifact.manifest.get("legalized", [])] == rules


def sampled(size: tuple[int, int], **settings: object) -> onnx.ModelProto:
    """A GridSample of [2, 3, H, W] at [2, 5, 4] places, and what is added to it."""
    grid = held("grid", np.random.default_rng(2).uniform(-1.6, 1.6, (2, 5, 4, 2)).astype(np.float32), np.float32)
    return model([helper.make_node("GridSample", ["x", "grid"], ["y"], "sample", **settings)], (2, 3, *size), [grid])


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("size", [(6, 9), (1, 4)])
def test_samples_become_gathers(padding: str, aligned: int, size: tuple[int, int]) -> None:
    built = sampled(size, mode="bilinear", padding_mode=padding, align_corners=aligned)
    x = np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32)
    before = run(built, PLAIN, x)
    done = _onnx_samples.gather_samples(built)
    assert [(one["rule"], one["name"]) for one in done] == [("TR6", "sample")]
    onnx.shape_inference.infer_shapes(built, check_type=True, strict_mode=True)
    assert "GridSample" not in {node.op_type for node in built.graph.node}
    np.testing.assert_allclose(run(built, PLAIN, x), before, rtol=0, atol=3e-6)
    assert _onnx_samples.gather_samples(built) == []


@pytest.mark.parametrize("settings", [{"mode": "nearest"}, {"mode": "bilinear", "padding_mode": "reflection"}])
def test_other_samples_stay(settings: dict[str, str]) -> None:
    built = sampled((6, 9), **settings)
    before = built.SerializeToString(deterministic=True)
    assert _onnx_samples.gather_samples(built) == []
    assert built.SerializeToString(deterministic=True) == before


class Samples(nn.Module):
    """Two samples that meet in a sum: deformable attention in small."""

    def forward(self, x: torch.Tensor, here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        first, second = (F.grid_sample(x, one, align_corners=False) for one in (here, there))
        return first + second


@pytest.mark.parametrize(("device", "rules"), [("jetson-orin-nano", ["TR5", "TR5"]), (None, [])])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_samples_are_gathered_for_devices_with_tensorrt(
    device: str | None, rules: list[str], precision: str, tmp_path: Path
) -> None:
    inputs = (torch.randn(1, 3, 6, 6), *(torch.rand(1, 4, 4, 2) * 1.8 - 0.9 for _ in range(2)))
    made = edgesmith.export(
        Samples().eval(), "onnx", inputs=inputs, name="samples", device=device, precision=precision, out=tmp_path
    )
    assert [one["rule"] for one in made.manifest.get("legalized", [])] == rules
    found = {one.rule for one in edgesmith.lint(made.file, "tensorrt").findings}
    assert bool(found & {"TR5", "TR6", "TR7"}) == (device is None)


def projected(batch: int = 2, dtype: int = TensorProto.FLOAT16, **one: Any) -> onnx.ModelProto:
    """Three products of x [B, 4, 6], of 6, 3 and 8 columns, one turned and with a bias; `one` stands for the second."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    random = np.random.default_rng(4)
    constants = [held(f"w{k}", random.standard_normal((6, n)), kind) for k, n in enumerate((6, 3, 8))]
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=dtype),
        helper.make_node("MatMul", ["c", "w0"], ["p0"], "q"),
        helper.make_node("MatMul", ["c", one.get("weight", "w1")], ["p1"], "k"),
        helper.make_node("MatMul", ["c", "w2"], ["p2"], "v"),
        helper.make_node("Concat", ["p0", "p1", "p2"], ["t"], axis=-1),
        helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    if one:
        nodes.insert(1, helper.make_node("Relu", ["w1"], ["computed"]))
    return model(nodes, (batch, 4, 6), constants)


@pytest.mark.parametrize(
    ("device", "settings", "rule"),
    [
        ("jetson-thor", {}, "TR3"),
        ("jetson-thor", {"batch": 1, "dtype": TensorProto.FLOAT}, "TR3"),
        ("rtx3080", {}, "TR2"),
        ("rtx3080", {"batch": 1}, None),
        ("rtx3080", {"dtype": TensorProto.FLOAT}, None),
        ("jetson-orin-nano", {}, None),
        ("rtx3080", {"weight": "computed"}, None),
    ],
)
def test_projections_become_one(device: str, settings: dict[str, Any], rule: str | None) -> None:
    """TR2, TR3: they fire where a device is concerned, leave the others, keep the numbers, and change nothing again."""
    cuda = devices.get(device).cuda
    built = projected(**settings)
    x = np.random.default_rng(1).standard_normal((settings.get("batch", 2), 4, 6)).astype(np.float32)
    before, whole = run(built, PLAIN, x), built.SerializeToString(deterministic=True)
    done = _onnx_projections.join_projections(built, cuda)
    assert [(one["rule"], one["name"]) for one in done] == ([(rule, "q")] if rule else [])
    assert (built.SerializeToString(deterministic=True) == whole) == (rule is None)
    onnx.shape_inference.infer_shapes(built, check_type=True, strict_mode=True)
    np.testing.assert_allclose(run(built, PLAIN, x), before, rtol=1e-3, atol=1e-3)
    if rule:
        assert sum(node.op_type == "MatMul" for node in built.graph.node) == 1
        assert {"w0", "w1", "w2"}.isdisjoint(one.name for one in built.graph.initializer)
    assert _onnx_projections.join_projections(built, cuda) == []


@pytest.mark.parametrize("has_rows", [True, False])
@pytest.mark.parametrize("is_quantised", [True, False])
def test_projections_are_joined_however_their_matrices_lie(is_quantised: bool, has_rows: bool) -> None:
    """Turned, with rows that are added, and behind DequantizeLinear with a scale for each column: the same numbers."""
    random = np.random.default_rng(5)
    nodes, constants = [], []
    for k, columns in enumerate((5, 3)):
        shape, kind = ((columns, 6), np.int8) if is_quantised else ((columns, 6), np.float32)
        constants.append(held(f"w{k}", random.integers(-99, 99, shape), kind))
        if is_quantised:
            constants += [held(f"s{k}", random.uniform(0.1, 1, columns)), held(f"z{k}", np.zeros(columns), np.int8)]
            nodes.append(helper.make_node("DequantizeLinear", [f"w{k}", f"s{k}", f"z{k}"], [f"d{k}"], f"d{k}", axis=0))
        constants.append(held(f"b{k}", random.standard_normal(columns)))
        given = ["x", f"{'d' if is_quantised else 'w'}{k}", *([f"b{k}"] if has_rows and k == 0 else [])]
        nodes.append(helper.make_node("Gemm", given, [f"p{k}"], f"p{k}", transB=1))
    nodes.append(helper.make_node("Concat", ["p0", "p1"], ["y"], axis=-1))
    built = model(nodes, (2, 6), constants)
    x = random.standard_normal((2, 6)).astype(np.float32)
    before = run(built, PLAIN, x)
    assert [one["rule"] for one in _onnx_projections.join_projections(built, devices.get("jetson-thor").cuda)] == [
        "TR3"
    ]
    onnx.shape_inference.infer_shapes(built, check_type=True, strict_mode=True)
    assert sum(node.op_type in ("MatMul", "Gemm") for node in built.graph.node) == 1
    assert sum(node.op_type == "DequantizeLinear" for node in built.graph.node) == is_quantised
    np.testing.assert_allclose(run(built, PLAIN, x), before, rtol=2e-6, atol=2e-4)


class Attention(nn.Module):
    """Attention with queries, keys and values of one input; keys and values may be fewer and wider."""

    def __init__(self, shared: int = 1, width: int = 4, biases: str = "qkv", has_norm: bool = True) -> None:
        super().__init__()
        self.shared, self.width = shared, width
        self.norm = nn.LayerNorm(16) if has_norm else nn.Identity()
        self.q = nn.Linear(16, 16, bias="q" in biases)
        self.k = nn.Linear(16, 16 // shared, bias="k" in biases)
        self.v = nn.Linear(16, 4 // shared * width, bias="v" in biases)
        self.out = nn.Linear(4 * width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (-1, w)) for layer, w in ((self.q, 4), (self.k, 4), (self.v, self.width)))
        mixed = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q, k, v)), enable_gqa=self.shared > 1)
        return torch.as_tensor(x + self.out(mixed.transpose(1, 2).flatten(2)))


class Gated(nn.Module):
    """A gated layer without biases on one side: two products of one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.up = nn.LayerNorm(16), nn.Linear(16, 24, bias=False), nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return torch.as_tensor(x + self.down(F.silu(self.gate(y)) * self.up(y)))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_kit_for_thor_has_one_product_of_each_input(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases on some of the projections, shared and wider heads, no norm, a gate: no TR2 or TR3 at batch 2."""
    torch.manual_seed(0)
    blocks = [Attention(), Attention(biases="v"), Attention(biases="q", width=6), Attention(shared=2, biases="")]
    blocks += [Attention(shared=4, width=3, has_norm=False), Gated()]
    network, x = nn.Sequential(*blocks).eval(), torch.randn(2, 8, 16)

    def found(name: str) -> tuple[set[str], set[str]]:
        made = edgesmith.export(
            network, "tensorrt", inputs=(x,), name=name, device="jetson-thor", precision=precision, out=tmp_path
        )
        errors = [one["worst"]["relative_error"] for one in made.manifest["verification"]["steps"] if "worst" in one]
        assert len(errors) > 2
        assert max(errors) < 0.05
        rules = {one["rule"] for one in made.manifest.get("legalized", [])}
        return rules, {one.rule for one in edgesmith.lint(made.path).findings} & {"TR2", "TR3"}

    assert found("joined") == ({"TR3"}, set())
    if precision == "fp16":
        monkeypatch.setattr(_onnx_projections, "join_projections", lambda *_: [])
        assert found("apart") == (set(), {"TR2", "TR3"})


def test_somebody_elses_list_is_not_taken_for_ours() -> None:
    built = spelled((4, 4), (4,))
    built.metadata_props.add(key=_onnx_norms.LEGALIZED, value='{"no": "list"}')
    assert _onnx_norms.legalizations(built) == []
