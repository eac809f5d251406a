"""Cases from PyTorch's own database of operators, torch.testing's OpInfo: a handful for each operator.

Of an operator's sample inputs those are taken that differ in their arguments, then those that differ in their ranks;
the same ones every time. Tensors are the file's inputs, all else is fixed. `EXCLUDED` says what is no operator of
inference here, and why.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgesmith.exporters.verification.cases import Case

SAMPLES = 3
"""Sample inputs of an operator that become cases."""

LOOKED_AT = 60
"""Sample inputs among which these are chosen."""

Maker = Callable[[], list[Case]]
"""Makes the cases of an operator: tensors are drawn when they are asked for."""

LARGEST = 20_000
"""Numbers that the tensors of a case have at most."""

EXCLUDED = {
    r"cauchy|exponential|geometric|log_normal|normal|uniform|bernoulli|multinomial|rand.*|.*dropout.*|nn\.functional\."
    r"(rrelu|fractional_max_pool.*|multi_head_attention_forward)|svd_lowrank|pca_lowrank": "random",
    r"arange|linspace|logspace|zeros|ones|full|empty.*|eye|scalar_tensor|new_.*|.*_like|signal\..*|"
    r"broadcast_shapes|combinations": "makes tensors of no values",
    r"item|allclose|equal|is_.*": "returns no tensor",
    r"resize_.*|zero_|fill|as_strided.*|set_|_segment_reduce": "changes or reinterprets memory",
    r"native_batch_norm|_native_batch_norm_legit|_batch_norm_with_update": "changes its running statistics",
    r"jiterator.*|.*backward|.*_grad|native_dropout.*|bmm\.triton.*|hash_tensor": "no operator of inference",
    r"sparse\..*|to_sparse|.*_unsafe_masked.*|masked\..*|.*linear_cross_entropy.*": "prototype, or of sparse tensors",
    r"cdouble|cfloat|chalf|complex|view_as_complex|polar": "of complex numbers by itself",
    r"bfloat16": "of a type that no file has here",
    r"histogram|histogramdd|geqrf|ormqr|linalg\.(ldl|householder).*": "a step of an algorithm of linear algebra",
}
"""Patterns of names, each with the reason why it is left out."""

_MIXES = re.compile(r"fft\.|stft|istft")
_ACTIVATIONS = frozenset(
    f"nn.functional.{name}"
    for name in ("gelu", "elu", "celu", "selu", "mish", "silu", "softplus", "tanhshrink", "logsigmoid", "hardswish")
) | {"sigmoid", "tanh", "special.expit", "special.ndtr"}
_LEFT_OUT = re.compile("|".join(f"(?:{pattern})" for pattern in EXCLUDED))


def opinfo_operators() -> dict[str, Maker]:
    """Return OpInfo's operators with float inputs by name, each with what makes its cases."""
    from torch.testing._internal.common_methods_invocations import op_db

    found: dict[str, Maker] = {}
    for info in op_db:
        name = f"{info.name}.{info.variant_test_name}" if info.variant_test_name else info.name
        is_left_out = _LEFT_OUT.fullmatch(info.name) or _LEFT_OUT.fullmatch(name)
        if torch.float32 in info.dtypes and not is_left_out:
            found[name] = lambda info=info, name=name: _cases(name, info)  # type: ignore[misc]  # bound at once
    return found


def _cases(name: str, info: Any) -> list[Case]:
    """Return an operator's cases; samples that PyTorch itself does not run, or that return no tensor, are left out."""
    torch.manual_seed(0)
    chosen: dict[str, Case] = {}
    spare: list[tuple[str, Case]] = []
    for k, sample in enumerate(info.sample_inputs("cpu", torch.float32, requires_grad=False)):
        if k >= LOOKED_AT or len(chosen) >= SAMPLES:
            break
        case = _case(name, f"sample {k}", info.op, sample)
        if case is None:
            continue
        signature = _arguments(sample)
        if signature in chosen:
            spare.append((_ranks(case), case))
        else:
            chosen[signature] = case
    found = list(chosen.values())
    seen = {_ranks(case) for case in found}
    for ranks, case in spare:
        if len(found) < SAMPLES and ranks not in seen:
            found.append(case)
            seen.add(ranks)
    return found


def _case(name: str, label: str, function: Any, sample: Any) -> Case | None:
    leaves, spec = tree_flatten(((sample.input, *sample.args), sample.kwargs))
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = tuple(leaves[k].detach().clone() for k in places)
    if not tensors or any(x.is_complex() or x.is_sparse or x.layout != torch.strided for x in tensors):
        return None
    if sum(x.numel() for x in tensors) > LARGEST or any(x.numel() == 0 for x in tensors):
        return None

    def call(*given: Tensor) -> Any:
        filled = list(leaves)
        for k, x in zip(places, given, strict=True):
            filled[k] = x
        args, kwargs = tree_unflatten(filled, spec)
        return function(*args, **kwargs)

    is_image = re.search(r"interpolate|upsample|grid_sample", name) is not None
    mixes = is_image or _MIXES.match(name) is not None
    ulps, activation = (64.0 if is_image else 16.0), name in _ACTIVATIONS
    case = Case(name, label, call, (tensors,), ulps=ulps, mixes=mixes, activation=activation)
    return case if _runs(case) else None


def _runs(case: Case) -> bool:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(case.call([x.clone() for x in case.values[0]]))
    except Exception:  # a sample that is there to fail, or that this build of torch lacks
        return False


def _arguments(sample: Any) -> str:
    """Return what a sample fixes beside its tensors, tensors by their type and rank."""

    def spell(value: Any) -> Any:
        return f"{value.dtype} {value.dim()}" if isinstance(value, Tensor) else value

    leaves, _ = tree_flatten((sample.args, sample.kwargs))
    return repr([*map(spell, leaves), sorted(sample.kwargs)])


def _ranks(case: Case) -> str:
    return repr([(x.dim(), 1 in x.shape) for x in case.values[0]])


def all_operators() -> Iterator[tuple[str, Maker]]:
    """Return the operators in the order of their names."""
    yield from sorted(opinfo_operators().items())
