"""Addresses of devices, and how they are written on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from edgesmith.errors import BadInput


@dataclass(frozen=True)
class Address:
    """Which device, and how it is reached.

    Attributes:
        kind: `host`, `mac`, `iphone`, `ssh` or `adb`.
        name: what a record calls it: `host`, `mac`, the host's name without the user, or the serial number; of an
            iPhone whatever tells which, as a record calls it by its model.
        user: None for what OpenSSH's configuration says; port too.
        python: the interpreter there; `~/` is the home there.
        folder: where this run's folder is made there; None for its TMPDIR or /tmp.
        config: a configuration file for OpenSSH in the place of the user's.
        options: further options for OpenSSH, such as `IdentityFile=~/.ssh/board`; those that edgesmith sets stay.
        signing: what Xcode signs the app with that runs on an iPhone, such as `team=ABCDE12345`; see `SIGNING`.
    """

    kind: str
    name: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    folder: str | None = None
    config: Path | None = None
    options: tuple[str, ...] = ()
    signing: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """True for this machine."""
        return self.kind in ("host", "mac")


SIGNING = {"team": r"\w+", "bundle": r"[\w.-]+", "profile": r"[\w-]+"}
"""An Apple developer team's identifier, an app's of one's own, and a provisioning profile's UUID where Xcode is not to
make one. coremltools puts them into a command for a shell, so they are held to the characters that such have."""


WANTED = "--device must be host, mac, mac:IPHONE, ssh://[user@]host[:port] or adb:SERIAL"


def parse(
    device: str,
    *,
    python: str | None = None,
    folder: str | None = None,
    config: Path | None = None,
    options: Sequence[str] = (),
    signing: Sequence[str] = (),
) -> Address:
    """Return the address of a device such as `ssh://me@board:2222`; see `Address` for the other arguments.

    Raises:
        BadInput: no such form, or an option that the device has no use for.
    """
    is_here = device in ("host", "mac")
    scheme = device.partition(":")[0] if ":" in device else ""
    kind = device if is_here else "iphone" if scheme == "mac" else scheme
    _check_signing(device, kind, signing)
    _check_ssh_options(device, kind, config, options)
    _check_paths(python, folder)
    if is_here or kind == "iphone":
        if python is not None or folder is not None:
            raise BadInput("--python and --remote-tmp are for devices that are not this machine")
        return Address(kind, device) if is_here else _address_of_iphone(device, signing)
    address = _address_of_adb(device) if kind == "adb" else _address_of_ssh(device)
    return replace(address, python=python or address.python, folder=folder, config=config, options=tuple(options))


def _check_signing(device: str, kind: str, signing: Sequence[str]) -> None:
    """Raise BadInput for signing of anything but an app for an iPhone, or by what is no identifier."""
    if signing and kind != "iphone":
        raise BadInput(f"--sign is for --device mac:IPHONE, got --device {device}")
    for one in signing:
        key, _, said = one.partition("=")
        if key not in SIGNING or not re.fullmatch(SIGNING[key], said, re.ASCII):
            raise BadInput(f"--sign must be team=ID, bundle=com.example.runner or profile=UUID, got {one!r}")


def _check_ssh_options(device: str, kind: str, config: Path | None, options: Sequence[str]) -> None:
    """Raise BadInput for options of OpenSSH's that another device has no use for, or that OpenSSH would not take."""
    if (config is not None or options) and kind != "ssh":
        raise BadInput(f"--ssh-config and --ssh-option are for --device ssh://..., got --device {device}")
    for option in options:
        if not re.match(r"[A-Za-z]+[= ]", option):
            raise BadInput(f"--ssh-option must be KEY=VALUE as in ssh_config, got {option!r}")
    if config is not None and not config.is_file():
        raise BadInput(f"there is no file {config} for --ssh-config")


def _check_paths(python: str | None, folder: str | None) -> None:
    """Raise BadInput for paths there that depend on where a command happens to run."""
    for name, value in (("--python", python), ("--remote-tmp", folder)):
        if value is not None and not value.startswith(("/", "~/")) and ("/" in value or name == "--remote-tmp"):
            raise BadInput(f"{name} must be a path there that begins with / or ~/, got {value!r}")


def _address_of_iphone(device: str, signing: Sequence[str]) -> Address:
    """The address of an iPhone that this Mac drives, by its name, UDID or model."""
    name = device.removeprefix("mac:").strip()
    if not name or not device.isprintable():
        raise BadInput(f"{WANTED}, got {device!r}")
    return Address("iphone", name, signing=tuple(signing))


def _address_of_adb(device: str) -> Address:
    """The address of what `adb devices` lists under a serial number."""
    serial = device.removeprefix("adb:")
    if not re.fullmatch(r"[\w.:\[\]%-]+", serial) or serial.startswith("-"):
        raise BadInput(f"{WANTED}, got {device!r}")
    return Address("adb", serial)


def _address_of_ssh(device: str) -> Address:
    """The address in a URL.

    What ssh gets, it may hand to a shell for ProxyCommand or Match exec: so names only, and no options.
    """
    try:
        url = urlsplit(device)
        user, host, port = url.username, url.hostname, url.port
    except ValueError as error:
        raise BadInput(f"{WANTED}, got {device!r} ({error})") from error
    is_host = url.scheme == "ssh" and re.fullmatch(r"[\w.%:][\w.%:-]*", host or "", re.ASCII)
    is_user = user is None or re.fullmatch(r"[\w.][\w.@+-]*", user, re.ASCII)
    if not is_host or not is_user or url.path.strip("/") or url.query or url.fragment or url.password is not None:
        raise BadInput(f"{WANTED}, got {device!r}")
    name = re.sub(r":\d*$", "", url.netloc.rpartition("@")[2]).strip("[]")  # hostname is lower case, aliases may not
    return Address("ssh", name, user, port)
