"""The zoo's sequence models as other engineers would write them: loops over time, axes by name, softmax attention.

Each takes a model of the zoo, for its weights, and computes the same. Nothing here calls a module of the zoo.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from authors.third_vision import _linear, _norm


def _selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """States [B, D, N] in a loop, kept in a list, and read all at once."""
    decay = torch.exp(torch.einsum("btd,dn->btdn", delta, a))
    driven = torch.einsum("btd,btn->btdn", delta * x, b)
    state, states = torch.zeros_like(driven[:, 0]), []
    for t in range(x.shape[1]):
        state = torch.addcmul(driven[:, t], decay[:, t], state)
        states.append(state)
    return torch.einsum("btdn,btn->btd", torch.stack(states, dim=1), c)


class TDSM(nn.Module):
    """TDSM with gathers, one concatenation of all heads, and scores by einsum."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    @staticmethod
    def _attend(x: Tensor, of: nn.Module) -> Tensor:
        b, n, d = x.shape
        q, k, v = _linear(x, of.qkv).view(b, n, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * (d // 4) ** -0.5
        y = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        return _linear(y.permute(0, 2, 1, 3).reshape(b, n, d), of.proj)

    def forward(self, c: Tensor, t: Tensor) -> Tensor:
        of = self.of
        b, frames, dim = c.shape
        rows = of.scale_shift_table[None] + t.view(b, 6, dim)
        shift, scale, gate = rows[:, 0:1], rows[:, 1:2], rows[:, 2:3]
        z = torch.addcmul(shift, F.layer_norm(c, [dim], eps=1e-6), scale + 1)
        u = torch.take_along_dim(z.reshape(b, -1), of.index.expand(b, -1), dim=1)
        mixed, start = [], 0
        for width, expert in zip(of.widths, of.experts_attn, strict=True):
            part = u[:, start : start + frames * width].view(b * 4, frames // 4, width)
            mixed.append(self._attend(part, expert.attn).view(b, -1))
            start += frames * width
        y = torch.cat(mixed, 1)[:, of.inverse].view(b, frames, dim)
        return torch.addcmul(c, y, gate)


class Hydra(nn.Module):
    """Hydra with a loop over time in each direction, groups spread by expand, and the gated norm by hand."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def _one_way(self, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Outputs [B, T, H, P], each of the steps before it."""
        state = torch.zeros(x.shape[0], *x.shape[2:], b.shape[-1])
        outputs = [torch.zeros_like(x[:, 0])]
        for t in range(x.shape[1] - 1):
            kept = (delta[:, t] * a).exp()[..., None, None] * state
            state = kept + torch.einsum("bhp,bhn->bhpn", x[:, t] * delta[:, t, :, None], b[:, t])
            outputs.append(torch.einsum("bhpn,bhn->bhp", state, c[:, t]))
        return torch.stack(outputs, 1)

    def forward(self, u: Tensor) -> Tensor:
        of = self.of
        length = u.shape[1]
        z, mixed, steps = torch.split(F.linear(u, of.in_proj.weight), of.sizes, -1)
        mixed = F.conv1d(mixed.mT, of.conv1d.weight, of.conv1d.bias, padding=of.conv1d.padding, groups=of.conv1d.groups)
        mixed = (mixed * mixed.sigmoid()).mT
        inner = of.sizes[0]
        flat, rows = mixed[..., :inner], mixed[..., inner:].unflatten(-1, (4, of.groups, of.state))
        rows = rows.unsqueeze(4).expand(-1, -1, -1, -1, of.heads // of.groups, -1).flatten(3, 4)
        x = flat.unflatten(-1, (of.heads, -1))
        delta = F.softplus(steps.unflatten(-1, (2, of.heads)) + of.dt_bias)
        a = -of.A_log.exp()
        forward = self._one_way(x, delta[:, :, 0], a, rows[:, :, 0], rows[:, :, 1])
        backward = self._one_way(
            x.flip(1), delta[:, :, 1].flip(1), a, rows[:, :, 2].flip(1), rows[:, :, 3].flip(1)
        ).flip(1)
        y = forward + backward + (F.linear(flat, of.fc_D.weight) + of.D).unsqueeze(-1) * x
        y = y.reshape(-1, length, inner)
        y = y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + of.norm.eps) * of.norm.weight
        return F.linear(y * (z * torch.sigmoid(z)), of.out_proj.weight)


class _Averaged:
    """Weighted averages of all earlier outputs, as a product with a stack of them."""

    @staticmethod
    def of(average: nn.Module, values: list[Tensor]) -> Tensor:
        return torch.tensordot(torch.stack(values, dim=-1), average.weight, dims=([-1], [0]))


class ViM2(nn.Module):
    """ViM2 with loops for its scans, orders by index, and patches merged by a rearrangement."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def _cross(self, x: Tensor, of: nn.Module) -> Tensor:
        """[B, D, h, w] -> [B, L, D]"""
        b, d, h, w = x.shape
        number = torch.arange(h * w)
        columns = number.view(h, w).t().flatten()
        y = torch.zeros(b, h * w, d)
        for k, order in enumerate((number, columns, number.flip(0), columns.flip(0))):
            u = x.flatten(2).mT.index_select(1, order)
            steps, rows_b, rows_c = (u @ of.x_proj_weight[k].T).split(of.sizes, -1)
            delta = F.softplus(steps @ of.dt_projs_weight[k].T + of.dt_projs_bias[k])
            a = -torch.exp(of.A_logs[k * d : (k + 1) * d])
            one = _selective_scan(u, delta, a, rows_b, rows_c) + of.Ds[k * d : (k + 1) * d] * u
            y = y + one.index_select(1, torch.argsort(order))
        return y

    def _token(self, x: Tensor, of: nn.Module) -> Tensor:
        u, z = F.linear(_norm(x, of.norm), of.in_proj.weight).tensor_split(2, -1)
        u = F.conv2d(u.movedim(-1, 1), of.conv2d.weight, of.conv2d.bias, padding=1, groups=of.conv2d.groups)
        y = _norm(self._cross(F.silu(u), of.scan), of.out_norm).view(z.shape)
        return F.linear(y * (z * z.sigmoid()), of.out_proj.weight)

    def _channel(self, x: Tensor, of: nn.Module) -> Tensor:
        u = F.linear(_norm(x, of.norm), of.in_proj.weight)
        u = u * u.sigmoid()
        steps = u.reshape(-1, u.shape[-1] // of.group, of.group)
        total = 0
        for scan, turns in ((of.forwards, False), (of.backwards, True)):
            s = torch.flip(steps, [1]) if turns else steps
            raw, b, c = torch.split(F.linear(s, scan.x_proj.weight), scan.sizes, dim=-1)
            y = _selective_scan(s, F.softplus(_linear(raw, scan.dt_proj)), -scan.A_log.exp(), b, c) + s * scan.D
            total = total + (torch.flip(y, [1]) if turns else y)
        return F.linear(total.view(u.shape), of.out_proj.weight)

    def forward(self, image: Tensor) -> Tensor:
        of = self.of
        x = F.conv2d(image, of.stem.weight, of.stem.bias, stride=4)
        x = _norm(x.movedim(1, -1), of.stem_norm)
        for i, stage in enumerate(of.stages):
            if i:
                merge = of.merges[i - 1]
                b, h, w, c = x.shape
                x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
                x = F.linear(_norm(x, merge.norm), merge.reduction.weight)
            tokens, channels = [x], [x]
            for block in stage.blocks:
                for average, mixer in zip(block.averages, block.token_mixers, strict=False):
                    tokens = [*tokens, self._token(_Averaged.of(average, [*tokens, *channels]), mixer)]
                read = _Averaged.of(block.averages[2], [*tokens, *channels])
                channels = [*channels, self._channel(read, block.channel_mixer)]
            x = channels[-1]
        return _linear(_norm(x, of.norm).flatten(1, 2).mean(1), of.head)


def _mamba(u: Tensor, of: nn.Module) -> Tensor:
    """The Mamba mixer. [B, T, C] -> [B, T, C]"""
    x, z = F.linear(u, of.in_proj.weight).unflatten(-1, (2, -1)).unbind(-2)
    back = of.conv1d.kernel_size[0] - 1
    x = F.conv1d(x.mT, of.conv1d.weight, of.conv1d.bias, padding=back, groups=of.conv1d.groups)[..., : u.shape[1]]
    x = (x * x.sigmoid()).mT
    rank, state, _ = of.sizes
    raw, b, c = torch.tensor_split(F.linear(x, of.x_proj.weight), (rank, rank + state), dim=-1)
    delta = F.softplus(_linear(raw, of.dt_proj))
    y = torch.addcmul(_selective_scan(x, delta, -torch.exp(of.A_log), b, c), x, of.D)
    return F.linear(y * (z * torch.sigmoid(z)), of.out_proj.weight)


class TSM2(nn.Module):
    """TSM2 with windows by Tensor.unfold and moments by var_mean."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, series: Tensor) -> Tensor:
        of = self.of
        variance, loc = torch.var_mean(series, dim=1, keepdim=True, correction=0)
        scale = torch.sqrt(variance + 1e-5)
        x = ((series - loc) / scale).mT
        x = x[..., (x.shape[-1] - of.patcher.in_features) % of.stride :]
        x = _linear(x.unfold(-1, of.patcher.in_features, of.stride), of.patcher) + of.position
        tokens, channels = [x], [x]
        for layer in of.layers:
            y = _Averaged.of(layer.token_average, [*tokens, *channels])
            b, m, p, d = y.shape
            mixer = layer.token_mixer
            tokens = [*tokens, _mamba(_norm(y, mixer.norm).reshape(b * m, p, d), mixer.mixer).reshape(b, m, p, d)]
            y = _Averaged.of(layer.channel_average, [*tokens, *channels])
            mixer = layer.channel_mixer
            y = _norm(y, mixer.norm).permute(0, 2, 1, 3).reshape(b * p, m, d)
            y = _mamba(y, mixer.forwards) + _mamba(y.flip(1), mixer.backwards).flip(1)
            channels = [*channels, y.reshape(b, p, m, d).permute(0, 2, 1, 3)]
        x = _norm(channels[-1], of.feature_norm).mT
        x = _norm(x, of.patch_norm).mT
        return _linear(x.flatten(2), of.head).mT * scale + loc


class LongVq(nn.Module):
    """LongVQ with its averages in a loop, codes by cdist, one-hot codes, and blocks beside each other by roll."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    @staticmethod
    def _averages(x: Tensor, of: nn.Module) -> Tensor:
        rate = torch.sigmoid(of.alpha)
        decay = 1 - rate * torch.sigmoid(of.delta)
        h, outputs = torch.zeros(x.shape[0], *decay.shape), []
        for t in range(x.shape[1]):
            h = decay * h + rate * of.beta * x[:, t].unsqueeze(-1)
            outputs.append((of.eta * h).sum(dim=-1))
        return torch.stack(outputs, dim=1)

    @staticmethod
    def _beside(x: Tensor) -> Tensor:
        """Each block between both beside it, [B, N, l, *] -> [B, N, 3 l, *]"""
        padded = F.pad(x, (0, 0, 0, 0, 1, 1))
        return torch.cat([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, of: nn.Module) -> Tensor:
        length = q.shape[1]
        size, book = of.block, of.codebook
        count = length // size
        codes = torch.cdist(k, book).argmin(dim=-1)
        keys = torch.index_select(book, 0, codes.flatten()).view(*k.shape)
        chosen = F.one_hot(codes, book.shape[0]).to(q.dtype)
        q, keys, v, chosen = (one.unflatten(1, (count, size)) for one in (q, keys, v, chosen))
        number = torch.arange(count)
        far = (torch.abs(number[:, None] - number[None]) > 1).float()
        counts = torch.einsum("mn,bns->bms", far, chosen.sum(dim=2))
        sums = torch.einsum("mn,bnsv->bmsv", far, torch.einsum("bnls,bnlv->bnsv", chosen, v))
        means = sums / counts.clamp(min=1).unsqueeze(-1)
        seen = torch.where(counts > 0, torch.log(counts.clamp(min=1)), -1e4)
        place = (number[:, None] - 1) * size + torch.arange(3 * size)
        absent = torch.where((place >= 0) & (place < length), 0.0, -1e4)
        apart = torch.arange(size, 2 * size)[:, None] - torch.arange(3 * size)[None]
        through = torch.einsum("bnlk,sk->bnls", q, book) + seen.unsqueeze(2)
        direct = torch.einsum("bnlk,bnmk->bnlm", q, self._beside(keys))
        direct = direct + of.bias[apart.abs()] + absent.unsqueeze(1)
        weights = torch.softmax(torch.cat([direct, through], dim=-1), dim=-1)
        y = weights[..., : 3 * size] @ self._beside(v) + weights[..., 3 * size :] @ means
        return y.flatten(1, 2)

    def _block(self, x: Tensor, of: nn.Module) -> Tensor:
        normed = _norm(x, of.norm)
        parts = _linear(self._averages(normed, of.ema), of.context_proj).split(of.sizes, dim=-1)
        z, gate, update, added = parts
        z = z * torch.sigmoid(z)
        q, k = torch.addcmul(of.mu[0], z, of.kappa[0]), torch.addcmul(of.mu[1], z, of.kappa[1])
        o = self._attend(q, k, F.silu(_linear(normed, of.v_proj)), of.attention)
        h = F.silu(F.linear(F.silu(gate) * o, of.h_proj.weight) + added)
        x = torch.lerp(x, h, torch.sigmoid(update))
        y = _linear(_norm(x, of.mlp_norm), of.fc1)
        return torch.add(x, _linear(y * torch.sigmoid(y), of.fc2))

    def forward(self, x: Tensor) -> Tensor:
        of = self.of
        x = F.one_hot(x, of.vocabulary).float() @ of.embed.weight if of.vocabulary else _linear(x, of.embed)
        for block in of.blocks:
            x = self._block(x, block)
        return _linear(_norm(x, of.norm).sum(dim=1) / x.shape[1], of.head)


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _mix_axis(x: Tensor, mixer: nn.Module, axis: int) -> Tensor:
    """A mixer of PatchTSMixer and TTM with its axis brought to the back."""
    y = _norm(x, mixer.norm.norm).transpose(axis, -1)
    has_gate = hasattr(mixer, "gating_block")
    if has_gate and axis == 1:
        y = torch.softmax(_linear(y, mixer.gating_block.attn_layer), -1) * y
    y = _linear(_gelu(_linear(y, mixer.mlp.fc1)), mixer.mlp.fc2)
    if has_gate and axis != 1:
        y = torch.softmax(_linear(y, mixer.gating_block.attn_layer), -1) * y
    return x + y.transpose(axis, -1)


def _mix_layers(x: Tensor, layers: nn.Module) -> Tensor:
    for layer in layers:
        if hasattr(layer, "channel_feature_mixer"):
            x = _mix_axis(x, layer.channel_feature_mixer, 1)
        if hasattr(layer, "patch_mixer"):
            x = _mix_axis(x, layer.patch_mixer, 2)
        x = _mix_axis(x, layer.feature_mixer, 3)
    return x


def _scaled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, C] scaled over time, with its mean and deviation."""
    scale, loc = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    scale = torch.sqrt(scale + 1e-5)
    return (x - loc) / scale, loc, scale


class PatchTSMixer(nn.Module):
    """PatchTSMixer with every axis brought to the back to be mixed, windows by Tensor.unfold, GELU by erf."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, series: Tensor) -> Tensor:
        encoder, head = self.of.model.encoder, self.of.head.base_forecast_block
        x, loc, scale = _scaled(series)
        x = x.movedim(1, 2).unfold(2, encoder.patcher.in_features, encoder.stride)
        x = _mix_layers(_linear(x, encoder.patcher), encoder.mlp_mixer_encoder.mixers)
        y = _linear(x.reshape(*x.shape[:2], -1), head)
        return y.swapaxes(1, 2) * scale + loc


class TinyTimeMixer(nn.Module):
    """TTM the same way; its levels of patch lengths by unflatten."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    @staticmethod
    def _levels(x: Tensor, block: nn.Module) -> Tensor:
        for level in block.mixers:
            if not hasattr(level, "mixer_layers"):
                return _mix_layers(x, block.mixers)
            b, c, p, d = x.shape
            y = x.unflatten(3, (level.factor, d // level.factor)).flatten(2, 3)
            x = _mix_layers(y, level.mixer_layers).view(b, c, p, d)
        return x

    def forward(self, series: Tensor) -> Tensor:
        of, encoder = self.of, self.of.backbone.encoder
        x, loc, scale = _scaled(series)
        x = x.movedim(1, 2).unfold(2, encoder.patcher.in_features, encoder.stride)
        x = self._levels(_linear(x, encoder.patcher), encoder.mlp_mixer_encoder)
        if not isinstance(of.decoder.adapter, nn.Identity):
            x = _linear(x, of.decoder.adapter)
        x = self._levels(x, of.decoder.decoder_block)
        y = _linear(x.flatten(2), of.head.base_forecast_block).mT
        return torch.addcmul(loc, y, scale)
