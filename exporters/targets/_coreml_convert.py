"""Lowering a program to an `.mlpackage`: what is asked of coremltools, and which of its passes run.

Core ML's operators have names without modules, and those of a fused op's lowering say nothing at all. coremltools keeps
the stack trace of the captured node beside each operator that it makes of it, through its own passes. `_with_modules`
puts the module's path there, and `_sources` gathers them for the trace beside the package, which `mil.program` reads.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import re
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgesmith.errors import BadInput, EdgesmithError, Unsupported
from edgesmith.exporters.artifact import write_notes
from edgesmith.exporters.graph.capture import Program, exported, with_module, with_own_outputs
from edgesmith.exporters.graph.edit import Emitter, aten, fork, module_path, operator_name, tidy
from edgesmith.exporters.graph.long_numbers import refuse_long_numbers
from edgesmith.exporters.graph.not_numbers import chooses_from_not_finite
from edgesmith.exporters.graph.plain_types import with_plain_types
from edgesmith.exporters.graph.subgraphs import refuse_control_flow
from edgesmith.exporters.mil.functions import join, read_specification
from edgesmith.exporters.mil.legalize import VIEWS, Legalization, legalizing
from edgesmith.exporters.mil.states import keep_states
from edgesmith.exporters.rewrites.fold_batchnorm import fold_forwards
from edgesmith.exporters.rewrites.rewrite import Reject
from edgesmith.exporters.targets._coreml_inputs import LARGEST_RANK, with_core_ml_inputs
from edgesmith.exporters.targets._coreml_package import check_names, describe, notes_of, write
from edgesmith.exporters.targets._coreml_short_integers import short_integers_that_fit
from edgesmith.exporters.targets._coreml_spelling import is_lacking, spell_out
from edgesmith.exporters.targets._coreml_translations import own_translations
from edgesmith.exporters.targets._quiet import quiet
from edgesmith.exporters.targets._refusal import describe as describe_node
from edgesmith.exporters.targets._refusal import refuse
from edgesmith.exporters.targets.target import Request
from edgesmith.models.registry import SoundInput

LOWERINGS = "coreml"

MAIN, STEP, SEQUENCE = "main", "step", "sequence"
"""The function of a package that has one, and those of one that has two: a step is then the default."""

# x g + b becomes a batch norm of variance 1 and epsilon 1e-5, which divides every value by sqrt(1.00001). Behind a
# convolution it is not needed: other passes take multiply and sum into the weights, exactly.
_SPOILING_PASS = "common::fuse_elementwise_to_batchnorm"  # noqa: S105 - a graph pass, no password
# It moves every update of a state to where its value is made, and fails where that is after another update. Here all
# updates come last, so there is nothing to move.
_MOVING_PASS = "common::canonicalize_inplace_pattern"  # noqa: S105 - as above
# It makes a sum of a choice between a value and an infinity, which is NaN of another infinity.
_ADDING_PASS = "common::select_optimization"  # noqa: S105 - as above


@dataclass(frozen=True)
class _Converted:
    """A package that coremltools has saved.

    Attributes:
        program: as it went in.
        sources: from modules ("" for the model itself) to the names of their operators.
        legalized: what was changed for the Neural Engine.
    """

    program: Program
    sources: dict[str, list[str]]
    legalized: list[Legalization]


def lower(program: Program, path: Path, request: Request, system: Any) -> None:
    """Write the program as an `.mlpackage`, beside the sequence program of the request where it has one.

    Args:
        program: rewritten, of float32.
        path: of the package.
        request: what is asked.
        system: coremltools' constant for the oldest one.
    """
    programs = {MAIN: (program, request)}
    if request.sequence_program is not None:
        whole = replace(request, streaming=None)
        programs = {STEP: (program, request), SEQUENCE: (request.sequence_program, whole)}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        packages = {function: Path(folder) / f"{function}.mlpackage" for function in programs}
        with quiet():
            made = {name: _convert(*asked, packages[name], system) for name, asked in programs.items()}
        first = next(iter(packages.values()))
        model = read_specification(first) if len(packages) == 1 else join(packages, first)
        sources = {name: one.sources for name, one in made.items()}
        describe(model, request, [one for each in made.values() for one in each.legalized])
        write(model, first, path)
    write_notes(path.parent, path.name, notes_of(request, sources))
    check_names(model, {name: one.program for name, one in made.items()}, request.classifies)


def _convert(program: Program, request: Request, package: Path, system: Any) -> _Converted:
    """Have coremltools save a program as a package."""
    import coremltools as ct

    refuse_control_flow(program.module, "Core ML")
    refuse_long_numbers(program.module, program.inputs, "Core ML")
    program = with_core_ml_inputs(with_plain_types(with_own_outputs(program), doubles=True))
    if request.image_input:
        program = take_pixels(scale_input(program, request), request)
    half = request.precision.is_half
    program, taken, states = _with_states(program, request)
    classifier = ct.ClassifierConfig(list(request.labels)) if request.labels and request.classifies else None
    outputs = None if classifier else _outputs(program)
    inputs = _inputs(program, request)
    with own_translations(half), legalizing(request.keep_fp32) as legalization:
        with _refusing(taken):
            taken = spell_out(taken, LOWERINGS)
        pipeline = passes(legalization.pipeline if half else None)
        if states is not None:
            pipeline.remove_passes({_MOVING_PASS})
        if chooses_from_not_finite(program.module, program.inputs):
            pipeline.remove_passes({_ADDING_PASS})
        with _refusing(taken), _validated_once(), _older_objects_uncollected(), short_integers_that_fit():
            model = ct.convert(
                _with_modules(taken),
                inputs=inputs,
                outputs=outputs,
                states=states,
                pass_pipeline=pipeline,
                classifier_config=classifier,
                convert_to="mlprogram",
                minimum_deployment_target=system,
                compute_precision=_compute_precision(request, legalization.keep_fp32),
                skip_model_load=True,
                package_dir=str(package),
            )
    return _Converted(program, _sources(model), legalization.done)


def _with_states(program: Program, request: Request) -> tuple[Program, ExportedProgram, list[Any] | None]:
    """Return a program without the states that Core ML keeps, as coremltools takes it, and those states."""
    if not request.keeps_states:
        return program, exported(program, LOWERINGS), None
    import coremltools as ct

    assert request.streaming is not None
    program, module = keep_states(program, request.streaming["states"], request.precision.is_half)
    kept = module.named_buffers(recurse=False)
    states = [ct.StateType(ct.TensorType(shape=tuple(b.shape), dtype=np.float16), name=n) for n, b in kept]
    return program, exported(program, LOWERINGS, module), states


def _inputs(program: Program, request: Request) -> list[Any]:
    """Return coremltools' description of the inputs."""
    import coremltools as ct

    if request.image_input:
        assert request.image is not None
        shape = tuple(program.inputs[0].shape)
        return [ct.ImageType(program.input_names[0], shape, color_layout=ct.colorlayout.RGB)]
    takes_samples = isinstance(request.sequence, SoundInput)  # of 16 bits, which fp16 would round to 11
    real = np.float16 if request.precision.is_half and not takes_samples else np.float32
    pairs = zip(program.input_names, program.inputs, strict=True)
    return [
        ct.TensorType(name=n, shape=tuple(x.shape), dtype=real if x.is_floating_point() else np.int32) for n, x in pairs
    ]


def _outputs(program: Program) -> list[Any]:
    """Return coremltools' description of the outputs: integers as Int32, which has their digits, others as Float32."""
    import coremltools as ct

    (returned,) = program.module.graph.output_node().args
    values = torch.utils._pytree.tree_leaves(returned)
    return [
        ct.TensorType(name=name, dtype=np.int32 if _is_integer(value) else np.float32)
        for name, value in zip(program.output_names, values, strict=False)  # states that Core ML keeps come last
    ]


def _is_integer(value: Node) -> bool:
    dtype: torch.dtype = value.meta["val"].dtype
    return not dtype.is_floating_point and dtype != torch.bool


def passes(pipeline: Any = None) -> Any:
    """Return coremltools' passes, or those given, but for the one that spoils numbers."""
    import coremltools as ct

    pipeline = pipeline or ct.PassPipeline()
    pipeline.remove_passes({_SPOILING_PASS})
    return pipeline


def _compute_precision(request: Request, keep_fp32: Collection[str]) -> Any:
    """Return coremltools' word for a precision: fp16 nowhere, or but for the operators of the request and `keep_fp32`.

    Passes add to `keep_fp32` before coremltools asks.
    """
    import coremltools as ct

    if not request.precision.is_half:
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(
        op_selector=lambda operation: not _stays_single(operation, {*request.keep_fp32, *keep_fp32})
    )


def scale_input(program: Program, request: Request) -> Program:
    """Return the program for inputs [1, 3, H, W] that still have to be divided by the standard deviations.

    Raises:
        BadInput: several images at once.
        Unsupported: something is before the first convolution.
    """
    assert request.image is not None
    if program.inputs[0].shape[0] != 1:
        raise BadInput(f"an image input holds one image, and the batch is {program.inputs[0].shape[0]}; use --batch 1")
    module = fork(program.module)
    (image,) = (node for node in module.graph.nodes if node.op == "placeholder")
    scale = 1 / torch.tensor(request.image.std, dtype=torch.float64)
    try:
        fold_forwards(module, image, scale, torch.zeros_like(scale))
    except Reject as declined:
        raise Unsupported(
            f"the standard deviations cannot be folded into the first convolution: {declined.reason}"
        ) from declined
    return with_module(program, tidy(module))


def take_pixels(program: Program, request: Request) -> Program:
    """Return the program of `scale_input` for pixels from 0 to 255: it divides by 255 and takes the mean off.

    Core ML would do both for an image's scale and bias, in fp32, which leaves the Neural Engine. The mean is no part of
    the first convolution, which pads with zeros. Both operators are said to be of that convolution's module, as they
    have its precision.
    """
    assert request.image is not None
    module = fork(program.module)
    (image,) = (node for node in module.graph.nodes if node.op == "placeholder")
    layer = next(iter(image.users))
    emit = Emitter(module, image.next)
    scaled = emit(aten.mul.Tensor, image, 1 / 255)
    mean = emit.constant("image_mean", torch.tensor(request.image.mean).reshape(1, -1, 1, 1))
    centred = emit(aten.sub.Tensor, scaled, mean)
    image.replace_all_uses_with(centred, delete_user_cb=lambda user: user is not scaled)
    for node in (scaled, centred):
        node.meta["nn_module_stack"] = layer.meta.get("nn_module_stack")
    return with_module(program, tidy(module))


def _with_modules(program: ExportedProgram) -> ExportedProgram:
    """Return the program with each node's module instead of its stack trace."""
    for node in program.graph.nodes:
        node.meta["written_at"] = node.meta.get("stack_trace")  # for a refusal
        node.meta["stack_trace"] = module_path(node)
    return program


def _sources(model: Any) -> dict[str, list[str]]:
    """Return the names of each module's operators ("" for the model itself).

    Casts are left out, so that they belong to what they read: coremltools gives its own the source of what reads them,
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


@contextlib.contextmanager
def _refusing(taken: ExportedProgram) -> Iterator[None]:
    """Raise Unsupported where coremltools fails on a program; it raises exceptions of any type."""
    try:
        yield
    except (OSError, EdgesmithError):
        raise
    except Exception as error:
        line = str(error).strip().splitlines()
        if line and line[0].startswith("filesystem error"):  # how the native part says that a disk is full
            raise OSError(errno.EIO, "the package could not be written; is the disk full?") from error
        if (beyond := _beyond_ranks(error, taken)) is not None:
            raise beyond from error
        raise refuse(error, taken.graph.nodes, "Core ML", _first_lacking(taken)) from error


def _beyond_ranks(error: Exception, taken: ExportedProgram) -> Unsupported | None:
    """Return the refusal of a value of too many axes, which coremltools names by its layer; None for other errors."""
    named = re.search(r'rank <= 5\. Layer "([^"]+)"', str(error))
    nodes = {node.name: node for node in taken.graph.nodes if _rank(node) > LARGEST_RANK}
    if named is None or not nodes:
        return None
    node = nodes.get(named[1].removesuffix("_cast_fp16")) or next(iter(nodes.values()))
    return Unsupported(
        f"Core ML holds values of up to {LARGEST_RANK} axes, and {describe_node(node)} makes one of {_rank(node)}; join"
        " axes that stay together, or split and permute in two steps"
    )


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _first_lacking(taken: ExportedProgram) -> str:
    """Return the first operator that coremltools has no translation for, or "".

    What reports its errors, as a factorisation does, has it fail on the program's inputs before it reads an operator.
    """
    return next((operator_name(node) for node in taken.graph.nodes if is_lacking(node.target)), "")


@contextlib.contextmanager
def _validated_once() -> Iterator[None]:
    """Validate what coremltools converts at the end, and not after each of its hundred passes: a third of the time."""
    from coremltools.converters.mil.mil import Program as MilProgram

    validate = MilProgram.validate
    met: dict[int, Any] = {}

    def remember(program: Any, check_essential_scope: bool = False) -> None:
        met[id(program)] = program

    MilProgram.validate = remember
    try:
        yield
    finally:
        MilProgram.validate = validate
    for program in met.values():
        program.validate()


@contextlib.contextmanager
def _older_objects_uncollected() -> Iterator[None]:
    """Leave what is alive out of the collections of garbage that coremltools asks for at every conversion.

    To go through all that torch and coremltools consist of takes 0.6 s. A caller who has frozen objects is left alone.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _stays_single(op: Any, kept: Collection[str]) -> bool:
    """Return whether an operator stays fp32: one that is named, or a view of one that only such operators read.

    Later passes give transposes new names and drop views that change nothing, so nobody who reads the file could name
    them; between two fp32 operators they would round in half precision all the same.
    """
    if op.name in kept:
        return True
    maker = op
    while maker is not None and maker.op_type in VIEWS and maker.name not in kept:
        maker = maker.inputs["x"].op
    return maker is not None and maker.name in kept and op.op_type in VIEWS and _is_read_by(op, kept)


def _is_read_by(op: Any, kept: Collection[str]) -> bool:
    """Return whether only named operators read a result, through views or not."""
    readers = [reader for output in op.outputs for reader in output.child_ops]
    return bool(readers) and all(
        reader.name in kept or (reader.op_type in VIEWS and _is_read_by(reader, kept)) for reader in readers
    )
