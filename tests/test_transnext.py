"""TransNeXt end to end: the authors' outputs and spelling, its fused ops, every size, and what the files hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from authors import transnext as authors
from support.lowering import assert_nothing_constant, lower
from support.rewriting import apply, reasons
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.kernels import aggregated_attention
from edgesmith.models import registry
from edgesmith.models.checkpoint import load
from edgesmith.models.transnext import TransNeXt

PARITY = 1e-4
"""Of the largest output. The fixture itself is 1.3e-5 of 2.7 from the same network in float64."""

EAGER = 1e-5
FIXTURES = Path(__file__).parent / "fixtures"
SMALL: dict[str, Any] = {"dims": (24, 48, 48, 72), "depths": (1, 1, 1, 1), "num_classes": 7}


def build(**options: Any) -> TransNeXt:
    """A model of one block a stage, with none of its parameters too small to matter."""
    torch.manual_seed(0)
    model = TransNeXt(**{**SMALL, **options}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in ("temperature", "local", "learnable", "embedding", "norm")):
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def image(*size: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@cache
def small_program() -> Program:
    return rewrite(capture(build(), (image(64, 64),)), targets.get("onnx").costs)[0]


@pytest.fixture(params=[("transnext_micro", "transnext_micro"), ("transnext_micro_AAAA", "transnext_micro_AAAA_256")])
def fixture(request: pytest.FixtureRequest, rebuild: ModuleType, tmp_path: Path) -> tuple[str, Path, Any]:
    """A model's name, its authors' checkpoint, and their input and output."""
    name, file = request.param
    state, x, output, meta = rebuild.load(FIXTURES / f"{file}.npz")
    path = tmp_path / "checkpoint.pth"
    torch.save({meta["envelope"]: state, "epoch": 299} if meta["envelope"] else state, path)
    return name, path, (x, output)


def test_the_authors_outputs_eager(fixture: tuple[str, Path, Any]) -> None:
    name, path, (x, expected) = fixture
    model, weights = load(registry.get(name), path)
    assert weights.origin == "file checkpoint.pth"
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= PARITY * np.abs(expected).max()


@pytest.mark.slow
def test_the_authors_outputs_rewritten_and_in_onnx_runtime(fixture: tuple[str, Path, Any], tmp_path: Path) -> None:
    name, path, (x, expected) = fixture
    _, program, _ = edgesmith.explain(name, "onnx", weights=path)
    outputs = lower("onnx", program, tmp_path / "model.onnx").run([[x.numpy()]])
    assert isinstance(outputs, list)
    for found in (run(program, (x,))[0].detach().numpy(), outputs[0][0]):
        assert np.abs(found - expected).max() <= PARITY * np.abs(expected).max()


def test_state_dicts_have_the_authors_entries() -> None:
    own, theirs = (model.state_dict() for model in (build(), authors.TransNeXt(**SMALL, img_size=64)))
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("size", [64, 96])
def test_the_authors_spelling_gets_the_fused_ops_and_numbers(size: int) -> None:
    zoo = build()
    theirs = authors.TransNeXt(**SMALL, img_size=size).eval()
    theirs.load_state_dict(zoo.state_dict())
    x = image(size, size)
    with torch.no_grad():
        assert float((theirs(x) - zoo(x)).abs().max()) <= EAGER * float(zoo(x).abs().max())
    counts = apply(theirs, x, costs=targets.get("onnx").costs).counts
    assert counts["edgesmith.aggregated_attention"] == 3
    assert counts["edgesmith.conv_glu"] == 4
    assert counts["edgesmith.attention"] == 1
    assert not {"aten.im2col", "aten.index", "aten.masked_fill", "aten.unfold"} & set(counts)


def test_nothing_that_does_not_depend_on_the_input_is_left() -> None:
    program = small_program()
    assert not fold_constants.apply(program.module, targets.get("onnx").costs).applied
    counts = count_operators(program.module)
    assert not {"aten.index_select", "aten.softplus", "aten.relu", "aten.log", "aten.stack"} & set(counts)


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_operators_of_the_rewritten_graph_and_of_the_file(
    target: str, golden: Callable[[str, str], None], tmp_path: Path
) -> None:
    if targets.get(target).missing_packages():
        pytest.skip(f"{target}: not installed")
    path = tmp_path / f"small{targets.get(target).suffix}"
    counts = lower(target, small_program(), path).count_operators()
    if target == "onnx":
        assert_nothing_constant(path)
        counts = {**count_operators(small_program().module), **counts}
    golden(f"transnext_small.{target}", "".join(f"{count:5} {op}\n" for op, count in sorted(counts.items())))


def test_coreml_program_has_rank_5_at_most_and_no_constant_beyond_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from edgesmith.exporters.targets.coreml import TARGET

    model = build()
    file = lower(TARGET, small_program(), tmp_path / "small.mlpackage", precision="fp16")
    assert file.largest_rank <= 5
    largest = max(parameter.numel() for parameter in model.parameters())
    biases = [constant.numel() for _, constant in small_program().module.named_parameters()]
    assert max(biases) <= max(largest, 2 * (9 + 4) * 256)  # the largest bias, [h, 9 + P, N] of the first stage


@pytest.mark.parametrize(
    ("size", "options"), [((64, 96), {}), ((32, 32), {}), ((96, 64), {"reductions": (16, 8, 4, 2)})]
)
def test_onnx_equals_eager_at_other_sizes_and_batches(
    size: tuple[int, int], options: dict[str, Any], tmp_path: Path
) -> None:
    model, x = build(**options), image(*size, batch=2)
    program, _ = rewrite(capture(model, (x,), dynamic_batch=True), targets.get("onnx").costs)
    file = lower("onnx", program, tmp_path / "small.onnx")
    for given in (x, x[:1]):
        outputs = file.run([[given.numpy()]])
        assert isinstance(outputs, list)
        with torch.no_grad():
            expected = model(given).numpy()
        assert np.abs(outputs[0][0] - expected).max() <= EAGER * np.abs(expected).max()


def test_position_bias_is_that_of_every_pair() -> None:
    attention = build().get_submodule("block1")[0].attn
    found = attention.position_bias((12, 8), (5, 4))
    at = [F.adaptive_avg_pool1d(torch.arange(n, dtype=torch.float64)[None], k)[0] for n, k in ((12, 5), (8, 4))]
    z = [torch.arange(n)[None] - keys[:, None] for n, keys in zip((12, 8), at, strict=True)]
    z = [8 * one / (attention.pretrain_side - 1) for one in z]
    z = [one.sign() * (one.abs() + 1).log2() / 3 for one in z]
    pairs = torch.stack(
        (z[0][:, None, :, None].expand(5, 4, 12, 8), z[1][None, :, None, :].expand(5, 4, 12, 8)), dim=-1
    ).float()
    expected = attention.cpb_fc2(F.relu(attention.cpb_fc1(pairs))).permute(4, 0, 1, 2, 3).reshape(-1, 20, 96)
    assert float((found - expected).abs().max()) <= 1e-6


class Spelled(nn.Module):
    """Aggregated attention in shifted slices of a map, with what a test changes."""

    def __init__(self, masked: bool = True, wrong: bool = False) -> None:
        super().__init__()
        self.masked, self.wrong = masked, wrong
        _, _, _, *constants = aggregated_attention.example(head_width=4, cells=6)
        self.constants = nn.ParameterList(constants)
        self.q, self.kv, self.pool, self.proj = (nn.Conv2d(8, n, 1) for n in (8, 16, 16, 8))

    def forward(self, x: Tensor) -> Any:
        scale, embedding, bias, tokens, token_bias = self.constants
        if not self.masked:
            bias = bias.clamp_min(-1)
        cells = self.pool(F.avg_pool2d(x, 2)).flatten(2)
        y = aggregated_attention.reference(self.q(x), self.kv(x), cells, scale, embedding, bias, tokens, token_bias)
        if self.wrong:
            y = y + 0.01 * y.mean(dim=(2, 3), keepdim=True)
        return self.proj(y)


def test_aggregated_attention_is_found_in_slices_of_a_map() -> None:
    found = apply(Spelled(), torch.randn(1, 8, 4, 6))
    assert found.counts["edgesmith.aggregated_attention"] == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"masked": False}, "a neighbour outside of the map is not masked"),
        ({"wrong": True}, "computes other numbers"),
    ],
)
def test_aggregated_attention_is_left_where_it_is_another_thing(change: dict[str, bool], reason: str) -> None:
    found = apply(Spelled(**change), torch.randn(1, 8, 4, 6))
    assert "edgesmith.aggregated_attention" not in found.counts
    assert reason in reasons(found.reports["find_aggregated"])


class Gate(nn.Module):
    """The gate of a convolutional GLU, with what a test changes."""

    def __init__(self, approximate: str = "none", swapped: bool = False, leak: bool = False) -> None:
        super().__init__()
        self.approximate, self.swapped, self.leak = approximate, swapped, leak
        self.fc1, self.local = nn.Linear(6, 16), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Any:
        a, v = self.fc1(x).chunk(2, dim=-1)
        if self.swapped:
            a, v = v, a
        local = self.local(a.transpose(1, 2).reshape(-1, 8, 4, 5)).flatten(2).transpose(1, 2)
        gate = F.gelu(local, approximate=self.approximate)
        return (gate * v, gate) if self.leak else gate * v


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"approximate": "tanh"}, "tanh approximation"),
        ({"swapped": True}, "its second half is convolved"),
        ({"leak": True}, "is also read by"),
    ],
)
def test_conv_glu_is_found_on_tokens_and_nowhere_else(change: dict[str, Any], reason: str) -> None:
    found = apply(Gate(**change), torch.randn(2, 20, 6))
    assert found.counts.get("edgesmith.conv_glu", 0) == (not change)
    assert reason in reasons(found.reports["find_conv_glu"])


@pytest.mark.slow
def test_core_ml_work_of_micro_is_that_of_the_paper(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from edgesmith.bench.estimation.work import read_work

    artifact = edgesmith.export("transnext_micro", "coreml", out=tmp_path)
    assert artifact.manifest["verification"]["steps"][-1]["snr_db"] >= 40
    assert sum(work.macs for work in read_work(artifact.file)) <= 2.8e9
