"""The model that a command is about: a name of the registry or of edgesmith.toml, or a module of the user's own.

    @chooses_model
    def explain(chosen: Chosen, target: given.TargetName = "onnx") -> None: ...

gives the command --model, --module, --kwargs, --input, --inputs, --fixed, --weights, --key and --no-strict, and the
function what they come to.

--inputs is the user's own data. Where shapes are known, of a named model or by --input, it holds samples to verify on.
Of a module without --input its arrays are the example itself, one call, and give the shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from edgesmith.cli import options as given
from edgesmith.errors import BadInput, unknown
from edgesmith.exporters.own import settings
from edgesmith.exporters.own.documents import parse_table
from edgesmith.exporters.own.reference import OwnModule, parse_input
from edgesmith.models import registry


@dataclass(frozen=True)
class Chosen:
    """The model that a command is about.

    Attributes:
        model: a name of the registry, or a module of the user's own; None where no option was given.
        label: what the user called it.
        options: what `ModelOptions` takes beside it.
        verify_inputs: data to verify on.
    """

    model: str | OwnModule | None = None
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    verify_inputs: Path | None = None

    def require(self) -> str | OwnModule:
        """Return the model. Raises BadInput where none was given."""
        if self.model is None:
            raise BadInput("give a model: --model NAME from `edgesmith models`, or --module path/to/file.py:callable")
        return self.model


def choose(
    model: given.ModelName = None,
    module: given.Module = None,
    kwargs: given.ModuleKwargs = None,
    shapes: given.Shapes = None,
    inputs: given.VerifyInputs = None,
    fixed: given.FixedArguments = None,
    weights: given.Weights = None,
    key: given.WeightsKey = None,
    no_strict: given.NotStrict = False,
) -> Chosen:
    """Return what the options of a model come to. Raises BadInput."""
    if model is not None and module is not None:
        raise BadInput("--model is a name, and --module code of your own; choose one")
    own = {
        "module": module,
        "kwargs": None if kwargs is None else parse_table(kwargs, "--kwargs"),
        "input": shapes or None,
        "inputs": inputs,
        "fixed": None if fixed is None else parse_table(fixed, "--fixed"),
        "weights": weights,
        "key": key,
        "strict": False if no_strict else None,
    }
    own = {name: value for name, value in own.items() if value is not None}
    if module is not None:
        return _own_module(own, module, {})
    written = settings.find(model) if model is not None else None
    if model is not None and model in registry.all_models():
        if written is not None:
            raise BadInput(f"{settings.FILE} has a model {model}, and so has edgesmith; give yours another name")
        return _named(model, own)
    if model is not None and written is not None:
        return _own_module({**written, **own}, model, {"name": model})
    if model is not None:
        known = dict.fromkeys([*registry.all_models(), *settings.names()])
        raise unknown("model", model, known, f"edgesmith models; your own come from {settings.FILE} or --module")
    if own:
        raise BadInput(f"{_flag(next(iter(own)))} says something about a model; give --model or --module too")
    return Chosen()


def _flag(name: str) -> str:
    return "--no-strict" if name == "strict" else f"--{name}"


def _named(model: str, own: Mapping[str, Any]) -> Chosen:
    """Return a model of the registry, which takes weights and data of the options here."""
    strange = [name for name in own if name not in ("weights", "inputs")]
    if strange:
        raise BadInput(
            f"{_flag(strange[0])} is for a module of your own, and {model} is edgesmith's; leave it out, or give"
            " --module"
        )
    return Chosen(model, model, {"weights": own.get("weights")}, own.get("inputs"))


def _own_module(own: Mapping[str, Any], label: str, options: Mapping[str, Any]) -> Chosen:
    """Return a module of the user's own."""
    shapes, data = own.get("input", ()), own.get("inputs")
    found = OwnModule(
        own["module"],
        kwargs=own.get("kwargs", {}),
        inputs=tuple(map(parse_input, shapes)),
        example=None if shapes else data,
        fixed=own.get("fixed", {}),
        weights=own.get("weights"),
        key=own.get("key"),
        strict=own.get("strict", True),
    )
    return Chosen(found, label, options, data if shapes else None)


def chooses_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a model instead of its argument `chosen`."""
    theirs, ours = (inspect.signature(one, eval_str=True).parameters for one in (command, choose))
    parameters = {**ours, **{name: one for name, one in theirs.items() if name != "chosen"}}

    @wraps(command)
    def run(**values: Any) -> None:
        chosen = choose(**{name: values.pop(name) for name in ours if name in values})
        command(chosen, **values)

    by_name = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters.values()]
    run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]  # inspect's
    run.__annotations__ = {name: one.annotation for name, one in parameters.items()}
    del run.__wrapped__  # of which typer would read the annotations
    return run
