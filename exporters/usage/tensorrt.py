"""Snippets for TensorRT's runtimes, TensorRT and TensorRT-RTX: Python and C++."""

from __future__ import annotations

from pathlib import PurePosixPath

from edgesmith.exporters.usage.facts import Facts, Stream, Value
from edgesmith.exporters.usage.onnx_runtime import CPP_READ, cpp_type, numpy_type, python_prepare
from edgesmith.exporters.usage.runner import beside_step
from edgesmith.exporters.usage.source import CPP, PYTHON, Snippet, name_in, numbers, quote

ENGINE = ".engine"


def snippets(facts: Facts, is_rtx: bool, is_kit: bool) -> tuple[Snippet, ...]:
    """Return the programs that run an engine.

    Args:
        is_rtx: whether TensorRT-RTX has built it.
        is_kit: whether a board builds it, with the kit's build.py.
    """
    runtime = "TensorRT-RTX" if is_rtx else "TensorRT"
    module, library = ("tensorrt_rtx", "tensorrt_rtx") if is_rtx else ("tensorrt", "nvinfer")
    file = str(PurePosixPath(facts.file).with_suffix(ENGINE))
    built = f"`{file}`, which `python3 build.py --out DIR` writes, " if is_kit else f"`{file}`, "
    return (
        Snippet(
            PYTHON,
            runtime,
            f"{built}numpy and the module `{module}`",
            python(facts, file, module),
            beside_step(PYTHON, facts),
        ),
        Snippet(
            CPP,
            runtime,
            f"{built}and `g++ -std=c++17 run.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -l{library} -lcudart"
            " -o run`",
            cpp(facts, file),
            beside_step(CPP, facts),
        ),
    )


# Python


def python(facts: Facts, file: str, module: str) -> str:
    """Return the program in Python: numpy, TensorRT's module, and CUDA's runtime library by ctypes."""
    return f"""import ctypes

import numpy as np
import {module} as trt

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
cuda = ctypes.CDLL("libcudart.so")
engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(open({quote(PYTHON, file)}, "rb").read())
context = engine.create_execution_context()
stream = ctypes.c_void_p()
cuda.cudaStreamCreate(ctypes.byref(stream))
arrays, addresses = {{}}, {{}}
for i in range(engine.num_io_tensors):
    name = engine.get_tensor_name(i)
    arrays[name] = np.zeros(tuple(engine.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
    addresses[name] = ctypes.c_void_p()
    cuda.cudaMalloc(ctypes.byref(addresses[name]), ctypes.c_size_t(max(arrays[name].nbytes, 1)))
    context.set_tensor_address(name, addresses[name].value)
INPUTS = [name for name in arrays if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]


def copy(target, source, size, kind):
    cuda.cudaMemcpyAsync(target, source, ctypes.c_size_t(size), ctypes.c_int(kind), stream)


def call(inputs):
    \"\"\"Return the outputs by name, for inputs by name; the arrays are filled anew by the next call.\"\"\"
    for name in INPUTS:
        arrays[name][...] = inputs[name]
        copy(addresses[name], ctypes.c_void_p(arrays[name].ctypes.data), arrays[name].nbytes, HOST_TO_DEVICE)
    if not context.execute_async_v3(stream.value):
        raise RuntimeError("TensorRT does not run the engine")
    outputs = {{name: array for name, array in arrays.items() if name not in INPUTS}}
    for name, array in outputs.items():
        copy(ctypes.c_void_p(array.ctypes.data), addresses[name], array.nbytes, DEVICE_TO_HOST)
    cuda.cudaStreamSynchronize(stream)
    return outputs
{python_prepare(facts)}
{_python_step(facts, facts.stream) if facts.stream else _python_call(facts)}"""


def _python_call(facts: Facts) -> str:
    given = "".join(
        f"    {quote(PYTHON, one.name)}: np.zeros({_tuple(one.sizes)}, {numpy_type(one.type)}),"
        f"{'  # yours here: ' + one.meaning if one.meaning else ''}\n"
        for one in facts.inputs
    )
    return f"""
outputs = call({{
{given}}})
print(outputs[{quote(PYTHON, facts.outputs[0].name)}].shape)
"""


def _python_step(facts: Facts, stream: Stream) -> str:
    states = "".join(f"    {quote(PYTHON, one.name)}: {one.initial!r},\n" for one in stream.states)
    frame = next(one for one in facts.inputs if one.name == stream.frame)
    flag = "" if stream.is_frame is None else f", {quote(PYTHON, stream.is_frame)}: float(is_frame)"
    return f"""
DELAY = {stream.delay}  # steps until the first frame's prediction
FRAME = {_tuple(frame.sizes)}
OUTPUTS = [{", ".join(quote(PYTHON, one.name) for one in facts.outputs)}]
STATES = {{  # the first value of every element
{states}}}


def predictions(frames):
    \"\"\"Yield the outputs for each frame of a sequence, DELAY steps after it.\"\"\"
    states, steps = dict(STATES), 0

    def step(frame, is_frame):
        nonlocal states, steps
        given = np.reshape(frame, FRAME) if is_frame else 0.0
        outputs = call({{{quote(PYTHON, stream.frame)}: given{flag}, **states}})
        states = {{name: outputs[f"next_{{name}}"].copy() for name in states}}
        steps += 1
        return [outputs[name].copy() for name in OUTPUTS]

    for frame in frames:
        outputs = step(frame, True)
        if steps > DELAY:
            yield outputs
    for _ in range(DELAY):
        outputs = step(None, False)
        if steps > DELAY:
            yield outputs


for outputs in predictions(np.zeros((2, *FRAME), np.float32)):  # your frames here, as they come
    print([output.shape for output in outputs])
"""


def _tuple(sizes: tuple[int, ...]) -> str:
    return f"({numbers(sizes)},)" if len(sizes) == 1 else f"({numbers(sizes)})"


# C++


def cpp(facts: Facts, file: str) -> str:
    """Return the program in C++: it reads raw values from its input and prints the first output, one a line."""
    body = _cpp_step(facts, facts.stream) if facts.stream else _cpp_call(facts)
    return f"""#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>
{CPP_READ}
struct Log : nvinfer1::ILogger {{
  void log(Severity severity, const char* text) noexcept override {{
    if (severity <= Severity::kWARNING) std::cerr << text << std::endl;
  }}
}};

int main() {{
  std::cout.precision(9);
  Log log;
  std::ifstream file({quote(CPP, file)}, std::ios::binary);
  std::vector<char> bytes{{std::istreambuf_iterator<char>(file), {{}}}};
  std::unique_ptr<nvinfer1::IRuntime> runtime{{nvinfer1::createInferRuntime(log)}};
  std::unique_ptr<nvinfer1::ICudaEngine> engine{{runtime->deserializeCudaEngine(bytes.data(), bytes.size())}};
  if (!engine) return 1;  // the log says why
  std::unique_ptr<nvinfer1::IExecutionContext> context{{engine->createExecutionContext()}};
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  std::map<std::string, void*> device;
  const auto bind = [&](const char* name, size_t size) {{
    cudaMalloc(&device[name], size);
    context->setTensorAddress(name, device[name]);
  }};
  const auto put = [&](const char* name, const void* values, size_t size) {{
    cudaMemcpyAsync(device[name], values, size, cudaMemcpyHostToDevice, stream);
  }};
  const auto get = [&](const char* name, void* values, size_t size) {{
    cudaMemcpyAsync(values, device[name], size, cudaMemcpyDeviceToHost, stream);
  }};
{body}}}
"""


def _cpp_type(value: Value) -> str:
    return {"float16": "uint16_t", "bfloat16": "uint16_t"}.get(value.type) or cpp_type(value.type)


def _bytes(kind: str, count: int) -> str:
    return f"{count} * sizeof({kind})"


def _cpp_words(value: Value) -> str:
    said = value.meaning.replace("\n", " ")
    return f"[{numbers(value.sizes)}]{', ' + said if said else ''}"


def _cpp_call(facts: Facts) -> str:
    lines = []
    for one in (*facts.inputs, *facts.outputs):
        name, kind = name_in(CPP, one.name), _cpp_type(one)
        lines += [
            f"  std::vector<{kind}> {name}({one.count});  // {_cpp_words(one)}",
            f"  bind({quote(CPP, one.name)}, {_bytes(kind, one.count)});",
        ]
    for one in facts.inputs:
        name, kind = name_in(CPP, one.name), _cpp_type(one)
        lines += [
            f"  if (!read_raw({name})) return 1;",
            f"  put({quote(CPP, one.name)}, {name}.data(), {_bytes(kind, one.count)});",
        ]
    lines += ["  if (!context->enqueueV3(stream)) return 1;"]
    for one in facts.outputs:
        size = _bytes(_cpp_type(one), one.count)
        lines += [f"  get({quote(CPP, one.name)}, {name_in(CPP, one.name)}.data(), {size});"]
    lines += [
        "  cudaStreamSynchronize(stream);",
        f"  for (auto value : {name_in(CPP, facts.outputs[0].name)}) std::cout << value << ' ';",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _cpp_step(facts: Facts, stream: Stream) -> str:
    frame = next(one for one in facts.inputs if one.name == stream.frame)
    first = facts.outputs[0]
    states = "\n".join(
        f"      {{{quote(CPP, one.name)}, {quote(CPP, one.next)}, {_product(one.shape)}, {one.initial!r}f}},"
        for one in stream.states
    )
    fed = name_in(CPP, stream.frame)
    bind_flag = "" if stream.is_frame is None else f"  bind({quote(CPP, stream.is_frame)}, sizeof(float));\n"
    put_flag = "" if stream.is_frame is None else f"    put({quote(CPP, stream.is_frame)}, &is_frame, sizeof(float));\n"
    others = "".join(f"  bind({quote(CPP, one.name)}, {_bytes(_cpp_type(one), one.count)});\n" for one in facts.outputs)
    name = name_in(CPP, first.name)
    return f"""
  struct State {{
    const char *name, *next;
    size_t count;
    float initial;
  }};
  const std::vector<State> states = {{
{states}
  }};
  for (const State& state : states) {{
    bind(state.name, state.count * sizeof(float));
    bind(state.next, state.count * sizeof(float));
    const std::vector<float> values(state.count, state.initial);
    put(state.name, values.data(), state.count * sizeof(float));
    cudaStreamSynchronize(stream);  // values end here
  }}

  const int delay = {stream.delay};  // steps until the first frame's prediction
  std::vector<float> {fed}({frame.count});  // {_cpp_words(frame)}
  std::vector<float> {name}({first.count});  // {_cpp_words(first)}
  bind({quote(CPP, stream.frame)}, {frame.count} * sizeof(float));
{bind_flag}{others}  for (int t = 0, late = 0; late <= delay; ++t) {{
    float is_frame = late == 0 && read_raw({fed}) ? 1.0f : 0.0f;
    if (is_frame == 0.0f && ++late > delay) break;
    if (is_frame == 0.0f) {fed}.assign({fed}.size(), 0.0f);
    put({quote(CPP, stream.frame)}, {fed}.data(), {fed}.size() * sizeof(float));
{put_flag}    if (!context->enqueueV3(stream)) return 1;
    for (const State& state : states) {{  // each step's outputs are the next one's inputs
      const size_t size = state.count * sizeof(float);
      cudaMemcpyAsync(device[state.name], device[state.next], size, cudaMemcpyDeviceToDevice, stream);
    }}
    get({quote(CPP, first.name)}, {name}.data(), {name}.size() * sizeof(float));
    cudaStreamSynchronize(stream);
    if (t < delay) continue;
    for (float value : {name}) std::cout << value << ' ';
    std::cout << std::endl;
  }}
"""


def _product(sizes: tuple[int, ...]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count
