"""The nearest codeword, in any spelling, becomes edgesmith.vector_quantise: its numbers say what it is.

    argmin cdist(x, C),  argmax(x C' - |C|^2 / 2),  (x - C)^2 summed, its square root, its negative ...
        -> vector_quantise(x, C)

What lies between a vector x and an argmin, argmax, min, max or topk of one is run in float64, on random vectors and on
pairs that lie on both sides of the border between two codewords, close to it: it is the op where every one gets the
nearest codeword. How the codes are used, as indices of a look-up or as one-hot rows, is left as it is.

Near misses, of what has a `cdist`, or whose codes look up codewords: the farthest codeword, scores without the
codewords' lengths, another distance, distances that are read elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, example_sizes, rank, replace, site, val
from edgesmith.exporters.rewrites.regions import Region
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites
from edgesmith.kernels import vector_quantise

_WHOLE = (aten.argmin.default, aten.argmax.default)
_PAIRS = (aten.min.dim, aten.max.dim, aten.topk.default)
"""Operators that return indices, and those that return values and indices."""

_PRODUCTS = frozenset(
    {
        aten.linear.default,
        aten.matmul.default,
        aten.mm.default,
        aten.bmm.default,
        aten.addmm.default,
        aten.baddbmm.default,
        aten.einsum.default,
        aten.sub.Tensor,
        aten.cdist.default,
        aten._cdist_forward.default,
        aten._euclidean_dist.default,
        aten.conv1d.default,
        aten.conv2d.default,
    }
)
"""Operators by which a vector may meet the codewords."""

_LOOKUPS = frozenset({aten.embedding.default, aten.index_select.default, aten.index.Tensor, aten.gather.default})
_DISTANCES = frozenset({aten.cdist.default, aten._cdist_forward.default, aten._euclidean_dist.default})

CALLS = 24
"""Runs of a site at most."""

NEAR = 1e-3
"""The distance from a border at which vectors are tried, relative to that of its codewords; float32 tells these."""


@dataclass(frozen=True)
class _Site:
    """A part of a graph that may be a search for the nearest codeword.

    Attributes:
        codes: the node that has the indices.
        region: from the vectors to it.
        codebook: [S, D] in the order of the indices, float64.
        held: the constant that it is, maybe transposed.
    """

    codes: Node
    region: Region
    codebook: Tensor
    held: Node

    @property
    def x(self) -> Node:
        """The vectors, [..., D]."""
        return self.region.sources[0]

    def run(self, x: Tensor) -> Tensor:
        """Return the codes of some vectors [M, D], as many as the example has."""
        found: Tensor = self.region.run(x.reshape(example_sizes(val(self.x).shape)))[self.codes]
        return found.reshape(-1)


@rewrites(*_WHOLE, *_PAIRS, rule="the nearest codeword in another spelling -> edgesmith.vector_quantise")
def find_codewords(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above."""
    codes = _codes(node)
    if codes is None:
        return None
    sites = list(_sites(module, node, codes))
    for one in sites:
        if _takes_the_nearest(one):
            return _put(module, node, one)
    near = next((one for one in sites if _is_meant(one)), None)
    if near is not None:
        raise Reject(_reason(near))
    return None


def _codes(node: Node) -> Node | None:
    """Return the node that has one index for each vector; None where there are several, or none is read."""
    if node.target in _WHOLE:
        return node if arguments(node)[1] is not None else None
    if node.target is aten.topk.default and arguments(node)[1] != 1:
        return None
    return next((user for user in node.users if user.args[1] == 1), None)


def _sites(module: GraphModule, node: Node, codes: Node) -> Iterator[_Site]:
    """Yield what may be the site of an operator that chooses, with the vectors as near to it as can be first."""
    scores = node.all_input_nodes[0]
    if not rank(scores):
        return
    axis = arguments(node)[1 if node.target in (*_WHOLE, aten.min.dim, aten.max.dim) else 2]
    codewords = example_sizes(val(scores).shape)[axis % rank(scores)]
    count = torch.Size(example_sizes(val(codes).shape)).numel()
    for nodes, source, free in _cuts(module, node):
        own = example_sizes(val(source).shape)
        if rank(source) < 2 or torch.Size(own[:-1]).numel() != count or not val(source).is_floating_point():
            continue
        inside = nodes if codes is node else [*nodes, codes]
        for held in _read(inside):
            for codebook in _as_codebooks(module, held, codewords, own[-1]):
                yield _Site(codes, Region(module, (source,), inside, codes, free), codebook, held)


def _cuts(module: GraphModule, last: Node) -> Iterator[tuple[list[Node], Node, dict[Node, int]]]:
    """Yield the values that all of a node is computed from, what lies between, and free sizes; the nearest first."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    nodes: list[Node] = []
    free: dict[Node, int] = {}
    ahead = {last}
    while ahead:
        node = max(ahead, key=order.__getitem__)
        is_met = any(one.target in _PRODUCTS for one in nodes)
        if is_met and len(ahead) == 1 and isinstance(node.meta.get("val"), Tensor):
            yield nodes[::-1], node, free
        ahead.remove(node)
        if node.op != "call_function":
            return
        nodes.append(node)
        for source in node.all_input_nodes:
            if isinstance(source.meta.get("val"), torch.SymInt):
                free[source] = int(source.meta["val"].node.hint)
            elif source.op != "get_attr":
                ahead.add(source)


def _read(nodes: Sequence[Node]) -> list[Node]:
    """Return the constants that some nodes read, in order."""
    return list(dict.fromkeys(one for node in nodes for one in node.all_input_nodes if one.op == "get_attr"))


def _as_codebooks(module: GraphModule, held: Node, codewords: int, width: int) -> Iterator[Tensor]:
    """Yield a constant as a codebook [S, D], as it stands and transposed, where it can be one."""
    value = constant(module, held)
    if value is None or not value.is_floating_point():
        return
    if value.dim() > 2 and bool((value == value.flatten(0, -3)[0]).all()):
        value = value.flatten(0, -3)[0]  # the same one for each of a batch
    sizes = [size for size in value.shape if size != 1]
    wanted = [size for size in (codewords, width) if size != 1]
    if sizes == wanted:
        yield value.reshape(codewords, width).double()
    if sizes == wanted[::-1]:
        yield value.reshape(width, codewords).t().double()


def _takes_the_nearest(one: _Site) -> bool:
    """Return whether a site gives every vector that was tried its nearest codeword."""
    codebook = one.codebook
    rows = torch.Size(example_sizes(val(one.x).shape)[:-1]).numel()
    tried = _vectors(codebook)
    for start in range(0, min(len(tried), CALLS * rows), rows):
        part = tried[start : start + rows]
        x = torch.cat((part, part[:1].expand(rows - len(part), -1)))
        if not torch.equal(one.run(x), vector_quantise.reference(x, codebook)):
            return False
    return True


def _vectors(codebook: Tensor) -> Tensor:
    """Return vectors to try, [M, D]: on both sides of borders between neighbours, then random ones of several sizes."""
    generator = torch.Generator().manual_seed(0)
    count, width = codebook.shape
    chosen = torch.randperm(count, generator=generator)[:64]
    size = codebook.abs().max().clamp(min=1e-12)
    random = size * torch.randn(64, width, generator=generator, dtype=torch.float64)
    random = random * torch.tensor([0.1, 1.0, 1.0, 10.0], dtype=torch.float64).repeat(16).unsqueeze(1)
    if count < 2:
        return random
    apart = torch.cdist(codebook[chosen], codebook)
    neighbours = apart.scatter(1, chosen.unsqueeze(1), float("inf")).argmin(1)
    middle, step = (codebook[chosen] + codebook[neighbours]) / 2, codebook[neighbours] - codebook[chosen]
    sides = torch.stack((middle - NEAR * step, middle + NEAR * step), dim=1).flatten(0, 1)
    return torch.stack((sides[: len(random)], random[: len(sides)]), dim=1).flatten(0, 1) if len(sides) else random


def _is_meant(one: _Site) -> bool:
    """Return whether a site looks as if it were meant to be the op."""
    if any(inner.target in _DISTANCES for inner in one.region.nodes):
        return True
    codewords, width = one.codebook.shape
    queue, seen = [one.codes], {one.codes}
    while queue:
        for user in queue.pop().users:
            tables = [list(val(table).shape) for table in user.all_input_nodes if table.op == "get_attr"]
            if user.target in _LOOKUPS and [codewords, width] in tables:
                return True
            if user not in seen and user.target in (aten.reshape.default, aten.view.default, aten.unsqueeze.default):
                seen.add(user)
                queue.append(user)
    return False


def _reason(one: _Site) -> str:
    rows = torch.Size(example_sizes(val(one.x).shape)[:-1]).numel()
    x = _vectors(one.codebook)[1::2][:rows]
    x = torch.cat((x, x[:1].expand(rows - len(x), -1)))
    found, scores = one.run(x), x @ one.codebook.t()
    if torch.equal(found, (scores - 0.5 * one.codebook.square().sum(-1)).argmin(-1)):
        return "it takes the farthest codeword, not the nearest"
    if torch.equal(found, scores.argmax(-1)):
        return "its scores leave out the codewords' lengths, so that the largest is not the nearest codeword"
    return "it compares vectors with a codebook, and does not take the nearest by Euclidean distance"


def _put(module: GraphModule, node: Node, one: _Site) -> str:
    """Put the op in the place of a site's codes."""
    within = {*one.region.nodes}
    for inner in one.region.nodes:
        outside = next((user for user in inner.users if user not in within), None)
        if outside is not None and inner is not one.codes:
            raise Reject(f"its distances are also read by {outside.name}")
    where = site(node)
    emit = Emitter(module, before=one.codes)
    value = constant(module, one.held)
    assert value is not None
    is_itself = tuple(value.shape) == tuple(one.codebook.shape) and torch.equal(value.double(), one.codebook)
    codebook = one.held if is_itself else emit.constant(f"{where}.codebook", one.codebook.to(val(one.x).dtype))
    y = emit(vector_quantise.OP.overload, one.x, codebook)
    sizes = list(val(one.codes).shape)
    if list(val(y).shape) != sizes:
        y = emit(aten.reshape.default, y, [size if isinstance(size, int) else -1 for size in sizes])
    replace(one.codes, y)
    return f"{len(one.region.nodes)} operators -> edgesmith.vector_quantise"
