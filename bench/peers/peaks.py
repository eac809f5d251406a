"""The machine's measured peaks, and the roofline of a model under them.

    bound = max(2 macs / FMA peak, bytes / bandwidth)

Both peaks are of as many threads as the contest has: that many copies of peaks.c at once, their sum. The system's
compiler builds it; where there is none, a matrix product and a sum of PyTorch's stand in, which stay below the peaks,
and the record says so.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 0.6
"""Of each measurement of both peaks."""

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-funroll-loops")
SOURCE = Path(__file__).with_name("peaks.c")
LONGEST_S = 60.0


@dataclass(frozen=True)
class Peaks:
    """The peaks of a machine on some threads: 1e9 floating-point operations and 1e9 bytes a second."""

    fma_gflops: float
    bandwidth_gb_s: float
    measured_by: str

    def bound_ms(self, macs: int, moved: int) -> float:
        """Return the time that a call needs at least, milliseconds."""
        return 1e3 * max(2 * macs / (self.fma_gflops * 1e9), moved / (self.bandwidth_gb_s * 1e9))

    def best(self, other: Peaks) -> Peaks:
        """Return the higher of each peak: what disturbs a measurement never makes it higher."""
        return Peaks(
            max(self.fma_gflops, other.fma_gflops),
            max(self.bandwidth_gb_s, other.bandwidth_gb_s),
            self.measured_by,
        )


def measure_peaks(threads: int, seconds: float = SECONDS) -> Peaks:
    """Measure the peaks of this machine on so many threads."""
    with tempfile.TemporaryDirectory(prefix="edgesmith-") as folder:
        for name in COMPILERS:
            compiler = shutil.which(name)
            if compiler is not None and (found := _by_loop(compiler, Path(folder) / "peaks", threads, seconds)):
                return found
    return _by_torch(threads, seconds)


def _by_loop(compiler: str, program: Path, threads: int, seconds: float) -> Peaks | None:
    """Build peaks.c and run it on every thread; None where that does not succeed."""
    command = [compiler, *FLAGS, str(SOURCE), "-o", str(program)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=LONGEST_S)  # noqa: S603  # the system's
        running = [
            subprocess.Popen([str(program), str(seconds)], stdout=subprocess.PIPE, text=True)  # noqa: S603  # ours
            for _ in range(threads)
        ]
        figures = [tuple(map(float, one.communicate(timeout=LONGEST_S)[0].split())) for one in running]
        fma, read = (sum(column) for column in zip(*figures, strict=True))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Peaks(fma, read, f"loops that {Path(compiler).name} built")


def _by_torch(threads: int, seconds: float) -> Peaks:
    """Measure a matrix product and a sum."""
    import torch

    def best(call: Callable[[], object]) -> float:
        least, until = float("inf"), time.perf_counter() + seconds / 2
        while time.perf_counter() < until:
            start = time.perf_counter()
            call()
            least = min(least, time.perf_counter() - start)
        return least

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        n = 768
        a, b = torch.ones(n, n), torch.ones(n, n)
        array = torch.ones(64 << 20)
        product, total = best(lambda: a @ b), best(array.sum)
    finally:
        torch.set_num_threads(before)
    by = "a matrix product and a sum of PyTorch, which stay below the peaks, as there is no C compiler"
    return Peaks(2 * n**3 / product * 1e-9, array.numel() * 4 / total * 1e-9, by)
