"""LongVQ-like classifiers: their equations in two forms, their facts, and what files make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import edgesmith
from edgesmith.exporters.export import explain
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.verify import verify_artifact
from edgesmith.kernels import damped_ema
from edgesmith.models import registry
from edgesmith.models.longvq import CodeAttention, DampedEma, LongVq

NAMES = ("longvq_text", "longvq_image")
SMALL = {"depth": 1, "dim": 8, "hidden": 12, "num_classes": 3, "key_width": 6, "codewords": 16, "block": 8}


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


def build_small(**options: int) -> LongVq:
    torch.manual_seed(0)
    return LongVq(**SMALL | options).eval()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_macs_are_those_of_the_table(name: str) -> None:
    spec = registry.get(name)
    with torch.device("meta"):
        model = registry.build(spec)
        kind = torch.int64 if len(spec.input.shape) == 1 else torch.float32
        x = torch.zeros(1, *spec.input.shape, dtype=kind)
        with FlopCounterMode(display=False) as counter:
            assert model(x).shape == (1, spec.classes)
    assert sum(p.numel() for p in model.parameters()) == spec.params
    assert counter.get_total_flops() // 2 == spec.macs


def test_rewritten_graph_is_the_golden(golden: Callable[[str, str], None]) -> None:
    _, after, _ = explain("longvq_text", "onnx", frames=300)
    counts = count_operators(after.module)
    assert counts["edgesmith.vector_quantise"] == counts["edgesmith.damped_ema"] == 4
    golden("longvq_text.rewritten", "".join(f"{count:5} {op}\n" for op, count in counts.items()))


def attend_directly(module: CodeAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q c(k)' + bias) v over all tokens, with the bias in the own block and those beside it."""
    distances = (k.unsqueeze(2) - module.codebook).square().sum(-1)
    keys = module.codebook[distances.argmin(-1)]
    at = torch.arange(q.shape[1])
    apart = (at.unsqueeze(1) - at).abs()
    blocks_apart = (at.unsqueeze(1) // module.block - at // module.block).abs()
    bias = module.bias[apart.clamp(max=len(module.bias) - 1)] * (blocks_apart <= 1)
    return (q @ keys.transpose(1, 2) + bias).softmax(-1) @ v


@pytest.mark.parametrize("length", [1, 7, 8, 24, 37, 64])
def test_attention_through_codes_equals_attention_over_all_quantised_keys(length: int) -> None:
    torch.manual_seed(0)
    module = CodeAttention(6, 16, 8)
    nn.init.normal_(module.bias, std=2)
    q, k, v = 3 * torch.randn(2, length, 6), 0.4 * torch.randn(2, length, 6), torch.randn(2, length, 5)
    with torch.no_grad():
        assert relative(module(q, k, v), attend_directly(module, q, k, v)) <= 1e-5


def average_step_by_step(module: DampedEma, x: Tensor) -> Tensor:
    """Mega's equations 2 and 3, one step after another, in float64."""
    alpha, delta, beta, eta = (one.double() for one in (module.alpha, module.delta, module.beta, module.eta))
    alpha, delta = alpha.sigmoid(), delta.sigmoid()
    h, outputs = torch.zeros(x.shape[0], *alpha.shape, dtype=torch.float64), []
    for t in range(x.shape[1]):
        h = alpha * (beta * x[:, t].double().unsqueeze(-1)) + (1 - alpha * delta) * h
        outputs.append((eta * h).sum(-1))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 65, 200])
def test_averages_equal_mega_s_equations(length: int) -> None:
    torch.manual_seed(0)
    module, x = DampedEma(5, 4), torch.randn(2, length, 5)
    with torch.no_grad():
        assert relative(module(x), average_step_by_step(module, x)) <= 1e-5


@settings(max_examples=300)
@given(
    st.sampled_from([1, 2, 5, 31, 32, 33, 65, 97, 130, 300]),
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 5),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_every_form_of_the_averages_holds_the_tolerance(
    length: int, batch: int, width: int, averages: int, nearest: float, seed: int
) -> None:
    """Decays from 0 to 1, both included: none is divided by, so that none overflows."""
    generator = torch.Generator().manual_seed(seed)
    decay = torch.rand(width, averages, generator=generator)
    decay = torch.where(torch.rand(width, averages, generator=generator) < 0.3, torch.tensor(nearest), decay)
    weight = torch.randn(width, averages, generator=generator)
    x = torch.randn(batch, length, width, generator=generator)
    h, outputs = torch.zeros(batch, width, averages, dtype=torch.float64), []
    for t in range(length):
        h = decay.double() * h + x[:, t].double().unsqueeze(-1)
        outputs.append((weight * h).sum(-1))
    expected = torch.stack(outputs, 1)
    largest = float((weight.abs().sum(1) * x.abs().sum(1).max()).max())
    for form in damped_ema.FORMS:
        found = damped_ema.reference(x, *damped_ema.tables(decay, weight, length), form=form)
        assert float((found - expected).abs().max()) <= 1e-5 * max(float(expected.abs().max()), 1e-2 * largest), form


def gate_by_the_equations(model: LongVq, x: Tensor) -> Tensor:
    """A block by the formulas of the module's docstring, each layer by itself."""
    block = model.blocks[0]
    normed = F.layer_norm(x, x.shape[-1:], block.norm.weight, block.norm.bias)
    m = average_step_by_step(block.ema, normed).float()
    weights, biases = block.context_proj.weight.split(block.sizes), block.context_proj.bias.split(block.sizes)
    z, gate, update, added = (m @ w.t() + b for w, b in zip(weights, biases, strict=True))
    q, k = (F.silu(z) * kappa + mu for kappa, mu in zip(block.kappa, block.mu, strict=True))
    v = F.silu(normed @ block.v_proj.weight.t() + block.v_proj.bias)
    o = attend_directly(block.attention, q, k, v)
    h = F.silu(added + (F.silu(gate) * o) @ block.h_proj.weight.t())
    phi = torch.sigmoid(update)
    y = phi * h + (1 - phi) * x
    normed = F.layer_norm(y, y.shape[-1:], block.mlp_norm.weight, block.mlp_norm.bias)
    return y + F.silu(normed @ block.fc1.weight.t() + block.fc1.bias) @ block.fc2.weight.t() + block.fc2.bias


def test_a_block_equals_its_equations() -> None:
    model = build_small()
    x = torch.randn(2, 37, 8)
    with torch.no_grad():
        assert relative(model.blocks(x), gate_by_the_equations(model, x)) <= 1e-5


def test_a_frozen_codebook_is_no_parameter_and_every_part_changes_the_output() -> None:
    model = build_small(vocabulary=9)
    ids = torch.randint(0, 9, (1, 40))
    assert "blocks.0.attention.codebook" in dict(model.named_buffers())
    with torch.no_grad():
        before = model(ids)
        for name, value in model.state_dict().items():
            kept = value.clone()
            value.add_(0.3 * torch.randn_like(value)).mul_(1.3)
            assert not torch.equal(model(ids), before), name
            value.copy_(kept)


@pytest.mark.slow
def test_a_text_is_exported_verified_and_judged_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = build_small(vocabulary=9), torch.randint(0, 9, (1, 40))
    counts = count_operators(capture(model, (ids,)).module)
    assert (counts["edgesmith.vector_quantise"], counts["edgesmith.damped_ema"]) == (1, 1)
    artifact = edgesmith.export(model, "onnx", inputs=(ids,), out=tmp_path)
    assert artifact.manifest["operators"]["file"]["ArgMax"] == 1
    verify_artifact(artifact.path)


def test_a_classifier_of_all_of_its_tokens_has_no_step(tmp_path: Path) -> None:
    from edgesmith.errors import BadInput

    with pytest.raises(BadInput, match="longvq_text reads all of its tokens before it answers"):
        edgesmith.export("longvq_text", "onnx", streaming=True, out=tmp_path)
