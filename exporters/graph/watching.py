"""Modes that see each operator as PyTorch runs it, also in a model with branches and loops of PyTorch's own.

    class Counts(Watching):
        def watch(self, func, args, kwargs):
            self.count += 1
            return func(*args, **kwargs)

`torch.cond` is an operator of two graphs, one of which runs: its operators are seen. Loops run as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no annotations
    """A mode that `watch`es each operator. PyTorch refuses a branch under a mode that does not say it takes one."""

    supports_higher_order_operators = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)  # type: ignore[no-untyped-call]  # as above

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above

    @abstractmethod
    def watch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operator, and return what it is to have returned."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.higher_order.cond:
            condition, if_true, if_false, given = args
            with self:
                return (if_true if bool(condition) else if_false)(*given)
        if isinstance(func, HigherOrderOperator):
            return func(*args, **(kwargs or {}))
        return self.watch(func, args, kwargs or {})
