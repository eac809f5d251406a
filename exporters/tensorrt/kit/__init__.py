"""Kits: what a machine with its own TensorRT needs to build an engine, check it and time it. build.py runs there.

    kit.json     {"schema": 1, "model", "device", "precision", "onnx", "inputs", "outputs", "board": {...},
                  "thresholds": {"relative_error", "snr_db"}, "spikes", "flags", "operators": {name: since},
                  "manifest": {...}, "files": {name: sha256}}       what to copy: kit.json and `files`
    MODEL.onnx   the typed ONNX
    cases.npz    input_I.J and output_I.J: the seeded inputs, and PyTorch's outputs
    build.py     what runs on the board; README.md: one page

A kit lies in an artifact's folder, so it has a manifest and PyTorch's outputs too, and `verify` works on it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BackendMissing, BadInput, Unsupported, VerificationFailed
from edgesmith.exporters.manifest import SCHEMA
from edgesmith.exporters.tensorrt.kit import build as board

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.profiles.device import DeviceProfile

KIT = "kit.json"
CASES = "cases.npz"
SCRIPT = "build.py"
README = "README.md"

OPTIONS: tuple[str, ...] = ()
"""Of build.py, where it builds on this machine."""

FLAGS = {"strongly_typed": True, "tf32": False, "optimization_level": 3}
"""How engines are built. What else there is, such as a DLA, the builder is told on the board."""


def read_kit(folder: Path) -> dict[str, Any]:
    """What kit.json says. Raises BadInput where it is damaged or of another schema."""
    path = folder / KIT
    try:
        kit: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = kit["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged or no kit's ({error!r}); export the model again") from error
    if schema != board.SCHEMA:
        raise BadInput(f"{path} has schema {schema}, this edgesmith reads {board.SCHEMA}")
    return kit


def write_kit(
    onnx: Path,
    profile: DeviceProfile,
    *,
    model: str,
    precision: str,
    inputs: Sequence[Sequence[np.ndarray]],
    outputs: Sequence[Sequence[np.ndarray]],
    thresholds: Mapping[str, float],
    spikes: bool,
    operators: Mapping[str, str | None],
    manifest: Mapping[str, Any],
    unjudged: Collection[str] = (),
) -> dict[str, Any]:
    """Make a kit of the typed ONNX in its folder. Returns what kit.json says.

    Args:
        profile: the device that builds of it.
        inputs, outputs: of each case; outputs are PyTorch's.
        thresholds: `relative_error` and `snr_db` that the engine's outputs must hold.
        spikes: whether neurons spike, so that an ulp may show.
        operators: that the file uses, each with the TensorRT since which there is one, where that is known.
        manifest: the artifact's; the engine's repeats what it is of.
        unjudged: names of outputs that no threshold holds for, and that the cases leave out.
    """
    import numpy as np
    from onnx import load

    folder = onnx.parent
    graph = load(str(onnx)).graph
    judged = {i: value.name for i, value in enumerate(graph.output) if value.name not in unjudged}
    arrays = {f"input_{i}.{j}": x for i, one in enumerate(inputs) for j, x in enumerate(one)}
    arrays |= {f"output_{i}.{j}": one[k] for i, one in enumerate(outputs) for j, k in enumerate(judged)}
    np.savez(folder / CASES, allow_pickle=False, **{name: np.ascontiguousarray(x) for name, x in arrays.items()})
    shutil.copyfile(board.__file__, folder / SCRIPT)
    cuda = profile.cuda
    assert cuda is not None
    kit = {
        "schema": board.SCHEMA,
        "model": model,
        "device": profile.name,
        "precision": precision,
        "onnx": onnx.name,
        "inputs": [value.name for value in graph.input],
        "outputs": list(judged.values()),
        "board": {
            "title": profile.title,
            "compute_capability": cuda.compute_capability or None,
            "tensorrt": cuda.tensorrt,
            "jetpack": cuda.jetpack,
            "dla_cores": cuda.dla_cores,
        },
        "thresholds": dict(thresholds),
        "spikes": spikes,
        "flags": FLAGS,
        "operators": dict(operators),
        "manifest": {
            "schema": SCHEMA,
            **{key: manifest[key] for key in ("model", "weights", "target", "precision", "tool")},
            "verification": {key: manifest["verification"][key] for key in ("inputs", "judged_as")},
        },
    }
    (folder / README).write_text(_readme(kit, profile), encoding="utf-8")
    names = (onnx.name, CASES, SCRIPT, README)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    kit["files"] = digests
    (folder / KIT).write_text(json.dumps(kit, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return kit


def check_kit(folder: Path) -> None:
    """Raise Unsupported where a file of a kit is missing, or is not what kit.json says."""
    for name, digest in read_kit(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise Unsupported(f"{name} is missing from the kit {folder.name}; export it again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise Unsupported(f"{name} of the kit {folder.name} is damaged; export it again")


def needs(kit: Mapping[str, Any]) -> str:
    """The oldest TensorRT that has all operators of a kit, in words."""
    since = [board.version_of(one) for one in kit["operators"].values() if one and one != board.NEVER]
    return f"TensorRT {board.written(max([board.OLDEST, *since]))}"


def require_tensorrt() -> None:
    """Raise BackendMissing where this machine has no TensorRT to build with."""
    import importlib.util

    if importlib.util.find_spec("tensorrt") is None and board.find_trtexec() is None:
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
        raise (VerificationFailed if sentence.startswith(board.NUMBERS) else Unsupported)(sentence)
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def _readme(kit: Mapping[str, Any], profile: DeviceProfile) -> str:
    """One page for whoever finds a kit on a board."""
    cuda = profile.cuda
    assert cuda is not None
    sm = f" (SM {cuda.compute_capability})" if cuda.compute_capability else ""
    brings = f"{profile.system} brings TensorRT {cuda.tensorrt}." if cuda.tensorrt else f"{needs(kit)} to 11 will do."
    limits = kit["thresholds"]
    dla = (
        f"\n- `--dla 0` (to {cuda.dla_cores - 1}): run on a DLA what can, and the rest on the GPU. fp16 and int8 only,"
        f" and TensorRT up to 10.7 or from {board.written(board.TYPED_DLA)} on."
        if cuda.dla_cores
        else ""
    )
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
TensorRT, an operator that it does not have, wrong numbers, a damaged file.

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
