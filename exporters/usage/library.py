"""The snippet for a compiled library of target `tvm`: Python, by the loader beside it."""

from __future__ import annotations

from edgesmith.exporters.usage.facts import Facts
from edgesmith.exporters.usage.onnx_runtime import example, python_prepare
from edgesmith.exporters.usage.source import PYTHON, Snippet, name_in


def snippets(facts: Facts, loader: str) -> tuple[Snippet, ...]:
    """Return the program that runs a library once; none for a step, whose states the caller hands on.

    Args:
        loader: the module beside the library that opens it.
    """
    if facts.stream is not None:
        return ()
    needs = "`pip install numpy`, and this folder; `example.c` is the same in C"
    return (Snippet(PYTHON, "the library itself", needs, _python(facts, loader)),)


def _python(facts: Facts, loader: str) -> str:
    names = [name_in(PYTHON, value.name) for value in facts.inputs]
    made = "\n".join(example(facts, value, name) for value, name in zip(facts.inputs, names, strict=True))
    outputs = ", ".join(name_in(PYTHON, value.name) for value in facts.outputs)
    first = name_in(PYTHON, facts.outputs[0].name)
    return f"""import numpy as np
from {loader} import Model

model = Model()
{python_prepare(facts)}
{made}
[{outputs}] = model({", ".join(names)})
print({first}.shape)
"""
