"""The inputs that numbers are compared on: the caller's example first, drawn ones after it, and adversarial ones.

    kind       the input                                                                              is natural
    example    the caller's example, as it is                                                         yes
    drawn      after the example: the distribution of each tensor by its own quantiles, see `draw`    yes
    seeded     of a named model: standard normal, or random RGB bytes normalised as it expects        yes
    given      the caller's own data, `--inputs`                                                      yes
    held out   of a calibration set                                                                   yes
    zeros      nothing but zeros; of an image input a black picture
    constant   each tensor one of the example's own values throughout; a grey picture
    quiet      the example x 1e-3, or the smallest power of ten that the precision holds
    loud       the example x 1e3, or the largest power of ten that the precision holds
    padded     the example with zeros in its last row and its last column; of an image input black ones

and, where the program asks for them (verification/corners.py),

    levels     the example rounded to halves, among them the program's own numbers and what lies beside those
    missing    the example with NaN among its values
    infinite   the example with NaN and both infinities among its values
    rows       whole numbers evenly: where they index a table, from its first row to its last, or else as the example's
    full       masks of nothing but 1
    part       masks of 1, but for the last third of each row
    single     masks of 0, but for the first of each row
    empty      masks of nothing but 0

The first eight of these change floating-point tensors that are no masks of 0 and 1; others keep the example's values. A
call says what it is in a few words, and `make` makes the same tensors of them every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgesmith.models.front_end import RATE
from edgesmith.models.registry import ImageInput, SoundInput
from edgesmith.models.series import SeriesInput

COUNT = 8
"""Calls of a caller's own data at most, and seeded inputs of artifacts that do not name theirs."""

NATURAL = 4
"""The example and what is drawn after it, or seeded inputs."""

ADVERSARIAL = ("zeros", "quiet", "loud", "constant", "padded")
OF_MASKS = ("full", "part", "single", "empty")
"""Kinds that change masks alone."""

ASKED_FOR = ("levels", "missing", "infinite", "rows", *OF_MASKS)
"""Kinds that programs ask for, see verification/corners.py."""

REPRESENTS = ("example", "drawn", "seeded", "given", "held out")
"""Kinds that are like what the model will meet."""

CONSTANT = 0.75
"""The quantile of the example that is the constant."""

SPREAD = 0.5
"""Around the value of a constant example, relative to it."""


@dataclass(frozen=True)
class Call:
    """One input of verification, in the words that it is made of.

    Attributes:
        kind: see the module's docstring.
        seed: of a drawn or seeded one.
        factor: of a quiet or loud one.
        only: the position of the one input that is changed; None for all of them.
        values: of levels those on and beside steps; of rows the first, the last, and how many calls share them.
    """

    kind: str
    seed: int | None = None
    factor: float | None = None
    only: int | None = None
    values: tuple[float, ...] | None = None

    @property
    def is_natural(self) -> bool:
        """Return whether it is like what the model will meet."""
        return self.kind in REPRESENTS

    def __str__(self) -> str:
        """Return `loud input (the example x 1000)`."""
        if self.kind in ("example", "zeros"):
            words = {"example": "the example", "zeros": "zeros"}[self.kind]
        elif self.factor is not None:
            words = f"the {self.kind} input (the example x {self.factor:g})"
        elif self.seed is not None:
            words = f"the {self.kind} input of seed {self.seed}"
        else:
            words = f"the {self.kind} input"
        return words if self.only is None else f"{words}, of input {self.only} alone"


def make(call: Call, examples: Sequence[Tensor], image: ImageInput | None, dynamic_batch: bool) -> list[Tensor]:
    """Return the inputs of one call. Kinds that a caller's data are of are kept instead, and not made.

    Args:
        examples: [B, ...] each.
        image: where the model's one input is an image of bytes.
        dynamic_batch: drawn ones go round from a batch of 1 to the examples'.
    """
    if call.kind == "seeded":
        assert call.seed is not None
        return [_seed(example, call.seed, k, image, dynamic_batch) for k, example in enumerate(examples)]
    if call.kind == "drawn":
        assert call.seed is not None
        return [draw(_first_rows(x, call.seed, dynamic_batch), call.seed, k) for k, x in enumerate(examples)]
    if call.kind == "example":
        return list(examples)
    if image is not None:
        examples = [_seed(example, 0, k, image, False) for k, example in enumerate(examples)]
    change = _of_picture(call.kind, image) if image is not None else _of_tensor(call)
    chosen = [call.only] if call.only is not None else _changed_by(call, examples)
    return [change(x) if k in chosen else x for k, x in enumerate(examples)]


def _changed_by(call: Call, examples: Sequence[Tensor]) -> list[int]:
    if call.kind in OF_MASKS:
        return masks(examples)
    return whole_inputs(examples) if call.kind == "rows" else changeable(examples)


def masks(examples: Sequence[Tensor]) -> list[int]:
    """Return the positions of inputs that are masks: booleans, and several numbers of 0 and 1, not all of them 0."""
    return [k for k, x in enumerate(examples) if x.numel() > 1 and (x.dtype == torch.bool or _is_mask(x))]


def whole_inputs(examples: Sequence[Tensor]) -> list[int]:
    """Return the positions of inputs of whole numbers."""
    return [k for k, x in enumerate(examples) if not x.is_floating_point() and x.dtype != torch.bool and x.numel()]


def changeable(examples: Sequence[Tensor]) -> list[int]:
    """Return the positions of inputs that adversarial ones change: no integers, and masks only where all are masks."""
    floating = [k for k, x in enumerate(examples) if x.is_floating_point() and x.numel()]
    return [k for k in floating if not _is_mask(examples[k])] or floating


def _is_mask(x: Tensor) -> bool:
    """Return whether a tensor of numbers holds both 0 and 1 and nothing else, or nothing but 1."""
    if x.dtype == torch.bool:
        return False
    return bool(((x == 0) | (x == 1)).all()) and bool((x == 1).any())


def _of_tensor(call: Call) -> Callable[[Tensor], Tensor]:
    """Return how an adversarial call changes a tensor."""
    if call.factor is not None:
        factor = call.factor
        return lambda x: x * factor
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "zeros": torch.zeros_like,
        "constant": _constant,
        "padded": _pad,
        "levels": lambda x: _level(x, call.values or (), call.seed or 0),
        "missing": lambda x: _strew(x, (math.nan,)),
        "infinite": lambda x: _strew(x, (math.nan, math.inf, -math.inf)),
        "rows": lambda x: _spread(x, call.values or (0, 0, 1), call.seed or 0),
        "full": torch.ones_like,
        "part": lambda x: _keep(x, 2 / 3),
        "single": lambda x: _keep(x, 0),
        "empty": torch.zeros_like,
    }
    return changes[call.kind]


def _level(x: Tensor, values: Sequence[float], seed: int) -> Tensor:
    """Return a tensor rounded to halves, but for two in three of its elements, which go round through some values.

    Two tensors of one shape have values in the same places, so that they tie there.
    """
    halves = (2 * x).round() / 2
    if not values:
        return halves
    places = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(seed)).reshape(x.shape)
    levels = torch.tensor(values, dtype=torch.float64).to(x.dtype)
    return torch.where(places < 2 * x.numel() / 3, levels[places % len(values)], halves)


def _strew(x: Tensor, values: Sequence[float]) -> Tensor:
    """Return a tensor with one in twelve elements each of some values, and the first element the first of them."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 12, x.shape, generator=generator)
    for k, value in enumerate(values):
        x = x.masked_fill(drawn == k, value)
        if x.numel() > k:
            x.view(-1)[k] = value
    return x


def _spread(x: Tensor, values: Sequence[float], seed: int) -> Tensor:
    """Return whole numbers from the first to the last, evenly, of which each of several calls has every so many."""
    first, last, calls = values
    points = torch.linspace(first, last, x.numel() * int(calls), dtype=torch.float64).round()
    return points[seed :: int(calls)].reshape(x.shape).to(x.dtype)


def _keep(x: Tensor, share: float) -> Tensor:
    """Return a mask of 0, but for a share of its last axis that has several elements, the first of it at least."""
    mask = torch.zeros_like(x)
    axis = next(k for k in reversed(range(x.dim())) if x.shape[k] > 1)
    mask.narrow(axis, 0, max(1, int(share * x.shape[axis]))).fill_(1)
    return mask


def _of_picture(kind: str, image: ImageInput | None) -> Callable[[Tensor], Tensor]:
    """Return how an adversarial call changes a normalised picture: values stay those of bytes."""
    assert image is not None
    mean, std = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (image.mean, image.std))

    def shade(x: Tensor, byte: int) -> Tensor:
        return ((byte / 255 - mean) / std).to(x.dtype).expand_as(x).clone()

    if kind == "padded":
        return lambda x: _pad(x, shade(x, 0))
    return lambda x: shade(x, {"zeros": 0, "constant": 128}[kind])


def _constant(x: Tensor) -> Tensor:
    """Return one of a tensor's own finite values throughout, its largest magnitude where the quantile is 0."""
    known = x[x.isfinite()].flatten().sort().values
    if not known.numel():
        return torch.zeros_like(x)
    value = known[int(CONSTANT * (known.numel() - 1))]
    return torch.full_like(x, float(value if value != 0 else known[known.abs().argmax()]))


def _pad(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """Return a tensor with zeros, or other padding, in its last row and its last column; of a vector in its last."""
    padded, padding = x.clone(), torch.zeros_like(x) if padding is None else padding
    for axis in {x.dim() - 1, max(x.dim() - 2, 0)} if x.dim() else ():
        if x.shape[axis] > 1:
            padded.narrow(axis, x.shape[axis] - 1, 1).copy_(padding.narrow(axis, x.shape[axis] - 1, 1))
    return padded


def draw(example: Tensor, seed: int, position: int = 0) -> Tensor:
    """Draw a tensor after an example: what is positive stays positive, whole stays whole, and in the same range.

    0 and 1 alone       each row shuffled, along an axis whose sums are all 1 where there is one, as of one-hot
                        vectors; a constant 1 becomes 0 and 1 at random
    integers            uniform between the smallest and the largest; a rising row, as of offsets, rises again
    booleans            random
    one value v         standard normal for 0, or else v x uniform(0.5, 1.5), rounded where v is whole
    anything else       by the example's quantiles: uniform positions in its sorted values, linear between two of
                        them; one of the values themselves where all are whole, or some are not finite
    """
    generator = torch.Generator().manual_seed(1000 * position + seed)
    if not example.numel():
        return example
    if _is_mask(example) and (example.is_floating_point() or bool((example == 0).any())):
        return _draw_mask(example, generator)
    if not example.is_floating_point():
        return _draw_integers(example, generator)
    values = example.flatten().sort().values
    is_whole = bool(((values == values.round()) | ~values.isfinite()).all())
    if values[0] == values[-1]:
        return _draw_around(example, float(values[0]), is_whole, generator)
    at = torch.rand(example.numel(), generator=generator, dtype=torch.float64) * (example.numel() - 1)
    if is_whole or not bool(values.isfinite().all()):
        return values[at.round().long()].reshape(example.shape)
    below = at.floor().long()
    above = (below + 1).clamp(max=example.numel() - 1)
    share = (at - below).to(example.dtype)
    return torch.lerp(values[below], values[above], share).reshape(example.shape)


def _draw_integers(example: Tensor, generator: torch.Generator) -> Tensor:
    if example.dtype == torch.bool:
        return torch.randint(0, 2, example.shape, generator=generator).bool()
    low, high = int(example.min()), int(example.max())
    drawn = torch.randint(low, high + 1, example.shape, generator=generator).to(example.dtype)
    rises = example.dim() == 1 and bool((example.diff() > 0).all()) and len(example) > 1
    return drawn.sort().values if rises else drawn


def _draw_mask(example: Tensor, generator: torch.Generator) -> Tensor:
    if bool((example == 1).all()):
        return torch.randint(0, 2, example.shape, generator=generator).to(example.dtype)
    axes = [axis for axis in range(example.dim()) if example.shape[axis] > 1]
    axis = next((axis for axis in reversed(axes) if bool((example.sum(axis) == 1).all())), axes[-1])
    order = torch.rand(example.shape, generator=generator).argsort(axis)
    return example.gather(axis, order)


def _draw_around(example: Tensor, value: float, is_whole: bool, generator: torch.Generator) -> Tensor:
    """Draw around the value of a constant example, which may be a placeholder."""
    if value == 0 or value != value or value in (float("inf"), float("-inf")):
        drawn = torch.randn(example.shape, generator=generator)
        return drawn.to(example.dtype)
    drawn = value * (1 + SPREAD * (2 * torch.rand(example.shape, generator=generator) - 1))
    return (drawn.round() if is_whole else drawn).to(example.dtype)


def seeded_inputs(
    examples: Sequence[Tensor], image: ImageInput | None = None, dynamic_batch: bool = False, count: int = COUNT
) -> list[list[Tensor]]:
    """Return `count` inputs of the examples' shapes, the same ones every time. `describe_inputs` says it in words.

    Floating point: standard normal, or, with `image`, random RGB bytes normalised as the model expects. Integers and
    booleans: the example first, then uniform between its smallest and largest value. With `dynamic_batch` the batch
    goes round from 1 to the examples'.
    """
    return [make(Call("seeded", seed), examples, image, dynamic_batch) for seed in range(count)]


LEVEL = 1000.0
"""The level of drawn series, in deviations: data of a meter are far from 0, and squares of them beyond fp16."""


def draw_series(reads: SeriesInput, batch: int, seed: int) -> tuple[Tensor, ...]:
    """Return the inputs of a forecaster: series with a level, a trend, two seasons and noise, and what goes with them.

    Levels of the first call are 0, of the second LEVEL, and so on in turn. A mask leaves one value in ten out. Tokens
    go round through all frequencies, from call to call and row to row.
    """
    generator = torch.Generator().manual_seed(seed)
    steps, channels = reads.shape
    ahead = max(reads.horizon, 1)
    t = torch.arange(steps + ahead, dtype=torch.float32).reshape(1, -1, 1)

    def each(low: float, high: float) -> Tensor:
        """Return a number for each series, uniform in a range. [B, 1, C]"""
        return low + (high - low) * torch.rand(batch, 1, channels, generator=generator)

    series = LEVEL * (seed % 2) * each(0.5, 1.5) + each(-1, 1) * t / steps
    for period in (24.0, 168.0):
        series = series + each(0.2, 1) * (2 * math.pi * (t / period + each(0, 1))).sin()
    series = series + 0.3 * torch.randn(batch, steps + ahead, channels, generator=generator)
    observed = (torch.rand(batch, steps, channels, generator=generator) < 0.9).float()
    tokens = (torch.arange(batch) + seed) % max(reads.frequencies, 1)
    drawn = {"observed_mask": observed, "freq_token": tokens, "future_values": series[:, steps:]}
    for name in ("static_covariates", "future_covariates"):
        if name in reads.inputs:
            drawn[name] = torch.randn(batch, *reads.inputs[name], generator=generator)
    return tuple(drawn.get(name, series[:, :steps]).contiguous() for name in reads.inputs)


DRAWN_SOUNDS = "drawn sounds: a gliding voice with overtones in syllables, over noise 40 dB below it"
"""The inputs of a file that takes sound, in words."""


def draw_sounds(reads: SoundInput, batch: int, count: int = NATURAL) -> list[list[Tensor]]:
    """Return the inputs of `count` calls of a file that takes sound: what `DRAWN_SOUNDS` says, in -1..1."""
    length = math.prod(reads.heard)
    t = torch.arange(length, dtype=torch.float64) / RATE

    def each(low: float, high: float) -> Tensor:
        """Return a number for each sound, uniform in a range. [B, 1]"""
        return low + (high - low) * torch.rand(batch, 1, generator=generator, dtype=torch.float64)

    calls = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        phase = 2 * math.pi * (each(80, 200) * t + each(-40, 40) * t.square())
        voice = sum((each(0.1, 0.3) * (k * phase).sin() for k in range(1, 13)), torch.zeros(batch, length))
        syllables = (2 * math.pi * (each(2, 5) * t + each(0, 1))).sin().clamp(min=0)
        noise = 1e-2 * torch.randn(batch, length, generator=generator, dtype=torch.float64)
        sound = each(0.05, 0.5) * (voice * syllables + noise)
        calls.append([sound.clamp(-1, 1).float().reshape(batch, *reads.heard)])
    return calls


def draw_tokens(vocabulary: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Return tokens of the whole vocabulary, uniform, its first and last among them, and types: 0 up to the middle."""
    ids = torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = 0, vocabulary - 1
    types = (torch.arange(length) >= length // 2).long().expand(batch, length).contiguous()
    return ids, types


def _first_rows(example: Tensor, seed: int, dynamic_batch: bool) -> Tensor:
    return example[: 1 + seed % example.shape[0]] if dynamic_batch and example.dim() else example


def _seed(example: Tensor, seed: int, position: int, image: ImageInput | None, dynamic_batch: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * position + seed)
    example = _first_rows(example, seed, dynamic_batch)
    shape = example.shape
    if image is not None:
        rgb = torch.randint(0, 256, shape, generator=generator).to(example.dtype) / 255
        mean, std = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (image.mean, image.std))
        return (rgb - mean) / std
    if example.is_floating_point():
        return torch.randn(shape, generator=generator).to(example.dtype)
    return example if seed == 0 or example.numel() == 0 else _draw_integers(example, generator)


def describe_inputs(examples: Sequence[Tensor], image: ImageInput | None = None) -> list[str]:
    """Return what `seeded_inputs` draws for each input, in words."""
    words = []
    for example in examples:
        if image is not None:
            words.append("random RGB bytes, normalised")
        elif example.is_floating_point():
            words.append("standard normal")
        elif example.dtype == torch.bool:
            words.append("the example, then random booleans")
        else:
            low, high = _range(example)
            words.append(f"the example, then integers from {low:.0f} to {high:.0f}")
    return words


def describe_drawn(examples: Sequence[Tensor]) -> list[str]:
    """Return what `draw` draws after each example, in words."""
    words = []
    for example in examples:
        low, high = _range(example)
        if not example.numel():
            words.append("empty")
        elif _is_mask(example) and (low == 0 or example.is_floating_point()):
            words.append("0 and 1, shuffled" if low == 0 else "0 and 1 at random")
        elif example.dtype == torch.bool:
            words.append("random booleans")
        elif not example.is_floating_point():
            words.append(f"integers from {low:.0f} to {high:.0f}")
        elif low == high:
            words.append("standard normal" if low == 0 else f"around {low:.3g}")
        else:
            words.append(f"as the example is distributed, from {low:.3g} to {high:.3g}")
    return words


def _range(example: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value; 0 and 0 for none."""
    return (float(example.min()), float(example.max())) if example.numel() else (0.0, 0.0)
