"""A module of the user's own, described: what to call, with which arguments, on which inputs, with which weights.

    path/to/file.py:callable      a file; its folder is on Python's path while it is imported
    package.module:callable       a module of Python's path, on which the current folder is

The callable is a class or a function that returns a `torch.nn.Module`, or is one. Nothing is imported here: a file's
names are read from its text, so that a wrong one is answered before torch is there.

    --input 1x3x224x224              the next argument of forward, standard normal numbers
    --input tokens=1x16:int64:0-999  the argument `tokens`, whole numbers from 0 to 999
    --input state.h=1x8              the entry `h` of a dictionary `state`; `state.0` of a list
"""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edgesmith.errors import BadInput
from edgesmith.readers.weights import check_weights

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")

_RANGES = {"uint8": (0, 255)}
_INPUT = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*(?:\.\w+)*)=)?(?P<shape>\(\)|\d+(?:x\d+)*)"
    r"(?::(?P<dtype>[a-z]+\d*))?(?::(?P<low>-?\d+)-(?P<high>-?\d+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class InputSpec:
    """One input, to be filled with random numbers.

    Attributes:
        shape: with its batch; empty for a scalar.
        dtype: see DTYPES.
        name: the argument of forward, and the keys below it; empty for the next one by position.
        low, high: of whole numbers, both among them.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str = ""
    low: int = 0
    high: int = 1


def parse_input(text: str) -> InputSpec:
    """Return the input that `1x3x224x224`, `1x16:int64:0-999` or `mask=1x16:bool` says. Raises BadInput."""
    found = _INPUT.fullmatch(text.strip())
    if found is None:
        raise BadInput(f"--input must be a shape such as 1x3x224x224, 1x16:int64:0-999 or mask=1x16:bool, got {text!r}")
    dtype = found["dtype"] or "float32"
    if dtype not in DTYPES:
        raise BadInput(f"--input {text}: the type must be one of {', '.join(DTYPES)}, got {dtype!r}")
    shape = () if found["shape"] == "()" else tuple(int(n) for n in found["shape"].split("x"))
    low, high = _RANGES.get(dtype, (0, 1))
    if found["low"] is not None:
        low, high = int(found["low"]), int(found["high"])
        if dtype.startswith("float") or dtype == "bool" or low > high:
            raise BadInput(f"--input {text}: a range LOW-HIGH belongs to whole numbers, the smaller one first")
    return InputSpec(shape, dtype, found["name"] or "", low, high)


@dataclass(frozen=True)
class OwnModule:
    """A module of the user's own. Making one checks all that can be said without importing it.

    Attributes:
        reference: `path/to/file.py:callable` or `package.module:callable`.
        kwargs: arguments of the callable.
        inputs: of forward, to be filled with random numbers.
        example: an `.npz` with the inputs of one call instead: arrays by the names of arguments.
        fixed: arguments of forward that are no tensors, and become part of the file.
        weights: checkpoint.
        key: of the state dict in the checkpoint, such as `model_ema`; dots lead further in.
        strict: whether all weights must be in the checkpoint, and nothing else.
        folder: that paths are relative to.

    Raises:
        BadInput: a sentence that says what was wanted, what came and what to do.
    """

    reference: str
    _: KW_ONLY
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[InputSpec, ...] = ()
    example: Path | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    key: str | None = None
    strict: bool = True
    folder: Path = Path()

    def __post_init__(self) -> None:
        if not self.place or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", self.callable):
            raise BadInput(
                f"--module must be path/to/file.py:callable or package.module:callable, got {self.reference!r}"
            )
        if self.file is not None:
            _check_file(self.file, self.callable)
        elif not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", self.place):
            raise BadInput(f"--module: {self.place} is no file that ends with .py, and no name of a Python module")
        self._check_inputs()
        if self.weights is None and (self.key is not None or not self.strict):
            raise BadInput("--key and --no-strict say how weights are read; give --weights FILE too")
        if self.weights is not None:
            check_weights(self.weights)

    @property
    def place(self) -> str:
        """The file or module of the callable."""
        return self.reference.rpartition(":")[0]

    @property
    def callable(self) -> str:
        """The callable's name in it."""
        return self.reference.rpartition(":")[2]

    @property
    def file(self) -> Path | None:
        """The path of the file; None for a module of Python's path."""
        return self.folder / self.place if self.place.endswith(".py") or "/" in self.place else None

    @property
    def name(self) -> str:
        """The callable's name in lower case, for the artifact."""
        return self.callable.rpartition(".")[2].lower()

    def _check_inputs(self) -> None:
        if not self.inputs and self.example is None:
            raise BadInput("--module needs --input SHAPE for each argument of forward, or --inputs EXAMPLE.npz")
        if self.inputs and self.example is not None:
            raise BadInput("an example is given by shapes or as a file; choose one")
        if self.example is not None and (not self.example.is_file() or self.example.suffix.lower() != ".npz"):
            raise BadInput(
                f"--inputs: without --input the arrays of an .npz are the example, got {self.example};"
                " give --input SHAPE too where it is data to verify on"
            )
        names = [one.name for one in self.inputs]
        positional = [i for i, name in enumerate(names) if not name]
        if positional and positional != list(range(len(positional))):
            raise BadInput("--input: those without a name come first, as in a call of Python")
        for name in (*filter(None, names), *self.fixed):
            if [*names, *self.fixed].count(name) > 1:
                raise BadInput(f"the argument {name} of forward was given twice; leave one out")


def _check_file(path: Path, name: str) -> None:
    """Refuse a file that is not there, is no Python, or surely has no such name."""
    if not path.is_file():
        raise BadInput(f"--module: there is no file {path}; wanted path/to/file.py:callable")
    try:
        text = path.read_bytes()
        tree, table = ast.parse(text), symtable.symtable(text.decode(), str(path), "exec")
    except SyntaxError as error:
        raise BadInput(f"--module: {path}:{error.lineno} is no Python ({error.msg}); mend that line") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"--module: {path} cannot be read as Python: {error}") from error
    if _may_have_more(tree):
        return
    known = [one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()]
    if name.partition(".")[0] not in known:
        raise unknown_callable(name, str(path), known)


def unknown_callable(name: str, place: str, known: Sequence[str]) -> BadInput:
    """Return the error for a name that a file or module does not have."""
    own = [one for one in known if not one.startswith("_")]
    nearest = get_close_matches(name, own, n=3, cutoff=0.4) or own[:3]
    has = f"the nearest: {', '.join(nearest)}" if nearest else "it has no names at all"
    return BadInput(f"--module: {place} has no {name!r}; {has}")


def _may_have_more(tree: ast.Module) -> bool:
    """Return whether a module's names cannot be told from its text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            return True
        if isinstance(node, ast.Name) and node.id in ("globals", "exec", "setattr", "__getattr__"):
            return True
    return any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
