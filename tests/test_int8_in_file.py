"""int8 as the file computes it, with ONNX Runtime's optimisations and without: which biases fit, what stays float."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.precision import int8
from edgesmith.exporters.precision.int8_in_file import find_spoiling

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")


def net(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
    return nn.Sequential(*layers).eval()


def image() -> tuple[nn.Sequential, Tensor]:
    return net(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(1, 3, 16, 16)


def rows() -> tuple[nn.Sequential, Tensor]:
    return net(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 10)), torch.randn(1, 7, 16)


def changed(make: Callable[[], tuple[nn.Sequential, Tensor]], change: Callable[[Any], None]) -> Any:
    model, x = make()
    with torch.no_grad():
        change(model[0])
    return model, x


def tiny(layer: Any) -> None:
    layer.weight[1] *= 1e-9
    layer.bias[1] = 5.0


def zero(layer: Any) -> None:
    layer.weight[2] = 0
    layer.bias[2] = 4.5


def outlier(layer: Any) -> None:
    layer.weight.view(-1)[0] = 50


def tiny_and_zero(layer: Any) -> None:
    tiny(layer)
    zero(layer)


def all_of_these(layer: Any) -> None:
    tiny_and_zero(layer)
    layer.weight[3].view(-1)[0] = 50


def dead(layer: Any) -> None:
    layer.bias -= 100.0


def huge(layer: Any) -> None:
    layer.bias[0] = 1e9


def empty(layer: Any) -> None:
    layer.weight.zero_()


class Added(nn.Module):
    """A matmul with a constant that is added, which runtimes make a layer with a bias of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix, self.shift, self.head = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(8)), None
        with torch.no_grad():
            self.matrix[:, 1] *= 1e-9
            self.shift[1] = 5.0
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(x @ self.matrix + self.shift))
        return y


class Constant(nn.Module):
    """A layer that reads the same number everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = image()[0][0], nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x) + self.second(x * 0 + 3.0)
        return y


def depthwise() -> tuple[nn.Sequential, Tensor]:
    return net(nn.Conv2d(4, 8, 3, groups=4), nn.SiLU(), nn.Conv2d(8, 4, 1)), torch.randn(1, 4, 12, 12)


def transposed() -> tuple[nn.Sequential, Tensor]:
    return net(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)), torch.randn(1, 4, 12, 12)


def series() -> tuple[nn.Sequential, Tensor]:
    return net(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3, groups=2)), torch.randn(1, 4, 40)


def quiet() -> tuple[nn.Module, Tensor]:
    model, x = image()
    with torch.no_grad():
        model[0].weight *= 1e-20
        model[0].bias *= 1e-20
        model[2].bias.zero_()
    return model, x


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "all": lambda: changed(image, all_of_these),
    "outlier": lambda: changed(image, outlier),
    "dead": lambda: changed(image, dead),
    "huge": lambda: changed(image, huge),
    "a layer of zeros": lambda: changed(image, empty),
    "linear": lambda: changed(rows, tiny_and_zero),
    "matmul and a sum": lambda: (Added().eval(), torch.randn(3, 16)),
    "one number": lambda: (Constant().eval(), torch.randn(1, 3, 16, 16)),
    "depthwise": lambda: changed(depthwise, tiny_and_zero),
    "transposed": lambda: changed(transposed, tiny_and_zero),
    "series": lambda: changed(series, tiny_and_zero),
    "quiet": quiet,
}


def export(model: nn.Module, x: Tensor, folder: Path) -> Artifact:
    samples = torch.randn(24 * x.shape[0], *x.shape[1:], generator=torch.Generator().manual_seed(5))
    np.savez(folder / "samples.npz", input_1=samples.numpy(), x=samples.numpy())
    options = {"inputs": x, "precision": "int8", "name": "net", "calibration": folder / "samples.npz"}
    return edgesmith.export(model, "onnx", out=folder, **options)


def snrs(model: nn.Module, artifact: Artifact, x: Tensor) -> list[float]:
    """Of the file at every level of optimisation, on an input that nothing has seen."""
    given = torch.randn(x.shape, generator=torch.Generator().manual_seed(99))
    found = []
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(str(artifact.file), options, providers=["CPUExecutionProvider"])
        y = session.run(None, {session.get_inputs()[0].name: given.numpy()})[0].astype(np.float64)
        wanted = model(given).detach().double().numpy()
        found.append(10 * np.log10((wanted**2).sum() / max(((wanted - y) ** 2).sum(), 1e-300)))
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_file_in_int8_is_20_db_at_every_level_of_optimisation(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = CASES[name]()
    artifact = export(model, x, tmp_path)
    assert min(snrs(model, artifact, x)) >= 20
    assert artifact.manifest["int8"]["layers"] >= 1
    assert "keep_fp32" not in artifact.manifest


def test_a_layer_that_clips_the_example_goes_back_to_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = changed(rows, outlier)  # one of 50 behind a layer whose range the example exceeds
    artifact = export(model, x, tmp_path)
    (kept,) = artifact.manifest["keep_fp32"].values()
    assert re.match(r"linear at 2 leaves the file 1\d\.\d dB", kept)
    assert artifact.manifest["int8"]["layers"] == 1
    (example, *_) = artifact.manifest["verification"]["steps"][2]["calls"]
    assert example["snr_db"] >= 20


def test_the_manifest_and_verify_show_both_levels(tmp_path: Path) -> None:
    model, x = CASES["all"]()
    artifact = export(model, x, tmp_path)
    steps = [step["step"] for step in artifact.manifest["verification"]["steps"]]
    assert steps[2:] == [
        "eager -> file",
        "eager -> ONNX Runtime, CPU, not optimised",
        "ONNX Runtime, CPU -> ONNX Runtime, CPU, not optimised",
    ]
    assert [step["step"] for step in edgesmith.verify(artifact.path)[1]][2:] == steps[2:]


def test_a_bias_that_overflows_in_the_file_alone_sends_its_layer_back_to_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "MOST_OF_BIAS", 2.0**80)  # the wrong bound: the program does not mind
    model, x = CASES["all"]()
    artifact = export(model, x, tmp_path)
    (kept,) = artifact.manifest["keep_fp32"].values()
    assert kept.startswith("conv2d at 0 leaves the file ")
    assert artifact.manifest["int8"]["layers"] == 1
    assert min(snrs(model, artifact, x)) >= 20


def test_the_layers_that_spoil_a_file_are_found_among_many() -> None:
    names = [f"layer_{i}" for i in range(50)]
    asked: list[Sequence[str]] = []

    def measure(kept: Sequence[str]) -> float:
        asked.append(kept)
        return 40.0 - 30.0 * len({"layer_7", "layer_31"} - {*kept})

    assert find_spoiling(names, measure, 20.0) == {"layer_31": -20.0, "layer_7": 10.0}
    assert len(asked) < 16
    assert find_spoiling(names, lambda kept: 40.0, 20.0) == {}
    assert [*find_spoiling(names, lambda kept: 50.0 * (len(kept) == 50), 20.0)] != names
