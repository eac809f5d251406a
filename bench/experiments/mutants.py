"""The judge of `export`, judged: lowered files are damaged, one error at a time.

Each of some eighty small modules is lowered once. A mutant is its file with one mutation (onnx_mutations.py,
mil_mutations.py): an attribute or a constant changed a little, two operands swapped, an operator replaced by its
neighbour or left out, a value rounded to half precision. It is

    killed       the judge refuses it, or its runtime does
    equivalent   it passes, and none of some hundreds of other inputs shows an error that the judge would not pass
    missed       it passes, and one of them does
    not made     a library refuses to write it, and the judge never saw it

Those inputs are in the range of the example and of what data may plausibly be: other draws, other scales, whole and
half numbers, the constants of the file and their neighbours, equal rows, single elements, every index of a table, masks
that are full and empty, missing values. An input counts where PyTorch is as finite as on the example, and the file
without the error is right.

    python -m edgesmith.bench.experiments.mutants [each] [target:precision ...] [module ...]

`each` is how many mutants of a kind are made of a module at most.
"""

from __future__ import annotations

import copy
import random
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgesmith.bench.experiments import mil_mutations, onnx_mutations
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.mutated_modules import Subject, subjects
from edgesmith.errors import EdgesmithError, VerificationFailed
from edgesmith.exporters.export import capture_and_rewrite
from edgesmith.exporters.figures import measure_call, scales_of
from edgesmith.exporters.graph.capture import run_eager
from edgesmith.exporters.inputs import draw
from edgesmith.exporters.judge import Judge, appoint
from edgesmith.exporters.load import load
from edgesmith.exporters.lowering import Lowering
from edgesmith.exporters.options import ExportOptions
from edgesmith.exporters.products import Product, derive
from edgesmith.exporters.targets.target import NotHere, TargetFile
from edgesmith.exporters.verification.check import check

KINDS = ("killed", "equivalent", "missed", "not made")
RUNS = ("onnx:fp32", "coreml:fp32", "coreml:fp16")

Arrays = list[np.ndarray]


@dataclass
class Lowered:
    """A module's file, and what it is judged by."""

    subject: Subject
    options: ExportOptions
    file: TargetFile
    product: Product
    judge: Judge

    def passes(self, file: TargetFile) -> bool:
        """Return whether the judge lets a file pass."""
        evidence, criteria = self.judge.evidence, self.judge.of_file
        try:
            file.check()
            outputs = file.run(evidence.calls)
            assert not isinstance(outputs, NotHere)
            check("file", evidence.reference, outputs, criteria, described=evidence.described)
        except Exception:  # whatever a runtime raises for a file that is none
            return False
        return True


def lower(subject: Subject, target: str, precision: str, folder: Path) -> Lowered:
    """Lower a module, as `export` does."""
    options = ExportOptions(subject.module, target, inputs=subject.example, precision=precision, out=folder)
    model = load(options)
    captured, rewritten, _ = capture_and_rewrite(options)
    product = derive(captured, rewritten, options)
    judge = appoint(options, model, captured, rewritten)
    lowering = Lowering(options, folder, product)
    typed = options.arithmetic.type(product.lowered, lowering.task(judge))
    made = Lowered(subject, options, lowering(typed), product, judge)
    if not made.passes(made.file):
        raise VerificationFailed("the file without an error does not pass")
    return made


# other inputs


def probes(subject: Subject, constants: Sequence[float]) -> Iterator[list[Tensor]]:
    """Yield other inputs that a module may meet."""
    example = list(subject.example)
    for seed in range(100, 140):
        yield [draw(x, seed, k) for k, x in enumerate(example)]
    for k, x in enumerate(example):
        others = (
            _floats(x, constants, subject.missing) if x.is_floating_point() else _wholes(x, _whole_range(subject, k))
        )
        for one in others:
            yield [one if j == k else y for j, y in enumerate(example)]
    floats = [k for k, x in enumerate(example) if x.is_floating_point()]
    if len(floats) > 1 and len({example[k].shape for k in floats}) == 1:
        yield [example[floats[0]] if k in floats else x for k, x in enumerate(example)]
        for step in (1.0, 0.5):
            yield [(x / step).round() * step if k in floats else x for k, x in enumerate(example)]


def _whole_range(subject: Subject, k: int) -> tuple[int, int]:
    place = sum(not x.is_floating_point() for x in subject.example[:k])
    x = subject.example[k]
    return subject.whole[place] if place < len(subject.whole) else (int(x.min()), int(x.max()))


def _wholes(x: Tensor, limits: tuple[int, int]) -> Iterator[Tensor]:
    if x.dtype == torch.bool:
        yield from (torch.zeros_like(x), torch.ones_like(x))
        return
    low, high = limits
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        yield torch.randint(low, high + 1, x.shape, generator=generator).to(x.dtype)
    size = x.numel()
    for start in range(low, high + 1, max(size, (high - low) // 60 or 1)):
        yield (torch.arange(start, start + size).clamp(max=high)).reshape(x.shape).to(x.dtype)
    yield from (torch.full_like(x, low), torch.full_like(x, high))


def _floats(x: Tensor, constants: Sequence[float], missing: bool) -> Iterator[Tensor]:
    if bool(((x == 0) | (x == 1)).all()):
        yield from _masks(x)
        return
    generator = torch.Generator().manual_seed(7)
    is_positive = bool((x >= 0).all())
    for scale in (0.03, 0.3, 1.0, 3.0, 10.0):
        for _ in range(3):
            drawn = torch.randn(x.shape, generator=generator) * x.std() * scale
            yield drawn.abs() if is_positive else drawn + x.mean()
    for step in (1.0, 0.5, 0.25, 0.1):
        yield (x / step).round() * step
        yield (2 * x / step).round() * step
    for value in constants:
        if abs(value) <= 10 * float(x.abs().max()) and not (is_positive and value < 0):
            chosen = torch.rand(x.shape, generator=generator) < 0.3
            yield torch.where(chosen, torch.full_like(x, value), x)
    yield from (torch.zeros_like(x), torch.full_like(x, float(x.max())), x.sort(-1).values, x.flip(-1), x.abs())
    yield x.sort(-1, descending=True).values
    if not is_positive:
        yield from (-x, -x.abs())
    for axis in range(x.dim()):
        yield x.narrow(axis, 0, 1).expand_as(x).clone()
    for i in torch.linspace(0, x.numel() - 1, min(x.numel(), 24)).long().tolist():
        one = torch.zeros_like(x)
        one.view(-1)[i] = x.abs().max()
        yield one
        loud = x.clone()
        loud.view(-1)[i] = 30 * x.abs().max()
        yield loud
    for value in (float("nan"), float("inf"), -float("inf")):
        if missing:
            yield torch.where(torch.rand(x.shape, generator=generator) < 0.15, torch.full_like(x, value), x)


def _masks(x: Tensor) -> Iterator[Tensor]:
    yield from (torch.zeros_like(x), torch.ones_like(x))
    for width in range(1, x.shape[-1]):
        yield (torch.arange(x.shape[-1]) < width).to(x.dtype).expand_as(x).clone()
        yield (torch.arange(x.shape[-1]) == width).to(x.dtype).expand_as(x).clone()


@dataclass
class Search:
    """Inputs on which a survivor may be told from the file that it was made of."""

    lowered: Lowered
    constants: Sequence[float]
    inputs: list[Arrays] = field(default_factory=list)
    wanted: list[Arrays] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)

    def prepare(self) -> None:
        """Keep the inputs on which PyTorch is finite and the file is right."""
        evidence, file = self.lowered.judge.evidence, self.lowered.file
        natural = [i for i, call in enumerate(evidence.described) if call.is_natural]
        self.scales = scales_of(evidence.reference, natural)
        self.limits = self.lowered.judge.of_file.precision.limits()
        first = [np.isfinite(y).mean() for y in evidence.reference[0]]
        self.broken: list[str] = []
        with torch.no_grad():
            for given in probes(self.lowered.subject, self.constants):
                try:
                    ys = run_eager(self.lowered.subject.module, given)
                except EdgesmithError:
                    continue
                self.whole = [not y.is_floating_point() for y in ys]
                wanted = [y.detach().float().numpy() for y in ys]
                if any(np.isfinite(y).mean() < share for y, share in zip(wanted, first, strict=True)):
                    continue
                call = [x.numpy() for x in given]
                try:
                    outputs = file.run([call])
                except Exception:
                    self.broken.append("raises")
                    continue
                assert not isinstance(outputs, NotHere)
                if self._differs(wanted, outputs[0]):
                    self.broken.append(_words(call))
                    continue
                self.inputs.append(call)
                self.wanted.append(wanted)

    def _differs(self, wanted: Arrays, outputs: Arrays) -> bool:
        for y, z, whole in zip(wanted, outputs, self.whole, strict=True):
            if y.shape != z.shape or (whole and _share(y, z) > (0.1 if self.limits.relative_error > 1e-3 else 0)):
                return True
            if not whole and _is_part_wrong(y, z, self.limits.relative_error**0.5):
                return True
        return measure_call(wanted, outputs, self.scales, self.limits).failure is not None

    def find(self, mutant: TargetFile) -> Arrays | None:
        """Return an input on which a mutant is wrong; None where there is none."""
        for call, wanted in zip(self.inputs, self.wanted, strict=True):
            try:
                outputs = mutant.run([call])
            except Exception:
                return call
            if isinstance(outputs, NotHere) or self._differs(wanted, outputs[0]):
                return call
        return None


def _share(y: np.ndarray, z: np.ndarray) -> float:
    return float((y != z).mean()) if y.size else 0.0


def _is_part_wrong(y: np.ndarray, z: np.ndarray, allowed: float) -> bool:
    """Return whether a row of an axis is off by more than a share of its own peak, and of a millionth of all."""
    for axis in range(1, y.ndim):
        axes = tuple(k for k in range(y.ndim) if k != axis)
        if y.size < 8 * y.shape[axis] or not np.isfinite(y).all():
            continue
        peaks, errors = np.abs(y).max(axes), np.abs(y.astype(np.float64) - z).max(axes)
        if bool(((errors > allowed * peaks) & (peaks > 1e-6 * peaks.max()) & (errors > 1e-6 * peaks.max())).any()):
            return True
    return False


def _words(call: Arrays) -> str:
    return "; ".join(np.array2string(x.ravel()[:8], precision=3, max_line_width=10**6) for x in call)


# a module's mutants


def _mutants(lowered: Lowered, folder: Path) -> tuple[Sequence[tuple[str, str, Any]], list[float]]:
    target = lowered.options.backend
    if lowered.file.path.is_dir():  # a Core ML package
        return mil_mutations.mutants(lowered.file, target.open), mil_mutations.constants(lowered.file)
    import onnx

    model = onnx.load(str(lowered.file.path))
    changes = list(onnx_mutations.mutations(model))

    def make(change: Callable[[Any], None]) -> TargetFile:
        other = copy.deepcopy(model)
        change(other)
        path = folder / "mutant.onnx"
        path.write_bytes(other.SerializeToString())
        return target.open(path)

    found: list[float] = []
    for tensor in model.graph.initializer:
        x = onnx_mutations._to_array(tensor)
        if x.size <= 8 and x.dtype != bool:
            found += [float(v) for v in x.flat if np.isfinite(v)]
    made = [(kind, where, lambda change=change: make(change)) for kind, where, change in changes]
    return made, found


def around(constants: Sequence[float]) -> list[float]:
    """Return constants with what lies beside them."""
    found = {0.0, 1.0, -1.0, 0.5, -0.5}
    for value in constants:
        found |= {float(np.float32(v)) for v in (value, -value, np.nextafter(np.float32(value), 9e9), value * 1.005)}
    return sorted(v for v in found if abs(v) < 1e6)


def measure(name: str, target: str, precision: str, each: int, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the verdict on each mutant of a module."""
    lowered = lower(subjects()[name](), target, precision, folder)
    made, constants = _mutants(lowered, folder)
    search = Search(lowered, around(constants))
    by_kind: dict[str, list[tuple[str, Callable[[], TargetFile]]]] = defaultdict(list)
    for kind, where, make in made:
        by_kind[kind].append((where, make))
    for kind, all_of_kind in by_kind.items():
        chosen = all_of_kind
        if len(all_of_kind) > each:
            chosen = random.Random(0).sample(all_of_kind, each)  # noqa: S311 - which are tried is no secret
        for where, make in chosen:
            verdict, shown = "killed", ""
            try:
                mutant = make()
            except Exception:  # what a library raises for a model that is none: the judge has seen nothing
                mutant, verdict = None, "not made"
            if mutant is not None and lowered.passes(mutant):
                if not search.inputs:
                    search.prepare()
                found = search.find(mutant)
                verdict = "equivalent" if found is None else "missed"
                shown = "" if found is None else _words(found)
            yield {"module": name, "kind": kind, "where": where, "verdict": verdict, "input": shown}
    for words in getattr(search, "broken", []):
        yield {"module": name, "kind": "", "where": "", "verdict": "file wrong", "input": words}


def main() -> None:
    """Print missed mutants, and how many of each kind there are."""
    arguments = read_arguments(__doc__, listed="what", each=12)
    runs = [word for word in arguments.what if ":" in word] or list(RUNS)
    names = [word for word in arguments.what if ":" not in word] or list(subjects())
    for run in runs:
        target, precision = run.split(":")
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for name in names:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    for row in measure(name, target, precision, arguments.each, Path(folder)):
                        if row["verdict"] == "file wrong":
                            print(f"{run}  {name}: FILE WRONG on {row['input']}", flush=True)
                            continue
                        counts[row["kind"]][row["verdict"]] += 1
                        if row["verdict"] == "missed":
                            print(f"{run}  {name}: {row['kind']}, {row['where']}, on {row['input']}"[:220], flush=True)
                except EdgesmithError as error:
                    print(f"{run}  {name}: not made: {error}", file=sys.stderr)
        table = Table((run, 20), *KINDS)
        for kind, found in sorted(counts.items()):
            table.add(kind, *(found[one] for one in KINDS))
        total = sum(counts.values(), Counter())
        table.add("all", *(total[one] for one in KINDS))


if __name__ == "__main__":
    main()
