"""Packages of several functions: weights are shared where their bytes are the same, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mil_packages import save

from edgesmith.exporters.mil.evaluate import Evaluator
from edgesmith.exporters.mil.functions import SPECIFICATION, WEIGHTS, join, shared_bytes
from edgesmith.exporters.mil.program import load

ct = pytest.importorskip("coremltools")

KERNEL = np.random.default_rng(0).standard_normal((32, 4, 3)).astype(np.float32)
OTHER = KERNEL.copy()
OTHER[-1, -1, -1] += 1e-6  # the first 100 elements are the same, and the last differs by an ulp or so


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A convolution, a product with the same bytes, one with others of the same name, and one in half precision."""
    from coremltools.converters.mil import Builder as mb

    def convolution(x: Any) -> Any:
        return mb.conv(x=mb.reshape(x=x, shape=(1, 4, 3)), weight=KERNEL, name="y")

    def product(weight: np.ndarray) -> Any:
        return lambda x: mb.linear(x=x, weight=weight.reshape(32, 12), name="y")

    folder = tmp_path_factory.mktemp("parts")
    full, half = mb.TensorSpec((1, 12)), mb.TensorSpec((1, 12), dtype=ct.converters.mil.mil.types.fp16)
    return {
        "convolution": save(convolution, [full], folder / "convolution.mlpackage"),
        "product": save(product(KERNEL), [full], folder / "product.mlpackage"),
        "other": save(product(OTHER), [full], folder / "other.mlpackage"),
        "half": save(product(KERNEL.astype(np.float16)), [half], folder / "half.mlpackage"),
    }


def joined(parts: dict[str, Path], names: tuple[str, ...], tmp_path: Path) -> Path:
    path = tmp_path / "joined.mlpackage"
    first = parts[names[0]]
    model = join({name: parts[name] for name in names}, path)
    (path / SPECIFICATION).write_bytes(model.SerializeToString(deterministic=True))
    (path / "Manifest.json").write_bytes((first / "Manifest.json").read_bytes())
    return path


def weights(path: Path) -> bytes:
    return ((path / SPECIFICATION).parent / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("names", "blobs", "shared"),
    [
        (("convolution", "product"), [1536, 128], 1536),
        (("product", "other"), [1536, 1536, 128], 128),  # products have a bias of zeros
        (("product", "half"), [1536, 128, 768, 64], 0),
        (("product",), [1536, 128], 0),
    ],
)
def test_weights_are_shared_where_their_bytes_are_the_same(
    names: tuple[str, ...], blobs: list[int], shared: int, parts: dict[str, Path], tmp_path: Path
) -> None:
    path = joined(parts, names, tmp_path)
    assert len(weights(path)) == 64 + sum(64 + size for size in blobs)
    assert shared_bytes(load(path)) == shared


@pytest.mark.parametrize("names", [("convolution", "product"), ("other", "convolution", "product")])
def test_functions_compute_what_their_packages_do(
    names: tuple[str, ...], parts: dict[str, Path], tmp_path: Path
) -> None:
    path = joined(parts, names, tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 12)).astype(np.float32)
    assert load(path).default == names[0]
    for name in names:
        ours, own = Evaluator(path, name).run({"x": x})["y"], Evaluator(parts[name]).run({"x": x})["y"]
        assert bool((ours == own).all())


def test_coremltools_reads_what_is_joined(parts: dict[str, Path], tmp_path: Path) -> None:
    """Its loader and its reader of blob files are the ones that Apple's compiler has."""
    from coremltools.converters.mil.frontend.milproto.load import load as read

    path = joined(parts, ("other", "convolution", "half"), tmp_path)
    spec = ct.utils.load_spec(str(path))
    program = read(spec, spec.specificationVersion, str((path / SPECIFICATION).parent / "weights"))
    for name, expected in (("other", OTHER), ("convolution", KERNEL), ("half", KERNEL.astype(np.float16))):
        (value,) = (
            op.outputs[0].val
            for op in program.functions[name].operations
            if op.op_type == "const" and np.size(op.outputs[0].val) == KERNEL.size
        )
        assert np.array_equal(value.reshape(KERNEL.shape), expected)
        assert value.dtype == expected.dtype


def test_the_description_is_what_coremltools_writes(parts: dict[str, Path], tmp_path: Path) -> None:
    """Its own way to one package of several functions gives the same interface."""
    names = ("convolution", "product")
    described = ct.utils.MultiFunctionDescriptor()
    for name in names:
        described.add_function(str(parts[name]), "main", name)
    described.default_function_name = names[0]
    theirs = tmp_path / "theirs.mlpackage"
    ct.utils.save_multifunction(described, str(theirs))
    ours = ct.utils.load_spec(str(joined(parts, names, tmp_path)))
    expected = ct.utils.load_spec(str(theirs))
    assert ours.specificationVersion == expected.specificationVersion
    for spec in (ours, expected):
        spec.description.metadata.Clear()
    assert ours.description.SerializeToString(deterministic=True) == expected.description.SerializeToString(
        deterministic=True
    )
    assert len(weights(theirs)) > len(weights(tmp_path / "joined.mlpackage"))  # the shapes differ
