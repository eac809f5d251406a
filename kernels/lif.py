"""Leaky integrate-and-fire neurons over time: membrane potential, spike, reset. One op, whatever the length.

    charge   v_t = v_{t-1} + (x_t - (v_{t-1} - v_r)) / tau       decaying input
             v_t = v_{t-1} - (v_{t-1} - v_r) / tau + x_t         otherwise
             v_t = v_{t-1} + (x_t - (v_{t-1} - v_r)) (1 - beta)  with beta, decaying input
             v_t = beta v_{t-1} + x_t                            with beta, otherwise; to 0, whatever v_r
    fire     s_t = 1 where v_t >= threshold, else 0
    reset    v_t <- v_r where s_t = 1                            hard reset to v_r
             v_t <- v_t - drop s_t                               soft reset (`reset` is None; v_r = 0 above), none for 0
             v_t <- v_t - drop s_{t-1}, before it fires          soft and late: s_t reads the last potential, whole

v starts at v_r. Spikes are exact only where every rounding is the same, so `step` fixes the order of operations, and
every lowering keeps it: a membrane potential one ulp off can be a spike more or less. So both ways to say what leaks,
1 / tau and beta = 1 - 1 / tau, are kept, for they round otherwise. A neuron that fires above its threshold, and not at
it, has the next number as its threshold. So `drop` may be another number than the threshold.
Source: Fang et al., "SpikingJelly", Science Advances 2023, eq. 1-3 (neurons LIF, `step_mode` m), for tau; Eshraghian et
al., "Training spiking neural networks using lessons from deep learning", Proc. IEEE 2023, eq. 4, for beta. Whether the
reset is detached from the gradient makes no difference to the numbers. Letters: T time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edgesmith.kernels.loops import coreml_loop, onnx_filled, onnx_scan, torch_loop
from edgesmith.kernels.op import FusedOp, Recognition, Recurrence, RecurrentState, define
from edgesmith.kernels.relax_calls import call_kernel, sizes


def charge(
    x: Tensor,
    v: Tensor,
    tau: float = 2.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    beta: float | None = None,
) -> Tensor:
    """The membrane potential that an input leads to, before any spike."""
    if beta is not None and not decay_input:
        return v * beta + x
    leak = v - reset if reset else v
    if not decay_input:
        return v - leak / tau + x
    return v + ((x - leak) / tau if beta is None else (x - leak) * (1 - beta))


def fire(
    v: Tensor, threshold: float = 1.0, reset: float | None = 0.0, drop: float | None = None
) -> tuple[Tensor, Tensor]:
    """Spikes (0 or 1) of a membrane potential, and the potential after them."""
    fired = v >= threshold
    spikes = fired.to(v.dtype)
    if reset is None:
        return spikes, v - spikes * (threshold if drop is None else drop)
    return spikes, torch.where(fired, reset, v)


def step(
    x: Tensor,
    v: Tensor,
    tau: float = 2.0,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    beta: float | None = None,
    late: bool = False,
    drop: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One time step: input and membrane potential of one shape to spikes (0 or 1) and the next membrane potential."""
    charged = charge(x, v, tau, reset, decay_input, beta)
    if not late:
        return fire(charged, threshold, reset, drop)
    charged = charged - (v >= threshold).to(v.dtype) * (threshold if drop is None else drop)
    return (charged >= threshold).to(v.dtype), charged


def reference(
    x: Tensor,
    tau: float = 2.0,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    dim: int = -1,
    beta: float | None = None,
    late: bool = False,
    drop: float | None = None,
) -> Tensor:
    """Spikes, 0 or 1 in the type of `x` and of its shape, from input currents with time along `dim`.

    Args:
        x: input currents, any shape.
        tau: membrane time constant in steps, 1 or more.
        threshold: potential from which a neuron fires.
        reset: potential after a spike; None subtracts `drop` instead.
        decay_input: whether the input, too, is divided by tau, or multiplied by 1 - beta.
        dim: the time axis.
        beta: what is left of the potential after a step, 0 to 1, in the place of tau, which then has no meaning.
        late: a soft reset comes in the step after the spike, behind the leak.
        drop: what a soft reset subtracts; None for the threshold.
    """
    v = torch.full_like(x.select(dim, 0), reset or 0.0)
    spikes = []
    for current in x.unbind(dim):
        fired, v = step(current, v, tau, threshold, reset, decay_input, beta, late, drop)
        spikes.append(fired)
    return torch.stack(spikes, dim)


def shape(
    x: Tensor,
    tau: float = 2.0,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    dim: int = -1,
    beta: float | None = None,
    late: bool = False,
    drop: float | None = None,
) -> tuple[int, ...]:
    """The input's shape. Raises ValueError for what no membrane can do."""
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"lif: dim must be an axis of {list(x.shape)}, got {dim}")
    if tau < 1:
        raise ValueError(f"lif: tau must be 1 or more, got {tau}")
    if beta is not None and not 0 <= beta <= 1:
        raise ValueError(f"lif: beta must be between 0 and 1, got {beta}")
    if reset is not None and (late or drop is not None):
        raise ValueError(f"lif: late and drop are of a soft reset, reset None, got reset {reset}")
    if x.shape[dim] == 0:
        raise ValueError(f"lif: there must be a time step, got {list(x.shape)} with time along {dim}")
    return tuple(x.shape)


def example(batch: int = 2, channels: int = 3, length: int = 11) -> tuple[Tensor, ...]:
    """Random currents [B, C, T] at which about one neuron in five fires."""
    return (1.5 * torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(0)),)


def lower_onnx(
    x: Any,
    tau: float = 2.0,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    dim: int = -1,
    beta: float | None = None,
    late: bool = False,
    drop: float | None = None,
) -> Any:
    """ONNX: a Scan that yields the potential before each reset; spikes are where all of it passes the threshold.

    A hard reset to 0 keeps -v instead of v: a comparison and a selection are then one operator, ThresholdedRelu, and
    as rounding knows no sign, no number changes. 4 nodes a step of 1 to 3 microseconds each; 7 nodes in all.
    """
    from onnxscript import opset20

    op: Any = opset20
    dim = dim % len(x.shape)
    is_negated = reset is not None and x.dtype.numpy().type(reset) == 0
    charge = _onnx_charge(x, tau, decay_input, beta, "Sub" if is_negated else "Add")
    if is_negated:
        step = _onnx_negated_step(x, charge, threshold)
    elif late:
        step = _onnx_late_step(x, charge, threshold, drop)
    else:
        step = _onnx_step(x, charge, threshold, reset, drop, leaks_to_reset=decay_input or beta is None)
    start = onnx_filled(x, [i for i in range(len(x.shape)) if i != dim], reset or 0.0)
    _, potential = onnx_scan([start], x, dim, step)
    if is_negated:
        fired = op.LessOrEqual(potential, _onnx_number(x, -threshold))
    else:
        fired = op.GreaterOrEqual(potential, _onnx_number(x, threshold))
    return op.Cast(fired, to=x.dtype)


OnnxStep = Callable[[Any, Any, Any], tuple[Any, Any]]
"""From a node builder, the potential (or -v) and a current to the next potential and the one before the reset."""


def _onnx_number(x: Any, value: float, kind: Any = None) -> Any:
    """A constant of the type of `x`, or of numpy's `kind`."""
    import numpy as np
    from onnxscript import ir, opset20

    op: Any = opset20
    return op.Constant(value=ir.tensor(np.array(value, kind or x.dtype.numpy().type)))


def _onnx_division(x: Any, tau: float) -> Callable[[Any, Any], Any]:
    """Division by tau that rounds as PyTorch's does: `by_tau(make, value)`."""
    import numpy as np
    from onnxscript import ir

    exact = _is_power_of_two(tau)  # multiplying by its inverse rounds alike, and is faster
    in_single = x.dtype != ir.DataType.FLOAT and not exact  # as PyTorch divides halves by a number
    divisor = _onnx_number(x, 1 / tau if exact else tau, np.float32 if in_single else None)

    def by_tau(make: Any, value: Any) -> Any:
        if exact:
            return value if tau == 1 else make("Mul", value, divisor)
        if in_single:
            return make("Cast", make("Div", make("Cast", value, to=ir.DataType.FLOAT), divisor), to=x.dtype)
        return make("Div", value, divisor)

    return by_tau


def _is_power_of_two(tau: float) -> bool:
    return math.frexp(tau)[0] == 0.5


OnnxCharge = Callable[[Any, Any, Any, Any], Any]
"""From a node builder, the potential (or -v), what of it leaks and a current to the potential (or -v) charged."""


def _onnx_charge(x: Any, tau: float, decay_input: bool, beta: float | None, join: str) -> OnnxCharge:
    """The first half of a step. `join` is Add for v, and Sub for -v, from which a current is subtracted."""
    other = "Add" if join == "Sub" else "Sub"
    if beta is None:
        scaled = _onnx_division(x, tau)
    else:
        factor = _onnx_number(x, 1 - beta if decay_input else beta)

        def scaled(make: Any, value: Any) -> Any:
            return make("Mul", value, factor)

    def charge(make: Any, v: Any, leak: Any, current: Any) -> Any:
        if decay_input:
            return make(join, v, scaled(make, make(other, current, leak)))
        left = make("Sub", v, scaled(make, leak)) if beta is None else scaled(make, v)
        return make(join, left, current)

    return charge


def _onnx_negated_step(x: Any, charge: OnnxCharge, threshold: float) -> OnnxStep:
    """A step of z = -v with a hard reset to 0."""
    limit = float(x.dtype.numpy().type(threshold))

    def step(make: Any, z: Any, current: Any) -> tuple[Any, Any]:
        charged = charge(make, z, z, current)
        return make("ThresholdedRelu", charged, alpha=-limit), charged

    return step


def _onnx_late_step(x: Any, charge: OnnxCharge, threshold: float, drop: float | None) -> OnnxStep:
    """A step of v whose soft reset is that of the last spike."""
    bound, amount = _onnx_number(x, threshold), _onnx_number(x, threshold if drop is None else drop)

    def step(make: Any, v: Any, current: Any) -> tuple[Any, Any]:
        charged = charge(make, v, v, current)
        after = make("Where", make("Less", v, bound), charged, make("Sub", charged, amount))
        return after, make("Identity", after)

    return step


def _onnx_step(
    x: Any, charge: OnnxCharge, threshold: float, reset: float | None, drop: float | None, leaks_to_reset: bool
) -> OnnxStep:
    """A step of v with a soft reset, or a hard one to another number than 0."""
    origin, bound = _onnx_number(x, reset or 0.0), _onnx_number(x, threshold)
    amount = bound if drop is None else _onnx_number(x, drop)

    def step(make: Any, v: Any, current: Any) -> tuple[Any, Any]:
        charged = charge(make, v, make("Sub", v, origin) if reset and leaks_to_reset else v, current)
        after = make("Sub", charged, amount) if reset is None else origin
        return make("Where", make("Less", charged, bound), charged, after), charged

    return step


def lower_coreml(
    x: Any,
    tau: float = 2.0,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    dim: int = -1,
    beta: float | None = None,
    late: bool = False,
    drop: float | None = None,
    half: bool = False,
) -> Any:
    """Core ML: a while_loop that keeps v and writes the potential before each reset, then one comparison of all.

    With `half` the loop is typed fp16 here: coremltools would cast what a loop carries, all of the result too, to fp32
    and back in every iteration. Where tau is no power of two, coremltools multiplies by its inverse instead of
    dividing: then a potential can differ in its last bit from PyTorch's.
    """
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    real = np.float16 if half else np.float32
    tau, threshold, dim = float(tau), float(threshold), int(dim) % len(x.shape)
    exact = _is_power_of_two(tau)  # as for ONNX
    if half:
        x = mb.cast(x=x, dtype="fp16")
    order = [dim, *(i for i in range(len(x.shape)) if i != dim)]
    inverse = [order.index(i) for i in range(len(x.shape))]

    def by_tau(value: Any) -> Any:
        if exact:
            return value if tau == 1 else mb.mul(x=value, y=real(1 / tau))
        return mb.real_div(x=value, y=real(tau))

    def charge(v: Any, current: Any) -> Any:
        if beta is not None and not decay_input:
            return mb.add(x=mb.mul(x=v, y=real(beta)), y=current)
        leak = mb.sub(x=v, y=real(reset)) if reset else v
        if decay_input:
            missing = mb.sub(x=current, y=leak)
            return mb.add(x=v, y=by_tau(missing) if beta is None else mb.mul(x=missing, y=real(1 - beta)))
        return mb.add(x=mb.sub(x=v, y=by_tau(leak)), y=current)

    def step(v: Any, current: Any) -> tuple[Any, Any]:
        charged = charge(v, current)
        after = mb.sub(x=charged, y=real(threshold if drop is None else drop)) if reset is None else real(reset)
        fired = mb.greater_equal(x=v if late else charged, y=real(threshold))
        settled = mb.select(cond=fired, a=after, b=charged)
        return settled, settled if late else charged

    sequence = mb.transpose(x=x, perm=order)
    shape = [int(n) for n in sequence.shape]
    start = mb.fill(shape=[1, *shape[1:]], value=real(reset or 0.0))
    potential = coreml_loop(start, sequence, step, shape)
    fired = mb.greater_equal(x=mb.transpose(x=potential, perm=inverse), y=real(threshold))
    return mb.cast(x=fired, dtype="fp32")


def for_coreai(
    x: Tensor,
    tau: float = 2.0,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    dim: int = -1,
    beta: float | None = None,
    late: bool = False,
    drop: float | None = None,
) -> Tensor:
    """Core AI: a loop that keeps v and writes the potential before each reset, then one comparison of all."""

    def advance(v: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        charged = charge(current, v, tau, reset, decay_input, beta)
        if late:
            _, after = step(current, v, tau, threshold, reset, decay_input, beta, late, drop)
            return after, after
        _, after = fire(charged, threshold, reset, drop)
        return after, charged

    currents = x.movedim(dim, 0)
    start = torch.full_like(currents[0], reset or 0.0)
    potential = torch_loop(start, currents, advance, torch.zeros_like(currents)).movedim(0, dim)
    return (potential >= threshold).to(x.dtype)


def lower_tvm(
    make: Any,
    x: Any,
    tau: float = 2.0,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    decay_input: bool = True,
    dim: int = -1,
    beta: float | None = None,
    late: bool = False,
    drop: float | None = None,
) -> Any:
    """TVM: one kernel over [outer, T, inner], native/lif.h, which rounds as `step` does."""
    from tvm import relax

    shape = sizes(x)
    dim = dim % len(shape)
    flat = [math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])]
    literals = [
        math.nan if one is None else float(one) for one in (tau, threshold, reset, decay_input, beta, late, drop)
    ]
    spikes = call_kernel(make, "lif", make.emit(relax.op.reshape(x, flat)), (), [flat], literals)
    return make.emit(relax.op.reshape(spikes, shape))


Settings = tuple[float, float, float | None, bool, float | None, bool | None, float | None]
"""tau, threshold, reset, decay_input, beta, late (True or None) and drop."""


def _settings(numbers: Sequence[float]) -> Iterator[Settings]:
    """The settings of neurons in whose step some numbers stand: 1/tau or 1 - 1/tau for tau, 1 - beta for beta.

    A neuron that fires above a number has the next one as its threshold, and the number as its drop.
    """
    taus = dict.fromkeys(
        tau for n in numbers if n for tau in (n, 1 / n, *((1 / (1 - n),) if n != 1 else ())) if tau >= 1
    )
    betas = dict.fromkeys(beta for n in numbers for beta in (n, 1 - n) if 0 < beta <= 1)
    leaks = [*((tau, None) for tau in taus), *((2.0, beta) for beta in betas)]
    at: list[tuple[float, float | None]] = [(n, None) for n in numbers]
    above = [(float(torch.nextafter(torch.tensor(n), torch.tensor(math.inf))), n) for n in numbers if n]
    for limits in (at, above):
        for (tau, beta), (threshold, drop), decays in itertools.product(leaks, limits, (True, False)):
            for reset in numbers:
                yield tau, threshold, reset, decays, beta, None, None
            yield tau, threshold, None, decays, beta, None, drop
            yield tau, threshold, None, decays, beta, True, drop
            yield tau, threshold, None, decays, beta, None, 0.0


def _near_miss(output: Tensor) -> str | None:
    """Return why spikes are not lif's; other outputs look like no neurons."""
    is_binary = bool(((output == 0) | (output == 1)).all()) and bool(output.any())
    return "no tau, beta, threshold and reset of its literals give lif's numbers" if is_binary else None


def _axes(x: Tensor, *literals: Any) -> tuple[int, int]:
    """Of the currents and of the spikes: `dim`."""
    axis = (literals[4] if len(literals) > 4 else -1) % x.dim()
    return axis, axis


def _membrane_shape(x: Tensor, *literals: Any) -> tuple[int, ...]:
    axis, _ = _axes(x, *literals)
    return (*x.shape[:axis], *x.shape[axis + 1 :])


def _first_potential(x: Tensor, tau: float, threshold: float, reset: float | None, *others: Any) -> float:
    return float(reset or 0)


def _advance(v: Tensor, x: Tensor, *settings: Any) -> Tensor:
    tau, threshold, reset, decay_input, beta, late, drop = settings
    if late:
        return step(x, v, tau, threshold, reset, decay_input, beta, True, drop)[1]
    return charge(x, v, tau, reset, decay_input, beta)


def _settle(v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    _, threshold, reset, _, _, late, drop = settings
    return ((v >= threshold).to(v.dtype), v) if late else fire(v, threshold, reset, drop)


def _literals(settings: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    """The literals of a call with time along an axis; those at the end that it does not have are left out."""
    *others, beta, late, drop = settings
    last: list[Any] = [beta, bool(late), drop]
    while last and (last[-1] is None or last[-1] is False):
        last.pop()
    return (*others, axis, *last)


def _of_spikingjelly(tau: float, decay_input: bool, threshold: float, reset: float | None, *others: Any) -> Settings:
    """The settings of `sj_lif.forward`, which version 2 of spikingjelly makes of a multi-step LIF."""
    return tau, threshold, reset, decay_input, None, None, None


def _one_step(states: tuple[Tensor], x: Tensor, *literals: Any) -> tuple[Tensor, tuple[Tensor]]:
    tau, threshold, reset, decay_input, _, *others = literals
    spikes, v = step(x, *states, tau, threshold, reset, decay_input, *others)
    return spikes, (v,)


OP = define(
    FusedOp(
        name="lif",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml, "tvm": lower_tvm},
        inlined={"coreai": for_coreai},
        tolerance=0.0,
        is_pattern=False,
        recurrence=Recurrence(
            step=_one_step,
            states=(RecurrentState("membrane", "membrane potential", _membrane_shape, _first_potential),),
            axes=_axes,
            runs="integrates",
            recognition=Recognition(
                advance=_advance,
                settle=_settle,
                settings=_settings,
                literals=_literals,
                near_miss=_near_miss,
                foreign={"sj_lif.forward.default": _of_spikingjelly},
            ),
        ),
        stays_float="a threshold turns rounding into spikes",
        spikes=True,
    )
)
