"""A stand-in for Android's adb, for tests: this machine plays the device `STANDIN`, and no phone is there.

It answers what edgesmith asks of adb, `devices -l`, `get-state`, `push`, `pull` and `shell -T`, with adb's exit codes
and words. What a real adb does otherwise, no test here says. ADB_STAND_IN_DAMAGES makes every push lose its last byte.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

LISTED = """\
* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
STANDIN                device usb:1-1 product:dm1qxxx model:SM_S911B device:dm1q transport_id:1
R5CX10ABCDE            device usb:1-2 product:e1sxxx model:SM_S921B device:e1s transport_id:2
R5CX10ABCDF            device usb:1-3 product:e1qsqw model:SM_S921U1 device:e1q transport_id:3
ZY22ABC                unauthorized usb:1-4 transport_id:4
0123456789ABCDEF       no permissions (user in plugdev group; are your udev rules wrong?); see [http://x.y/z] usb:1-5
192.168.1.20:5555      offline
emulator-5554          recovery product:sdk model:sdk_gphone64 transport_id:6

"""


def main() -> int:
    """Carry out one command."""
    if sys.argv[1:] == ["devices", "-l"]:
        print(LISTED, end="")
        return 0
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
