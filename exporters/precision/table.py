"""The precisions: each says what passes, how it types a program, and which forms it allows. All other rooms ask it.

    name    arithmetic            passes: error of the peak, SNR     typed by
    fp32    float32               1e-5, 100 dB                        nothing to do
    fp16    float16               2e-2,  40 dB                        half.py, with the islands of islands.py
    bf16    bfloat16              0.16,  22 dB                        half.py, with the islands of islands.py
    mixed   float16 but for some  as fp16                             the target's converter, told what to keep in fp32
    int8    layers of integers    2e-1,  20 dB                        int8.py

fp32: folding and another order of summation move a result of some hundred layers by a few ulp of its peak (6e-8); 1e-5
is thirty times what the zoo shows. fp16: half has 11 bits, 66 dB, and a deep network keeps about 60 of them; 40 dB is
where published accuracy starts to move. bf16: three bits fewer, so eight times the error, 18 dB. int8: a layer with 8
bits has some 40 dB, and their noise adds up.

Nothing here imports torch. A precision that is made elsewhere is found by the entry point `edgesmith.precisions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from edgesmith.errors import unknown
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.precision.task import Thresholds, Typed, TypingTask
from edgesmith.plugins import leave_out, load_plugins

if TYPE_CHECKING:
    from edgesmith.exporters.graph.capture import Program


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One precision.

    Attributes:
        name: on the command line and in manifests.
        summary: half a line for `--help`.
        thresholds: None where another precision's hold, which `judged_as` names.
        make: types a program; None where it stays as it is.
        dtype: of most of its arithmetic.
        judged_as: whose thresholds hold.
        uses_fp32_forms: whether forms that save fp32 arithmetic at the cost of its last bits are allowed: Winograd's,
            and tiles of channels.
        excuses_noise: whether a model that is itself further from float64 than the threshold is allowed more.
        flips_spikes: what makes a neuron near its threshold fire otherwise, in words; empty where nothing does.
        needs_whole_inputs: whether it looks at whole inputs, so that a step cannot have it.
        calibrates: whether it is made and judged on data of the caller's, `--calibration`.
        clips: whether it cuts off what is beyond the range of its data, in steps that are as wide on every input. What
            is far quieter, louder or more even than they are is then another matter than its accuracy.
        also_for: targets that take it beside those that list it themselves.
    """

    name: str
    summary: str
    thresholds: Thresholds | None = None
    make: Callable[[Program, TypingTask], Typed] | None = None
    dtype: str = "float32"
    judged_as: str = ""
    uses_fp32_forms: bool = False
    excuses_noise: bool = False
    flips_spikes: str = ""
    needs_whole_inputs: bool = False
    calibrates: bool = False
    clips: bool = False
    also_for: tuple[str, ...] = ()

    @property
    def is_half(self) -> bool:
        """Return whether most of the arithmetic has 16 bits."""
        return self.dtype in ("float16", "bfloat16")

    @property
    def criteria(self) -> Precision:
        """The precision whose thresholds this one is judged by."""
        return get(self.judged_as) if self.judged_as else self

    def limits(self) -> Thresholds:
        """Return the thresholds that its outputs have to hold."""
        found = self.criteria.thresholds
        assert found is not None, f"precision {self.name} is judged by nothing"
        return found

    def costs(self, costs: Costs) -> Costs:
        """Return a target's costs as far as this precision may choose forms by them."""
        return costs if self.uses_fp32_forms else replace(costs, tile_gb_s=0.0, fetch_gb_s=math.inf)

    def type(self, program: Program, task: TypingTask) -> Typed:
        """Return the program in this precision.

        Raises:
            Unsupported: the program has nothing that could have it.
            BadInput: calibration data that the program does not run on.
        """
        return Typed(program) if self.make is None else self.make(program, task)


def _half(program: Program, task: TypingTask) -> Typed:
    from edgesmith.exporters.precision.islands import type_half

    return type_half(program, task, "float16")


def _bfloat16(program: Program, task: TypingTask) -> Typed:
    from edgesmith.exporters.precision.islands import type_half

    return type_half(program, task, "bfloat16")


def _mixed(program: Program, task: TypingTask) -> Typed:
    from edgesmith.exporters.precision.islands import type_mixed

    return type_mixed(program, task)


def _int8(program: Program, task: TypingTask) -> Typed:
    from edgesmith.exporters.precision.int8 import type_int8

    return type_int8(program, task)


FP32 = Precision(
    name="fp32",
    summary="float32 throughout",
    thresholds=Thresholds(1e-5, 100.0),
    uses_fp32_forms=True,
    excuses_noise=True,
)
FP16 = Precision(
    name="fp16",
    summary="float16, but for what overflows or loses too much",
    thresholds=Thresholds(2e-2, 40.0),
    make=_half,
    dtype="float16",
    flips_spikes="half precision",
)
BF16 = Precision(
    name="bf16",
    summary="bfloat16, but for what loses too much",
    thresholds=Thresholds(0.16, 22.0),
    make=_bfloat16,
    dtype="bfloat16",
    flips_spikes="half precision",
)
MIXED = Precision(
    name="mixed",
    summary="float16, with fp32 wherever the data ask for it",
    make=_mixed,
    dtype="float16",
    judged_as="fp16",
    flips_spikes="half precision",
    needs_whole_inputs=True,
)
INT8 = Precision(
    name="int8",
    summary="layers of 8-bit integers, the rest float32",
    thresholds=Thresholds(2e-1, 20.0),
    make=_int8,
    flips_spikes="int8",
    needs_whole_inputs=True,
    calibrates=True,
    clips=True,
)

GROUP = "edgesmith.precisions"


@cache
def all_precisions() -> dict[str, Precision]:
    """Return every precision by name: those of this table, and those of installed plugins."""
    found = {one.name: one for one in (FP32, FP16, BF16, MIXED, INT8)}
    for entry, plugin in load_plugins(GROUP, Precision).items():
        if plugin.name in found:
            leave_out(GROUP, entry, f"there is a precision {plugin.name} already; give it another name")
        else:
            found[plugin.name] = plugin
    return found


def get(name: str) -> Precision:
    """Return the precision called `name`. Raises BadInput with the nearest names where there is none."""
    known = all_precisions()
    if name not in known:
        raise unknown("precision", name, known, "edgesmith targets")
    return known[name]


def of_dtype(name: str) -> Precision:
    """Return the precision that a model of this type has by itself: fp16 for float16, or else fp32."""
    return FP16 if name == "float16" else FP32


def for_target(target: str, own: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the precisions of a target that lists `own`, the default first."""
    return (*own, *(name for name, one in all_precisions().items() if target in one.also_for and name not in own))
