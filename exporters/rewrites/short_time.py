"""Short-time Fourier transforms as windows and one transform of each: `dft` writes it as a matmul then.

    stft(x)     unfold(x, n, hop) w -> rfft over the last axis, or fft of a two-sided one -> [..., bins, frames]
    istft(X)    irfft of each frame, times w, added up where the frames lie, over the sum of w w there

Both pad the window with zeros to n, and `normalized` scales by 1 / sqrt(n), as torch.stft and torch.istft document.
A reflection around the signal (`center`) is an operator of its own in a capture of torch.stft.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, rank, replace, val
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites


@rewrites(
    aten.stft.default,
    aten.stft.center,
    aten.istft.default,
    rule="stft, istft -> windows, and torch.fft transforms of them",
)
def short_time(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Write a short-time transform out. Lengths along time have to be static."""
    given = _Given(node)
    if not isinstance(val(node.args[0]).shape[-1], int):
        raise Reject("the time axis is dynamic; frames are cut at static positions")
    emit = Emitter(module, node)
    result = _synthesis(emit, given) if node.target is aten.istft.default else _analysis(emit, given)
    replace(node, result)
    name = str(node.target).split(".")[1]
    return f"{name}: frames of {given.n_fft} every {given.hop_length}"


class _Given:
    """The arguments of a short-time transform by name, defaults filled in."""

    def __init__(self, node: Node) -> None:
        assert isinstance(node.target, torch._ops.OpOverload)
        names = [argument.name for argument in node.target._schema.arguments]
        given = dict(zip(names, arguments(node), strict=True))
        self.x: Node = given["self"]
        self.n_fft: int = given["n_fft"]
        self.hop_length: int = given["hop_length"] or self.n_fft // 4
        self.win_length: int = given["win_length"] or self.n_fft
        self.window: Node | None = given["window"]
        self.norm = "ortho" if given["normalized"] else None
        self.center: bool = given.get("center", False)
        self.pad_mode: str = given.get("pad_mode", "reflect")
        self.length: int | None = given.get("length")
        two_sided = given["onesided"] is False or (given["onesided"] is None and val(self.x).is_complex())
        if node.target is aten.istft.default:
            two_sided = given["onesided"] is False or val(self.x).shape[-2] == self.n_fft != 1
        self.one_sided = not two_sided
        self.returns_complex = bool(given["return_complex"])
        if given.get("align_to_window"):
            raise Reject("it aligns frames to the window, which is not written out here")


def _window(emit: Emitter, given: _Given) -> Node | None:
    """Return the window [n], zeros around it; None where it is all ones."""
    missing = given.n_fft - given.win_length
    if given.window is None and not missing:
        return None
    if given.window is None or constant(emit.module, given.window) is not None:
        value = torch.ones(given.win_length) if given.window is None else constant(emit.module, given.window)
        assert value is not None
        around = torch.zeros(given.n_fft, dtype=value.dtype)
        around[missing // 2 : missing // 2 + given.win_length] = value
        return emit.constant("stft_window", around)
    if not missing:
        return given.window
    return emit(aten.constant_pad_nd.default, given.window, [missing // 2, missing - missing // 2], 0.0)


def _analysis(emit: Emitter, given: _Given) -> Node:
    """Return the transform of a signal [..., L]: [..., bins, frames], complex or with a last axis of 2."""
    x = given.x
    if given.center:
        x = _padded(emit, x, given)
    frames = emit(aten.unfold.default, x, rank(x) - 1, given.n_fft, given.hop_length)
    window = _window(emit, given)
    frames = frames if window is None else emit(aten.mul.Tensor, frames, window)
    transform = aten.fft_rfft.default if given.one_sided else aten.fft_fft.default
    bins = emit(transform, frames, None, -1, given.norm)
    result = emit(aten.transpose.int, bins, rank(bins) - 2, rank(bins) - 1)
    return result if given.returns_complex else emit(aten.view_as_real.default, result)


def _padded(emit: Emitter, x: Node, given: _Given) -> Node:
    """Return the signal with half a frame on both sides; as [B, L], for pads other than zeros want a second axis."""
    around = [given.n_fft // 2] * 2
    if given.pad_mode == "constant":
        return emit(aten.constant_pad_nd.default, x, around, 0.0)
    flat = x if rank(x) > 1 else emit(aten.unsqueeze.default, x, 0)
    padded = emit(aten.pad.default, flat, around, given.pad_mode)
    return padded if rank(x) > 1 else emit(aten.squeeze.dims, padded, [0])


def _synthesis(emit: Emitter, given: _Given) -> Node:
    """Return the signal [..., L] of a transform [..., bins, frames]."""
    x = emit(aten.transpose.int, given.x, rank(given.x) - 2, rank(given.x) - 1)
    if given.one_sided:
        frames = emit(aten.fft_irfft.default, x, given.n_fft, -1, given.norm)
    else:
        frames = emit(aten.fft_ifft.default, x, given.n_fft, -1, given.norm)
        frames = frames if given.returns_complex else emit(aten.real.default, frames)
    window = _window(emit, given)
    count = val(frames).shape[-2]
    if not isinstance(count, int):
        raise Reject("the number of frames is dynamic; they are added up at static positions")
    frames = frames if window is None else emit(aten.mul.Tensor, frames, window)
    total = _overlapped(emit, frames, given)
    total = emit(aten.div.Tensor, total, _envelope(emit, window, count, given))
    return _trimmed(emit, total, given)


def _trimmed(emit: Emitter, total: Node, given: _Given) -> Node:
    """Return the signal without half a frame on both sides, of the length that is asked for."""
    start = given.n_fft // 2 if given.center else 0
    whole = val(total).shape[-1]
    end = whole - start if given.length is None else start + given.length
    if start or end < whole:
        total = emit(aten.slice.Tensor, total, rank(total) - 1, start, min(end, whole))
    missing = end - whole
    return emit(aten.constant_pad_nd.default, total, [0, missing], 0.0) if missing > 0 else total


def _overlapped(emit: Emitter, frames: Node, given: _Given) -> Node:
    """Return the sum of frames [..., T, n] at their positions, as blocks of `hop` numbers: [..., n + (T - 1) hop]."""
    hop, count = given.hop_length, val(frames).shape[-2]
    blocks = -(-given.n_fft // hop)
    missing = blocks * hop - given.n_fft
    total: Any = None
    padded = emit(aten.constant_pad_nd.default, frames, [0, missing], 0.0) if missing else frames
    for block in range(blocks):
        part = emit(aten.slice.Tensor, padded, rank(padded) - 1, block * hop, (block + 1) * hop)
        part = emit(aten.constant_pad_nd.default, part, [0, 0, block, blocks - 1 - block], 0.0)  # [..., T + K - 1, hop]
        total = part if total is None else emit(aten.add.Tensor, total, part)
    flat = emit(aten.flatten.using_ints, total, rank(total) - 2)
    length = given.n_fft + (count - 1) * hop
    return emit(aten.slice.Tensor, flat, rank(flat) - 1, 0, length) if missing else flat


def _envelope(emit: Emitter, window: Node | None, count: int, given: _Given) -> Node:
    """Return the sum of the squares of all windows, [n + (T - 1) hop]: a constant where the window is one."""
    value = torch.ones(given.n_fft) if window is None else constant(emit.module, window)
    if value is None:
        squares = emit(aten.mul.Tensor, window, window)
        return _overlapped(emit, emit(aten.expand.default, squares, [count, given.n_fft]), given)
    total = torch.zeros(given.n_fft + (count - 1) * given.hop_length, dtype=value.dtype)
    for frame in range(count):
        total[frame * given.hop_length :][: given.n_fft] += value.square()
    return emit.constant("istft_envelope", total.where(total > _EMPTY, torch.ones_like(total)))


_EMPTY = 1e-11
"""Below this torch.istft refuses an envelope; where it does not look, beyond what is returned, nothing is divided."""
