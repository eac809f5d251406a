"""The operators of an ONNX file, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from edgesmith.bench.estimation.nodes import Node, Value, fixed, kinds_of
from edgesmith.errors import BadInput, Unsupported
from edgesmith.readers.messages import infer_shapes, read_onnx

OPERATORS = kinds_of(
    {
        "conv": "Conv",
        "transposed": "ConvTranspose",
        "matmul": "MatMul Gemm Einsum Attention",
        "softmax": "Softmax LogSoftmax",
        "norm": "LayerNormalization InstanceNormalization GroupNormalization BatchNormalization LpNormalization"
        " RMSNormalization",
        "pool": "AveragePool MaxPool LpPool",
        "reduce": "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 ReduceProd ReduceSumSquare GlobalAveragePool"
        " GlobalMaxPool ArgMax CumSum",
        "unary": "Relu Clip Gelu Sigmoid HardSigmoid HardSwish Tanh Exp Log Erf Sqrt Reciprocal Neg Abs Softplus Elu"
        " LeakyRelu PRelu Selu Softsign Mish Swish Cast Floor Ceil Round Not Sin Cos Sign Shrink ThresholdedRelu Celu",
        "binary": "Add Sub Mul Div Pow Max Min Sum Mod Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Where",
        "move": "Transpose Concat Split Slice Gather GatherElements GatherND ScatterND ScatterElements Pad Resize Tile"
        " Expand DepthToSpace SpaceToDepth Trilu TopK Upsample Range OneHot",
        "view": "Reshape Squeeze Unsqueeze Flatten Identity Shape Size ConstantOfShape Dropout",
    }
)


def read_nodes(file: Path) -> list[Node]:
    """Return the operators of a file in order, without those that compute constants.

    Raises:
        BadInput: the file cannot be read.
        Unsupported: a size that only a run decides.
    """
    model = read_onnx(file)
    try:
        graph = infer_shapes(model, file.name, data_prop=True)
    except Unsupported as error:
        raise BadInput(f"{file} is not an ONNX file that can be read: {error}") from error
    tensors = _Tensors(graph, file)
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            tensors.add_constant(node)
        else:
            nodes.append(_node(node, tensors))
    return [node for node in nodes if not node.inputs or any(v is not None and not v.constant for v in node.inputs)]


class _Tensors:
    """Shapes and bits of a graph's tensors by name, and which of them are constants."""

    def __init__(self, graph: GraphProto, file: Path) -> None:
        self.file = file
        self._known: dict[str, tuple[list[int | None], int]] = {}
        for info in (*graph.input, *graph.value_info, *graph.output):
            kind = info.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
            self._known[info.name] = shape, _bits(kind.elem_type)
        for given in graph.initializer:
            self._known[given.name] = list(given.dims), _bits(given.data_type)
        self.constants = {given.name for given in graph.initializer}

    def add_constant(self, node: NodeProto) -> None:
        """Know the result of a Constant, which is a tensor, or a number or several without a type of their own."""
        (held,) = [onnx.helper.get_attribute_value(attribute) for attribute in node.attribute]
        is_tensor = isinstance(held, TensorProto)
        self._known[node.output[0]] = (list(held.dims), _bits(held.data_type)) if is_tensor else ([], 32)
        self.constants.add(node.output[0])

    def value(self, name: str, of: NodeProto) -> Value:
        """Return what an operator reads or makes. Raises Unsupported where its size is not known."""
        shape, bits = self._known.get(name, ([None], 0))
        return Value(name, fixed(shape, of.name or of.op_type, self.file), bits, name in self.constants)


def _node(node: NodeProto, tensors: _Tensors) -> Node:
    """An operator; what one that is not in the tables reads and makes is not asked for: it is refused by its type."""
    inputs: tuple[Value | None, ...] = ()
    outputs: tuple[Value, ...] = ()
    if node.op_type in OPERATORS:
        inputs = tuple(tensors.value(name, node) if name else None for name in node.input)
        outputs = tuple(tensors.value(name, node) for name in node.output if name)
    if inputs and all(value is None or value.constant for value in inputs):
        tensors.constants.update(node.output)
    module, slash, _ = node.name.rpartition("/")
    return Node(
        node.op_type, node.name or node.op_type, module if slash else "", inputs, outputs, _settings(node.attribute)
    )


def _settings(attributes: list[AttributeProto]) -> dict[str, Any]:
    """The attributes that accounts ask for."""
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in attributes}
    return {
        "groups": found.get("group", 1),
        "transpose_a": found.get("transA", 0),
        "equation": found.get("equation", b"").decode(errors="replace"),
    }


def _bits(kind: int) -> int:
    if kind in (TensorProto.INT4, TensorProto.UINT4):
        return 4
    if kind in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 0
    bits: int = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
    return bits
