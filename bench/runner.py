"""The program on the device: it opens models, times them in turn, and prints what it finds, one JSON object a line.

It goes to boards as one file with nothing of edgesmith, joined from this one and board/common.py by board/join.py. They
need Python 3.8, numpy and the runtime; for engines that is the module `tensorrt` or `tensorrt_rtx`, and libcudart.

    python runner.py < plan.json

    plan   {"models": [{"file": ..., "runtime": "onnxruntime"}], "threads": 1, "cores": [0] or null, "seed": 0,
            "seconds": 2.0, "slot_ms": 30.0, "runtimes": ["onnxruntime"]}       the last where there is no model;
                                                                            "order": [1, 0]: of the models, in which
                                                                            they are opened, warmed up and first run;
                                                                            "copies": 6: of each, one beside the other,
                                                                            that pairs of rounds go to by turns; as many
                                                                            as there is a pair of rounds for;
                                                                            "operators": true: those are timed alone,
                                                                            "energy": true: calls are metered alone
            a model may have "options" of its runtime, such as {"compute_units": "ALL"}; "slowed": 0.02, "loop": 0.1,
            see `slowed`; "same": 0, for those of one such number are opened once
    lacks  {"runtime", "why", "can_import"}                                 instead of all others: what cannot be
                                                                            imported, or cannot work here
    start  {"runtimes": {name: version}, "environment": {...}, "meters": {name: what it covers}}    once all is imported
    about  {"machine": {...}, "cores": [0, 1], "busy": 0.1}                 only where the plan has no model; "busy":
                                                                            cores that are in use, null where not known
    open   {"model", "load_ms", "first_ms", "memory_mib"}                   for each model, in the plan's order
    warm   {"model", "calls", "ms", "is_steady"}                            after the calls that were not kept
    slot   {"model", "round", "at_s", "samples_ms": [...], "copy"}          several calls of one model in a row
    operators  {"model", "calls", "call_ms", "operators": [{"name", "type", "ms"}]}   of a plan that asks for them
    energy {"model", "calls", "seconds", "joules"}                          of a plan that asks for it
    end    {"environment": {...}}

A round has one slot for each model and lasts as long as its slots. Rounds come in pairs, the second in the reverse
order of the first, so that each model comes before each other one as often as after it; the first pair begins in the
plan's order, every other in a new one. They go on until `seconds` have passed. The first call of a slot finds the
caches full of another model and is not kept. What a copy's memory happened to be given moves its times by some percent
for as long as it lives, so that several of them say more in the same time.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.board.common import (
    ROOT,
    Cuda,
    Refusal,
    bind,
    busy_cores,
    end_with_parent,
    environment,
    first_line,
    keep_output_apart,
    machine,
    median,
    memory_mib,
    new_log,
    parse_number,
    read_line,
    timed,
    warm_up,
)

if TYPE_CHECKING:  # Python 3.8 cannot subscript what the annotations name
    from collections.abc import Callable, Iterator, Sequence

    from edgesmith.board.common import Call

    Joules = Callable[[], float | None]

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


def usable_cores() -> list[int]:
    """The cores that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


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


def open_compiled(path: str, threads: int, seed: int) -> Call:
    """A call that runs a library of target tvm once; inputs are normal numbers or zeros."""
    said, bind = load_compiled(path, threads)
    return bind(*arrays_compiled(said, seed))


def arrays_compiled(said: dict[str, Any], seed: int) -> tuple[list[Any], list[Any]]:
    """Arrays that a library reads, of normal numbers or zeros, and arrays that it writes."""
    import numpy

    draw = numpy.random.RandomState(seed)
    given = [
        numpy.zeros(one["shape"], one["dtype"])
        if one["dtype"][:5] != "float"
        else numpy.asarray(draw.standard_normal(one["shape"])).astype(one["dtype"])
        for one in said["inputs"]
    ]
    return given, [numpy.empty(one["shape"], one["dtype"]) for one in said["outputs"]]


def load_compiled(
    path: str, threads: int = 1, times: Any = None
) -> tuple[dict[str, Any], Callable[[Sequence[Any], Sequence[Any]], Call]]:
    """The description that a library of target tvm has, and a function from the arrays it reads and writes to a call.

    Every such library has `edgesmith_entry`: its description in JSON, how much memory it works in, its call, a function
    that sets its threads, and its call with an array of int64, `times`: nanoseconds when the first of the calls that it
    consists of began, and when each of them ended.
    """
    import numpy

    library = ctypes.CDLL(os.path.abspath(path))  # noqa: PTH100  # a name without a folder is looked for elsewhere
    entry: Any = (ctypes.c_void_p * 5).in_dll(library, "edgesmith_entry")
    description, memory_bytes, run, set_threads, run_timed = entry
    if ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(set_threads)(threads):
        raise Refusal(f"{Path(path).name} runs on 1 to 64 threads, as many as the system gives, got {threads}")
    block = numpy.empty(ctypes.CFUNCTYPE(ctypes.c_size_t)(memory_bytes)() + 64, numpy.uint8)
    memory = ctypes.c_void_p(block.ctypes.data + -block.ctypes.data % 64)
    more = () if times is None else (ctypes.c_void_p(times.ctypes.data),)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * (3 + len(more)))
    function = kind(run_timed if more else run)

    def bind(given: Sequence[Any], made: Sequence[Any]) -> Call:
        read, written = ((ctypes.c_void_p * max(1, len(x)))(*[one.ctypes.data for one in x]) for x in (given, made))

        def call() -> None:
            if function(read, written, memory, *more):
                raise Refusal(f"{Path(path).name} does not run: it returned a number that is not 0")

        call.holds = (library, given, made, block, times)  # type: ignore[attr-defined]  # as long as the call
        return call

    return json.loads(ctypes.string_at(description).decode()), bind


def operators_compiled(path: str, threads: int, seed: int, seconds: float) -> dict[str, Any]:
    """Time per call of compiled code, of calls after the warm-up; reading the clock adds some 30 ns to each."""
    import numpy

    names = load_compiled(path)[0]["calls"]
    times = numpy.zeros(len(names) + 1, "int64")
    said, bind = load_compiled(path, threads, times)
    call = bind(*arrays_compiled(said, seed))
    warm_up(call)
    found: list[Any] = []
    start = time.perf_counter()
    while len(found) < FEWEST_PROFILED or (len(found) < MOST_PROFILED and time.perf_counter() - start < seconds):
        call()
        found.append(times / 1e6)
    spent = numpy.diff(found, axis=1)
    return {
        "calls": len(found),
        "call_ms": median([float(one[-1] - one[0]) for one in found]),
        "operators": [
            {"name": f"{symbol} {i}", "type": kind, "ms": median(spent[:, i].tolist())}
            for i, (symbol, kind) in enumerate(names)
        ],
    }


def version_compiled() -> str:
    """The C library, which is all that a compiled model needs."""
    import numpy  # noqa: F401  # so that its import is not timed as loading

    return " ".join(platform.libc_ver()) or platform.system()


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
    """Return values for a package's inputs: normal numbers, zeros where they are integers, grey images."""
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


# Engines.


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
    "compiled": (open_compiled, version_compiled),
    **{name: (partial(open_engine, module=name), partial(version_engine, name)) for name in ENGINES},
}
PROFILES: dict[str, Callable[[str, int, int, float], dict[str, Any]]] = {
    "onnxruntime": operators_onnxruntime,
    "compiled": operators_compiled,
    **{name: partial(operators_engine, module=name) for name in ENGINES},
}


# Energy. A meter covers what it covers, whatever runs there: nothing is subtracted.


def rapl() -> list[Path]:
    """Counters of energy of processors' packages and their memory, where they can be read (since Linux 5.10 by root).

    `core` and `uncore` are parts of a package, `psys` has packages in it. kernel.org: power/powercap.
    """
    zones = sorted((ROOT / "sys/class/powercap").glob("intel-rapl:*"))
    wanted = [zone for zone in zones if (read_line(zone / "name") or "").startswith(("package", "dram"))]
    return wanted if all(read_line(zone / "energy_uj") for zone in wanted) else []


def count_joules(zones: Sequence[Path]) -> Joules:
    """Start counting; the result says what was counted, joules. A counter that has gone round began anew at 0."""

    def counts() -> list[float | None]:
        return [parse_number(read_line(zone / "energy_uj"), 1e-6) for zone in zones]

    first, ranges = counts(), [parse_number(read_line(zone / "max_energy_range_uj"), 1e-6) for zone in zones]

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
        found[read_line(label)] = (label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input"))
    for label in sorted(drivers.glob("ina3221x/*/iio*/rail_name_[012]")):
        found[read_line(label)] = (label.with_name(f"in_power{label.name[-1]}_input"),)
    names = next((total for total in TOTALS if all(name in found for name in total)), ())
    chosen = {name: found[name] for name in names}
    return chosen if watts(chosen) is not None else {}


def watts(board: dict[str, tuple[Path, ...]]) -> float | None:
    """The power of all rails now; None where one cannot be read."""
    total = 0.0
    for files in board.values():
        power = 1.0
        for file in files:
            value = parse_number(read_line(file), 1e-3)
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
    """Return the scope of a machine's meter, and its start; None where it has none of what a runtime computes on.

    A board's rails have all of it, RAPL's counters what a processor does, but no card.
    """
    board = rails()
    if board:
        return f"rails {' + '.join(board)} (INA3221)", partial(integrate, board)
    zones = rapl() if runtime not in ENGINES else []
    if zones:
        return f"{' + '.join(read_line(zone / 'name') or '' for zone in zones)} (RAPL)", partial(count_joules, zones)
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


def slowed(call: Call, share: float, loop: float = 0.0) -> Call:
    """A call that takes `share` longer than it takes: a known slowdown, to test what compares measurements.

    It computes on until `loop` of its own time is over too, which is not counted. A call of 0.15 ms that follows a busy
    loop is 2 % slower, however short the loop is; so those that are compared all end in one of the same length.
    """

    def run() -> float:
        start = time.perf_counter_ns()
        call()
        counted = passed = time.perf_counter_ns() - start
        until, whole = passed * (1.0 + share), passed * (1.0 + loop)
        while passed < until:
            counted = passed = time.perf_counter_ns() - start
        while passed < whole:
            passed = time.perf_counter_ns() - start
        return counted / 1e6

    return run


_events: list[Any] = []
"""The stream of events, once it is apart from what else is printed."""


def keep_events_apart() -> None:
    """Leave standard output to events: what libraries print is none."""
    _events.append(keep_output_apart())


def tell(event: str, **facts: Any) -> None:
    """Print one event."""
    print(json.dumps(dict(event=event, **facts)), file=_events[-1] if _events else sys.stdout, flush=True)


def main() -> None:
    """Carry out the plan on standard input."""
    end_with_parent()
    plan = json.load(sys.stdin)
    keep_events_apart()
    if plan.get("cores") and hasattr(os, "sched_setaffinity"):  # macOS pins nothing
        os.sched_setaffinity(0, plan["cores"])
    versions = import_runtimes({model["runtime"] for model in plan["models"]}.union(plan.get("runtimes", ())))
    if versions is None:
        return
    meters = {name: meter(name) for name in versions}
    shown = {name: found[0] for name, found in meters.items() if found}
    tell("start", runtimes=versions, environment=environment(), meters=shown)
    if not plan["models"]:
        tell("about", machine=machine(), cores=usable_cores(), busy=busy_cores())
    if plan.get("operators"):
        time_each_operator(plan)
    elif plan.get("energy"):
        meter_each(plan, {name: found[1] for name, found in meters.items() if found})
    else:
        time_in_turn(plan)
    tell("end", environment=environment())


def import_runtimes(names: set[str]) -> dict[str, str] | None:
    """Import runtimes. Returns their versions; None where one is lacking, which is told."""
    versions = {}
    for name in sorted(names):
        try:
            versions[name] = RUNTIMES[name][1]()
        except Exception as error:  # a broken installation can raise anything at import
            known = isinstance(error, (ImportError, Refusal))
            why = str(error) if known else f"{type(error).__name__}: {error}"
            tell("lacks", runtime=name, why=why, can_import=not isinstance(error, ImportError))
            return None
    return versions


def open_model(plan: dict[str, Any], model: dict[str, Any]) -> Call:
    """A call that runs one of a plan's models once."""
    opened = RUNTIMES[model["runtime"]][0]
    return opened(model["file"], plan["threads"], plan["seed"], **model.get("options", {}))


def time_each_operator(plan: dict[str, Any]) -> None:
    """Tell the time per operator of each model alone."""
    for i, model in enumerate(plan["models"]):
        profile = PROFILES[model["runtime"]]
        tell("operators", model=i, **profile(model["file"], plan["threads"], plan["seed"], plan["seconds"]))


def meter_each(plan: dict[str, Any], meters: dict[str, Callable[[], Joules]]) -> None:
    """Tell the energy of each model alone whose runtime has a meter here."""
    for i, model in enumerate(plan["models"]):
        if model["runtime"] in meters:
            start = meters[model["runtime"]]
            tell("energy", model=i, **metered(open_model(plan, model), start, plan["seconds"]))


def time_in_turn(plan: dict[str, Any]) -> None:
    """Open all models, warm each up, and time them in rounds; in the plan's order, then each order and its reverse."""
    order = plan.get("order") or list(range(len(plan["models"])))
    copies = [open_all(plan, order)]
    if plan["seconds"] <= 0:
        return
    pair_ms = 0.0
    for i in order:
        count, spent_ms, steady = warm_up(copies[0][i])
        tell("warm", model=i, calls=count, ms=spent_ms, is_steady=steady)
        pair_ms += 2 * (spent_ms / count + max(plan["slot_ms"], spent_ms / count))
    for number in range(1, min(plan.get("copies", 1), int(plan["seconds"] * 1e3 / pair_ms))):
        copies.append(open_all(plan, order[::-1] if number % 2 else order, is_told=False))
    start = time.perf_counter()
    for number, turn in enumerate(turns(order, plan["seed"])):
        if number and number % 2 == 0 and time.perf_counter() - start >= plan["seconds"]:
            return
        copy = number // 2 % len(copies)
        for i in turn:
            call, at_s = copies[copy][i], time.perf_counter() - start
            call()
            samples = [timed(call)]
            while sum(samples) < plan["slot_ms"]:
                samples.append(timed(call))
            tell("slot", model=i, round=number, at_s=at_s, samples_ms=samples, copy=copy)


def open_all(plan: dict[str, Any], order: Sequence[int], is_told: bool = True) -> dict[int, Call]:
    """Open all models of a plan, in an order, and call each once; those of one number `same` are opened once."""
    opened: dict[int, Call] = {}
    calls: dict[int, Call] = {}
    for i in order:
        model = plan["models"][i]
        start, which = time.perf_counter(), model.get("same", i)
        if which not in opened:
            opened[which] = open_model(plan, model)
        load_ms = (time.perf_counter() - start) * 1e3
        first_ms = timed(opened[which])
        if is_told:
            tell("open", model=i, load_ms=load_ms, first_ms=first_ms, memory_mib=memory_mib())
        slower = "slowed" in model
        calls[i] = slowed(opened[which], model["slowed"], model.get("loop", 0.0)) if slower else opened[which]
    return calls


def turns(order: Sequence[int], seed: int) -> Iterator[list[int]]:
    """Yield orders of rounds without end: the given one and its reverse, then a new one and its reverse, and so on."""
    turn, shuffle = list(order), random.Random(seed)  # noqa: S311  # an order, no secret
    while True:
        yield list(turn)
        yield turn[::-1]
        shuffle.shuffle(turn)


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        sys.exit(str(refusal))
