"""A stand-in for a Mac, for tests on Linux: with this folder in PYTHONPATH, coremltools finds a Core ML.

It is no Core ML, and no Mac was ever asked. The coremltools that runs is the real one; what is put in its place is what
it has on Macs alone:

    coremltools.libcoremlpython   its binding to Core ML: here `_MLModelProxy` waits, and answers zeros
    _is_macos, _macos_version     that this is macOS 15
    modelrunner/                  the app's Xcode project, which wheels for Linux lack: a folder that is empty

Core ML's calls take STANDIN_MS, default 0.5, and twice that held to the CPU. Each is followed by ten times as long of
what the binding is to have done with it, which is not to be in anybody's samples.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.modules["torch"] = None  # type: ignore[assignment]  # coremltools would import it, which takes seconds
WHAT_COREML_NEVER_PRINTS = b'{"event": "noise of a library"\n'


class _MLModelProxy:
    """The class of coremltools' binding to Core ML, as its Python calls it; the arguments are the real one's."""

    def __init__(self, path: str, compute_units: str, function: str, hints: dict[str, str], asset: None) -> None:
        from coremltools.proto import Model_pb2

        os.write(1, WHAT_COREML_NEVER_PRINTS)
        model = Model_pb2.Model()
        model.ParseFromString((Path(path) / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
        described = model.description
        for one in described.functions:
            if one.name == (function or described.defaultFunctionName):
                described = one
        self.description = described
        self.took_s = float(os.environ.get("STANDIN_MS", "0.5")) / 1e3 * (2 if compute_units == "CPU_ONLY" else 1)
        self.last_ns: int | None = None

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return 9

    def predict(self, data: dict[str, Any], state: Any) -> dict[str, Any]:
        if bool(self.description.state) != (state is not None):
            raise RuntimeError("a state is for a package that has states")
        for feature in self.description.input:
            if feature.type.WhichOneof("Type") == "imageType":
                shape, given = (feature.type.imageType.width, feature.type.imageType.height), data[feature.name].size
            else:
                shape, given = tuple(feature.type.multiArrayType.shape), data[feature.name].shape
            if shape != given:
                raise RuntimeError(f"{feature.name} takes {shape}, got {given}")
        start = time.perf_counter_ns()
        time.sleep(self.took_s)
        self.last_ns = time.perf_counter_ns() - start
        time.sleep(10 * self.took_s)
        return {}

    def newState(self) -> object:  # noqa: N802  # the binding's name
        return object()

    def get_load_duration_in_nano_seconds(self) -> int:
        return 1_000_000

    def get_last_predict_duration_in_nano_seconds(self) -> int | None:
        return self.last_ns

    @staticmethod
    def compileModel(path: str) -> str:  # noqa: N802
        return shutil.copytree(path, Path(tempfile.mkdtemp()) / "compiled.mlmodelc").as_posix()


def be_macos(utils: ModuleType) -> None:
    """Have coremltools take this for macOS 15."""
    assert utils._is_macos() is False
    utils._is_macos = lambda: True  # type: ignore[attr-defined]
    utils._macos_version = lambda: (15, 0)  # type: ignore[attr-defined]


def have_the_app(remote_device: ModuleType) -> None:
    """Have coremltools find a project of the app."""
    builder = remote_device._ModelRunnerAppBuilder
    assert builder._get_project_path().name == "modelrunner"
    project = Path(tempfile.gettempdir()) / "modelrunner"
    (project / "ModelRunner.xcworkspace").mkdir(parents=True, exist_ok=True)
    builder._get_project_path = staticmethod(lambda: project)


CHANGED: dict[str, Callable[[ModuleType], None]] = {
    "coremltools.models.utils": be_macos,
    "coremltools.models.ml_program.experimental.remote_device": have_the_app,
}


class Changes(importlib.abc.MetaPathFinder):
    """Changes coremltools' modules as they are imported, before others take names from them."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def changed(module: ModuleType) -> None:
            execute(module)
            CHANGED[name](module)

        spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


binding = ModuleType("coremltools.libcoremlpython")
binding._MLModelProxy = _MLModelProxy  # type: ignore[attr-defined]
binding._MLModelAssetProxy = object  # type: ignore[attr-defined]
sys.modules[binding.__name__] = binding
sys.meta_path.insert(0, Changes())
