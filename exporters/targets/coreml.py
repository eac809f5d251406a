"""Core ML: an ML Program in an `.mlpackage`, by coremltools, with the fused ops' own lowerings, made canonical.

fp16 by default, then with Float16 inputs; outputs are Float32. `image_input` takes an image: 1/255 and the mean become
the image's scale and bias, and each channel's standard deviation, which Core ML has no place for, goes into the first
convolution. `labels` make it a classifier.

A package as coremltools saves it differs from run to run: random identifiers, the date, map entries in hash order.
`_canonical` replaces the first by hashes of what they name, drops the second and sorts the third.

Core ML's operators have names without modules, and those of a fused op's lowering say nothing at all. coremltools keeps
the stack trace of the captured node beside each operator that it makes of it, through its own passes. `_with_modules`
puts the module's path there, and `_sources` gathers them into the package's metadata, for `mil.program` to read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import inspect
import json
import logging
import math
import platform
import shutil
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.targets import NotHere, Request, Run

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.mil.evaluate import Evaluator
    from edgesmith.exporters.mil.lint import Mended
    from edgesmith.exporters.mil.program import Operation
    from edgesmith.exporters.mil.report import Report
    from edgesmith.exporters.session import Step

name = "coreml"
suffix = ".mlpackage"
description = "Core ML ML Program, for iPhone, iPad and Mac"
precisions = ("fp16", "fp32", "mixed")
options: frozenset[str] = frozenset({"labels", "image_input", "deployment_target", "streaming", "with_sequence"})
packages = ("coremltools",)
extra = "coreml"
runtime = "edgesmith's evaluator"
is_interpreter = True
shows_operators = True
# Not measured: no Apple device here. A split of channels is a view of a planar tensor, and 2.4 us is CAS-ViT XS's
# published 0.85 ms on an iPhone over its 350 operators, an upper limit for starting one; 650 is the same time over its
# 554 million multiply-accumulates, a lower limit. A loop leaves the Neural Engine: each of its operators counts as a
# launch. The other rates are assumed, of the order of what a phone can do.
costs = Costs(
    launch_us=2.4,
    gmac_s=650.0,
    stream_gb_s=50.0,
    depthwise_gmac_s=40.0,
    columns=1,
    loop_us=2.4,
    read_gb_s=50.0,
)
dynamic_batch = False

DEFAULT_DEPLOYMENT_TARGET = "iOS17"
_OLDEST = 16
_STATES = 18
MAIN, STEP, SEQUENCE = "main", "step", "sequence"
"""The function of a package that has one, and those of one that has two: a step is then the default."""

_SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"
# x g + b becomes a batch norm of variance 1 and epsilon 1e-5, which divides every value by sqrt(1.00001). Behind a
# convolution it is not needed: other passes take product and sum into the weights, exactly.
_SPOILING_PASS = "common::fuse_elementwise_to_batchnorm"  # noqa: S105 - a graph pass, no password


def lower(program: Program, path: Path, request: Request) -> None:
    """Write the program as an `.mlpackage`; with `request.whole` it is the function `step`, beside `sequence`."""
    parts = {MAIN: (program, request)}
    if request.whole is not None:
        parts = {STEP: (program, request), SEQUENCE: (request.whole, replace(request, streaming=None))}
    sources: dict[str, dict[str, list[str]]] = {}
    written: dict[str, Program] = {}
    mended: list[Mended] = []
    packages = {function: path.with_name(f"raw-{function}-{path.name}") for function in parts}
    with _quiet():
        for function, (part, asked) in parts.items():
            model, written[function], mends = _convert(part, packages[function], asked)
            sources[function] = _sources(model)
            mended += mends
    first = next(iter(packages.values()))
    if request.whole is not None:
        from edgesmith.exporters.mil.functions import join

        join(packages, first / _SPECIFICATION)
    _canonical(first, path, request, sources, mended)
    for package in packages.values():
        shutil.rmtree(package)
    _check_names(path, written, classifier=request.labels is not None)


def _convert(program: Program, package: Path, request: Request) -> tuple[Any, Program, list[Mended]]:
    """What coremltools makes of the program and saves, the program as it went in, and what was mended."""
    import coremltools as ct
    import numpy as np

    from edgesmith.exporters.graph.capture import exported
    from edgesmith.exporters.mil.mend import mending
    from edgesmith.exporters.mil.states import keep_states

    target = deployment_target(request.deployment_target)
    _refuse_what_core_ml_lacks(program)
    if request.image_input:
        program = _scale_input(program, request)
    half = request.half
    states = None
    if request.keeps_states:
        assert request.streaming is not None
        program, module = keep_states(program, request.streaming["states"], half)
        kept = module.named_buffers(recurse=False)
        states = [ct.StateType(ct.TensorType(shape=tuple(b.shape), dtype=np.float16), name=n) for n, b in kept]
        converted = exported(program, name, module)
    else:
        converted = exported(program, name)
    inputs = _inputs(program, request)
    labels = request.labels
    classifier = None if labels is None else ct.ClassifierConfig(list(labels))
    outputs = None if classifier else [ct.TensorType(name=n, dtype=np.float32) for n in program.output_names]
    with _own_lowerings(half), mending() as mends:
        passes = _passes(mends.pipeline if half else None)
        if states is not None:
            # It moves every update to where its value is made, and fails where that is after another update. Here
            # all updates come last, so there is nothing to move.
            passes.remove_passes({"common::canonicalize_inplace_pattern"})
        try:
            with _validated_once():
                model = ct.convert(
                    _with_modules(converted),
                    inputs=inputs,
                    outputs=outputs,
                    states=states,
                    pass_pipeline=passes,
                    classifier_config=classifier,
                    convert_to="mlprogram",
                    minimum_deployment_target=target,
                    compute_precision=_compute_precision(request),
                    skip_model_load=True,
                    package_dir=str(package),
                )
        except OSError:
            raise
        except Exception as error:  # coremltools raises NotImplementedError, ValueError, RuntimeError alike
            line = str(error).strip().splitlines()
            if line and line[0].startswith("filesystem error"):  # how the native part says that a disk is full
                raise OSError(errno.EIO, "the package could not be written; is the disk full?") from error
            raise Unsupported(f"Core ML cannot express this model: {line[0] if line else error!r}") from error
    return model, program, mends.done


def check(path: Path) -> None:
    """The package is complete and its program can be read."""
    _blocks(path)


def count_operators(path: Path) -> dict[str, int]:
    """Operators of all functions by type, those inside loops too, constants left out."""
    counts = Counter(op.type for block in _blocks(path) for op in _operations(block))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def mended(path: Path) -> list[dict[str, str]]:
    """What of the Neural Engine's rules the lowering has mended: rule, operator's name, change in words."""
    from edgesmith.exporters.mil.lint import mended_in
    from edgesmith.exporters.mil.program import load

    return [asdict(one) for one in mended_in(load(path))]


def largest_rank(path: Path) -> int:
    """The highest rank of any value that an operator other than a constant makes."""
    made = [output for block in _blocks(path) for op in _operations(block) for output in op.outputs]
    ranks = [len(output.type.tensorType.dimensions) for output in made]
    return max(ranks, default=0)


def cannot_run() -> str | None:
    """Nothing hinders the evaluator."""
    return None


def run(path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]] | NotHere:
    """Evaluate the package's program with torch; see mil/evaluate.py."""
    evaluator = _evaluator(path, inputs[0])
    return [_arrays(path, evaluator.run(_feeds(evaluator, given))) for given in inputs]


def wide_operators(path: Path, inputs: Sequence[Sequence[np.ndarray]], snr_db: float) -> dict[str, str]:
    """What leaves the range of half precision or loses most of the SNR; see mil/mixed.py."""
    from edgesmith.exporters.mil import mixed

    evaluator = _evaluator(path)
    return mixed.wide_operators(path, [_feeds(evaluator, given) for given in inputs], snr_db)


def traced(path: Path, inputs: Sequence[np.ndarray]) -> dict[str, tuple[float, float]]:
    """Of every operator with a float result, in the evaluator, the last turn of a loop's."""
    import torch

    evaluator = _evaluator(path, inputs)
    found: dict[str, tuple[float, float]] = {}

    def watch(operation: Operation, results: tuple[Any, ...]) -> None:
        for variable, value in zip(operation.outputs, results, strict=True):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                flat = value.double().flatten()
                weighted = flat @ torch.arange(flat.numel(), dtype=torch.float64).cos() / flat.numel() ** 0.5
                name = operation.site if len(results) == 1 else f"{operation.site}, {variable.name}"
                found[name] = (float(flat.square().mean().sqrt()), float(weighted))

    evaluator.run(_feeds(evaluator, inputs), watch=watch)
    return found


def diagnose(path: Path, inputs: Sequence[np.ndarray]) -> str | None:
    """The first operator that leaves the range of half precision, or else the first that loses 20 dB."""
    found = _compared(path, [inputs])
    if (cost := found.first_overflow) is not None:
        return f"{cost.met.site}, which makes {cost.wide.peak:.3g} where half precision ends at 65504"
    if (cost := found.first_loss) is not None:
        return f"{cost.met.site}, which loses {cost.loss_db:.1f} dB to its precision"
    return None


def layers(path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> list[dict[str, Any]]:
    """Every operator's range, and its error against an evaluation in fp32, or in fp64 for a program of fp32.

    On a Mac also the `device` that Core ML plans for it, and its `cost`, a share of the whole time.
    """
    from edgesmith.exporters.mil import placement

    planned = placement.plan(path, _evaluator(path, inputs[0]).function.name)
    places = {} if isinstance(planned, NotHere) else {one.output: one for one in planned}
    found = []
    for cost in _compared(path, inputs).operators:
        if cost.met.dtype not in ("fp16", "fp32"):
            continue
        figures = (cost.met.minimum, cost.met.maximum, cost.error, cost.snr_db, cost.loss_db)
        keys = ("minimum", "maximum", "relative_error", "snr_db", "loss_db")
        finite = (None if value is None or not math.isfinite(value) else value for value in figures)
        where = {"operator": cost.met.output, "module": cost.met.source, "type": cost.met.type, "dtype": cost.met.dtype}
        more: dict[str, Any] = {"overflowed": cost.overflowed} if cost.overflowed else {}
        if (place := places.get(cost.met.output)) is not None:
            more |= {"device": place.device, "cost": place.cost}
        found.append(where | dict(zip(keys, finite, strict=True)) | more)
    return found


def _compared(path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> Report:
    from edgesmith.exporters.mil.report import compare

    evaluator = _evaluator(path, inputs[0])
    function = evaluator.function.name
    outputs = (one.type for operation in evaluator.program.operations(function) for one in operation.outputs)
    half = any(getattr(kind, "dtype", None) == "fp16" for kind in outputs)
    feeds = [_feeds(evaluator, given) for given in inputs]
    return compare(evaluator.program, feeds, function=function, against="fp32" if half else "fp64")


def cannot_time() -> str | None:
    """Why Core ML itself, which alone is timed, is not on this machine, or None."""
    if platform.system() == "Darwin":
        return None
    return f"Core ML is part of macOS, and this is {platform.system()}: time it on a Mac, --device ssh://user@mac"


def other_runtimes() -> dict[str, Run]:
    """Apple's own, on a Mac."""
    return {"Core ML": _predict} if platform.system() == "Darwin" else {}


def keeps_states(deployment_target: str | None) -> bool:
    """From iOS18 on: states are Core ML's own. Before, they are inputs and outputs."""
    return int((deployment_target or DEFAULT_DEPLOYMENT_TARGET).removeprefix("iOS")) >= _STATES


def open_step(path: Path) -> Step | NotHere:
    """A step program in the evaluator."""
    from edgesmith.exporters.session import Step

    evaluator = _evaluator(path)
    states = evaluator.make_states()

    def call(values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return _arrays(path, evaluator.run(_feeds(evaluator, values), states))

    def forget() -> None:
        states.update(evaluator.make_states())

    return Step(call, forget)


def intermediate(path: Path, names: Sequence[str], inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Values inside the program; coremltools calls most of them as the graph does, with a suffix in half precision."""
    evaluator = _evaluator(path, inputs)
    wanted = {f"{name}{suffix}": name for name in names for suffix in ("", "_cast_fp16")}
    found: dict[str, np.ndarray] = {}

    def watch(operation: Operation, results: tuple[Any, ...]) -> None:
        for variable, value in zip(operation.outputs, results, strict=True):
            if variable.name in wanted and hasattr(value, "numpy"):
                found[wanted[variable.name]] = value.float().numpy()

    evaluator.run(_feeds(evaluator, inputs), watch=watch)
    return found


def _evaluator(path: Path, given: Sequence[np.ndarray] = ()) -> Evaluator:
    """Of the package's function that takes the given shapes, where it has several, or else of the default one."""
    with _quiet():
        from edgesmith.exporters.mil.evaluate import Evaluator
        from edgesmith.exporters.mil.program import load

        program = load(path)
        shapes = [tuple(x.shape) for x in given]
        takes = {name: [one.shape for one in interface.inputs] for name, interface in program.interfaces.items()}
        function = next((name for name in takes if len(takes) > 1 and takes[name] == shapes), None)
        return Evaluator(program, function)


def _feeds(evaluator: Evaluator, given: Sequence[np.ndarray]) -> dict[str, Any]:
    """Inputs by name; pictures for what takes pictures."""
    import numpy as np

    feeds: dict[str, Any] = {}
    for feature, array in zip(evaluator.interface.inputs, given, strict=True):
        if feature.image is None:
            feeds[feature.name] = np.asarray(array)
        else:
            feeds[feature.name] = _picture(evaluator.program.metadata, array)
    return feeds


def _picture(metadata: Mapping[str, str], array: np.ndarray) -> np.ndarray:
    """The RGB bytes [H, W, 3] of a normalised image [1, 3, H, W], which the package will normalise itself."""
    import numpy as np

    mean, std = (np.array(json.loads(metadata[f"edgesmith.input.{key}"])) for key in ("mean", "std"))
    rgb = np.moveaxis(array[0], 0, -1) * std + mean
    picture: np.ndarray = np.rint(255 * rgb).astype(np.uint8)
    return picture


def _arrays(path: Path, values: Mapping[str, Any]) -> list[np.ndarray]:
    """Outputs as float32 arrays in their order; of a classifier the probabilities alone, in the order of its labels."""
    import numpy as np

    tables = [value for value in values.values() if isinstance(value, dict)]
    if tables:
        return [np.array([[tables[0][label] for label in _labels(path)]], dtype=np.float32)]
    return [value.float().numpy() for value in values.values()]


def deployment_target(wanted: str | None) -> Any:
    """Coremltools' constant for `iOS16` and later. Raises BadInput, which lists them."""
    with _quiet():
        import coremltools as ct

    known = [target.name for target in ct.target if target.name.startswith("iOS") and int(target.name[3:]) >= _OLDEST]
    wanted = wanted or DEFAULT_DEPLOYMENT_TARGET
    if wanted not in known:
        raise BadInput(f"unknown deployment target {wanted!r}. There are {', '.join(known)}")
    return ct.target[wanted]


def _inputs(program: Program, request: Request) -> list[Any]:
    import coremltools as ct
    import numpy as np

    if request.image_input:
        assert request.image is not None
        shape = tuple(program.inputs[0].shape)
        bias = [-value for value in request.image.mean]
        layout = ct.colorlayout.RGB
        return [ct.ImageType(program.input_names[0], shape, scale=1 / 255, bias=bias, color_layout=layout)]
    real = np.float16 if request.half else np.float32
    pairs = zip(program.input_names, program.inputs, strict=True)
    return [
        ct.TensorType(name=n, shape=tuple(x.shape), dtype=real if x.is_floating_point() else np.int32) for n, x in pairs
    ]


def _passes(pipeline: Any = None) -> Any:
    """Coremltools' passes, or those given, but for the one that spoils numbers."""
    import coremltools as ct

    pipeline = pipeline or ct.PassPipeline()
    pipeline.remove_passes({_SPOILING_PASS})
    return pipeline


def _compute_precision(request: Request) -> Any:
    """Coremltools' word for a precision: fp16 everywhere, nowhere, or but for some operators."""
    import coremltools as ct

    if not request.half:
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=lambda operation: operation.name not in request.wide)


def _refuse_what_core_ml_lacks(program: Program) -> None:
    """What coremltools would turn into something else without a word."""
    import torch

    kinds = {torch.float32, torch.float16, torch.int32, torch.int64}
    for input_name, x in zip(program.input_names, program.inputs, strict=True):
        if x.dtype not in kinds:
            raise Unsupported(f"Core ML takes float and integer inputs, and {input_name} is {x.dtype}")
    (returned,) = program.module.graph.output_node().args
    values = torch.utils._pytree.tree_leaves(returned)
    for output_name, value in zip(program.output_names, values, strict=True):
        if value.op != "call_function" or values.count(value) > 1:
            raise Unsupported(
                f"Core ML cannot return {output_name} ({value.name}): it is an input, a constant, or returned twice;"
                " return each computed value once"
            )


def _check_names(path: Path, programs: Mapping[str, Program], classifier: bool) -> None:
    """Refuse a package in which coremltools has renamed inputs or outputs: the manifest must be right about them."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((path / _SPECIFICATION).read_bytes())
    described = {function.name: function for function in model.description.functions}
    for function, program in programs.items():
        features = described.get(function, model.description)
        found = [feature.name for feature in features.input]
        wanted = list(program.input_names)
        if not classifier:
            found += [feature.name for feature in features.output]
            wanted += program.output_names
        if found != wanted:
            raise Unsupported(
                f"Core ML calls the inputs and outputs {found}, wanted {wanted}; rename forward's arguments"
            )


def _scale_input(program: Program, request: Request) -> Program:
    """The program for inputs that still have to be divided by the standard deviations."""
    import torch

    from edgesmith.exporters.graph.capture import with_module
    from edgesmith.exporters.graph.edit import fork, tidy
    from edgesmith.exporters.rewrites.fold_batchnorm import fold_forwards

    assert request.image is not None
    if program.inputs[0].shape[0] != 1:
        raise BadInput(f"an image input holds one image, and the batch is {program.inputs[0].shape[0]}; use --batch 1")
    module = fork(program.module)
    (image,) = (node for node in module.graph.nodes if node.op == "placeholder")
    scale = 1 / torch.tensor(request.image.std, dtype=torch.float64)
    reason = fold_forwards(module, image, scale, torch.zeros_like(scale))
    if reason is not None:
        raise Unsupported(f"the standard deviations cannot be folded into the first convolution: {reason}")
    return with_module(program, tidy(module))


@contextlib.contextmanager
def _own_lowerings(half: bool) -> Iterator[None]:
    """Register the fused ops' lowerings, and a better one for group norms, with coremltools while converting.

    Those that have a parameter `half` are told whether the program will be half precision; the others, whose operators
    coremltools itself makes so later, need not know.
    """
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.mil import Var

    from edgesmith.kernels.op import FusedOp, all_ops

    def translation(op: FusedOp) -> Any:
        lowering = op.lowerings["coreml"]
        told = {"half": half} if "half" in inspect.signature(lowering).parameters else {}

        def translate(context: Any, node: Any) -> None:
            values = _get_inputs(context, node)
            flags = [
                value.val if isinstance(value, Var) and value.op is not None and value.rank == 0 else value
                for value in values
            ]
            try:
                result = lowering(*flags, **told)
            except TypeError as error:  # what a lowering meets that prepares weights which have no value yet
                raise Unsupported(
                    f"edgesmith.{op.name} takes constant weights on Core ML, and they are computed"
                ) from error
            context.add(result, torch_name=node.name)

        return translate

    table = _TORCH_OPS_REGISTRY.name_to_func_mapping
    before = dict(table)
    for op in all_ops().values():
        if "coreml" in op.lowerings:
            table[f"edgesmith::{op.name}"] = translation(op)
    table["group_norm"] = _group_norm(table["group_norm"])
    table.setdefault("alias", _alias)
    table.setdefault("addcmul", _addcmul)
    try:
        yield
    finally:
        table.clear()
        table.update(before)


@contextlib.contextmanager
def _validated_once() -> Iterator[None]:
    """Validate what coremltools converts at the end, and not after each of its hundred passes: a third of the time."""
    from coremltools.converters.mil.mil import Program

    validate = Program.validate
    met: dict[int, Any] = {}

    def remember(program: Any, check_essential_scope: bool = False) -> None:
        met[id(program)] = program

    Program.validate = remember
    try:
        yield
    finally:
        Program.validate = validate
    for program in met.values():
        program.validate()


def _alias(context: Any, node: Any) -> None:
    """The value itself."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    context.add(mb.identity(x=_get_inputs(context, node)[0], name=node.name))


def _addcmul(context: Any, node: Any) -> None:
    """X + value a b; `value`, which is 1 if it is not given, comes by name."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs

    x, a, b = _get_inputs(context, node)[:3]
    value = _get_kwinputs(context, node, "value", default=[1.0])[0]
    factor = float(getattr(value, "val", value))
    product = mb.mul(x=a, y=b)
    product = product if factor == 1 else mb.mul(x=product, y=factor)
    context.add(mb.add(x=x, y=product, name=node.name))


def _group_norm(general: Any) -> Any:
    """Group norm of one group as Core ML's own layer norm over all axes but the first, and a scale and a shift.

    coremltools' translation (`general`) spells it in eight operators of rank 5, whatever the number of groups.
    """
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    def translate(context: Any, node: Any) -> None:
        given = _get_inputs(context, node, min_expected=2)
        x, groups, weight, bias, eps = (*given[:5], *[None] * (5 - len(given)))[:5]
        if groups.val != 1 or node.kwinputs:
            general(context, node)
            return
        epsilon = 1e-5 if eps is None else float(eps.val)
        y = mb.layer_norm(x=x, axes=list(range(1, x.rank)), epsilon=epsilon)
        planes = [1, -1, *[1] * (x.rank - 2)]
        if weight is not None:
            y = mb.mul(x=y, y=mb.reshape(x=weight, shape=planes))
        if bias is not None:
            y = mb.add(x=y, y=mb.reshape(x=bias, shape=planes))
        context.add(y, torch_name=node.name)

    return translate


def _with_modules(program: ExportedProgram) -> ExportedProgram:
    """The program with each node's module in the place of its stack trace."""
    from edgesmith.exporters.graph.edit import module_path

    for node in program.graph.nodes:
        node.meta["stack_trace"] = module_path(node)
    return program


def _sources(model: Any) -> dict[str, list[str]]:
    """From modules ("" for the model itself) to the names of their operators.

    Casts are left out, so that they belong to what they read: coremltools gives its own the place of what reads them,
    and where a value overflows in a cast, the module that made it is wanted.
    """
    from coremltools.converters.mil.mil.scope import ScopeSource

    found: dict[str, list[str]] = {}

    def visit(block: Any) -> None:
        for op in block.operations:
            for inner in op.blocks:
                visit(inner)
            module = next(iter(op.scopes.get(ScopeSource.EXIR_STACK_TRACE) or []), None)  # several in one: the first
            if module is not None and op.op_type not in ("const", "cast"):
                found.setdefault(module, []).append(op.name)

    for function in model._mil_program.functions.values():
        visit(function)
    return found


def _canonical(
    source: Path,
    path: Path,
    request: Request,
    sources: Mapping[str, Mapping[str, list[str]]],
    mended: Sequence[Mended],
) -> None:
    """Copy a package, described, and the same bytes for the same model."""
    from coremltools.proto import Model_pb2

    from edgesmith._version import __version__
    from edgesmith.exporters.mil.lint import MENDED
    from edgesmith.exporters.mil.program import SOURCES

    model = Model_pb2.Model()
    model.ParseFromString((source / _SPECIFICATION).read_bytes())
    metadata = model.description.metadata
    metadata.shortDescription = request.name
    metadata.versionString = __version__
    metadata.license = request.licence
    facts = {"edgesmith.source": request.source, "edgesmith.precision": request.precision}
    if request.image is not None:
        facts["edgesmith.input.mean"] = json.dumps(request.image.mean)
        facts["edgesmith.input.std"] = json.dumps(request.image.std)
    if request.sequence is not None:
        facts["edgesmith.input.normalised"] = request.sequence.normalised
    for function, table in sources.items():
        facts[SOURCES if len(sources) == 1 else f"{SOURCES}.{function}"] = json.dumps(table)
    if mended:
        facts[MENDED] = json.dumps([asdict(one) for one in mended])
    for key, value in facts.items():
        metadata.userDefined[key] = value
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    shutil.copytree(source / "Data", path / "Data")  # what coremltools leaves beside Data is for debugging
    (path / _SPECIFICATION).write_bytes(model.SerializeToString(deterministic=True))
    manifest = json.loads((source / "Manifest.json").read_text(encoding="utf-8"))
    entries, root = manifest["itemInfoEntries"], manifest["rootModelIdentifier"]
    renamed = {}
    for identifier, entry in sorted(entries.items(), key=lambda item: item[1]["path"]):
        digest = hashlib.sha256(entry["path"].encode())
        item = path / "Data" / entry["path"]
        for file in sorted([item] if item.is_file() else item.rglob("*")):
            if file.is_file():
                digest.update(file.relative_to(path).as_posix().encode() + b"\0" + file.read_bytes())
        new = str(uuid.uuid5(uuid.NAMESPACE_OID, digest.hexdigest())).upper()
        renamed[new] = entry
        root = new if identifier == root else root
    manifest |= {"itemInfoEntries": renamed, "rootModelIdentifier": root}
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _operations(block: Any) -> Iterator[Any]:
    """The operators of a block and of the blocks inside it, constants left out."""
    for op in block.operations:
        if op.type != "const":
            yield op
        for inner in op.blocks:
            yield from _operations(inner)


def shared_bytes(path: Path) -> int:
    """Bytes that a package of several functions saves, as they share weights."""
    from edgesmith.exporters.mil.functions import shared_bytes

    return shared_bytes(path)


def _blocks(path: Path) -> list[Any]:
    """Each function's block in a saved package."""
    with _quiet():
        from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    try:
        manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        model.ParseFromString((path / "Data" / entry["path"]).read_bytes())
        functions = [function for _, function in sorted(model.mlProgram.functions.items())]
        if not functions:
            raise KeyError("functions")
        return [function.block_specializations[function.opset] for function in functions]
    except Exception as error:  # json, key, protobuf and file errors: the package is broken in one way or another
        raise Unsupported(f"{path.name} is no readable ML Program package: {type(error).__name__} {error}") from error


def _predict(path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:  # pragma: no cover - macOS
    """Execute with Apple's runtime."""
    if not inputs:
        return []
    import coremltools as ct
    import numpy as np
    from PIL import Image

    spec = ct.utils.load_spec(str(path)).description
    metadata = spec.metadata
    shapes = [tuple(x.shape) for x in inputs[0]]
    fitting = (f for f in spec.functions if [tuple(i.type.multiArrayType.shape) for i in f.input] == shapes)
    described = next(fitting, None)
    spec = described or spec
    model = ct.models.MLModel(str(path), function_name=described.name if described else None)
    outputs = []
    for given in inputs:
        feeds: dict[str, Any] = {}
        for feature, array in zip(spec.input, given, strict=True):
            if feature.type.WhichOneof("Type") == "imageType":
                feeds[feature.name] = Image.fromarray(_picture(metadata.userDefined, array))
            else:
                feeds[feature.name] = array.astype(np.float32)
        result = model.predict(feeds)
        if spec.predictedProbabilitiesName:
            probabilities = result[spec.predictedProbabilitiesName]
            outputs.append([np.array([[probabilities[label] for label in _labels(path)]], dtype=np.float32)])
        else:
            outputs.append([np.asarray(result[feature.name], dtype=np.float32) for feature in spec.output])
    return outputs


def _labels(path: Path) -> list[str]:
    """A classifier's class names, in the order of its scores; none for other models."""
    for op in (op for block in _blocks(path) for op in block.operations):
        if op.type == "classify":
            names = op.inputs["classes"].arguments[0].value.immediateValue.list.values
            return [name.immediateValue.tensor.strings.values[0] for name in names]
    return []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep coremltools' warnings and progress bars off the user's terminal; errors still come as exceptions."""
    import tqdm

    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    init = tqdm.tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "disable": True})

    tqdm.tqdm.__init__ = silent
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.tqdm.__init__ = init
        logging.disable(level)
