"""The machine's measured peaks, and the roofline of a model under them.

    bound = max(2 macs / FMA peak, bytes / bandwidth)

They are measured in turn with the peers, a slot in every round, and are the medians of the slots: a core lowers its
clock under load, so that a peak of an idle machine is none that a model could reach. The bandwidth is that of reading
as many bytes as the model moves, over and over, as calls do: from a cache, where one holds them. Both are of as many
threads as the contest has: that many copies of peaks.c at once, their sum. The system's compiler builds it; where there
is none, a matrix product and a sum of PyTorch's stand in, which stay below the peaks, and the record says so.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from edgesmith.bench.transport.process import give, limited, started
from edgesmith.board.common import SLOT_MS

SECONDS = SLOT_MS / 1e3
"""Of a slot of both peaks, as of a peer's."""

MOST_BYTES = 256 << 20
"""That are read: beyond every cache."""

LEAST_BYTES = 16 << 20
"""That PyTorch reads: of less, more than half of the time is its calls."""

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-funroll-loops")
SOURCE = Path(__file__).with_name("peaks.c")
LONGEST_S = 60.0

Measure = Callable[[float], tuple[float, float]]
"""Takes seconds; returns 1e9 floating-point operations and 1e9 bytes a second."""


@dataclass(frozen=True)
class Peaks:
    """The peaks of a machine on some threads: 1e9 floating-point operations and 1e9 bytes a second."""

    fma_gflops: float
    bandwidth_gb_s: float
    measured_by: str

    def bound_ms(self, macs: int, moved: int) -> float:
        """Return the time that a call needs at least, milliseconds."""
        return 1e3 * max(2 * macs / (self.fma_gflops * 1e9), moved / (self.bandwidth_gb_s * 1e9))


class Meter:
    """Peaks that are measured whenever that is asked for."""

    def __init__(self, measure: Measure, measured_by: str) -> None:
        self._measure, self._measured_by = measure, measured_by
        self._first, self._slots = measure(SECONDS), list[tuple[float, float]]()

    def take(self, seconds: float = SECONDS) -> None:
        """Measure once more. What ended meanwhile measures nothing."""
        try:
            self._slots.append(self._measure(seconds))
        except (OSError, ValueError):
            return

    @property
    def peaks(self) -> Peaks:
        """The medians of what was measured."""
        fma, read = zip(*self._slots or [self._first], strict=True)
        return Peaks(median(fma), median(read), self._measured_by)


@contextmanager
def measuring(threads: int, moved: int) -> Iterator[Meter]:
    """Yield what measures the peaks of this machine on so many threads, for a model that moves so many bytes."""
    each = max(1, min(moved, MOST_BYTES) // threads)
    with tempfile.TemporaryDirectory(prefix="edgesmith-") as folder, ExitStack() as stack:
        for name in COMPILERS:
            program = Path(folder) / f"peaks-{name}"
            compiler = shutil.which(name)
            if compiler is None or not _build(compiler, program):
                continue
            running = [stack.enter_context(started((str(program), str(each)))) for _ in range(threads)]
            try:
                meter = Meter(lambda seconds: _ask(running, seconds), f"loops that {name} built, in turn")  # noqa: B023
            except (OSError, ValueError):
                continue
            yield meter
            return
        why = "a matrix product and a sum of PyTorch, in turn, which stay below the peaks, as there is no C compiler"
        yield Meter(lambda seconds: _by_torch(threads, moved, seconds), why)


def _build(compiler: str, program: Path) -> bool:
    """Build peaks.c. Returns whether that succeeds."""
    command = [compiler, *FLAGS, str(SOURCE), "-o", str(program)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=LONGEST_S)  # noqa: S603  # the system's
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _ask(running: Sequence[subprocess.Popen[bytes]], seconds: float) -> tuple[float, float]:
    """Have all processes measure at once, and add up what they find. Raises ValueError, or OSError, where one ended."""
    for process in running:
        give(process, f"{seconds}\n".encode(), close=False)
    figures = []
    for process in running:
        assert process.stdout is not None
        with limited(process, LONGEST_S + seconds):
            fma, read = map(float, process.stdout.readline(256).split())
        figures.append((fma, read))
    return sum(fma for fma, _ in figures), sum(read for _, read in figures)


def _by_torch(threads: int, moved: int, seconds: float) -> tuple[float, float]:
    """Measure a matrix product and a sum."""
    import torch

    def time_of(call: Callable[[], object]) -> float:
        times, until = list[float](), time.perf_counter() + seconds / 2
        while not times or time.perf_counter() < until:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return median(times)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        n = 512
        a, b = torch.ones(n, n), torch.ones(n, n)
        array = torch.ones(max(LEAST_BYTES, min(moved, MOST_BYTES)) // 4)
        product, total = time_of(lambda: a @ b), time_of(array.sum)
    finally:
        torch.set_num_threads(before)
    return 2 * n**3 / product * 1e-9, array.numel() * 4 / total * 1e-9
