"""The zoo's later vision models as other engineers would write them: functions on their weights, in other layouts.

Each takes a model of the zoo, for its weights, and computes the same. Nothing here calls a module of the zoo.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from authors.third import _batch_norm, _conv


def _linear(x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """A layer over the last axis, whether its weight is a matrix or a 1x1 kernel."""
    y = torch.matmul(x, layer.weight.flatten(1).t())
    return y if layer.bias is None else y + layer.bias


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    """Layer norm over the last axis, its variance by torch.var."""
    bias = norm.bias if norm.bias is not None else 0.0
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + bias


def _to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def _to_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x.mT.unflatten(-1, size)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, h d] -> [B, h, N, d]"""
    return x.view(x.shape[0], x.shape[1], heads, -1).permute(0, 2, 1, 3)


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)


class TransNeXt(nn.Module):
    """TransNeXt with neighbours by Tensor.unfold, parts by narrow, and the softmax of both kinds of keys by hand."""

    def __init__(self, of: nn.Module, size: int) -> None:
        super().__init__()
        self.of, self.size = of, size

    def _bias(self, of: nn.Module, queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
        """The MLP on the distance of every query from every key, [h, N, P], with no table."""
        axes = []
        for q, k in zip(queries, keys, strict=True):
            at = torch.arange(q, dtype=torch.float32)
            centres = at.view(k, q // k).mean(1)
            apart = 8.0 * (at[:, None] - centres) / (of.pretrain_side - 1)
            axes.append(torch.sign(apart) * torch.log2(apart.abs() + 1) / math.log2(8))
        pairs = torch.stack(
            torch.broadcast_tensors(axes[0][:, None, :, None], axes[1][None, :, None, :]), dim=-1
        )  # [H, W, h, w, 2]
        made = _linear(F.relu(_linear(pairs.flatten(0, 1).flatten(1, 2), of.cpb_fc1)), of.cpb_fc2)
        return torch.einsum("npc->cnp", made)

    def _everywhere(self, x: Tensor, of: nn.Module, size: tuple[int, int]) -> Tensor:
        q, k, v = (_heads(part, of.heads) for part in torch.tensor_split(_linear(x, of.qkv), 3, dim=2))
        scale = F.softplus(of.temperature) * math.log(size[0] * size[1])
        q = (_unit(q) + of.query_embedding) * scale
        mixed = F.scaled_dot_product_attention(q, _unit(k), v, attn_mask=self._bias(of, size, size), scale=1.0)
        return _linear(mixed.transpose(1, 2).flatten(2), of.proj)

    @staticmethod
    def _windows(x: Tensor, heads: int, size: tuple[int, int]) -> Tensor:
        """Neighbours of each token, [B, N, h d] -> [B, h, N, 9, d]"""
        padded = F.pad(_to_map(x, size), (1, 1, 1, 1))
        seen = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # [B, C, H, W, 3, 3]
        seen = seen.reshape(x.shape[0], heads, -1, size[0] * size[1], 9)
        return seen.permute(0, 1, 3, 4, 2)

    def _aggregated(self, x: Tensor, of: nn.Module, size: tuple[int, int]) -> Tensor:
        height, width = size
        small = (height // of.reduction, width // of.reduction)
        unit = _unit(_heads(_linear(x, of.q), of.heads))
        there = F.pad(torch.ones(1, 1, height, width), (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        there = there.reshape(height * width, 9)
        number = (there.sum(1) + small[0] * small[1]).log()
        query = (unit + of.query_embedding) * (F.softplus(of.temperature) * number[:, None])

        kv = _linear(x, of.kv)
        k, v = kv.narrow(2, 0, kv.shape[2] // 2), kv.narrow(2, kv.shape[2] // 2, kv.shape[2] // 2)
        k = _unit(k.unflatten(2, (of.heads, -1))).flatten(2)
        k, v = self._windows(k, of.heads, size), self._windows(v, of.heads, size)
        local = torch.einsum("bhnd,bhntd->bhnt", query, k) + of.relative_pos_bias_local[:, None]
        local = torch.where(there > 0, local, -torch.inf)

        u = F.gelu(_conv(_to_map(x, size), of.sr))
        u = u.unflatten(3, (small[1], of.reduction)).unflatten(2, (small[0], of.reduction)).mean((3, 5))
        pooled = _linear(_norm(_to_tokens(u), of.norm), of.kv)
        far_k, far_v = (_heads(part, of.heads) for part in pooled.chunk(2, dim=-1))
        far = torch.einsum("bhnd,bhpd->bhnp", query, _unit(far_k)) + self._bias(of, size, small)

        peak = torch.maximum(local.amax(-1), far.amax(-1)).unsqueeze(-1)
        local, far = torch.exp(local - peak), torch.exp(far - peak)
        total = local.sum(-1, keepdim=True) + far.sum(-1, keepdim=True)
        near = local / total + torch.matmul(unit, of.learnable_tokens) + of.learnable_bias
        y = torch.einsum("bhnt,bhntd->bhnd", near, v) + torch.einsum("bhnp,bhpd->bhnd", far / total, far_v)
        return _linear(y.transpose(1, 2).flatten(2), of.proj)

    def _glu(self, x: Tensor, of: nn.Module, size: tuple[int, int]) -> Tensor:
        both = _linear(x, of.fc1)
        half = both.shape[2] // 2
        a, v = both[..., :half], both[..., half:]
        a = _to_tokens(F.gelu(_conv(_to_map(a, size), of.dwconv.dwconv)))
        return _linear(v * a, of.fc2)

    def forward(self, x: Tensor) -> Tensor:
        of, side = self.of, self.size
        for i in range(1, 5):
            embed, norm = getattr(of, f"patch_embed{i}"), getattr(of, f"norm{i}")
            side //= 4 if i == 1 else 2
            x = _norm(_to_tokens(_conv(x, embed.proj)), embed.norm)
            for block in getattr(of, f"block{i}"):
                mix = self._aggregated if hasattr(block.attn, "reduction") else self._everywhere
                x = mix(_norm(x, block.norm1), block.attn, (side, side)) + x
                x = torch.add(self._glu(_norm(x, block.norm2), block.mlp, (side, side)), x)
            x = _norm(x, norm)
            if i < 4:
                x = _to_map(x, (side, side))
        return _linear(torch.sum(x, 1) / x.shape[1], of.head)


class InceptionTransformer(nn.Module):
    """iFormer on maps with norms by hand, pools as means of cells, and PyTorch's own attention."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    @staticmethod
    def _channel_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        deviation = (centred.pow(2).mean(dim=1, keepdim=True) + norm.eps).sqrt()
        return centred / deviation * norm.weight[:, None, None] + norm.bias[:, None, None]

    @staticmethod
    def _pointwise(x: Tensor, layer: nn.Module) -> Tensor:
        y = torch.einsum("oc,bchw->bohw", layer.weight.flatten(1), x)
        return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)

    def _high(self, x: Tensor, of: nn.Module) -> list[Tensor]:
        local, peaks = torch.tensor_split(x, 2, dim=1)
        local = F.gelu(_conv(self._pointwise(local, of.conv1), of.proj1))
        padded = F.pad(peaks, (1, 1, 1, 1), value=-torch.inf)
        return [local, F.gelu(self._pointwise(F.max_pool2d(padded, 3, stride=1), of.proj2))]

    def _low(self, x: Tensor, of: nn.Module) -> Tensor:
        b, c, h, w = x.shape
        if of.pool > 1:
            x = x.reshape(b, c, h // of.pool, of.pool, w // of.pool, of.pool).mean(dim=(3, 5))
        size = x.shape[2:]
        parts = self._pointwise(x, of.qkv).flatten(2).reshape(b, 3, of.heads, c // of.heads, -1)
        q, k, v = parts.transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, *size)
        if of.pool > 1:
            y = y.repeat_interleave(of.pool, dim=2).repeat_interleave(of.pool, dim=3)
        return y

    def _mix(self, x: Tensor, of: nn.Module) -> Tensor:
        low = of.widths[1]
        z = torch.cat([*self._high(x[:, :-low], of.high_mixer), self._low(x[:, -low:], of.low_mixer)], dim=1)
        return self._pointwise(_conv(z, of.conv_fuse) + z, of.proj)

    def _block(self, x: Tensor, of: nn.Module) -> Tensor:
        y = self._mix(self._channel_norm(x, of.norm1), of.attn)
        x = x + y if of.layer_scale_1 is None else torch.addcmul(x, y, of.layer_scale_1.reshape(-1, 1, 1))
        y = F.gelu(self._pointwise(self._channel_norm(x, of.norm2), of.mlp.fc1))
        y = self._pointwise(y, of.mlp.fc2)
        return x + y if of.layer_scale_2 is None else torch.addcmul(x, y, of.layer_scale_2.reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        of = self.of
        stem = of.patch_embed
        x = _batch_norm(_conv(F.gelu(_batch_norm(_conv(x, stem.proj1), stem.norm1)), stem.proj2), stem.norm2)
        for i in range(1, 5):
            if i > 1:
                embed = getattr(of, f"patch_embed{i}")
                x = _batch_norm(_conv(x, embed.proj), embed.norm)
            place = torch.movedim(getattr(of, f"pos_embed{i}"), -1, 1)
            if place.shape[-2:] != x.shape[-2:]:
                place = F.interpolate(place, size=x.shape[-2:], mode="bilinear")
            x = torch.add(place, x)
            for block in getattr(of, f"blocks{i}"):
                x = self._block(x, block)
        return _linear(self._channel_norm(x, of.norm).flatten(2).mean(-1), of.head)


class MetaFormer(nn.Module):
    """The MetaFormer baselines with channels last throughout, and their activation by a clamp and a power."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    @staticmethod
    def _first(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)

    @staticmethod
    def _last(x: Tensor) -> Tensor:
        return x.movedim(1, -1)

    @staticmethod
    def _star(x: Tensor, act: nn.Module) -> Tensor:
        return torch.clamp(x, min=0).pow(2).mul(act.scale).add(act.bias)

    def _block_norm(self, x: Tensor, norm: nn.Module) -> Tensor:
        if hasattr(norm, "bias"):
            return _norm(x, norm) if norm.bias is not None else self._without_shift(x, norm)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        variance = (x - mean).square().mean(dim=(1, 2, 3), keepdim=True)
        return (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight

    @staticmethod
    def _without_shift(x: Tensor, norm: nn.Module) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), eps=norm.eps) * norm.weight

    def _mixer(self, x: Tensor, of: nn.Module) -> Tensor:
        kind = type(of).__name__
        if kind == "Pooling":
            padded = F.pad(self._first(x), (1, 1, 1, 1))
            near = F.avg_pool2d(padded, 3, 1) * 9
            number = F.avg_pool2d(F.pad(torch.ones(1, 1, *x.shape[1:3]), (1, 1, 1, 1)), 3, 1) * 9
            return self._last(near / number) - x
        if kind == "SepConv":
            y = self._first(self._star(_linear(x, of.pwconv1), of.act1))
            return _linear(self._last(_conv(y, of.dwconv)), of.pwconv2)
        if kind == "Attention":
            b, h, w, c = x.shape
            qkv = _linear(x.flatten(1, 2), of.qkv).reshape(b, h * w, 3, of.heads, -1)
            q, k, v = torch.unbind(qkv, dim=2)
            scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(c // of.heads)
            y = torch.einsum("bhnm,bmhd->bnhd", torch.softmax(scores, dim=-1), v)
            return _linear(y.reshape(b, h, w, c), of.proj)
        return x

    def _block(self, x: Tensor, of: nn.Module) -> Tensor:
        first, second = (getattr(scale, "scale", None) for scale in (of.res_scale1, of.res_scale2))
        y = self._mixer(self._block_norm(x, of.norm1), of.token_mixer)
        x = y + (x if first is None else first * x)
        y = _linear(self._star(_linear(self._block_norm(x, of.norm2), of.mlp.fc1), of.mlp.act), of.mlp.fc2)
        return y + (x if second is None else second * x)

    def forward(self, x: Tensor) -> Tensor:
        of = self.of
        x = self._last(x)
        for down, stage in zip(of.downsample_layers, of.stages, strict=True):
            if hasattr(down.pre_norm, "weight"):
                x = self._without_shift(x, down.pre_norm)
            x = self._last(_conv(self._first(x), down.conv))
            if hasattr(down.post_norm, "weight"):
                x = self._without_shift(x, down.post_norm)
            for block in stage:
                x = self._block(x, block)
        x = _norm(x.mean(dim=(1, 2)), of.norm)
        if isinstance(of.head, nn.Linear):
            return _linear(x, of.head)
        x = torch.square(F.relu(_linear(x, of.head.fc1)))
        return _linear(_norm(x, of.head.norm), of.head.fc2)


class SegFormer(nn.Module):
    """SegFormer on tokens, with scores scaled after the product and a head that sums what each stage gives."""

    def __init__(self, of: nn.Module, size: int) -> None:
        super().__init__()
        self.of, self.size = of, size

    def _attention(self, x: Tensor, of: nn.Module, size: tuple[int, int]) -> Tensor:
        y = x
        if hasattr(of.sequence_reduction, "layer_norm"):
            y = _conv(_to_map(x, size), of.sequence_reduction.sequence_reduction)
            y = _norm(y.reshape(*y.shape[:2], -1).permute(0, 2, 1), of.sequence_reduction.layer_norm)
        q, k, v = (_heads(_linear(z, layer), of.heads) for z, layer in ((x, of.q_proj), (y, of.k_proj), (y, of.v_proj)))
        scores = torch.matmul(q, k.transpose(-1, -2)).mul(q.shape[-1] ** -0.5)
        scores = scores - scores.amax(dim=-1, keepdim=True)
        weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
        y = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return _linear(y.view(*x.shape), of.o_proj)

    def _ffn(self, x: Tensor, of: nn.Module, size: tuple[int, int]) -> Tensor:
        y = _conv(_to_map(_linear(x, of.fc1), size), of.dwconv.dwconv)
        return _linear(F.gelu(_to_tokens(y)), of.fc2)

    def forward(self, x: Tensor) -> Tensor:
        of, side = self.of, self.size
        maps = []
        for i, stage in enumerate(of.stages):
            side //= 2 if i else 4
            size = (side, side)
            x = _norm(_to_tokens(_conv(x, stage.patch_embeddings.proj)), stage.patch_embeddings.layer_norm)
            for block in stage.blocks:
                x = torch.add(x, self._attention(_norm(x, block.layernorm_before), block.attention, size))
                x = torch.add(x, self._ffn(_norm(x, block.layernorm_after), block.mlp, size))
            x = _to_map(_norm(x, stage.layer_norm), size)
            maps.append(x)
        head, total = of.decode_head, None
        width = head.batch_norm.num_features
        slices = head.linear_fuse.weight.split(width, dim=1)[::-1]  # of the first stage first
        for y, project, weight in zip(maps, head.linear_projections, slices, strict=True):
            z = _to_map(_linear(_to_tokens(y), project.proj), tuple(y.shape[2:]))
            z = F.interpolate(z, size=maps[0].shape[2:], mode="bilinear", align_corners=False)
            z = F.conv2d(z, weight)
            total = z if total is None else total + z
        return _conv(F.relu(_batch_norm(total, head.batch_norm)), head.classifier)
