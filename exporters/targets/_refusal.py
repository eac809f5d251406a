"""A third party's failure in one sentence of ours: which operator of the program it is about, where, and the way out.

Converters raise what they please, with texts for their own developers. What they were working on is known all the same:
it is a local variable of the frames that the exception went through, or its operator's name is in the text. Nothing of
the text itself reaches the user; --debug shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgesmith.errors import EdgesmithError, Unsupported
from edgesmith.exporters.graph.decomposed import decomposed
from edgesmith.exporters.graph.edit import operator_name, site

WAY_OUT = "spell it with other operators, or choose another target: edgesmith operators says what each takes"


def refuse(error: BaseException, nodes: Iterable[Node], format_name: str, symbol: str = "") -> Unsupported:
    """Return the refusal for what a converter raised.

    Args:
        error: of the converter.
        nodes: of the program that it was given.
        format_name: such as `Core ML`.
        symbol: a name that the converter gave to what it made of the operator, such as `fused_index_put_add`.
    """
    given = list(nodes)
    node = _find(error, given) or _named_in(symbol, given)
    if node is None:
        return Unsupported(
            f"{format_name} cannot express this model, and its converter does not say which operator it means;"
            " export a part of it to find out, or choose another target. --debug shows the trace"
        )
    return Unsupported(f"{format_name} cannot express this model: it does not take {describe(node)}; {WAY_OUT}")


def decompose(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]], format_name: str) -> ExportedProgram:
    """Return a program with operators spelled in others, and a spelling's own refusal without torch's additions.

    Args:
        table: the spellings by operator.
        format_name: such as `Core ML`.

    Raises:
        Unsupported: a spelling refuses, or fails.
    """
    try:
        made = decomposed(program, table)
    except EdgesmithError as error:  # torch.fx has added what it was executing
        raise Unsupported(str(error).partition("\n")[0]) from None
    except Exception as error:  # a guard on a size that is not known, TypeError, RuntimeError alike
        raise refuse(error, program.graph.nodes, format_name) from error
    return made


def describe(node: Node) -> str:
    """Return an operator with its arguments, its module, and the line of the model, where that is known."""
    named = (f"{name}={_argument(value)}" for name, value in node.kwargs.items())
    given = ", ".join([*map(_argument, node.args), *named])
    return f"{operator_name(node)}({given}) at {site(node)}{_line(node)}"


def _argument(value: object) -> str:
    if isinstance(value, Node):
        made = value.meta.get("val")
        if isinstance(made, torch.Tensor):
            return f"{str(made.dtype).removeprefix('torch.')} {list(made.shape)}"
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_argument, value))}]"
    return str(value)


def _line(node: Node) -> str:
    """Return the line of the model that an operator comes from, ` (model.py:12)`; empty where that is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("written_at") or node.meta.get("stack_trace", ""))
    own = [(file, line) for file, line in frames if "torch" not in Path(file).parts]
    return f" ({Path(own[-1][0]).name}:{own[-1][1]})" if own else ""


def _find(error: BaseException, nodes: list[Node]) -> Node | None:
    """Return the node that an exception is about: the one at hand when it was raised, or whose operator it names."""
    by_name = {node.name: node for node in nodes if node.op == "call_function"}
    for one in _chain(error):
        for frame in reversed(list(_frames(one.__traceback__))):
            if (found := _at_hand(frame.f_locals, by_name)) is not None:
                return found
    for one in _chain(error):
        named = [node for node in by_name.values() if re.search(rf"{re.escape(str(node.target))}\b", str(one))]
        if named:
            return named[0]
    return None


def _named_in(symbol: str, nodes: Iterable[Node]) -> Node | None:
    """Return the node whose operator's name is the longest in a symbol."""
    called = [node for node in nodes if node.op == "call_function"]
    names = {node: operator_name(node).rpartition(".")[2].strip("_") for node in called}
    return max((node for node in called if names[node] in symbol), key=lambda node: len(names[node]), default=None)


def _at_hand(values: dict[str, Any], by_name: dict[str, Node]) -> Node | None:
    """Return the node that a frame calls `node`, torch's or one of the converter's that has its name."""
    for key in ("node", "op_node", "fx_node"):
        value = values.get(key)
        if isinstance(value, Node) and value.op == "call_function":
            return by_name.get(value.name, value)
        name = getattr(value, "name", None)
        if isinstance(name, str) and name in by_name:
            return by_name[name]
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the first cause first: what was raised later is about the whole program.

    A refusal among them is another program's: this one is converted in the handler of that.
    """
    if error is not None and not isinstance(error, EdgesmithError):
        yield from _chain(error.__cause__ or error.__context__)
        yield error


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
