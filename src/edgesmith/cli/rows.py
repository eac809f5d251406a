"""An artifact's manifest as rows of a table: a name and what there is to say.

A row of what a manifest does not have is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgesmith.errors import Unreadable
from edgesmith.exporters.manifest import own_files

if TYPE_CHECKING:
    from edgesmith.exporters.artifact import Artifact
    from edgesmith.exporters.manifest import CheckRecord, InputsRecord, Int8Record, Manifest, VerificationRecord
    from edgesmith.exporters.streaming.description import StreamingDescription

Row = tuple[str, str]

PROGRAMS = ("captured", "rewritten", "step", "step program", "sequence program")
"""What checks compare beside the file."""

ENGINE_COUNTS = {"precisions": "precisions", "kernels": "types"}
"""Titles of the counts that a builder gives, with their keys."""


def artifact_rows(artifact: Artifact, is_verbose: bool = False) -> Iterator[Row]:
    """Yield what an export has come to: the file, how near it is to PyTorch, what to know of it, what to do next.

    Args:
        is_verbose: also what the compiler did, and every check.
    """
    manifest = artifact.manifest
    verification = manifest["verification"]
    size = sum(entry["bytes"] for entry in own_files(manifest)) / 1e6
    yield verdict_of(verification), f"{artifact.file}, {size:.2f} MB"
    yield from _nearness_rows(verification)
    yield from _model_rows(manifest)
    if is_verbose:
        for rows in (_rewrite_rows, _precision_rows, _operator_rows):
            yield from rows(manifest)
    elif "int8" in manifest:
        yield "int8", _describe_int8(manifest["int8"])
    yield from _device_rows(manifest, is_verbose)
    yield from _sequence_rows(manifest)
    if is_verbose:
        yield from ((check["step"], describe_check(check)) for check in verification["steps"])
    yield "next", f"edgesmith use {artifact.path}"


def verdict_of(verification: VerificationRecord) -> str:
    """Return PASS where the file's numbers were compared and hold, and otherwise the word for why not."""
    if "missed" in verification:
        return "INACCURATE"
    return "PASS" if _of_file(verification) else "NOT RUN"


def _of_file(verification: VerificationRecord) -> list[CheckRecord]:
    """Return the checks of the file that have figures."""
    judged = [one for one in verification["steps"] if "max_abs_error" in one]
    return [one for one in judged if _what(one) not in PROGRAMS]


def _what(check: CheckRecord) -> str:
    return check["step"].split(" -> ")[-1]


def _nearness_rows(verification: VerificationRecord) -> Iterator[Row]:
    """Yield how near the file is to PyTorch, where it ran, on what, and what was not checked."""
    found = _of_file(verification)
    for check in found:
        start, what = check["step"].split(" -> ")[0], f"{_what(check)}: " if len(found) > 1 else ""
        if start in ("eager", *PROGRAMS):
            yield "from PyTorch", what + describe_check(check)
        else:  # two runs of the file
            yield "from itself", f"{start} -> {what}{describe_check(check)}"
    for check in verification["steps"]:
        if "not_checked_here" in check:
            yield "not checked", check["not_checked_here"]
    if "calls" in verification["inputs"]:
        yield "verified on", describe_inputs(verification["inputs"])
    for output, reason in verification.get("unverified", {}).items():
        yield "NOT VERIFIED", f"{output}: {reason}"


def describe_inputs(inputs: InputsRecord) -> str:
    """Return `example, 3 drawn, zeros, quiet x 0.001, loud x 1000; left out: ...`."""
    kinds: dict[str, int] = {}
    for call in inputs["calls"]:
        factor = f" x {call['factor']:g}" if "factor" in call else ""
        only = f" of input {call['only']}" if "only" in call else ""
        kinds[f"{call['kind']}{factor}{only}"] = kinds.get(f"{call['kind']}{factor}{only}", 0) + 1
    words = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items())
    return f"{words}; left out: {'; '.join(inputs['left_out'])}" if "left_out" in inputs else words


def _model_rows(manifest: Manifest) -> Iterator[Row]:
    yield "input", ", ".join(f"{i['name']} {'x'.join(map(str, i['shape']))}" for i in manifest["model"]["inputs"])
    origin = manifest["weights"]["origin"]
    if origin.startswith("random"):
        origin += ": for trying out only; give a checkpoint with --weights"
    yield "weights", "\n".join([origin, *manifest["weights"]["notes"]])


def _rewrite_rows(manifest: Manifest) -> Iterator[Row]:
    for report in manifest.get("rewrites", ()):
        applied, rejected = report["applied"], report["rejected"]
        near = f", rejected {len(rejected)} (first: {rejected[0]['reason']})" if rejected else ""
        if applied or rejected:
            yield report["name"], f"fired {len(applied)}{near}"


def _precision_rows(manifest: Manifest) -> Iterator[Row]:
    if "legalized" in manifest:
        yield "legalized", "\n".join(f"{one['name']}: {one['change']}" for one in manifest["legalized"])
    if reasons := list(manifest.get("keep_fp32", {}).values()):
        yield "stay fp32", f"{len(reasons)} operators (first: {reasons[0]})"
    if "int8" in manifest:
        yield "int8", _describe_int8(manifest["int8"])


def _operator_rows(manifest: Manifest) -> Iterator[Row]:
    counts: Mapping[str, Any] = manifest.get("operators", {})
    if counts:
        yield "operators", " -> ".join(f"{stage} {sum(found.values())}" for stage, found in counts.items())
    for stage, found in counts.items():
        yield f"  {stage}", ", ".join(f"{name.removeprefix('aten.')} {n}" for name, n in found.items())


def _device_rows(manifest: Manifest, is_verbose: bool) -> Iterator[Row]:
    if "kit" in manifest:
        board = manifest["kit"].get("board")
        if not isinstance(board, dict):
            raise Unreadable("the manifest does not say which board its kit is for; export the model again")
        has = f", with TensorRT {board['tensorrt']} of JetPack {board['jetpack']}" if board["jetpack"] else ""
        yield "kit for", f"{board['title']}{has}; copy the folder there and type: python3 build.py --out DIR"
    if "engine" in manifest:
        built = manifest["engine"]
        yield "engine", f"TensorRT-RTX {built['version']}, for SM {', '.join(built['compute_capabilities'])}"
        if is_verbose:
            yield from engine_rows(built)
        else:
            yield from (("warning", warning) for warning in built.get("warnings", ()))


def _sequence_rows(manifest: Manifest) -> Iterator[Row]:
    if "streaming" in manifest:
        yield "streaming", _describe_streaming(manifest["streaming"])
    if "functions" in manifest:
        shared = manifest["functions"]["shared_bytes"] / 1e6
        yield "functions", f"step (the default) and sequence; sharing weights saves {shared:.2f} MB"


def engine_rows(built: Mapping[str, Any]) -> Iterator[Row]:
    """Yield how an engine was built, and what its builder said, as far as its manifest has it."""
    yield "  flags", describe_flags(built["flags"])
    if "layers" in built:
        before = built["layers"]["network"]
        layers = f"network {'unknown' if before is None else before} -> fused {built['layers']['engine']}"
        yield "  layers", f"{layers}, and {built.get('synchronisations', 'unknown')} signals and waits"
    yield from ((f"  {title}", describe_counts(built[key])) for title, key in ENGINE_COUNTS.items() if key in built)
    sizes = {name: built.get(f"{name}_bytes") for name in ("weights", "activations", "workspace")}
    known = {name: "unknown" if size is None else f"{size / 1e6:.2f} MB" for name, size in sizes.items()}
    yield "  memory", ", ".join(f"{name} {size}" for name, size in known.items())
    yield from (("  warning", warning) for warning in built.get("warnings", ()))


def describe_counts(found: Mapping[str, int]) -> str:
    """Return `Half 12, Float 3`."""
    return ", ".join(f"{name} {count}" for name, count in found.items())


def describe_flags(flags: Mapping[str, Any]) -> str:
    """Return `fp16 true, version_compatible false`."""
    return ", ".join(f"{name} {str(value).lower()}" for name, value in flags.items())


def _describe_streaming(streaming: StreamingDescription) -> str:
    states = streaming["states"]
    size = sum(4 * math.prod(state["shape"]) for state in states)
    delay = f"predictions {streaming['delay']} steps behind" if streaming["delay"] else "predictions at once"
    return f"{len(states)} states, {size / 1024:.1f} KiB; {delay}; run it with edgesmith.StreamingSession"


def _describe_int8(int8: Int8Record) -> str:
    data = int8["calibration"]
    words = f"{int8['layers']} layers, {int8['share_of_macs']:.1%} of the MACs, {int8['weight_bits']}-bit weights"
    if "joined" in int8:
        words += (
            ", integers between layers"
            if int8["joined"]
            else ", floats between layers (in ONNX Runtime such files are slower than fp32)"
        )
    judged = f"calibrated on {data['calls']} calls, judged on {data['held_out']} others"
    return f"{words}; {judged}" + (f"\nWARNING: {data['warning']}" if "warning" in data else "")


def describe_check(check: CheckRecord) -> str:
    """Return what one check came to."""
    if "not_checked_here" in check:
        return f"not checked here: {check['not_checked_here']}"
    if "matching" in check:
        return f"{check['matching']} files, as published"
    if "max_abs_error" not in check:
        return f"valid, {check['operators']} operators"
    missed = [f"MISSED: {check['missed']}"] if "missed" in check else []
    without = {"worst"} if check["max_abs_error"] == 0 else set[str]()  # of equal outputs none is the worst
    more = [describe(check) for key, describe in CHECKED.items() if key in check and key not in without]
    return "; ".join([*missed, *_describe_error(check), *more])


def _describe_error(check: CheckRecord) -> list[str]:
    error, relative, snr_db = check["max_abs_error"], check["relative_error"], check["snr_db"]
    if error is None:
        return ["not finite where PyTorch is"]
    if relative is None:
        return [f"max error {error:.1e}, and PyTorch has nothing but zeros"]
    if snr_db is None:
        return ["equal"]
    return [f"max error {error:.1e} ({relative:.1e} of the peak)", f"SNR {snr_db:.1f} dB"]


def _describe_worst(check: CheckRecord) -> str:
    worst = check["worst"]
    error, relative = worst["max_abs_error"], worst["relative_error"]
    if error is None:
        return f"not finite on {worst['input']}"
    figures = f"{error:.1e}" if relative is None else f"{relative:.1e} of its peak"
    return f"worst on {worst['input']}: {figures}"


def _describe_spikes(check: CheckRecord) -> str:
    spikes = check["spike_for_spike"]
    return f"spike for spike on {spikes['inputs']} of {spikes['of']} inputs"


def _describe_distances(check: CheckRecord) -> str:
    distances = check["from_float64"]
    return f"{distances['file']:.1e} of the peak from float64, PyTorch {distances['pytorch']:.1e}"


def _describe_top1(check: CheckRecord) -> str:
    top1 = check["top1"]
    ties = f", {top1['ties']} ties" if top1["ties"] else ""
    return f"top-1 {top1['agreeing']}/{top1['decided']}{ties}"


CHECKED: dict[str, Callable[[CheckRecord], str]] = {
    "finite": lambda c: f"compared {c['finite']:.1%} of the values, the others are not finite in PyTorch",
    "worst": _describe_worst,
    "spike_for_spike": _describe_spikes,
    "noise": lambda c: f"allowed {c['allowed']:.1e}: eager is {c['noise']:.1e} from itself in float64",
    "from_float64": _describe_distances,
    "top1": _describe_top1,
    "runtime": lambda c: c["runtime"],
}
"""What a comparison has beside its error, in the order in which it is said."""
