"""The second zoo against what it replaces, with the bars that it is held to: ONNX Runtime, one thread, interleaved.

vision      our file against torch's own export of the authors' spelling, with the same weights
sequences   our file against eager PyTorch on one thread: the authors' spelling of Hydra, and our own of the mixers
scan        selective_scan, T 1024, D 384, N 16, against a Scan of the usual layout, [D, N] and h @ C, and against its
            steps unrolled: the time to load

Everything runs in turn in one process, and one process after the other does that. Ratios are those of the processor
time of the calling thread, which other programs do not lengthen as they lengthen wall time; median and quartiles over
the processes. Beside them: both medians in ms, and the share of the slower one that our products alone take (the sum of
the profiled minima of Conv, Gemm and MatMul). A bar above its inverse cannot be met by moving less.

Where OpenVINO is installed, its time on the plain export is another column, also on one thread; PYTHONPATH=tests has
the authors' spellings. A folder given as KEPT=FOLDER keeps the files, and takes those that are there.

    pip install openvino
    PYTHONPATH=tests python -m edgesmith.bench.experiments.second_zoo 20 5
    PYTHONPATH=tests python -m edgesmith.bench.experiments.second_zoo 20 5 poolformerv2_s12 scan KEPT=build/second-zoo
"""

from __future__ import annotations

import importlib
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time_ns, thread_time_ns
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import input_of, model_of, program_of, write, write_plain
from edgesmith.bench.experiments.interleave import Samples, Spread, in_a_process, once, onnx_call, over_processes
from edgesmith.errors import Unsupported
from edgesmith.exporters.load import load
from edgesmith.exporters.options import ModelOptions
from edgesmith.kernels import selective_scan

PLAIN, UNROLLED, OURS = "plain.onnx", "unrolled.onnx", "ours.onnx"
SAME = 1e-4
SCAN = (384, 16, 1024)
"""Channels, states and steps."""


@dataclass(frozen=True)
class Contest:
    """One row.

    Attributes:
        bar: how many times faster ours is to be.
        spelled: MODULE:FUNCTION of the authors' form; without it the zoo's own is timed.
        is_eager: time it in PyTorch, and not as its plain export.
        options: of the export.
    """

    bar: float
    spelled: str = ""
    is_eager: bool = False
    options: Mapping[str, Any] | None = None


CONTESTS: dict[str, Contest] = {
    "transnext_micro": Contest(3.0, "authors.transnext:micro"),
    "iformer_small": Contest(1.25, "authors.iformer:small"),
    "poolformerv2_s12": Contest(1.2, "authors.metaformer:poolformerv2_s12"),
    "caformer_s18": Contest(1.25, "authors.metaformer:caformer_s18"),
    "segformer_b0": Contest(2.0, "authors.segformer:b0", options={"input_size": (512, 512)}),
    "hydra_block_d768": Contest(2.0, "authors.hydra:d768", True, {"frames": 128}),
    "ttm_512_96": Contest(2.5, is_eager=True),
    "patchtsmixer_512_96": Contest(2.5, is_eager=True),
    "scan": Contest(4.0),
}
LOAD_BAR = 20.0
"""How many times faster the scan is to load than its steps unrolled."""


class Scanned(nn.Module):
    """The scan as the fused op."""

    def forward(self, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Any:
        return selective_scan.OP.overload(x, delta, a, b, c)


def usual_scan(width: int, states: int, length: int) -> bytes:
    """Return an ONNX file whose Scan has the layout of the papers: state [D, N], y_t = h C_t. One sequence."""
    from onnx import TensorProto, helper

    def value(name: str, *sizes: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    def column(name: str) -> Any:
        return helper.make_node("Unsqueeze", [name, "last"], [f"{name}_column"])

    steps = [
        column("d"),
        helper.make_node("Mul", ["d_column", "a"], ["rate"]),
        helper.make_node("Exp", ["rate"], ["decay"]),
        helper.make_node("Mul", ["decay", "h"], ["kept"]),
        helper.make_node("Mul", ["d", "x"], ["driven"]),
        column("driven"),
        helper.make_node("Mul", ["driven_column", "b"], ["added"]),
        helper.make_node("Add", ["kept", "added"], ["next"]),
        helper.make_node("MatMul", ["next", "c"], ["y"]),
    ]
    rows = [value("h", width, states), value("x", width), value("d", width), value("b", states), value("c", states)]
    body = helper.make_graph(steps, "step", rows, [value("next", width, states), value("y", width)])
    zeros = helper.make_tensor("start", TensorProto.FLOAT, [width, states], [0.0] * (width * states))
    last = helper.make_tensor("last", TensorProto.INT64, [1], [-1])
    scan = helper.make_node("Scan", ["start", "x0", "x1", "x3", "x4"], ["end", "result"], body=body, num_scan_inputs=4)
    inputs = [value("x0", length, width), value("x1", length, width), value("a", width, states)]
    inputs += [value("x3", length, states), value("x4", length, states)]
    graph = helper.make_graph([scan], "scan", inputs, [value("result", length, width)], [zeros, last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def unrolled_scan(width: int, states: int, length: int) -> bytes:
    """Return an ONNX file with every step written out, two nodes each behind the exponentials. One sequence."""
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, *sizes: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    def axis(name: str, number: int) -> Any:
        return numpy_helper.from_array(np.array([number], np.int64), name)

    decays, added = [f"decay_{t}" for t in range(length)], [f"added_{t}" for t in range(length)]
    nodes = [
        helper.make_node("Transpose", ["a"], ["rates"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["x1", "one"], ["steps"]),
        helper.make_node("Mul", ["steps", "rates"], ["exponents"]),
        helper.make_node("Exp", ["exponents"], ["decays"]),
        helper.make_node("Split", ["decays"], decays, axis=0, num_outputs=length),
        helper.make_node("Mul", ["x0", "x1"], ["driven"]),
        helper.make_node("Unsqueeze", ["driven", "one"], ["driven_row"]),
        helper.make_node("Unsqueeze", ["x3", "two"], ["b_column"]),
        helper.make_node("Mul", ["driven_row", "b_column"], ["added"]),
        helper.make_node("Split", ["added"], added, axis=0, num_outputs=length),
    ]
    for t in range(1, length):
        state = added[0] if t == 1 else f"h_{t - 1}"
        nodes.append(helper.make_node("Mul", [decays[t], state], [f"kept_{t}"]))
        nodes.append(helper.make_node("Add", [f"kept_{t}", added[t]], [f"h_{t}"]))
    nodes += [
        helper.make_node("Concat", [added[0], *(f"h_{t}" for t in range(1, length))], ["states"], axis=0),
        helper.make_node("Unsqueeze", ["x4", "one"], ["c_row"]),
        helper.make_node("MatMul", ["c_row", "states"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "one"], ["result"]),
    ]
    inputs = [value("x0", length, width), value("x1", length, width), value("a", width, states)]
    inputs += [value("x3", length, states), value("x4", length, states)]
    graph = helper.make_graph(
        nodes, "unrolled", inputs, [value("result", length, width)], [axis("one", 1), axis("two", 2)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def prepare(name: str, folder: Path) -> None:
    """Write what one row needs into a folder, unless it is there already."""
    ready = folder / "ready"
    if ready.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if name == "scan":
        given = selective_scan.example(*SCAN, batch=1)
        (folder / PLAIN).write_bytes(usual_scan(*SCAN))
        write(program_of(Scanned(), *given), folder / OURS)
        (folder / UNROLLED).write_bytes(unrolled_scan(*SCAN))
    else:
        contest = CONTESTS[name]
        if not contest.is_eager:
            x = _image(name)
            write_plain(spelled(contest.spelled, model_of(name), (x,)), x, folder / PLAIN)
        file = edgesmith.export(name, "onnx", out=folder / "ours", **(contest.options or {})).file
        file.rename(folder / OURS)
    ready.touch()


def spelled(by: str, zoo: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Return the authors' form of a model. Raises Unsupported where it has other numbers than the zoo's."""
    module, _, function = by.partition(":")
    theirs: nn.Module = getattr(importlib.import_module(module), function)().eval()
    state = theirs.state_dict()
    theirs.load_state_dict({key: value.reshape(state[key].shape) for key, value in zoo.state_dict().items()})
    with torch.no_grad():
        expected = zoo(*inputs)
        error = float((theirs(*inputs) - expected).abs().max() / expected.abs().max())
    if error > SAME:
        raise Unsupported(f"{by} is another model than the zoo's: its outputs are {error:.1e} off")
    return theirs


def _image(name: str) -> Tensor:
    size = (CONTESTS[name].options or {}).get("input_size")
    return input_of(name, None if size is None else (3, *size))


def calls_of(name: str, folder: Path) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Return what is timed, `slow` and `ours` among it, and the milliseconds of what is done but once."""
    contest = CONTESTS[name]
    if name != "scan" and not contest.is_eager:
        x = _image(name).numpy()
        calls = {"slow": onnx_call(folder / PLAIN, {"x": x}), "ours": onnx_call(folder / OURS, {"image": x})}
        with suppress(ImportError):
            calls["openvino"] = openvino_call(folder / PLAIN, x)
        return calls, {}
    if name == "scan":
        given = [value.numpy() for value in selective_scan.example(*SCAN, batch=1)]
        feeds = {f"x{i}": value for i, value in enumerate(given)}
        flat = {"a" if key == "x2" else key: value if key == "x2" else value[0] for key, value in feeds.items()}
        _, unrolled_ms = once(partial(onnx_call, folder / UNROLLED, flat))
        ours, ours_ms = once(partial(onnx_call, folder / OURS, feeds))
        return {"slow": onnx_call(folder / PLAIN, flat), "ours": ours}, {"unrolled": unrolled_ms, "ours": ours_ms}
    loaded = load(ModelOptions(name, **(contest.options or {})))
    feeds = {key: value.numpy() for key, value in zip(loaded.name_inputs(), loaded.inputs, strict=True)}

    module = spelled(contest.spelled, loaded.module, loaded.inputs) if contest.spelled else loaded.module

    def eager() -> object:
        with torch.inference_mode():
            return module(*loaded.inputs)

    return {"slow": eager, "ours": onnx_call(folder / OURS, feeds)}, {}


def openvino_call(file: Path, x: Any) -> Callable[[], object]:
    """Return a call of one inference in OpenVINO, fp32, one thread. Raises ImportError where it is not installed."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()
    return lambda: request.infer({0: x})


def launch(name: str, folder: str, rounds: str) -> dict[str, Any]:
    """Time one row in this process: processor ms by call, and the milliseconds to load."""
    torch.set_num_threads(1)
    calls, loads = calls_of(name, Path(folder))
    samples: Samples = {key: [] for key in calls}
    for i in range(int(rounds) + 2):
        for key, call in calls.items():
            clock = process_time_ns if key == "openvino" else thread_time_ns  # its threads are its own
            start = clock()
            call()
            if i >= 2:
                samples[key].append((clock() - start) / 1e6)
    return {"samples": samples, "loads": loads}


def products_ms(file: Path, feeds: Mapping[str, Any], runs: int = 12) -> float:
    """Return the sum of the least milliseconds of each product of an ONNX file, by ONNX Runtime's profile."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "run")
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    least: dict[str, float] = {}
    for event in events:
        if event["name"].endswith("_kernel_time") and event["args"]["op_name"].endswith(("Conv", "MatMul", "Gemm")):
            least[event["name"]] = min(event["dur"], least.get(event["name"], float("inf")))
    return sum(least.values()) / 1e3


def verdict(spread: Spread, bar: float) -> str:
    """Return a ratio beside its bar, in words."""
    return f"{spread}, bar {bar:g}: {'met' if spread.middle >= bar else 'NOT met'}"


def measure(name: str, folder: Path, rounds: int, launches: int, table: Table) -> None:
    """Add one row, and for the scan one more."""
    prepare(name, folder)
    runs = [in_a_process(__spec__.name, name, folder, rounds) for _ in range(launches)]
    samples = [run["samples"] for run in runs]
    medians = {key: statistics.median(statistics.median(run[key]) for run in samples) for key in samples[0]}
    share, other = "", ""
    if name != "scan" and not CONTESTS[name].is_eager:
        share = f"{products_ms(folder / OURS, {'image': _image(name).numpy()}) / medians['slow']:.2f}"
    if "openvino" in medians:
        other = f"{medians['openvino'] / medians['ours']:.2f} x"
    ratio = verdict(over_processes(samples, "slow", "ours"), CONTESTS[name].bar)
    table.add(name, f"{medians['slow']:.2f}, {medians['ours']:.2f}", ratio, share, other)
    if runs[0]["loads"]:
        loads = [{key: [value] for key, value in run["loads"].items()} for run in runs]
        ms = {key: statistics.median(run[key][0] for run in loads) for key in loads[0]}
        ratios = [run["unrolled"][0] / run["ours"][0] for run in loads]
        spread = Spread(*statistics.quantiles(ratios if len(ratios) > 1 else 2 * ratios, n=4, method="inclusive"))
        table.add(f"{name}, to load", f"{ms['unrolled']:.1f}, {ms['ours']:.1f}", verdict(spread, LOAD_BAR), "", "")


def main() -> None:
    """Print one line for each row."""
    given = read_arguments(__doc__, listed="names", rounds=20, launches=5)
    torch.set_num_threads(1)
    kept = [word.partition("=")[2] for word in given.names if word.startswith("KEPT=")]
    wanted = [word for word in given.names if not word.startswith("KEPT=")] or list(CONTESTS)
    table = Table(
        ("", 20), ("ms, slow and ours", 20), ("slow over ours", 48), ("products", 8), "OpenVINO, plain, over ours"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for name in wanted:
            measure(name, Path(kept[0] if kept else temporary) / name, given.rounds, given.launches, table)


if __name__ == "__main__":
    main()
