"""The book of departures, and what finds its rows: each in the graph that shows it, and not in the nearest one."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import edgesmith
from edgesmith.cli import run
from edgesmith.errors import BadInput, Unreadable
from edgesmith.exporters.departures import book, page, subjects
from edgesmith.exporters.departures.detectors import all_detectors
from edgesmith.exporters.departures.from_coreai import graph_of_coreai
from edgesmith.exporters.departures.from_onnx import graph_of_onnx
from edgesmith.exporters.departures.lint import _advice as advice_of
from edgesmith.exporters.departures.lint import _findings as findings_of
from edgesmith.exporters.departures.lint import find
from edgesmith.exporters.departures.notation import read_graph
from edgesmith.exporters.departures.sarif import as_sarif
from edgesmith.exporters.mil.lint import Report
from edgesmith.exporters.mil.rules import RULES
from edgesmith.readers import apart
from edgesmith.readers.messages import read_onnx

ROWS = book.all_departures()
DETECTED = [name for name, row in ROWS.items() if row.detector]
SARIF = Path(__file__).parent / "fixtures" / "sarif-2.1.0-part.json"


# ------------------------------------------------------------------------------------------------------------ the book


def test_the_book_has_every_row_and_says_why_some_have_no_detector() -> None:
    assert len(ROWS) == 90
    assert len(DETECTED) >= 60
    assert {row.detector for row in ROWS.values()} - {None} == set(all_detectors())
    assert all(row.rule in RULES for row in ROWS.values() if row.rule)
    assert Counter(row.target for row in ROWS.values()).keys() == book.TARGETS.keys()


@pytest.mark.parametrize("name", DETECTED)
def test_a_detector_finds_its_construct_and_leaves_the_nearest_one(name: str) -> None:
    row = ROWS[name]
    assert row.found
    assert row.left
    found = find(row, read_graph(row.found))
    assert found, f"{name} does not find: {row.found}"
    assert all(fact for _, fact in found)
    assert find(row, read_graph(row.left)) == [], f"{name} finds: {row.left}"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"target": "tensorflow"}, "none of coreml, coreai"),
        ({"sure": "certainly"}, "none of vendor, reproduced"),
        ({"since": "ten"}, "no version"),
        ({"source": ["somebody said so"]}, "no source"),
        ({"source": []}, "no source"),
        ({"detector": None}, "either a detector"),
        ({"left": None}, "either a detector"),
        ({"safe": " "}, "empty safe"),
        ({"id": "softplus"}, "no id"),
        ({"colour": "red"}, "colour"),
        ({"title": None}, "no title"),
    ],
)
def test_a_row_that_breaks_its_form_is_refused_with_its_id(edit: dict[str, Any], said: str, tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "id": "CM1",
        "target": "coreml",
        "title": "t",
        "where": "w",
        "construct": "c",
        "wrong": "x",
        "safe": "s",
        "effect": "wrong",
        "sure": "vendor",
        "source": ["a/b#1"],
        "detector": "softplus_in_half",
        "found": "x = input fp16[1]; return x",
        "left": "x = input fp16[1]; return x",
    }
    row = {key: value for key, value in (row | edit).items() if value is not None}
    path = tmp_path / "book.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in row.items()]
    path.write_text("[[departure]]\n" + "\n".join(lines))
    with pytest.raises(Unreadable, match=said):
        book.read_book(path)


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    text = (Path(book.__file__).with_name("departures.toml")).read_text(encoding="utf-8")
    first = text[text.index("[[departure]]") : text.index("[[departure]]", text.index("[[departure]]") + 1)]
    (tmp_path / "twice.toml").write_text(first + first, encoding="utf-8")
    with pytest.raises(Unreadable, match="twice"):
        book.read_book(tmp_path / "twice.toml")


def test_versions_and_chips_narrow_the_rows() -> None:
    assert not ROWS["OR1"].concerns("1.31")
    assert ROWS["OR1"].concerns("1.25.1")
    assert ROWS["OR1"].concerns(None)
    assert not ROWS["TR10"].concerns("10.3")
    assert ROWS["TR10"].concerns("10.8")
    assert ROWS["TR10"].concerns("11")
    assert not ROWS["CM8"].concerns(None, "A17 Pro")
    assert ROWS["CM8"].concerns(None, "A15 Bionic")
    assert not ROWS["TR3"].concerns("10.13", capability="8.7")
    assert ROWS["TR3"].concerns("10.13", capability="11.0")


def test_a_severity_follows_from_how_sure_a_row_is_and_what_is_known() -> None:
    assert ROWS["CM28"].severity() == "warning"
    assert ROWS["CM16"].severity() == "error"
    assert ROWS["CM1"].severity() == "warning"
    assert (ROWS["OR1"].severity(), ROWS["OR1"].severity("1.20")) == ("warning", "error")
    assert (ROWS["TR3"].severity("10.13"), ROWS["TR3"].severity("10.13", True)) == ("warning", "error")
    assert ROWS["CM24"].severity("17", True) == "note"
    order = book.SEVERITIES.index
    for row in ROWS.values():
        assert order(row.severity("1", True)) <= order(row.severity())


def test_the_page_has_the_book_as_it_is(request: pytest.FixtureRequest) -> None:
    path = Path(__file__).parent.parent / "docs" / "lint.md"
    if not path.is_file():
        pytest.skip("docs/ lies in the checkout, and these tests run from an installed package")
    text = path.read_text(encoding="utf-8")
    if request.config.getoption("--update-golden"):
        path.write_text(page.replaced(text), encoding="utf-8")
    assert page.book_as_markdown() in path.read_text(encoding="utf-8")


def test_whom_a_file_is_read_for_is_said_in_a_word() -> None:
    assert subjects.parse_subject("tensorrt@10.3").label == "TensorRT 10.3"
    assert subjects.parse_subject("ORT") == subjects.Subject("ort")
    for wrong in ("tensorrt@", "tensorrt@ten", "keras", "ort 1.3", ""):
        with pytest.raises(BadInput):
            subjects.parse_subject(wrong)
    (orin,) = subjects.on_device([subjects.Subject("tensorrt")], "jetson-orin-nano")
    assert (orin.version, orin.capability) == ("10.3", "8.7")


# ---------------------------------------------------------------------------------------------------- files of ONNX


def constant(name: str, *values: float, dtype: Any = np.float32, shape: tuple[int, ...] | None = None) -> Any:
    array = np.array(values, dtype)
    return numpy_helper.from_array(array.reshape(array.shape if shape is None else shape), name)


def model(nodes: list[Any], shapes: dict[str, tuple[int, ...]], constants: list[Any], output: str, **more: Any) -> Any:
    kind = more.get("dtype", TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(output, more.get("to", kind), None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", more.get("opset", 18))], ir_version=9)


def sums(*axes: int) -> Any:
    """Running sums along some axes of one input, added up."""
    nodes = [helper.make_node("CumSum", ["x", f"a{i}"], [f"s{i}"], f"sum{i}") for i in range(len(axes))]
    nodes.append(helper.make_node("Sum", [f"s{i}" for i in range(len(axes))], ["y"]))
    held = [constant(f"a{i}", axis, dtype=np.int64, shape=()) for i, axis in enumerate(axes)]
    return model(nodes, {"x": (4, 8)}, held, "y")


def bias(scale: float) -> Any:
    """A quantised convolution whose bias has a scale; 0.125 is that of input and weight."""
    held = [
        *(constant("s", 0.5, shape=()), constant("t", 0.25, shape=()), constant("u", scale, shape=())),
        *(constant("z", 0, dtype=np.uint8, shape=()), constant("zw", 0, dtype=np.int8, shape=())),
        constant("zb", 0, dtype=np.int32, shape=()),
        constant("w", *([3] * 16), dtype=np.int8, shape=(4, 4, 1, 1)),
        constant("b", *([800] * 4), dtype=np.int32),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "t", "zw"], ["wf"]),
        helper.make_node("DequantizeLinear", ["b", "u", "zb"], ["bf"]),
        helper.make_node("Conv", ["a", "wf", "bf"], ["c"], "conv"),
        helper.make_node("QuantizeLinear", ["c", "u8", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["d", "u8", "z"], ["y"]),
    ]
    held.append(constant("u8", 4.0, shape=()))
    return model(nodes, {"x": (1, 4, 8, 8)}, held, "y")


def spelled_norm(keep: int = 1, scale: tuple[int, ...] = (4,)) -> Any:
    """A layer norm in primitives over the last axis."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=keep),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["q"]),
        helper.make_node("ReduceMean", ["q", "axes"], ["v"], keepdims=1),
        helper.make_node("Add", ["v", "e"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["n"]),
        helper.make_node("Mul", ["n", "g"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    count = int(np.prod(scale))
    held = [
        constant("axes", -1, dtype=np.int64),
        constant("two", 2, shape=()),
        constant("e", 1e-5, shape=()),
        constant("g", *(1.5 + np.arange(count)), shape=scale),
        constant("b", *np.arange(count), shape=scale),
    ]
    return model(nodes, {"x": (4, 4)}, held, "y")


def looped(computed: bool) -> Any:
    """A loop that adds 1, four times or until a sum is 3."""
    body_nodes = [helper.make_node("Add", ["v", "one"], ["w"])]
    body_nodes.append(
        helper.make_node("Less", ["w", "three"], ["more"])
        if computed
        else helper.make_node("Identity", ["go"], ["more"])
    )
    held = [constant("one", 1, shape=()), constant("three", 3, shape=())]
    inner = helper.make_graph(
        body_nodes,
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ()),
        ],
        [
            helper.make_tensor_value_info("more", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, ()),
        ],
        held,
    )
    nodes = [helper.make_node("Loop", ["n", "c", "x"], ["y"], "loop", body=inner)]
    outer = [constant("n", 4, dtype=np.int64, shape=()), constant("c", True, dtype=np.bool_, shape=())]
    return model(nodes, {"x": ()}, outer, "y")


def padded(axis: int) -> Any:
    pads = constant("p", 2, 0, dtype=np.int64)
    held = [pads, constant("v", 0, shape=()), constant("a", axis, dtype=np.int64)]
    return model([helper.make_node("Pad", ["x", "p", "v", "a"], ["y"], "pad")], {"x": (1, 4, 8)}, held, "y")


def attention(scale_first: bool, dtype: int = TensorProto.FLOAT) -> Any:
    left, scores = ("u", "p") if scale_first else ("q", "s")
    nodes = [helper.make_node("Transpose", ["q"], ["t"], perm=[0, 2, 1])]
    nodes += [helper.make_node("Mul", ["q", "c"], ["u"])] if scale_first else []
    nodes.append(helper.make_node("MatMul", [left, "t"], [scores]))
    nodes += [] if scale_first else [helper.make_node("Mul", ["s", "c"], ["p"])]
    nodes += [helper.make_node("Softmax", ["p"], ["w"]), helper.make_node("MatMul", ["w", "q"], ["y"])]
    return model(nodes, {"q": (2, 4, 8)}, [constant("c", 0.125, shape=())], "y", dtype=dtype)


FILES: dict[str, tuple[str, Any, Any]] = {
    "CumSum": ("TR10", sums(0, 1), sums(1, 1, -1)),
    "bias": ("OR1", bias(0.25), bias(0.125)),
    "keepdims": ("OR2", spelled_norm(keep=0), spelled_norm()),
    "scale": ("OR3", spelled_norm(scale=(1,)), spelled_norm()),
    "loop": ("TR19", looped(True), looped(False)),
    "pad": ("LR4", padded(1), padded(2)),
    "rank 3": ("LR3", attention(True), sums(0)),
}


@pytest.mark.parametrize("case", FILES)
def test_constructs_are_found_in_onnx_files(case: str) -> None:
    name, broken, kept = FILES[case]
    assert find(ROWS[name], graph_of_onnx(broken))
    assert find(ROWS[name], graph_of_onnx(kept)) == []


def test_files_that_no_checker_takes_end_in_no_bug() -> None:
    """Operators without operands, in circles, read before they are made, and constants that are cut short."""
    kinds = {
        re.sub(r"_(\w)", lambda one: one[1].upper(), f"_{node.kind}")
        for row in ROWS.values()
        if row.found
        for node in read_graph(row.found).nodes
    }
    names = [
        *kinds,
        "MatMul",
        "LayerNormalization",
        "QuantizeLinear",
        "DequantizeLinear",
        "ReduceMean",
        "CumSum",
        "Loop",
    ]
    nodes = [helper.make_node(kind, [], [f"none_{kind}"]) for kind in names]
    nodes += [helper.make_node(kind, ["", ""], [f"empty_{kind}"]) for kind in names]
    nodes += [helper.make_node(kind, ["x", "cut", "cut"], [f"cut_{kind}"]) for kind in names]
    nodes += [
        helper.make_node(kind, [f"ring_{kind}", f"ring_{kind}"], [f"ring_{kind}"]) for kind in [*names, "Identity"]
    ]
    nodes += [helper.make_node("Identity", [f"long_{i}"], [f"long_{i + 1}"]) for i in range(3000)]
    cut = helper.make_tensor("cut", TensorProto.FLOAT, (4,), [1.0] * 4)
    cut.ClearField("float_data")
    cut.raw_data = b"\0\0"
    graph = graph_of_onnx(model(nodes, {"x": (4, 4), "long_0": (4,)}, [cut], "long_3000"))
    for row in ROWS.values():
        find(row, graph)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file with two constructs: TR10, of TensorRT from 10.8 on, and LR2."""
    path = tmp_path / "sums.onnx"
    onnx.save(sums(0, 1), path)
    return path


def rules(report: Any) -> set[str]:
    return {one.rule for one in report.findings}


def test_findings_are_those_of_whoever_computes_the_file(written: Path) -> None:
    assert rules(edgesmith.lint(written)) == set()
    assert edgesmith.lint(written).read_for == ("ONNX Runtime",)
    assert "TR10" in rules(edgesmith.lint(written, "tensorrt@10.8"))
    assert "TR10" not in rules(edgesmith.lint(written, "tensorrt@10.3"))
    assert "TR10" not in rules(edgesmith.lint(written, "tensorrt", "jetson-orin-nano"))  # which brings 10.3
    assert "TR10" in rules(edgesmith.lint(written, "tensorrt", "jetson-thor"))
    both = edgesmith.lint(written, ["ort@1.31", "tensorrt"])
    assert both.read_for == ("ONNX Runtime 1.31", "TensorRT")
    assert "TR10" in rules(both)
    severities = [
        next(one.severity for one in edgesmith.lint(written, who).findings if one.rule == "TR10")
        for who in ("tensorrt", "tensorrt@11.0")
    ]
    assert severities == ["warning", "error"]


def test_tensors_in_other_files_are_not_wanted(tmp_path: Path) -> None:
    onnx.save(bias(0.25), tmp_path / "out.onnx", save_as_external_data=True, size_threshold=0)
    (tmp_path / "out.onnx").stat()
    report = edgesmith.lint(tmp_path / "out.onnx", "ort@1.20")
    assert report.operators == 7
    assert "OR1" not in rules(report)  # whose scales lie elsewhere


def test_a_report_is_valid_sarif(written: Path) -> None:
    schema = json.loads(SARIF.read_text(encoding="utf-8"))
    report = edgesmith.lint(written, ["tensorrt@11.0", "litert"])
    found = as_sarif(report)
    jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker()).validate(found)
    (run,) = found["runs"]
    assert len(run["results"]) == len(report.findings) > 0
    for one in run["results"]:
        assert run["tool"]["driver"]["rules"][one["ruleIndex"]]["id"] == one["ruleId"]
    broken = json.loads(json.dumps(found))
    broken["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_command_reads_for_somebody_and_writes_sarif(edgesmith: Any, written: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.sarif"
    shown = edgesmith("lint", str(written), "--for", "tensorrt@10.8", "--sarif", str(out), "--strict")
    assert shown.returncode == 3, shown.stderr
    assert "TR10" in shown.stdout
    assert "for TensorRT 10.8" in shown.stdout
    assert json.loads(out.read_text(encoding="utf-8"))["version"] == "2.1.0"
    printed = edgesmith("lint", str(written), "--for", "tensorrt@10.3", "--format", "sarif", "--strict")
    assert printed.returncode == 0
    assert json.loads(printed.stdout)["runs"][0]["results"] == []
    wrong = edgesmith("lint", str(written), "--format", "xml")
    assert (wrong.returncode, "table, json, sarif" in wrong.stderr) == (2, True)


def test_the_command_explains_a_row_and_a_rule(edgesmith: Any) -> None:
    shown = edgesmith("lint", "--explain", "tr10")
    assert shown.returncode == 0, shown.stderr
    for part in ("TR10", "triangular matrix", "NVIDIA/TensorRT/issues/4551", "cumsum", "from 10.8 on"):
        assert part in shown.stdout
    assert json.loads(edgesmith("lint", "--explain", "CM4", "--json").stdout)["detector"] == "log_of_softmax"
    assert "rejected" in edgesmith("lint", "--explain", "rank").stdout
    assert edgesmith("lint", "--explain", "TR99").returncode == 2


@pytest.mark.parametrize("name", [*ROWS, *RULES])
def test_every_row_and_rule_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lint", "--explain", name.lower(), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["sources" if name in RULES else "source"]
    assert run(["lint", "--explain", name]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    wanted = RULES[name].do if name in RULES else ROWS[name].safe
    assert wanted.split()[0] in shown
    assert name in shown


def test_every_row_is_valid_sarif() -> None:
    """A report of all rows that there are, at all severities, at nodes, outputs and states."""
    schema = json.loads(SARIF.read_text(encoding="utf-8"))
    graphs = [(row, read_graph(row.found)) for row in ROWS.values() if row.found]
    every = [one for row, graph in graphs for one in findings_of(row, row.severity("0", True), graph)]
    advice = tuple(advice_of(row, row.severity("0", True)) for row, _ in graphs)
    report = Report(Path("a b/ü.onnx"), tuple(every), (), 1, 1, 1, advice, ("ONNX Runtime",))
    found = as_sarif(report)
    jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker()).validate(found)
    assert {one["ruleId"] for one in found["runs"][0]["results"]} == set(DETECTED)
    assert {one["level"] for one in found["runs"][0]["results"]} == {"error", "warning", "note"}


# ------------------------------------------------------------------------------------------- files beside ONNX's own


class Head(torch.nn.Module):
    """A map's classes, and a hardswish after a linear layer."""

    def __init__(self, labels: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.labels = torch.nn.Conv2d(3, 5, 1), labels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y.argmax(1) if self.labels else y


@pytest.mark.parametrize("labels", [True, False])
def test_core_ais_assets_are_read(labels: bool, tmp_path: Path) -> None:
    pytest.importorskip("coreai_torch")
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    artifact = edgesmith.export(Head(labels).eval(), "coreai", inputs=(x,), name="head", out=tmp_path)
    report = edgesmith.lint(artifact.path)
    assert report.read_for == ("Core AI",)
    assert report.operators > 0
    assert ("CA1" in rules(report)) == labels
    graph = graph_of_coreai(artifact.file)
    (conv,) = graph.of("conv")
    assert (conv.ints("strides"), conv.settings["groups"]) == ([1, 1], 1)
    assert [graph.shape(name) for name in conv.inputs[:2]] == [(1, 3, 8, 8), (5, 3, 1, 1)]
    assert {graph.shape(name) for name in graph.outputs} == {(1, 8, 8) if labels else (1, 5, 8, 8)}


def test_a_kit_is_read_for_the_tensorrt_of_its_board(tmp_path: Path) -> None:
    """Its running sums are alike already; those of the plain file, put in the kit's place, are not."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for device, version, found in (("jetson-orin-nano", "10.3", False), ("jetson-thor", "10.13", True)):
        artifact = edgesmith.export(Mixed().eval(), "tensorrt", inputs=(x,), name="m", device=device, out=tmp_path)
        report = edgesmith.lint(artifact.path)
        assert report.read_for == (f"TensorRT {version}",)
        assert {one["rule"] for one in artifact.manifest["legalized"]} == {"TR10"}
        assert "TR10" not in rules(report)
        onnx.save(sums(0, 1), artifact.file)
        assert ("TR10" in rules(edgesmith.lint(artifact.file))) == found


class Mixed(torch.nn.Module):
    """Running sums along two axes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 0) + torch.cumsum(x, 1)


# ------------------------------------------------------------------------------------------------------------ its time


def wide(sizes: int) -> onnx.ModelProto:
    """Products with weights of 4 MiB each."""
    nodes = [helper.make_node("MatMul", ["x" if not k else f"h{k}", f"w{k}"], [f"h{k + 1}"]) for k in range(sizes)]
    held = [numpy_helper.from_array(np.ones((1024, 1024), np.float32), f"w{k}") for k in range(sizes)]
    return model(nodes, {"x": (1, 2, 1024)}, held, f"h{sizes}")


def test_weights_are_not_copied_to_infer_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 32 MiB of them would be written and read twice."""
    given: list[int] = []
    call = apart.call

    def counted(function: str, arguments: list[Any], *more: Any) -> Any:
        given.append(len(arguments[0]))
        return call(function, arguments, *more)

    monkeypatch.setattr(apart, "call", counted)
    graph = graph_of_onnx(wide(8))
    assert given[0] < 10_000
    assert graph.shape("h8") == (1, 2, 1024)
    assert graph.is_constant("w7")


def test_a_large_file_takes_less_than_a_second_beyond_reading(tmp_path: Path) -> None:
    onnx.save(wide(16), tmp_path / "wide.onnx")
    edgesmith.lint(tmp_path / "wide.onnx")  # imports
    start = time.process_time()
    read_onnx(tmp_path / "wide.onnx", whole=False)
    read = time.process_time() - start
    start = time.process_time()
    edgesmith.lint(tmp_path / "wide.onnx", ["ort", "tensorrt", "qnn", "litert", "xnnpack", "tvm"])
    assert time.process_time() - start - read < 1.0
