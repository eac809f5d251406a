"""The zoo's families as other engineers would write them: functions on their weights, in layouts of their own.

Each takes a model of the zoo, for its weights, and computes the same. Nothing here calls a module of the zoo.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _batch_norm(x: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def _conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _pointwise(x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """A 1x1 convolution as an einsum over channels. [B, C, *] -> [B, C', *]"""
    y = torch.einsum("oc,bcn->bon", conv.weight.flatten(1), x.flatten(2))
    if conv.bias is not None:
        y = y + conv.bias.view(1, -1, 1)
    return y.reshape(y.shape[0], y.shape[1], *x.shape[2:])


class CasViT(nn.Module):
    """CAS-ViT with gates as functions, parts by unbind, and means of flattened maps."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def _spatial(self, x: Tensor, gate: nn.Module) -> Tensor:
        depthwise, norm, _, point, _ = gate.block
        mask = F.conv2d(F.relu(_batch_norm(_conv(x, depthwise), norm)), point.weight)
        return torch.sigmoid(mask).mul(x)

    def _channel(self, x: Tensor, gate: nn.Module) -> Tensor:
        weight = gate.block[1].weight[:, :, 0, 0]
        mask = F.linear(x.flatten(2).mean(dim=-1), weight).sigmoid()
        return mask[:, :, None, None] * x

    def _mix(self, x: Tensor, mixer: nn.Module) -> Tensor:
        q, k, v = F.conv2d(x, mixer.qkv.weight).unflatten(1, (3, -1)).unbind(1)
        q = self._channel(self._spatial(q, mixer.oper_q[0]), mixer.oper_q[1])
        k = self._channel(self._spatial(k, mixer.oper_k[0]), mixer.oper_k[1])
        return _conv(torch.mul(v, _conv(torch.add(k, q), mixer.dwc)), mixer.proj)

    def _block(self, x: Tensor, block: nn.Module) -> Tensor:
        first, norm, depthwise, _, last = block.local_perception.network
        x = _pointwise(F.gelu(_conv(_batch_norm(_pointwise(x, first), norm), depthwise)), last) + x
        x = self._mix(_batch_norm(x, block.norm1), block.attn) + x
        y = _batch_norm(x, block.norm2).permute(0, 2, 3, 1)
        y = F.linear(y, block.mlp.fc1.weight.flatten(1), block.mlp.fc1.bias)
        y = F.linear(F.gelu(y), block.mlp.fc2.weight.flatten(1), block.mlp.fc2.bias)
        return y.permute(0, 3, 1, 2) + x

    def forward(self, x: Tensor) -> Tensor:
        of = self.of
        for conv, norm in ((of.patch_embed[0], of.patch_embed[1]), (of.patch_embed[3], of.patch_embed[4])):
            x = F.relu(_batch_norm(_conv(x, conv), norm))
        for layer in of.network:
            if isinstance(layer, nn.Sequential):
                for block in layer:
                    x = self._block(x, block)
            else:
                x = _batch_norm(_conv(x, layer.proj), layer.norm)
        pooled = F.adaptive_avg_pool2d(_batch_norm(x, of.norm), 1).flatten(1)
        if of.dist_head is None:
            return F.linear(pooled, of.head.weight, of.head.bias)
        return torch.stack([of.head(pooled), of.dist_head(pooled)]).mean(0)


class AFFNet(nn.Module):
    """AFFNet with group norms and SiLU by hand, and the filter features last."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    @staticmethod
    def _layer(x: Tensor, layer: nn.Module) -> Tensor:
        y = _batch_norm(_conv(x, layer.block.conv), layer.block.norm)
        return y * torch.sigmoid(y) if hasattr(layer.block, "act") else y

    def _inverted(self, x: Tensor, layer: nn.Module) -> Tensor:
        y = x
        for part in layer.block:
            y = self._layer(y, part)
        return torch.add(y, x) if layer.residual else y

    @staticmethod
    def _norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
        y = F.layer_norm(x, x.shape[1:], eps=norm.eps)
        return torch.addcmul(norm.bias[:, None, None], y, norm.weight[:, None, None])

    @staticmethod
    def _filter(x: Tensor, of: nn.Module) -> Tensor:
        b, _, h, w = x.shape
        spectrum = torch.fft.rfft2(x.permute(0, 2, 3, 1), dim=(1, 2), norm="ortho")
        z = spectrum.reshape(b, h, w // 2 + 1, of.w1.shape[1], -1)

        def layer(re: Tensor, im: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            def times(part: Tensor, matrix: Tensor) -> Tensor:
                return torch.matmul(part.unsqueeze(-2), matrix).squeeze(-2)

            return (
                times(re, weight[0]) - times(im, weight[1]) + bias[0],
                times(im, weight[0]) + times(re, weight[1]) + bias[1],
            )

        re, im = layer(z.real, z.imag, of.w1, of.b1)
        re, im = layer(F.silu(re), im * im.sigmoid(), of.w2, of.b2)
        mask = torch.complex(F.softshrink(re, of.threshold), F.softshrink(im, of.threshold)).reshape(spectrum.shape)
        return torch.fft.irfft2(spectrum * mask, s=(h, w), dim=(1, 2), norm="ortho").permute(0, 3, 1, 2) + x

    def forward(self, x: Tensor) -> Tensor:
        of = self.of
        x = self._inverted(self._layer(x, of.conv_1), of.layer_1[0])
        for part in of.layer_2:
            x = self._inverted(x, part)
        for stage in (of.layer_3, of.layer_4, of.layer_5):
            down, aff = stage
            x = y = self._inverted(x, down)
            *blocks, norm = aff.global_rep
            for block in blocks:
                y = (
                    self._filter(
                        self._norm(self._inverted(self._norm(y, block.norm1), block.mlp), block.norm2), block.filter
                    )
                    + y
                )
            x = self._layer(torch.cat([x, self._layer(self._norm(y, norm), aff.conv_proj)], dim=1), aff.fusion)
        x = self._layer(x, of.conv_1x1_exp).mean(dim=(-1, -2))
        return F.linear(x, of.classifier.fc.weight, of.classifier.fc.bias)


class EfficientViM(nn.Module):
    """EfficientViM with tokens [B, N, D], torch's layer norm, and products by einsum and bmm."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    @staticmethod
    def _norm(x: Tensor, norm: nn.Module) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], norm.weight.flatten(), norm.bias.flatten(), norm.eps)

    @staticmethod
    def _conv_norm(x: Tensor, layer: nn.Module) -> Tensor:
        return _batch_norm(_conv(x, layer.conv), layer.norm)

    def _mixer(self, x: Tensor, of: nn.Module, height: int, width: int) -> tuple[Tensor, Tensor]:
        """[B, N, D] -> [B, D, H, W] and [B, D, S]"""
        maps = F.linear(x, of.BCdt_proj.conv.weight.squeeze(-1)).transpose(1, 2)
        maps = _conv(maps.reshape(x.shape[0], -1, height, width), of.dw.conv)
        b, c, dt = torch.tensor_split(maps.flatten(2), 3, dim=1)
        a = torch.softmax(dt + of.A[None, :, None], dim=-1)
        h = torch.matmul(x.transpose(1, 2), (a * b).transpose(1, 2))
        h, z = F.conv1d(h, of.hz_proj.conv.weight).split(x.shape[-1], dim=1)
        h = F.conv1d(h * (z * torch.sigmoid(z)) + h * of.D, of.out_proj.conv.weight)
        return torch.bmm(h, c).view(x.shape[0], -1, height, width), h

    def _block(self, x: Tensor, block: nn.Module) -> tuple[Tensor, Tensor]:
        gates = torch.sigmoid(block.alpha)[:, None, :, None, None]
        x = torch.lerp(x, self._conv_norm(x, block.dwconv1), gates[0])
        _, _, height, width = x.shape
        y, h = self._mixer(self._norm(x.permute(0, 2, 3, 1).flatten(1, 2), block.norm), block.mixer, height, width)
        x = x + gates[1] * (y - x)
        x = torch.lerp(x, self._conv_norm(x, block.dwconv2), gates[2])
        y = self._conv_norm(F.relu(self._conv_norm(x, block.ffn.fc1)), block.ffn.fc2)
        return x * (1 - gates[3]) + gates[3] * y, h

    def _merge(self, x: Tensor, of: nn.Module) -> Tensor:
        expand, halve, squeeze, project = of.conv
        x = x + self._conv_norm(x, of.dwconv1)
        x = F.relu(self._conv_norm(F.relu(self._conv_norm(x, expand)), halve))
        gate = F.adaptive_avg_pool2d(x, 1)
        gate = torch.sigmoid(_conv(F.relu(_conv(gate, squeeze.fc1)), squeeze.fc2))
        x = self._conv_norm(gate * x, project)
        return self._conv_norm(x, of.dwconv2) + x

    def forward(self, x: Tensor) -> Tensor:
        of = self.of
        *hidden, last = of.patch_embed.conv
        for layer in hidden:
            x = F.relu(self._conv_norm(x, layer))
        x = self._conv_norm(x, last)
        pooled = []
        for stage, norm in zip(of.stages, of.norm, strict=False):
            for block in stage.blocks:
                x, h = self._block(x, block)
            pooled.append(self._norm(h.transpose(1, 2), norm).mean(dim=1))
            if stage.downsample is not None:
                x = self._merge(x, stage.downsample)
        pooled.append(self._norm(x.permute(0, 2, 3, 1), of.norm[-1]).mean(dim=(1, 2)))
        sets = [(of.weights, of.heads)] + ([(of.weights_dist, of.heads_dist)] if of.weights_dist is not None else [])
        logits = [
            sum(s * head(p) for s, head, p in zip(torch.softmax(weights, -1), heads, pooled, strict=True))
            for weights, heads in sets
        ]
        return logits[0] if len(logits) == 1 else 0.5 * (logits[0] + logits[1])


class LMUFormer(nn.Module):
    """LMUFormer with the memory in a Python loop, layers on frames [B, T, C], and GELU and batch norms by hand."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    @staticmethod
    def _conv3(x: Tensor, conv: nn.Conv1d) -> Tensor:
        return F.conv1d(F.pad(x.transpose(1, 2), (1, 1)), conv.weight).transpose(1, 2)

    @staticmethod
    def _norm(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        return (x - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias

    @staticmethod
    def _linear(x: Tensor, layer: nn.Module) -> Tensor:
        return x @ layer.weight.flatten(1).T + layer.bias

    def _neurons(self, x: Tensor, threshold: float = 1.0) -> Tensor:
        v, spikes = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            v = v + (x[:, t] - v) / 2.0
            fired = (v >= threshold).to(v.dtype)
            v = v * (1.0 - fired)
            spikes.append(fired)
        return torch.stack(spikes, dim=1)

    def _memory(self, u: Tensor, of: nn.Module) -> Tensor:
        """[B, T, 1] -> [B, T, M]"""
        m, out = torch.zeros(u.shape[0], of.A.shape[0]), []
        for t in range(u.shape[1]):
            m = torch.matmul(m, of.A.T) + torch.matmul(u[:, t], of.B.T)
            out.append(m)
        return torch.stack(out, dim=1)

    def _lmu(self, x: Tensor, of: nn.Module, spiking: bool) -> Tensor:
        u = self._linear(x, of.W_u)
        u = self._neurons(self._norm(u, of.bn_u)) if spiking else F.relu(u)
        m = self._memory(u, of)
        m = self._neurons(self._norm(m, of.bn_m)) if spiking else m
        h = self._linear(torch.cat([m, x], dim=-1), of.W_h)
        return self._neurons(self._norm(h, of.bn_h)) if spiking else torch.clamp(h, min=0)

    def _plain(self, x: Tensor) -> Tensor:
        of = self.of
        for conv, _, _, norm in of.patch_embed.conv_layers:
            x = self._norm(F.relu(self._conv3(x, conv)), norm)
        x = x + self._conv3(x, of.patch_embed.rpe_conv)
        for block in of.block:
            x = x + self._norm(
                self._linear(self._lmu(x, block.attn.lmu, False), block.attn.proj_conv), block.attn.proj_bn
            )
            y = self._norm(self._linear(x, block.mlp.fc1_conv), block.mlp.fc1_bn)
            y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
            x = x + F.relu(self._norm(self._linear(y, block.mlp.fc2_conv), block.mlp.fc2_bn))
        return x

    def _spiking(self, x: Tensor) -> Tensor:
        of, embed = self.of, self.of.patch_embed
        for end in ("", "1", "2"):
            x = self._neurons(
                self._norm(self._conv3(x, getattr(embed, f"proj_conv{end}")), getattr(embed, f"proj_bn{end}"))
            )
        x = self._conv3(x, embed.proj_conv3)
        x = x + self._conv3(self._neurons(self._norm(x, embed.proj_bn3)), embed.rpe_conv)
        for block in of.block:
            y = self._neurons(self._norm(x, block.attn.prev_bn), block.attn.prev_lif.threshold)
            x = x + self._norm(
                self._linear(self._lmu(y, block.attn.lmu, True), block.attn.proj_conv), block.attn.proj_bn
            )
            y = self._linear(self._neurons(self._norm(x, block.mlp.fc1_bn)), block.mlp.fc1_conv)
            x = x + self._linear(self._neurons(self._norm(y, block.mlp.fc2_bn)), block.mlp.fc2_conv)
        return self._neurons(self._norm(x, of.head_bn))

    def forward(self, x: Tensor) -> Tensor:
        x = self._spiking(x) if self.of.spiking else self._plain(x)
        return F.linear(x.mean(dim=1), self.of.head.weight, self.of.head.bias)
