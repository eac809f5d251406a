"""Snippets for Core AI: Swift by Apple's reference (developer.apple.com/documentation/coreai), and Python.

AIModel(contentsOf:)  loadFunction(named:)  NDArray(scalars:shape:)  run(inputs:)  Outputs.remove(_:)  view(as:)
"""

from __future__ import annotations

from pathlib import PurePosixPath

from edgesmith.exporters.usage.facts import Facts, Stream, Value
from edgesmith.exporters.usage.onnx_runtime import numpy_type, python_prepare
from edgesmith.exporters.usage.source import PYTHON, SWIFT, Snippet, name_in, numbers, quote, swift_delay

ENTRY = "main"
"""The name of a file's function."""

_SWIFT_TYPES = {"float32": "Float", "float16": "Float16", "int32": "Int32", "int64": "Int64", "bool": "Bool"}


def snippets(facts: Facts) -> tuple[Snippet, ...]:
    """Return the programs that run an `.aimodel`."""
    return (
        Snippet(
            SWIFT,
            "Core AI, from iOS 27 and macOS 27 on",
            f"`{facts.file}` in an Xcode project, and Xcode's Metal toolchain",
            swift(facts),
        ),
        Snippet(PYTHON, "Core AI's Python packages", "`pip install coreai-torch numpy`", python(facts)),
    )


def swift(facts: Facts) -> str:
    """Return the program in Swift."""
    path = PurePosixPath(facts.file)
    head = f"""import CoreAI

let url = Bundle.main.url(forResource: {quote(SWIFT, path.stem)}, withExtension: {quote(SWIFT, path.suffix[1:])})!
let model = try await AIModel(contentsOf: url)
let function = try model.loadFunction(named: "{ENTRY}")!
"""
    return head + (_swift_step(facts, facts.stream) if facts.stream else _swift_call(facts))


def _swift_array(value: Value, name: str) -> str:
    kind = _SWIFT_TYPES.get(value.type, "Float")
    return f"NDArray(scalars: {name}, shape: [{numbers(value.sizes)}])  // [{kind}]"


def _swift_output(value: Value) -> str:
    kind = _SWIFT_TYPES.get(value.type, "Float")
    name = name_in(SWIFT, value.name)
    said = f", {value.meaning}" if value.meaning else ""
    return f"""let {name} = outputs.remove({quote(SWIFT, value.name)})!.ndArray!  // [{numbers(value.sizes)}]{said}
let first = {name}.view(as: {kind}.self).withUnsafePointer {{ pointer, _, _ in pointer[0] }}
"""


def _swift_call(facts: Facts) -> str:
    given = "".join(
        f"let {name_in(SWIFT, one.name)} = [{_SWIFT_TYPES.get(one.type, 'Float')}](repeating: 0, count: {one.count})"
        f"  // yours here{': ' + one.meaning if one.meaning else ''}\n"
        for one in facts.inputs
    )
    pairs = "".join(
        f"    {quote(SWIFT, one.name)}: NDArray(scalars: {name_in(SWIFT, one.name)}, shape: [{numbers(one.sizes)}]),\n"
        for one in facts.inputs
    )
    return f"""
{given}var outputs = try await function.run(inputs: [
{pairs}])
{_swift_output(facts.outputs[0])}"""


def _swift_step(facts: Facts, stream: Stream) -> str:
    frame, first = next(one for one in facts.inputs if one.name == stream.frame), facts.outputs[0]
    states = "".join(
        f"    {quote(SWIFT, one.name)}: filled({one.initial!r}, [{numbers(one.shape)}]),\n" for one in stream.states
    )
    flag = (
        ""
        if stream.is_frame is None
        else f"    inputs[{quote(SWIFT, stream.is_frame)}] = filled(isFrame ? 1 : 0, [1])\n"
    )
    return f"""
func filled(_ value: Float, _ shape: [Int]) -> NDArray {{
    NDArray(scalars: [Float](repeating: value, count: shape.reduce(1, *)), shape: shape)
}}

var states: [String: NDArray] = [
{states}]

/// Returns {first.name} [{numbers(first.sizes)}] {swift_delay(stream.delay)}
func step(_ frame: [Float], isFrame: Bool = true) async throws -> NDArray {{
    var inputs = states
    inputs[{quote(SWIFT, stream.frame)}] = NDArray(scalars: frame, shape: [{numbers(frame.sizes)}])
{flag}    var outputs = try await function.run(inputs: inputs)
    for name in states.keys {{ states[name] = outputs.remove("next_\\(name)")!.ndArray! }}
    return outputs.remove({quote(SWIFT, first.name)})!.ndArray!
}}
"""


def python(facts: Facts) -> str:
    """Return the program in Python."""
    states = () if facts.stream is None else facts.stream.states
    given = "".join(
        f"        {quote(PYTHON, one.name)}: np.zeros({_tuple(one.sizes)}, {numpy_type(one.type)}),"
        f"{'  # yours here: ' + one.meaning if one.meaning else ''}\n"
        for one in facts.inputs
    )
    given += "".join(
        f"        {quote(PYTHON, one.name)}: np.full({_tuple(one.shape)}, {one.initial!r}, np.float32),\n"
        for one in states
    )
    loop = (
        '        # What begins with "next_" are the states of the next step, by the rest of its name.\n'
        if states
        else ""
    )
    first = facts.outputs[0]
    return f"""import asyncio
from pathlib import Path

import numpy as np
from coreai.authoring import AIModelAsset
from coreai.runtime import NDArray
{python_prepare(facts)}

async def predict(inputs):
    \"\"\"Return the outputs by name, for inputs by name.\"\"\"
    async with AIModelAsset.load(Path({quote(PYTHON, facts.file)})).executable() as model:
        function = model.load_function("{ENTRY}")
        results = await function({{name: NDArray(value) for name, value in inputs.items()}})
        return {{name: results[name].numpy().copy() for name in function.desc.output_names}}


async def main():
    inputs = {{
{given}    }}
    outputs = await predict(inputs)
{loop.replace("        #", "    #")}    print(outputs[{quote(PYTHON, first.name)}].shape)


asyncio.run(main())
"""


def _tuple(sizes: tuple[int, ...]) -> str:
    return f"({numbers(sizes)},)" if len(sizes) == 1 else f"({numbers(sizes)})"
