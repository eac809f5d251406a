"""Kernels at odd shapes, what they are called with, and what they have to return, computed in float64 by PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.additive_attention import reference as additive_attention_reference
from edgesmith.kernels.fft_filter import reference as fft_filter_reference
from edgesmith.kernels.hidden_state_mixer import reference as hidden_state_mixer_reference
from edgesmith.kernels.lif import reference as lif_reference
from edgesmith.kernels.lmu_memory import reference as lmu_memory_reference
from edgesmith.kernels.native import (
    additive_attention,
    convolution,
    depthwise,
    elementwise,
    fft_filter,
    hidden_state_mixer,
    integer_layer,
    lif,
    lmu_memory,
    matmul,
    norms,
    pointwise,
    spikes,
    turn,
    winograd,
)
from edgesmith.kernels.native.epilogue import NOTHING, Epilogue
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Unit

TOLERANCE = 1e-6
"""Largest error relative to the output's peak: fp32 sums of some hundred numbers, rounded one by one."""


@dataclass(frozen=True)
class Case:
    """One call: a kernel, its inputs and packed parameters, and its outputs in float64."""

    unit: Unit
    given: tuple[np.ndarray, ...]
    expected: tuple[np.ndarray, ...]
    tolerance: float = TOLERANCE


FUNCTIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "exp": torch.exp,
}


class Drawn:
    """Random numbers in fp32, which float64 has exactly."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=self._generator)


def finish(s: Tensor, epilogue: Epilogue, draw: Drawn) -> tuple[Tensor, list[np.ndarray]]:
    """Return the epilogue of sums [M, N] in float64, and its arguments."""
    pixels, channels = s.shape
    given = []
    gate: Tensor | float = 1.0
    if epilogue.gate != "none":
        shape = {"channel": (1, channels), "pixel": (pixels, 1), "full": (pixels, channels)}[epilogue.gate]
        gate = draw(*shape)
        given.append(gate.numpy())
        gate = gate.double()
    before: Tensor | float = 0.0
    after: Tensor | float = 0.0
    if epilogue.residual != "none":
        residual = draw(pixels, channels)
        given.append(residual.numpy())
        before, after = (residual.double(), 0.0) if epilogue.residual == "before" else (0.0, residual.double())
    return FUNCTIONS[epilogue.function](s + before) * gate + after, given


def of_pointwise(op: pointwise.Pointwise, target: CpuTarget, has_bias: bool = True, scale: float = 1.0) -> Case:
    """A linear layer."""
    draw = Drawn(op.pixels + op.inputs)
    x, weight = draw(op.pixels, op.inputs, scale=scale), draw(op.outputs, op.inputs, scale=op.inputs**-0.5)
    bias = draw(op.outputs) if has_bias else None
    s = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    y, more = finish(s, op.epilogue, draw)
    packed = pointwise.pack(op, target, weight.numpy(), None if bias is None else bias.numpy())
    return Case(pointwise.emit(op, target), (x.numpy(), *more, packed), (y.numpy(),))


def convolve(x: Tensor, weight: Tensor, bias: Tensor, op: depthwise.Depthwise | convolution.Convolution) -> Tensor:
    """Return the sums [M, N] of a convolution of NHWC, in float64."""
    top, left, bottom, right = op.padding
    padded = F.pad(x.double().permute(0, 3, 1, 2), (left, right, top, bottom))
    is_dense = isinstance(op, convolution.Convolution)
    groups = op.groups if is_dense else op.channels
    y = F.conv2d(padded, weight.double(), bias.double(), op.stride, dilation=op.dilation, groups=groups)
    return y.permute(0, 2, 3, 1).flatten(0, 2)


def of_depthwise(op: depthwise.Depthwise, target: CpuTarget, scale: float = 1.0) -> Case:
    """A depthwise convolution."""
    draw = Drawn(op.channels)
    x = draw(op.batch, op.height, op.width, op.channels, scale=scale)
    weight, bias = draw(op.channels, 1, *op.kernel, scale=0.3), draw(op.channels)
    y, more = finish(convolve(x, weight, bias, op), op.epilogue, draw)
    packed = depthwise.pack(op, target, weight.numpy(), bias.numpy())
    return Case(depthwise.emit(op, target), (x.numpy(), *more, packed), (y.numpy(),))


def of_convolution(op: convolution.Convolution, target: CpuTarget, scale: float = 1.0) -> Case:
    """A dense convolution."""
    draw = Drawn(op.inputs)
    x = draw(op.batch, op.height, op.width, op.inputs, scale=scale)
    weight = draw(op.outputs, op.inputs // op.groups, *op.kernel, scale=op.taps**-0.5)
    bias = draw(op.outputs)
    y, more = finish(convolve(x, weight, bias, op), op.epilogue, draw)
    packed = convolution.pack(op, target, weight.numpy(), bias.numpy())
    return Case(convolution.emit(op, target), (x.numpy(), *more, packed), (y.numpy(),))


def of_integer_layer(op: integer_layer.IntegerLayer, target: CpuTarget) -> Case:
    """A layer of integers: sums are exact, and numbers that it writes are those that PyTorch rounds to."""
    draw, layer, dot = Drawn(op.layer.inputs), op.layer, target.dot
    generator = torch.Generator().manual_seed(layer.outputs)
    shape = (layer.outputs, layer.inputs, *layer.kernel)
    weight = torch.randint(-127, 128, shape, generator=generator).to(torch.int8)
    weight[0] = 127
    scale, next_scale = 0.03, 0.05  # some of x are beyond 127 s
    x = 2 * draw(layer.batch, layer.height, layer.width, layer.inputs)
    x[..., 0, 0] = torch.where(x[..., 0, 0] > 0, 9.0, -9.0)
    numbers = (x * torch.tensor(1 / scale)).round().clamp(-128, 127)
    factors, bias = draw(layer.outputs).abs() / (127 * layer.taps) ** 0.5, draw(layer.outputs)
    s = convolve(numbers, weight.float(), torch.zeros_like(bias), layer) * factors.double() + bias.double()
    y, more = finish(s, layer.epilogue, draw)
    given = integer_layer.Rounded(weight.numpy(), factors.numpy(), bias.numpy(), scale, next_scale)
    first = x if op.reads == "float32" else (numbers + dot.offset)
    arguments = (
        first.numpy().astype(integer_layer.dtype(op.reads, target)),
        *more,
        integer_layer.pack(op, target, given),
    )
    if op.writes == "numbers":
        y = (y / next_scale).round().clamp(-128, 127) + dot.offset
    return Case(integer_layer.emit(op, target), arguments, (y.numpy(),), 0.0 if op.writes == "numbers" else TOLERANCE)


def of_spikes(op: spikes.Spikes, target: CpuTarget, scale: float = 1.0) -> Case:
    """A convolution of spikes, of which one in five fires."""
    draw, layer = Drawn(op.layer.inputs), op.layer
    x = (draw(layer.batch, layer.height, layer.width, layer.inputs) > 0.84).float()
    weight, bias = draw(layer.outputs, layer.inputs, *layer.kernel, scale=scale), draw(layer.outputs)
    y, more = finish(convolve(x, weight, bias, layer), layer.epilogue, draw)
    packed = spikes.pack(op, target, weight.numpy(), bias.numpy())
    return Case(spikes.emit(op, target), (x.numpy(), *more, packed), (y.numpy(),))


def of_winograd(layer: convolution.Convolution, target: CpuTarget, scale: float = 1.0) -> Case:
    """A dense convolution with fewer products."""
    draw, op = Drawn(layer.inputs), winograd.Winograd(layer)
    x = draw(layer.batch, layer.height, layer.width, layer.inputs, scale=scale)
    weight, bias = draw(layer.outputs, layer.inputs, *layer.kernel, scale=layer.taps**-0.5), draw(layer.outputs)
    y, more = finish(convolve(x, weight, bias, layer), layer.epilogue, draw)
    packed = winograd.pack(op, target, weight.numpy(), bias.numpy())
    return Case(winograd.emit(op, target), (x.numpy(), *more, packed), (y.numpy(),))


def of_elementwise(op: elementwise.Elementwise, target: CpuTarget) -> Case:
    """A function at numbers around 0 and far from it."""
    x = torch.cat((torch.linspace(-20, 20, op.count - 4), torch.tensor([-100.0, -0.0, 60.0, 85.0])))
    if op.function != "exp":
        return Case(elementwise.emit(op, target), (x.numpy(),), (FUNCTIONS[op.function](x.double()).numpy(),))
    x = x.clamp(max=3)  # errors are relative to the peak
    return Case(elementwise.emit(op, target), (x.numpy(),), (torch.exp(x.double()).numpy(),))


def of_layer_norm(op: norms.LayerNorm, target: CpuTarget) -> Case:
    """A layer norm, of numbers far from 0."""
    draw = Drawn(op.channels)
    x, weight, bias = 3 * draw(op.pixels, op.channels) + 1, draw(op.channels), draw(op.channels)
    y = F.layer_norm(x.double(), (op.channels,), weight.double(), bias.double(), op.epsilon)
    packed = norms.pack(op.channels, weight.numpy(), bias.numpy())
    return Case(norms.emit_layer_norm(op, target), (x.numpy(), packed), (y.numpy(),))


def of_group_norm(op: norms.GroupNorm, target: CpuTarget) -> Case:
    """A group norm, of numbers far from 0."""
    draw = Drawn(op.channels)
    x, weight, bias = 3 * draw(op.batch, op.pixels, op.channels) + 1, draw(op.channels), draw(op.channels)
    y = F.group_norm(x.double().transpose(1, 2), op.groups, weight.double(), bias.double(), op.epsilon)
    packed = norms.pack(op.channels, weight.numpy(), bias.numpy())
    return Case(norms.emit_group_norm(op, target), (x.numpy(), packed), (y.transpose(1, 2).numpy(),))


def of_mean(op: norms.Mean, target: CpuTarget) -> Case:
    """A mean over pixels."""
    x = Drawn(op.channels)(op.batch, op.pixels, op.channels)
    return Case(norms.emit_mean(op, target), (x.numpy(),), (x.double().mean(1).numpy(),))


def of_turn(op: turn.Turn, target: CpuTarget) -> Case:
    """Maps turned to channels last: no number changes."""
    x = Drawn(op.channels)(op.batch, op.channels, op.pixels)
    return Case(turn.emit(op, target), (x.numpy(),), (x.double().transpose(1, 2).numpy(),), tolerance=0.0)


def of_softmax(op: norms.Softmax, target: CpuTarget) -> Case:
    """A softmax over channels."""
    x = Drawn(op.channels)(op.pixels, op.channels, scale=5.0)
    return Case(norms.emit_softmax(op, target), (x.numpy(),), (x.double().softmax(-1).numpy(),))


def of_matmul(op: matmul.Matmul, target: CpuTarget) -> Case:
    """Products of matrices, neither of which is packed."""
    draw = Drawn(op.columns)
    x, w = draw(op.batch, op.rows, op.inputs), draw(op.batch, op.inputs, op.columns)
    return Case(matmul.emit(op, target), (x.numpy(), w.numpy()), ((x.double() @ w.double()).numpy(),))


NAMES = ("spatial_weight", "spatial_bias", "mix", "channel")


def of_additive_attention(op: additive_attention.AdditiveAttention, target: CpuTarget) -> Case:
    """The fused op, held to its reference."""
    draw, c = Drawn(op.channels), op.channels
    shapes = {
        f"{part}_{name}": shape
        for part in "qk"
        for name, shape in zip(NAMES, ((c, 1, 3, 3), (c,), (1, c, 1, 1), (c, c, 1, 1)), strict=True)
    }
    for name in ("dwc", "proj"):
        shapes |= {f"{name}_weight": (c, 1, 3, 3), f"{name}_bias": (c,)}
    weights = {name: draw(*shape, scale=0.3) for name, shape in shapes.items()}
    qkv = draw(op.batch, op.height, op.width, 3 * c)
    doubles = {name: value.double() for name, value in weights.items()}
    y = additive_attention_reference(qkv.double().permute(0, 3, 1, 2), **doubles).permute(0, 2, 3, 1)
    finished, more = finish(y.flatten(0, 2), op.epilogue, draw)
    packed = additive_attention.pack(op, target, {name: value.numpy() for name, value in weights.items()})
    return Case(additive_attention.emit(op, target), (qkv.numpy(), *more, packed), (finished.numpy(),))


def of_hidden_state_mixer(op: hidden_state_mixer.HiddenStateMixer, target: CpuTarget) -> Case:
    """The fused op, held to its reference."""
    draw, d, s = Drawn(op.channels), op.channels, op.states
    shapes = {"project": (3 * s, d, 1, 1), "local": (3 * s, 1, 3, 3), "gate": (2 * d, d, 1), "out": (d, d, 1)}
    weights = {name: draw(*shape, scale=0.5) for name, shape in shapes.items()} | {"skip": draw(1)}
    x = draw(op.batch, op.height, op.width, d)
    doubles = {name: value.double() for name, value in weights.items()}
    y, h = hidden_state_mixer_reference(x.double().permute(0, 3, 1, 2), **doubles)
    packed = hidden_state_mixer.pack(op, target, {name: value.numpy() for name, value in weights.items()})
    expected = y.permute(0, 2, 3, 1).numpy(), h.transpose(1, 2).numpy()
    return Case(hidden_state_mixer.emit(op, target), (x.numpy(), packed), expected)


def of_fft_filter(op: fft_filter.FftFilter, target: CpuTarget) -> Case:
    """The fused op, held to its reference."""
    draw, width = Drawn(op.channels), op.channels // op.blocks
    hidden = op.hidden or width
    shapes = {"w1": (2, op.blocks, width, hidden), "b1": (2, op.blocks, hidden)}
    shapes |= {"w2": (2, op.blocks, hidden, width), "b2": (2, op.blocks, width)}
    weights = {name: draw(*shape, scale=0.4) for name, shape in shapes.items()}
    x = draw(op.batch, op.height, op.width, op.channels)
    doubles = {name: value.double() for name, value in weights.items()}
    y = fft_filter_reference(
        x.double().permute(0, 3, 1, 2), **doubles, threshold=op.threshold, activation=op.activation, masks=op.masks
    )
    packed = fft_filter.pack(op, target, {name: value.numpy() for name, value in weights.items()})
    return Case(fft_filter.emit(op, target), (x.numpy(), packed), (y.permute(0, 2, 3, 1).numpy(),))


def of_lmu_memory(op: lmu_memory.LmuMemory, target: CpuTarget) -> Case:
    """The fused op, held to its reference."""
    draw = Drawn(op.order)
    u, impulse = draw(op.batch, op.time), draw(op.order, op.time)
    m = lmu_memory_reference(u.double(), impulse.double()).transpose(1, 2)
    return Case(lmu_memory.emit(op, target), (u.numpy(), lmu_memory.pack(op, target, impulse.numpy())), (m.numpy(),))


def of_lif(op: lif.Lif, target: CpuTarget) -> Case:
    """The fused op: spikes are those of fp32, to the last one."""
    x = Drawn(op.inner)(op.outer, op.time, op.inner, scale=2.0)
    y = lif_reference(x, op.tau, op.threshold, op.reset, op.decay_input, 1, op.beta, op.late, op.drop)
    assert 0.02 < float(y.mean()) < 0.98
    return Case(lif.emit(op, target), (x.numpy(),), (y.double().numpy(),), tolerance=0.0)


def of_lif_at_the_threshold(target: CpuTarget, decay_input: bool, neurons: int = 53) -> Case:
    """Neurons that fire, or do not, by the rounding of a product: one that is fused with a sum decides otherwise."""
    beta, x1 = 0.3, -40 * torch.rand(100_000, generator=torch.Generator().manual_seed(0)).double().float()
    rest = torch.tensor(1 - beta)
    if decay_input:
        v = x1 * rest
        factor, base, offset = rest, v, v
        x2 = (v.double() + (1 - v.double()) / rest.double()).float()
    else:
        v, factor, base = x1, torch.tensor(beta), None
        offset = torch.zeros_like(v)
        x2 = (1 - v.double() * factor.double()).float()
    product = (x2 - offset) * factor if decay_input else v * factor
    addend = base if base is not None else x2
    exact = ((x2 - offset) if decay_input else v).double() * factor.double()
    differ = (product + addend >= 1) != ((exact + addend.double()).float() >= 1)
    x = torch.stack((x1, x2))[:, differ.nonzero().ravel()[:neurons]].unsqueeze(0)
    op = lif.Lif(1, 2, neurons, beta=beta, decay_input=decay_input)
    y = lif_reference(x, op.tau, op.threshold, op.reset, decay_input, 1, beta)
    return Case(lif.emit(op, target), (x.numpy(),), (y.double().numpy(),), tolerance=0.0)


def line(pixels: int, inputs: int, outputs: int, epilogue: Epilogue = NOTHING) -> convolution.Convolution:
    """A linear layer as a convolution of one row."""
    return convolution.Convolution(1, 1, pixels, inputs, outputs, (1, 1), 1, (0, 0, 0, 0), 1, epilogue)


RELU, SILU, GELU, SIGMOID = (Epilogue(name) for name in ("relu", "silu", "gelu", "sigmoid"))


def sweep(target: CpuTarget) -> list[Case]:
    """Odd shapes of every kernel: channels 1 to 67, heights and widths 1 to 33, every epilogue."""
    layers = (
        pointwise.Pointwise(1, 1, 1),
        pointwise.Pointwise(1, 64, 67, SIGMOID),
        pointwise.Pointwise(1, 131, 19),  # in stages
        pointwise.Pointwise(3, 65, 33, SILU),
        pointwise.Pointwise(2, 5, 3, RELU),
        pointwise.Pointwise(7, 3, 16, Epilogue("hardswish")),
        pointwise.Pointwise(13, 67, 53, Epilogue("gelu", residual="after")),
        pointwise.Pointwise(33 * 5, 31, 33, SILU),
        pointwise.Pointwise(49, 8, 110, Epilogue(gate="full")),
        pointwise.Pointwise(8, 9, 39, Epilogue("relu6", gate="channel", residual="after")),
        pointwise.Pointwise(50, 7, 56, Epilogue("relu", gate="pixel", residual="before")),
        pointwise.Pointwise(130, 2, 10, Epilogue("hardsigmoid")),
    )
    strips = (
        depthwise.Depthwise(1, 1, 1, 1),
        depthwise.Depthwise(2, 5, 7, 3, (3, 3), 1, (1, 1, 1, 1), RELU),
        depthwise.Depthwise(1, 9, 33, 20, (3, 3), 2, (1, 1, 1, 1), Epilogue(gate="full", residual="after")),
        depthwise.Depthwise(1, 7, 7, 67, (7, 7), 1, (3, 3, 3, 3), GELU),
        depthwise.Depthwise(1, 8, 10, 13, (5, 3), 2, (0, 0, 2, 1)),
        depthwise.Depthwise(1, 4, 30, 17, (4, 6), 1, (3, 5, 0, 0), SILU),
        depthwise.Depthwise(1, 9, 17, 19, (3, 3), 1, (2, 2, 2, 2), RELU, 2),
        depthwise.Depthwise(2, 8, 7, 5, (3, 2), 2, (1, 3, 2, 0), Epilogue(), 3),
    )
    maps = (
        convolution.Convolution(1, 13, 11, 3, 24, (3, 3), 2, (1, 1, 1, 1), 1, RELU),
        convolution.Convolution(2, 5, 33, 7, 19, (3, 3), 1, (1, 1, 1, 1), 1, Epilogue("gelu", residual="after")),
        convolution.Convolution(1, 16, 16, 3, 33, (4, 4), 4, (0, 0, 0, 0)),
        convolution.Convolution(1, 9, 8, 5, 8, (3, 3), 1, (2, 2, 2, 2), 2, SILU),
        convolution.Convolution(1, 3, 1, 2, 5, (1, 1), 2, (0, 0, 0, 0)),
        convolution.Convolution(1, 2, 4, 1, 50, (7, 7), 1, (3, 3, 3, 3)),
    )
    grouped = (
        convolution.Convolution(1, 7, 9, 24, 24, (3, 3), 1, (1, 1, 1, 1), 1, RELU, 3),
        convolution.Convolution(
            2, 5, 6, 10, 45, (3, 3), 2, (1, 1, 1, 1), 1, Epilogue(gate="full", residual="after"), 5
        ),
        convolution.Convolution(1, 4, 4, 6, 12, (1, 1), 1, (0, 0, 0, 0), 1, Epilogue("gelu", gate="channel"), 2),
        convolution.Convolution(1, 1, 20, 67, 67, (1, 5), 1, (0, 4, 0, 0), 1, SILU, 67),
    )
    threes = (
        convolution.Convolution(1, 1, 33, 19, 67, (1, 3), 1, (0, 1, 0, 1), 1, Epilogue("relu", residual="after")),
        convolution.Convolution(2, 5, 12, 3, 33, (3, 3), 1, (1, 1, 1, 1), 1, SILU),
        convolution.Convolution(1, 6, 7, 17, 40, (2, 3), 1, (2, 2, 0, 0), 1, Epilogue("none", gate="pixel")),
        convolution.Convolution(2, 2, 26, 131, 35, (3, 3), 1, (1, 1, 1, 1), 1, Epilogue("gelu", residual="before")),
        convolution.Convolution(1, 1, 27, 130, 19, (1, 3), 1, (0, 2, 0, 0), 1, SILU),
        convolution.Convolution(1, 3, 3, 1, 1, (3, 3), 1, (0, 0, 0, 0)),
    )
    lines = (
        convolution.Convolution(1, 1, 29, 40, 265, (1, 3), 1, (0, 1, 0, 1), 1, Epilogue(residual="after")),
        convolution.Convolution(1, 1, 9, 67, 61, (1, 1), 1, (0, 0, 0, 0)),
    )
    neurons = (
        lif.Lif(2, 9, 167),
        lif.Lif(2, 33, 67, tau=3.0),
        lif.Lif(1, 20, 19, 3.0, 0.7, None, False),
        lif.Lif(3, 20, 5, 2.0, 0.5, -0.2),
        lif.Lif(1, 40, 21, beta=0.3, reset=None),
        lif.Lif(1, 40, 21, beta=0.9, decay_input=False),
        lif.Lif(2, 40, 21, beta=0.9, decay_input=False, reset=None, late=True),
        lif.Lif(1, 40, 19, threshold=0.7, reset=None, drop=0.4),
        lif.Lif(1, 40, 5, threshold=0.7, reset=None, late=True, drop=0.9),
    )
    return [
        *(of_pointwise(op, target, has_bias=op.outputs != 39) for op in layers),
        *(of_depthwise(op, target) for op in strips),
        *(of_convolution(op, target) for op in maps),
        *(of_convolution(op, target) for op in grouped),
        *(of_winograd(op, target) for op in threes),
        *(of_spikes(spikes.Spikes(op), target) for op in (*maps, *lines)),
        *integer_sweep(target),
        *(of_elementwise(elementwise.Elementwise(4163, name), target) for name in ("exp", "sigmoid", "silu", "gelu")),
        *(of_layer_norm(norms.LayerNorm(9, channels), target) for channels in (1, 23, 64)),
        of_group_norm(norms.GroupNorm(2, 33, 21, 3), target),
        of_group_norm(norms.GroupNorm(1, 5, 40, 1), target),
        of_mean(norms.Mean(2, 33, 29), target),
        *(of_turn(turn.Turn(2, channels, 7 * 33), target) for channels in (2, 3, 4)),
        of_turn(turn.Turn(1, 3, 5), target),
        *(of_softmax(norms.Softmax(9, channels), target) for channels in (1, 23, 67)),
        of_matmul(matmul.Matmul(3, 13, 31, 45), target),
        of_matmul(matmul.Matmul(1, 1, 1, 1), target),
        of_matmul(matmul.Matmul(2, 33, 8, 64), target),
        of_additive_attention(additive_attention.AdditiveAttention(2, 5, 9, 19, Epilogue(residual="after")), target),
        of_additive_attention(additive_attention.AdditiveAttention(1, 1, 3, 5), target),
        of_hidden_state_mixer(hidden_state_mixer.HiddenStateMixer(2, 4, 5, 13, 7), target),
        of_hidden_state_mixer(hidden_state_mixer.HiddenStateMixer(1, 3, 3, 32, 16), target),
        of_fft_filter(fft_filter.FftFilter(2, 5, 6, 18, 2), target),
        of_fft_filter(fft_filter.FftFilter(1, 4, 7, 32, 4, 0.1), target),
        of_fft_filter(fft_filter.FftFilter(1, 5, 6, 18, 2, 0.05, 13, "relu", masks=False), target),
        of_lmu_memory(lmu_memory.LmuMemory(3, 31, 37), target),
        of_lmu_memory(lmu_memory.LmuMemory(1, 1, 5), target),
        *(of_lif(op, target) for op in neurons),
        *(of_lif_at_the_threshold(target, decay_input) for decay_input in (True, False)),
    ]


def quiet_sweep(target: CpuTarget) -> list[Case]:
    """Layers whose products are a thousandth of their bias: each output is allowed one rounding, and little beside."""
    quiet, square = 1e-3, (1, 1, 1, 1)
    maps = (
        convolution.Convolution(1, 9, 33, 3, 8, (3, 3), 1, square),
        convolution.Convolution(1, 9, 16, 24, 24, (3, 3), 2, square, 1, NOTHING, 3),
    )
    threes = (
        convolution.Convolution(1, 5, 12, 40, 33, (3, 3), 1, square),
        convolution.Convolution(1, 4, 26, 131, 35, (3, 3), 1, square),  # four outputs at once
    )
    return [
        of_pointwise(pointwise.Pointwise(13, 67, 53), target, scale=quiet),
        of_pointwise(pointwise.Pointwise(1, 300, 19), target, scale=quiet),  # in stages
        of_depthwise(depthwise.Depthwise(1, 9, 17, 67, (7, 7), 1, (3, 3, 3, 3)), target, scale=quiet),
        *(of_convolution(op, target, scale=quiet) for op in maps),
        *(of_winograd(op, target, scale=quiet) for op in threes),
        of_spikes(spikes.Spikes(maps[0]), target, scale=quiet),
    ]


def integer_sweep(target: CpuTarget) -> list[Case]:
    """Odd shapes of layers of integers."""
    layers = (
        convolution.Convolution(1, 13, 11, 3, 24, (3, 3), 2, (1, 1, 1, 1), 1, RELU),
        convolution.Convolution(2, 5, 33, 7, 19, (3, 3), 1, (1, 0, 2, 1), 1, Epilogue("gelu", residual="after")),
        convolution.Convolution(1, 16, 16, 3, 33, (4, 4), 4, (0, 0, 0, 0)),
        convolution.Convolution(1, 9, 8, 5, 8, (3, 3), 1, (2, 2, 2, 2), 2, SILU),
        convolution.Convolution(1, 3, 1, 2, 5, (1, 1), 2, (0, 0, 0, 0)),
        convolution.Convolution(1, 2, 4, 1, 50, (7, 7), 1, (3, 3, 3, 3)),
        line(1, 1, 1),
        line(1, 131, 19),
        line(3, 65, 33),
        line(13, 67, 53, Epilogue("gelu", residual="after")),
        line(33 * 5, 31, 10, Epilogue("relu", gate="pixel", residual="before")),
        line(1, 64, 67, SIGMOID),
    )
    kept = (
        *(integer_layer.IntegerLayer(line(50, 12, n, RELU), writes="numbers") for n in (1, 5, 24, 67)),
        integer_layer.IntegerLayer(line(50, 52, 13, Epilogue(residual="after")), reads="numbers"),
        integer_layer.IntegerLayer(line(9, 16, 64, RELU), "numbers", "numbers"),
    )
    return [of_integer_layer(op, target) for op in (*map(integer_layer.IntegerLayer, layers), *kept)]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest error relative to the peak."""
    return float(np.abs(found.reshape(expected.shape) - expected).max() / max(np.abs(expected).max(), 1e-30))
