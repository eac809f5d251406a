"""ONNX: one self-contained file with its types in the graph; `_typed_onnx.py` writes, checks and runs it."""

from __future__ import annotations

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.targets._plain import diagnose, keeps_states, layers, other_runtimes, traced, wide_operators
from edgesmith.exporters.targets._typed_onnx import (
    OPSET,
    cannot_run,
    check,
    count_macs,
    count_operators,
    intermediate,
    lower,
    open_step,
    run,
)

__all__ = ["cannot_run", "check", "count_macs", "count_operators", "intermediate", "lower", "open_step", "run"]
__all__ += ["diagnose", "keeps_states", "layers", "other_runtimes", "traced", "wide_operators"]

name = "onnx"
suffix = ".onnx"
description = f"ONNX (opset {OPSET}), for ONNX Runtime and everything that imports ONNX"
precisions = ("fp32", "fp16", "int8")
options: frozenset[str] = frozenset({"labels", "streaming"})
packages = ("onnx", "onnxscript", "onnxsim")
extra = None
runtime = "ONNX Runtime, CPU"
is_interpreter = False
# Measured on ONNX Runtime's CPU provider, one thread: launches, copies by bench/gates.py, products of a batch by
# bench/filters.py, loops and near matrices by bench/recurrences.py, tiles by bench/convolutions.py, the rest by
# bench/dft.py. Fetching is what AFFNet-ET's tiles gained by each byte less; bench/tiles.py tries it elsewhere.
# Depthwise convolutions run at 5 (kernels with one axis) to 30 (with two); taking 5 for both never costs much.
costs = Costs(
    launch_us=3.0,
    copy_gb_s=10.0,
    gmac_s=80.0,
    stream_gb_s=25.0,
    depthwise_gmac_s=5.0,
    columns=16,
    product_us=0.15,
    loop_us=0.8,
    read_gb_s=75.0,
    tile_gb_s=7.0,
    fetch_gb_s=5.0,
)
dynamic_batch = True

FINDS_ISLANDS = True
"""Half-precision programs of this target keep in fp32 what calibration inputs say needs it; see islands.py."""

LARGEST_INT8_WEIGHT = 63
"""7 bits: kernels for x86 without VNNI add two products in 16 bits, and with 8 bits of both they saturate: 18 dB where
50 were due, on AVX2. ONNX Runtime's "Quantize ONNX models" calls it reduce_range."""
