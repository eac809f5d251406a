"""The checks can fail: wrong numbers are measured, judged, located, and nothing is published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import VerificationFailed
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.export import export
from edgesmith.exporters.figures import LARGEST_NOISE, Outputs, above_noise, cover_half, judge, measure
from edgesmith.exporters.graph.capture import Program, run
from edgesmith.exporters.graph.edit import aten, operators
from edgesmith.exporters.inputs import describe_inputs, seeded_inputs
from edgesmith.exporters.precision.table import FP16, FP32
from edgesmith.exporters.precision.task import Thresholds
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.exporters.verification import check as verification
from edgesmith.exporters.verification.check import AcceptanceCriteria, Evidence, measure_noise
from edgesmith.exporters.verification.divergence import captured_names, first_divergence, values
from edgesmith.exporters.verify import verify_artifact
from edgesmith.kernels import lif
from edgesmith.kernels.op import all_ops

GENERATOR = np.random.default_rng(0)
SCORES = [[GENERATOR.standard_normal((1, 10)).astype(np.float32)] for _ in range(8)]


def shifted(error: float) -> list[list[np.ndarray]]:
    return [[y + np.float32(error)] for (y,) in SCORES]


def test_measure_of_equal_outputs_has_no_noise() -> None:
    figures = measure(SCORES, SCORES, 1e-5)
    assert (figures.max_abs_error, figures.relative_error, figures.snr_db) == (0, 0, None)
    assert (figures.agreeing, figures.decided, figures.ties) == (8, 8, 0)
    assert judge(figures, FP32.limits()) is None


def test_measure_gives_error_and_snr_by_their_definitions() -> None:
    figures = measure([[np.array([3.0, 4.0])]], [[np.array([3.0, 4.5])]], 1e-5)
    assert figures.max_abs_error == 0.5
    assert figures.relative_error == 0.125
    assert figures.snr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert figures.agreeing is None


@pytest.mark.parametrize(("error", "passes"), [(1e-6, True), (1e-4, False)])
def test_judge_of_fp32(error: float, passes: bool) -> None:
    assert (judge(measure(SCORES, shifted(error), 1e-5), FP32.limits()) is None) is passes


def test_judge_names_the_figure_that_fails() -> None:
    lenient = Thresholds(relative_error=1, snr_db=0)
    assert "error" in str(judge(measure(SCORES, shifted(0.1), 0.01), Thresholds(1e-3, 0)))
    assert "SNR" in str(judge(measure(SCORES, shifted(0.1), 0.01), Thresholds(1, 60)))
    others = [[y[:, ::-1]] for (y,) in SCORES]
    assert "top-1 agrees on 0 of 8" in str(judge(measure(SCORES, others, 1e-5), Thresholds(1e9, -1e9)))
    assert judge(measure(SCORES, shifted(0.01), 0.01), lenient) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_never_pass(value: float) -> None:
    broken = [[y.copy()] for (y,) in SCORES]
    broken[3][0][0, 0] = value
    assert judge(measure(SCORES, broken, 1e-5), Thresholds(1e9, -1e9)) is not None


def test_a_flip_between_scores_within_the_allowed_error_is_a_tie() -> None:
    reference = [[np.array([[1.0, 0.9999, 0.0]])], [np.array([[1.0, 0.5, 0.0]])]]
    flipped = [[np.array([[0.9999, 1.0, 0.0]])], [np.array([[0.5, 1.0, 0.0]])]]
    figures = measure(reference, flipped, 1e-3)
    assert (figures.agreeing, figures.decided, figures.ties) == (0, 1, 1)


@pytest.mark.parametrize(("behind", "tied"), [(0.99, True), (1.01, False)])
def test_a_tie_ends_at_twice_the_allowed_error(behind: float, tied: bool) -> None:
    """Both scores may be off by the allowed error, which is relative to the peak over all inputs: here 8 x 1e-3."""
    gap = behind * 2 * 8e-3
    reference = [[np.array([[1.0, 1.0 - gap, 0.0]])], [np.array([[8.0, 0.0, 0.0]])]]
    flipped = [[np.array([[1.0 - gap, 1.0, 0.0]])], [np.array([[8.0, 0.0, 0.0]])]]
    figures = measure(reference, flipped, 1e-3)
    assert (figures.agreeing, figures.decided, figures.ties) == ((1, 1, 1) if tied else (1, 2, 0))
    assert (judge(figures, Thresholds(1, -1e9)) is None) is tied


def test_integers_are_no_scores() -> None:
    ids = [[np.array([[3, 1, 2]])]]
    assert measure(ids, ids, 1e-5).decided is None
    assert measure([[ids[0][0].astype(np.float32)]], [[ids[0][0].astype(np.float32)]], 1e-5).decided == 1


def test_outputs_of_another_shape_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="shape"):
        measure(SCORES, [[y[:, :5]] for (y,) in SCORES], 1e-5)


def test_seeded_inputs_are_the_same_every_time_and_differ_from_each_other() -> None:
    example = torch.zeros(2, 3, 8, 8)
    first, second = seeded_inputs([example]), seeded_inputs([example])
    assert len(first) == 8
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert len({float(x[0].sum()) for x in first}) == 8
    assert [x[0].shape[0] for x in seeded_inputs([example], dynamic_batch=True)] == [1, 2] * 4


class Break:
    """A rewrite with a mistake in it: the first `find` becomes `put`."""

    name = "break"

    def __init__(self, find: object, put: object) -> None:
        self.find, self.put = find, put

    def apply(self, module: torch.fx.GraphModule, costs: Costs) -> RewriteReport:
        node = next(n for n in operators(module) if n.target is self.find)
        node.target = self.put
        return RewriteReport(self.name, (("somewhere", ""),))


def test_a_wrong_rewrite_stops_the_export_and_is_located(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgesmith.exporters.rewrites import order

    rules = (*order.all_rewrites(), Break(aten.gelu.default, aten.relu.default))
    monkeypatch.setattr(order, "all_rewrites", lambda streaming: rules)
    with pytest.raises(
        VerificationFailed, match=r"eager -> rewritten: .* diverge first at network.0.0.local_perception"
    ):
        edgesmith.export(small, "onnx", inputs=torch.randn(1, 3, 32, 32), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_lowering_stops_the_export_and_is_located(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = all_ops()["additive_attention"]
    right = op.lowerings["onnx"]

    def wrong(qkv: object, *weights: object, **flags: object) -> object:
        return right(qkv, *weights[4:8], *weights[:4], *weights[8:], **flags)  # the gates of q and k exchanged

    monkeypatch.setitem(op.lowerings, "onnx", wrong)  # type: ignore[arg-type]
    place = r"eager -> file: .* diverge first at network.0.0.attn \(edgesmith.additive_attention"
    with pytest.raises(VerificationFailed, match=place):
        edgesmith.export(small, "onnx", inputs=torch.randn(1, 3, 32, 32), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_first_divergence_is_none_between_equal_programs(small_program: Program) -> None:
    given = seeded_inputs(small_program.inputs)[0]
    found = values(small_program.module, given)
    names = captured_names(small_program)
    assert first_divergence(small_program, found, names, given, 1e-5) is None


def test_verify_reports_an_altered_file(export_small: Callable[..., Artifact]) -> None:
    artifact = export_small("onnx")
    content = bytearray(artifact.file.read_bytes())
    content[-20] ^= 1
    artifact.file.write_bytes(content)
    with pytest.raises(VerificationFailed, match=rf"{artifact.file.name} was altered"):
        edgesmith.verify(artifact.path)


def test_verify_fails_on_wrong_numbers_even_when_the_manifest_agrees(export_small: Callable[..., Artifact]) -> None:
    """Somebody replaces the model and signs the manifest again: the stored outputs still tell."""
    import onnx
    from onnx import numpy_helper

    from edgesmith.exporters import artifact as artifacts

    artifact = export_small("onnx")
    model = onnx.load(str(artifact.file))
    weight = next(w for w in model.graph.initializer if w.name.endswith("fc1.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
    artifact.file.write_bytes(model.SerializeToString())
    artifacts.write_manifest(artifact.path, artifact.manifest)
    with pytest.raises(VerificationFailed, match=r"error .* of the peak, allowed"):
        edgesmith.verify(artifact.path)


def test_a_wrong_small_output_beside_a_large_one_does_not_pass() -> None:
    reference = [[1e6 * y, y] for (y,) in SCORES]
    figures = measure(reference, [[1e6 * y, y + 0.1] for (y,) in SCORES], 1e-5)
    assert figures.relative_error > 0.02
    assert judge(figures, FP32.limits()) is not None
    assert judge(measure(reference, reference, 1e-5), FP32.limits()) is None


def test_equal_infinities_pass_and_others_do_not() -> None:
    masked = [[np.array([[1.0, -np.inf, 2.0]])]]
    assert judge(measure(masked, masked, 1e-5), FP32.limits()) is None
    assert measure(masked, masked, 1e-5).finite == pytest.approx(2 / 3)
    assert judge(measure(masked, [[np.array([[1.0, np.inf, 2.0]])]], 1e-5), FP32.limits()) is not None
    nothing = [[np.array([np.nan])]]
    assert "not finite on any" in str(judge(measure(nothing, nothing, 1e-5), FP32.limits()))


def test_integer_inputs_are_drawn_and_described() -> None:
    example = torch.tensor([[3, 9, 4]])
    drawn = [x[0] for x in seeded_inputs([example])]
    assert torch.equal(drawn[0], example)
    assert len({tuple(x.flatten().tolist()) for x in drawn}) > 4
    assert all(int(x.min()) >= 3 and int(x.max()) <= 9 for x in drawn)
    assert describe_inputs([example, torch.zeros(2)]) == [
        "the example, then integers from 3 to 9",
        "standard normal",
    ]


def test_a_module_with_integer_inputs_is_exported_and_verified_again(tmp_path: Path) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 4)

        def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
            return self.head(self.table(tokens).mean(1) * scale)

    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (2, 5))
    artifact = edgesmith.export(Lookup(), "onnx", inputs=(tokens, torch.rand(2, 1)), out=tmp_path, name="lookup")
    _, steps = edgesmith.verify(artifact.file)
    assert steps[2]["runtime"] == "ONNX Runtime, CPU"
    assert steps[2]["relative_error"] <= 1e-5


# noise and spikes


def outputs_of(rows: int, seed: int = 0) -> Outputs:
    return [[row[None]] for row in np.random.default_rng(seed).standard_normal((rows, 5)).astype(np.float32)]


def check(outputs: Outputs, spikes: bool = False, noise: float | None = None) -> dict[str, object]:
    criteria = AcceptanceCriteria(FP32, spikes, lambda: noise)
    return verification.check("eager -> file", outputs_of(8), outputs, criteria)


def flipped(count: int) -> Outputs:
    """The outputs with a visible difference on the first `count` inputs."""
    return [[ys[0] + (0.02 if i < count else 0)] for i, ys in enumerate(outputs_of(8))]


def test_noise_raises_the_threshold_to_four_times_itself_and_no_further_than_its_limit() -> None:
    fp32 = FP32.limits()
    assert above_noise(fp32, 1e-7) == fp32
    assert above_noise(fp32, 2e-5) == Thresholds(8e-5, pytest.approx(81.94, abs=0.01))
    assert above_noise(fp32, 1e-2).relative_error == LARGEST_NOISE
    fp16 = FP16.limits()
    assert above_noise(fp16, 1.0) == fp16


def test_an_error_within_a_models_own_noise_passes_and_says_so() -> None:
    nearly = [[ys[0] * (1 + np.float32(4e-5))] for ys in outputs_of(8)]
    with pytest.raises(VerificationFailed, match="allowed 1e-05"):
        check(nearly)
    with pytest.raises(VerificationFailed, match="allowed 1e-05"):
        check(nearly, noise=1e-6)
    assert check(nearly, noise=2e-5)["allowed"] == 8e-5
    with pytest.raises(VerificationFailed, match=r"allowed 0\.0001"):
        check(flipped(1), noise=0.5)


def test_noise_is_the_distance_from_float64() -> None:
    class Cancels(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 3000) - 3000

    given = [[torch.randn(1, 4)] for _ in range(3)]
    reference = [[(x + 3000 - 3000).numpy()] for (x,) in given]
    noise = measure_noise(Cancels(), Evidence(given, reference))
    assert noise is not None
    assert 1e-5 < noise < 1e-3
    assert measure_noise(nn.Identity(), Evidence(given, [[x.numpy()] for (x,) in given])) == 0


def test_spikes_may_differ_on_fewer_than_half_of_the_inputs() -> None:
    passed = check(flipped(4), spikes=True)
    assert passed["spike_for_spike"] == {"inputs": 4, "of": 8}
    assert passed["relative_error"] == 0
    assert passed["others"]["relative_error"] > 1e-3
    for count, spikes in ((5, True), (1, False)):
        with pytest.raises(VerificationFailed, match="of the peak, allowed 1e-05"):
            check(flipped(count), spikes=spikes)


@pytest.mark.parametrize(("wrong", "literals"), [("tau", (4.0, 1.0)), ("threshold", (2.0, 1.01))])
def test_a_wrong_neuron_is_no_matter_of_rounding(
    wrong: str, literals: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Neurons(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return lif.OP.overload(2 * x, 2.0, 1.0).mean(-1)

    right = lif.OP.lowerings["onnx"]
    monkeypatch.setitem(lif.OP.lowerings, "onnx", lambda x, *_, **__: right(x, *literals))  # type: ignore[arg-type]
    with pytest.raises(VerificationFailed, match="eager -> file: error"):
        edgesmith.export(Neurons(), "onnx", inputs=torch.randn(1, 64, 100), out=tmp_path)


def test_at_least_half_of_each_batch_size_must_agree_spike_for_spike() -> None:
    reference: Outputs = [[np.ones((1 + i % 2, 5), np.float32)] for i in range(8)]
    assert cover_half([0, 2, 1, 3], reference)
    assert not cover_half([0, 2, 4, 6, 1], reference)


# files that miss their thresholds


class Spikes(nn.Module):
    """Rates of neurons, of which half precision flips some spikes in every input. [B, 16, 20] -> [B, 2048]"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv1d(16, 2048, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return lif.OP.overload(4 * self.mix(x), 2.0, 1.0).mean(-1)


@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai"])
def test_an_inaccurate_file_is_published_on_demand_and_never_passes(
    target: str, tmp_path: Path, edgesmith: Run
) -> None:
    if targets.get(target).missing_packages():
        pytest.skip(f"{target} is not installed")
    options = {"inputs": torch.randn(1, 16, 20), "precision": "fp16", "out": tmp_path}
    with pytest.raises(VerificationFailed, match=r"eager -> file: error 0\.\d+ of the peak, allowed 0.02") as refused:
        export(Spikes(), target, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    artifact = export(Spikes(), target, allow_inaccurate=True, **options)  # type: ignore[arg-type]
    verification = artifact.manifest["verification"]
    assert verification["missed"] == [str(refused.value)]
    assert verification["steps"][-1]["missed"] in str(refused.value)
    assert verification["steps"][-1]["relative_error"] > 0.02
    with pytest.raises(VerificationFailed, match="eager -> file: error") as failed:
        verify_artifact(artifact.path)
    (again,) = (one for one in failed.value.steps if one["step"] == verification["steps"][-1]["step"])
    assert again["relative_error"] == verification["steps"][-1]["relative_error"]
    shown = edgesmith("verify", str(artifact.path))
    assert shown.returncode == VerificationFailed.exit_code
    assert "MISSED: error 0." in shown.stdout
    assert shown.stderr.splitlines()[-1] == f"edgesmith: {failed.value}"
    printed = edgesmith("verify", str(artifact.path), "--json")
    assert printed.returncode == VerificationFailed.exit_code
    assert again in json.loads(printed.stdout)["steps"]
    assert again["missed"]
    assert json.loads(printed.stdout)["error"] == str(failed.value)


def test_no_kit_is_written_of_what_its_board_would_refuse(tmp_path: Path) -> None:
    if targets.get("tensorrt").missing_packages():
        pytest.skip("tensorrt is not installed")
    options = {"inputs": torch.randn(1, 16, 20), "precision": "fp16", "out": tmp_path, "device": "jetson-orin-nano"}
    with pytest.raises(VerificationFailed, match="a board refuses what it builds of that, so no kit is written"):
        export(Spikes(), "tensorrt", allow_inaccurate=True, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_accurate_file_does_not_say_that_it_was_allowed(tmp_path: Path) -> None:
    model, options = nn.Linear(4, 4), {"inputs": torch.randn(1, 4)}
    usual, allowed = (
        export(model, "onnx", allow_inaccurate=flag, out=tmp_path / str(flag), **options)  # type: ignore[arg-type]
        for flag in (False, True)
    )
    assert allowed.manifest == usual.manifest
    assert "missed" not in allowed.manifest["verification"]


def test_what_diverges_before_it_is_lowered_is_refused_even_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inaccuracy is a file's: a rewrite that changes numbers is a bug."""
    monkeypatch.setattr(verification, "run", lambda program, x: tuple(1.01 * y for y in run(program, x)))
    with pytest.raises(VerificationFailed, match="eager -> captured"):
        export(nn.Linear(4, 4), "onnx", inputs=torch.randn(1, 4), allow_inaccurate=True, out=tmp_path)


def test_the_command_line_says_loudly_that_a_file_is_inaccurate(edgesmith: Run) -> None:
    arguments = ("export", "-m", "spiking_lmuformer", "-t", "onnx", "-p", "fp16", "--frames", "40")
    refused = edgesmith(*arguments)
    assert refused.returncode == VerificationFailed.exit_code
    assert "of the peak, allowed 0.02" in refused.stderr
    shown = edgesmith(*arguments, "--allow-inaccurate")
    assert shown.returncode == 0
    assert "INACCURATE, published because of --allow-inaccurate: eager -> file: error" in shown.stderr
    assert "MISSED: error" in shown.stdout
