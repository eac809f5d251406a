"""Figures that say how far outputs are from the reference's, and whether that passes.

    error   max |y - y'| over all inputs, absolute, and relative to the reference's peak max |y|
    SNR     10 log10( sum y^2 / sum (y - y')^2 ), in dB; none where the two are equal
    top-1   inputs whose best class agrees. A disagreement between two classes whose reference scores lie within twice
            the allowed error is a tie: the error threshold already allows that flip. Only for scores [B, classes],
            which are no integers.

Of several outputs every one must pass. Each precision has its thresholds, which the manifest repeats.

Each call is judged by itself, so that a quiet or a zero input cannot hide behind a loud one. Of a call and an output,
with P its peak max |y| and N the peak over all natural calls (inputs.py), the error may be the largest of

    threshold x P            as the precision has it; of one that clips, such as int8, whose steps are as wide on every
                             input, threshold x max(P, N)
    threshold x N / 100      where y is zero, or nearly: an ulp or two of what the output is elsewhere
    4 x noise                where that was asked: how far PyTorch's own outputs for this very input move by rounding
                             (verification/noise.py); on a natural input never beyond the larger of the threshold and
                             1e-4, of max(P, N). On an adversarial one it may be more: sin(1000 x) is nobody's to know

and the SNR may be lower by as much as the error may be larger than threshold x P.

Two more things of the natural calls together, which the peak of a whole output hides:

    whole numbers    an output that has nothing else is the same in fp32, to the last digit of an int64, and 90 % of it
                     in half precision, but where rounding moves PyTorch's own
    parts            a row of an axis, such as the scores beside boxes in pixels, is off by the root of the threshold at
                     most, of its own peak, or 4 x its own noise; judged where it has enough values, and is more than
                     rounding beside the whole output's peak
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgesmith.exporters.outputs import Outputs, distances
from edgesmith.exporters.precision.task import Thresholds

NEARLY_ZERO = 100.0
"""How far below the natural calls' peak an output is so small that errors are relative to that peak."""

NOISE_FACTOR = 4.0
"""Between two results that are each as far from the exact one as rounding puts them."""

LARGEST_NOISE = 1e-4
"""Error that noise may excuse at most."""


def above_noise(thresholds: Thresholds, noise: float) -> Thresholds:
    """Return the thresholds for a model whose eager outputs are `noise` of their peak away from those in float64."""
    error = min(max(thresholds.relative_error, NOISE_FACTOR * noise), max(LARGEST_NOISE, thresholds.relative_error))
    lowered = 20 * float(np.log10(error / thresholds.relative_error))
    return Thresholds(error, thresholds.snr_db - lowered)


@dataclass(frozen=True)
class Figures:
    """Figures of how far outputs are from the reference's. Of several outputs each figure is that of the worst one.

    Attributes:
        max_abs_error, relative_error: see the module's docstring; `inf` where a finite value became none.
        snr_db: None where the two are equal.
        finite: fraction of the reference's values that are finite, of all outputs together; the others must be the same
            infinity or NaN.
        agreeing, decided, ties: top-1; None for outputs that are no class scores.
    """

    max_abs_error: float
    relative_error: float
    snr_db: float | None
    finite: float = 1.0
    agreeing: int | None = None
    decided: int | None = None
    ties: int | None = None


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
        finite=_finite(reference),
    )
    if len(of_each) == 1:
        worst = replace(worst, agreeing=of_each[0].agreeing, decided=of_each[0].decided, ties=of_each[0].ties)
    return worst


def _finite(reference: Outputs) -> float:
    """Return the fraction of values that are finite: an output without any says nothing against the others."""
    total = sum(y.size for ys in reference for y in ys)
    return sum(int(np.isfinite(y).sum()) for ys in reference for y in ys) / total if total else 1.0


def _measure_one(reference: list[np.ndarray], outputs: list[np.ndarray], allowed: float) -> Figures:
    signal = noise = worst = peak = 0.0
    for y, z in zip(reference, outputs, strict=True):
        if y.shape != z.shape:
            raise ValueError(f"an output has shape {list(z.shape)} where PyTorch's has {list(y.shape)}")
        known = np.isfinite(y)
        same = np.array_equal(y[~known], z[~known], equal_nan=True)
        if not same or not np.isfinite(z[known]).all():
            return Figures(float("inf"), float("inf"), float("-inf"))
        a, off = y[known].astype(np.float64), distances(y[known], z[known])
        peak = max(peak, float(np.abs(a).max(initial=0.0)))
        worst = max(worst, float(off.max(initial=0.0)))
        signal += float((a**2).sum())
        noise += float((off**2).sum())
    snr = None if noise == 0 else 10 * float(np.log10(signal / noise)) if signal > 0 else float("-inf")
    relative = worst / peak if peak > 0 else (0.0 if worst == 0 else float("inf"))
    top1: tuple[int | None, ...] = (None, None, None)
    if all(y.ndim == 2 and y.shape[1] > 1 and y.size and y.dtype.kind == "f" for y in reference):
        top1 = _top1(reference, outputs, 2 * allowed * peak)
    return Figures(worst, relative, snr, _finite([[y] for y in reference]), *top1)


def _top1(reference: list[np.ndarray], outputs: list[np.ndarray], margin: float) -> tuple[int, int, int]:
    """Return how many best classes agree, how many were decided, and how many were ties."""
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


@dataclass(frozen=True)
class Scale:
    """The size of one output over all natural calls.

    Attributes:
        peak: largest finite magnitude.
        power: mean square of the finite values.
    """

    peak: float
    power: float


@dataclass(frozen=True)
class CallFigures:
    """Figures of one call; of several outputs those of the one that comes closest to what is allowed, or is beyond it.

    Attributes:
        max_abs_error: `inf` where a finite value became none.
        peak: of the reference that the error is relative to.
        snr_db: None where the two are equal.
        allowed: the absolute error.
        failure: why it does not pass, without the call; None where it does.
        is_rounding: whether PyTorch's own output is nothing but rounding, by its noise.
        most: the largest error that more noise could excuse.
    """

    max_abs_error: float
    peak: float
    snr_db: float | None
    allowed: float
    failure: str | None
    is_rounding: bool = False
    most: float = float("inf")

    @property
    def relative_error(self) -> float:
        """The error relative to the peak."""
        return self.max_abs_error / self.peak if self.peak else (float("inf") if self.max_abs_error else 0.0)

    @property
    def share(self) -> float:
        """The error as a share of what is allowed."""
        if self.failure is not None:
            return float("inf")
        return self.max_abs_error / self.allowed if self.allowed else 0.0


def scales_of(reference: Outputs, natural: Sequence[int]) -> list[Scale]:
    """Return the size of each output over the natural calls."""
    found = []
    for j in range(len(reference[0])):
        values = [reference[i][j][np.isfinite(reference[i][j])].astype(np.float64) for i in natural]
        count = sum(v.size for v in values)
        peak = max((float(np.abs(v).max(initial=0.0)) for v in values), default=0.0)
        found.append(Scale(peak, sum(float((v**2).sum()) for v in values) / count if count else 0.0))
    return found


def measure_call(
    reference: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    scales: Sequence[Scale],
    thresholds: Thresholds,
    noise: Sequence[float] | None = None,
    *,
    clips: bool = False,
    is_natural: bool = True,
) -> CallFigures:
    """Compare the outputs of one call, see the module's docstring.

    Args:
        scales: of each output.
        noise: of each output, absolute; None where it was not asked, or nobody can say.
        clips: whether the precision's steps are as wide on every input.
        is_natural: whether there is a limit to what noise excuses.

    Raises:
        ValueError: the two differ in number or shape of outputs.
    """
    if len(outputs) != len(reference):
        raise ValueError(f"there are {len(outputs)} outputs where PyTorch has {len(reference)}")
    found = []
    for j, (y, z, scale) in enumerate(zip(reference, outputs, scales, strict=True)):
        excuse, most = 0.0 if noise is None else NOISE_FACTOR * noise[j], float("inf")
        if is_natural:
            own = float(np.abs(y[np.isfinite(y)]).max(initial=0.0))
            most = max(LARGEST_NOISE, thresholds.relative_error) * max(own, scale.peak)
            excuse = min(excuse, most)
        one = _measure_output(y, z, scale, thresholds, excuse, clips)
        if (
            one.failure is not None
            and noise is not None
            and one.peak
            and excuse < one.max_abs_error <= NOISE_FACTOR * noise[j]
        ):
            magnified = (
                f"{one.failure}: the model magnifies rounding, which alone moves PyTorch's by {noise[j] / one.peak:.2g}"
            )
            one = replace(one, failure=magnified)
        found.append(replace(one, is_rounding=0 < one.peak <= excuse, most=most))
    return max(found, key=lambda one: one.share)


def _measure_output(
    y: np.ndarray, z: np.ndarray, scale: Scale, thresholds: Thresholds, excuse: float, clips: bool
) -> CallFigures:
    if y.shape != z.shape:
        raise ValueError(f"an output has shape {list(z.shape)} where PyTorch's has {list(y.shape)}")
    known = np.isfinite(y)
    a = y[known].astype(np.float64)
    own = float(np.abs(a).max(initial=0.0))
    peak, limit = (max(own, scale.peak) if clips else own), thresholds.relative_error
    allowed = max(limit * peak, limit * scale.peak / NEARLY_ZERO, excuse)
    is_finite = bool(np.isfinite(z[known]).all())
    if not is_finite or not np.array_equal(y[~known], z[~known], equal_nan=True):
        what = "finite" if not is_finite else "NaN or infinite"
        failure = f"error inf of the peak, allowed {limit:.2g}: values that are {what} in PyTorch are not"
        return CallFigures(float("inf"), peak, float("-inf"), allowed, failure)
    off = distances(y[known], z[known])
    error, wrong = float(off.max(initial=0.0)), float((off**2).sum())
    signal = max(float((a**2).sum()), scale.power * a.size if clips else 0.0)
    snr = None if wrong == 0 else 10 * float(np.log10(signal / wrong)) if signal > 0 else float("-inf")
    failure = ""
    if not error <= allowed:
        failure = (
            f"error {error / peak:.2g} of the peak, allowed {allowed / peak:.2g}"
            if peak
            else f"error {error:.2g} where PyTorch has nothing but zeros, allowed {allowed:.2g}"
        )
    elif snr is not None and signal > 0 and peak:
        wanted = thresholds.snr_db - 20 * float(np.log10(allowed / (limit * peak)))
        failure = "" if snr >= wanted else f"SNR {snr:.1f} dB, wanted {wanted:.0f} dB"
    return CallFigures(error, peak, snr, allowed, failure or None)


LARGEST_WHOLE = 2.0**23
"""Whole numbers in float32 are exact below it. Integers always are."""

OTHER_WHOLE = 0.1
"""Share of whole numbers that half precision may have otherwise: sums that are nearly whole, scores that nearly tie."""

PART_VALUES = 16
"""Values that a part has at least, over all natural calls."""

MOST_PARTS = 4096
"""Rows of an axis whose rows are judged."""


def is_whole(values: Sequence[np.ndarray]) -> bool:
    """Return whether an output has whole numbers alone, which its type holds exactly, and some that are not 0."""
    flat = [y for y in values if y.size]
    return any(y.any() for y in flat) and all(
        y.dtype.kind == "i" or bool((np.isfinite(y) & (np.abs(y) < LARGEST_WHOLE) & (y == np.round(y))).all())
        for y in flat
    )


@dataclass(frozen=True)
class Part:
    """A row of an output's axis that is off.

    Attributes:
        axis, index: which.
        error, peak: over the natural calls, absolute.
    """

    axis: int
    index: int
    error: float
    peak: float

    def __str__(self) -> str:
        """Return `error 0.5 of the peak of index 4 of axis 1`."""
        return f"error {self.error / self.peak:.2g} of the peak of index {self.index} of axis {self.axis}"


def wrong_parts(
    reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray], allowed: float, smallest: float
) -> list[Part]:
    """Return the parts of an output that are off by more than `allowed` of their own peak.

    Args:
        reference: the output on each of several calls.
        smallest: the peak of a part that says something, relative to the output's.
    """
    first = reference[0]
    found: list[Part] = []
    if any(y.shape[1:] != first.shape[1:] or not np.isfinite(y).all() for y in reference):
        return found
    for axis in sorted({1, first.ndim - 1} if first.ndim > 1 else ()):
        rows = first.shape[axis]
        values = sum(y.size for y in reference) // max(rows, 1)
        if not 1 < rows <= MOST_PARTS or values < PART_VALUES:
            continue
        peaks, errors = of_parts(reference, axis), of_parts(_differences(reference, outputs), axis)
        is_off = (errors > allowed * peaks) & (peaks > smallest * peaks.max())
        found += [Part(axis, int(i), float(errors[i]), float(peaks[i])) for i in np.flatnonzero(is_off)]
    return found


def of_parts(values: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Return the largest magnitude in each row of an axis, over several calls."""
    axes = tuple(k for k in range(values[0].ndim) if k != axis)
    largest: np.ndarray = np.max([np.abs(y).max(axis=axes, initial=0.0) for y in values], axis=0)
    return largest


def _differences(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [distances(y, z) for y, z in zip(reference, outputs, strict=True)]


OTHER_CLASS = 1e-3
"""Share of pixels that may have another class than in PyTorch: of those, two classes score nearly alike."""

OTHER_CLASS_OF_ONE = 4.0
"""How much more of them there may be in one call."""


def allowed_classes(thresholds: Thresholds, clips: bool) -> float:
    """Return the share of pixels that may have another class: more where scores are rounded more coarsely.

    fp16 has 0.1 %, as fp32 does: where rounding would change more, label_maps.py keeps the program's ends in fp32.
    """
    return thresholds.relative_error if clips else max(OTHER_CLASS, thresholds.relative_error / 20)


def measure_classes(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray], allowed: float) -> CallFigures:
    """Compare classes of pixels. The error is the share of those that have another one, of all outputs of one call.

    Raises:
        ValueError: the two differ in number or shape of outputs.
    """
    if [y.shape for y in reference] != [z.shape for z in outputs]:
        shapes = [list(z.shape) for z in outputs], [list(y.shape) for y in reference]
        raise ValueError(f"the outputs have shapes {shapes[0]} where PyTorch's have {shapes[1]}")
    others = sum(int((y != z).sum()) for y, z in zip(reference, outputs, strict=True))
    share = others / max(sum(y.size for y in reference), 1)
    failure = f"{share:.2%} of the pixels have another class, allowed {allowed:.2%}" if share > allowed else None
    return CallFigures(share, 1.0, None, allowed, failure)


def judge(figures: Figures, thresholds: Thresholds) -> str | None:
    """Return why figures do not pass, or None."""
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
    """Return the inputs on which all outputs agree up to `allowed` of the peak over all inputs."""
    peaks = [max(float(np.abs(outs[j]).max(initial=0.0)) for outs in reference) for j in range(len(reference[0]))]
    found = []
    for i, (ys, zs) in enumerate(zip(reference, outputs, strict=True)):
        triples = zip(ys, zs, peaks, strict=True)
        if all(y.shape == z.shape and distances(y, z).max(initial=0.0) <= allowed * peak for y, z, peak in triples):
            found.append(i)
    return found


def cover_half(chosen: Sequence[int], reference: Outputs) -> bool:
    """Return whether at least half of the inputs of each batch size are among the chosen."""
    sizes = [len(outs[0]) if outs[0].ndim else 0 for outs in reference]
    return all(2 * sum(sizes[i] == size for i in chosen) >= sizes.count(size) for size in set(sizes))
