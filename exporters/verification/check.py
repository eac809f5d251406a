"""Are the numbers still PyTorch's? Eager against captured, rewritten and the artifact, on seeded inputs.

    error   max |y - y'| over all inputs, absolute, and relative to the reference's peak max |y|
    SNR     10 log10( sum y^2 / sum (y - y')^2 ), in dB; none where the two are equal
    top-1   inputs whose best class agrees. A disagreement between two classes whose reference scores lie within twice
            the allowed error is a tie: the error threshold already allows that flip. Only for outputs [B, classes].

Of several outputs every one must pass. Each figure has a threshold per precision, which the manifest repeats. Beyond
one, the first place where the two graphs part is looked for by name.

Two kinds of models need more than a threshold:

    noise    a model may magnify rounding so that PyTorch itself is further from its own result in float64 than fp32's
             threshold. Nothing can be asked to be closer to it than that: the threshold is then NOISE_FACTOR times
             that distance, LARGEST_NOISE at most.
    spikes   a neuron whose potential misses its threshold by an ulp may fire in one order of summation and not in
             another, and what follows differs visibly. Such an input says nothing; at least half of the inputs of
             each batch size must agree spike for spike, which is judged by the thresholds as ever. A neuron that is
             wrong by a per cent fires otherwise on most inputs; one that is wrong by 1e-4 may pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import equals, module_path, operator_name
from edgesmith.exporters.graph.interpret import interpret
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
# 40 dB is where published accuracy starts to move. bf16: three bits fewer, so eight times the error, 18 dB. int8: a
# layer with 8 bits has some 40 dB, and their noise adds up.
THRESHOLDS = {
    "fp32": Thresholds(1e-5, 100.0),
    "fp16": Thresholds(2e-2, 40.0),
    "bf16": Thresholds(0.16, 22.0),
    "int8": Thresholds(2e-1, 20.0),
}


NOISE_FACTOR = 4.0
"""Between two results that are each as far from the exact one as rounding puts them."""

LARGEST_NOISE = 1e-4
"""Error that noise may excuse at most."""


def above_noise(thresholds: Thresholds, noise: float) -> Thresholds:
    """Thresholds for a model whose eager outputs are `noise` of their peak away from those in float64."""
    error = min(max(thresholds.relative_error, NOISE_FACTOR * noise), max(LARGEST_NOISE, thresholds.relative_error))
    lowered = 20 * float(np.log10(error / thresholds.relative_error))
    return Thresholds(error, thresholds.snr_db - lowered)


@dataclass(frozen=True)
class Figures:
    """How far outputs are from the reference's. Of several outputs each figure is that of the worst one.

    Attributes:
        max_abs_error, relative_error: see the module's docstring; `inf` where a finite value became none.
        snr_db: None where the two are equal.
        finite: fraction of the reference's values that are finite; the others must be the same infinity or NaN.
        agreeing, decided, ties: top-1; None for outputs that are no class scores.
    """

    max_abs_error: float
    relative_error: float
    snr_db: float | None
    finite: float = 1.0
    agreeing: int | None = None
    decided: int | None = None
    ties: int | None = None


def seeded_inputs(
    examples: Sequence[Tensor], image: ImageInput | None = None, dynamic_batch: bool = False, count: int = COUNT
) -> list[list[Tensor]]:
    """`count` inputs like the examples, the same ones every time. `describe_inputs` says it in words.

    Floating point: standard normal, or, with `image`, random RGB bytes normalised as the model expects. Integers and
    booleans: the example first, then uniform between its smallest and largest value. With `dynamic_batch` the batch
    goes round from 1 to the examples'.
    """
    return [
        [_draw(example, seed, k, image, dynamic_batch) for k, example in enumerate(examples)] for seed in range(count)
    ]


def _draw(example: Tensor, seed: int, position: int, image: ImageInput | None, dynamic_batch: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * position + seed)
    if dynamic_batch and example.dim():
        example = example[: 1 + seed % example.shape[0]]
    shape = example.shape
    if image is not None:
        rgb = torch.randint(0, 256, shape, generator=generator).to(example.dtype) / 255
        mean, std = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (image.mean, image.std))
        return (rgb - mean) / std
    if example.is_floating_point():
        return torch.randn(shape, generator=generator).to(example.dtype)
    if seed == 0 or example.numel() == 0:
        return example
    if example.dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)


def describe_inputs(examples: Sequence[Tensor], image: ImageInput | None = None) -> list[str]:
    """What `seeded_inputs` draws for each input, in words."""
    words = []
    for example in examples:
        if image is not None:
            words.append("random RGB bytes, normalised")
        elif example.is_floating_point():
            words.append("standard normal")
        elif example.dtype == torch.bool:
            words.append("the example, then random booleans")
        else:
            low, high = (int(example.min()), int(example.max())) if example.numel() else (0, 0)
            words.append(f"the example, then integers from {low} to {high}")
    return words


def measure(reference: Outputs, outputs: Outputs, allowed: float) -> Figures:
    """Compare two sets of outputs. `allowed` is the relative error up to which a top-1 flip is a tie.

    Raises:
        ValueError: the two differ in number or shape of outputs.
    """
    of_each = [
        _measure_one([outs[j] for outs in reference], [outs[j] for outs in outputs], allowed)
        for j in range(len(reference[0]))
    ]
    if len(outputs[0]) != len(of_each):
        raise ValueError(f"there are {len(outputs[0])} outputs where PyTorch has {len(of_each)}")
    ratios = [figures.snr_db for figures in of_each if figures.snr_db is not None]
    worst = Figures(
        max_abs_error=max(figures.max_abs_error for figures in of_each),
        relative_error=max(figures.relative_error for figures in of_each),
        snr_db=min(ratios) if ratios else None,
        finite=min(figures.finite for figures in of_each),
    )
    if len(of_each) == 1:
        worst = replace(worst, agreeing=of_each[0].agreeing, decided=of_each[0].decided, ties=of_each[0].ties)
    return worst


def _measure_one(reference: list[np.ndarray], outputs: list[np.ndarray], allowed: float) -> Figures:
    signal = noise = worst = peak = 0.0
    finite = total = 0
    for y, z in zip(reference, outputs, strict=True):
        if y.shape != z.shape:
            raise ValueError(f"an output has shape {list(z.shape)} where PyTorch's has {list(y.shape)}")
        known = np.isfinite(y)
        finite, total = finite + int(known.sum()), total + y.size
        same = np.array_equal(y[~known], z[~known], equal_nan=True)
        if not same or not np.isfinite(z[known]).all():
            return Figures(float("inf"), float("inf"), float("-inf"))
        a, b = y[known].astype(np.float64), z[known].astype(np.float64)
        peak = max(peak, float(np.abs(a).max(initial=0.0)))
        worst = max(worst, float(np.abs(a - b).max(initial=0.0)))
        signal += float((a**2).sum())
        noise += float(((a - b) ** 2).sum())
    snr = None if noise == 0 else 10 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")
    relative = worst / peak if peak > 0 else (0.0 if worst == 0 else float("inf"))
    top1: tuple[int | None, ...] = (None, None, None)
    if all(y.ndim == 2 and y.shape[1] > 1 and y.size for y in reference):
        top1 = _top1(reference, outputs, 2 * allowed * peak)
    return Figures(worst, relative, snr, finite / total if total else 1.0, *top1)


def _top1(reference: list[np.ndarray], outputs: list[np.ndarray], margin: float) -> tuple[int, int, int]:
    """How many best classes agree, how many were decided, and how many were ties."""
    agreeing = decided = ties = 0
    for y, z in zip(reference, outputs, strict=True):
        for row, other in zip(y, z, strict=True):
            best, theirs = int(row.argmax()), int(other.argmax())
            if best != theirs and float(row[best]) - float(row[theirs]) <= margin:
                ties += 1
            else:
                decided += 1
                agreeing += best == theirs
    return agreeing, decided, ties


def judge(figures: Figures, thresholds: Thresholds) -> str | None:
    """Why figures do not pass, or None."""
    if figures.finite == 0:
        return "PyTorch's own outputs are not finite on any seeded input, so nothing can be compared"
    if not figures.relative_error <= thresholds.relative_error:
        return f"error {figures.relative_error:.2g} of the peak, allowed {thresholds.relative_error:.2g}"
    if figures.snr_db is not None and not figures.snr_db >= thresholds.snr_db:
        return f"SNR {figures.snr_db:.1f} dB, wanted {thresholds.snr_db:.0f} dB"
    if figures.agreeing != figures.decided:
        return f"top-1 agrees on {figures.agreeing} of {figures.decided}"
    return None


def agreeing_inputs(reference: Outputs, outputs: Outputs, allowed: float) -> list[int]:
    """The inputs on which all outputs agree up to `allowed` of the peak over all inputs."""
    peaks = [max(float(np.abs(outs[j]).max(initial=0.0)) for outs in reference) for j in range(len(reference[0]))]
    found = []
    for i, (ys, zs) in enumerate(zip(reference, outputs, strict=True)):
        triples = zip(ys, zs, peaks, strict=True)
        if all(y.shape == z.shape and np.abs(y - z).max(initial=0.0) <= allowed * peak for y, z, peak in triples):
            found.append(i)
    return found


def is_half(chosen: Sequence[int], reference: Outputs) -> bool:
    """Whether at least half of the inputs of each batch size are among the chosen."""
    sizes = [len(outs[0]) if outs[0].ndim else 0 for outs in reference]
    return all(2 * sum(sizes[i] == size for i in chosen) >= sizes.count(size) for size in set(sizes))


def values(module: GraphModule, inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Every tensor that a graph computes, by node name, in order."""
    return {
        node.name: value.float().numpy()
        for node, (value,) in interpret(module, [[x.clone() for x in inputs]])
        if node.op == "call_function" and isinstance(value, Tensor)
    }


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
