"""A module's state beside its weights: kept before a call, put back after it, and compared.

    with kept_state(model) as before:
        model(x)
        before.moved()      ["the attribute v of neurons.0"]

State is what `forward` can change: buffers, attributes with the lists, dictionaries, sets and plain objects in them,
hooks, the modes of training, and the three generators of random numbers (torch, random, numpy). Weights are kept only
where that is asked for, since it takes their memory once more. Objects stay the same objects: contents are put back in
place.
"""

from __future__ import annotations

import collections
import contextlib
import operator
import random
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgesmith.exporters.graph.signature import own

REGISTERED = {"_parameters": "parameter", "_buffers": "buffer", "_modules": "submodule"}
"""Dictionaries of torch.nn.Module whose entries are attributes to whoever reads them, and what an entry is called."""

ENTRY = "@"
"""Marks an object whose entries are attributes themselves."""

OPAQUE = (nn.Module, str, bytes, int, float, complex, type, types.ModuleType, types.FunctionType, types.MethodType)
"""Values without contents, and those whose contents are not the model's own; submodules are read by themselves."""


@dataclass
class _Holder:
    """The contents of one object, as they were.

    Attributes:
        where: the object is, in words.
        held: the object.
        contents: a shallow copy of what it held.
    """

    where: str
    held: Any
    contents: Any


@dataclass
class State:
    """The state of a module at one moment.

    Attributes:
        holders: objects that hold others.
        tensors: by identity, where each is in words, the tensor, and its values then. All are compared: batch norm
            writes to its running statistics without a new version of them.
    """

    holders: list[_Holder] = field(default_factory=list)
    tensors: dict[int, tuple[str, Tensor, Tensor]] = field(default_factory=dict)
    generators: tuple[Any, ...] = ()

    def moved(self) -> list[str]:
        """Return what has changed since, in words; generators of random numbers are not asked."""
        found = [where for where, tensor, values in self.tensors.values() if not _is_equal(tensor, values)]
        for holder in self.holders:
            found += _changed_entries(holder)
        return list(dict.fromkeys(found))

    def has_drawn(self) -> bool:
        """Return whether random numbers were drawn since."""
        return not all(_is_same(a, b) for a, b in zip(self.generators, _generators(), strict=True))

    def restore(self) -> None:
        """Put everything back."""
        for holder in self.holders:
            _put_back(holder)
        for _, tensor, values in self.tensors.values():
            if not _is_equal(tensor, values):
                with torch.no_grad():
                    tensor.copy_(values)
        self.restore_generators()

    def restore_generators(self) -> None:
        """Put the generators of random numbers back, and leave the module as it is."""
        _set_generators(self.generators)


@contextlib.contextmanager
def kept_state(model: nn.Module, weights: bool = False) -> Iterator[State]:
    """Keep a module's state, and put it back at the end. With `weights` also its parameters' values."""
    state = read_state(model, weights)
    try:
        yield state
    finally:
        state.restore()


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Put the generators of random numbers back at the end: converters draw from them when they are imported."""
    before = _generators()
    try:
        yield
    finally:
        _set_generators(before)


def read_state(model: nn.Module, weights: bool = False) -> State:
    """Return a module's state, with `weights` also its parameters' values."""
    state, seen = State(generators=_generators()), set[int]()
    for path, module in own(model).named_modules():
        owner = f" of {path}" if path else " of the model"
        _read_module(module, owner, weights, state, seen)
    return state


def _generators() -> tuple[Any, ...]:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()  # what a model may have used


def _set_generators(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # as above


def _read_module(module: nn.Module, owner: str, weights: bool, state: State, seen: set[int]) -> None:
    """Read one module, without those inside it."""
    attributes = vars(module)
    state.holders.append(_Holder(f"{ENTRY}{owner}", attributes, dict(attributes)))
    for kind, what in REGISTERED.items():
        entries = attributes.get(kind)
        if not isinstance(entries, dict):  # of a scripted module
            continue
        state.holders.append(_Holder(f"{ENTRY}{owner}", entries, dict(entries)))
        for name, value in entries.items():
            if isinstance(value, Tensor) and (weights or kind != "_parameters"):
                _read_tensor(f"the {what} {name}{owner}", value, state)
    for name, value in attributes.items():
        if value is None or isinstance(value, OPAQUE):  # nearly all, of which no words are made
            continue
        if name.endswith("_hooks") or name.startswith("_forward_"):
            if isinstance(value, dict):  # by numbers, hooks and their marks; what they hold is not the module's own
                state.holders.append(_Holder(f"the hooks{owner}", value, dict(value)))
        elif name not in REGISTERED:
            _read(f"the attribute {name}{owner}", value, state, seen)


def _read_tensor(where: str, tensor: Tensor, state: State) -> None:
    if id(tensor) not in state.tensors and not nn.parameter.is_lazy(tensor):
        state.tensors[id(tensor)] = (where, tensor.detach(), tensor.detach().clone())


def _read(where: str, value: Any, state: State, seen: set[int]) -> None:
    """Read what an attribute holds, and what that holds."""
    if isinstance(value, Tensor):
        _read_tensor(where, value, state)
        return
    if id(value) in seen or isinstance(value, OPAQUE):
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        state.holders.append(_Holder(where, value, value.copy()))
    elif isinstance(value, torch.Generator):
        state.holders.append(_Holder(where, value, value.get_state()))
    elif isinstance(value, dict):
        state.holders.append(_Holder(where, value, dict(value)))
        for one in list(value.values()):
            _read(where, one, state, seen)
    elif isinstance(value, (list, tuple, set, collections.deque)):
        if not isinstance(value, tuple):
            state.holders.append(_Holder(where, value, list(value)))
        for one in list(value):
            _read(where, one, state, seen)
    elif _is_plain(value):
        _read(where, vars(value), state, seen)


def _is_plain(value: Any) -> bool:
    """Return whether a value is an object of somebody's own class, such as a cache; loggers and locks are not."""
    root = type(value).__module__.partition(".")[0]
    is_own = root not in sys.stdlib_module_names or isinstance(value, types.SimpleNamespace) or root == "__main__"
    return is_own and isinstance(getattr(value, "__dict__", None), dict)


def _put_back(holder: _Holder) -> None:
    held, contents = holder.held, holder.contents
    if isinstance(held, dict):  # nearly all, most of them empty: a module has a dozen for hooks
        if (held or contents) and not _has_same_entries(held, contents):
            held.clear()
            held.update(contents)
    elif isinstance(held, np.ndarray):
        held[...] = contents
    elif isinstance(held, torch.Generator):
        held.set_state(contents)
    elif isinstance(held, set):
        held.clear()
        held.update(contents)
    elif len(held) != len(contents) or any(a is not b for a, b in zip(held, contents, strict=True)):
        held.clear()
        held.extend(contents)


def _has_same_entries(held: dict[Any, Any], contents: dict[Any, Any]) -> bool:
    """Return whether two dictionaries have the same objects under the same keys, in the same order."""
    return (
        len(held) == len(contents)
        and all(map(operator.is_, held, contents))
        and all(map(operator.is_, held.values(), contents.values()))
    )


def _changed_entries(holder: _Holder) -> list[str]:
    """Return which entries of an object are others than they were, in words."""
    held, contents = holder.held, holder.contents
    if not isinstance(held, dict):
        now = held.get_state() if isinstance(held, torch.Generator) else held
        return (
            []
            if _is_same(list(now) if isinstance(now, (set, collections.deque)) else now, contents)
            else [holder.where]
        )
    names = [key for key in {**contents, **held} if not _is_same(contents.get(key, _MISSING), held.get(key, _MISSING))]
    if not holder.where.startswith(ENTRY):
        return [holder.where] if names else []
    return [f"the attribute {name}{holder.where.removeprefix(ENTRY)}" for name in names if name != "training"]


_MISSING = object()


def _is_same(a: Any, b: Any) -> bool:
    """Return whether two values are the same object, or equal ones."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _is_equal(a, b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_is_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    try:
        return bool(a == b)
    except Exception:  # a class of the caller's may raise anything where it is compared
        return False


def _is_equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout or a.device != b.device:
        return False
    if a.layout != torch.strided:  # torch compares few of these
        a, b = a.to_dense(), b.to_dense()
    if a.is_meta:
        return True
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # NaN where NaN was
