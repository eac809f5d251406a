"""Target tensorrt: real engines with no GPU, what they say of themselves, and what refuses to become one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from support.lowering import lower
from support.manifests import smallest_manifest
from support.zoo import FIRST_ZOO
from torch import Tensor, nn

import edgesmith
from edgesmith.board.common import Refusal
from edgesmith.errors import BackendMissing, BadInput, Unreadable, Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.tensorrt import engine
from edgesmith.models import registry
from edgesmith.models.registry import ImageInput
from edgesmith.profiles import device as devices
from edgesmith.readers import apart

BACKEND = targets.get("tensorrt")

ONE_OF_EACH_KIND = ("affnet_et", "casvit_xs", "efficientvim_m1", "lmuformer", "spiking_lmuformer")


@pytest.fixture
def installed() -> None:
    missing = BACKEND.missing_packages()
    if missing:
        pytest.skip(f"tensorrt: {', '.join(missing)} not installed")


def one_node(path: Path, operator: str, kind: int = onnx.TensorProto.FLOAT) -> Path:
    """An ONNX file whose second node, of the module `model.head`, is of a type."""
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"], name="model/Relu_0"),
        onnx.helper.make_node(operator, ["a"], ["y"], name=f"model.head/{operator}_1"),
    ]
    values = [onnx.helper.make_tensor_value_info(name, kind, [2, 2]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def fields(capability_bits: int, length: int = 64) -> bytes:
    """A header as engine.py describes it."""
    head = bytearray(64)
    head[:4], head[24:28] = b"vtrt", bytes((1, 7, 1, 116))
    head[16:24], head[32:40] = length.to_bytes(8, "little"), capability_bits.to_bytes(8, "little")
    return bytes(head)


def test_profiles_say_where_engines_are_built() -> None:
    capabilities = {d.name: d.cuda.compute_capability for d in devices.all_devices().values() if d.cuda}
    assert {d.name: capabilities[d.name] for d in engine.ahead()} == {
        "rtx2080": "7.5",
        "a100": "8.0",
        "rtx3080": "8.6",
        "rtx4070": "8.9",
        "rtx5080": "12.0",
        "dgx-spark": "12.1",
    }
    boards = [d for d in devices.all_devices().values() if d.cuda and d.cuda.engines == "on the board"]
    names = ("agx-orin", "agx-xavier", "nano", "orin-nano", "orin-nx", "thor", "tx2", "xavier-nx")
    assert sorted(d.name for d in boards) == [f"jetson-{name}" for name in names]
    assert all(d.cuda.compute_capability not in engine.CAPABILITIES for d in boards)
    assert {d.name: (d.cuda.tensorrt, d.cuda.dla_cores) for d in boards if "tensorrt" in d.targets} == {
        "jetson-agx-orin": ("10.3", 2),
        "jetson-orin-nano": ("10.3", 0),
        "jetson-orin-nx": ("10.3", 2),
        "jetson-thor": ("10.13", 0),
    }
    assert all(d.cuda.source for d in devices.all_devices().values() if d.cuda)


def test_header_is_read_and_fits_devices(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(fields(0b010100))
    header = engine.read_header(path)
    assert header == engine.Header("1.7.1.116", ("8.6", "12.0"), 64)
    assert [device.name for device in engine.fits(header.compute_capabilities)] == ["rtx3080", "rtx5080"]
    assert engine.inspect(path)["devices"] == ["rtx3080", "rtx5080"]


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (b"ptrt" + bytes(60), Unreadable, "it begins with b'ptrt', not b'vtrt' or b'ftrt'"),
        (b"", Unreadable, "is no engine of TensorRT-RTX or TensorRT: it begins with b''"),
        (fields(4, length=100), Unreadable, "its header says 100 bytes, the file has 64"),
        (None, BadInput, "cannot read the engine of TensorRT "),
    ],
)
def test_what_is_no_engine_is_one_sentence(
    content: bytes | None, error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.engine"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as raised:
        engine.inspect(path)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("device", "own"),
    [
        ("rtx5080", "GeForce RTX 5080 is SM 12.0"),
        ("jetson-orin-nano", "Jetson Orin Nano is SM 8.7"),
        ("rpi5", "Raspberry Pi 5 is without an NVIDIA GPU"),
    ],
)
def test_inspect_refuses_an_engine_for_another_device(
    device: str, own: str, tmp_path: Path, edgesmith: Callable[..., object]
) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(fields(0b000100))
    result = edgesmith("inspect", str(path), "--device", device)
    assert result.returncode == 2  # type: ignore[attr-defined]
    expected = f"edgesmith: model.engine is built for SM 8.6 and {own}; it fits rtx3080\n"
    assert result.stderr == expected  # type: ignore[attr-defined]
    assert edgesmith("inspect", str(path), "--device", "rtx3080").returncode == 0  # type: ignore[attr-defined]


def full(folder: Path, version: str, capability: str = "8.6", **flags: bool) -> Path:
    """An engine's header of TensorRT with a manifest, as a kit's build.py leaves them; there is no engine in it."""
    folder.mkdir()
    (folder / "m.engine").write_bytes(b"ftrt".ljust(24, b"\0") + bytes(map(int, version.split("."))).ljust(40, b"\0"))
    nothing = {"precisions": {}, "types": {}, "synchronisations": 0, "warnings": []}
    memory = dict.fromkeys(("weights_bytes", "activations_bytes", "workspace_bytes"))
    layers = {"network": None, "engine": 0}
    content = (folder / "m.engine").read_bytes()
    told = {
        "version": version,
        "compute_capabilities": [capability],
        "bytes": len(content),
        "flags": {"strongly_typed": True, "tf32": False, "optimization_level": 3, **flags},
        "layers": layers,
        **nothing,
        **memory,
    }
    listed = {"path": "m.engine", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = smallest_manifest(file="m.engine", precision="fp16", engine=told, files=[listed])
    manifest["target"]["name"] = "tensorrt"
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_a_hardware_compatible_engine_is_for_every_gpu_from_ampere_on_but_a_jetsons(tmp_path: Path) -> None:
    wide = full(tmp_path / "wide", "10.3.0.26", hardware_compatible=True)
    assert engine.inspect(wide)["devices"] == ["a100", "dgx-spark", "rtx3080", "rtx4070", "rtx5080"]
    for device in ("a100", "rtx4070"):
        assert engine.inspect(wide, device)["compute_capabilities"] == ["8.6"]
    for device, own in (("rtx2080", "SM 7.5"), ("jetson-orin-nano", "SM 8.7")):
        with pytest.raises(
            BadInput, match=rf"every GPU from SM 8\.0 on but a Jetson's, and .* is {own}; it fits a100, "
        ):
            engine.inspect(wide, device)
    narrow = full(tmp_path / "narrow", "10.3.0.26", hardware_compatible=False)
    assert engine.inspect(narrow)["devices"] == ["rtx3080"]
    with pytest.raises(BadInput, match=r"is built for SM 8\.6 and GeForce RTX 4070 is SM 8\.9; it fits rtx3080"):
        engine.inspect(narrow, "rtx4070")


@pytest.mark.parametrize(
    ("version", "compatible", "loads"),
    [
        ("10.3.0.26", False, True),
        ("10.0.1.6", False, False),
        ("10.0.1.6", True, True),
        ("10.13.0.35", True, False),
        ("11.0.0.1", True, False),
        ("9.3.0.1", True, False),
    ],
)
def test_a_version_compatible_engine_is_for_later_tensorrts_only(
    version: str, compatible: bool, loads: bool, tmp_path: Path
) -> None:
    path = full(tmp_path / "e", version, "8.7", version_compatible=compatible)
    assert engine.inspect(path)["devices"] == ["jetson-agx-orin", "jetson-orin-nano", "jetson-orin-nx"] * loads
    if loads:
        assert engine.inspect(path, "jetson-orin-nano")["version"] == version
        return
    later = ", for later TensorRTs of the same major version too," if compatible else ""
    with pytest.raises(BadInput) as raised:
        engine.inspect(path, "jetson-orin-nano")
    assert str(raised.value) == (
        f"m.engine is built by TensorRT {version}{later} and Jetson Orin Nano has 10.3 (JetPack 6.2);"
        " build its kit there"
    )


def test_whether_this_machines_gpu_loads_an_engine_is_asked_of_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import ModuleType, SimpleNamespace

    path = full(tmp_path / "e", "10.3.0.26")

    def no_cuda() -> None:
        raise Refusal("there is no CUDA")

    monkeypatch.setattr(engine, "Cuda", no_cuda)
    with pytest.raises(BackendMissing) as raised:
        engine.inspect(path, "host-gpu")
    assert str(raised.value) == (
        "m.engine is built for SM 8.6, and which GPU this machine has cannot be found: there is no CUDA"
    )
    monkeypatch.setattr(engine, "Cuda", lambda: SimpleNamespace(compute_capability=lambda: "8.9"))
    with pytest.raises(BadInput, match=r"is built for SM 8\.6 and this machine's GPU is SM 8\.9; it fits rtx3080$"):
        engine.inspect(path, "host-gpu")
    monkeypatch.setattr(engine, "Cuda", lambda: SimpleNamespace(compute_capability=lambda: "8.6"))
    module = ModuleType("tensorrt")
    module.__version__ = "10.7.0.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(
        BadInput, match=r"by TensorRT 10\.3\.0\.26 and this machine's GPU has 10\.7\.0\.1; build its kit"
    ):
        engine.inspect(path, "host-gpu")
    module.__version__ = "10.3.1.2"  # type: ignore[attr-defined]
    assert engine.inspect(path, "host-gpu")["devices"] == ["rtx3080"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda manifest: manifest.pop("engine"), "manifest.json says nothing of the engine; build or export it again"),
        (lambda manifest: manifest.update(engine=[]), "at /engine, [] is not of type 'object'"),
        (lambda manifest: manifest["engine"].pop("flags"), "at /engine, 'flags' is a required property"),
        (lambda manifest: manifest["engine"].update(layers={}), "at /engine/layers, 'network' is a required property"),
        (lambda manifest: manifest["engine"].update(compute_capabilities=[8.6]), "at /engine/compute_capabilities/0,"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(
    change: Callable[[dict[str, object]], object], sentence: str, tmp_path: Path, edgesmith: Callable[..., object]
) -> None:
    path = full(tmp_path / "e", "10.3.0.26")
    assert edgesmith("inspect", str(path)).returncode == 0  # type: ignore[attr-defined]
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = edgesmith("inspect", str(path))
    assert done.returncode == BadInput.exit_code  # type: ignore[attr-defined]
    assert sentence in done.stderr  # type: ignore[attr-defined]
    assert done.stderr.startswith("edgesmith: ")  # type: ignore[attr-defined]
    assert done.stderr.count("\n") == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("device", ["rtx2080", "a100", "rtx3080", "rtx4070", "rtx5080", "dgx-spark"])
def test_every_device_gets_an_engine_for_its_capability_alone(device: str, installed: None, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5))
    options = {"inputs": torch.randn(1, 3, 16, 16), "name": "model", "precision": "fp16", "out": tmp_path}
    artifact = edgesmith.export(model, "tensorrt", device=device, **options)  # type: ignore[arg-type]
    assert artifact.path.name == f"model-tensorrt-fp16-{device}"
    cuda = devices.get(device).cuda
    assert cuda is not None
    assert engine.read_header(artifact.file).compute_capabilities == (cuda.compute_capability,)
    assert artifact.manifest["target"]["options"]["device"] == device


def test_artifact_has_the_typed_onnx_and_says_that_the_engine_was_not_executed(
    installed: None, export_small: Callable[..., Artifact]
) -> None:
    artifact = export_small("tensorrt")
    files = sorted(file.name for file in artifact.path.iterdir())
    described = ["float64.safetensors", "layers.json", "manifest.json", "reference.safetensors"]
    assert files == ["USE.md", "casvit.engine", "casvit.onnx", *described]
    file, built = artifact.manifest["verification"]["steps"][2:]
    assert file["runtime"] == "typed ONNX in ONNX Runtime, CPU"
    assert built["step"] == "eager -> engine"
    assert built["not_checked_here"].startswith("engine not executed here: it needs a GPU of SM 8.6")
    _, steps = edgesmith.verify(artifact.path)
    assert steps[-1] == built


def test_manifest_condenses_the_build_log(installed: None, export_small: Callable[..., Artifact]) -> None:
    artifact = export_small("tensorrt", precision="fp16")
    built = artifact.manifest["engine"]
    assert re.fullmatch(r"1\.\d+\.\d+\.\d+", built["version"])
    assert built["compute_capabilities"] == ["8.6"]
    assert built["bytes"] == artifact.file.stat().st_size
    assert built["flags"] == {"strongly_typed": True, "tf32": False, "optimization_level": 3}
    assert built["layers"]["network"] > built["layers"]["engine"] > 10
    assert built["precisions"]["fp16"] > built["layers"]["engine"] / 2
    assert sum(built["precisions"].values()) == sum(built["types"].values()) == built["layers"]["engine"]
    assert built["weights_bytes"] > 1000
    assert built["workspace_bytes"] >= 0
    assert built["activations_bytes"] > 0
    assert built["warnings"] == []
    layers = json.loads((artifact.path / engine.LAYERS).read_text(encoding="utf-8"))["layers"]
    nodes = {node.name for node in onnx.load(str(artifact.path / "casvit.onnx")).graph.node}
    assert {node for layer in layers for node in layer["nodes"]} <= nodes


def test_fp32_means_fp32_and_not_tf32(installed: None, export_small: Callable[..., Artifact]) -> None:
    assert b"tf32=0" in export_small("tensorrt", precision="fp32").file.read_bytes()


def test_inspect_shows_the_manifest_and_what_has_changed(
    installed: None, export_small: Callable[..., Artifact], edgesmith: Callable[..., object]
) -> None:
    artifact = export_small("tensorrt")
    shown = edgesmith("inspect", str(artifact.path)).stdout  # type: ignore[attr-defined]
    for part in ("casvit, fp32", "SM 8.6", "rtx3080", "strongly_typed true, tf32 false", "network", "fused"):
        assert part in shown
    found = json.loads(edgesmith("inspect", str(artifact.file), "--json").stdout)  # type: ignore[attr-defined]
    assert found["changed"] == []
    assert found["layers"] == artifact.manifest["engine"]["layers"]
    content = bytearray(artifact.file.read_bytes())
    content[-1] ^= 1
    artifact.file.write_bytes(content)
    assert engine.inspect(artifact.path)["changed"] == ["casvit.engine was altered"]


def test_parser_names_the_node_and_its_module(installed: None, tmp_path: Path) -> None:
    from edgesmith.exporters.targets import tensorrt

    with pytest.raises(Unsupported) as raised:
        tensorrt.build(one_node(tmp_path / "det.onnx", "Det"), "8.6")
    assert re.fullmatch(
        r"TensorRT-RTX [\d.]+ does not take Det as at model\.head/Det_1 \(module model\.head\);"
        r" spell that part of the model with other operators, or choose another target: .*",
        str(raised.value),
    )


def test_builder_names_the_node_and_the_precision_to_use(installed: None, tmp_path: Path) -> None:
    """A Turing GPU has no fp32 matrix product in TensorRT-RTX."""
    with pytest.raises(Unsupported) as raised:
        edgesmith.export(
            nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
            "tensorrt",
            device="rtx2080",
            inputs=torch.randn(2, 8),
            out=tmp_path,
        )
    assert re.fullmatch(
        r"TensorRT-RTX [\d.]+ does not build (\d)/Gemm_\d \(module \1\) for SM 7\.5: FP32 GEMM is not supported;"
        r" use --precision fp16",
        str(raised.value),
    )
    assert list(tmp_path.iterdir()) == []


class TwoWays(nn.Module):
    """A choice between a vector and itself in more axes."""

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        y = x * 2
        return torch.where(chosen, y.expand(1, 1, 1, 63), y)


def test_a_builder_that_ends_its_process_is_one_sentence(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgesmith.exporters.targets import tensorrt

    monkeypatch.setattr(tensorrt, "BUILD", "test_tensorrt:end_process")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    apart.end()  # the worker that is there has another path
    said = "^the builder of TensorRT-RTX ended by SIGSEGV over this model; spell its unusual parts with other operators"
    with pytest.raises(Unsupported, match=said):
        export_two_ways(tmp_path)
    apart.end()
    assert list(tmp_path.iterdir()) == []


def test_a_choice_between_a_vector_and_itself_ends_no_process(installed: None, tmp_path: Path) -> None:
    """The builder of 1.7 reads at address 0x58 over it; another may build it."""
    with contextlib.suppress(Unsupported):
        assert export_two_ways(tmp_path).file.is_file()


def export_two_ways(folder: Path) -> Artifact:
    given = torch.randn(63), torch.rand(63, 1) > 0.5
    return edgesmith.export(TwoWays(), "tensorrt", device="a100", precision="fp32", inputs=given, out=folder)


def end_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_file_for_a_capability_that_nothing_builds_for_is_refused(installed: None, tmp_path: Path) -> None:
    from edgesmith.exporters.graph.capture import capture

    program = capture(nn.ReLU(), (torch.randn(2, 2),))
    with pytest.raises(BadInput, match=r"builds for SM 7\.5, .*, 12\.1, got 8\.7"):
        lower(BACKEND, program, tmp_path / "x.engine", profile=devices.get("jetson-orin-nano"))


def test_engine_bytes_do_not_depend_on_what_was_built_before(installed: None, tmp_path: Path) -> None:
    from edgesmith.exporters.targets import tensorrt

    path = one_node(tmp_path / "a.onnx", "Tanh")
    first, _ = tensorrt.build(path, "12.0")
    tensorrt.build(one_node(tmp_path / "b.onnx", "Sigmoid"), "8.6")
    assert tensorrt.build(path, "12.0")[0] == first


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST_ZOO)
def test_every_model_builds_in_every_precision_for_two_capabilities(
    name: str, installed: None, one_block_a_stage: Callable[[], None], tmp_path: Path
) -> None:
    """Engines, and in ONNX Runtime the typed ONNX that they are of: 40 dB in fp16 with two casts an island.

    bf16 of one model of each kind. Spiking models miss any SNR in half precision, and export refuses them for it.
    The others of a kind have their own widths and one block a stage; those of a kind that has no islands, whatever the
    size, are drawn small: the same operators, fewer pixels. bench/experiments/engines.py builds them all as they are.
    """
    from edgesmith.bench.experiments.engines import CAPABILITIES, build_model

    precisions = ("fp32", "fp16", "bf16") if name in ONE_OF_EACH_KIND else ("fp32", "fp16")
    if name not in ONE_OF_EACH_KIND:
        one_block_a_stage()
    is_small = name not in ONE_OF_EACH_KIND and registry.get(name).family in ("casvit", "efficientvim")
    rows = list(build_model(name, tmp_path, precisions, (64, 64) if is_small else None))
    assert [(row.precision, row.compute_capability) for row in rows] == [
        (precision, capability) for precision in precisions for capability in CAPABILITIES
    ]
    assert [row.failure for row in rows] == [""] * len(rows)
    assert all(row.bytes > 0 and min(row.layers) > 0 for row in rows)  # a loop's body is many layers, fused or not
    if isinstance(registry.get(name).input, ImageInput):
        for row in rows:
            limit = {"fp32": None, "fp16": 40.0, "bf16": 22.0}[row.precision]
            assert (row.snr_db is None) == (limit is None)
            assert limit is None or (row.snr_db is not None and row.snr_db >= limit)
            assert row.casts <= (2 + 2 * row.islands if limit else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "failure"),
    [
        (
            "affnet_et",
            r"TensorRT-RTX [\d.]+ does not take DFT as at node_DFT_\d+ \(and 35 other places, of DFT\); spell .*",
        ),
        ("lmuformer", "torch's exporter: .*"),
    ],
)
def test_the_authors_forms_build_no_engine(name: str, failure: str, installed: None, tmp_path: Path) -> None:
    from edgesmith.bench.experiments.engines import build_authors_form

    rows = list(build_authors_form(name, tmp_path))
    assert [row.compute_capability for row in rows] == ["8.6", "12.0"]
    assert all(re.fullmatch(failure, row.failure) for row in rows), rows
