"""A stand-in for the runner, for an iPhone: a process on the Mac, with the same plan and the same events.

    python iphone_runner.py FACTS < plan.json

    FACTS   {"udid", "cpu", "folder": where the app is built, once, "signing": {"team", "bundle", "profile"}}
    events  those of runner.py; memory_mib is null, as nobody says what the app holds
    failed  {"why"}     instead of what would follow: the phone, or the way to it, does not do what it is asked

Every launch launches the app anew. A call is one request to it, which takes seconds, of which the milliseconds that
the app counts around Core ML's prediction are kept; so a slot goes on until those reach `slot_ms`, and warming up is
steady after three calls that are, or ends after MOST_WARM.

coremltools calls its device support experimental. What is used of it, of version 9.0: `Device.get_devices`,
`Device.prepare_for_model_debugging`, `MLModelAsyncWrapper.from_spec_or_path`, its `load`, `predict`, `unload`, and the
durations that it keeps; a test holds these calls to its signatures. It asks twenty times for an answer, half a second
apart, and no longer: a package that the phone takes longer to load is a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgesmith.bench import runner
from edgesmith.bench.runner import keep_events_apart, tell
from edgesmith.board.common import Refusal, is_steady

MOST_WARM = 10

Predict = Callable[[], Awaitable[float]]
"""One call on the phone; milliseconds that Core ML took there."""


class Failed(Exception):
    """The phone, or the way to it; the sentence says why."""


class Lacking(Exception):
    """Something that this Mac has to have; the sentence says what."""


async def carry_out(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Launch the app, and have it carry out a plan."""
    version = runner.version_coremltools()
    device = await prepare(facts)
    try:
        tell("start", runtimes={"coremltools": version}, environment=environment())
        if not plan["models"]:
            tell("about", machine=describe(device, facts["cpu"]), cores=[])
        await time_all(plan, device)
        tell("end", environment=environment())
    finally:
        stop(device)


def stop(device: Any) -> None:
    """End the app. coremltools ends the shell that it gave the command to, and a shell may have left that running."""
    device.session.stop()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # what this process has started; edgesmith starts it in a group of its own


async def prepare(facts: Mapping[str, Any]) -> Any:
    """The phone with the app running on it: built by Xcode where the folder holds none yet, installed and launched."""
    from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials, Device, DeviceState

    add_xcode_to_path()
    given = facts["signing"]
    credentials = AppSigningCredentials(
        development_team=given.get("team", ""),
        provisioning_profile_uuid=given.get("profile"),
        bundle_identifier=given.get("bundle"),
    )
    folder = Path(facts["folder"])
    try:
        found = next((device for device in Device.get_devices() if device.udid == facts["udid"]), None)
        if found is None:
            raise Failed("it is no longer connected")
        # Xcode closes the tunnel to a phone as soon as a command ends, and opens it for the next: the state that is
        # listed between two is no reason not to try. What cannot be done, the next command says.
        connected = replace(found, state=DeviceState.CONNECTED)
        return await connected.prepare_for_model_debugging(credentials=credentials, working_directory=folder)
    except ValueError as error:  # what coremltools looks for on this Mac, in its own words
        raise Lacking(last_line(error)) from error
    except Exception as error:
        if "AppBuilder" not in type(error).__qualname__:
            raise
        raise Lacking(
            "Xcode does not build and sign the app that coremltools runs on an iPhone"
            f" ({last_line(error)}): add your Apple account in Xcode's settings, and name its team and a bundle"
            " identifier of your own with --sign team=TEAMID --sign bundle=com.example.runner"
        ) from error


async def time_all(plan: Mapping[str, Any], device: Any) -> None:
    """Load the plan's models, warm them up, and time them in turn."""
    order = plan.get("order") or list(range(len(plan["models"])))
    calls: dict[int, Predict] = {}
    loaded = []
    for i in order:
        model = plan["models"][i]
        wrapper, call = await load(model["file"], plan["seed"], device, **model.get("options", {}))
        loaded.append(wrapper)
        calls[i] = call
        load_ms = wrapper.load_duration_in_nano_seconds / 1e6
        tell("open", model=i, load_ms=load_ms, first_ms=await call(), memory_mib=None)
    if plan["seconds"] > 0:
        for i in order:
            warm: list[float] = []
            while not is_steady(warm) and len(warm) < MOST_WARM:
                warm.append(await calls[i]())
            tell("warm", model=i, calls=len(warm), ms=sum(warm), is_steady=is_steady(warm))
        start = time.perf_counter()
        for number, turn in enumerate(runner.turns(order, plan["seed"])):
            if number and number % 2 == 0 and time.perf_counter() - start >= plan["seconds"]:
                break
            for i in turn:
                at_s = time.perf_counter() - start
                samples = [await calls[i]()]
                while sum(samples) < plan["slot_ms"]:
                    samples.append(await calls[i]())
                tell("slot", model=i, round=number, at_s=at_s, samples_ms=samples)
    for wrapper in loaded:
        await wrapper.unload()


async def load(file: str, seed: int, device: Any, compute_units: str = "ALL") -> tuple[Any, Predict]:
    """A package in the app, and what calls it once."""
    import coremltools
    from coremltools.models.ml_program.experimental.async_wrapper import MLModelAsyncWrapper

    wrapper = MLModelAsyncWrapper.from_spec_or_path(
        spec_or_path=file,
        weights_dir=str(Path(file) / "Data/com.apple.CoreML/weights"),
        compute_units=coremltools.ComputeUnit[compute_units],
        device=device,
    )
    await wrapper.load()
    feeds = runner.feeds_coremltools(runner.described_coremltools(coremltools.utils.load_spec(file)), seed)

    async def call() -> float:
        await wrapper.predict(feeds)
        return float(wrapper.last_predict_duration_in_nano_seconds) / 1e6

    return wrapper, call


def describe(device: Any, cpu: str) -> dict[str, str]:
    """Describe the phone, as `machine` in board/common.py does a machine."""
    return {
        "system": f"iOS {device.os_version} ({device.os_build_number})",
        "cpu": cpu,
        "machine": hashlib.sha256(device.udid.encode()).hexdigest()[:12],
    }


def environment() -> dict[str, Any]:
    """Return all that is known of the phone's state: the time."""
    return {"time_s": time.time()}


def add_xcode_to_path() -> None:
    """Let coremltools find devicectl: it looks along the path, and Xcode keeps it where only xcrun does."""
    asked = subprocess.run(["xcrun", "--find", "devicectl"], capture_output=True, text=True, check=False)  # noqa: S607
    if asked.returncode == 0:
        os.environ["PATH"] += os.pathsep + str(Path(asked.stdout.strip()).parent)


def last_line(error: BaseException) -> str:
    """Return the last line of an error; coremltools passes on what programs write, as bytes."""
    said = getattr(error, "message", None) or str(error)
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def main() -> None:
    """Carry out the plan on standard input."""
    facts, plan = json.loads(sys.argv[1]), json.load(sys.stdin)
    keep_events_apart()
    try:
        asyncio.run(carry_out(plan, facts))
    except Refusal as error:
        tell("lacks", runtime="coremltools", why=str(error), can_import=True)
    except ImportError as error:
        tell("lacks", runtime="coremltools", why=str(error), can_import=False)
    except Lacking as error:
        tell("lacks", runtime="coremltools", why=str(error), can_import=True)
    except Exception as error:  # devicectl's, the app's, or what coremltools makes of an answer that it does not expect
        tell("failed", why=last_line(error))


if __name__ == "__main__":
    main()
