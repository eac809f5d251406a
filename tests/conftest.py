"""What several test files use: goldens, small models, and the authors' checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from support.captures import Captures
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from edgesmith import plugins
from edgesmith.exporters import decompositions, targets
from edgesmith.exporters.artifact import Artifact, read
from edgesmith.exporters.decompositions import decomposes
from edgesmith.exporters.graph.capture import Program, capture
from edgesmith.exporters.options import ExportOptions
from edgesmith.exporters.rewrites import fuse, order
from edgesmith.kernels.op import all_ops
from edgesmith.models.registry import all_models
from edgesmith.profiles.device import all_devices

HERE = Path(__file__).parent
STARTED = time.monotonic()

SPELLED_OUT = ("precision", "deployment_target", "device")
"""Options that make the same artifact where their defaults are given in words."""

NEEDED: dict[str, dict[str, object]] = {"tensorrt": {"device": "rtx3080"}}
"""Options without which a target exports nothing."""

settings.register_profile(
    "edgesmith",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("edgesmith")


LATER = (
    *("test_sequence_targets", "test_metaformer", "test_forecasters", "test_dense", "test_int8"),
    *("test_layer_rewrites", "test_authors", "test_foreign_models"),
)
"""Modules of whole models, one export after the other: with those tests that are `slow` the last to run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--within", type=float, default=math.inf, help="seconds from which on what comes last is left out")
    parser.addoption("--update-golden", action="store_true", help="write the goldens anew instead of comparing")
    parser.addoption("--kills", type=int, default=6, help="how many commands test_kills.py kills")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, and so would be what tests start
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("COLUMNS", None)  # xdist has its workers' terminals 80 wide; tables are as in a pipe
    if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: more threads would only get in each other's way
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
    if config.getoption("--cov", None):
        decompositions.decomposes = decomposes_traced
        torch.export.export = untraced(torch.export.export)
        for owner, name in (
            (torch.export.ExportedProgram, "run_decompositions"),
            (torch.onnx.ONNXProgram, "optimize"),
            (torch.fx.GraphModule, "recompile"),
        ):
            setattr(owner, name, untraced(getattr(owner, name)))
        fuse.make_fx = lambda *given, **options: untraced(make_fx(*given, **options))
        with contextlib.suppress(ImportError):
            leave_coremltools_passes_untraced()
    config.addinivalue_line("markers", "slow: a minute or more")
    config.addinivalue_line("markers", "wheel: runs from the built wheel too, outside a checkout")
    config.addinivalue_line("markers", "no_cover: runs untraced; pytest-cov's own, for where it is not installed")


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch's without the coverage tracer, under which it takes twice as long.

    What it calls of ours is modules and shape rules, which run outside it too: the figures are the same. Decompositions
    run nowhere else, and are traced.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _tracer
        tracer = sys.gettrace()
        _tracer = tracer or _tracer
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return call


def leave_coremltools_passes_untraced() -> None:
    """Have coremltools' own passes run without the coverage tracer, and ours among them with it."""
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass

    traced = AbstractGraphPass.__call__
    quick = untraced(traced)

    def call(self: Any, program: Any) -> Any:
        is_theirs = type(self).__module__.startswith("coremltools.")
        return (quick if is_theirs else traced)(self, program)

    AbstractGraphPass.__call__ = call


_tracer: Any = None
"""The coverage tracer, while a function runs without it."""


def decomposes_traced(*overloads: Any, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a decomposition that runs with the coverage tracer, inside of functions that run without."""
    register = decomposes(*overloads, **options)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = sys.gettrace()
            sys.settrace(_tracer)
            try:
                return function(*args, **kwargs)
            finally:
                sys.settrace(before)

        return register(call)

    return decorate


def seed() -> None:
    """Have what is drawn without a seed drawn equally in every run: what a module draws, and what each test does."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed what a test draws. Leave out what comes last where a slow machine has no time for it: it passed nothing."""
    seed()
    within = item.config.getoption("--within")
    if comes_last(item) and time.monotonic() - STARTED > within:
        pytest.skip(f"not run: it comes last, and {within:.0f} s have passed on this machine")


def comes_last(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None or item.module.__name__.rpartition(".")[2] in LATER


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests untraced that go over the same lines hundreds of times: a tracer nearly doubles what torch takes.

    They are those that draw their cases, and those of whole models, one after the other.
    """
    if config.getoption("--within") < math.inf:
        items.sort(key=comes_last)
    for item in items:
        is_drawn = hasattr(getattr(item, "obj", None), "hypothesis")
        if item.get_closest_marker("slow") or is_drawn or "one_block_a_stage" in getattr(item, "fixturenames", ()):
            item.add_marker("no_cover")


@pytest.fixture(scope="session", autouse=True)
def operators() -> Iterator[None]:
    """Have torch ask its dispatcher for the operators without kernels once a decomposition, not once a namespace."""
    collect = torch._export.utils._collect_all_valid_cia_ops
    materialize = torch._export.utils._materialize_cpp_cia_ops

    def collect_once() -> set[Any]:
        materialize()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch._export.utils, "_materialize_cpp_cia_ops", lambda: None)
            return collect()

    with pytest.MonkeyPatch.context() as patch:
        for user in (torch.export.exported_program, torch.export.decomp_utils):
            patch.setattr(user, "_collect_all_valid_cia_ops", collect_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def captures() -> Iterator[Captures]:
    """Share what exports of the same model capture and rewrite, in this worker."""
    exports = importlib.import_module("edgesmith.exporters.export")  # after pytest_configure, which prepares its parts
    shared = Captures(exports.capture, exports.rewrite)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "capture", shared.capture)
        patch.setattr(exports, "rewrite", shared.rewrite)
        yield shared


@pytest.fixture(autouse=True)
def unshared(request: pytest.FixtureRequest, captures: Captures) -> Iterator[None]:
    """Let a test that changes the code under it have programs of its own, and leave none to others."""
    arguments = inspect.signature(request.function).parameters if request.function else {}
    captures.shares = "monkeypatch" not in arguments
    yield
    captures.shares = True


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Leave what is alive where a file of tests begins out of collections of garbage.

    coremltools asks for one at every conversion, and with torch in memory each takes 0.6 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare text with tests/golden/NAME.txt, or write it there with --update-golden."""

    def compare(name: str, text: str) -> None:
        path = HERE / "golden" / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"no golden {path.name}: write it with pytest --update-golden, and read it"
        assert text == path.read_text(encoding="utf-8"), f"golden {path.name}: see the diff; --update-golden accepts it"

    return compare


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Outputs of the authors' own implementations, one file a model, for weights that follow from a seed."""
    return HERE / "fixtures"


@pytest.fixture(scope="session")
def fixture_file() -> Path:
    """Outputs of the authors' own CAS-ViT XS, for weights that follow from a seed."""
    return HERE / "fixtures" / "casvit_xs.npz"


@pytest.fixture(scope="session")
def rebuild() -> ModuleType:
    """checkpoint.py: makes the authors' checkpoint, the input and the expected output from a fixture."""
    spec = importlib.util.spec_from_file_location("parity_checkpoint", HERE / "fixtures" / "checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def authors_checkpoint(tmp_path_factory: pytest.TempPathFactory, rebuild: ModuleType, fixture_file: Path) -> Path:
    """The XS checkpoint as the authors save it: under `model`, beside training state."""
    state, _, _, meta = rebuild.load(fixture_file)
    path = tmp_path_factory.mktemp("weights") / "rcvit_xs.pth"
    torch.save({meta["envelope"]: state, "epoch": 299}, path)
    return path


def randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and batch statistic a value that a wrong fold would show."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if not module.affine:
                continue
            with torch.no_grad():
                module.weight.normal_(1, 0.3, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def randomised() -> Callable[[nn.Module], nn.Module]:
    return randomise_


@pytest.fixture(scope="session")
def small() -> nn.Module:
    """A CAS-ViT of one block a stage with random statistics: every structure of the family, captured in a second."""
    from edgesmith.models.casvit import CasViT

    torch.manual_seed(0)
    return randomise_(CasViT(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=10))


@pytest.fixture
def one_block_a_stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have image models built with one block a stage from the call on: with their own widths, and half the operators.

    Variants of a family differ in their widths and in how often a block is repeated. What repeating does, a variant of
    each family shows beside these at its own depth; and test_every_model.py rewrites every variant at its own depth.
    """

    def cut() -> None:
        classes = {"affnet": "AFFNet", "casvit": "CasViT", "efficientvim": "EfficientViM", "metaformer": "MetaFormer"}
        for family, name in classes.items():
            module = importlib.import_module(f"edgesmith.models.{family}")
            monkeypatch.setattr(module, name, functools.partial(_with_one_block_a_stage, getattr(module, name)))

    return cut


def _with_one_block_a_stage(build: type[nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    given = inspect.signature(build).bind(*arguments, **options)
    given.arguments["depths"] = [1] * len(given.arguments["depths"])
    return build(*given.args, **given.kwargs)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, the same for every worker."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Only one process at a time, for the same file."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def artifact(small: nn.Module, run_folder: Path, tmp_path: Path) -> Callable[..., Artifact]:
    """Export a named model, or `small`, where no test of this run has done so before; every test gets its own copy."""
    import edgesmith

    def export(model: str, target: str, **options: Any) -> Artifact:
        subject: Any = model
        if model == "small":
            example = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))  # an artifact keeps it
            subject, options = small, {"inputs": example, **options}
        asked = ExportOptions(subject, target, **options)
        others = {name: value for name, value in options.items() if name not in ("inputs", *SPELLED_OUT)}
        key = (model, target, asked.arithmetic.name, asked.system, asked.device, sorted(others.items()))
        out = run_folder / "artifacts" / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        out.mkdir(parents=True, exist_ok=True)
        with alone(out.with_suffix(".lock")):
            if not any(out.iterdir()):
                edgesmith.export(subject, target, out=out, **options)
            (made,) = out.iterdir()
        return read(shutil.copytree(made, tmp_path / made.name))

    return export


@pytest.fixture
def export_small(small: nn.Module, artifact: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Artifact]:
    """Export `small` to a target, which has to be installed: anew for inputs of a test's own."""
    import edgesmith

    def export(target: str, **options: object) -> Artifact:
        missing = targets.get(target).missing_packages()
        if missing:
            pytest.skip(f"{target}: {', '.join(missing)} not installed")
        options = NEEDED.get(target, {}) | options
        if "inputs" in options:
            return edgesmith.export(small, target, out=tmp_path, **options)  # type: ignore[arg-type]
        return artifact("small", target, **options)

    return export


@pytest.fixture(scope="session")
def small_program(small: nn.Module) -> Program:
    return capture(small, (torch.randn(1, 3, 64, 96),), ("image",), ("logits",))


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def process(tmp_path: Path) -> Run:
    """Run the command line as a process of its own, in a folder of its own."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgesmith", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, **options)

    return run


@pytest.fixture
def edgesmith(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process, in a folder of its own: the same answers, without importing torch again."""
    from edgesmith import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = cli.run(list(arguments))
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, shown.out, shown.err)

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put a package of one module with entry points, `name = attribute`, on the path, and files beside the module."""
    installed: list[str] = []

    def forget() -> None:
        for module in installed:
            sys.modules.pop(module, None)
        plugins.forget()
        for remembered in (order._with_plugins, all_ops, all_models, all_devices):
            remembered.cache_clear()
        gc.collect()  # a dead library takes the op of its name away from torch when it is collected
        importlib.invalidate_caches()

    def put(
        module: str,
        source: str | None,
        group: str = "edgesmith.rewrites",
        files: Mapping[str, str] | None = None,
        **points: str,
    ) -> None:
        installed.append(module)
        for name, text in (files or {}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        if source is not None:
            (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        lines = [f"{name} = {module}{attribute}" for name, attribute in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]), encoding="utf-8")
        forget()

    monkeypatch.syspath_prepend(tmp_path)
    yield put
    forget()


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The repository that these tests lie in; tests of an installed package have none."""
    root = HERE.parent
    if not (root / ".git").exists():
        pytest.skip("these tests run from an installed package, not from a checkout")
    return root


@pytest.fixture(scope="session")
def parity() -> Path:
    """Outputs of the authors' own implementations of every model, where they lie beside the checkout."""
    folder = HERE.parent.parent / "shared" / "parity"
    if not folder.is_dir():
        pytest.skip("no shared/parity beside the checkout; the copies in tests/fixtures are used")
    return folder
