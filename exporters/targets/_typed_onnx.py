"""ONNX files with their precision in the graph, for every target that reads ONNX: written, checked, run, looked into.

torch's dynamo exporter with the fused ops' own lowerings, simplified by onnxsim, one self-contained file. Static
shapes, or a free batch axis. fp16 is typed in the graph, with float32 inputs and outputs; int8 is QuantizeLinear and
DequantizeLinear in it, see precision/int8.py. The model's metadata carry its name, version, input normalisation and
labels. Names of nodes and weights are the model's own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgesmith.errors import Unsupported
from edgesmith.exporters.targets._quiet import quiet
from edgesmith.exporters.targets.target import Arrays, NotHere, Request, Run, TargetFile
from edgesmith.readers.messages import read_onnx

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.manifest import InterfaceRecord, ValueRecord
    from edgesmith.exporters.streaming.step import Step
    from edgesmith.profiles.device import Cuda

LOWERINGS = "onnx"
"""Whose lowerings of fused ops these files are made of."""

OWN_TRANSLATIONS = frozenset({"aten.group_norm", "aten.clamp"})
"""Operators of PyTorch that are translated here, not by torch's exporter."""

OPSET = 20
_LIMIT_BYTES = 2**31 - 2**20


def lower(program: Program, path: Path, request: Request, coarse_from: Mapping[str, int] | None = None) -> None:
    """Write the program as one ONNX file.

    Args:
        coarse_from: of the target, see `Target.coarse_from`.
    """
    import onnxsim
    import torch

    from edgesmith.exporters.graph.capture import exported
    from edgesmith.exporters.graph.subgraphs import refuse_control_flow
    from edgesmith.exporters.targets import _bf16, _onnx_norms, _onnx_reductions
    from edgesmith.exporters.targets._refusal import refuse
    from edgesmith.kernels.op import all_ops

    refuse_control_flow(program.module, "ONNX", takes=("cond", "while_loop", "scan"))
    ready = exported(program, LOWERINGS, is_traced_again=True)
    has_bf16 = request.precision.dtype == "bfloat16"
    table: dict[Any, Any] = {
        op.overload: op.lowerings[LOWERINGS] for op in all_ops().values() if LOWERINGS in op.lowerings
    }
    table |= _own_translations(request)
    with quiet(), _exact_units(), _registry_once(), _traced_where_needed():
        try:
            written = torch.onnx.export(
                ready,
                input_names=list(program.input_names),
                output_names=list(program.output_names),
                custom_translation_table=table,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                external_data=False,
            )
        except Exception as error:  # OnnxExporterError, and what the translations of single operators raise
            raise refuse(error, ready.graph.nodes, "ONNX") from error
        assert written is not None
        model = written.model_proto
        if model.ByteSize() > _LIMIT_BYTES:
            raise Unsupported(f"the model is {model.ByteSize() / 2**30:.1f} GiB; one ONNX file holds less than 2 GiB")
        _name_nodes(model)
        if has_bf16:
            _bf16.to_double(model)
        try:
            model, _ = onnxsim.simplify(model, check_n=0)
        except Exception as error:  # RuntimeError, onnx's InferenceError, and what its passes raise
            raise refuse(error, ready.graph.nodes, "ONNX") from error
        if has_bf16:
            _bf16.from_double(model)
    _forget_merged(model)
    _spell_for_runtime(model, request.precision.is_half)
    model = _onnx_reductions.refine(model, coarse_from or {})
    _annotate(model, request)
    done = _onnx_norms.keep_apart(model)
    if request.profile is not None and request.profile.cuda is not None:
        done += _legalize_for_tensorrt(model, request.profile.cuda)
    _onnx_norms.record(model, done)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _own_translations(request: Request) -> dict[Any, Any]:
    """Return the translations of OWN_TRANSLATIONS, and of means in int8."""
    import torch

    aten = torch.ops.aten
    means = {aten.mean.dim: _mean} if request.precision.calibrates else {}
    return {aten.group_norm.default: _group_norm, aten.clamp.default: _clamp, **means}


def _spell_for_runtime(model: onnx.ModelProto, is_half: bool) -> None:
    """Write a model in the operators and types that ONNX Runtime computes as ONNX says, `is_half` by a precision."""
    from edgesmith.exporters.targets import _onnx_sigmoids, _onnx_types

    _onnx_sigmoids.keep_digits(model)
    _onnx_types.legalize(model)
    if not is_half:
        _onnx_types.round_halves(model)
    _onnx_types.turn_in_single(model)


def _legalize_for_tensorrt(model: onnx.ModelProto, cuda: Cuda) -> list[dict[str, str]]:
    """Write a model without what TensorRT is known to compute otherwise. Returns what was changed."""
    from edgesmith.exporters.targets import _onnx_projections, _onnx_samples, _onnx_sums

    return [
        *_onnx_sums.align_sums(model),
        *_onnx_samples.gather_samples(model),
        *_onnx_projections.join_projections(model, cuda),
    ]


def _group_norm(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """Group norm, each group one instance. The affine of each channel is a batch norm whose statistics are 0 and 1.

    That is one pass over the map as it lies. A multiply and a sum are two, and for a depthwise convolution ONNX Runtime
    goes over to its blocked layout and back again.
    """
    import numpy as np
    import onnx_ir as ir
    from onnxscript import opset20

    op: Any = opset20  # its stubs want numpy's types where the exporter takes values
    kind = x.dtype.numpy()

    def constant(value: Any) -> Any:
        return op.Constant(value=ir.tensor(np.asarray(value, dtype=kind)))

    channels, *sizes = x.shape[1:]
    groups = op.Reshape(x, op.Constant(value_ints=[0, num_groups, -1]))
    normed = op.InstanceNormalization(groups, constant([1] * num_groups), constant([0] * num_groups), epsilon=eps)
    normed = op.Reshape(normed, op.Constant(value_ints=[0, *map(int, (channels, *sizes))]))
    if weight is None and bias is None:
        return normed
    ones, zeros = constant([1] * channels), constant([0] * channels)
    scale, shift = (ones if weight is None else weight), (zeros if bias is None else bias)
    return op.BatchNormalization(normed, scale, shift, zeros, ones, epsilon=0.0)


def _clamp(x: Any, least: float | None = None, most: float | None = None) -> Any:
    """Clamp, as one Clip; PyTorch's is `most` everywhere where the bounds are the wrong way round."""
    import numpy as np
    import onnx_ir as ir
    from onnxscript import opset20

    op: Any = opset20  # as above
    kind = x.dtype.numpy()
    low, high = (None if one is None else op.Constant(value=ir.tensor(np.asarray(one, kind))) for one in (least, most))
    if least is not None and most is not None and least > most:
        return op.Min(op.Max(x, low), high)
    return op.Clip(x, low, high)


def _mean(x: Any, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: int | None = None) -> Any:
    """Mean; of whole maps that stay maps as a GlobalAveragePool, of which ONNX Runtime has a kernel for integers."""
    from onnxscript import opset20

    op: Any = opset20  # as above
    rank = len(x.shape)
    axes = sorted(axis % rank for axis in dim) if dim else list(range(rank))
    if rank == 4 and axes == [2, 3] and keepdim:
        return op.GlobalAveragePool(x)
    return op.ReduceMean(x, op.Constant(value_ints=axes), keepdims=int(keepdim))


@contextlib.contextmanager
def _exact_units() -> Iterator[None]:
    """Have the exporter's optimizer drop x + 0 and x * 1 only, and make no Clip of what is none.

    It compares constants with those of its patterns up to 1e-5, or 1e-8 from 0 (onnxscript, `Constant` in
    rewriter/_pattern_ir.py), so that it drops x + 1e-8 and x * 1.000005 too. Of relu(clip(x, -2, -1)), which is 0, it
    makes clip(x, 0, -1), which is -1, and of two clips of one value it loses the bounds of one: both have one name.

    Nor does it look for two Slices that are one Split: it compares all pairs in a file (60 % of an export of
    transnext_micro), and finds none, as torch's Slices have steps and the pattern's have not.
    """
    from onnxscript import rewriter
    from onnxscript.rewriter import _matcher
    from onnxscript.rewriter.rules.common import _basic_rules, _fuse_relus_clips, _min_max_to_clip

    class Exact:
        """The module `math`, as far as the matcher asks it."""

        @staticmethod
        def isclose(found: float, wanted: float, **tolerances: float) -> bool:
            return found == wanted if wanted in (0, 1) else math.isclose(found, wanted, **tolerances)

    matcher, general = cast(Any, _matcher), cast(Any, rewriter)
    before, rules = matcher.math, general._DEFAULT_REWRITE_RULES
    left = (*_fuse_relus_clips.rules, *_min_max_to_clip.rules, _basic_rules.slice_split_rule)
    matcher.math = Exact
    general._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule not in left)
    try:
        yield
    finally:
        matcher.math = before
        general._DEFAULT_REWRITE_RULES = rules


class OnnxFile(TargetFile):
    """An ONNX file, parsed once.

    Args:
        as_written: compute int8 as the file spells it, in float between its roundings, instead of in kernels for
            integers, which on x86 without VNNI add two 8-bit products in 16 bits and saturate.
        may_have_bf16: whether to look for bf16, which ONNX Runtime does not run on a CPU; looking takes the package
            onnx.
    """

    def __init__(self, path: Path, runtime: str, *, as_written: bool = False, may_have_bf16: bool = True) -> None:
        super().__init__(path, runtime)
        self.as_written = as_written
        self.may_have_bf16 = may_have_bf16

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The content of the file; not to be written to."""
        return read_onnx(self.path)

    def check(self) -> None:
        """Check the file by onnx.checker with full shape inference."""
        import onnx

        try:
            onnx.checker.check_model(str(self.path), full_check=True)
        except Exception as error:  # DecodeError, ValidationError and InferenceError share no base class
            named = re.search(r"[Nn]ode name: ([\w./]+)|\(op_type:\w+, node name: ([\w./]+)\)", str(error))
            where = f" at {named[1] or named[2]}" if named else ""
            raise Unsupported(
                f"{self.path.name} is no valid ONNX model: onnx.checker refuses it{where}; export it again, and where"
                " that gives the same, with other operators or another precision"
            ) from error

    def legalizations(self) -> list[dict[str, str]]:
        """Return what `_onnx_norms.py`, `_onnx_sums.py`, `_onnx_samples.py` and `_onnx_projections.py` changed."""
        from edgesmith.exporters.targets import _onnx_norms

        return _onnx_norms.legalizations(self.model)

    def count_operators(self) -> dict[str, int]:
        """Return how often each operator type occurs, nodes inside loops too."""
        counts = Counter(node.op_type for node in _nodes(self.model.graph))
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def operators(self) -> list[tuple[str, str]]:
        """Return the name and operator type of every node, those inside loops too, in the file's order."""
        return [(node.name, node.op_type) for node in _nodes(self.model.graph)]

    def interface(self) -> InterfaceRecord:
        """Return inputs and outputs, as the graph declares them."""
        return {"inputs": _records(self.model.graph.input), "outputs": _records(self.model.graph.output)}

    def count_macs(self) -> dict[str, int]:
        """Return the multiply-accumulates of the first batch: `all`, and `int8`, between two dequantised values.

        Counted are convolutions and matmuls, in the bodies of loops as often as these run.
        """
        import onnx

        counts = {"int8": 0, "all": 0}
        _count_macs(onnx.shape_inference.infer_shapes(self.model).graph, {}, 1, counts)
        return counts

    def run(self, calls: Sequence[Arrays]) -> list[list[np.ndarray]] | NotHere:
        """Execute in ONNX Runtime on the CPU, with the optimisations that it does by itself."""
        return self._run(calls)

    def other_runtimes(self) -> dict[str, Run]:
        """Return ONNX Runtime without its optimisations, for int8, whose kernels and biases these choose."""
        return self._not_optimised() if self._is_quantised() else {}

    def levels(self) -> dict[str, Run]:
        """Return ONNX Runtime without its optimisations, which are known to take norms for what they are not."""
        return {} if self._is_quantised() else self._not_optimised()

    def _is_quantised(self) -> bool:
        return any(node.op_type == "DequantizeLinear" for node in _nodes(self.model.graph))

    def _not_optimised(self) -> dict[str, Run]:
        return {f"{self.runtime}, not optimised": lambda calls: self._run(calls, is_optimised=False)}

    def _run(self, calls: Sequence[Arrays], is_optimised: bool = True) -> list[list[np.ndarray]] | NotHere:
        reason = cannot_run()
        if reason is not None:
            return NotHere(reason)
        session = _session(self._computable(), self.as_written, is_optimised)
        names = [value.name for value in session.get_inputs()]
        try:
            return [session.run(None, dict(zip(names, given, strict=True))) for given in calls]
        except Exception as error:  # onnxruntime's exceptions share no importable base class
            raise _refused("run", error) from error

    def open_step(self, threads: int = 1) -> Step | NotHere:
        """Open a step program in ONNX Runtime; one thread is fastest for a step as small as these."""
        from edgesmith.exporters.streaming.stepper import open_onnx_step

        reason = cannot_run()
        return NotHere(reason) if reason is not None else open_onnx_step(self._computable(), threads)

    def intermediate(self, names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray]:
        """Return values inside the file: torch's exporter names a value after the program's node."""
        import onnx

        model = onnx.shape_inference.infer_shapes(self.model)
        inside = {name for node in model.graph.node for name in node.output}
        known = [name for name in names if name in inside]
        present = {value.name for value in model.graph.output}
        model.graph.output.extend(value for value in model.graph.value_info if value.name in set(known) - present)
        _make_computable(model)
        session = _session(model.SerializeToString())
        wanted = [value.name for value in session.get_outputs() if value.name in known]
        if not wanted:  # of no names ONNX Runtime makes all
            return {}
        feeds = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
        return dict(zip(wanted, session.run(wanted, feeds), strict=True))

    def _computable(self) -> Path | bytes:
        """Return what ONNX Runtime can run of the file: itself, or, of one in bf16, its stand-in."""
        if not self.may_have_bf16:
            return self.path
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return bytes(model.SerializeToString()) if _make_computable(model) else self.path


def _records(values: Iterable[onnx.ValueInfoProto]) -> list[ValueRecord]:
    from onnx.helper import tensor_dtype_to_np_dtype

    return [
        {
            "name": one.name,
            "type": str(tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type).name),
            "shape": [size.dim_param or size.dim_value for size in one.type.tensor_type.shape.dim],
        }
        for one in values
    ]


def cannot_run() -> str | None:
    """Return how ONNX Runtime is had, where it is not here."""
    if importlib.util.find_spec("onnxruntime") is None:
        return 'onnxruntime is not installed: pip install "edgesmith[run]"'
    return None


Shapes = dict[str, list[int]]
"""Sizes of values by name, 1 for a free axis."""


def _count_macs(graph: onnx.GraphProto, outer: Shapes, times: int, counts: dict[str, int]) -> None:
    """Add the multiply-accumulates of a graph that runs so many times, and of the loops in it."""
    shapes = dict(outer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    shapes |= {one.name: list(one.dims) for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for body in _bodies(node):
            _count_macs(body, shapes, times * _iterations(node, shapes), counts)
        if node.op_type in _MULTIPLIES:
            macs = times * _macs(node, shapes)
            counts["all"] += macs
            if all(_is_dequantised(name, makers) for name in node.input[:2]):
                counts["int8"] += macs


_MULTIPLIES = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


def _macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Return the multiply-accumulates of one convolution or matmul."""
    left, right, made = (shapes.get(name, []) for name in (*node.input[:2], node.output[0]))
    if node.op_type in ("MatMul", "Gemm"):
        is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(made) * (left[-2] if is_transposed else left[-1])
    return math.prod(left if node.op_type == "ConvTranspose" else made) * math.prod(right[1:])


def _iterations(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Return how often a node's body runs: a Scan's once for each step of its last input."""
    if node.op_type != "Scan":
        return 1
    axes = [list(a.ints) for a in node.attribute if a.name == "scan_input_axes"]
    return shapes.get(node.input[-1], [1])[axes[0][0] if axes else 0]


def _is_dequantised(name: str, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Return whether a value is one of int8, dequantised; a weight may be rearranged on the way."""
    made = makers.get(name)
    while made is not None and made.op_type in ("Transpose", "Reshape"):
        made = makers.get(made.input[0])
    return made is not None and made.op_type == "DequantizeLinear"


def _make_computable(model: onnx.ModelProto) -> bool:
    """Replace bf16 by what computes the same on a CPU; whether there was any."""
    from edgesmith.exporters.targets import _bf16

    found = _bf16.has_bf16(model)
    if found:
        _bf16.to_rounded_float(model)
    return found


def _session(model: Path | bytes, as_written: bool = False, is_optimised: bool = True) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not is_optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a few runs are not worth a busy core
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        given = model if isinstance(model, bytes) else str(model)
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no importable base class
        raise _refused("load", error) from error


def _refused(what: str, error: Exception) -> Unsupported:
    """Return the refusal of ONNX Runtime, which names a node and its operator in texts of many forms."""
    text = str(error)
    named = re.search(r"(?:[Nn]ode with name|Name:|[Nn]ode[:.]? ?\(?)\s*'?\(?([\w./]+/?\w+_\d+)", text)
    kind = re.search(r"implementation for (\w+)\(|running (\w+) node|Op \((\w+)\)|node[:.]? (\w+)", text)
    operator = next((found for found in kind.groups() if found), "") if kind else ""
    node = named[1] if named else ""
    place = f"{operator or 'the node'} at {node}" if node else operator or "an operator that it does not name"
    return Unsupported(
        f"ONNX Runtime does not {what} the file: it refuses {place}; spell that part of the model with other operators,"
        " or choose another precision or target"
    )


def _annotate(model: onnx.ModelProto, request: Request) -> None:
    """Say what the model is; drop what the exporter wrote about the machine and the source lines it ran from."""
    from edgesmith._version import __version__

    facts = {"name": request.name, "version": __version__, "precision": request.precision.name}
    if request.licence:
        facts |= {"licence": request.licence, "source": request.source}
    if request.image is not None:
        facts["input.layout"] = "NCHW, RGB, values in 0..1, then (value - mean) / std"
        facts["input.mean"] = json.dumps(request.image.mean)
        facts["input.std"] = json.dumps(request.image.std)
    if request.sequence is not None:
        facts["input.layout"] = request.sequence.layout
        facts["input.normalised"] = request.sequence.normalised
    if request.series is not None:
        facts["input.series"] = json.dumps(request.series.describe())
    if request.labels is not None:
        facts["labels"] = json.dumps(request.labels, ensure_ascii=False)
    del model.metadata_props[:]
    for key, value in facts.items():
        model.metadata_props.add(key=f"edgesmith.{key}", value=value)
    model.producer_name, model.producer_version = "edgesmith", __version__
    model.graph.name = request.name
    model.doc_string = model.graph.doc_string = ""
    for node in _nodes(model.graph):
        del node.metadata_props[:]
        node.doc_string = ""
    for graph in _graphs(model.graph):
        del graph.metadata_props[:]
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.doc_string = ""
            del value.metadata_props[:]


def _name_nodes(model: onnx.ModelProto) -> None:
    """Call every node after the module that it comes from, `network.0.0.attn/Conv_7`: profilers show these names."""
    import ast

    for i, node in enumerate(model.graph.node):
        scopes = [prop.value for prop in node.metadata_props if prop.key == "pkg.torch.onnx.name_scopes"]
        path = ast.literal_eval(scopes[0]) if scopes else []  # modules from the outside in, then the node's own name
        module = str(path[-2]) if len(path) > 1 else ""
        node.name = f"{module}/{node.op_type}_{i}" if module else f"{node.op_type}_{i}"
        for graph in _bodies(node):
            for j, inner in enumerate(_nodes(graph)):
                inner.name = f"{node.name}/{inner.op_type}_{j}"


def _forget_merged(model: onnx.ModelProto) -> None:
    """Drop the shape that onnxsim leaves from the second of two reductions, of which it makes one over all their axes.

    The result has the rank of what goes in, as axes are kept. ONNX's checker refuses a file that says otherwise.
    """
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    ranks |= {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    merged = set()
    for node in model.graph.node:
        keeps = next((one.i for one in node.attribute if one.name == "keepdims"), 1)
        if node.op_type.startswith("Reduce") and keeps:
            before, after = (ranks.get(name) for name in (node.input[0], node.output[0]))
            if before is not None and after is not None and before != after:
                merged.add(node.output[0])
    if merged:
        kept = [value for value in model.graph.value_info if value.name not in merged]
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the loops in it."""
    for inner in _graphs(graph):
        yield from inner.node


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the graphs of the loops in it."""
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


@contextlib.contextmanager
def _registry_once() -> Iterator[None]:
    """Have torch's exporter read its 500 translations once a process: at each export that takes half a second.

    It takes those of operators that there are. So they are read again where there are more of them by now.
    """
    import torch
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = _torchlib(len(torch._C._dispatch_get_all_op_names()))  # by torch's own method

    def copied(opset_version: int) -> ONNXRegistry:
        assert opset_version == OPSET
        mine = ONNXRegistry()
        mine._opset_version = opset_version
        mine.functions = {
            target: list(forms) for target, forms in read.functions.items()
        }  # an export adds to the lists
        return mine

    theirs = vars(ONNXRegistry)["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(copied)  # type: ignore[assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = theirs  # type: ignore[method-assign]


@contextlib.contextmanager
def _traced_where_needed() -> Iterator[None]:
    """Have torch's exporter trace a program again only where there is something in it to decompose.

    It would find the program that it has: the file has the same nodes, and an eighth of an export's time is saved.
    """
    from torch.fx import GraphModule
    from torch.onnx._internal.exporter import _fx_passes

    from edgesmith.exporters.graph.decomposed import kept_kernels

    theirs = _fx_passes.decompose_with_registry

    def decomposed(exported_program: Any, registry: ONNXRegistry) -> Any:
        graphs = [module for module in exported_program.graph_module.modules() if isinstance(module, GraphModule)]
        known = {operator.getitem, *(forms[0].fx_target for forms in registry.functions.values())}
        called = {node.target for node in graphs[0].graph.nodes if node.op == "call_function"}
        if len(graphs) == 1 and called <= known:
            return exported_program
        with kept_kernels():
            return theirs(exported_program, registry)

    _fx_passes.decompose_with_registry = decomposed
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = theirs


@functools.lru_cache(maxsize=1)
def _torchlib(operators: int) -> ONNXRegistry:
    """Return torch's translations of the operators that there are, by how many there are."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return ONNXRegistry.from_torchlib(opset_version=OPSET)
