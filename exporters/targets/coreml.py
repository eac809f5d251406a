"""Core ML: an ML Program in an `.mlpackage`, by coremltools, with the fused ops' own lowerings, made canonical.

    _coreml_convert.py        a program becomes a package
    _coreml_translations.py   operators that coremltools lacks, or translates worse
    _coreml_package.py        the package's description, and the same bytes for the same model
    _coreml_file.py           a package, opened

fp16 by default, then with Float16 inputs; outputs are Float32, integers Int32. `image_input` takes an image, whose
pixels the program itself divides by 255 and takes the mean off, in its own precision; each channel's standard deviation
goes into the first convolution. `labels` make it a classifier. From iOS18 on Core ML keeps the states of a step program
itself, and a package may hold the whole sequence's function beside the step.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BadInput
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.targets.target import Request, Target
from edgesmith.exporters.usage import coreml

if TYPE_CHECKING:
    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.manifest import Manifest
    from edgesmith.exporters.targets._coreml_file import CoreMlFile
    from edgesmith.exporters.usage.facts import Facts
    from edgesmith.exporters.usage.source import Snippet

_KEEPS_STATES = 18
"""The first iOS whose Core ML has states."""

_RESERVED = frozenset(
    (
        *("any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "state"),
        *("bf16", "fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)
"""Words of a program's text. Source: coremltools 9, preprocess.py, which puts `_workaround` behind them."""


class CoreMl(Target):
    """Core ML packages, run here by the evaluator of `mil/`."""

    def lower(self, program: Program, path: Path, request: Request) -> None:
        """Write the program as an `.mlpackage`; beside a sequence program it is the function `step`."""
        from edgesmith.exporters.targets import _coreml_convert

        _coreml_convert.lower(program, path, request, self.deployment_target(request.deployment_target))

    def open(self, path: Path) -> CoreMlFile:
        """Return a package, opened."""
        from edgesmith.exporters.targets._coreml_file import CoreMlFile

        return CoreMlFile(path, self.runtime)

    def own_translations(self) -> frozenset[str]:
        """Return what `_coreml_translations.py` translates."""
        from edgesmith.exporters.targets._coreml_translations import OWN_TRANSLATIONS

        return OWN_TRANSLATIONS

    def snippets(self, facts: Facts, manifest: Manifest) -> tuple[Snippet, ...]:
        """Return programs for Core ML."""
        return coreml.snippets(facts)

    def cannot_run(self) -> str | None:
        """Return how torch is had, in which the evaluator computes, where it is not here."""
        if importlib.util.find_spec("torch") is None:
            return 'torch is not installed: pip install "edgesmith[export]"'
        return None

    def cannot_time(self) -> str | None:
        """Return why Core ML itself, which alone is timed, is not on this machine, or None."""
        if platform.system() == "Darwin":
            return None
        return f"Core ML is part of macOS, and this is {platform.system()}: time it on a Mac, --device ssh://user@mac"

    def keeps_states(self, deployment_target: str | None) -> bool:
        """Return whether Core ML keeps the states, as it does from iOS18 on. Before, they are inputs and outputs."""
        wanted = deployment_target or self.default_deployment_target or ""
        return int(wanted.removeprefix("iOS")) >= _KEEPS_STATES

    def deployment_target(self, wanted: str | None) -> Any:
        """Return coremltools' constant for `iOS16` or later. Raises BadInput, which lists them."""
        from edgesmith.exporters.mil.program import quiet

        wanted = wanted or self.default_deployment_target
        if wanted not in self.deployment_targets:
            raise BadInput(f"unknown deployment target {wanted!r}. There are {', '.join(self.deployment_targets)}")
        with quiet():
            import coremltools as ct
        return ct.target[wanted]


TARGET = CoreMl(
    name="coreml",
    suffix=".mlpackage",
    description="Core ML ML Program, for iPhone, iPad and Mac",
    precisions=("fp16", "fp32", "mixed"),
    packages=("coremltools",),
    extra="coreml",
    runtime="edgesmith's evaluator",
    timed_by="coremltools",
    compute_units=("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"),
    unthreaded="Core ML starts as many as it likes",
    # Not measured: no Apple device here. A split of channels is a view of a planar tensor, and 2.4 us is CAS-ViT XS's
    # published 0.85 ms on an iPhone over its 350 operators, an upper limit for starting one; 650 is the same time over
    # its 554 million multiply-accumulates, a lower limit. A loop leaves the Neural Engine: each of its operators counts
    # as a launch. The other rates are assumed, of the order of what a phone can do.
    costs=Costs(
        launch_us=2.4,
        gmac_s=650.0,
        stream_gb_s=50.0,
        depthwise_gmac_s=40.0,
        columns=1,
        loop_us=2.4,
        read_gb_s=50.0,
    ),
    options=frozenset({"labels", "image_input", "deployment_target", "streaming", "with_sequence"}),
    types_programs=False,
    is_interpreter=True,
    shows_operators=True,
    device_models={"ane": "the Neural Engine"},
    classifies=True,
    deployment_targets=("iOS16", "iOS17", "iOS18", "iOS26"),
    default_deployment_target="iOS17",
    smallest_rank=1,
    reserved_names=_RESERVED,
)
