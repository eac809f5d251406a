"""Mending of a model while it is captured: spellings that mean the same in eval mode, and that torch.export loses.

    x.data      x.detach(): torch.export takes the data of a captured tensor for a constant without values

and silence: torch prints the graph that it had, and logs, where a capture fails; the sentence says what matters.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]  # a descriptor of torch's


class _Mending(TorchFunctionMode):
    """Calls other functions of the same meaning for those that torch.export loses."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == _DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def mended() -> Iterator[None]:
    """Mend a model's code while it is captured."""
    with _Mending():
        yield


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep back what torch prints and logs of a capture that fails."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
