"""Weights from files: read without running code from them, fitted to a model, or refused with what does not fit.

Files: `.safetensors`, and PyTorch's `.pth`/`.pt` as a bare state dict or in an envelope, which may carry training state
beside it: the one that the model's facts name, else `model`, `state_dict` or `model_ema`, the first that is there.
Prefixes `module.` and `backbone.` are dropped.

A pickle is read by PyTorch's restricted unpickler, which builds tensors and plain containers only. `argparse.Namespace`
and numpy scalars, which training scripts leave beside the weights, are let through: they hold data and run nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgesmith.errors import CheckpointError
from edgesmith.models.registry import ModelSpec, build, family

RANDOM_SEED = 0
_ENVELOPES = ("model", "state_dict", "model_ema")


@dataclass(frozen=True)
class Weights:
    """The origin of a model's weights.

    Attributes:
        origin: `file NAME` or `random (seed 0)`.
        sha256: of all tensors, by name, type, shape and bytes; the same weights in another file format agree.
        file_sha256: of the file as it was given.
        notes: what the loader decided, a sentence each.
    """

    origin: str
    sha256: str
    file_sha256: str | None = None
    notes: tuple[str, ...] = ()


def load(spec: ModelSpec, path: str | Path | None, **asked: Any) -> tuple[nn.Module, Weights]:
    """A model with weights from a file, or with random ones from a fixed seed, in eval mode.

    Args:
        path: a checkpoint, or None for random weights; a family's `settle` then brings their statistics into a range
            in which the model does something, and its `NOTES` say what else was drawn.
        asked: what the caller wants of the builder: `features` of an image model, `frames` of a sequence model.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or of another model.
    """
    if path is None:
        with torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            model = build(spec, **asked)
            settle = getattr(family(spec), "settle", None)
            if settle is not None:
                settle(model)
        notes = getattr(family(spec), "NOTES", ())
        return model, Weights(f"random (seed {RANDOM_SEED})", fingerprint(model.state_dict()), notes=notes)
    path = Path(path)
    reads_heads = getattr(family(spec), "READS_HEADS", False)
    state, dropped = _own_keys(read(path, spec.envelope), reads_heads)
    options, state, notes = family(spec).from_checkpoint(state, **asked)
    if dropped:
        notes = [*notes, f"{len(dropped)} tensors outside the backbone were left out, first {dropped[0]}"]
    model = build(spec, **{**asked, **options})
    _fit(model, state, f"{path.name} is not a checkpoint of {spec.name}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return model, Weights(f"file {path.name}", fingerprint(model.state_dict()), digest, tuple(notes))


def read(path: str | Path, envelope: str = "") -> dict[str, Tensor]:
    """The state dict in a file; of several, the one under `envelope`. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}; give a .pth, .pt or .safetensors file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    is_safe = path.suffix == ".safetensors"
    state = _read_safetensors(path) if is_safe else _open_envelope(_read_pickle(path), path, envelope)
    if not state:
        raise CheckpointError(f"{path.name} holds no tensors; a model's state dict was expected")
    return state


def _own_keys(state: dict[str, Tensor], reads_heads: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by the model's own names, and the names of those that belong to something around it.

    `module.` goes where every key has it (data-parallel training); where any key starts with `backbone.`, those are the
    model and the others (`neck.`, `decode_head.` ...) are not, unless the family reads heads: then it sees all of them.
    """
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if reads_heads:
        return state, []
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if not backbone:
        return state, []
    return backbone, [key for key in state if not key.startswith("backbone.")]


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 over a state dict: name, type, shape and bytes of every tensor, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is damaged or no safetensors file ({error}); download it again") from error


def _read_pickle(path: Path) -> Any:
    inert: list[Any] = [argparse.Namespace, np.dtype, np.ndarray]
    inert += [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    scalar = np.float64(0).__reduce__()[0]  # the function that pickles of numpy scalars name
    inert += [scalar, (scalar, "numpy.core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"(?:GLOBAL|global:?|class|type) ['\"`]?([\w.]+\.[\w.]+)", str(error))
        unsafe = "weights_only" in str(error).lower() or "weights only" in str(error).lower()
        if unsafe and found and "zip" not in str(error).lower():
            raise CheckpointError(
                f"{path.name} is refused: its pickle asks for {found[1]}, which could run code."
                " Ask its author for a plain state dict or a .safetensors file"
            ) from error
        raise CheckpointError(
            f"{path.name} is truncated, or no PyTorch checkpoint that holds only tensors;"
            " download it again, or ask for .safetensors"
        ) from error


def _open_envelope(content: Any, path: Path, envelope: str) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for key in (envelope, *_ENVELOPES):
            inner = content.get(key)
            if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
                content = inner
                break
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} holds a {type(content).__name__}, not a state dict (a dict of names to tensors)"
        )
    strangers = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers:
        raise CheckpointError(
            f"{path.name} holds no state dict: {strangers[0]!r} is a {type(content[strangers[0]]).__name__}, not a"
            f" tensor. Looked for one at the top and under {', '.join(map(repr, _ENVELOPES))}"
        )
    return dict(content)


def _fit(model: nn.Module, state: Mapping[str, Tensor], blame: str) -> None:
    """Load a state dict into a model. Raises CheckpointError, which begins with `blame`, for what does not fit."""
    wanted = model.state_dict()
    _check_names_and_shapes(wanted, state, blame)
    for key, value in state.items():
        _check_values(key, value, wanted[key].dtype, blame)
    model.load_state_dict(dict(state))


def _check_names_and_shapes(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], blame: str) -> None:
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    mismatched = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    parts = []
    if mismatched:
        key = mismatched[0]
        shapes = f"{list(state[key].shape)}, wanted {list(wanted[key].shape)}"
        parts.append(f"{len(mismatched)} of another shape, first {key}: {shapes}")
    if missing:
        parts.append(f"{len(missing)} missing, first {missing[0]} {list(wanted[missing[0]].shape)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected, first {unexpected[0]} {list(state[unexpected[0]].shape)}")
    if parts:
        raise CheckpointError(f"{blame}: {'; '.join(parts)}")


def _check_values(key: str, value: Tensor, kind: torch.dtype, blame: str) -> None:
    """Raise CheckpointError where a tensor is not of plain, finite numbers that `kind` can hold."""
    plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
    same_kind = value.is_complex() == kind.is_complex and value.is_floating_point() == kind.is_floating_point
    if not plain or not same_kind:
        raise CheckpointError(
            f"{blame}: {key} is {value.dtype} ({value.layout}), wanted {kind};"
            " give the weights as plain floating-point tensors"
        )
    file = blame.split(" is ")[0]
    loaded = value.to(kind)
    if not torch.isfinite(loaded).all():
        raise CheckpointError(f"{file} is damaged: {key} holds values that are not finite as {kind}")
    if key.endswith("running_var") and bool((loaded < 0).any()):
        raise CheckpointError(f"{file} is damaged: {key} holds negative variances")
