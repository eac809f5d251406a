"""Every reader against damaged files: each ends in a right result or in a sentence with its exit code.

    python -m support.fuzzing 10000 0      from tests/: so many in all, of a seed; exit 1 where one was a bug

A reader's samples are read in processes of their own, so that one that ends its process, or never ends, is found.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesmith.errors import EdgesmithError
from support.mutations import Mutate, mutate_archive, mutate_bytes, mutate_json, mutate_text

RIGHT, REFUSED, BUG = "right", "documented exit", "bug"
LONGEST_S = 20
MOST_BYTES = 2 * 2**30
DOCUMENTED = {2, 3, 4, 5, 6, 7, 8, 9, 10}


@dataclass(frozen=True)
class Reader:
    """One way in.

    Attributes:
        file: the sample, below the folder that `make` fills; the one that is damaged.
        read: reads the folder; what it returns is compared where a checksum would have told.
        mutate: the damage.
        is_checked: whether an accepted file has to give what the sound one gives, as a checksum is in it.
    """

    name: str
    make: Callable[[Path], None]
    file: str
    read: Callable[[Path], Any]
    mutate: Mutate
    is_checked: bool = False


@functools.cache
def small_module() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5))


@functools.cache
def exported(target: str) -> Path:
    """An artifact of a small module."""
    import torch

    from edgesmith.exporters.export import export

    options: dict[str, Any] = {"device": "jetson-orin-nano"} if target == "tensorrt" else {}
    out = Path(tempfile.mkdtemp(prefix="fuzzed-"))
    return export(small_module(), target=target, inputs=(torch.rand(1, 3, 8, 8),), out=out, **options).path


def copy_of(target: str) -> Callable[[Path], None]:
    return lambda folder: void(shutil.copytree(exported(target), folder / "made", dirs_exist_ok=True))


def rehash(folder: Path) -> None:
    """Have a manifest agree with the damaged file beside it, as a hostile one does."""
    from edgesmith.exporters import artifact as artifacts

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = artifacts.list_files(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def void(_: object) -> None:
    return None


def command(*arguments: str) -> Any:
    """Run a command with its output kept; a bug is raised as it is."""
    from edgesmith.cli.app import run

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = run(list(arguments), debug=True)
    assert code in (0, *DOCUMENTED), code
    shown = said.getvalue()
    assert not set(shown) & {"\x1b", "\u202e", "\x07", "\x00"}, "control characters are shown"
    return None


# What is read


def read_manifest(folder: Path) -> Any:
    from edgesmith.cli.rows import artifact_rows
    from edgesmith.exporters import artifact as artifacts

    found = artifacts.read(folder / "made")
    artifacts.changed_files(found)
    assert found.file.resolve().is_relative_to((folder / "made").resolve()), "it leads out of its folder"
    list(artifact_rows(found))


def read_evidence(folder: Path) -> Any:
    from edgesmith.exporters import artifact as artifacts
    from edgesmith.exporters import verify

    rehash(folder / "made")
    verify.read_evidence(artifacts.read(folder / "made"))


def read_use(folder: Path) -> Any:
    command("use", str(folder / "made"))
    command("use", str(folder / "made"), "--json")


def read_linted(folder: Path) -> Any:
    """Lint a damaged file of an artifact whose manifest agrees with it."""
    rehash(folder / "made")
    command("lint", str(folder / "made"), "--sarif", str(folder / "found.sarif"))


def make_labels(folder: Path) -> None:
    (folder / "labels.txt").write_text("tench\ngoldfish\nsandpiper, dunlin\n")


def read_class_names(folder: Path) -> Any:
    from edgesmith.cli.options import read_labels

    for label in read_labels(folder / "labels.txt") or ():
        assert "\0" not in label


def make_settings(folder: Path) -> None:
    (folder / "edgesmith.toml").write_text(
        '[models.ours]\nmodule = "net.py:build"\nkwargs = {width = 8, kinds = ["a", "b"]}\ninput = ["1x3x8x8"]\n'
        'inputs = "given.npz"\nweights = "w.pth"\nkey = "model"\nstrict = true\n'
    )


def read_settings(folder: Path) -> Any:
    from edgesmith.exporters.own import settings

    for name in settings.names(folder):
        settings.find(name, folder)


FORECASTER = {"context_length": 24, "prediction_length": 8, "patch_length": 8, "patch_stride": 8, "d_model": 8}


def make_config(folder: Path) -> None:
    more = {"num_input_channels": 2, "num_layers": 1, "prediction_channel_indices": [0], "model_type": "patchtsmixer"}
    (folder / "config.json").write_text(json.dumps(FORECASTER | more))


def read_config(folder: Path) -> Any:
    """Build the model that a configuration asks for."""
    from edgesmith.models import registry, series

    facts = series.read_file(folder / "config.json")
    registry.build(registry.get("patchtsmixer"), config=series.read_config(facts, {}, "config.json"))


def read_compiled(folder: Path) -> Any:
    from edgesmith.exporters.targets import _tvm_library

    (file,) = (folder / "made").glob("*.so")
    _tvm_library.read(file)


def make_external(folder: Path) -> None:
    """An ONNX file whose weights lie in another file beside it."""
    import onnx

    copy_of("onnx")(folder)
    (file,) = (folder / "made").glob("*.onnx")
    onnx.save(
        onnx.load(file), folder / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0
    )


def read_split(folder: Path) -> Any:
    command("lint", str(folder / "split.onnx"))


def read_altered(folder: Path) -> Any:
    from edgesmith.exporters.verify import verify_artifact

    verify_artifact(folder / "made")
    return "verified"


def read_weights(folder: Path) -> Any:
    from edgesmith.models.checkpoint import fingerprint, read

    (file,) = folder.glob("w.*")
    return fingerprint(read(file))


def make_weights(name: str, **options: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        state = small_module().state_dict()
        if name.endswith("safetensors"):
            save_file(state, folder / name)
        else:
            torch.save({"model": state, "epoch": 3}, folder / name, **options)

    return make


def make_npz(folder: Path) -> None:
    import numpy as np

    np.savez_compressed(folder / "set.npz", x=np.ones((4, 3, 8, 8), np.float32), y=np.arange(8))


def read_npz(folder: Path) -> Any:
    import torch

    from edgesmith.exporters.precision.calibration import read_given

    read_given(folder / "set.npz", ["x"], [torch.zeros(1, 3, 8, 8)], None)


def make_device(folder: Path) -> None:
    from edgesmith import profiles

    shutil.copy(Path(profiles.__file__).parent / "jetson-orin-nano.toml", folder / "board.toml")


def read_device(folder: Path) -> Any:
    from edgesmith.profiles.device import read_profile

    read_profile(folder / "board.toml")


RECORDS = Path(__file__).parents[1] / "fixtures" / "records"


def make_record(folder: Path) -> None:
    from edgesmith.bench import measurement as m

    launches = tuple(
        m.Launch((m.WarmUp(3, 9.0, True),), tuple(m.Slot(0, i, 0.1 * i, (3.0 + i, 3.1, 3.2)) for i in range(3)))
        for _ in range(2)
    )
    subject = m.Subject("small", "small", "onnx", "fp32", "onnxruntime", f"{7:064x}", 99, m.Cold(5.0, 2.0, 30.0))
    device = m.Device("host", "Linux", "A processor", "abc")
    started, runtimes = "2026-01-01T00:00:00+00:00", {"onnxruntime": "1"}
    made = m.Measurement("1", started, device, runtimes, 1, None, 1.0, 30.0, 0, (subject,), launches, True)
    m.write(made, folder / "record.json")


def make_kept(folder: Path) -> None:
    from edgesmith.bench import measured, measurement

    make_record(folder)
    for one in measured.condense(measurement.read(folder / "record.json")):
        measured.write(one, folder / "kept")
    (folder / "record.json").unlink()


def read_record(folder: Path) -> Any:
    command("profile", str(folder / "record.json"), "--folder", str(folder / "kept"))
    outside = [path for path in folder.parent.rglob("*") if not path.is_relative_to(folder)]
    assert not outside, f"it writes {outside[0]}"


def read_history(folder: Path) -> Any:
    command("history", "--file", str(folder / "history.sqlite"))


def make_history(folder: Path) -> None:
    from edgesmith.bench import history

    make_record(folder)
    for day in range(1, 8):
        text = (folder / "record.json").read_text().replace("2026-01-01", f"2026-01-{day:02}")
        (folder / "day.json").write_text(text)
        history.add(folder / "history.sqlite", folder / "day.json")
    (folder / "record.json").unlink()
    (folder / "day.json").unlink()


def make_estimate(folder: Path) -> None:
    from edgesmith.bench.estimation import estimate

    said = estimate.estimate(exported("onnx"), "rpi5").as_json()
    (folder / "estimate.json").write_text(json.dumps(said))


def make_all(folder: Path) -> None:
    make_record(folder)
    copy_of("onnx")(folder)


def read_report(folder: Path) -> Any:
    command("report", str(folder), "--out", str(folder / "report.html"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page, "markup in the page"


def copied(name: str) -> Callable[[Path], None]:
    return lambda folder: void(shutil.copy(RECORDS.parent / name, folder / name))


EVENTS = (
    {"event": "start", "runtimes": {"onnxruntime": "1"}, "environment": {"load": 0.5}, "meters": {}},
    {
        "event": "about",
        "machine": {"system": "Linux", "cpu": "A76", "machine": "aarch64", "power_mode": None},
        "cores": [0],
    },
    {"event": "open", "model": 0, "load_ms": 5.0, "first_ms": 2.0, "memory_mib": None},
    {"event": "warm", "model": 0, "calls": 3, "ms": 9.0, "is_steady": True},
    {"event": "slot", "model": 0, "round": 0, "at_s": 0.1, "samples_ms": [3.0, 3.1]},
    {"event": "energy", "model": 0, "calls": 9, "seconds": 0.5, "joules": 1.5},
    {
        "event": "operators",
        "model": 0,
        "calls": 9,
        "call_ms": 3.0,
        "operators": [{"name": "a", "type": "Conv", "ms": 1.0}],
    },
    {"event": "end", "environment": {}},
)


def make_events(folder: Path) -> None:
    (folder / "lines").write_text("\n".join(map(json.dumps, EVENTS)))


def read_events(folder: Path) -> Any:
    from edgesmith.bench.events import read_event

    for line in (folder / "lines").read_text(errors="replace").splitlines():
        read_event(line, "board", 1)


PEER_EVENTS = (
    {"event": "done", "file": "/x/made"},
    {"event": "opened", "version": "1.2", "load_ms": 5.0, "first_ms": 2.0},
    {"event": "warm", "calls": 9, "is_steady": True},
    {"event": "slot", "samples_ms": [3.0, 3.1]},
    {"event": "lacks", "why": "ModuleNotFoundError"},
    {"event": "refused", "why": "no kernel"},
)


def make_peer_events(folder: Path) -> None:
    (folder / "lines").write_text("\n".join(map(json.dumps, PEER_EVENTS)))


def read_peer_events(folder: Path) -> Any:
    from statistics import median

    from edgesmith.bench.peers.processes import ANSWERS, read_event

    for line in (folder / "lines").read_bytes().splitlines():
        event = read_event(line)
        assert event["event"] in ANSWERS.values() or isinstance(event["why"], str)
        assert median(event.get("samples_ms", [1.0])) > 0


def make_peers(folder: Path) -> None:
    """A record of `peers` with a peer that was timed and one that is missing."""
    interval = {"value": 2.0, "low": 1.5, "high": None}
    row = {"peer": "a", "title": "A", "form": "as written", "ours": True, "counts": True, "state": "timed", "why": ""}
    row |= {"version": "1", "error": 0.0, "p50_ms": interval, "ratio": interval, "share": 0.5, "steady": 1}
    none = dict.fromkeys(("error", "p50_ms", "ratio", "share"))
    other = {**row, **none, "peer": "b", "ours": False, "state": "missing", "why": "not installed", "rounds_ms": []}
    peaks = {"fma_gflops": 100.0, "bandwidth_gb_s": 10.0, "measured_by": "a loop"}
    model = {"model": "small", "macs": 10, "bytes": 20, "peaks": peaks, "bound_ms": 0.1, "launches": 1}
    model |= {"rows": [{**row, "rounds_ms": [[2.0, 2.1]]}, other]}
    record = {"schema": 1, "edgesmith": "1", "started": "2026-01-01T00:00:00+00:00", "complete": True}
    record |= {"device": {"name": "host", "machine": None}, "threads": 1, "cores": [0], "launches": 1, "seconds": 1.0}
    (folder / "peers.json").write_text(json.dumps({**record, "models": [model]}))


def read_peers(folder: Path) -> Any:
    from edgesmith import records
    from edgesmith.bench.peers.record import PeersRecord
    from edgesmith.bench.peers.referee import describe_outcome

    found = records.read_record(folder / "peers.json", records.schema_of(PeersRecord), "record of peers")
    for model in found["models"]:
        describe_outcome(model)


def make_sweep(folder: Path) -> None:
    from edgesmith.exporters.verification import sweep

    for column in ("onnx:fp32", "coreml:fp16"):
        cases = [("default", "right", ""), ("axis", "refused", "ONNX has no such thing")]
        sweep.append(folder / "rows.jsonl", {"operator": "sum", "column": column, "cases": cases, "seconds": 0.5})


def read_sweep(folder: Path) -> Any:
    from edgesmith.exporters.verification import sweep

    list(sweep.summarise(sweep.read(folder / "rows.jsonl")))


def make_engine(folder: Path) -> None:
    head = struct.pack("<4s12xQ4B4xQ", b"vtrt", 4096, 1, 7, 1, 116, 6)
    (folder / "a.engine").write_bytes(head.ljust(4096, b"\7"))


READERS = (
    Reader("manifest", copy_of("onnx"), "made/manifest.json", read_manifest, mutate_json),
    Reader("reference", copy_of("onnx"), "made/reference.safetensors", read_evidence, mutate_bytes),
    Reader(
        "published file", copy_of("onnx"), "made/reference.safetensors", read_altered, mutate_bytes, is_checked=True
    ),
    Reader("checkpoint .pth", make_weights("w.pth"), "w.pth", read_weights, mutate_bytes, is_checked=True),
    Reader("archive .pth", make_weights("w.pth"), "w.pth", read_weights, mutate_archive),
    Reader(
        "legacy .pth", make_weights("w.pt", _use_new_zipfile_serialization=False), "w.pt", read_weights, mutate_bytes
    ),
    Reader("checkpoint .safetensors", make_weights("w.safetensors"), "w.safetensors", read_weights, mutate_bytes),
    Reader("samples .npz", make_npz, "set.npz", read_npz, mutate_archive),
    Reader("device .toml", make_device, "board.toml", read_device, mutate_text),
    Reader("record", make_record, "record.json", read_record, mutate_json),
    Reader(
        "stored profile",
        make_kept,
        "kept/host/small.onnx.fp32.json",
        lambda folder: command("profile", "--folder", str(folder / "kept"), "--markdown"),
        mutate_json,
    ),
    Reader(
        "compared records",
        make_record,
        "record.json",
        lambda folder: command("compare", str(folder / "record.json"), str(folder / "record.json")),
        mutate_json,
    ),
    Reader("history", make_history, "history.sqlite", read_history, mutate_bytes),
    Reader("report", make_all, "record.json", read_report, mutate_json),
    Reader("report's manifest", make_all, "made/manifest.json", read_report, mutate_json),
    Reader("kit", copy_of("tensorrt"), "made/kit.json", lambda f: command("inspect", str(f / "made")), mutate_json),
    Reader("engine", make_engine, "a.engine", lambda f: command("inspect", str(f / "a.engine")), mutate_bytes),
    Reader(
        "inspector",
        copied("inspector_10.json"),
        "inspector_10.json",
        lambda f: command("inspect", str(f / "inspector_10.json")),
        mutate_json,
    ),
    Reader("runner's lines", make_events, "lines", read_events, mutate_text),
    Reader("peer's lines", make_peer_events, "lines", read_peer_events, mutate_text),
    Reader("record of peers", make_peers, "peers.json", read_peers, mutate_json),
    Reader("log of a sweep", make_sweep, "rows.jsonl", read_sweep, mutate_text),
    Reader("estimate", make_estimate, "estimate.json", lambda f: void(read_estimate(f)), mutate_json),
    Reader("ONNX file", copy_of("onnx"), "made/FILE.onnx", lambda f: void(count_nodes(f)), mutate_bytes),
    Reader("ONNX file, linted", copy_of("onnx"), "made/FILE.onnx", read_linted, mutate_bytes),
    Reader("ONNX and its data", make_external, "split.onnx", read_split, mutate_bytes),
    Reader("use", copy_of("onnx"), "made/manifest.json", read_use, mutate_json),
    Reader("use of Core ML", copy_of("coreml"), "made/manifest.json", read_use, mutate_json),
    Reader("labels", make_labels, "labels.txt", read_class_names, mutate_bytes),
    Reader("edgesmith.toml", make_settings, "edgesmith.toml", read_settings, mutate_text),
    Reader("config.json", make_config, "config.json", read_config, mutate_json),
    Reader("compiled library", copy_of("tvm"), "made/LIBRARY", read_compiled, mutate_bytes),
    Reader("Core AI model", copy_of("coreai"), "made/COREAI", lambda f: lint_coreai(f), mutate_bytes),
    Reader("Core ML model", copy_of("coreml"), "made/MODEL", lambda f: lint_package(f), mutate_bytes),
    Reader("Core ML package", copy_of("coreml"), "made/PACKAGE", lambda f: lint_package(f), mutate_json),
)
"""Capitals stand for names that an export chooses."""


def read_estimate(folder: Path) -> Any:
    from edgesmith.bench.estimation import estimate

    return estimate.read(folder / "estimate.json")


def count_nodes(folder: Path) -> Any:
    from edgesmith.bench.estimation.onnx_nodes import read_nodes

    (file,) = (folder / "made").glob("*.onnx")
    return read_nodes(file)


def lint_coreai(folder: Path) -> Any:
    (package,) = (folder / "made").glob("*.aimodel")
    command("lint", str(package))


def lint_package(folder: Path) -> Any:
    (package,) = (folder / "made").glob("*.mlpackage")
    command("lint", str(package))


PATTERNS = {
    "made/FILE.onnx": "made/*.onnx",
    "made/LIBRARY": "made/*.so",
    "made/COREAI": "made/*.aimodel/main.mlirb",
    "made/MODEL": "made/*/Data/*/*.mlmodel",
    "made/PACKAGE": "made/*/Manifest.json",
}


@dataclass
class Summary:
    """The ends of one reader's samples.

    Attributes:
        bugs: of each, its number and what happened.
        peak_bytes: the most memory that a process of it held.
    """

    name: str
    ends: Counter[str]
    bugs: list[tuple[int, str]]
    peak_bytes: int


def fuzz(reader: Reader, count: int, seed: int = 0) -> Summary:
    """Read `count` damaged files, in processes that begin anew after one has died."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        sound = Path(scratch) / "sound"
        sound.mkdir()
        reader.make(sound)
        (sample,) = sound.glob(PATTERNS.get(reader.file, reader.file))
        wanted = reader.read(copy(sound, Path(scratch) / "first" / "here"))
        summary = Summary(reader.name, Counter(), [], 0)
        number = 0
        while number < count:
            for end, why, peak in attempts(reader, sound, sample, wanted, range(number, count), seed):
                summary.ends[end] += 1
                summary.bugs += [(number, why)] if end == BUG else []
                summary.peak_bytes = max(summary.peak_bytes, peak)
                number += 1
    return summary


def copy(sound: Path, place: Path) -> Path:
    shutil.rmtree(place.parent, ignore_errors=True)
    place.parent.mkdir()
    shutil.copytree(sound, place)
    return place


def attempts(
    reader: Reader, sound: Path, sample: Path, wanted: Any, numbers: Sequence[int], seed: int
) -> Iterator[tuple[str, str, int]]:
    """Yield the end of each sample of a forked process, up to the one that it died of."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        with contextlib.suppress(BaseException), os.fdopen(there, "w") as said:  # what dies says nothing more
            limit = MOST_BYTES + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            for number in numbers:
                said.write(json.dumps(attempt(reader, sound, sample, wanted, number, seed)) + "\n")
                said.flush()
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb", buffering=0) as heard:
        for _ in numbers:
            line = b""
            while not line.endswith(b"\n"):
                if not select.select([heard], [], [], LONGEST_S + 10)[0]:
                    os.kill(child, signal.SIGKILL)
                    yield BUG, f"no end within {LONGEST_S + 10} s", 0
                    os.waitpid(child, 0)
                    return
                if not (more := heard.read(1)):
                    status = os.waitpid(child, 0)[1]
                    yield BUG, f"the process ended with {os.waitstatus_to_exitcode(status)}", 0
                    return
                line += more
            yield tuple(json.loads(line))
    os.waitpid(child, 0)


class TooLong(BaseException):
    """The sample took longer than LONGEST_S."""


def attempt(reader: Reader, sound: Path, sample: Path, wanted: Any, number: int, seed: int) -> tuple[str, str, int]:
    """Damage a sample and read it. Returns how that ended, why, and the most memory that was held."""
    draw = random.Random(f"{reader.name} {seed} {number}")
    folder = copy(sound, sound.parent / "now" / "here")
    file = folder / sample.relative_to(sound)
    before = sample.read_bytes()
    after = reader.mutate(before, draw)
    file.write_bytes(after)

    def late(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST_S)
    try:
        found = reader.read(folder)
        is_right = not reader.is_checked or after == before or (found == wanted and reader.name != "published file")
        end = (RIGHT, "") if is_right else (BUG, "what is altered was accepted")
    except EdgesmithError as error:
        end = (REFUSED, "") if error.exit_code in DOCUMENTED else (BUG, f"exit {error.exit_code}: {error}")
    except TooLong:
        end = (BUG, f"longer than {LONGEST_S} s")
    except BaseException as error:  # whatever a reader lets through is what is looked for
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(frames))
        end = (BUG, f"{type(error).__name__}: {str(error)[:120]} at {where}")
    finally:
        signal.alarm(0)
    return (*end, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> int:
    """Fuzz every reader, or those that are named, and print how its samples ended: COUNT SEED [READER ...]"""
    count, seed, only = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    chosen = [reader for reader in READERS if not only or reader.name in only]
    each = -(-count // len(chosen))
    bugs = 0
    print(f"{'reader':<26}{RIGHT:>8}{REFUSED:>18}{BUG:>6}{'peak, MB':>10}")
    for reader in chosen:
        found = fuzz(reader, each, seed)
        ends = found.ends
        counts = f"{ends[RIGHT]:>8}{ends[REFUSED]:>18}{ends[BUG]:>6}"
        print(f"{reader.name:<26}{counts}{found.peak_bytes / 1e6:>10.0f}", flush=True)
        for kind, (number, why) in {why: (number, why) for number, why in reversed(found.bugs)}.items():
            print(f"    {number}: {why} ({sum(kind == one for _, one in found.bugs)} times)", flush=True)
        bugs += ends[BUG]
    print(f"{each * len(chosen)} samples, {bugs} bugs")
    return bool(bugs)


if __name__ == "__main__":
    sys.exit(main())
