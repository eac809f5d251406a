"""Artifacts: a folder with the target's file, `reference.safetensors` and `manifest.json`, whole or not at all.

    staging    a hidden folder beside the final one, locked while its process lives
    publish    one rename, or, over an older artifact, one exchange of the two folders
    leftovers  of killed runs: staging folders that nobody locks, removed by the next run

The manifest (manifest.py) says what the artifact is made of and how it was checked. `reference.safetensors` holds
PyTorch's outputs for the inputs of verification: `verify` needs neither the weights nor the model, and checks a Core ML
package built on Linux when it is on a Mac.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgesmith.ending import held, put_in_place
from edgesmith.errors import BadInput, OutputError, Unreadable
from edgesmith.exporters import manifest as manifests
from edgesmith.exporters.manifest import MANIFEST, FileRecord, Manifest
from edgesmith.locks import lock, locked
from edgesmith.paths import path_listed
from edgesmith.readers.budget import GIBIBYTE
from edgesmith.readers.documents import read_json
from edgesmith.readers.tensors import read_safetensors, read_safetensors_as_torch
from edgesmith.writing import removed_if_empty, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE = "reference.safetensors"
INPUTS = "inputs.safetensors"
EXACT = "float64.safetensors"
TRACE = "trace.json"
ADVICE = "export the model again"
_STAGING = ".edgesmith-"
_OUTPUT = re.compile(r"input_(\d{1,6})\.(?:output_)?(\d{1,6})", re.ASCII)
_EXAMPLE = re.compile(r"example_(\d{1,6})\.(values|float16|float32|float64|bfloat16)", re.ASCII)
T = TypeVar("T")


@dataclass(frozen=True)
class Artifact:
    """A published artifact.

    Attributes:
        path: its folder.
        file: the target's file or package in it.
        manifest: what manifest.json says.
    """

    path: Path
    file: Path
    manifest: Manifest

    def __fspath__(self) -> str:
        """Return its folder, so that it may be given wherever a path is: `edgesmith.verify(artifact)`."""
        return str(self.path)

    @property
    def model(self) -> str:
        """The model's name."""
        return self.manifest["model"]["name"]

    @property
    def target(self) -> str:
        """The target's name."""
        return self.manifest["target"]["name"]

    @property
    def precision(self) -> str:
        """The name of its precision."""
        return self.manifest["precision"]

    @property
    def digest(self) -> str:
        """sha256 of the target's file, or of the sorted digests of the files in its package."""
        digests = [entry["sha256"] for entry in manifests.own_files(self.manifest)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def sha256(self) -> dict[str, str]:
        """sha256 of every file, by its path in the folder."""
        return {entry["path"]: entry["sha256"] for entry in self.manifest["files"]}


def read(path: str | Path) -> Artifact:
    """The artifact in a folder, or that the given file belongs to. Raises BadInput where there is none."""
    given = Path(path)
    folder = next((p for p in (given, *given.parents[:1]) if (p / MANIFEST).is_file()), None)
    if folder is None:
        raise BadInput(f"no artifact at {given}: wanted a folder with {MANIFEST}, as `edgesmith export` writes it")
    manifest = manifests.read(folder)
    return Artifact(folder, path_listed(folder, manifest["file"]), manifest)


def changed_files(artifact: Artifact) -> list[str]:
    """Return the differences from the manifest's list of files: a sentence for each missing, added or altered one."""
    linked = sorted(path for path in artifact.path.rglob("*") if path.is_symlink())
    if linked:  # what it points to is nobody's to read
        return [f"{linked[0].relative_to(artifact.path).as_posix()} became a link"]
    listed = artifact.sha256
    sizes = {entry["path"]: entry["bytes"] for entry in artifact.manifest["files"]}
    present = {entry["path"]: entry for entry in list_files(artifact.path)}
    found = [f"{name} is missing" for name in listed if name not in present]
    found += [f"{name} was added" for name in present if name not in listed]
    both = [name for name in listed if name in present]
    found += [f"{name} was altered" for name in both if present[name]["sha256"] != listed[name]]
    same = [name for name in both if present[name]["sha256"] == listed[name]]
    found += [
        f"{name} has {present[name]['bytes']} bytes where the manifest says {sizes[name]}"
        for name in same
        if present[name]["bytes"] != sizes[name]
    ]
    return found


def list_files(folder: Path) -> list[FileRecord]:
    """Path, size in bytes and sha256 of every file in a folder but the manifest, in order of their paths."""
    entries: list[FileRecord] = []
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder).as_posix()
        if file.is_file() and relative != MANIFEST:
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            entries.append({"path": relative, "bytes": file.stat().st_size, "sha256": digest})
    return entries


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, its list of files made from what is in the folder."""
    manifests.write(folder, {**manifest, "files": list_files(folder)})


def write_reference(
    folder: Path, outputs: list[list[np.ndarray]], examples: Sequence[Tensor], is_own: bool = False
) -> None:
    """Keep PyTorch's outputs for the inputs of verification, and the example that those follow.

    Args:
        is_own: whether the example is the caller's; of a named model's floats only the shape is kept.
    """
    from safetensors.numpy import save

    tensors = {f"input_{i}.output_{j}": y for i, one in enumerate(outputs) for j, y in enumerate(one)}
    for k, example in enumerate(examples):
        array = example.detach().numpy()
        if example.is_floating_point() and not is_own:
            tensors[f"example_{k}.{array.dtype}"] = np.array(array.shape, dtype=np.int64)
        else:
            tensors[f"example_{k}.values"] = array
    # numpy.ascontiguousarray would make a vector of a scalar
    (folder / REFERENCE).write_bytes(save({name: np.array(value, order="C") for name, value in tensors.items()}))


def read_reference(artifact: Artifact) -> tuple[list[list[np.ndarray]], list[Tensor]]:
    """Return what `write_reference` kept: outputs for each input, and example inputs.

    Inputs of which only the shape was kept are zeros.
    """
    import torch

    path = artifact.path / REFERENCE
    tensors = read_safetensors(path, "reference", ADVICE)
    outputs: dict[int, dict[int, np.ndarray]] = {}
    examples: dict[int, Tensor] = {}
    for name, value in tensors.items():
        if output := _OUTPUT.fullmatch(name):
            outputs.setdefault(int(output[1]), {})[int(output[2])] = value
        elif example := _EXAMPLE.fullmatch(name):
            if example[2] == "values":
                examples[int(example[1])] = torch.from_numpy(value)
            else:
                examples[int(example[1])] = _zeros(path, name, value, example[2])
        else:
            raise Unreadable(f"{path} is no reference: it has a tensor {name[:80]!r}; {ADVICE}")
    return _in_order(path, outputs), _in_order(path, {0: examples})[0] if examples else []


def _zeros(path: Path, name: str, shape: np.ndarray, dtype: str) -> Tensor:
    """Return zeros of a shape that a file gives. Raises Unreadable where that is no shape, or a very large one."""
    import torch

    kind = getattr(torch, dtype)
    is_shape = shape.dtype == np.int64 and shape.ndim == 1 and len(shape) <= 8 and not (shape < 0).any()
    if not is_shape or math.prod(shape.tolist()) * kind.itemsize > GIBIBYTE:
        raise Unreadable(f"{path} is no reference: {name} is no shape of an input; {ADVICE}")
    return torch.zeros(shape.tolist(), dtype=kind)


def _in_order(path: Path, found: Mapping[int, Mapping[int, T]]) -> list[list[T]]:
    """Return numbered lists of numbered values. Raises Unreadable where a number is missing."""
    for numbers in (found, *found.values()):
        if sorted(numbers) != list(range(len(numbers))):
            raise Unreadable(f"{path} is damaged: a tensor is missing; {ADVICE}")
    return [[one[j] for j in sorted(one)] for _, one in sorted(found.items())]


def write_exact(folder: Path, outputs: list[list[np.ndarray]]) -> None:
    """Keep outputs in float64, where there are any."""
    from safetensors.numpy import save

    if outputs:
        tensors = {f"input_{i}.output_{j}": y for i, one in enumerate(outputs) for j, y in enumerate(one)}
        (folder / EXACT).write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def read_exact(artifact: Artifact) -> list[list[np.ndarray]]:
    """Return what `write_exact` kept; nothing where the precision is not fp32."""
    path = artifact.path / EXACT
    return _in_order(path, _numbered(path, read_safetensors(path, "reference", ADVICE))) if path.is_file() else []


def write_inputs(folder: Path, given: Sequence[Sequence[Tensor]]) -> None:
    """Keep inputs that do not follow from seeds: those of a calibration set that a file is judged by.

    Copies, because calls share the tensors that adversarial inputs leave alone, and safetensors takes none twice.
    """
    from safetensors.torch import save

    tensors = {
        f"input_{i}.{k}": value.contiguous().clone() for i, one in enumerate(given) for k, value in enumerate(one)
    }
    (folder / INPUTS).write_bytes(save(tensors))


def read_inputs(artifact: Artifact) -> list[list[Tensor]] | None:
    """Return what `write_inputs` kept; None where inputs follow from seeds."""
    path = artifact.path / INPUTS
    if not path.is_file():
        return None
    return _in_order(path, _numbered(path, read_safetensors_as_torch(path, "file of inputs", ADVICE)))


def _numbered(path: Path, tensors: Mapping[str, T]) -> dict[int, dict[int, T]]:
    """Return tensors by the numbers in their names, `input_0.1` or `input_0.output_1`. Raises Unreadable."""
    found: dict[int, dict[int, T]] = {}
    for name, value in tensors.items():
        numbers = _OUTPUT.fullmatch(name)
        if numbers is None:
            raise Unreadable(f"{path} is damaged: it has a tensor {name[:80]!r}; {ADVICE}")
        found.setdefault(int(numbers[1]), {})[int(numbers[2])] = value
    return found


def write_notes(folder: Path, package: str, notes: Mapping[str, Any]) -> None:
    """Keep what is known about a package and nobody needs who uses it, in the trace beside it.

    Args:
        package: its name; notes beside another one are none of its.
        notes: by key, what JSON has.
    """
    _write_trace(folder, {"package": package, "notes": dict(notes)})


def read_notes(package: Path) -> dict[str, Any]:
    """Return what `write_notes` kept beside a package; empty where it kept nothing, or what lies there is no trace."""
    file = package.parent / TRACE
    try:
        found = read_json(file, "trace", advice=ADVICE) if file.is_file() else {}
    except Unreadable:  # a file of somebody else's by that name
        return {}
    is_its = isinstance(found, dict) and found.get("package") == package.name
    return dict(found["notes"]) if is_its and isinstance(found.get("notes"), dict) else {}


def write_trace(folder: Path, trace: Mapping[str, tuple[float, float]]) -> None:
    """Keep what a target's `traced` says of every operator of the file; no file where there is nothing to keep."""
    if trace:
        file = folder / TRACE
        noted = read_json(file, "trace", advice=ADVICE) if file.is_file() else {}
        lines = {position: [f"{value:.9g}" for value in figures] for position, figures in trace.items()}  # also "inf"
        _write_trace(folder, {**noted, "operators": lines})


def _write_trace(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / TRACE).write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def read_trace(artifact: Artifact) -> dict[str, tuple[float, float]]:
    """Return what `write_trace` kept; empty where it kept nothing."""
    file = artifact.path / TRACE
    found = read_json(file, "trace", advice=ADVICE) if file.is_file() else {}
    try:
        lines = found.get("operators", {}) if found.keys() & {"package", "operators"} else found  # before: these alone
        return {position: (float(first), float(second)) for position, (first, second) in lines.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise Unreadable(f"{file} is no trace of operators; {ADVICE}") from error


def remove(file: Path) -> None:
    """Remove a file, or a package, which is a folder."""
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def staging(out: str | Path, name: str) -> Iterator[Path]:
    """A folder to build the artifact `out/name` in. Published by `publish`, removed on any other way out.

    Raises:
        OutputError: `out` cannot be written, or `out/name` is there and is not just an artifact.
    """
    out = Path(out)
    with removed_if_empty(out), _staged(out, name) as folder:
        try:
            yield folder
        except OSError as error:
            reason = _why_not_written(error, folder)
            if reason is None:
                raise
            raise OutputError(f"cannot write to {out}: {reason}; nothing was published") from error


@contextlib.contextmanager
def _staged(out: Path, name: str) -> Iterator[Path]:
    """A folder to build an artifact in, locked until it is dropped. Raises OutputError, as `staging` does."""
    made: list[tuple[Path, int | None]] = []
    try:
        try:
            _stage(out, name, made)
        except OSError as error:
            raise OutputError(
                f"cannot write to {out}: {error.strerror or error}; choose another folder with --out"
            ) from error
        yield made[-1][0]
    finally:
        for folder, handle in made:
            shutil.rmtree(folder, ignore_errors=True)
            if handle is not None:
                os.close(handle)


def _stage(out: Path, name: str, made: list[tuple[Path, int | None]]) -> None:
    """Add a new folder in `out`, and its lock, to those that were made."""
    tries = 10
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            with locked(out):  # no other run may take the new folder for a leftover before it has its lock
                _refuse_to_lose(out / name)
                _remove_leftovers(out)
                with held():
                    folder = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{name}.", suffix=".partial", dir=out))
                    made.append((folder, lock(folder)))
                folder.chmod(0o777 & ~_umask())
                return
        except FileNotFoundError:  # a run that failed has just removed `out`, which it had made
            tries -= 1
            if not tries:
                raise


def publish(folder: Path, out: str | Path, name: str) -> Path:
    """Make a staged folder the artifact `out/name`, in one step. What was there before is removed after it.

    Raises:
        OutputError: what is there has become something else than an artifact.
    """
    final = Path(out) / name
    umask = _umask()
    for file in folder.rglob("*"):
        if not file.is_symlink():  # libraries make some files for their owner alone
            file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        elif file.is_dir():
            sync_folder(file)
    sync_folder(folder)
    with locked(Path(out)):
        _refuse_to_lose(final)
        with put_in_place(final):
            if final.exists():
                _exchange(folder, final)
            else:
                folder.rename(final)
        sync_folder(final.parent)
    return final


def _refuse_to_lose(final: Path) -> None:
    """Raise OutputError where publishing would remove something that edgesmith did not write."""
    if not final.exists() and not final.is_symlink():
        return
    if final.is_symlink() or not final.is_dir():
        raise OutputError(f"{final} is in the way: it is not an artifact's folder; move it or choose --out")
    if not any(final.iterdir()):
        return
    try:
        changed = changed_files(read(final))
    except BadInput:
        raise OutputError(
            f"{final} is in the way: it is not an artifact of edgesmith's; move it or choose --out"
        ) from None
    if changed:
        raise OutputError(f"{final} is in the way: {changed[0]} since it was published; move it or choose --out")


def _why_not_written(error: OSError, folder: Path) -> str | None:
    """The system's words for an error that comes from writing to `folder`; None for one that comes from elsewhere."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):  # of copytree: many in one
        return str(error.args[0][0][2]).removeprefix("[Errno ").partition("] ")[2].partition(":")[0]
    if error.filename is not None and not Path(error.filename).is_relative_to(folder.parent):
        return None
    return error.strerror if error.errno is not None else None


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders: atomically on Linux and macOS."""
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(a), os.fsencode(b)
    if sys.platform == "darwin":
        done = library.renamex_np(first, second, 2) == 0  # RENAME_SWAP
    elif hasattr(library, "renameat2"):
        at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        done = library.renameat2(at_cwd, first, at_cwd, second, exchange) == 0
    else:
        done = False
    if not done:  # a file system without it (some network mounts): two renames, with a moment between them
        aside = a.with_suffix(".old")
        b.rename(aside)
        try:
            a.rename(b)
        except OSError:
            aside.rename(b)
            raise
        aside.rename(a)


def _remove_leftovers(out: Path) -> None:
    """Remove staging folders whose process is gone. Called with `out` locked."""
    for folder in out.glob(f"{_STAGING}*.partial"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        try:
            handle = lock(folder, wait=False)
        except (BlockingIOError, FileNotFoundError):
            continue  # its process lives, or has just removed it
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
