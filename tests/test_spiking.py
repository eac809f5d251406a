"""Spiking networks as snntorch and spikingjelly write them: one op for each layer of neurons, and exact spikes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from authors import spiking
from authors.spiking import Leaky, LIFNode, Net, Synaptic
from support.rewriting import apply, reasons
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.session import StreamingSession

COSTS = targets.get("onnx").costs
X = 2 * torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(0))  # [T, B, C]

NEURONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: Leaky(0.9),
    "learned": lambda: Leaky(0.95, 0.7, learn=True),
    "zero": lambda: Leaky(0.9, 0.5, "zero"),
    "none": lambda: Leaky(0.8, 0.4, "none"),
    "clamped": lambda: Leaky(1.3, 0.5, "zero"),
    "synaptic": Synaptic,
    "synaptic_zero": lambda: Synaptic(0.7, 0.9, reset="zero"),
}


def net(neuron: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return Net(neuron(), neuron()).eval()


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_in_a_loop_are_an_op_each(name: str) -> None:
    model = net(NEURONS[name])
    _, reports, counts = apply(model, X, costs=COSTS, tolerance=0)
    near = reasons(reports["reroll"])
    assert counts.get("edgesmith.lif") == 2, near
    assert counts.get("edgesmith.leaky_sum", 0) == (2 if "synaptic" in name else 0), near
    assert sum(counts.values()) <= 12, counts
    spikes = model(X)
    assert 0.02 < float(spikes.detach().mean()) < 0.98


@pytest.mark.parametrize("name", ["leaky", "synaptic"])
@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_a_file_has_every_spike(name: str, target: str, tmp_path: Path) -> None:
    model = net(NEURONS[name])
    made = edgesmith.export(model, target, inputs=(X,), precision="fp32", out=tmp_path, name=name)
    result = targets.get(target).open(made.file).run([[X.numpy()]])
    if isinstance(result, list):
        assert np.array_equal(result[0][0], model(X).detach().numpy())


@pytest.mark.parametrize("name", ["leaky", "synaptic"])
def test_a_step_program_has_every_spike(name: str, tmp_path: Path) -> None:
    class BatchFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(NEURONS[name])

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.transpose(0, 1)).transpose(0, 1)

    model, x = BatchFirst().eval(), X[:, :1].transpose(0, 1).contiguous()
    made = edgesmith.export(model, "onnx", inputs=(x,), streaming=True, precision="fp32", out=tmp_path, name=name)
    frames = StreamingSession(made.path).run(x.numpy())
    assert np.array_equal(np.stack(list(frames), axis=1), model(x).detach().numpy())


@pytest.mark.parametrize("v_reset", [0.0, None, 0.25])
@pytest.mark.parametrize("decay_input", [True, False])
def test_spikingjellys_neurons_are_the_op(v_reset: float | None, decay_input: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), LIFNode(2.0, decay_input, v_reset)).eval()
    if v_reset is not None and not decay_input and v_reset:
        model[1].tau = 4.0
    _, reports, counts = apply(model, X, costs=COSTS, tolerance=0)
    assert counts.get("edgesmith.lif") == 1, reasons(reports["reroll"])


def test_a_net_that_was_not_reset_is_explained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), LIFNode(), nn.Linear(12, 4), LIFNode()).eval()
    with torch.no_grad():
        model[0].weight.mul_(10)
        model[2].weight.mul_(10)
    model(X)
    with pytest.raises(
        edgesmith.errors.EdgesmithError, match=r"attribute v of 1.* left from an earlier call.*reset"
    ) as told:
        edgesmith.export(model, "onnx", inputs=(X,), precision="fp32", out=tmp_path, name="left")
    assert "\n" not in str(told.value)


class Slow(Leaky):
    """A refractory neuron: the last spike holds the current back, which no op says."""

    def settle(self, x: Tensor, mem: Tensor, reset: Tensor) -> Tensor:
        return self._charge(x * (1 - reset), mem) - reset * self.threshold


class Rough(Leaky):
    """A potential that is rounded at every step."""

    def settle(self, x: Tensor, mem: Tensor, reset: Tensor) -> Tensor:
        return torch.round(super().settle(x, mem, reset), decimals=2)


@pytest.mark.parametrize("neuron", [Slow, Rough])
def test_other_neurons_are_left_with_the_line(neuron: type[nn.Module]) -> None:
    _, reports, counts = apply(net(neuron), X, costs=COSTS)
    assert "edgesmith.lif" not in counts
    told = reports["reroll"].rejected[0]
    assert "no tau, beta, threshold and reset" in told.reason
    assert told.line is None or "spiking.py" in told.line


def test_an_average_in_a_loop_is_a_leaky_sum() -> None:
    class Average(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                mean = 0.75 * mean + 0.25 * x[:, t]
                out.append(mean)
            return torch.stack(out, dim=1)

    _, _, counts = apply(Average(), torch.randn(2, 9, 3), costs=COSTS)
    assert counts == {"aten.mul": 1, "aten.permute": 2, "edgesmith.leaky_sum": 1}


@pytest.mark.parametrize(
    ("kind", "reset"),
    [("Leaky", "subtract"), ("Leaky", "zero"), ("Leaky", "none"), ("Synaptic", "subtract"), ("Synaptic", "none")],
)
def test_snntorchs_own_neurons(kind: str, reset: str) -> None:
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed")
    options = {"beta": 0.9, "reset_mechanism": reset, **({"alpha": 0.8} if kind == "Synaptic" else {})}

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.neurons = nn.Linear(6, 12), getattr(snntorch, kind)(**options)

        def forward(self, x: Tensor) -> Tensor:
            current = self.layer(x)
            states = [torch.zeros_like(current[0])] * (2 if kind == "Synaptic" else 1)
            out = []
            for t in range(len(x)):
                spikes, *states = self.neurons(current[t], *states)
                out.append(spikes)
            return torch.stack(out)

    _, reports, counts = apply(Own().eval(), X, costs=COSTS, tolerance=0)
    assert counts.get("edgesmith.lif") == 1, reasons(reports["reroll"])


@pytest.mark.parametrize("options", [{}, {"tau": 3.0}, {"decay_input": False}, {"v_reset": None}])
def test_spikingjellys_own_neurons(options: dict[str, object]) -> None:
    reason = "spikingjelly is not installed with what it imports"
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason=reason, exc_type=ImportError)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), neuron.LIFNode(**options, step_mode="m", detach_reset=True)).eval()
    _, reports, counts = apply(model, X, costs=COSTS, tolerance=0)
    assert counts.get("edgesmith.lif") == 1, reasons(reports["reroll"])


def test_the_stand_ins_spike() -> None:
    assert torch.equal(spiking.Spike.apply(torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([0.0, 0.0, 1.0]))
