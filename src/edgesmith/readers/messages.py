"""Protobuf messages: ONNX models and Core ML's specifications, in files of a bounded size.

A message refers to no other file here: ONNX's external data are not followed, wherever they point. Shapes are inferred
in a process of its own.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import Unreadable, Unsupported
from edgesmith.readers import apart
from edgesmith.readers.budget import GIBIBYTE, read_bytes

if TYPE_CHECKING:
    import onnx
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

LARGEST = 2 * GIBIBYTE
"""Protobuf's own limit."""


def read_onnx(path: Path, *, advice: str = "export it again", whole: bool = True) -> onnx.ModelProto:
    """Return the model in an ONNX file.

    Args:
        advice: what to do about a damaged one.
        whole: whether its tensors are wanted; without them, a file may keep some in other files.

    Raises:
        Unreadable: it is none, or keeps tensors that are wanted in other files.
    """
    import onnx

    content = read_bytes(path, "ONNX file", LARGEST)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own DecodeError, which depends on its implementation
        raise Unreadable(f"{path} is damaged or no ONNX file; {advice}") from error
    if not _is_text(model):  # protobuf gives such a string as bytes, which no code that reads models expects
        raise Unreadable(f"{path} is damaged: a name in it is not UTF-8; {advice}")
    for tensor in model.graph.initializer:
        if whole and tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise Unreadable(f"{path} keeps the tensor {tensor.name} in another file, which is not followed; {advice}")
    if not model.graph.output:  # no bytes are a message too, and another format's bytes may be unknown fields
        raise Unreadable(f"{path} has no graph with outputs: it is empty, cut off or no ONNX file; {advice}")
    return model


def _is_text(message: Message) -> bool:
    """Return whether all strings of a message of ONNX, and of those in it, are UTF-8."""
    for name, is_message, is_repeated in _fields(message.DESCRIPTOR):
        if not is_repeated and not message.HasField(name):
            continue
        value = getattr(message, name)
        for one in value if is_repeated else (value,):
            if isinstance(one, bytes) or (is_message and not _is_text(one)):
                return False
    return True


@cache
def _fields(kind: Descriptor) -> list[tuple[str, bool, bool]]:
    """Return the fields of a kind of message that are strings or messages: name, whether a message, whether repeated.

    ONNX's kinds are written in proto2, whose fields know whether they are set, but for the repeated ones.
    """
    from google.protobuf.descriptor import FieldDescriptor

    kinds = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
    return [(f.name, f.type == kinds[1], not f.has_presence) for f in kind.fields if f.type in kinds]


_SMALL = 1024
"""Numbers of a constant that a shape may depend on, at most."""

_MOST_NODES = 1_000_000
"""Of a model whose functions are in the places that call them."""


def _check_functions(model: onnx.ModelProto, what: str) -> None:
    """Raise Unreadable where a model's functions call each other, or one another so often that it has no end."""
    bodies = {(one.domain, one.name): one.node for one in model.functions}
    calls: dict[tuple[str, str], Counter[tuple[str, str]]] = {name: _calls(body) for name, body in bodies.items()}
    sizes: dict[tuple[str, str], int] = {}
    waiting = dict(calls)
    while waiting:
        known = [name for name, called in waiting.items() if not any(one in waiting for one in called)]
        if not known:
            raise Unreadable(f"{what} is no sound ONNX file: its functions call each other without end")
        for name in known:
            called = waiting.pop(name)
            sizes[name] = min(sum(count * sizes.get(one, 1) for one, count in called.items()), 2 * _MOST_NODES)
    if sum(count * sizes.get(one, 1) for one, count in _calls(model.graph.node).items()) > _MOST_NODES:
        raise Unreadable(
            f"{what} has more than {_MOST_NODES} operators where its functions are called: too many to read"
        )


def _calls(nodes: Iterable[onnx.NodeProto]) -> Counter[tuple[str, str]]:
    """Return how often nodes, and those of their bodies, call each operator or function."""
    found: Counter[tuple[str, str]] = Counter()
    levels = [nodes]
    while levels:
        for node in levels.pop():
            found[node.domain, node.op_type] += 1
            for attribute in node.attribute:
                levels += [graph.node for graph in (attribute.g, *attribute.graphs) if graph.node]
    return found


INFER = f"{__name__}:infer_shapes_here"


def infer_shapes(model: onnx.ModelProto, what: str, *, data_prop: bool = False) -> onnx.GraphProto:
    """Return a model's graph with the shapes of its values; of large tensors it has their types and sizes alone.

    ONNX's inference is native code, and a model may be anybody's: a process of its own runs it, see apart.py.

    Args:
        what: the file, for the sentence.
        data_prop: whether values that shapes depend on are computed too.

    The model's own functions are put in the places that call them.

    Raises:
        Unreadable: that process died, or did not end, or the functions call each other without end.
        Unsupported: ONNX refuses the model.
    """
    import onnx

    if model.functions:
        _check_functions(model, what)
    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    given, graph = model.graph, small.graph
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(given, name))
    known, large = {one.name for one in given.input}, []
    for tensor in given.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
            continue
        large.append(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        if tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.name = given.name
    sent = base64.b64encode(small.SerializeToString()).decode()
    inferred = onnx.load_model_from_string(base64.b64decode(apart.call(INFER, [sent, data_prop], what))).graph
    del inferred.input[len(given.input) :]
    inferred.initializer.extend(large)
    return inferred


def infer_shapes_here(model: str, data_prop: bool) -> str:
    """Return a model with its shapes, both in base 64. Raises Unsupported where ONNX refuses it."""
    import onnx

    try:
        given = onnx.load_model_from_string(base64.b64decode(model))
        if given.functions:
            import onnx.inliner

            given = onnx.inliner.inline_local_functions(given)
        found = onnx.shape_inference.infer_shapes(given, data_prop=data_prop)
    except Exception as error:  # onnx raises errors of its own, and of protobuf
        if isinstance(error, MemoryError):
            raise
        raise Unsupported("ONNX infers no shapes of it") from error
    return base64.b64encode(found.SerializeToString()).decode()


def parse_message(path: Path, message: Any, what: str, *, advice: str = "export it again") -> Any:
    """Fill a protobuf message from a file and return it. Raises Unreadable where it cannot be."""
    content = read_bytes(path, what, LARGEST)
    try:
        message.ParseFromString(content)
    except Exception as error:  # as above
        raise Unreadable(f"the {what} {path} cannot be read: the file is damaged; {advice}") from error
    if not message.ListFields():
        raise Unreadable(f"the {what} {path} says nothing: it is empty or no such file; {advice}")
    return message
