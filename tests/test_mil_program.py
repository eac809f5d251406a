"""Reading saved packages: every stored type, damaged packages, interfaces, functions, where operators come from."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.lowering import lower
from support.mil_packages import SPECIFICATION, WEIGHTS, block, edit, save

from edgesmith.errors import BackendMissing, BadInput, EdgesmithError, Unsupported
from edgesmith.exporters.mil.carriers import CARRIERS, carrier
from edgesmith.exporters.mil.ops import all_ops, ints, number, op, wide
from edgesmith.exporters.mil.program import (
    SOURCES,
    DictionaryType,
    ListType,
    StateType,
    TensorType,
    TupleType,
    _BlobFile,
    decode,
    load,
    walk,
)

ct = pytest.importorskip("coremltools")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear layer with its weight in weight.bin."""
    from coremltools.converters.mil import Builder as mb

    def main(x: Any) -> Any:
        return mb.linear(x=x, weight=np.arange(32, dtype=np.float32).reshape(4, 8), name="y")

    return save(main, [mb.TensorSpec((1, 8))], tmp_path_factory.mktemp("package") / "linear.mlpackage")


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(package, tmp_path / "linear.mlpackage"))


def operations(path: Path) -> dict[str, Any]:
    return {operation.type: operation for operation in load(path).operations()}


# ------------------------------------------------------------------------------------------------------- what is stored


STORED = {
    "fp16": ("fp16", np.float16), "fp32": ("float", np.float32), "uint8": ("uint8", np.uint8),
    "int8": ("int8", np.int8), "uint16": ("uint16", np.uint16), "int16": ("int16", np.int16),
    "int32": ("int32", np.int32), "uint32": ("uint32", np.uint32), "int4": ("int4", np.int8),
    "uint1": ("uint1", np.uint8), "uint2": ("uint2", np.uint8), "uint3": ("uint3", np.uint8),
    "uint4": ("uint4", np.uint8), "uint6": ("uint6", np.uint8),
}  # fmt: skip
BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}


def extremes(name: str, count: int) -> np.ndarray:
    """Values of a type, its smallest and largest among them."""
    _, kind = STORED[name]
    generator = np.random.default_rng(count)
    if kind in (np.float16, np.float32):
        return np.concatenate([[np.finfo(kind).max, -np.inf], generator.normal(size=count)]).astype(kind)
    low, high = (np.iinfo(kind).min, np.iinfo(kind).max) if name not in BITS else (0, 2 ** BITS[name] - 1)
    if name == "int4":
        low, high = -8, 7
    return np.concatenate([[low, high], generator.integers(low, high, count, endpoint=True)]).astype(kind)


def test_every_type_of_a_weight_file_is_read(tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    path = tmp_path / "weight.bin"
    writer = _BlobStorageWriter(str(path))
    written = {}
    for name, (label, _) in STORED.items():
        for count in (1, 3, 9, 40):
            values = extremes(name, count)
            raw = values.view(np.uint16) if name == "fp16" else values
            written[name, count] = (getattr(writer, f"write_{label}_data")(raw), values)
    del writer
    file = _BlobFile(path, "weight.bin")
    for (name, _), (offset, values) in written.items():
        found = file.read(offset, TensorType(name, (len(values),)))
        assert found.dtype == carrier(name)
        assert np.array_equal(found.numpy(), values.astype(found.numpy().dtype)), name


@given(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 63), max_size=20))
def test_narrow_types_are_packed_from_the_lowest_bit(name: str, values: list[int]) -> None:
    bits = BITS[name]
    values = [value % 2**bits for value in values]
    whole = sum(value << (bits * i) for i, value in enumerate(values))
    data = whole.to_bytes((len(values) * bits + 7) // 8, "little")
    wanted = [value - 16 if name == "int4" and value > 7 else value for value in values]
    assert decode(data, name, (len(values),), "here").tolist() == wanted


def test_bfloat16_and_wide_integers_are_read() -> None:
    assert decode(b"\x80\x3f\x00\xc0", "bf16", (2,), "here").tolist() == [1.0, -2.0]
    assert decode(b"\xff\xff", "uint16", (1,), "here").tolist() == [65535]
    assert decode(b"\x01" + b"\0" * 7, "uint64", (), "here").item() == 1


def test_constants_of_the_program_are_read(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    narrow = types.nptype_from_builtin(types.uint4)
    given_ = {
        "c_fp32": np.array([1.5, -2], np.float32), "c_fp16": np.array([1.5, -2], np.float16),
        "c_int32": np.array([[1], [-2]], np.int32), "c_bool": np.array([True, False]),
        "c_int8": np.array([-3], np.int8), "c_uint8": np.array([200], np.uint8),
        "c_int16": np.array([-300], np.int16), "c_uint16": np.array([60000], np.uint16),
        "c_scalar": np.float32(0.25), "c_half": np.float16(0.25), "c_empty": np.zeros((0, 3), np.float32),
        "c_string": "words",
    }  # fmt: skip

    def main(x: Any) -> Any:
        for name, value in given_.items():
            mb.const(val=value, name=name)
        mb.constexpr_blockwise_shift_scale(
            data=np.array([1, 15], narrow), scale=np.array([0.5], np.float16), name="narrow"
        )
        return mb.identity(x=x)

    program = load(save(main, [mb.TensorSpec((1,))], tmp_path / "constants.mlpackage"))
    found = {o.name: o for o in program.function().block.operations}
    for name, value in given_.items():
        read = found[name].inputs["val"].read()  # type: ignore[union-attr]
        if name == "c_string":
            assert read == "words"
        else:
            assert read.shape == np.shape(value), name
            assert np.array_equal(read.numpy(), np.asarray(value).astype(read.numpy().dtype)), name
    assert found["narrow"].inputs["data"].read().tolist() == [1, 15]  # type: ignore[union-attr]


def test_types_are_read(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import get_new_symbol, types

    def main(x: Any, s: Any) -> Any:
        ls = mb.make_list(init_length=2, dynamic_length=False, elem_shape=(3,))
        ls = mb.list_write(ls=ls, index=0, value=np.zeros(3, np.float32))
        mb.coreml_update_state(state=s, value=mb.const(val=np.zeros(3, np.float16)))
        return mb.add(x=x, y=mb.list_read(ls=ls, index=0))

    specs = [mb.TensorSpec((get_new_symbol(), 3)), mb.StateTensorSpec((3,), dtype=types.fp16)]
    program = load(save(main, specs, tmp_path / "types.mlpackage"))
    x, s = program.function().inputs
    assert x.type == TensorType("fp32", (None, 3))
    assert s.type == StateType(TensorType("fp16", (3,)))
    made = next(o for o in program.operations() if o.type == "make_list")
    assert made.outputs[0].type == ListType(TensorType("fp32", (3,)), 2)
    assert [one.name for one in program.interfaces["main"].states] == ["s"]
    assert program.default == "main"
    assert program.specification == 9


def test_a_bare_model_is_read_with_its_weights_beside_it(package: Path) -> None:
    assert [o.type for o in load(package / SPECIFICATION).operations()] == ["linear"]


# ------------------------------------------------------------------------------------------------------------- damage


def evaluate(path: Path) -> Any:
    from edgesmith.exporters.mil.evaluate import Evaluator

    return Evaluator(path).run({"x": torch.ones(1, 8)})


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def shift_offset(model: Any) -> None:
    for operation in block(model).operations:
        value = operation.attributes.get("val")
        if value is not None and value.WhichOneof("value") == "blobFileValue":
            value.blobFileValue.offset += 10**6


def first_weight(model: Any) -> Any:
    return next(
        o.attributes["val"]
        for o in block(model).operations
        if o.type == "const" and o.attributes["val"].WhichOneof("value") == "blobFileValue"
    )


def retyped(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the type of the first weight, and what it is declared to be."""

    def both(model: Any) -> None:
        change(first_weight(model).type.tensorType)
        made = next(o for o in block(model).operations if o.attributes["val"] == first_weight(model))
        made.outputs[0].type.CopyFrom(first_weight(model).type)

    edit(path, both)


def test_the_undamaged_package_evaluates(package: Path) -> None:
    assert evaluate(package)["y"].tolist() == [[28.0, 92.0, 156.0, 220.0]]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: shutil.rmtree(p), "there is no"),
        (lambda p: (p / "Manifest.json").unlink(), "no Manifest.json"),
        (lambda p: (p / "Manifest.json").write_text("{"), "Manifest.json is damaged or no package's manifest"),
        (lambda p: (p / "Manifest.json").write_text("{}"), "KeyError"),
        (lambda p: (p / SPECIFICATION).unlink(), "and has no such file"),
        (lambda p: (p / SPECIFICATION).write_bytes(b"\xff" * 90), "cannot be read"),
        (lambda p: (p / WEIGHTS).unlink(), "weight.bin of linear.mlpackage is missing"),
        (lambda p: cut(p / WEIGHTS, 0), "cut short: 0 bytes"),
        (lambda p: cut(p / WEIGHTS, 100), "has 100 bytes, and a weight is expected at 64"),
        (lambda p: cut(p / WEIGHTS, 200), "cut short: a weight ends at 256, the file at 200"),
        (lambda p: edit(p, shift_offset), "a weight is expected at 1000064"),
        (
            lambda p: edit(p, lambda m: setattr(first_weight(m).blobFileValue, "offset", 65)),
            "no weight at 65",
        ),
        (
            lambda p: edit(p, lambda m: setattr(first_weight(m).blobFileValue, "fileName", "@model_path/../../w.bin")),
            "outside of the package",
        ),
        (
            lambda p: retyped(p, lambda kind: setattr(kind, "dataType", 23)),
            "has fp32 at 64 where the program says int32",
        ),
        (
            lambda p: retyped(p, lambda kind: setattr(kind.dimensions[0].constant, "size", 5)),
            "has 128 bytes where fp32 of shape \\[5, 8\\] takes 160",
        ),
        (lambda p: retyped(p, lambda kind: kind.ClearField("dimensions")), "takes 4"),
        (
            lambda p: edit(p, lambda m: setattr(first_weight(m).type.tensorType, "dataType", 23)),
            r"keeps int32 of shape \[4, 8\] for \w+, which is declared as fp32 of shape \[4, 8\]",
        ),
        (
            lambda p: edit(p, lambda m: first_weight(m).type.tensorType.dimensions[0].unknown.SetInParent()),
            "a value of no fixed shape",
        ),
        (lambda p: edit(p, lambda m: first_weight(m).ClearField("value")), "whose value is missing"),
        (lambda p: edit(p, lambda m: first_weight(m).type.ClearField("type")), "a value without a type"),
        (lambda p: edit(p, lambda m: block(m).operations.pop(0)), "which no operator before it makes"),
        (lambda p: edit(p, lambda m: block(m).outputs.append("z")), "returns 'z'"),
        (
            lambda p: edit(p, lambda m: setattr(m.mlProgram.functions["main"], "opset", "CoreML99")),
            "main is written for CoreML99, and has CoreML8",
        ),
        (lambda p: edit(p, lambda m: setattr(m.description, "defaultFunctionName", "f")), "names 'f' as its default"),
    ],
)
def test_a_damaged_package_is_said_to_be_damaged(copy: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(copy)
    with pytest.raises(BadInput, match=words):
        evaluate(copy)


def test_a_constant_with_too_few_values_is_refused(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb

    from edgesmith.exporters.mil.evaluate import Evaluator

    def main(x: Any) -> Any:
        return mb.add(x=x, y=np.array([1, 2], np.float32))

    path = save(main, [mb.TensorSpec((2,))], tmp_path / "add.mlpackage")

    def change(model: Any) -> None:
        value = next(o for o in block(model).operations if o.type == "const").attributes["val"]
        value.immediateValue.tensor.floats.values.pop()

    evaluator = Evaluator(edit(path, change))
    with pytest.raises(BadInput, match=r"1 values where its type says \[2\]"):
        evaluator.run({"x": torch.ones(2)})


STRING, BOOL, FP32, INT32 = 2, 1, 11, 23  # MIL_pb2.DataType

OTHERS: dict[str, tuple[int, list[int], str, list[Any]]] = {
    "a text": (STRING, [], "strings", ["x"]),
    "texts": (STRING, [2], "strings", ["x", "y"]),
    "a negative number": (INT32, [], "ints", [-7]),
    "a huge number": (INT32, [], "ints", [2**31 - 1]),
    "zero": (INT32, [], "ints", [0]),
    "no numbers": (INT32, [0], "ints", []),
    "some numbers": (INT32, [4], "ints", [-9, 2**30, 0, 1]),
    "a matrix": (INT32, [1, 2], "ints", [1, 2]),
    "no number": (FP32, [], "floats", [float("nan")]),
    "infinity": (FP32, [], "floats", [float("inf")]),
    "fractions": (FP32, [2], "floats", [0.5, 1e30]),
    "a switch": (BOOL, [], "bools", [True]),
    "texts for numbers": (INT32, [2], "strings", ["x", "y"]),
    "numbers for texts": (STRING, [], "ints", [1]),
    "fractions for numbers": (INT32, [1], "floats", [0.5]),
    "a number beyond its type": (4, [], "longInts", [2**62]),
}
"""Constants: a type, a shape, the field of the protobuf, and its values."""


def put(value: Any, what: tuple[int, list[int], str, list[Any]]) -> None:
    """Have a value of the program be another."""
    dtype, shape, of, values = what
    value.Clear()
    value.type.tensorType.dataType, value.type.tensorType.rank = dtype, len(shape)
    for size in shape:
        value.type.tensorType.dimensions.add().constant.size = size
    getattr(value.immediateValue.tensor, of).SetInParent()
    getattr(value.immediateValue.tensor, of).values.extend(values)


@pytest.fixture(scope="module")
def of_many_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program whose operators have settings of every kind."""
    from coremltools.converters.mil import Builder as mb

    def main(x: Any) -> Any:
        weight = np.ones((4, 4, 3, 3), np.float32)
        y = mb.conv(x=x, weight=weight, pad_type="custom", pad=[1] * 4, strides=[1, 1], dilations=[1, 1], groups=1)
        y = mb.avg_pool(x=y, kernel_sizes=[3, 3], strides=[1, 1], pad_type="same", exclude_padding_from_average=True)
        y = mb.pad(x=y, pad=[1, 1, 1, 1], mode="constant", constant_val=0.0)
        y = mb.slice_by_index(x=y, begin=[0, 0, 1, 1], end=[1, 4, 9, 9], begin_mask=[True, False, False, False])
        y = mb.softmax(x=mb.layer_norm(x=y, axes=[-1], epsilon=1e-5), axis=1)
        y = mb.concat(values=[mb.transpose(x=y, perm=[0, 1, 3, 2]), y], axis=1)
        y = mb.reduce_mean(x=mb.reshape(x=y, shape=[1, 8, 64]), axes=[2], keep_dims=True)
        return mb.matmul(x=y, y=np.ones((1, 5), np.float32), transpose_x=False, transpose_y=False, name="y")

    specs = [mb.TensorSpec((1, 4, 8, 8))]
    return save(main, specs, tmp_path_factory.mktemp("package") / "settings.mlpackage")


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_constants_of_another_kind_are_read_or_refused(
    other: str, declared: bool, of_many_settings: Path, tmp_path: Path
) -> None:
    """Whoever lints or evaluates a damaged program is told so."""
    from edgesmith.exporters.departures.lint import lint
    from edgesmith.exporters.mil.evaluate import Evaluator

    path = Path(shutil.copytree(of_many_settings, tmp_path / "settings.mlpackage"))
    sound = (path / SPECIFICATION).read_bytes()
    kinds = [operation.type for operation in load(path).functions["main"].block.operations]
    assert kinds.count("const") > 20
    refused = 0
    for i in (i for i, kind in enumerate(kinds) if kind == "const"):
        (path / SPECIFICATION).write_bytes(sound)

        def change(model: Any, i: int = i) -> None:
            operation = block(model).operations[i]
            put(operation.attributes["val"], OTHERS[other])
            if declared:
                operation.outputs[0].type.CopyFrom(operation.attributes["val"].type)

        edit(path, change)
        for use in (lint, lambda path: Evaluator(path).run({"x": torch.ones(1, 4, 8, 8)})):
            try:
                use(path)
            except EdgesmithError:
                refused += 1
    assert refused > len([kind for kind in kinds if kind == "const"]) / 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.neuralNetwork.SetInParent(), "holds a neuralNetwork and no ML Program"),
        (lambda m: m.ClearField("mlProgram"), "holds a model of no type"),
        (lambda m: m.description.input[0].type.sequenceType.SetInParent(), "is a sequenceType"),
        (lambda m: setattr(first_weight(m).type.tensorType, "dataType", 40), "FLOAT8E4M3FN"),
        (lambda m: setattr(first_weight(m).type.tensorType, "dataType", 99), "number 99"),
    ],
)
def test_what_is_no_program_of_ours_is_unsupported(copy: Path, change: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        load(edit(copy, change))


def of_rank_nobody_knows(model: Any) -> None:
    block(model).operations[-1].outputs[0].type.tensorType.dimensions[0].unknown.variadic = True


def as_tuple(model: Any) -> None:
    declared = block(model).operations[-1].outputs[0].type
    inner = declared.tensorType.SerializeToString()
    declared.tupleType.types.add().tensorType.ParseFromString(inner)


def test_rarer_types_are_read(copy: Path) -> None:
    assert operations(edit(copy, of_rank_nobody_knows))["linear"].outputs[0].type == TensorType("fp32", None)
    assert evaluate(copy)["y"].shape == (1, 4)
    declared = operations(edit(copy, as_tuple))["linear"].outputs[0].type
    assert declared == TupleType((TensorType("fp32", None),))
    with pytest.raises(Unsupported, match=r"gives a tensor where the program declares TupleType"):
        evaluate(copy)


def test_dictionaries_of_constants_are_read(copy: Path) -> None:
    def change(model: Any) -> None:
        value = block(model).operations[-1].attributes["facts"]
        value.type.dictionaryType.keyType.tensorType.dataType = 2
        value.type.dictionaryType.valueType.tensorType.dataType = 23
        pair = value.immediateValue.dictionary.values.add()
        pair.key.type.tensorType.dataType = 2
        pair.key.immediateValue.tensor.strings.values.append("seven")
        pair.value.type.tensorType.dataType = 23
        pair.value.immediateValue.tensor.ints.values.append(7)

    facts = operations(edit(copy, change))["linear"].attributes["facts"]
    assert facts.type == DictionaryType(TensorType("string", ()), TensorType("int32", ()))
    assert facts.read() == {"seven": 7}


def test_a_state_that_is_no_tensor_is_unsupported(copy: Path) -> None:
    def change(model: Any) -> None:
        model.mlProgram.functions["main"].inputs[0].type.stateType.wrappedType.tupleType.SetInParent()

    with pytest.raises(Unsupported, match="has a state that is no tensor"):
        load(edit(copy, change))


def test_without_coremltools_it_is_asked_for(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools.proto", None)
    with pytest.raises(BackendMissing, match="pip install 'edgesmith"):
        load(package)


def test_an_older_weight_file_is_unsupported(copy: Path) -> None:
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:4] + b"\x01" + path.read_bytes()[5:])
    with pytest.raises(Unsupported, match="version 1"):
        evaluate(copy)


def test_an_unknown_function_is_refused(package: Path) -> None:
    with pytest.raises(BadInput, match=r"no function 'step'\. There are main"):
        load(package).function("step")


# ------------------------------------------------------------------------------------------------------------- sources


def test_an_operator_names_its_module_where_the_package_does(copy: Path) -> None:
    assert operations(copy)["linear"].site.startswith("y (linear, weight ")
    table = json.dumps({"head.fc": ["y"]})
    edit(copy, lambda m: m.description.metadata.userDefined.update({SOURCES: table}))
    assert operations(copy)["linear"].source == "head.fc"
    assert operations(copy)["linear"].site == "y (linear, in head.fc)"
    assert load(copy).metadata[SOURCES] == table


@pytest.mark.parametrize("entry", ["no json", "[1]", '{"a": 3}'])
def test_somebody_elses_entry_of_that_name_is_ignored(copy: Path, entry: str) -> None:
    edit(copy, lambda m: m.description.metadata.userDefined.update({SOURCES: entry}))
    assert operations(copy)["linear"].source is None


def test_our_packages_name_modules(small_program: Any, tmp_path: Path) -> None:
    path = tmp_path / "small.mlpackage"
    file = lower("coreml", small_program, path, "fp16")
    found = [o for o in load(path).operations() if o.type != "cast"]
    modules = {name for name, _ in small_program.module.named_modules()} | {str(path) for path in _paths(small_program)}
    assert all(o.source in modules for o in found)
    assert [o.site for o in found if o.source == ""] != []  # what the model does itself, behind its modules
    assert sum(bool(o.source) for o in found) >= 0.9 * len(found)
    assert {o.type for o in walk(load(path).function().block)} == set(file.count_operators())


def _paths(program: Any) -> set[str]:
    from edgesmith.exporters.graph.edit import module_path

    return {module_path(node) for node in program.module.graph.nodes}


# --------------------------------------------------------------------------------------------------------- the table


def test_the_table_refuses_a_second_meaning() -> None:
    assert "conv" in all_ops()
    with pytest.raises(ValueError, match="conv is registered twice"):
        op("conv")(lambda *, x: x)


def test_helpers_read_tensors_and_numbers() -> None:
    assert ints(torch.tensor([[1, 2]])) == ints([1, 2]) == [1, 2]
    assert number(torch.tensor(3)) == number(3) == 3
    assert wide(torch.ones(1).half()).dtype == wide(torch.ones(1)).dtype == torch.float32
    assert wide(torch.ones(1).int()).dtype == torch.int32
    assert set(CARRIERS) >= set(STORED)
    with pytest.raises(Unsupported, match="'string' is no numeric MIL type"):
        carrier("string")
