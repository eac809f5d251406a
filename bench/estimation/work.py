"""What every operator of a file computes and moves: the counts that a roofline is made of.

`read_work` reads an ONNX file or a Core ML package, whoever wrote it, without running it or a converter:

    kind        operators                                             multiply-accumulates
    conv        convolutions with a kernel, one group                 outputs x C_in/groups x kernel
    pointwise   convolutions of one place, one group                  the same
    depthwise   as many groups as channels                            the same
    grouped     other groups; transposed convolutions                 the same; inputs x C_out/groups x kernel
    linear      products with weights                                 outputs x K
    matmul      products of two activations, attention                outputs x K, attention both of its products
    softmax     softmax, log softmax
    norm        layer, instance, group, batch and l2 norms
    pool        windows: mean and maximum
    reduce      over axes: sums, means, maxima
    unary       a function of each number; casts
    binary      of two or three numbers
    move        transposes, joins, cuts, gathers, padding, resizing
    view        the same numbers in another shape

A *fused* operator works, number by number, on what one operator before it makes for it alone: compilers do that while
the number is at hand. It writes nothing then, in the account, and reads only its other operands. The pair x * f(x)
counts as such an operator. Bytes are counted in the types that the file declares.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgesmith.errors import BackendMissing, BadInput, Unsupported

KINDS = (
    "conv",
    "pointwise",
    "depthwise",
    "grouped",
    "linear",
    "matmul",
    "softmax",
    "norm",
    "pool",
    "reduce",
    "unary",
    "binary",
    "move",
    "view",
)


@dataclass(frozen=True)
class Work:
    """One operator.

    Attributes:
        name, type: the file's own.
        module: of the model, "" for the model itself; None where the file does not say.
        kind: one of KINDS.
        fused: see above.
        macs: multiply-accumulates; 0 where none are products.
        weight_bytes: constants that it reads.
        read_bytes, written_bytes: activations.
    """

    name: str
    type: str
    module: str | None
    kind: str
    fused: bool
    macs: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class _Value:
    """A tensor: how many numbers in which shape, of how many bits, and whether it is in the file."""

    name: str
    shape: tuple[int, ...]
    bits: int
    constant: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return math.ceil(self.size * self.bits / 8)


@dataclass(frozen=True)
class _Node:
    """An operator as both formats have it: operands in the format's order, those left out as None."""

    type: str
    name: str
    module: str | None
    inputs: tuple[_Value | None, ...]
    outputs: tuple[_Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def operands(self) -> Iterator[_Value]:
        return (value for value in self.inputs if value is not None)


def read_work(file: Path) -> list[Work]:
    """The operators of an ONNX file or a Core ML package, in order.

    Raises:
        BadInput: another kind of file, or one that cannot be read.
        Unsupported: sizes that only a run decides, loops and branches, or an operator that is not in the tables.
    """
    if file.suffix == ".onnx":
        return _account(_onnx_nodes(file), _ONNX, file)
    if file.suffix == ".mlpackage":
        return _account(_mil_nodes(file), _MIL, file)
    raise BadInput(f"operators are counted in .onnx files and .mlpackage folders, got {file.name}")


def _account(nodes: Sequence[_Node], kinds: Mapping[str, str], file: Path) -> list[Work]:
    found = [_work(node, kinds, file) for node in nodes]
    readers = Counter(value.name for node in nodes for value in {v.name: v for v in node.operands}.values())
    reading: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for value in {v.name: v for v in node.operands}.values():
            reading.setdefault(value.name, []).append(i)
    makers = {value.name: i for i, node in enumerate(nodes) for value in node.outputs}
    for i, node in enumerate(nodes):
        if found[i].kind not in ("unary", "binary"):
            continue
        for value in node.operands:
            maker = makers.get(value.name)
            if maker is None or found[maker].kind not in _HEADS or value.size != node.outputs[0].size:
                continue
            if readers[value.name] == 1 or _is_gated(nodes, found, reading[value.name], i):
                others = sum(v.bytes for v in node.operands if not v.constant and v.name != value.name)
                others -= sum(v.bytes for v in node.operands if makers.get(v.name) in _partners(reading, value.name, i))
                found[i] = replace(found[i], fused=True, read_bytes=max(others, 0), written_bytes=0)
                break
    return found


_HEADS = frozenset(KINDS) - {"move", "view", "softmax"}
"""Kinds behind which an operator on each number costs no trip to memory."""


def _partners(reading: Mapping[str, Sequence[int]], name: str, reader: int) -> list[int]:
    return [i for i in reading[name] if i != reader]


def _is_gated(nodes: Sequence[_Node], found: Sequence[Work], readers: Sequence[int], this: int) -> bool:
    """Whether the two readers of a value are x * f(x): `this` is either of them."""
    if len(readers) != 2:
        return False
    first, last = readers
    made = {value.name for value in nodes[first].outputs}
    return (
        found[first].kind == "unary"
        and found[last].kind == "binary"
        and any(value.name in made for value in nodes[last].operands)
    )


def _work(node: _Node, kinds: Mapping[str, str], file: Path) -> Work:
    kind = kinds.get(node.type)
    if kind is None:
        raise Unsupported(
            f"{file.name}: {node.name} is a {node.type}, whose work is not counted: it depends on the run,"
            " or exporters/work.py has no rule for it"
        )
    macs = 0
    if kind == "conv":
        kind, macs = _convolution(node)
    elif kind == "transposed":
        kind, macs = "grouped", _transposed(node)
    elif kind == "matmul":
        kind, macs = _product(node)
    return Work(
        node.name,
        node.type,
        node.module,
        kind,
        False,
        macs,
        sum(value.bytes for value in node.operands if value.constant),
        0 if kind == "view" else sum(value.bytes for value in node.operands if not value.constant),
        0 if kind == "view" else sum(value.bytes for value in node.outputs),
    )


def _convolution(node: _Node) -> tuple[str, int]:
    image, weight = node.inputs[0], node.inputs[1]
    assert image is not None
    assert weight is not None
    groups = int(node.attributes.get("groups", 1))
    kernel = weight.shape[2:]
    if groups == 1:
        kind = "pointwise" if math.prod(kernel) == 1 else "conv"
    else:
        kind = "depthwise" if weight.shape[1] == 1 else "grouped"
    return kind, node.outputs[0].size * math.prod(weight.shape[1:])


def _transposed(node: _Node) -> int:
    image, weight = node.inputs[0], node.inputs[1]
    assert image is not None
    assert weight is not None
    return image.size * math.prod(weight.shape[1:])


def _product(node: _Node) -> tuple[str, int]:
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    if node.type in ("scaled_dot_product_attention", "Attention"):
        assert b is not None
        return "matmul", a.size * b.shape[-2] * 2  # queries with keys, and the weights with values
    if node.type in ("einsum", "Einsum"):
        letters: dict[str, int] = {}
        terms = str(node.attributes["equation"]).replace(" ", "").split("->")[0].split(",")
        for term, value in zip(terms, node.operands, strict=True):
            letters.update(zip(term, value.shape, strict=True))
        return "matmul", math.prod(letters.values())
    assert b is not None
    transposed = bool(node.attributes.get("transpose_a"))
    inner = a.shape[-2 if transposed and len(a.shape) > 1 else -1]
    return "linear" if a.constant or b.constant else "matmul", node.outputs[0].size * inner


def _kinds(table: Mapping[str, str]) -> dict[str, str]:
    return {name: kind for kind, names in table.items() for name in names.split()}


_ONNX = _kinds(
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

_MIL = _kinds(
    {
        "conv": "conv",
        "transposed": "conv_transpose",
        "matmul": "matmul linear einsum scaled_dot_product_attention",
        "softmax": "softmax",
        "norm": "layer_norm instance_norm batch_norm l2_norm local_response_norm",
        "pool": "avg_pool max_pool l2_pool",
        "reduce": "reduce_mean reduce_sum reduce_max reduce_min reduce_prod reduce_l1_norm reduce_l2_norm"
        " reduce_sum_square reduce_log_sum reduce_log_sum_exp reduce_argmax reduce_argmin cumsum",
        "unary": "relu relu6 clip gelu silu sigmoid sigmoid_hard tanh scaled_tanh exp exp2 log erf sqrt rsqrt inverse"
        " abs square softplus softplus_parametric softsign elu leaky_relu prelu thresholded_relu clamped_relu"
        " linear_activation cast floor ceil round sign sin cos threshold logical_not quantize dequantize",
        "binary": "add sub mul real_div floor_div mod pow maximum minimum equal not_equal greater greater_equal less"
        " less_equal logical_and logical_or logical_xor select",
        "move": "transpose concat split stack slice_by_index slice_by_size gather gather_along_axis gather_nd"
        " scatter scatter_along_axis scatter_nd slice_update pad tile upsample_nearest_neighbor upsample_bilinear"
        " resize_bilinear resize_nearest_neighbor resize crop_resize crop pixel_shuffle pixel_unshuffle"
        " space_to_depth depth_to_space batch_to_space space_to_batch reverse band_part topk argsort one_hot"
        " sliding_windows read_state write_state coreml_update_state",
        "view": "reshape reshape_like expand_dims squeeze flatten2d identity shape fill fill_like range_1d classify",
    }
)
"""Operators that read compressed weights (`constexpr_*`) are no work of their own: they are the weights."""


def _onnx_nodes(file: Path) -> list[_Node]:
    try:
        import onnx
    except ImportError as error:
        raise BackendMissing('reading an ONNX file needs onnx: pip install "edgesmith"') from error
    try:
        model = onnx.load(str(file))
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # protobuf and onnx raise errors of their own
        raise BadInput(f"{file} is not an ONNX file that can be read: {error}") from error
    values = {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        kind = info.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        values[info.name] = (shape, _onnx_bits(onnx, kind.elem_type))
    for given in graph.initializer:
        values[given.name] = (list(given.dims), _onnx_bits(onnx, given.data_type))
    constants = {given.name for given in graph.initializer}

    def value(name: str, of: Any) -> _Value:
        shape, bits = values.get(name, ([None], 0))
        return _Value(name, _fixed(shape, of.name or of.op_type, file), bits, name in constants)

    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            (tensor,) = [onnx.helper.get_attribute_value(a) for a in node.attribute]
            dims, kind = (list(tensor.dims), tensor.data_type) if hasattr(tensor, "dims") else ([], 1)
            values[node.output[0]] = (dims, _onnx_bits(onnx, kind))
            constants.add(node.output[0])
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in _ONNX:
            inputs = tuple(value(name, node) if name else None for name in node.input)
            outputs = tuple(value(name, node) for name in node.output if name)
        else:
            inputs, outputs = (), ()  # refused by its type, before sizes are asked for
        if all(v is None or v.constant for v in inputs) and inputs:
            constants.update(node.output)
        module, slash, _ = node.name.rpartition("/")
        nodes.append(
            _Node(
                node.op_type,
                node.name or node.op_type,
                module if slash else "",
                inputs,
                outputs,
                {
                    "groups": attributes.get("group", 1),
                    "transpose_a": attributes.get("transA", 0),
                    "equation": attributes.get("equation", b"").decode(),
                },
            )
        )
    return [node for node in nodes if not node.inputs or any(v is not None and not v.constant for v in node.inputs)]


def _onnx_bits(onnx: Any, kind: int) -> int:
    if kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return 4
    if kind in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return 0
    bits: int = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
    return bits


def _mil_nodes(file: Path) -> list[_Node]:
    from edgesmith.exporters.mil.program import Constant, Ref, TensorType, load

    program = load(file)
    function = program.function()
    values: dict[str, _Value] = {}

    def tensor(name: str, kind: Any, site: str, constant: bool = False) -> _Value:
        if not isinstance(
            kind, TensorType
        ):  # a state, a list, a dictionary: what it holds is moved by no operator here
            return _Value(name, (0,), 0, constant)
        shape = None if kind.shape is None else list(kind.shape)
        return _Value(name, _fixed(shape, site, file), _MIL_BITS.get(kind.dtype, 0), constant)

    for name, kind in _typed(function.inputs):
        values[name] = tensor(name, kind, name)
    nodes = []
    for operation in function.block.operations:
        stored = operation.type == "const" or operation.type.startswith("constexpr_")
        if operation.blocks:
            nodes.append(_Node(operation.type, operation.name, operation.source, (), ()))
            continue
        outputs = tuple(tensor(v.name, v.type, operation.site, stored) for v in operation.outputs)
        if operation.type.startswith("constexpr_"):  # stored smaller than what it stands for
            held = sum(
                values[o.name].bytes for o in operation.inputs.values() if isinstance(o, Ref) and o.name in values
            )
            outputs = tuple(
                replace(v, bits=held * 8 // max(v.size, 1) if held * 8 >= v.size else v.bits) for v in outputs
            )
        values.update((v.name, v) for v in outputs)
        if stored:
            continue
        inputs: list[_Value | None] = []
        for parameter in _in_order(operation.type, operation.inputs):
            operand = operation.inputs.get(parameter)
            for one in operand if isinstance(operand, tuple) else (operand,):
                if isinstance(one, Ref):
                    inputs.append(values[one.name])
                elif isinstance(one, Constant):
                    inputs.append(tensor(f"{operation.name}.{parameter}", one.type, operation.site, True))
        attributes = {
            "groups": _read(operation.inputs.get("groups"), function, 1),
            "transpose_a": _read(operation.inputs.get("transpose_x"), function, False),
            "equation": _read(operation.inputs.get("equation"), function, ""),
        }
        module = operation.source
        nodes.append(_Node(operation.type, operation.name, module, tuple(inputs), outputs, attributes))
    return nodes


def _typed(inputs: Any) -> Iterator[tuple[str, Any]]:
    for variable in inputs:
        yield variable.name, variable.type


def _in_order(kind: str, inputs: Mapping[str, Any]) -> list[str]:
    """Parameters that are tensors: operands first, in the order that the accounts take; settings are not counted."""
    first = {
        "matmul": ("x", "y"),
        "linear": ("x", "weight", "bias"),
        "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
        "select": ("cond", "a", "b"),
        "layer_norm": ("x", "gamma", "beta"),
        "instance_norm": ("x", "gamma", "beta"),
        "batch_norm": ("x", "mean", "variance", "gamma", "beta"),
        "einsum": ("values",),
        "concat": ("values",),
        "stack": ("values",),
    }.get(kind)
    if first:
        return [name for name in first if name in inputs]
    operands = ("x", "y", "weight", "bias", "alpha", "data", "input", "updates", "indices", "update", "cond", "a", "b")
    return [name for name in operands if name in inputs]


def _read(operand: Any, function: Any, default: Any) -> Any:
    """A setting's value: in the operator, or in the `const` that it names."""
    from edgesmith.exporters.mil.program import Constant, Ref

    if isinstance(operand, Ref):
        for operation in function.block.operations:
            if operation.type == "const" and operation.outputs[0].name == operand.name:
                operand = operation.inputs.get("val", operation.attributes.get("val"))
                break
    if not isinstance(operand, Constant):
        return default
    value = operand.read()
    return value.item() if hasattr(value, "item") else value


_MIL_BITS = {
    "bool": 8,
    "fp16": 16,
    "bf16": 16,
    "fp32": 32,
    "fp64": 64,
    **{f"{sign}int{bits}": bits for sign in ("", "u") for bits in (1, 2, 3, 4, 6, 8, 16, 32, 64)},
}


def _fixed(shape: Sequence[int | None] | None, site: str, file: Path) -> tuple[int, ...]:
    """A shape without free axes."""
    if shape is None or any(size is None for size in shape):
        raise Unsupported(
            f"{file.name}: the size of what {site} reads or makes is decided by a run; give the batch a size"
        )
    return tuple(size for size in shape if size is not None)
