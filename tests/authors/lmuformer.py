"""LMUFormer and its spiking form in their authors' manner: a complex buffer, neurons that step through time in Python.

The neurons are spikingjelly's in what they compute: a state between calls, a surrogate for the gradient, outputs joined
of single steps. They are reset at the beginning of each sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgesmith.models.lmuformer import legendre


class _Heaviside(torch.autograd.Function):
    """A step forwards, a sigmoid's gradient backwards."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class MultiStepLIF(nn.Module):
    """[T, ...] to spikes [T, ...]."""

    def __init__(self, tau: float = 2.0, v_threshold: float = 1.0, v_reset: float | None = 0.0) -> None:
        super().__init__()
        self.tau, self.v_threshold, self.v_reset = tau, v_threshold, v_reset
        self.detach_reset = True
        self.v: float | Tensor = 0.0
        self.reset()

    def reset(self) -> None:
        self.v = 0.0 if self.v_reset is None else self.v_reset

    def neuronal_charge(self, x: Tensor) -> None:
        if self.v_reset is None or self.v_reset == 0.0:
            self.v = self.v + (x - self.v) / self.tau
        else:
            self.v = self.v + (x - (self.v - self.v_reset)) / self.tau

    def neuronal_reset(self, spike: Tensor) -> None:
        held = spike.detach() if self.detach_reset else spike
        if self.v_reset is None:
            self.v = self.v - held * self.v_threshold
        else:
            self.v = (1.0 - held) * self.v + held * self.v_reset

    def single_step(self, x: Tensor) -> Tensor:
        if isinstance(self.v, float):
            self.v = torch.full_like(x, self.v)
        self.neuronal_charge(x)
        assert isinstance(self.v, Tensor)
        spike = _Heaviside.apply(self.v - self.v_threshold)
        self.neuronal_reset(spike)
        return spike

    def forward(self, sequence: Tensor) -> Tensor:
        spikes = []
        for t in range(sequence.shape[0]):
            spikes.append(self.single_step(sequence[t]).unsqueeze(0))
        return torch.cat(spikes, 0)


def reset_net(model: nn.Module) -> None:
    """Forget what neurons hold of the sequence before."""
    for module in model.modules():
        if isinstance(module, MultiStepLIF):
            module.reset()


def _memory_state(module: nn.Module, order: int, theta: int, length: int) -> None:
    """A, B, the impulse response H and its spectrum, as buffers."""
    a, b = legendre(order, theta)
    columns = [b]
    for _ in range(length - 1):
        columns.append(a @ columns[-1])
    response = torch.cat(columns, dim=1)
    module.register_buffer("A", a)
    module.register_buffer("B", b)
    module.register_buffer("H", response)
    module.register_buffer("fft_H", torch.fft.rfft(response, n=2 * length, dim=-1))


class LMUFFT(nn.Module):
    """[B, T, C] to all hidden states [B, T, C'] and the last one."""

    fft_H: Tensor  # noqa: N815  # the state dict's name

    def __init__(self, input_size: int, hidden_size: int, memory_size: int, seq_len: int, theta: int) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.W_u = nn.Linear(input_size, 1)
        self.f_u = nn.ReLU()
        self.W_h = nn.Linear(memory_size + input_size, hidden_size)
        self.f_h = nn.ReLU()
        _memory_state(self, memory_size, theta, seq_len)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, seq_len, _ = x.shape
        u = self.f_u(self.W_u(x))
        fft_input = u.permute(0, 2, 1)
        fft_u = torch.fft.rfft(fft_input, n=2 * seq_len, dim=-1)
        product = fft_u * self.fft_H.unsqueeze(0)
        m = torch.fft.irfft(product, n=2 * seq_len, dim=-1)
        m = m[:, :, :seq_len].permute(0, 2, 1)
        h = self.f_h(self.W_h(torch.cat((m, x), dim=-1)))
        return h, h[:, -1, :]


class LMU(nn.Module):
    def __init__(self, dim: int, order: int, frames: int, theta: int) -> None:
        super().__init__()
        self.lmu = LMUFFT(dim, dim, order, frames, theta)
        self.proj_conv = nn.Conv1d(dim, dim, 1, 1)
        self.proj_bn = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, C]
        h, _ = self.lmu(x)
        return self.proj_bn(self.proj_conv(h.transpose(-1, -2).contiguous())).transpose(-1, -2).contiguous()


class ConvFFN(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_conv, self.fc1_bn, self.act1 = nn.Conv1d(dim, hidden, 1, 1), nn.BatchNorm1d(hidden), nn.GELU()
        self.fc2_conv, self.fc2_bn, self.act2 = nn.Conv1d(hidden, dim, 1, 1), nn.BatchNorm1d(dim), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # [B, T, C]
        x = x.transpose(-1, -2).contiguous()
        x = self.act1(self.fc1_bn(self.fc1_conv(x)))
        x = self.act2(self.fc2_bn(self.fc2_conv(x)))
        return x.transpose(-1, -2).contiguous()


class Block(nn.Module):
    def __init__(self, dim: int, order: int, mlp_ratio: int, frames: int, theta: int) -> None:
        super().__init__()
        self.attn = LMU(dim, order, frames, theta)
        self.mlp = ConvFFN(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Conv1dEmbedding(nn.Module):
    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        widths = [features, dim, dim, dim]
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(width, dim, 3, 1, 1, bias=False),
                    nn.Dropout(0.1),
                    nn.ReLU(inplace=True),
                    nn.BatchNorm1d(dim),
                )
                for width in widths
            )
        )
        self.rpe_conv = nn.Conv1d(dim, dim, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, F]
        x = self.conv_layers(x.squeeze(1).transpose(-1, -2))
        x = x + self.rpe_conv(x)
        return x.transpose(-1, -2).contiguous()


class LMUFormer(nn.Module):
    """[B, T, F] to logits [B, num_classes]."""

    def __init__(
        self,
        features: int = 128,
        dim: int = 256,
        depth: int = 1,
        order: int = 256,
        theta: int = 128,
        mlp_ratio: int = 4,
        frames: int = 128,
        num_classes: int = 35,
    ) -> None:
        super().__init__()
        self.patch_embed = Conv1dEmbedding(features, dim)
        self.block = nn.ModuleList([Block(dim, order, mlp_ratio, frames, theta) for _ in range(depth)])
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)  # the one channel of a spectrogram
        x = self.patch_embed(x)
        for block in self.block:
            x = block(x)
        return self.head(x).mean(1)


class SLMUFFT(nn.Module):
    """The spiking cell, [B, C, T] to [B, C', T]: batch norms and neurons on u, the memory and h."""

    fft_H: Tensor  # noqa: N815  # the state dict's name

    def __init__(self, input_size: int, hidden_size: int, memory_size: int, seq_len: int, theta: int) -> None:
        super().__init__()
        self.W_u, self.bn_u, self.f_u = nn.Linear(input_size, 1), nn.BatchNorm1d(1), MultiStepLIF()
        self.bn_m, self.f_m = nn.BatchNorm1d(memory_size), MultiStepLIF()
        self.W_h = nn.Linear(memory_size + input_size, hidden_size)
        self.bn_h, self.f_h = nn.BatchNorm1d(hidden_size), MultiStepLIF()
        _memory_state(self, memory_size, theta, seq_len)

    def forward(self, x: Tensor) -> Tensor:
        seq_len = x.shape[-1]
        u = self.bn_u(self.W_u(x.transpose(1, 2)).transpose(1, 2))  # [B, 1, T]
        u = _over_time(self.f_u, u)
        fft_u = torch.fft.rfft(u, n=2 * seq_len, dim=-1)
        m = torch.fft.irfft(fft_u * self.fft_H.unsqueeze(0), n=2 * seq_len, dim=-1)[:, :, :seq_len]
        m = _over_time(self.f_m, self.bn_m(m))
        h = self.W_h(torch.cat((m, x), dim=1).transpose(1, 2)).transpose(1, 2)
        return _over_time(self.f_h, self.bn_h(h))


def _over_time(neurons: MultiStepLIF, x: Tensor) -> Tensor:
    """Neurons along the last axis, which goes to the front and back again. [B, C, T] -> [B, C, T]"""
    return neurons(x.permute(2, 0, 1).contiguous()).permute(1, 2, 0).contiguous()


class SLMU(nn.Module):
    def __init__(self, dim: int, order: int, frames: int, theta: int) -> None:
        super().__init__()
        self.prev_bn, self.prev_lif = nn.BatchNorm1d(dim), MultiStepLIF(v_threshold=0.5)
        self.lmu = SLMUFFT(dim, dim, order, frames, theta)
        self.proj_conv, self.proj_bn = nn.Conv1d(dim, dim, 1, 1), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = _over_time(self.prev_lif, self.prev_bn(x))
        return self.proj_bn(self.proj_conv(self.lmu(x)))


class ConvFFNMs(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_bn, self.fc1_lif, self.fc1_conv = nn.BatchNorm1d(dim), MultiStepLIF(), nn.Conv1d(dim, hidden, 1, 1)
        self.fc2_bn, self.fc2_lif, self.fc2_conv = nn.BatchNorm1d(hidden), MultiStepLIF(), nn.Conv1d(hidden, dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1_conv(_over_time(self.fc1_lif, self.fc1_bn(x)))
        return self.fc2_conv(_over_time(self.fc2_lif, self.fc2_bn(x)))


class SpikingBlock(nn.Module):
    def __init__(self, dim: int, order: int, mlp_ratio: int, frames: int, theta: int) -> None:
        super().__init__()
        self.attn = SLMU(dim, order, frames, theta)
        self.mlp = ConvFFNMs(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class SpikingEmbedding(nn.Module):
    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        for i, suffix in enumerate(("", "1", "2", "3")):
            width = features if i == 0 else dim
            self.add_module(f"proj_conv{suffix}", nn.Conv1d(width, dim, 3, 1, 1, bias=False))
            self.add_module(f"proj_bn{suffix}", nn.BatchNorm1d(dim))
            self.add_module(f"proj_lif{suffix}", MultiStepLIF())
        self.rpe_conv = nn.Conv1d(dim, dim, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = _over_time(self.proj_lif, self.proj_bn(self.proj_conv(x)))
        x = _over_time(self.proj_lif1, self.proj_bn1(self.proj_conv1(x)))
        x = _over_time(self.proj_lif2, self.proj_bn2(self.proj_conv2(x)))
        x = self.proj_conv3(x)
        shortcut = x
        x = _over_time(self.proj_lif3, self.proj_bn3(x))
        return self.rpe_conv(x) + shortcut


class SpikingLMUFormer(nn.Module):
    """[B, T, F] to logits [B, num_classes]."""

    def __init__(
        self,
        features: int = 128,
        dim: int = 256,
        depth: int = 1,
        order: int = 512,
        theta: int = 128,
        mlp_ratio: int = 4,
        frames: int = 128,
        num_classes: int = 35,
    ) -> None:
        super().__init__()
        self.patch_embed = SpikingEmbedding(features, dim)
        self.block = nn.ModuleList([SpikingBlock(dim, order, mlp_ratio, frames, theta) for _ in range(depth)])
        self.head_bn, self.head_lif = nn.BatchNorm1d(dim), MultiStepLIF()
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        reset_net(self)
        x = self.patch_embed(x.transpose(-1, -2))
        for block in self.block:
            x = block(x)
        x = _over_time(self.head_lif, self.head_bn(x))
        return self.head(x.transpose(-1, -2)).mean(1)
