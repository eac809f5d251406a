"""The commands: what `--help` says of each, and the module that is imported once it is called.

A row takes no import, so that help, a wrong name, and every command are answered without the others' modules. The
sentence of a row begins its function's docstring, which a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption
from typer.main import get_command

MAKE, LOOK, MEASURE, SHOW = "Make a file", "Look into files and targets", "Measure", "Show what was measured"


@dataclass(frozen=True)
class Command:
    """A command before it is imported.

    Args:
        module: the module below `edgesmith.cli` with a function or a `Typer` of the command's name.
        group: its group in `--help`.
        summary: what it does, in one sentence.
        example: a call, without `edgesmith`.
        lists_precisions: whether its help says which precisions there are.
    """

    module: str
    group: str
    summary: str
    example: str
    lists_precisions: bool = False


COMMANDS = {
    "export": Command(
        "export",
        MAKE,
        "Write a model as a checked file for a target.",
        "export --model casvit_xs --target coreml --image-input --labels labels.txt",
        lists_precisions=True,
    ),
    "use": Command(
        "use",
        MAKE,
        "Show how an artifact's file is run: inputs, outputs and programs in Swift, Kotlin, C++ or Python.",
        "use artifacts/casvit_xs-onnx-fp32 --lang python",
    ),
    "verify": Command(
        "export",
        MAKE,
        "Check an artifact again: its files, its format, and its numbers where it can run.",
        "verify artifacts/casvit_xs-onnx-fp32",
    ),
    "explain": Command(
        "export",
        MAKE,
        "Show every site where a rewrite fired, and every near miss with its reason.",
        "explain --model casvit_xs",
    ),
    "build-on": Command(
        "bench",
        MAKE,
        "Have a board build a kit's engine, and bring the engine and its measurement back.",
        "build-on ssh://orin artifacts/casvit_xs-tensorrt-fp16-jetson-orin-nano",
    ),
    "models": Command(
        "listings", LOOK, "List the models: parameters, MACs, input, published accuracy, source, licence.", "models"
    ),
    "targets": Command("listings", LOOK, "List the targets, or the devices.", "targets"),
    "devices": Command(
        "devices",
        LOOK,
        "List the devices: what they take, their figures' gaps, how they are reached from here, and those attached.",
        "devices",
    ),
    "doctor": Command(
        "doctor",
        LOOK,
        "Say which targets can lower, run and time on this machine, and what to install for the others.",
        "doctor",
    ),
    "operators": Command(
        "listings",
        LOOK,
        "List PyTorch's operators by target: right, mended by edgesmith, or refused. With a name, also why.",
        "operators softmax",
    ),
    "lint": Command(
        "files",
        LOOK,
        "Find what devices are known to compute wrongly in a file, and what the Neural Engine takes badly.",
        "lint artifacts/casvit_xs-coreml-fp16 --strict",
    ),
    "inspect": Command(
        "files",
        LOOK,
        "Say what an artifact's file takes and gives, and what reads it; of an engine, what it was built with and for.",
        "inspect artifacts/casvit_xs-tensorrt-fp16-rtx3080",
    ),
    "bench": Command(
        "bench",
        MEASURE,
        "Time artifacts in turn; every sample is kept. With --against, compare them. A model is exported first.",
        "bench artifacts/casvit_xs-onnx-fp32 --seconds 20",
    ),
    "compare": Command(
        "bench",
        MEASURE,
        "Say whether head became slower than base: exit code 0 no, 8 yes, 9 not known, 10 not comparable.",
        "compare artifacts/base artifacts/head --threshold 5%",
    ),
    "peers": Command(
        "peers",
        MEASURE,
        "Time models in other runtimes and in ours, each in a process of its own, in turn, with outputs checked.",
        "peers casvit_xs",
    ),
    "estimate": Command(
        "devices",
        MEASURE,
        "Estimate, not measure, how long a call takes on a device: a roofline fitted on published latencies.",
        "estimate artifacts/casvit_xs-coreml-fp16 --device iphone13",
    ),
    "profile": Command(
        "bench",
        SHOW,
        "Show latencies that were measured: model, target, device. With records of `bench`, keep what is in them"
        " first.",
        "profile measurements/20260101T000000Z.json",
    ),
    "report": Command(
        "report",
        SHOW,
        "Write one HTML page of what lies below a folder; it needs no network and no script.",
        "report artifacts --out report.html",
    ),
    "history": Command(
        "report", SHOW, "Latencies over time, and where they changed for good.", "history add measurements/today.json"
    ),
}
"""In the order of `--help`."""


class PrecisionHelp(TyperCommand):
    """A command whose help lists the precisions. They are asked for then and not before: plugins add to them."""

    def get_help(self, context: typer.Context) -> str:  # type: ignore[override]  # typer's own Context
        """Return the command's help, with the precisions that there are."""
        from edgesmith.exporters.precision.table import all_precisions

        summaries = "; ".join(f"{one.name}: {one.summary}" for one in all_precisions().values())
        for option in self.params:
            if isinstance(option, TyperOption) and option.name == "precision":
                option.help = f"{summaries}. `edgesmith targets` says which a target takes."
        return super().get_help(context)


class Imported(Mapping[str, Any]):
    """The commands by name; one is imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:  # Any: typer has a click of its own from 0.26 on
        if name not in COMMANDS:
            raise KeyError(name)
        return _import(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@cache
def _import(name: str) -> Any:
    command = COMMANDS[name]
    found = getattr(import_module(f"edgesmith.cli.{command.module}"), name.replace("-", "_"))
    example = f"Example: edgesmith {command.example}"
    if isinstance(found, typer.Typer):
        built = get_command(found)
        built.name, built.epilog = name, example
        return built
    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=PrecisionHelp if command.lists_precisions else None, epilog=example)(found)
    return get_command(alone)
