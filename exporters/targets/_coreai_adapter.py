"""All that edgesmith asks of coreai-torch and coreai-core. Both are young: what moves in them is followed here.

    convert         torch's ExportedProgram -> Program, the converter's own, with composite graphs under steady names
    save            Program -> an asset's folder: main.mlirb, main.hash, metadata.json, the same bytes every time
    check, operators, values        what a folder holds, and what its operators compute
    Session         a folder in Core AI's runtime

Two things vary between runs of the converter. Composite graphs get random suffixes: `_name_composites` numbers them.
Large weights get names from a hash that is seeded by addresses: `_steady` numbers them, in the string table of the
bytecode (mlir.llvm.org/docs/BytecodeFormat), as nothing else can name them. The date is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BackendMissing, BadInput, Unreadable, Unsupported
from edgesmith.exporters.targets import _coreai_norms
from edgesmith.exporters.targets._quiet import quiet
from edgesmith.readers import apart
from edgesmith.readers.budget import read_bytes
from edgesmith.readers.documents import read_json
from edgesmith.readers.messages import LARGEST

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

TESTED = {"coreai-torch": "0.4.3", "coreai-core": "1.0.0b3"}
"""The distributions that this file was written for, and their versions."""

LOWERINGS = "coreai"
PROGRAM = "main.mlirb"
HASH = "main.hash"
METADATA = "metadata.json"
ENTRY = "main"
VALUES = "edgesmith.values"
"""The metadata's entry that says which value of the model each operator computes."""

_OVERHEAD = 2**20  # a program without its weights, generously
_VALUE_OF = "edgesmith_value"  # in `meta["custom"]` of torch's nodes, which survives decomposition
_INDEX = re.compile(r'"op_id": \{type = "coreai", value = (\d+)')
_LABEL = re.compile(f'"{_VALUE_OF}": "([^"]+)"')
_RESOURCE = re.compile(rb"resource_\d+")


def require() -> None:
    """Raise BackendMissing unless the packages are installed in the tested versions."""
    wanted = " ".join(f"{name}=={version}" for name, version in TESTED.items())
    for name, version in TESTED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise BackendMissing(f"target coreai needs {name}, which is not installed: pip install {wanted}") from error
        if found != version:
            raise BackendMissing(
                f"target coreai is made for {name} {version}, and {found} is installed: pip install {wanted}"
            )


def missing() -> str | None:
    """Return why `require` would raise, or None."""
    try:
        require()
    except BackendMissing as error:
        return str(error)
    return None


def convert(program: ExportedProgram, input_names: Sequence[str], output_names: Sequence[str]) -> Any:
    """Core AI's program of torch's, with a function `main`.

    Returns:
        The converter's program, and the names of the model's values by the number of the operator that computes each.

    Raises:
        BackendMissing: see `require`.
        Unsupported: an operator that the converter refuses, or an API that is not where it was.
    """
    from edgesmith.exporters.targets._coreai_graph import make_whole_numbers_floats, turn_products
    from edgesmith.exporters.targets._refusal import decompose, refuse

    require()
    with quiet():
        converter_type = _get("coreai_torch.converter", "TorchConverter")
        table = _with_ours(_get("coreai_torch", "get_decomp_table")())
        _label_values(program)
        decomposed = decompose(program, table, "Core AI")
        make_whole_numbers_floats(decomposed.graph)
        turn_products(decomposed.graph)

        class Converter(converter_type):  # type: ignore[misc, valid-type]
            """Notes at each operator, before the converter rewrites the program, which value it computes."""

            def _get_graph_op(self, *args: Any, **kwargs: Any) -> Any:
                graph = super()._get_graph_op(*args, **kwargs)
                _label_operators(decomposed, self._values_map)
                return graph

        converter = Converter(mode=converter_type.Mode.RELEASE)
        try:
            for name, lower in _coreai_norms.lowerings().items():
                converter.register_torch_lowering(f"aten::{name}.default", allow_override=True)(lower)
            converter.register_torch_lowering("aten::_to_copy.default", allow_override=True)(_to_copy)
            converter.add_exported_program(
                decomposed, input_names=list(input_names), output_names=list(output_names), entrypoint_name=ENTRY
            )
            converted = converter.to_coreai()
        except (ImportError, AttributeError) as error:
            raise _moved(str(error)) from error
        except Exception as error:  # ValueError, RuntimeError, KeyError, NotImplementedError, MLIRError alike
            raise refuse(error, decomposed.graph.nodes, "Core AI") from error
        _name_composites(converted)
        return converted, _take_labels(converted)


def _with_ours(theirs: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """Return the converter's decompositions and ours, which come first: what theirs make may need ours again.

    What neither knows, nor the converter, is spelled as for another target.
    """
    from torch._C import DispatchKey

    from edgesmith.exporters import decompositions

    implicit = DispatchKey.CompositeImplicitAutograd

    def either(own: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
        def decompose(*args: Any, **kwargs: Any) -> Any:
            made = own(*args, **kwargs)
            return other(*args, **kwargs) if made is NotImplemented else made

        return decompose

    table = dict(theirs.items())
    for overload, own in decompositions.for_target(LOWERINGS).items():
        table[overload] = either(own, table[overload]) if overload in table else own
    known = _get("coreai_torch._aten_to_core", "_aten_to_core_resolver")

    def is_taken(one: Any) -> bool:  # also what PyTorch always makes others of
        return one in table or one.__name__ in known or one.has_kernel_for_dispatch_key(implicit)

    return {**decompositions.for_others(LOWERINGS, is_taken), **table}


def save(
    converted: Any,
    folder: Path,
    size: int,
    values: Mapping[int, str],
    facts: Mapping[str, Any],
    licence: str = "",
) -> None:
    """Write what `convert` made as an asset, a folder that is called `.aimodel`.

    Args:
        size: of the weights in bytes; where there is less room, OSError says so.
        values: of `convert`.
        facts: what the metadata say beside.
        licence: of the model.
    """

    def describe(metadata: Any) -> None:
        metadata.license = licence
        for key, value in facts.items():
            metadata.set_custom(key, value)
        metadata.set_custom(VALUES, {str(index): value for index, value in values.items()})

    _need_room(folder.parent, size)
    with quiet(), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made.aimodel"
        try:
            asset = converted.save_asset(made)
            asset.update_metadata(describe)
        except RuntimeError as error:
            cause = error.__cause__ or error
            if isinstance(cause, OSError):
                raise cause from error
            raise Unsupported(
                "Core AI does not save this model, and does not say why in words; export a part of it to find out, or"
                " choose another target"
            ) from error
        steady = _steady(_program_bytes(made))
        metadata = _metadata(made)
    metadata.pop("creationDate", None)
    folder.mkdir()
    (folder / PROGRAM).write_bytes(steady)
    (folder / HASH).write_bytes(hashlib.sha256(steady).digest())
    text = json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / METADATA).write_text(text + "\n", encoding="utf-8")


def check(folder: Path) -> None:
    """Raise Unsupported unless the folder is a whole asset whose program has a function `main`."""
    require()
    try:
        _metadata(folder)
    except Unreadable as error:
        raise _unreadable(folder, error) from error
    _main(_program(folder), folder)


Declared = list[tuple[str, str, list[int]]]
"""Values by name, with numpy's name of their type, and their shape."""


def interface(folder: Path) -> tuple[Declared, Declared]:
    """Return the inputs and the outputs of a program."""
    program = _program(folder)  # which the graph does not keep alive
    main = _main(program, folder)
    names = [str(one["coreai.name"]).strip('"') for one in main.arg_attrs]
    given = zip(names, main.arguments, strict=True)
    return [_declared(*one) for one in given], [_declared(*one) for one in main.outputs_spec]


_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i1": "bool"}


def _declared(name: str, value: Any) -> tuple[str, str, list[int]]:
    """Return a value of a type such as `tensor<1x5xsi32>`."""
    *sizes, kind = str(value.type).removeprefix("tensor<").removesuffix(">").split(",")[0].split("x")
    integer = f"int{kind[2:]}" if kind.startswith("si") else f"uint{kind[2:]}"
    return name, _TYPES.get(kind, integer), [int(size) for size in sizes]


def operators(folder: Path) -> Counter[str]:
    """Return how often each operator occurs, those in loops too. A composite counts as one; constants are left out."""
    program = _program(folder)
    composites = {_symbol(graph): _composite(graph) for graph in _graphs(program)}
    counts: Counter[str] = Counter()

    def count(block: Any) -> None:
        for op in block.operations:
            called = _own_name(op.name)
            if called == "invoke":
                called = composites.get(_callee(op)) or called
            if called not in _SILENT:
                counts[called] += 1
            for region in op.regions if called == "while" else ():
                for inner in region.blocks:
                    count(inner)

    for block in _main(program, folder).bodyRegion.blocks:
        count(block)
    return counts


_SILENT = frozenset({"constant", "output", "yield", "condition"})


@dataclass(frozen=True)
class ReadOperator:
    """An operator of an asset, in plain words.

    Attributes:
        name: its own, such as conv2d; a composite's for what calls one.
        operands, results: names of values in the program.
        types: of the operands and results, as MLIR writes them: `tensor<1x8xf16>`.
        constant: what MLIR writes of a constant's numbers; None for other operators.
    """

    name: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    types: Mapping[str, str]
    constant: str | None = None

    @staticmethod
    def of(
        name: str, operands: Sequence[str], results: Sequence[str], types: Mapping[str, str], constant: str | None
    ) -> ReadOperator:
        """Return an operator of what JSON has of it."""
        return ReadOperator(name, tuple(operands), tuple(results), types, constant)


def read_operators(folder: Path) -> tuple[list[ReadOperator], list[str], list[str]]:
    """Return the operators of an asset in order, those of loops before their loop, and names of inputs and outputs.

    It may be anybody's: a process of its own reads it, see readers/apart.py.

    Raises:
        Unsupported: the folder is no readable asset.
        Unreadable: the packages' native part ends its process over it, or does not end.
        BackendMissing: Apple's packages are not installed.
    """
    require()
    found, inputs, outputs = apart.call(READ_OPERATORS, [str(folder.absolute())], folder.name)
    return [ReadOperator.of(*one) for one in found], inputs, outputs


READ_OPERATORS = f"{__name__}:read_operators_here"


def read_operators_here(path: str) -> tuple[list[tuple[Any, ...]], list[str], list[str]]:
    """Return what `read_operators` returns, each operator as its fields, of a folder that this process reads itself."""
    folder = Path(path)
    program = _program(folder)
    composites = {_symbol(graph): _composite(graph) for graph in _graphs(program)}
    found: list[tuple[Any, ...]] = []
    outputs: list[str] = []
    numbered: dict[Any, str] = {}

    def name(value: Any) -> str:  # MLIR's own, `get_name`, numbers the whole function anew each time
        return numbered.setdefault(value, f"%{len(numbered)}")

    def read(block: Any, is_outer: bool) -> None:
        for op in block.operations:
            for region in op.regions:
                for inner in region.blocks:
                    read(inner, False)
            called = _own_name(op.name)
            values = [*op.operands, *op.results]
            names = list(map(name, values))
            operands, results = tuple(names[: len(op.operands)]), tuple(names[len(op.operands) :])
            if called == "output" and is_outer:
                outputs.extend(operands)
            if called in _SILENT - {"constant"}:
                continue
            if called == "invoke":
                called = composites.get(_callee(op)) or called
            types = dict(zip(names, (str(one.type) for one in values), strict=True))
            value = str(op.attributes["value"]) if called == "constant" else None
            found.append((called, operands, results, types, value))

    (block,) = _main(program, folder).bodyRegion.blocks
    inputs = list(map(name, block.arguments))
    read(block, True)
    return found, inputs, outputs


def with_outputs(folder: Path, names: Sequence[str], result: Path) -> list[str]:
    """Write an asset that returns also the values called `names`, as far as an operator in the folder computes them.

    Returns:
        The names that it returns beside the outputs.
    """
    program = _program(folder)
    main = _main(program, folder)
    labels = _metadata(folder).get("creatorDefinedMetadata", {}).get(VALUES, {})
    wanted = {int(index): name for index, name in labels.items() if name in set(names)}
    found: dict[str, Any] = {}
    for op in main.bodyRegion.blocks[0].operations:
        index = _INDEX.search(str(op.location))
        if index and int(index[1]) in wanted:
            found[wanted[int(index[1])]] = op.results[0]
    with quiet(), program._module._context, main.location:
        outputs = OrderedDict(main.outputs_spec)
        added = {name: value for name, value in found.items() if name not in outputs}
        main.outputs_spec = [*outputs.items(), *added.items()]
        program.save_asset(result)
    return list(added)


class Session:
    """A folder in Core AI's runtime, ready to run; to be closed, or used in a `with`.

    The runtime is asynchronous: it gets an event loop of its own, in a thread of its own, so that it can be used
    where another loop runs.
    """

    def __init__(self, folder: Path) -> None:
        import asyncio  # slow, and listing targets does not wait for it

        require()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._model = contextlib.AsyncExitStack()
        try:
            with quiet():
                self._function = self._wait(self._load(folder))
        except BaseException:
            self.close()
            raise
        described = self._function.desc
        self.inputs = list(described.input_names)
        self.outputs = list(described.output_names)
        descriptors = [described.input_descriptor(name) for name in self.inputs]
        self._types = [(descriptor.dtype, tuple(descriptor.shape)) for descriptor in descriptors]

    async def _load(self, folder: Path) -> Any:
        if (folder / PROGRAM).is_file():
            _need_room(Path(tempfile.gettempdir()), (folder / PROGRAM).stat().st_size)
        try:
            model = await self._model.enter_async_context(_readable(folder).executable())
            return model.load_function(ENTRY)
        except Exception as error:  # RuntimeError, KeyError and what the native part raises
            raise Unsupported(
                f"Core AI's runtime does not load {folder.name}, and does not say why in words; export a part of the"
                " model to find out, or choose another target"
            ) from error

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        from asyncio import run_coroutine_threadsafe

        return run_coroutine_threadsafe(work, self._loop).result()

    def __call__(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the order of `outputs`, for values of all inputs, in the order of `inputs`."""
        import numpy as np

        array_type = _get("coreai.runtime", "NDArray")
        feeds = {}
        for name, value, (kind, shape) in zip(self.inputs, values, self._types, strict=True):
            if value.shape != shape:  # which the runtime itself would not survive
                raise BadInput(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
            feeds[name] = array_type(np.array(value, dtype=kind, order="C"))
        try:
            results = self._wait(self._function(feeds))
        except Exception as error:
            raise Unsupported(
                "Core AI's runtime does not run the file, and does not say why in words; export a part of the model to"
                " find out, or choose another target"
            ) from error
        return [results[name].numpy().copy() for name in self.outputs]

    def close(self) -> None:
        """Give back what the runtime holds."""
        if self._loop.is_closed():
            return
        self._function = None
        self._wait(self._model.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _need_room(folder: Path, size: int) -> None:
    """Raise OSError where a folder has no room for a program of about so many bytes.

    The packages' native part ends the process when a disk is full, so it must be asked before.
    """
    if shutil.disk_usage(folder).free < 1.1 * size + _OVERHEAD:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _to_copy(values: Mapping[str, Any], node: Any, location: Any) -> Any:
    """Convert a type; floats that become integers lose their fraction by an operator of their own.

    The converter drops a cast to integers and back, and the fraction stays.
    """
    core: Any = importlib.import_module("coreai._compiler.dialects.coreai")
    wanted = _get("coreai_torch._utils", "get_output_element_type_from_node")(node)
    x = values[str(node.args[0])]
    own = x.type.element_type
    if own == wanted:
        return x
    before, after = node.args[0].meta["val"].dtype, node.meta["val"].dtype
    if before.is_floating_point and not after.is_floating_point and str(after) != "torch.bool":
        zero, one = core.constant(0, dtype=own), core.constant(1, dtype=own)
        above, below = core.broadcasting_greater(x, zero), core.broadcasting_greater(zero, x)
        sign = core.broadcasting_sub(core.cast(above, own), core.cast(below, own))
        x = core.broadcasting_mul(sign, core.broadcasting_floor_divide(core.abs_(x), one))
    return core.cast(x, wanted)


def _label_values(program: ExportedProgram) -> None:
    """Write each node's name where decompositions keep it for what they make of the node."""
    for node in program.graph.nodes:
        if node.op == "call_function":
            node.meta["custom"] = {**node.meta.get("custom", {}), _VALUE_OF: node.name}


def _label_operators(program: ExportedProgram, computed: Mapping[str, Any]) -> None:
    """Write the names of values into the locations of the operators that compute them.

    The rewrite that ends a conversion numbers operators anew, and keeps what else locations say.

    Args:
        computed: the converter's values by the names of the program's nodes.
    """
    string = _get("coreai._compiler.ir", "StringAttr")
    metadata = _get("coreai._compiler.dialects.debuginfo.attrs", "metadata_attr")
    last: dict[str, str] = {}  # of the nodes that a value's decomposition has, the last one is the value
    for node in program.graph.nodes:
        label = node.meta.get("custom", {}).get(_VALUE_OF)
        if node.op == "call_function" and label is not None:
            last[label] = node.name
    for label, name in last.items():
        op: Any = getattr(computed.get(name), "owner", None)
        if hasattr(op, "results") and len(op.results) == 1:
            context = op.location.context
            note = metadata(_VALUE_OF, data=string.get(label, context=context), context=context)
            _locate(op, op.location, note)


def _take_labels(program: Any) -> dict[int, str]:
    """Names of values by the numbers of the operators that compute them; no location has them any more.

    A file whose locations say more than numbers is one that the runtime does not survive.
    """
    location, string = _get("coreai._compiler.ir", "Location"), _get("coreai._compiler.ir", "DictAttr")
    attribute = _get("coreai._compiler.ir", "Attribute")
    metadata = _get("coreai._compiler.dialects.debuginfo.attrs", "metadata_attr")
    found: dict[int, str] = {}
    with program._module._context as context:
        for op in _walk(program._module._body):
            said = str(op.location)
            if _VALUE_OF not in said:
                continue
            numbers, names = _INDEX.findall(said), _LABEL.findall(said)
            if numbers and names:
                found[int(numbers[-1])] = names[-1]
            number = attribute.parse(f"{numbers[-1] if numbers else 0} : ui64")
            data = string.get({"type": attribute.parse('"coreai"'), "value": number})
            _locate(op, location.file("-", 0, 0), metadata("op_id", data=data, context=context))
    return found


def _locate(op: Any, source: Any, note: Any) -> None:
    """Give an operator a location that says `note`."""
    unit = _get("coreai._compiler.ir", "UnitAttr")
    make = _get("coreai._compiler.dialects.debuginfo.attrs", "location_attr")
    context = op.location.context
    place = make(src=source, scope=unit.get(context=context), metadata=[note], context=context)
    _get("coreai._compiler._mlir_libs._coreaiIR._bindings.mlir", "set_op_location")(op, place)


def _walk(block: Any) -> Iterator[Any]:
    """The operators of a block and of all regions in it."""
    for op in block.operations:
        yield op
        for region in op.regions:
            for inner in region.blocks:
                yield from _walk(inner)


def _name_composites(program: Any) -> None:
    """Number the composite graphs of each kind in their order, instead of their random suffixes."""
    string, attribute = _get("coreai._compiler.ir", "StringAttr"), _get("coreai._compiler.ir", "Attribute")
    renamed: dict[str, str] = {}
    counts: Counter[str] = Counter()
    with program._module._context:
        for graph in _graphs(program):
            kind = _composite(graph)
            if kind:
                renamed[_symbol(graph)] = f"{kind}_{counts[kind]}"
                graph.attributes["sym_name"] = string.get(renamed[_symbol(graph)])
                counts[kind] += 1
        for op in _walk(program._module._body):
            if _own_name(op.name) == "invoke" and _callee(op) in renamed:
                callee = f"#param.constant<@{renamed[_callee(op)]}> : !param.symbol"
                op.attributes["callee"] = attribute.parse(callee)


def _graphs(program: Any) -> Iterator[Any]:
    """The graphs of a program."""
    for op in program._module._body.operations:
        if op.name == "coreai.graph":
            yield op


def _symbol(graph: Any) -> str:
    return str(graph.attributes["sym_name"].value)


def _callee(op: Any) -> str:
    """The name of the graph that an invoke calls, of `#param.constant<@name> : !param.symbol`."""
    named = re.search(r"@([\w.]+)", str(op.attributes["callee"]))
    return named[1] if named else ""


def _composite(graph: Any) -> str:
    """The composite that a graph declares itself to be, such as layer_norm; empty for other graphs."""
    if "composite_decl" not in graph.attributes:
        return ""
    named = re.search(r'"([^"]+)"', str(graph.attributes["composite_decl"]))
    return named[1] if named else ""


def _own_name(name: str) -> str:
    """`add` of `coreai.decomposable.broadcasting_add`."""
    return name.removeprefix("coreai.").removeprefix("decomposable.").removeprefix("broadcasting_")


def _program(folder: Path) -> Any:
    """The program in a folder."""
    asset = _readable(folder)
    with quiet():
        try:
            return asset.program
        except Exception as error:  # RuntimeError and MLIRError
            raise _unreadable(folder, error) from error


def _readable(folder: Path) -> Any:
    """The asset in a folder. The packages' native part ends the process over damage, so its hash is compared first."""
    kind = _get("coreai.authoring.asset", "AIModelAsset")
    try:
        program = _program_bytes(folder)
        expected = read_bytes(folder / HASH, "hash", LARGEST)
    except Unreadable as error:
        raise _unreadable(folder, error) from error
    if hashlib.sha256(program).digest() != expected:
        raise Unsupported(f"{folder.name} is damaged: {PROGRAM} does not have the hash that {HASH} says")
    try:
        _sections(program)
        return kind.load(folder)
    except Exception as error:  # OSError, ValueError, IndexError, RuntimeError
        raise _unreadable(folder, error) from error


def _program_bytes(folder: Path) -> bytes:
    """Return the bytecode of an asset. Raises Unreadable."""
    return read_bytes(folder / PROGRAM, "Core AI program", LARGEST)


def _metadata(folder: Path) -> dict[str, Any]:
    """Return what an asset says of itself. Raises Unreadable where that is no table."""
    found = read_json(folder / METADATA, "Core AI asset's metadata", advice="export it again")
    if not isinstance(found, dict) or not isinstance(found.get("creatorDefinedMetadata", {}), dict):
        raise Unreadable(f"{folder / METADATA} is no table of metadata; export it again")
    return found


def _unreadable(folder: Path, error: Exception) -> Unsupported:
    return Unsupported(f"{folder.name} is no readable Core AI asset: {_first_line(error)}")


def _main(program: Any, folder: Path) -> Any:
    for graph in _graphs(program):
        if _symbol(graph) == ENTRY:
            return graph
    raise Unsupported(f"{folder.name} has no function called {ENTRY}")


# The bytecode


def _steady(program: bytes) -> bytes:
    """Bytecode with its resources numbered in their order, instead of by a hash that differs from run to run.

    Raises:
        Unsupported: the bytecode is not of the form that `_sections` reads, with nothing aligned after the strings.
    """
    try:
        if _VALUE_OF.encode() in program:
            raise ValueError("locations keep what is taken from them")
        head, sections = _sections(program)
        position = [identifier & 0x7F for identifier, _, _ in sections].index(0)
        if any(identifier & 0x80 for identifier, _, _ in sections[position:]):
            raise ValueError("aligned sections after the strings")
        strings = _numbered(sections[position][2])
        sections[position] = (0, b"\0" + _as_varint(len(strings)), strings)
        return head + b"".join(front + content for _, front, content in sections)
    except (ValueError, IndexError) as error:
        raise _moved(f"the bytecode has another form: {error}") from error


def _sections(program: bytes) -> tuple[bytes, list[tuple[int, bytes, bytes]]]:
    """Return what comes before the sections, and of each its identifier, the bytes up to its content, and its content.

    The file is magic number, version, producer and sections; a section is an identifier, whose highest bit says that
    an alignment follows, its length, and its content. The strings are section 0.

    Raises:
        ValueError, IndexError: the bytes are something else.
    """
    if program[:4] != b"ML\xefR":
        raise ValueError("it has another magic number")
    start = program.index(b"\0", _varint(program, 4)[1]) + 1
    head, sections = program[:start], []
    while start < len(program):
        begin, identifier = start, program[start]
        length, start = _varint(program, start + 1)
        if identifier & 0x80:
            alignment, start = _varint(program, start)
            start += -start % alignment
        if start + length > len(program):
            raise ValueError("its last section is cut off")
        sections.append((identifier, program[begin:start], program[start : start + length]))
        start += length
    return head, sections


def _numbered(section: bytes) -> bytes:
    """The section of strings with its resources' names numbered: their number, their lengths, last first, and they."""
    count, start = _varint(section, 0)
    lengths = []
    for _ in range(count):
        length, start = _varint(section, start)
        lengths.append(length)
    strings, resources = [], 0
    for length in reversed(lengths):
        string = section[start : start + length]
        if _RESOURCE.fullmatch(string[:-1]):
            string = b"weight_%d\0" % resources
            resources += 1
        strings.append(string)
        start += length
    front = b"".join(_as_varint(len(string)) for string in reversed(strings))
    return _as_varint(count) + front + b"".join(strings)


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """An integer of the bytecode, whose first byte's trailing zeros say how many bytes follow, and where it ends."""
    first = data[start]
    if first == 0:
        return int.from_bytes(data[start + 1 : start + 9], "little"), start + 9
    size = (first & -first).bit_length()
    return int.from_bytes(data[start : start + size], "little") >> size, start + size


def _as_varint(value: int) -> bytes:
    """The shortest such bytes."""
    for size in range(1, 9):
        if value < 1 << 7 * size:
            return ((value << size) | 1 << size - 1).to_bytes(size, "little")
    return b"\0" + value.to_bytes(8, "little")


# What may have moved


def _get(module: str, name: str) -> Any:
    """Something of the packages. Raises Unsupported where it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise _moved(f"{module}.{name}: {error}") from error


def _moved(what: str) -> Unsupported:
    versions = ", ".join(f"{name} {version}" for name, version in TESTED.items())
    return Unsupported(f"Core AI's Python packages are not as edgesmith knows them ({versions}): {what}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
