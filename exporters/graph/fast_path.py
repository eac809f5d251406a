"""The fast path of PyTorch's transformers: what it computes beside the layers, and what is done about it.

In evaluation, `nn.TransformerEncoder` puts the rows of a padded batch into a nested tensor, leaves out what is padded,
and has zeros there at the end; where every row is padded the output is shorter. torch.export does not take it. So what
a file is held to is computed without it, and where that is another thing, the user is told.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from edgesmith.errors import EdgesmithWarning

FAST = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
"""Modules that have a fast path with other values."""

CLOSE = 1e-3
"""Of the largest value: the fast path rounds elsewhere."""


class FastPath(EdgesmithWarning):
    """PyTorch itself has other values than the layers that a model is made of."""


@contextlib.contextmanager
def fast_path(is_enabled: bool) -> Iterator[None]:
    """Let PyTorch's transformers take their fast path, or not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(is_enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def warn_of_fast_path(model: nn.Module, outputs: Sequence[Tensor], run: Callable[[], Sequence[Tensor]]) -> None:
    """Warn where a model with transformers has other outputs by default.

    Args:
        outputs: the model's, without the fast path.
        run: returns those with it.
    """
    if not any(isinstance(module, FAST) for module in model.modules()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested tensors, in their own words
        try:
            fast = run()
        except Exception:  # nested tensors know few operators, and the model's own code may not expect them
            fast = []
    if len(fast) == len(outputs) and all(map(_is_close, fast, outputs)):
        return
    warnings.warn(
        "PyTorch's fast path for transformers has zeros where this model's input is padded, or leaves those places out;"
        " the file, and what it is verified against, have there what the layers compute"
        " (torch.backends.mha.set_fastpath_enabled(False)); do not read padded places",
        FastPath,
        stacklevel=3,
    )


def _is_close(fast: Tensor, output: Tensor) -> bool:
    if fast.is_nested or fast.shape != output.shape:
        return False
    largest = float(output.abs().max()) if output.numel() and output.is_floating_point() else 0.0
    return torch.allclose(fast, output, rtol=0.0, atol=CLOSE * largest, equal_nan=True)
