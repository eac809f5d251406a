"""Builds the engine of this kit on the machine that it is to run on, checks its numbers, and times it.

    python3 build.py --out DIR

One file: Python 3.8, numpy and this machine's own TensorRT, 8.6 to 11, are all it needs, if that has the operators that
kit.json lists: means and maxima over axes only from 10.3 on. Where the module `tensorrt` is missing, the command
`trtexec` serves. The kit is kit.json beside this file, and the files that it lists.

    typed ONNX -> engine -> its outputs against PyTorch's -> launches of timed calls -> DIR, by one rename

    DIR   MODEL.engine       for this GPU and this version of TensorRT
          manifest.json      what it was built of and with, on what, and how far its outputs are from PyTorch's
          measurement.json   every sample; the schema is that of `edgesmith bench`
          layers.json        the builder's layers, with the nodes in each: one form for every version's inspector

Exit code 0, and DIR is there; or 2, one sentence on stderr, and no DIR. Precision is in the graph: networks are
strongly typed wherever TensorRT has that (from 9.1), and TF32 is off. A call copies the inputs to the GPU, runs, and
copies the outputs back.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgesmith.board.common import (
    MEASUREMENT_SCHEMA,
    SLOT_MS,
    Cuda,
    Refusal,
    ask_system,
    bind,
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
    from collections.abc import Iterator, Mapping, Sequence

    from edgesmith.board.common import Call

    Outputs = Sequence[Sequence[Any]]

SCHEMA = 1
"""Of kit.json."""

STREAM = "stream.py"
"""The kit's file that carries a step's states; it goes beside the engine."""

OLDEST = (8, 6)
"""The first TensorRT with layer norms, optimisation levels and engines for other versions."""

STRONGLY_TYPED = (9, 1)
"""The first that takes a network's types as they are; before it they are the widest that a flag allows."""

WITHOUT_DLA, TYPED_DLA = (10, 8), (11, 4, 1)
"""The first that has no DLA on a Jetson, and the first that has one again, from JetPack 7.2.2 on and strongly typed;
docs.nvidia.com/deeplearning/tensorrt/11.4.1, Working with DLA: 10.7 was the last 10.x with one, 11.0 to 11.3 have none,
11.4.0 has it on Windows alone."""

NEVER, NEWEST = "never", (11, 4)
"""The word for an operator that no TensorRT has, and the newest TensorRT that was asked."""

NUMBERS = "the engine's numbers are wrong"
"""The beginning of the sentence about an engine whose outputs diverge from PyTorch's."""

LAUNCHES, SECONDS = 6, 24.0
"""Processes that time the engine, what they may take together, and how long calls are kept together."""

START_S = 2.0
"""About what starting a process and warming up take of a launch's time."""


# The inspector's layers, whatever TensorRT wrote them.

NO_VALUE = "none"
"""The precision of a layer that makes no value, such as a wait for another stream."""

UNKNOWN = "unknown"
"""The precision of a layer of which only the name was written down."""

PRECISIONS = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "fp8": "fp8",
    "fp4": "fp4",
    "fp4e2m1": "fp4",
    "int4": "int4",
    "int8": "int8",
    "uint8": "uint8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}

MEMORY = {
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+)"),
    "activations_bytes": re.compile(r"Total Activation Memory: (\d+)"),
    "workspace_bytes": re.compile(r"Max Scratch Memory: (\d+)"),
}


def precision_of(words: str) -> str:
    """The precision in `Half`, in `Row major linear FP16 format` and the like; in others their first word.

    `N/A due to dynamic shapes` is none: what it will be, a run decides.
    """
    if words.startswith("N/A"):
        return UNKNOWN
    found = re.findall(r"[A-Za-z0-9]+", words)
    known = [PRECISIONS[word.lower()] for word in found if word.lower() in PRECISIONS]
    return known[0] if known else found[0].lower() if found else NO_VALUE


def nodes_of(text: str) -> list[str]:
    """The ONNX nodes that a layer's metadata name."""
    return re.findall(r"\[ONNX Layer: ([^\]]+)\]", text)


def read_inspector(information: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Layers of an engine from its inspector's JSON: name, type, precision of the first output, ONNX nodes.

    TensorRT 8.2 to 10 writes `Format/Datatype` of each tensor, such as `Channel major FP16 format where channel % 8 ==
    0` or `Half`, and `Bindings`, a list of names. From 11 on those are `Format` and `Datatype`, and `I/O Tensors`, a
    list of objects. An engine without detailed profiling has names for layers.

    Raises:
        ValueError: this is no inspector's JSON.
    """
    listed = information.get("Layers") if isinstance(information, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no list of Layers")
    found = []
    for layer in listed:
        if isinstance(layer, str):
            found.append({"name": layer, "type": UNKNOWN, "precision": UNKNOWN, "nodes": nodes_of(layer)})
            continue
        if not isinstance(layer, dict) or not isinstance(layer.get("Name"), str):
            raise ValueError("a layer without a Name")
        outputs = layer.get("Outputs") or [{}]
        if not isinstance(outputs, list):
            raise ValueError(f"the Outputs of {layer['Name']} are no list")
        first = outputs[0] if isinstance(outputs[0], dict) else {}
        words = first.get("Datatype", first.get("DataType", first.get("Format/Datatype", "")))
        found.append(
            {
                "name": layer["Name"],
                "type": str(layer.get("LayerType", UNKNOWN)),
                "precision": precision_of(str(words)),
                "nodes": nodes_of(str(layer.get("Metadata", ""))),
            }
        )
    return found


def tensors_of(information: Mapping[str, Any]) -> list[str]:
    """Names of an engine's inputs and outputs, in either generation's inspector JSON.

    Raises:
        ValueError: this is no inspector's JSON.
    """
    key = "I/O Tensors" if "I/O Tensors" in information else "Bindings"
    listed = information.get(key, [])
    if not isinstance(listed, list):
        raise ValueError(f"{key} is no list")
    names = listed if key == "Bindings" else [one.get("Name") if isinstance(one, dict) else None for one in listed]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} has a tensor without a name")
    return list(names)


def condense(
    log: Sequence[tuple[str, str]], network_layers: int | None, layers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the content of layers.json: a build log as data, and the layers. Figures not in the log are None."""
    memory: dict[str, int | None] = dict.fromkeys(MEMORY)
    for _, message in log:
        for key, pattern in MEMORY.items():
            match = pattern.match(message)
            if match:
                memory[key] = int(match[1])
    warnings = [message.strip().splitlines()[0] for severity, message in log if severity == "WARNING"]
    report: dict[str, Any] = {"network_layers": network_layers}
    report.update(memory)
    report.update(warnings=list(dict.fromkeys(warnings)), layers=list(layers))
    return report


def summarise(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's part of a report by `condense`: counts of the layers that make a value, and of those that
    only wait for another stream.
    """
    layers = [layer for layer in report["layers"] if layer["precision"] != NO_VALUE]
    precisions, types = (Counter(layer[key] for layer in layers) for key in ("precision", "type"))
    found: dict[str, Any] = {
        "layers": {"network": report["network_layers"], "engine": len(layers)},
        "precisions": dict(sorted(precisions.items())),
        "synchronisations": len(report["layers"]) - len(layers),
        "types": dict(sorted(types.items(), key=lambda item: (-item[1], item[0]))),
    }
    found.update({key: report[key] for key in MEMORY})
    found["warnings"] = report["warnings"]
    return found


# Numbers, by the rules of edgesmith's verify.


def measure(reference: Outputs, outputs: Outputs, allowed: float) -> dict[str, Any]:
    """The largest error, absolute and relative to PyTorch's peak, the SNR in dB, and whether the best classes agree.

    Of several outputs each figure is that of the worst. Classes whose scores lie within twice the allowed error of each
    other are a tie. `snr_db` is None where the two are equal.
    """
    figures = [
        measure_one([ys[j] for ys in reference], [zs[j] for zs in outputs], allowed) for j in range(len(reference[0]))
    ]
    ratios = [one["snr_db"] for one in figures if one["snr_db"] is not None]
    worst = {key: max(one[key] for one in figures) for key in ("max_abs_error", "relative_error")}
    worst["snr_db"] = min(ratios) if ratios else None
    if len(figures) == 1 and "top1" in figures[0]:
        worst["top1"] = figures[0]["top1"]
    return worst


def measure_one(reference: Sequence[Any], outputs: Sequence[Any], allowed: float) -> dict[str, Any]:
    """The figures of one output over all cases."""
    import numpy

    signal_power = noise_power = worst = peak = 0.0
    for y, z in zip(reference, outputs):  # noqa: B905  # Python 3.8 has no strict
        if y.shape != z.shape:
            raise Refusal(f"{NUMBERS}: an output has shape {list(z.shape)} where PyTorch's has {list(y.shape)}")
        known = numpy.isfinite(y)
        if not numpy.array_equal(y[~known], z[~known], equal_nan=True) or not numpy.isfinite(z[known]).all():
            return {"max_abs_error": float("inf"), "relative_error": float("inf"), "snr_db": float("-inf")}
        a, b = y[known].astype(numpy.float64), z[known].astype(numpy.float64)
        peak = max(peak, float(numpy.abs(a).max(initial=0.0)))
        worst = max(worst, float(numpy.abs(a - b).max(initial=0.0)))
        signal_power += float((a**2).sum())
        noise_power += float(((a - b) ** 2).sum())
    snr = None
    if noise_power > 0:
        snr = 10 * float(numpy.log10(signal_power / noise_power)) if signal_power > 0 else float("-inf")
    relative = worst / peak if peak > 0 else (0.0 if worst == 0 else float("inf"))
    figures: dict[str, Any] = {"max_abs_error": worst, "relative_error": relative, "snr_db": snr}
    if all(y.ndim == 2 and y.shape[1] > 1 and y.size for y in reference):
        figures["top1"] = count_top1(reference, outputs, 2 * allowed * peak)
    return figures


def count_top1(reference: Sequence[Any], outputs: Sequence[Any], margin: float) -> dict[str, int]:
    """Count the best classes that agree, those that were decided, and the ties."""
    counts = {"agreeing": 0, "decided": 0, "ties": 0}
    for y, z in zip(reference, outputs):  # noqa: B905  # Python 3.8 has no strict
        for row, other in zip(y, z):  # noqa: B905
            best, theirs = int(row.argmax()), int(other.argmax())
            if best != theirs and float(row[best]) - float(row[theirs]) <= margin:
                counts["ties"] += 1
            else:
                counts["decided"] += 1
                counts["agreeing"] += best == theirs
    return counts


def judge(figures: Mapping[str, Any], thresholds: Mapping[str, float]) -> str | None:
    """Return the reason for which figures do not pass, or None."""
    if not figures["relative_error"] <= thresholds["relative_error"]:
        return f"error {figures['relative_error']:.2g} of the peak, allowed {thresholds['relative_error']:.2g}"
    if figures["snr_db"] is not None and not figures["snr_db"] >= thresholds["snr_db"]:
        return f"SNR {figures['snr_db']:.1f} dB, wanted {thresholds['snr_db']:.0f} dB"
    top1 = figures.get("top1")
    if top1 and top1["agreeing"] != top1["decided"]:
        return f"top-1 agrees on {top1['agreeing']} of {top1['decided']}"
    return None


def compare(thresholds: Mapping[str, float], reference: Outputs, outputs: Outputs) -> tuple[dict[str, Any], str | None]:
    """The figures of outputs, and the reason for which they do not pass, or None.

    Integers, such as classes of pixels, are counted: an error of their peak says nothing of them. Where an output has
    nothing else, the error is the share that are others.
    """
    places = range(len(reference[0]))
    whole = [j for j in places if reference[0][j].dtype.kind in "iu"]
    real = [j for j in places if j not in whole]
    figures: dict[str, Any] = {}
    failure = None
    if real:
        some = [[[one[j] for j in real] for one in each] for each in (reference, outputs)]
        figures = measure(some[0], some[1], thresholds["relative_error"])
        failure = judge(figures, thresholds)
    total = others = 0
    for ys, zs in zip(reference, outputs):  # noqa: B905  # Python 3.8 has no strict
        for j in whole:
            if ys[j].shape != zs[j].shape:
                shapes = f"shape {list(zs[j].shape)} where PyTorch's has {list(ys[j].shape)}"
                raise Refusal(f"{NUMBERS}: an output has {shapes}")
            total += ys[j].size
            others += int((ys[j] != zs[j]).sum())
    share = others / max(total, 1)
    if share > thresholds.get("other_whole", 0.0):
        failure = failure or f"{others} of {total} whole numbers are others than in PyTorch"
    if not real:
        top1 = {"agreeing": total - others, "decided": total, "ties": 0}
        figures = {"max_abs_error": share, "relative_error": share, "snr_db": None, "top1": top1}
    return figures, failure


def agreeing_cases(reference: Outputs, outputs: Outputs, allowed: float) -> list[int]:
    """The cases in which all outputs agree up to `allowed` of the peak over all cases."""
    import numpy

    count = len(reference[0])
    peaks = [max(float(numpy.abs(ys[j]).max(initial=0.0)) for ys in reference) for j in range(count)]
    found = []
    for i, (ys, zs) in enumerate(zip(reference, outputs)):  # noqa: B905  # Python 3.8 has no strict
        if all(numpy.abs(ys[j] - zs[j]).max(initial=0.0) <= allowed * peaks[j] for j in range(count)):
            found.append(i)
    return found


def check_numbers(kit: Mapping[str, Any], reference: Outputs, outputs: Outputs) -> dict[str, Any]:
    """The manifest's figures of an engine. Raises Refusal where they do not pass.

    Where neurons spike, an ulp may flip a spike and what follows; then at least half of the cases must agree spike for
    spike, and those are judged.
    """
    thresholds = kit["thresholds"]
    allowed = thresholds["relative_error"]
    figures, failure = compare(thresholds, reference, outputs)
    entry: dict[str, Any] = {}
    if failure and kit["spikes"]:
        agreeing = agreeing_cases(reference, outputs, allowed)
        entry["spike_for_spike"] = {"inputs": len(agreeing), "of": len(reference)}
        if 2 * len(agreeing) >= len(reference):
            figures, failure = compare(thresholds, [reference[i] for i in agreeing], [outputs[i] for i in agreeing])
    if failure:
        raise Refusal(f"{NUMBERS}: {failure}")
    snr = figures["snr_db"]
    entry.update(
        max_abs_error=float(f"{figures['max_abs_error']:.1e}"),
        relative_error=float(f"{figures['relative_error']:.1e}"),
        snr_db=None if snr is None else round(snr, 1),
    )
    if "top1" in figures:
        entry["top1"] = figures["top1"]
    return entry


def equal_rows(kit: Mapping[str, Any], case: Sequence[Any]) -> list[Any] | None:
    """A case whose first row is repeated over the batch; None where there is no batch, as in a module of one's own."""
    import numpy

    base = kit["manifest"]
    batch = base["target"]["options"].get("batch")
    if "features" not in base["model"] or "streaming" in base or not isinstance(batch, int) or batch < 2:
        return None
    return [numpy.repeat(x[:1], batch, axis=0) for x in case]


def check_rows(kit: Mapping[str, Any], outputs: Sequence[Any]) -> None:
    """Raise Refusal where equal rows of a batch gave results that differ, which needs no reference to be seen."""
    import numpy

    thresholds = kit["thresholds"]
    first = [numpy.repeat(y[:1], len(y), axis=0) for y in outputs]
    _, failure = compare(thresholds, [first], [list(outputs)])
    if failure and not kit["spikes"]:
        raise Refusal(
            f"{NUMBERS}: rows of a batch differ though their inputs are equal: {failure}; export with --batch 1"
        )


# CUDA's memory, by its runtime library: no package for it is needed.


def version_of(text: str) -> tuple[int, ...]:
    """(10, 3, 0) of `10.3.0.26`."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def written(version: Sequence[int]) -> str:
    """`10.3.0` of (10, 3, 0)."""
    return ".".join(map(str, version))


# The two ways to TensorRT. Each builds an engine, runs cases through it, and times it.


class Module:
    """The Python module `tensorrt`."""

    runtime = "tensorrt"

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = version_of(trt.__version__)
        self.cuda = Cuda()
        self.compute_capability: str | None = self.cuda.compute_capability()
        self.log = new_log(trt)
        if hasattr(trt, "init_libnvinfer_plugins"):  # group norms are a plugin before TensorRT 10
            trt.init_libnvinfer_plugins(self.log, "")

    def versions(self) -> dict[str, str]:
        """Return the versions that a manifest and a measurement name."""
        return {"tensorrt": str(self.trt.__version__), "cuda": self.cuda.version()}

    def build(self, onnx: Path, engine: Path, options: argparse.Namespace, kit: Mapping[str, Any]) -> dict[str, Any]:
        """Write the engine. Returns what `layers.json` holds."""
        trt, flags = self.trt, self.trt.NetworkDefinitionCreationFlag
        builder = trt.Builder(self.log)
        cores = getattr(builder, "num_DLA_cores", 0)
        if options.dla is not None and options.dla >= cores:
            shows = f"TensorRT {written(self.version)} shows {cores} DLA cores here"
            raise Refusal(f"{shows}, and core {options.dla} was asked for; leave out --dla")
        wanted = ["STRONGLY_TYPED"] if is_typed(self.version, options) else []
        wanted += ["EXPLICIT_BATCH"] if self.version < (10, 0) else []
        network = builder.create_network(sum(1 << int(getattr(flags, name)) for name in wanted))
        parser = trt.OnnxParser(network, self.log)
        if hasattr(trt, "OnnxParserFlag") and hasattr(trt.OnnxParserFlag, "NATIVE_INSTANCENORM"):
            parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
        if not parser.parse(onnx.read_bytes()):
            raise Refusal(self.refusal(parser))
        config = self.configure(builder.create_builder_config(), options, kit)
        built = builder.build_serialized_network(network, config)
        if built is None:
            errors = [message for severity, message in self.log.lines if "ERROR" in severity]
            said = first_line(errors[0]) if errors else "it does not say why"
            raise Refusal(f"TensorRT {written(self.version)} builds no engine of {onnx.name}: {said}")
        engine.write_bytes(bytes(built))
        if options.timing_cache:
            write_cache(options.timing_cache, bytes(config.get_timing_cache().serialize()))
        inspector = self.open(engine).create_engine_inspector()
        information = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        return condense(self.log.lines, int(network.num_layers), read_inspector(information))

    def refusal(self, parser: Any) -> str:
        """A sentence for what the parser says."""
        made_by = f"TensorRT {written(self.version)}"
        if not parser.num_errors:
            return f"{made_by} does not read the kit's ONNX, and does not say why"
        error = parser.get_error(0)
        node = error.node_name() if hasattr(error, "node_name") else f"node {error.node()}"
        operator = f"{error.node_operator()} " if hasattr(error, "node_operator") else ""
        return f"{made_by} does not read {operator}{node} of the kit's ONNX: {first_line(error.desc())}"

    def configure(self, config: Any, options: argparse.Namespace, kit: Mapping[str, Any]) -> Any:
        """The builder's settings."""
        trt = self.trt
        config.clear_flag(trt.BuilderFlag.TF32)
        config.builder_optimization_level = kit["flags"]["optimization_level"]
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.workspace:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
        if not is_typed(self.version, options):
            for name in weak_flags(kit["precision"]):
                config.set_flag(getattr(trt.BuilderFlag, name))
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.dla is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = options.dla
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        cache = options.timing_cache
        content = cache.read_bytes() if cache and cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(content), False):
            raise Refusal(f"{cache} is a timing cache of another GPU or TensorRT; choose another --timing-cache")
        return config

    def open(self, engine: Path) -> Any:
        """The engine, ready to make contexts."""
        self.runtime_object = self.trt.Runtime(self.log)  # engines need it as long as they live
        self.runtime_object.engine_host_code_allowed = True  # version compatible ones carry code; it is our own
        opened = self.runtime_object.deserialize_cuda_engine(engine.read_bytes())
        if opened is None:
            raise Refusal(f"TensorRT {written(self.version)} does not open the engine that it has built")
        return opened

    def prepare(self, engine: Path, kit: Mapping[str, Any]) -> tuple[dict[str, Any], Call]:
        """Pinned arrays by tensor's name, and a call that copies in, runs, and copies out."""
        arrays, call = bind(self.trt, self.cuda, self.open(engine))
        missing = [name for name in (*kit["inputs"], *kit["outputs"]) if name not in arrays]
        if missing:
            raise Refusal(f"the engine has no tensor {missing[0]}; it has {', '.join(arrays)}")
        return arrays, call

    def outputs(self, engine: Path, kit: Mapping[str, Any], cases: Sequence[Sequence[Any]], scratch: Path) -> Outputs:
        """Outputs of every case, in the kit's order, as float32."""
        import numpy

        arrays, call = self.prepare(engine, kit)
        found = []
        for case in cases:
            for name, value in zip(kit["inputs"], case):  # noqa: B905  # Python 3.8 has no strict
                arrays[name][...] = value
            call()
            found.append([numpy.array(arrays[name], numpy.float32) for name in kit["outputs"]])
        return found

    def time(
        self, engine: Path, kit: Mapping[str, Any], case: Sequence[Any], seconds: float, scratch: Path
    ) -> dict[str, Any]:
        """One launch: this process has just started."""
        before = state()
        start = time.perf_counter()
        arrays, call = self.prepare(engine, kit)
        load_ms = (time.perf_counter() - start) * 1e3
        for name, value in zip(kit["inputs"], case):  # noqa: B905  # Python 3.8 has no strict
            arrays[name][...] = value
        cold = {"load_ms": load_ms, "first_ms": timed(call), "memory_mib": memory_mib()}
        if seconds <= 0:
            return {"cold": cold}
        calls, ms, steady = warm_up(call)
        slots: list[dict[str, Any]] = []
        start = time.perf_counter()
        while not slots or time.perf_counter() - start < seconds:
            at_s = time.perf_counter() - start
            samples = [timed(call)]
            while sum(samples) < SLOT_MS:
                samples.append(timed(call))
            slots.append({"subject": 0, "round": len(slots), "at_s": at_s, "samples_ms": samples})
        warm = [{"calls": calls, "ms": ms, "is_steady": steady}]
        return {
            "cold": cold,
            "launch": {"warm": warm, "slots": slots, "before": before, "after": state(), "order": [0]},
        }


class Trtexec:
    """The command `trtexec`, for machines without the module. It writes outputs with six digits."""

    runtime = "trtexec"

    def __init__(self, command: str) -> None:
        self.command = command
        self.compute_capability: str | None = None  # it says so when it builds
        self.version_compatible = False  # of the engine that it loads
        said = self.run("--help")
        banner = re.search(r"\[TensorRT v(\d+)\]", said)
        if not banner:
            raise Refusal(f"{command} does not say which TensorRT it is of; wanted [TensorRT v...] in its first line")
        number = int(banner[1])
        parts = (number // 1000, number // 100 % 10, number % 100)
        self.version = parts if number < 10000 else (number // 10000, number // 100 % 100, number % 100)

    def versions(self) -> dict[str, str]:
        """Return the versions that a manifest and a measurement name."""
        return {"trtexec": written(self.version)}

    def run(self, *arguments: str) -> str:
        """Run the command. Returns all that it writes; raises Refusal where it fails."""
        done = subprocess.run(  # noqa: S603  # TensorRT's own command
            [self.command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False
        )
        if done.returncode != 0 and arguments != ("--help",):
            errors = [line for line in done.stdout.splitlines() if "[E]" in line]
            said = re.sub(r"^(\[[^\]]*\] *)+", "", errors[0]) if errors else "it does not say why"
            raise Refusal(f"trtexec of TensorRT {written(self.version)} failed with {done.returncode}: {said}")
        return done.stdout

    def build(self, onnx: Path, engine: Path, options: argparse.Namespace, kit: Mapping[str, Any]) -> dict[str, Any]:
        """Write the engine. Returns what `layers.json` holds."""
        listed = engine.with_suffix(".layers")
        arguments = [f"--onnx={onnx}", f"--saveEngine={engine}", f"--exportLayerInfo={listed}", "--noTF32"]
        arguments += ["--profilingVerbosity=detailed", "--skipInference"]
        arguments += [f"--builderOptimizationLevel={kit['flags']['optimization_level']}"]
        self.version_compatible = options.version_compatible
        typed = ["--stronglyTyped"] if self.version < (11, 0) else []  # 11 knows nothing else
        weak = [f"--{name.lower()}" for name in weak_flags(kit["precision"])]
        arguments += typed if is_typed(self.version, options) else weak
        arguments += [f"--memPoolSize=workspace:{options.workspace}"] if options.workspace else []
        arguments += ["--versionCompatible"] if options.version_compatible else []
        arguments += ["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []
        arguments += [f"--useDLACore={options.dla}", "--allowGPUFallback"] if options.dla is not None else []
        arguments += [f"--timingCacheFile={options.timing_cache}"] if options.timing_cache else []
        said = self.run(*arguments)
        found = re.search(r"Compute Capability: (\d+\.\d+)", said)
        self.compute_capability = found[1] if found else None
        information = json.loads(listed.read_text(encoding="utf-8"))
        listed.unlink()
        severities = {"W": "WARNING", "E": "ERROR"}
        marked = re.findall(r"^(?:\[[^\]]*\] *)*\[([VIWE])\] (?:\[TRT\] )?(.*)$", said, flags=re.MULTILINE)
        log = [(severities.get(severity, "INFO"), message) for severity, message in marked]
        return condense(log, None, read_inspector(information))

    def load(self, engine: Path, kit: Mapping[str, Any], case: Sequence[Any], scratch: Path) -> list[str]:
        """The arguments that load an engine and one case's inputs."""
        pairs = []
        for i, (name, value) in enumerate(zip(kit["inputs"], case)):  # noqa: B905  # Python 3.8 has no strict
            value.tofile(str(scratch / f"input{i}.bin"))
            pairs.append(f"{name}:{scratch / f'input{i}.bin'}")
        compatible = ["--versionCompatible"] if self.version_compatible else []
        return [f"--loadEngine={engine}", f"--loadInputs={','.join(pairs)}", *compatible]

    def outputs(self, engine: Path, kit: Mapping[str, Any], cases: Sequence[Sequence[Any]], scratch: Path) -> Outputs:
        """Outputs of every case, in the kit's order, as float32."""
        import numpy

        found = []
        once = ("--iterations=1", "--warmUp=0", "--duration=0")
        for case in cases:
            out = scratch / "outputs.json"
            self.run(*self.load(engine, kit, case, scratch), f"--exportOutput={out}", *once)
            told = {one["name"]: one for one in json.loads(to_json(out.read_text(encoding="utf-8")))}
            missing = [name for name in kit["outputs"] if name not in told]
            if missing:
                raise Refusal(f"trtexec shows no output {missing[0]}; it has {', '.join(told)}")
            shapes = {name: [int(n) for n in re.findall(r"\d+", one["dimensions"])] for name, one in told.items()}
            found.append([numpy.array(told[n]["values"], numpy.float32).reshape(shapes[n]) for n in kit["outputs"]])
        return found

    def time(
        self, engine: Path, kit: Mapping[str, Any], case: Sequence[Any], seconds: float, scratch: Path
    ) -> dict[str, Any]:
        """One launch: a process of trtexec's. It says nothing of loading, nor of its warm-up."""
        if seconds <= 0:
            return {"cold": None}
        before, out = state(), scratch / "times.json"
        warm_ms = 500
        length = (f"--warmUp={warm_ms}", f"--duration={seconds}", "--iterations=1")
        self.run(*self.load(engine, kit, case, scratch), f"--exportTimes={out}", *length)
        samples = [float(one["latencyMs"]) for one in json.loads(out.read_text(encoding="utf-8"))]
        slots: list[dict[str, Any]] = []
        spent = 0.0
        while samples:
            kept = [samples.pop(0)]
            while samples and sum(kept) < SLOT_MS:
                kept.append(samples.pop(0))
            slots.append({"subject": 0, "round": len(slots), "at_s": spent / 1e3, "samples_ms": kept})
            spent += sum(kept)
        warm = [{"calls": 0, "ms": float(warm_ms), "is_steady": False}]
        return {
            "cold": None,
            "launch": {"warm": warm, "slots": slots, "before": before, "after": state(), "order": [0]},
        }


def to_json(text: str) -> str:
    """Return the JSON that trtexec writes, with `nan`, `-nan`, `inf` and `-inf` as Python reads them."""
    return re.sub(r"\binf\b", "Infinity", re.sub(r"-?\bnan\b", "NaN", text))


def is_typed(version: Sequence[int], options: argparse.Namespace) -> bool:
    """Return whether the network is strongly typed."""
    return tuple(version) >= (STRONGLY_TYPED if options.dla is None else TYPED_DLA)


def weak_flags(precision: str) -> list[str]:
    """Return the precisions that a builder must be allowed where the graph's types alone do not allow them."""
    return {"fp32": [], "fp16": ["FP16"], "bf16": ["BF16"], "int8": ["INT8", "FP16"]}.get(precision, ["FP16"])


TRTEXEC = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
"""The places where JetPack and NVIDIA's containers keep it, when it is not on the PATH."""


def find_trtexec() -> str | None:
    """Return the path of the command trtexec, or None."""
    return shutil.which("trtexec") or next((path for path in TRTEXEC if os.access(path, os.X_OK)), None)


def find_tensorrt() -> Module | Trtexec:
    """This machine's TensorRT. Raises Refusal where there is none, or where it is too old."""
    found: Module | Trtexec
    try:
        found = Module(importlib.import_module("tensorrt"))
    except ImportError:
        command = find_trtexec()
        if command is None:
            raise Refusal(
                "TensorRT is not on this machine: there is neither the Python module tensorrt nor the command trtexec;"
                " on a Jetson type: sudo apt-get install tensorrt python3-libnvinfer"
            ) from None
        found = Trtexec(command)
    if found.version < OLDEST:
        raise Refusal(f"TensorRT {written(found.version)} is too old: this kit needs {written(OLDEST)} or later")
    return found


# The machine, as the manifest and the measurement show it.


def state() -> dict[str, Any]:
    """Return the environment, and the GPU's clock and temperature where the system shows those."""
    found = environment()
    for pattern in ("*gpu*/cur_freq", "*ga10b*/cur_freq"):
        for path in sorted(Path("/sys/class/devfreq").glob(pattern)):
            hertz = parse_number(read_line(path), 1e-6)
            if hertz is not None:
                found["gpu_frequency_mhz"] = hertz
    if "gpu_frequency_mhz" not in found:
        lines = ask_system(
            "nvidia-smi", "--query-gpu=clocks.sm,temperature.gpu", "--format=csv,noheader,nounits"
        ).splitlines()
        values = lines[0].split(",") if lines else []
        for key, value in zip(("gpu_frequency_mhz", "gpu_temperature_c"), values):  # noqa: B905  # Python 3.8
            if parse_number(value) is not None:
                found[key] = parse_number(value)
    return found


def describe_machine(kit: Mapping[str, Any], tensorrt: Module | Trtexec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The device of the measurement, and further facts for the manifest."""
    model = (read_line(Path("/proc/device-tree/model")) or "").strip("\0 ")
    device = dict(name=kit["device"], **machine())
    facts: dict[str, Any] = dict(device, board=model or None, compute_capability=tensorrt.compute_capability)
    facts["l4t"] = read_line(Path("/etc/nv_tegra_release"))
    facts["gpu"] = ask_system("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").partition("\n")[0] or None
    return device, facts


# The kit, and what becomes of it.


def read_kit(folder: Path) -> dict[str, Any]:
    """kit.json. Raises Refusal where it, or a file of the kit, is missing or is not what it was."""
    try:
        kit: dict[str, Any] = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
        schema, files = kit.get("schema"), kit.get("files", {})
    except FileNotFoundError:
        raise Refusal("the kit is not whole: kit.json is missing; copy its folder again") from None
    except (OSError, ValueError, AttributeError) as error:
        raise Refusal(f"the kit is damaged: kit.json cannot be read ({error}); copy its folder again") from error
    if schema != SCHEMA:
        raise Refusal(f"kit.json has schema {schema}, and this build.py reads {SCHEMA}: copy the kit whole")
    model = str(kit.get("model"))
    if Path(model).name != model or model in ("", "..") or not model.isprintable():
        raise Refusal(f"the kit is damaged: {model[:80]!r} is no name of an engine's file")
    for name, digest in files.items():
        try:
            content = (folder / name).read_bytes()
        except OSError:
            raise Refusal(f"the kit is not whole: {name} is missing; copy its folder again") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise Refusal(f"the kit is damaged: {name} is not what it was; copy its folder again")
    return kit


def read_cases(kit: Mapping[str, Any], folder: Path) -> tuple[list[list[Any]], list[list[Any]]]:
    """Inputs and PyTorch's outputs of every case."""
    import numpy

    with numpy.load(str(folder / "cases.npz"), allow_pickle=False) as arrays:
        count = 1 + max(int(name.split("_")[1].split(".")[0]) for name in arrays.files)
        inputs = [[arrays[f"input_{i}.{j}"] for j in range(len(kit["inputs"]))] for i in range(count)]
        outputs = [[arrays[f"output_{i}.{j}"] for j in range(len(kit["outputs"]))] for i in range(count)]
    return inputs, outputs


def check_options(kit: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Raise Refusal for options that the device does not have."""
    board = kit["board"]
    if options.dla is not None:
        cores = board["dla_cores"]
        if options.dla not in range(cores):
            has = f"DLA cores 0 to {cores - 1}" if cores else "no DLA"
            raise Refusal(f"{board['title']} has {has}, got --dla {options.dla}")
        if kit["precision"] not in ("fp16", "int8"):
            raise Refusal(
                f"a DLA computes in fp16 and int8, and this kit is {kit['precision']}: export with --precision fp16"
            )
    if options.hardware_compatible and board["jetpack"]:
        raise Refusal("TensorRT has no hardware compatibility on JetPack; leave out --hardware-compatible")
    for name in ("seconds", "launches"):
        if not 0 < getattr(options, name) < float("inf"):
            raise Refusal(f"--{name} must be more than 0 and finite, got {getattr(options, name)}")
    if options.timing_cache is not None:
        check_cache(options.timing_cache)


def check_cache(cache: Path) -> None:
    """Raise Refusal for a timing cache that can be neither read nor written, before minutes of building are spent.

    A timing cache is a file in which TensorRT keeps how long each kernel took, so that the next build need not time it.
    """
    if cache.is_dir():
        why = "it is a folder"
    elif not cache.parent.is_dir():
        why = f"there is no folder {cache.parent}"
    elif not os.access(str(cache.parent), os.W_OK) or (cache.exists() and not os.access(str(cache), os.R_OK)):
        why = "its permissions forbid it"
    else:
        return
    raise Refusal(f"--timing-cache {cache} can be neither read nor written: {why}")


def write_cache(cache: Path, content: bytes) -> None:
    """Write a timing cache anew, in one step. Raises Refusal where that fails."""
    try:
        write_whole(cache, content)
    except OSError as error:
        said = error.strerror or str(error)
        raise Refusal(f"cannot write --timing-cache {cache}: {said}; nothing was written") from error


def check_dla(options: argparse.Namespace, tensorrt: Module | Trtexec) -> None:
    """Raise Refusal where a DLA is asked of a TensorRT that has none."""
    if options.dla is not None and WITHOUT_DLA <= tensorrt.version < TYPED_DLA:
        raise Refusal(
            f"TensorRT {written(tensorrt.version)} has no DLA; TensorRT has it up to 10.7 and from"
            f" {written(TYPED_DLA)} on: leave out --dla"
        )


def check_operators(kit: Mapping[str, Any], tensorrt: Module | Trtexec) -> None:
    """Raise Refusal for an operator that this TensorRT does not have."""
    for operator, since in kit["operators"].items():
        if since == NEVER:
            if tensorrt.version[:2] <= NEWEST:  # of a newer one its parser knows
                none = f"no TensorRT up to {written(NEWEST)} has it"
                raise Refusal(f"TensorRT {written(tensorrt.version)} has no {operator}; {none}")
        elif since is not None and tensorrt.version < version_of(since):
            raise Refusal(f"TensorRT {written(tensorrt.version)} has no {operator}; TensorRT has it from {since} on")


def check_gpu(kit: Mapping[str, Any], tensorrt: Module | Trtexec) -> None:
    """Raise Refusal where the kit is for another GPU."""
    wanted, own = kit["board"]["compute_capability"], tensorrt.compute_capability
    if wanted and own and wanted != own:
        raise Refusal(
            f"this GPU is SM {own}, and the kit is for {kit['board']['title']}, SM {wanted}: build it there, or export"
            " with the --device of this one"
        )


def sha256(path: Path) -> str:
    """The digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by a rename, for those whom the umask lets read it."""
    handle, temporary = tempfile.mkstemp(dir=str(path.parent), prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~umask())
        Path(temporary).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):  # it has become `path`
            os.unlink(temporary)  # noqa: PTH108  # Python 3.8's Path.unlink takes no missing_ok


def umask() -> int:
    """The permissions that this process gives to nobody."""
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a file of JSON."""
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it, or goes. Those of runs that were killed go too.

    Raises:
        Refusal: `out` is there and not empty, or cannot be written. Errors of what fills the folder are passed on.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refusal(f"{out} is there already; choose another --out, or remove it")
    new = [folder for folder in out.parents if not folder.exists()]
    held = folder = None
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            for left in out.parent.glob(f".{out.name}.*.partial"):
                remove_leftover(left)
            folder = Path(tempfile.mkdtemp(dir=str(out.parent), prefix=f".{out.name}.", suffix=".partial"))
        except OSError as error:
            raise Refusal(f"cannot write to {out.parent}: {error.strerror or error}") from error
        held = lock(folder)
        yield folder
        try:
            folder.chmod(0o777 & ~umask())
            folder.replace(out)
        except OSError as error:
            raise Refusal(f"cannot write to {out.parent}: {error.strerror or error}; nothing was written") from error
    finally:
        if folder is not None:
            shutil.rmtree(str(folder), ignore_errors=True)
        if held is not None:
            os.close(held)
        for made in new:
            with contextlib.suppress(OSError):  # something lies in it
                made.rmdir()


def lock(folder: Path) -> int | None:
    """A lock that ends with this process; None where another process holds it, or there are no locks."""
    import fcntl

    handle = os.open(str(folder), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def remove_leftover(folder: Path) -> None:
    """Remove a staging folder whose process is gone."""
    held = lock(folder)
    if held is not None:
        shutil.rmtree(str(folder), ignore_errors=True)
        os.close(held)


def time_launches(engine: Path, kit: Mapping[str, Any], options: argparse.Namespace) -> tuple[Any, list[Any], float]:
    """Time the engine in processes of their own: the cold start, the launches, and seconds of rounds in each."""
    seconds = max(options.seconds / options.launches - START_S, 0.3)
    cold, launches = None, []
    for length in (0.0, *[seconds] * options.launches):
        plan = json.dumps({"engine": str(engine), "seconds": length, "version_compatible": options.version_compatible})
        command = [sys.executable, str(Path(__file__).resolve()), "--launch", plan]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)  # noqa: S603  # this file
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            raise Refusal(f"timing the engine failed: {said[-1] if said else f'exit code {done.returncode}'}")
        result = json.loads(done.stdout)
        if length:
            launches.append(result["launch"])
        else:
            cold = result["cold"]
    return cold, launches, seconds


def launch(folder: Path, plan: Mapping[str, Any]) -> None:
    """Carry out one launch, and print what it found."""
    found = keep_output_apart()  # libraries print as they are imported
    kit = read_kit(folder)
    cases, _ = read_cases(kit, folder)
    with tempfile.TemporaryDirectory() as scratch:
        tensorrt = find_tensorrt()
        if isinstance(tensorrt, Trtexec):
            tensorrt.version_compatible = plan["version_compatible"]
        times = tensorrt.time(Path(plan["engine"]), kit, cases[0], plan["seconds"], Path(scratch))
    print(json.dumps(times), file=found, flush=True)


def build(folder: Path, options: argparse.Namespace) -> None:
    """Build, check, time, and write `options.out`."""
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017  # Python 3.8 has no datetime.UTC
    kit = read_kit(folder)
    check_options(kit, options)
    with staging(options.out) as made:
        tensorrt = find_tensorrt()
        check_gpu(kit, tensorrt)
        check_dla(options, tensorrt)
        check_operators(kit, tensorrt)
        engine = made / f"{kit['model']}.engine"
        tell(f"building with TensorRT {written(tensorrt.version)} ...")
        report = tensorrt.build(folder / kit["onnx"], engine, options, kit)
        check_gpu(kit, tensorrt)
        tell("checking its numbers ...")
        cases, reference = read_cases(kit, folder)
        repeated = equal_rows(kit, cases[0])
        with tempfile.TemporaryDirectory() as scratch:
            outputs = tensorrt.outputs(engine, kit, cases + ([repeated] if repeated else []), Path(scratch))
        figures = check_numbers(kit, reference, outputs[: len(cases)])
        if repeated:
            check_rows(kit, outputs[-1])
        tell("timing it ...")
        cold, launches, seconds = time_launches(engine, kit, options)
        device, facts = describe_machine(kit, tensorrt)
        write_json(made / "layers.json", report, 1)
        subject = {
            "name": options.out.name,
            "model": kit["model"],
            "target": "tensorrt",
            "precision": kit["precision"],
            "runtime": tensorrt.runtime,
            "sha256": sha256(engine),
            "bytes": engine.stat().st_size,
            "cold": cold,
        }
        measurement = {
            "schema": MEASUREMENT_SCHEMA,
            "edgesmith": kit["manifest"]["tool"]["edgesmith"],
            "complete": True,
            "started": now.isoformat(timespec="seconds"),
            "device": device,
            "runtimes": tensorrt.versions(),
            "threads": 1,
            "cores": None,
            "seconds": seconds,
            "slot_ms": SLOT_MS,
            "seed": 0,
            "subjects": [subject],
            "launches": launches,
        }
        write_json(made / "measurement.json", measurement, None)
        if STREAM in kit["files"]:
            shutil.copyfile(str(folder / STREAM), str(made / STREAM))
        write_json(made / "manifest.json", manifest_of(made, kit, options, tensorrt, report, figures, facts))
        for path in made.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    middle = median([ms for one in launches for slot in one["slots"] for ms in slot["samples_ms"]])
    built = f"TensorRT {written(tensorrt.version)}, SM {tensorrt.compute_capability or 'unknown'}"
    print(f"{options.out}: {built}, error {figures['relative_error']:.1e} of the peak, {middle:.3f} ms")


def manifest_of(
    made: Path,
    kit: Mapping[str, Any],
    options: argparse.Namespace,
    tensorrt: Module | Trtexec,
    report: Mapping[str, Any],
    figures: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the manifest of the engine in the folder `made`; the kit says what it is built of."""
    base = kit["manifest"]
    engine = made / f"{kit['model']}.engine"
    summary = {
        "version": tensorrt.versions()[tensorrt.runtime],
        "compute_capabilities": [tensorrt.compute_capability] if tensorrt.compute_capability else [],
        "bytes": engine.stat().st_size,
        "flags": {
            "strongly_typed": is_typed(tensorrt.version, options),
            "tf32": False,
            "optimization_level": kit["flags"]["optimization_level"],
            "version_compatible": options.version_compatible,
            "hardware_compatible": options.hardware_compatible,
            "dla": options.dla,
        },
    }
    summary.update(summarise(report))
    place = facts["board"] or facts["gpu"] or kit["device"]
    step: dict[str, Any] = {"step": "eager -> engine"}
    step.update(figures, runtime=f"TensorRT {written(tensorrt.version)} on {place}")
    verification = {key: base["verification"][key] for key in ("inputs", "judged_as")}
    limits = dict(kit["thresholds"], top1="every decided input")
    verification.update(thresholds={base["verification"]["judged_as"]: limits}, steps=[step])
    manifest = {"schema": base["schema"], "file": engine.name}
    repeated = ("model", "streaming", "weights", "target", "precision", "tool")
    manifest.update({key: base[key] for key in repeated if key in base})
    manifest.update(
        versions=tensorrt.versions(),
        engine=summary,
        kit={"onnx": kit["files"][kit["onnx"]], "cases": kit["files"]["cases.npz"]},
        device=facts,
        verification=verification,
        files=[
            {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(made.iterdir())
        ],
    )
    return manifest


def tell(sentence: str) -> None:
    """Show progress, where somebody looks."""
    if sys.stderr.isatty():
        print(sentence, file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Answers wrong options in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{message}; see: python3 build.py --help")


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises Refusal for a wrong option."""
    parser = Parser(description="Builds, checks and times the engine of this kit on this machine.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the engine and its records go; must be new")
    parser.add_argument("--workspace", type=int, metavar="MIB", help="limit of the builder's scratch memory")
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="kernels' times: read where it exists, then written anew"
    )
    parser.add_argument(
        "--version-compatible", action="store_true", help="for later TensorRTs of the same major version"
    )
    parser.add_argument(
        "--hardware-compatible", action="store_true", help="for every GPU from SM 8.0 on; not on JetPack"
    )
    parser.add_argument("--dla", type=int, metavar="CORE", help="run on a DLA what can; the rest stays on the GPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"to time for, about; default {SECONDS:.0f}")
    parser.add_argument("--launches", type=int, default=LAUNCHES, help=f"processes to time in; default {LAUNCHES}")
    parser.add_argument("--launch", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.out is None and options.launch is None:
        parser.error("say where the engine goes with --out DIR")
    if options.out is not None:
        options.out = options.out.resolve()
    return options


def interrupted(*_: Any) -> NoReturn:
    """Leave as Ctrl-C does, so that nothing half-written stays."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what was typed. Returns the exit code."""
    for name in ("SIGTERM", "SIGHUP"):  # a connection that is lost hangs up
        signal.signal(getattr(signal, name), interrupted)
    folder = Path(__file__).resolve().parent
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        if options.launch:
            launch(folder, json.loads(options.launch))
        else:
            build(folder, options)
    except Refusal as refusal:
        sentence = str(refusal)
    except KeyboardInterrupt:
        sentence = "interrupted; nothing was written"
    except Exception as error:  # TensorRT's own are of many kinds
        sentence = f"the build stopped: {type(error).__name__}: {first_line(str(error))}; nothing was written"
    else:
        return 0
    print(f"build.py: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
