"""A module of the user's own, imported and built, with its weights and its example inputs.

Importing runs the user's code. That is said on stderr, and what the code prints goes there too, since stdout belongs to
results. A callable that draws its own weights draws them from a fixed seed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgesmith.errors import BadInput
from edgesmith.exporters.graph.blame import line_of_error
from edgesmith.exporters.own.arrays import read_arrays
from edgesmith.exporters.own.reference import InputSpec, OwnModule, unknown_callable
from edgesmith.models import checkpoint
from edgesmith.models.checkpoint import RANDOM_SEED, Weights


@dataclass(frozen=True)
class Built:
    """A module of the user's own, ready to be bound.

    Attributes:
        args, kwargs: example arguments of forward.
        weights: where they came from; None for those that the callable made.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: Weights | None


def build(own: OwnModule) -> Built:
    """Import and call what the user named, read its weights, and make its example inputs.

    Raises:
        BadInput: code that fails, a callable that is not there or returns no module, arguments it does not take.
        CheckpointError: weights that are missing, damaged, or of another model.
    """
    print(f"edgesmith: running the code of {own.reference}, which was asked for", file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=()):
        torch.manual_seed(RANDOM_SEED)
        module = _call(own, _find(own, _import(own)))
    weights = None
    if own.weights is not None:
        weights = checkpoint.load_into(module, own.weights, own.key, own.strict)
    args, kwargs = _example(own)
    return Built(module, args, {**kwargs, **own.fixed}, weights)


def _import(own: OwnModule) -> ModuleType:
    """Import the user's file or module."""
    try:
        if own.file is not None:
            return _import_file(own.file)
        with _on_path(own.folder):
            return importlib.import_module(own.place)
    except ModuleNotFoundError as error:
        if own.file is None and error.name and (own.place == error.name or own.place.startswith(f"{error.name}.")):
            raise BadInput(
                f"--module: there is no Python module {error.name}; run this from the folder that holds it, install it,"
                " or give path/to/file.py:callable"
            ) from error
        raise BadInput(_failed(own, error, f"install {error.name}, or put its folder on PYTHONPATH")) from error
    except ImportError as error:
        relative = "relative import" in str(error)
        way = "give it as package.module:callable from the folder above its package" if relative else "mend that line"
        raise BadInput(_failed(own, error, way)) from error
    except SystemExit as error:
        raise BadInput(
            f"--module: importing {own.place} ends the program{_at(error)}; put what a script does under"
            ' `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise BadInput(_failed(own, error, "mend that line, or import it in Python first")) from error


def _failed(own: OwnModule, error: BaseException, way: str) -> str:
    return f"--module: importing {own.place} failed{_at(error)}: {describe(error)}; {way}"


def describe(error: BaseException) -> str:
    """Return an exception in one line: its kind, and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0].rstrip(".") if lines else ""
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__


def _at(error: BaseException) -> str:
    line = line_of_error(error)
    return f" at {line}" if line else ""


def _import_file(path: Path) -> ModuleType:
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"edgesmith_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"--module: {path} is no Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickles look for their module there
    try:
        with _on_path(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Put a folder on Python's path, where it stays for what the module imports when it is called."""
    entry = str(folder.resolve())
    if entry not in sys.path:
        sys.path.insert(0, entry)
    yield


def _find(own: OwnModule, module: ModuleType) -> Any:
    found: Any = module
    for name in own.callable.split("."):
        if not hasattr(found, name):
            known = [one for one in vars(found) if callable(getattr(found, one, None))]
            raise unknown_callable(own.callable, own.place, known)
        found = getattr(found, name)
    return found


def _call(own: OwnModule, found: Any) -> nn.Module:
    """Return the module that the callable makes, or is."""
    if isinstance(found, nn.Module):
        if own.kwargs:
            raise BadInput(f"--kwargs: {own.callable} is a module already, and takes none; leave --kwargs out")
        return found
    if not callable(found):
        raise BadInput(
            f"--module: {own.reference} must be a class or a function that returns a torch.nn.Module, got"
            f" {type(found).__name__}"
        )
    _check_kwargs(own, found)
    try:
        made = found(**own.kwargs)
    except SystemExit as error:
        raise BadInput(f"--module: {own.callable} ends the program{_at(error)}; mend that line") from error
    except Exception as error:
        raise BadInput(
            f"--module: {own.callable}({_list_kwargs(own.kwargs)}) failed{_at(error)}: {describe(error)}; mend that"
            " line, or its --kwargs"
        ) from error
    if not isinstance(made, nn.Module):
        held = ", ".join(type(one).__name__ for one in made) if isinstance(made, tuple | list) else ""
        raise BadInput(
            f"--module: {own.callable} must return a torch.nn.Module, got {type(made).__name__}"
            + (f" of {held}" if held else "")
            + "; name a function that returns the module alone"
        )
    return made


def _check_kwargs(own: OwnModule, found: Any) -> None:
    """Refuse arguments that the callable does not take, with the nearest that it does."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of a builtin
        return
    try:
        signature.bind(**own.kwargs)
    except TypeError as error:
        takes = f"{own.callable} takes ({', '.join(map(str, signature.parameters.values()))})"
        strange = [name for name in own.kwargs if name not in signature.parameters]
        if strange:
            near = get_close_matches(strange[0], signature.parameters, n=1, cutoff=0.4)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise BadInput(f"--kwargs: {takes}, and no {strange[0]!r}{hint}") from error
        missing = [
            name
            for name, one in signature.parameters.items()
            if one.default is one.empty and name not in own.kwargs and one.kind is not one.VAR_KEYWORD
        ]
        first = missing[0] if missing else "x"
        raise BadInput(
            f"--kwargs: {takes}, and {', '.join(missing) or 'an argument'} is missing; give it as"
            f" --kwargs '{{\"{first}\": ...}}'"
        ) from error


def _list_kwargs(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in kwargs.items())


def _example(own: OwnModule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the example arguments of forward, by position and by name."""
    if own.example is not None:
        arrays = read_arrays(own.example)
        named = [("" if _is_positional(name) else name, _as_tensor(own.example, name, x)) for name, x in arrays.items()]
    else:
        named = [(one.name, _draw(one, i)) for i, one in enumerate(own.inputs)]
    args = [value for name, value in named if not name]
    kwargs: dict[str, Any] = {}
    for name, value in named:
        if name:
            _put(kwargs, name.split("."), value, name)
    return tuple(args), {name: _with_lists(value) for name, value in kwargs.items()}


def _is_positional(name: str) -> bool:
    """Return whether an array's name is one that numpy.savez gives to those without a name."""
    return name.startswith("arr_") and name.removeprefix("arr_").isdigit()


def _as_tensor(path: Path, name: str, array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    except TypeError as error:
        raise BadInput(f"--inputs: {name} in {path} must be numbers that torch has, got {array.dtype}") from error


def _draw(spec: InputSpec, position: int) -> Tensor:
    """Return an input of random numbers: standard normal, whole in their range, or booleans."""
    generator = torch.Generator().manual_seed(1000 * position)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    return torch.randint(spec.low, spec.high + 1, spec.shape, generator=generator).to(dtype)


def _put(nest: dict[str, Any], keys: Sequence[str], value: Tensor, name: str) -> None:
    for key in keys[:-1]:
        nest = nest.setdefault(key, {})
        if not isinstance(nest, dict):
            raise BadInput(f"the input {name} lies in a tensor; name inputs apart")
    if keys[-1] in nest:
        raise BadInput(f"the input {name} was given twice; leave one out")
    nest[keys[-1]] = value


def _with_lists(value: Any) -> Any:
    """Return a nest in which a table of 0, 1, 2 ... is a list."""
    if not isinstance(value, dict):
        return value
    inner = {key: _with_lists(one) for key, one in value.items()}
    if sorted(inner) == sorted(map(str, range(len(inner)))):
        return [inner[str(i)] for i in range(len(inner))]
    return inner
