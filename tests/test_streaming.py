"""Step programs say frame by frame what the sequence model says, both borders included, or are refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Interpreter, Node

import edgesmith
from edgesmith.errors import BadInput, Unsupported, VerificationFailed
from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import constant, module_path
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.session import StreamingSession
from edgesmith.exporters.streaming.step import Step
from edgesmith.exporters.streaming.step_program import StepProgram, describe, to_step
from edgesmith.exporters.streaming.stepper import Stepper
from edgesmith.kernels import lif, lmu_memory
from edgesmith.models import registry
from edgesmith.models.checkpoint import load
from edgesmith.models.lmuformer import LIF

NAMES = ("lmuformer", "spiking_lmuformer")
TOLERANCE = 1e-5


def step_of(model: nn.Module, x: Tensor) -> StepProgram:
    """A model's step program after the rewrites."""
    program = capture(model.eval(), (x,), ("frames",))
    rewritten, _ = rewrite(program, Costs(0), streaming=True)
    return to_step(rewritten)


def stepper_of(step: StepProgram) -> Stepper:
    """A step program, run in PyTorch."""

    def call(values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [y.numpy() for y in run(step.program, [torch.from_numpy(value) for value in values])]

    return Stepper(describe(step), Step(call))


def any_time(name: str, weights: Path, frames: int) -> nn.Module:
    """The sequence model that says at every frame what it would say there."""
    model, _ = load(registry.get(name), weights, frames=frames)
    model.any_time = True
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, rebuild: ModuleType, fixtures: Path) -> dict[str, Path]:
    """Checkpoints in the authors' layout."""
    folder = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        state, *_ = rebuild.load(fixtures / f"{name}.npz")
        torch.save(state, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in NAMES}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> dict[str, StreamingSession]:
    """Streaming artifacts of both models, in ONNX Runtime."""
    out = tmp_path_factory.mktemp("artifacts")
    artifacts = {
        name: edgesmith.export(name, "onnx", weights=path, streaming=True, out=out)
        for name, path in checkpoints.items()
    }
    return {name: StreamingSession(artifact.path) for name, artifact in artifacts.items()}


@pytest.mark.parametrize("frames", [50, 128, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_every_prediction_is_the_sequence_models(
    name: str, frames: int, sessions: dict[str, StreamingSession], checkpoints: dict[str, Path]
) -> None:
    model, session = any_time(name, checkpoints[name], frames), sessions[name]
    states = describe_states(session)
    for seed in range(3):
        x = torch.randn(1, frames, 128, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = model(x)[0].numpy()
        predictions = np.concatenate(session.run(x.numpy()))
        assert predictions.shape == expected.shape
        assert np.abs(predictions - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert describe_states(session) == states


def describe_states(session: StreamingSession) -> list[tuple[tuple[int, ...], str]]:
    return [(state.shape, str(state.dtype)) for state in session._states]


@pytest.mark.parametrize("frames", [50, 128, 1000])
def test_spikes_are_exactly_the_sequence_models(frames: int, checkpoints: dict[str, Path]) -> None:
    """Of all neurons, at all frames. A potential that misses its threshold by an ulp could go either way; none does."""
    model, _ = load(registry.get("spiking_lmuformer"), checkpoints["spiking_lmuformer"], frames=frames)
    expected: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, __, spikes, path=path: expected.__setitem__(path, spikes))
    step = step_of(model, torch.randn(1, frames, 128))
    found: dict[str, list[Tensor]] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> object:
            value = super().run_node(n)
            if n.target is torch.ops.aten._to_copy.default:  # where booleans become spikes
                found.setdefault(module_path(n), []).append(value)
            return value

    recorder = Recorder(step.program.module)

    def call(values: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [y.numpy() for y in recorder.run(*(torch.from_numpy(value) for value in values))]

    for seed in range(3):
        x = torch.randn(1, frames, 128, generator=torch.Generator().manual_seed(seed))
        found.clear()
        with torch.no_grad():
            model(x)
        Stepper(describe(step), Step(call)).run(x.numpy())
        assert found.keys() == expected.keys()
        assert len(found) == 11
        for path, spikes in found.items():
            assert 0 < expected[path].mean() < 1
            together = torch.stack(spikes, dim=2)  # one step after another, some steps behind the frames
            shifted = [together[:, :, late : late + frames] for late in range(step.delay + 1)]
            assert any(torch.equal(one, expected[path]) for one in shifted), path


class Causal(nn.Module):
    """A causal convolution, a dilated centred one, a residual over both, and normalisation over channels."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.causal = nn.Conv1d(width, width, 3)
        self.wide = nn.Conv1d(width, width, 3, padding=2, dilation=2, groups=width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        y = self.wide(torch.tanh(self.causal(F.pad(x, (2, 0)))))
        return self.norm((x + y).transpose(1, 2))


@pytest.mark.parametrize("name", ["spiking_lmuformer", "causal"])
def test_weights_in_the_sequences_order_change_no_number(name: str) -> None:
    """Those of ordinary convolutions have the sequence's bytes, and every prediction is what it was."""
    model = Causal(8).eval() if name == "causal" else load(registry.get(name), None, frames=20)[0].eval()
    x = torch.randn(1, 20, 8 if name == "causal" else 128, generator=torch.Generator().manual_seed(0))
    rewritten, _ = rewrite(capture(model, (x,), ("frames",)), Costs(0), streaming=True)
    usual, shared = to_step(rewritten), to_step(rewritten, shares_weights=True)
    expected, found = (np.concatenate(stepper_of(step).run(x.numpy())) for step in (usual, shared))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    bytes_of = [
        {tensor.detach().contiguous().numpy().tobytes() for tensor in constants(program)}
        for program in (rewritten, usual.program, shared.program)
    ]
    sequence, apart, together = bytes_of
    assert together <= sequence | {one for one in together if len(one) == 4}  # but for the zero of the borders
    assert not apart <= sequence | {one for one in apart if len(one) == 4}


def constants(program: Program) -> list[Tensor]:
    module = program.module
    nodes = [node for node in module.graph.nodes if node.op == "get_attr"]
    return [value for node in nodes if (value := constant(module, node)) is not None]


class Layer(nn.Module):
    """One layer of a random network, [B, C, T] -> [B, C, T]."""

    def __init__(self, kind: str, width: int, kernel: int, dilation: int, length: int) -> None:
        super().__init__()
        self.kind = kind
        reach = (kernel - 1) * dilation
        self.padding = {"causal": (reach, 0), "ahead": (0, reach), "uneven": (reach // 3, reach - reach // 3)}.get(kind)
        self.conv = nn.Conv1d(width, width, kernel, padding=reach // 2 if kind == "centred" else 0, dilation=dilation)
        self.bn = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, width)
        u = torch.Generator().manual_seed(length)
        a = torch.randn(width, width, generator=u) / (2 * width)
        self.a, self.b = nn.Parameter(a), nn.Parameter(torch.randn(width, generator=u))
        self.impulse = nn.Parameter(lmu_memory.impulse_response(a, self.b.detach(), length))
        with torch.no_grad():
            self.bn.bias.normal_(generator=u)
            self.bn.running_mean.normal_(generator=u)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding is not None:
            return self.conv(F.pad(x, self.padding))
        if self.kind == "centred":
            return x + torch.relu(self.conv(x))
        if self.kind == "norm":
            return self.bn(x)
        if self.kind == "linear":
            return torch.cat([self.linear(x.transpose(1, 2)).transpose(1, 2), x], 1)[:, 1 : 1 + x.shape[1]]
        if self.kind == "neurons":
            return x + lif.OP.overload(4 * x, 2.0, 0.5)
        if self.kind == "memory":
            return x * 0.5 + lmu_memory.OP.overload(x.mean(1), self.impulse, self.a, self.b)
        first, second = x.unsqueeze(1).flatten(0, 1).split((1, x.shape[1] - 1), dim=1)
        return torch.cat([second.softmax(1), first.sigmoid()], 1)


KINDS = ("causal", "ahead", "uneven", "centred", "norm", "linear", "neurons", "memory", "split")


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    kernel=st.sampled_from([1, 3, 5]),
    dilation=st.integers(1, 2),
    length=st.integers(1, 12),
    batch=st.integers(1, 2),
    seed=st.integers(0, 100),
)
def test_any_stack_of_layers_streams_frame_by_frame(
    kinds: list[str], kernel: int, dilation: int, length: int, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layers = nn.Sequential(*(Layer(kind, 3, kernel, dilation, length) for kind in kinds))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x.transpose(1, 2)).transpose(1, 2)

    model, x = Net().eval(), torch.randn(batch, length, 3)
    step = step_of(model, x)
    with torch.no_grad():
        expected = model(x).numpy()
    predictions = np.stack(stepper_of(step).run(x.numpy()), axis=1)
    assert predictions.shape == expected.shape
    assert np.abs(predictions - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_delays_histories_and_names_of_a_small_network() -> None:
    step = step_of(Causal(), torch.randn(1, 9, 3))
    assert step.delay == 2
    assert {state.name: state.shape for state in step.states} == {
        "valid": (2,),
        "transpose_history": (1, 6),
        "tanh_history": (1, 12),
    }
    assert step.program.input_names == ("frame", "is_frame", "valid", "transpose_history", "tanh_history")
    assert step.program.output_names == ("output", "next_valid", "next_transpose_history", "next_tanh_history")


class Reduced(nn.Module):
    def __init__(self, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x)


@pytest.mark.parametrize(
    "reduce",
    [
        lambda x: x.mean(1),
        lambda x: x.mean((1, 2), keepdim=True),
        lambda x: x.sum(1, keepdim=True).squeeze(1),
        lambda x: x[:, -1] * 2,
        lambda x: x.transpose(1, 2)[:, :, -1].sum(1),
    ],
)
def test_reductions_over_time_give_the_value_so_far(reduce: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 7, 3)
    predictions = stepper_of(step_of(Reduced(reduce), x)).run(x.numpy())
    for t, prediction in enumerate(predictions):
        expected = reduce(x[:, : t + 1]).numpy()
        assert prediction.shape == expected.shape
        np.testing.assert_allclose(prediction, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (lambda x: x.softmax(1), r"aten.softmax\) mixes frames"),
        (lambda x: x.cumsum(1), r"aten.cumsum\) is no operator that streaming knows"),
        (lambda x: x.flip(1), r"aten.flip\) is no operator"),
        (
            lambda x: x * torch.arange(7.0)[:, None],
            r"aten.mul\) combines frames with a constant that has a value for each",
        ),
        (lambda x: x[:, 2:5], r"aten.slice\) reads some of the frames only"),
        (lambda x: x[:, 3], r"aten.select\) reads one frame that is not the last"),
        (lambda x: x.reshape(1, 21), r"reshapes frames together with other axes"),
        (lambda x: torch.cat([x, x], 1), r"aten.cat\) joins frames one after the other"),
        (lambda x: F.layer_norm(x, (7, 3)), r"aten.layer_norm\) normalises over frames"),
        (lambda x: x + x.transpose(0, 1).reshape(7, 1, 3).sum(0), r"aten.sum\) reduces the batch or changes the type"),
        (lambda x: F.pad(x.transpose(1, 2), (1, 0)), r"pads the frames, which only a convolution can take"),
        (lambda x: F.pad(x, (0, 0, 1, 1), value=1.0), r"pads the frames with something else than zeros"),
        (lambda x: F.conv1d(x.transpose(1, 2), torch.ones(1, 3, 3)), r"aten.conv1d\) changes the number of frames"),
        (
            lambda x: F.conv1d(x.transpose(1, 2), torch.ones(1, 3, 3), stride=2, padding=1),
            r"changes the number of frames",
        ),
        (lambda x: F.linear(x.transpose(1, 2), torch.ones(2, 7)), r"aten.linear\) mixes frames"),
        (lambda x: lif.OP.overload(x), r"edgesmith.lif\) integrates along another axis than time"),
        (lambda x: lmu_memory.OP.overload(x[:, :, 0], torch.ones(4, 7)), r"knows only its impulse response"),
        (lambda x: torch.ones(3) * 2, r"does not depend on the frames"),
    ],
)
def test_what_mixes_frames_is_refused_with_its_place(mix: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        step_of(Reduced(mix), torch.randn(1, 7, 3))


class Frames(nn.Module):
    """Layers between transposes: [B, T, C] -> [B, T, C']."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv() -> nn.Conv1d:
    return nn.Conv1d(3, 3, 3, padding=1)


class Gated(nn.Module):
    """Where a value is positive, its convolution: a boolean stream that has to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, self.conv(x), x)


@pytest.mark.parametrize(
    "model",
    [
        Frames(Apply(lambda x: x.abs().log()), conv()),  # not finite where there is no frame
        Frames(Apply(lambda x: x / x.square().sum(1, keepdim=True).sqrt()), conv(), conv()),
        Frames(Gated(), conv()),
        Frames(conv(), Apply(lambda x: F.layer_norm(x.transpose(1, 2), (3,)).transpose(1, 2)), conv()),
        nn.Sequential(nn.Linear(3, 3), Frames(conv()), nn.Linear(3, 2)),
    ],
)
def test_models_that_answer_at_every_frame_are_exported_and_compared_at_every_frame(
    model: nn.Module, tmp_path: Path
) -> None:
    artifact = edgesmith.export(model, "onnx", inputs=torch.randn(2, 12, 3), name="own", streaming=True, out=tmp_path)
    assert artifact.manifest["streaming"]["outputs"] == [{"name": "output", "time_axis": 1}]
    x = torch.randn(2, 12, 3)
    with torch.no_grad():
        expected = model(x).numpy()
    predictions = np.stack(StreamingSession(artifact.path).run(x.numpy()), axis=1)
    assert np.abs(predictions - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", ["valids", "is_frames", "outputs", "x"])
def test_no_two_inputs_or_outputs_have_one_name(name: str) -> None:
    program = capture(Frames(conv(), conv()), (torch.randn(1, 9, 3),), (name,))
    names = to_step(program).program
    together = [*names.input_names, *names.output_names]
    assert len(set(together)) == len(together)
    assert all(one.isidentifier() for one in together)


def test_a_half_precision_module_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"states are float32, and the model takes float16; export model.float\(\)"):
        step_of(Frames(conv()).half(), torch.randn(1, 9, 3).half())


def test_only_sequences_stream() -> None:
    with pytest.raises(Unsupported, match=r"needs a model with one input \[B, T, F\]"):
        step_of(nn.ReLU(), torch.randn(1, 3, 4, 4))


# StreamingSession


def test_a_session_says_when_predictions_begin_and_end(sessions: dict[str, StreamingSession]) -> None:
    session = sessions["lmuformer"]
    session.reset()
    frames = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    first = [session.step(frame) for frame in frames]
    assert [prediction is None for prediction in first] == [True] * 5 + [False] * 3
    last = session.finish()
    assert len(last) == session.delay == 5
    assert last[0].shape == (1, 35)
    assert session.finish() == []
    with pytest.raises(BadInput, match="the sequence is finished; call reset"):
        session.step(frames[0])
    session.reset()
    again = [session.step(frame[None, None]) for frame in frames]
    assert all(np.array_equal(a, b) for a, b in zip(first[5:], again[5:], strict=True))


def test_a_sequence_shorter_than_the_delay_has_its_predictions_in_the_end(
    sessions: dict[str, StreamingSession], checkpoints: dict[str, Path]
) -> None:
    x = torch.randn(1, 2, 128)
    with torch.no_grad():
        expected = any_time("lmuformer", checkpoints["lmuformer"], 2)(x)[0].numpy()
    predictions = np.concatenate(sessions["lmuformer"].run(x.numpy()))
    assert predictions.shape == expected.shape
    assert np.abs(predictions - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_a_wrong_frame_is_refused_and_loses_nothing(sessions: dict[str, StreamingSession]) -> None:
    session = sessions["lmuformer"]
    session.reset()
    before = session._states
    for wrong in (np.zeros(127), np.zeros((128, 1)), np.zeros((2, 128))):
        with pytest.raises(BadInput, match=r"a frame must have shape \[1, 128\] or \[128\], got "):
            session.step(wrong)
    assert session._states is before


def test_the_manifest_describes_every_state(sessions: dict[str, StreamingSession]) -> None:
    for name, count in (("lmuformer", 9), ("spiking_lmuformer", 21)):
        manifest = sessions[name].artifact.manifest
        states = manifest["streaming"]["states"]
        inputs = [entry["name"] for entry in manifest["model"]["inputs"]]
        assert len(states) == count
        assert inputs == ["frame", "is_frame", *(state["name"] for state in states)]
        assert manifest["model"]["outputs"] == ["logits", *(state["next"] for state in states)]
        assert all(state["meaning"] and state["dtype"] == "float32" for state in states)
        checks = {check["step"]: check for check in manifest["verification"]["steps"]}
        assert checks["eager -> file"]["sequences"] == manifest["verification"]["inputs"]["count"]
        assert checks["eager -> file"]["relative_error"] <= TOLERANCE


def test_verify_runs_a_streaming_artifact_again(sessions: dict[str, StreamingSession]) -> None:
    _, steps = edgesmith.verify(sessions["lmuformer"].artifact.path)
    assert steps[-1]["step"] == "eager -> file"
    assert steps[-1]["frames"] == 128


WITHOUT_TORCH = """
import sys
for heavy in ("torch", "onnx", "onnxscript", "onnxsim", "coremltools"):
    sys.modules[heavy] = None  # as if it were not installed
import numpy as np
import edgesmith
session = edgesmith.StreamingSession(sys.argv[1], threads=1)
predictions = session.run(np.load(sys.argv[2]))
np.save(sys.argv[3], np.stack(predictions))
"""


def test_a_session_of_an_onnx_artifact_needs_numpy_and_onnxruntime_only(
    sessions: dict[str, StreamingSession], tmp_path: Path
) -> None:
    session = sessions["lmuformer"]
    x = np.random.default_rng(0).standard_normal((1, 7, 128)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    paths = [str(path) for path in (session.artifact.path, tmp_path / "x.npy", tmp_path / "y.npy")]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *paths], check=True, cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "y.npy"), np.stack(session.run(x)))


def test_an_artifact_of_a_whole_sequence_is_no_streaming_one(tmp_path: Path) -> None:
    artifact = edgesmith.export(nn.ReLU(), "onnx", inputs=torch.randn(1, 2, 3), out=tmp_path)
    with pytest.raises(BadInput, match="is no streaming artifact; export it with --streaming"):
        StreamingSession(artifact.path)


def test_options_that_a_step_does_not_have_are_answered_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="casvit_xs reads images and has no --streaming; models of sequences have"):
        edgesmith.export("casvit_xs", "onnx", streaming=True, out=tmp_path)
    with pytest.raises(BadInput, match="--streaming keeps states of a fixed batch; give --batch N"):
        edgesmith.export("lmuformer", "onnx", streaming=True, dynamic_batch=True, out=tmp_path)


def test_spiking_models_are_exported_in_fp32_unless_told_otherwise(tmp_path: Path) -> None:
    if targets.get("coreml").missing_packages():
        pytest.skip("coremltools is not installed")
    artifact = edgesmith.export("spiking_lmuformer", "coreml", frames=40, out=tmp_path)
    assert artifact.precision == "fp32"
    assert artifact.manifest["verification"]["steps"][-1]["snr_db"] is None  # spike for spike


def test_spikes_in_half_precision_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match=r"half precision flips spikes; use --precision fp32"):
        edgesmith.export("spiking_lmuformer", "onnx", precision="fp16", frames=40, out=tmp_path)
