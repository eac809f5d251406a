"""USE.md: how a file is run, on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgesmith.errors import BadInput
from edgesmith.exporters.usage.facts import Facts, Value, states_handed_on
from edgesmith.exporters.usage.source import LANGUAGES, PYTHON, Snippet, count
from edgesmith.show import in_markdown

GUIDE = "USE.md"
"""The page's name in an artifact's folder."""

_FENCES = {"c++": "cpp"}
"""Languages that Markdown calls otherwise."""

_SAME = "`{file}` in this folder is this program."
_BESIDE = {
    PYTHON: "`{file}` in this folder does so on a board, with Python 3.8 or later: `python3 {file} --frames FRAMES.npy`"
    " takes an array [frames, features], `python3 {file}` raw float32 frames as they come, and its class `Stream` those"
    " of a program of your own."
}
"""Sentences about the file beside an artifact that has such a program, by language."""


def write_guide(folder: Path, facts: Facts, snippets: Sequence[Snippet]) -> None:
    """Write the page into an artifact's folder."""
    (folder / GUIDE).write_text(page(facts, snippets), encoding="utf-8")


def page(facts: Facts, snippets: Sequence[Snippet]) -> str:
    """Return the page."""
    return "\n".join(_lines(facts, snippets)) + "\n"


def code_in(language: str, facts: Facts, snippets: Sequence[Snippet]) -> str:
    """Return the program in one language. Raises BadInput where there is none."""
    for one in snippets:
        if one.language == language.lower():
            return one.code
    there = ", ".join(one.language for one in snippets) or "none"
    asked = language if language in LANGUAGES else f"{language}, which is none of {', '.join(LANGUAGES)}"
    raise BadInput(f"no program for {facts.target} in {asked}; there is {there}")


def _lines(facts: Facts, snippets: Sequence[Snippet]) -> Iterator[str]:
    yield f"# {in_markdown(facts.model)} for {facts.target}, {facts.precision}"
    yield ""
    yield f"How `{facts.file}` is run. Programs run in this folder."
    yield ""
    yield from _table("input", facts.inputs)
    yield from _table("output", facts.outputs)
    yield from _notes(facts)
    for one in snippets:
        yield f"## {one.language.capitalize()}: {one.runtime}"
        yield ""
        yield f"Needs {one.needs}."
        yield ""
        if one.beside:
            yield _BESIDE.get(one.language, _SAME).format(file=one.beside)
            yield ""
        yield f"```{_FENCES.get(one.language, one.language)}"
        yield one.code.rstrip("\n")
        yield "```"
        yield ""
    if not snippets:
        yield "Nobody has written a program for this target here; whatever reads its files runs it."
        yield ""
    yield "The same for any artifact: `edgesmith use ARTIFACT`, with `--lang` one program alone."


def _table(kind: str, values: Sequence[Value]) -> Iterator[str]:
    yield f"| {kind} | type | shape | |"
    yield "|---|---|---|---|"
    for one in values:
        shape = " x ".join(map(str, one.shape)) or "one number"
        cells = (one.name, one.type, shape, one.meaning)
        yield f"| {' | '.join(map(in_markdown, cells))} |"
    yield ""


def _notes(facts: Facts) -> Iterator[str]:
    """Yield what a caller has to know beside names and shapes."""
    if facts.labels is not None:
        order = "in the order of the file that `--labels` named: class i is its line i + 1"
        yield f"It has {facts.labels} labels, {order}."
        yield ""
    stream = facts.stream
    if stream is None:
        return
    who = "the runtime keeps them" if stream.is_kept else "each step's are outputs, and the next one's inputs"
    yield (
        f"One step of a sequence: a frame goes in, and its prediction comes out {count(stream.delay, 'step')} later."
        if stream.delay
        else "One step of a sequence: a frame goes in, and its prediction comes out."
    )
    yield f"{len(stream.states)} states hold what came before: {who}. They begin with these values:"
    yield ""
    yield "| state | next | type | shape | begins with |"
    yield "|---|---|---|---|---|"
    for one in stream.states:
        following = one.next if states_handed_on(facts) else ""
        shape = " x ".join(map(str, one.shape))
        yield f"| {in_markdown(one.name)} | {in_markdown(following)} | {one.type} | {shape} | {one.initial:g} |"
    yield ""
