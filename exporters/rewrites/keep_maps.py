"""Positions with their channels behind, [B, N, C] or [B, H, W, C], stay maps [B, C, H, W] between two convolutions.

    transpose(flatten(x, 2)), permute(x, to the back)       ->  x, and from there on
    linear(t)                                               ->  conv1x1(x)
    layer_norm(t)                                           ->  channel_norm(x)
    relu(t), t + u, t * c, mean over positions ...          ->  the same of the maps, constants laid out once
    M t, a matrix over the positions                        ->  flatten(x) M', as a map again
    heads of t, [B, h, N, d]                                ->  transpose(reshape(x, [B, h, d, N]))
    joined heads, flatten(transpose(z [B, h, N, d]))        ->  reshape(transpose(z), [B, C, H, W])
    transpose(t), permute(t, to the front)                  ->  x

A model that goes to and fro around every convolution then moves nothing. What reads the positions in another way gets
them from the map; where that would be as often as the model itself goes to and fro, everything is left as it is.
Exact, but for the order of sums.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    changed,
    constant,
    operators,
    rank,
    replace,
    same_shape,
    site,
    sweep,
    val,
)
from edgesmith.exporters.rewrites.rewrite import Fired, searches
from edgesmith.kernels import channel_norm

_UNARY = frozenset(
    {
        *(aten.relu.default, aten.gelu.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default),
        *(aten.pow.Tensor_Scalar, aten.square.default, aten.hardswish.default, aten.sqrt.default, aten.rsqrt.default),
        *(aten.leaky_relu.default, aten.clamp.default, aten.neg.default, aten.abs.default, aten.exp.default),
    }
)
_BINARY = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})


@searches(rule="[B, N, C] between convolutions -> maps [B, C, H, W], laid out once")
def keep_maps(module: GraphModule, costs: Costs) -> Iterator[Fired]:
    """See the table above. There are no near misses."""
    found = _Layout(module)
    for node in operators(module):
        if all(isinstance(n, int) for n in _shape(node)):
            found.visit(node)
    if len(found.ends) > len(found.exits()) and not found.has_norms_alone():
        moved = len(found.ends)
        where = site(*[node for node, _ in found.ends])
        found.commit()
        yield Fired(where, f"{moved} ways back to maps -> none, {len(found.maps)} operators on maps")
    sweep(module)


def _shape(node: Node) -> tuple[Any, ...]:
    """The sizes of a value after the batch; nothing for what is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


@dataclass
class _Layout:
    """The maps that take the place of values.

    Attributes:
        maps: from a value with its channels behind to the map that it is of.
        starts: values that are made of their map by moving it alone.
        ends: values that are not of that layout, with what they are of the maps; in order.
        sizes: H and W of the maps of so many positions.
        neutral: values [B, 1, ...], which are the same in every layout, with those of the maps.
        packed: from queries, keys and values in one to the split of their map.
    """

    module: GraphModule
    maps: dict[Node, Node] = field(default_factory=dict)
    starts: set[Node] = field(default_factory=set)
    ends: list[tuple[Node, Node]] = field(default_factory=list)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    neutral: dict[Node, Node] = field(default_factory=dict)
    packed: dict[Node, Node] = field(default_factory=dict)

    def visit(self, node: Node) -> None:
        """Find the map of a value, or what it is of maps, where it reads some."""
        for rule in _RULES.get(node.target, ()):
            if rule(self, node):
                return
        if node.target in _UNARY:
            self._unary(node)
        elif node.target in _BINARY:
            self._binary(node)

    def emitter(self, node: Node) -> Emitter:
        """Return an emitter of what takes the place of a node."""
        return Emitter(self.module, node)

    def exits(self) -> list[Node]:
        """Return the values that something else reads too."""
        ended = {node for node, _ in self.ends}
        known = self.maps.keys() | self.neutral.keys() | ended | self._inner()
        of_layout = [node for node in self.maps if node not in self.starts]
        return [node for node in of_layout if any(user not in known and not _is_new(user) for user in node.users)]

    def has_norms_alone(self) -> bool:
        """Return whether nothing is computed but layer norms, which `fuse_channel_norm` takes with what is around."""
        computed = [node for node in self.maps if node not in self.starts]
        return all(node.target is aten.layer_norm.default for node in computed)

    def _inner(self) -> set[Node]:
        """Values on the way from one of the layout to an end, which die with it."""
        inner: set[Node] = set()
        for node, _ in self.ends:
            step = node
            while step.all_input_nodes and (step := step.all_input_nodes[0]) not in self.maps:
                inner.add(step)
        return inner

    def commit(self) -> None:
        """Let the maps be read instead of the values."""
        bridges = []
        for node in self.exits():  # all before anything is swept: a map may be read by its bridge alone
            of = self.maps[node]
            bridges.append((node, _behind(Emitter(self.module, node), of, rank(node))))
        for node, by in self.ends:
            replace(node, by)
        for node, by in bridges:
            replace(node, by)
        sweep(self.module)

    # moves

    def _start(self, node: Node) -> bool:
        """[B, C, H, W] -> [B, N, C] or [B, H, W, C]."""
        x = node.args[0]
        if not isinstance(x, Node):
            return False
        if node.target is aten.permute.default and rank(node) != 3:
            source = x if _order(node) == [0, 2, 3, 1] else None
        else:
            swaps = _axes(node) == {1, 2} or _order(node) == [0, 2, 1]
            is_flat = swaps and rank(node) == 3 and x.target is aten.flatten.using_ints
            source = x.args[0] if is_flat and arguments(x)[1] == 2 else None  # type: ignore[assignment]  # a node
        if not isinstance(source, Node) or rank(source) != 4 or source in self.maps:
            return False
        self._put(node, source)
        self.starts.add(node)
        return True

    def _end(self, node: Node) -> bool:
        """[B, N, C] -> [B, C, N], [B, H, W, C] -> [B, C, H, W]."""
        of = self.maps.get(node.args[0])  # type: ignore[arg-type]  # anything
        if of is None:
            return False
        if node.target is aten.permute.default and rank(node) == 4:
            by = of if _order(node) == [0, 3, 1, 2] else None
        else:
            moves = _axes(node) == {1, 2} if node.target is aten.transpose.int else _order(node) == [0, 2, 1]
            by = self.emitter(node)(aten.flatten.using_ints, of, 2) if rank(node) == 3 and moves else None
        if by is not None:
            self.ends.append((node, by))
        return by is not None

    def _flatten(self, node: Node) -> bool:
        """[B, H, W, C] -> [B, N, C], and back."""
        of = self.maps.get(node.args[0])  # type: ignore[arg-type]  # anything
        if of is None:
            return False
        batch, channels, height, width = val(of).shape
        if tuple(val(node).shape) in ((batch, height * width, channels), (batch, height, width, channels)):
            self._put(node, of)
            return True
        return False

    def _heads(self, node: Node) -> bool:
        """[B, N, h d] -> [B, N, h, d] -> [B, h, N, d]."""
        x = node.args[0]
        of = self.maps.get(x.args[0]) if isinstance(x, Node) and x.args else None  # type: ignore[arg-type]  # anything
        if of is None or not isinstance(x, Node) or x in self.maps or _sizes_of_reshape(x) is None:
            return False
        batch, positions, *heads = val(x).shape
        swaps = _axes(node) == {1, 2} if node.target is aten.transpose.int else _order(node) == [0, 2, 1, 3]
        if len(heads) != 2 or not swaps or positions != self._positions(of):
            return False
        self.ends.append((node, self._as_heads(node, of, [batch, *heads, positions])))
        return True

    def _packed_heads(self, node: Node) -> bool:
        """[B, N, 3 h d] -> [B, N, 3, h, d] -> [3, B, h, N, d] -> one of [B, h, N, d]."""
        unbound, index = node.args
        permuted = unbound.args[0] if isinstance(unbound, Node) and unbound.target is aten.unbind.int else None
        if not isinstance(permuted, Node) or permuted.target is not aten.permute.default:
            return False
        x = permuted.args[0]
        of = self.maps.get(x.args[0]) if isinstance(x, Node) and x.args else None  # type: ignore[arg-type]  # anything
        if of is None or not isinstance(x, Node) or _order(permuted) != [2, 0, 3, 1, 4] or rank(x) != 5:
            return False
        batch, positions, parts, heads, width = val(x).shape
        if positions != self._positions(of) or arguments(unbound)[1] != 0:  # type: ignore[arg-type]  # a node
            return False
        emit = self.emitter(node)
        if x not in self.packed:
            self.packed[x] = emit(aten.split_with_sizes.default, of, [heads * width] * parts, 1)
        part = emit(operator.getitem, self.packed[x], index)
        self.ends.append((node, self._as_heads(node, part, [batch, heads, width, positions])))
        return True

    def _as_heads(self, node: Node, of: Node, shape: list[int]) -> Node:
        emit = self.emitter(node)
        return emit(aten.transpose.int, emit(aten.reshape.default, of, shape), 2, 3)

    def _joined(self, node: Node) -> bool:
        """[B, h, N, d] -> [B, N, h, d] -> [B, N, h d]."""
        x = node.args[0]
        if not isinstance(x, Node) or x.target not in (aten.transpose.int, aten.permute.default) or rank(x) != 4:
            return False
        swaps = _axes(x) == {1, 2} if x.target is aten.transpose.int else _order(x) == [0, 2, 1, 3]
        batch, positions, heads, width = val(x).shape
        sizes = self.sizes.get(positions) if isinstance(positions, int) else None
        joined = {(batch, *layout, heads * width) for layout in ((positions,), sizes or ())}
        if not swaps or sizes is None or tuple(val(node).shape) not in joined:
            return False
        emit = self.emitter(node)
        turned = emit(aten.transpose.int, x.args[0], 2, 3)  # [B, h, d, N]
        self._put(node, emit(aten.reshape.default, turned, [batch, heads * width, *sizes]))
        return True

    # what computes

    def _linear(self, node: Node) -> bool:
        x, weight, bias = arguments(node)
        of, held = self.maps.get(x), constant(self.module, weight)
        if of is None or held is None or (bias is not None and constant(self.module, bias) is None):
            return False
        emit = self.emitter(node)
        kernel = emit.constant(f"{site(node)}.weight", held[:, :, None, None])
        self._put(node, emit(aten.conv2d.default, of, kernel, bias))
        return True

    def _norm(self, node: Node) -> bool:
        x, sizes, weight, bias, eps, _ = arguments(node)
        of = self.maps.get(x)
        if (
            of is None
            or len(sizes) != 1
            or any(w is not None and constant(self.module, w) is None for w in (weight, bias))
        ):
            return False
        emit = self.emitter(node)
        weight = weight if weight is not None else emit.constant(f"{site(node)}.weight", _filled(node, sizes[0], 1.0))
        bias = bias if bias is not None else emit.constant(f"{site(node)}.bias", _filled(node, sizes[0], 0.0))
        self._put(node, emit(channel_norm.OP.overload, of, weight, bias, eps))
        return True

    def _mixed(self, node: Node) -> bool:
        """One matrix over the positions, M t."""
        if node.target is aten.einsum.default:
            equation, operands = node.args[:2]
            matrix, x = operands if isinstance(operands, list | tuple) and len(operands) == 2 else (None, None)
            letters = "".join(str(equation).split())
            m, n, b, c = (*letters[:2], *letters[3:4], *letters[5:6]) if len(letters) == 11 else "    "
            if letters != f"{m}{n},{b}{n}{c}->{b}{m}{c}":
                return False
            held = constant(self.module, matrix)
        elif node.target is aten.conv1d.default:  # the same in the spelling of `canonicalise`
            x, kernel, bias, *rest = arguments(node)
            held = constant(self.module, kernel)
            if held is None or bias is not None or held.shape[2] != 1 or rest != [[1], [0], [1], 1]:
                return False
            held = held[:, :, 0]
        else:
            matrix, x = node.args
            if matrix in self.maps:
                return self._product(node, matrix, x)
            held = constant(self.module, matrix)
        of = self.maps.get(x)  # type: ignore[arg-type]  # anything
        if of is None or held is None or held.dim() != 2 or rank(node) != 3 or not same_shape(val(x), val(node)):
            return False
        emit = self.emitter(node)
        turned = emit.constant(f"{site(node)}.matrix", held.t())
        mixed = emit(aten.matmul.default, emit(aten.flatten.using_ints, of, 2), turned)
        self._put(node, emit(aten.unflatten.int, mixed, 2, list(val(of).shape[2:])))
        return True

    def _product(self, node: Node, x: Any, weight: Any) -> bool:
        """A linear layer without a bias, t W."""
        held = constant(self.module, weight)
        if held is None or held.dim() != 2:
            return False
        emit = self.emitter(node)
        kernel = emit.constant(f"{site(node)}.weight", held.t()[:, :, None, None].contiguous())
        self._put(node, emit(aten.conv2d.default, self.maps[x], kernel))
        return True

    def _mean(self, node: Node) -> bool:
        x, axes, keepdim, dtype = arguments(node)
        of = self.maps.get(x)
        if of is None or dtype is not None or not axes:
            return False
        wanted = sorted(axis % rank(x) for axis in axes)
        emit = self.emitter(node)
        if wanted == list(range(1, rank(x) - 1)) and not keepdim:
            self.ends.append((node, emit(aten.mean.dim, of, [2, 3], False)))
        elif wanted == [rank(x) - 1] and keepdim:
            self._put(node, emit(aten.mean.dim, of, [1], True))
        elif wanted == [1, 2, 3] and keepdim and rank(x) == 4:
            self.neutral[node] = emit(aten.mean.dim, of, wanted, True)
        else:
            return False
        return True

    def _split(self, node: Node) -> bool:
        """Of channels; the parts come with `getitem`."""
        x, sizes, axis = arguments(node)
        if x in self.maps and axis % rank(x) == rank(x) - 1:
            self.maps[node] = self.emitter(node)(aten.split_with_sizes.default, self.maps[x], sizes, 1)
            return True
        return False

    def _part(self, node: Node) -> bool:
        whole, index = node.args
        if not isinstance(whole, Node) or whole not in self.maps:
            return False
        self._put(node, self.emitter(node)(operator.getitem, self.maps[whole], index))
        return True

    def _unary(self, node: Node) -> None:
        x = node.args[0]
        for known in (self.maps, self.neutral):
            if isinstance(x, Node) and x in known:
                known[node] = self.emitter(node)(node.target, known[x], *node.args[1:], **node.kwargs)

    def _binary(self, node: Node) -> None:
        given, known = node.args[:2], [*self.maps, *self.neutral]
        if not any(isinstance(x, Node) and x in known for x in given):
            return
        emit = self.emitter(node)
        operands = [self._operand(node, x, emit) for x in given]
        if None in operands:
            return
        new = emit(node.target, *operands, *node.args[2:], **node.kwargs)
        (self.maps if any(x in self.maps for x in given) else self.neutral)[node] = new

    def _operand(self, node: Node, x: Any, emit: Emitter) -> Any:
        """Return an operand as it stands beside maps; None where it does not."""
        if not isinstance(x, Node):
            return x
        if x in self.neutral:
            return self.neutral[x]
        if x in self.maps:
            return self.maps[x] if rank(x) == rank(node) and same_shape(val(x), val(node)) else self._thin(node, x)
        held = constant(self.module, x)
        if held is None or held.dim() > rank(node):
            return None
        if held.numel() == 1:
            return x
        full = held.reshape((1,) * (rank(node) - held.dim()) + tuple(held.shape))
        if rank(node) == 4:
            return emit.constant(f"{site(node)}.{x.name}", full.permute(0, 3, 1, 2))
        turned = full.transpose(1, 2)
        sizes = self.sizes.get(turned.shape[2], (1, 1)) if turned.shape[2] > 1 else (1, 1)
        return emit.constant(f"{site(node)}.{x.name}", turned.reshape(*turned.shape[:2], *sizes))

    def _thin(self, node: Node, x: Node) -> Node | None:
        """Return a map of one channel, which broadcasts over the others; None for other shapes."""
        same = same_shape(val(x).shape[:-1], val(node).shape[:-1])
        return self.maps[x] if same and rank(x) == rank(node) and val(x).shape[-1] == 1 else None

    def _put(self, node: Node, of: Node) -> None:
        self.maps[node] = of
        changed(of) if of.op == "call_function" and _is_new(of) else None
        height, width = val(of).shape[2:]
        self.sizes.setdefault(height * width, (height, width))

    def _positions(self, of: Node) -> int:
        height, width = val(of).shape[2:]
        return int(height) * int(width)


_Rule = Callable[[_Layout, Node], bool]

_RULES: dict[Any, tuple[_Rule, ...]] = {
    aten.transpose.int: (_Layout._end, _Layout._start, _Layout._heads),
    aten.permute.default: (_Layout._end, _Layout._start, _Layout._heads),
    aten.flatten.using_ints: (_Layout._flatten, _Layout._joined),
    aten.unflatten.int: (_Layout._flatten,),
    aten.reshape.default: (_Layout._flatten, _Layout._joined),
    aten.view.default: (_Layout._flatten, _Layout._joined),
    aten.linear.default: (_Layout._linear,),
    aten.layer_norm.default: (_Layout._norm,),
    aten.einsum.default: (_Layout._mixed,),
    aten.conv1d.default: (_Layout._mixed,),
    aten.matmul.default: (_Layout._mixed,),
    aten.mean.dim: (_Layout._mean,),
    aten.split_with_sizes.default: (_Layout._split,),
    operator.getitem: (_Layout._packed_heads, _Layout._part),
}


def _is_new(node: Node) -> bool:
    """Return whether a node was emitted here, and nothing reads it but what was too."""
    return node.meta.get("equals") == ""


def _behind(emit: Emitter, of: Node, dims: int) -> Node:
    """A map with its channels behind."""
    if dims == 4:
        return emit(aten.permute.default, of, [0, 2, 3, 1])
    return emit(aten.transpose.int, emit(aten.flatten.using_ints, of, 2), 1, 2)


def _filled(node: Node, count: int, number: float) -> Tensor:
    """A constant of one number, of a node's type."""
    return torch.full((count,), number, dtype=val(node).dtype)


def _sizes_of_reshape(node: Node) -> list[int] | None:
    """The sizes that a reshape makes; None for other operators."""
    if node.target not in (aten.unflatten.int, aten.reshape.default, aten.view.default):
        return None
    return list(val(node).shape)


def _axes(node: Node) -> set[int]:
    """The axes that a transposition exchanges."""
    if node.target is not aten.transpose.int:
        return set()
    _, a, b = arguments(node)
    return {a % rank(node), b % rank(node)}


def _order(node: Node) -> list[int]:
    """The axes' order after a permutation; nothing for other operators."""
    return [axis % rank(node) for axis in arguments(node)[1]] if node.target is aten.permute.default else []
