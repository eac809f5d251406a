"""Captures of the registry's models that tests share: of one model, with the same weights and inputs, one is enough.

Capturing is most of what an export takes, and tests export the same models for other targets, precisions and checks. A
program that was captured is never changed by what follows, so a later export of the same worker is given the same one,
and the same one rewritten where it is rewritten for the same costs. A model is known by all that it is made of, so one
that a test has changed is another. Whoever changes a shared program is told so at the next use.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.rewrites.rewrite import RewriteReport

ROOM = 768 << 20
"""Bytes of weights that a worker keeps; the programs that were used longest ago make room."""

_TENSORS = ("_parameters", "_buffers", "_modules")


def fingerprint(model: nn.Module, inputs: Sequence[Tensor], *also: object) -> str | None:
    """Return a digest of a model of the registry with its inputs; None for any other."""
    if not type(model).__module__.startswith("edgesmith.models."):
        return None
    digest = hashlib.sha1(usedforsecurity=False)
    for name, module in model.named_modules():
        settings = sorted((key, repr(value)) for key, value in vars(module).items() if key not in _TENSORS)
        digest.update(repr((name, type(module), settings)).encode())
    for name, tensor in [
        *model.named_parameters(),
        *model.named_buffers(),
        *((str(i), x) for i, x in enumerate(inputs)),
    ]:
        digest.update(repr((name, tensor.dtype, tensor.shape, tensor.stride())).encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    digest.update(repr(also).encode())
    return digest.hexdigest()


def size_of(program: Program) -> int:
    """Bytes of a program's weights."""
    return sum(t.numel() * t.element_size() for t in (*program.module.parameters(), *program.module.buffers()))


def state_of(program: Program) -> tuple[object, ...]:
    """Return what shows that somebody has changed a program."""
    nodes = [
        (node.op, node.name, str(node.target), repr(node.args), repr(node.kwargs))
        for node in program.module.graph.nodes
    ]
    tensors = (*program.module.parameters(), *program.module.buffers())
    return hash(tuple(nodes)), tuple((id(tensor), tensor._version) for tensor in tensors)


@dataclass
class Kept:
    """A program that is shared, as it was; with `reports` one that was rewritten."""

    program: Program
    state: tuple[object, ...]
    reports: tuple[RewriteReport, ...] = ()

    def use(self) -> Program:
        """Return the program. Fails where somebody has changed it."""
        assert state_of(self.program) == self.state, (
            "a test has changed a captured program, which others share: copy it"
        )
        return self.program


class Captures:
    """The programs of one worker.

    Attributes:
        hits: how often one was given again.
        shares: whether they are given, and kept.
    """

    def __init__(self, capture: Callable[..., Program], rewrite: Callable[..., Any]) -> None:
        self._capture, self._rewrite = capture, rewrite
        self._kept: OrderedDict[object, Kept] = OrderedDict()
        self.hits = 0
        self.shares = True

    def _find(self, key: object) -> Kept | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        return self._kept[key]

    def _keep(self, key: object, kept: Kept) -> None:
        self._kept[key] = kept
        while len(self._kept) > 1 and sum(size_of(one.program) for one in self._kept.values()) > ROOM:
            self._kept.popitem(last=False)

    def capture(self, model: nn.Module, inputs: Sequence[Tensor], *names: Any, **options: Any) -> Program:
        """Return what `capture` does."""
        key = fingerprint(model, inputs, names, options) if self.shares else None
        if key is not None and (kept := self._find(key)) is not None:
            return kept.use()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            program = self._capture(model, inputs, *names, **options)
        for one in said:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if key is not None and not said:
            self._keep(key, Kept(program, state_of(program)))
        return program

    def rewrite(
        self, program: Program, costs: Costs, *rewrites: Any, **options: Any
    ) -> tuple[Program, list[RewriteReport]]:
        """Return what `rewrite` does, of a program that is shared; of others it does it."""
        shared = next((key for key, kept in self._kept.items() if kept.program is program), None)
        key = (shared, repr(costs), repr(options))
        if shared is None or rewrites or not self.shares:
            return self._rewrite(program, costs, *rewrites, **options)
        if (kept := self._find(key)) is not None:
            return kept.use(), list(kept.reports)
        rewritten, reports = self._rewrite(program, costs, **options)
        self._keep(key, Kept(rewritten, state_of(rewritten), tuple(reports)))
        return rewritten, reports
