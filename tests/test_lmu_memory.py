"""Legendre memories: forms are equal, the target's costs choose one, and FFTs, loops and scans are recognised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lowering import lower
from support.rewriting import apply
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import arguments, count_operators, operators
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.reroll import reroll
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.exporters.targets import onnx
from edgesmith.kernels import lmu_memory
from edgesmith.kernels.lmu_memory import FORMS, chunks, impulse_response

# Costs with which each form is the cheapest: nothing costs but what the others need more of.
FAVOURING = {
    "convolution": Costs(1, gmac_s=5e5, loop_us=1e3),
    "chunked": Costs(0, gmac_s=0.5, loop_us=0.2),
    "recurrent": Costs(1e3, gmac_s=0.5),
}


def system(order: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random stable A [M, M] and b [M]."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(order, order, generator=generator)
    return 0.9 * a / torch.linalg.matrix_norm(a, 2).clamp(min=1e-3), torch.randn(order, generator=generator)


def relative(x: Tensor, y: Tensor) -> float:
    assert x.shape == y.shape
    return float((x - y).abs().max() / y.abs().max().clamp(min=1e-6))


def rewritten(
    model: nn.Module, *inputs: Tensor, costs: Costs = onnx.TARGET.costs
) -> tuple[Program, dict[str, RewriteReport]]:
    """Capture, rewrite, and assert that the numbers hold and that a second run finds nothing to do."""
    program, reports, _ = apply(model, *inputs, costs=costs)
    return program, reports


class Memory(nn.Module):
    """One call of the op. [B, T] -> [B, M, T]"""

    def __init__(self, order: int, length: int, form: str = FORMS[0], known: bool = True) -> None:
        super().__init__()
        a, b = system(order)
        self.register_buffer("impulse", impulse_response(a, b, length))
        self.a, self.b = (nn.Buffer(a), nn.Buffer(b)) if known else (None, None)
        self.form = form

    def forward(self, u: Tensor) -> Tensor:
        return lmu_memory.OP.overload(u, self.impulse, self.a, self.b, self.form)


# the op and its forms


@given(
    batch=st.integers(1, 3),
    order=st.integers(1, 9),
    length=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=300)
def test_all_forms_are_the_recurrence(batch: int, order: int, length: int, seed: int) -> None:
    a, b = system(order, seed)
    u = torch.randn(batch, length, generator=torch.Generator().manual_seed(seed))
    m, expected = torch.zeros(batch, order, dtype=torch.float64), []
    for t in range(length):
        m = m @ a.double().T + u[:, t : t + 1].double() * b.double()
        expected.append(m)
    impulse = impulse_response(a, b, length)
    for form in FORMS:
        if form == "chunked" and length < 2:
            continue
        memory = lmu_memory.OP.overload(u, impulse, a, b, form)
        assert relative(memory.double(), torch.stack(expected, 2)) <= lmu_memory.OP.tolerance


@given(length=st.integers(2, 5000))
def test_chunks_cover_a_sequence(length: int) -> None:
    size, count = chunks(length)
    assert count >= 2
    assert (count - 1) * size < length <= count * size


def test_forms_need_what_they_compute_with() -> None:
    u, impulse, a, b = lmu_memory.example()
    for form in ("chunked", "recurrent"):
        with pytest.raises(ValueError, match=f"the {form} form needs a and b"):
            lmu_memory.OP.shape(u, impulse, form=form)
    with pytest.raises(ValueError, match="form must be convolution, chunked, recurrent, got 'fft'"):
        lmu_memory.OP.shape(u, impulse, a, b, "fft")
    with pytest.raises(ValueError, match="needs two time steps"):
        lmu_memory.OP.shape(u[:, :1], impulse[:, :1], a, b, "chunked")


# lowerings


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_onnx_equals_the_reference_and_does_not_grow(form: str, dynamic: bool, tmp_path: Path) -> None:
    counts = []
    for length in (4, 50, 128):
        path = tmp_path / f"{length}.onnx"
        model = Memory(7, length, form)
        file = lower("onnx", capture(model, (torch.zeros(3, length),), dynamic_batch=dynamic), path)
        file.check()
        counts.append(sum(file.count_operators().values()))
        u = torch.randn(2 if dynamic else 3, length, generator=torch.Generator().manual_seed(0))
        outputs = file.run([[u.numpy()]])
        assert isinstance(outputs, list)
        assert relative(torch.from_numpy(outputs[0][0]), Memory(7, length)(u)) <= lmu_memory.OP.tolerance
    assert max(counts) <= {"convolution": 2, "recurrent": 12, "chunked": 16}[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_coreml_does_not_grow(form: str, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from edgesmith.exporters.targets._coreml_file import CoreMlFile

    counts = []
    for length in (5, 128, 1000):
        path = tmp_path / f"{length}.mlpackage"
        file = lower("coreml", capture(Memory(6, length, form), (torch.zeros(2, length),)), path, precision)
        file.check()
        counts.append(sum(file.count_operators().values()))
        assert isinstance(file, CoreMlFile)
        assert file.largest_rank <= 4
    assert max(counts) <= {"convolution": 3, "recurrent": 14, "chunked": 24}[form]
    assert max(counts) - min(counts) <= 2, "chunks that do not fill the sequence are padded and cut"


# choosing a form


@pytest.mark.parametrize("form", FORMS)
def test_the_cheapest_form_is_chosen(form: str) -> None:
    program, reports = rewritten(Memory(6, 30), torch.randn(2, 30), costs=FAVOURING[form])
    (node,) = (n for n in operators(program.module) if n.target is lmu_memory.OP.overload)
    assert arguments(node)[4] == form
    report = reports["choose_memory_form"]
    notes = [note for _, note in report.applied] + [rejection.reason for rejection in report.rejected]
    assert all(word in notes[0] for word in FORMS)


def test_a_memory_without_a_and_b_stays_a_convolution() -> None:
    _, reports = rewritten(Memory(6, 30, known=False), torch.randn(2, 30), costs=FAVOURING["recurrent"])
    assert "recurrent" not in reports["choose_memory_form"].rejected[0].reason


class Readout(nn.Module):
    """A memory and a layer over it and other channels, in either layout; `join` says what is joined in which order."""

    def __init__(
        self, last: bool, join: str = "mx", bias: bool = True, reader: Callable[[Tensor], Tensor] | None = None
    ):
        super().__init__()
        self.memory, self.last, self.join, self.reader = Memory(6, 20), last, join, reader
        self.weight = nn.Parameter(torch.randn(5, join.count("m") * 6 + 3 * join.count("x")))
        self.bias = nn.Parameter(torch.randn(5)) if bias else None

    def forward(self, u: Tensor, x: Tensor) -> Any:
        m = self.memory(u)
        parts = {"m": m.transpose(1, 2) if self.last else m, "x": x.transpose(1, 2) if self.last else x}
        joined = (
            torch.cat([parts[name] for name in self.join], -1 if self.last else 1) if self.join != "m" else parts["m"]
        )
        y = (
            F.linear(joined, self.weight, self.bias)
            if self.last
            else F.conv1d(joined, self.weight[:, :, None], self.bias)
        )
        return (y, self.reader(m)) if self.reader else y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("last", [True, False], ids=["linear", "conv"])
@pytest.mark.parametrize("join", ["m", "mx", "xm", "xmx"])
def test_a_readout_takes_the_memory_in(join: str, last: bool, bias: bool) -> None:
    torch.manual_seed(0)
    program, reports = rewritten(Readout(last, join, bias), torch.randn(2, 20), torch.randn(2, 3, 20))
    counts = count_operators(program.module)
    assert "edgesmith.lmu_memory" not in counts
    assert "folded into its readout" in reports["choose_memory_form"].applied[0][1]


def test_a_memory_that_something_else_reads_is_not_folded() -> None:
    model = Readout(False, reader=lambda m: m.relu())
    program, reports = rewritten(model, torch.randn(2, 20), torch.randn(2, 3, 20))
    assert count_operators(program.module)["edgesmith.lmu_memory"] == 1
    assert "not folded: it is read by" in reports["choose_memory_form"].rejected[0].reason


def test_a_readout_over_several_frames_is_not_folded() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.conv = Memory(6, 20), nn.Conv1d(6, 4, 3, padding=1)

        def forward(self, u: Tensor) -> Tensor:
            return self.conv(self.memory(u))

    _, reports = rewritten(Model(), torch.randn(2, 20))
    assert "is no 1x1 convolution" in reports["choose_memory_form"].rejected[0].reason


def test_a_wide_readout_of_a_long_sequence_is_cheaper_unfolded() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.weight = Memory(4, 400), nn.Parameter(torch.randn(64, 4, 1))

        def forward(self, u: Tensor) -> Tensor:
            return F.conv1d(self.memory(u), self.weight)

    program, _ = rewritten(Model(), torch.randn(2, 400))
    assert count_operators(program.module)["edgesmith.lmu_memory"] == 1


# batch norms


class Normed(nn.Module):
    """A memory, a batch norm, and what reads it."""

    def __init__(self, known: bool, read: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.memory, self.norm, self.read = Memory(6, 20, known=known), nn.BatchNorm1d(6), read

    def forward(self, u: Tensor) -> Any:
        m = self.memory(u)
        return self.read(self.norm(m)), m.mean() if self.read is torch.sigmoid else self.read(self.norm(m))


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_norm_changes_the_basis_of_the_memory(form: str, randomised: Callable[[nn.Module], nn.Module]) -> None:
    model = randomised(nn.Sequential(Memory(6, 20), nn.BatchNorm1d(6), nn.ReLU()))
    model[1].weight.data[2] *= -1
    program, reports = rewritten(model, torch.randn(2, 20), costs=FAVOURING[form])
    assert reports["fold_batchnorm"].applied == (("1", "backwards into 0"),)
    counts = count_operators(program.module)
    assert counts["edgesmith.lmu_memory"] == counts["aten.add"] == 1
    (node,) = (n for n in operators(program.module) if n.target is lmu_memory.OP.overload)
    assert arguments(node)[4] == form
    assert "aten.batch_norm" not in counts


def test_a_batch_norm_stays_where_the_memory_has_other_readers_or_would_vanish(
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    _, reports = rewritten(randomised(Normed(True, torch.sigmoid)), torch.randn(2, 20))
    assert "the memory before it is also read by" in reports["fold_batchnorm"].rejected[0].reason
    model = randomised(nn.Sequential(Memory(6, 20), nn.BatchNorm1d(6)))
    model[1].weight.data[2] = 0
    _, reports = rewritten(model, torch.randn(2, 20))
    assert "a scale of 0" in reports["fold_batchnorm"].rejected[0].reason


# recognising


class Fourier(nn.Module):
    """As the authors write it: x [B, T, 3] -> [B, T, 5]"""

    def __init__(
        self, length: int = 20, period: int = 40, order: int = 6, known: bool = True, tail: float = 0.0
    ) -> None:
        super().__init__()
        a, b = system(order)
        if known:
            self.register_buffer("A", a)
            self.register_buffer("B", b.unsqueeze(1))
        h = F.pad(impulse_response(a, b, length), (0, period - length))
        h[:, -1] += tail
        self.register_buffer("fft_H", torch.fft.rfft(h))
        self.length, self.period = length, period
        self.W_u, self.W_h = nn.Linear(3, 1), nn.Linear(order + 3, 5)

    def memory(self, u: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(u, n=self.period, dim=-1) * self.fft_H.unsqueeze(0)
        return torch.fft.irfft(spectrum, n=self.period)[..., : self.length]

    def forward(self, x: Tensor) -> Tensor:
        u = torch.relu(self.W_u(x))
        m = self.memory(u.permute(0, 2, 1)).permute(0, 2, 1)
        return torch.relu(self.W_h(torch.cat((m, x), dim=-1)))


@pytest.mark.parametrize("period", [39, 40, 64])
def test_the_authors_spelling_is_recognised_and_folded(period: int) -> None:
    torch.manual_seed(0)
    program, reports = rewritten(Fourier(period=period), torch.randn(2, 20, 3))
    assert "its A and b were found" in reports["find_memory"].applied[0][1]
    counts = count_operators(program.module)
    assert not [name for name in counts if "fft" in name]
    assert counts["aten.conv1d"] == 1


def test_a_filter_without_its_recurrence_is_a_memory_without_a_and_b() -> None:
    _, reports = rewritten(Fourier(known=False), torch.randn(2, 20, 3), costs=FAVOURING["recurrent"])
    assert "not among the constants" in reports["find_memory"].applied[0][1]


def test_a_recurrence_of_another_impulse_is_not_taken_for_its_own() -> None:
    model = Fourier()
    model.A.mul_(0.99)
    _, reports = rewritten(model, torch.randn(2, 20, 3))
    assert "not among the constants" in reports["find_memory"].applied[0][1]


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Fourier(tail=0.1), "circular filter"), (Fourier(length=20, period=30), "circular filter")],
    ids=["tail", "short period"],
)
def test_a_circular_filter_is_left(model: nn.Module, reason: str) -> None:
    program, reports = rewritten_or_captured(model, torch.randn(2, 20, 3))
    assert "edgesmith.lmu_memory" not in count_operators(program.module)
    assert reason in reports["find_memory"].rejected[0].reason


def rewritten_or_captured(model: nn.Module, x: Tensor) -> tuple[Program, dict[str, RewriteReport]]:
    program, reports = rewrite(capture(model.eval(), (x,)), onnx.TARGET.costs)
    return program, {report.name: report for report in reports}


def test_a_filter_of_several_signals_or_of_other_steps_is_left() -> None:
    class Channels(Fourier):
        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(x.repeat(1, 1, 2).permute(0, 2, 1), n=40) * self.fft_H
            return torch.fft.irfft(spectrum, n=40)[..., :20]

    class Later(Fourier):
        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(self.W_u(x).permute(0, 2, 1), n=40) * self.fft_H
            return torch.fft.irfft(spectrum, n=40)[..., 1:21]

    for model, reason in ((Channels(), "it filters 6 signals"), (Later(), "not just the first 20 steps")):
        program, reports = rewritten_or_captured(model, torch.randn(2, 20, 3))
        assert "edgesmith.lmu_memory" not in count_operators(program.module)
        assert reason in reports["find_memory"].rejected[0].reason


Recur = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
SPELLINGS: dict[str, Recur] = {
    "matmul": lambda m, u, a, b: m @ a.T + u @ b.T,
    "linear": lambda m, u, a, b: F.linear(u, b) + F.linear(m, a),
    "outer": lambda m, u, a, b: F.linear(m, a) + u * b[:, 0],
}


@given(
    spelling=st.sampled_from(sorted(SPELLINGS)),
    batch=st.integers(1, 3),
    order=st.integers(2, 6),
    length=st.integers(3, 9),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_an_unrolled_recurrence_becomes_the_op(spelling: str, batch: int, order: int, length: int, seed: int) -> None:
    a, b = system(order, seed)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A, self.B = nn.Buffer(a), nn.Buffer(b.unsqueeze(1))

        def forward(self, x: Tensor) -> Tensor:
            m, memory = x.new_zeros(x.shape[0], order), []
            for t in range(x.shape[1]):
                m = SPELLINGS[spelling](m, x[:, t], self.A, self.B)
                memory.append(m)
            return torch.stack(memory, dim=1)

    x = torch.randn(batch, length, 1, generator=torch.Generator().manual_seed(seed))
    program = capture(Model(), (x,))
    result, (_, report) = rewrite(program, Costs(1), (fold_constants, reroll))
    counts = count_operators(result.module)
    assert counts.get("edgesmith.lmu_memory") == 1, report
    assert "aten.stack" not in counts
    assert relative(run(result, (x,))[0], run(program, (x,))[0]) <= 1e-5


def test_a_signal_computed_in_the_loop_is_computed_at_once() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            a, b = system(6)
            self.A, self.B, self.W_u = nn.Buffer(a), nn.Buffer(b.unsqueeze(1)), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            m, memory = torch.zeros(len(x), 6), []
            for t in range(x.shape[1]):
                m = SPELLINGS["linear"](m, torch.relu(self.W_u(x[:, t])), self.A, self.B)
                memory.append(m)
            return torch.stack(memory, dim=-1)

    torch.manual_seed(0)
    program, reports = rewritten(Model(), torch.randn(2, 12, 3))
    counts = count_operators(program.module)
    assert counts["edgesmith.lmu_memory"] == counts["aten.linear"] == 1
    assert reports["reroll"].applied[0][1] == "12 unrolled steps -> edgesmith.lmu_memory, M = 6"


def test_a_scan_becomes_the_op() -> None:
    class Model(Memory):
        def forward(self, x: Tensor) -> Tensor:
            def step(m: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
                m = m @ self.a.T + u * self.b
                return m, m.clone()

            return scan(step, x.new_zeros(x.shape[1], 6), x)[1]

    program, _ = rewritten(Model(6, 9), torch.randn(9, 2, 1))
    assert count_operators(program.module)["edgesmith.lmu_memory"] == 1


class Recurrence(Memory):
    """Any step in a loop. [B, T, E] -> [B, T, M]"""

    def __init__(self, step: Callable[..., Tensor], order: int = 6, first: Callable[[Tensor], Tensor] | None = None):
        super().__init__(order, 9)
        self.step, self.first, self.order = step, first, order

    def forward(self, x: Tensor) -> Tensor:
        m, memory = x.new_zeros(x.shape[0], self.order), []
        for t in range(x.shape[1]):
            m = self.step(self, m, x[:, t])
            memory.append(self.first(m) if t == 0 and self.first else m)
        return torch.stack(memory, dim=1)


def left(model: nn.Module, x: Tensor) -> list[str]:
    """Assert that a model is not taken for a memory. Returns why not."""
    program, reports = rewritten(model, x)
    assert "edgesmith.lmu_memory" not in count_operators(program.module)
    return [rejection.reason for rejection in reports["reroll"].rejected]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda s, m, u: torch.tanh(F.linear(m, s.a)) + u * s.b, "not linear: it has aten.tanh"),
        (lambda s, m, u: F.linear(m.clamp(-10, 10), s.a) + u * s.b, "not linear: it has aten.clamp"),
        (lambda s, m, u: F.linear(m, s.a) * (1 + 1e-9 * m) + u * s.b, "not linear: it has aten.mul"),
        (lambda s, m, u: F.linear(m, s.a, 1e-6 * s.b) + u * s.b, "adds a constant"),
        (lambda s, m, u: F.linear(m, s.a) + 0.1 + u * s.b, "adds a constant"),
        (lambda s, m, u: F.linear(m, s.a) + (u + 1) * s.b * u, "is no signal times a vector"),
        (lambda s, m, u: F.linear(m, s.a) + (u + 1) * (u * s.b), "is no signal times a vector"),
    ],
)
def test_recurrences_that_are_no_memory_are_left_with_the_reason(step: Callable[..., Tensor], reason: str) -> None:
    (found,) = left(Recurrence(step), torch.randn(2, 9, 1))
    assert reason in found


@pytest.mark.parametrize("clamped", ["first", "later", "none"])
def test_a_clamp_that_random_numbers_do_not_reach_is_seen(clamped: str) -> None:
    class Model(Memory):
        def forward(self, x: Tensor) -> Tensor:
            m = x[:, 0] * self.b
            memory = [m.clamp(-10, 10) if clamped == "first" else m]
            for t in range(1, x.shape[1]):
                m = F.linear(memory[-1], self.a) + x[:, t] * self.b
                memory.append(m.clamp(-10, 10) if clamped == "later" else m)
            return torch.stack(memory, dim=1)

    if clamped == "none":
        program, _ = rewritten(Model(6, 9), torch.randn(2, 9, 1))
        assert count_operators(program.module)["edgesmith.lmu_memory"] == 1
    else:
        (found,) = left(Model(6, 9), torch.randn(2, 9, 1))
        assert "not linear: it has aten.clamp" in found


@pytest.mark.parametrize("last", [torch.tanh, lambda m: m.clamp(-10, 10), lambda m: m + 0.1])
def test_a_state_that_is_changed_before_it_is_put_out_is_no_memory(last: Callable[[Tensor], Tensor]) -> None:
    left(Recurrence(lambda s, m, u: last(F.linear(m, s.a) + u * s.b)), torch.randn(2, 9, 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda m: m.clamp(-10, 10), "not linear: it has aten.clamp"), (lambda m: m + 1e-6, "adds a constant")],
)
def test_a_scan_that_is_not_linear_is_left(change: Callable[[Tensor], Tensor], reason: str) -> None:
    class Model(Memory):
        def forward(self, x: Tensor) -> Tensor:
            def step(m: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
                m = change(m @ self.a.T + u * self.b)
                return m, m.clone()

            return scan(step, x.new_zeros(x.shape[1], 6), x)[1]

    (found,) = left(Model(6, 9), torch.randn(9, 2, 1))
    assert reason in found


def test_a_first_output_that_is_another_is_left() -> None:
    model = Recurrence(lambda s, m, u: F.linear(m, s.a) + u * s.b, first=lambda m: m * 2)
    (found,) = left(model, torch.randn(2, 9, 1))
    assert "the output of step 0 of 9 is computed otherwise" in found


def test_a_signal_times_itself_is_no_signal_times_a_vector() -> None:
    (found,) = left(Recurrence(lambda s, m, u: F.linear(m, s.a) + u * u, order=1), torch.randn(3, 9, 1))
    assert "is no signal times a vector" in found


def test_a_signal_of_another_batch_is_left() -> None:
    model = Recurrence(lambda s, m, u: F.linear(m, s.a) + u[:1] * s.b)
    left(model, torch.randn(2, 9, 1))


@pytest.mark.parametrize(
    ("shape", "prepare", "part", "reason"),
    [
        ((2, 1), lambda z: z, (slice(None), slice(1, 3)), "not just the first 20 steps"),
        ((2, 1), lambda z: z, (slice(0, 1),), "not just the first 20 steps"),
        ((6,), lambda z: z.unsqueeze(0), (), "it filters 6 signals, not one"),
        ((), lambda z: z.unsqueeze(0).unsqueeze(0), (), "its signal is [20], not [B, T] or [B, 1, T]"),
    ],
    ids=["rows", "batch", "channels", "vector"],
)
def test_other_filters_of_the_same_spelling_are_left(
    shape: tuple[int, ...], prepare: Callable[[Tensor], Tensor], part: tuple[slice, ...], reason: str
) -> None:
    class Model(Fourier):
        def forward(self, u: Tensor) -> Tensor:
            y = torch.fft.irfft(prepare(torch.fft.rfft(u, n=40)) * self.fft_H, n=40)
            return y[(*part, ..., slice(0, 20))]

    program, reports = rewritten(Model(), torch.randn(*shape, 20))
    assert "edgesmith.lmu_memory" not in count_operators(program.module)
    assert reason in reports["find_memory"].rejected[0].reason


def test_a_signal_without_an_axis_for_channels_is_filtered() -> None:
    class Model(Fourier):
        def forward(self, u: Tensor) -> Tensor:
            return self.memory(u.unsqueeze(1))

    class After(Fourier):
        def forward(self, u: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(u, n=40).unsqueeze(1) * self.fft_H, n=40)[:, :, :20]

    for model in (Model(), After()):
        program, _ = rewritten(model, torch.randn(2, 20))
        assert count_operators(program.module)["edgesmith.lmu_memory"] == 1
