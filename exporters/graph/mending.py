"""Mending of a model while it is captured: spellings that mean the same in eval mode, and that torch.export loses.

    x.data                  x.detach(): torch.export takes the data of a captured tensor for a constant without values
    F.gaussian_nll_loss     its formula, without the check that no variance is below zero
    cov, corrcoef           their formulas, without the checks that weights are not negative and that rows are left
    nonzero, where          of a single number, as a tuple: its tensor of one; torch's second trace finds no tuple there
    masked_select           an index by the mask; of shapes that are not one torch takes the input's size for the most
    max_norm                of embeddings: rows are shortened in a copy of the table; PyTorch writes to the table
    nn.Transformer*         a mask is added as it is; PyTorch looks whether it is causal, for a faster kernel
    torch.distributions     without the checks of their arguments, which Python leaves out as well, under -O

and silence: torch prints the graph that it had, and logs, where a capture fails; the sentence says what matters.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]  # a descriptor of torch's


class _Mending(TorchFunctionMode):
    """Calls other functions of the same meaning for those that torch.export loses."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == _DATA:
            return args[0].detach()
        if func is F.gaussian_nll_loss:
            return _gaussian_nll_loss(*args, **(kwargs or {}))
        if func in (torch.cov, Tensor.cov):
            return _cov(*args, **(kwargs or {}))
        if func in (torch.corrcoef, Tensor.corrcoef):
            return _corrcoef(*args, **(kwargs or {}))
        if func in (torch.nonzero, Tensor.nonzero, torch.where):
            single = _number_with_places(func, args, kwargs or {})
            if single is not None:
                return torch.nonzero(single.unsqueeze(0), as_tuple=True)
        if func in (torch.masked_select, Tensor.masked_select):
            return _masked_select(*args, **(kwargs or {}))
        if func in (F.embedding, F.embedding_bag) and (kwargs or {}).get("max_norm") is not None:
            return func(*_with_short_rows(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _number_with_places(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the single number whose places are asked for as a tuple; None where that is not so."""
    given = args[0] if args else kwargs.get("input", kwargs.get("condition"))
    is_tuple = len(args) + len(kwargs) == 1 if func is torch.where else kwargs.get("as_tuple", False)
    return given if is_tuple and isinstance(given, Tensor) and given.dim() == 0 else None


def _masked_select(input: Tensor, mask: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
    """Return the numbers at which a mask holds, [N], of shapes that are made one."""
    shape = torch.broadcast_shapes(input.shape, mask.shape)  # type: ignore[no-untyped-call]  # torch's
    x, chosen = (one if one.shape == shape else one.expand(shape) for one in (input, mask))
    return x.reshape([-1])[chosen.reshape([-1])]


def _with_short_rows(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a look-up without `max_norm`, of a table whose rows are no longer than that."""
    given = inspect.signature(func).bind(*args, **kwargs)
    given.apply_defaults()
    table, longest, order = given.arguments["weight"], given.arguments["max_norm"], given.arguments["norm_type"]
    length = torch.linalg.vector_norm(table, order, dim=1, keepdim=True)
    given.arguments["weight"] = torch.where(length > longest, table * (longest / (length + 1e-7)), table)
    given.arguments["max_norm"] = None
    return given.args


def _gaussian_nll_loss(
    x: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """Return (log(v) + (x - t)^2 / v) / 2, of variances of at least eps."""
    var = var * torch.ones_like(x) if not isinstance(var, Tensor) else var
    if var.dim() == x.dim() - 1 and var.shape == x.shape[:-1]:  # one of each row
        var = var.unsqueeze(-1)
    var = var.clamp(min=eps)
    loss = 0.5 * (torch.log(var) + (x - target) ** 2 / var) + (0.5 * math.log(2 * math.pi) if full else 0.0)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def _cov(
    input: Tensor,  # noqa: A002 - PyTorch's name
    *,
    correction: int = 1,
    fweights: Tensor | None = None,
    aweights: Tensor | None = None,
) -> Tensor:
    """Return the covariances of rows, [N, T] to [N, N]: of columns that count `fweights` times, and by `aweights`."""
    x = input.reshape([1, -1]) if input.dim() < 2 else input
    weights = [one for one in (fweights, aweights) if one is not None]
    if not weights:
        centred = x - x.mean(1, keepdim=True)
        return _divided(centred @ centred.mT.conj(), max(x.shape[1] - correction, 0))
    weight: Tensor = math.prod(weights)  # type: ignore[assignment]  # of tensors
    total = weight.sum()
    centred = x - (x * weight).sum(1, keepdim=True) / total
    lost = correction if aweights is None else correction * (weight * aweights).sum() / total
    return _divided(centred @ (centred * weight).mT.conj(), (total - lost).clamp(min=0))


def _divided(products: Tensor, by: Tensor | int) -> Tensor:
    return torch.true_divide(products, torch.as_tensor(by, dtype=products.real.dtype)).squeeze()


def _corrcoef(input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
    """Return the correlations of rows, [N, T] to [N, N]."""
    c = _cov(input)
    if c.dim() == 0:
        return c / c
    deviation = c.diagonal().real.sqrt()
    scaled = c / deviation.unsqueeze(1) / deviation.unsqueeze(0)
    return scaled if scaled.is_complex() else scaled.clamp(-1, 1)


@contextlib.contextmanager
def mended() -> Iterator[None]:
    """Mend a model's code while it is captured."""
    with _Mending(), _unchecked_distributions(), _masks_as_they_are():
        yield


@contextlib.contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Let distributions take their arguments as they are: to check them is to branch on their values."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextlib.contextmanager
def _masks_as_they_are() -> Iterator[None]:
    """Let transformers take their masks as they are, and not for causal by their values."""
    before = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = _is_said_to_be_causal
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = before


def _is_said_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep back what torch prints and logs of a capture that fails."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
