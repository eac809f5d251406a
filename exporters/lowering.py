"""Lowering a typed program into the artifact's folder, with what the file says beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import Unsupported
from edgesmith.exporters.artifact import remove
from edgesmith.exporters.judge import Judge
from edgesmith.exporters.options import ExportOptions
from edgesmith.exporters.precision.exact_modules import FRONT_END
from edgesmith.exporters.precision.policy import INPUTS
from edgesmith.exporters.precision.task import Calls, Typed, TypingTask
from edgesmith.exporters.products import Product
from edgesmith.exporters.targets.target import NotHere, Request, TargetFile

if TYPE_CHECKING:
    import numpy as np


class Lowering:
    """Lowers one product for a target, into one file, which it opens.

    Typing may have to lower too: where a converter types the program, only its file shows what has to stay fp32. So the
    last file is kept, and lowering the same once more is lowering nothing.

    Attributes:
        request: what the last file was written with.
    """

    def __init__(self, options: ExportOptions, folder: Path, product: Product, version: str = "") -> None:
        self._target, self._product = options.backend, product
        self._takes_sound = options.sound is not None
        self._path = folder / f"{options.artifact_name}{options.backend.delivery(options.profile).suffix}"
        self.request = Request(
            name=options.artifact_name,
            precision=options.arithmetic,
            image=options.image,
            sequence=options.sound or options.sequence,
            series=options.series,
            streaming=product.streaming,
            sequence_program=product.sequence_program,
            labels=None if options.labels is None else tuple(options.labels),
            segments=options.segments,
            image_input=options.image_input,
            deployment_target=options.system,
            profile=options.profile,
            licence=options.spec.licence if options.spec else "",
            source=options.spec.source if options.spec else "",
            version=version,
        )
        self._last: tuple[Typed, TargetFile] | None = None

    def __call__(self, typed: Typed) -> TargetFile:
        """Write a typed program and open the file.

        Raises:
            Unsupported: an operator that the format or its converter refuses.
        """
        kept = typed.keep_fp32 or {}
        if self._last is not None:
            before, file = self._last
            if before.program is typed.program and (before.keep_fp32 or {}) == kept:
                return file
            remove(self._path)
        self.request = replace(self.request, keep_fp32=kept)
        self._lower(typed)
        file = self._target.open(self._path)
        file.check()
        self._last = typed, file
        return file

    def _lower(self, typed: Typed) -> None:
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

        try:
            self._target.lower(typed.program, self._path, self.request)
        except GuardOnDataDependentSymNode as error:
            raise Unsupported(
                f"a size or an index of this model depends on the values of tensors, which target {self._target.name}"
                " cannot express; take a fixed size and mask what is beyond it, or choose another target"
            ) from error

    def task(self, judge: Judge) -> TypingTask:
        """Return what the product's program is typed for."""
        program, limits = self._product.lowered, judge.of_file.precision.limits()

        def lossy_operators(kept: Mapping[str, str]) -> Mapping[str, str]:
            file = self(Typed(program, kept))
            return file.lossy_operators(judge.evidence.calls[:INPUTS], limits.snr_db)

        def run_file(typed: Typed, calls: Calls) -> dict[str, list[list[np.ndarray]]]:
            file = self(typed)
            given = [[x.numpy() for x in call] for call in calls]
            answers = {file.runtime: file.run(given)}
            answers |= {name: run_there(given) for name, run_there in file.other_runtimes().items()}
            return {name: outputs for name, outputs in answers.items() if not isinstance(outputs, NotHere)}

        def operators_in(modules: Sequence[str]) -> Mapping[str, str]:
            return self(Typed(program)).operators_in(modules)

        return TypingTask(
            inputs=judge.evidence.inputs[:INPUTS],
            calibration=judge.calibration,
            thresholds=limits,
            is_step=self._product.streaming is not None,
            types_programs=self._target.types_programs,
            finds_islands=self._target.finds_islands,
            largest_int8_weight=self._target.largest_int8_weight,
            int8_is_dense=self._target.int8_is_dense,
            int8_joins=self._target.int8_joins,
            lossy_operators=lossy_operators,
            run_file=run_file,
            other_classes=judge.of_file.other_classes(),
            operators_in=operators_in,
            fp32_module=FRONT_END if self._takes_sound else "",
        )
