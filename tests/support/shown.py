"""Results that take long to make, or differ from machine to machine, as the command line shows them."""

from __future__ import annotations

from typing import Any

from edgesmith.bench.estimation.estimate import Cost, Estimate, LeftOut
from edgesmith.bench.peers.record import IntervalRecord, ModelRecord, PeersRecord, RowRecord
from edgesmith.bench.transport.attached import Attached
from edgesmith.cli.doctor import TargetRecord
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport

ESTIMATE = Estimate(
    model="casvit_xs",
    precision="fp16",
    sha256="0" * 64,
    device="iphone13",
    title="iPhone 13 (A15 Bionic)",
    runtime="Core ML on its Neural Engine",
    p50_ms=1.4321,
    interval_ms=(1.1, 1.9),
    coverage=0.8,
    call_ms=0.25,
    macs=560_000_000,
    operators=212,
    costliest=(
        Cost("a", "conv", "network.0.0.mlp.fc1_with_a_name_of_some_length", 0.2, 0.14, "computing"),
        Cost("b", "softmax", "", 0.05, 0.035, "memory"),
        Cost("c", "reshape", None, 0.01, 0.007, "a launch"),
    ),
    left_out=LeftOut("a family", 31, 24, 9, 0.061, 0.93),
    notes=("the row nearest to it is of another family",),
)

REPORTS = [
    RewriteReport(
        "fold_batchnorm",
        applied=(("stem.conv", "into the convolution before it"), ("network.0.0.integral.spatial", "the same")),
    ),
    RewriteReport(
        "fuse_gate",
        rejected=(Rejection("network.0.0.attn", "its gate is tanh, not a sigmoid", "models/my_casvit.py:118"),),
    ),
    RewriteReport("fuse_scan"),
]

CAPTURED = {"convolution": 61, "batch_norm": 29, "tanh": 4}
REWRITTEN = {"convolution": 61, "tanh": 4}
COVERED: dict[str, dict[str, int]] = {
    "kernels": {"conv2d": 41, "gate": 4},
    "TVM": {"reshape": 12},
    "macs": {"kernels": 557_000_000, "TVM": 3_000_000},
}


def interval(value: float, reach: float = 0.02) -> IntervalRecord:
    return {"value": value, "low": value * (1 - reach), "high": value * (1 + reach)}


def row(peer: str, title: str, p50: float | None, **others: Any) -> RowRecord:
    return {
        "peer": peer,
        "title": title,
        "form": "as written",
        "ours": False,
        "counts": p50 is not None,
        "state": "timed" if p50 else "missing",
        "why": "",
        "version": "1.31.0",
        "error": None,
        "p50_ms": interval(p50) if p50 else None,
        "ratio": interval(p50 / 9.8) if p50 else None,
        "share": 7.6 / p50 if p50 else None,
        "steady": 5,
        "rounds_ms": [],
        **others,
    }


CONTEST: ModelRecord = {
    "model": "casvit_xs",
    "macs": 560_000_000,
    "bytes": 13_500_000,
    "bound_ms": 7.61,
    "peaks": {"fma_gflops": 147.2, "bandwidth_gb_s": 21.3, "measured_by": "a loop in C, compiled by gcc"},
    "launches": 6,
    "rows": [
        row("ours_tvm", "edgesmith", 9.8, form="our library, TVM's runtime", ours=True, error=2.7e-7),
        row("openvino", "OpenVINO", 12.5, form="our ONNX file", error=3.1e-7),
        row("ncnn", "ncnn", None, why="not installed here: pip install edgesmith[peers]"),
    ],
}

TARGETS: list[TargetRecord] = [
    {
        "target": "onnx",
        "lower": "yes (onnx 1.22.0, onnxscript 0.7.2, onnxruntime 1.31.0)",
        "run": "yes (ONNX Runtime)",
        "time": "yes (ONNX Runtime)",
        "do": "",
    },
    {
        "target": "coreml",
        "lower": "no",
        "run": "no: Core ML runs on a Mac; edgesmith's evaluator checks its numbers here",
        "time": "no: Core ML is timed on a Mac or an iPhone",
        "do": 'pip install -c constraints.txt "edgesmith[coreml]"',
    },
]

ATTACHED = [
    Attached("adb:R5CT12345", "SM-S901B", "galaxy_s22", None),
    Attached("ios:00008110-0011", "iPhone 13", "iphone13", "it is locked: unlock it"),
]

CONTESTS: PeersRecord = {
    "schema": 1,
    "edgesmith": "1.2.3",
    "started": "2026-01-01T00:00:00Z",
    "complete": True,
    "device": {"cpu": "a processor"},
    "threads": 1,
    "cores": None,
    "launches": 6,
    "seconds": 45.0,
    "models": [CONTEST],
}
