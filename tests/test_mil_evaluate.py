"""Evaluating whole programs: precision, control flow, states, images, classifiers, functions, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.lowering import lower
from support.mil_packages import block, edit, save
from torch import Tensor

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.figures import measure
from edgesmith.exporters.mil import evaluate as module
from edgesmith.exporters.mil.evaluate import Evaluator
from edgesmith.exporters.mil.ops import control
from edgesmith.exporters.mil.program import load

ct = pytest.importorskip("coremltools")

F32 = np.float32


@pytest.fixture
def mb() -> Any:
    from coremltools.converters.mil import Builder

    return Builder


@pytest.fixture
def types() -> Any:
    from coremltools.converters.mil.mil import types

    return types


# ------------------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize(("precision", "decibels"), [("fp32", 110), ("fp16", 40)])
def test_a_packages_numbers_are_pytorchs(
    small: Any, small_program: Any, tmp_path: Path, precision: str, decibels: float
) -> None:
    from edgesmith.exporters.rewrites.order import rewrite
    from edgesmith.exporters.targets.coreml import TARGET

    program, _ = rewrite(small_program, TARGET.costs)
    path = tmp_path / "small.mlpackage"
    lower(TARGET, program, path, precision)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = small(x).numpy()
    evaluator = Evaluator(path)
    first, second = (evaluator.arrays(evaluator.run({"image": x})) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    figures = measure([[wanted]], [first], 1e-5)
    assert figures.relative_error <= (1e-5 if precision == "fp32" else 2e-2)
    assert figures.snr_db is None or figures.snr_db >= decibels
    wide = Evaluator(path, precision="fp64")
    better = measure([[wanted]], [wide.arrays(wide.run({"image": x}))], 1e-5)
    assert better.relative_error <= (1e-6 if precision == "fp32" else 2e-2)
    assert better.snr_db is not None
    assert precision == "fp32" or better.snr_db > (figures.snr_db or 0)
    assert wide.arrays(wide.run({"image": x}))[0].dtype == np.float64


def test_a_recurrent_models_loops_are_run(tmp_path: Path) -> None:
    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.rewrites.order import rewrite
    from edgesmith.exporters.targets.coreml import TARGET
    from edgesmith.models.lmuformer import spiking_lmuformer

    torch.manual_seed(0)
    model = spiking_lmuformer(frames=16).eval()
    x = torch.randn(1, 16, 128)
    program, _ = rewrite(capture(model, (x,), ("x",), ("y",)), TARGET.costs)
    path = tmp_path / "spiking.mlpackage"
    lower(TARGET, program, path)
    ran: list[str] = []
    evaluator = Evaluator(path)
    outputs = evaluator.run({"x": x}, watch=lambda operation, _: ran.append(operation.type))
    assert ran.count("while_loop") >= 1
    assert len(ran) > 5 * len(list(evaluator.program.operations()))  # the loops' bodies, iteration by iteration
    with torch.no_grad():
        assert torch.allclose(outputs["y"], model(x), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- precision


def test_every_result_is_rounded_to_its_type(mb: Any, types: Any, tmp_path: Path) -> None:
    def main(x: Any) -> Any:
        y = mb.add(x=x, y=np.float16(1), name="sum")
        return mb.mul(x=mb.cast(x=y, dtype="fp32"), y=F32(3), name="y")

    path = save(main, [mb.TensorSpec((2,), dtype=types.fp16)], tmp_path / "p.mlpackage")
    x = torch.tensor([2.0**-11, 65504.0])
    assert Evaluator(path).run({"x": x})["y"].tolist() == [3.0, 3 * 65504.0]
    assert Evaluator(path, precision="fp32").run({"x": x})["y"].tolist() == [3 * (1 + 2.0**-11), 3 * 65505.0]
    wide = Evaluator(path, precision="fp64").run({"x": torch.tensor([2.0**-14, 1])})
    assert wide["y"].dtype == torch.float64
    assert wide["y"].tolist() == [3 * (1 + 2.0**-14), 6.0]


def test_a_cast_follows_the_precision(mb: Any, tmp_path: Path) -> None:
    def main(x: Any) -> Any:
        return mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32", name="y")

    path = save(main, [mb.TensorSpec((1,))], tmp_path / "p.mlpackage")
    x = torch.tensor([1 / 3])
    assert Evaluator(path).run({"x": x})["y"] == x.half().float()
    assert Evaluator(path, precision="fp32").run({"x": x})["y"] == x


def halves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float16)


def in_order(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, size: int) -> np.ndarray:
    """Rows of x times rows of weight, `size` products at a time in fp32, each partial sum rounded to half."""
    found = np.zeros((len(x), len(weight)), np.float16)
    for i, row in enumerate(x.astype(F32)):
        for j, column in enumerate(weight.astype(F32)):
            total = np.float16(0)
            for start in range(0, len(row), size):
                part = F32((row * column)[start : start + size].astype(np.float64).sum())
                total = np.float16(F32(total) + part)
            found[i, j] = np.float16(F32(total) + F32(bias[j]))
    return found


@pytest.mark.parametrize("size", [1, 3, 16])
def test_partial_sums_are_rounded_as_documented(mb: Any, types: Any, tmp_path: Path, size: int) -> None:
    weight, bias, x = halves(4, 37), halves(4, seed=1), halves(3, 37, seed=2)

    def main(x: Any) -> Any:
        y = mb.linear(x=x, weight=weight, bias=bias)
        z = mb.add(x=mb.matmul(x=x, y=weight, transpose_y=True), y=bias)
        return mb.cast(x=y, dtype="fp32", name="y"), mb.cast(x=z, dtype="fp32", name="z")

    path = save(main, [mb.TensorSpec(x.shape, dtype=types.fp16)], tmp_path / "p.mlpackage")
    outputs = Evaluator(path, accumulate="fp16", accumulate_block=size).run({"x": x})
    wanted = in_order(x, weight, bias, size)
    assert np.array_equal(outputs["y"].numpy(), wanted.astype(F32))
    assert np.array_equal(outputs["z"].numpy(), wanted.astype(F32))
    assert not np.array_equal(Evaluator(path).run({"x": x})["y"].numpy(), wanted.astype(F32))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_a_convolution_sums_by_channel_then_row_then_column(
    mb: Any, types: Any, tmp_path: Path, groups: int, size: int
) -> None:
    weight, bias, x = halves(4, 4 // groups, 3, 2), halves(4, seed=1), halves(1, 4, 5, 4, seed=2)

    def main(x: Any) -> Any:
        return mb.cast(x=mb.conv(x=x, weight=weight, bias=bias, groups=groups), dtype="fp32", name="y")

    path = save(main, [mb.TensorSpec(x.shape, dtype=types.fp16)], tmp_path / "p.mlpackage")
    found = Evaluator(path, accumulate="fp16", accumulate_block=size).run({"x": x})["y"].numpy()
    for group in range(groups):
        own = slice(group * 4 // groups, (group + 1) * 4 // groups)
        windows = np.lib.stride_tricks.sliding_window_view(x[0, own], (3, 2), (1, 2))  # [C, H, W, 3, 2]
        rows = windows.transpose(1, 2, 0, 3, 4).reshape(9, -1)
        wanted = in_order(rows, weight[own].reshape(len(weight[own]), -1), bias[own], size)
        assert np.array_equal(found[0, own].reshape(-1, 9).T, wanted.astype(F32))


def test_a_transposed_convolution_sums_by_channel(mb: Any, types: Any, tmp_path: Path) -> None:
    weight, x = halves(40, 1, 1), halves(1, 40, 6, seed=2)

    def main(x: Any) -> Any:
        return mb.cast(x=mb.conv_transpose(x=x, weight=weight), dtype="fp32", name="y")

    path = save(main, [mb.TensorSpec(x.shape, dtype=types.fp16)], tmp_path / "p.mlpackage")
    found = Evaluator(path, accumulate="fp16", accumulate_block=7).run({"x": x})["y"].numpy()
    wanted = in_order(x[0].T, weight[:, :, 0].T, np.zeros(1, np.float16), 7)
    assert np.array_equal(found[0].T, wanted.astype(F32))


def test_a_partial_sum_overflows_where_the_whole_sum_does_not(mb: Any, types: Any, tmp_path: Path) -> None:
    weight = np.array([[60000, 60000, -60000, -60000]], np.float16)

    def main(x: Any) -> Any:
        return mb.cast(x=mb.linear(x=x, weight=weight), dtype="fp32", name="y")

    path = save(main, [mb.TensorSpec((1, 4), dtype=types.fp16)], tmp_path / "p.mlpackage")
    x = torch.ones(1, 4)
    assert Evaluator(path).run({"x": x})["y"].item() == 0
    assert not Evaluator(path, accumulate="fp16", accumulate_block=1).run({"x": x})["y"].isfinite().any()
    assert Evaluator(path, accumulate="fp16", precision="fp32").run({"x": x})["y"].item() == 0


# ------------------------------------------------------------------------------------------------------- control flow


def test_branches_and_loops_see_what_is_around_them(mb: Any, tmp_path: Path) -> None:
    def main(x: Any, n: Any) -> Any:
        def body(i: Any, y: Any) -> tuple[Any, Any]:
            def double() -> Any:
                return mb.mul(x=y, y=F32(2))

            def shifted() -> Any:
                return mb.add(x=y, y=x)  # from outside of the loop

            even = mb.equal(x=mb.mod(x=i, y=np.int32(2)), y=np.int32(0))
            return mb.add(x=i, y=np.int32(1)), mb.cond(pred=even, _true_fn=double, _false_fn=shifted)

        return mb.while_loop(_cond=lambda i, y: mb.less(x=i, y=mb.squeeze(x=n)), _body=body, loop_vars=(np.int32(0), x))

    from coremltools.converters.mil.mil import types

    specs = [mb.TensorSpec((2,)), mb.TensorSpec((1,), dtype=types.int32)]
    evaluator = Evaluator(save(main, specs, tmp_path / "p.mlpackage"))
    index, value = evaluator.function.block.outputs
    seen: list[str] = []
    found = evaluator.run({"x": np.array([1, -1], F32), "n": [3]}, watch=lambda o, _: seen.append(o.type))
    assert found[index].item() == 3
    assert found[value].tolist() == [6.0, -6.0]  # 1 -> 2 -> 3 -> 6
    assert seen.count("mod") == seen.count("cond") == 3
    assert seen.count("mul") == 2
    assert seen.index("mul") < seen.index("cond") < seen.index("while_loop")
    assert seen[-1] == "while_loop"
    none = evaluator.run({"x": np.array([1, -1], F32), "n": [0]})
    assert none[value].tolist() == [1.0, -1.0]


def test_a_loop_without_end_is_stopped(mb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LONGEST_LOOP", 5)

    def main(x: Any) -> Any:
        return mb.while_loop(
            _cond=lambda y: mb.less(x=mb.reduce_sum(x=y), y=F32(1)),
            _body=lambda y: (mb.mul(x=y, y=F32(1)),),
            loop_vars=(x,),
        )

    evaluator = Evaluator(save(main, [mb.TensorSpec((1,))], tmp_path / "p.mlpackage"))
    with pytest.raises(Unsupported, match=r"\(while_loop\) of p.mlpackage cannot be evaluated: the loop has not ended"):
        evaluator.run({"x": torch.zeros(1)})


def test_lists_are_written_read_and_gathered(mb: Any, tmp_path: Path) -> None:
    def main(x: Any) -> Any:
        ls = mb.make_list(init_length=1, dynamic_length=True, elem_shape=(2,))
        ls = mb.list_write(ls=ls, index=2, value=x)
        ls = mb.list_scatter(ls=ls, indices=np.array([0, 1], np.int32), value=np.array([[5, 6], [7, 8]], F32))
        return (
            mb.list_gather(ls=ls, indices=np.array([2, 0, 1], np.int32), name="all"),
            mb.list_read(ls=ls, index=1, name="one"),
            mb.list_length(ls=ls, name="length"),
        )

    found = Evaluator(save(main, [mb.TensorSpec((2,))], tmp_path / "p.mlpackage")).run({"x": torch.tensor([1.0, 2.0])})
    assert found["all"].tolist() == [[1, 2], [5, 6], [7, 8]]
    assert found["one"].tolist() == [7, 8]
    assert found["length"].item() == 3


@pytest.mark.parametrize(
    ("index", "dynamic", "wrote", "words"),
    [
        (0, True, 1, "element 0 of the list is read before anything was written"),
        (4, True, 1, "the list has 2 elements, and number 4 is read"),
        (0, False, 2, "the list has 2 elements, and number 2 is written"),
    ],
)
def test_reading_past_a_list_is_an_error(
    mb: Any, tmp_path: Path, index: int, dynamic: bool, wrote: int, words: str
) -> None:
    def main(x: Any) -> Any:
        ls = mb.make_list(init_length=2, dynamic_length=dynamic, elem_shape=(2,))
        return mb.list_read(ls=mb.list_write(ls=ls, index=wrote, value=x), index=index)

    evaluator = Evaluator(save(main, [mb.TensorSpec((2,))], tmp_path / "p.mlpackage"))
    with pytest.raises(Unsupported, match=words):
        evaluator.run({"x": torch.ones(2)})


# ------------------------------------------------------------------------------------------------------------- states


@pytest.fixture
def counter(mb: Any, types: Any, tmp_path: Path) -> Evaluator:
    """Adds its input to a state, and returns what was there before and what is there now."""

    def main(x: Any, total: Any) -> Any:
        before = mb.read_state(input=total)
        after = mb.coreml_update_state(state=total, value=mb.add(x=before, y=x))
        return mb.cast(x=before, dtype="fp32", name="before"), mb.cast(x=after, dtype="fp32", name="after")

    specs = [mb.TensorSpec((2,), dtype=types.fp16), mb.StateTensorSpec((2,), dtype=types.fp16)]
    return Evaluator(save(main, specs, tmp_path / "p.mlpackage"))


def test_a_state_is_carried_in_the_callers_tensor(counter: Evaluator) -> None:
    states = counter.make_states()
    assert {name: state.dtype for name, state in states.items()} == {"total": torch.float16}
    held = states["total"]
    for step in range(1, 4):
        found = counter.run({"x": torch.ones(2)}, states)
        assert found["before"].tolist() == [step - 1] * 2
        assert found["after"].tolist() == held.tolist() == [step] * 2
    assert counter.run({"x": torch.ones(2)})["before"].tolist() == [0, 0]
    assert held.tolist() == [3, 3]
    assert Evaluator(counter.program, precision="fp32").make_states()["total"].dtype == torch.float32


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ({}, "has a state 'total', which is not among those given"),
        ({"total": torch.zeros(2)}, "the state total is torch.float32 .2., wanted fp16"),
        ({"total": torch.zeros(3).half()}, "wanted fp16 .2."),
    ],
)
def test_states_of_another_kind_are_refused(counter: Evaluator, states: dict[str, Tensor], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        counter.run({"x": torch.ones(2)}, states)


def test_a_state_of_open_size_is_refused(counter: Evaluator, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        declared = model.mlProgram.functions["main"].inputs[1].type.stateType.wrappedType.tensorType
        declared.dimensions[0].unknown.SetInParent()

    evaluator = Evaluator(edit(counter.program.path, change))
    with pytest.raises(Unsupported, match="the state total has no fixed shape"):
        evaluator.make_states()


def test_a_state_is_no_input(counter: Evaluator) -> None:
    with pytest.raises(BadInput, match="has no input 'total'"):
        counter.run({"x": torch.ones(2), "total": torch.ones(2)})


def test_updating_a_state_in_one_operator() -> None:
    from edgesmith.exporters.mil.ops import StateValue

    state = StateValue(torch.zeros(2))
    assert control.coreml_update_state(state=state, value=torch.ones(2)).tolist() == state.tensor.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"a state of \[2\] is written with \[3\]"):
        control.write_state(input=state, data=torch.ones(3))


# -------------------------------------------------------------------------------------- images, labels, functions


def image_package(mb: Any, path: Path, layout: str, channels: int) -> Path:
    bias = [-1.0, -2.0, -3.0] if channels == 3 else -1.0
    image = ct.ImageType("x", (1, channels, 2, 3), scale=0.5, bias=bias, color_layout=layout)

    def main(x: Any) -> Any:
        return mb.mul(x=x, y=F32(1), name="y")

    options = {"inputs": [image], "pass_pipeline": ct.PassPipeline.DEFAULT, "compute_precision": ct.precision.FLOAT32}
    return save(main, [mb.TensorSpec((1, channels, 2, 3))], path, **options)


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_an_image_is_scaled_in_the_layout_of_the_program(mb: Any, tmp_path: Path, layout: str) -> None:
    from PIL import Image

    evaluator = Evaluator(image_package(mb, tmp_path / "p.mlpackage", layout, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3)).astype(np.uint8)
    planes = torch.tensor(pixels.transpose(2, 0, 1)[None].astype(F32))
    planes = planes.flip(1) if layout == "BGR" else planes
    wanted = planes * 0.5 + torch.tensor([-1.0, -2.0, -3.0]).reshape(1, 3, 1, 1)
    for given in (Image.fromarray(pixels), pixels, planes):
        assert torch.equal(evaluator.run({"x": given})["y"], wanted)
    assert torch.equal(evaluator.run({"x": Image.fromarray(pixels).convert("RGBA")})["y"], wanted)


def test_a_gray_image_has_one_plane(mb: Any, tmp_path: Path) -> None:
    from PIL import Image

    evaluator = Evaluator(image_package(mb, tmp_path / "p.mlpackage", "G", 1))
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    wanted = torch.tensor(pixels[None, None].astype(F32)) * 0.5 - 1
    for given in (Image.fromarray(pixels), pixels):
        assert torch.equal(evaluator.run({"x": given})["y"], wanted)
    with pytest.raises(BadInput, match=r"x is an image, GRAYSCALE; give an image \[H, W\], not \[2, 3, 3\]"):
        evaluator.run({"x": np.zeros((2, 3, 3), np.uint8)})


def test_an_image_of_another_size_is_refused(mb: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(image_package(mb, tmp_path / "p.mlpackage", "RGB", 3))
    with pytest.raises(BadInput, match=r"x has the shape \[1, 3, 4, 4\]"):
        evaluator.run({"x": np.zeros((4, 4, 3), np.uint8)})
    with pytest.raises(BadInput, match=r"RGB; give an image \[H, W, 3\]"):
        evaluator.run({"x": np.zeros((3, 2, 3, 1, 1), np.uint8)})


@pytest.mark.parametrize("labels", [["a", "b", "c"], [7, 8, 9]])
def test_a_classifier_returns_a_label_and_the_probabilities(mb: Any, tmp_path: Path, labels: list[Any]) -> None:
    def main(x: Any) -> Any:
        return mb.softmax(x=x, axis=-1)

    path = save(main, [mb.TensorSpec((1, 3))], tmp_path / "p.mlpackage", classifier_config=ct.ClassifierConfig(labels))
    evaluator = Evaluator(path)
    x = torch.tensor([[0.0, 2.0, 1.0]])
    found = evaluator.run({"x": x})
    assert found["classLabel"] == labels[1]
    probabilities = found[str(evaluator.interface.probabilities)]
    assert list(probabilities) == labels
    assert np.allclose(list(probabilities.values()), x.softmax(-1)[0])
    (array,) = evaluator.arrays(found)
    assert array.shape == (1, 3)
    assert evaluator.interface.label == "classLabel"


def test_a_package_of_two_functions(mb: Any, tmp_path: Path) -> None:
    from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

    weight = np.arange(64, dtype=F32).reshape(8, 8)

    def plain(x: Any) -> Any:
        return mb.linear(x=x, weight=weight, name="y")

    def twice(x: Any) -> Any:
        return mb.linear(x=mb.linear(x=x, weight=weight), weight=weight, name="z")

    one = save(plain, [mb.TensorSpec((1, 8))], tmp_path / "one.mlpackage")
    two = save(twice, [mb.TensorSpec((2, 8))], tmp_path / "two.mlpackage")
    description = MultiFunctionDescriptor()
    description.add_function(str(one), "main", "step")
    description.add_function(str(two), "main", "sequence")
    description.default_function_name = "step"
    both = tmp_path / "both.mlpackage"
    save_multifunction(description, str(both))
    program = load(both)
    assert sorted(program.functions) == ["sequence", "step"]
    assert program.default == "step"
    matrix = torch.tensor(weight)
    x = torch.ones(2, 8)
    assert torch.equal(Evaluator(program).run({"x": x[:1]})["y"], x[:1] @ matrix.T)
    assert torch.equal(Evaluator(program, "sequence").run({"x": x})["z"], x @ matrix.T @ matrix.T)
    assert [f.shape for f in program.interfaces["sequence"].inputs] == [(2, 8)]
    with pytest.raises(BadInput, match=r"step of both.mlpackage takes an input 'x', and there is none"):
        Evaluator(program).run({})


def test_sizes_that_a_run_decides(mb: Any, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import get_new_symbol

    def main(x: Any) -> Any:
        return mb.reduce_sum(x=x, axes=[0], name="y")

    size = ct.RangeDim(1, 9)
    inputs = [ct.TensorType("x", ct.Shape((size, 2)))]
    evaluator = Evaluator(save(main, [mb.TensorSpec((get_new_symbol(), 2))], tmp_path / "p.mlpackage", inputs=inputs))
    for count in (1, 4):
        assert evaluator.run({"x": torch.ones(count, 2)})["y"].tolist() == [count, count]
    with pytest.raises(BadInput, match=r"x has the shape \[4, 3\], and p.mlpackage takes \[\?, 2\]"):
        evaluator.run({"x": torch.ones(4, 3)})
    with pytest.raises(BadInput, match=r"x has the shape \[10, 2\], and p.mlpackage takes \[1 to 9, 2\]"):
        evaluator.run({"x": torch.ones(10, 2)})


def test_only_shapes_that_are_listed_are_evaluated(mb: Any, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import get_new_symbol

    inputs = [ct.TensorType("x", ct.EnumeratedShapes([(1, 2), (4, 2)]))]
    specs = [mb.TensorSpec((get_new_symbol(), 2))]
    evaluator = Evaluator(save(lambda x: mb.relu(x=x, name="y"), specs, tmp_path / "p.mlpackage", inputs=inputs))
    assert evaluator.run({"x": torch.ones(4, 2)})["y"].shape == (4, 2)
    with pytest.raises(BadInput, match=r"x has the shape \[3, 2\], and p.mlpackage takes \[1, 2\] or \[4, 2\]"):
        evaluator.run({"x": torch.ones(3, 2)})


def test_a_pipelines_parts_are_read_and_none_is_run_for_the_whole(mb: Any, tmp_path: Path) -> None:
    path = save(lambda x: mb.relu(x=x, name="y"), [mb.TensorSpec((1, 2))], tmp_path / "p.mlpackage")

    def join(model: Any) -> None:
        part = type(model)()
        part.CopyFrom(model)
        model.ClearField("mlProgram")
        model.pipeline.models.add().scaler.SetInParent()
        model.pipeline.models.add().CopyFrom(part)

    program = load(edit(path, join))
    assert list(program.functions) == ["part_1"]
    assert [one.type for one in program.operations("part_1")] == ["relu"]
    assert Evaluator(program, "part_1").run({"x": torch.tensor([[-1.0, 2.0]])})["y"].tolist() == [[0, 2]]
    with pytest.raises(BadInput, match=r"p.mlpackage is a pipeline of part_1, and one program is wanted"):
        Evaluator(program)
    with pytest.raises(Unsupported, match=r"is a pipeline of scaler and no ML Program"):
        load(edit(path, lambda model: model.pipeline.models.pop()))


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def relu(mb: Any, tmp_path: Path) -> Path:
    def main(x: Any, n: Any) -> Any:
        y = mb.relu(x=x, name="y")
        return y, mb.add(x=n, y=np.int32(1), name="m")

    from coremltools.converters.mil.mil import types

    return save(main, [mb.TensorSpec((2,)), mb.TensorSpec((1,), dtype=types.int32)], tmp_path / "relu.mlpackage")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": torch.ones(2)}, "takes an input 'n', and there is none"),
        ({"x": torch.ones(2), "n": [1], "k": 1}, "has no input 'k'; it has x, n"),
        ({"x": torch.ones(3), "n": [1]}, r"x has the shape \[3\], and relu.mlpackage takes \[2\]"),
        ({"x": torch.ones(2), "n": [1.5]}, "n is torch.float32, and relu.mlpackage takes int32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(relu: Path, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Evaluator(relu).run(inputs)


def test_an_optional_input_has_its_default(relu: Path) -> None:
    def change(model: Any) -> None:
        model.description.input[1].type.isOptional = True
        model.description.input[1].type.multiArrayType.intDefaultValue = 41

    assert Evaluator(edit(relu, change)).run({"x": torch.ones(2)})["m"].item() == 42


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accumulate": "fp8"}, "accumulate is 'fp8'; there are fp32, fp16"),
        ({"precision": "fp8"}, "precision is 'fp8'; there are declared, fp32, fp64"),
        ({"accumulate_block": 0}, "accumulate_block is 0"),
        ({"function": "step"}, "no function 'step'"),
    ],
)
def test_impossible_options_are_refused(relu: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Evaluator(relu, **options)


def rename(kind: str, to: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for operation in block(model).operations:
            if operation.type == kind:
                operation.type = to

    return change


def test_a_missing_operator_is_named_with_its_site(relu: Path) -> None:
    with pytest.raises(
        Unsupported, match=r"does not evaluate these operators: warp, 1 of them, the first is y \(warp\)"
    ):
        Evaluator(edit(relu, rename("relu", "warp")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            rename("relu", "reduce_sum"),
            r"y \(reduce_sum\) of .* gives the shape \[\], and the program declares \[2\]",
        ),
        (rename("relu", "logical_not"), r"y \(logical_not\) of relu.mlpackage"),
        (rename("relu", "conv"), r"y \(conv\) of relu.mlpackage cannot be evaluated: .*missing"),
        (rename("relu", "topk"), r"y \(topk\) of relu.mlpackage"),
        (rename("add", "less"), r"m \(less\) of relu.mlpackage gives torch.bool, and the program declares int32"),
        (
            lambda m: setattr(block(m).operations[-1].outputs[0].type.tensorType, "dataType", 11),
            r"gives torch.int32, and the program declares fp32",
        ),
    ],
)
def test_a_damaged_operator_is_named(relu: Path, change: Callable[[Any], None], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        Evaluator(edit(relu, change)).run({"x": torch.ones(2), "n": [1]})


def test_values_are_dropped_after_their_last_use(mb: Any, tmp_path: Path) -> None:
    def main(x: Any) -> Any:
        y = x
        for _ in range(20):
            y = mb.mul(x=y, y=F32(0.5))
        return mb.add(x=y, y=x)

    evaluator = Evaluator(save(main, [mb.TensorSpec((2,))], tmp_path / "p.mlpackage"))
    values = evaluator.bind({"x": torch.ones(2)})
    most = max(len(values) for _ in evaluator.steps(values))
    assert most <= 5
    assert set(values) == {"x", *evaluator.outputs(values)}


def test_random_operators_repeat_with_their_seed(mb: Any, tmp_path: Path) -> None:
    def main(x: Any) -> Any:
        return mb.add(x=x, y=mb.random_normal(shape=np.array([4], np.int32)), name="y")

    path = save(main, [mb.TensorSpec((4,))], tmp_path / "p.mlpackage")
    one, again, other = (Evaluator(path, seed=seed).run({"x": torch.zeros(4)})["y"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_shape_fits_where_sizes_are_open() -> None:
    assert module.fits((2, 3), (2, None))
    assert module.fits((2, 3), None)
    assert not module.fits((2, 3), (2,))
    assert not module.fits((2, 3), (2, 4))
