"""Spiking networks as snntorch's and spikingjelly's neurons spell them, without those packages."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Spike(torch.autograd.Function):
    """A step with another gradient, which an export never needs."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]  # one input
        return (x > 0).float()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]  # as above
        return gradient


class Leaky(nn.Module):
    """snntorch's Leaky: beta and threshold are buffers or parameters, and a reset comes one step late."""

    def __init__(self, beta: float = 0.9, threshold: float = 1.0, reset: str = "subtract", learn: bool = False) -> None:
        super().__init__()
        hold = self._learn if learn else self.register_buffer
        hold("beta", torch.tensor(beta))
        hold("threshold", torch.tensor(threshold))
        self.reset_mechanism = reset

    def _learn(self, name: str, value: Tensor) -> None:
        self.register_parameter(name, nn.Parameter(value))

    def _charge(self, x: Tensor, mem: Tensor) -> Tensor:
        return self.beta.clamp(0, 1) * mem + x

    def settle(self, x: Tensor, mem: Tensor, reset: Tensor) -> Tensor:
        """The next potential."""
        if self.reset_mechanism == "subtract":
            return self._charge(x, mem) - reset * self.threshold
        if self.reset_mechanism == "zero":
            return self._charge(x, (1 - reset) * mem)
        return self._charge(x, mem)

    def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        reset = Spike.apply(mem - self.threshold).clone().detach()
        mem = self.settle(x, mem, reset)
        return Spike.apply(mem - self.threshold), mem


class Synaptic(Leaky):
    """snntorch's Synaptic: a current with a leak of its own."""

    def __init__(self, alpha: float = 0.9, beta: float = 0.8, **options: object) -> None:
        super().__init__(beta, **options)  # type: ignore[arg-type]  # of Leaky
        self.register_buffer("alpha", torch.tensor(alpha))

    def forward(self, x: Tensor, syn: Tensor, mem: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]  # one more
        reset = Spike.apply(mem - self.threshold).clone().detach()
        syn = self.alpha.clamp(0, 1) * syn + x
        mem = self.settle(syn, mem, reset)
        return syn, Spike.apply(mem - self.threshold), mem


class Net(nn.Module):
    """A network over time, [T, B, C], in snntorch's manner: layers and neurons in one loop."""

    def __init__(self, first: nn.Module, second: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, width), nn.Linear(width, 4)
        self.lif1, self.lif2 = first, second

    def forward(self, x: Tensor) -> Tensor:
        states1, states2 = ([torch.zeros(1)] * (1 + isinstance(n, Synaptic)) for n in (self.lif1, self.lif2))
        out = []
        for t in range(x.size(0)):
            current = self.fc1(x[t])
            if t == 0:
                states1 = [torch.zeros_like(current) for _ in states1]
            spikes, states1 = self._run(self.lif1, current, states1)
            current = self.fc2(spikes)
            if t == 0:
                states2 = [torch.zeros_like(current) for _ in states2]
            spikes, states2 = self._run(self.lif2, current, states2)
            out.append(spikes)
        return torch.stack(out, dim=0)

    def _run(self, neuron: nn.Module, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if isinstance(neuron, Synaptic):
            syn, spikes, mem = neuron(x, *states)
            return spikes, [syn, mem]
        spikes, mem = neuron(x, *states)
        return spikes, [mem]


class LIFNode(nn.Module):
    """spikingjelly's LIFNode: the potential is an attribute, a number until the first call."""

    def __init__(
        self, tau: float = 2.0, decay_input: bool = True, v_reset: float | None = 0.0, step_mode: str = "m"
    ) -> None:
        super().__init__()
        self.tau, self.decay_input, self.v_reset, self.v_threshold = tau, decay_input, v_reset, 1.0
        self.step_mode = step_mode
        self.v: float | Tensor = 0.0 if v_reset is None else v_reset

    def reset(self) -> None:
        """Forget."""
        self.v = 0.0 if self.v_reset is None else self.v_reset

    def single_step_forward(self, x: Tensor) -> Tensor:
        """One step."""
        if isinstance(self.v, float):
            self.v = torch.full_like(x.data, self.v)
        if self.decay_input:
            if self.v_reset is None or self.v_reset == 0.0:
                self.v = self.v + (x - self.v) / self.tau
            else:
                self.v = self.v + (x - (self.v - self.v_reset)) / self.tau
        elif self.v_reset is None or self.v_reset == 0.0:
            self.v = self.v * (1.0 - 1.0 / self.tau) + x
        else:
            self.v = self.v - (self.v - self.v_reset) / self.tau + x
        spike = (self.v - self.v_threshold >= 0).to(self.v)
        spike_d = spike.detach()
        if self.v_reset is None:
            self.v = self.v - spike_d * self.v_threshold
        else:
            self.v = (1.0 - spike_d) * self.v + spike_d * self.v_reset
        return spike

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "s":
            return self.single_step_forward(x)
        return torch.stack([self.single_step_forward(x[t]) for t in range(x.shape[0])])
