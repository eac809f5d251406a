"""Snippets for ONNX Runtime: Python, C++ and Kotlin."""

from __future__ import annotations

from edgesmith.exporters.usage.facts import Facts, Stream, Value, word_of
from edgesmith.exporters.usage.runner import beside_step
from edgesmith.exporters.usage.source import CPP, KOTLIN, PYTHON, Snippet, count, name_in, numbers, quote

RUNTIME = "ONNX Runtime"
LABELS_KEY = "edgesmith.labels"
"""The entry of a file's metadata that has its labels, as JSON."""

_CPP_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "Ort::Float16_t",
    "bfloat16": "Ort::BFloat16_t",
    "int64": "int64_t",
    "int32": "int32_t",
    "int16": "int16_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "uint8_t",
}
"""A vector of C++'s own bool has no elements in memory; ONNX Runtime's bool is a byte."""

_KOTLIN_TYPES = {
    "float32": ("FloatBuffer", "FloatArray", ""),
    "float64": ("DoubleBuffer", "DoubleArray", ""),
    "int64": ("LongBuffer", "LongArray", ""),
    "int32": ("IntBuffer", "IntArray", ""),
    "float16": ("ShortBuffer", "ShortArray", ", OnnxJavaType.FLOAT16"),
    "bfloat16": ("ShortBuffer", "ShortArray", ", OnnxJavaType.BFLOAT16"),
    "int16": ("ShortBuffer", "ShortArray", ", OnnxJavaType.INT16"),
    "int8": ("ByteBuffer", "ByteArray", ", OnnxJavaType.INT8"),
    "uint8": ("ByteBuffer", "ByteArray", ", OnnxJavaType.UINT8"),
    "bool": ("ByteBuffer", "ByteArray", ", OnnxJavaType.BOOL"),
}
"""Of each type its buffer, its array, and the argument without which ONNX Runtime takes the buffer for another type."""


def snippets(facts: Facts) -> tuple[Snippet, ...]:
    """Return the programs that run an ONNX file."""
    return (
        Snippet(PYTHON, RUNTIME, "`pip install numpy onnxruntime`", python(facts), beside_step(PYTHON, facts)),
        Snippet(
            CPP,
            RUNTIME,
            "ONNX Runtime's C++ package from github.com/microsoft/onnxruntime/releases, unpacked to `$ORT`:"
            " `g++ -std=c++17 run.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -o run`",
            cpp(facts),
            beside_step(CPP, facts),
        ),
        Snippet(
            KOTLIN,
            f"{RUNTIME}, on Android",
            '`implementation("com.microsoft.onnxruntime:onnxruntime-android:latest.release")`, and the file among the'
            " app's assets",
            kotlin(facts),
        ),
    )


# Python


def numpy_type(value: str) -> str:
    """Return numpy's own word for a type."""
    return "np.bool_" if value == "bool" else f"np.{value}"


def python(facts: Facts) -> str:
    """Return the program in Python."""
    head = "import json\n" if facts.labels is not None else ""
    head += "from itertools import chain, repeat\n" if facts.stream else ""
    head += "\n" if head else ""
    lines = f"""{head}import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({quote(PYTHON, facts.file)}, providers=["CPUExecutionProvider"])
"""
    if facts.labels is not None:
        lines += f'LABELS = json.loads(session.get_modelmeta().custom_metadata_map["{LABELS_KEY}"])\n'
    body = _python_step(facts, facts.stream) if facts.stream else _python_call(facts)
    return lines + python_prepare(facts) + body


def python_prepare(facts: Facts) -> str:
    """Return the function that normalises an image, where the caller has to."""
    if facts.image is None:
        return ""
    sizes = facts.inputs[0].sizes
    return f"""
MEAN = np.array([{numbers(facts.image["mean"])}], np.float32)
STD = np.array([{numbers(facts.image["std"])}], np.float32)


def prepare(rgb):
    \"\"\"Return the input of an image: uint8 [{sizes[-2]}, {sizes[-1]}, 3], red first.\"\"\"
    return ((rgb.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None]

"""


def _python_call(facts: Facts) -> str:
    names = [name_in(PYTHON, one.name) for one in facts.inputs]
    feeds = ", ".join(f"{quote(PYTHON, one.name)}: {name}" for one, name in zip(facts.inputs, names, strict=True))
    wanted = ", ".join(quote(PYTHON, one.name) for one in facts.outputs)
    given = "\n".join(example(facts, one, name) for one, name in zip(facts.inputs, names, strict=True))
    results = ", ".join(name_in(PYTHON, one.name) for one in facts.outputs)
    return f"""

def predict({", ".join(names)}):
    \"\"\"Return {", ".join(map(_say, facts.outputs))}.\"\"\"
    return session.run([{wanted}], {{{feeds}}})


{given}
[{results}] = predict({", ".join(names)})
{_python_result(facts)}"""


def example(facts: Facts, value: Value, name: str) -> str:
    """Return the line that makes an input: zeros, in the place of the caller's own."""
    if facts.image is not None and value is facts.inputs[0]:
        sizes = value.sizes
        one = f"prepare(np.zeros(({sizes[-2]}, {sizes[-1]}, 3), np.uint8))"
        batch = sizes[0] if len(sizes) == 4 else 1
        made = one if batch == 1 else f"np.repeat({one}, {batch}, 0)"
        return f"{name} = {made}  # your image here"
    return (
        f"{name} = np.zeros({_tuple(value.sizes)}, {numpy_type(value.type)})  # yours here: {value.meaning or 'data'}"
    )


def _python_result(facts: Facts) -> str:
    """Return the line that shows the first output."""
    first = name_in(PYTHON, facts.outputs[0].name)
    if facts.labels is not None and not facts.segments:
        return f"print(LABELS[int({first}[0].argmax())])\n"
    return f"print({first}.shape)\n"


def _python_step(facts: Facts, stream: Stream) -> str:
    states = "\n".join(
        f"    {quote(PYTHON, one.name)}: ({_tuple(one.shape)}, {quote(PYTHON, one.type)}, {one.initial!r}),"
        for one in stream.states
    )
    frame = next(one for one in facts.inputs if one.name == stream.frame)
    outputs = ", ".join(quote(PYTHON, one.name) for one in facts.outputs)
    nexts = ", ".join(quote(PYTHON, one.next) for one in stream.states)
    flag = "" if stream.is_frame is None else f", {quote(PYTHON, stream.is_frame)}: np.full((1,), is_frame, np.float32)"
    return f"""
DELAY = {stream.delay}  # steps until the first frame's prediction
FRAME = {_tuple(frame.sizes)}
OUTPUTS, NEXT = [{outputs}], [{nexts}]
STATES = {{
{states}
}}


def step(frame, states, is_frame=True):
    \"\"\"Return the outputs of one step, and the states of the next one.\"\"\"
    values = session.run(OUTPUTS + NEXT, {{{quote(PYTHON, stream.frame)}: frame{flag}, **states}})
    return values[: len(OUTPUTS)], dict(zip(states, values[len(OUTPUTS) :]))


def predictions(frames):
    \"\"\"Yield the outputs for each frame of a sequence, DELAY steps after it.\"\"\"
    states = {{name: np.full(shape, initial, kind) for name, (shape, kind, initial) in STATES.items()}}
    for t, frame in enumerate(chain(frames, repeat(None, DELAY))):
        given = np.zeros(FRAME, np.float32) if frame is None else np.reshape(frame, FRAME)
        outputs, states = step(given, states, frame is not None)
        if t >= DELAY:
            yield outputs


for outputs in predictions(np.zeros((2, *FRAME), np.float32)):  # your frames here, as they come
    print([output.shape for output in outputs])
"""


def _tuple(sizes: tuple[int, ...]) -> str:
    return f"({numbers(sizes)},)" if len(sizes) == 1 else f"({numbers(sizes)})"


def _say(value: Value) -> str:
    return f"{value.name} [{numbers(value.sizes)}]"


# C++


def cpp_type(value: str) -> str:
    """Return C++'s type of an element."""
    return word_of(_CPP_TYPES, value, CPP)


def cpp(facts: Facts) -> str:
    """Return the program in C++: it reads raw values from its input and prints outputs, one a line."""
    body = _cpp_step(facts, facts.stream) if facts.stream else _cpp_call(facts)
    return f"""#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <iterator>
#include <vector>
{CPP_READ}
{_CPP_TENSOR}
int main() {{
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, {quote(CPP, facts.model)});
  Ort::SessionOptions options;
  Ort::Session session(env, ORT_TSTR({quote(CPP, facts.file)}), options);
{body}}}
"""


CPP_READ = """
// Fills a vector with raw values of standard input; false at its end. Put your own data here.
template <typename T>
bool read_raw(std::vector<T>& values) {
  const std::streamsize size = static_cast<std::streamsize>(values.size() * sizeof(T));
  return static_cast<bool>(std::cin.read(reinterpret_cast<char*>(values.data()), size));
}
"""

_CPP_TENSOR = """using Shape = std::vector<int64_t>;

Ort::Value tensor(void* values, size_t bytes, const Shape& shape, ONNXTensorElementDataType type) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor(memory, values, bytes, shape.data(), shape.size(), type);
}
"""


def _element_type(value: str) -> str:
    word = {"float32": "FLOAT", "float64": "DOUBLE"}.get(value, value.upper())
    return f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{word}"


def _cpp_input(value: Value) -> str:
    name, size = name_in(CPP, value.name), cpp_type(value.type)
    return f"  std::vector<{size}> {name}({value.count});  // {_cpp_words(value)}\n"


def _cpp_words(value: Value) -> str:
    said = value.meaning.replace("\n", " ")
    return f"[{numbers(value.sizes)}]{', ' + said if said else ''}"


def _cpp_tensor(value: Value) -> str:
    name = name_in(CPP, value.name)
    size = f"{name}.size() * sizeof({cpp_type(value.type)})"
    return f"tensor({name}.data(), {size}, {{{numbers(value.sizes)}}}, {_element_type(value.type)})"


def _cpp_show(value: Value, at: str) -> str:
    """Return the lines that print an output's elements in a line."""
    kind = cpp_type(value.type)
    shown = "float(value)" if kind.startswith("Ort::") else "+value" if kind.endswith("8_t") else "value"
    shown = "value.ToFloat()" if kind.startswith("Ort::") else shown
    return f"""{{
  const auto* first = {at}.GetTensorData<{"bool" if value.type == "bool" else kind}>();
  const size_t count = {at}.GetTensorTypeAndShapeInfo().GetElementCount();
  for (size_t i = 0; i < count; ++i) {{
    const auto value = first[i];
    std::cout << {shown} << (i + 1 < count ? ' ' : '\\n');
  }}
}}
"""


def _cpp_call(facts: Facts) -> str:
    inputs = "".join(map(_cpp_input, facts.inputs))
    taken, returned = len(facts.inputs), len(facts.outputs)
    reads = " || ".join(f"!read_raw({name_in(CPP, one.name)})" for one in facts.inputs)
    tensors = "".join(f"  inputs.push_back({_cpp_tensor(one)});\n" for one in facts.inputs)
    shows = "".join(
        f"  // {one.name}: {_cpp_words(one)}\n" + _indent(_cpp_show(one, f"outputs[{i}]"))
        for i, one in enumerate(facts.outputs)
    )
    return f"""
{inputs}  if ({reads}) return 1;
  std::vector<Ort::Value> inputs;
{tensors}
  const char* input_names[] = {{{", ".join(quote(CPP, one.name) for one in facts.inputs)}}};
  const char* output_names[] = {{{", ".join(quote(CPP, one.name) for one in facts.outputs)}}};
  auto outputs =
      session.Run(Ort::RunOptions(), input_names, inputs.data(), {taken}, output_names, {returned});
  std::cout.precision(9);
{shows}"""


def _indent(text: str) -> str:
    return "".join(f"  {line}" for line in text.splitlines(keepends=True))


def _cpp_step(facts: Facts, stream: Stream) -> str:
    frame = next(one for one in facts.inputs if one.name == stream.frame)
    head = [stream.frame] if stream.is_frame is None else [stream.frame, stream.is_frame]
    names = [*head, *(one.name for one in stream.states)]
    results = [*(one.name for one in facts.outputs), *(one.next for one in stream.states)]
    states = "\n".join(
        f"  states.push_back({{{{{numbers(one.shape)}}}, {one.initial!r}f}});  // {one.name}" for one in stream.states
    )
    fed = name_in(CPP, stream.frame)
    flag = (
        ""
        if stream.is_frame is None
        else (f"    inputs.push_back(tensor(&is_frame, sizeof(is_frame), {{1}}, {_element_type('float32')}));\n")
    )
    shows = "".join(_indent(_indent(_indent(_cpp_show(one, f"outputs[{i}]")))) for i, one in enumerate(facts.outputs))
    return f"""
  struct State {{
    std::vector<int64_t> shape;
    float initial;
  }};
  std::vector<State> states;
{states}

  // The states' first values. From then on each step's outputs are the next one's inputs.
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<Ort::Value> kept;
  for (const State& state : states) {{
    kept.push_back(Ort::Value::CreateTensor<float>(allocator, state.shape.data(), state.shape.size()));
    const size_t count = kept.back().GetTensorTypeAndShapeInfo().GetElementCount();
    std::fill_n(kept.back().GetTensorMutableData<float>(), count, state.initial);
  }}

  const char* input_names[] = {{{", ".join(quote(CPP, one) for one in names)}}};
  const char* output_names[] = {{{", ".join(quote(CPP, one) for one in results)}}};
  const int delay = {stream.delay};  // steps until the first frame's prediction
  std::vector<float> {fed}({frame.count});  // {_cpp_words(frame)}
  std::cout.precision(9);
  for (int t = 0, late = 0; late <= delay; ++t) {{
    float is_frame = late == 0 && read_raw({fed}) ? 1.0f : 0.0f;
    if (is_frame == 0.0f && ++late > delay) break;
    if (is_frame == 0.0f) std::fill({fed}.begin(), {fed}.end(), 0.0f);
    std::vector<Ort::Value> inputs;
    inputs.push_back({_cpp_tensor(frame)});
{flag}    for (Ort::Value& state : kept) inputs.push_back(std::move(state));
    auto outputs =
        session.Run(Ort::RunOptions(), input_names, inputs.data(), {len(names)}, output_names, {len(results)});
    kept.clear();
    std::move(outputs.begin() + {len(facts.outputs)}, outputs.end(), std::back_inserter(kept));
    if (t >= delay) {{
{shows}    }}
  }}
"""


# Kotlin


def kotlin(facts: Facts) -> str:
    """Return the program in Kotlin."""
    kinds = [word_of(_KOTLIN_TYPES, one.type, KOTLIN) for one in facts.inputs]
    arrays = sorted({buffer for buffer, _, _ in kinds} | ({"FloatBuffer"} if facts.stream else set()))
    typed = any(argument for _, _, argument in kinds)
    imports = [f"ai.onnxruntime.{one}" for one in ("OnnxTensor", "OrtEnvironment", "OrtSession")]
    imports += ["ai.onnxruntime.OnnxJavaType"] if typed else []
    imports += ["android.content.Context", *(f"java.nio.{one}" for one in arrays)]
    body = _kotlin_step(facts, facts.stream) if facts.stream else _kotlin_call(facts)
    head = "".join(f"import {one}\n" for one in sorted(imports))
    name = "".join(part.capitalize() for part in name_in(KOTLIN, facts.model).split("_")) or "Model"
    return f"""{head}
class {name}(context: Context) : AutoCloseable {{
    private val env = OrtEnvironment.getEnvironment()
    private val session: OrtSession =
        env.createSession(context.assets.open({quote(KOTLIN, facts.file)}).use {{ it.readBytes() }})
{body}
    override fun close() = session.close()
}}
"""


def _kotlin_tensor(value: Value, given: str) -> str:
    buffer, _, kind = word_of(_KOTLIN_TYPES, value.type, KOTLIN)
    return f"OnnxTensor.createTensor(env, {buffer}.wrap({given}), longArrayOf({numbers(value.sizes)}){kind})"


def _kotlin_call(facts: Facts) -> str:
    names = [name_in(KOTLIN, one.name) for one in facts.inputs]
    pairs = list(zip(names, facts.inputs, strict=True))
    parameters = ", ".join(f"{name}: {word_of(_KOTLIN_TYPES, one.type, KOTLIN)[1]}" for name, one in pairs)
    words = "".join(f"     * @param {name} {_cpp_words(one)}\n" for name, one in pairs)
    made = "".join(f"        {quote(KOTLIN, one.name)} to {_kotlin_tensor(one, name)},\n" for name, one in pairs)
    first = facts.outputs[0]
    return f"""
    /**
     * Returns {_say(first)}{", " + first.meaning if first.meaning else ""}.
{words}     */
    fun predict({parameters}): Any {{
        val inputs = mapOf(
{_indent(made)}        )
        try {{
            return session.run(inputs).use {{ it.get({quote(KOTLIN, first.name)}).get().value }}
        }} finally {{
            inputs.values.forEach(OnnxTensor::close)
        }}
    }}
"""


def _kotlin_step(facts: Facts, stream: Stream) -> str:
    frame = next(one for one in facts.inputs if one.name == stream.frame)
    first = facts.outputs[0]
    states = "".join(
        f"        {quote(KOTLIN, one.name)} to filled({one.initial!r}f, {numbers(one.shape)}),\n"
        for one in stream.states
    )
    flag = (
        ""
        if stream.is_frame is None
        else (f"        inputs[{quote(KOTLIN, stream.is_frame)}] = filled(if (frame != null) 1f else 0f, 1)\n")
    )
    return f"""
    private var states: Map<String, OnnxTensor> = first()
    private var steps = 0

    private fun filled(value: Float, vararg shape: Long): OnnxTensor {{
        val count = shape.fold(1L) {{ product, size -> product * size }}.toInt()
        return OnnxTensor.createTensor(env, FloatBuffer.wrap(FloatArray(count) {{ value }}), shape)
    }}

    private fun first() = mapOf(
{states}    )

    /** Forgets the sequence so far. */
    fun reset() {{
        states.values.forEach(OnnxTensor::close)
        states = first()
        steps = 0
    }}

    /**
     * Returns {_say(first)} for the frame {count(stream.delay, "step")} ago, null where there was none yet.
     *
     * @param frame {_cpp_words(frame)}; null in the {count(stream.delay, "step")} after the last one.
     */
    fun step(frame: FloatArray?): Any? {{
        val inputs = states.toMutableMap()
        val given = frame ?: FloatArray({frame.count})
        inputs[{quote(KOTLIN, stream.frame)}] = {_kotlin_tensor(frame, "given")}
{flag}        val result = session.run(inputs)
        val output = (result.get({quote(KOTLIN, first.name)}).get() as OnnxTensor).use {{ it.value }}
        inputs.values.forEach(OnnxTensor::close)
        states = states.keys.associateWith {{ result.get("next_$it").get() as OnnxTensor }}
        steps += 1
        return if (steps > {stream.delay}) output else null
    }}
"""
