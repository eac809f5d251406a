"""A stand-in for the module `tensorrt`, for tests without a GPU: the API that a kit's build.py and bench's runner use.

It is no TensorRT. It builds nothing and speeds nothing up: an "engine" is a header and the ONNX, and its numbers are
ONNX Runtime's; its profiler says that every layer takes a millisecond. Importing it also makes
`ctypes.CDLL("libcudart...")` answer with host memory. The environment sets up:

    STANDIN_VERSION   what it says it is, default 10.3.0.26
    STANDIN_SM        of its GPU, default 8.7
    STANDIN_SCALE     factor on every output: wrong numbers
    STANDIN_LACKS     an operator that its parser refuses
    STANDIN_WAIT      a file: building creates it, and then takes forever
    STANDIN_NO_CUDA   no libcudart on this machine
    STANDIN_OTHER     engines are of another GPU, and do not open
"""

# ruff: noqa: N802, N815, RUF012  # the names are TensorRT's and CUDA's
from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

__version__ = os.environ.get("STANDIN_VERSION", "10.3.0.26")
_PARTS = tuple(map(int, __version__.split(".")))  # noqa: RUF048
HEADER = 64


class _Value(int):
    """A member of an enumeration."""

    name: str


def _values(*names: str) -> SimpleNamespace:
    found = {}
    for number, name in enumerate(names):
        found[name] = _Value(number)
        found[name].name = name
    return SimpleNamespace(**found)


_weak = ("FP16", "INT8", "BF16") if _PARTS < (11,) else ()
BuilderFlag = _values("TF32", "GPU_FALLBACK", "VERSION_COMPATIBLE", *_weak)
_typed = ("STRONGLY_TYPED",) if _PARTS >= (9, 1) else ()
NetworkDefinitionCreationFlag = _values(*(("EXPLICIT_BATCH",) if _PARTS < (11,) else ()), *_typed)
ProfilingVerbosity = _values("LAYER_NAMES_ONLY", "NONE", "DETAILED")
MemoryPoolType = _values("WORKSPACE")
HardwareCompatibilityLevel = _values("NONE", "AMPERE_PLUS")
DeviceType = _values("GPU", "DLA")
LayerInformationFormat = _values("ONELINE", "JSON")
TensorIOMode = _values("NONE", "INPUT", "OUTPUT")
OnnxParserFlag = _values("NATIVE_INSTANCENORM")


class ILogger:
    Severity = _values("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


class Logger(ILogger):
    WARNING = ILogger.Severity.WARNING

    def __init__(self, severity=None):
        pass

    def log(self, severity, message):
        pass


def init_libnvinfer_plugins(logger, namespace):
    return True


def nptype(kind):
    return kind


class Builder:
    num_DLA_cores = 2

    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        self.flags = flags
        return SimpleNamespace(model=None, num_layers=0, flags=flags)

    def create_builder_config(self):
        return _Config()

    def build_serialized_network(self, network, config):
        assert not config.unknown, config.unknown
        if wait := os.environ.get("STANDIN_WAIT"):
            Path(wait).touch()
            while True:
                time.sleep(0.05)
        log = self.logger.log
        log(ILogger.Severity.INFO, "Total Activation Memory: 1024 bytes")
        log(ILogger.Severity.INFO, "Total Weights Memory: 2048 bytes")
        log(ILogger.Severity.INFO, "Max Scratch Memory: 0 bytes")
        content = network.model.SerializeToString()
        header = bytearray(HEADER)
        header[:4], header[24 : 24 + len(_PARTS)] = b"ftrt", bytes(_PARTS)
        header[40:48] = _settings(config, network)
        return bytes(header) + content


def _settings(config, network):
    """What was asked for, where a test can see it: a byte each."""
    typed = bool(network.flags >> NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1) if _typed else False
    flags = sum(1 << flag for flag in config.set)
    device = int(getattr(config, "default_device_type", 0))
    return bytes((typed, flags, device, int(getattr(config, "hardware_compatibility_level", 0)), 0, 0, 0, 0))


class _Config:
    def __init__(self):
        self.set = {int(BuilderFlag.TF32)}
        self.unknown = []

    def set_flag(self, flag):
        self.set.add(int(flag))

    def clear_flag(self, flag):
        self.set.discard(int(flag))

    def set_memory_pool_limit(self, pool, size):
        assert size > 0

    def create_timing_cache(self, content):
        return SimpleNamespace(content=content)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return not cache.content or cache.content.startswith(b"timing cache")

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: b"timing cache, built once more " + self.cache.content[-4:])


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def set_flag(self, flag):
        pass

    def parse(self, content):
        model = onnx.load_from_string(content)
        for node in model.graph.node:
            if node.op_type == os.environ.get("STANDIN_LACKS"):
                self.errors.append(node)
        self.network.model, self.network.num_layers = model, len(model.graph.node)
        return not self.errors

    def get_error(self, index):
        node = self.errors[index]
        return SimpleNamespace(
            desc=lambda: f"In node {index}:\nNo importer registered for op: {node.op_type}. In f at g.cpp",
            node_name=lambda: node.name,
            node_operator=lambda: node.op_type,
        )


class IProfiler:
    pass


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, content):
        if os.environ.get("STANDIN_OTHER"):
            self.logger.log(
                ILogger.Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 6: another GPU. In f at g"
            )
            return None
        compatible = content[41] >> BuilderFlag.VERSION_COMPATIBLE & 1
        if compatible and not self.engine_host_code_allowed:
            return None
        return _Engine(content[HEADER:]) if content[:4] in (b"ftrt", b"vtrt") else None


_KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class _Engine:
    def __init__(self, content):
        self.content = content
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        self.values = {value.name: value for value in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.names = list(self.values)
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        inputs = [value.name for value in self.session.get_inputs()]
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return self.values[name].shape

    def get_tensor_dtype(self, name):
        return _KINDS[self.values[name].type]

    def create_execution_context(self):
        return _Context(self)

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda form: json.dumps(self.information()))

    def information(self):
        """The inspector's JSON, in the form of the version that this says it is."""
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(self.content))
        kinds = {
            value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)
        }
        words = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half"}
        layers = []
        for node in model.graph.node:
            kind = words.get(kinds.get(node.output[0]), "Float")
            split = {"Format": "Row major linear", "Datatype": kind} if _PARTS >= (11,) else {"Format/Datatype": kind}
            outputs = [{"Name": node.output[0], "Dimensions": [1], **split}]
            metadata = f"[ONNX Layer: {node.name}]"
            layers.append(
                {"Name": node.name, "LayerType": "kgen", "Inputs": [], "Outputs": outputs, "Metadata": metadata}
            )
        tensors = [{"Name": name} for name in self.names] if _PARTS >= (11,) else self.names
        return {"Layers": layers, "I/O Tensors" if _PARTS >= (11,) else "Bindings": tensors}


class _Context:
    profiler = None

    def __init__(self, engine):
        self.engine, self.addresses = engine, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def _array(self, name):
        kind, shape = np.dtype(self.engine.get_tensor_dtype(name)), self.engine.get_tensor_shape(name)
        count = int(np.prod(shape, dtype=np.int64))
        content = (ctypes.c_byte * (count * kind.itemsize)).from_address(self.addresses[name])
        return np.frombuffer(content, kind).reshape(shape)

    def execute_async_v3(self, stream):
        session = self.engine.session
        feeds = {value.name: self._array(value.name) for value in session.get_inputs()}
        scale = float(os.environ.get("STANDIN_SCALE", "1"))
        for value, result in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            self._array(value.name)[...] = result * scale if scale != 1 else result
        if self.profiler is not None:
            for layer in self.engine.information()["Layers"]:
                self.profiler.report_layer_time(layer["Name"], 1.0)
        return True


class _Cudart:
    """Host memory by the names of CUDA's runtime."""

    blocks: list = []

    def cudaMalloc(self, address, size):
        block = ctypes.create_string_buffer(size.value)
        self.blocks.append(block)
        address._obj.value = ctypes.addressof(block)
        return 0

    cudaMallocHost = cudaMalloc

    def cudaStreamCreate(self, handle):
        handle._obj.value = 1
        return 0

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        ctypes.memmove(target, source, size.value)
        return 0

    def cudaStreamSynchronize(self, stream):
        return 0

    def cudaDeviceGetAttribute(self, value, attribute, device):
        major, minor = os.environ.get("STANDIN_SM", "8.7").split(".")
        value._obj.value = int({75: major, 76: minor}[attribute.value])
        return 0

    def cudaRuntimeGetVersion(self, value):
        value._obj.value = 12060
        return 0


_CDLL = ctypes.CDLL


def _open(name, *arguments, **options):
    if name and "libcudart" in str(name):
        if os.environ.get("STANDIN_NO_CUDA"):
            raise OSError(f"{name}: cannot open shared object file")
        return _Cudart()
    return _CDLL(name, *arguments, **options)


ctypes.CDLL = _open
