"""nn.Module and example inputs to a captured program, by torch.export, and back again for lowering."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from edgesmith.errors import BadInput, EdgesmithWarning, Unsupported
from edgesmith.exporters import decompositions
from edgesmith.exporters.graph import equal_rows
from edgesmith.exporters.graph.blame import is_torchs
from edgesmith.exporters.graph.decomposed import decomposed
from edgesmith.exporters.graph.dense_forms import make_dense
from edgesmith.exporters.graph.edit import Emitter, arguments, fork, operator_name, operators, site, stand_for, tidy
from edgesmith.exporters.graph.equal_rows import with_centred_rows
from edgesmith.exporters.graph.fast_path import fast_path, warn_of_fast_path
from edgesmith.exporters.graph.mending import mended, silenced
from edgesmith.exporters.graph.not_numbers import with_kept_nan
from edgesmith.exporters.graph.promotion import with_said_types
from edgesmith.exporters.graph.refusals import refuse_capture, refuse_decomposition, refuse_running
from edgesmith.exporters.graph.repeat import random_operator, refuse_unrepeatable
from edgesmith.exporters.graph.signature import Bound, Results, own, read_results
from edgesmith.exporters.graph.sizes import refuse_squeezed_batch
from edgesmith.exporters.graph.state import State, kept_state
from edgesmith.exporters.graph.subgraphs import any_operator, inline_subgraphs, refuse_casts
from edgesmith.exporters.graph.unwrap import unwrapped
from edgesmith.exporters.outputs import as_compared
from edgesmith.kernels.op import all_ops, find


@dataclass(frozen=True)
class Program:
    """A captured model.

    Attributes:
        module: the graph; callable like the model, and returns what the model returns.
        inputs: example inputs, the shapes that the program is made for.
        input_names, output_names: what an artifact calls them.
        dynamic_batch: the first axis of every input is free; all other shapes are static.
        typed_as: the precision that was written into the graph; empty where it is as captured.
    """

    module: GraphModule
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool = False
    typed_as: str = ""


class Around(nn.Module):
    """A model, `self.model`, and what is done with its outputs. Its operators are found by their paths in the model."""


def capture(
    model: nn.Module,
    inputs: Sequence[Tensor],
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = False,
) -> Program:
    """Capture a model in eval mode. The model itself is left as it was, with all its state.

    Args:
        model: any module that torch.export accepts; one that does not take tensors alone as it was bound to them, see
            signature.py.
        inputs: example tensors, [B, ...] each. With `dynamic_batch`, B must be 2 or more: torch.export would take a
            batch of 1 for a constant.
        input_names: default: the names of the parameters of `forward`.
        output_names: default: the keys of what the model returns; of what has none `output`, or `output_0` ...

    Raises:
        BadInput: inputs that the model's own code rejects.
        Unsupported: code that torch.export cannot capture, which the sentence names; a random or stateful model.
    """
    inputs = tuple(_laid_out_as_a_file_takes_it(x.detach()) for x in inputs)
    _check(model, inputs, dynamic_batch)
    returned = _run(model, inputs)
    leaves_caches = _refuse_unrepeatable(model, inputs, dynamic_batch)
    with evaluating(model):
        if leaves_caches:  # built before torch.export looks, they are constants to it
            model(*(x.clone() for x in inputs))
        with _returning_tensors(own(model), returned):
            graph = _export(model, inputs, dynamic_batch)
    if isinstance(own(model), Around):
        _call_as_inside(graph)
    if input_names is None:
        input_names = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
    if output_names is None:
        output_names = returned.names(input_names)
    if returned.left_out:
        warnings.warn(_describe_left_out(returned), LeftOut, stacklevel=2)
    warn_of_fast_path(own(model), returned.tensors, lambda: _fast(model, inputs))
    return Program(graph, inputs, tuple(input_names), tuple(output_names), dynamic_batch)


def with_free_names(program: Program, reserved: Collection[str]) -> Program:
    """Return a program without inputs and outputs of some names: those have others, with a _ behind them."""
    names = (*program.input_names, *program.output_names)
    if not reserved or not {*names} & {*reserved}:
        return program

    def free(name: str) -> str:
        found = name
        while found in reserved or (found != name and found in names):
            found += "_"
        return found

    inputs, outputs = (tuple(map(free, given)) for given in (program.input_names, program.output_names))
    changed = ", ".join(f"{name} is {free(name)}" for name in names if free(name) != name)
    warnings.warn(f"in the file {changed}: the target keeps such words for itself", Renamed, stacklevel=2)
    return replace(program, input_names=inputs, output_names=outputs)


def _call_as_inside(graph: GraphModule) -> None:
    """Let modules of a graph of what is around a model have the paths that they have in the model."""
    for module in graph.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            if "nn_module_stack" in node.meta:
                node.meta["nn_module_stack"] = {
                    key: (path.removeprefix("model").removeprefix("."), kind)
                    for key, (path, kind) in node.meta["nn_module_stack"].items()
                }


@contextlib.contextmanager
def evaluating(model: nn.Module, weights: bool = False) -> Iterator[State]:
    """Eval mode without gradients; afterwards the model's modes and state are what they were, see state.py.

    Transformers compute what their layers are written as: PyTorch's fast path, which torch.export does not take, has
    zeros where an input is padded.

    Args:
        weights: keep its parameters' values too.
    """
    with unwrapped(model), kept_state(model, weights) as state, fast_path(False):
        model.eval()
        with torch.no_grad():
            yield state


def to_arrays(outputs: Iterable[Tensor]) -> list[np.ndarray]:
    """Return tensors as outputs are compared: integers as int64, others as float32."""
    return [as_compared((y.detach().float() if y.is_floating_point() else y.detach()).numpy()) for y in outputs]


def run_eager(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A model's own outputs in eval mode, flat. Inputs and the model's state are afterwards what they were.

    Raises:
        BadInput: the model does not run on such inputs, or returns no tensor, or complex ones.
    """
    return _run(model, inputs).tensors


def _fast(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return a model's outputs where its transformers take their fast path. Raises whatever that does."""
    with evaluating(model), fast_path(True):
        return read_results(model(*(x.clone() for x in inputs))).tensors


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> Results:
    """Return a model's own outputs with their names. Raises what `run_eager` does."""
    with evaluating(model):
        try:
            outputs = model(*(x.clone() for x in inputs))
        except Exception as error:
            raise refuse_running(model, inputs, error) from error
        results = read_results(outputs)
        _check_outputs(outputs, results.tensors)
        # What lies in a buffer, or in an attribute, is about to be put back.
        return replace(results, tensors=[y.clone() for y in results.tensors])


class Renamed(EdgesmithWarning):
    """An input or output has another name in the file than in the model."""


class LeftOut(EdgesmithWarning):
    """A model returns something that is no tensor."""


def _describe_left_out(results: Results) -> str:
    """Return, in a sentence, what no file can return."""
    found = ", ".join(f"{name} ({_describe_value(value)})" for name, value in results.left_out.items())
    return f"the model also returns what is no tensor, which the file leaves out: {found}"


def _describe_value(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, bool | int | float | str) else type(value).__name__


@contextlib.contextmanager
def _returning_tensors(model: nn.Module, results: Results) -> Iterator[None]:
    """Let a model return its tensors alone, as a list, where it returns more than a plain sequence of them."""
    if results.is_flat:
        yield
        return
    hook = model.register_forward_hook(lambda _, __, returned: read_results(returned).tensors)
    try:
        yield
    finally:
        hook.remove()


def _refuse_unrepeatable(model: nn.Module, inputs: Sequence[Tensor], dynamic_batch: bool) -> bool:
    """Refuse a random or stateful model, by the operator and its line where the captured graph shows it.

    Returns:
        Whether calls leave caches behind.
    """
    try:
        with evaluating(model, weights=True) as state:
            return refuse_unrepeatable(model, inputs, state)
    except Unsupported as error:
        sentence = None
        with contextlib.suppress(Unsupported), evaluating(model):
            sentence = random_operator(_exported(model, tuple(inputs), dynamic_batch).graph)
        if sentence is None:
            raise
        raise Unsupported(sentence) from error


def exported(
    program: Program, target: str, around: nn.Module | None = None, *, is_traced_again: bool = False
) -> ExportedProgram:
    """Return the program as torch's exporter and other converters take it: functional ATen and the target's fused ops.

    Fused ops that have no lowering for the target are inlined: replaced by a form made for the target
    where there is one, or else by the reference. So are operators that we spell in others for it, see decompositions/.

    Args:
        target: the name under which fused ops have their lowerings.
        around: a module with the program's inputs that calls the program's graph; it is exported instead.
        is_traced_again: whether what reads it traces it once more itself, as torch's ONNX exporter does. Then there is
            nothing to decompose, unless an op has to be inlined.

    Raises:
        Unsupported: as `capture`; also complex numbers, which the rewrites have left because there is no rule for them.
    """
    _refuse_complex(program)
    inlined = {op.overload: op.reference for op in all_ops().values() if target not in op.lowerings}
    inlined |= decompositions.for_target(target)
    centred = with_centred_rows(program.module, program.inputs, equal_rows.FEWEST.get(target))
    own_forms = with_said_types(_with_own_forms(centred, target))
    module = with_kept_nan(own_forms, program.inputs, decompositions.keeping_nan(target))
    is_inlined = module is not own_forms or any(node.target in inlined for node in module.graph.nodes)
    with torch.no_grad(), _without_torchs_own_warnings():
        try:
            written = _exported(around or module, program.inputs, program.dynamic_batch)
        except Unsupported as error:
            if not program.typed_as:
                raise
            raise Unsupported(
                f"this model cannot be made {program.typed_as}, most likely because it sets types itself; export it"
                " with --precision fp32"
            ) from error
        if is_traced_again and not is_inlined:  # the file is the same
            return written
        try:
            return decomposed(written, inlined)
        except Unsupported as error:  # of a decomposition; torch.fx has added what it was executing
            raise Unsupported(str(error).partition("\n")[0]) from None
        except Exception as error:
            if not is_torchs(error):  # a fault in what we spell operators in
                raise
            raise refuse_decomposition(written.graph.nodes, error) from error


def _with_own_forms(module: GraphModule, target: str) -> GraphModule:
    """The graph with calls of the PyTorch functions that a target inlines instead of references."""
    forms = {op.overload: op.inlined[target] for op in all_ops().values() if target in op.inlined}
    if not any(node.target in forms or _is_closed(node) for node in module.graph.nodes):
        return module
    module = fork(module)
    for node in module.graph.nodes:
        op = find(node.target)
        node.target = op.reference if op is not None and _is_closed(node) else forms.get(node.target, node.target)
    module.recompile()
    return module


def _is_closed(node: Node) -> bool:
    """Return whether a node is a fused op in a form without a loop, whose reference is plain operators."""
    op = find(node.target)
    return op is not None and op.choice is not None and arguments(node)[-1] not in op.choice.looped


def _refuse_complex(program: Program) -> None:
    """Converters fail somewhere on complex numbers, or write what nothing runs; say which operator needs them."""
    joints = {"aten.complex", "aten.real", "aten.imag"}
    for node in program.module.graph.nodes:
        leaves = torch.utils._pytree.tree_leaves(node.meta.get("val"))
        if operator_name(node) not in joints and any(isinstance(v, Tensor) and v.is_complex() for v in leaves):
            what = f"the input {node.name}" if node.op == "placeholder" else f"{operator_name(node)} at {site(node)}"
            raise Unsupported(
                f"{what} is complex, which no target here takes, and has no form in real numbers here;"
                " compute with real and imaginary parts instead (torch.view_as_real), or see edgesmith explain"
            )


def with_module(program: Program, module: nn.Module) -> Program:
    """The same program over another graph."""
    assert isinstance(module, GraphModule)
    return replace(program, module=module)


def with_own_outputs(program: Program) -> Program:
    """Return the program with a copy of each output that is an input, a constant or returned twice.

    Some formats name a value once, and so cannot return it under two names.
    """
    (returned,) = program.module.graph.output_node().args
    values = torch.utils._pytree.tree_leaves(returned)
    if all(_is_computed(value) and values.count(value) == 1 for value in values):
        return program
    module = fork(program.module)
    output = module.graph.output_node()
    emit, met = Emitter(module, output), set[torch.fx.Node]()

    def own(value: torch.fx.Node) -> torch.fx.Node:
        if _is_computed(value) and value not in met:
            met.add(value)
            return value
        copy = emit(torch.ops.aten.clone.default, value)
        stand_for(copy, value)
        return copy

    output.args = torch.utils._pytree.tree_map(own, output.args)
    return with_module(program, tidy(module))


def _is_computed(value: torch.fx.Node) -> bool:
    """Return whether a node makes a value, and does not hand one on: an expansion to the same shape, say."""
    if value.op != "call_function" or operator_name(value) in _HANDING_ON:
        return False
    if operator_name(value) not in _REARRANGING:
        return True
    made, read = value.meta["val"], value.all_input_nodes[0].meta["val"]
    return not isinstance(read, Tensor) or made.dtype != read.dtype or made.shape != read.shape


_HANDING_ON = frozenset(
    f"aten.{name}"
    for name in ("alias", "conj", "contiguous", "detach", "dropout", "positive", "real", "resolve_conj", "resolve_neg")
)


_REARRANGING = frozenset(
    f"aten.{name}"
    for name in (
        *(
            "_to_copy",
            "_unsafe_view",
            "cat",
            "chunk",
            "constant_pad_nd",
            "expand",
            "expand_as",
            "flatten",
            "narrow",
            "pad",
        ),
        *("permute", "repeat", "reshape", "slice", "squeeze", "stack", "t", "tile", "to", "transpose", "type_as"),
        *("unflatten", "unsqueeze", "view", "view_as", "swapaxes", "movedim"),
    )
)
"""Operators that converters drop where they change nothing, which only those can that keep the shape and the type."""


def computes_in_half(program: Program) -> bool:
    """Return whether an operator of a program rounds to float16, whatever the model's inputs and weights are."""
    return any(
        isinstance(value, Tensor) and value.dtype == torch.float16
        for node in operators(program.module)
        if operator_name(node) not in _HANDING_ON
        for value in torch.utils._pytree.tree_leaves(node.meta.get("val"))
    )


def run(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a program's graph; its outputs in the order of `output_names`."""
    with torch.no_grad():
        outputs = program.module(*inputs)
    tensors = read_results(outputs).tensors
    _check_outputs(outputs, tensors)
    return tensors


def _laid_out_as_a_file_takes_it(x: Tensor) -> Tensor:
    """Return a copy of an example with the last axis innermost; as it is where that says nothing."""
    return x.clone() if x.layout != torch.strided else x.resolve_neg().clone(memory_format=torch.contiguous_format)


def _check(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> None:
    """Answer in one sentence what torch would answer in a page."""
    model = own(model)
    tensors = (*inputs, *model.parameters(), *model.buffers())
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise BadInput("the model has lazy parameters without a shape; run it once before exporting it")
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        raise BadInput("the model computes in bfloat16, which no target here takes; convert it with .float()")
    if any(x.is_complex() for x in inputs):
        raise BadInput("the model takes complex numbers, which no target here has; give it both halves as tensors")
    _check_storage(model, inputs)
    _refuse_shared_short_rows(model)
    _refuse_reserved_names(model)
    if dynamic_batch and any(x.dim() and x.shape[0] < 2 for x in inputs):
        raise BadInput("a dynamic batch needs example inputs with a batch of 2 or more")
    batches = sorted({x.shape[0] for x in inputs if x.dim()})
    if dynamic_batch and len(batches) > 1:
        raise BadInput(
            f"a dynamic batch is the first axis of every input, and those of the example are {batches[0]} and"
            f" {batches[1]}; give them one size, or leave --dynamic-batch out"
        )


def _check_storage(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Refuse tensors without values, on other devices, or sparse ones."""
    held = [*model.named_parameters(), *model.named_buffers()]
    named = [*((f"the input {i}", x) for i, x in enumerate(inputs)), *((f"the weight {name}", x) for name, x in held)]
    for name, tensor in named:
        if tensor.is_meta:
            raise BadInput(
                f"{name} is on the meta device and has no values; build the model on the CPU, or load its weights into"
                " it with assign=True"
            )
        if tensor.device.type != "cpu":
            raise BadInput(f"{name} is on {tensor.device}; move the model and its inputs with .cpu()")
        if tensor.layout != torch.strided:
            raise BadInput(f"{name} is sparse ({tensor.layout}), which no file holds; give it dense, with .to_dense()")


def _refuse_shared_short_rows(model: nn.Module) -> None:
    """Refuse a table that a look-up writes to and that is read elsewhere too: it depends on the calls before."""
    held = [(path, one) for path, module in model.named_modules() for one in module._parameters.values()]
    for path, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or module.max_norm is None:
            continue
        if others := [other for other, one in held if one is module.weight and other != path]:
            raise BadInput(
                f"the embedding {path} has max_norm, which writes to its rows as it reads them, and shares them with"
                f" {others[0] or 'the model'}; shorten the rows once, and leave max_norm out"
            )


def _refuse_reserved_names(model: nn.Module) -> None:
    """Refuse members that have the name of something of torch.fx's own."""
    if isinstance(model, GraphModule):
        return
    own = (*model.named_children(), *model.named_parameters(recurse=False), *model.named_buffers(recurse=False))
    reserved = [name for name, _ in own if hasattr(GraphModule, name) or name == "meta"]
    if reserved:
        raise BadInput(f"the model has a member called {reserved[0]!r}, which torch.fx keeps for itself; rename it")


def _export(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> GraphModule:
    """The unlifted graph of a model, free of side effects."""
    program = _exported(model, inputs, dynamic_batch)
    if (sentence := random_operator(program.graph)) is not None:
        raise Unsupported(sentence)
    written = list(program.graph_signature.buffers_to_mutate.values())
    if written:
        raise Unsupported(
            f"the model writes to its buffer {written[0]!r} in forward, and a file keeps no state;"
            " make it an input and an output"
        )
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    if isinstance(model, Bound):
        graph = _take_tensors_alone(graph, model.takes)
    inline_subgraphs(graph)
    if dynamic_batch:
        refuse_squeezed_batch(graph)
    for node in list(graph.graph.nodes):  # torch's own checks of what `val` says of each value
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)
    for node in reversed(graph.graph.nodes):  # which raised, and the model's own code went on without it
        if not node.users and node.meta.get("val") is None and _returns(node):
            graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):  # a norm by its batch's own statistics: it updates the running ones, unread
        if node.target is torch.ops.aten.batch_norm.default and node.args[5]:
            node.args = (*node.args[:3], None, None, *node.args[5:])
    for node in list(graph.graph.nodes):  # a model that works in place on its input: its caller's is left alone
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            node.replace_all_uses_with(node.args[1])
            graph.graph.erase_node(node)
    graph.recompile()
    return make_dense(graph)


def _take_tensors_alone(graph: GraphModule, takes: Sequence[bool]) -> GraphModule:
    """Drop the inputs that are no tensors, whose values are in the graph, and take tensors one by one."""
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, is_tensor in zip(placeholders, takes, strict=True):
        if not is_tensor:
            graph.graph.erase_node(node)
    graph.graph.set_codegen(CodeGen())
    return GraphModule(graph, graph.graph)  # without the hook that asks for the arguments as they were nested


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> ExportedProgram:
    try:
        with _without_torchs_own_warnings(), mended(), torch.compiler.set_stance("default"):  # torch.cond compiles
            shapes = _dynamic_shapes(model, inputs) if dynamic_batch else None
            args, kwargs = model.fill(inputs) if isinstance(model, Bound) else (inputs, {})
            program = torch.export.export(own(model), args, kwargs, dynamic_shapes=shapes)
            refuse_casts(program.graph_module)
            if any_operator(program.graph_module, _is_to_be_traced_again):  # foreign models: relu_, add_, vmap ...
                program = decomposed(program)
    except Unsupported:
        raise
    except Exception as error:
        raise refuse_capture(model, error) from error
    return program


@contextlib.contextmanager
def _without_torchs_own_warnings() -> Iterator[None]:
    """torch.export warns of renamings inside torch that its callers can do nothing about."""
    with warnings.catch_warnings(), silenced():
        warnings.simplefilter("ignore", category=UserWarning)
        warnings.simplefilter("ignore", category=FutureWarning)
        yield


def _dynamic_shapes(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...] | dict[str, Any]:
    """A free first axis for every input, nested as torch.export wants it: those for *args in a tuple of their own."""
    if isinstance(model, Bound):
        args, kwargs = model.fill(inputs)
        known = inspect.signature(model.model.forward).parameters
        if strange := [name for name in kwargs if name not in known]:  # torch.export does not find their axes
            raise BadInput(
                f"a dynamic batch of {strange[0]!r} needs a parameter of that name; name it in forward, which takes it"
                " as one of any keyword arguments, or leave --dynamic-batch out"
            )
        free = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]  # torch's has no annotations
        for x in inputs:
            if x.dim():
                free[x] = {0: Dim("batch", min=1)}
        return dict(free.dynamic_shapes(model.model, args, kwargs))  # type: ignore[no-untyped-call]  # as above
    axes = [{0: Dim("batch", min=1)} if x.dim() else None for x in inputs]
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(axes)
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*axes[:named], tuple(axes[named:]))


def _is_to_be_traced_again(node: torch.fx.Node) -> bool:
    """Return whether an operator writes to its argument, or stands for a nesting of vmap, which runs in no graph."""
    return _mutates(node) or getattr(node.target, "__module__", "").startswith("torch._functorch")


def _returns(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.returns)


def _mutates(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def _check_outputs(outputs: Any, tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise BadInput(
            f"the model must return a tensor or a nest of tensors, got {type(outputs).__name__};"
            " wrap it in a module that returns tensors"
        )
    if any(leaf.is_complex() for leaf in tensors):
        raise BadInput("the model returns complex numbers, which no target here has; return torch.view_as_real(...)")
