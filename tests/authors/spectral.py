"""Blocks that mix by Fourier transforms, each in its authors' manner and in another one.

GFNet (arXiv 2107.00645), AFNO (2111.13587), FNet (2105.03824), S4D (2206.11893) and Hyena (2302.10866).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalFilter(nn.Module):
    """GFNet's filter over a sequence of patches, [B, N, C]."""

    def __init__(self, dim: int, h: int, w: int) -> None:
        super().__init__()
        self.complex_weight = nn.Parameter(torch.randn(h, w // 2 + 1, dim, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        a = b = int(math.sqrt(N))
        x = x.view(B, a, b, C).to(torch.float32)
        x = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        weight = torch.view_as_complex(self.complex_weight)
        x = x * weight
        x = torch.fft.irfft2(x, s=(a, b), dim=(1, 2), norm="ortho")
        return x.reshape(B, N, C)


class GlobalFilterHalves(nn.Module):
    """The same on maps, with real and imaginary parts as tensors of their own."""

    def __init__(self, like: GlobalFilter) -> None:
        super().__init__()
        weight = like.complex_weight.detach().permute(3, 2, 0, 1).contiguous()
        self.re, self.im = nn.Parameter(weight[0].clone()), nn.Parameter(weight[1].clone())

    def forward(self, x: Tensor) -> Tensor:
        side = self.re.shape[1]
        maps = x.transpose(1, 2).unflatten(2, (side, side))
        spectrum = torch.fft.rfft(maps, norm="ortho")
        spectrum = torch.fft.fft(spectrum, dim=2, norm="ortho")
        re, im = spectrum.real, spectrum.imag
        product = torch.complex(re * self.re - im * self.im, re * self.im + im * self.re)
        y = torch.fft.irfft(torch.fft.ifft(product, dim=-2, norm="ortho"), n=side, norm="ortho")
        return y.flatten(2).transpose(1, 2)


class AFNO2D(nn.Module):
    """AFNO's mixer with the pieces written into zeros, as its authors have it."""

    def __init__(self, hidden_size: int, num_blocks: int = 2, factor: int = 1, hard_thresholding_fraction: float = 1.0):
        super().__init__()
        self.num_blocks, self.block_size = num_blocks, hidden_size // num_blocks
        self.factor, self.fraction, self.lambd = factor, hard_thresholding_fraction, 0.01
        self.act = F.relu
        size, wide = self.block_size, self.block_size * factor
        self.w1 = nn.Parameter(0.4 * torch.randn(2, num_blocks, size, wide))
        self.b1 = nn.Parameter(0.4 * torch.randn(2, num_blocks, wide))
        self.w2 = nn.Parameter(0.4 * torch.randn(2, num_blocks, wide, size))
        self.b2 = nn.Parameter(0.4 * torch.randn(2, num_blocks, size))

    def forward(self, x: Tensor) -> Tensor:
        bias = x
        dtype = x.dtype
        x = x.float()
        B, H, W, C = x.shape
        x = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        x = x.reshape(B, H, W // 2 + 1, self.num_blocks, self.block_size)
        wide = [B, H, W // 2 + 1, self.num_blocks, self.block_size * self.factor]
        o1_real, o1_imag = torch.zeros(wide, device=x.device), torch.zeros(wide, device=x.device)
        o2_real, o2_imag = torch.zeros(x.shape, device=x.device), torch.zeros(x.shape, device=x.device)
        total = H // 2 + 1
        kept = int(total * self.fraction)
        rows = slice(total - kept, total + kept)
        o1_real[:, rows, :kept] = self.act(
            torch.einsum("...bi,bio->...bo", x[:, rows, :kept].real, self.w1[0])
            - torch.einsum("...bi,bio->...bo", x[:, rows, :kept].imag, self.w1[1])
            + self.b1[0]
        )
        o1_imag[:, rows, :kept] = self.act(
            torch.einsum("...bi,bio->...bo", x[:, rows, :kept].imag, self.w1[0])
            + torch.einsum("...bi,bio->...bo", x[:, rows, :kept].real, self.w1[1])
            + self.b1[1]
        )
        o2_real[:, rows, :kept] = (
            torch.einsum("...bi,bio->...bo", o1_real[:, rows, :kept], self.w2[0])
            - torch.einsum("...bi,bio->...bo", o1_imag[:, rows, :kept], self.w2[1])
            + self.b2[0]
        )
        o2_imag[:, rows, :kept] = (
            torch.einsum("...bi,bio->...bo", o1_imag[:, rows, :kept], self.w2[0])
            + torch.einsum("...bi,bio->...bo", o1_real[:, rows, :kept], self.w2[1])
            + self.b2[1]
        )
        x = torch.stack([o2_real, o2_imag], dim=-1)
        x = F.softshrink(x, lambd=self.lambd)
        x = torch.view_as_complex(x)
        x = x.reshape(B, H, W // 2 + 1, C)
        x = torch.fft.irfft2(x, s=(H, W), dim=(1, 2), norm="ortho")
        return x.type(dtype) + bias


class AFNOComplex(nn.Module):
    """The same on maps [B, C, H, W] with complex weights, matmuls and halves only where the activation needs them."""

    def __init__(self, like: AFNO2D) -> None:
        super().__init__()
        self.w1, self.b1, self.w2, self.b2 = (
            nn.Parameter(torch.complex(*(half.contiguous() for half in p.detach().unbind(0))))
            for p in (like.w1, like.b1, like.w2, like.b2)
        )
        self.blocks = like.num_blocks

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        z = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        z = z.reshape(-1, self.blocks, c // self.blocks, h * (w // 2 + 1)).transpose(2, 3)
        z = torch.matmul(z, self.w1) + self.b1[:, None]
        z = torch.complex(z.real.clamp(min=0), z.imag.clamp(min=0))
        z = torch.matmul(z, self.w2) + self.b2[:, None]
        re, im = (torch.sign(part) * F.relu(part.abs() - 0.01) for part in (z.real, z.imag))
        z = torch.complex(re, im).transpose(2, 3).reshape(-1, c, h, w // 2 + 1)
        return x + torch.fft.irfftn(z, s=(h, w), dim=(-2, -1), norm="ortho")


class FNetFourier(nn.Module):
    """FNet's mixing of tokens and features, [B, N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real


class FNetPairs(nn.Module):
    """The same in one transform, read off pairs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fftn(x, dim=(-2, -1)))[..., 0]


class S4DKernel(nn.Module):
    """The kernel of a diagonal state space by a Vandermonde sum, at every call."""

    def __init__(self, d_model: int, n: int = 16, dt_min: float = 0.01, dt_max: float = 0.1) -> None:
        super().__init__()
        log_dt = torch.rand(d_model) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        self.C = nn.Parameter(torch.view_as_real(torch.randn(d_model, n // 2, dtype=torch.cfloat)))
        self.log_dt = nn.Parameter(log_dt)
        self.log_A_real = nn.Parameter(torch.log(0.5 * torch.ones(d_model, n // 2)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(n // 2).repeat(d_model, 1).float())

    def forward(self, length: int) -> Tensor:
        dt = torch.exp(self.log_dt)
        C = torch.view_as_complex(self.C)
        A = -torch.exp(self.log_A_real) + 1j * self.A_imag
        dtA = A * dt.unsqueeze(-1)
        K = dtA.unsqueeze(-1) * torch.arange(length, device=A.device)
        C = C * (torch.exp(dtA) - 1.0) / A
        return 2 * torch.einsum("hn, hnl -> hl", C, torch.exp(K)).real


class S4D(nn.Module):
    """A layer, [B, H, L]."""

    def __init__(self, d_model: int, d_state: int = 16) -> None:
        super().__init__()
        self.h = d_model
        self.D = nn.Parameter(torch.randn(d_model))
        self.kernel = S4DKernel(d_model, d_state)
        self.activation, self.dropout = nn.GELU(), nn.Dropout(0.1)
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, kernel_size=1), nn.GLU(dim=-2))

    def forward(self, u: Tensor) -> Tensor:
        L = u.size(-1)
        k = self.kernel(length=L)
        k_f = torch.fft.rfft(k, n=2 * L)
        u_f = torch.fft.rfft(u, n=2 * L)
        y = torch.fft.irfft(u_f * k_f, n=2 * L)[..., :L]
        y = y + u * self.D.unsqueeze(-1)
        y = self.dropout(self.activation(y))
        return self.output_linear(y)


class S4DChannelsLast(nn.Module):
    """The same with zeros put behind the signal, complex transforms, and features last until the layer after it."""

    def __init__(self, like: S4D) -> None:
        super().__init__()
        self.of = like

    def forward(self, u: Tensor) -> Tensor:
        u = u.permute(0, 2, 1)
        length, kernel = u.shape[1], self.of.kernel
        rate = torch.exp(
            torch.complex(-kernel.log_A_real.exp(), kernel.A_imag) * kernel.log_dt.exp()[:, None]
        )  # [H, N]
        weight = torch.view_as_complex(kernel.C) * (rate - 1) / torch.complex(-kernel.log_A_real.exp(), kernel.A_imag)
        powers = torch.cumprod(
            torch.cat([torch.ones_like(rate)[..., None], rate[..., None].expand(-1, -1, length - 1)], -1), -1
        )
        k = 2 * (weight[..., None] * powers).sum(1).real.t()  # [L, H]
        spectrum = torch.fft.fft(F.pad(u, (0, 0, 0, length)), dim=1) * torch.fft.fft(F.pad(k, (0, 0, 0, length)), dim=0)
        y = torch.narrow(torch.fft.ifft(spectrum, dim=1).real, 1, 0, length)
        y = torch.addcmul(y, u, self.of.D)
        y = F.gelu(y).mT
        a, b = torch.chunk(self.of.output_linear[0](y), 2, dim=1)
        return a * torch.sigmoid(b)


def fftconv(u: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Hyena's long convolution."""
    seqlen = u.shape[-1]
    fft_size = 2 * seqlen
    k_f = torch.fft.rfft(k, n=fft_size) / fft_size
    u_f = torch.fft.rfft(u.to(dtype=k.dtype), n=fft_size)
    if len(u.shape) > 3:
        k_f = k_f.unsqueeze(1)
    y = torch.fft.irfft(u_f * k_f, n=fft_size, norm="forward")[..., :seqlen]
    out = y + u * bias.unsqueeze(-1)
    return out.to(dtype=u.dtype)


class Sin(nn.Module):
    """A sine with learned frequencies."""

    def __init__(self, dim: int, w: float = 10) -> None:
        super().__init__()
        self.freq = nn.Parameter(w * torch.ones(1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.freq * x)


class HyenaFilter(nn.Module):
    """An implicit filter: an MLP of positions, with an exponential window."""

    def __init__(self, d_model: int, emb_dim: int = 3, order: int = 8, seq_len: int = 64) -> None:
        super().__init__()
        t = torch.linspace(0, 1, seq_len)[None, :, None]
        w = 2 * math.pi * torch.linspace(0, seq_len - 1, seq_len)[None, :, None] / seq_len
        f = torch.linspace(1e-4, (emb_dim - 1) // 2 - 1, (emb_dim - 1) // 2)[None, None]
        z = torch.exp(-1j * f * w)
        self.z = nn.Parameter(torch.cat([t, z.real, z.imag], dim=-1))
        self.register_buffer("t", t)
        self.bias = nn.Parameter(torch.randn(d_model))
        act = Sin(order)
        self.implicit_filter = nn.Sequential(
            nn.Linear(emb_dim, order), act, nn.Linear(order, order), act, nn.Linear(order, d_model, bias=False)
        )
        max_decay, min_decay = math.log(1e-2) / 0.3, math.log(1e-2) / 1.5
        self.deltas = nn.Parameter(torch.linspace(min_decay, max_decay, d_model)[None, None])

    def filter(self, length: int) -> Tensor:
        """The kernel, [1, L, D]."""
        h = self.implicit_filter(self.z[:, :length])
        return h * (torch.exp(-self.t[:, :length] * self.deltas.abs()) + 0.05)

    def forward(self, x: Tensor, length: int) -> Tensor:
        k = self.filter(length)
        k = k[0] if isinstance(k, tuple) else k
        return fftconv(x, k.squeeze(0).transpose(0, 1), self.bias)


class Hyena(nn.Module):
    """An operator of order 2, [B, L, D]."""

    def __init__(self, d_model: int, l_max: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.short_filter = nn.Conv1d(3 * d_model, 3 * d_model, 3, padding=2, groups=3 * d_model)
        self.filter_fn = HyenaFilter(d_model, seq_len=l_max)
        self.d_model = d_model

    def forward(self, u: Tensor) -> Tensor:
        length = u.size(-2)
        u = self.in_proj(u).transpose(1, 2)
        uc = self.short_filter(u)[..., :length]
        *x, v = uc.split(self.d_model, dim=1)
        for x_i in reversed(x[1:]):
            v = self.filter_fn(v * x_i, length)
        return self.out_proj((v * x[0]).transpose(1, 2))


class HyenaHeads(nn.Module):
    """The same with an axis for heads, transforms to another length, and the direct path in the kernel."""

    def __init__(self, like: Hyena) -> None:
        super().__init__()
        self.of = like

    def forward(self, u: Tensor) -> Tensor:
        of = self.of
        _, length, width = u.shape
        maps = F.conv1d(
            F.pad(of.in_proj(u).transpose(1, 2), (2, 0)), of.short_filter.weight, of.short_filter.bias, groups=3 * width
        )
        first, second, value = maps.unflatten(1, (3, width)).unbind(1)
        impulse = torch.zeros(width, length)
        impulse[:, 0] = of.filter_fn.bias
        k = of.filter_fn.filter(length)[0].T + impulse
        size = 2 * length + 4
        signal = (value * second).unsqueeze(1)
        y = torch.fft.irfft(torch.einsum("bhdf,df->bhdf", torch.fft.rfft(signal, size), torch.fft.rfft(k, size)), size)
        y = y[..., 0:length].squeeze(1)
        return F.linear((y * first).permute(0, 2, 1), of.out_proj.weight, of.out_proj.bias)


def gfnet() -> tuple[nn.Module, Tensor]:
    """A filter as large as GFNet-XS's."""
    return GlobalFilter(64, 14, 14), torch.randn(1, 196, 64)


def afno() -> tuple[nn.Module, Tensor]:
    """A mixer of 64 channels on a map of 14 x 14."""
    return AFNO2D(64, 8), torch.randn(1, 14, 14, 64)


def fnet() -> tuple[nn.Module, Tensor]:
    """A sequence of 128 tokens of 128 features."""
    return FNetFourier(), torch.randn(1, 128, 128)


def s4d() -> tuple[nn.Module, Tensor]:
    """A layer of 64 channels over 256 steps."""
    return S4D(64, 64), torch.randn(1, 64, 256)


def hyena() -> tuple[nn.Module, Tensor]:
    """An operator of width 64 over 256 steps."""
    return Hyena(64, 256), torch.randn(1, 256, 64)
