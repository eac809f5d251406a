"""Constants that half precision lacks: files are as PyTorch with any mask, also one that the example did not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.fast_path import FastPath
from edgesmith.exporters.precision.half import half
from edgesmith.exporters.precision.islands import type_half
from edgesmith.exporters.precision.large_constants import find_large_constants
from edgesmith.exporters.precision.table import FP16
from edgesmith.exporters.precision.task import TypingTask
from edgesmith.exporters.targets import get
from edgesmith.exporters.targets.target import NotHere

LEAST = torch.finfo(torch.float32).min
KEEPS = {"nothing masked": [1] * 6, "padded": [0, 0, 1, 1, 1, 1], "masked throughout": [0] * 6}
X = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """Attention under every spelling of a mask, one output each: [1, 6, 16] and [1, 6] to [1, 6, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("causal", torch.full((6, 6), -1e9).triu(1))
        self.register_buffer("infinite", torch.full((6, 6), -torch.inf).triu(1))
        self.register_buffer("slopes", -2e4 * (torch.arange(6.0)[:, None] - torch.arange(6.0)).abs())

    def forward(self, x: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
        scores = x @ x.transpose(1, 2)
        padded = 1.0 - keep[:, None].float()
        inverted = padded.masked_fill(padded.bool(), LEAST)
        masked = {
            "finfo.min times": scores + padded * LEAST,
            "1e9 times": scores + (keep[:, None].float() - 1) * 1e9,
            "finfo(float16).min times": scores + padded * torch.finfo(torch.float16).min,
            "filled": scores.masked_fill(keep[:, None] == 0, -1e30),
            "filled, then added": scores + inverted,
            "causal": scores + self.causal,
            "causal of minus infinity": scores + self.infinite,
            "causal and padded": scores + (self.causal + padded * LEAST).clamp(min=LEAST),
            "filled over causal": (scores + self.causal).masked_fill(keep[:, None] == 0, -1e9),
            "slopes": scores + self.slopes,
        }
        return tuple(torch.softmax(one, -1) @ x for one in masked.values())


@pytest.fixture(scope="module", params=["coreml fp16", "coreml mixed", "onnx fp16"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The file of an export whose example masks nothing."""
    target, precision = request.param.split()
    example = (X, torch.ones(1, 6, dtype=torch.int64))
    out = tmp_path_factory.mktemp("masks")
    artifact = edgesmith.export(Masked().eval(), target, inputs=example, precision=precision, name="masks", out=out)
    return get(target).open(artifact.file)


@pytest.mark.parametrize("keep", KEEPS)
def test_every_mask_is_as_in_pytorch_where_the_example_masks_nothing(file: Any, keep: str) -> None:
    inputs = (X, torch.tensor([KEEPS[keep]]))
    found = file.run([tuple(one.numpy() for one in inputs)])
    assert not isinstance(found, NotHere)
    for number, (mine, wanted) in enumerate(zip(found[0], Masked()(*inputs), strict=True)):
        error = float((torch.as_tensor(mine) - wanted).abs().max() / wanted.abs().max())
        assert error <= 4e-3, f"mask {number}, {keep}: {error}"


class Constants(nn.Module):
    """Constants that need no fp32, and two that do: in a path to a softmax, and before a matmul."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine = x.clamp(min=LEAST).softmax(-1) + (x - 3e4).sigmoid() + (x + torch.inf).tanh()
        return fine, (x * 1e5).view(16, 6).softmax(-1), (x / 1e6) @ x.transpose(1, 2)


def test_only_what_a_finite_constant_beyond_the_range_runs_through_stays_fp32() -> None:
    program = capture(Constants().eval(), (X,))
    kept = find_large_constants(program, torch.float16)
    assert sorted(name.rstrip("_0123456789") for name in kept) == ["div", "mul", "softmax", "view"]
    assert "reads the constant 1e+05, and half precision ends at 65504" in kept["mul"]
    assert find_large_constants(program, torch.bfloat16) == {}


@pytest.mark.parametrize("options", [{"finds_islands": False}, {"is_step": True}])
def test_a_constant_keeps_its_island_where_inputs_show_nothing(options: dict[str, bool]) -> None:
    program = capture(Constants().eval(), (X,))
    defaults = {"is_step": False, "types_programs": True, "finds_islands": True} | options
    task = TypingTask(
        inputs=[],
        calibration=None,
        thresholds=FP16.limits(),
        largest_int8_weight=None,
        lossy_operators=lambda _: {},
        **defaults,
    )
    assert type_half(program, task, "float16").keep_fp32 == find_large_constants(program, torch.float16)


def test_a_cast_and_a_softmax_that_name_float32_are_of_half_precision_with_the_rest() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            return (x * keep.to(torch.float32)[..., None]).softmax(-1, dtype=torch.float32) @ x.transpose(1, 2)

    inputs = (X, torch.tensor([KEEPS["padded"]]))
    program = half(capture(Named().eval(), inputs))
    assert (program.module(*inputs)[0] - Named()(*inputs)).abs().max() < 1e-2


class Padded(nn.Module):
    """PyTorch's own layers, of inputs that are padded: [2, 6, 16] and what is padded, [2, 6], to [2, 6, 16]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)

    def forward(self, x: Tensor, padded: Tensor) -> tuple[Tensor, ...]:
        attended, weights = self.attention(x, x, x, key_padding_mask=padded)
        return attended, weights, self.encoder(x, src_key_padding_mask=padded)


@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai", "tvm"])
def test_pytorchs_layers_take_a_mask_of_what_is_padded_and_the_fast_path_is_told(target: str, tmp_path: Path) -> None:
    """The encoder's fast path has zeros at padded places, which the file has not."""
    if get(target).missing_packages():
        pytest.skip(f"{target}: not installed")
    padded = torch.zeros(2, 6, dtype=torch.bool)
    padded[0, 4:] = True
    inputs = (torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)), padded)
    with pytest.warns(FastPath, match="has zeros where this model's input is padded"):
        artifact = edgesmith.export(Padded().eval(), target, inputs=inputs, name="padded", out=tmp_path)
    assert artifact.manifest["verification"]["steps"][-1]["step"] == "eager -> file"
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_transformer_without_padding_is_exported_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    capture(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), (torch.randn(1, 6, 16),))
    assert not [one for one in recwarn if issubclass(one.category, FastPath)]
