"""int8 libraries: which layers multiply integers, that files do what programs say, and for which processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("tvm", reason="tvm is not installed")

import edgesmith
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.targets import _tvm_library
from edgesmith.exporters.targets._tvm_integers import integers
from edgesmith.exporters.targets._tvm_library import Description
from edgesmith.exporters.targets._tvm_processor import Processor, here


class Block(nn.Module):
    """A stem, a depthwise layer, an MLP with a residual, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.spread = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide, self.narrow = nn.Conv2d(16, 52, 1), nn.Conv2d(52, 16, 1)
        self.head = nn.Linear(16, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(image))
        x = x + self.spread(x)
        x = x + self.narrow(F.gelu(self.wide(x)))
        return self.head(x.mean((2, 3)))


def exported(out: Path) -> Artifact:
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(1, 3, 17, 19)
    with pytest.warns(Warning, match="random inputs"):
        return edgesmith.export(model, "tvm", precision="int8", inputs=x, name="block", out=out)


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def said(block: Artifact) -> Description:
    return _tvm_library.read(block.file).description


def test_dense_layers_multiply_integers_and_no_others(block: Artifact, said: Description) -> None:
    kinds = [kind for _, kind in said.calls]
    assert kinds.count("integer layer") == 4
    assert kinds.count("depthwise") == 1
    assert not any("round" in kind for kind in kinds)
    depthwise = 16 * 9 * 9 * 10
    assert block.manifest["int8"]["macs"] == {"int8": said.integer_macs, "all": said.integer_macs + depthwise}
    assert block.manifest["int8"]["layers"] == 4


def test_integers_stay_integers_between_two_layers(said: Description) -> None:
    """The MLP's hidden numbers are read by its second layer alone; what has a residual beside it stays float."""
    written = [symbol for symbol, _ in said.calls if "to_numbers" in symbol]
    read = [symbol for symbol, _ in said.calls if "of_numbers" in symbol]
    assert len(written) == len(read) == 1
    assert "n52" in written[0]


def test_the_file_agrees_with_the_program(block: Artifact) -> None:
    """Sums of integers are exact: file and program differ by roundings that fall on the other side alone."""
    step = block.manifest["verification"]["steps"][-1]
    assert step["snr_db"] >= 30
    assert block.manifest["int8"]["snr_db"] >= 30


def test_the_same_bytes_twice(block: Artifact, tmp_path: Path) -> None:
    assert exported(tmp_path).file.read_bytes() == block.file.read_bytes()


def test_only_libraries_of_integers_ask_for_their_instructions(said: Description) -> None:
    assert {*said.features} == {*here(multiplies_integers=True).features}
    assert not {"avx512_vnni", "asimddp"} & {*here().features}
    assert Processor("x86_64-linux-gnu", "x86-64-v4", ("avx512_vnni",)).cpu_target().dot.name == "vnni"
    assert Processor("x86_64-linux-gnu", "x86-64-v3", ()).cpu_target().dot.name == "pairs"
    assert Processor("aarch64-linux-gnu", "cortex-a76", ("asimd", "asimddp")).cpu_target().dot.name == "sdot"
    assert Processor("aarch64-linux-gnu", "cortex-a72", ("asimd",)).cpu_target().dot.name == "pairs"


def test_integers_of_a_weight_are_found_from_its_floats() -> None:
    generator = np.random.default_rng(0)
    numbers = generator.integers(-127, 128, (9, 5, 3, 3)).astype(np.int8)
    numbers[0], numbers[1] = 0, numbers[1] // 3 * 2  # a channel of zeros, and one whose largest number is not 127
    scales = generator.uniform(1e-4, 1, 9).astype(np.float32)
    weight = numbers.astype(np.float32) * scales.reshape(-1, 1, 1, 1)
    found = integers(weight)
    assert found is not None
    again, factors = found
    np.testing.assert_allclose(again * factors.reshape(-1, 1, 1, 1), weight, rtol=3e-7)
    np.testing.assert_array_equal(again[2:], numbers[2:])


@pytest.mark.parametrize("change", [1e-5, 1.5])
def test_a_weight_that_is_no_integers_is_none(change: float) -> None:
    """One number a little beside its place, or beyond the range."""
    weight = np.arange(-127, 128, dtype=np.float32).reshape(3, 85) * np.float32(0.01)
    assert integers(weight) is not None
    weight[1, 7] *= 1 + change
    assert integers(weight) is None
