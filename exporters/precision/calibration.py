"""Inputs to calibrate int8 on, or to verify on: a folder of images, an `.npz`, or, with a warning, random numbers.

    folder    every file in it and below, in the order of their paths: decoded by Pillow, as RGB of 8 bits, resized so
              that CROP of it covers the input, cropped in the middle, normalised as the model wants it
    .npz      one array for each input by its name, [N, ...]: N samples, each of the input's shape without its batch. An
              input's batch is its first axis, 1 for a scalar; where inputs differ in it, N does in the same proportion
    random    to calibrate on alone: drawn like the inputs of verification, with other seeds

Samples fill batches in order; what is left over is not used. Every HELD_OUT-th call, COUNT of inputs.py at
most, is kept out of calibration: int8 is judged on those. Of a large set LIMIT calls are used, evenly spread.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgesmith.errors import BackendMissing, BadInput, EdgesmithWarning, Unreadable
from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.inputs import COUNT, NATURAL, Call, make
from edgesmith.models.registry import ImageInput
from edgesmith.readers.budget import read_bytes
from edgesmith.readers.tensors import LARGEST, NPY, read_npz

if TYPE_CHECKING:
    from PIL import Image

CROP = 0.875
INPUTS_FILE = "inputs.safetensors"
"""What an artifact keeps the inputs in that were held out."""

BITS_PER_SAMPLE = 258
"""A TIFF's tag."""

HELD_OUT = 4
LIMIT = 128
RANDOM = 8
"""Random inputs: more of them say nothing new."""

WARNING = (
    "int8 was calibrated on random inputs: its ranges fit noise, and its accuracy on real data is unknown;"
    " give real ones with --calibration FOLDER_OR_NPZ"
)


class RandomCalibration(EdgesmithWarning):
    """Nobody gave data to calibrate on."""


@dataclass(frozen=True)
class Calibration:
    """The data that int8 is made and judged on.

    Attributes:
        inputs: to calibrate on, one list of tensors for each call.
        held_out: to judge on; None for the inputs of verification as in every precision.
        described: for the manifest.
    """

    inputs: list[list[Tensor]]
    held_out: list[list[Tensor]] | None
    described: dict[str, Any]


def for_program(
    path: str | Path | None, program: Program, image: ImageInput | None, is_named: bool = True
) -> Calibration:
    """Return what a program is calibrated and judged on; a warning where that is random.

    Raises:
        BadInput: a file that cannot be used, or too few of them.
    """
    if path is None:
        warnings.warn(WARNING, RandomCalibration, stacklevel=2)
    source = None if path is None else Path(path)
    return load(source, program.input_names, program.inputs, image, program.dynamic_batch, is_named)


def load(
    path: Path | None,
    names: Sequence[str],
    examples: Sequence[Tensor],
    image: ImageInput | None,
    dynamic_batch: bool,
    is_named: bool = True,
) -> Calibration:
    """Inputs like the examples from a folder or an `.npz`, or random ones without a path.

    Args:
        names: of the inputs.
        examples: [B, ...] each.
        image: how an image becomes the one input, for models that read images.
        is_named: whether the model is of the registry, whose example says nothing about its data.

    Raises:
        BadInput: a file that cannot be used, or too few of them.
    """
    if path is None:
        kind = "seeded" if is_named else "drawn"
        drawn = [make(Call(kind, seed), examples, None, dynamic_batch) for seed in range(COUNT, COUNT + RANDOM)]
        return Calibration(
            drawn,
            None,
            {
                "source": "random",
                "calls": RANDOM,
                "held_out": NATURAL,
                "seeds": f"{COUNT} to {COUNT + RANDOM - 1}",
                "warning": WARNING,
            },
        )
    read = _read_samples(Source("--calibration", path, calls=2), names, examples, image)
    return _split(*read)


def read_given(
    path: Path, names: Sequence[str], examples: Sequence[Tensor], image: ImageInput | None
) -> tuple[list[list[Tensor]], dict[str, Any]]:
    """Return the caller's own data to verify on, COUNT calls at most, evenly spread, and what they are in words.

    Raises:
        BadInput: a file that cannot be used, or too few of them.
    """
    given, facts, digest = _read_samples(Source("--inputs", path, calls=1), names, examples, image)
    chosen = [given[i * len(given) // COUNT] for i in range(COUNT)] if len(given) > COUNT else given
    return chosen, {**facts, "calls": len(chosen), "sha256": digest}


@dataclass(frozen=True)
class Source:
    """A file or folder with samples.

    Attributes:
        option: that it was given by, for sentences.
        calls: that it has to fill at least.
    """

    option: str
    path: Path
    calls: int


Samples = tuple[list[list[Tensor]], dict[str, Any], str]
"""One list of tensors for each call, what they are, and a digest."""


def _read_samples(
    source: Source, names: Sequence[str], examples: Sequence[Tensor], image: ImageInput | None
) -> Samples:
    if source.path.is_dir():
        return _from_folder(source, examples, image)
    return _from_npz(source, names, examples)


def _from_folder(source: Source, examples: Sequence[Tensor], image: ImageInput | None) -> Samples:
    path = source.path
    if image is None:
        raise BadInput(f"{source.option} {path} is a folder of images, and this model reads none; give an .npz")
    files = sorted(
        (file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path)),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    batch = examples[0].shape[0]
    calls = _calls(source, len(files), batch, "images")
    used = [file for i in calls for file in files[i * batch : (i + 1) * batch]]
    digest = hashlib.sha256()
    samples = []
    for file in used:
        content = _read(source, file)
        digest.update(f"{file.relative_to(path).as_posix()}\n".encode() + hashlib.sha256(content).digest())
        samples.append(_pixels(source, file, content, image, (examples[0].shape[2], examples[0].shape[3])))
    given = [[torch.from_numpy(np.stack(samples[i : i + batch]))] for i in range(0, len(samples), batch)]
    facts = {
        "source": "images",
        "files": len(files),
        "preprocessing": f"resized to {1 / CROP:.3g} of the input's size, cropped in the middle, normalised",
    }
    return given, facts, digest.hexdigest()


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _read(source: Source, file: Path) -> bytes:
    try:
        return read_bytes(file, "image" if source.path.is_dir() else ".npz", LARGEST)
    except Unreadable as error:
        raise BadInput(f"{source.option}: {error}; remove it or give another set") from error


def _pixels(source: Source, file: Path, content: bytes, image: ImageInput, size: tuple[int, int]) -> np.ndarray:
    """An image as the model reads it, [3, H, W] float32."""
    try:
        from PIL import Image
    except ImportError as error:
        raise BackendMissing("reading images needs pillow, which is not installed: pip install pillow") from error
    height, width = size
    try:
        with Image.open(io.BytesIO(content)) as opened:
            rgb = _shades(source, opened, file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(
            f"{source.option}: {file} is no image that Pillow can read; remove it or give another set"
        ) from error
    scale = max(width / CROP / rgb.width, height / CROP / rgb.height)
    left, top = (rgb.width - width / scale) / 2, (rgb.height - height / scale) / 2
    middle = (left, top, left + width / scale, top + height / scale)  # or a long thin image would fill the memory
    cropped = rgb.resize((width, height), Image.Resampling.BICUBIC, box=middle)
    values = np.asarray(cropped, dtype=np.float32) / 255
    mean, std = (np.asarray(one, dtype=np.float32) for one in (image.mean, image.std))
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))


def _shades(source: Source, opened: Image.Image, file: Path) -> Image.Image:
    """An image that Pillow can make RGB of. It cuts wider numbers off at 255, and what they mean is known of some only.

    Pillow drops an image's transparency, as training pipelines do: what is transparent has the colour that is stored.
    """
    from PIL import Image

    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM")):  # both have 16 bits
        bits = getattr(opened, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]  # a TIFF's may be 12
        numbers = np.asarray(opened).astype(np.float32) * (255 / (2**bits - 1))
        return Image.fromarray(numbers.round().astype(np.uint8))
    if opened.mode in ("I", "F"):
        raise BadInput(
            f"{source.option}: {file} must have 8 or 16 bits a channel, got "
            f"{'floating point' if opened.mode == 'F' else '32-bit integers'}, which have no white; convert it or"
            " remove it"
        )
    return opened


def _from_npz(source: Source, names: Sequence[str], examples: Sequence[Tensor]) -> Samples:
    content = _read(source, source.path)
    arrays = _arrays(source, content, names)
    chosen = [_checked(source, name, array, e) for name, array, e in zip(names, arrays, examples, strict=True)]
    sizes = [len(array) for array in chosen]
    batches = [example.shape[0] if example.dim() else 1 for example in examples]
    if len({Fraction(size, batch) for size, batch in zip(sizes, batches, strict=True)}) > 1:
        counts = ", ".join(
            f"{name} {size}" + (f" in batches of {batch}" if len(set(batches)) > 1 else "")
            for name, size, batch in zip(names, sizes, batches, strict=True)
        )
        what = "samples" if len(set(batches)) == 1 else "batches"
        raise BadInput(
            f"{source.option}: every array of {source.path} must have as many {what} as the others, got {counts}"
        )
    widest = max(range(len(names)), key=batches.__getitem__)
    calls = _calls(source, sizes[widest], batches[widest], "samples")

    def tensor(k: int, i: int) -> Tensor:
        taken = chosen[k][i * batches[k] : (i + 1) * batches[k]] if examples[k].dim() else chosen[k][i]
        return _as_tensor(taken, examples[k])

    given = [[tensor(k, i) for k in range(len(names))] for i in calls]
    return given, {"source": "npz", "samples": sizes[widest]}, hashlib.sha256(content).hexdigest()


def _arrays(source: Source, content: bytes, names: Sequence[str]) -> list[np.ndarray]:
    """Each input's array, as it was written. Other arrays of the file are not read."""
    path = source.path
    if content.startswith(NPY):
        raise BadInput(
            f"{source.option}: {path} is a single array (.npy), wanted an .npz with an array for each input; write it"
            f" with numpy.savez({path.name!r}, {names[0]}=array)"
        )
    try:
        found, arrays = read_npz(path, names, ".npz of plain arrays", "write it with numpy.savez")
    except Unreadable as error:
        raise BadInput(f"{source.option}: {error}") from error
    if missing := [name for name in names if name not in arrays]:
        raise BadInput(
            f"{source.option}: {path} has {', '.join(found) or 'no arrays'}, and the model's inputs are"
            f" {', '.join(names)}; {', '.join(missing)} is missing"
        )
    return [arrays[name] for name in names]


def _checked(source: Source, name: str, array: np.ndarray, example: Tensor) -> np.ndarray:
    """An array whose samples are what an input takes."""
    path = source.path
    wanted = list(example.shape[1:])
    if not array.ndim or list(array.shape[1:]) != wanted:
        shape = ", ".join(["N", *map(str, wanted)])
        raise BadInput(f"{source.option}: {name} in {path} must be [{shape}], got {list(array.shape)}")
    if example.dim() and not example.shape[0]:
        raise BadInput(
            f"{source.option}: the input {name} has a batch of 0, which no samples fill; leave the option out"
        )
    kind = "f" if example.is_floating_point() else "b" if example.dtype == torch.bool else "iu"
    if array.dtype.kind not in kind:
        words = {"f": "floating point", "b": "booleans", "iu": "integers"}[kind]
        raise BadInput(f"{source.option}: {name} in {path} must be {words}, got {array.dtype}")
    if kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{source.option}: {name} in {path} has values that are not finite; remove those samples")
    if array.size and kind != "b":
        _check_range(source, name, array, example)
    return array


def _check_range(source: Source, name: str, array: np.ndarray, example: Tensor) -> None:
    """Refuse values that an input's type cannot hold."""
    limits = torch.finfo(example.dtype) if example.is_floating_point() else torch.iinfo(example.dtype)
    for value in (array.min(), array.max()):
        if not limits.min <= value.item() <= limits.max:
            raise BadInput(
                f"{source.option}: {name} in {source.path} has {value!s}, and {_dtype(example)} ends at"
                f" {limits.max if value > 0 else limits.min}; remove those samples"
            )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _as_tensor(array: np.ndarray, example: Tensor) -> Tensor:
    """An array as an input's type has it. PyTorch reads this machine's order of bytes, and at most 64 bits."""
    dtype = np.dtype(np.float64) if array.dtype.kind == "f" and array.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype, order="C")).to(example.dtype)


def _calls(source: Source, count: int, batch: int, what: str) -> list[int]:
    """Which batches are used. Raises BadInput for fewer than the source has to fill."""
    calls = count // batch
    if calls < source.calls:
        use = (
            f"one batch of {batch} to calibrate on and one to judge by" if source.calls > 1 else f"one batch of {batch}"
        )
        raise BadInput(
            f"{source.option}: {source.path} holds {count} {what}; wanted {source.calls * batch} at least, {use}"
        )
    every = max(1.0, calls / LIMIT)
    return [int(i * every) for i in range(min(calls, LIMIT))]


def _split(given: list[list[Tensor]], facts: dict[str, Any], digest: str) -> Calibration:
    """Keep every HELD_OUT-th call out, the last one where there are fewer."""
    every = min(HELD_OUT, len(given))
    held = list(range(every - 1, len(given), every))
    if len(held) > COUNT:
        held = held[:: len(held) // COUNT][:COUNT]
    out = set(held)
    rest = [one for i, one in enumerate(given) if i not in out]
    described = {**facts, "calls": len(rest), "held_out": len(held), "sha256": digest}
    return Calibration(rest, [given[i] for i in held], described)
