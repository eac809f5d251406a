"""What runs on the device: opens models, times them in turn, and prints what it finds, one JSON object a line.

One file, and nothing of edgesmith: it is copied to boards, which need Python 3.8, numpy and the runtime.

    python runner.py < plan.json

    plan   {"models": [{"file": ..., "runtime": "onnxruntime"}], "threads": 1, "cores": [0] or null, "seed": 0,
            "seconds": 2.0, "slot_ms": 30.0, "runtimes": ["onnxruntime"]}       the last where there is no model;
                                                                            with "operators": true those are timed alone
    lacks  {"runtime", "why"}                                               instead of all others: cannot be imported
    start  {"runtimes": {name: version}, "environment": {...}}              once everything is imported
    about  {"machine": {...}, "cores": [0, 1]}                              only where the plan has no model
    open   {"model", "load_ms", "first_ms", "memory_mib"}                   for each model, in the plan's order
    warm   {"model", "calls", "ms", "is_steady"}                            after the calls that were not kept
    slot   {"model", "round", "at_s", "samples_ms": [...]}                  several calls of one model in a row
    operators  {"model", "calls", "call_ms", "operators": [{"name", "type", "ms"}]}   of a plan that asks for them
    end    {"environment": {...}}

A round has one slot for each model, in a new order every time, and lasts as long as its slots; rounds go on until
`seconds` have passed. The first call of a slot finds the caches full of another model and is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
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
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Python 3.8 cannot subscript what the annotations name
    from collections.abc import Callable, Sequence

    Call = Callable[[], Any]

WINDOW_CALLS, WINDOW_MS = 5, 20.0
"""A window of the warm-up has so many calls, and goes on until so much time has passed."""

STEADY = 0.02
"""Three windows in a row whose medians neither fall nor rise throughout, or by less than this, are steady."""

WARM_UP_S = 5.0
"""After so much time a model is timed as it is, and the record says that it was not steady."""

FEWEST_PROFILED, MOST_PROFILED = 5, 200
"""Calls of which the time per operator is recorded; a profile holds a million events, and loops write many."""


ROOT = Path("/")
"""Where the system shows its settings and sensors."""

TOLD_S = 5.0
"""What a command of the system's may take."""


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
    rails = Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj")
    energy = [number(read(path), 1e-6) for path in sorted(rails)]
    if energy and None not in energy:
        found["energy_j"] = sum(joules for joules in energy if joules is not None)
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


RUNTIMES = {"onnxruntime": (open_onnxruntime, version_onnxruntime)}
PROFILES = {"onnxruntime": operators_onnxruntime}


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
    """Milliseconds of one call."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


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
    if plan.get("cores") and hasattr(os, "sched_setaffinity"):  # macOS pins nothing
        os.sched_setaffinity(0, plan["cores"])
    versions = {}
    for name in sorted({model["runtime"] for model in plan["models"]}.union(plan.get("runtimes", ()))):
        try:
            versions[name] = RUNTIMES[name][1]()
        except ImportError as error:
            tell("lacks", runtime=name, why=str(error))
            return
    tell("start", runtimes=versions, environment=environment())
    if not plan["models"]:
        tell("about", machine=machine(), cores=usable_cores())
    if plan.get("operators"):
        for i, model in enumerate(plan["models"]):
            profile = PROFILES[model["runtime"]]
            tell("operators", model=i, **profile(model["file"], plan["threads"], plan["seed"], plan["seconds"]))
        tell("end", environment=environment())
        return
    calls: list[Call] = []
    for i, model in enumerate(plan["models"]):
        start = time.perf_counter()
        call = RUNTIMES[model["runtime"]][0](model["file"], plan["threads"], plan["seed"])
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
    main()
