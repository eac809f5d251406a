"""The inputs that a file is verified on, and errors in a lowered file that only one kind of them shows."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.formula import Formula
from support.lowering import lower
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import BadInput, Unreadable, Unsupported, VerificationFailed
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets
from edgesmith.exporters.figures import Scale, is_whole, measure_call, wrong_parts
from edgesmith.exporters.graph.capture import Program, capture, with_module
from edgesmith.exporters.inputs import ADVERSARIAL, Call, changeable, draw, make
from edgesmith.exporters.judge import Unverified
from edgesmith.exporters.outputs import as_compared, distances
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.task import Thresholds
from edgesmith.exporters.targets.target import Request, Target
from edgesmith.exporters.verification.check import AcceptanceCriteria, check
from edgesmith.exporters.verification.corners import corners
from edgesmith.exporters.verification.noise import NoiseMeter
from edgesmith.exporters.verify import read_evidence, verify_artifact
from edgesmith.models import registry
from edgesmith.models.registry import ImageInput

FP32 = Thresholds(1e-5, 100.0)
TARGETS = ("onnx", "coreml", "coreai", "tensorrt")


class Net(nn.Module):
    """Two layers. [B, N, 6] -> [B, N, 4]"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


EXAMPLE = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


def export(model: nn.Module, target: str, out: Path, **options: Any) -> edgesmith.Artifact:
    if targets.get(target).missing_packages():
        pytest.skip(f"{target} is not installed")
    device = {"device": "jetson-orin-nano"} if target == "tensorrt" else {}
    return edgesmith.export(model, target, out=out, **device, **options)


# errors in the lowered file


class Faulty(nn.Module):
    """A program that is given something else than its input."""

    def __init__(self, program: Program, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.program, self.fault = program.module, fault

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.program(self.fault(x))
        return y


FAULTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "the example alone": ("the example", lambda x: torch.where((x - EXAMPLE).abs().max() < 1e-4, x + 1, x)),
    "zeros alone": ("zeros", lambda x: torch.where(x == 0, torch.ones_like(x), x)),
    "loud inputs": ("the loud input", lambda x: x.clamp(-100, 100)),
    "quiet inputs": ("the quiet input", lambda x: torch.where(x.abs() < 4e-3, x * 0.6, x)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_wrong_only_on_one_kind_of_input_is_refused(
    target: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, function = FAULTS[fault]
    kind = type(targets.get(target))
    right = kind.lower

    def wrong(self: Target, program: Program, path: Path, request: Request) -> None:
        inputs = (program.input_names, program.output_names)
        module = capture(Faulty(program, function), program.inputs, *inputs).module
        right(self, with_module(program, module), path, request)

    monkeypatch.setattr(kind, "lower", wrong)
    with pytest.raises(VerificationFailed, match=f"eager -> file: .*, on {named}"):
        export(Net(), target, tmp_path, inputs=EXAMPLE, precision="fp32")
    assert list(tmp_path.iterdir()) == []


# errors that only what a program asks for shows

TABLE = torch.randn(40, 4, generator=torch.Generator().manual_seed(2))
SWAPPED = TABLE[[39, *range(1, 39), 0]]
TOKENS = torch.tensor([[3, 7, 7, 21, 30]])
KEPT = torch.ones(2, 5, dtype=torch.int64)
HASHED = torch.randint(0, 2**20, (3, 4), generator=torch.Generator().manual_seed(5))
SCORED = torch.randn(8, 300, generator=torch.Generator().manual_seed(3))
X32 = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(4)) * 2


def masked_mean(x: Tensor, mask: Tensor, least: float = 1.0) -> Tensor:
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=least)


def boxes(x: Tensor, scored: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([x * 500, scored(x) * 0.01], -1)


PLANTED: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...], str]] = {
    "a border left out": (
        lambda x: torch.where(x >= 0.5, x - 1, x),
        lambda x: torch.where(x > 0.5, x - 1, x),
        (X32,),
        "on the levels input",
    ),
    "a threshold one per cent off": (
        lambda x: torch.where(x > 0.7, x - 1, x),
        lambda x: torch.where(x > 0.707, x - 1, x),
        (X32,),
        "on the levels input",
    ),
    "a bound of a bucket": (
        lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.3, 1.1])),
        lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.3, 1.1]), right=True),
        (X32,),
        "on the levels input",
    ),
    "two inputs that are equal": (
        lambda x, y: torch.where(x > y, x, 2 * y),
        lambda x, y: torch.where(x >= y, x, 2 * y),
        (X32, X32.flip(0)),
        "on the levels input",
    ),
    "halves rounded up": (
        lambda x: x.round(),
        lambda x: (x + 0.5).floor(),
        (X32,),
        "on the levels input",
    ),
    "missing values that stay": (
        lambda x: torch.where(x.isnan(), torch.zeros_like(x), x) * 2,
        lambda x: x * 2,
        (X32,),
        "finite in PyTorch are not, on the missing input",
    ),
    "the first and the last row of a table": (
        lambda i: TABLE[i] * 2,
        lambda i: SWAPPED[i] * 2,
        (TOKENS,),
        "on the rows input",
    ),
    "a mask that is not looked at": (
        masked_mean,
        lambda x, mask: x.mean(1) + 0 * mask.sum(),
        (EXAMPLE, KEPT),
        "on the empty input",
    ),
    "a mask that hides everything": (
        masked_mean,
        lambda x, mask: masked_mean(x, mask, 1e-30) + torch.where(mask.sum(1, keepdim=True) > 0, 0.0, 1.0),
        (EXAMPLE, KEPT),
        "on the empty input",
    ),
    "the bound of a mask's count": (
        masked_mean,
        lambda x, mask: masked_mean(x, mask, 1.1),
        (EXAMPLE, KEPT),
        "on the single input",
    ),
    "large whole numbers one off": (
        lambda x: x.argmax(-1) + 200000 * torch.arange(4),
        lambda x: x.argmax(-1) + 200000 * torch.arange(4) + 1,
        (X32,),
        "of .* whole numbers are others than in PyTorch",
    ),
    "integers that float32 has not": (
        lambda i: i * 3 + 2**29,
        lambda i: (i * 3 + 2**29) // 64 * 64,
        (HASHED,),
        "of .* whole numbers are others than in PyTorch",
    ),
    "scores beside boxes": (
        lambda x: boxes(x, torch.sigmoid),
        lambda x: boxes(x, F.hardsigmoid),
        (X32,),
        "of the peak of index .* of axis 2",
    ),
}


def plant(target: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a target lower another function than the one that it is given."""
    kind = type(targets.get(target))
    right = kind.lower

    def lower(self: Target, program: Program, path: Path, request: Request) -> None:
        names = (program.input_names, program.output_names)
        module = capture(Formula(wrong), program.inputs, *names).module
        right(self, with_module(program, module), path, request)

    monkeypatch.setattr(kind, "lower", lower)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", PLANTED)
def test_a_file_that_is_wrong_where_nothing_is_drawn_is_refused(
    target: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong, inputs, words = PLANTED[fault]
    made = export(Formula(right), target, tmp_path / "right", inputs=inputs, precision="fp32", name="right")
    if target == "onnx":
        _, steps = edgesmith.verify(made.path)
        assert made.manifest["verification"]["steps"][-1] in steps
    plant(target, wrong, monkeypatch)
    with pytest.raises(VerificationFailed, match=f"eager -> file: .*{words}"):
        export(Formula(right), target, tmp_path / "wrong", inputs=inputs, precision="fp32")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai"])
@pytest.mark.parametrize(
    "fault", ["large whole numbers one off", "integers that float32 has not", "scores beside boxes"]
)
def test_what_a_large_peak_hides_in_a_stored_file_is_refused(target: str, fault: str, tmp_path: Path) -> None:
    right, wrong, inputs, words = PLANTED[fault]
    made = export(Formula(right), target, tmp_path / "right", inputs=inputs, precision="fp32", name="right")
    assert made.manifest["verification"]["inputs"]["noise"] == "not asked"
    program = capture(Formula(wrong), inputs)
    if made.file.is_dir():
        shutil.rmtree(made.file)
    lower(target, program, made.file, name="right")
    artifacts.write_manifest(made.path, made.manifest)
    with pytest.raises(VerificationFailed, match=words):
        verify_artifact(made.path)
    del made.manifest["verification"]["inputs"]["noise"]  # of an older artifact, which does not say what it excused
    artifacts.write_manifest(made.path, made.manifest)
    verify_artifact(made.path)


def test_numbers_that_rounding_moves_off_whole_ones_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A softmax of one number is 1, whole in PyTorch by chance, and 1 - 1e-6 is no other whole number."""

    def ones(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.unsqueeze(-1).softmax(-1), x

    plant("onnx", lambda x: (ones(x)[0] * (1 - 1e-6), x), monkeypatch)
    export(Formula(ones), "onnx", tmp_path / "near", inputs=(X32,), precision="fp32")
    monkeypatch.undo()
    plant("onnx", lambda x: (ones(x)[0] * (1 - 2e-5), x), monkeypatch)
    with pytest.raises(VerificationFailed, match="error 2e-05 of the peak"):
        export(Formula(ones), "onnx", tmp_path / "far", inputs=(X32,), precision="fp32")


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_places_one_off_are_refused_in_half_precision(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(x: Tensor) -> Tensor:
        return x.argmax(-1)

    export(Formula(place), target, tmp_path / "right", inputs=(SCORED,), precision="fp16", name="right")
    plant(target, lambda x: (x.argmax(-1) - 1).clamp(min=0), monkeypatch)
    with pytest.raises(VerificationFailed, match="whole numbers are others than in PyTorch"):
        export(Formula(place), target, tmp_path / "wrong", inputs=(SCORED,), precision="fp16")


def asked(function: Callable[..., Any], *inputs: Tensor) -> list[str]:
    return [calls[0].kind for calls in corners(capture(Formula(function), inputs))]


def test_a_program_is_asked_for_what_its_operators_need_and_nothing_further() -> None:
    assert asked(lambda x: torch.relu(x @ x.transpose(1, 2)).softmax(-1), X32) == []
    assert asked(lambda x: x.clamp(-0.5, 0.5), X32) == ["levels", "levels"]
    assert asked(lambda x: (x * 40).long(), X32) == ["levels"]
    assert asked(lambda x, y: x + (y > 3), X32, KEPT[:, :4, None] * 5) == []
    assert asked(lambda x: x.nan_to_num(0.0), X32) == ["missing", "infinite"]
    assert asked(lambda i: TABLE[i], TOKENS) == ["rows"] * 8
    assert asked(lambda i: TABLE[i], torch.arange(40)) == ["rows"]
    assert asked(lambda i: i * 2, torch.arange(0, 20000, 500)) == ["rows"]
    ones_and_zeros = torch.tensor([1, 0, 0, 1, 1])
    assert asked(lambda i: TABLE[i], ones_and_zeros)[:8] == ["rows"] * 8  # indices of a table are no mask
    assert "rows" not in asked(lambda i: i * 2, ones_and_zeros)
    assert asked(lambda x, m: x * m[..., None], EXAMPLE, KEPT) == ["full", "part", "single", "empty"]


def test_levels_are_the_programs_numbers_and_weights_are_none() -> None:
    layer = nn.Linear(8, 2)
    (calls,) = list(corners(capture(Formula(lambda x: layer(x) > 0.25), (X32,))))[:1]
    assert calls[0].values == (0.25, 0.25 * (1 + 2**-7), 0.25 * (1 - 2**-7))
    (levels,) = make(calls[0], [X32], None, False)
    assert {0.25, 0.25 * (1 + 2**-7), 0.25 * (1 - 2**-7)} <= set(levels.flatten().tolist())
    assert bool(((2 * levels).round() == 2 * levels).any())
    (zeroed,) = list(corners(capture(Formula(lambda x: x > 3000.0), (X32,))))  # it never comes to that
    assert zeroed[0].values == ()


def test_rows_of_several_calls_are_every_row_of_a_table_that_they_can_hold() -> None:
    drawn = [make(Call("rows", seed=seed, values=(0, 39, 8)), [TOKENS], None, False)[0] for seed in range(8)]
    assert set(torch.cat(drawn).flatten().tolist()) == set(range(40))
    few = [make(Call("rows", seed=seed, values=(0, 999, 2)), [TOKENS], None, False)[0] for seed in range(2)]
    assert {0, 999} <= set(torch.cat(few).flatten().tolist())


def test_what_steps_on_an_input_as_it_is_has_no_noise_on_levels() -> None:
    step, scaled = Formula(lambda x: (x >= 0.3).float()), Formula(lambda x: (x * 1.1 >= 0.33).float())
    given = [[torch.tensor([0.3, 0.2, 0.4])]]
    for model, least in ((step, 0.0), (scaled, 1.0)):
        reference = [[model(*x).numpy()] for x in given]
        for dtype in ("float32", "float16"):
            assert NoiseMeter(model, given, reference, [0]).measure(dtype) == [[least]], dtype


def test_parts_are_judged_where_they_have_values_and_are_more_than_rounding() -> None:
    y = [np.concatenate([1000 * SCORED[:, :20, None], SCORED[:, :20, None]], -1)]
    z = [y[0] * np.array([1.0, 1.5], np.float32)]
    (part,) = wrong_parts(y, z, 0.1, 1e-6)
    assert (part.axis, part.index) == (2, 1)
    assert str(part) == "error 0.5 of the peak of index 1 of axis 2"
    assert wrong_parts(y, z, 0.6, 1e-6) == []
    assert wrong_parts(y, z, 0.1, 0.1) == []
    assert wrong_parts([y[0][:, :1]], [z[0][:, :1]], 0.1, 1e-6) == []  # eight values of it
    assert is_whole([np.array([3.0, 0.0])])
    assert not is_whole([np.array([3.5, 0.0])])
    assert not is_whole([np.zeros(3)])
    assert not is_whole([np.array([2.0**24])])


# what is drawn


def test_drawn_values_keep_sign_range_and_wholeness() -> None:
    positive = torch.rand(4, 50) + 0.1
    whole = torch.randint(-300, 300, (4, 50)).float()
    for seed in range(1, 4):
        drawn = draw(positive, seed)
        assert not torch.equal(drawn, positive)
        assert float(positive.min()) <= float(drawn.min())
        assert float(drawn.max()) <= float(positive.max())
        assert abs(float(drawn.median() - positive.median())) < 0.15
        assert set(draw(whole, seed).flatten().tolist()) <= set(whole.flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("axis", [1, -1])
def test_one_hot_vectors_stay_one_hot(dtype: torch.dtype, axis: int) -> None:
    vectors = F.one_hot(torch.randint(0, 5, (3, 7)), 5).to(dtype).movedim(-1, axis)
    drawn = draw(vectors, 1)
    assert drawn.sum(axis).eq(1).all()
    assert not torch.equal(drawn, vectors)


def test_a_rising_row_of_whole_numbers_rises_again() -> None:
    for seed in range(4):
        drawn = draw(torch.tensor([0, 3, 5, 9]), seed)
        assert drawn.diff().min() >= 0
        assert drawn.min() >= 0
        assert drawn.max() <= 9
    assert any(draw(torch.tensor([0, 9, 3, 5]), seed).diff().min() < 0 for seed in range(4))


def test_constant_examples_are_placeholders() -> None:
    assert draw(torch.zeros(200), 1).std() > 0.8
    around = draw(torch.full((200,), -2.5), 1)
    assert -3.75 <= float(around.min()) < float(around.max()) <= -1.25
    assert set(draw(torch.ones(200), 1).tolist()) == {0.0, 1.0}
    assert draw(torch.tensor(16.0), 1) == draw(torch.tensor(16.0), 1).round()
    infinite = draw(torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]), 1)
    assert set(infinite.tolist()) <= {0.0, -torch.inf}


def test_adversarial_inputs_leave_integers_and_masks_alone() -> None:
    x, mask, tokens = torch.randn(2, 3, 4), torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([3, 5])
    assert changeable([x, mask, tokens]) == [0]
    assert changeable([mask, tokens]) == [0]
    for kind in ADVERSARIAL:
        factor = {"loud": 10.0, "quiet": 0.1}.get(kind)
        changed, *others = make(Call(kind, factor=factor), [x, mask, tokens], None, False)
        assert not torch.equal(changed, x)
        assert torch.equal(others[0], mask)
        assert torch.equal(others[1], tokens)
    padded = make(Call("padded"), [x], None, False)[0]
    assert not padded[:, -1].any()
    assert not padded[..., -1].any()
    assert torch.equal(padded[:, :-1, :-1], x[:, :-1, :-1])


def test_an_image_input_has_pictures_of_bytes_alone() -> None:
    image = registry.get("casvit_xs").input
    assert isinstance(image, ImageInput)
    mean, std = (torch.tensor(one).reshape(1, -1, 1, 1) for one in (image.mean, image.std))
    for call in (Call("zeros"), Call("constant"), Call("padded"), Call("seeded", 3)):
        (x,) = make(call, [torch.zeros(1, 3, 8, 8)], image, False)
        bytes_ = (x * std + mean) * 255
        assert float((bytes_ - bytes_.round()).abs().max()) < 1e-3
        assert -1e-3 < float(bytes_.min()) <= float(bytes_.max()) < 255.001


# models of the caller's own data


def test_audio_of_16_bits_is_refused_in_half_precision_on_the_callers_example(tmp_path: Path) -> None:
    energy = Formula(lambda x: (x * x).mean(-1).sqrt())
    with pytest.raises(VerificationFailed, match=r"on the example.*use --precision mixed or fp32"):
        export(energy, "coreml", tmp_path, inputs=(torch.rand(1, 40, 10) * 3000,), precision="fp16")


def test_logarithms_and_look_ups_by_computed_index_are_exported(tmp_path: Path) -> None:
    power = torch.rand(1, 40, 10) + 0.1
    made = export(Formula(lambda x: torch.log(x).sum((1, 2))), "onnx", tmp_path, inputs=(power,), name="log")
    inputs = made.manifest["verification"]["inputs"]
    assert [call["kind"] for call in inputs["calls"]][:2] == ["example", "drawn"]
    assert [one.split(":")[0] for one in inputs["left_out"]] == ["zeros", "padded"]
    table = export(
        Formula(lambda x: torch.arange(50.0)[(x * 40).long()]), "onnx", tmp_path, inputs=(power,), name="table"
    )
    assert "loud: PyTorch does not run on it" in table.manifest["verification"]["inputs"]["left_out"]
    for artifact in (made, table):
        _, steps = edgesmith.verify(artifact.path)
        assert artifact.manifest["verification"]["steps"][-1] in steps


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_an_input_whose_result_is_the_order_of_equal_numbers_does_not_count(target: str, tmp_path: Path) -> None:
    def best(x: Tensor) -> Tensor:
        places = x.square().sum(-1).topk(3, 1).indices
        return x.gather(1, places[..., None].expand(-1, -1, 6)) + torch.arange(3)[:, None] + places[..., None]

    made = edgesmith.export(Formula(best), target, inputs=(EXAMPLE,), precision="fp32", out=tmp_path)
    left_out = made.manifest["verification"]["inputs"]["left_out"]
    assert any(one.startswith("zeros: PyTorch picks among equal numbers") for one in left_out)
    values = edgesmith.export(
        Formula(lambda x: x.topk(3, 1).values), target, inputs=(EXAMPLE,), precision="fp32", out=tmp_path
    )
    assert not any("equal numbers" in one for one in values.manifest["verification"]["inputs"].get("left_out", []))


def test_the_loud_input_of_half_precision_stays_within_its_range(tmp_path: Path) -> None:
    def factors(function: Callable[[Tensor], Tensor], precision: str) -> dict[str, float]:
        x = (torch.rand(1, 16, generator=torch.Generator().manual_seed(0)) + 1,)
        made = export(Formula(function), "onnx", tmp_path, inputs=x, precision=precision)
        calls = made.manifest["verification"]["inputs"]["calls"]
        return {call["kind"]: call["factor"] for call in calls if "factor" in call}

    assert factors(lambda x: x * 3, "fp32") == {"quiet": 1e-3, "loud": 1e3}
    assert factors(lambda x: x * 3, "fp16") == {"quiet": 1e-3, "loud": 1e3}
    assert factors(lambda x: (x * x).sqrt(), "fp16") == {"quiet": 1e-1, "loud": 1e1}
    assert factors(lambda x: (x * x).sqrt(), "fp32") == {"quiet": 1e-3, "loud": 1e3}


def test_data_of_ones_own_replace_the_drawn_inputs_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    data = np.random.default_rng(0).standard_normal((20, 5, 6)).astype(np.float32)
    np.savez(path, x=data)
    made = export(Net(), "onnx", tmp_path / "out", inputs=EXAMPLE, verify_inputs=path, precision="fp16")
    path.unlink()
    inputs = made.manifest["verification"]["inputs"]
    kinds = [call["kind"] for call in inputs["calls"]]
    assert kinds.count("given") == 8
    assert set(kinds) == {"example", "given", *ADVERSARIAL}
    assert inputs["given"]["samples"] == 20
    _, steps = edgesmith.verify(made.path)
    assert made.manifest["verification"]["steps"][-1] in steps


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"y": np.zeros((4, 5, 6), np.float32)}, r"--inputs: .* has y, and the model's inputs are x; x is missing"),
        ({"x": np.zeros((4, 5, 7), np.float32)}, r"--inputs: x in .* must be \[N, 5, 6\], got \[4, 5, 7\]"),
        ({"x": np.zeros((1, 5, 6), np.float32)}, r"--inputs: .* holds 1 samples; wanted 2 at least, one batch of 2"),
    ],
)
def test_a_wrong_file_is_answered_before_the_model_is_captured(
    arrays: dict[str, np.ndarray], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def captured(*_: Any) -> None:
        raise AssertionError("captured")

    monkeypatch.setattr("edgesmith.exporters.export.capture", captured)
    np.savez(tmp_path / "own.npz", **arrays)
    options: dict[str, Any] = {"inputs": EXAMPLE, "out": tmp_path / "out"}
    with pytest.raises(BadInput, match=sentence):
        edgesmith.export(Net(), "onnx", verify_inputs=tmp_path / "own.npz", **options)
    with pytest.raises(BadInput, match="--inputs: there is no"):
        edgesmith.export(Net(), "onnx", verify_inputs=tmp_path / "none.npz", **options)


# one call at a time


def test_each_call_is_judged_by_its_own_peak() -> None:
    quiet, scales = [np.array([1e-3, 2e-3], np.float32)], [Scale(1.0, 0.5)]
    assert measure_call(quiet, quiet, scales, FP32).failure is None
    assert "error 0.38 of the peak" in str(measure_call(quiet, [quiet[0] * np.float32(0.62)], scales, FP32).failure)
    assert "nothing but zeros" in str(measure_call([0 * quiet[0]], quiet, scales, FP32).failure)
    assert measure_call([0 * quiet[0]], [quiet[0] * np.float32(2e-5)], scales, FP32).failure is None
    broken = [np.array([np.nan, 2e-3], np.float32)]
    assert "finite in PyTorch" in str(measure_call(quiet, broken, scales, FP32).failure)


def test_noise_excuses_what_rounding_does_on_the_very_input_and_no_more_than_its_limit() -> None:
    constant, scales = [np.array([1e-6, -1e-6], np.float32)], [Scale(1.0, 0.5)]
    other = [np.array([3e-6, 0], np.float32)]
    assert measure_call(constant, other, scales, FP32).failure is not None
    assert measure_call(constant, other, scales, FP32, [1e-6]).failure is None
    far = [constant[0] + np.float32(1e-3)]
    said = "error 1e+03 of the peak, allowed 1e+02: the model magnifies rounding, which alone moves PyTorch's by 1e+06"
    assert measure_call(constant, far, scales, FP32, [1.0]).failure == said
    assert "magnifies" not in str(measure_call(constant, far, scales, FP32, [1e-6]).failure)
    assert measure_call(constant, far, scales, FP32, [1.0], is_natural=False).failure is None


def test_the_norm_of_a_constant_row_is_noise() -> None:
    norm = nn.LayerNorm(48, elementwise_affine=False)
    given = [[torch.full((1, 48), 0.1)], [torch.randn(1, 48)]]
    noise = NoiseMeter(norm, given, [[norm(x).numpy()] for (x,) in given]).measure("float32")
    assert noise is not None
    assert 1e-7 < noise[0][0] < 1e-4
    assert noise[1][0] < 1e-5


class Cancelling(nn.Module):
    """A weighted sum that nearly cancels, in one part or in several, through something steep."""

    def __init__(self, weight: Tensor, parts: int) -> None:
        super().__init__()
        self.weight, self.parts = nn.Parameter(weight), parts

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i :: self.parts] @ self.weight[i :: self.parts] for i in range(self.parts)]
        return (300 * sum(parts[1:], parts[0])).sigmoid()


def test_what_one_movement_does_not_excuse_is_asked_of_several() -> None:
    """One of few values may be moved by less than a fourth of what rounding does there otherwise."""
    refused = {False: 0, True: 0}
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        x, weight = torch.randn(1, 64, generator=generator), torch.randn(64, 1, generator=generator)
        weight = weight - x.T * (x @ weight) / (x * x).sum()
        model, other = Cancelling(weight, 1), Cancelling(weight, 8)
        reference, made = ([[one(x).detach().numpy()]] for one in (model, other))
        for is_asked_again in (False, True):
            meter = NoiseMeter(model, [[x]], reference)
            again = {"noise_again": meter.draw_again} if is_asked_again else {}
            criteria = AcceptanceCriteria(precisions.FP32, False, lambda: None, noise_of_calls=meter.measure, **again)
            try:
                check("one -> parts", reference, made, criteria, described=[Call("loud", factor=1.0)])
            except VerificationFailed:
                refused[is_asked_again] += 1
            off = [[made[0][0] + 0.01]]
            with pytest.raises(VerificationFailed, match="of the peak, allowed"):
                check("one -> off", reference, off, criteria, described=[Call("loud", factor=1.0)])
    assert refused[True] == 0
    assert refused[False] >= 5


def test_noise_of_zeros_and_of_what_a_movement_takes_out_of_its_range_is_no_error() -> None:
    zeros = [np.zeros(2, np.float32)]
    failure = measure_call(zeros, [zeros[0] + np.float32(1e-8)], [Scale(0.0, 0.0)], FP32, [1e-8]).failure
    assert failure is not None
    assert "where PyTorch has nothing but zeros" in failure

    class Looked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(4)[(4 * x).long()] + x[:, None]

    edge = torch.tensor([np.nextafter(np.float32(1), np.float32(0))] * 64)
    meter = NoiseMeter(Looked(), [[edge]], [[Looked()(edge).numpy()]])
    meter._gaps["float32"] = [[np.zeros((64, 4))]]
    assert meter.draw_again("float32", [0]) == [[0.0]]


def test_asking_again_is_asked_of_no_other_input_and_gives_the_same_again() -> None:
    model, given = nn.Linear(8, 3), [[torch.randn(1, 8)], [torch.randn(1, 8)]]
    reference = [[model(x).detach().numpy()] for (x,) in given]
    one, other = (NoiseMeter(model, given, reference) for _ in range(2))
    first = [list(noise) for noise in one.measure("float32") or ()]
    for dtype in ("float32", "float16"):
        assert one.draw_again(dtype, [1]) == other.draw_again(dtype, [1])
    again = one.measure("float32")
    assert again is not None
    assert again[0] == first[0]
    assert again[1][0] > first[1][0]


# checks that cannot fail


@pytest.mark.parametrize(
    ("function", "inputs", "reason"),
    [
        (lambda x: x * 0, (torch.randn(2, 8),), "gives zeros on all"),
        (lambda x: x.softmax(-1).sum(-1), (torch.randn(2, 8),), "gives the same on all"),
        (lambda x: x[:0], (torch.randn(2, 8),), "is empty on every input"),
        (lambda x: torch.where(x > 0.5, x, float("nan")), (torch.linspace(0, 1, 16)[None],), r"% of its values are"),
    ],
)
def test_an_output_that_no_check_can_fail_on_is_not_verified(
    function: Callable[[Tensor], Tensor], inputs: tuple[Tensor, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.warns(Unverified, match=f"output is not verified: .*{reason}"):
        made = export(Formula(function), "onnx", tmp_path, inputs=inputs)
    assert list(made.manifest["verification"]["unverified"]) == ["output"]


def test_only_the_output_in_doubt_is_named_and_others_are_verified(tmp_path: Path) -> None:
    both = Formula(lambda x: (x * 2, x * 0))
    with pytest.warns(Unverified, match="output_1 is not verified"):
        made = export(both, "onnx", tmp_path, inputs=(torch.randn(2, 8),))
    assert list(made.manifest["verification"]["unverified"]) == ["output_1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Unverified)
        assert "unverified" not in export(Net(), "onnx", tmp_path, inputs=EXAMPLE).manifest["verification"]


def test_the_table_says_what_was_verified_on_what(edgesmith: Callable[..., Any], tmp_path: Path) -> None:
    reads = registry.get("lmuformer_psmnist").input
    np.savez(
        tmp_path / "own.npz", **{reads.name: np.random.default_rng(0).random((3, 8, *reads.shape[1:]), np.float32)}
    )
    arguments = ("export", "-m", "lmuformer_psmnist", "-t", "onnx", "--frames", "8")
    shown = edgesmith(*arguments, "--inputs", str(tmp_path / "own.npz"))
    assert shown.returncode == 0, shown.stderr
    words = " ".join(shown.stdout.split())
    assert "verified on 3 given, zeros, quiet x 0.001, loud x 1000, constant, padded" in words
    assert "worst on the" in words


# random or stateful


class Stateful(nn.Module):
    """A layer, and what a test's function does around it."""

    def __init__(self, function: Callable[..., Tensor], **attributes: Any) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(8, 8), function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def potential(m: Any, x: Tensor) -> Tensor:
    m.v = (0 if m.v is None else m.v * 1e-6) + m.layer(x)  # forgets so fast that no threshold sees it
    return m.v  # type: ignore[no-any-return]  # of a test's own attribute


def largest(m: Any, x: Tensor) -> Tensor:
    m.v = x if m.v is None else torch.maximum(m.v, x)  # the second run on one input is like the first
    return m.layer(m.v)  # type: ignore[no-any-return]  # as above


def counted(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.layer(x) * m.count  # type: ignore[no-any-return]  # as above


def remembered(m: Any, x: Tensor) -> Tensor:
    m.seen["all"].append(m.layer(x))
    return sum(m.seen["all"])  # type: ignore[no-any-return]  # as above


def in_place(m: Any, x: Tensor) -> Tensor:
    m.v.mul_(0.5).add_(x)
    return m.layer(m.v)  # type: ignore[no-any-return]  # as above


def cached(m: Any, x: Tensor) -> Tensor:
    if x.shape[-1] not in m.tables:
        m.tables[x.shape[-1]] = torch.arange(float(x.shape[-1]))
    return m.layer(x * m.tables[x.shape[-1]])  # type: ignore[no-any-return]  # as above


def last(m: Any, x: Tensor) -> Tensor:
    m.v = m.layer(x)
    return m.v * 2  # type: ignore[no-any-return]  # as above


STATEFUL = {
    "the attribute v of inner": lambda: Stateful(potential, v=None),
    "the attribute v of inner ": lambda: Stateful(largest, v=None),
    "the attribute count of inner": lambda: Stateful(counted, count=0),
    "the attribute seen of inner": lambda: Stateful(remembered, seen={"all": []}),
    "the attribute v of inner  ": lambda: Stateful(in_place, v=torch.zeros(2, 8)),
    "the buffer v of inner": lambda: Stateful(in_place, v=nn.Buffer(torch.zeros(2, 8))),
}
HARMLESS = {
    "cached": lambda: Stateful(cached, tables={}),
    "last": lambda: Stateful(last, v=None),
}


@pytest.fixture
def inner(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    """A stateful module in the training mode inside another one, which is afterwards as it was."""
    torch.manual_seed(0)
    module: nn.Module = request.param()
    module.layer.eval()

    def look() -> list[str]:
        state = {name: repr(value) for name, value in vars(module).items()}
        modes = [one.training for one in module.modules()]
        return [repr(state), repr(modes), repr(torch.get_rng_state().tolist()), repr(random.getstate())]

    before = look()
    yield module
    assert look() == before


def outside(inner: nn.Module) -> nn.Module:
    outer = nn.Sequential()
    outer.add_module("inner", inner)
    return outer


@pytest.mark.parametrize(
    ("inner", "moved"), [(make_one, moved.strip()) for moved, make_one in STATEFUL.items()], indirect=["inner"]
)
def test_a_stateful_model_is_refused_with_what_moved_and_left_as_it_was(
    inner: nn.Module, moved: str, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=f"random or stateful: .* has changed {moved}.*an input and an output"):
        export(outside(inner), "onnx", tmp_path, inputs=torch.full((2, 8), 0.5))


@pytest.mark.parametrize("inner", HARMLESS.values(), indirect=True)
def test_what_no_later_call_sees_is_exported_and_left_as_it_was(inner: nn.Module, tmp_path: Path) -> None:
    made = export(outside(inner), "onnx", tmp_path, inputs=torch.linspace(-1, 1, 16).reshape(2, 8))
    assert made.manifest["verification"]["steps"][-1]["relative_error"] <= 1e-5


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: F.dropout(x, training=True), r"aten.dropout at .*formula.py:\d+"),
        (lambda x: x + torch.rand(8), r"aten.rand at .*formula.py:\d+"),
        (lambda x: x * torch.bernoulli(torch.full((8,), 0.5)), "aten.bernoulli at "),
        (lambda x: x * float(np.random.default_rng().random()), "differs by .* between two runs"),
    ],
)
def test_a_random_model_is_refused_with_its_operator_and_line(
    function: Callable[[Tensor], Tensor], operator: str, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=f"random or stateful: .*{operator}"):
        export(Formula(function), "onnx", tmp_path, inputs=torch.randn(2, 8))


@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai"])
def test_batch_statistics_in_eval_are_right_and_the_running_ones_stay(target: str, tmp_path: Path) -> None:
    class Batch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            n = self.norm
            return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, training=True)

    model = Batch()
    made = export(model, target, tmp_path, inputs=torch.randn(3, 4, 5), precision="fp32")
    assert made.manifest["verification"]["steps"][2]["relative_error"] <= 1e-5
    assert model.norm.running_mean is not None
    assert not model.norm.running_mean.any()


def test_artifacts_of_before_are_judged_over_all_calls_together(tmp_path: Path) -> None:
    made = export(Net(), "onnx", tmp_path, inputs=EXAMPLE)
    path = made.path / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["verification"]["inputs"] = {"count": 8, "seeds": "0 to 7", "values": ["standard normal"]}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    evidence = read_evidence(artifacts.read(made.path))
    assert not evidence.described
    assert len(evidence.inputs) == len(evidence.reference)


class Classes(nn.Module):
    """The class of each pixel, of scores that nearly tie."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores(x).argmax(1)


@pytest.mark.parametrize("target", ["coreml", "coreai", "onnx"])
def test_a_choice_that_half_precision_makes_otherwise_says_what_to_do(target: str, tmp_path: Path) -> None:
    if missing := targets.get(target).missing_packages():
        pytest.skip(f"{missing[0]} is not installed")
    torch.manual_seed(1)
    images = torch.randn(1, 3, 96, 96)
    with pytest.raises(VerificationFailed, match="half precision orders what nearly ties otherwise"):
        edgesmith.export(Classes().eval(), target=target, precision="fp16", inputs=(images,), out=tmp_path)
    made = edgesmith.export(Classes().eval(), target=target, precision="fp32", inputs=(images,), out=tmp_path)
    assert made.precision == "fp32"


def _negated(shape: tuple[int, ...]) -> Tensor:
    """Return a view that PyTorch negates when it is read."""
    return torch.randn(*shape, dtype=torch.complex64).conj().imag


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "channels last": lambda: torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(4, 4, 6, 2).permute(3, 2, 1, 0),
    "every second": lambda: torch.randn(2, 6, 4, 8)[..., ::2],
    "expanded": lambda: torch.randn(1, 6, 1, 4).expand(2, 6, 4, 4),
    "negated": lambda: _negated((2, 6, 4, 4)),
    "a parameter": lambda: nn.Parameter(torch.randn(2, 6, 4, 4)).mT,
    "half of another": lambda: torch.randn(2, 12, 4, 4)[:, 6:],
}


@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_example_may_lie_in_memory_as_it_likes(layout: str, target: str, tmp_path: Path) -> None:
    def function(x: Tensor, mask: Tensor) -> Tensor:
        seen = torch.nan_to_num(x) * mask
        return F.max_pool2d(torch.where(seen > 0.5, seen, -seen), 2).flatten(1).softmax(-1)

    torch.manual_seed(0)
    x = LAYOUTS[layout]()
    mask = torch.ones(2, 4, 6, 4).transpose(1, 2)
    made = edgesmith.export(Formula(function), target, inputs=(x, mask), name="laid", out=tmp_path)
    assert made.manifest["verification"]["steps"][-1]["relative_error"] < 1e-2


def _damage_noise(inputs: dict[str, Any], how: str) -> None:
    calls = inputs["calls"]
    inputs["noise"] = "known"
    numbers = {"none": None, "no output": [], "too many outputs": [0.1, 0.2]}.get(how, [0.1])
    for call in calls[: -1 if how == "not the last call" else None]:
        if numbers is not None:
            call["noise"] = numbers
    if how == "a call less":
        calls.pop()


@pytest.mark.parametrize("how", ["none", "no output", "too many outputs", "not the last call", "a call less"])
def test_noise_that_is_not_of_every_call_and_output_is_a_damaged_manifest(how: str, tmp_path: Path) -> None:
    made = export(Net().eval(), "onnx", tmp_path, inputs=(torch.randn(1, 3, 6),), precision="fp32")
    _damage_noise(made.manifest["verification"]["inputs"], how)
    artifacts.write_manifest(made.path, made.manifest)
    with pytest.raises(Unreadable, match="no sound manifest: noise is wanted of"):
        verify_artifact(made.path)


def test_integers_are_never_equal_where_they_differ() -> None:
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    y = np.array([2**53, 2**62, most, least, most, -5], np.int64)
    z = np.array([2**53 + 1, 2**62 - 1, most - 1, least + 1, least, -5], np.int64)
    assert distances(y, z).tolist() == [1, 1, 1, 1, 2.0**64, 0]
    assert distances(z, y).tolist() == distances(y, z).tolist()
    assert as_compared(y.astype(np.int32)).dtype == np.int64
    assert as_compared(np.array([True])).dtype == as_compared(np.array([1.0])).dtype == np.float32
