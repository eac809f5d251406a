"""Selective scans: their forms against float64, the choice between them, their models, and steps of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.lowering import lower
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.export import explain
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.choose_scan_form import choose_scan_form
from edgesmith.exporters.verify import verify_artifact
from edgesmith.kernels import leaky_sum, lif, quasiseparable, selective_scan, ssd
from edgesmith.kernels.op import FusedOp
from edgesmith.models import registry
from edgesmith.models.checkpoint import load
from edgesmith.models.hydra import Hydra, HydraBert
from edgesmith.models.mamba import Mamba

BLOCKS = ("hydra_block_d128", "mamba_block_d192")
SIZES = st.sampled_from([1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 48, 65, 97])
LARGEST_EXPONENT = 100.0


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def draw_steps(generator: torch.Generator, largest: float, *sizes: int) -> Tensor:
    """Step sizes, log-uniform from 1e-4 to `largest`, some of them 0."""
    low, high = torch.tensor(1e-4).log(), torch.tensor(largest).log()
    steps = (low + (high - low) * torch.rand(*sizes, generator=generator)).exp()
    return steps * (torch.rand(*sizes, generator=generator) > 0.05)


def doubled(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.double() for value in values)


def in_both_directions(arguments: tuple[Tensor, ...]) -> Tensor:
    """The quasiseparable mixer by its definition: two scans, each shifted away from the present, and a diagonal."""
    x, delta, a, b, c, d = arguments
    (delta_f, delta_b), (b_f, b_b), (c_f, c_b) = delta.unbind(2), b.unbind(2), c.unbind(2)
    forward = ssd.reference(x, delta_f, a, b_f, c_f)
    backward = ssd.reference(x.flip(1), delta_b.flip(1), a, b_b.flip(1), c_b.flip(1)).flip(1)
    zeros = torch.zeros_like(x[:, :1])
    both = torch.cat((zeros, forward[:, :-1]), 1) + torch.cat((backward[:, 1:], zeros), 1)
    return both + d.unsqueeze(-1) * x


@settings(max_examples=300)
@given(SIZES, st.integers(1, 2), st.integers(1, 5), st.integers(1, 9), st.floats(1e-3, 20), st.integers(0, 10**6))
def test_every_form_of_a_selective_scan_holds_the_tolerance(
    length: int, batch: int, width: int, states: int, largest: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, delta, _, b, c = selective_scan.example(width, states, length, batch)
    delta = draw_steps(generator, largest, batch, length, width)
    a = -torch.rand(width, states, generator=generator) * LARGEST_EXPONENT / largest
    arguments = (x, delta, a, b, c)
    expected = selective_scan.reference(*doubled(arguments))
    for form in selective_scan.FORMS:
        assert relative(selective_scan.reference(*arguments, form=form), expected) <= 1e-5, form


@settings(max_examples=300)
@given(
    SIZES,
    st.integers(1, 2),
    st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]),
    st.integers(1, 5),
    st.floats(1e-3, 20),
    st.integers(0, 10**6),
)
def test_every_form_of_ssd_and_of_the_quasiseparable_mixer_holds_the_tolerance(
    length: int, batch: int, heads: tuple[int, int], states: int, largest: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, _, _, b, c = ssd.example(heads[0], 3, states, heads[1], length, batch)
    delta, delta_b = (draw_steps(generator, largest, batch, length, heads[0]) for _ in range(2))
    a = -torch.rand(heads[0], generator=generator) * LARGEST_EXPONENT / largest
    arguments = (x, delta, a, b, c)
    expected = ssd.reference(*doubled(arguments))
    for form in ssd.FORMS:
        assert relative(ssd.reference(*arguments, form=form), expected) <= 1e-5, form
    both = (x, torch.stack((delta, delta_b), 2), a, torch.stack((b, c), 2), torch.stack((c, b), 2), x.mean(3))
    expected = in_both_directions(doubled(both))
    for form in quasiseparable.FORMS:
        assert relative(quasiseparable.reference(*both, form=form), expected) <= 1e-5, form


def test_differences_of_cumulative_sums_would_not_hold_it() -> None:
    """The fault that the forms avoid: exponents as S_i - S_j, where a step of -100 stands among small ones."""
    steps = torch.full((64,), -0.01)
    steps[::8] = -100.0
    sums = steps.cumsum(0)
    by_difference = (sums.unsqueeze(1) - sums.unsqueeze(0)).clamp(max=0).exp().tril()
    expected = ssd.decays_between(steps.double())
    assert relative(by_difference, expected) > 1e-5
    assert relative(ssd.decays_between(steps), expected) <= 1e-6


class Called(nn.Module):
    """One call of an op, whose arguments are all inputs."""

    def __init__(self, op: FusedOp, **options: Any) -> None:
        super().__init__()
        self.op, self.options = op, options

    def forward(self, *given: Tensor) -> Tensor:
        result: Tensor = self.op.overload(*given, **self.options)
        return result


RECURRENCES = {
    "selective_scan": (Called(selective_scan.OP), lambda batch: selective_scan.example(batch=batch)),
    "ssd": (Called(ssd.OP), lambda batch: ssd.example(batch=batch)),
    "lif": (Called(lif.OP, dim=1), lambda batch: lif.example(batch, channels=11, length=3)),
    "leaky_sum": (Called(leaky_sum.OP, decay=0.5, dim=1), lambda batch: leaky_sum.example(batch)),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", RECURRENCES)
def test_a_scan_of_batch_one_reads_its_steps_along_the_first_axis(name: str, batch: int, tmp_path: Path) -> None:
    """Along any other one ONNX Runtime copies them first."""
    model, example = RECURRENCES[name]
    inputs = example(batch)
    path = tmp_path / "m.onnx"
    outputs = lower("onnx", capture(model, inputs), path).run([[x.numpy() for x in inputs]])
    assert isinstance(outputs, list)
    assert relative(torch.from_numpy(outputs[0][0]), model(*doubled(inputs))) <= 1e-6
    (scan,) = (node for node in onnx.load(path).graph.node if node.op_type == "Scan")
    axes = {one.name: list(one.ints) for one in scan.attribute if one.name.endswith("_axes")}
    assert {axis for found in axes.values() for axis in found} <= {batch - 1}  # 0, the default, may be left out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_forms_are_as_good_as_a_loop_in_half_precision(dtype: torch.dtype) -> None:
    arguments = ssd.example(length=97)
    expected = ssd.reference(*doubled(arguments))
    typed = tuple(value.to(dtype) for value in arguments)
    loop = relative(ssd.reference(*typed), expected)
    for form in ssd.FORMS:
        assert relative(ssd.reference(*typed, form=form), expected) <= 2 * loop, form


@pytest.mark.parametrize("name", BLOCKS)
def test_the_authors_outputs_are_reproduced_from_their_checkpoints(
    name: str, rebuild: ModuleType, fixtures: Path, tmp_path: Path
) -> None:
    state, x, expected, _ = rebuild.load(fixtures / f"{name}.npz")
    save_file(state, tmp_path / "model.safetensors")
    model, _ = load(registry.get(name), tmp_path / "model.safetensors")
    assert list(model.state_dict()) == list(state)
    assert sum(p.numel() for p in model.parameters()) == registry.get(name).params
    with torch.no_grad():
        assert relative(model(x), torch.from_numpy(expected).double()) <= 1e-5


@pytest.mark.parametrize("name", BLOCKS)
def test_the_authors_outputs_are_reproduced_in_onnx_runtime(
    name: str, rebuild: ModuleType, fixtures: Path, tmp_path: Path
) -> None:
    import onnxruntime

    state, x, expected, _ = rebuild.load(fixtures / f"{name}.npz")
    save_file(state, tmp_path / "model.safetensors")
    artifact = edgesmith.export(name, "onnx", weights=tmp_path / "model.safetensors", out=tmp_path)
    session = onnxruntime.InferenceSession(artifact.file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"frames": x.numpy()})
    assert relative(torch.from_numpy(found), torch.from_numpy(expected).double()) <= 1e-5
    counts = artifact.manifest["operators"]["file"]
    assert counts.get("Scan", 0) == (name == "mamba_block_d192")
    assert sum(counts.values()) < 100


def test_reversing_time_is_swapping_the_directions() -> None:
    torch.manual_seed(0)
    model = Hydra(16, state=4, head_dim=8).double()
    swapped = Hydra(16, state=4, head_dim=8).double()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    inner, rows, heads = 32, 8, 4  # rows of B and C of one direction
    weight, kernel, bias = state["in_proj.weight"], state["conv1d.weight"], state["conv1d.bias"]
    order = [*range(inner), *range(inner + rows, inner + 2 * rows), *range(inner, inner + rows)]
    state["conv1d.weight"], state["conv1d.bias"] = kernel[order].flip(2), bias[order]
    ends = [2 * inner + 2 * rows + i for i in (*range(heads, 2 * heads), *range(heads))]
    state["in_proj.weight"] = weight[[*range(inner), *(inner + i for i in order), *ends]]
    swapped.load_state_dict(state)
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        assert relative(swapped(x.flip(1)).flip(1), model(x)) <= 1e-12


class Scan(nn.Module):
    """One call of the op."""

    def forward(self, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        y: Tensor = selective_scan.OP.overload(x, delta, a, b, c)
        return y


@pytest.mark.parametrize(
    ("costs", "form"),
    [
        (Costs(3.0, loop_us=0.8, stream_gb_s=25, read_gb_s=75), None),
        (Costs(2.4, loop_us=2.4, stream_gb_s=50), "blocked"),
    ],
)
def test_the_cheapest_form_is_chosen_once_and_the_others_costs_are_reported(costs: Costs, form: str | None) -> None:
    sizes = ((1, 196, 384), (1, 196, 384), (384, 16), (1, 196, 16), (1, 196, 16))
    program = capture(Scan(), tuple(torch.rand(size) for size in sizes))
    report = choose_scan_form.apply(program.module, costs)
    (node,) = (node for node in program.module.graph.nodes if node.target is selective_scan.OP.overload)
    texts = [note for _, note in report.applied] + [one.reason for one in report.rejected]
    assert len(texts) == 1
    assert "recurrent" in texts[0]
    assert "blocked" in texts[0]
    assert (node.args[5] if len(node.args) > 5 else None) == form
    assert bool(choose_scan_form.apply(program.module, costs).applied) is False


@pytest.mark.parametrize(("target", "form"), [("onnx", "recurrent"), ("coreml", "blocked")])
def test_explain_says_which_form_and_what_the_others_cost(target: str, form: str) -> None:
    _, after, reports = explain("mamba_block_d192", target)
    report = next(report for report in reports if report.name == "choose_scan_form")
    text = report.applied[0][1] if report.applied else report.rejected[0].reason
    assert text.endswith(form)
    assert count_operators(after.module)["edgesmith.selective_scan"] == 1


class Causal(nn.Module):
    """A Mamba mixer and an SSD scan, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.mamba, self.steps = Mamba(8, state=4), nn.Linear(8, 2)
        self.rows = nn.Linear(8, 8)
        self.register_buffer("a", torch.tensor([-0.5, -2.0]))
        self.a: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mamba(x)
        b, c = self.rows(x).reshape(*x.shape[:2], 2, 1, 4).unbind(2)
        delta = nn.functional.softplus(self.steps(x))
        y: Tensor = ssd.OP.overload(x.reshape(*x.shape[:2], 2, 4), delta, self.a, b, c)
        return y.flatten(2)


@pytest.mark.parametrize("target", ["onnx"])
def test_a_step_equals_the_sequence_and_its_states_do_not_grow(target: str, tmp_path: Path) -> None:
    sizes: list[Any] = []
    for length in (12, 50):
        torch.manual_seed(0)
        model, x = Causal(), torch.randn(1, length, 8)
        artifact = edgesmith.export(model, target, inputs=(x,), streaming=True, out=tmp_path / str(length))
        streaming = artifact.manifest["streaming"]
        sizes.append([state["shape"] for state in streaming["states"]])
        assert [1, 4, 16] in sizes[-1]
        assert [1, 2, 4, 4] in sizes[-1]
    assert sizes[0] == sizes[1]


def test_a_mixer_in_both_directions_has_no_step_and_says_why(tmp_path: Path) -> None:
    from edgesmith.errors import Unsupported

    with pytest.raises(Unsupported, match="scans its sequence backwards too, so that the first frame waits"):
        edgesmith.export("hydra_block_d128", "onnx", streaming=True, frames=128, out=tmp_path)


@pytest.mark.parametrize(("classes", "shape"), [(None, (2, 9, 96)), (3, (2, 3))])
def test_hydra_bert_has_the_authors_keys_and_both_heads(classes: int | None, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = HydraBert(vocabulary=96, depth=1, dim=64, num_classes=classes).eval()
    keys = set(model.state_dict())
    assert "bert.encoder.layer.0.layer.mixer.in_proj.weight" in keys
    assert "bert.encoder.layer.0.layer.norm.bias" in keys
    head = {"cls.predictions.transform.LayerNorm.weight", "cls.predictions.decoder.weight"}
    assert head <= keys if classes is None else {"bert.pooler.dense.weight", "classifier.weight"} <= keys
    with torch.no_grad():
        assert model(torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.int64)).shape == shape


def test_a_hydra_berts_checkpoint_says_its_sizes_and_its_file_is_verified_again(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = HydraBert(vocabulary=96, depth=1, dim=64)
    state = {f"model.{key}": value.clone() for key, value in model.state_dict().items()}
    torch.save({"state": {"model": state}}, tmp_path / "composer.pt")
    torch.save(state, tmp_path / "bare.pt")
    artifact = edgesmith.export("hydra_bert", "onnx", weights=tmp_path / "bare.pt", frames=12, out=tmp_path)
    assert [one["name"] for one in artifact.manifest["model"]["inputs"]] == ["input_ids", "token_type_ids"]
    assert artifact.manifest["operators"]["captured"]["edgesmith.quasiseparable"] == 1
    verify_artifact(artifact.path)
    loaded, _ = load(registry.get("hydra_bert"), tmp_path / "composer.pt")
    assert torch.equal(loaded.state_dict()["bert.embeddings.word_embeddings.weight"], next(iter(state.values())))


class Sums(nn.Module):
    """Running sums along axes that are counted from the end."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-2) + x.cumsum(-3) + x.cumsum(-1)


def test_core_ml_takes_running_sums_along_any_axis(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    artifact = edgesmith.export(Sums(), "coreml", inputs=(torch.randn(2, 3, 4),), out=tmp_path)
    assert artifact.manifest["operators"]["file"]["cumsum"] == 3


def test_core_ml_takes_a_hydra_mixer_in_half_precision(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    torch.manual_seed(0)
    model, x = Hydra(16, state=4, head_dim=8), torch.randn(1, 12, 16)
    artifact = edgesmith.export(model, "coreml", inputs=(x,), precision="fp16", out=tmp_path)
    counts = artifact.manifest["operators"]["file"]
    assert not {"while_loop", "reverse", "gather"} & set(counts)
