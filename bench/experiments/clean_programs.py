"""Programs without a construct of the book: how many does lint find something in all the same?

Read are ONNX's own test models, single operators and networks, and models of the zoo, of timm and of the generator as
lowered to ONNX, Core ML and Core AI, each for everybody who takes such a file and without a version, so that every row
may hold.
Counted are findings of the two highest severities that a row can have, of a reader who knows his version and his chip.

A finding counts as true where a second reading, made here of the operators as the file writes them and with no
detector, sees the row's construct too; such a program is none of the clean ones. Every other finding is false. Printed
are, for each row, programs with a true finding, and each false one; then the clean programs, and how many are false.

    python -m edgesmith.bench.experiments.clean_programs               ONNX's own, and what was made before
    python -m edgesmith.bench.experiments.clean_programs 900           makes others for so many seconds first
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgesmith
from edgesmith.bench.experiments.foreign import TIMM, of_timm
from edgesmith.errors import EdgesmithError
from edgesmith.exporters import targets
from edgesmith.exporters.departures.book import TARGETS, all_departures
from edgesmith.exporters.departures.lint import lint
from edgesmith.exporters.generated import recipes
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.half import half
from edgesmith.exporters.targets.target import Request

if TYPE_CHECKING:
    import onnx

MADE = Path("build") / "clean_programs"
"""Lowered programs, kept between runs."""

COLUMNS = (("onnx", "fp32"), ("coreml", "fp16"), ("coreai", "fp16"), ("onnx", "fp16"))
"""Targets and precisions of what is made."""

SIDE, FRAMES = (64, 64), 16
"""Sizes at which models of the zoo are made, where they take them."""

_IMAGES = (
    *("affnet_et", "casvit_xs", "efficientvim_m1", "transnext_micro", "vim2_tiny", "poolformerv2_s12"),
    *("convformer_s18", "caformer_s18", "segformer_b0"),
)
_SEQUENCES = ("lmuformer", "spiking_lmuformer", "lmuformer_psmnist")
_OTHERS = (
    *("hydra_block_d128", "mamba_block_d192", "tdsm_d192_n6", "tsm2", "ttm"),
    *("patchtsmixer", "patchtsmixer_512_96", "patchtsmixer_mix_channel_512_96", "iformer_small"),
)

ZOO: dict[str, dict[str, Any]] = {
    **{name: {"input_size": SIDE} for name in _IMAGES},
    **{name: {"frames": FRAMES} for name in _SEQUENCES},
    **{name: {} for name in _OTHERS},
}
"""A model of each kind, with the options that make it small."""


def make(seconds: float) -> None:
    """Lower models into `MADE`, those that are not there yet, for a time: no verification, as only graphs are read."""
    MADE.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    for name, model, options in _models():
        for target, precision in COLUMNS:
            path = MADE / f"{name}.{target}.{precision}{targets.get(target).suffix}"
            if path.exists():
                continue
            if time.monotonic() > end:
                return
            try:
                _lower(model(), target, precision, path, options)
            except EdgesmithError as error:
                print(f"not made: {path.name}: {error}", flush=True)


Made = tuple[str, Callable[[], Any], dict[str, Any]]


def _models() -> Iterator[Made]:
    """Yield names, what makes the models, and options: one of each kind in turn."""
    kinds = (_of_the_zoo(), _of_timm(), _of_the_generator())
    return (one for turn in zip_longest(*kinds) for one in turn if one is not None)


def _of_the_zoo() -> Iterator[Made]:
    for name, options in ZOO.items():
        yield name, partial(str, name), options


def _of_timm() -> Iterator[Made]:
    if find_spec("timm") is None:
        print("without timm's models: timm is not installed", flush=True)
        return
    for name, size in TIMM.items():
        model, inputs = of_timm(name, size)
        yield f"timm.{name}", model.eval, {"inputs": inputs, "name": name}


def _of_the_generator() -> Iterator[Made]:
    for name, recipe in recipes.read().items():
        given = {"inputs": recipes.draw_inputs(recipe, recipes.DRAWS[0]), "name": name}
        yield name, partial(_generated, recipe), given


def _generated(recipe: recipes.Recipe) -> recipes.Generated:
    return recipes.Generated(recipe).eval()


def _lower(model: Any, target: str, precision: str, path: Path, options: dict[str, Any]) -> None:
    import torch

    backend, row = targets.get(target), precisions.get(precision)
    _, program, _ = edgesmith.explain(model, target, **options)
    if row.is_half and backend.types_programs:
        program = half(program, {}, getattr(torch, row.dtype))
    backend.lower(program, path, Request(path.stem, row, keep_fp32={}))


def own_models(folder: Path) -> None:
    """Write ONNX's own test models into a folder: what its package ships, and one for each case of an operator."""
    import onnx
    from onnx.backend.test.case.node import collect_testcases

    folder.mkdir(parents=True, exist_ok=True)
    for path in shipped_models():
        name = path.parent.name if path.name == "model.onnx" else path.stem
        (folder / f"shipped_{name}.onnx").write_bytes(path.read_bytes())
    for case in collect_testcases(""):
        if case.model is not None:
            onnx.save(case.model, folder / f"{case.name}.onnx")


def shipped_models() -> list[Path]:
    """Return the test models that ONNX's package ships: PyTorch's operators, and networks without weights."""
    import onnx

    return sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").rglob("*.onnx"))


# ------------------------------------------------------------------------------------------------- the second reading


@dataclass(frozen=True)
class Raw:
    """A model of ONNX as its file has it, with inferred shapes."""

    nodes: Sequence[onnx.NodeProto]
    ranks: dict[str, int | None]
    shapes: dict[str, tuple[int | str, ...]]
    types: dict[str, int]
    inputs: list[str]
    outputs: list[str]
    constants: dict[str, onnx.TensorProto]
    opset: int

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        """Return the nodes of some kinds."""
        return [node for node in self.nodes if node.op_type in kinds]

    def attribute(self, node: onnx.NodeProto, name: str, default: Any = None) -> Any:
        """Return an attribute's value."""
        import onnx

        return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def read_raw(path: Path) -> Raw:
    """Return a file's operators and shapes, by onnx alone."""
    import onnx

    model = onnx.load(path)
    try:
        model = onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # its own test models have some that it cannot infer
        print(f"without shapes: {path.name}: {str(error)[:60]}", flush=True)
    graph = model.graph
    ranks: dict[str, int | None] = {one.name: len(one.dims) for one in graph.initializer}
    shapes: dict[str, tuple[int | str, ...]] = {one.name: tuple(one.dims) for one in graph.initializer}
    types = {one.name: one.data_type for one in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        ranks.setdefault(info.name, len(tensor.shape.dim) if tensor.HasField("shape") else None)
        shapes.setdefault(info.name, tuple(one.dim_param or one.dim_value for one in tensor.shape.dim))
        types.setdefault(info.name, tensor.elem_type)
    opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    constants = {one.name: one for one in graph.initializer}
    inputs, outputs = [one.name for one in graph.input], [one.name for one in graph.output]
    return Raw(graph.node, ranks, shapes, types, inputs, outputs, constants, opset)


_BROADCASTING = ("Add", "And", "Div", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Where", "Xor")


def _unlike_ranks(raw: Raw) -> bool:
    for node in raw.of(*_BROADCASTING):
        ranks = [raw.ranks.get(name) or 0 for name in node.input if name]
        runs = [rank for name, rank in zip(node.input, ranks, strict=False) if name not in raw.constants]
        if len(set(ranks)) > 1 and any(1 < rank < max(ranks) for rank in runs):
            return True
    return False


def _without_axes(raw: Raw) -> bool:
    scalars = [name for name in raw.outputs if raw.ranks.get(name) == 0 and raw.types.get(name) in (1, 10, 11, 16)]
    ors = {name for node in raw.of("Or") for name in node.output}
    return bool(scalars or raw.of("Mean") or any(node.input[0] in ors for node in raw.of("Cast")))


def _rows_in_a_row(raw: Raw) -> bool:
    return len(raw.of("MatMul", "Gemm")) > 1


def _gelu_in_half(raw: Raw) -> bool:
    return any(raw.types.get(node.input[0]) == 10 for node in raw.of("Gelu"))


def _pads_of_rank_3(raw: Raw) -> bool:
    return any(raw.ranks.get(node.input[0]) == 3 for node in raw.of("Pad"))


def _several_readers(raw: Raw) -> bool:
    """Return whether two products read one norm."""
    norms = {name for node in raw.of("LayerNormalization", "RMSNormalization") for name in node.output}
    read = Counter(node.input[0] for node in raw.of("MatMul", "Gemm"))
    return any(read[name] > 1 for name in norms)


def _onto_products(raw: Raw) -> bool:
    """Return whether something of another shape is added to a product of matrices, or to what was made of its axes."""
    products = {name for node in raw.of("MatMul") for name in node.output}
    for node in raw.of("Reshape", "Transpose"):
        if node.input[0] in products:
            products.update(node.output)
    sums = [node for node in raw.of("Add") if products.intersection(node.input)]
    return any(len({raw.shapes.get(name) for name in node.input}) > 1 for node in sums)


def _quantised_convolution_of_an_input(raw: Raw) -> bool:
    return any(node.input[0] in raw.inputs for node in raw.of("ConvInteger", "QLinearConv"))


def _signed_product(raw: Raw) -> bool:
    return any(raw.types.get(node.input[0]) == 3 for node in raw.of("QLinearMatMul"))  # 3: int8


SEEN: dict[str, Callable[[Raw], bool]] = {
    "LR1": _onto_products,
    "LR2": _unlike_ranks,
    "LR4": _pads_of_rank_3,
    "OR4": _quantised_convolution_of_an_input,
    "OR6": lambda raw: any(raw.attribute(node, "count_include_pad") for node in raw.of("AveragePool")),
    "OR7": lambda raw: any(len(node.output) > 1 for node in raw.of("Attention")),
    "QN5": _signed_product,
    "QN8": lambda raw: any(max(raw.attribute(node, "dilations", [1])) > 1 for node in raw.of("ConvTranspose")),
    "TR3": _several_readers,
    "TR4": _rows_in_a_row,
    "TR6": lambda raw: (
        raw.opset >= 20 and any(raw.attribute(node, "mode", b"linear") == b"linear" for node in raw.of("GridSample"))
    ),
    "TR17": _without_axes,
    "TR18": _quantised_convolution_of_an_input,
    "TV3": lambda raw: any(any(raw.attribute(node, "output_padding", [0])) for node in raw.of("ConvTranspose")),
    "XN2": _gelu_in_half,
}
"""Constructs of rows as the second reading sees them in ONNX; of a row that is not here no finding counts as true."""


def _is_seen(path: Path, rule: str, raw: Raw | None) -> bool:
    """Return whether a second reading sees a row's construct."""
    if raw is not None:
        return rule in SEEN and SEEN[rule](raw)
    return rule in SEEN_IN_FILES and SEEN_IN_FILES[rule](path)


def _picks_channels(path: Path) -> bool:
    """Return whether a Core AI asset returns an argmax of a map with several channels."""
    from edgesmith.exporters.targets import _coreai_adapter as adapter

    found, _, returned = adapter.read_operators(path)
    maps = r"tensor<(\d+|\?)x(?!1x)(\d+|\?)x(\d+|\?)x(\d+|\?)x"
    picked = {
        name
        for one in found
        if one.name == "argmax" and any(re.match(maps, one.types[each]) for each in one.operands if each in one.types)
        for name in one.results
    }
    for one in found:  # what follows it, such as a cast
        if picked.intersection(one.operands):
            picked.update(one.results)
    return bool(picked.intersection(returned))


def _slices_last_axes(path: Path) -> bool:
    """Return whether a Core ML package slices a last axis of halves behind its first element."""
    from coremltools.models.utils import load_spec
    from coremltools.proto.MIL_pb2 import DataType

    halves = DataType.Value("FLOAT16")
    for function in load_spec(str(path)).mlProgram.functions.values():
        for block in function.block_specializations.values():
            begins = {
                one.outputs[0].name: list(one.attributes["val"].immediateValue.tensor.ints.values)
                for one in block.operations
                if one.type == "const"
            }
            for one in block.operations:
                if (
                    one.type in ("slice_by_index", "slice_by_size")
                    and one.outputs[0].type.tensorType.dataType == halves
                ):
                    begin = begins.get(one.inputs["begin"].arguments[0].name)
                    if begin and begin[-1]:
                        return True
    return False


SEEN_IN_FILES: dict[str, Callable[[Path], bool]] = {"CA1": _picks_channels, "CM8": _slices_last_axes}
"""Constructs of rows as the second reading sees them in other files."""


# ---------------------------------------------------------------------------------------------------------- the count


@dataclass
class Census:
    """The findings in some programs.

    Attributes:
        programs: how many were read.
        known: the true findings' rows by program.
        false: program, row and fact of each other one.
    """

    programs: int
    known: dict[str, set[str]]
    false: list[tuple[str, str, str]]

    @property
    def clean(self) -> int:
        """The number of programs without a construct of the book."""
        return self.programs - len(self.known)


def take(paths: Sequence[Path]) -> Census:
    """Lint files for everybody who takes them, and read those again in which something is found."""
    rows = all_departures()
    census = Census(0, {}, [])
    for path in paths:
        readers = [name for name, one in TARGETS.items() if path.suffix in one.suffixes]
        report = lint(path, readers)
        census.programs += 1
        found = [one for one in report.findings if one.rule in rows and rows[one.rule].severity("0", True) != "note"]
        raw = read_raw(path) if found and path.suffix == ".onnx" else None
        for rule in dict.fromkeys(one.rule for one in found):
            if _is_seen(path, rule, raw):
                census.known.setdefault(path.name, set()).add(rule)
            else:
                census.false += [(path.name, rule, one.fact) for one in found if one.rule == rule]
    return census


def main() -> None:
    """Print the count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float, nargs="?", default=0.0, help="for making programs; default 0")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    make(given.seconds)
    own = MADE / "onnx"
    if not own.is_dir():
        own_models(own)
    suffixes = {suffix for one in TARGETS.values() for suffix in one.suffixes}
    paths = sorted(one for folder in (MADE, own) for one in folder.iterdir() if one.suffix in suffixes)
    census = take(paths)
    counts = Counter(rule for rules in census.known.values() for rule in rules)
    for rule, count in sorted(counts.items()):
        print(f"{rule}: truly in {count} programs")
    for name, rule, fact in census.false:
        print(f"FALSE {rule} in {name}: {fact}")
    kinds = Counter(path.suffix for path in paths)
    print(f"{census.programs} programs ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})", end="; ")
    print(f"{census.clean} without a known construct: {len(census.false)} false findings of error or warning")


if __name__ == "__main__":
    main()
