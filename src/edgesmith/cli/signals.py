"""Signals of the process that runs a command."""

from __future__ import annotations

import signal
import sys
from types import TracebackType
from typing import Protocol

from edgesmith.ending import send_again

RESENT_S = 0.05
"""How long a lost interrupt waits, so that the callback that lost it is over."""


class Interrupted(Exception):
    """Ctrl-C came while something was measured; what was is kept, and that is said."""


class _Unraisable(Protocol):
    exc_type: type[BaseException]
    exc_value: BaseException | None
    exc_traceback: TracebackType | None
    err_msg: str | None
    object: object


def resend_lost_interrupts() -> None:
    """Have an interrupt delivered once more where Python cannot raise it.

    Python runs the handler of SIGINT between two instructions, whichever they are. Inside a finaliser, a weak
    reference's callback or one of the garbage collector's, nothing that is raised leaves the callback: Python passes it
    to `sys.unraisablehook` and goes on, and a command that was told to stop would run to its end.
    """
    told = sys.unraisablehook

    def hear(unraisable: _Unraisable) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            told(unraisable)
            return
        send_again(signal.SIGINT, RESENT_S)

    sys.unraisablehook = hear
