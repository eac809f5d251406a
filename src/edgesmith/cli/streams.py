"""The three standard streams of the process that runs a command, which whoever starts it may have closed."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Have each standard stream that is closed, as by `>&-`, be one that takes or gives nothing.

    The system gives the next file that is opened the smallest free number. With 1 or 2 free that would be a file of
    ours, and what a library prints would end up in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has this number: those below it are open
    # Python has None for what was closed when it began.
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115  # as long as the process
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
