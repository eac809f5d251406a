"""The zoo's later families in a third spelling: the zoo's fused ops, and the numbers of their own eager.

Those of the first families are in test_authors.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from authors import third_sequences, third_vision
from support.rewriting import reasons
from torch import Tensor, nn

from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.models import (
    hydra,
    iformer,
    longvq,
    metaformer,
    patchtsmixer,
    segformer,
    tdsm,
    transnext,
    tsm2,
    ttm,
    vim2,
)
from edgesmith.models.series import SeriesConfig

SAME = 1e-5

Pair = tuple[nn.Module, nn.Module, tuple[Tensor, ...]]
"""A model of the zoo, the third spelling of it, and inputs."""

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SERIES = {"context_length": 32, "prediction_length": 8, "num_input_channels": 3, "num_layers": 1}


def _settled(model: nn.Module) -> nn.Module:
    """Every vector away from 0 and 1, so that a fold that is wrong shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() <= 1 or any(word in name for word in ("temperature", "local", "learnable", "embedding")):
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def _transnext() -> Pair:
    of = _settled(transnext.TransNeXt((24, 24, 24, 48), (1, 1, 1, 1), (2, 2, 2, 2), (4, 2, 2, 1), num_classes=7))
    return of, third_vision.TransNeXt(of, 32), (IMAGE,)


def _iformer() -> Pair:
    of = iformer.InceptionTransformer((64, 64, 96, 96), ((1,), (1,), (2,), (2,)), grid=8, num_classes=7)
    iformer.settle(of)
    return of, third_vision.InceptionTransformer(of), (torch.cat((IMAGE, IMAGE.flip(2)), 3).repeat(1, 1, 2, 1),)


def _metaformer(mixers: tuple[Callable[..., nn.Module], ...], norm: Callable[..., nn.Module], head: type) -> Pair:
    of = _settled(metaformer.MetaFormer((1, 1, 1, 1), (32, 32, 64, 64), mixers, norm, head, num_classes=7))
    return of, third_vision.MetaFormer(of), (IMAGE,)


def _caformer() -> Pair:
    mixers = (metaformer.SepConv, metaformer.SepConv, metaformer.Attention, metaformer.Attention)
    return _metaformer(mixers, metaformer._over_channels, metaformer.MlpHead)


def _poolformer() -> Pair:
    return _metaformer((metaformer.Pooling,) * 4, metaformer._over_all, nn.Linear)


def _segformer() -> Pair:
    of = segformer.SegFormer((1, 1, 1, 1), (8, 16, 20, 32), 16, num_classes=5)
    segformer.settle(of)
    return of, third_vision.SegFormer(of, 32), (IMAGE,)


def _tdsm() -> Pair:
    of = _settled(tdsm.TDSM(64, 2, frames=8))
    return of, third_sequences.TDSM(of), (torch.randn(1, 8, 64), torch.randn(1, 384))


def _hydra() -> Pair:
    of = _settled(hydra.Hydra(8, state=5, kernel=3, head_dim=4, groups=2))
    return of, third_sequences.Hydra(of), (torch.randn(1, 6, 8),)


def _vim2() -> Pair:
    of = _settled(vim2.ViM2(8, (1,), (4,), num_classes=5))
    return of, third_sequences.ViM2(of), (IMAGE[..., :12, :12],)


def _tsm2() -> Pair:
    of = _settled(tsm2.TSM2(SeriesConfig(**{**SERIES, "d_model": 8, "patch_length": 8, "patch_stride": 4})))
    return of, third_sequences.TSM2(of), (torch.randn(1, 32, 3),)


def _longvq() -> Pair:
    of = _settled(longvq.LongVq(1, 8, 12, 5, vocabulary=7, key_width=6, codewords=5, block=3))
    return of, third_sequences.LongVq(of), (torch.randint(0, 7, (1, 12)),)


def _patchtsmixer() -> Pair:
    of = _settled(patchtsmixer.PatchTSMixer(SeriesConfig(**SERIES, mode="mix_channel")))
    return of, third_sequences.PatchTSMixer(of), (torch.randn(1, 32, 3),)


def _ttm() -> Pair:
    levels = {"d_model": 16, "adaptive_patching_levels": 2, "decoder_num_layers": 1, "decoder_d_model": 12}
    of = _settled(ttm.TinyTimeMixer(SeriesConfig(**{**SERIES, **levels, "decoder_mode": "mix_channel"})))
    return of, third_sequences.TinyTimeMixer(of), (torch.randn(1, 32, 3),)


PAIRS = {
    make.__name__[1:]: make
    for make in (_transnext, _iformer, _caformer, _poolformer, _segformer, _tdsm, _hydra, _vim2, _tsm2)
}
PAIRS |= {make.__name__[1:]: make for make in (_longvq, _patchtsmixer, _ttm)}


def fused(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[dict[str, int], Tensor, list[RewriteReport]]:
    """The fused ops of the rewritten program, what it returns, and the reports."""
    program, reports = rewrite(capture(model, inputs), targets.get("onnx").costs)
    counts = {name: n for name, n in count_operators(program.module).items() if name.startswith("edgesmith.")}
    (output,) = run(program, inputs)
    return counts, output, reports


@pytest.mark.parametrize("name", PAIRS)
def test_a_third_spelling_has_the_zoos_fused_ops(name: str) -> None:
    torch.manual_seed(0)
    zoo, third, inputs = PAIRS[name]()
    zoo, third = zoo.eval(), third.eval()
    with torch.no_grad():
        eager, of_zoo = third(*inputs), zoo(*inputs)
    assert float((eager - of_zoo).abs().max()) <= SAME * float(of_zoo.abs().max())
    counts, output, reports = fused(third, inputs)
    expected, _, _ = fused(zoo, inputs)
    if name == "transnext":  # ours has a bias with its keys first, which stays a softmax between two products
        expected |= {"edgesmith.attention": 1}
    near = " | ".join(reasons(report) for report in reports if report.name.startswith(("fuse", "find", "reroll")))
    assert counts == expected, near
    assert float((output - eager).abs().max()) <= SAME * float(eager.abs().max())
