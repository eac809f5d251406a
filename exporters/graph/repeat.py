"""The same input twice: a model whose second output differs is random or stateful, and no file can be like it.

moved, and the output differs        refused, with the attribute or buffer
moved, and the output is the same    a cache that was built lazily; but a second, other input must not see it either
moved, and reset() puts it back      what is exported is a run after it, as with spiking neurons; refused where the
                                     model was not reset since its last run
nothing moved, random numbers drawn  refused, with the operator and its line
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.blame import line_of_attribute, line_of_node
from edgesmith.exporters.graph.edit import operator_name
from edgesmith.exporters.graph.signature import named_leaves, own
from edgesmith.exporters.graph.state import State

WAY_OUT = "a file keeps no state: hand it in and out, as an input and an output, or reset it at the start of forward"

ROUNDING = 1e-6
"""Difference, relative to the peak, of two runs of a kernel that adds up in another order each time."""


def refuse_unrepeatable(model: nn.Module, inputs: Sequence[Tensor], state: State) -> bool:
    """Run a model again where it has just run once, and refuse it where the outputs differ.

    Args:
        model: in eval mode, not run since `state` was read; it is left in any state.
        state: of the model before.

    Returns:
        Whether calls leave something behind that no later one sees, such as a cache.

    Raises:
        Unsupported: in one sentence, what is random or stateful.
        Exception: whatever the model raises on the first run.
    """
    first = _run(model, inputs)
    moved, has_drawn = state.moved(), state.has_drawn()
    if moved and _is_reset(model, inputs, state, first, moved):
        return False
    try:
        difference = _differ(first, _run(model, inputs))
    except Exception as error:
        raise Unsupported(
            "the model is random or stateful: it does not run on its own example a second time"
            f"{_left_in(model, moved)}; {WAY_OUT}"
        ) from error
    if difference is None and moved:
        difference = _seen_by_another(model, inputs, state)
    if difference is None:
        return bool(moved)
    if has_drawn and not _is_stateful(model, inputs, state, first):
        raise Unsupported(
            f"the model is random or stateful: its output differs by {difference:.2g} between two runs on one input; a"
            " file gives the same output every time, so take what draws random numbers out of forward"
        )
    if not moved and difference <= ROUNDING:
        return False
    if not moved and not has_drawn:
        raise Unsupported(
            f"the model is random or stateful: its output differs by {difference:.2g} between two runs on the same"
            f" input, and nothing in the module has changed, so it reads something outside of it; {WAY_OUT}"
        )
    raise Unsupported(
        f"the model is random or stateful: its output differs by {difference:.2g} after another run"
        f"{_left_in(model, moved)}; {WAY_OUT}"
    )


RESETS = ("reset", "reset_state", "reset_states", "reset_hidden", "reset_mem")
"""Methods by which modules that keep state say how to forget it."""


def _is_reset(
    model: nn.Module, inputs: Sequence[Tensor], state: State, first: Sequence[Any], moved: Sequence[str]
) -> bool:
    """Return whether all that a run moves is state that modules reset themselves, and runs after that are the same.

    Raises:
        Unsupported: so it is, and the model was given with what an earlier run has left.
    """
    keepers = {path: module for path, module in own(model).named_modules() if _reset_of(module) is not None}
    owned = [path for word in moved for path in keepers if word.endswith(f" of {path or 'the model'}")]
    if len(owned) < len(moved):
        return False
    state.restore()
    model.eval()
    try:
        for path in owned:
            reset = _reset_of(keepers[path])
            assert reset is not None
            reset()
        left, is_same = state.moved(), _differ(first, _run(model, inputs)) is None
    except Exception:  # the reset wants more than is known here
        left, is_same = [], False
    if left:
        raise Unsupported(
            f"{left[0]} is what is left from an earlier call, and a file starts every run anew: call the model's reset"
            " before the export, as spikingjelly's functional.reset_net and snntorch's utils.reset do"
        )
    if not is_same:  # go on where the first run ended
        state.restore()
        model.eval()
        _run(model, inputs)
    return is_same


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    """The method by which a module forgets, without arguments."""
    for name in RESETS:
        method: Callable[[], object] | None = getattr(module, name, None)
        if callable(method):
            return method
    return None


def random_operator(graph: Graph) -> str | None:
    """Return, in a sentence, which operator of a captured graph draws random numbers; None where none does."""
    node = next((node for node in graph.nodes if node.users and _draws(node)), None)
    return node and (
        f"the model is random or stateful: {operator_name(node)}{_at(node)} gives another result at every run; a"
        " file gives the same output every time, so take it out of forward, or make what it draws an input"
    )


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> list[Any]:
    leaves = [leaf for _, leaf in named_leaves(model(*(x.clone() for x in inputs)))]
    return [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]


def _seen_by_another(model: nn.Module, inputs: Sequence[Tensor], state: State) -> float | None:
    """Return how far what calls leave behind changes the output for another input; None where it does not."""
    other = [x * 0.5 if x.is_floating_point() else x.flip(0) if x.dim() else x for x in inputs]
    try:
        after = _run(model, other)
        state.restore()
        model.eval()
        return _differ(_run(model, other), after)
    except Exception:  # the model takes its own example only: then nothing more can be asked
        return None


def _is_stateful(model: nn.Module, inputs: Sequence[Tensor], state: State, first: Sequence[Any]) -> bool:
    """Return whether the outputs differ though the random numbers are those of the first run."""
    state.restore_generators()
    after = _differ(first, _run(model, inputs))
    state.restore()
    model.eval()
    return after is not None and _differ(first, _run(model, inputs)) is None


def _differ(first: Sequence[Any], second: Sequence[Any]) -> float | None:
    """Return the largest difference relative to the peak, infinite where the two cannot be compared; None for none."""
    if len(first) != len(second):
        return float("inf")
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        if a.shape != b.shape:
            return float("inf")
        if a.is_complex():
            a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        if bool(same.all()):
            continue
        peak = float(a[a.isfinite()].abs().amax()) if bool(a.isfinite().any()) else 0.0
        gap = float((a - b)[~same].abs().nan_to_num(float("inf")).amax())
        worst = max(worst, gap / peak if peak else float("inf"))
    return worst or None


def _left_in(model: nn.Module, moved: Sequence[str]) -> str:
    if not moved:
        return ""
    line = line_of_attribute(own(model), moved[0])
    at = f", at {line}" if line else ""
    more = f" ({len(moved) - 1} more)" if len(moved) > 1 else ""
    return f", and the first one has changed {moved[0]}{at}{more}"


def _draws(node: Node) -> bool:
    """Return whether an operator draws random numbers; a dropout in eval mode does not."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = target._schema.arguments
    given = {one.name: one.default_value for one in arguments if one.has_default_value()}
    given |= dict(zip((one.name for one in arguments), node.args, strict=False)) | dict(node.kwargs)
    return given.get("train", given.get("training")) is not False and given.get("dropout_p") != 0


def _at(node: Node) -> str:
    """Return where an operator stands in the source, with its line; empty where that is not known."""
    line = line_of_node(node)
    return f" at {line}" if line else ""
