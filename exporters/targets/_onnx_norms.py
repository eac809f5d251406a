"""Norms in primitives that ONNX Runtime would fuse into what they are not.

Its optimiser takes sub, square, mean, root and quotient for a LayerNormalization, also where a mean has dropped its
axis (OR2 of exporters/departures), or where a scale or bias broadcasts the result to more numbers than were normalised
(OR3), which then fails or is wrong. The quotient of such a norm is written as a product with a reciprocal, which the
optimiser leaves: one rounding more. Seen with ONNX Runtime 1.31.1, which does so at its basic level already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from edgesmith.errors import Unreadable
from edgesmith.readers.documents import read_json

if TYPE_CHECKING:
    import onnx

LEGALIZED = "edgesmith.legalized"
"""The model's metadata: a JSON list of what was changed here."""

_CHANGE = "a quotient became a product, so that nothing fuses it"

Makers = Mapping[str, "onnx.NodeProto"]


def keep_apart(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Write the quotients of such norms as products with a reciprocal. Returns what was changed."""
    import onnx

    done = []
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    quotients = [node for node in graph.node if node.op_type == "Div" and _norm(node, makers) is not None]
    if not quotients:
        return []
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {one.name: _sizes(one) for one in (*inferred.value_info, *inferred.input, *inferred.output)}
    shapes |= {one.name: list(one.dims) for one in graph.initializer}
    for node in quotients:
        reason = _misread(node, graph, makers, shapes)
        if reason is not None:
            inverse = onnx.helper.make_node("Reciprocal", [node.input[1]], [f"{node.output[0]}_inverse"])
            inverse.name = f"{node.name}_inverse"
            graph.node.insert(list(graph.node).index(node), inverse)
            node.op_type, node.input[1] = "Mul", inverse.output[0]
            done.append({"rule": reason, "name": node.name, "change": _CHANGE})
    return done


def record(model: onnx.ModelProto, done: Sequence[Mapping[str, str]]) -> None:
    """Say in a model's metadata what was changed."""
    if done:
        model.metadata_props.add(key=LEGALIZED, value=json.dumps(list(done)))


def legalizations(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Return what a model's metadata say was changed; nothing where the entry is somebody else's."""
    text = next((one.value for one in model.metadata_props if one.key == LEGALIZED), "[]")
    try:
        found = read_json(text, "list of what was legalized")
        return [{key: str(one[key]) for key in ("rule", "name", "change")} for one in found]
    except (Unreadable, KeyError, TypeError):
        return []


def _norm(node: onnx.NodeProto, makers: Makers) -> onnx.NodeProto | None:
    """Return the mean of squares by whose root a quotient divides what was squared."""
    root = makers.get(node.input[1])
    added = makers.get(root.input[0]) if root is not None and root.op_type == "Sqrt" else None
    for name in added.input if added is not None and added.op_type == "Add" else ():
        mean = makers.get(name)
        square = makers.get(mean.input[0]) if mean is not None and mean.op_type == "ReduceMean" else None
        if square is not None and square.op_type in ("Pow", "Mul") and square.input[0] == node.input[0]:
            return mean
    return None


def _misread(
    node: onnx.NodeProto, graph: onnx.GraphProto, makers: Makers, shapes: Mapping[str, list[int | None]]
) -> str | None:
    """Return the departure by which a norm would be fused wrongly, or None."""
    means = [_norm(node, makers)]
    difference = makers.get(node.input[0])
    if difference is not None and difference.op_type == "Sub":
        means.append(makers.get(difference.input[1]))
    if any(one is not None and one.op_type == "ReduceMean" and not _keeps(one) for one in means):
        return "OR2"
    wanted = shapes.get(node.input[0])
    for follower in _following(node, graph):
        if wanted and any(_is_wider(shapes.get(name), wanted) for name in follower.input):
            return "OR3"
    return None


def _following(node: onnx.NodeProto, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the scale and the bias after a quotient."""
    for kind in ("Mul", "Add"):
        readers = [one for one in graph.node if node.output[0] in one.input and one.op_type == kind]
        yield from readers
        node = readers[0] if readers else node


def _keeps(node: onnx.NodeProto) -> bool:
    return all(one.i != 0 for one in node.attribute if one.name == "keepdims")


def _is_wider(shape: Sequence[int | None] | None, than: Sequence[int | None]) -> bool:
    """Return whether a value has more axes than a norm's, or a longer one; sizes that are not known count as equal."""
    if shape is None:
        return False
    if len(shape) > len(than):
        return True
    pairs = zip(reversed(shape), reversed(than), strict=False)
    return any(own is not None and other == 1 and own > 1 for own, other in pairs)


def _sizes(info: onnx.ValueInfoProto) -> list[int | None]:
    sizes = info.type.tensor_type.shape.dim
    return [one.dim_value if one.HasField("dim_value") else None for one in sizes]
