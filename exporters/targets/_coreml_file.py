"""A Core ML package, opened: its program is read once, and evaluated by `mil/`; Core ML itself runs on a Mac only."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.graph.capture import to_arrays
from edgesmith.exporters.manifest import InterfaceRecord, ValueRecord
from edgesmith.exporters.mil import mixed, placement
from edgesmith.exporters.mil.evaluate import Evaluator
from edgesmith.exporters.mil.functions import shared_bytes
from edgesmith.exporters.mil.legalize import legalizations_of
from edgesmith.exporters.mil.program import Constant, Feature, Interface, MlProgram, Operation, TensorType, load
from edgesmith.exporters.mil.report import Cost, Report, compare
from edgesmith.exporters.outputs import as_compared
from edgesmith.exporters.streaming.step import Step
from edgesmith.exporters.targets.target import Arrays, NotHere, Run, TargetFile
from edgesmith.readers.documents import read_json


class CoreMlFile(TargetFile):
    """A package. Each of its functions has one evaluator, which keeps the weights that it has decoded."""

    def __init__(self, path: Path, runtime: str) -> None:
        super().__init__(path, runtime)
        self._evaluators: dict[str, Evaluator] = {}

    @cached_property
    def program(self) -> MlProgram:
        """The package's program. Raises BadInput and Unsupported as `mil.program.load`."""
        return load(self.path)

    @cached_property
    def labels(self) -> list[str]:
        """A classifier's class names, in the order of its scores; none for other models."""
        for operation in self._operations():
            if operation.type == "classify":
                classes = operation.inputs["classes"]
                assert isinstance(classes, Constant)
                return list(classes.read())
        return []

    @property
    def largest_rank(self) -> int:
        """The highest rank of any value that an operator other than a constant makes."""
        types = [one.type for operation in self._operations() for one in operation.outputs]
        return max((len(one.shape or ()) for one in types if isinstance(one, TensorType)), default=0)

    def check(self) -> None:
        """Raise Unsupported where the package is incomplete or its program cannot be read."""
        try:
            _ = self.program
        except BadInput as error:
            raise Unsupported(str(error)) from error

    def count_operators(self) -> dict[str, int]:
        """Return the operators of all functions by type, those inside loops too, constants left out."""
        counts = Counter(operation.type for operation in self._operations())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def legalizations(self) -> list[dict[str, str]]:
        """Return what the lowering changed for the Neural Engine: rule, operator's name, change in words."""
        return [asdict(one) for one in legalizations_of(self.program)]

    def interface(self) -> InterfaceRecord:
        """Return inputs and outputs of the default function, as the package describes them."""
        found = self.program.interfaces[self.program.function().name]
        return {"inputs": [_record(one) for one in found.inputs], "outputs": [_record(one) for one in found.outputs]}

    def shared_bytes(self) -> int:
        """Return the bytes that the package's functions save by sharing weights."""
        return shared_bytes(self.program)

    def run(self, calls: Sequence[Arrays]) -> list[list[np.ndarray]] | NotHere:
        """Evaluate the program with torch; see mil/evaluate.py."""
        evaluator = self._evaluator(calls[0])
        return [self._outputs(evaluator.run(_feeds(evaluator, given))) for given in calls]

    def run_as(self, device: str, calls: Sequence[Arrays]) -> list[list[np.ndarray]]:
        """Evaluate the program with a device's documented departures; see mil/engine_model.py."""
        evaluator = Evaluator(self.program, self._evaluator(calls[0]).function.name, device=device)
        return [self._outputs(evaluator.run(_feeds(evaluator, given))) for given in calls]

    def open_step(self, threads: int = 1) -> Step | NotHere:
        """Return the default function in the evaluator, with states of its own."""
        evaluator = self._evaluator()
        states = evaluator.make_states()

        def call(values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
            return self._outputs(evaluator.run(_feeds(evaluator, values), states))

        def forget() -> None:
            states.update(evaluator.make_states())

        return Step(call, forget)

    def other_runtimes(self) -> dict[str, Run]:
        """Return Apple's own, on a Mac."""
        return {"Core ML": self._predict} if platform.system() == "Darwin" else {}

    def intermediate(self, names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray]:
        """Return values inside the program.

        coremltools calls most of them as the graph does, with a suffix in half precision.
        """
        evaluator = self._evaluator(inputs)
        wanted = {f"{name}{suffix}": name for name in names for suffix in ("", "_cast_fp16")}
        found: dict[str, np.ndarray] = {}

        def watch(operation: Operation, results: tuple[Any, ...]) -> None:
            for variable, value in zip(operation.outputs, results, strict=True):
                if variable.name in wanted and isinstance(value, torch.Tensor):
                    found[wanted[variable.name]] = value.float().numpy()

        evaluator.run(_feeds(evaluator, inputs), watch=watch)
        return found

    def trace(self, inputs: Arrays) -> dict[str, tuple[float, float]]:
        """Return two figures of every operator with a float result, of a loop's in its last iteration."""
        evaluator = self._evaluator(inputs)
        found: dict[str, tuple[float, float]] = {}

        def watch(operation: Operation, results: tuple[Any, ...]) -> None:
            for variable, value in zip(operation.outputs, results, strict=True):
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                    flat = value.double().flatten()
                    weighted = flat @ torch.arange(flat.numel(), dtype=torch.float64).cos() / flat.numel() ** 0.5
                    name = operation.site if len(results) == 1 else f"{operation.site}, {variable.name}"
                    found[name] = (float(flat.square().mean().sqrt()), float(weighted))

        evaluator.run(_feeds(evaluator, inputs), watch=watch)
        return found

    def lossy_operators(self, calls: Sequence[Arrays], snr_db: float) -> dict[str, str]:
        """Return what leaves the range of half precision or loses most of the SNR; see mil/mixed.py."""
        evaluator = self._evaluator()
        return mixed.lossy_operators(self.program, [_feeds(evaluator, given) for given in calls], snr_db)

    def operators_in(self, modules: Sequence[str]) -> dict[str, str]:
        """Return the operators of some modules by coremltools' names, each with its module."""
        found = {mixed.name_before_casts(one): one.source or "" for one in self._operations() if one.type != "cast"}
        return {name: source for name, source in found.items() if source in set(modules)}

    def diagnose(self, inputs: Arrays) -> str | None:
        """Name the first operator that leaves the range of half precision, or else the first that loses 20 dB."""
        found = self._compared([inputs])
        if (cost := found.first_overflow) is not None:
            return f"{cost.met.site}, which makes {cost.exact.peak:.3g} where half precision ends at 65504"
        if (cost := found.first_loss) is not None:
            return f"{cost.met.site}, which loses {cost.loss_db:.1f} dB to its precision"
        return None

    def layers(self, calls: Sequence[Arrays]) -> list[dict[str, Any]]:
        """Return every operator's range, and its error against an evaluation in fp32, or in fp64 for one of fp32.

        On a Mac also the `device` that Core ML plans for it, and its `cost`, a share of the whole time.
        """
        function = self._evaluator(calls[0]).function.name
        plan = [] if placement.cannot_plan() else placement.plan(self.path, function)
        planned = {one.output: {"device": one.device, "cost": one.cost} for one in plan}
        return [
            _row(cost) | planned.get(cost.met.output, {})
            for cost in self._compared(calls).operators
            if cost.met.dtype in ("fp16", "fp32")
        ]

    def _operations(self) -> list[Operation]:
        return [operation for function in self.program.functions for operation in self.program.operations(function)]

    def _function_for(self, given: Arrays) -> str | None:
        """Return the function that takes arrays of these shapes, of a package that has several; or else None."""
        shapes = [tuple(x.shape) for x in given]
        interfaces = self.program.interfaces
        takes = {name: [one.shape for one in interface.inputs] for name, interface in interfaces.items()}
        return next((name for name in takes if len(takes) > 1 and takes[name] == shapes), None)

    def _evaluator(self, given: Arrays = ()) -> Evaluator:
        """Return the evaluator of the function that takes the given shapes, or else of the default one."""
        function = self.program.function(self._function_for(given)).name
        if function not in self._evaluators:
            self._evaluators[function] = Evaluator(self.program, function)
        return self._evaluators[function]

    def _compared(self, calls: Sequence[Arrays]) -> Report:
        """Return a report of the declared precision against fp32, or against fp64 where nothing is fp16."""
        evaluator = self._evaluator(calls[0])
        function = evaluator.function.name
        types = (one.type for operation in self.program.operations(function) for one in operation.outputs)
        half = any(isinstance(one, TensorType) and one.dtype == "fp16" for one in types)
        feeds = [_feeds(evaluator, given) for given in calls]
        return compare(self.program, feeds, function=function, against="fp32" if half else "fp64")

    def _outputs(self, values: Mapping[str, Any]) -> list[np.ndarray]:
        """Return outputs in order, as they are compared; of a classifier the probabilities alone, as its labels go."""
        tables = [value for value in values.values() if isinstance(value, dict)]
        if tables:
            return [np.array([[tables[0][label] for label in self.labels]], dtype=np.float32)]
        return to_arrays(values.values())

    def _predict(self, calls: Sequence[Arrays]) -> list[list[np.ndarray]]:  # pragma: no cover - macOS
        """Execute with Apple's runtime."""
        if not calls:
            return []
        import coremltools as ct

        function = self._function_for(calls[0])
        interface = self.program.interfaces[self.program.function(function).name]
        model = ct.models.MLModel(str(self.path), function_name=function)
        outputs = []
        for given in calls:
            result = model.predict(_mac_feeds(interface, self.program.metadata, given))
            if interface.probabilities:
                probabilities = result[interface.probabilities]
                outputs.append([np.array([[probabilities[label] for label in self.labels]], dtype=np.float32)])
            else:
                outputs.append([as_compared(np.asarray(result[feature.name])) for feature in interface.outputs])
        return outputs


_CLASSIFIER_TYPES = {"string": "string", "dictionary": "scores"}


def _record(feature: Feature) -> ValueRecord:
    """Return a feature as the manifest has it."""
    shape = list(feature.shape) if feature.image is None else [feature.image.height, feature.image.width]
    kind = feature.type or _CLASSIFIER_TYPES.get(feature.kind, feature.kind)
    return {"name": feature.name, "type": kind, "shape": [*shape]}


def _feeds(evaluator: Evaluator, given: Arrays) -> dict[str, Any]:
    """Return inputs by name; pictures for what takes pictures."""
    pairs = zip(evaluator.interface.inputs, given, strict=True)
    return {
        feature.name: np.atleast_1d(x) if feature.image is None else _picture(evaluator.program.metadata, x)
        for feature, x in pairs
    }


def _mac_feeds(
    interface: Interface, metadata: Mapping[str, str], given: Arrays
) -> dict[str, Any]:  # pragma: no cover - macOS
    """Return inputs by name as Apple's runtime takes them."""
    from PIL import Image

    pairs = zip(interface.inputs, given, strict=True)
    return {
        feature.name: np.atleast_1d(x.astype(np.float32))
        if feature.image is None
        else Image.fromarray(_picture(metadata, x))
        for feature, x in pairs
    }


def _picture(metadata: Mapping[str, str], array: np.ndarray) -> np.ndarray:
    """Return the RGB bytes [H, W, 3] of a normalised image [1, 3, H, W], which the package will normalise itself."""
    mean, std = (np.array(read_json(metadata[f"edgesmith.input.{key}"], "normalisation")) for key in ("mean", "std"))
    rgb = np.moveaxis(array[0], 0, -1) * std + mean
    picture: np.ndarray = np.rint(255 * rgb).astype(np.uint8)
    return picture


def _row(cost: Cost) -> dict[str, Any]:
    """Return what `layers` says of an operator. What is infinite is None, which JSON has."""
    figures = {
        "minimum": cost.met.minimum,
        "maximum": cost.met.maximum,
        "relative_error": cost.error,
        "snr_db": cost.snr_db,
        "loss_db": cost.loss_db,
    }
    finite = {key: None if value is None or not math.isfinite(value) else value for key, value in figures.items()}
    row: dict[str, Any] = {"operator": cost.met.output, "module": cost.met.source, "type": cost.met.type}
    return row | {"dtype": cost.met.dtype} | finite | ({"overflowed": cost.overflowed} if cost.overflowed else {})
