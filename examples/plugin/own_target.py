"""A target of one's own: PyTorch's own `.pt2`, written by torch.export and executed by PyTorch.

A target says how a program becomes a file (`lower`), and how the file is checked, looked into and run (`TargetFile`);
export, verification, reports and the lint's tables are made of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import Unsupported
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.streaming.step import Step
from edgesmith.exporters.targets.target import Arrays, NotHere, Request, Target, TargetFile

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.exporters.graph.capture import Program


class Pt2File(TargetFile):
    """A saved program."""

    @cached_property
    def program(self) -> Any:
        """The program in the file. Raises Unsupported where the file is none."""
        import torch  # heavy: only what runs imports it

        try:
            return torch.export.load(self.path)
        except Exception as error:
            raise Unsupported(f"{self.path.name} is no .pt2 of torch.export; export it again") from error

    def check(self) -> None:
        """Load the file."""
        assert self.program

    def count_operators(self) -> dict[str, int]:
        """Return how often each ATen operator occurs."""
        calls = (str(node.target) for node in self.program.graph.nodes if node.op == "call_function")
        return dict(Counter(calls).most_common())

    def run(self, calls: Sequence[Arrays]) -> list[list[np.ndarray]] | NotHere:
        """Run in PyTorch."""
        return [self._call(given) for given in calls]

    def open_step(self, threads: int = 1) -> Step | NotHere:
        """Open a step program, of an export with --streaming, in PyTorch."""
        return Step(self._call)

    def _call(self, given: Arrays) -> list[np.ndarray]:
        import torch
        from torch.utils._pytree import tree_leaves

        with torch.no_grad():
            outputs = self.program.module()(*(torch.from_numpy(one) for one in given))
        return [one.numpy() for one in tree_leaves(outputs)]


class Pt2(Target):
    """What torch.export saves."""

    def lower(self, program: Program, path: Path, request: Request) -> None:
        """Write the program."""
        import torch

        from edgesmith.exporters.graph.capture import exported

        torch.export.save(exported(program, self.lowers_as), path)

    def open(self, path: Path) -> Pt2File:
        """Open a file."""
        return Pt2File(path, self.runtime)

    def cannot_run(self) -> str | None:
        """PyTorch is always here."""
        return None


TARGET = Pt2(
    name="pt2",
    suffix=".pt2",
    description="torch.export's own format, for PyTorch",
    precisions=("fp32",),
    packages=("torch",),
    runtime="PyTorch",
    options=frozenset({"streaming"}),
    costs=Costs(launch_us=5.0),  # assumed; a target that is timed has a figure of an experiment
)
