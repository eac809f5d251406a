"""Arrangements of numbers in Relax: what of them is left when their order is looked at.

    permute(reshape(constant))                      a constant
    permute(permute(x))                             one permutation; nothing, where the two cancel
    permute(reshape(permute(x)))                    a reshape, which costs nothing, where the numbers stay in order
    another name for a value, or its own shape      the value

Layouts are turned operator by operator, so that transposes meet: this is the pass in which they cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RESHAPES = frozenset({"relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten"})
PERMUTES = "relax.permute_dims"

LONGEST = 6
"""Arrangements in a row that are looked at together."""


def operator(value: Any) -> str:
    """Return the name of the operator that a call calls; empty for what is no call of one."""
    import tvm

    return str(value.op.name) if isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op) else ""


def sizes(value: Any) -> tuple[int, ...]:
    """Return a tensor's shape, which is known ahead."""
    return tuple(int(size) for size in value.ty.shape)


def arranged(module: Any) -> Any:
    """Return a module whose arrangements are as few as the order of numbers allows."""
    walk = _Walk()
    return rebuilt(module, walk.seen)


def rebuilt(module: Any, see: Callable[[Any, Any], Any]) -> Any:
    """Return a module whose `main` has been walked through once, binding by binding.

    Args:
        see: from a variable and its value, which reads what is left, to the value to keep, or to bindings that end
            with the variable's; a variable or a constant takes the variable's place everywhere.
    """
    import tvm
    from tvm import relax

    main = module["main"]
    instead: dict[Any, Any] = {}
    blocks = []
    for block in main.body.blocks:
        kept = []
        for binding in block.bindings:
            value = see(binding.var, substituted(binding.value, instead))
            if isinstance(value, tvm.ir.Var | tvm.ir.GenericConst) and isinstance(binding.var, relax.DataflowVar):
                instead[binding.var] = value
            else:
                bindings = value if isinstance(value, list) else [(binding.var, value)]
                kept += [relax.VarBinding(*one) for one in bindings]
        blocks.append(type(block)(kept))
    body = relax.SeqExpr(blocks, substituted(main.body.body, instead))
    made = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    functions = {**dict(module.functions.items()), module.get_global_var("main"): made}
    cleaned = tvm.transform.Sequential([relax.transform.Normalize(), relax.transform.DeadCodeElimination()])
    return cleaned(tvm.IRModule(functions))


def substituted(value: Any, instead: Mapping[Any, Any]) -> Any:
    """Return an expression with other values in the place of some variables."""
    import tvm
    from tvm import relax

    if isinstance(value, tvm.ir.Var):
        return instead.get(value, value)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([substituted(one, instead) for one in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(substituted(value.tuple_value, instead), value.index)
    if isinstance(value, tvm.ir.Call):
        given = [substituted(one, instead) for one in value.args]
        if all(one.same_as(before) for one, before in zip(given, value.args, strict=True)):
            return value
        return tvm.ir.Call(value.op, given, value.attrs, value.ty_args, ret_ty=value.ty)
    return value


class _Walk:
    """Remembers how each value is arranged."""

    def __init__(self) -> None:
        self.chains: dict[Any, list[Any]] = {}  # of a variable: itself, what it is an arrangement of, and so on
        self.parts: dict[Any, Any] = {}
        self.splits: dict[Any, Any] = {}

    def seen(self, variable: Any, value: Any) -> Any:
        """Return what is left of a value."""
        import tvm
        from tvm import relax

        name = operator(value)
        if isinstance(value, relax.TupleGetItem):
            self.parts[variable] = value
        if name == "relax.split":
            self.splits[variable] = value
        if name == "relax.concat":
            return self._joined(value)
        if name != PERMUTES and name not in RESHAPES:
            return value
        source = value.args[0]
        if isinstance(source, tvm.ir.GenericConst):
            made = apply(source.value.numpy(), value)
            return relax.const(made, str(made.dtype))  # by itself it makes int64 int32
        chain = [(variable, value), *self.chains.get(source, [])][:LONGEST]
        self.chains[variable] = chain
        for length in range(len(chain), 0, -1):
            first = chain[length - 1][1].args[0]
            if _keeps_order([one for _, one in reversed(chain[:length])], sizes(first)):
                if sizes(first) == sizes(variable):
                    return first
                return relax.op.reshape(first, list(sizes(variable)))
        return value

    def _joined(self, value: Any) -> Any:
        """Return what is put together: a value that was split there, and whose parts are all here, in order."""
        from tvm import relax

        fields = value.args[0].fields if isinstance(value.args[0], relax.Tuple) else []
        parts: list[Any] = [self.parts[one] for one in fields if one in self.parts]
        if not parts or len(parts) < len(fields):
            return value
        first = parts[0].tuple_value
        split: Any = self.splits.get(first)
        is_whole = split is not None and all(one.tuple_value.same_as(first) for one in parts)
        if not is_whole or [one.index for one in parts] != [*range(len(split.ty.fields))]:
            return value
        rank = len(sizes(split.args[0]))
        return split.args[0] if int(split.attrs.axis) % rank == int(value.attrs.axis) % rank else value


def apply(array: np.ndarray, value: Any) -> np.ndarray:
    """Return an array, arranged as a call of Relax says."""
    import numpy as np

    if operator(value) in RESHAPES:
        return array.reshape(sizes(value))
    axes = value.attrs.axes
    return np.ascontiguousarray(array.transpose(None if axes is None else [int(axis) for axis in axes]))


def _keeps_order(calls: list[Any], shape: tuple[int, ...]) -> bool:
    """Return whether arrangements, one after the other, leave all numbers in their order."""
    import numpy as np

    count = int(np.prod(shape, dtype=np.int64))
    if count >= 2**31:
        return False
    numbers = np.arange(count, dtype=np.int32).reshape(shape)
    for call in calls:
        numbers = apply(numbers, call)
    flat = numbers.ravel()
    return count == 0 or bool((flat[1:] > flat[:-1]).all())
