"""LIF neurons: lowerings have PyTorch's spikes and do not grow with time, and loops are rolled up into the op."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lowering import lower
from support.rewriting import apply
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.fx.experimental.proxy_tensor import make_fx

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.reroll import reroll
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.exporters.targets.target import TargetFile
from edgesmith.kernels import lif

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Neurons(nn.Module):
    """One call of the op for each of several settings."""

    def __init__(self, *settings: tuple[Any, ...]) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(lif.OP.overload(x, *setting) for setting in self.settings)


class Loop(nn.Module):
    """A step in a Python loop, time first."""

    def __init__(self, step: Step, start: float = 0.0, join: Callable[[list[Tensor]], Tensor] = torch.stack) -> None:
        super().__init__()
        self.step, self.start, self.join = step, start, join

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.full_like(x[0], self.start), []
        for current in x.unbind(0):
            fired, v = self.step(current, v)
            spikes.append(fired)
        return self.join(spikes)


def rolled(model: nn.Module, *inputs: Tensor) -> tuple[Program, RewriteReport]:
    """Capture, rewrite, and assert that not one number has changed and that a second run finds nothing to do."""
    program, reports, _ = apply(model, *inputs, costs=Costs(1), tolerance=0)
    return program, reports["reroll"]


def currents(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SETTINGS = [
    (tau, threshold, reset, decay, dim)
    for tau in (1.0, 2.0, 3.3)
    for threshold in (1.0, 0.3)
    for reset in (0.0, -0.4, None)
    for decay in (True, False)
    for dim in (-1, 1)
] + [
    (2.0, 1.0, reset, decay, -1, beta) for beta in (0.9, 1.0) for reset in (0.0, -0.4, None) for decay in (True, False)
]


# the op


@given(
    shape=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    length=st.integers(1, 12),
    tau=st.floats(1, 10, width=32),
    threshold=st.floats(-1, 3, width=32),
    reset=st.none() | st.floats(-1, 1, width=32),
    decay=st.booleans(),
    beta=st.none() | st.floats(0, 1, width=32),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
@settings(max_examples=300)
def test_lif_along_any_axis_is_its_step_in_turn(
    shape: tuple[int, ...],
    length: int,
    tau: float,
    threshold: float,
    reset: float | None,
    decay: bool,
    beta: float | None,
    seed: int,
    data: st.DataObject,
) -> None:
    dim = data.draw(st.integers(-len(shape) - 1, len(shape)))
    x = currents(length, *shape, seed=seed).movedim(0, dim)
    spikes = lif.OP.overload(x, tau, threshold, reset, decay, dim, beta)
    v = torch.full(shape, reset or 0.0)
    for t in range(length):  # written out, not by lif.step
        rest = 0.0 if reset is None else reset
        leak = (v - rest) if rest else v
        current = x.select(dim, t)
        if beta is None:
            v = v + (current - leak) / tau if decay else v - leak / tau + current
        else:
            v = v + (1 - beta) * (current - leak) if decay else beta * v + current
        fired = v >= threshold
        assert torch.equal(spikes.select(dim, t), fired.float())
        v = v - fired * torch.tensor(threshold) if reset is None else v.masked_fill(fired, reset)


def test_lif_refuses_what_no_membrane_can_do() -> None:
    x = torch.zeros(2, 3)
    beyond = (2.0, 1.0, 0.0, True, -1, 1.5)
    for arguments, reason in (
        ((0.5,), "tau must be"),
        ((2.0, 1.0, 0.0, True, 2), "dim must be"),
        (beyond, "beta must"),
    ):
        with pytest.raises(ValueError, match=reason):
            lif.OP.shape(x, *arguments)
    with pytest.raises(ValueError, match="must be a time step"):
        lif.OP.shape(torch.zeros(2, 0))


@pytest.mark.parametrize(
    "literals", [(2.0, 1.0, 0.0, True, 1), (2.0, 0.7, None, False, 1, 0.9), (2.0, 1.0, -0.2, True, 1, 0.9)]
)
def test_frame_by_frame_it_spikes_as_over_the_whole_sequence(literals: tuple[Any, ...]) -> None:
    recurrence = lif.OP.recurrence
    assert recurrence is not None
    x = currents(3, 20, 4)
    assert recurrence.axes(x, *literals) == (1, 1)
    (membrane,) = recurrence.states
    state = (torch.full(membrane.shape(x, *literals), membrane.initial(x, *literals)),)
    frames = []
    for frame in x.unbind(1):
        spikes, state = recurrence.step(state, frame, *literals)  # type: ignore[assignment]  # a tuple of one
        frames.append(spikes)
    assert torch.equal(torch.stack(frames, 1), lif.OP.overload(x, *literals))


# lowerings


def lowered(model: nn.Module, x: Tensor, path: Path, precision: str = "fp32", dynamic: bool = False) -> TargetFile:
    target = path.suffix.replace(".mlpackage", "coreml").removeprefix(".")
    file = lower(target, capture(model, (x,), dynamic_batch=dynamic), path, precision)
    file.check()
    return file


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_onnx_has_every_spike(dynamic: bool, tmp_path: Path) -> None:
    file = lowered(Neurons(*SETTINGS), currents(4, 7, 50), tmp_path / "lif.onnx", dynamic=dynamic)
    for seed in range(6):
        x = currents(seed % 4 + 1 if dynamic else 4, 7, 50, seed=seed)
        outputs = file.run([[x.numpy()]])
        assert isinstance(outputs, list)
        for setting, spikes in zip(SETTINGS, outputs[0], strict=True):
            assert np.array_equal(spikes, lif.reference(x, *setting).numpy()), setting


def test_onnx_in_fp16_has_the_spikes_of_half_precision_but_for_single_ones(tmp_path: Path) -> None:
    # ONNX Runtime's CPU has no half arithmetic: it computes in single precision and leaves out some of the roundings.
    file = lowered(Neurons(*SETTINGS), currents(4, 7, 50), tmp_path / "lif.onnx", "fp16")
    x = currents(4, 7, 50, seed=1)
    outputs = file.run([[x.numpy()]])
    assert isinstance(outputs, list)
    for setting, spikes in zip(SETTINGS, outputs[0], strict=True):
        flipped = float((torch.from_numpy(spikes) != lif.reference(x.half(), *setting)).float().mean())
        assert flipped <= 0.005, setting


def test_onnx_takes_infinite_currents(tmp_path: Path) -> None:
    file = lowered(Neurons(()), currents(1, 3, 9), tmp_path / "lif.onnx")
    x = currents(1, 3, 9)
    x[0, 0, 3] = float("inf")
    outputs = file.run([[x.numpy()]])
    assert isinstance(outputs, list)
    assert np.array_equal(outputs[0][0], lif.reference(x).numpy())


def test_onnx_is_seven_nodes_whatever_the_length(tmp_path: Path) -> None:
    files = [lowered(Neurons(()), currents(1, 3, n), tmp_path / f"{n}.onnx") for n in (4, 128, 1000)]
    counts = [file.count_operators() for file in files]
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0].values()) == 7
    assert counts[0]["Scan"] == 1


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_coreml_is_one_loop_whatever_the_length(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from edgesmith.exporters.targets._coreml_file import CoreMlFile

    files = [lowered(Neurons(()), currents(1, 3, n), tmp_path / f"{n}.mlpackage", precision) for n in (4, 128, 1000)]
    counts = [file.count_operators() for file in files]
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0].values()) <= 17
    assert counts[0]["while_loop"] == 1
    assert counts[0]["cast"] == 1, "nothing is cast inside the loop"
    assert [file.largest_rank for file in files if isinstance(file, CoreMlFile)] == [3, 3, 3]


def test_coreml_converts_every_setting(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    file = lowered(Neurons(*SETTINGS[::3]), currents(2, 3, 9), tmp_path / "lif.mlpackage", "fp16")
    assert file.count_operators()["while_loop"] == len(SETTINGS[::3])


# rolling up


@pytest.mark.slow
@given(
    batch=st.integers(1, 3),
    length=st.integers(3, 5),  # twelve below
    tau=st.sampled_from([1.0, 1.5, 2.0, 3.3, 4.0, 10.0]),
    threshold=st.sampled_from([1.0, 0.5, 0.3, 0.0]),
    reset=st.sampled_from([0.0, 0.1, -0.5, None]),
    decay=st.booleans(),
    dim=st.integers(-2, 1),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=300)
def test_an_unrolled_reference_becomes_the_op(
    batch: int, length: int, tau: float, threshold: float, reset: float | None, decay: bool, dim: int, seed: int
) -> None:
    def model(x: Tensor) -> Tensor:
        return lif.reference(x, tau, threshold, reset, decay, dim)

    x = currents(length, batch, seed=seed).movedim(0, dim)
    graph = make_fx(model, tracing_mode="fake")(x)  # a tenth of what a capture takes
    program = Program(graph, (x,), ("x",), ("spikes",))
    rewritten, (_, report) = rewrite(program, Costs(1), (fold_constants, reroll))
    assert count_operators(rewritten.module) == {"edgesmith.lif": 1}, report
    assert torch.equal(model(x), run(rewritten, (x,))[0])


def _hard(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + (x - v) / 2.0
    spike = ((v - 1.0) >= 0).to(x.dtype)
    return spike, (1.0 - spike.detach()) * v


def _soft(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + (x - v) * 0.25
    spike = torch.heaviside(v - 0.5, torch.ones(()))
    return spike, v - spike.detach() * 0.5


def _where(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v - v / 2.0 + x
    fired = v >= 1.0
    return fired.float(), torch.where(fired, torch.zeros_like(v), v)


def _to_reset(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + (x - (v - 0.25)) / 2
    spike = (v >= 1.0).to(x)
    return spike, spike * 0.25 + (1 - spike) * v


def _third(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + (x - v) * (1 / 3)  # which rounds otherwise than a division by 3
    spike = (v >= 1.0).to(x.dtype)
    return spike, (1.0 - spike) * v


def _strict(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + (x - v) / 2
    spike = (v > 1.0).to(x.dtype)
    return spike, (1.0 - spike) * v


def _leaky(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = 0.9 * v + x
    spike = (v >= 1.0).float()
    return spike, v * (1 - spike)


def _leaky_soft(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v * torch.tensor(0.85) + x
    spike = (v - 0.5 >= 0).float()
    return spike, v - spike * 0.5


def _leaky_above(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = torch.tensor(0.9).clamp(0, 1) * v + x
    spike = ((v - torch.tensor(1.0)) > 0).float()
    return spike, (1 - spike) * v


def _towards_the_input(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = v + 0.1 * ((0.0 - v) + x)
    spike = torch.gt(v - 1.0, 0).to(x)
    return spike, (1 - spike) * v + spike * 0.0


def _reset_late(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = 0.9 * v + x - (v >= 1.0).float()
    return (v >= 1.0).float(), v


def _soft_above(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = 0.9 * v + x
    spike = (v > 1.0).float()
    return spike, v - spike


@pytest.mark.parametrize(
    ("step", "start", "meaning"),
    [
        (_reset_late, 0.0, "lif(2.0, 1.0, None, False, 0.9, True)"),
        (_soft_above, 0.0, f"lif(2.0, {1 + 2.0**-23}, None, False, 0.9, None, 1.0)"),
        (_third, 0.0, f"lif(2.0, 1.0, 0.0, True, {1 - 1 / 3})"),
        (_strict, 0.0, f"lif(2.0, {1 + 2.0**-23}, 0.0, True)"),
        (_leaky, 0.0, "lif(2.0, 1.0, 0.0, False, 0.9)"),
        (_leaky_soft, 0.0, f"lif(2.0, 0.5, None, False, {float(np.float32(0.85))})"),
        (_leaky_above, 0.0, f"lif(2.0, {1 + 2.0**-23}, 0.0, False, {float(np.float32(0.9))})"),
        (_towards_the_input, 0.0, f"lif(2.0, {1 + 2.0**-23}, 0.0, True, 0.9)"),
        (_hard, 0.0, "lif(2.0, 1.0, 0.0, True)"),
        (_soft, 0.0, "lif(4.0, 0.5, None, True)"),
        (_where, 0.0, "lif(2.0, 1.0, 0.0, False)"),
        (_to_reset, 0.25, "lif(2.0, 1.0, 0.25, True)"),
    ],
)
def test_loops_are_rolled_up_however_a_step_is_spelled(step: Step, start: float, meaning: str) -> None:
    program, report = rolled(Loop(step, start), currents(12, 2, 5))
    assert count_operators(program.module) == {"edgesmith.lif": 1}
    assert report.applied[0][1] == f"12 unrolled steps -> edgesmith.{meaning}"


def _reset_by_half(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = 0.9 * v + x
    spike = (v >= 1.0).float()
    return spike, v - 0.5 * spike


def _reset_late_to_another(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    v = torch.where(v >= 1.0, 0.25, 0.9 * v + x)
    return (v >= 1.0).float(), v


@pytest.mark.parametrize("step", [_reset_by_half, _reset_late_to_another])
def test_a_leak_by_a_factor_with_another_reset_is_left(step: Step) -> None:
    program, report = rolled(Loop(step), currents(12, 2, 5))
    assert "edgesmith.lif" not in count_operators(program.module)
    assert "no tau, beta, threshold and reset" in report.rejected[0].reason


def test_a_loop_that_concatenates_and_one_that_starts_with_a_number_are_rolled_up() -> None:
    def join(spikes: list[Tensor]) -> Tensor:
        return torch.cat([spike.unsqueeze(1) for spike in spikes], dim=1)

    program, _ = rolled(Loop(_hard, join=join), currents(8, 2, 5))
    assert count_operators(program.module) == {"aten.permute": 1, "edgesmith.lif": 1}

    class Number(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v: Any = 0.0
            spikes = []
            for t in range(x.shape[1]):
                spike, v = _hard(x[:, t], v)
                spikes.append(spike)
            return torch.stack(spikes, 1)

    program, _ = rolled(Number(), currents(2, 8, 5))
    assert count_operators(program.module) == {"edgesmith.lif": 1}


def test_two_layers_in_one_loop_are_rolled_up_and_what_is_between_them_is_done_at_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            v, w, spikes = torch.zeros(len(x[0]), 5), torch.zeros(len(x[0]), 4), []
            for t in range(len(x)):
                hidden, v = _soft(self.first(x[t]), v)
                spike, w = _hard(3 * self.second(hidden), w)
                spikes.append(spike)
            return torch.stack(spikes)

    torch.manual_seed(0)
    program = capture(Net().eval(), (currents(20, 3, 6),))
    rewritten, reports = rewrite(program, Costs(1))
    counts = count_operators(rewritten.module)
    assert counts["edgesmith.lif"] == counts["aten.linear"] == 2
    assert "aten.stack" not in counts
    assert len(next(r for r in reports if r.name == "reroll").applied) == 2
    for seed in range(5):
        x = currents(20, 3, 6, seed=seed)
        assert torch.equal(run(program, (x,))[0], run(rewritten, (x,))[0])


def test_a_scan_becomes_the_op_and_a_scan_whose_potential_is_read_does_not() -> None:
    class Scan(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last = last

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            v, spikes = scan(lambda v, x: _hard(x, v)[::-1], torch.zeros_like(x[0]), x)
            return (spikes, v) if self.last else (spikes,)

    program, report = rolled(Scan(last=False), currents(8, 2, 5))
    assert count_operators(program.module) == {"edgesmith.lif": 1}
    program, report = rolled(Scan(last=True), currents(8, 2, 5))
    assert "edgesmith.lif" not in count_operators(program.module)
    assert "the last state of the scan is read too" in report.rejected[0].reason


@pytest.mark.parametrize("start", [0.5, 1.0, -0.25])
def test_a_scan_that_starts_off_its_reset_is_left(start: float) -> None:
    class Scan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scan(lambda v, x: _hard(x, v)[::-1], torch.full_like(x[0], start), x)[1]

    program, report = rolled(Scan(), currents(8, 2, 5))
    assert "edgesmith.lif" not in count_operators(program.module)
    assert "no tau, beta, threshold and reset" in report.rejected[0].reason


@pytest.fixture(scope="module")
def spikingjelly() -> Iterator[None]:
    """An operator with the name and the arguments of spikingjelly 2's, which decays the input or not."""
    library = torch.library.Library("sj_lif", "FRAGMENT")
    library.define(
        "forward(Tensor x, Tensor v, float tau, bool decay_input, float threshold, float? reset) -> (Tensor, Tensor)"
    )

    def forward(
        x: Tensor, v: Tensor, tau: float, decay_input: bool, threshold: float, reset: float | None
    ) -> tuple[Tensor, Tensor]:
        spikes = []
        for current in x:
            fired, v = lif.step(current, v, tau, threshold, reset, decay_input)
            spikes.append(fired)
        return torch.stack(spikes), v

    library.impl("forward", forward, "CPU")
    torch.library.register_fake("sj_lif::forward", lambda x, v, *_: (torch.empty_like(x), torch.empty_like(v)))
    yield
    library._destroy()


@pytest.mark.parametrize(
    ("start", "reads_state", "reason"),
    [(0.25, False, None), (0.0, False, "its state does not start with 0.25"), (0.25, True, "its state is read too")],
)
def test_spikingjellys_own_operator_becomes_the_op(
    start: float, reads_state: bool, reason: str | None, spikingjelly: None
) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            spikes, v = torch.ops.sj_lif.forward(x, torch.full_like(x[0], start), 3.0, False, 0.75, 0.25)
            return (spikes, v) if reads_state else spikes

    program, report = rolled(Model(), currents(8, 2, 5))
    if reason is None:
        assert report.applied[0][1] == "sj_lif.forward -> edgesmith.lif(3.0, 0.75, 0.25, False)"
        assert count_operators(program.module) == {"edgesmith.lif": 1}
    else:
        assert "edgesmith.lif" not in count_operators(program.module)
        assert reason in report.rejected[0].reason


def _clamped(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    spike, v = _hard(x, v)
    return spike, v.clamp(min=-1000)


@pytest.mark.parametrize("step", [_clamped])
def test_steps_that_are_nearly_lif_are_left_with_the_reason(step: Step) -> None:
    program, report = rolled(Loop(step), currents(8, 2, 5))
    assert "edgesmith.lif" not in count_operators(program.module)
    assert "no tau, beta, threshold and reset" in report.rejected[0].reason


def test_a_loop_with_one_other_step_is_left_with_the_step() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v, spikes = torch.zeros_like(x[0]), []
            for t in range(len(x)):
                v = v + (x[t] - v) / (3 if t == 5 else 2)
                spike = (v >= 1.0).to(x.dtype)
                v = (1 - spike) * v
                spikes.append(spike)
            return torch.stack(spikes)

    program, report = rolled(Model(), currents(9, 2, 5))
    assert "edgesmith.lif" not in count_operators(program.module)
    assert "step 5 of 9 differs from the last one" in report.rejected[0].reason


@pytest.mark.parametrize(
    "first",
    [lambda v, spike: spike * 3, lambda v, spike: torch.zeros_like(spike), lambda v, spike: (v >= 0.1).to(v.dtype)],
    ids=["scaled", "zeroed", "another threshold"],
)
def test_a_loop_whose_first_output_is_another_is_left(first: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v, spikes = torch.zeros_like(x[0]), []
            for t in range(len(x)):
                v = v + (x[t] - v) / 2
                spike = (v >= 1.0).to(x.dtype)
                spikes.append(first(v, spike) if t == 0 else spike)
                v = (1 - spike) * v
            return torch.stack(spikes)

    program, report = rolled(Model(), currents(9, 2, 5))
    assert "edgesmith.lif" not in count_operators(program.module)
    assert "the output of step 0 of 9 is computed otherwise" in report.rejected[0].reason


def test_a_loop_whose_potential_is_returned_is_left_with_the_reader() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            v, spikes = torch.zeros_like(x[0]), []
            for current in x:
                spike, v = _hard(current, v)
                spikes.append(spike)
            return torch.stack(spikes), v

    program, report = rolled(Model(), currents(9, 2, 5))
    assert "edgesmith.lif" not in count_operators(program.module)
    assert "is also read by" in report.rejected[0].reason


def test_a_stack_of_independent_layers_is_no_loop() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([layer(x) for layer in self.layers])

    _, report = rolled(Model(), currents(2, 4))
    assert not report.applied
    assert not report.rejected


def test_rolling_up_is_for_any_batch() -> None:
    program = capture(Loop(_hard).eval(), (currents(2, 6, 5).movedim(0, 0),))
    rewritten, _ = rewrite(program, Costs(1))
    assert count_operators(rewritten.module) != {"edgesmith.lif": 1}, "two steps could be anything"

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Loop(_hard, join=lambda s: torch.stack(s, 1))(x.transpose(0, 1))

    program = capture(Last(), (currents(3, 7, 5),), dynamic_batch=True)
    rewritten, _ = rewrite(program, Costs(1))
    assert count_operators(rewritten.module).get("edgesmith.lif") == 1
    for batch in (1, 2, 5):
        x = currents(batch, 7, 5, seed=batch)
        assert torch.equal(run(rewritten, (x,))[0], Last()(x))
