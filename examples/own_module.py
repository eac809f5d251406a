"""A module of one's own, to a file, with the shape of its input:

    edgesmith export --module examples/own_module.py:keywords --input 1x98x40 --target onnx

From Python: `edgesmith.export(keywords(), target="onnx", inputs=(torch.randn(1, 98, 40),), name="keywords")`.
"""

from __future__ import annotations

from torch import Tensor, nn


class Keywords(nn.Module):
    """Two convolutions over time and a head. [B, T, 40] to the scores of 12 words, [B, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(40, 32, 3, padding=1), nn.BatchNorm1d(32), nn.GELU(), nn.Conv1d(32, 32, 3, padding=1), nn.GELU()
        )
        self.head = nn.Linear(32, 12)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the scores."""
        scores: Tensor = self.head(self.layers(frames.transpose(1, 2)).mean(2))
        return scores


def keywords() -> nn.Module:
    """Return the module. Load your own weights here: `module.load_state_dict(torch.load(PATH, weights_only=True))`."""
    return Keywords().eval()
