"""A model in ONNX Runtime for the C++ stand-ins in include/: tensors over standard input and output, see served.h."""

from __future__ import annotations

import struct
import sys

import numpy as np
import onnx
import onnxruntime


def main(path: str) -> None:
    into, out = sys.stdin.buffer, sys.stdout.buffer

    def put(value: int) -> None:
        out.write(struct.pack("<q", value))

    def put_shape(shape) -> None:
        put(len(shape))
        for size in shape:
            put(size)

    def get() -> int:
        content = into.read(8)
        if len(content) < 8:
            sys.exit(0)
        return struct.unpack("<q", content)[0]

    graph = onnx.load(path).graph
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ports = [(one, True) for one in graph.input] + [(one, False) for one in graph.output]
    put(len(ports))
    for one, is_input in ports:
        name = one.name.encode()
        put(len(name))
        out.write(name)
        put(is_input)
        put(one.type.tensor_type.elem_type)
        put_shape([size.dim_value for size in one.type.tensor_type.shape.dim])
    out.flush()
    while True:
        feeds = {}
        for _ in range(get()):
            name = into.read(get()).decode()
            kind = onnx.helper.tensor_dtype_to_np_dtype(get())
            shape = [get() for _ in range(get())]
            feeds[name] = np.frombuffer(into.read(get()), kind).reshape(shape)
        names = [into.read(get()).decode() for _ in range(get())]
        for value in session.run(names, feeds):
            put(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
            put_shape(value.shape)
            content = np.ascontiguousarray(value).tobytes()
            put(len(content))
            out.write(content)
        out.flush()


main(sys.argv[1])
