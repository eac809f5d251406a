"""One table of target x device x precision: each combination is written, or refused in one sentence."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn

import edgesmith
from edgesmith.errors import EdgesmithError
from edgesmith.exporters import export as line
from edgesmith.exporters import targets
from edgesmith.exporters.tensorrt.kit import build as board
from edgesmith.kernels.native import toolchain
from edgesmith.profiles import device as devices

PHONES = tuple(
    f"iphone{n}" for n in ("12", "12pro", "13", "13pro", "14", "14pro", "15", "15pro", "16", "16pro", "17", "17pro")
)
MACS = ("m1", "m2", "m3", "m4")
GPUS = ("rtx2080", "a100", "rtx3080", "rtx4070", "rtx5080", "dgx-spark")
BOARDS = ("jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor")
OLD_BOARDS = ("jetson-nano", "jetson-tx2", "jetson-xavier-nx", "jetson-agx-xavier")
CPUS = ("rpi4", "rpi5", "galaxy-s23", "galaxy-s24", "galaxy-s25")
COMPILED_FOR = ("rpi4", "rpi5", "jetson-orin-nano")
HOST = "host-gpu"

WRITTEN = ""
OTHER = r".* takes [a-z, ]+, not {}; choose --target"
FOR = r"engines are for a100, dgx-spark, host-gpu, jetson-agx-orin, .*rtx5080"

TABLE: list[tuple[str, tuple[str | None, ...], str]] = [
    ("onnx", (None, *CPUS, *MACS, *GPUS, *BOARDS, *OLD_BOARDS), WRITTEN),
    ("onnx", (*PHONES, HOST), OTHER.format("onnx")),
    ("coreml", (None, *PHONES, *MACS), WRITTEN),
    ("coreml", (*CPUS, *GPUS, *BOARDS, *OLD_BOARDS, HOST), OTHER.format("coreml")),
    ("coreai", (None, *MACS), WRITTEN),
    ("coreai", (*PHONES, *CPUS, HOST, *GPUS, *BOARDS, *OLD_BOARDS), OTHER.format("coreai")),
    ("tensorrt", (*GPUS, *BOARDS), WRITTEN),
    ("tensorrt", (None,), r"an engine is for one GPU: say which with --device, one of a100, .*"),
    ("tensorrt", (*PHONES, *MACS, *CPUS), rf".* has no NVIDIA GPU and takes (coreml|onnx).*; {FOR}"),
    ("tensorrt", OLD_BOARDS, rf".* has a TensorRT of before 8\.6, .*; it takes onnx, and {FOR}"),
    ("tvm", (None, *COMPILED_FOR), WRITTEN),
    ("tvm", ("galaxy-s24",), r"a library for Galaxy S24 needs the headers of Android's NDK, .*"),
    (
        "tvm",
        (*PHONES, *MACS, *GPUS, HOST, *OLD_BOARDS, *({*CPUS, *BOARDS} - {*COMPILED_FOR, "galaxy-s24"})),
        r".* takes [a-z, ]+, and no processor of it is known to compile for; compiled models are for host, .*rpi5",
    ),
    ("tensorrt", (HOST,), r"--device host-gpu builds with this machine's TensorRT, and there is neither .*"),
]
"""What each target says of each device; where the device is right, each of the target's precisions is written."""


class Reached(Exception):
    """Nothing has refused the combination."""


def test_table_has_every_target_and_device_once() -> None:
    pairs = [(target, device) for target, named, _ in TABLE for device in named]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(t, d) for t in targets.all_targets() for d in (None, *devices.all_devices())}


@pytest.mark.parametrize(("target", "named", "sentence"), TABLE, ids=[f"{t}-{d[0]}" for t, d, _ in TABLE])
def test_a_combination_is_written_or_refused_in_one_sentence(
    target: str, named: tuple[str | None, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = targets.get(target)
    missing = backend.missing_packages()
    if missing:
        pytest.skip(f"{target}: {', '.join(missing)} not installed")

    def staging(out: Path, name: str) -> AbstractContextManager[Path]:
        raise Reached(name)

    monkeypatch.setattr(line, "staging", staging)
    monkeypatch.setattr(board, "find_trtexec", lambda: None)
    monkeypatch.setattr(toolchain, "find_compiler", lambda target: None)
    for device in named:
        for precision in (*backend.precisions, "int3"):
            expected = sentence
            if not sentence and precision not in backend.precisions:
                expected = rf"target {target} has precisions {', '.join(backend.precisions)}, got '{precision}'"
            options = {"inputs": torch.zeros(1, 4), "device": device, "precision": precision, "out": tmp_path}
            with pytest.raises((Reached, EdgesmithError)) as raised:
                edgesmith.export(nn.Linear(4, 4), target, **options)  # type: ignore[arg-type]
            if expected:
                assert not isinstance(raised.value, Reached), (device, precision)
                assert re.fullmatch(expected, str(raised.value)), (device, precision)
            else:
                assert isinstance(raised.value, Reached), (device, precision, raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_board_never_gets_an_engine_of_tensorrt_rtx() -> None:
    backend = targets.get("tensorrt")
    for name in (*BOARDS, HOST):
        delivery = backend.delivery(devices.get(name))
        assert delivery.is_kit, name
        assert delivery.suffix != backend.suffix, name
    for name in GPUS:
        delivery = backend.delivery(devices.get(name))
        assert not delivery.is_kit, name
        assert delivery.suffix == backend.suffix, name
