"""Operators held to PyTorch: the verdicts, what they catch, a third of the table, and what rewrites emit."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import sweeping
from torch import Tensor
from torch.nn import functional as F

from edgesmith import kernels
from edgesmith.errors import BadInput, EdgesmithError, Unsupported
from edgesmith.exporters import decompositions, rewrites, targets
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import operators
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.verification import boundaries, conformance, emitted, sweep, verdicts
from edgesmith.exporters.verification.boundaries import drawn, of, row
from edgesmith.exporters.verification.cases import Case, Together, in_half
from edgesmith.exporters.verification.conformance import CRASH, LEAKS, MENDED, REFUSED, RIGHT, WRONG, Verdict, judge
from edgesmith.exporters.verification.tolerance import expect

aten = torch.ops.aten
ONNX, COREML = "onnx:fp32", "coreml:fp32"
ROOT = Path(__file__).parents[1]


def kinds(found: Sequence[Verdict]) -> set[str]:
    return {verdict.kind for verdict in found}


# What a verdict says


def test_right_mended_and_refused() -> None:
    column = sweep.column(ONNX)
    plain = of("tanh", "plain", torch.tanh, drawn(3))
    ours = of("atan2", "ours", torch.atan2, (drawn(3), drawn(3, seed=1)))
    strange = of("linalg.eigvalsh", "strange", torch.linalg.eigvalsh, torch.eye(3))
    right, mended, refused = judge([plain, ours, strange], column)
    assert (right.kind, mended.kind, refused.kind) == (RIGHT, MENDED, REFUSED)
    assert re.fullmatch(
        r"ONNX cannot express this model: it does not take aten\._linalg_eigh\(float32 \[3, 3\].*\) at case_\d \(.*\);"
        r" spell it with other operators, or choose another target: edgesmith operators says what each takes",
        refused.why,
    )


def test_a_translation_that_fails_by_itself_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    column = sweep.column(ONNX)
    monkeypatch.setattr(type(column.target), "open", lambda *_: 1 / 0)
    (found,) = judge([of("tanh", "plain", torch.tanh, drawn(3))], column)
    assert found == Verdict(CRASH, "ZeroDivisionError: division by zero")


def test_a_third_partys_words_are_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    column = sweep.column(ONNX)

    def fail(*_: object) -> None:
        raise Unsupported("ONNX cannot express this model: list index out of range")

    monkeypatch.setattr(type(column.target), "lower", fail)
    (found,) = judge([of("tanh", "plain", torch.tanh, drawn(3))], column)
    assert found.kind == LEAKS


@pytest.mark.parametrize(
    ("sentence", "cause", "leaks"),
    [
        (
            "ONNX does not take aten.foo at head; spell it otherwise",
            "no ONNX function for <OpOverload aten.foo>",
            False,
        ),
        ("Core ML fails: the quick brown fox jumps over it", "oh, the quick brown fox jumps over the dog", True),
        ("KeyError: 'x'", "", True),
        ("one line\nanother line", "", True),
    ],
)
def test_a_sentence_leaks_where_it_repeats_its_cause(sentence: str, cause: str, leaks: bool) -> None:
    error = EdgesmithError(sentence)
    error.__cause__ = RuntimeError(cause)
    assert bool(conformance.leaked(error)) == leaks


# Tolerances


def differences(case: Case, found: Callable[..., Tensor], dtype: str = "float32") -> list[str]:
    case = in_half(case) if dtype == "float16" else case
    told = (expect(case, given, dtype)[0].differs(found(*given).numpy()) for given in case.values)
    return [one for one in told if one is not None]


@pytest.mark.parametrize(
    ("function", "wrong", "given"),
    [
        (torch.log1p, lambda x: torch.log(1 + x), row(1e-7, 0.5)),
        (torch.round, lambda x: torch.floor(x + 0.5), row(0.5, 2.5)),
        (F.gelu, lambda x: F.gelu(x, approximate="tanh"), row(1.0, 2.0)),
        (torch.sign, lambda x: (x > 0).float() * 2 - 1, row(0.0, 1.0)),
        (torch.special.erfc, lambda x: 1 - torch.erf(x), row(3.0, 4.0)),
        (lambda x: x.sum(-1), lambda x: x[..., :-1].sum(-1), drawn(3, 64)),
    ],
)
def test_a_tolerance_sees_what_is_wrong_and_nothing_else(
    function: Callable[..., Tensor], wrong: Callable[..., Tensor], given: Tensor
) -> None:
    case = of("any", "any", function, given)
    assert differences(case, function) == []
    assert differences(case, lambda x: function(x.double()).float()) == []
    assert len(differences(case, wrong)) == 1


def test_half_precision_may_overflow_and_is_held_to_its_own_roundoff() -> None:
    case = of("exp", "huge", torch.exp, row(1.0, 12.0))
    assert differences(case, lambda x: torch.exp(x).half().float(), "float16") == []
    assert differences(case, lambda x: torch.exp(x) * 1.02, "float16") != []


def test_integers_and_infinities_are_equal_or_wrong() -> None:
    whole = of("argmax", "ties", lambda x: x.argmax(-1), row(1, 3, 3))
    assert differences(whole, lambda x: torch.tensor(2)) == ["2 where PyTorch has 1"]
    infinite = of("log", "zero", torch.log, row(0.0))
    assert differences(infinite, lambda x: torch.tensor([-3e38])) != []


# Ten faults and more, each planted in an operator's lowering and found by its own cases


def _round_away(x: Tensor) -> Tensor:
    return torch.where(x < 0, torch.ceil(x - 0.5), torch.floor(x + 0.5))


def _sums(x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), torch.ones(3, 1, 3, 3), stride=2, groups=3)


FAULTS: dict[str, tuple[str, str, Any, Callable[..., Any]]] = {
    "a dropped eps": (
        "nn.functional.layer_norm",
        "eps 0.001",
        aten.layer_norm.default,
        lambda x, shape, weight=None, bias=None, eps=1e-5, *_: (
            (x - x.mean(-1, True)) / (x.var(-1, False, True) + 1e-12).sqrt()
        ),
    ),
    "a swapped axis": (
        "cumsum",
        "axis 1",
        aten.cumsum.default,
        lambda x, dim, **_: torch.matmul(x, torch.ones(x.shape[-1], x.shape[-1]).triu()),
    ),
    "a default not filled": (
        "nn.functional.softplus",
        "beta and threshold",
        aten.softplus.default,
        lambda x, *_: torch.log(1 + torch.exp(x.clamp(max=30))).maximum(x),
    ),
    "a wrong rounding mode": (
        "div",
        "rounding_mode floor",
        aten.div.Tensor_mode,
        lambda x, y, rounding_mode: torch.trunc(x / y) if rounding_mode == "floor" else NotImplemented,
    ),
    "ties away from zero": ("round", "half to even", aten.round.default, _round_away),
    "align_corners flipped": (
        "nn.functional.interpolate.bilinear",
        "up, align_corners False",
        aten.upsample_bilinear2d.vec,
        lambda x, size, align, factors: aten.upsample_bilinear2d.default(x, size, not align),
    ),
    "ceil_mode ignored": (
        "nn.functional.max_pool2d",
        "ceil_mode True, dilation 1",
        aten.max_pool2d.default,
        lambda x, kernel, stride=(), padding=0, dilation=1, ceil_mode=False: F.pad(
            aten.max_pool2d_with_indices.default(x, kernel, stride, padding, dilation)[0], (0, 1, 0, 0)
        ),
    ),
    "a negative index unwrapped": (
        "__getitem__",
        "rows by negative indices",
        aten.index.Tensor,
        lambda x, indices: aten.index_select.default(x, 0, indices[0].clamp(min=0)),
    ),
    "approximate ignored": (
        "nn.functional.gelu",
        "tanh",
        aten.gelu.default,
        lambda x, approximate="none": x * 0.5 * (1 + torch.erf(x * 0.5**0.5)),
    ),
    "count_include_pad flipped": (
        "nn.functional.avg_pool2d",
        "ceil_mode False, count_include_pad True",
        aten.avg_pool2d.default,
        lambda x, *_: _sums(x) / _sums(torch.ones_like(x)),
    ),
    "keepdim lost": (
        "amax",
        "axis 0, keepdim True",
        aten.amax.default,
        lambda x, dim, keepdim: aten.squeeze.dims(-aten.amin.default(-x, dim, keepdim), dim),
    ),
    "a correction ignored": (
        "var",
        "correction 0",
        aten.var.correction,
        lambda x, dim, correction=None, keepdim=False: aten.var.dim(x, dim, True, keepdim),
    ),
    "a value dropped": (
        "addcmul",
        "with value",
        aten.addcmul.default,
        lambda x, a, b, value=1: x + a * b,
    ),
}


@pytest.fixture(scope="module")
def planted() -> Callable[[str, bool], dict[str, Verdict]]:
    """Verdicts of the faults' cases on a column, with the faults planted or without: lowered as one model."""

    @cache
    def verdict(column: str, faults: bool) -> dict[str, Verdict]:
        names = list(FAULTS) if column == ONNX else ON_CORE_ML
        own = dict(boundaries.all_operators())
        chosen = [next(c for c in own[FAULTS[f][0]]() if c.label == FAULTS[f][1]) for f in names]
        with pytest.MonkeyPatch.context() as patch:
            if faults:
                ours = decompositions.for_target
                wrong = {FAULTS[f][2]: FAULTS[f][3] for f in names}
                patch.setattr(decompositions, "for_target", lambda target: {**ours(target), **wrong})
            return dict(zip(names, conformance.compare(chosen, available(column)), strict=True))

    return verdict


ON_CORE_ML = ["approximate ignored", "a value dropped", "a correction ignored"]


@pytest.mark.parametrize(("column", "fault"), [*((ONNX, f) for f in FAULTS), *((COREML, f) for f in ON_CORE_ML)])
def test_a_planted_fault_is_caught_by_its_operators_cases(
    column: str, fault: str, planted: Callable[[str, bool], dict[str, Verdict]]
) -> None:
    found = planted(column, True)[fault]
    assert found.kind == WRONG, found
    assert "where PyTorch has" in found.why


@pytest.mark.parametrize("column", [ONNX, COREML])
def test_nothing_is_found_where_nothing_is_planted(
    column: str, planted: Callable[[str, bool], dict[str, Verdict]]
) -> None:
    assert kinds(list(planted(column, False).values())) <= {RIGHT, MENDED}


def available(name: str) -> conformance.Column:
    column = sweep.column(name)
    missing = column.target.missing_packages()
    if missing:
        pytest.skip(f"{name}: {', '.join(missing)} not installed")
    return column


def test_a_vector_times_a_batch_is_taken_by_tensorrt() -> None:
    column = available("tensorrt:fp32")
    (found,) = judge([of("matmul", "vector and batch", torch.matmul, (drawn(3), drawn(2, 3, 4)))], column)
    assert found.kind == MENDED, found.why


# The table


def sampled(column: str, most: int) -> Iterator[Case]:
    """A case of each of a third of the operators that the table calls right or mended throughout, `most` of them.

    Which third goes round with the table itself, and is the same until that changes.
    """
    turn = zlib.crc32(verdicts.TABLE.read_bytes())
    makers = sweep.cases_by_operator()
    of_column = [e for e in verdicts.table() if f"{e.target}:{e.precision}" == column]
    fine = {e.operator for e in of_column if e.counts.keys() <= {RIGHT, MENDED}}
    for name in [name for name in sorted(fine) if (zlib.crc32(name.encode()) + turn) % 3 == 0][:most]:
        yield from makers[name][-1]()[-1:]  # our own where there are some


@pytest.mark.no_cover
@pytest.mark.parametrize(("column", "most"), [(ONNX, 1000), (COREML, 15), ("coreml:fp16", 15), ("coreai:fp32", 15)])
def test_a_sample_of_the_table_holds(column: str, most: int) -> None:
    tried = available(column)
    chosen = list(sampled(column, most))
    found = dict(zip(map(str, chosen), judge(chosen, tried, together=32), strict=True))
    assert found, "the table has nothing of this column"
    assert {name: verdict for name, verdict in found.items() if verdict.kind not in (RIGHT, MENDED)} == {}


def test_the_table_has_no_operator_that_is_silently_wrong() -> None:
    failed = [(e.operator, e.column, e.counts) for e in verdicts.table() if e.counts.keys() & conformance.FAILURES]
    assert failed == []


def test_a_swept_column_replaces_its_own_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "operators.json"
    right = {"counts": {"right": 2}}
    table.write_text(json.dumps({"sin": {"onnx:fp32": right, "coreml:fp32": right}, "gone": {"coreml:fp32": right}}))
    monkeypatch.setattr(verdicts, "TABLE", table)
    verdicts.write(
        [{"operator": "cos", "column": "coreml:fp32", "cases": [("all", "refused", "no"), ("one", "right", "")]}]
    )
    refused = {"counts": {"right": 1, "refused": 1}, "examples": {"refused": {"case": "all", "why": "no"}}}
    assert json.loads(table.read_text()) == {"cos": {"coreml:fp32": refused}, "sin": {"onnx:fp32": right}}


def test_the_page_is_current() -> None:
    page = ROOT / "docs" / "operators.md"
    if not page.is_file():
        pytest.skip("the page lies in the repository")
    assert page.read_text(encoding="utf-8") == verdicts.markdown(verdicts.table()), "run make operators"


def test_listing_operators_imports_no_torch() -> None:
    code = (
        "import sys; from edgesmith.cli.app import run; run(['operators', 'atan2']); assert 'torch' not in sys.modules"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.search(r"atan2 .*mended", told)


def test_an_unknown_operator_has_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"unknown operator 'sofmax'. Nearest: softmax.*List them: edgesmith operators"):
        verdicts.find("sofmax")
    with pytest.raises(BadInput, match="has no target 'webgpu'; it has "):
        verdicts.find("softmax", "webgpu")
    # An operator that has not been run on a target, whatever the table lacks today.
    bare, lacks = "nn.functional.celu", "coreai"
    left = tuple(e for e in verdicts.table() if (e.operator, e.target) != (bare, lacks))
    assert len(left) < len(verdicts.table())
    monkeypatch.setattr(verdicts, "table", lambda: left)
    (line,) = (line for line in verdicts.markdown(left).splitlines() if line.startswith(f"| `{bare}` |"))
    assert "not tried" in line
    with pytest.raises(BadInput, match=f"{bare} has not been tried on {lacks}; leave --target out"):
        verdicts.find(bare, lacks)


def test_a_sweep_goes_on_where_it_was_and_counts_a_dead_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sweep, "_work", sweeping.die)
    found = sweep.sweep([ONNX], ["positive"], rows)
    assert [kind for _, kind, _ in found[0]["cases"]] == [CRASH]
    assert sweep.sweep([ONNX], ["positive"], rows) == found  # it is not made again
    assert next(iter(sweep.summarise(found))).startswith(
        "crash: positive (all) on onnx:fp32: the process died with code 9"
    )


def test_the_rows_of_a_sweep_are_not_read_while_its_worker_may_be_writing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a row that is written between two calls of the system ends the sweep: the file grew while it was read."""
    read, alive = sweep.read, []

    def watched(path: Path) -> list[sweep.Row]:
        alive.append(bool(multiprocessing.active_children()))
        return read(path)

    monkeypatch.setattr(sweep, "read", watched)
    monkeypatch.setattr(sweep, "_work", sweeping.slowly)
    (found,) = sweep.sweep([ONNX], ["positive"], tmp_path / "rows.jsonl")
    assert found["operator"] == "positive"
    assert alive == [False] * len(alive)
    assert len(alive) == 2  # before and after


GOES_ON = """
import os, sys, time
from pathlib import Path
from edgesmith.exporters.verification.sweep import sweep

def go_on(_, path):
    Path(sys.argv[1]).write_text(f"{os.getpid()}.")
    time.sleep(600)

if __name__ == "__main__":
    sweep(["onnx:fp32"], ["positive"], Path(sys.argv[1] + ".rows"), go_on)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is not told that its parent ended")
def test_a_killed_sweep_leaves_no_process_that_goes_on(tmp_path: Path) -> None:
    script, told = tmp_path / "goes_on.py", tmp_path / "told"
    script.write_text(GOES_ON)
    with subprocess.Popen([sys.executable, str(script), str(told)]) as parent:
        while not (told.is_file() and told.read_text().endswith(".")):
            assert parent.poll() is None
            time.sleep(0.02)
        parent.kill()
    worker = Path("/proc") / told.read_text()[:-1] / "cmdline"
    try:
        until = time.monotonic() + 60
        while worker.exists() and worker.read_bytes() and time.monotonic() < until:  # empty of one that has ended
            time.sleep(0.02)
        assert not worker.exists() or not worker.read_bytes()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker.parent.name), signal.SIGKILL)


# What rewrites emit


def test_every_overload_that_a_rewrite_names_is_a_case() -> None:
    folders = [Path(package.__file__ or "").parent for package in (rewrites, kernels)]
    named = emitted.named_overloads(*folders)
    assert len(named) > 60
    assert named - {case.operator for case in emitted.cases()} == set()


@pytest.mark.parametrize("operator", ["fft.rfft", "fft.irfft2", "stft", "einsum"])
def test_what_rewrites_emit_is_a_case(operator: str) -> None:
    some = dict(boundaries.all_operators())[operator]()
    captured = capture(Together(some), [x for case in some for x in case.values[0]])
    rewritten, _ = rewrite(captured, targets.get("onnx").costs)
    before = {str(node.target) for node in operators(captured.module)}
    after = {str(node.target) for node in operators(rewritten.module)}
    new = {name for name in after - before if name.startswith("aten.")}
    assert new
    assert new - {case.operator for case in emitted.cases()} == set()


@pytest.mark.no_cover
@pytest.mark.parametrize("column", [ONNX, COREML, "coreai:fp32", "tensorrt:fp32"])
def test_what_rewrites_emit_is_legal(column: str) -> None:
    some = emitted.cases()
    found = judge(some, available(column), together=60)
    assert {str(c): v for c, v in zip(some, found, strict=True) if v.kind not in (RIGHT, MENDED)} == {}
