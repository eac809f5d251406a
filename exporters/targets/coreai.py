"""Core AI: an `.aimodel` for Apple's systems of 2026 and later, by coreai-torch, in Core AI's own composites where it
has them. Static shapes; fp16 is typed in the program, with float32 inputs and outputs.

Fused ops are inlined as PyTorch, in forms of their own where the reference would become something worse (`inlined` in
kernels/op.py): layer norms and group norms become composites, recurrences one loop. Core AI's runtime executes the
file here, on the CPU. How Apple's packages are spoken to is in `_coreai_adapter.py`, and nowhere else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.targets import _coreai_adapter as adapter
from edgesmith.exporters.targets.target import Arrays, NotHere, Request, Target, TargetFile
from edgesmith.exporters.usage import coreai

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.manifest import InterfaceRecord, Manifest, ValueRecord
    from edgesmith.exporters.streaming.step import Step
    from edgesmith.exporters.usage.facts import Facts
    from edgesmith.exporters.usage.source import Snippet


class CoreAi(Target):
    """Core AI, for Apple's systems of 2026 and later."""

    def require(self) -> None:
        """Raise BackendMissing unless Apple's packages are there in the versions that this target is made for."""
        super().require()
        adapter.require()

    def lower(self, program: Program, path: Path, request: Request) -> None:
        """Write the program as an `.aimodel`."""
        from edgesmith.exporters.graph.capture import exported, with_own_outputs
        from edgesmith.exporters.graph.long_numbers import refuse_long_numbers
        from edgesmith.exporters.graph.plain_types import with_plain_types
        from edgesmith.exporters.graph.sizes import refuse_unknown_sizes
        from edgesmith.exporters.graph.subgraphs import refuse_control_flow
        from edgesmith.exporters.targets._coreai_products import convolve_linears

        self.require()
        refuse_control_flow(program.module, "Core AI", takes=("cond", "while_loop"))
        refuse_unknown_sizes(program.module, "Core AI")
        refuse_long_numbers(program.module, program.inputs, "Core AI")
        program = with_own_outputs(convolve_linears(with_plain_types(program)))
        ready = exported(program, self.lowers_as)
        size = sum(value.nbytes for value in (*ready.state_dict.values(), *ready.tensor_constants.values()))
        converted, values = adapter.convert(ready, program.input_names, program.output_names)
        adapter.save(converted, path, size, values, _facts(request), request.licence)

    def open(self, path: Path) -> CoreAiFile:
        """Open an `.aimodel`."""
        return CoreAiFile(path, self.runtime)

    def snippets(self, facts: Facts, manifest: Manifest) -> tuple[Snippet, ...]:
        """Return programs for Core AI."""
        return coreai.snippets(facts)

    def cannot_run(self) -> str | None:
        """The runtime comes with coreai-core."""
        return adapter.missing()


class CoreAiFile(TargetFile):
    """An `.aimodel`, executed by Core AI's runtime on the CPU."""

    def check(self) -> None:
        """Check that the asset is whole and its program can be read."""
        adapter.check(self.path)

    def count_operators(self) -> dict[str, int]:
        """Return operators by type, those inside loops too, a composite as one, constants left out."""
        return dict(sorted(adapter.operators(self.path).items(), key=lambda item: (-item[1], item[0])))

    def interface(self) -> InterfaceRecord:
        """Return inputs and outputs, as the program declares them."""
        given, returned = adapter.interface(self.path)
        return {"inputs": [_record(*one) for one in given], "outputs": [_record(*one) for one in returned]}

    def run(self, calls: Sequence[Arrays]) -> list[list[np.ndarray]] | NotHere:
        """Execute in Core AI's runtime."""
        from edgesmith.exporters.outputs import as_compared

        reason = adapter.missing()
        if reason is not None:
            return NotHere(reason)
        with adapter.Session(self.path) as session:
            return [[as_compared(value) for value in session(given)] for given in calls]

    def intermediate(self, names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray]:
        """Return values inside the file: the metadata say which operator computes which of the program's values."""
        from edgesmith.exporters.outputs import as_compared

        with tempfile.TemporaryDirectory() as folder:
            talkative = Path(folder) / self.path.name
            returned = adapter.with_outputs(self.path, names, talkative)
            with adapter.Session(talkative) as session:
                values = dict(zip(session.outputs, session(inputs), strict=True))
        return {name: as_compared(values[name]) for name in returned}

    def open_step(self, threads: int = 1) -> Step | NotHere:
        """Open a step program in Core AI's runtime, which stays loaded until it is closed."""
        import numpy as np

        from edgesmith.exporters.streaming.step import Step

        reason = adapter.missing()
        if reason is not None:
            return NotHere(reason)
        session = adapter.Session(self.path)

        def call(values: Arrays) -> Arrays:
            return [value.astype(np.float32) for value in session(values)]

        return Step(call, close=session.close)


def _record(name: str, kind: str, shape: Sequence[int]) -> ValueRecord:
    return {"name": name, "type": kind, "shape": [*shape]}


def _facts(request: Request) -> dict[str, str]:
    """Return what the file says of itself."""
    from edgesmith._version import __version__

    facts = {
        "edgesmith.name": request.name,
        "edgesmith.version": __version__,
        "edgesmith.precision": request.precision.name,
    }
    if request.source:
        facts["edgesmith.source"] = request.source
    if request.image is not None:
        facts["edgesmith.input.layout"] = "NCHW, RGB, values in 0..1, then (value - mean) / std"
        facts["edgesmith.input.mean"] = json.dumps(request.image.mean)
        facts["edgesmith.input.std"] = json.dumps(request.image.std)
    if request.sequence is not None:
        facts["edgesmith.input.layout"] = request.sequence.layout
        facts["edgesmith.input.normalised"] = request.sequence.normalised
    if request.series is not None:
        facts["edgesmith.input.series"] = json.dumps(request.series.describe())
    if request.labels is not None:
        facts["edgesmith.labels"] = json.dumps(request.labels, ensure_ascii=False)
    return facts


TARGET = CoreAi(
    name="coreai",
    suffix=".aimodel",
    description="Core AI, for iPhone, iPad and Mac from iOS 27 and macOS 27 on",
    precisions=("fp32", "fp16"),
    options=frozenset({"labels", "streaming"}),
    packages=("coreai_torch",),  # which asks for the one coreai-core that it goes with
    extra="coreai",
    runtime=f"Core AI of coreai-core {adapter.TESTED['coreai-core']}, CPU",
    is_interpreter=True,
    # Not measured: the runtime here is an interpreter, whose times say nothing of a phone. These are Core ML's, which
    # are assumed too (see coreml.py): the devices are the same.
    costs=Costs(
        launch_us=2.4,
        gmac_s=650.0,
        stream_gb_s=50.0,
        depthwise_gmac_s=40.0,
        columns=1,
        loop_us=2.4,
        read_gb_s=50.0,
    ),
)
