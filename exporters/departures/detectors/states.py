"""States, and outputs that are read again."""

from __future__ import annotations

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import ELEMENTWISE, VIEWS, Graph, Node

_ROW = 32
_LONGEST = 2048
_CHAIN = 3
_SMALL_TABLE = 16


@detector
def odd_state(graph: Graph) -> Found:
    """Find states whose last axis is no multiple of 32."""
    for name in graph.states:
        last = graph.shape(name)[-1:]
        if last and last[0] is not None and last[0] % _ROW:
            yield name, f"the state is {words(graph, name)}"


@detector
def long_state(graph: Graph) -> Found:
    """Find states with an axis of 2048 and more, but the last one."""
    for name in graph.states:
        if max((size or 0 for size in graph.shape(name)[:-1]), default=0) >= _LONGEST:
            yield name, f"the state is {words(graph, name)}"


@detector
def output_that_is_a_state(graph: Graph) -> Found:
    """Find outputs that are what is written to a state, but for views."""
    written = {}
    for node in graph.of("update_state"):
        name: str | None = node.inputs[1]
        while name is not None:
            written[name] = node.inputs[0]
            maker = graph.maker(name)
            name = maker.inputs[0] if maker is not None and maker.kind in VIEWS else None
        written |= dict.fromkeys(node.outputs, node.inputs[0])
    for output in graph.outputs:
        name = output
        while name is not None:
            if name in written:
                yield graph.maker(output) or output, f"the output {output} is what is written to {written[name]}"
                break
            maker = graph.maker(name)
            name = maker.inputs[0] if maker is not None and maker.kind in VIEWS else None


@detector
def update_at_computed_position(graph: Graph) -> Found:
    """Find slice updates whose beginning is computed."""
    for node in graph.of("slice_update"):
        if len(node.inputs) > 2 and not graph.is_stored(node.inputs[2]):
            yield node, f"an update of {words(graph, node.inputs[0])} at a computed position"


@detector
def states_beside_small_tables(graph: Graph) -> Found:
    """Find weights in tables of 16 and fewer beside states."""
    if graph.states:
        for node in graph.of("lut_weights"):
            if 0 < entries(graph, node.inputs[1]) <= _SMALL_TABLE:
                yield node, f"a table of {entries(graph, node.inputs[1])} beside {len(graph.states)} states"
                return


def entries(graph: Graph, name: str) -> int:
    """Return how many numbers a look-up table has: of [.., entries, vector], or of one axis; 0 where unknown."""
    shape = graph.shape(name)
    size = shape[-2] if len(shape) > 1 else shape[0] if shape else 0
    return size or 0


@detector
def output_sum_read_again(graph: Graph) -> Found:
    """Find sums that are outputs and go on."""
    for node in graph.of("add"):
        if node.output in graph.outputs and graph.readers(node.output):
            yield node, f"the sum {node.output}, {words(graph, node.output)}, is an output and is read again"


@detector
def output_within_chain(graph: Graph) -> Found:
    """Find outputs that a chain of elementwise operators goes through."""
    for name in graph.outputs:
        node = graph.maker(name)
        if node is None or node.kind not in ELEMENTWISE or not graph.readers(name):
            continue
        onwards = [one for one in graph.readers(name) if one.kind in ELEMENTWISE]
        if onwards and _chain(graph, node) + 1 >= _CHAIN:
            yield node, f"the output {name} lies in a chain of elementwise operators"


def _chain(graph: Graph, node: Node, most: int = _CHAIN) -> int:
    """Return how many elementwise operators follow one another up to a node, by whichever operand, up to a number."""
    makers = (graph.maker(name) for name in node.inputs) if most > 1 else ()
    return 1 + max((_chain(graph, one, most - 1) for one in makers if one and one.kind in ELEMENTWISE), default=0)
