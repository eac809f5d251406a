"""Kits: all that a machine with its own TensorRT needs to build an engine, check it and time it. build.py runs there.

    kit.json     the record, by record.py and kit.schema.json; what to copy are it and its `files`
    MODEL.onnx   the typed ONNX
    cases.npz    input_I.J and output_I.J: the seeded inputs, and PyTorch's outputs
    build.py     one file for the board, joined from build.py beside this module and edgesmith.board.common
    README.md    one page
    stream.py    of a step: carries its states; streaming/runner.py, joined as build.py is

A kit lies in an artifact's folder, so it has a manifest and PyTorch's outputs too, and `verify` works on it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.board.join import join
from edgesmith.errors import BackendMissing, Unsupported, VerificationFailed
from edgesmith.exporters.engine_record import Board, Flags, Thresholds
from edgesmith.exporters.manifest import SCHEMA
from edgesmith.exporters.streaming import runner
from edgesmith.exporters.tensorrt.kit import build
from edgesmith.exporters.tensorrt.kit.record import KIT, Kit, Origin, read_kit, write_record
from edgesmith.paths import path_listed
from edgesmith.readers.documents import read_json

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.profiles.device import DeviceProfile

__all__ = ["KIT", "Kit", "read_kit"]  # record.py's

CASES = "cases.npz"
SCRIPT = "build.py"
README = "README.md"

OPTIONS: tuple[str, ...] = ()
"""Of build.py, where it builds on this machine."""

FLAGS: Flags = {"strongly_typed": True, "tf32": False, "optimization_level": 3}
"""Settings of every build. Others, such as a DLA, are build.py's options on the board."""


@dataclass(frozen=True)
class Cases:
    """The seeded inputs, and PyTorch's outputs for them: arrays by case and position.

    Attributes:
        unjudged: names of outputs that no threshold holds for, and that a kit leaves out.
    """

    inputs: Sequence[Sequence[np.ndarray]]
    outputs: Sequence[Sequence[np.ndarray]]
    unjudged: Collection[str] = ()


def write_kit(
    onnx: Path,
    profile: DeviceProfile,
    cases: Cases,
    *,
    thresholds: Thresholds,
    spikes: bool,
    operators: Mapping[str, str | None],
    manifest: Mapping[str, Any],
) -> Kit:
    """Make a kit of a typed ONNX file, in its folder.

    Args:
        profile: the device that builds of it.
        thresholds: that the engine's outputs must hold, by the names of engine_record's `Thresholds`.
        spikes: neurons spike, so that an ulp may show.
        operators: that the file uses, each with the TensorRT since which there is one, where that is known.
        manifest: the artifact's; the engine's repeats what it is of.

    Returns:
        The record in its kit.json.
    """
    from onnx import load

    folder = onnx.parent
    graph = load(str(onnx)).graph
    judged = {i: value.name for i, value in enumerate(graph.output) if value.name not in cases.unjudged}
    kit: Kit = {
        "schema": 1,
        "model": manifest["model"]["name"],
        "device": profile.name,
        "precision": manifest["precision"],
        "onnx": onnx.name,
        "inputs": [value.name for value in graph.input],
        "outputs": list(judged.values()),
        "board": _board(profile),
        "thresholds": thresholds,
        "spikes": spikes,
        "flags": FLAGS,
        "operators": dict(operators),
        "manifest": _origin(manifest),
        "files": {},
    }
    _write_cases(folder / CASES, cases, list(judged))
    (folder / SCRIPT).write_text(join(Path(build.__file__)), encoding="utf-8")
    (folder / README).write_text(_readme(kit, profile), encoding="utf-8")
    names = [onnx.name, CASES, SCRIPT, README]
    if "streaming" in manifest:
        (folder / runner.FILE).write_text(join(Path(runner.__file__)), encoding="utf-8")
        names.append(runner.FILE)
    kit["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    write_record(kit, folder)
    return kit


def _board(profile: DeviceProfile) -> Board:
    """The device that builds."""
    cuda = profile.cuda
    assert cuda is not None
    return {
        "title": profile.title,
        "compute_capability": cuda.compute_capability or None,
        "tensorrt": cuda.tensorrt,
        "jetpack": cuda.jetpack,
        "dla_cores": cuda.dla_cores,
    }


def _origin(manifest: Mapping[str, Any]) -> Origin:
    """The artifact's facts that the engine's manifest repeats."""
    verification = manifest["verification"]
    origin: Origin = {
        "schema": SCHEMA,
        "model": manifest["model"],
        "weights": manifest["weights"],
        "target": manifest["target"],
        "precision": manifest["precision"],
        "tool": manifest["tool"],
        "verification": {"inputs": verification["inputs"], "judged_as": verification["judged_as"]},
    }
    if "streaming" in manifest:
        origin["streaming"] = manifest["streaming"]
    return origin


def _write_cases(path: Path, cases: Cases, judged: Sequence[int]) -> None:
    """Write the inputs of every case, and those of its outputs that are judged."""
    import numpy as np

    arrays = {f"input_{i}.{j}": x for i, one in enumerate(cases.inputs) for j, x in enumerate(one)}
    arrays |= {f"output_{i}.{j}": one[k] for i, one in enumerate(cases.outputs) for j, k in enumerate(judged)}
    np.savez(path, allow_pickle=False, **{name: np.ascontiguousarray(x) for name, x in arrays.items()})


def check_kit(folder: Path) -> None:
    """Raise Unsupported where a file of a kit is missing, or is not what kit.json says."""
    for name, digest in read_kit(folder)["files"].items():
        path = path_listed(folder, name)
        if not path.is_file():
            raise Unsupported(f"{name} is missing from the kit {folder.name}; export it again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise Unsupported(f"{name} of the kit {folder.name} is damaged; export it again")


def needs(kit: Mapping[str, Any]) -> str:
    """The oldest TensorRT that has all operators of a kit, in words."""
    since = [build.version_of(one) for one in kit["operators"].values() if one and one != build.NEVER]
    return f"TensorRT {build.written(max([build.OLDEST, *since]))}"


def require_tensorrt() -> None:
    """Raise BackendMissing where this machine has no TensorRT to build with."""
    import importlib.util

    if importlib.util.find_spec(build.Module.runtime) is None and build.find_trtexec() is None:
        raise BackendMissing(
            "--device host-gpu builds with this machine's TensorRT, and there is neither the Python module tensorrt nor"
            " the command trtexec; install TensorRT (docs.nvidia.com/deeplearning/tensorrt), or choose a --device whose"
            " engine TensorRT-RTX builds here"
        )


def build_here(folder: Path, out: Path) -> dict[str, Any]:
    """Build a kit on this machine into `out`, by the kit's own build.py. Returns the engine's manifest.

    Raises:
        Unsupported: TensorRT does not build it, or cannot work here.
        VerificationFailed: the engine's numbers are not PyTorch's.
    """
    command = [sys.executable, str(folder / SCRIPT), "--out", str(out), *OPTIONS]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)  # noqa: S603  # this Python, our file
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        sentence = said[-1].removeprefix(f"{SCRIPT}: ") if said else f"{SCRIPT} stopped with {done.returncode}"
        raise (VerificationFailed if sentence.startswith(build.NUMBERS) else Unsupported)(sentence)
    manifest: dict[str, Any] = read_json(out / "manifest.json", "manifest of the engine")
    return manifest


_STREAMS = f"""`{runner.FILE}` is there too, and carries the states. `python3 {runner.FILE} --frames FRAMES.npy` takes
an array [frames, features], `python3 {runner.FILE}` raw float32 frames from a pipe, and its class `Stream` those of
a program."""
"""The paragraph of README.md about a step."""


def _readme(kit: Kit, profile: DeviceProfile) -> str:
    """One page for whoever finds a kit on a board."""
    cuda = profile.cuda
    assert cuda is not None
    sm = f" (SM {cuda.compute_capability})" if cuda.compute_capability else ""
    brings = f"{profile.system} brings TensorRT {cuda.tensorrt}." if cuda.tensorrt else f"{needs(kit)} to 11 will do."
    limits = kit["thresholds"]
    dla = (
        f"\n- `--dla 0` (to {cuda.dla_cores - 1}): run on a DLA what can, and the rest on the GPU. fp16 and int8 only,"
        f" and TensorRT up to 10.7 or from {build.written(build.TYPED_DLA)} on."
        if cuda.dla_cores
        else ""
    )
    streams = f"\n\n{_STREAMS}" if "streaming" in kit["manifest"] else ""
    everywhere = "" if cuda.jetpack else "\n- `--hardware-compatible`: an engine for every GPU from SM 8.0 on."
    return f"""# {kit["model"]}, {kit["precision"]}, for {profile.title}{sm}

TensorRT engines load on the kind of GPU that built them. This folder has all that is needed to build one there: the
typed ONNX `{kit["onnx"]}`, inputs and PyTorch's outputs (`cases.npz`), and `build.py`, which needs Python 3.8,
numpy and the machine's own TensorRT. {brings}

## Build

Copy this folder to the device, and type in it:

    python3 build.py --out ../{kit["model"]}-engine

It builds the engine, compares its outputs with PyTorch's, times it, and writes

| file | |
|---|---|
| `{kit["model"]}.engine` | for this GPU and this TensorRT |
| `manifest.json` | versions, flags, device, error against PyTorch, sha256 of every file |
| `measurement.json` | every sample, as `edgesmith bench` writes it |
| `layers.json` | the engine's layers, with the ONNX nodes in each |

in one step. Exit code 0: the folder is there. Exit code 2: there is no folder, and one sentence on stderr says why: no
TensorRT, an operator that it does not have, wrong numbers, a damaged file.{streams}

The numbers pass with an error of at most {limits["relative_error"]:.1e} of PyTorch's largest output, an SNR of at least
{limits["snr_db"]:.0f} dB, and the same best class wherever it is decided.

## Options

- `--timing-cache FILE`: kernels' times, read where the file exists and written anew; the next build is faster.
- `--version-compatible`: an engine that later TensorRTs of the same major version load too.{everywhere}{dla}
- `--workspace MIB`: limit of the builder's scratch memory. `--seconds S`, `--launches N`: how long to time, in how many
  processes.

## Beforehand

`sudo nvpmodel -q` shows the power mode, which the measurement records; `sudo jetson_clocks` fixes the clocks. Where
Python finds no module `tensorrt`, build.py uses `trtexec`, also from `/usr/src/tensorrt/bin`.
"""
