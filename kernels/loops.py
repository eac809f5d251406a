"""Loops in the targets' own terms, for ops that are recurrences: their files do not grow with the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor


def onnx_scan(
    states: Sequence[Any],
    sequence: Any,
    axis: int,
    step: Callable[..., Sequence[Any]],
    stacked: int = 1,
    stacked_axis: int | None = None,
) -> Sequence[Any]:
    """An ONNX Scan over one sequence or several, recorded where a lowering is being recorded.

    Of batch 1 the steps are moved to the front by a change of shape, which moves no number: ONNX Runtime copies
    sequences, and what it stacks, to have an axis there.

    Args:
        states: initial states.
        sequence: what is read along `axis`, one slice an iteration; or a list of them.
        axis: of the sequences, counted from the front.
        step: from a node builder (`make("Add", a, b)`), the states and the slices to the next states and `stacked`
            values that the Scan puts together. It may read values of the graph around it.
        stacked: how many values come out a step beside the states.
        stacked_axis: where in a result the steps are; default: `axis`.

    Returns the last states, then the stacked values.
    """
    sequences = list(sequence) if isinstance(sequence, list | tuple) else [sequence]
    behind = axis if stacked_axis is None else stacked_axis
    if axis > 0 and behind == axis and all(_is_one_by_one(one, axis) for one in sequences):
        moved = [_with_steps_in_front(one, axis) for one in sequences]
        found = _record_scan(states, moved, 0, step, [0] * stacked)
        return [*found[: len(states)], *(_with_ones_in_front(value, axis) for value in found[len(states) :])]
    return _record_scan(states, sequences, axis, step, [behind] * stacked)


def _record_scan(
    states: Sequence[Any],
    sequences: Sequence[Any],
    axis: int,
    step: Callable[..., Sequence[Any]],
    stacked: Sequence[int],
) -> Sequence[Any]:
    """Record a Scan. As `onnx_scan`; `stacked` has the axis of each stacked value."""
    import onnx_ir as ir
    from onnxscript import evaluator

    def inside(name: str, like: Any, shape: Sequence[Any]) -> Any:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(like.dtype))

    recorder: Any = evaluator.default()
    stem = f"scan_{len(recorder.nodes)}_{sequences[0].name}"
    nodes: list[Any] = []

    def make(kind: str, *values: Any, **attributes: Any) -> Any:
        node = ir.node(kind, values, attributes)
        node.outputs[0].name = f"{stem}_value_{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    inputs = [inside(f"{stem}_state_{i}", state, state.shape) for i, state in enumerate(states)]
    for k, one in enumerate(sequences):
        inputs.append(
            inside(f"{stem}_slice{f'_{k}' if k else ''}", one, [n for i, n in enumerate(one.shape) if i != axis])
        )
    outputs = list(step(make, *inputs))
    for value in outputs:
        value.dtype = sequences[0].dtype
    scan = ir.node(
        "Scan",
        [*states, *sequences],
        {
            "body": ir.Graph(inputs, outputs, nodes=nodes, name=f"{stem}_body"),
            "num_scan_inputs": len(sequences),
            "scan_input_axes": [axis] * len(sequences),
            "scan_output_axes": list(stacked),
        },
        num_outputs=len(outputs),
        version=20,
    )
    recorder.nodes.append(scan)
    return scan.outputs


def _is_one_by_one(sequence: Any, axis: int) -> bool:
    """Return whether all sizes are known, and those in front of an axis are 1."""
    sizes = list(sequence.shape)
    return all(isinstance(n, int) for n in sizes) and all(n == 1 for n in sizes[:axis])


def _with_steps_in_front(sequence: Any, axis: int) -> Any:
    """Return [1, ..., T, ...] as [T, 1, ...]."""
    from onnxscript import ir, opset20

    op: Any = opset20
    sizes = [sequence.shape[axis], *sequence.shape[:axis], *sequence.shape[axis + 1 :]]
    moved = op.Reshape(sequence, op.Constant(value_ints=sizes))
    moved.shape, moved.dtype = ir.Shape(sizes), sequence.dtype
    return moved


def _with_ones_in_front(stacked: Any, axis: int) -> Any:
    """Return [T, 1, ...] as [1, ..., T, ...]."""
    from onnxscript import opset20

    op: Any = opset20
    bare = op.Squeeze(stacked, op.Constant(value_ints=list(range(1, axis + 1))))
    return op.Unsqueeze(bare, op.Constant(value_ints=list(range(axis))))


def onnx_filled(like: Any, axes: Sequence[int], value: float = 0.0, more: Sequence[int] = ()) -> Any:
    """A tensor full of `value`, of the type of `like`: as long as `like` along `axes`, then of the sizes `more`."""
    import numpy as np
    from onnxscript import ir, opset20

    op: Any = opset20
    sizes = [like.shape[axis] for axis in axes] + list(more)
    real = like.dtype.numpy()
    if all(isinstance(n, int) for n in sizes):
        filled = op.Constant(value=ir.tensor(np.full(sizes, value, real)))
    else:
        shape = op.Gather(op.Shape(like), op.Constant(value_ints=list(axes)))
        if more:
            shape = op.Concat(shape, op.Constant(value_ints=list(more)), axis=0)
        filled = op.ConstantOfShape(shape, value=ir.tensor(np.array([value], real)))
    filled.shape, filled.dtype = ir.Shape(sizes), like.dtype
    return filled


def torch_loop(
    state: Tensor,
    sequence: Tensor,
    step: Callable[..., tuple[Tensor, Tensor]],
    result: Tensor,
    constants: Sequence[Tensor] = (),
) -> Tensor:
    """A loop over one sequence as torch's own `while_loop`, for targets that read PyTorch's graphs.

    Args:
        state: initial state.
        sequence: [T, ...], read one slice [...] an iteration.
        step: from the state, the slice and the constants to the next state and one slice of the result.
        result: [T, ...], any values, of the result's shape and type.
        constants: what `step` reads beside.

    Returns:
        All slices, [T, ...].
    """
    import torch
    from torch._higher_order_ops.while_loop import while_loop_op

    length = sequence.shape[0]

    def unfinished(i: Tensor, *values: Tensor) -> Tensor:
        return i < length

    def body(
        i: Tensor, state: Tensor, result: Tensor, sequence: Tensor, *constants: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        position = i.reshape(1)
        state, value = step(state, sequence[position].squeeze(0), *constants)
        return i + 1, state, result.index_put((position,), value.unsqueeze(0))

    first = torch.zeros((), dtype=torch.int64)
    loop: Any = while_loop_op  # its stubs want a single carried value
    _, _, filled = loop(unfinished, body, (first, state, result), (sequence, *constants))
    return cast("Tensor", filled)


def coreml_loop(
    state: Any, sequence: Any, step: Callable[[Any, Any], tuple[Any, Any]], result_shape: Sequence[int]
) -> Any:
    """A Core ML while_loop over one sequence, time first.

    Args:
        state: initial state.
        sequence: [T, ...], read one slice [1, ...] an iteration.
        step: from the state and the slice to the next state and one slice [1, ...] of the result.
        result_shape: [T, ...].

    Returns:
        All slices, of `result_shape` and the state's type.
    """
    import numpy as np
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil.types import nptype_from_builtin

    length, *rest = sequence.shape
    result = mb.fill(shape=list(result_shape), value=nptype_from_builtin(state.dtype)(0))

    def unfinished(i: Any, state: Any, result: Any) -> Any:
        return mb.less(x=i, y=np.int32(length))

    def body(i: Any, state: Any, result: Any) -> tuple[Any, Any, Any]:
        start = mb.concat(values=[mb.expand_dims(x=i, axes=[0]), np.zeros(len(rest), np.int32)], axis=0)
        state, value = step(state, mb.slice_by_size(x=sequence, begin=start, size=[1, *rest]))
        position = mb.expand_dims(x=i, axes=[0])
        result = mb.scatter(data=result, indices=position, updates=value, axis=0, mode="update")
        return mb.add(x=i, y=np.int32(1)), state, result

    first = mb.const(val=np.int32(0))
    return mb.while_loop(_cond=unfinished, _body=body, loop_vars=(first, state, result))[2]
