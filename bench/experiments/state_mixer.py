"""Is the compiled EfficientViM faster in ONNX Runtime than what torch's exporter makes of it?

Our file and that of `torch.onnx.export(dynamo=True)` of the same model in eager mode run in one process, in turn, one
thread. A ratio is plain over ours, of each round; its median and quartiles over the rounds; above 1 ours is faster.

    python -m edgesmith.bench.experiments.state_mixer [rounds] [model ...]
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter_ns
from typing import Any

MODELS = ("efficientvim_m1",)


def measure(name: str, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Milliseconds a run, round by round, and the number of nodes, of the plain export and of ours."""
    import onnx

    samples: dict[str, list[float]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = {form: Path(folder) / f"{form}.onnx" for form in samples}
        _export(name, paths)
        nodes = {form: len(onnx.load(str(path)).graph.node) for form, path in paths.items()}
        sessions = {form: _session(path) for form, path in paths.items()}
        for session, feeds in sessions.values():
            session.run(None, feeds)
        for _ in range(rounds):
            for form, (session, feeds) in sessions.items():
                start = perf_counter_ns()
                session.run(None, feeds)
                samples[form].append((perf_counter_ns() - start) / 1e6)
    return samples, nodes


def _export(name: str, paths: dict[str, Path]) -> None:
    import torch

    from edgesmith.exporters import targets
    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.rewrites.order import rewrite
    from edgesmith.exporters.targets import Request
    from edgesmith.models import registry
    from edgesmith.models.checkpoint import load

    spec = registry.get(name)
    model, _ = load(spec, None)
    x = torch.randn(1, *spec.input.shape, generator=torch.Generator().manual_seed(0))
    onnx = targets.get("onnx")
    program, _ = rewrite(capture(model, (x,), ("image",), ("logits",)), onnx.costs)
    onnx.lower(program, paths["ours"], Request(name, "fp32"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        plain = torch.onnx.export(model, (x,), input_names=["image"], dynamo=True, verbose=False, external_data=False)
        logging.disable(logging.NOTSET)
    assert plain is not None
    plain.save(str(paths["plain"]))


def _session(path: Path) -> tuple[Any, dict[str, Any]]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    x = np.random.default_rng(0).standard_normal(given.shape).astype(np.float32)
    return session, {given.name: x}


def main() -> None:
    """Print one line for each model."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print("model            nodes plain  ours  plain ms  ours ms  ratio  quartiles")
    for name in sys.argv[2:] or MODELS:
        samples, nodes = measure(name, rounds)
        ratios = [plain / ours for plain, ours in zip(samples["plain"], samples["ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        plain, ours = (statistics.median(samples[form]) for form in ("plain", "ours"))
        counts = f"{nodes['plain']:11}  {nodes['ours']:4}"
        print(f"{name:15}  {counts}  {plain:8.2f}  {ours:7.2f}  {middle:5.3f}  {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
