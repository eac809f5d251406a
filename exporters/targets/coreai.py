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

from edgesmith.errors import Unsupported
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.streaming.step import Step
from edgesmith.exporters.targets import NotHere, Request
from edgesmith.exporters.targets import _coreai_adapter as adapter
from edgesmith.exporters.targets._plain import diagnose, keeps_states, layers, other_runtimes, traced, wide_operators

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from edgesmith.exporters.graph.capture import Program

__all__ = ["diagnose", "keeps_states", "layers", "other_runtimes", "traced", "wide_operators"]  # nothing of its own

name = "coreai"
suffix = ".aimodel"
description = "Core AI, for iPhone, iPad and Mac from iOS 27 and macOS 27 on"
precisions = ("fp32", "fp16")
options: frozenset[str] = frozenset({"labels", "streaming"})
packages = ("coreai_torch",)  # which asks for the one coreai-core that it goes with
extra = "coreai"
runtime = f"Core AI of coreai-core {adapter.TESTED['coreai-core']}, CPU"
is_interpreter = True
# Not measured: the runtime here is an interpreter, whose times say nothing of a phone. These are Core ML's, which are
# assumed too (see coreml.py): the devices are the same.
costs = Costs(
    launch_us=2.4,
    gmac_s=650.0,
    stream_gb_s=50.0,
    depthwise_gmac_s=40.0,
    columns=1,
    loop_us=2.4,
    read_gb_s=50.0,
)
dynamic_batch = False


def require() -> None:
    """Raise BackendMissing unless Apple's packages are there in the versions that this target is made for."""
    adapter.require()


def lower(program: Program, path: Path, request: Request) -> None:
    """Write the program as an `.aimodel`."""
    require()
    _refuse_what_core_ai_lacks(program)
    ready = _typed(program, request.precision)
    size = sum(value.nbytes for value in (*ready.state_dict.values(), *ready.tensor_constants.values()))
    converted, values = adapter.convert(ready, program.input_names, program.output_names)
    adapter.save(converted, path, size, values, _facts(request), request.licence)


def check(path: Path) -> None:
    """The asset is whole and its program can be read."""
    adapter.check(path)


def count_operators(path: Path) -> dict[str, int]:
    """Operators by type, those inside loops too, a composite as one, constants left out."""
    return dict(sorted(adapter.operators(path).items(), key=lambda item: (-item[1], item[0])))


def cannot_run() -> str | None:
    """The runtime comes with coreai-core."""
    return adapter.missing()


def run(path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]] | NotHere:
    """Execute in Core AI's runtime on the CPU."""
    import numpy as np

    reason = cannot_run()
    if reason is not None:
        return NotHere(reason)
    with adapter.Session(path) as session:
        return [[value.astype(np.float32) for value in session(given)] for given in inputs]


def intermediate(path: Path, names: Sequence[str], inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Values inside the file: the metadata say which operator computes which of the program's values."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        talkative = Path(folder) / path.name
        returned = adapter.with_outputs(path, names, talkative)
        with adapter.Session(talkative) as session:
            values = dict(zip(session.outputs, session(inputs), strict=True))
    return {name: values[name].astype(np.float32) for name in returned}


def open_step(path: Path, threads: int = 1) -> Step | NotHere:
    """A step program in Core AI's runtime, which stays loaded until it is closed."""
    import numpy as np

    reason = cannot_run()
    if reason is not None:
        return NotHere(reason)
    session = adapter.Session(path)

    def call(values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [value.astype(np.float32) for value in session(values)]

    return Step(call, close=session.close)


def _typed(program: Program, precision: str) -> ExportedProgram:
    """The program as torch exports it, in the given precision."""
    from edgesmith.exporters.graph.capture import exported
    from edgesmith.exporters.precision.half import half

    if precision != "fp16":
        return exported(program, name)
    try:
        return exported(half(program), name)
    except Unsupported as error:
        raise Unsupported(
            "this model cannot be made fp16, most likely because it sets types itself; export it with --precision fp32"
        ) from error


def _refuse_what_core_ai_lacks(program: Program) -> None:
    """What the converter would turn into something else without a word, or fails at."""
    import torch

    (returned,) = program.module.graph.output_node().args
    values = torch.utils._pytree.tree_leaves(returned)
    for output_name, value in zip(program.output_names, values, strict=True):
        if value.op != "call_function" or values.count(value) > 1:
            raise Unsupported(
                f"Core AI cannot return {output_name} ({value.name}): it is an input, a constant, or returned twice;"
                " return each computed value once"
            )


def _facts(request: Request) -> dict[str, str]:
    """What the file says of itself."""
    from edgesmith import __version__

    facts = {
        "edgesmith.name": request.name,
        "edgesmith.version": __version__,
        "edgesmith.precision": request.precision,
    }
    if request.source:
        facts["edgesmith.source"] = request.source
    if request.image is not None:
        facts["edgesmith.input.layout"] = "NCHW, RGB, values in 0..1, then (value - mean) / std"
        facts["edgesmith.input.mean"] = json.dumps(request.image.mean)
        facts["edgesmith.input.std"] = json.dumps(request.image.std)
    if request.sequence is not None:
        facts["edgesmith.input.layout"] = "batch, frames, features"
        facts["edgesmith.input.normalised"] = request.sequence.normalised
    if request.labels is not None:
        facts["edgesmith.labels"] = json.dumps(request.labels, ensure_ascii=False)
    return facts
