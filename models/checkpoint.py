"""Weights from files: read without running code from them, fitted to a model, or refused with what does not fit.

Files: `.safetensors`, and PyTorch's `.pth`/`.pt` as a bare state dict or in an envelope, which may carry training state
beside it: the one that the model's facts name, else `model`, `state_dict` or `model_ema`, the first that is there.
Prefixes `module.` and `backbone.` are dropped.

The files are opened by readers/: a pickle by PyTorch's restricted unpickler, after its archive's checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgesmith.errors import CheckpointError, Unreadable
from edgesmith.models import dense
from edgesmith.models.registry import ModelSpec, build, family
from edgesmith.readers.pickles import read_pickle
from edgesmith.readers.tensors import read_safetensors_as_torch
from edgesmith.readers.weights import check_weights

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

    @property
    def version(self) -> str:
        """The weights' digest in short, which is the only version that a model has."""
        return f"weights {self.sha256[:12]}"


def load(spec: ModelSpec, path: str | Path | None, head: str = "", **asked: Any) -> tuple[nn.Module, Weights]:
    """A model with weights from a file, or with random ones from a fixed seed, in eval mode.

    Args:
        path: a checkpoint, or None for random weights; a family's `settle` then brings their statistics into a range
            in which the model does something, and its `NOTES` say what else was drawn.
        head: one of `registry.HEADS` on its dense features; empty for the model's own.
        asked: what the caller wants of the builder: `features` of an image model, `frames` of a sequence model.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or of another model.
    """
    if path is None:
        with torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            model = dense.build(spec, head, **asked) if head else build(spec, **asked)
            settle = getattr(family(spec), "settle", None)
            if settle is not None:
                settle(model)
            if isinstance(model, dense.Segmenter):
                dense.settle(model)
        notes = getattr(family(spec), "NOTES", ())
        return model, Weights(f"random (seed {RANDOM_SEED})", fingerprint(model.state_dict()), notes=notes)
    path = Path(path)
    if head:
        return _load_dense(spec, path, head)
    state, dropped = _own_keys(read(path, spec.envelope), spec.own_prefix)
    options, state, notes = family(spec).from_checkpoint(state, **asked)
    if dropped:
        notes = [*notes, f"{len(dropped)} tensors outside the backbone were left out, first {dropped[0]}"]
    model = build(spec, **{**asked, **options})
    _fit(model, state, f"{path.name} is not a checkpoint of {spec.name}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return model, Weights(f"file {path.name}", fingerprint(model.state_dict()), digest, tuple(notes))


def _load_dense(spec: ModelSpec, path: Path, head: str) -> tuple[nn.Module, Weights]:
    """Load a backbone and its head from a checkpoint of mmsegmentation."""
    state, blame = read(path, spec.envelope), f"{path.name} is not a checkpoint of {spec.name} with a head of {head}"
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    of_backbone, of_head, state, notes = dense.from_checkpoint(spec, head, state, blame)
    model = dense.build(spec, head, of_head, **of_backbone)
    _fit(model, state, blame)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return model, Weights(f"file {path.name}", fingerprint(model.state_dict()), digest, tuple(notes))


def read(path: str | Path, envelope: str = "") -> dict[str, Tensor]:
    """The state dict in a file; of several, the one under `envelope`. Raises CheckpointError."""
    path = Path(path)
    check_weights(path)
    try:
        if path.suffix == ".safetensors":
            state = read_safetensors_as_torch(path, "safetensors file", "download it again")
        else:
            state = _open_envelope(read_pickle(path), path, envelope)
    except Unreadable as error:
        raise CheckpointError(str(error)) from error
    if not state:
        raise CheckpointError(f"{path.name} holds no tensors; a model's state dict was expected")
    return state


def load_into(module: nn.Module, path: str | Path, key: str | None = None, strict: bool = True) -> Weights:
    """Load a file's weights into a module that is none of the registry's.

    Args:
        key: of the state dict in the file, dots lead further in; default: the file itself or a usual envelope.
        strict: refuse a file that lacks a weight of the module, or has another; else load what fits by name and shape.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, has no such key, or is of another model.
    """
    path = Path(path)
    state = read(path) if key is None else _read_key(path, key)
    wanted = module.state_dict()
    state, notes = _without_prefixes(state, wanted)
    blame = f"{path.name} is not a checkpoint of {type(module).__name__}"
    if not strict:
        fitting = {name: x for name, x in state.items() if name in wanted and wanted[name].shape == x.shape}
        if not fitting:
            _check_names_and_shapes(wanted, state, blame)
        missing = [name for name in wanted if name not in fitting]
        left = [name for name in state if name not in fitting]
        notes += [f"{len(missing)} weights are not in the file, first {missing[0]}"] if missing else []
        notes += [f"{len(left)} weights of the file were left out, first {left[0]}"] if left else []
        state = {**wanted, **fitting}
    _fit(module, state, blame)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights(f"file {path.name}", fingerprint(module.state_dict()), digest, tuple(notes))


def _read_key(path: Path, key: str) -> dict[str, Tensor]:
    """Return the state dict under a key of a file."""
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path.name} holds tensors alone and has no keys; leave --key out")
    check_weights(path)
    try:
        content = read_pickle(path)
    except Unreadable as error:
        raise CheckpointError(str(error)) from error
    for part in key.split("."):
        known = [str(one) for one in content] if isinstance(content, dict) else []
        if part not in known:
            nearest = get_close_matches(part, known, n=3, cutoff=0.4) or known[:5]
            has = f"the nearest: {', '.join(nearest)}" if nearest else "it has no keys there"
            raise CheckpointError(f"{path.name} has no key {part!r}; {has}")
        content = content[part]
    if not isinstance(content, dict) or not any(isinstance(one, Tensor) for one in content.values()):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__} under {key!r}, not a state dict")
    return {str(name): one for name, one in content.items() if isinstance(one, Tensor)}


def _without_prefixes(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors without what all names begin with, where more of them are the module's own then."""
    notes: list[str] = []
    while True:
        first = next(iter(state)).partition(".")[0]
        shorter = {name.partition(".")[2]: one for name, one in state.items() if name.startswith(f"{first}.")}
        gain = sum(name in wanted for name in shorter) - sum(name in wanted for name in state)
        if len(shorter) < len(state) or "" in shorter or (gain <= 0 and first not in _AROUND):
            return state, notes
        state = shorter
        notes.append(f"{first}. was dropped from the names")


_AROUND = ("module", "_orig_mod")
"""Names that data-parallel training and compilers put before every other."""


def _own_keys(state: dict[str, Tensor], own_prefix: str = "") -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by the model's own names, and the names of those that belong to something around it.

    `module.` goes where every key has it (data-parallel training); where any key starts with `backbone.`, those are the
    model and the others (`neck.`, `decode_head.` ...) are not, unless the model's own keys begin so (`own_prefix`).
    """
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if own_prefix == "backbone.":
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


def _open_envelope(content: Any, path: Path, envelope: str) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state"), dict):  # composer's, around an envelope
        content = content["state"]
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
        alike = [key for key in unexpected if state[key].shape == wanted[missing[0]].shape]
        nearest = get_close_matches(missing[0], alike, n=1, cutoff=0.3)
        near = f" (the nearest in the file: {nearest[0]} {list(state[nearest[0]].shape)})" if nearest else ""
        parts.append(f"{len(missing)} missing, first {missing[0]} {list(wanted[missing[0]].shape)}{near}")
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
