"""Between ssh and a test's sshd, as a ProxyCommand: slow, or cut after so many bytes; it counts what it passes on.

    python relay.py PORT COUNTS [--delay-s 0.05] [--limit 300000] [--limit-back 300000]

The limits, to the server and from it, are for the first connection only. Each connection keeps a file of its own in the
folder COUNTS, called 0, 1 ...: the bytes passed on to the server, and those from it.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    """Pass on until one side ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--limit", type=float, default=math.inf)
    parser.add_argument("--limit-back", type=float, default=math.inf)
    arguments = parser.parse_args()
    arguments.counts.mkdir(exist_ok=True)
    number = len(list(arguments.counts.iterdir()))
    counts = (arguments.counts / str(number)).open("wb")
    limits = (arguments.limit, arguments.limit_back) if number == 0 else (math.inf, math.inf)
    passed = [0, 0]
    server = socket.create_connection(("127.0.0.1", arguments.port))

    def count(direction: int, chunk: bytes) -> None:
        passed[direction] += len(chunk)
        os.pwrite(counts.fileno(), f"{passed[0]:12} {passed[1]:12}".encode(), 0)
        if passed[direction] > limits[direction]:
            os._exit(0)

    def back() -> None:
        while chunk := server.recv(65536):
            time.sleep(arguments.delay_s)
            os.write(sys.stdout.fileno(), chunk)
            count(1, chunk)
        os._exit(0)

    threading.Thread(target=back, daemon=True).start()
    while chunk := os.read(sys.stdin.fileno(), 65536):
        time.sleep(arguments.delay_s)
        server.sendall(chunk)
        count(0, chunk)
    os._exit(0)


if __name__ == "__main__":
    main()
