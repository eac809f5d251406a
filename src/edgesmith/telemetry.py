"""Telemetry of other libraries: off before they are imported, and by their own switch once they are.

ONNX Runtime looks up `mobile.events.data.microsoft.com` when its module is imported, and keeps a database and an
identifier below the user's cache folder, unless `ORT_DISABLE_TELEMETRY` is 1 by then. The others here ask a variable of
their own. The runner on a device says the same by itself (board/common.py).
"""

from __future__ import annotations

import os
import sys

TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""Of ONNX Runtime, which reads it as its module is imported; and the variable that other tools agree on. The same as in
board/common.py, which goes where this module is not, and whose import takes longer than anybody waits for `--help`."""


def turn_off() -> None:
    """Set the variables, and switch off what is imported already."""
    os.environ.update(TELEMETRY_OFF)
    runtime = sys.modules.get("onnxruntime")
    if runtime is not None and hasattr(runtime, "disable_telemetry_events"):
        runtime.disable_telemetry_events()


def refuse_sockets() -> None:
    """Have Python refuse this process every socket of the network, from now on.

    For processes that run other runtimes' Python code, some of which reports its use without a variable that says no.
    """
    import socket  # takes its time, and whoever imports edgesmith imports this module

    network = {int(getattr(socket, name)) for name in ("AF_INET", "AF_INET6") if hasattr(socket, name)}

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo" or (event == "socket.__new__" and arguments[1] in network):
            raise PermissionError("no sockets in this process")

    sys.addaudithook(refuse)
