"""Experiments: their timer, the shape of their commands, and that nothing else needs them."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import numpy as np
import pytest

from edgesmith.bench.experiments import exports, interleave, second_zoo
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.errors import Unsupported
from edgesmith.kernels import selective_scan


def test_calls_run_in_turn_and_those_of_the_warm_up_are_not_kept() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    samples = interleave.interleaved(calls, rounds=3, warm_up=1)
    assert order == ["a", "b"] * 4
    assert [len(times) for times in samples.values()] == [3, 3]
    order.clear()
    interleave.interleaved(calls, rounds=1, warm_up=0, batch=2)
    assert order == ["a", "a", "b", "b"]


def test_a_batch_s_sample_is_its_mean() -> None:
    samples = interleave.interleaved({"sleep": lambda: time.sleep(0.01)}, rounds=1, warm_up=0, batch=3)
    assert 10 <= samples["sleep"][0] < 30
    assert interleave.median_us(samples)["sleep"] == pytest.approx(1e3 * samples["sleep"][0])


def test_ratios_are_taken_round_by_round() -> None:
    drifting = {"slow": [2.0, 4.0, 8.0, 16.0], "fast": [1.0, 2.0, 4.0, 8.0]}
    assert interleave.ratio(drifting, "slow", "fast") == (2.0, 2.0, 2.0)
    faster = {name: [ms / 2 if name == "slow" else ms for ms in times] for name, times in drifting.items()}
    spread = interleave.over_processes([drifting, faster], "slow", "fast")
    assert (spread.low, spread.middle, spread.high) == (1.25, 1.5, 1.75)
    assert str(spread) == "1.500 x (1.250 to 1.750)"
    assert interleave.over_processes([drifting], "slow", "fast").middle == 2.0
    assert interleave.medians([drifting, faster]) == {"slow": 4.5, "fast": 3.0}


def test_a_launch_is_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def launch(a, b):\n    print('noise')\n    return {a: [float(b)]}\n")
    (tmp_path / "broken.py").write_text("def launch():\n    raise RuntimeError('no memory')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    assert interleave.in_a_process("mine", "x", 2) == {"x": [2.0]}
    with pytest.raises(Unsupported, match="a launch of broken failed: RuntimeError: no memory"):
        interleave.in_a_process("broken")


def test_arguments_are_counts_and_names(capsys: pytest.CaptureFixture[str]) -> None:
    found = read_arguments("Is it fast?", ["7", "a", "b"], listed="model", rounds=5)
    assert (found.rounds, found.model) == (7, ["a", "b"])
    assert vars(read_arguments("Is it fast?", [], rounds=5, launches=3)) == {"rounds": 5, "launches": 3}
    with pytest.raises(SystemExit):
        read_arguments("Is it fast?", ["0"], rounds=5)
    assert "rounds must be more than 0, got 0" in capsys.readouterr().err


def test_a_table_is_printed_as_it_grows(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(("form", 6), "size", "    us", "ratio")
    table.add("dense", 7, 12.346, "")
    assert capsys.readouterr().out == "form    size      us  ratio\ndense      7   12.35\n"


def test_nothing_of_the_product_imports_an_experiment(checkout: Path) -> None:
    importing = []
    for folder in ("bench", "exporters", "models", "kernels", "profiles", "src"):
        for path in (checkout / folder).rglob("*.py"):
            if "experiments" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.startswith("edgesmith.bench.experiments") for name in names):
                    importing.append(path)
    assert not importing


def test_the_scans_of_the_second_zoo_compute_the_same(tmp_path: Path) -> None:
    width, states, length = 6, 4, 9
    x, delta, a, b, c = selective_scan.example(width, states, length, batch=1)
    wanted = selective_scan.reference(x, delta, a, b, c)[0].numpy()
    feeds = {"x0": x[0].numpy(), "x1": delta[0].numpy(), "a": a.numpy(), "x3": b[0].numpy(), "x4": c[0].numpy()}
    for write in (second_zoo.usual_scan, second_zoo.unrolled_scan):
        (tmp_path / "scan.onnx").write_bytes(write(width, states, length))
        (found,) = interleave.onnx_call(tmp_path / "scan.onnx", feeds)()  # type: ignore[misc]  # what the session returns
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_bar_is_met_by_the_median_alone() -> None:
    assert second_zoo.verdict(interleave.Spread(1.9, 2.0, 2.1), 2.0) == "2.000 x (1.900 to 2.100), bar 2: met"
    assert second_zoo.verdict(interleave.Spread(1.8, 1.9, 2.5), 2.0).endswith("NOT met")


def test_a_page_of_exports_has_a_line_a_model_names_what_is_missing_and_is_read_again(tmp_path: Path) -> None:
    figures = {"onnx": (121.3, "1.0e-06", 671, 41, ""), "coreml": ("not run", "", 884, 15, "")}
    rows = {("a", target, 64): figures.get(target, ("exact", "0.0e+00", 9, 1, "")) for target in exports.TARGETS}
    rows["b", "onnx", 64] = ("none", "", "", 3, "it is refused: a, b | c")
    text = exports.page(rows, ["a", "b", "c"])
    lines = text.splitlines()
    assert "With a file for every target: 1 of 2 rows, 1 exports refused." in lines
    assert "| a | 64 | 121 dB, 1.0e-06, 671 | not run, , 884 | exact, 0.0e+00, 9 | exact, 0.0e+00, 9 |" in lines
    assert "| b | 64 | refused | - | - | - |" in lines
    assert lines[-3:] == ["- b, onnx: it is refused: a, b | c", "", "Not run yet: c."]
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert exports.page(exports.kept_rows(tmp_path / "page.md"), ["a", "b", "c"]) == text


def test_a_page_of_exports_is_written_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one writes its row while this one exports; this one makes what neither has, and keeps both."""
    page = tmp_path / "page.md"
    figures = (121.3, "1.0e-06", 671, 41, "")
    asked = []

    def export(name: str, target: str, side: int, folder: str) -> exports.Figures:
        asked.append((name, target))
        others = {("b", one, 64): figures for one in exports.TARGETS}
        page.write_text(exports.page({**exports.kept_rows(page), **others}), encoding="utf-8")
        return figures

    monkeypatch.setattr(exports, "export", export)
    monkeypatch.setattr(exports, "names", lambda: ["a", "b"])
    monkeypatch.setattr("sys.argv", ["exports", "64", f"PAGE={page}"])
    exports.main()
    assert asked == [("a", target) for target in exports.TARGETS]
    assert {name for name, _, _ in exports.kept_rows(page)} == {"a", "b"}
    assert "With a file for every target: 2 of 2 rows, 0 exports refused." in page.read_text(encoding="utf-8")
