"""Modules of any signature as functions of tensors alone, and what they return as tensors with names.

    bound = bind(model, (x, None), {"state": {"h": h}, "scale": 2.0})
    bound.module(x, h)          # model(x, None, state={"h": h}, scale=2.0)
    bound.names, bound.fixed    # ("x", "state_h"), {"scale": 2.0}

A file has tensors as inputs and outputs. So every other value among the arguments is part of the file: numbers, texts,
None. Results of dictionaries, dataclasses and named tuples have the names of their keys; what is no tensor among them
is left out.
"""

from __future__ import annotations

import copy
import enum
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgesmith.errors import BadInput, Unsupported


class _Slot(enum.Enum):
    TENSOR = "tensor"


class Bound(nn.Module):
    """A module as a function of its tensors; all other arguments are fixed.

    Attributes:
        model: the module itself.
    """

    def __init__(self, model: nn.Module, leaves: Sequence[Any], spec: Any) -> None:
        super().__init__()
        self.model = model
        self._leaves, self._spec = tuple(leaves), spec

    def __deepcopy__(self, memo: dict[int, Any]) -> Bound:
        """Return a copy of the module, bound in the same way."""
        return Bound(copy.deepcopy(self.model, memo), self._leaves, self._spec)

    def forward(self, *tensors: Tensor) -> Any:
        """Return what the module returns."""
        args, kwargs = self.fill(tensors)
        return self.model(*args, **kwargs)

    def fill(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the module, by position and by name, for these tensors."""
        given = iter(tensors)
        leaves = [next(given) if leaf is _Slot.TENSOR else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs

    @property
    def takes(self) -> tuple[bool, ...]:
        """Return, for each value in the arguments, whether it is a tensor."""
        return tuple(leaf is _Slot.TENSOR for leaf in self._leaves)


@dataclass(frozen=True)
class Binding:
    """A module with example inputs, ready for capture.

    Attributes:
        module: a function of the tensors; the model itself where it is one.
        inputs: the tensors.
        names: of the tensors; None where those of the parameters of `forward` hold.
        fixed: by name, the values that become part of a file, but for defaults.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...] | None
    fixed: dict[str, Any]


def own(model: nn.Module) -> nn.Module:
    """Return the module itself, where it has been bound."""
    return model.model if isinstance(model, Bound) else model


def bind(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Binding:
    """Bind a module to example arguments: tensors, arrays, and nests of them with other values in between.

    Raises:
        BadInput: arguments that `forward` does not take, or no tensor among them.
        Unsupported: a module that torch has traced.
    """
    if not args and not kwargs:
        raise BadInput("inputs must be tensors, or nests with a tensor in them, got none")
    signature = _signature_of(model)
    _check_arguments(model, signature, args, kwargs)
    for value in (*args, *kwargs.values()):
        _register_dataclasses(value)
    ordered = {key: kwargs[key] for key in _in_order(signature, kwargs)}
    leaves, spec = pytree.tree_flatten((tuple(args), ordered))
    leaves = [torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    if not tensors:
        came = ", ".join(type(leaf).__name__ for leaf in leaves) or "none"
        raise BadInput(f"inputs must be tensors, or nests with a tensor in them, got {came}")
    if not kwargs and all(isinstance(one, Tensor | np.ndarray) for one in args):
        return Binding(model, tensors, None, {})
    names = _unique(["_".join(map(_word, path)) for path in _paths(signature, args, ordered)])
    slots = [_Slot.TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    fixed = {name: leaf for name, leaf in zip(names, leaves, strict=True) if not isinstance(leaf, Tensor)}
    defaults = {name: one.default for name, one in signature.parameters.items()}
    fixed = {name: value for name, value in fixed.items() if not (value is None and defaults.get(name, 0) is None)}
    of_tensors = tuple(name for name, slot in zip(names, slots, strict=True) if slot is _Slot.TENSOR)
    return Binding(Bound(model, slots, spec), tensors, of_tensors, fixed)


def _signature_of(model: nn.Module) -> inspect.Signature:
    """Return what `forward` takes. Raises Unsupported for a module that has it from torch.jit.trace."""
    refused = Unsupported(
        f"forward of {type(model).__name__} is not written in Python, as a traced module's (torch.jit) is not, of"
        " which only TorchScript's graph is there; export the module that it was made from"
    )
    if isinstance(model, torch.jit.TopLevelTracedModule):  # type: ignore[attr-defined]  # which torch exports unsaid
        raise refused
    try:
        return inspect.signature(model.forward)
    except ValueError as error:
        raise refused from error


def _check_arguments(
    model: nn.Module, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuse arguments that `forward` does not take, in a sentence."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        known = list(signature.parameters)
        strange = [key for key in kwargs if key not in known]
        parameters = ", ".join(map(_describe_parameter, signature.parameters.values()))
        takes = f"forward of {type(model).__name__} takes ({parameters})"
        if strange:
            near = get_close_matches(strange[0], known, n=1, cutoff=0.4)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise BadInput(f"{takes}, and no {strange[0]!r}{hint}") from error
        missing = [
            name
            for name, one in list(signature.parameters.items())[len(args) :]
            if one.default is one.empty and name not in kwargs and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        ]
        if missing:
            raise BadInput(f"{takes}, and the inputs have no {', '.join(missing)}; give an example of it") from error
        twice = [name for name in known[: len(args)] if name in kwargs]
        what = f"{twice[0]} was given twice" if twice else f"{len(args)} were given by position"
        raise BadInput(f"{takes}, and {what}; leave out what is too much") from error


def _describe_parameter(parameter: inspect.Parameter) -> str:
    """Return `x`, `*args` or `scale=2.0`."""
    is_any, is_any_by_name = parameter.kind is parameter.VAR_POSITIONAL, parameter.kind is parameter.VAR_KEYWORD
    stars = "*" if is_any else "**" if is_any_by_name else ""
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return f"{stars}{parameter.name}{default}"


def _in_order(signature: inspect.Signature, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the names of keyword arguments in the order of `forward`, which is that of torch.export."""
    known = [name for name in signature.parameters if name in kwargs]
    return [*known, *(name for name in kwargs if name not in known)]


def _paths(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in the arguments: its parameter, and the keys and positions below."""
    positional: list[tuple[str | int, ...]] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += [(parameter.name, i) for i in range(len(args) - len(positional))]
        else:
            positional.append((parameter.name,))
    for start, value in zip(positional, args, strict=False):
        yield from ((*start, *path) for path in _inner_paths(value))
    for name, value in kwargs.items():
        yield from ((name, *path) for path in _inner_paths(value))


def _inner_paths(value: Any) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of a nest's values in the order in which torch takes it apart."""
    if pytree.tree_is_leaf(value):
        yield ()
        return
    children = pytree.tree_flatten(value, is_leaf=lambda one: one is not value)[0]
    keys = _keys(value)
    for key, child in zip(keys if keys is not None else range(len(children)), children, strict=True):
        yield from ((key, *path) for path in _inner_paths(child))


def _keys(value: Any) -> list[Any] | None:
    """Return the keys of a nest, None where it has positions alone."""
    if isinstance(value, Mapping):
        return list(value)
    if is_dataclass(value):
        return [one.name for one in fields(value) if getattr(value, one.name) is not None]
    return list(value._fields) if isinstance(value, tuple) and hasattr(value, "_fields") else None


def _register_dataclasses(value: Any) -> None:
    """Tell torch of the dataclasses in an argument, of which it takes none apart that it does not know."""
    if is_dataclass(value) and not isinstance(value, type) and pytree.tree_is_leaf(value):
        torch.export.register_dataclass(type(value))
    for child in () if pytree.tree_is_leaf(value) else pytree.tree_leaves(value, is_leaf=lambda one: one is not value):
        _register_dataclasses(child)


def named_leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield the values in what a module returns, each with the keys and positions that lead to it; None is no value."""
    if isinstance(value, Mapping):
        inner: Iterator[tuple[Any, Any]] = iter(value.items())
    elif is_dataclass(value) and not isinstance(value, type):
        inner = iter([(one.name, getattr(value, one.name)) for one in fields(value)])
    elif isinstance(value, list | tuple):
        inner = zip(_keys(value) or range(len(value)), value, strict=True)
    elif pytree.tree_is_leaf(value):
        if value is not None:
            yield path, value
        return
    else:  # a class that somebody has taught torch
        inner = enumerate(pytree.tree_leaves(value, is_leaf=lambda one: one is not value))
    for key, child in inner:
        yield from named_leaves(child, (*path, key))


@dataclass(frozen=True)
class Results:
    """The tensors that a module returns.

    Attributes:
        tensors: in order.
        paths: of each, the keys and positions that lead to it.
        left_out: by its name, what else is returned and is no tensor.
        is_flat: whether they are returned as a tensor, or as a plain sequence of tensors.
    """

    tensors: list[Tensor]
    paths: list[tuple[str | int, ...]]
    left_out: dict[str, Any]
    is_flat: bool

    def names(self, taken: Sequence[str]) -> list[str]:
        """Return a name for each tensor: that of its keys, or `output`, or `output_0`, `output_1` ...

        Args:
            taken: names of the inputs.
        """
        stem = "result" if any(name.startswith("output") for name in taken) else "output"
        if not any(isinstance(key, str) for path in self.paths for key in path):
            return [stem] if len(self.paths) == 1 else [f"{stem}_{i}" for i in range(len(self.paths))]
        names = ["_".join(map(_word, path)) for path in self.paths]
        names = [name if name[:1].isalpha() or name[:1] == "_" else f"{stem}_{name}" for name in names]
        return _unique([f"{name}_{stem}" if name in taken else name for name in names])


def read_results(value: Any) -> Results:
    """Return the tensors in what a module returns, and the names of all that is in it."""
    leaves = list(named_leaves(value))
    others = {"_".join(map(_word, path)) or "result": leaf for path, leaf in leaves if not isinstance(leaf, Tensor)}
    is_flat = isinstance(value, Tensor) or (type(value) in (list, tuple) and all(isinstance(y, Tensor) for y in value))
    tensors = [leaf for _, leaf in leaves if isinstance(leaf, Tensor)]
    return Results(tensors, [path for path, leaf in leaves if isinstance(leaf, Tensor)], others, is_flat)


def _word(key: str | int) -> str:
    """Return a key as a part of a name."""
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in str(key))


def _unique(names: Sequence[str]) -> list[str]:
    """Return names that differ, by a number where they do not."""
    found: list[str] = []
    for name in names:
        unique, count = name, 1
        while unique in found:
            unique, count = f"{name}_{count}", count + 1
        found.append(unique)
    return found
