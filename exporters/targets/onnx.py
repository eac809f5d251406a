"""ONNX: one self-contained file with its types in the graph; `_typed_onnx.py` writes, checks and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.targets import _typed_onnx
from edgesmith.exporters.targets._typed_onnx import OPSET, OnnxFile
from edgesmith.exporters.targets.target import Request, Target
from edgesmith.exporters.usage import onnx_runtime

if TYPE_CHECKING:
    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.manifest import Manifest
    from edgesmith.exporters.usage.facts import Facts
    from edgesmith.exporters.usage.source import Snippet

# Measured on ONNX Runtime's CPU provider, one thread, by bench/experiments: launches and copies by gates.py, matmuls of
# a batch by filters.py, loops and near matrices by recurrences.py, tiles by convolutions.py, the rest by dft.py.
# Fetching is what AFFNet-ET's tiles gained by each byte less; tiles.py tries it elsewhere. Depthwise convolutions run
# at 5 (kernels with one axis) to 30 (with two); taking 5 for both never costs much.
COSTS = Costs(
    launch_us=3.0,
    copy_gb_s=10.0,
    gmac_s=80.0,
    stream_gb_s=25.0,
    depthwise_gmac_s=5.0,
    columns=16,
    matmul_us=0.15,
    loop_us=0.8,
    read_gb_s=75.0,
    tile_gb_s=7.0,
    fetch_gb_s=5.0,
    adds_left_bias=True,
)

# Measured by bench/experiments/rounding.py, see docs/decisions/0062: from here on these kernels are about three times
# as far from float64 as PyTorch's. Softmax and matmuls are no further at any length that was tried; logsumexp is from
# 131,072 on, and is left alone: it is rare, and 5.6e-7 off there.
COARSE_FROM = {
    "ReduceMean": 2**13,
    "ReduceSum": 2**13,
    "ReduceSumSquare": 2**10,
    "ReduceL2": 2**10,
    "GlobalAveragePool": 2**13,
    "InstanceNormalization": 2**14,
    "LayerNormalization": 2**15,
    "CumSum": 2**8,
}


class Onnx(Target):
    """ONNX for ONNX Runtime and everything that imports ONNX."""

    def lower(self, program: Program, path: Path, request: Request) -> None:
        """Write one ONNX file."""
        _typed_onnx.lower(program, path, request, self.coarse_from)

    def open(self, path: Path) -> OnnxFile:
        """Open an ONNX file."""
        return OnnxFile(path, self.runtime, may_have_bf16=False)

    def own_translations(self) -> frozenset[str]:
        """Return what `_typed_onnx.py` translates itself."""
        return _typed_onnx.OWN_TRANSLATIONS

    def snippets(self, facts: Facts, manifest: Manifest) -> tuple[Snippet, ...]:
        """Return programs for ONNX Runtime."""
        return onnx_runtime.snippets(facts)

    def cannot_run(self) -> str | None:
        """Return why ONNX Runtime cannot run here, or None."""
        return _typed_onnx.cannot_run()


TARGET = Onnx(
    name="onnx",
    suffix=".onnx",
    description=f"ONNX (opset {OPSET}), for ONNX Runtime and everything that imports ONNX",
    precisions=("fp32", "fp16", "int8"),
    options=frozenset({"labels", "streaming"}),
    packages=("onnx", "onnxscript", "onnxsim", "torch"),
    extra="export",
    runtime="ONNX Runtime, CPU",
    timed_by="onnxruntime",
    costs=COSTS,
    dynamic_batch=True,
    traces_again=True,
    runs_alone=True,
    finds_islands=True,
    coarse_from=COARSE_FROM,
    # 7 bits: kernels for x86 without VNNI add two products of 8 bits in 16, and with 8 bits of both they saturate:
    # 18 dB where 50 were due, on AVX2. ONNX Runtime's "Quantize ONNX models" calls it reduce_range.
    largest_int8_weight=63,
    int8_joins=True,
)
