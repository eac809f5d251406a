"""Between ssh and a test's sshd, as a ProxyCommand: slow, or cut after so many bytes; it counts what goes to the server.

    python relay.py PORT COUNTS [--delay-s 0.05] [--limit 300000]     the limit is for the first connection only

Each connection appends a line to COUNTS: the bytes that it has passed on to the server.
"""

from __future__ import annotations

import argparse
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
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    is_first = not arguments.counts.exists()
    server = socket.create_connection(("127.0.0.1", arguments.port))

    def back() -> None:
        while chunk := server.recv(65536):
            time.sleep(arguments.delay_s)
            os.write(sys.stdout.fileno(), chunk)
        os._exit(0)

    threading.Thread(target=back, daemon=True).start()
    passed = 0
    while chunk := os.read(sys.stdin.fileno(), 65536):
        time.sleep(arguments.delay_s)
        server.sendall(chunk)
        passed += len(chunk)
        if is_first and arguments.limit is not None and passed > arguments.limit:
            break
    with arguments.counts.open("a") as counts:
        counts.write(f"{passed}\n")
    os._exit(0)


if __name__ == "__main__":
    main()
