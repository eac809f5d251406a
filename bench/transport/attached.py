"""Devices that are connected to this machine. The programs that know them are asked, for a limited time; no device is.

    adb devices -l                    Android devices and their models; adb starts its server where none runs
    xcrun devicectl list devices      iPhones that this Mac knows, by cable or network; Xcode 15 and later

Devices over SSH are in no list. A model is matched to a profile: an iPhone's by its title, Android's by `models`.
"""

from __future__ import annotations

import fnmatch
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesmith.errors import BackendMissing, DeviceFailed, Unreadable
from edgesmith.profiles.device import all_devices
from edgesmith.readers.documents import read_json

TIMEOUT_S = 5.0
"""For each program; devicectl has its own limit too, and is given a little more."""

STATES = {
    "unauthorized": "allow this computer on its screen",
    "offline": "it does not answer adb: connect it again",
    "no permissions": "this user may not use it: see adb's udev rules",
}
"""Advice for the words of adb's other than `device`, which is ready."""


@dataclass(frozen=True)
class Attached:
    """A device that is connected.

    Attributes:
        device: what --device takes for it.
        title: what it calls itself.
        profile: the name of its profile; None where its model has none.
        hindrance: why it cannot be used now; None where it can.
    """

    device: str
    title: str
    profile: str | None
    hindrance: str | None


@dataclass(frozen=True)
class Phone:
    """An iPhone that this Mac knows.

    Attributes:
        name: that its owner gave it.
        model: such as `iPhone 15 Pro`.
        system: such as `iOS 18.1`.
        profile, hindrance: see `Attached`.
    """

    name: str
    udid: str
    model: str
    system: str
    profile: str | None
    hindrance: str | None


class _NoAnswer(Exception):
    """A program that was asked says nothing, or something else; the sentence says which."""


def attached() -> tuple[list[Attached], list[str]]:
    """The devices that are connected, and in a sentence each what could not be asked."""
    found: list[Attached] = []
    notes: list[str] = []
    for ask in (_android, _iphones):
        try:
            found += ask()
        except (BackendMissing, _NoAnswer) as error:
            notes.append(str(error))
    return found, notes


def find_iphone(which: str) -> Phone:
    """Return the iPhone of a name, UDID or model, such as `Jo's iPhone`, `iphone15pro` or `iPhone 15 Pro`, if ready.

    Raises:
        BackendMissing: this Mac has no devicectl.
        DeviceFailed: none is, several are, or it is not ready.
    """
    try:
        phones = iphones()
    except _NoAnswer as error:
        raise DeviceFailed(str(error)) from error
    found = _alike(phones, which)
    if not found:
        others = ", ".join(f"{phone.name} ({phone.model}, {phone.udid})" for phone in phones)
        raise DeviceFailed(
            f"no iPhone here is {which!r}; this Mac knows {others or 'none: connect it, and trust this Mac on it'}"
        )
    if len(found) > 1:
        raise DeviceFailed(
            f"{len(found)} iPhones here are {which!r}: say which, mac:{' or mac:'.join(p.udid for p in found)}"
        )
    (phone,) = found
    if phone.hindrance is not None:
        raise DeviceFailed(f"{phone.name} cannot be used: {phone.hindrance}")
    return phone


def _alike(phones: Sequence[Phone], which: str) -> list[Phone]:
    """Those that a word may mean: the one whose UDID it is, else those that are ready, else the others."""
    wanted = which.casefold()
    alike = [p for p in phones if wanted in {str(x).casefold() for x in (p.name, p.udid, p.model, p.profile) if x}]
    exact = [phone for phone in alike if phone.udid.casefold() == wanted]
    return exact or [phone for phone in alike if phone.hindrance is None] or alike


def iphones() -> list[Phone]:
    """The iPhones that this Mac knows, those that are not connected now among them.

    Raises BackendMissing where there is no devicectl, and _NoAnswer.
    """
    if platform.system() != "Darwin":
        raise BackendMissing(f"iPhones are reached through a Mac, and this is {platform.system()}")
    if shutil.which("xcrun") is None:
        raise BackendMissing(
            "iPhones are reached by Xcode's devicectl, and there is no Xcode here: install Xcode 15 or later"
        )
    with tempfile.TemporaryDirectory(prefix="edgesmith-") as folder:
        answer = Path(folder) / "devices.json"
        limit = ["--timeout", f"{TIMEOUT_S:.0f}"]
        said = _asked(["xcrun", "devicectl", "list", "devices", *limit, "--json-output", str(answer)], 2 * TIMEOUT_S)
        try:
            listed = read_json(answer, "list of devices")["result"]["devices"]
            return [phone for one in listed if (phone := _phone(one)) is not None]
        except Unreadable as error:
            if answer.is_file():
                raise _NoAnswer(f"what devicectl lists is not understood: {error}") from error
            if "unable to find utility" in said:
                raise BackendMissing(
                    "iPhones are reached by devicectl, which is not here: install Xcode 15 or later, and choose it with"
                    " sudo xcode-select -s /Applications/Xcode.app"
                ) from error
            raise _NoAnswer(f"devicectl lists no devices: {_last(said)}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise _NoAnswer(f"what devicectl lists is not understood ({type(error).__name__}: {error})") from error


def _phone(listed: dict[str, Any]) -> Phone | None:
    """An entry of devicectl's list, where it is an iPhone."""
    hardware, own = listed.get("hardwareProperties", {}), listed.get("deviceProperties", {})
    connection = listed.get("connectionProperties", {})
    if str(hardware.get("deviceType")).casefold() != "iphone" or not hardware.get("udid"):
        return None
    model = hardware.get("marketingName") or hardware.get("productType") or "iPhone"
    hindrance = None
    if connection.get("pairingState") != "paired":
        hindrance = "it is not paired: connect it, unlock it, and trust this Mac on it"
    elif not connection.get("transportType") or connection.get("tunnelState") == "unavailable":
        hindrance = "it is not connected: plug it in, and unlock it"
    elif own.get("developerModeStatus") != "enabled":
        hindrance = "its developer mode is off: Settings, Privacy & Security, Developer Mode"
    titles = {profile.title.casefold(): name for name, profile in all_devices().items() if profile.reach == "mac"}
    return Phone(
        name=own.get("name") or model,
        udid=hardware["udid"],
        model=model,
        system=f"iOS {own.get('osVersionNumber') or '?'}",
        profile=titles.get(model.casefold()),
        hindrance=hindrance,
    )


def _iphones() -> list[Attached]:
    return [
        Attached(f"mac:{phone.udid}", f"{phone.name}: {phone.model}, {phone.system}", phone.profile, phone.hindrance)
        for phone in iphones()
    ]


def _android() -> list[Attached]:
    if shutil.which("adb") is None:
        raise BackendMissing("Android devices are reached by adb, which is not here: install the platform tools")
    said = _asked(["adb", "devices", "-l"], TIMEOUT_S)
    _, is_list, listed = said.partition("List of devices attached")
    if not is_list:
        raise _NoAnswer(f"adb lists no devices: {_last(said)}")
    return [_android_device(line) for line in listed.splitlines() if len(line.split()) > 1]


def _android_device(line: str) -> Attached:
    """A line such as `R58M42ABCDE  device usb:1-1 product:dm1q model:SM_S911B device:dm1q transport_id:1`."""
    serial, state = line.split(None, 1)
    facts = dict(re.findall(r"\b(\w+):(\S+)", state))
    model = facts.get("model", "")
    state = "no permissions" if state.startswith("no permissions") else state.split()[0]
    hindrance = None if state == "device" else f"{state}: {STATES[state]}" if state in STATES else state
    return Attached(f"adb:{serial}", model or "unknown model", _profile_of(model), hindrance)


def _profile_of(model: str) -> str | None:
    """The profile of Android's model name, in which adb writes `_` for whatever is no letter and no digit."""
    for name, profile in all_devices().items():
        patterns = (re.sub(r"[^\w*?]", "_", pattern) for pattern in profile.models)
        if model and any(fnmatch.fnmatchcase(model, pattern) for pattern in patterns):
            return name
    return None


def _asked(command: Sequence[str], timeout_s: float) -> str:
    """Run a program. Returns all that it writes; raises _NoAnswer where it cannot start, or does not end in time."""
    # Into a file: what the program has started, such as adb's server, may hold a pipe open for ever.
    with tempfile.TemporaryFile() as written:
        try:
            process = subprocess.Popen(  # noqa: S603  # a list, no shell
                command, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise _NoAnswer(f"{command[0]} does not start: {error.strerror or error}") from error
        with process:
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired as error:
                raise _NoAnswer(f"{' '.join(command[:3])} does not answer within {timeout_s:g} s") from error
            finally:
                if process.poll() is None:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
        written.seek(0)
        return written.read().decode(errors="replace")


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ").removeprefix("ERROR: ").rstrip(".") if lines else "it says nothing"
