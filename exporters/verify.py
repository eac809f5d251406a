"""Are the numbers still PyTorch's? Eager against captured, rewritten and the artifact, on seeded inputs.

    error   max |y - y'| over all inputs, absolute, and relative to the reference's peak max |y|
    SNR     10 log10( sum y^2 / sum (y - y')^2 ), in dB; none where the two are equal
    top-1   inputs whose best class agrees. A disagreement between two classes whose reference scores lie within twice
            the allowed error is a tie: the error threshold already allows that flip. Only for outputs [B, classes].

Each has a threshold per precision, which the manifest repeats. Beyond one, the first place where the two graphs part
is looked for by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgesmith.exporters.capture import Program
from edgesmith.exporters.graph import equals, module_path, operator_name
from edgesmith.models.registry import ImageInput

COUNT = 8
"""Inputs, each a whole batch."""

Outputs = list[list[np.ndarray]]
"""One list of outputs for each input."""


@dataclass(frozen=True)
class Thresholds:
    """What passes: largest error relative to the reference's peak, smallest SNR in dB, and every decided top-1."""

    relative_error: float
    snr_db: float


# fp32: folding and another order of summation move a result of some hundred layers by a few ulp of its peak (6e-8);
# 1e-5 is thirty times what the zoo shows. fp16: half has 11 bits, 66 dB, and a deep network keeps about 60 of them;
# 40 dB is where published accuracy starts to move.
THRESHOLDS = {"fp32": Thresholds(1e-5, 100.0), "fp16": Thresholds(2e-2, 40.0)}


@dataclass(frozen=True)
class Figures:
    """How far outputs are from the reference's.

    Attributes:
        max_abs_error, relative_error: see the module's docstring; `inf` where an output is not finite.
        snr_db: None where the two are equal.
        agreeing, decided, ties: top-1; None for outputs that are no class scores.
    """

    max_abs_error: float
    relative_error: float
    snr_db: float | None
    agreeing: int | None = None
    decided: int | None = None
    ties: int | None = None


def seeded_inputs(
    examples: Sequence[Tensor], image: ImageInput | None = None, dynamic_batch: bool = False, count: int = COUNT
) -> list[list[Tensor]]:
    """`count` inputs like the examples, the same ones every time.

    Standard normal values; with `image`, random RGB bytes, normalised as the model expects. With `dynamic_batch` the
    batch goes round from 1 to the examples'. Integer inputs repeat the example.
    """
    inputs = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        one: list[Tensor] = []
        for example in examples:
            if dynamic_batch:
                example = example[: 1 + seed % example.shape[0]]
            if not example.is_floating_point():
                one.append(example)
            elif image is not None:
                rgb = torch.randint(0, 256, example.shape, generator=generator).to(example.dtype) / 255
                mean, std = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (image.mean, image.std))
                one.append((rgb - mean) / std)
            else:
                one.append(torch.randn(example.shape, generator=generator, dtype=example.dtype))
        inputs.append(one)
    return inputs


def measure(reference: Outputs, outputs: Outputs, allowed: float) -> Figures:
    """Compare two sets of outputs. `allowed` is the relative error up to which a top-1 flip is a tie.

    Raises:
        ValueError: the two differ in number or shape of outputs.
    """
    signal = noise = worst = peak = 0.0
    agreeing = decided = ties = 0
    scores = all(len(outs) == 1 and outs[0].ndim == 2 and outs[0].shape[1] > 1 for outs in reference)
    for expected, found in zip(reference, outputs, strict=True):
        for y, z in zip(expected, found, strict=True):
            if y.shape != z.shape:
                raise ValueError(f"outputs have shape {list(z.shape)} where PyTorch's have {list(y.shape)}")
            a, b = y.astype(np.float64), z.astype(np.float64)
            peak = max(peak, float(np.abs(a).max(initial=0.0)))
            if not np.isfinite(b).all():
                return Figures(float("inf"), float("inf"), float("-inf"))
            worst = max(worst, float(np.abs(a - b).max(initial=0.0)))
            signal += float((a**2).sum())
            noise += float(((a - b) ** 2).sum())
    if scores:
        for expected, found in zip(reference, outputs, strict=True):
            for row, other in zip(expected[0], found[0], strict=True):
                best, theirs = int(row.argmax()), int(other.argmax())
                margin = float(row[best]) - float(row[theirs])
                if best != theirs and margin <= 2 * allowed * peak:
                    ties += 1
                else:
                    decided += 1
                    agreeing += best == theirs
    snr = None if noise == 0 else 10 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")
    relative = worst / peak if peak > 0 else (0.0 if worst == 0 else float("inf"))
    top1 = (agreeing, decided, ties) if scores else (None, None, None)
    return Figures(worst, relative, snr, *top1)


def judge(figures: Figures, thresholds: Thresholds) -> str | None:
    """Why figures do not pass, or None."""
    if not figures.relative_error <= thresholds.relative_error:
        return f"error {figures.relative_error:.2g} of the peak, allowed {thresholds.relative_error:.2g}"
    if figures.snr_db is not None and not figures.snr_db >= thresholds.snr_db:
        return f"SNR {figures.snr_db:.1f} dB, wanted {thresholds.snr_db:.0f} dB"
    if figures.agreeing != figures.decided:
        return f"top-1 agrees on {figures.agreeing} of {figures.decided}"
    return None


def values(module: GraphModule, inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Every tensor that a graph computes, by node name, in order."""
    found: dict[str, np.ndarray] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> object:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, Tensor):
                found[n.name] = result.detach().float().numpy()
            return result

    with torch.no_grad():
        Recorder(module).run(*inputs)
    return found


def first_divergence(
    reference: Program, other: dict[str, np.ndarray], names: dict[str, str], inputs: Sequence[Tensor], limit: float
) -> str | None:
    """The first value of `reference`, in order, that `other` has differently; None where none does.

    Args:
        other: values by name, as `values` or a target's `intermediate` gives them.
        names: from names in `other` to the reference's names for the same value.
        limit: relative error at a value from which it counts.
    """
    theirs = {names[name]: value for name, value in other.items() if name in names}
    nodes = {node.name: node for node in reference.module.graph.nodes}
    for name, value in values(reference.module, inputs).items():
        found = theirs.get(name)
        if found is None or found.shape != value.shape:
            continue
        peak = float(np.abs(value).max(initial=0.0)) or 1.0
        error = float(np.abs(value - found).max(initial=0.0)) / peak
        if not error <= limit:
            node = nodes[name]
            return f"{module_path(node) or 'the model'} ({operator_name(node)}, {name}), error {error:.2g} of its peak"
    return None


def captured_names(program: Program) -> dict[str, str]:
    """From a rewritten program's node names to the captured nodes whose values they have."""
    return {node.name: equals(node) for node in program.module.graph.nodes if node.op == "call_function"}
