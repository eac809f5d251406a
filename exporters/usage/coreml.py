"""Snippets for Core ML: Swift, with Vision where the file takes a picture, and Python on a Mac."""

from __future__ import annotations

from pathlib import PurePosixPath

from edgesmith.exporters.usage.facts import Facts, Stream, Value, states_handed_on, word_of
from edgesmith.exporters.usage.source import PYTHON, SWIFT, Snippet, name_in, numbers, quote, swift_delay

_KINDS = {"float32": ".float32", "float16": ".float16", "float64": ".double", "int32": ".int32"}
_STATES_SINCE = "Core ML keeps the states from iOS 18 and macOS 15 on."


def snippets(facts: Facts) -> tuple[Snippet, ...]:
    """Return the programs that run a Core ML package."""
    with_vision = " with Vision" if facts.takes_image else ""
    return (
        Snippet(
            SWIFT,
            f"Core ML{with_vision}",
            f"`{facts.file}` in an Xcode project, which compiles it when the app is built",
            swift(facts),
        ),
        Snippet(PYTHON, "Core ML, on a Mac", "`pip install coremltools numpy pillow`", python(facts)),
    )


def swift(facts: Facts) -> str:
    """Return the program in Swift."""
    if facts.stream:
        return _swift_load(facts) + _swift_step(facts, facts.stream)
    if facts.takes_image and len(facts.inputs) == 1:
        return _swift_vision(facts)
    return _swift_load(facts) + _swift_call(facts)


def _swift_load(facts: Facts, *frameworks: str) -> str:
    imports = "".join(f"import {one}\n" for one in ("CoreML", *frameworks))
    others = [f'// configuration.functionName = "{one}" runs the other function.\n' for one in facts.functions[1:]]
    return f"""{imports}
let configuration = MLModelConfiguration()
configuration.computeUnits = .all
{"".join(others)}let compiled = Bundle.main.url(forResource: {quote(SWIFT, _stem(facts))}, withExtension: "mlmodelc")!
let model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
"""


def _stem(facts: Facts) -> str:
    return PurePosixPath(facts.file).stem


def _swift_vision(facts: Facts) -> str:
    size = facts.inputs[0].sizes
    if facts.labels is not None and not facts.segments:
        result = """    let classes = request.results as! [VNClassificationObservation]  // best first
    return classes.prefix(5).map { ($0.identifier, $0.confidence) }"""
        returned = "[(String, Float)]"
    else:
        result = """    let observation = request.results!.first as! VNCoreMLFeatureValueObservation
    return observation.featureValue.multiArrayValue!"""
        returned = "MLMultiArray"
    shown = "[" + numbers(facts.outputs[0].sizes) + "]" if returned == "MLMultiArray" else "best first"
    return f"""{_swift_load(facts, "Vision")}let vision = try VNCoreMLModel(for: model)

/// Returns {facts.outputs[0].name}, {shown}, of a picture of any size: Vision scales it to {numbers(size[-2:])},
/// and the file normalises it.
func predict(_ picture: CGImage) throws -> {returned} {{
    let request = VNCoreMLRequest(model: vision)
    request.imageCropAndScaleOption = .centerCrop
    try VNImageRequestHandler(cgImage: picture).perform([request])
{result}
}}
"""


def _swift_array(value: Value) -> str:
    """Return the lines that make an input: zeros, in the place of the caller's own."""
    name = name_in(SWIFT, value.name)
    said = f", {value.meaning}" if value.meaning else ""
    kind = word_of(_KINDS, value.type, SWIFT)
    place, one = numbers([0] * len(value.sizes)), "1" if value.type.startswith("int") else "0.5"
    return f"""let {name} = try MLMultiArray(shape: [{numbers(value.sizes)}], dataType: {kind})
// {name}[[{place}]] = {one} sets one element; withUnsafeMutableBufferPointer gives all{said}
"""


def _swift_call(facts: Facts) -> str:
    arrays = "".join(map(_swift_array, facts.inputs))
    pairs = ", ".join(f"{quote(SWIFT, one.name)}: {name_in(SWIFT, one.name)}" for one in facts.inputs)
    return f"""
{arrays}let inputs = try MLDictionaryFeatureProvider(dictionary: [{pairs}])
let outputs = try await model.prediction(from: inputs)
{"".join(map(_swift_output, facts.outputs))}"""


def _swift_output(value: Value) -> str:
    name, at = name_in(SWIFT, value.name), f"outputs.featureValue(for: {quote(SWIFT, value.name)})!"
    if value.type == "string":
        return f"let {name} = {at}.stringValue  // {value.meaning}\n"
    if value.type == "scores":
        return f"let {name} = {at}.dictionaryValue  // {value.meaning}\n"
    said = f", {value.meaning}" if value.meaning else ""
    return f"let {name} = {at}.multiArrayValue!  // [{numbers(value.sizes)}]{said}\n"


def _swift_step(facts: Facts, stream: Stream) -> str:
    """Return the loop over frames: Core ML keeps the states, or the program hands them from step to step."""
    frame = next(one for one in facts.inputs if one.name == stream.frame)
    flag = (
        ""
        if stream.is_frame is None
        else f",\n        {quote(SWIFT, stream.is_frame)}: try filled(isFrame ? 1 : 0, [1])"
    )
    first = facts.outputs[0]
    handed = states_handed_on(facts)
    kind = word_of(_KINDS, frame.type, SWIFT)
    filled = f"""
func filled(_ value: Double, _ shape: [NSNumber]) throws -> MLMultiArray {{
    let array = try MLMultiArray(shape: shape, dataType: {kind})
    for i in 0..<array.count {{ array[i] = NSNumber(value: value) }}
    return array
}}
"""
    if stream.is_kept:
        made = f"\n// {_STATES_SINCE} A new state forgets the sequence so far.\nlet state = model.makeState()\n"
        merged, run, after = "let inputs", "model.prediction(from: provider, using: state)", ""
    else:
        rows = "".join(
            f"    {quote(SWIFT, one.name)}: try filled({one.initial!r}, [{numbers(one.shape)}]),\n" for one in handed
        )
        made = f"\nvar states: [String: MLMultiArray] = [\n{rows}]\n"
        merged, run = "var inputs", "model.prediction(from: provider)"
        after = """    for name in states.keys {
        states[name] = outputs.featureValue(for: "next_\\(name)")!.multiArrayValue!
    }
"""
    joined = "" if stream.is_kept else "    inputs.merge(states) { given, _ in given }\n"
    return f"""{filled}{made}
/// Returns {first.name} [{numbers(first.sizes)}] {swift_delay(stream.delay)}
func step(_ frame: MLMultiArray, isFrame: Bool = true) throws -> MLMultiArray {{
    {merged}: [String: MLMultiArray] = [
        {quote(SWIFT, stream.frame)}: frame{flag}
    ]
{joined}    let provider = try MLDictionaryFeatureProvider(dictionary: inputs)
    let outputs = try {run}
{after}    return outputs.featureValue(for: {quote(SWIFT, first.name)})!.multiArrayValue!
}}

// Your frame here, as it comes{": " + frame.meaning if frame.meaning else ""}.
let frame = try filled(0, [{numbers(frame.sizes)}])
let {name_in(SWIFT, first.name)} = try step(frame)
"""


def python(facts: Facts) -> str:
    """Return the program in Python, which Core ML runs on a Mac only."""
    functions = "".join(f'# function_name="{one}" runs the other function.\n' for one in facts.functions[1:])
    handed = states_handed_on(facts)
    given = "".join(_python_input(one) for one in facts.inputs)
    states = "".join(
        f"    {quote(PYTHON, one.name)}: np.full({_tuple(one.shape)}, {one.initial!r}, np.float32),\n" for one in handed
    )
    kept = facts.stream is not None and facts.stream.is_kept
    using = ", state" if kept else ""
    prepared = f"state = model.make_state()  # {_STATES_SINCE}\n" if kept else ""
    after = (
        'states = {name[5:]: value for name, value in outputs.items() if name.startswith("next_")}\n'
        "inputs.update(states)  # for the next step\n"
        if handed
        else ""
    )
    pillow = "from PIL import Image\n" if any(one.type == "image" for one in facts.inputs) else ""
    shown = facts.outputs[0]
    end = f"outputs[{quote(PYTHON, shown.name)}]" + (".shape" if shown.type not in ("string", "scores") else "")
    return f"""import coremltools as ct
import numpy as np
{pillow}
{functions}model = ct.models.MLModel({quote(PYTHON, facts.file)})
{prepared}inputs = {{
{given}{states}}}
outputs = model.predict(inputs{using})
{after}print({end})
"""


def _python_input(value: Value) -> str:
    said = f"  # yours here: {value.meaning or 'data'}"
    name = quote(PYTHON, value.name)
    if value.type == "image":
        height, width = value.sizes[-2:]
        return f'    {name}: Image.new("RGB", ({width}, {height})),{said}\n'
    kind = "int32" if value.type == "int32" else "float32"
    return f"    {name}: np.zeros({_tuple(value.sizes)}, np.{kind}),{said}\n"


def _tuple(sizes: tuple[int, ...]) -> str:
    return f"({numbers(sizes)},)" if len(sizes) == 1 else f"({numbers(sizes)})"
