"""Loops in the targets' own terms, for ops that are recurrences: their files do not grow with the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def onnx_scan(
    states: Sequence[Any],
    sequence: Any,
    axis: int,
    step: Callable[..., Sequence[Any]],
    stacked: int = 1,
    stacked_axis: int | None = None,
) -> Sequence[Any]:
    """An ONNX Scan over one sequence, recorded where a lowering is being recorded.

    Args:
        states: initial states.
        sequence: what is read along `axis`, one slice an iteration.
        axis: of the sequence, counted from the front.
        step: from a node builder (`make("Add", a, b)`), the states and the slice to the next states and `stacked` values
            that the Scan puts together. It may read values of the graph around it.
        stacked: how many values come out a step beside the states.
        stacked_axis: where in a result the steps are; default: `axis`.

    Returns:
        The last states, then the stacked values.
    """
    import onnx_ir as ir
    from onnxscript import evaluator

    def inside(name: str, like: Any, shape: Sequence[Any]) -> Any:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(like.dtype))

    recorder: Any = evaluator.default()
    stem = f"scan_{len(recorder.nodes)}_{sequence.name}"
    nodes: list[Any] = []

    def make(kind: str, *values: Any, **attributes: Any) -> Any:
        node = ir.node(kind, values, attributes)
        node.outputs[0].name = f"{stem}_value_{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    inputs = [inside(f"{stem}_state_{i}", state, state.shape) for i, state in enumerate(states)]
    inputs.append(inside(f"{stem}_slice", sequence, [n for i, n in enumerate(sequence.shape) if i != axis]))
    outputs = list(step(make, *inputs))
    for value in outputs:
        value.dtype = sequence.dtype
    axes = [axis if stacked_axis is None else stacked_axis] * stacked
    scan = ir.node(
        "Scan",
        [*states, sequence],
        {
            "body": ir.Graph(inputs, outputs, nodes=nodes, name=f"{stem}_body"),
            "num_scan_inputs": 1,
            "scan_input_axes": [axis],
            "scan_output_axes": axes,
        },
        num_outputs=len(outputs),
        version=20,
    )
    recorder.nodes.append(scan)
    return scan.outputs
