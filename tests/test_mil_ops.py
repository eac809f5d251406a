"""Every MIL operator, by tables of cases: coremltools builds and saves it, we evaluate it, torch judges.

CASES       on drawn shapes and attributes, in fp32 and fp16: support/mil_cases. Sites of a whole family go into one
            program, since conversion costs far more than evaluation
VALUES      what coremltools does not write, or what its documentation leaves open
REFUSALS    parameters and operands that MIL does not have
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.mil_cases import activations, elementwise, gathers, images, pooling, randoms, reductions, shapes
from support.mil_sites import Draw, Placed, Site, build, judge, units_apart
from torch import Tensor

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.mil import ops as table
from edgesmith.exporters.mil.evaluate import Evaluator

pytest.importorskip("coremltools")

CASES = {
    module.__name__.rpartition(".")[2]: module.CASES
    for module in (activations, elementwise, gathers, images, pooling, randoms, reductions, shapes)
}
"""For each file of operators the rows of its operators; test_mil_*.py beside this file test the other files."""

OPSETS = (15, 16, 17, 18)
KINDS = ("fp32", "fp16")
PROGRAMS = 5
"""Programs for each family and opset; each has at least one site of each operator in each precision."""
DRAWN = 40
"""Sites of each operator that the whole file draws, at least."""


def sites_in_a_program(since: int) -> int:
    """How many sites of an operator in each precision a program has, so that newer operators are drawn as often."""
    return -(-DRAWN // (PROGRAMS * len(KINDS) * len([opset for opset in OPSETS if opset >= since])))


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid", "ignore:overflow encountered in cast")
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("family", CASES)
def test_operators_agree_with_torch(family: str, opset: int, tmp_path: Path) -> None:
    numbers: Iterator[int] = itertools.count()

    @settings(max_examples=PROGRAMS, phases=[Phase.generate])  # nothing to shrink: the message names the site
    @given(st.data())
    def run(data: st.DataObject) -> None:
        placed = [
            Placed(name, row.case(Draw(data, kind, opset)), kind, {}, [])
            for name, row in CASES[family].items()
            if opset >= row.since
            for kind in KINDS
            for _ in range(sites_in_a_program(row.since))
        ]
        path = tmp_path / f"{next(numbers)}.mlpackage"
        inputs = build(placed, opset, path)
        outputs = Evaluator(path).run(inputs)
        for one in placed:
            judge(one, [outputs[name] for name in one.outputs])
        for precision in ("fp32", "fp64"):  # the same program in other arithmetic: every operator takes it
            other = Evaluator(path, precision=precision).run(inputs)
            assert {name: value.shape for name, value in other.items()} == {n: v.shape for n, v in outputs.items()}

    run()


# ---------------------------------------------------------------------------------------------- operators by themselves


def function(name: str) -> Callable[..., Any]:
    return table.all_ops()[name].function


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


MATRIX = torch.arange(6.0).reshape(2, 3)
RESAMPLED: dict[str, Any] = {
    "x": MATRIX[None, None], "coordinates": torch.zeros(1, 1, 1, 2), "sampling_mode": "bilinear",
    "padding_mode": "border", "padding_value": 0.0, "coordinates_mode": "unnormalized", "align_corners": True,
}  # fmt: skip
AFFINE: dict[str, Any] = {name: value for name, value in RESAMPLED.items() if name != "coordinates"} | {
    "transform_matrix": torch.zeros(1, 6), "output_height": 1, "output_width": 1,
}  # fmt: skip

REFUSALS: tuple[tuple[str, dict[str, Any], type[Exception], str], ...] = (
    # a mode that MIL does not have
    ("gelu", {"x": MATRIX, "mode": "FAST"}, Unsupported, r"not|no |both"),
    ("pad", {"x": MATRIX, "pad": indices(1, 1), "mode": "circular"}, Unsupported, r"not|no |both"),
    (
        "scatter",
        {"data": MATRIX, "indices": indices(0), "updates": MATRIX[:1], "mode": "xor"},
        Unsupported,
        r"not|no |both",
    ),
    ("max_pool", {"x": MATRIX[None], "kernel_sizes": indices(2), "pad_type": "half"}, Unsupported, r"not|no |both"),
    (
        "resize_bilinear",
        {"x": MATRIX[None], "target_size_height": 2, "target_size_width": 2, "sampling_mode": "CUBIC"},
        Unsupported,
        r"not|no |both",
    ),
    (
        "resize",
        {"x": MATRIX, "shape": indices(2, 2), "resized_dims": 2, "interpolation_mode": "CUBIC"},
        Unsupported,
        r"not|no |both",
    ),
    (
        "upsample_bilinear",
        {"x": MATRIX[None], "align_corners": True, "half_pixel_centers": True},
        Unsupported,
        r"not|no |both",
    ),
    (
        "crop_resize",
        {"x": MATRIX[None, None], "boxes": MATRIX[:1].new_zeros(1, 4), "box_coordinate_mode": "XYXY"},
        Unsupported,
        r"not|no |both",
    ),
    ("resample", RESAMPLED | {"sampling_mode": "cubic"}, Unsupported, "cubic"),
    ("resample", RESAMPLED | {"padding_mode": "cubic"}, Unsupported, "cubic"),
    ("resample", RESAMPLED | {"coordinates_mode": "cubic"}, Unsupported, "cubic"),
    ("affine", AFFINE, Unsupported, "unnormalized"),
    ("random_categorical", {"x": MATRIX, "mode": "odds"}, Unsupported, "odds"),
    # an index out of bounds; one that is validated is not counted from the end
    ("gather", {"x": MATRIX, "indices": indices(2)}, BadInput, "not all in"),
    ("gather", {"x": MATRIX, "indices": indices(-3)}, BadInput, "not all in"),
    ("gather", {"x": MATRIX, "indices": indices(-1), "validate_indices": True}, BadInput, r"\[0, 2\)"),
    (
        "slice_by_index",
        {"x": MATRIX, "begin": indices(5, 0), "end": indices(0, 3), "squeeze_mask": torch.tensor([True, False])},
        BadInput,
        "index 5 of axis 0",
    ),
)
"""Operator, operands, error, and words of its message."""


@pytest.mark.parametrize(("name", "operands", "error", "words"), REFUSALS)
def test_what_mil_does_not_have_is_refused(
    name: str, operands: dict[str, Any], error: type[Exception], words: str
) -> None:
    context = (None,) if table.all_ops()[name].context else ()
    with pytest.raises(error, match=words):
        function(name)(*context, **operands)


EMPTY = torch.empty(0, 3)
PADDED = {
    "x": torch.arange(3.0).reshape(1, 1, 3), "kernel_sizes": indices(2), "strides": indices(2), "pad_type": "custom",
    "pad": indices(1, 1), "ceil_mode": True,
}  # fmt: skip
BOXES = {  # two that overlap by a half, of two classes, and one far away
    "boxes": torch.tensor([[[0.0, 0.0, 2.0, 3.0], [1.0, 0.0, 4.0, 3.0], [9.0, 9.0, 1.0, 1.0]]]),
    "scores": torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.3, 0.1]]]),
    "iou_threshold": 0.25, "score_threshold": 0.0, "max_boxes": 3,
}  # fmt: skip
TWO_MAPS = torch.stack([MATRIX, 10 + MATRIX])[:, None]
BOX = [0.0, 0.0, 1.0, 2.0]
CROPPED: dict[str, Any] = {
    "x": TWO_MAPS, "target_height": 2, "target_width": 3, "sampling_mode": "ALIGN_CORNERS",
}  # fmt: skip

VALUES: tuple[tuple[str, dict[str, Any], Mapping[int, Tensor] | Tensor], ...] = (
    ("gather", {"x": MATRIX, "indices": indices(-1)}, MATRIX[1:]),
    # slices may be empty
    ("slice_by_index", {"x": MATRIX, "begin": indices(1, 0), "end": indices(1, 3)}, EMPTY),
    ("slice_update", {"x": MATRIX, "update": EMPTY, "begin": indices(1, 0), "end": indices(1, 3)}, MATRIX),
    # scattering adds unless told otherwise
    (
        "scatter",
        {"data": MATRIX, "updates": torch.ones(2, 3), "indices": indices(1, 1)},
        MATRIX + torch.tensor([[0.0], [2.0]]),
    ),
    # no window starts in the padding behind
    ("max_pool", PADDED, F.max_pool1d(PADDED["x"], 2, 2, 1, ceil_mode=True)),
    ("avg_pool", PADDED, F.avg_pool1d(PADDED["x"], 2, 2, 1, ceil_mode=True)),
    # boxes of other classes are no rivals
    ("non_maximum_suppression", BOXES, {2: torch.tensor([[0, 2, -1]]), 3: torch.tensor([2])}),
    (
        "non_maximum_suppression",
        BOXES | {"per_class_suppression": True},
        {2: torch.tensor([[0, 1, 2]]), 3: torch.tensor([3])},
    ),
    # all values sorted: k = -1 from iOS17 on, which coremltools 9 itself cannot declare
    (
        "topk",
        {"x": torch.tensor([2.0, 3.0, 1.0]), "k": -1},
        {0: torch.tensor([3.0, 2.0, 1.0]), 1: torch.tensor([1, 0, 2])},
    ),
    # reductions of no axis and of a scalar
    ("reduce_sum_square", {"x": MATRIX, "axes": indices()}, MATRIX.square()),
    ("reduce_sum_square", {"x": torch.tensor(3.0)}, torch.tensor(9.0)),
    # scalars are joined to a vector
    ("concat", {"values": (torch.tensor(1), torch.tensor(2)), "axis": 0}, torch.tensor([1, 2])),
    # before iOS17 a roi of five values names its map, and one of four takes its box from each
    ("crop_resize", CROPPED | {"roi": torch.tensor(BOX).reshape(1, 1, 4, 1, 1)}, TWO_MAPS[None]),
    ("crop_resize", CROPPED | {"roi": torch.tensor([1.0, *BOX]).reshape(1, 1, 5, 1, 1)}, TWO_MAPS[None, 1:]),
    ("crop_resize", CROPPED | {"boxes": torch.tensor([BOX, BOX])}, TWO_MAPS),
    ("crop_resize", CROPPED | {"boxes": torch.tensor([[1.0, 2.0, 0.0, 0.0]])}, TWO_MAPS[:1].flip(-1, -2)),
    # a map of one pixel, by reflection
    (
        "resample",
        RESAMPLED
        | {
            "x": torch.tensor([[[[5.0]]]]),
            "coordinates": torch.tensor([[[[3.0, -2.0]]]]),
            "padding_mode": "reflection",
        },
        torch.tensor([[[[5.0]]]]),
    ),
    # whole numbers are resized without their fraction
    (
        "resize",
        {
            "x": torch.tensor([0, 10]).int(),
            "shape": indices(4),
            "resized_dims": 1,
            "sampling_mode": "UNALIGN_CORNERS",
        },
        torch.tensor([0, 2, 7, 10]),
    ),
)
"""Operator, operands, and its result, or some of its results by position."""


@pytest.mark.parametrize(("name", "operands", "expected"), VALUES)
def test_operators_give_values(name: str, operands: dict[str, Any], expected: Mapping[int, Tensor] | Tensor) -> None:
    result = function(name)(**operands)
    found = result if isinstance(result, tuple) else (result,)
    for position, wanted in expected.items() if isinstance(expected, Mapping) else [(0, expected)]:
        assert found[position].shape == wanted.shape
        assert found[position].tolist() == wanted.tolist()
        assert found[position].is_floating_point() == wanted.is_floating_point()


@pytest.mark.parametrize(("name", "default"), [("inverse", 1e-4), ("log", 1e-45), ("rsqrt", 1e-12)])
def test_an_epsilon_left_out_has_the_operands_type(name: str, default: float) -> None:
    """coremltools writes every default into the program; other writers need not."""
    plain = {"inverse": torch.reciprocal, "log": torch.log, "rsqrt": torch.rsqrt}[name]
    for kind in (torch.float16, torch.float32):
        x = torch.tensor([0.0, 0.5], dtype=kind)
        wanted = plain(x.float() + float(torch.tensor(default, dtype=kind)))
        assert torch.equal(function(name)(x=x), wanted)


def test_gelu_is_right_for_every_half() -> None:
    """In the tail torch's gelu is up to two units off in half precision and six in fp32; ours is rounded correctly."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = x[x.isfinite()]
    result = function("gelu")(x=x).half()
    assert units_apart(result, F.gelu(x.double())) == 0
    near = x >= -3.5
    assert units_apart(result[near], F.gelu(x)[near]) <= 1


def test_negative_numbers_wrap_in_unsigned_types(tmp_path: Path) -> None:
    placed = Placed("cast", Site({"x": torch.tensor([-1.5, 3.9])}, {"dtype": "uint16"}, None), "fp32", {}, [])
    inputs = build([placed], 17, tmp_path / "cast.mlpackage")
    assert Evaluator(tmp_path / "cast.mlpackage").run(inputs)[placed.outputs[0]].tolist() == [65535, 3]


# ---------------------------------------------------------------------------------------------- nothing is left out

NOT_EVALUATED = {
    "_const_symbolic": "coremltools makes it while it converts, and never saves it",
    "conv_quantized": "made from TensorFlow's quantised graphs; only the neural network backend has a lowering for it",
}
"""Operators that coremltools registers and the table lacks, each with the reason."""


def test_every_operator_of_these_files_has_a_case() -> None:
    own = {name for name, entry in table.all_ops().items() if entry.function.__module__.rpartition(".")[2] in CASES}
    assert own == {name for rows in CASES.values() for name in rows}


def test_every_other_operator_is_named_in_a_test() -> None:
    """The operators of the other files are judged in the files beside this one; a new one has to be named there."""
    beside = sorted(set(Path(__file__).parent.glob("test_mil_*.py")) - {Path(__file__)})
    text = "\n".join(path.read_text(encoding="utf-8") for path in beside)
    own = {name for rows in CASES.values() for name in rows}
    by_another_name = {"classify": "ClassifierConfig"}  # coremltools writes the operator for a configuration
    others = {by_another_name.get(name, name) for name in set(table.all_ops()) - own}
    assert not {name for name in others if re.search(rf"\b{name}\b", text) is None}


def test_the_table_covers_what_coremltools_registers() -> None:
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    assert len(table.all_ops()) >= 120
    assert set(SSAOpRegistry.core_ops) - set(table.all_ops()) == set(NOT_EVALUATED)
