"""Calls that a pickle of tensors would make, read before any of them is made.

PyTorch's restricted unpickler runs no foreign code, and calls what it lets through with whatever a pickle says. A
hundred bytes can so ask for gigabytes (`bytearray(n)`, one encoding upon another), for hours (keys of tuples of tuples,
whose hash is taken anew), or for memory that nobody wrote (`torch.FloatTensor(n)`). Here a pickle's steps are followed
without doing them: functions that are called with arguments are the few that checkpoints need, and everything together
costs no more than BUDGET.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

MOST_STEPS: Final = 2_000_000
"""Of one pickle; a tensor takes about 50."""

BUDGET: Final = 2**25
"""Values that are copied or hashed; a string counts one for 8 characters."""

LONGEST_LINE: Final = 2**24
"""Bytes of a name or number that ends with its line; a longer one does not end."""

LONGEST_NAME: Final = 200
"""Characters of a function's or class's name: PyTorch's search of its own error takes the square of them."""

SCALARS: Final = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

_ENCODE, _PLAIN = "_codecs.encode", ("latin1", "latin-1")
"""Protocol 2 has bytes as text in latin-1. Other encodings lengthen what they are given, again and again."""

_OF_TYPE = "torch._tensor._rebuild_from_type_v2"

CALLED: Final = frozenset(
    {
        *(f"torch._utils._rebuild_{one}" for one in ("tensor", "tensor_v2", "tensor_v3", "parameter", "qtensor")),
        *(f"torch._utils._rebuild_{one}" for one in ("parameter_with_state", "sparse_tensor", "nested_tensor")),
        *("torch._utils._rebuild_meta_tensor_no_storage", "torch.Size"),
        *("torch.device", "torch.serialization._get_layout", "collections.OrderedDict", "collections.Counter"),
        *("builtins.set", "__builtin__.set", "builtins.complex", "__builtin__.complex"),
        *("numpy.dtype", *SCALARS, _ENCODE, _OF_TYPE),
    }
)
"""What is called with arguments; whatever else PyTorch lets through is made empty, or not at all."""


class Refused(Exception):
    """A pickle asks for what no checkpoint needs. name: of the function; empty where it is too much of anything."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        super().__init__(name)


@dataclass(frozen=True)
class Found:
    """Names in one pickle.

    Attributes:
        stored: keys of the storages that it takes.
        texts: its strings, their first LONGEST_NAME characters.
    """

    stored: set[str]
    texts: set[str]


def check(stream: BinaryIO) -> Found:
    """Follow one pickle, up to its end or up to a step that PyTorch's unpickler has not, and return its names.

    Raises:
        Refused: it calls what it may not, or costs more than the budget.
        ValueError: it is cut off, or no pickle.
    """
    steps = _Steps()
    for number, (code, argument, _) in enumerate(pickletools.genops(_Bounded(stream))):  # type: ignore[arg-type]
        if number > MOST_STEPS:
            raise Refused
        step = _BY_NAME.get(code.name)
        if step is None:
            break
        try:
            step(steps, argument)
        except (IndexError, KeyError) as error:
            raise ValueError("it takes what it has not put there") from error
    return Found(steps.stored_keys, steps.texts)


class _Bounded:
    """A stream that is asked for no more than it has: Python makes room for what a length says before it reads."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, at = stream, stream.tell()
        self.end = stream.seek(0, 2)
        stream.seek(at)

    def read(self, count: int) -> bytes:
        if count > self.end - self.stream.tell():
            raise ValueError("it is cut off")
        return self.stream.read(count)

    def readline(self) -> bytes:
        return self.stream.readline(LONGEST_LINE)

    def tell(self) -> int:
        return self.stream.tell()


@dataclass(slots=True)
class _Value:
    """A value that would be made.

    Attributes:
        weight: values in it, each as often as it is reached.
        name: of a function or class.
        text: a string's own.
        items: a tuple's.
    """

    weight: int = 1
    name: str = ""
    text: str = ""
    items: tuple[_Value, ...] | None = None


_ONE = _Value()


def _tuple(items: list[_Value]) -> _Value:
    return _Value(_limited(1 + sum(one.weight for one in items)), items=tuple(items))


def _limited(weight: int) -> int:
    """Return a weight that stays a small number: a tuple of one tuple, twice, has twice its weight."""
    return min(weight, BUDGET + 1)


@dataclass(slots=True)
class _Steps:
    stack: list[_Value] = field(default_factory=list)
    below: list[list[_Value]] = field(default_factory=list)
    memo: dict[int, _Value] = field(default_factory=dict)
    stored_keys: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    spent: int = 0

    def spend(self, *values: _Value) -> None:
        self.spent += sum(one.weight for one in values)
        if self.spent > BUDGET:
            raise Refused

    def one(self, _: Any) -> None:
        self.stack.append(_ONE)  # nothing makes it grow: PyTorch refuses to append to a number

    def string(self, text: str) -> None:
        first = text[:LONGEST_NAME]
        self.texts.add(first)
        self.stack.append(_Value(1 + len(text) // 8, text=first))

    def empty(self, _: Any) -> None:
        self.stack.append(_Value())

    def empty_tuple(self, _: Any) -> None:
        self.stack.append(_tuple([]))

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[_Value]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def tuple_of_all(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(_tuple(items))

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(_tuple(items[::-1]))

    def name(self, argument: str) -> None:
        if len(argument) > LONGEST_NAME:
            raise Refused(argument[:40] + "...")
        self.stack.append(_Value(name=argument.replace(" ", ".")))

    def call(self, _: Any) -> None:
        given, called = self.stack.pop(), self.stack.pop()
        self._check_call(called, given)
        self.spend(given, *(given.items or ()))  # a list that is given may have grown since its tuple was made
        self.stack.append(_Value(given.weight))

    def _check_call(self, called: _Value, given: _Value) -> None:
        if not called.name:
            raise ValueError("it calls what is no function")
        if given.items == ():
            return
        if called.name not in CALLED or given.items is None:
            raise Refused(called.name)
        if called.name == _ENCODE and [one.text in _PLAIN for one in given.items[1:]] != [True]:
            raise Refused(called.name)
        if called.name == _OF_TYPE:  # it calls its first argument with its third
            self._check_call(given.items[0], given.items[2])

    def set_state(self, _: Any) -> None:
        self.spend(self.stack.pop())

    def append(self, _: Any) -> None:
        self._grow([self.stack.pop()])

    def append_all(self, _: Any) -> None:
        self._grow(self._since_mark())

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, pairs: list[_Value]) -> None:
        for key in pairs[::2]:
            self.spend(key)
        self._grow(pairs)

    def _grow(self, items: list[_Value]) -> None:
        grown = self.stack[-1]
        grown.weight = _limited(grown.weight + sum(one.weight for one in items))

    def stored(self, _: Any) -> None:
        stored = self.stack.pop()
        self.spend(stored)
        self.stored_keys.add(stored.items[2].text if stored.items else "")
        self.stack.append(_Value())

    def get(self, at: int) -> None:
        self.stack.append(self.memo[at])

    def put(self, at: int) -> None:
        self.memo[at] = self.stack[-1]

    def nothing(self, _: Any) -> None:
        return


_BY_NAME: Final[dict[str, Callable[[_Steps, Any], None]]] = {
    **dict.fromkeys(("NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), _Steps.one),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), _Steps.string),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), _Steps.empty),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Steps.call),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Steps.get),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Steps.put),
    **dict.fromkeys(("PROTO", "STOP"), _Steps.nothing),
    "EMPTY_TUPLE": _Steps.empty_tuple,
    "MARK": _Steps.mark,
    "TUPLE": _Steps.tuple_of_all,
    "TUPLE1": lambda steps, _: steps.tuple_of(1),
    "TUPLE2": lambda steps, _: steps.tuple_of(2),
    "TUPLE3": lambda steps, _: steps.tuple_of(3),
    "GLOBAL": _Steps.name,
    "BUILD": _Steps.set_state,
    "APPEND": _Steps.append,
    "APPENDS": _Steps.append_all,
    "SETITEM": _Steps.set_item,
    "SETITEMS": _Steps.set_items,
    "BINPERSID": _Steps.stored,
}
"""The steps of PyTorch's unpickler; over any other it ends."""
