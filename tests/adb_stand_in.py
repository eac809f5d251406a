"""A stand-in for Android's adb, for tests: this machine plays the device `STANDIN`, and no phone is there.

It answers what edgesmith asks of adb, `get-state`, `push`, `pull` and `shell -T`, with adb's exit codes and words. What
a real adb does otherwise, no test here says. ADB_STAND_IN_DAMAGES makes every push lose its last byte.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Carry out one command."""
    flag, serial, verb, *rest = sys.argv[1:]
    if flag != "-s" or serial != "STANDIN":
        print(f"error: device '{serial}' not found", file=sys.stderr)
        return 1
    if verb == "get-state":
        print("device")
        return 0
    if verb == "shell":
        assert rest[0] == "-T"
        return subprocess.run(["sh", "-c", " ".join(rest[1:])], check=False).returncode
    source, target = map(Path, rest)
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        print(f"adb: error: failed to copy '{source}' to '{target}': {error.strerror}", file=sys.stderr)
        return 1
    if verb == "push" and "ADB_STAND_IN_DAMAGES" in os.environ:
        os.truncate(target, target.stat().st_size - 1)
    print(f"{source}: 1 file {verb}ed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
