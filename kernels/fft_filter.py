"""Adaptive frequency filters: a small complex MLP on the spectrum makes a mask for it, or the new spectrum itself.

    X = rfft2(x)                                       [B, C, H, F], F = floor(W/2) + 1, orthonormal
    M = shrink(act(X W1 + b1) W2 + b2)                 complex products in k blocks of channels; act, silu or relu, and
                                                       the soft shrinkage take both parts of a number apart
    y = irfft2(M * X), or irfft2(M)                    [B, C, H, W]

Source: AFFNet, arXiv 2307.14008, eq. 4-6, a mask by silu; AFNO, arXiv 2111.13587, eq. 8-10, a new spectrum by relu.
O(C H W log(H W)) by fast transforms, which no runtime at the edge has for such small maps, as few have complex numbers.
Lowerings use real matmuls instead. With [re | im] side by side a transform is one constant matrix for the whole map, or
one for its rows and one for its columns:

    dense       X [C, 2 H F] = x [C, H W] D,           x = X E
    separable   Y [C H, 2 F] = x [C H, W] R,           X [C, 2 H, F] = L Y [C, 2 H, F],      and back by L', R'

Dense starts fewer operators, separable multiplies less; `dense` chooses. Both leave the two parts of a channel next to
each other, [B, C, 2, H, F] = [B, 2 C, H, F], so that the complex MLP is two grouped 1x1 convolutions. irfft2
reads the columns f = 0 and, for even W, f = W/2 once, and all others twice, for the conjugates that are not stored; it
ignores the imaginary part that a mask leaves where real maps have none. All matrices are made in float64.
Letters: B batch, C channels, H W, F frequency bins of W, k blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, define
from edgesmith.kernels.relax_calls import call_kernel, channels_first, channels_last, sizes

if TYPE_CHECKING:
    import numpy as np


ACTIVATIONS = ("silu", "relu")


def reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    threshold: float = 0.01,
    activation: str = "silu",
    masks: bool = True,
    dense: bool = False,
) -> Tensor:
    """Adaptive frequency filter of [B, C, H, W]. Returns [B, C, H, W].

    Args:
        x: [B, C, H, W], any H and W.
        w1, w2: layers of the MLP, [2, k, C/k, D] and [2, k, D, C/k]: real and imaginary part, block, input, output.
        b1, b2: [2, k, D] and [2, k, C/k].
        threshold: of the soft shrinkage, 0 or more.
        activation: between the two layers, `silu` or `relu`.
        masks: the spectrum is multiplied by what the MLP yields; otherwise that is the new spectrum.
        dense: how lowerings transform; the numbers are the same.
    """
    spectrum = torch.fft.rfft2(x, norm="ortho")  # [B, C, H, F]
    parts = torch.view_as_real(spectrum).unflatten(1, (w1.shape[1], -1)).permute(0, 3, 4, 5, 1, 2)
    hidden = (F.silu if activation == "silu" else F.relu)(_layer(parts, w1, b1))
    mask = F.softshrink(_layer(hidden, w2, b2), threshold).flatten(-2)  # [B, H, F, 2, C]
    mask = torch.complex(mask[..., 0, :], mask[..., 1, :]).permute(0, 3, 1, 2)
    made = mask * spectrum if masks else mask
    filtered: Tensor = torch.fft.irfft2(made, s=x.shape[-2:], norm="ortho")
    return filtered


def _layer(parts: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A block-diagonal complex linear layer on real and imaginary parts, [B, H, F, 2, k, I] -> [B, H, F, 2, k, O]."""
    products = torch.einsum("bhfrki,skio->bhfsrko", parts, weight)  # s, r: the part of the weight, of the value
    re = products[..., 0, 0, :, :] - products[..., 1, 1, :, :]
    im = products[..., 0, 1, :, :] + products[..., 1, 0, :, :]
    return torch.stack((re, im), dim=3) + bias


def shape(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    threshold: float = 0.01,
    activation: str = "silu",
    masks: bool = True,
    dense: bool = False,
) -> tuple[int, ...]:
    """[B, C, H, W]. Raises ValueError where a weight does not fit C, or the threshold is negative."""
    if x.dim() != 4:
        raise ValueError(f"fft_filter: x must be [B, C, H, W], got {list(x.shape)}")
    channels = x.shape[1]
    blocks = w1.shape[1] if w1.dim() == 4 and w1.shape[1] else 1
    if channels % blocks:
        raise ValueError(f"fft_filter: w1 must have a number of blocks that divides C = {channels}, got {blocks}")
    width = channels // blocks
    hidden = w1.shape[3] if w1.dim() == 4 else width
    first, second = [2, blocks, width, hidden], [2, blocks, hidden, width]
    wants = (("w1", w1, first), ("b1", b1, [2, blocks, hidden]), ("w2", w2, second), ("b2", b2, [2, blocks, width]))
    for name, weight, wanted in wants:
        if list(weight.shape) != wanted:
            raise ValueError(f"fft_filter: {name} must be {wanted}, got {list(weight.shape)} (C = {channels})")
    if activation not in ACTIVATIONS:
        raise ValueError(f"fft_filter: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if not threshold >= 0:
        raise ValueError(f"fft_filter: threshold must be 0 or more, got {threshold}")
    return tuple(x.shape)


def example(channels: int = 6, blocks: int = 2, height: int = 5, width: int = 6, batch: int = 1) -> tuple[Tensor, ...]:
    """Random arguments at unit scale: x, then weights that make masks neither dead nor all open."""
    generator = torch.Generator().manual_seed(0)
    size = channels // blocks
    shapes = ((2, blocks, size, size), (2, blocks, size)) * 2
    x = torch.randn(batch, channels, height, width, generator=generator)
    return x, *(0.4 * torch.randn(size, generator=generator) for size in shapes)


def dense_matrices(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The transform of a whole map and its inverse, [H W, 2 H F] and [2 H F, H W], float64."""
    import numpy as np

    columns, weights = _angles(width, width // 2 + 1), _weights(width)
    angle = _angles(height, height)[:, None, :, None] + columns[None, :, None, :]  # y, x, u, f
    wave = np.stack((np.cos(angle), -np.sin(angle)), axis=2) / np.sqrt(height * width)  # y, x, part, u, f
    forward = wave.reshape(height * width, -1)
    return forward, (wave * weights).reshape(height * width, -1).T


def separable_matrices(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """R [W, 2 F] and L [2 H, 2 H] of the transform, L' [2 H, 2 H] and R' [2 F, W] of its inverse, float64.

    L takes rows (y, part) to rows (part, u), L' rows (part, u) to rows (y, part). The norm 1 / sqrt(H W) is a power of
    two in R and R', and its rest in L and L': rounded to fp32 once, which a channel's mean keeps from the first filter
    to the last.
    """
    import numpy as np

    rows = 2.0 ** np.round(np.log2(width) / 2)  # about sqrt(W)
    columns = np.sqrt(height * width) / rows
    angle = _angles(width, width // 2 + 1)
    wave = np.stack((np.cos(angle), -np.sin(angle)), axis=1) / rows  # x, part, f
    angle = _angles(height, height)
    cos, sin = np.cos(angle) / columns, np.sin(angle) / columns  # y, u, symmetric
    inverse = np.stack((np.stack((cos, -sin), axis=1), np.stack((sin, cos), axis=1)), axis=1)  # y, part, part, u
    size = 2 * height
    back = inverse.reshape(size, size)
    return wave.reshape(width, -1), back.T, back, (wave * _weights(width)).reshape(width, -1).T


def _angles(size: int, bins: int) -> np.ndarray:
    """2 pi n k / size for n < size and k < bins; n k is reduced first, so that no angle loses digits."""
    import numpy as np

    return 2 * np.pi / size * (np.outer(np.arange(size), np.arange(bins)) % size)


def _weights(width: int) -> np.ndarray:
    """The number of times that the inverse reads each column of the half spectrum."""
    import numpy as np

    weights = np.full(width // 2 + 1, 2.0)
    weights[0] = 1
    if width % 2 == 0:
        weights[-1] = 1
    return weights


def _onnx_layer(value: Any, weight: Any, bias: Any) -> Any:
    """A block-diagonal complex linear layer on [B, 2 C, H, F], where the two parts of a channel are neighbours."""
    from onnxscript import opset20

    op: Any = opset20

    def shaped(value: Any, *sizes: int) -> Any:
        return op.Reshape(value, op.Constant(value_ints=sizes))

    _, blocks, size, made = map(int, weight.shape)
    weight = op.Transpose(weight, perm=[1, 3, 2, 0])  # [k, O, I, part]
    re, im = op.Split(weight, axis=3, num_outputs=2)
    matrix = op.Concat(op.Concat(re, op.Neg(im), axis=3), op.Concat(im, re, axis=3), axis=2)
    matrix = shaped(matrix, 2 * blocks * made, 2 * size, 1, 1)  # output channels (k, O, part), input ones (I, part)
    bias = shaped(op.Transpose(bias, perm=[1, 2, 0]), 2 * blocks * made)
    return op.Conv(value, matrix, bias, group=blocks, kernel_shape=[1, 1])


def lower_onnx(
    x: Any,
    w1: Any,
    b1: Any,
    w2: Any,
    b2: Any,
    threshold: float = 0.01,
    activation: str = "silu",
    masks: bool = True,
    dense: bool = False,
) -> Any:
    """ONNX: real matmuls and grouped convolutions, 23 nodes, 21 when dense; the weights' layout folds into constants.

    The soft shrinkage is `t - clip(t)`: ONNX Runtime's Shrink takes five times as long as the pair.
    """
    import numpy as np
    import onnx_ir as ir
    from onnxscript import opset20

    op: Any = opset20  # its stubs want numpy's types where the exporter takes values
    channels, height, width = map(int, x.shape[1:])
    bins = width // 2 + 1

    def constant(matrix: Any) -> Any:
        return op.Constant(value=ir.tensor(matrix.astype(x.dtype.numpy())))

    def shaped(value: Any, *sizes: int) -> Any:
        return op.Reshape(value, op.Constant(value_ints=sizes))

    def rows(value: Any, matrix: Any) -> Any:
        """A matmul from the left, as a convolution of every map for itself, [B C, 2 H, 1, F]: vectors run along H."""
        kernel = constant(matrix.reshape(2 * height, 2 * height, 1, 1))
        return op.Conv(value, kernel, kernel_shape=[1, 1])

    split: tuple[int, ...]
    if dense:
        forward, inverse = dense_matrices(height, width)
        spectrum = op.MatMul(shaped(x, 0, channels, height * width), constant(forward))
        axis, split = 2, (-1, channels, 2 * height * bins)
    else:
        right, left, inverse_left, inverse_right = separable_matrices(height, width)
        axis, split = 1, (-1, 2 * height, 1, bins)
        spectrum = rows(shaped(op.MatMul(x, constant(right)), *split), left)
    hidden = _onnx_layer(shaped(spectrum, -1, 2 * channels, height, bins), w1, b1)
    hidden = op.Mul(hidden, op.Sigmoid(hidden)) if activation == "silu" else op.Relu(hidden)
    opened = _onnx_layer(hidden, w2, b2)
    limit = constant(np.array(threshold))
    mask = op.Sub(opened, op.Clip(opened, op.Neg(limit), limit)) if threshold else opened
    product = shaped(mask, *split)
    if masks:
        re, im = op.Split(spectrum, axis=axis, num_outputs=2)
        mask_re, mask_im = op.Split(product, axis=axis, num_outputs=2)
        product_re = op.Sub(op.Mul(re, mask_re), op.Mul(im, mask_im))
        product_im = op.Add(op.Mul(re, mask_im), op.Mul(im, mask_re))
        product = op.Concat(product_re, product_im, axis=axis)
    if dense:
        return shaped(op.MatMul(product, constant(inverse)), 0, channels, height, width)
    return op.MatMul(shaped(rows(product, inverse_left), -1, channels, height, 2 * bins), constant(inverse_right))


def _coreml_product(spectrum: Any, mask: Any, axis: int) -> Any:
    """The product of two complex values, with real and imaginary part after each other along an axis."""
    from coremltools.converters.mil import Builder as mb

    re, im = mb.split(x=spectrum, num_splits=2, axis=axis)
    mask_re, mask_im = mb.split(x=mask, num_splits=2, axis=axis)
    product_re = mb.sub(x=mb.mul(x=re, y=mask_re), y=mb.mul(x=im, y=mask_im))
    product_im = mb.add(x=mb.mul(x=re, y=mask_im), y=mb.mul(x=im, y=mask_re))
    return mb.concat(values=[product_re, product_im], axis=axis)


def lower_coreml(
    x: Any,
    w1: Any,
    b1: Any,
    w2: Any,
    b2: Any,
    threshold: Any = 0.01,
    activation: Any = "silu",
    masks: Any = True,
    dense: Any = False,
) -> Any:
    """Core ML: the same, rank 4 throughout; the weights are laid out here, not on the device."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    (batch, channels, height, width), blocks = x.shape, w1.shape[1]
    bins = width // 2 + 1
    limit = np.float32(threshold)

    def layer(value: Any, weight: Any, bias: Any) -> Any:
        re, im = weight.val.transpose(0, 1, 3, 2)  # [k, O, I] each
        matrix = np.stack((np.stack((re, -im), axis=3), np.stack((im, re), axis=3)), axis=2)
        made, size = matrix.shape[1], matrix.shape[3]
        matrix = matrix.reshape(2 * blocks * made, 2 * size, 1, 1)  # output channels (k, O, part), input ones (I, part)
        return mb.conv(x=value, weight=matrix, bias=bias.val.transpose(1, 2, 0).reshape(-1), groups=blocks)

    def matmul(a: Any, b: Any) -> Any:
        a, b = (m.astype(np.float32) if isinstance(m, np.ndarray) else m for m in (a, b))
        return mb.matmul(x=a, y=b)

    if dense:
        forward, inverse = dense_matrices(height, width)
        flat = mb.reshape(x=x, shape=[batch, 1, channels, height * width])
        spectrum = matmul(flat, forward)  # [B, 1, C, 2 H F]
        axis = 3
    else:
        right, left, inverse_left, inverse_right = separable_matrices(height, width)
        columns = mb.reshape(x=matmul(x, right), shape=[batch, channels, 2 * height, bins])
        spectrum = matmul(left[None, None], columns)  # [B, C, 2 H, F]
        axis = 2
    parts = mb.reshape(x=spectrum, shape=[batch, 2 * channels, height, bins])
    activate = mb.silu if str(activation) == "silu" else mb.relu
    opened = layer(activate(x=layer(parts, w1, b1)), w2, b2)
    mask = mb.sub(x=opened, y=mb.clip(x=opened, alpha=-limit, beta=limit)) if threshold else opened
    mask = mb.reshape(x=mask, shape=spectrum.shape)
    masked = _coreml_product(spectrum, mask, axis) if masks else mask
    if dense:
        return mb.reshape(x=matmul(masked, inverse), shape=x.shape)
    rows = mb.reshape(x=matmul(inverse_left[None, None], masked), shape=[batch, channels, height, 2 * bins])
    return matmul(rows, inverse_right)


def for_coreai(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    threshold: float = 0.01,
    activation: str = "silu",
    masks: bool = True,
    dense: bool = False,
) -> Tensor:
    """Core AI: real matmuls and grouped convolutions, as for Core ML; the converter folds the weights' layout."""
    batch, channels, height, width = x.shape
    blocks = w1.shape[1]
    bins = width // 2 + 1

    def table(matrix: np.ndarray) -> Tensor:
        return torch.from_numpy(matrix.copy()).to(x.dtype)

    def layer(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        re, im = weight.transpose(2, 3).unbind(0)  # [k, O, I] each
        matrix = torch.stack((torch.stack((re, -im), dim=3), torch.stack((im, re), dim=3)), dim=2)
        matrix = matrix.reshape(2 * blocks * re.shape[1], -1, 1, 1)  # outputs (k, O, part), inputs (I, part)
        return F.conv2d(value, matrix, bias.permute(1, 2, 0).reshape(-1), groups=blocks)

    if dense:
        forward, inverse = dense_matrices(height, width)
        spectrum = x.reshape(batch, channels, height * width) @ table(forward)  # [B, C, 2 H F]
    else:
        right, left, inverse_left, inverse_right = separable_matrices(height, width)
        columns = (x @ table(right)).reshape(batch, channels, 2 * height, bins)
        spectrum = table(left) @ columns  # [B, C, 2 H, F]
    parts = spectrum.reshape(batch, 2 * channels, height, bins)
    mask = layer((F.silu if activation == "silu" else F.relu)(layer(parts, w1, b1)), w2, b2)
    mask = mask - mask.clamp(-threshold, threshold) if threshold else mask
    product = mask.reshape(spectrum.shape)
    if masks:
        (re, im), (mask_re, mask_im) = spectrum.chunk(2, dim=2), product.chunk(2, dim=2)
        product = torch.cat((re * mask_re - im * mask_im, re * mask_im + im * mask_re), dim=2)
    if dense:
        return (product @ table(inverse)).reshape(x.shape)
    rows = (table(inverse_left) @ product).reshape(batch, channels, height, 2 * bins)
    return rows @ table(inverse_right)


def lower_tvm(
    make: Any,
    x: Any,
    w1: Any,
    b1: Any,
    w2: Any,
    b2: Any,
    threshold: float = 0.01,
    activation: str = "silu",
    masks: bool = True,
    dense: bool = False,
) -> Any:
    """TVM: one kernel, native/fft_filter.h, which reads maps with their channels last."""
    batch, channels, height, width = sizes(x)
    shape = [batch, height, width, channels]
    literals = [threshold, float(activation == "relu"), float(masks)]
    made = call_kernel(make, OP.name, channels_last(make, x), (w1, b1, w2, b2), [shape], literals)
    return channels_first(make, made)


OP = define(
    FusedOp(
        name="fft_filter",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml, "tvm": lower_tvm},
        inlined={"coreai": for_coreai},
        centre=("aten.fft_rfft2", "aten.fft_irfft2"),
        is_region=True,
        variants=({"masks": False, "activation": "relu"}, {"masks": False}, {"activation": "relu"}),
        layouts=((0, 1, 2, 3), (0, 3, 1, 2)),
        tolerance=2e-6,
        literals={"threshold": 0.5},
        forms=({}, {"dense": True}),
        stays_float="a filter's spectrum spans too many magnitudes",
    )
)
