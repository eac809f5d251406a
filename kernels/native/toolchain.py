"""From units to a shared library, for this machine or another one.

    compiler              where it is taken                                           for
    $CXX, g++, clang++    found on the path, g++ 12 or clang 15 at least               this machine's kind of processor
    zig c++               the `ziglang` package: pip install "edgesmith[tvm]"          all

The library needs the C library and nothing else: no C++ runtime, no exceptions. Equal units give equal bytes: units are
compiled in groups whose number depends on them alone, and nothing of time or place gets into the file. No flag lets the
compiler change what arithmetic means; a product and a sum in one expression are fused, as all of these processors can.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from edgesmith.errors import BackendMissing, Unsupported
from edgesmith.kernels.native.tiles import AVX2, AVX512, NEON, InstructionSet
from edgesmith.kernels.native.unit import Unit
from edgesmith.writing import write_whole

HERE = Path(__file__).parent

UNITS_A_FILE = 8
"""Units that are compiled together: they share the time for the headers, and files are compiled at once."""

COMPILE_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-ffp-contract=fast",
    "-fno-math-errno",  # the square root is an instruction
    "-fno-trapping-math",  # comparisons may be vectors; no result changes
)
LINK_FLAGS = ("-nodefaultlibs", "-Wl,--build-id=none", "-Wl,-s", "-Wl,-z,noexecstack")
OLDEST = {"g++": 12, "clang++": 15}

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
CPU_FLAGS = {"avx512": "x86-64-v4", "avx2": "x86-64-v3", "neon": "armv8-a"}
ZIG_CPUS = {"avx512": "x86_64_v4", "avx2": "x86_64_v3", "neon": "generic"}
AVX512_FLAGS = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
AVX2_FLAGS = {"avx2", "fma", "bmi2"}


@dataclass(frozen=True)
class CpuTarget:
    """A processor and its system.

    Attributes:
        triple: architecture, system and C library: x86_64-linux-gnu, aarch64-linux-gnu, aarch64-linux-android ...
        features: one of the sets of tiles.py: ("avx512",), ("avx2",) or ("neon",); more words are for later kernels.
    """

    triple: str
    features: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """x86_64 or aarch64."""
        return self.triple.partition("-")[0]

    @property
    def instructions(self) -> InstructionSet:
        """The widest set of instructions among its features.

        Raises:
            Unsupported: there are no kernels for it.
        """
        for known in (AVX512, AVX2, NEON):
            if known.name in self.features:
                return known
        raise Unsupported(
            f"compiled kernels need AVX2 with FMA, AVX-512 or NEON, and {self.triple} has"
            f" {', '.join(self.features) or 'none of them'}; export to onnx instead"
        )


@functools.cache
def host() -> CpuTarget:
    """Return this machine.

    Raises:
        Unsupported: its processor has none of the instruction sets that kernels are written for.
    """
    machine = platform.machine().lower()
    architecture = ARCHITECTURES.get(machine, machine)
    system = {"Linux": "linux-gnu", "Darwin": "macos"}.get(platform.system(), platform.system().lower())
    features: tuple[str, ...] = ("neon",) if architecture == "aarch64" else ()
    if architecture == "x86_64":
        flags = _read_cpu_flags()
        features = tuple(
            name for name, needed in (("avx512", AVX512_FLAGS | AVX2_FLAGS), ("avx2", AVX2_FLAGS)) if needed <= flags
        )
    found = CpuTarget(f"{architecture}-{system}", features)
    _ = found.instructions  # refuses other processors
    return found


def _read_cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set(AVX2_FLAGS)  # no Linux: every x86-64 processor that its system still runs on has them
    match = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    return set(match[1].split()) if match else set()


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: how it is called.
        kind: g++, clang++ or zig.
        version: in its own words.
    """

    command: tuple[str, ...]
    kind: str
    version: str

    def linker(self) -> Compiler:
        """Return what links. As C++, zig would build a C++ runtime first, which takes minutes and is not needed."""
        return replace(self, command=(self.command[0], "cc")) if self.kind == "zig" else self

    def flags(self, target: CpuTarget) -> tuple[str, ...]:
        """Return what it has to be told of a target."""
        name = target.instructions.name
        wide = ("-mprefer-vector-width=512",) if name == "avx512" else ()
        if self.kind == "zig":
            return ("-target", target.triple, f"-mcpu={ZIG_CPUS[name]}", *wide, "-fno-sanitize=undefined")
        seed = ("-frandom-seed=edgesmith", "-Wno-psabi") if self.kind == "g++" else ()
        return (f"-march={CPU_FLAGS[name]}", *wide, *seed)


def find_compiler(target: CpuTarget) -> Compiler:
    """Return the first compiler that can compile for a target.

    Raises:
        BackendMissing: there is none.
    """
    is_native = target.triple == host().triple
    for command in (os.environ.get("CXX", ""), "g++", "clang++") if is_native else ():
        found = _examine(command)
        if found is not None:
            return found
    spec = importlib.util.find_spec("ziglang")
    if spec is not None and spec.origin is not None:
        zig = Path(spec.origin).with_name("zig")
        return Compiler((str(zig), "c++"), "zig", _ask(str(zig), "version"))
    wanted = (
        "g++ 12, clang 15 or the ziglang package"
        if is_native
        else f"the ziglang package, to compile for {target.triple}"
    )
    raise BackendMissing(f'compiled kernels need {wanted}: pip install "edgesmith[tvm]"')


@functools.cache
def _examine(command: str) -> Compiler | None:
    """Return a compiler of the path; None where it is not there, or too old."""
    if not command or shutil.which(command) is None:
        return None
    described = _ask(command, "--version")
    kind = "clang++" if "clang" in described else "g++"
    version = _ask(command, "-dumpversion")
    major = version.partition(".")[0]
    return Compiler((command,), kind, version) if major.isdigit() and int(major) >= OLDEST[kind] else None


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603  # a compiler
    except OSError:
        return ""


def compile_units(
    units: Iterable[Unit],
    out: Path,
    target: CpuTarget,
    *,
    sources: Sequence[str] = (),
    linked: Sequence[str] = (),
    flags: Sequence[str] = (),
    jobs: int | None = None,
) -> Path:
    """Write one shared library with all units and the thread pool. Units of the same name are compiled once.

    Args:
        out: the library.
        sources: more translation units, which may include this folder's headers.
        linked: object files that are linked too, and libraries that they need, as `-lm`.
        flags: more flags for the compiler and the linker. With `-fsanitize=...` the C++ runtime is linked too.
        jobs: compilers that run at once; default: as many as there are cores.

    Raises:
        BackendMissing: there is no compiler for the target, or it fails.
        OutputError: the library cannot be written.
    """
    return _build(units, out, target, sources, linked, flags, jobs, is_program=False)


def compile_program(
    units: Iterable[Unit],
    main: str,
    out: Path,
    target: CpuTarget,
    *,
    linked: Sequence[str] = (),
    flags: Sequence[str] = (),
    jobs: int | None = None,
) -> Path:
    """Write a program: all units, the thread pool and a source that has `main`. Arguments as of `compile_units`."""
    path = _build(units, out, target, (main,), linked, flags, jobs, is_program=True)
    path.chmod(0o755)
    return path


def _build(
    units: Iterable[Unit],
    out: Path,
    target: CpuTarget,
    sources: Sequence[str],
    linked: Sequence[str],
    flags: Sequence[str],
    jobs: int | None,
    is_program: bool,
) -> Path:
    compiler = find_compiler(target)
    texts = [*_group(units), (HERE / "pool.cpp").read_text(encoding="utf-8"), *sources]
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        for i, text in enumerate(texts):
            (room / f"units_{i}.cpp").write_text(text, encoding="utf-8")
        shared = (*COMPILE_FLAGS, *compiler.flags(target), *flags)

        def compile_one(i: int) -> None:
            _run(compiler, (*shared, "-I", str(HERE), "-c", f"units_{i}.cpp", "-o", f"units_{i}.o"), room)

        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            list(pool.map(compile_one, range(len(texts))))
        objects = [*(f"units_{i}.o" for i in range(len(texts))), *linked]
        linker = compiler.linker()
        _run(linker, (*_link_flags(compiler, target, flags, is_program), *objects, "-o", "out"), room)
        write_whole(out, (room / "out").read_bytes(), "library")
    return out


def _group(units: Iterable[Unit]) -> list[str]:
    """Return the sources of the files: units by name, several in each file."""
    sources = [source for _, source in sorted({unit.symbol: unit.source for unit in units}.items())]
    return ["\n".join(sources[i : i + UNITS_A_FILE]) for i in range(0, len(sources), UNITS_A_FILE)]


def _link_flags(compiler: Compiler, target: CpuTarget, flags: Sequence[str], is_program: bool) -> tuple[str, ...]:
    kind = () if is_program else ("-shared",)
    of_target = compiler.flags(target) if compiler.kind == "zig" else ()
    if "macos" in target.triple:
        return (*kind, *of_target, *flags)
    if is_program or any(flag.startswith("-fsanitize=") for flag in flags):
        return (*kind, *of_target, *flags, "-pthread")
    libraries = ("-lc", "-lpthread") if compiler.kind == "zig" else ("-lc", "-lpthread", "-lgcc")
    return (*kind, *of_target, *flags, *LINK_FLAGS, *libraries)


def _run(compiler: Compiler, arguments: Sequence[str], folder: Path) -> None:
    command = (*compiler.command, *arguments)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603  # a compiler
    except OSError as error:
        raise BackendMissing(f"{compiler.kind} does not start: {error.strerror or error}") from error
    if done.returncode:
        raise CompilationFailed(compiler, done.stderr)


class CompilationFailed(BackendMissing):
    """A compiler refuses a kernel.

    Attributes:
        log: what it said, for whoever writes kernels.
    """

    def __init__(self, compiler: Compiler, log: str) -> None:
        super().__init__(
            f"{compiler.kind} {compiler.version} fails at compiling a kernel; set CXX to another compiler,"
            ' or pip install "edgesmith[tvm]" and remove the one that fails from the path'
        )
        self.log = log
