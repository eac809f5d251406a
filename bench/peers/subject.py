"""A model that peers run: its inputs, PyTorch's outputs for them, what it computes, and the forms in which it is given.

A peer's process makes the model anew, from words that JSON holds; weights and inputs follow from seeds or files.

    as written         the module, and an ONNX file that PyTorch's own exporter makes of it
    edgesmith, TARGET  the file of an export, for each target whose files some peer reads
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.bench.peers.peer import Source
from edgesmith.errors import EdgesmithError
from edgesmith.exporters import targets
from edgesmith.exporters.options import ExportOptions, ModelOptions, Watch
from edgesmith.exporters.own.reference import InputSpec, OwnModule

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

AS_WRITTEN = "as written"

Words = dict[str, Any]
"""A model as JSON holds it."""

_PATHS = ("example", "weights", "folder")


@dataclass(frozen=True)
class Form:
    """A form of a model.

    Attributes:
        label: for people.
        kind: of its source.
        source: None where the form could not be made; `why` says that in a sentence.
        runs_in: the name of the runtime that our own target's files run in; empty for all that is not ours.
    """

    label: str
    kind: str
    source: Source | None
    why: str = ""
    runs_in: str = ""


@dataclass(frozen=True)
class Subject:
    """A model and what its peers are held to.

    Attributes:
        inputs: calls that outputs are compared on; the first is timed.
        reference: PyTorch's outputs for each.
        macs: multiply-accumulates of convolutions and matrix products, as PyTorch runs the module as it is written.
        bytes: of parameters, buffers, inputs and outputs, each once: the least that a call has to move.
    """

    name: str
    words: Words
    inputs: list[list[np.ndarray]]
    reference: list[list[np.ndarray]]
    macs: int
    bytes: int
    input_names: tuple[str, ...]

    def source(self, kind: str, file: Path | None = None) -> Source:
        """Return one of its forms as a peer is given it."""
        return Source(kind, self.words, None if file is None else str(file), self.input_names, len(self.reference[0]))


def write_words(model: str | OwnModule, options: Mapping[str, Any]) -> Words:
    """Return the words of a model, see `read_words`.

    Args:
        options: what `ModelOptions` takes beside the model: `weights` of a named one, `name` of another.
    """
    also = {name: None if value is None else str(value) for name, value in options.items()}
    if isinstance(model, str):
        return {"named": model, "options": also}
    own = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(model).items()}
    return {"own": own, "options": also}


def read_words(words: Mapping[str, Any]) -> ModelOptions:
    """Return the model of some words. Raises BadInput."""
    if "named" in words:
        return ModelOptions(words["named"], **words["options"])
    own = dict(words["own"])
    inputs = tuple(InputSpec(**{**one, "shape": tuple(one["shape"])}) for one in own.pop("inputs"))
    paths = {name: None if own[name] is None else Path(own[name]) for name in _PATHS}
    return ModelOptions(OwnModule(own.pop("reference"), inputs=inputs, **{**own, **paths}), **words["options"])


def load_module(words: Mapping[str, Any]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a model in eval mode, and its example inputs. Raises BadInput, CheckpointError."""
    from edgesmith.exporters.load import load

    loaded = load(read_words(words))
    return loaded.module.eval(), tuple(x.detach() for x in loaded.inputs)


def prepare(words: Words) -> Subject:
    """Load a model, run it in PyTorch, and count what it computes.

    Raises:
        BadInput, CheckpointError: see errors.py.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from edgesmith.exporters.graph.capture import run_eager
    from edgesmith.exporters.inputs import Call, make
    from edgesmith.exporters.load import load

    loaded = load(read_words(words))
    module = loaded.module.eval()
    calls = [list(loaded.inputs), make(Call("drawn", seed=1), loaded.inputs, None, False)]
    reference = [run_eager(module, call) for call in calls]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_eager(module, calls[0])
    moved = [*module.parameters(), *module.buffers(), *calls[0], *reference[0]]
    return Subject(
        name=loaded.name,
        words=words,
        inputs=[[x.detach().numpy() for x in call] for call in calls],
        reference=[[y.detach().numpy() for y in outputs] for outputs in reference],
        macs=int(counter.get_total_flops()) // 2,
        bytes=sum(x.numel() * x.element_size() for x in moved),
        input_names=loaded.name_inputs(),
    )


def export_forms(subject: Subject, kinds: Sequence[str], folder: Path, watch: Watch) -> list[Form]:
    """Export a model for every target whose files are among `kinds`; an export that fails is a form that says why."""
    wanted = [target for target in targets.all_targets().values() if target.name in kinds]
    if not wanted:
        return []
    from edgesmith.exporters.export import run

    forms, asked = [], read_words(subject.words)
    for target in wanted:
        source, why = None, ""
        try:
            options = ExportOptions(
                asked.model, target.name, weights=asked.weights, name=asked.name, out=folder, watch=watch
            )
            source = subject.source(target.name, run(options).file)
        except EdgesmithError as error:
            why = f"edgesmith does not export it: {error}"
        forms.append(Form(f"edgesmith, {target.name}", target.name, source, why, target.timed_by))
    return forms
