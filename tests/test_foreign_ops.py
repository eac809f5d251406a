"""An op of another package, in one file, with a time axis: found, streamed, re-rolled, left in float by int8."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

import edgesmith
from edgesmith.errors import Unsupported
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.precision.int8 import quantise
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.session import StreamingSession
from edgesmith.exporters.streaming.step_program import to_step
from edgesmith.kernels import op as ops
from edgesmith.kernels.op import FusedOp, all_ops, find, spikes_in
from edgesmith.plugins import PluginWarning

NAME = "edgesmith.leaky_average"


@pytest.fixture
def leaky(install: Callable[..., None], fixtures: Path) -> FusedOp:
    """The op, installed as another package's."""
    source = (fixtures / "leaky_average.py").read_text(encoding="utf-8")
    install("leaky_average", source, group="edgesmith.ops", leaky=":OP")
    return all_ops()["leaky_average"]


class Smoothed(nn.Module):
    """Convolutions around the op. [B, T, 3] -> [B, T, 4]"""

    def __init__(self, op: FusedOp, alpha: float = 0.25) -> None:
        super().__init__()
        self.op, self.alpha = op, alpha
        self.before, self.after, self.head = (
            nn.Conv1d(3, 8, 3, padding=1),
            nn.Conv1d(8, 8, 3, padding=1),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x.transpose(1, 2)))
        x = self.after(self.op.overload(x, self.alpha, 2))
        return self.head(x.transpose(1, 2))


def rewritten(model: nn.Module, x: Tensor, streaming: bool = False) -> Program:
    return rewrite(capture(model.eval(), (x,), ("frames",)), Costs(0), streaming=streaming)[0]


def test_it_is_found_by_its_name_and_its_overload(leaky: FusedOp) -> None:
    assert find(leaky.overload) is leaky
    assert not spikes_in([NAME])
    torch.library.opcheck(leaky.overload, leaky.example(), test_utils=("test_schema", "test_faketensor"))


def test_it_streams_frame_by_frame(leaky: FusedOp, tmp_path: Path) -> None:
    model, x = Smoothed(leaky), torch.randn(2, 11, 3)
    artifact = edgesmith.export(model, "onnx", inputs=x, name="smoothed", streaming=True, out=tmp_path)
    states = artifact.manifest["streaming"]["states"]
    (state,) = [state for state in states if state["name"].endswith("_average")]
    assert (state["shape"], state["initial"]) == ([2, 8], 0.0)
    assert state["meaning"].startswith("average of ")
    with torch.no_grad():
        expected = model(x).numpy()
    predictions = np.stack(StreamingSession(artifact.path).run(x.numpy()), axis=1)
    assert np.abs(predictions - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_it_cannot_do_frame_by_frame_is_refused_in_its_own_words(leaky: FusedOp) -> None:
    class Along(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return leaky.overload(x, 0.25, 2)

    x = torch.randn(1, 7, 3)
    with pytest.raises(Unsupported, match=r"leaky_average\) averages along another axis than time"):
        to_step(rewritten(Along(), x, streaming=True))
    with pytest.raises(Unsupported, match=r"leaky_average\) averages over no time at all"):
        to_step(rewritten(Smoothed(leaky, 1.0), x, streaming=True))


class Loop(nn.Module):
    """The op's step in a loop, spelled as somebody may. [B, T, C] -> [B, T, C]"""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], start: float = 0.0) -> None:
        super().__init__()
        self.step, self.start = step, start

    def forward(self, x: Tensor) -> Tensor:
        y, averages = torch.full_like(x[:, 0], self.start), []
        for t in range(x.shape[1]):
            y = self.step(y, x[:, t])
            averages.append(y)
        return torch.stack(averages, 1)


class Scan(Loop):
    """The same as torch's own scan."""

    def forward(self, x: Tensor) -> Tensor:
        def step(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.step(y, x)
            return y, y.clone()

        x = x.transpose(0, 1)
        return scan(step, torch.full_like(x[0], self.start), x)[1].transpose(0, 1)


@pytest.mark.parametrize("kind", [Loop, Scan])
def test_loops_and_scans_of_its_step_become_the_op(kind: type[Loop], leaky: FusedOp) -> None:
    model, x = kind(lambda y, x: torch.add(0.125 * (x - y), y)).eval(), torch.randn(2, 9, 3)
    program, reports = rewrite(capture(model, (x,)), Costs(1))
    assert count_operators(program.module).get(NAME) == 1
    (note,) = next(report for report in reports if report.name == "reroll").applied
    assert f"{NAME}(0.125)" in note[1]
    assert torch.equal(run(program, (x,))[0], model(x))


@pytest.mark.parametrize("kind", [Loop, Scan])
@pytest.mark.parametrize(
    ("step", "start"),
    [
        (lambda y, x: y + (x - y) * 0.125, 0.125),  # begins elsewhere
        (lambda y, x: 0.875 * y + 0.125 * x, 0.0),  # rounds otherwise
        (lambda y, x: y + (x - y) * 1.5, 0.0),  # no alpha
    ],
)
def test_loops_that_nearly_have_its_step_stay(
    kind: type[Loop], step: Callable[[Tensor, Tensor], Tensor], start: float, leaky: FusedOp
) -> None:
    model, x = kind(step, start).eval(), torch.randn(2, 9, 3)
    program, _ = rewrite(capture(model, (x,)), Costs(1))
    assert NAME not in count_operators(program.module)
    torch.testing.assert_close(run(program, (x,))[0], model(x), rtol=1e-6, atol=1e-6)  # two are leaky sums


def test_int8_leaves_it_in_float(leaky: FusedOp) -> None:
    x = [torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    quantised = quantise(rewritten(Smoothed(leaky), x[0]), [(one,) for one in x], 10.0)
    counts = count_operators(quantised.program.module)
    assert quantised.layers == 3
    assert counts[NAME] == 1


def test_an_op_that_takes_anothers_name_is_left_out_and_the_other_stays(
    install: Callable[..., None], fixtures: Path, leaky: FusedOp
) -> None:
    source = (fixtures / "leaky_average.py").read_text(encoding="utf-8")
    install("another", source.replace('"leaky_average"', '"lif"'), group="edgesmith.ops", another=":OP")
    with pytest.warns(PluginWarning) as said:
        found = all_ops()
    (warning,) = said
    assert str(warning.message) == (
        "plugin 'another' of edgesmith.ops is left out: another:OP of another 1.0 does not load"
        " (ValueError: edgesmith.kernels.lif defines edgesmith.lif too; rename the op of another)"
    )
    assert {*found} == {*all_own(), "leaky_average"}
    spikes = torch.ops.edgesmith.lif(torch.full((1, 3), 3.0))
    assert spikes.tolist() == [[1.0, 1.0, 1.0]]


def test_a_plugin_that_offers_a_known_op_once_more_is_left_out(install: Callable[..., None]) -> None:
    install("again", "from edgesmith.kernels.lif import OP", group="edgesmith.ops", again=":OP")
    with pytest.warns(
        PluginWarning, match=re.escape("plugin 'again' of edgesmith.ops is left out: it is edgesmith.lif")
    ):
        assert {*all_ops()} == all_own()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        all_ops()


def all_own() -> set[str]:
    """The ops of this package."""
    folder = Path(ops.__file__).parent
    modules = [importlib.import_module(f"edgesmith.kernels.{path.stem}") for path in folder.glob("*.py")]
    return {module.OP.name for module in modules if hasattr(module, "OP")}
