"""Every family of the second zoo at a size that takes no time: a module and its inputs, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgesmith.exporters.inputs import draw_series
from edgesmith.models import registry
from edgesmith.models.hydra import Hydra, HydraBert
from edgesmith.models.longvq import LongVq
from edgesmith.models.mamba import Mamba
from edgesmith.models.segformer import SegFormer
from edgesmith.models.series import read_config
from edgesmith.models.tdsm import TDSM
from edgesmith.models.vim2 import ViM2

SERIES: dict[str, Any] = {
    "context_length": 32,
    "prediction_length": 8,
    "patch_length": 8,
    "patch_stride": 8,
    "num_input_channels": 3,
    "d_model": 16,
    "num_layers": 2,
}
TTM = {"adaptive_patching_levels": 2, "decoder_num_layers": 1, "decoder_d_model": 8, "decoder_mode": "mix_channel"}

Made = tuple[nn.Module, tuple[Tensor, ...]]


def forecaster(family: str, **changes: Any) -> Made:
    """A forecaster with its inputs, in the data's scale."""
    model = registry.build(registry.get(family), config=read_config(SERIES | changes, {}, "a test"))
    return model, draw_series(model.reads, 1, 0)


SEQUENCES: dict[str, Callable[[], Made]] = {
    "hydra block": lambda: (Hydra(16, state=4, head_dim=8), (torch.randn(1, 40, 16),)),
    "hydra bert": lambda: (
        HydraBert(vocabulary=40, depth=1, dim=16, state=4, head_dim=8),
        (torch.arange(40).unsqueeze(0), torch.zeros(1, 40, dtype=torch.int64)),
    ),
    "mamba": lambda: (Mamba(8, state=4), (torch.randn(1, 40, 8),)),
    "vim2": lambda: (ViM2(8, (1,), (8,), num_classes=3), (torch.randn(1, 3, 8, 12),)),
    "tsm2": lambda: forecaster("tsm2", patch_stride=4, static_features=2, future_features=3),
    "longvq of frames": lambda: (
        LongVq(1, 8, 12, 3, key_width=6, codewords=16, block=8),
        (torch.randn(1, 40, 1),),
    ),
    "longvq of tokens": lambda: (
        LongVq(1, 8, 12, 3, vocabulary=9, key_width=6, codewords=16, block=8),
        (torch.randint(0, 9, (1, 40)),),
    ),
    "patchtsmixer": lambda: forecaster("patchtsmixer", mode="mix_channel", self_attn=True, self_attn_heads=2),
    "ttm": lambda: forecaster("ttm", **TTM),
}
FAMILIES: dict[str, Callable[[], Made]] = {
    **SEQUENCES,
    "segformer": lambda: (
        SegFormer((1, 1, 1, 1), (8, 16, 40, 64), width=16, num_classes=5),
        (torch.randn(1, 3, 64, 64),),
    ),
    "tdsm": lambda: (TDSM(64, 2, frames=8), (torch.randn(1, 8, 64), torch.randn(1, 384))),
}
