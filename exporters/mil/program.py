"""ML Programs as they are saved: functions, blocks and operators with their types; weights are read when asked for.

`load` opens an `.mlpackage` (or a bare `model.mlmodel` with its `weights` beside it) of any maker with the format's
protobuf classes, which coremltools carries; no converter runs. What is read and checked:

    Manifest.json      names the root model, Data/com.apple.CoreML/model.mlmodel
    model.mlmodel      a protobuf `Model`: its description (features, functions, states, metadata) and its `mlProgram`
    weights/*.bin      blob files of version 2, into which the program points with offsets

A blob file is little-endian. It begins with 64 bytes: the number of blobs, the version (2), zeros. A blob is 64 bytes
of metadata at the offset that the program names, aligned to 64 bytes,

    uint32 sentinel 0xDEADBEEF, uint32 type, uint64 size in bytes, uint64 offset of the data, uint64 padding in bits

and the data. Types of less than a byte are packed from the least significant bit of each byte, across bytes, and
padded at the end. (The layout is MILBlob's StorageFormat; each type was checked against files that coremltools writes.)
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import mmap
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesmith.errors import BackendMissing, BadInput, Unreadable, Unsupported
from edgesmith.exporters.artifact import read_notes
from edgesmith.paths import path_below, path_listed
from edgesmith.readers.budget import GIBIBYTE, check_file
from edgesmith.readers.documents import read_json
from edgesmith.readers.messages import parse_message

if TYPE_CHECKING:
    from torch import Tensor  # whoever reads a constant needs it; the types alone do not


@dataclass(frozen=True)
class TensorType:
    """A tensor's type. `shape` has None for sizes that a run decides; `shape` is None where even the rank is unknown.

    `dtype` is MIL's name: fp16, fp32, int32, bool, string, int4, uint16 ... Scalars have the shape ().
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class ListType:
    """A list of `length` (None: grows) elements of one type."""

    element: Type
    length: int | None


@dataclass(frozen=True)
class TupleType:
    """A tuple, with each element's type."""

    elements: tuple[Type, ...]


@dataclass(frozen=True)
class DictionaryType:
    """A dictionary: what `classify` makes."""

    key: Type
    value: Type


@dataclass(frozen=True)
class StateType:
    """A state that holds a tensor of the type `wrapped` between calls."""

    wrapped: TensorType


Type = TensorType | ListType | TupleType | DictionaryType | StateType


@dataclass(frozen=True)
class Variable:
    """A named value: an input of a function or block, or an output of an operator."""

    name: str
    type: Type


@dataclass(frozen=True)
class Ref:
    """An operand that another operator or an input gives."""

    name: str


@dataclass(frozen=True)
class Stored:
    """A place in a weight file, by the name that the program has for the file, and the bytes of the value there."""

    file: str
    offset: int
    size: int


@dataclass(frozen=True)
class Constant:
    """An operand that is in the program or in a weight file.

    Attributes:
        type: of its value.
        read: returns the value, read from the file each time.
        stored: where it is, if it is in a weight file.
    """

    type: Type
    read: Callable[[], Any] = field(repr=False, compare=False)
    stored: Stored | None = field(default=None, compare=False)


Operand = Ref | Constant | tuple[Ref | Constant, ...]


@dataclass(frozen=True)
class Operation:
    """One operator.

    Attributes:
        type: its MIL name, `conv`.
        name: its own name, from the attribute that coremltools writes; the first output's where there is none.
        inputs: operands by MIL parameter name. A `const`'s value (`val`) and what older `constexpr` operators keep
            among their attributes are here too.
        attributes: the other attributes.
        source: the module of the model that it comes from, "" for the model itself, where the package says so
            (`SOURCES`). An operator that a converter has added, a cast for instance, has that of its first operand.
    """

    type: str
    name: str
    inputs: Mapping[str, Operand]
    outputs: tuple[Variable, ...]
    attributes: Mapping[str, Constant] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    source: str | None = None

    @property
    def site(self) -> str:
        """The operator in words: `conv2d_3 (conv, in stages.0.proj)`, or with its weight where no module is known."""
        weight = self.inputs.get("weight")
        if self.source is not None:
            return f"{self.name} ({self.type}, in {self.source or 'the model itself'})"
        return f"{self.name} ({self.type}{f', weight {weight.name}' if isinstance(weight, Ref) else ''})"


@dataclass(frozen=True)
class Block:
    """Operators in the order in which they run, and the names of the values that leave."""

    inputs: tuple[Variable, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """One function of a program: its inputs (states among them), its block, and the opset that it is written in."""

    name: str
    inputs: tuple[Variable, ...]
    block: Block
    opset: str


@dataclass(frozen=True)
class ImageFeature:
    """An input or output that is an image: `layout` is RGB, BGR, GRAYSCALE or GRAYSCALE_FLOAT16, sizes in pixels."""

    layout: str
    height: int
    width: int


@dataclass(frozen=True)
class Feature:
    """The value that a caller gives or gets under one name.

    Attributes:
        kind: "array", "image", "state", or what a classifier returns: "string", "int64", "dictionary".
        shape: the default shape of an array or state.
        type: numpy's name of an array's elements; empty for what is none.
        image: what an image has to be like.
        optional: whether a call may leave the input out; `default` then fills it.
        flexible: "range" or "enumerated" where a call may choose other shapes, None where it may not.
        ranges: of a range, the least and the greatest size of each axis, None for any.
        listed: of an enumeration, the shapes.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    image: ImageFeature | None = None
    optional: bool = False
    default: float | int = 0
    flexible: str | None = None
    ranges: tuple[tuple[int, int | None], ...] = ()
    listed: tuple[tuple[int, ...], ...] = ()
    type: str = ""

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Return whether the package takes a shape; an image's is that of its pixels, [H, W]."""
        if self.listed:
            return shape in self.listed
        if len(shape) != len(self.ranges):
            return not self.ranges
        pairs = zip(shape, self.ranges, strict=True)
        return all(low <= size and (high is None or size <= high) for size, (low, high) in pairs)

    @property
    def allowed(self) -> str:
        """The shapes that the package takes, in words."""
        if self.listed:
            return " or ".join(str(list(shape)) for shape in self.listed)
        ends = (str(low) if low == high else f"{low} to {high or 'any'}" for low, high in self.ranges)
        return f"[{', '.join(ends)}]"


@dataclass(frozen=True)
class Interface:
    """The features of one function. `label` and `probabilities` are a classifier's outputs, None for other models."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]
    label: str | None = None
    probabilities: str | None = None


@dataclass(frozen=True)
class MlProgram:
    """A package that was read.

    Attributes:
        functions: by name; a package of one function calls it `main`.
        interfaces: each function's inputs, outputs and states as the package describes them.
        default: the function that runs when none is named; empty of a pipeline, whose parts are `part_0`, `part_1` ...
        specification: the specification's version: 6 is iOS 15, 9 is iOS 18.
        metadata: what the maker wrote: `shortDescription`, `versionString` and user-defined entries, and what edgesmith
            keeps of its own packages beside them.
    """

    path: Path
    functions: Mapping[str, Function]
    interfaces: Mapping[str, Interface]
    default: str
    specification: int
    metadata: Mapping[str, str]

    def operations(self, function: str | None = None) -> Iterator[Operation]:
        """The operators of a function in order, those of inner blocks before the operator that has them, no `const`."""
        yield from walk(self.function(function).block)

    def function(self, name: str | None = None) -> Function:
        """A function by name, or the default one. Raises BadInput, which lists them."""
        if name is None and not self.default:
            raise BadInput(f"{self.path.name} is a pipeline of {', '.join(self.functions)}, and one program is wanted")
        wanted = self.default if name is None else name
        if wanted not in self.functions:
            raise BadInput(f"{self.path.name} has no function {wanted!r}. There are {', '.join(self.functions)}")
        return self.functions[wanted]


def walk(block: Block) -> Iterator[Operation]:
    """Yield the operators of a block and of those inside it, in order of evaluation, `const` left out."""
    return (operation for operation in walk_all(block) if operation.type != "const")


def walk_all(block: Block) -> Iterator[Operation]:
    """Yield the operators of a block and of those inside it, in order of evaluation, `const` too."""
    for operation in block.operations:
        for inner in operation.blocks:
            yield from walk_all(inner)
        yield operation


SOURCES = "edgesmith.sources"
"""Kept beside a package, or in older ones user-defined metadata: a JSON object from the model's modules to the names of
their operators. A package of several functions has one for each, whose key ends with a point and its name."""

_VARIADIC = frozenset({"values", "loop_vars", "elem_shape"})
"""Parameters of MIL operators that take several operands, and are a tuple with one as well."""

_TYPES = {
    "BOOL": "bool",
    "STRING": "string",
    "FLOAT16": "fp16",
    "FLOAT32": "fp32",
    "FLOAT64": "fp64",
    "BFLOAT16": "bf16",
}
"""MIL's names for the protobuf's DataType; the integers are called alike but for the case."""

_FIELDS: Mapping[str, str | tuple[str, ...]] = {
    "strings": "string",
    "bools": "bool",
    "floats": ("fp", "bf"),
    "doubles": ("fp", "bf"),
    "ints": ("int", "uint"),
    "longInts": ("int", "uint"),
    "bytes": ("fp", "bf", "int", "uint", "bool"),
}
"""Kinds of values in the protobuf, and how the names of the types begin that may have them."""

_BLOBS = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    5: "bf16",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
"""Type numbers of a blob's metadata."""

_LAYOUTS: dict[str, tuple[str, int]] = {
    "bool": ("?", 8),
    "fp16": ("<f2", 16),
    "bf16": ("<i2", 16),
    "fp32": ("<f4", 32),
    "fp64": ("<f8", 64),
    "int4": ("u1", 4),
    "int8": ("i1", 8),
    "int16": ("<i2", 16),
    "int32": ("<i4", 32),
    "int64": ("<i8", 64),
    "uint1": ("u1", 1),
    "uint2": ("u1", 2),
    "uint3": ("u1", 3),
    "uint4": ("u1", 4),
    "uint6": ("u1", 6),
    "uint8": ("u1", 8),
    "uint16": ("<u2", 16),
    "uint32": ("<u4", 32),
    "uint64": ("<u8", 64),
}
"""How a type is stored: NumPy's name for the bytes, and bits an element."""

_HEADER = struct.Struct("<II")
BLOB = struct.Struct("<IIQQQ")
"""A blob's metadata: sentinel, type, size, offset of the data, padding in bits."""

_SENTINEL = 0xDEADBEEF


def load(path: str | Path) -> MlProgram:
    """Read an `.mlpackage`, or a `.mlmodel` with its weights beside it. Weights stay in their files until needed.

    Raises:
        BadInput: the package is damaged or incomplete: a file is missing or cut short, or the program does not fit
            together.
        Unsupported: the model is no ML Program, or has types that edgesmith does not know.
        BackendMissing: coremltools, which has the format's protobuf classes, is not installed.
    """
    path = Path(path)
    specification = _specification(path)
    model = _model(specification, path)
    kind = model.WhichOneof("Type")
    if kind in _PIPELINES:
        return _pipeline(path, specification, model)
    if kind != "mlProgram":
        raise Unsupported(
            f"{path.name} holds a {kind or 'model of no type'} and no ML Program; convert the model anew"
            ' with convert_to="mlprogram"'
        )
    beside = _beside(path)
    reader = _Reader(path, specification.parent, model, beside)
    functions = {name: reader.function(name, function) for name, function in sorted(model.mlProgram.functions.items())}
    interfaces = _interfaces(model.description, functions)
    default = model.description.defaultFunctionName or ("main" if "main" in functions else next(iter(functions), ""))
    if default not in functions:
        raise BadInput(
            f"{path.name} names {default!r} as its default function, and has {', '.join(functions) or 'none'}"
        )
    return MlProgram(path, functions, interfaces, default, model.specificationVersion, beside | _metadata(model))


_PIPELINES = ("pipeline", "pipelineClassifier", "pipelineRegressor")


def _pipeline(path: Path, specification: Path, model: Any) -> MlProgram:
    """Return the ML Programs among the parts of a pipeline. Raises Unsupported where there are none."""
    kind = model.WhichOneof("Type")
    parts = model.pipeline.models if kind == "pipeline" else getattr(model, kind).pipeline.models
    functions: dict[str, Function] = {}
    interfaces: dict[str, Interface] = {}
    for i, part in enumerate(parts):
        if part.WhichOneof("Type") != "mlProgram":
            continue  # such as a scaler, or what makes labels of numbers
        reader = _Reader(path, specification.parent, part)
        own = {name: reader.function(name, one) for name, one in sorted(part.mlProgram.functions.items())}
        for name, interface in _interfaces(part.description, own).items():
            called = f"part_{i}" if len(own) == 1 else f"part_{i}.{name}"
            functions[called], interfaces[called] = replace(own[name], name=called), interface
    if not functions:
        kinds = ", ".join(sorted({part.WhichOneof("Type") or "model of no type" for part in parts})) or "nothing"
        raise Unsupported(
            f"{path.name} is a pipeline of {kinds} and no ML Program; convert its parts anew with"
            ' convert_to="mlprogram"'
        )
    return MlProgram(path, functions, interfaces, "", model.specificationVersion, _metadata(model))


def _specification(path: Path) -> Path:
    """Return the path of a package's model. Raises BadInput."""
    if not path.exists():
        raise BadInput(f"there is no {path}; give an .mlpackage")
    if path.is_file():
        return path
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise BadInput(f"{path.name} has no Manifest.json, so it is no complete .mlpackage; export it anew")
    try:
        content = read_json(manifest, "package's manifest", advice="export the package anew")
        entry = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"the Manifest.json of {path.name} names no model ({error!r}); export the package anew"
        ) from error
    found = path_listed(path / "Data", str(entry))
    if not found.is_file():
        raise BadInput(f"{path.name} names {entry} as its model, and has no such file; export the package anew")
    return found


def _model(path: Path, package: Path) -> Any:
    with quiet():
        try:
            from coremltools.proto import Model_pb2
        except ImportError as error:
            raise BackendMissing(
                "reading Core ML packages takes coremltools; install it with: pip install 'edgesmith[coreml]'"
            ) from error
    return parse_message(path, Model_pb2.Model(), f"model in {package.name}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what coremltools says while it is imported from the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _beside(path: Path) -> dict[str, str]:
    """Return what edgesmith has kept beside a package of its own, as metadata would have it."""
    notes = read_notes(path)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in notes.items()}


def _metadata(model: Any) -> dict[str, str]:
    given = model.description.metadata
    found = {key: getattr(given, key) for key in ("shortDescription", "versionString", "author", "license")}
    return {key: value for key, value in found.items() if value} | dict(given.userDefined)


def _interfaces(description: Any, functions: Mapping[str, Function]) -> dict[str, Interface]:
    """Each function's features. A package of one function describes it at the top, one of several in `functions`."""
    described = {function.name: function for function in description.functions}
    found = {}
    for name in functions:
        given = described.get(name, description)
        found[name] = Interface(
            inputs=tuple(_feature(feature) for feature in given.input),
            outputs=tuple(_feature(feature) for feature in given.output),
            states=tuple(_feature(feature) for feature in given.state),
            label=given.predictedFeatureName or None,
            probabilities=given.predictedProbabilitiesName or None,
        )
    return found


_ARRAY_TYPES = {0x10020: "float32", 0x10010: "float16", 0x10040: "float64", 0x20020: "int32", 0x20008: "int8"}
"""Numbers of Core ML's `ArrayFeatureType.ArrayDataType`, FeatureTypes.proto: a kind, and so many bits."""


def _feature(feature: Any) -> Feature:
    of = feature.type.WhichOneof("Type")
    given: Any = getattr(feature.type, of) if of else None
    optional = bool(feature.type.isOptional)
    if of == "imageType":
        layout = given.ColorSpace.Name(given.colorSpace)
        image = ImageFeature(layout, given.height, given.width)
        ranges, listed = _sizes_of_image(given)
        return Feature(
            feature.name, "image", (), image, optional, flexible=_flexible(given, "Size"), ranges=ranges, listed=listed
        )
    if of == "stateType":
        return Feature(feature.name, "state", tuple(given.arrayType.shape))
    if of == "multiArrayType":
        default = given.WhichOneof("defaultOptionalValue")
        value = getattr(given, default) if default else 0
        shape, flexible = tuple(given.shape), _flexible(given, "Shape")
        ranges = tuple((one.lowerBound, _upper(one.upperBound)) for one in given.shapeRange.sizeRanges)
        listed = tuple(tuple(one.shape) for one in given.enumeratedShapes.shapes)
        kind = _ARRAY_TYPES.get(given.dataType, "")
        return Feature(feature.name, "array", shape, None, optional, value, flexible, ranges, listed, kind)
    kinds = {"stringType": "string", "int64Type": "int64", "doubleType": "double", "dictionaryType": "dictionary"}
    if of not in kinds:
        raise Unsupported(f"the feature {feature.name} is a {of}; edgesmith knows arrays, images, states and labels")
    return Feature(feature.name, kinds[of], optional=optional)


Ranges = tuple[tuple[int, int | None], ...]


def _sizes_of_image(given: Any) -> tuple[Ranges, tuple[tuple[int, ...], ...]]:
    """Return the ranges, or the sizes, that an image of a flexible size may have, height first."""
    which = given.WhichOneof("SizeFlexibility")
    if which == "imageSizeRange":
        own = given.imageSizeRange
        sides = (own.heightRange, own.widthRange)
        return tuple((one.lowerBound, _upper(one.upperBound)) for one in sides), ()
    return (), tuple((one.height, one.width) for one in given.enumeratedSizes.sizes)


def _upper(bound: int) -> int | None:
    """Return the greatest size; negative ones stand for any."""
    return None if bound < 0 else bound


def _flexible(given: Any, of: str) -> str | None:
    """Return how the shape of a feature may vary."""
    kind = given.WhichOneof(f"{of}Flexibility")
    return None if kind is None else "enumerated" if kind.startswith("enumerated") else "range"


class _Reader:
    """The reader that makes the classes above of protobuf messages; it opens each blob file once."""

    def __init__(self, path: Path, folder: Path, model: Any, beside: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.folder = folder
        self.files: dict[str, _BlobFile] = {}
        self.metadata = dict(beside or {}) | dict(model.description.metadata.userDefined)
        self.sources: dict[str, str] = {}

    def function(self, name: str, given: Any) -> Function:
        self.sources = _sources(self.metadata, name)
        if given.opset not in given.block_specializations:
            found = ", ".join(given.block_specializations) or "none"
            raise BadInput(f"{self.path.name}: {name} is written for {given.opset or 'no opset'}, and has {found}")
        inputs = tuple(self.variable(one) for one in given.inputs)
        block = self.block(given.block_specializations[given.opset], {one.name for one in inputs})
        return Function(name, inputs, block, given.opset)

    def block(self, given: Any, known: set[str]) -> Block:
        """A block in which the names `known` can be read. Raises BadInput for a name that nothing before it makes."""
        inputs = tuple(self.variable(one) for one in given.inputs)
        known = known | {one.name for one in inputs}
        operations = []
        for one in given.operations:
            operation = self.operation(one, known)
            operations.append(operation)
            known |= {output.name for output in operation.outputs}
        missing = [name for name in given.outputs if name not in known]
        if missing:
            raise BadInput(f"{self.path.name}: a block returns {missing[0]!r}, which no operator makes")
        return Block(inputs, tuple(operations), tuple(given.outputs))

    def operation(self, given: Any, known: set[str]) -> Operation:
        outputs = tuple(self.variable(one) for one in given.outputs)
        attributes = {key: self.constant(value) for key, value in given.attributes.items()}
        written = attributes.pop("name", None)
        name = str(written.read()) if written is not None else outputs[0].name if outputs else given.type
        kept, made = attributes.get("val"), outputs[0].type if outputs else None
        if given.type == "const" and kept is not None and not _are_alike(kept.type, made):
            raise BadInput(
                f"{self.path.name} keeps {_in_words(kept.type)} for {name}, which is declared as {_in_words(made)};"
                " the program is damaged"
            )
        inputs: dict[str, Operand] = {key: self.operand(key, value) for key, value in sorted(given.inputs.items())}
        if given.type == "const" or given.type.startswith("constexpr_"):
            inputs |= attributes
            attributes = {}
        for parameter, reference in references(inputs):
            if reference not in known:
                raise BadInput(
                    f"{self.path.name}: {name} ({given.type}) reads {reference!r} as its {parameter}, which no operator"
                    " before it makes; the program is damaged"
                )
        blocks = tuple(self.block(block, known) for block in given.blocks)
        source = self.source(name, inputs, outputs)
        return Operation(given.type, name, inputs, outputs, attributes, blocks, source)

    def source(self, name: str, inputs: Mapping[str, Operand], outputs: tuple[Variable, ...]) -> str | None:
        """Return where an operator comes from, and keep it under its outputs' names for those that read them."""
        read = [name, *(reference for _, reference in references(inputs))]
        found = next((self.sources[one] for one in read if one in self.sources), None)
        if found is not None:
            self.sources |= {one.name: found for one in outputs if one.name not in self.sources}
        return found

    def operand(self, parameter: str, given: Any) -> Operand:
        found = tuple(
            Ref(one.name) if one.WhichOneof("binding") == "name" else self.constant(one.value)
            for one in given.arguments
        )
        return found[0] if len(found) == 1 and parameter not in _VARIADIC else found

    def variable(self, given: Any) -> Variable:
        return Variable(given.name, self.type(given.type))

    def type(self, given: Any) -> Type:
        kind = given.WhichOneof("type")
        if kind == "tensorType":
            return self.tensor_type(given.tensorType)
        if kind == "listType":
            length = given.listType.length
            known = length.WhichOneof("dimension") == "constant"
            return ListType(self.type(given.listType.type), length.constant.size if known else None)
        if kind == "tupleType":
            return TupleType(tuple(self.type(one) for one in given.tupleType.types))
        if kind == "dictionaryType":
            return DictionaryType(self.type(given.dictionaryType.keyType), self.type(given.dictionaryType.valueType))
        if kind == "stateType":
            wrapped = self.type(given.stateType.wrappedType)
            if not isinstance(wrapped, TensorType):
                raise Unsupported(f"{self.path.name} has a state that is no tensor; ML Programs keep tensors only")
            return StateType(wrapped)
        raise BadInput(f"{self.path.name} has a value without a type; the program is damaged")

    def tensor_type(self, given: Any) -> TensorType:
        from coremltools.proto import MIL_pb2

        try:
            label = MIL_pb2.DataType.Name(given.dataType)
        except ValueError:
            label = f"number {given.dataType}"
        dtype = _TYPES.get(label, label.lower())
        if dtype != "string" and dtype not in _LAYOUTS:
            raise Unsupported(f"{self.path.name} has tensors of the type {label}, which edgesmith does not evaluate")
        if any(one.unknown.variadic for one in given.dimensions) or given.rank < 0:
            return TensorType(dtype, None)
        sizes = (one.constant.size if one.WhichOneof("dimension") == "constant" else None for one in given.dimensions)
        return TensorType(dtype, tuple(sizes))

    def constant(self, given: Any) -> Constant:
        kind = self.type(given.type)
        if given.WhichOneof("value") == "blobFileValue":
            where, offset = given.blobFileValue.fileName, given.blobFileValue.offset
            if not isinstance(kind, TensorType) or kind.shape is None or None in kind.shape:
                raise BadInput(f"{self.path.name} keeps a value of no fixed shape in {where}; the program is damaged")
            stored = Stored(where, offset, stored_size(kind))
            return Constant(kind, lambda: self.file(where).read(offset, kind), stored)
        return Constant(kind, lambda: self.immediate(given, kind))

    def file(self, name: str) -> _BlobFile:
        """A blob file by the name that the program has for it: `@model_path/` is the folder of the model."""
        if name not in self.files:
            inside = Path(name.removeprefix("@model_path/"))
            if inside.is_absolute() or ".." in inside.parts:
                raise BadInput(f"{self.path.name} keeps weights in {name}, outside of the package; refused")
            self.files[name] = _BlobFile(
                path_below(self.folder, *inside.parts), f"{name.rpartition('/')[2]} of {self.path.name}"
            )
        return self.files[name]

    def immediate(self, given: Any, kind: Type) -> Any:
        """A value that is in the program itself."""
        of = given.immediateValue.WhichOneof("value")
        if of == "tensor" and isinstance(kind, TensorType):
            return self.tensor(given.immediateValue.tensor, kind)
        if of in ("list", "tuple"):
            values = getattr(given.immediateValue, of).values
            return tuple(self.immediate(one, self.type(one.type)) for one in values)
        if of == "dictionary":
            pairs = given.immediateValue.dictionary.values
            return {self.constant(pair.key).read(): self.constant(pair.value).read() for pair in pairs}
        raise BadInput(f"{self.path.name} has a constant whose value is missing; the program is damaged")

    def tensor(self, given: Any, kind: TensorType) -> Any:
        """A tensor of the program: bytes for types of 8 and 16 bits and uint32, numbers one by one for the others."""
        of = given.WhichOneof("value")
        values: Any = getattr(given, of).values if of else ()
        if of and not kind.dtype.startswith(_FIELDS[of]):
            raise BadInput(
                f"{self.path.name} has a constant of {of} where its type says {kind.dtype}; the program is damaged"
            )
        if kind.dtype == "string":
            return str(values[0]) if kind.shape == () and values else tuple(str(value) for value in values)
        shape = tuple(size or 0 for size in kind.shape or ())
        if of == "bytes":
            return decode(values, kind.dtype, shape, self.path.name)
        if len(values) != math.prod(shape):
            raise BadInput(
                f"{self.path.name} has a constant of {len(values)} values where its type says {list(shape)};"
                " the program is damaged"
            )
        import torch

        from edgesmith.exporters.mil.carriers import carrier

        try:
            return torch.tensor(list(values), dtype=carrier(kind.dtype)).reshape(shape)
        except (RuntimeError, OverflowError, ValueError) as error:  # a number beyond its type, a size beyond all
            raise BadInput(
                f"{self.path.name} has a constant that is no {kind.dtype}; the program is damaged"
            ) from error


def _are_alike(kept: Type, declared: Type | None) -> bool:
    """Return whether a constant has the type that it is declared to have, as far as that is known."""
    if isinstance(kept, TensorType) and isinstance(declared, TensorType):
        return kept.dtype == declared.dtype and (declared.shape is None or kept.shape == declared.shape)
    return type(kept) is type(declared)


def _in_words(kind: Type | None) -> str:
    if not isinstance(kind, TensorType):
        return "nothing" if kind is None else type(kind).__name__
    return f"{kind.dtype} of {'any shape' if kind.shape is None else f'shape {list(kind.shape)}'}"


def references(inputs: Mapping[str, Operand]) -> Iterator[tuple[str, str]]:
    """Parameter and name of each operand that another operator makes."""
    for parameter, operand in inputs.items():
        for one in operand if isinstance(operand, tuple) else (operand,):
            if isinstance(one, Ref):
                yield parameter, one.name


def _sources(metadata: Mapping[str, str], function: str) -> dict[str, str]:
    """Return the module that each of a function's operators comes from, where the package has a table."""
    try:
        table = read_json(metadata.get(f"{SOURCES}.{function}") or metadata.get(SOURCES, "{}"), "table of modules")
        return {name: module for module, names in table.items() for name in names}
    except (Unreadable, AttributeError, TypeError):  # somebody else's entry of the same name
        return {}


def stored_size(kind: TensorType) -> int:
    """Return the bytes that a tensor of a fixed shape takes in a file."""
    return _size(kind.dtype, math.prod(size or 0 for size in kind.shape or ()))


def _size(dtype: str, count: int) -> int:
    return (count * _LAYOUTS[dtype][1] + 7) // 8


def decode(data: bytes, dtype: str, shape: tuple[int, ...], where: str) -> Tensor:
    """Stored bytes as a tensor of the type's carrier. Raises BadInput when there are not as many as the shape takes."""
    import torch

    stored, bits = _LAYOUTS[dtype]
    count = math.prod(shape)
    needed = _size(dtype, count)
    if len(data) != needed:
        raise BadInput(
            f"a constant of {where} has {len(data)} bytes where {dtype} of shape {list(shape)} takes {needed}; the"
            " package is damaged"
        )
    raw = np.frombuffer(data, np.dtype(stored))
    if bits < 8:
        raw = _unpack(raw, bits, count, signed=dtype.startswith("int"))
    if dtype == "bf16":
        return torch.from_numpy(raw.astype(np.int16)).view(torch.bfloat16).reshape(shape)
    wanted = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(dtype)
    return torch.from_numpy(raw.astype(wanted or raw.dtype.newbyteorder("="))).reshape(shape)


def _unpack(raw: np.ndarray, bits: int, count: int, signed: bool) -> np.ndarray:
    """Elements of less than a byte, packed from the least significant bit on, as bytes."""
    single = np.unpackbits(raw, bitorder="little")[: count * bits].reshape(count, bits)
    values = (single.astype(np.int16) << np.arange(bits, dtype=np.int16)).sum(axis=1)
    if signed:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return np.asarray(values, np.int8 if signed else np.uint8)


_LARGEST_WEIGHTS = 256 * GIBIBYTE
"""They are mapped, and read where the program points."""


class _BlobFile:
    """A weight file of version 2, mapped into memory when the first blob is read."""

    def __init__(self, path: Path, label: str) -> None:
        self.label = label
        try:
            if path.exists():
                check_file(path, "weights", _LARGEST_WEIGHTS)
            with path.open("rb") as file:
                self.data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise BadInput(f"{label} is missing; the package is incomplete, export it anew") from None
        except ValueError:  # an empty file cannot be mapped
            self.data = b""
        if len(self.data) < 64:
            raise BadInput(f"{label} is cut short: {len(self.data)} bytes, and the header alone takes 64")
        version = _HEADER.unpack_from(self.data)[1]
        if version != 2:
            raise Unsupported(f"{label} is a blob file of version {version}; edgesmith reads version 2")

    def read(self, offset: int, kind: TensorType) -> Tensor:
        """The blob whose metadata is at `offset`. Raises BadInput where it is not what the program says."""
        if offset + 64 > len(self.data):
            raise BadInput(
                f"{self.label} has {len(self.data)} bytes, and a weight is expected at {offset}: the file is cut short"
                " or the offset is wrong"
            )
        sentinel, number, size, start, _ = BLOB.unpack_from(self.data, offset)
        if sentinel != _SENTINEL:
            raise BadInput(f"{self.label} has no weight at {offset}: the file or the offset is damaged")
        if start + size > len(self.data):
            raise BadInput(f"{self.label} is cut short: a weight ends at {start + size}, the file at {len(self.data)}")
        stored = _BLOBS.get(number, f"type number {number}")
        if stored != kind.dtype:
            raise BadInput(f"{self.label} has {stored} at {offset} where the program says {kind.dtype}; one is damaged")
        shape = tuple(size or 0 for size in kind.shape or ())
        return decode(self.data[start : start + size], kind.dtype, shape, self.label)
