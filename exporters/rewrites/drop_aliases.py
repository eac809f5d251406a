"""PyTorch's second names for an operator become its first, which is the one that other rewrites know.

    multiply, true_divide, subtract, concat, clip ...       ->  mul, div, sub, cat, clamp ...
    x.mT, x.T, movedim, moveaxis, swapaxes, swapdims, t     ->  transpose, permute
    einsum of one operand that only orders its axes         ->  permute
    narrow(x, d, start, n)                                  ->  slice(x, d, start, start + n)
    clamp(x, 0), clamp_min(x, 0), maximum(x, 0)             ->  relu(x)
    var_mean(x), std_mean(x)                                ->  var(x) and mean(x),  std(x) and mean(x)
    inner(x, W), tensordot over one axis of W               ->  matmul
    tensordot(stack(x, y, ...), w)                          ->  w_0 x + w_1 y + ...
    addcmul(x, a, b)                                        ->  x + a * b
    x sigmoid(x),  x (1 + erf(x / sqrt(2))) / 2             ->  silu(x),  gelu(x)
    logsumexp apart, a softmax: exp(x - m) / sum exp(x - m) ->  softmax(x), m the same along the row
    exp(x_i - m) / (sum exp(x_1 - m) + sum exp(x_2 - m))    ->  a split of softmax([x_1 | x_2])

It runs first: a capture keeps whichever name the code has.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, operator_name, rank, replace, val
from edgesmith.exporters.rewrites.canonicalise_layers import silu, sum_of_product
from edgesmith.exporters.rewrites.rewrite import rewrites

ROUNDED = 1e-6
"""The error of a literal that stands for a root."""

_NAMES: dict[Any, Any] = {
    aten.multiply.Tensor: aten.mul.Tensor,
    aten.multiply.Scalar: aten.mul.Scalar,
    aten.divide.Tensor: aten.div.Tensor,
    aten.divide.Scalar: aten.div.Scalar,
    aten.true_divide.Tensor: aten.div.Tensor,
    aten.true_divide.Scalar: aten.div.Scalar,
    aten.subtract.Tensor: aten.sub.Tensor,
    aten.negative.default: aten.neg.default,
    aten.absolute.default: aten.abs.default,
    aten.concat.default: aten.cat.default,
    aten.concatenate.default: aten.cat.default,
    aten.clip.default: aten.clamp.default,
    aten.clip.Tensor: aten.clamp.Tensor,
    aten.special_softmax.default: aten.softmax.int,
    aten.special_expit.default: aten.sigmoid.default,
    aten.special_erf.default: aten.erf.default,
    aten.special_expm1.default: aten.expm1.default,
    aten.special_log1p.default: aten.log1p.default,
    aten.greater.Scalar: aten.gt.Scalar,
    aten.greater.Tensor: aten.gt.Tensor,
    aten.greater_equal.Scalar: aten.ge.Scalar,
    aten.greater_equal.Tensor: aten.ge.Tensor,
    aten.less.Scalar: aten.lt.Scalar,
    aten.less.Tensor: aten.lt.Tensor,
    aten.less_equal.Scalar: aten.le.Scalar,
    aten.less_equal.Tensor: aten.le.Tensor,
    aten.swapaxes.default: aten.transpose.int,
    aten.swapdims.default: aten.transpose.int,
    aten.linalg_matmul.default: aten.matmul.default,
}
"""Names with the same arguments."""


def _first_name(module: GraphModule, node: Node) -> str:
    _put(node, Emitter(module, node)(_NAMES[node.target], *node.args, **node.kwargs))
    return f"{operator_name(node)} -> {_NAMES[node.target]}"


def _last_two(module: GraphModule, node: Node) -> str | None:
    """mT, and T and t of what has two axes."""
    if rank(node) < 2 or (node.target is aten.numpy_T.default and rank(node) != 2):
        return None
    _put(node, Emitter(module, node)(aten.transpose.int, node.args[0], rank(node) - 2, rank(node) - 1))
    return f"{operator_name(node)} -> transpose"


def _moved(module: GraphModule, node: Node) -> str | None:
    """One axis or several at another place."""
    x, *both = arguments(node)
    sources, places = ([one] if isinstance(one, int) else list(one) for one in both)
    dims = rank(node)
    order = [axis for axis in range(dims) if axis not in {source % dims for source in sources}]
    for place, source in sorted((p % dims, s % dims) for p, s in zip(places, sources, strict=True)):
        order.insert(place, source)
    _put(node, Emitter(module, node)(aten.permute.default, x, order))
    return f"{operator_name(node)} -> permute"


def _ordered(module: GraphModule, node: Node) -> str | None:
    """An einsum that neither multiplies nor sums."""
    equation, operands = arguments(node)[:2]
    before, arrow, after = str(equation).replace(" ", "").partition("->")
    if len(operands) != 1 or not arrow or sorted(before) != sorted(after) or len(set(before)) != rank(node):
        return None
    _put(node, Emitter(module, node)(aten.permute.default, operands[0], [before.index(x) for x in after]))
    return "einsum -> permute"


def _narrow(module: GraphModule, node: Node) -> str | None:
    x, axis, start, length = arguments(node)
    size = val(x).shape[axis]
    if not all(isinstance(n, int) for n in (start, length, size)):
        return None
    start %= size
    _put(node, Emitter(module, node)(aten.slice.Tensor, x, axis, start, start + length))
    return "narrow -> slice"


def _rectified(module: GraphModule, node: Node) -> str | None:
    """A floor of 0."""
    for x, *floor in (node.args, node.args[::-1]) if node.target is aten.maximum.default else (arguments(node),):
        held = constant(module, floor[0])
        least = held.item() if held is not None and held.numel() == 1 else floor[0]
        if isinstance(least, Node) or least is None or least != 0 or any(one is not None for one in floor[1:]):
            continue
        same = isinstance(x, Node) and val(x).shape == val(node).shape and val(x).dtype == val(node).dtype
        if same and val(node).is_floating_point():
            _put(node, Emitter(module, node)(aten.relu.default, x))
            return f"{operator_name(node)} at 0 -> relu"
    return None


def _moments(module: GraphModule, node: Node) -> str | None:
    """Both of variance, or deviation, and mean."""
    x, axes, *rest = arguments(node)
    if any(user.target is not operator.getitem for user in node.users) or not val(x).is_floating_point():
        return None
    if node.target in (aten.var_mean.dim, aten.std_mean.dim):
        correction, keeps = int(rest[0]), rest[1]
    else:
        correction, keeps = 1 if rest[0] is None else rest[0], rest[1]
    is_var = node.target in (aten.var_mean.correction, aten.var_mean.dim)
    spread = aten.var.correction if is_var else aten.std.correction
    axes = axes or list(range(rank(x)))
    for user in list(node.users):
        emit = Emitter(module, user)
        if user.args[1] == 0:
            _put(user, emit(spread, x, axes, correction=correction, keepdim=keeps))
        else:
            _put(user, emit(aten.mean.dim, x, axes, keeps))
    return f"{operator_name(node)} -> two operators"


def _product(module: GraphModule, node: Node) -> str | None:
    """A product over the last axis of both, or over one axis of a matrix."""
    x, weight, *axes = arguments(node)
    if node.target is aten.tensordot.default:
        if (note := _weighted(module, node)) is not None:
            return note
        of_x, of_weight = axes[:2]
        if len(of_x) != 1 or of_x[0] % rank(x) != rank(x) - 1 or any(one is not None for one in axes[2:]):
            return None
        turns = of_weight[0] % rank(weight) == 1
    else:
        turns = True
    if rank(weight) != 2 or rank(x) < 2:
        return None
    emit = Emitter(module, node)
    matrix = emit(aten.transpose.int, weight, 0, 1) if turns else weight
    _put(node, emit(aten.matmul.default, x, matrix))
    return f"{operator_name(node)} -> matmul"


def _weighted(module: GraphModule, node: Node) -> str | None:
    """A weighted sum of what is stacked for it, by a constant vector."""
    stack, weight, of_stack, _, *_ = arguments(node)
    held = constant(module, weight)
    if stack.target is not aten.stack.default or len(stack.users) > 1 or held is None or held.dim() != 1:
        return None
    values, axis = arguments(stack)
    if [one % rank(stack) for one in of_stack] != [axis % rank(stack)] or held.dtype != val(node).dtype:
        return None
    emit = Emitter(module, node)
    terms = [emit(aten.mul.Tensor, x, float(w)) for x, w in zip(values, held.tolist(), strict=True) if w]
    total = terms[0] if terms else emit(aten.mul.Tensor, values[0], 0.0)
    for term in terms[1:]:
        total = emit(aten.add.Tensor, total, term)
    _put(node, total)
    return f"a weighted sum of a stack of {len(values)} -> products and sums"


def _gate(module: GraphModule, node: Node) -> str | None:
    return silu(module, node) or _gelu(module, node)


def _gelu(module: GraphModule, node: Node) -> str | None:
    """X (1 + erf(x / sqrt(2))) / 2 in any order of its factors."""
    factors, number = _factors(node)
    curved = [one for one in factors if one.target is aten.add.Tensor and _erf_of(one) is not None]
    if len(factors) != 2 or len(curved) != 1 or abs(number - 0.5) > ROUNDED or not val(node).is_floating_point():
        return None
    (total,) = curved
    x = factors[1 - factors.index(total)]
    inner, scale = _factors(_erf_of(total))  # type: ignore[arg-type]  # asked above
    if inner != [x] or abs(scale - 0.5**0.5) > ROUNDED or val(x).shape != val(node).shape:
        return None
    _put(node, Emitter(module, node)(aten.gelu.default, x))
    return "x (1 + erf(x / sqrt(2))) / 2 -> gelu(x)"


def _erf_of(total: Node) -> Node | None:
    """The value z of 1 + erf(z); None for another sum."""
    other = next((one for one in total.args if isinstance(one, Node) and one.target is aten.erf.default), None)
    is_one = len(total.args) == 2 and any(isinstance(one, int | float) and one == 1 for one in total.args)
    inner = other.args[0] if other is not None and is_one and not total.kwargs else None
    return inner if isinstance(inner, Node) else None


def _factors(node: Node) -> tuple[list[Node], float]:
    """The values that a product is of, and the number."""
    if node.target not in (aten.mul.Tensor, aten.div.Tensor) or node.kwargs:
        return [node], 1.0
    found: list[Node] = []
    number = 1.0
    for i, one in enumerate(node.args[:2]):
        if isinstance(one, Node):
            if i == 1 and node.target is aten.div.Tensor:
                return [node], 1.0
            more, factor = _factors(one)
            found, number = found + more, number * factor
        elif isinstance(one, int | float):
            number = number / one if node.target is aten.div.Tensor and one else number * one
    return found, number


def _softmax(module: GraphModule, node: Node) -> str | None:
    """A softmax by hand, of one value or of several that share a total."""
    total = node.args[1]
    found = _summed(total) if isinstance(total, Node) and not node.kwargs else None
    if found is None or not isinstance(node.args[0], Node):
        return None
    parts = [node.args[0] if _is_again(node.args[0], part) else part for part in found[0]]
    if node.args[0] not in parts:
        return None
    axis, emit = found[1], Emitter(module, node)
    scores: list[Any] = [part.args[0] for part in parts]
    shifts = {one.args[1] if isinstance(one, Node) and one.target is aten.sub.Tensor else None for one in scores}
    (shift,) = shifts if len(shifts) == 1 else (None,)
    if isinstance(shift, Node) and _is_of_rows(shift, scores[0], axis):
        scores = [one.args[0] for one in scores]
    if len(scores) == 1:
        replace(node, emit(aten.softmax.int, scores[0], axis))
        return "exp(x) / sum(exp(x)) -> softmax(x)"
    readers = [user for user in total.users if user.target is aten.div.Tensor and user.args[1] is total]  # type: ignore[union-attr]  # a node
    if any(reader.args[0] not in parts for reader in readers):
        return None
    emit = Emitter(module, min(readers, key=list(module.graph.nodes).index))
    whole = emit(aten.softmax.int, emit(aten.cat.default, scores, axis), axis)
    split = emit(aten.split_with_sizes.default, whole, [int(val(part).shape[axis]) for part in parts], axis)
    for reader in readers:
        replace(reader, emit(operator.getitem, split, list[Any](parts).index(reader.args[0])))
    return f"{len(parts)} values under one total -> softmax"


def _is_again(one: Node, other: Node) -> bool:
    """Return whether two exponentials are of the same value."""
    return one is other or (one.target is other.target is aten.exp.default and one.args == other.args)


def _summed(total: Node) -> tuple[list[Node], int] | None:
    """The exponentials whose sums over one axis are added up, and that axis; None for another total."""
    parts: list[Node] = []
    found: set[int] = set()
    queue: list[Any] = [total]
    while queue:
        node = queue.pop(0)
        if isinstance(node, Node) and node.target is aten.add.Tensor and not node.kwargs:
            queue = [*node.args, *queue]
            continue
        if not isinstance(node, Node) or node.target is not aten.sum.dim_IntList:
            return None
        x, axes, keeps, dtype = arguments(node)
        if not keeps or dtype is not None or len(axes or ()) != 1 or x.target is not aten.exp.default:
            return None
        parts.append(x)
        found.add(axes[0] % rank(x))
    if len(found) != 1 or len({*parts}) != len(parts) or not all(val(part).is_floating_point() for part in parts):
        return None
    (axis,) = found
    sizes = [[n for i, n in enumerate(val(part).shape) if i != axis] for part in parts]
    lengths = [val(part).shape[axis] for part in parts]
    if any(str(one) != str(sizes[0]) for one in sizes) or not all(isinstance(n, int) for n in lengths):
        return None
    return parts, axis


def _is_of_rows(shift: Node, difference: Node, axis: int) -> bool:
    """Return whether what a difference takes off is the same along an axis, and makes its value no larger."""
    x, dims = difference.args[0], rank(difference)
    if not isinstance(x, Node) or str(list(val(x).shape)) != str(list(val(difference).shape)) or difference.kwargs:
        return False
    at = axis - (dims - rank(shift))
    return at < 0 or val(shift).shape[at] == 1


def _put(node: Node, by: Node) -> None:
    by.meta.update(node.meta)
    replace(node, by)


_RULES: dict[Any, Callable[[GraphModule, Node], str | None]] = {
    **dict.fromkeys(_NAMES, _first_name),
    aten.mT.default: _last_two,
    aten.t.default: _last_two,
    aten.numpy_T.default: _last_two,
    aten.movedim.int: _moved,
    aten.movedim.intlist: _moved,
    aten.moveaxis.int: _moved,
    aten.moveaxis.intlist: _moved,
    aten.einsum.default: _ordered,
    aten.narrow.default: _narrow,
    aten.clamp.default: _rectified,
    aten.clip.default: _rectified,
    aten.clamp_min.default: _rectified,
    aten.maximum.default: _rectified,
    aten.var_mean.dim: _moments,
    aten.var_mean.correction: _moments,
    aten.std_mean.dim: _moments,
    aten.std_mean.correction: _moments,
    aten.inner.default: _product,
    aten.tensordot.default: _product,
    aten.div.Tensor: _softmax,
    aten.addcmul.default: sum_of_product,
    aten.mul.Tensor: _gate,
}


@rewrites(*_RULES, rule="a second name of an operator -> its first", until_stable=True)
def drop_aliases(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See the table above. There are no near misses."""
    return _RULES[node.target](module, node)
