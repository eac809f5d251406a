"""State space scans with one decay a head, in any spelling, become `ssd`, and two of them in both directions one mixer.

    chunks with segment sums, one quadratic form, a loop, a scan ...  ->  ssd(x, Delta, A, B, C)
    shift(ssd(x)) + flip(shift(ssd(flip x))) [+ d x]                  ->  quasiseparable(x, Delta, A, B, C, d)

Between what makes x, Delta, B and C, such as a convolution, a softplus and a split, and the output lie only products,
sums, exponentials and rearrangements. So whatever lies there is a function of four values and of the rates, which are
constants. It is run in float64: two steps show the rate of each head, and then it is `ssd` where random values give the
same numbers. Differences of cumulative sums, in which transformers' chunks have their decays, lose digits in float32
and all of them in half precision; `ssd` has none.

Near misses: a last state that is read too, numbers that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    example_sizes,
    operator_name,
    operators,
    rank,
    replace,
    site,
    val,
)
from edgesmith.exporters.rewrites.regions import Region
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, Rejection, attempt, searches
from edgesmith.kernels import quasiseparable, ssd

SAME = 1e-5
"""Largest difference between the same numbers, relative to their peak: parts of a site may be float32 by name."""

STEP = 0.05
"""The step size at which rates are measured: a decay of exp(-16) and one of exp(-0.001) are told from 0 and 1."""

_NAMES = """
    mul add sub neg exp cumsum sum matmul bmm mm einsum pad constant_pad_nd reshape view _unsafe_view flatten
    unflatten permute transpose t movedim expand unsqueeze squeeze slice select cat stack tril triu where
    masked_fill repeat repeat_interleave clone contiguous to _to_copy alias detach zeros zeros_like ones ones_like
    new_zeros full full_like arange rsub div diff roll index_select select_scatter slice_scatter copy fill
    lift_fresh_copy gt ge lt le eq logical_not bitwise_not
"""
_WITHIN = frozenset(getattr(aten, name) for name in _NAMES.split())
"""Operators of which a site may consist."""

LARGEST = 2**28
"""Numbers up to which a value of a site is computed: more would take gigabytes."""

_IN_TIME = frozenset({aten.cumsum, aten.cat, aten.stack, aten.tril, aten.sum})
"""Operators one of which joins steps."""


def _packet(node: Node) -> object:
    return getattr(node.target, "overloadpacket", node.target)


@dataclass(frozen=True)
class _Reads:
    """The values that a node is computed from, and whether decays and other steps are among what lies between."""

    sources: frozenset[Node]
    has_exp: bool = False
    has_time: bool = False


@searches(rule="a state space scan in another spelling -> edgesmith.ssd")
def find_state_space(module: GraphModule, costs: Costs) -> Iterator[Fired | Rejection]:
    """See above."""
    reads = _trace(module)
    groups: dict[frozenset[Node], list[Node]] = {}
    for node in operators(module):
        found = reads[node]
        if len(found.sources) == 4 and found.has_exp and found.has_time and _can_be(node, found.sources):
            groups.setdefault(found.sources, []).append(node)
    for sources, outputs in groups.items():
        region = _region(module, outputs, sources)
        sites = list(_as_sites(outputs, region))
        outcome = attempt(outputs[-1], _fuse, module, sites, reads) if sites else None
        if outcome is not None:
            yield outcome


def _trace(module: GraphModule) -> dict[Node, _Reads]:
    """Return what each node reads, back to operators of which no site consists."""
    found: dict[Node, _Reads] = {}
    for node in module.graph.nodes:
        is_value = isinstance(node.meta.get("val"), Tensor)
        if node.op == "get_attr" or isinstance(node.meta.get("val"), torch.SymInt):
            found[node] = _Reads(frozenset())
        elif node.op != "call_function" or not is_value or not _is_within(node, found):
            found[node] = _Reads(frozenset({node}))
        else:
            inputs = [found[one] for one in node.all_input_nodes]
            packet = _packet(node)
            found[node] = _Reads(
                frozenset().union(*(one.sources for one in inputs)),
                packet is aten.exp or any(one.has_exp for one in inputs),
                packet in _IN_TIME or any(one.has_time for one in inputs),
            )
    return found


def _is_within(node: Node, found: dict[Node, _Reads]) -> bool:
    """Return whether a node may lie inside a site: no batches are joined there, and no channels cut out of a source."""
    packet = _packet(node)
    if packet not in _WITHIN:
        return False
    if packet is aten.cat and arguments(node)[1] % rank(node) == 0:
        return False
    first = node.all_input_nodes[0] if node.all_input_nodes else None
    if packet in (aten.slice, aten.select) and first is not None and not _is_in_time(node, first):
        before = found[first]  # one of several parts or directions that are kept in one value is a value of its own
        return len(before.sources) != 1 or before.has_exp or before.has_time
    return True


def _is_in_time(node: Node, source: Node) -> bool:
    """Return whether a slice or an entry is one of steps, or of batches."""
    axis = arguments(node)[1] % rank(source)
    return bool(axis < 2 if _packet(node) is aten.select else axis != rank(source) - 1)


def _can_be(node: Node, sources: frozenset[Node]) -> bool:
    """Return whether a node has the shape of a scan's output, and its sources those of a scan's arguments."""
    ranks = sorted(rank(one) for one in sources)
    return rank(node) in (3, 4) and ranks[0] == 3 and ranks[-1] <= 4


@dataclass(frozen=True)
class _Site:
    """A part of a graph read as a scan of four sources.

    Attributes:
        region: from the sources to all that may be its output.
        outputs: what may be its output, in order.
        order: the positions of x, Delta, B and C among the sources.
        sizes: B, T, H, P, G, N.
    """

    region: Region
    outputs: tuple[Node, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def sources(self) -> list[Node]:
        """x, Delta, B and C."""
        return [self.region.sources[i] for i in self.order]

    def run(self, x: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> dict[Node, Tensor]:
        """Return what may be the output, [B, T or more, H, P] each."""
        given = [
            value.reshape(example_sizes(val(one).shape))
            for value, one in zip((x, delta, b, c), self.sources, strict=True)
        ]
        batch, _, heads, width, *_ = self.sizes
        values = self.region.run(*(given[self.order.index(i)] for i in range(4)))
        return {node: values[node].reshape(batch, -1, heads, width) for node in self.outputs}


def _fuse(module: GraphModule, sites: list[_Site], reads: dict[Node, _Reads]) -> str:
    """Put the op in the place of the first value that has a scan's numbers. Raises Reject where none has."""
    largest = max(val(node).numel() for node in sites[0].region.nodes if isinstance(node.meta.get("val"), Tensor))
    if largest > LARGEST:
        raise Reject(f"it has the parts of a state space scan, and {int(largest)} numbers are too many to compare it")
    for one in sites:
        found = _output(one)
        if found is not None:
            output, rates, is_late = found
            region = _region(module, [output], frozenset(one.region.sources))
            _check_alone(region, reads)
            return _put(module, one, region, rates, is_late)
    raise Reject("it has the parts of a state space scan, and computes other numbers")


def _region(module: GraphModule, ends: Sequence[Node], sources: frozenset[Node]) -> Region:
    """Return the region between some sources and some nodes, of which the last is its result."""
    inside: set[Node] = set()
    free: dict[Node, int] = {}
    queue = [*ends]
    while queue:
        node = queue.pop()
        if isinstance(node.meta.get("val"), torch.SymInt):
            free[node] = int(node.meta["val"].node.hint)
        elif node not in inside and node not in sources and node.op == "call_function":
            inside.add(node)
            queue += node.all_input_nodes
    nodes = [node for node in module.graph.nodes if node in inside]
    ordered = tuple(node for node in module.graph.nodes if node in sources)
    return Region(module, ordered, nodes, ends[-1], free)


def _as_sites(outputs: list[Node], region: Region) -> Iterator[_Site]:
    """Yield the ways to read a region as a scan: which source is which, and how many groups there are."""
    shapes = [example_sizes(val(one).shape) for one in region.sources]
    for order in permutations(range(4)):
        x, delta, b, c = (shapes[i] for i in order)
        if len(delta) != 3 or len({tuple(shape[:2]) for shape in (x, delta, b, c)}) != 1 or b != c:
            continue
        batch, length, heads = delta
        inner, states = torch.Size(x[2:]).numel(), torch.Size(b[2:]).numel()
        if inner % heads or (len(x) == 4 and x[2] != heads):
            continue
        fitting = tuple(node for node in outputs if _has_steps(node, batch, length, inner))
        for group in _groups(region.sources[order[2]], heads) if fitting else ():
            if states % group == 0:
                yield _Site(region, fitting, order, (batch, length, heads, inner // heads, group, states // group))


def _has_steps(node: Node, batch: int, length: int, inner: int) -> bool:
    """Return whether a node has values of all channels at each step, at T or more: chunks may have been filled up."""
    sizes = example_sizes(val(node).shape)
    return sizes[0] == batch and sizes[1] >= length and torch.Size(sizes).numel() == batch * sizes[1] * inner


def _groups(rows: Node, heads: int) -> list[int]:
    """Return how many groups of heads there may be, those first in which the rows of B are put."""
    if rank(rows) == 4:
        return [example_sizes(val(rows).shape)[2]]
    shapes = [example_sizes(val(user).shape) for user in rows.users if isinstance(user.meta.get("val"), Tensor)]
    seen = [shape[2] for shape in shapes if len(shape) == 4]
    every = [g for g in range(1, heads + 1) if heads % g == 0]
    return list(dict.fromkeys(g for g in (*seen, *every) if g in every))


def _output(one: _Site) -> tuple[Node, Tensor, bool] | None:
    """Return the first value of a site that has a scan's numbers, the rate of each head, and whether it is late.

    A late one has at each step what the scan has at the step before, and zeros at the first. None for no such value.
    """
    batch, length, heads, width, groups, states = one.sizes
    if length < 2:
        return None
    plausible: dict[Node, Tensor] = {}
    late: set[Node] = set()
    for node, y in one.run(*_impulse(one)).items():
        is_late = length > 2 and not bool(y[:, 0].any())
        if (rates := _rates(y[:, 1:] if is_late else y)) is not None:
            plausible[node] = rates
            late |= {node} if is_late else set()
    if not plausible:
        return None
    fastest = torch.stack([*plausible.values()]).abs().amax(0)
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    delta = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64) * 0.5 / (1 + fastest)
    rows = [normal(batch, length, groups, states) for _ in range(2)]
    x = normal(batch, length, heads, width)
    found = one.run(x, delta, *rows)
    for node, rates in plausible.items():
        expected = ssd.chunked(x, delta, rates, *rows)
        if node in late:
            expected = F.pad(expected[:, :-1], (0, 0, 0, 0, 1, 0))
        expected = F.pad(expected, (0, 0, 0, 0, 0, found[node].shape[1] - length))
        if bool((found[node] - expected).abs().max() <= SAME * expected.abs().max()):
            return node, rates, node in late
    return None


def _impulse(one: _Site) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return an input at the first step alone, with step sizes, B and C that are everywhere the same."""
    batch, length, heads, width, groups, states = one.sizes
    x, ones = torch.zeros(batch, length, heads, width).double(), torch.ones(batch, length, groups, states).double()
    x[:, 0] = 1
    return x, torch.full((batch, length, heads), STEP, dtype=torch.float64), ones, ones


def _rates(y: Tensor) -> Tensor | None:
    """Return the rate of each head, [H], from what is left of an impulse after a step; None for none."""
    rates = (y[0, 1, :, 0] / y[0, 0, :, 0]).log() / STEP
    return rates if bool(rates.isfinite().all()) and bool((rates <= 0).all()) else None


def _check_alone(region: Region, reads: dict[Node, _Reads]) -> None:
    """Raise Reject where what the op is to make unnecessary is read by something else too."""
    within = {*region.nodes}
    for node in region.nodes:
        outside = next((user for user in node.users if user not in within), None)
        if node is not region.last and outside is not None and reads[node].has_exp:
            raise Reject(f"a state in it is also read by {outside.name} ({operator_name(outside)})")


def _put(module: GraphModule, one: _Site, region: Region, rates: Tensor, is_late: bool) -> str:
    """Put the op in the place of a region."""
    batch, length, heads, width, groups, states = one.sizes
    last, where = region.last, site(*region.nodes)
    emit = Emitter(module, before=last)
    shapes = ([batch, length, heads, width], [batch, length, heads], *([[batch, length, groups, states]] * 2))
    x, delta, b, c = (_shaped(emit, source, shape) for source, shape in zip(one.sources, shapes, strict=True))
    y = emit(ssd.OP.overload, x, delta, emit.constant(f"{where}.rates", _as_held(module, region, rates)), b, c)
    if is_late:
        before = emit(aten.slice.Tensor, y, 1, 0, length - 1)
        y = emit(aten.constant_pad_nd.default, before, [0, 0, 0, 0, 1, 0])
    missing = example_sizes(val(last).shape)[1] - length
    if missing:
        y = emit(aten.constant_pad_nd.default, y, [0, 0, 0, 0, 0, missing])
    replace(last, _shaped(emit, y, example_sizes(val(last).shape)))
    return f"{len(region.nodes)} operators -> edgesmith.ssd"


def _shaped(emit: Emitter, value: Node, shape: list[int]) -> Node:
    """Return a value in a shape; a batch that is free stays free."""
    if example_sizes(val(value).shape) == shape:
        return value
    is_free = not isinstance(val(value).shape[0], int)
    return emit(aten.reshape.default, value, [-1, *shape[1:]] if is_free else shape)


def _as_held(module: GraphModule, region: Region, rates: Tensor) -> Tensor:
    """Return the rates in float32: the constant of the site that they are, where one of them is."""
    for node in region.nodes:
        for source in node.all_input_nodes:
            value = constant(module, source)
            if value is not None and value.numel() == len(rates) and value.is_floating_point():
                flat = value.flatten()
                if torch.allclose(flat.double(), rates, rtol=SAME, atol=0):
                    return flat.float()
    return rates.float()


# both directions


@searches(rule="scans in both directions -> edgesmith.quasiseparable")
def find_quasiseparable(module: GraphModule, costs: Costs) -> Iterator[Fired | Rejection]:
    """See above."""
    for node in operators(module):
        if node.target is ssd.OP.overload and not node._erased:
            outcome = attempt(node, _join, module, node)
            if outcome is not None:
                yield outcome


@dataclass(frozen=True)
class _Both:
    """The arguments of scans in both directions.

    Attributes:
        x: [B, T, ...], the same for both.
        others: Delta, B and C, each as a pair: forwards, and backwards in the order of time where its last is True.
        batch: B.
        call: the scan that reads them, or the first of two.
    """

    x: Node
    others: tuple[tuple[Node, Node, bool], ...]
    batch: int
    call: Node


def _pair_up(scan: Node) -> Iterator[tuple[tuple[Node, ...], _Both]]:
    """Yield the ways to read a scan as both directions: its batch in halves, or with another scan."""
    x, delta, _, b, c, *_ = arguments(scan)
    count = example_sizes(val(scan).shape)[0]
    halves = _halves(x)
    if halves is not None and halves[0] is halves[1] and count % 2 == 0:
        found = ((one, _halves(one)) for one in (delta, b, c))
        others = tuple((one, one, False) if pair is None else (*pair, True) for one, pair in found)
        yield (scan,), _Both(halves[0], others, count // 2, scan)
    for other in scan.graph.find_nodes(op="call_function", target=ssd.OP.overload):
        given = arguments(other)
        flipped = _flipped(given[0])
        if other is not scan and flipped is not None and _plain(flipped) is _plain(x):
            pairs = ((one, _flipped(two)) for one, two in zip((delta, b, c), (given[1], *given[3:5]), strict=True))
            kept = tuple((one, two) for one, two in pairs if two is not None)
            if len(kept) == 3 and _same_rates(scan, other):
                yield (scan, other), _Both(x, tuple((one, two, True) for one, two in kept), count, scan)


def _same_rates(one: Node, two: Node) -> bool:
    module = one.graph.owning_module
    assert module is not None
    first, second = (constant(module, arguments(node)[2]) for node in (one, two))
    return first is not None and second is not None and torch.equal(first, second)


def _plain(node: Node) -> Node:
    """Return a value before it was only given another shape behind batch and time."""
    while _packet(node) in (aten.reshape, aten.view, aten.clone, aten.unflatten, aten.flatten):
        source = node.all_input_nodes[0]
        if example_sizes(val(source).shape)[:2] != example_sizes(val(node).shape)[:2]:
            break
        node = source
    return node


def _flipped(node: Node) -> Node | None:
    """Return what a value is in reverse order of time; None where it is not."""
    inner = _plain(node)
    if _packet(inner) is not aten.flip or [axis % rank(inner) for axis in arguments(inner)[1]] != [1]:
        return None
    source: Node = arguments(inner)[0]
    return source


def _halves(node: Node) -> tuple[Node, Node] | None:
    """Return f and g of a batch cat(f, flip g); None where it is none."""
    inner = _plain(node)
    if _packet(inner) is not aten.cat or arguments(inner)[1] % rank(inner) != 0 or len(arguments(inner)[0]) != 2:
        return None
    forward, backward = arguments(inner)[0]
    source = _flipped(backward)
    return None if source is None else (_plain(forward), _plain(source))


def _join(module: GraphModule, scan: Node) -> str | None:
    """Join the two halves of a scan's batch, or two scans, into one mixer; None where they are no such halves."""
    declined: Reject | None = None
    for scans, both in _pair_up(scan):
        totals = _sums(module, scans)
        for total in totals:
            region = _region(module, [total], frozenset(scans))
            if _adds_both(region, scans, both):
                return _put_both(module, region, both)
        if totals:
            declined = Reject(
                "it scans in both directions, and adds the outputs up in another way than past and future"
            )
    if declined is not None:
        raise declined
    return None


def _sums(module: GraphModule, scans: tuple[Node, ...]) -> list[Node]:
    """Return the sums of nothing but some scans' outputs, of one position each."""
    known: dict[Node, bool] = {}
    for node in module.graph.nodes:
        if node in scans or node.op == "get_attr":
            known[node] = True
        elif node.op == "call_function" and (_packet(node) in _WITHIN or _packet(node) is aten.flip):
            known[node] = all(known[one] for one in node.all_input_nodes)
        else:
            known[node] = False
    depends = {*scans}
    for node in module.graph.nodes:
        if known[node] and any(one in depends for one in node.all_input_nodes):
            depends.add(node)
    return [node for node in operators(module) if known[node] and node in depends and _packet(node) is aten.add]


def _adds_both(region: Region, scans: tuple[Node, ...], both: _Both) -> bool:
    """Return whether a sum is that of the step before, forwards, and the step behind, backwards."""
    if {*region.sources} != {*scans}:
        return False
    generator = torch.Generator().manual_seed(0)
    given = {one: torch.randn(example_sizes(val(one).shape), generator=generator, dtype=torch.float64) for one in scans}
    forward, *rest = (given[one] for one in scans)
    backward = rest[0] if rest else forward[both.batch :]
    forward = forward[: both.batch]
    zeros = torch.zeros_like(forward[:, :1])
    expected = torch.cat((zeros, forward[:, :-1]), 1) + torch.cat((zeros, backward[:, :-1]), 1).flip(1)
    found = region.run(*(given[one] for one in region.sources))[region.last]
    return bool(found.numel() == expected.numel() and torch.equal(found.reshape(expected.shape), expected))


def _put_both(module: GraphModule, region: Region, both: _Both) -> str:
    """Put the mixer in the place of a sum, with the diagonal behind it where there is one."""
    _, length, heads, width = example_sizes(val(both.call).shape)
    shape = [both.batch, length, heads, width]
    if not isinstance(val(both.call).shape[0], int):
        raise Reject("its batch is free, so that its halves cannot be told apart")
    last, diagonal = _diagonal(module, region.last, both.x, shape)
    emit, where = Emitter(module, before=last), site(*region.nodes)

    def in_both(forward: Node, backward: Node, is_in_order: bool, *more: int) -> Node:
        if not is_in_order:
            forward, backward = (
                emit(aten.slice.Tensor, forward, 0, 0, both.batch),
                emit(aten.flip.default, emit(aten.slice.Tensor, backward, 0, both.batch, 2 * both.batch), [1]),
            )
        pair = [_shaped(emit, one, [*shape[:2], *more]) for one in (forward, backward)]
        return emit(aten.stack.default, pair, 2)

    _, _, rates, b, *_ = arguments(both.call)
    groups = example_sizes(val(b).shape)[2:]
    delta, b, c = (in_both(*pair, *more) for pair, more in zip(both.others, ([heads], groups, groups), strict=True))
    if diagonal is None:
        diagonal = emit.constant(f"{where}.diagonal", torch.zeros(both.batch, length, heads))
    y = emit(quasiseparable.OP.overload, _shaped(emit, both.x, shape), delta, rates, b, c, diagonal)
    replace(last, _shaped(emit, y, example_sizes(val(last).shape)))
    return f"scans in both directions, {len(region.nodes)} operators behind them -> edgesmith.quasiseparable"


def _diagonal(module: GraphModule, total: Node, x: Node, shape: list[int]) -> tuple[Node, Node | None]:
    """Return the sum that adds d x to a sum, and d [B, T, H]; the sum itself and None where nothing does."""
    behind = [total]
    for node in behind:
        behind += [
            user for user in node.users if _packet(user) in (aten.reshape, aten.view, aten.flatten, aten.unflatten)
        ]
    for user in [user for node in behind for user in node.users if user.target is aten.add.Tensor]:
        other = next((one for one in user.all_input_nodes if one not in behind), None)
        if other is None or arguments(user)[2] != 1:
            continue
        reads = _trace(module)[other].sources
        weights = [one for one in reads if one is not x and list(val(one).shape) == shape[:3]]
        if x not in reads or len(reads) != 2 or len(weights) != 1:
            continue
        region = _region(module, [other], reads)
        generator = torch.Generator().manual_seed(0)
        drawn = {
            one: torch.randn(example_sizes(val(one).shape), generator=generator, dtype=torch.float64) for one in reads
        }
        found = region.run(*(drawn[one] for one in region.sources))[other]
        expected = drawn[weights[0]].unsqueeze(-1) * drawn[x].reshape(shape)
        if found.numel() == expected.numel() and torch.allclose(found.reshape(shape), expected):
            return user, weights[0]
    return total, None
