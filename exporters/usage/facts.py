"""The facts about a file that its snippets are made of, by the artifact's manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edgesmith.errors import Unreadable, Unsupported
from edgesmith.exporters.manifest import InterfaceRecord, Manifest, Normalisation, ValueRecord
from edgesmith.exporters.streaming.description import RUNTIME, StateDescription

IMAGE = "image"
"""The type of an input that takes a picture."""

LABEL, SCORES = "string", "scores"
"""The types of a classifier's outputs: the best class's name, and each class's probability by its name."""


Word = TypeVar("Word")


def word_of(words: Mapping[str, Word], kind: str, language: str) -> Word:
    """Return a language's word for a type. Raises Unsupported where it has none."""
    if kind not in words:
        raise Unsupported(f"no program in {language} takes values of type {kind[:40]!r}; it knows {', '.join(words)}")
    return words[kind]


@dataclass(frozen=True)
class Value:
    """An input or output.

    Attributes:
        shape: sizes; a word for a free one, 0 where nobody knows it.
        type: numpy's name of its elements' type, or one of the words above.
        meaning: in words; empty where nothing is known.
    """

    name: str
    type: str
    shape: tuple[int | str, ...]
    meaning: str = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape with 1 for what is free."""
        return tuple(size if isinstance(size, int) else 1 for size in self.shape)

    @property
    def count(self) -> int:
        """The number of its elements, 1 along what is free."""
        count = 1
        for size in self.sizes:
            count *= size
        return count


@dataclass(frozen=True)
class StateValue:
    """A state of a step: an input, the output with its next value, and its first value.

    Attributes:
        initial: of every element.
    """

    name: str
    next: str
    type: str
    shape: tuple[int, ...]
    initial: float


@dataclass(frozen=True)
class Stream:
    """The way in which a step is driven.

    Attributes:
        delay: steps until the first frame's prediction comes out.
        is_frame: the input that is 1 while frames come, 0 in the steps after the last one; None where there is none.
        is_kept: whether the runtime keeps the states, so that they are neither inputs nor outputs.
    """

    frame: str
    is_frame: str | None
    delay: int
    states: tuple[StateValue, ...]
    is_kept: bool


@dataclass(frozen=True)
class Facts:
    """All that a snippet is made of.

    Attributes:
        inputs, outputs: of the file, in its order, without states; of a step its frame comes first.
        image: mean and deviation that the caller has to apply; None where the file does it, or reads no images.
        takes_image: whether an input is a picture, which the file normalises itself.
        labels: how many class names there are; None without them.
        stream: of a step; None for a whole model.
        functions: names of a file's functions, the default first; empty where it has one.
    """

    model: str
    file: str
    target: str
    precision: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    image: Normalisation | None = None
    takes_image: bool = False
    labels: int | None = None
    stream: Stream | None = None
    functions: tuple[str, ...] = ()
    segments: bool = False


def read_facts(manifest: Manifest, interface: InterfaceRecord | None = None) -> Facts:
    """Return the facts of an artifact.

    Args:
        interface: of the file, where the manifest has none: that of an older artifact.

    Raises:
        Unreadable: it has no input or output, or not the one that a step's frame is.
    """
    interface = _sound(manifest["model"].get("interface")) or interface or _named_only(manifest)
    model, options = manifest["model"], manifest["target"]["options"]
    stream = _read_stream(manifest, interface)
    handed_on = {} if stream is None or stream.is_kept else {state.name: state.next for state in stream.states}
    normalisation = model.get("normalisation")
    image = normalisation if isinstance(normalisation, dict) and not options["image_input"] else None
    words = _meanings(manifest)
    functions = manifest.get("functions")
    return Facts(
        model=model["name"],
        file=manifest["file"],
        target=manifest["target"]["name"],
        precision=manifest["precision"],
        inputs=_values((one for one in interface["inputs"] if one["name"] not in handed_on), words),
        outputs=_values((one for one in interface["outputs"] if one["name"] not in set(handed_on.values())), words),
        image=image,
        takes_image=options["image_input"],
        labels=options["labels"],
        stream=stream,
        functions=() if functions is None else ("step", "sequence"),
        segments=model.get("segmentation") == "labels",
    )


def _sound(interface: InterfaceRecord | None) -> InterfaceRecord | None:
    """Return a manifest's interface, of which programs can be written. Raises Unreadable."""
    if interface is None:
        return None
    if not interface["inputs"] or not interface["outputs"]:
        raise Unreadable("the manifest is damaged: the file has no inputs, or no outputs; export the model again")
    return interface


def _named_only(manifest: Manifest) -> InterfaceRecord:
    """Return the interface of a file of which nobody says types: names, and the inputs' shapes."""
    model = manifest["model"]
    return {
        "inputs": [{"name": one["name"], "type": "", "shape": one["shape"]} for one in model["inputs"]],
        "outputs": [{"name": name, "type": "", "shape": []} for name in model["outputs"]],
    }


def _values(records: Any, words: Mapping[str, str]) -> tuple[Value, ...]:
    return tuple(
        Value(one["name"], one["type"], tuple(one["shape"]), words.get(one["name"], _of_type(one))) for one in records
    )


def _of_type(value: ValueRecord) -> str:
    """Return what is known of a value by its type alone."""
    return {LABEL: "the best class's name", SCORES: "each class's probability, by its name"}.get(value["type"], "")


def _read_stream(manifest: Manifest, interface: InterfaceRecord) -> Stream | None:
    found = manifest.get("streaming")
    if found is None:
        return None
    types = {one["name"]: one["type"] for one in interface["inputs"]}
    if found["frame"]["name"] not in types:
        raise Unreadable("the manifest is damaged: a step's frame is no input of the file; export the model again")
    return Stream(
        frame=found["frame"]["name"],
        is_frame=found["is_frame"],
        delay=found["delay"],
        states=tuple(_state(one, types) for one in found["states"]),
        is_kept=found["kept_by"] == RUNTIME,
    )


def _state(state: StateDescription, types: Mapping[str, str]) -> StateValue:
    kind = types.get(state["name"], state["dtype"])
    return StateValue(state["name"], state["next"], kind, tuple(state["shape"]), state["initial"])


def _meanings(manifest: Manifest) -> dict[str, str]:
    """Return what each input and output is, in words."""
    model = manifest["model"]
    words: dict[str, str] = {}
    streaming = manifest.get("streaming")
    first = streaming["frame"]["name"] if streaming else model["inputs"][0]["name"] if model["inputs"] else ""
    words[first] = _first_input(manifest, "frame" if streaming else "input")
    if streaming and streaming["is_frame"] is not None:
        words[streaming["is_frame"]] = "1 while frames come, 0 in the steps after the last one"
    if "series" in model:
        words |= _of_series(model["series"], first)
    if model["outputs"] and not words.get(model["outputs"][0]):
        words[model["outputs"][0]] = _first_output(manifest)
    return {name: said for name, said in words.items() if said}


def _first_input(manifest: Manifest, kind: str) -> str:
    """Return what a named model's first input is; empty where nothing is known."""
    model, said = manifest["model"], manifest["model"].get("normalisation")
    if isinstance(said, dict):
        if manifest["target"]["options"]["image_input"]:
            return "a picture in RGB; the file normalises it"
        mean, std = (", ".join(f"{value:g}" for value in said[key]) for key in ("mean", "std"))
        return f"RGB, channels first: (value in 0..1 - mean) / deviation; mean {mean}; deviation {std}"
    if said and "sound" in model:
        return said
    if said and "series" not in model:
        return f"a {kind}; {said}" if kind == "frame" else said
    return ""


def _of_series(series: Mapping[str, Any], first: str) -> dict[str, str]:
    """Return what a forecaster reads, in the words of its contract."""
    said = series.get("input") if isinstance(series.get("input"), str) else None
    return {first: said or "a series in the data's own scale, oldest step first"}


def _first_output(manifest: Manifest) -> str:
    """Return what the first output is; empty where nothing is known."""
    model, labels = manifest["model"], manifest["target"]["options"]["labels"]
    if model.get("segmentation") == "labels":
        return "the class of each pixel"
    if model.get("segmentation") == "logits":
        return "a score of each class, at a quarter of the image's size"
    if model.get("features"):
        return "dense features"
    if "series" in model and model["outputs"][0] != "logits":
        is_forecast = model["outputs"][0] == "forecast"
        return "the forecast, in the data's own scale" if is_forecast else "the values that the model was trained for"
    if model["outputs"][0] == "logits":
        named = f" of {labels}, in the labels' order" if labels is not None else ""
        return f"a score of each class{named}; softmax makes probabilities of them"
    return ""


def states_handed_on(facts: Facts) -> Sequence[StateValue]:
    """Return the states that the caller hands from step to step."""
    return () if facts.stream is None or facts.stream.is_kept else facts.stream.states
