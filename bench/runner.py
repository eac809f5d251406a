"""What runs on the device: opens models, times them in turn, and prints what it finds, one JSON object a line.

One file, and nothing of edgesmith: it is copied to boards, which need Python 3.8, numpy and the runtime; for engines
that is the module `tensorrt` or `tensorrt_rtx`, and CUDA's libcudart.

    python runner.py < plan.json

    plan   {"models": [{"file": ..., "runtime": "onnxruntime"}], "threads": 1, "cores": [0] or null, "seed": 0,
            "seconds": 2.0, "slot_ms": 30.0, "runtimes": ["onnxruntime"]}       the last where there is no model;
                                                                            "operators": true: those are timed alone,
                                                                            "energy": true: calls are metered alone
            a model may have "options" of its runtime, such as {"compute_units": "ALL"}
    lacks  {"runtime", "why", "can_import"}                                 instead of all others: what cannot be
                                                                            imported, or cannot work here
    start  {"runtimes": {name: version}, "environment": {...}, "meters": {name: what it covers}}    once all is imported
    about  {"machine": {...}, "cores": [0, 1]}                              only where the plan has no model
    open   {"model", "load_ms", "first_ms", "memory_mib"}                   for each model, in the plan's order
    warm   {"model", "calls", "ms", "is_steady"}                            after the calls that were not kept
    slot   {"model", "round", "at_s", "samples_ms": [...]}                  several calls of one model in a row
    operators  {"model", "calls", "call_ms", "operators": [{"name", "type", "ms"}]}   of a plan that asks for them
    energy {"model", "calls", "seconds", "joules"}                          of a plan that asks for it
    end    {"environment": {...}}

A round has one slot for each model, in a new order every time, and lasts as long as its slots; rounds go on until
`seconds` have passed. The first call of a slot finds the caches full of another model and is not kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import glob
import hashlib
import importlib
import json
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Python 3.8 cannot subscript what the annotations name
    from collections.abc import Callable, Sequence

    Call = Callable[[], Any]
    Joules = Callable[[], float | None]

WINDOW_CALLS, WINDOW_MS = 5, 20.0
"""A window of the warm-up has so many calls, and goes on until so much time has passed."""

STEADY = 0.02
"""Three windows in a row whose medians neither fall nor rise throughout, or by less than this, are steady."""

WARM_UP_S = 5.0
"""After so much time a model is timed as it is, and the record says that it was not steady."""

FEWEST_PROFILED, MOST_PROFILED = 5, 200
"""Calls of which the time per operator is recorded; a profile holds a million events, and loops write many."""

SETTLE_S = 1.0
"""Calls go on for so long before power is sampled: sensors show averages, an INA3221 of up to 1024 conversions."""

METERED_S = 2.0
"""The longest that a meter runs at once.

RAPL's counters go on every millisecond or so, and go round in some 60 s at full load: Intel SDM, volume 3B, Package
RAPL Domain.
"""

BETWEEN_S = 0.1
"""Between two looks at power rails, on average.

A look is some transfers on the board's I2C bus: at this rate they are a small part of what is metered, and a run of two
seconds has twenty of them.
"""

TOTALS = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Power rails that add up to a Jetson's module: of Orin Nano and NX, Xavier NX, TX2; Nano; AGX Orin; AGX Xavier.

A rail that others feed is counted in them, as AGX Orin's VDDQ_VDD2_1V8AO is in VIN_SYS_5V0. NVIDIA, Jetson Linux
Developer Guide, Power Monitor; forums.developer.nvidia.com/t/200883 (VDD_IN), 73608 (POM_5V_IN), 81016 (AGX Xavier). A
board with other rails, as Thor, is not metered: nobody says which of them add up.
"""

ROOT = Path("/")
"""Where the system shows its settings and sensors."""

TOLD_S = 5.0
"""What a command of the system's may take."""


class Refusal(Exception):
    """Why a model cannot be timed here, in one sentence."""


def read(path: Path) -> str | None:
    """The first line of a file of the system's, or None."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return None


def number(text: str | None, scale: float = 1.0) -> float | None:
    """A number that the system wrote, or None."""
    try:
        return float(text or "") * scale
    except ValueError:
        return None


def environment() -> dict[str, Any]:
    """What the system shows of its clock, load and temperature. What it does not show is left out."""
    found: dict[str, Any] = {"time_s": time.time()}
    if hasattr(os, "getloadavg"):
        found["load"] = os.getloadavg()[0]
    cpus = Path("/sys/devices/system/cpu")
    frequencies = [number(read(path), 1e-3) for path in sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    listed = Path("/proc/cpuinfo")
    if not frequencies and listed.exists():
        lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
        frequencies = [number(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    if frequencies and None not in frequencies:
        found["frequency_mhz"] = frequencies
    governor = read(cpus / "cpu0/cpufreq/scaling_governor")
    if governor:
        found["governor"] = governor
    zones: dict[str, float] = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        degrees = number(read(zone / "temp"), 1e-3)
        if degrees is not None:
            zones[f"{zone.name} {read(zone / 'type') or ''}".strip()] = degrees
    if zones:
        found["temperature_c"] = zones
    ticks = (read(Path("/proc/stat")) or "").split()
    if len(ticks) > 8 and ticks[0] == "cpu":
        found["stolen_s"] = float(ticks[8]) / os.sysconf("SC_CLK_TCK")
    found["preempted"] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return found


def told(*command: str) -> str:
    """What a command of the system's prints; nothing where there is none, it fails, or takes too long."""
    found = shutil.which(command[0], path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if found is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603  # the system's own
            [found, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=TOLD_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def power_mode() -> str | None:
    """How the machine is set to trade speed for power, in the system's words; None where it shows nothing without root.

    Jetson   MAXN_SUPER          `nvpmodel -q`, which may say more before and after; without that command, as in
                                 containers, what it keeps: /var/lib/nvpmodel/status, with names in /etc/nvpmodel.conf
    macOS    low power           `pmset -g`: powermode 0 to 2 where there is a high power mode, else lowpowermode 0, 1
    Android  battery saver off   `settings get global low_power`, and what follows
    Linux    balanced, governor powersave, no boost         ACPI's platform profile, cpufreq's governors, boost

    NVIDIA, Jetson Linux Developer Guide, Supported Modes and Power Efficiency; pmset(1), and
    github.com/alfredapp/low-power-mode-workflow/issues/4; Android's Settings.Global; Linux' ABI/testing/
    sysfs-platform_profile, admin-guide/pm/cpufreq and intel_pstate.
    """
    mode = re.search(r"^NV Power Mode: *(\S+)", told("nvpmodel", "-q"), re.MULTILINE)
    if mode:
        return mode[1]
    kept = re.search(r"pmode:(\d+)", read(ROOT / "var/lib/nvpmodel/status") or "")
    if kept:
        with contextlib.suppress(OSError):
            modes = (ROOT / "etc/nvpmodel.conf").read_text(encoding="utf-8", errors="replace")
            named = re.search(rf"^< *POWER_MODEL +ID={int(kept[1])} +NAME=(\S+) *>", modes, re.MULTILINE)
            if named:
                return named[1]
        return f"nvpmodel {int(kept[1])}"
    mode = re.search(r"^ *(?:low)?powermode +([012])\b", told("pmset", "-g"), re.MULTILINE)
    if mode:
        return ("automatic", "low power", "high power")[int(mode[1])]
    found = []
    if (ROOT / "system/build.prop").exists():
        saver = told("settings", "get", "global", "low_power")
        found += [f"battery saver {'on' if saver == '1' else 'off'}"] if saver in ("0", "1") else []
    cpus = ROOT / "sys/devices/system/cpu"
    found += [read(ROOT / "sys/firmware/acpi/platform_profile") or ""]
    governors = {read(path) or "" for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    found += [f"governor {' and '.join(sorted(governors))}"] if governors else []
    is_off = read(cpus / "intel_pstate/no_turbo") == "1" or read(cpus / "cpufreq/boost") == "0"
    found += ["no boost"] if is_off else []
    return ", ".join(part for part in found if part) or None


def machine() -> dict[str, Any]:
    """What the machine is: its system, its processor or board, its power mode, and a hash that tells two apart."""
    node = uuid.getnode()
    own = f"{node:x}" if not node >> 40 & 1 else read(Path("/etc/machine-id")) or ""  # that bit marks a random number
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": processor(),
        "machine": hashlib.sha256(f"{platform.node()} {own}".encode()).hexdigest()[:12],
        "power_mode": power_mode(),
    }


def processor() -> str:
    """The board's name where the system has one, else the processor's."""
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], stdout=subprocess.PIPE, check=False)  # noqa: S607
        return asked.stdout.decode().strip() or platform.machine()
    board = (read(Path("/proc/device-tree/model")) or "").strip("\0")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return board or platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return board or (names[0] if names else platform.machine())


def usable_cores() -> list[int]:
    """The cores that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def memory_mib() -> float:
    """The most memory that this process has held, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2.0 ** (20 if sys.platform == "darwin" else 10)


def session_onnxruntime(path: str, threads: int, **settings: Any) -> Any:
    """A session of an ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def call_onnxruntime(session: Any, seed: int) -> Call:
    """A call that runs a session once; free axes are 1, inputs are normal numbers or zeros."""
    import numpy

    draw = numpy.random.RandomState(seed)
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        kinds = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16, "tensor(double)": numpy.float64}
        if value.type in kinds:
            feeds[value.name] = numpy.asarray(draw.standard_normal(shape)).astype(kinds[value.type])
        else:
            integers = {"tensor(int64)": numpy.int64, "tensor(int32)": numpy.int32, "tensor(bool)": numpy.bool_}
            feeds[value.name] = numpy.zeros(shape, integers.get(value.type, numpy.uint8))
    return lambda: session.run(None, feeds)


def open_onnxruntime(path: str, threads: int, seed: int) -> Call:
    """A call that runs an ONNX file once."""
    return call_onnxruntime(session_onnxruntime(path, threads), seed)


def operators_onnxruntime(path: str, threads: int, seed: int, seconds: float) -> dict[str, Any]:
    """Time per operator from ONNX Runtime's profile, of calls after the warm-up. Recording slows each call a little."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        session = session_onnxruntime(path, threads, enable_profiling=True, profile_file_prefix=prefix)
        call = call_onnxruntime(session, seed)
        warm, _, _ = warm_up(call)
        start, calls = time.perf_counter(), 0
        while calls < FEWEST_PROFILED or (calls < MOST_PROFILED and time.perf_counter() - start < seconds):
            call()
            calls += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return time_operators(events, warm)


def time_operators(events: Sequence[dict[str, Any]], skipped: int) -> dict[str, Any]:
    """Medians over calls of what each operator took in one, from a profile's events (times in microseconds).

    The first `skipped` calls are left out, and what runs inside another operator (the body of a loop) is part of that.
    """
    runs = sorted((event for event in events if event["name"] == "model_run"), key=lambda event: event["ts"])[skipped:]
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    nodes.sort(key=lambda event: (event["ts"], -event["dur"]))
    spent: dict[tuple[str, str], list[float]] = {}
    number, until = 0, 0.0
    for node in nodes:
        while number < len(runs) and node["ts"] >= runs[number]["ts"] + runs[number]["dur"]:
            number += 1
        if number == len(runs) or node["ts"] < max(until, runs[number]["ts"]):
            continue
        until = node["ts"] + node["dur"]
        key = (node["name"][: -len("_kernel_time")], node["args"].get("op_name", ""))
        spent.setdefault(key, [0.0] * len(runs))[number] += node["dur"] / 1e3
    return {
        "calls": len(runs),
        "call_ms": median([event["dur"] / 1e3 for event in runs]),
        "operators": [{"name": name, "type": kind, "ms": median(times)} for (name, kind), times in spent.items()],
    }


def version_onnxruntime() -> str:
    """The runtime's version."""
    import numpy  # noqa: F401  # so that its import is not timed as loading
    import onnxruntime

    return str(onnxruntime.__version__)


FLOATS = {65552: "float16", 65568: "float32", 65600: "float64"}
"""Core ML's numbers for types of arrays, and below for grey images: ArrayDataType, ColorSpace of FeatureTypes.proto."""
GREY = 10


def version_coremltools() -> str:
    """The package's version. Raises Refusal where there is no Core ML, ImportError for a package that times nothing."""
    import coremltools
    from coremltools.models import model

    if getattr(model, "_MLModelProxy", None) is None:
        if sys.platform == "darwin":
            raise Refusal("this coremltools is built without Core ML for this Python; another Python may have it")
        raise Refusal(f"Core ML is part of macOS, not of {platform.system()}")
    if not hasattr(model.MLModel, "last_predict_duration_in_nano_seconds"):
        raise ImportError(f"coremltools {coremltools.__version__} does not say how long Core ML takes, and 9 does")
    return str(coremltools.__version__)


def feeds_coremltools(description: Any, seed: int) -> dict[str, Any]:
    """What the inputs that a package describes take: normal numbers, zeros where they are integers, grey images."""
    import numpy

    draw = numpy.random.RandomState(seed)
    feeds: dict[str, Any] = {}
    for feature in description.input:
        if feature.type.WhichOneof("Type") == "imageType":
            try:
                from PIL import Image
            except ImportError as error:
                raise Refusal("an image as input needs Pillow: python3 -m pip install pillow") from error

            image = feature.type.imageType
            mode = "L" if image.colorSpace == GREY else "RGB"
            feeds[feature.name] = Image.new(mode, (image.width, image.height), 128 if mode == "L" else (128, 128, 128))
        else:
            array = feature.type.multiArrayType
            values = numpy.asarray(draw.standard_normal(tuple(array.shape)))
            kind = FLOATS.get(array.dataType)
            feeds[feature.name] = values.astype(kind) if kind else numpy.zeros(values.shape, "int32")
    return feeds


def described_coremltools(spec: Any) -> Any:
    """The description of the function that a package runs by default, or of its only one."""
    default = spec.description.defaultFunctionName
    return next((one for one in spec.description.functions if one.name == default), spec.description)


def open_coremltools(path: str, threads: int, seed: int, compute_units: str = "ALL") -> Call:
    """A call that runs an ML Program once, and returns the milliseconds that Core ML itself took for it.

    What Python and coremltools add, copies of inputs and outputs, no app has to pay.
    """
    import coremltools

    model = coremltools.models.MLModel(path, compute_units=coremltools.ComputeUnit[compute_units])
    described = described_coremltools(model.get_spec())
    feeds = feeds_coremltools(described, seed)
    state = model.make_state() if len(described.state) else None

    def call() -> float:
        model.predict(feeds, state)
        return float(model.last_predict_duration_in_nano_seconds) / 1e6

    return call


# Engines. What is called the same in edgesmith's kit/build.py has the same text there.


class Cuda:
    """What is used of libcudart. Raises Refusal where there is none, or where it reports an error."""

    NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
    FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")
    TO_DEVICE, TO_HOST = 1, 2
    MAJOR, MINOR = 75, 76  # cudaDevAttrComputeCapability...

    def __init__(self) -> None:
        found = ctypes.util.find_library("cudart")
        names = [*([found] if found else []), *self.NAMES]
        for folder in (*self.FOLDERS, *(f"{path}/nvidia/*/lib" for path in sys.path if path)):
            names += sorted(glob.glob(f"{folder}/libcudart.so*"))  # noqa: PTH207  # folders with stars in them
        for name in names:
            with contextlib.suppress(OSError):
                self.library = ctypes.CDLL(name)
                return
        raise Refusal("CUDA's runtime library libcudart is not on this machine; on a Jetson, JetPack brings it")

    def call(self, name: str, *arguments: Any) -> None:
        """Call one of the library's functions."""
        error = getattr(self.library, name)(*arguments)
        if error != 0:
            raise Refusal(f"CUDA's {name} failed with error {error}; is there a GPU, and a driver that fits?")

    def allocate(self, size: int, on_host: bool = False) -> int:
        """The address of new memory: of the GPU, or of the host, and then pinned."""
        address = ctypes.c_void_p()
        self.call("cudaMallocHost" if on_host else "cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return int(address.value or 0)

    def stream(self) -> int:
        """A new stream."""
        handle = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(handle))
        return int(handle.value or 0)

    def copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        """Copy bytes in a stream."""
        pointers = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self.call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), ctypes.c_int(kind), ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        """Wait for all that was put into a stream."""
        self.call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def compute_capability(self) -> str:
        """Of the first GPU, such as `8.7`."""
        values = []
        for attribute in (self.MAJOR, self.MINOR):
            value = ctypes.c_int()
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
            values.append(value.value)
        return f"{values[0]}.{values[1]}"

    def version(self) -> str:
        """Of the runtime library, such as `12.6`."""
        value = ctypes.c_int()
        self.call("cudaRuntimeGetVersion", ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"


def new_log(trt: Any) -> Any:
    """A logger that keeps what TensorRT says, and prints none of it."""

    class Log(trt.ILogger):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity.name, message))

    return Log()


def first_line(text: str) -> str:
    """What an error says, without the places in TensorRT's sources."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1].split(" In ")[0].rstrip(" .") if lines else "it does not say why"


def bind(trt: Any, cuda: Cuda, engine: Any, profiler: Any = None) -> tuple[dict[str, Any], Call]:
    """Pinned arrays by tensor's name, and a call that copies in, runs, and copies out."""
    import numpy

    context, stream = engine.create_execution_context(), cuda.stream()
    if context is None:
        raise Refusal("TensorRT cannot prepare the engine to run; is there too little memory on this GPU?")
    if profiler is not None:
        context.profiler = profiler
    arrays: dict[str, Any] = {}
    copies: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        kind = numpy.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        shape = tuple(engine.get_tensor_shape(name))
        size = kind.itemsize * int(numpy.prod(shape, dtype=numpy.int64))
        host, device = cuda.allocate(size, on_host=True), cuda.allocate(size)
        content = (ctypes.c_byte * max(size, 1)).from_address(host)
        arrays[name] = numpy.frombuffer(content, kind, size // kind.itemsize).reshape(shape)
        context.set_tensor_address(name, device)
        copies[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append((host, device, size))

    def call() -> None:
        for host, device, size in copies[True]:
            cuda.copy(device, host, size, cuda.TO_DEVICE, stream)
        if not context.execute_async_v3(stream):
            raise Refusal("TensorRT does not run the engine")
        for host, device, size in copies[False]:
            cuda.copy(host, device, size, cuda.TO_HOST, stream)
        cuda.wait(stream)

    call.owners = engine, context  # type: ignore[attr-defined]
    return arrays, call


def open_tensorrt(path: str, trt: Any) -> tuple[Any, Any]:
    """An engine, and the runtime that must live as long as it does. Raises Refusal where TensorRT does not open it."""
    log = new_log(trt)
    if hasattr(trt, "init_libnvinfer_plugins"):  # group norms are a plugin before TensorRT 10
        trt.init_libnvinfer_plugins(log, "")
    owner = trt.Runtime(log)
    if hasattr(owner, "engine_host_code_allowed"):  # version compatible engines carry code
        owner.engine_host_code_allowed = True
    engine = owner.deserialize_cuda_engine(Path(path).read_bytes())
    if engine is None:
        errors = [message for severity, message in log.lines if "ERROR" in severity]
        said = first_line(errors[0]) if errors else "it does not say why"
        raise Refusal(f"{trt.__name__} {trt.__version__} does not open {Path(path).name}: {said}")
    return engine, owner


def call_tensorrt(path: str, seed: int, module: str, profiler: Any = None) -> Call:
    """A call that copies an engine's inputs to the GPU, runs it, copies the outputs back, and waits for all of that.

    Its wall clock time on the host is the sample, as in a kit's measurement.json and in what `trtexec` calls latency.
    Host memory is pinned. Inputs are normal numbers, or zeros where they are integers.
    """
    import numpy

    trt: Any = importlib.import_module(module)
    engine, owner = open_tensorrt(path, trt)
    arrays, call = bind(trt, Cuda(), engine, profiler)
    draw = numpy.random.RandomState(seed)
    for name, array in arrays.items():
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            array[...] = draw.standard_normal(array.shape) if array.dtype.kind == "f" else 0
    call.runtime = owner  # type: ignore[attr-defined]
    return call


def open_engine(path: str, threads: int, seed: int, module: str) -> Call:
    """A call that runs an engine once; threads are the GPU's own."""
    return call_tensorrt(path, seed, module)


def operators_engine(path: str, threads: int, seed: int, seconds: float, module: str) -> dict[str, Any]:
    """Time per layer on the GPU, from TensorRT's profiler, of calls after the warm-up.

    With a profiler attached, enqueueing waits for the layers' times (`enqueue_emits_profile`), so calls take longer;
    what they take beside the layers is copying and launching.
    """
    trt: Any = importlib.import_module(module)

    class Layers(trt.IProfiler):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] = self.ms.get(layer_name, 0.0) + ms

    layers = Layers()
    call = call_tensorrt(path, seed, module, layers)
    warm_up(call)
    start = time.perf_counter()
    calls: list[float] = []
    spent: dict[str, list[float]] = {}
    while len(calls) < FEWEST_PROFILED or (len(calls) < MOST_PROFILED and time.perf_counter() - start < seconds):
        layers.ms = {}
        calls.append(timed(call))
        for name, ms in layers.ms.items():
            spent.setdefault(name, []).append(ms)
    operators = [{"name": name, "type": "", "ms": median(times)} for name, times in spent.items()]
    return {"calls": len(calls), "call_ms": median(calls), "operators": operators}


def version_engine(module: str) -> str:
    """The runtime's version. Raises ImportError where it is not installed, Refusal where there is no GPU for it."""
    import numpy  # noqa: F401  # so that its import is not timed as loading

    trt: Any = importlib.import_module(module)
    Cuda().compute_capability()
    return str(trt.__version__)


ENGINES = ("tensorrt", "tensorrt_rtx")
"""Modules that run engines: those of TensorRT, and of TensorRT-RTX."""

RUNTIMES: dict[str, tuple[Callable[..., Call], Callable[[], str]]] = {
    "onnxruntime": (open_onnxruntime, version_onnxruntime),
    "coremltools": (open_coremltools, version_coremltools),
    **{name: (partial(open_engine, module=name), partial(version_engine, name)) for name in ENGINES},
}
PROFILES: dict[str, Callable[[str, int, int, float], dict[str, Any]]] = {
    "onnxruntime": operators_onnxruntime,
    **{name: partial(operators_engine, module=name) for name in ENGINES},
}


# Energy. A meter covers what it covers, whatever runs there: nothing is subtracted.


def rapl() -> list[Path]:
    """Counters of energy of processors' packages and their memory, where they can be read (since Linux 5.10 by root).

    `core` and `uncore` are parts of a package, `psys` has packages in it. kernel.org: power/powercap.
    """
    zones = sorted((ROOT / "sys/class/powercap").glob("intel-rapl:*"))
    wanted = [zone for zone in zones if (read(zone / "name") or "").startswith(("package", "dram"))]
    return wanted if all(read(zone / "energy_uj") for zone in wanted) else []


def count_joules(zones: Sequence[Path]) -> Joules:
    """Start counting; the result says what was counted, joules. A counter that has gone round began anew at 0."""

    def counts() -> list[float | None]:
        return [number(read(zone / "energy_uj"), 1e-6) for zone in zones]

    first, ranges = counts(), [number(read(zone / "max_energy_range_uj"), 1e-6) for zone in zones]

    def stop() -> float | None:
        joules = 0.0
        for before, after, whole in zip(first, counts(), ranges):  # noqa: B905  # Python 3.8 has no strict
            if before is None or after is None or (after < before and whole is None):
                return None
            joules += after - before + (whole or 0.0) * (after < before)
        return joules

    return stop


def rails() -> dict[str, tuple[Path, ...]]:
    """Power rails that add up to a board, by their names: files whose product, in thousandths each, is its power.

    INA3221 sensors show mV and mA (kernel.org: hwmon/ina3221), and before JetPack 5 mW (NVIDIA's ina3221x).
    """
    drivers = ROOT / "sys/bus/i2c/drivers"
    found: dict[str | None, tuple[Path, ...]] = {}
    for label in sorted(drivers.glob("ina3221/*/hwmon/hwmon*/in[123]_label")):
        channel = label.name[2]
        found[read(label)] = (label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input"))
    for label in sorted(drivers.glob("ina3221x/*/iio*/rail_name_[012]")):
        found[read(label)] = (label.with_name(f"in_power{label.name[-1]}_input"),)
    names = next((total for total in TOTALS if all(name in found for name in total)), ())
    chosen = {name: found[name] for name in names}
    return chosen if watts(chosen) is not None else {}


def watts(board: dict[str, tuple[Path, ...]]) -> float | None:
    """The power of all rails now; None where one cannot be read."""
    total = 0.0
    for files in board.values():
        power = 1.0
        for file in files:
            value = number(read(file), 1e-3)
            if value is None:
                return None
            power *= value
        total += power
    return total


def integrate(board: dict[str, tuple[Path, ...]]) -> Joules:
    """Start sampling rails' power in a thread; the result ends that and says the energy, joules.

    Looks are at uneven times, so that they do not fall in step with calls.
    """
    points: list[tuple[float, float | None]] = []
    ended, draw = threading.Event(), random.Random(0)  # noqa: S311  # moments, no secret

    def look() -> None:
        points.append((time.perf_counter(), watts(board)))

    def sample() -> None:
        while not ended.wait(draw.uniform(0.5, 1.5) * BETWEEN_S):
            look()

    def stop() -> float | None:
        ended.set()
        thread.join()
        look()
        known = [(at, power) for at, power in points if power is not None]
        if len(known) < len(points):
            return None
        pairs = zip(known, known[1:])  # noqa: B905, RUF007  # Python 3.8 has neither
        return sum((b - a) * (first + then) / 2 for (a, first), (b, then) in pairs)

    thread = threading.Thread(target=sample, daemon=True)
    look()
    thread.start()
    return stop


def meter(runtime: str) -> tuple[str, Callable[[], Joules]] | None:
    """What a machine's meter covers, and what starts it; None where it has none of what a runtime computes on.

    A board's rails have all of it, RAPL's counters what a processor does, but no card.
    """
    board = rails()
    if board:
        return f"rails {' + '.join(board)} (INA3221)", partial(integrate, board)
    zones = rapl() if runtime not in ENGINES else []
    if zones:
        return f"{' + '.join(read(zone / 'name') or '' for zone in zones)} (RAPL)", partial(count_joules, zones)
    return None


def metered(call: Call, start: Callable[[], Joules], seconds: float) -> dict[str, Any]:
    """Energy of calls one after the other: all that the meter covers, whatever else runs there or idles."""
    warm_up(call)
    begun = time.perf_counter()
    while time.perf_counter() - begun < min(seconds, SETTLE_S):
        call()
    stop, begun, calls = start(), time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - begun < min(seconds, METERED_S):
        call()
        calls += 1
    spent = time.perf_counter() - begun
    return {"calls": calls, "seconds": spent, "joules": stop()}


def slowed(call: Call, share: float) -> Call:
    """A call that takes `share` longer than it takes: a known slowdown, to test what compares measurements."""

    def run() -> None:
        start = time.perf_counter_ns()
        call()
        until = start + (time.perf_counter_ns() - start) * (1.0 + share)
        while time.perf_counter_ns() < until:
            pass

    return run


def timed(call: Call) -> float:
    """Milliseconds of one call: those that it returns, where its runtime has counted them."""
    start = time.perf_counter_ns()
    own = call()
    return own if isinstance(own, float) else (time.perf_counter_ns() - start) / 1e6


def median(values: Sequence[float]) -> float:
    """The middle of some numbers."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def is_steady(medians: Sequence[float]) -> bool:
    """Whether the last three windows show no trend: up and down, or within `STEADY` of each other."""
    if len(medians) < 3:
        return False
    a, b, c = medians[-3:]
    return (b - a) * (c - b) <= 0 or abs(c - a) <= STEADY * min(a, c)


def warm_up(call: Call) -> tuple[int, float, bool]:
    """Call until steady. Returns how many calls that were, how long they took, and whether they became steady."""
    start, calls = time.perf_counter(), 0
    medians: list[float] = []
    while not is_steady(medians) and time.perf_counter() - start < WARM_UP_S:
        window = [timed(call)]
        while len(window) < WINDOW_CALLS or sum(window) < WINDOW_MS:
            window.append(timed(call))
        calls += len(window)
        medians.append(median(window))
    return calls, (time.perf_counter() - start) * 1e3, is_steady(medians)


def tell(event: str, **facts: Any) -> None:
    """Print one event."""
    print(json.dumps(dict(event=event, **facts)), flush=True)


def main() -> None:
    """Carry out the plan on standard input."""
    plan = json.load(sys.stdin)
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no event
    if plan.get("cores") and hasattr(os, "sched_setaffinity"):  # macOS pins nothing
        os.sched_setaffinity(0, plan["cores"])
    versions = {}
    for name in sorted({model["runtime"] for model in plan["models"]}.union(plan.get("runtimes", ()))):
        try:
            versions[name] = RUNTIMES[name][1]()
        except Exception as error:  # a broken installation can raise anything at import
            known = isinstance(error, (ImportError, Refusal))
            why = str(error) if known else f"{type(error).__name__}: {error}"
            tell("lacks", runtime=name, why=why, can_import=not isinstance(error, ImportError))
            return
    meters = {name: meter(name) for name in versions}
    shown = {name: found[0] for name, found in meters.items() if found}
    tell("start", runtimes=versions, environment=environment(), meters=shown)
    if not plan["models"]:
        tell("about", machine=machine(), cores=usable_cores())
    if plan.get("operators"):
        for i, model in enumerate(plan["models"]):
            profile = PROFILES[model["runtime"]]
            tell("operators", model=i, **profile(model["file"], plan["threads"], plan["seed"], plan["seconds"]))
        tell("end", environment=environment())
        return
    if plan.get("energy"):
        for i, model in enumerate(plan["models"]):
            found, name = meters[model["runtime"]], model["runtime"]
            if found:
                open_model = RUNTIMES[name][0]
                call = open_model(model["file"], plan["threads"], plan["seed"], **model.get("options", {}))
                tell("energy", model=i, **metered(call, found[1], plan["seconds"]))
        tell("end", environment=environment())
        return
    calls: list[Call] = []
    for i, model in enumerate(plan["models"]):
        start = time.perf_counter()
        open_model = RUNTIMES[model["runtime"]][0]
        call = open_model(model["file"], plan["threads"], plan["seed"], **model.get("options", {}))
        load_ms = (time.perf_counter() - start) * 1e3
        tell("open", model=i, load_ms=load_ms, first_ms=timed(call), memory_mib=memory_mib())
        calls.append(slowed(call, model["slowed"]) if model.get("slowed") else call)
    if plan["seconds"] > 0:
        for i, call in enumerate(calls):
            count, spent_ms, steady = warm_up(call)
            tell("warm", model=i, calls=count, ms=spent_ms, is_steady=steady)
        order, shuffle = list(range(len(calls))), random.Random(plan["seed"])  # noqa: S311  # an order, no secret
        start, turn = time.perf_counter(), 0
        while turn == 0 or time.perf_counter() - start < plan["seconds"]:
            shuffle.shuffle(order)
            for i in order:
                at_s = time.perf_counter() - start
                calls[i]()
                samples = [timed(calls[i])]
                while sum(samples) < plan["slot_ms"]:
                    samples.append(timed(calls[i]))
                tell("slot", model=i, round=turn, at_s=at_s, samples_ms=samples)
            turn += 1
    tell("end", environment=environment())


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        sys.exit(str(refusal))
