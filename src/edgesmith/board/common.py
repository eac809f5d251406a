"""The common part of files for devices: the machine's own facts, timed calls, and TensorRT's engines.

Two files go where edgesmith is not, and need Python 3.8 and numpy alone: bench/runner.py, which times, and
exporters/tensorrt/kit/build.py, which builds an engine. Each imports this module, and join.py puts its text in the
import's place when the file is written.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import glob
import hashlib
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Call = Callable[[], Any]

TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""Of ONNX Runtime, which reads it as its module is imported; and the variable that other tools agree on."""

os.environ.update(TELEMETRY_OFF)

MEASUREMENT_SCHEMA = 4
"""Of the record that `edgesmith bench` and build.py write: 3 has the order of each launch and a comparison's looks."""

SLOT_MS = 30.0
"""How long the calls of one model are kept together."""

WINDOW_CALLS, WINDOW_MS = 3, 20.0
"""A window of the warm-up has so many calls, and goes on until so much time has passed."""

STEADY = 0.02
"""Three windows in a row whose medians neither fall nor rise throughout, or by less than this, are steady."""

WARM_UP_S = 5.0
"""After so much time a model is timed as it is, and the record says that it was not steady."""

ROOT = Path("/")
"""The folder below which the system shows its settings and sensors."""

LOOK_S = 0.5
"""How long is looked at which cores are in use: 50 ticks of the usual clock."""

ANSWER_S = 5.0
"""The longest that a command of the system may take."""


class Refusal(Exception):
    """The one sentence that says why something cannot be done on this machine."""


# The system, by what it shows.


def read_line(path: Path) -> str | None:
    """The first line of a file of the system's, or None."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return None


def parse_number(text: str | None, scale: float = 1.0) -> float | None:
    """A number that the system wrote, or None."""
    try:
        return float(text or "") * scale
    except ValueError:
        return None


def ask_system(*command: str) -> str:
    """Return what a command of the system prints; nothing where there is none, it fails, or takes too long."""
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
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def environment() -> dict[str, Any]:
    """Return the clocks, load and temperatures that the system shows. What it does not show is left out."""
    found: dict[str, Any] = {"time_s": time.time()}
    if hasattr(os, "getloadavg"):
        found["load"] = os.getloadavg()[0]
    frequencies = clocks_mhz()
    if frequencies:
        found["frequency_mhz"] = frequencies
    governor = read_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
    if governor:
        found["governor"] = governor
    zones = temperatures_c()
    if zones:
        found["temperature_c"] = zones
    ticks = (read_line(Path("/proc/stat")) or "").split()
    if len(ticks) > 8 and ticks[0] == "cpu":
        found["stolen_s"] = float(ticks[8]) / os.sysconf("SC_CLK_TCK")
    found["preempted"] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    return found


def busy_cores() -> float | None:
    """Cores that are in use now, on average over `LOOK_S`, what other machines take included; None where not known.

    The load that the system shows is an average of the last minute: it has what has ended, and not what has just begun.
    """

    def ticks() -> list[float]:
        parts = (read_line(ROOT / "proc/stat") or "").split()[1:9]
        return [parse_number(part) or 0.0 for part in parts]

    before, start = ticks(), time.perf_counter()
    time.sleep(LOOK_S)
    after, passed = ticks(), time.perf_counter() - start
    if len(before) < 8 or len(after) < 8:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = (b - a for a, b in zip(before, after))  # noqa: B905  # Python 3.8 has no strict
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK") / passed


def keep_output_apart() -> Any:
    """Return standard output; what libraries print, in Python or below it, goes to standard error from now on."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


def end_with_parent() -> None:
    """Have this process killed when the one that started it ends, however that ends. Linux; elsewhere nothing happens.

    A process whose plan lasts minutes would go on without it, and disturb the next measurement.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)  # it ended before it was asked for


def clocks_mhz() -> list[float]:
    """The clock of every core, MHz; none where the system does not show all of them."""
    files = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    found = [parse_number(read_line(path), 1e-3) for path in files]
    listed = Path("/proc/cpuinfo")
    if not found and listed.exists():
        lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [parse_number(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    known = [mhz for mhz in found if mhz is not None]
    return known if len(known) == len(found) else []


def temperatures_c() -> dict[str, float]:
    """The temperature of every thermal zone, degrees C, by the zone's number and kind."""
    zones: dict[str, float] = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        degrees = parse_number(read_line(zone / "temp"), 1e-3)
        if degrees is not None:
            zones[f"{zone.name} {read_line(zone / 'type') or ''}".strip()] = degrees
    return zones


def power_mode() -> str | None:
    """Return the setting that trades speed for power, in the system's words; None where nothing is shown without root.

    Jetson   MAXN_SUPER          `nvpmodel -q`, which may say more before and after; without that command, as in
                                 containers, what it keeps: /var/lib/nvpmodel/status, with names in /etc/nvpmodel.conf
    macOS    low power           `pmset -g`: powermode 0 to 2 where there is a high power mode, else lowpowermode 0, 1
    Android  battery saver off   `settings get global low_power`, and what follows
    Linux    balanced, governor powersave, no boost         ACPI's platform profile, cpufreq's governors, boost

    NVIDIA, Jetson Linux Developer Guide, Supported Modes and Power Efficiency; pmset(1), and
    github.com/alfredapp/low-power-mode-workflow/issues/4; Android's Settings.Global; Linux' ABI/testing/
    sysfs-platform_profile, admin-guide/pm/cpufreq and intel_pstate.
    """
    return jetson_power_mode() or mac_power_mode() or linux_power_mode()


def jetson_power_mode() -> str | None:
    """The name of nvpmodel's mode, or its number where the name is not kept; None on other machines."""
    mode = re.search(r"^NV Power Mode: *(\S+)", ask_system("nvpmodel", "-q"), re.MULTILINE)
    if mode:
        return mode[1]
    kept = re.search(r"pmode:(\d+)", read_line(ROOT / "var/lib/nvpmodel/status") or "")
    if not kept:
        return None
    with contextlib.suppress(OSError):
        modes = (ROOT / "etc/nvpmodel.conf").read_text(encoding="utf-8", errors="replace")
        named = re.search(rf"^< *POWER_MODEL +ID={int(kept[1])} +NAME=(\S+) *>", modes, re.MULTILINE)
        if named:
            return named[1]
    return f"nvpmodel {int(kept[1])}"


def mac_power_mode() -> str | None:
    """The power mode of macOS; None on other machines."""
    mode = re.search(r"^ *(?:low)?powermode +([012])\b", ask_system("pmset", "-g"), re.MULTILINE)
    return ("automatic", "low power", "high power")[int(mode[1])] if mode else None


def linux_power_mode() -> str | None:
    """Android's battery saver, the platform profile, the governors, and whether boost is off; None without any."""
    found = []
    if (ROOT / "system/build.prop").exists():
        saver = ask_system("settings", "get", "global", "low_power")
        found += [f"battery saver {'on' if saver == '1' else 'off'}"] if saver in ("0", "1") else []
    cpus = ROOT / "sys/devices/system/cpu"
    found += [read_line(ROOT / "sys/firmware/acpi/platform_profile") or ""]
    governors = {read_line(path) or "" for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    found += [f"governor {' and '.join(sorted(governors))}"] if governors else []
    is_off = read_line(cpus / "intel_pstate/no_turbo") == "1" or read_line(cpus / "cpufreq/boost") == "0"
    found += ["no boost"] if is_off else []
    return ", ".join(part for part in found if part) or None


def machine() -> dict[str, Any]:
    """Return the system, the processor or board, the power mode, and a hash that tells two machines apart."""
    node = network_node()
    is_random = node >> 40 & 1  # by that bit
    own = f"{node:x}" if not is_random else read_line(Path("/etc/machine-id")) or ""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": processor(),
        "machine": hashlib.sha256(f"{platform.node()} {own}".encode()).hexdigest()[:12],
        "power_mode": power_mode(),
    }


def network_node() -> int:
    """The hardware address of this machine as a number: of a device before a virtual one, the first by name.

    Linux shows it in files; Python's `uuid.getnode` opens a socket to ask. Bit 40 is set where there is none.
    """
    if sys.platform != "linux":
        return uuid.getnode()
    found = []
    for path in (ROOT / "sys/class/net").glob("*/address"):
        digits = (read_line(path) or "").replace(":", "")
        if re.fullmatch("[0-9a-f]{12}", digits) and int(digits, 16):
            found.append((not (path.parent / "device").exists(), path.parent.name, int(digits, 16)))
    return min(found)[2] if found else 1 << 40


def processor() -> str:
    """The board's name where the system has one, else the processor's."""
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], stdout=subprocess.PIPE, check=False)  # noqa: S607
        return asked.stdout.decode().strip() or platform.machine()
    board = (read_line(Path("/proc/device-tree/model")) or "").strip("\0")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return board or platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return board or (names[0] if names else platform.machine())


def memory_mib() -> float:
    """The most memory that this process has held, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2.0 ** (20 if sys.platform == "darwin" else 10)


# Timed calls.


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
    """Return whether the last three windows show no trend: up and down, or within `STEADY` of each other."""
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


# TensorRT's engines, and CUDA's memory by its runtime library: no package for that is needed.


class Cuda:
    """Some functions of libcudart. Raises Refusal where there is no such library, or where it reports an error."""

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
        """Return that of the first GPU, such as `8.7`."""
        values = []
        for attribute in (self.MAJOR, self.MINOR):
            value = ctypes.c_int()
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(0))
            values.append(value.value)
        return f"{values[0]}.{values[1]}"

    def version(self) -> str:
        """Return the runtime library's, such as `12.6`."""
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
    """Return the sentence of an error, without the places in TensorRT's sources."""
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
