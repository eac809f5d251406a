"""One spelling for layers and gates that models write in several: rules of `canonicalise`, see there for the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, operator_name, rank, replace, site, val
from edgesmith.exporters.graph.not_numbers import names_that_meet


def product_of_batches(module: GraphModule, node: Node) -> str | None:
    """Spell a product of two batches of matrices as any other."""
    put(module, node, aten.matmul.default, node.args[:2])
    return "bmm -> matmul"


def sum_of_product(module: GraphModule, node: Node) -> str | None:
    """Take a product and a sum in one operator apart; one with factors of its own is left."""
    x, a, b, *factors = arguments(node)
    if ENDS in node.meta or any(factor != 1 for factor in factors) or not val(node).is_floating_point():
        return None
    emit = Emitter(module, node)
    if node.target in LERPS:
        rest = _rest(emit, b)
        if rest is not None:
            put(module, node, aten.add.Tensor, (emit(aten.mul.Tensor, x, rest), emit(aten.mul.Tensor, a, b)))
            return "lerp -> (1 - a) x + a y"
        a = emit(aten.sub.Tensor, a, x)
    y = emit(aten.matmul.default if node.target in PRODUCTS else aten.mul.Tensor, a, b)
    put(module, node, aten.add.Tensor, (x, y))
    return f"{operator_name(node)} -> a product and a sum"


ENDS = "ends_are_not_finite"
"""What a node's meta has where it goes from one value to another, and one is not finite on the example."""


def keep_ends(module: GraphModule, inputs: Sequence[Tensor]) -> None:
    """Mark what interpolates between values that are not finite on the example, whose spellings have other results.

    (1 - a) inf + a y is infinite, and inf + a (y - inf) is NaN.
    """
    sites = {node for node in module.graph.nodes if node.target in LERPS or _interpolates(node)}
    met = names_that_meet(module, inputs, sites)
    for node in sites:
        if node.name in met:
            node.meta[ENDS] = True


def _interpolates(node: Node) -> bool:
    """Return whether a node may be x + a (y - x)."""
    products = [one for one in node.all_input_nodes if one.target is aten.mul.Tensor]
    return node.target is aten.add.Tensor and any(
        _is_difference(one, x) for product in products for one in product.args for x in node.args
    )


def total(module: GraphModule, node: Node) -> str | None:
    """Spell an interpolation as a sum of both ends, and a product with its bias as a layer."""
    return _interpolation(module, node) or _biased(module, node)


def _interpolation(module: GraphModule, node: Node) -> str | None:
    """Spell an interpolation with a constant share as a sum of both ends, which layers take in."""
    for x, product in (node.args[:2], node.args[1::-1]) if ENDS not in node.meta else ():
        if not isinstance(product, Node) or product.target is not aten.mul.Tensor or len(product.users) > 1:
            continue
        for share, difference in (product.args, product.args[::-1]):
            emit = Emitter(module, node)
            rest = None if node.kwargs or not _is_difference(difference, x) else _rest(emit, share)
            if rest is None:
                continue
            y = difference.args[0]  # type: ignore[union-attr]  # a node, as asked above
            put(module, node, aten.add.Tensor, (emit(aten.mul.Tensor, x, rest), emit(aten.mul.Tensor, y, share)))
            return "x + a (y - x) -> (1 - a) x + a y"
    return None


def _rest(emit: Emitter, share: object) -> Node | float | None:
    """1 - a for a constant share a; None for another."""
    value = constant(emit.module, share)
    if value is None:
        return 1 - share if isinstance(share, float) else None
    return emit.constant(f"{site(emit.before)}.rest", 1 - value)


def _is_difference(node: object, x: object) -> bool:
    """Return whether a node is y - x, and read once."""
    if not isinstance(node, Node) or node.target is not aten.sub.Tensor or len(node.users) > 1 or node.kwargs:
        return False
    return node.args[1] is x and isinstance(node.args[0], Node)


def _biased(module: GraphModule, node: Node) -> str | None:
    """Spell x W + b with constant W and b as a linear layer."""
    for product, bias in (node.args[:2], node.args[1::-1]):
        if not isinstance(product, Node) or len(product.users) > 1 or node.kwargs:
            continue
        if product.target is aten.linear.default:
            if (note := _layer_with_bias(module, node, product, bias)) is not None:
                return note
            continue
        if product.target not in (aten.matmul.default, aten.mm.default):
            continue
        weight, shift = constant(module, product.args[1]), constant(module, bias)
        if weight is None or shift is None or weight.dim() != 2 or shift.dim() != 1 or len(shift) != weight.shape[1]:
            continue
        if {weight.dtype, shift.dtype} != {val(node).dtype}:
            continue
        if rank(product.args[0]) < 2 or constant(module, product.args[0]) is not None:
            continue
        w = Emitter(module, node).constant(f"{site(node)}.weight", weight.t().contiguous())
        put(module, node, aten.linear.default, (product.args[0], w, bias))
        return "x W + b -> linear"
    return None


def _layer_with_bias(module: GraphModule, node: Node, layer: Node, bias: object) -> str | None:
    """Put a constant vector that is added to a linear layer without a bias into it."""
    x, weight, own = arguments(layer)
    shift, held = constant(module, bias), constant(module, weight)
    if own is not None or shift is None or held is None or shift.shape != held.shape[:1]:
        return None
    if shift.dtype != val(node).dtype:
        return None
    put(module, node, aten.linear.default, (x, weight, bias))
    return "linear and a bias -> linear"


def silu(module: GraphModule, node: Node) -> str | None:
    """Spell x sigmoid(x) as one operator."""
    for x, gate in (node.args[:2], node.args[1::-1]):
        if isinstance(gate, Node) and gate.target is aten.sigmoid.default and gate.args[0] is x and not node.kwargs:
            put(module, node, aten.silu.default, (x,))
            return "x sigmoid(x) -> silu"
    return None


def sum_of_stack(module: GraphModule, node: Node) -> str | None:
    """Add up what is stacked only to be added up."""
    stack, axes, keepdim, dtype = arguments(node)
    if stack.target is not aten.stack.default or len(stack.users) > 1 or keepdim or dtype is not None:
        return None
    values, axis = arguments(stack)
    if [a % rank(stack) for a in axes or ()] != [axis % rank(stack)] or not val(node).is_floating_point():
        return None
    emit = Emitter(module, node)
    result, *others = values
    for value in others:
        result = emit(aten.add.Tensor, result, value)
    if node.target is aten.mean.dim:
        result = emit(aten.div.Tensor, result, float(len(values)))
    replace(node, result)
    return f"a stack of {len(values)}, summed -> a sum"


def gate_of_means(module: GraphModule, node: Node) -> str | None:
    """Leave the means of a map a map [B, C, 1, 1], where layers on [B, C] lie between them and what they gate."""
    if rank(node) != 4 or list(val(node).shape[2:]) != [1, 1]:
        return None
    chain: list[Node] = []
    vector: Any = node.args[0]
    if node.target is aten.unsqueeze.default and isinstance(vector, Node) and vector.target is aten.unsqueeze.default:
        vector = vector.args[0]
    while isinstance(vector, Node) and rank(vector) == 2 and len(vector.users) == 1:
        if vector.target not in _ON_VECTORS:
            break
        chain.append(vector)
        vector = vector.args[0]
    if not chain or not isinstance(vector, Node) or vector.target is not aten.mean.dim or len(vector.users) > 1:
        return None
    x, axes, keepdim, dtype = arguments(vector)
    if rank(x) != 4 or sorted(axis % 4 for axis in axes) != [2, 3] or keepdim or dtype is not None:
        return None
    layers = [one for one in chain if one.target is aten.linear.default]
    if any(constant(module, one.args[1]) is None for one in layers):
        return None
    emit = Emitter(module, node)
    y = emit(aten.mean.dim, x, [2, 3], True)
    for one in reversed(chain):
        y = _on_maps(emit, one, y)
    replace(node, y)
    return "layers on the means of a map -> convolutions"


def _on_maps(emit: Emitter, node: Node, x: Node) -> Node:
    """Emit an operator on vectors [B, C] on maps [B, C, 1, 1]."""
    if node.target is not aten.linear.default:
        return emit(node.target, x, *node.args[1:], **node.kwargs)
    _, weight, bias = arguments(node)
    value = constant(emit.module, weight)
    assert value is not None
    kernel = emit.constant(f"{site(node)}.kernel", value[:, :, None, None])
    return emit(aten.conv2d.default, x, kernel, *([bias] if bias is not None else []))


def put(module: GraphModule, node: Node, target: Any, args: tuple[Any, ...]) -> None:
    """Put another operator with the same value in a node's place."""
    with module.graph.inserting_before(node):
        new = module.graph.call_function(target, args)
    new.meta.update(node.meta)
    replace(node, new)


def reshaping(before: Sequence[Any], after: Sequence[Any]) -> tuple[Any, ...]:
    """The operator that reshapes in this spelling, and its arguments after the value."""
    kept = all(statically_known_true(a == b) for a, b in zip(before[:2], after[:2], strict=False))
    known = all(isinstance(n, int) for n in (*before[2:], *after[2:]))
    if not kept or not known or min(len(before), len(after)) != 3 or len(before) == len(after):
        return aten.reshape.default, list(after)
    return (aten.flatten.using_ints, 2) if len(after) == 3 else (aten.unflatten.int, 2, list(after[2:]))


LERPS = (aten.lerp.Tensor, aten.lerp.Scalar)
PRODUCTS = (aten.baddbmm.default, aten.addmm.default)
_ON_VECTORS = frozenset(
    {
        aten.linear.default,
        aten.sigmoid.default,
        aten.relu.default,
        aten.silu.default,
        aten.gelu.default,
        aten.hardsigmoid.default,
        aten.hardswish.default,
        aten.tanh.default,
    }
)

RULES = {
    aten.bmm.default: product_of_batches,
    aten.addcmul.default: sum_of_product,
    **dict.fromkeys((*LERPS, *PRODUCTS), sum_of_product),
    aten.add.Tensor: total,
    aten.mul.Tensor: silu,
    aten.sum.dim_IntList: sum_of_stack,
    aten.unsqueeze.default: gate_of_means,
}
