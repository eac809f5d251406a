"""The files that a measurement times: what runs each of them, and which options it and the device have no use for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgesmith.bench import runner
from edgesmith.bench.measurement import Subject
from edgesmith.bench.transport import Address
from edgesmith.bench.transport.iphone import DRIVES, REFUSES
from edgesmith.errors import BackendMissing, BadInput
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.manifest import MANIFEST, FileRecord, own_files
from edgesmith.exporters.streaming.description import RUNTIME
from edgesmith.exporters.tensorrt import engine as engines
from edgesmith.exporters.tensorrt.kit import KIT


def read_timed(path: str | Path) -> Artifact:
    """Return the artifact that can be timed: of a kit, the engine built of it here. Raises BadInput without one."""
    artifact = artifacts.read(path)
    if not (artifact.path / KIT).is_file() or artifact.file.suffix == targets.get(artifact.target).suffix:
        return artifact
    built = artifact.path / engines.BUILT
    if not built.is_dir():
        raise BadInput(
            f"{artifact.path.name} is a kit, and there is no engine in it to time: build it on its board with edgesmith"
            f" build-on ssh://user@board {artifact.path}, and time what comes back"
        )
    return artifacts.read(built)


def runtime_of(artifact: Artifact) -> str:
    """Return the runner's name of what runs an artifact's file.

    Raises:
        BadInput: nothing does.
        Unsupported: the file says of itself what runs it, and is damaged.
    """
    target = targets.get(artifact.target)
    if not target.timed_by:
        known = ", ".join(one.name for one in targets.all_targets().values() if one.timed_by)
        raise BadInput(f"{artifact.path.name} cannot be timed here ({target.cannot_time()}); what can: {known}")
    return target.timed_in(artifact.file)


def subjects_of(found: Sequence[Artifact], is_here: bool = True, compute_units: str | None = None) -> list[Subject]:
    """Return what a record says of artifacts.

    Raises:
        BadInput: one cannot be timed, or held to compute units.
        BackendMissing: one cannot be timed on this machine, where it is to be.
    """
    subjects: list[Subject] = []
    for artifact, title in zip(found, _titles(found), strict=True):
        target, runtime = targets.get(artifact.target), runtime_of(artifact)
        is_told = runtime in runner.ENGINES  # by the runner itself, for each of them
        if is_here and not is_told and (reason := target.cannot_time()) is not None:
            raise BackendMissing(reason)
        names = [subject.name for subject in subjects]
        subjects.append(
            Subject(
                name=_numbered(title, names),
                model=artifact.model,
                target=artifact.target,
                precision=artifact.precision,
                runtime=runtime,
                sha256=artifact.digest,
                bytes=sum(entry["bytes"] for entry in files_of(artifact)),
                compute_units=(compute_units or target.compute_units[0]) if target.compute_units else None,
            )
        )
    return subjects


def _titles(found: Sequence[Artifact]) -> list[str]:
    """The names of artifacts, with the folder above where only that tells two of one name apart: `base/NAME`."""
    folders = [_folder(artifact) for artifact in found]
    above = {name: {one.parent.name for one in folders if one.name == name} for name in {one.name for one in folders}}
    return [f"{one.parent.name}/{one.name}" if len(above[one.name]) > 1 else one.name for one in folders]


def _title(artifact: Artifact) -> str:
    """The name of an artifact's folder, and of its kit's for an engine that was built in it."""
    return _folder(artifact).name


def _folder(artifact: Artifact) -> Path:
    """The folder that an artifact is called after."""
    folder = artifact.path.resolve()
    return folder.parent if folder.name == engines.BUILT and (folder.parent / MANIFEST).is_file() else folder


def _numbered(title: str, taken: Sequence[str]) -> str:
    """A title, with a number where it is taken."""
    name, count = title, 1
    while name in taken:
        count += 1
        name = f"{title} ({count})"
    return name


def files_of(artifact: Artifact) -> list[FileRecord]:
    """Return the entries of an artifact's manifest that are its file or package."""
    return own_files(artifact.manifest)


def check_options(
    found: Sequence[Artifact],
    device: Address,
    *,
    threads: int,
    operators: bool,
    compute_units: str | None,
) -> None:
    """Raise BadInput for options that a file's runtime, or the device, has no use for."""
    for artifact in found:
        name, target, runtime = _title(artifact), targets.get(artifact.target), runtime_of(artifact)
        if compute_units is not None:
            _check_units(artifact, compute_units)
        if device.kind == "iphone":
            _check_iphone(artifact, name, runtime)
        if operators and runtime not in runner.PROFILES:
            raise BadInput(f"--ops: {runtime} does not time operators; {' and '.join(runner.PROFILES)} does")
        if threads != 1 and target.unthreaded:
            instead = "; --compute-units holds it" if target.compute_units else ""
            raise BadInput(f"--threads: {target.unthreaded}, got {threads}{instead}")


def _check_units(artifact: Artifact, units: str) -> None:
    """Raise BadInput for compute units that a file's runtime does not know."""
    known = targets.get(artifact.target).compute_units
    if not known:
        of = " and ".join(one.name for one in targets.all_targets().values() if one.compute_units)
        raise BadInput(f"--compute-units is for {of}, and {artifact.path.name} is for {artifact.target}")
    if units not in known:
        raise BadInput(f"--compute-units must be one of {', '.join(known)}, got {units!r}")


def _check_iphone(artifact: Artifact, name: str, runtime: str) -> None:
    """Raise BadInput for what coremltools' app on an iPhone does not run, take or give."""
    if runtime != DRIVES:
        takes = " or ".join(one.name for one in targets.all_targets().values() if one.timed_by == DRIVES)
        raise BadInput(f"{name} is for {artifact.target}, and an iPhone takes {takes}: export it for that")
    given = artifact.manifest["target"]["options"]
    for option, what in REFUSES.items():
        if given.get(option):
            raise BadInput(
                f"{name} {what}, and coremltools has an iPhone take and give arrays alone: export it"
                f" without --{option.replace('_', '-')}"
            )
    streaming = artifact.manifest.get("streaming")
    if streaming is not None and streaming["kept_by"] == RUNTIME:
        raise BadInput(f"{name} keeps states, which coremltools has an iPhone forget: time it on a Mac")
