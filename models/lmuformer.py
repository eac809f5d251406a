"""LMUFormer and its spiking form: Legendre memories instead of attention, for sequences, in export-friendly PyTorch.

    tokens   4 x (conv k3, ReLU, BN), then x + conv k3 (x)                          [B, T, F] -> [B, C, T]
    block    x + proj(h),  u = relu(W_u x),  m = memory(u),  h = relu(W_h [m; x])   the only mixing over time
             x + ffn(x)
    head     linear(mean over time); with `any_time`, at every frame the mean up to it

The spiking form has batch norms and leaky integrate-and-fire neurons (LIF) instead of ReLU and GELU, before each
convolution instead of after it, and what passes between layers are spikes; the residual stream is real-valued.
The psMNIST models are one memory cell on single pixels, as in the paper's comparison with other recurrent networks.

Source: Liu et al., "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units", ICLR 2024, arXiv
2402.04882. Module names follow the authors' state dicts, so their checkpoints load as they are.
Letters: B batch, T frames, F features, C channels, M memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.errors import CheckpointError
from edgesmith.kernels import lif, lmu_memory
from edgesmith.kernels.lmu_memory import impulse_response


def legendre(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """A [M, M] and b [M, 1] of a Legendre memory, float32: a window of `theta` steps in `order` polynomials.

    d theta m / dt = A' m + b' u with A'_ij = (2i + 1) (-1 if i < j else (-1)^(i-j+1)), b'_i = (2i + 1) (-1)^i, held
    constant over one step (zero-order hold): the exponential of [[A', b'], [0, 0]] / theta, in float64.
    """
    i = torch.arange(order, dtype=torch.float64)
    below = (-1.0) ** (i[:, None] - i[None, :] + 1)
    continuous = torch.zeros(order + 1, order + 1, dtype=torch.float64)
    continuous[:order, :order] = (2 * i[:, None] + 1) * torch.where(i[:, None] < i[None, :], -1.0, below)
    continuous[:order, order] = (2 * i + 1) * (-1.0) ** i
    discrete = torch.linalg.matrix_exp(continuous / theta)
    return discrete[:order, :order].float(), discrete[:order, order:].float()


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons along the last axis, tau 2, hard reset to 0. [..., T] -> spikes [..., T]"""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = lif.OP.overload(x, 2.0, self.threshold)
        return spikes

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"


def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer over axis 1. [B, C, T] -> [B, C', T]"""
    return F.conv1d(x, linear.weight.unsqueeze(-1), linear.bias)


class LegendreMemory(nn.Module):
    """u from the input, the memory of u, h from memory and input. [B, C, T] -> [B, C', T]

    Args:
        dim: channels C of the input.
        order: size M of the memory.
        hidden: channels C' of the output.
        theta: window of the memory, in frames.
        frames: length T of the sequences.
        spiking: LIF neurons instead of ReLU.
        normed: with a batch norm before each of them, and neurons on the memory too.
    """

    def __init__(
        self, dim: int, order: int, hidden: int, theta: float, frames: int, spiking: bool, normed: bool = True
    ) -> None:
        super().__init__()
        self.A: Tensor
        self.B: Tensor
        self.H: Tensor
        a, b = legendre(order, theta)
        self.register_buffer("A", a)
        self.register_buffer("B", b)
        self.register_buffer("H", impulse_response(a, b[:, 0], frames))
        self.W_u = nn.Linear(dim, 1)
        self.W_h = nn.Linear(order + dim, hidden)
        is_normed = spiking and normed
        self.bn_u = nn.BatchNorm1d(1) if is_normed else nn.Identity()
        self.bn_m = nn.BatchNorm1d(order) if is_normed else nn.Identity()
        self.bn_h = nn.BatchNorm1d(hidden) if is_normed else nn.Identity()
        self.f_u = LIF() if spiking else nn.ReLU()
        self.f_m = LIF() if is_normed else nn.Identity()
        self.f_h = LIF() if spiking else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        u = self.f_u(self.bn_u(pointwise(self.W_u, x)))  # [B, 1, T]
        m = self.f_m(self.bn_m(self.memory(u.squeeze(1))))  # [B, M, T]
        return self.f_h(self.bn_h(pointwise(self.W_h, torch.cat((m, x), dim=1))))

    def memory(self, u: Tensor) -> Tensor:
        """The memory of a signal. [B, T] -> [B, M, T]"""
        m: Tensor = lmu_memory.OP.overload(u, self.H, self.A, self.B[:, 0])
        return m


def _conv3(width: int, dim: int) -> nn.Conv1d:
    return nn.Conv1d(width, dim, 3, padding=1, bias=False)


class Tokens(nn.Module):
    """Four convolutions of frames with their neighbours, ReLU before BN, and a residual one. [B, F, T] -> [B, C, T]"""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(_conv3(width, dim), nn.Identity(), nn.ReLU(), nn.BatchNorm1d(dim))
                for width in (features, dim, dim, dim)
            )
        )
        self.rpe_conv = _conv3(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_layers(x)
        return x + self.rpe_conv(x)


class SpikingTokens(nn.Module):
    """The same with LIF neurons; the last sum is real-valued. [B, F, T] -> [B, C, T]"""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.proj_conv, self.proj_bn, self.proj_lif = _conv3(features, dim), nn.BatchNorm1d(dim), LIF()
        self.proj_conv1, self.proj_bn1, self.proj_lif1 = _conv3(dim, dim), nn.BatchNorm1d(dim), LIF()
        self.proj_conv2, self.proj_bn2, self.proj_lif2 = _conv3(dim, dim), nn.BatchNorm1d(dim), LIF()
        self.proj_conv3, self.proj_bn3, self.proj_lif3 = _conv3(dim, dim), nn.BatchNorm1d(dim), LIF()
        self.rpe_conv = _conv3(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj_lif(self.proj_bn(self.proj_conv(x)))
        x = self.proj_lif1(self.proj_bn1(self.proj_conv1(x)))
        x = self.proj_lif2(self.proj_bn2(self.proj_conv2(x)))
        x = self.proj_conv3(x)
        return x + self.rpe_conv(self.proj_lif3(self.proj_bn3(x)))


class Mixer(nn.Module):
    """A memory and its projection. [B, C, T] -> [B, C, T]"""

    def __init__(self, dim: int, order: int, theta: float, frames: int, spiking: bool) -> None:
        super().__init__()
        self.spiking = spiking
        if spiking:
            self.prev_bn, self.prev_lif = nn.BatchNorm1d(dim), LIF(threshold=0.5)
        self.lmu = LegendreMemory(dim, order, dim, theta, frames, spiking)
        self.proj_conv = nn.Conv1d(dim, dim, 1)
        self.proj_bn = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.spiking:
            x = self.prev_lif(self.prev_bn(x))
        return self.proj_bn(self.proj_conv(self.lmu(x)))


class FeedForward(nn.Module):
    """conv k1, BN, GELU, conv k1, BN, ReLU. [B, C, T] -> [B, C, T]"""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_conv, self.fc1_bn = nn.Conv1d(dim, hidden, 1), nn.BatchNorm1d(hidden)
        self.fc2_conv, self.fc2_bn = nn.Conv1d(hidden, dim, 1), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1_bn(self.fc1_conv(x)))
        return F.relu(self.fc2_bn(self.fc2_conv(x)))


class SpikingFeedForward(nn.Module):
    """BN, LIF, conv k1, twice. [B, C, T] -> [B, C, T]"""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_bn, self.fc1_lif, self.fc1_conv = nn.BatchNorm1d(dim), LIF(), nn.Conv1d(dim, hidden, 1)
        self.fc2_bn, self.fc2_lif, self.fc2_conv = nn.BatchNorm1d(hidden), LIF(), nn.Conv1d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1_conv(self.fc1_lif(self.fc1_bn(x)))
        return self.fc2_conv(self.fc2_lif(self.fc2_bn(x)))


class Block(nn.Module):
    """Two residual branches: memory and feed-forward. [B, C, T] -> [B, C, T]"""

    def __init__(self, dim: int, order: int, mlp_ratio: int, theta: float, frames: int, spiking: bool) -> None:
        super().__init__()
        self.attn = Mixer(dim, order, theta, frames, spiking)
        self.mlp = (SpikingFeedForward if spiking else FeedForward)(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class LMUFormer(nn.Module):
    """LMUFormer for classification.

    Args:
        features: F, width of a frame.
        dim: channels C.
        depth: blocks.
        order: size M of the memories.
        theta: window of the memories, in frames.
        frames: length T of the sequences.
        num_classes: width of the head.
        spiking: the spiking form.
        any_time: return the prediction at every frame, from all frames up to it and what the convolutions look ahead.

    Shapes: [B, T, F] to logits [B, num_classes], or [B, T, num_classes] with `any_time`.
    """

    def __init__(
        self,
        features: int = 128,
        dim: int = 256,
        depth: int = 1,
        order: int = 256,
        theta: float = 128,
        mlp_ratio: int = 4,
        frames: int = 128,
        num_classes: int = 35,
        spiking: bool = False,
        any_time: bool = False,
    ) -> None:
        super().__init__()
        self.any_time = any_time
        self.spiking = spiking
        self.patch_embed = (SpikingTokens if spiking else Tokens)(features, dim)
        self.block = nn.Sequential(*(Block(dim, order, mlp_ratio, theta, frames, spiking) for _ in range(depth)))
        if spiking:
            self.head_bn, self.head_lif = nn.BatchNorm1d(dim), LIF()
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.patch_embed(x.transpose(1, 2)))  # [B, C, T]
        if self.spiking:
            x = self.head_lif(self.head_bn(x))
        return self.head(_running_mean(x).transpose(1, 2) if self.any_time else x.mean(2))


class PixelLMU(nn.Module):
    """One memory cell that reads an image pixel by pixel.

    Args:
        hidden, order, theta: of the memory, see `LegendreMemory`.
        frames: pixels.
        num_classes: width of the head.
        spiking: the spiking form, which reads the pixels themselves and answers at the last one; the other form widens
            each pixel to three values and averages over time.

    Shapes: [B, T, 1] to logits [B, num_classes].
    """

    def __init__(
        self,
        hidden: int = 346,
        order: int = 468,
        theta: float = 784,
        frames: int = 784,
        num_classes: int = 10,
        spiking: bool = False,
    ) -> None:
        super().__init__()
        self.spiking = spiking
        width = 1 if spiking else 3
        if not spiking:
            self.conv1, self.bn1 = nn.Conv1d(1, width, 1), nn.BatchNorm1d(width)
        self.lmu_fft = LegendreMemory(width, order, hidden, theta, frames, spiking, normed=False)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)  # [B, 1, T]
        if self.spiking:
            return self.classifier(self.lmu_fft(x)[:, :, -1])
        return self.classifier(self.lmu_fft(self.bn1(self.conv1(x))).mean(2))


def _running_mean(x: Tensor) -> Tensor:
    """The mean over all frames up to each one. [B, C, T] -> [B, C, T]"""
    return x.cumsum(2) / torch.arange(1, x.shape[2] + 1, dtype=x.dtype)


def lmuformer(**options: Any) -> LMUFormer:
    """LMUFormer for Speech Commands V2. Options: `frames`, `num_classes`, `any_time` of `LMUFormer`."""
    return LMUFormer(**options)


def spiking_lmuformer(**options: Any) -> LMUFormer:
    """Spiking LMUFormer for Speech Commands V2, with twice the memory. Options as for `lmuformer`."""
    return LMUFormer(order=512, spiking=True, **options)


def lmuformer_psmnist(**options: Any) -> PixelLMU:
    """The memory cell for permuted sequential MNIST. Options: `frames`, `num_classes` of `PixelLMU`."""
    return PixelLMU(**options)


def spiking_lmuformer_psmnist(**options: Any) -> PixelLMU:
    """The spiking memory cell for permuted sequential MNIST. Options as for `lmuformer_psmnist`."""
    return PixelLMU(spiking=True, **options)


def settle(model: nn.Module) -> None:
    """Give a spiking model with random weights currents at which its neurons fire.

    At initial weights hardly any potential reaches its threshold, and a model that is silent shows nothing about an
    export. So batch norms take the statistics of eight random sequences, as training would give them, and where there
    are none the layer before the neurons is brought to currents of mean 0 and variance 1.
    """
    if not any(isinstance(module, LIF) for module in model.modules()):
        return
    memory = next(module for module in model.modules() if isinstance(module, LegendreMemory))
    first = next((module for module in model.modules() if isinstance(module, nn.Conv1d)), None)
    features = 1 if first is None else first.in_channels
    x = torch.randn(8, memory.H.shape[1], features)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(x)
        if not norms:
            _normalise_currents(model, memory, x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def _normalise_currents(model: nn.Module, memory: LegendreMemory, x: Tensor) -> None:
    for neurons, layer in ((memory.f_u, memory.W_u), (memory.f_h, memory.W_h)):
        currents: list[Tensor] = []
        hook = neurons.register_forward_pre_hook(lambda _, args, found=currents: found.append(args[0]))
        model(x)
        hook.remove()
        mean, deviation = currents[0].mean(), currents[0].std()
        layer.weight.div_(deviation)
        layer.bias.sub_(mean).div_(deviation)


def _is_plain(x: Tensor) -> bool:
    """Return whether a tensor is one of numbers that can be computed with."""
    plain = x.layout == torch.strided and not x.is_quantized and not x.is_meta
    return plain and x.is_floating_point() and x.numel() > 0


def from_checkpoint(
    state: dict[str, Tensor], frames: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the variant: builder options, the tensors to load, and notes for the user.

    The authors' checkpoints hold each memory four times: A, B, their impulse response H for 128 frames, and its Fourier
    transform `fft_H`, which is left out. For another number of frames H is computed from A and B.

    Raises:
        CheckpointError: H is not the impulse response of A and B.
    """
    options: dict[str, Any] = {}
    notes = []
    spectra = [key for key in state if key.endswith(".fft_H")]
    state = {key: value for key, value in state.items() if key not in spectra}
    if spectra:
        notes.append(f"{spectra[0]} is the Fourier transform of H and was left out")
    for key in [key for key in state if key == "H" or key.endswith(".H")]:
        system = _system(state, key)
        if system is None:
            continue
        stored = state[key]
        options["frames"] = frames or stored.shape[1]
        response = _checked_response(key, stored, *system, options["frames"])
        if options["frames"] != stored.shape[1]:
            state[key] = response
            notes.append(
                f"{key} was computed from A and B for {frames} frames; the checkpoint's is for {stored.shape[1]}"
            )
    head = state.get("head.weight", state.get("classifier.weight"))
    if head is not None and head.dim() == 2:
        options["num_classes"] = head.shape[0]
    return options, state, notes


def _system(state: dict[str, Tensor], key: str) -> tuple[Tensor, Tensor] | None:
    """A and B beside an impulse response; None where they are not there or do not fit, as the loader will say."""
    a, b, stored = state.get(f"{key[:-1]}A"), state.get(f"{key[:-1]}B"), state[key]
    if a is None or b is None or not all(_is_plain(x) for x in (a, b, stored)):
        return None
    if stored.dim() != 2 or a.shape != (len(stored),) * 2 or b.numel() != len(a):
        return None
    return a, b


def _checked_response(key: str, stored: Tensor, a: Tensor, b: Tensor, length: int) -> Tensor:
    """The impulse response of A and B, [M, length]. Raises CheckpointError where the stored one is another."""
    response = impulse_response(a.float(), b.float().reshape(-1), max(length, stored.shape[1]))
    error = float((response[:, : stored.shape[1]] - stored).abs().max())
    is_exact = stored.element_size() >= 4 and a.element_size() >= 4  # powers of rounded numbers say little
    if is_exact and not error <= 1e-4 * float(stored.abs().max()):
        raise CheckpointError(f"the checkpoint is damaged: {key} is not the impulse response of A and B beside it")
    return response[:, :length]
