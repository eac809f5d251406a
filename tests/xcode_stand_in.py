"""A stand-in for Xcode's programs and an iPhone with coremltools' app on it, for tests: no Mac and no phone is there.

    xcode_stand_in.py xcrun|devicectl|xcodebuild ARGUMENTS

It answers what edgesmith and coremltools ask, `list devices`, `install app`, `process launch`, `copy to`, `copy from`,
and what coremltools' app is asked by files: MLModelService.Load, .Prediction, .Unload. What the real ones do otherwise,
no test here says. $STANDIN_PHONE is the folder that is the phone: `devices.json` there is what is listed, and `log` is
written.

    STANDIN_MS       milliseconds that the phone says a prediction took, default 0.5; twice that held to the CPU
    STANDIN_FAILS    a method of the app that is answered with an error, from the call on whose number follows `:`
    STANDIN_UNKNOWN  xcrun knows no devicectl
    STANDIN_SLOW     devicectl lists nothing for so many seconds
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

PHONE = Path(os.environ["STANDIN_PHONE"])


def option(arguments: list[str], *names: str) -> str:
    """The value of an option, `--name value` or `--name=value`."""
    for i, argument in enumerate(arguments):
        for name in names:
            if argument == name:
                return arguments[i + 1]
            if argument.startswith(f"{name}="):
                return argument.partition("=")[2]
    raise SystemExit(f"error: no {names[0]}")


def log(line: str) -> int:
    """Note what was done. Returns how often it was before."""
    with (PHONE / "log").open("a+", encoding="utf-8") as file:
        file.seek(0)
        before = [one.strip() for one in file].count(line)
        file.write(f"{line}\n")
    return before


def xcodebuild(arguments: list[str]) -> int:
    """Build the app, where there is a team to sign for."""
    settings = dict(one.split("=", 1) for one in arguments if "=" in one and not one.startswith("-"))
    if "DEVELOPMENT_TEAM" not in settings:
        print('error: Signing for "modelrunner" requires a development team.')
        return 65
    log(f"build {settings['DEVELOPMENT_TEAM']} {settings['PRODUCT_BUNDLE_IDENTIFIER']}")
    (Path(settings["SYMROOT"]) / "Release-iphoneos" / "modelrunner.app").mkdir(parents=True)
    return 0


def devicectl(arguments: list[str]) -> int:
    """Carry out one command; its answer is JSON, in a file."""
    verbs = " ".join(arguments[:3])
    result: dict[str, Any] = {}
    if verbs.startswith("list devices"):
        time.sleep(float(os.environ.get("STANDIN_SLOW", "0")))
        shutil.copy(PHONE / "devices.json", option(arguments, "-j", "--json-output"))
        return 0
    if verbs == "device install app":
        log("install")
        result = {"installedApplications": [{"bundleID": "com.example.runner", "databaseUUID": "1"}]}
    elif verbs == "device process launch":
        log("launch")
        (PHONE / "running").mkdir(exist_ok=True)
        mark = PHONE / "running" / str(os.getpid())
        mark.touch()
        signal.signal(signal.SIGTERM, lambda *_: (mark.unlink(), sys.exit(0)))
        while True:  # until it is ended, as with --console
            time.sleep(60)
    elif verbs == "device copy to":
        source, target = Path(option(arguments, "--source")), PHONE / option(arguments, "--destination")
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)  # type: ignore[operator]
        result = {"source": str(source), "destination": str(target)}
        if target.name == "message.json":
            answer(target)
    elif verbs == "device copy from":
        name, target = option(arguments, "--source"), option(arguments, "--destination")
        if not (PHONE / name).is_file():
            print(f"ERROR: no such file: {name}", file=sys.stderr)
            return 1
        shutil.copy(PHONE / name, target)
        result = {"source": name, "destination": target}
    else:
        print(f"error: unknown command {verbs}", file=sys.stderr)
        return 64
    Path(option(arguments, "-j")).write_text(json.dumps({"result": result}), encoding="utf-8")
    return 0


def answer(message: Path) -> None:
    """What the app does with a request."""
    asked = json.loads(message.read_text(encoding="utf-8"))
    method, params = asked["method"].removeprefix("MLModelService."), asked["params"]
    source = message.parents[3]
    said: dict[str, Any] = {"id": asked["id"]}
    folder = source / "responses" / asked["id"]
    folder.mkdir(parents=True)
    count = log(f"{method} {params['computeUnits']}")
    failing, _, after = os.environ.get("STANDIN_FAILS", "").partition(":")
    if method == failing and count >= int(after or 0):
        said["error"] = {"code": -32001, "message": f"the phone does no {method}"}
    elif method == "Prediction":
        given = source / "requests" / "resources" / asked["id"] / asked["resource"]
        assert given.stat().st_size == sum(one["storage"]["size"] for one in params["inputs"].values())
        (folder / "outputs.bin").write_bytes(struct.pack("<f", 0.0))
        array = {"dataType": "Float32", "shape": [1], "strides": [1], "storage": {"offset": 0, "size": 4}}
        ms = float(os.environ.get("STANDIN_MS", "0.5")) * (2 if params["computeUnits"] == "CPU_ONLY" else 1)
        said["result"] = {"modelID": params["modelID"], "outputs": {"y": array}, "duration": int(ms * 1e6)}
        said["resource"] = "outputs.bin"
    else:
        said["result"] = {"modelID": params["modelID"], "duration": 7_000_000, "isCached": False}
    (folder / "message.json").write_text(json.dumps(said), encoding="utf-8")


def main() -> int:
    """Be the program that is named first."""
    program, *arguments = sys.argv[1:]
    if program == "xcodebuild":
        return xcodebuild(arguments)
    if program == "xcrun" and arguments[0] == "--find":
        print(PHONE / "xcode" / arguments[1])
        return 0
    if program == "xcrun":
        if "STANDIN_UNKNOWN" in os.environ:
            print('xcrun: error: unable to find utility "devicectl", not a developer tool or in PATH', file=sys.stderr)
            return 72
        arguments = arguments[1:]
    return devicectl(arguments)


if __name__ == "__main__":
    sys.exit(main())
