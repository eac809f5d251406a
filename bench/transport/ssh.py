"""A device over SSH: OpenSSH's own client, with the user's configuration, keys, agent and jump hosts.

One connection (ControlMaster, its socket in a private folder), which the keeper of remote.py makes; what follows goes
through the socket and can make no second one. A host key has to be known: nothing is asked and nothing is accepted.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgesmith.bench.transport.address import Address
from edgesmith.bench.transport.remote import SHELL, Remote
from edgesmith.errors import BackendMissing, DeviceFailed, EdgesmithError

FIXED = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "UpdateHostKeys=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "LogLevel=ERROR",
)
"""OpenSSH takes the first value that it is given for an option, so nothing that follows changes these."""

USUAL = ("ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=3")
LONGEST_SOCKET = 80
"""Of the 104 bytes that macOS allows for a socket's path, ssh needs some for a temporary name."""


class Ssh(Remote):
    """A device that `ssh` reaches."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._private = ""

    def open(self) -> None:
        if shutil.which("ssh") is None:
            raise BackendMissing(
                "--device ssh:// needs OpenSSH's client, and there is no ssh here: install openssh-client"
            )
        self._private = tempfile.mkdtemp(prefix="edgesmith-")
        if len(self._private) > LONGEST_SOCKET:
            shutil.rmtree(self._private)
            self._private = tempfile.mkdtemp(prefix="edgesmith-", dir="/tmp")
        super().open()

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._private:
                shutil.rmtree(self._private, ignore_errors=True)

    def _connection(self) -> list[str]:
        return self._ssh("ControlMaster=yes")

    def _channel(self) -> list[str]:
        return self._ssh("ControlMaster=no", "ProxyCommand=false")  # no socket, no connection

    def _ssh(self, *own: str) -> list[str]:
        address = self.address
        socket = str(Path(self._private) / "socket").replace("%", "%%")
        command = ["ssh", "-T", "-S", socket]
        command += ["-F", str(address.config)] if address.config is not None else []
        for option in (*FIXED, "ControlPersist=no", *own, *address.options, *USUAL):
            command += ["-o", option]
        command += ["-p", str(address.port)] if address.port is not None else []
        command += ["-l", address.user] if address.user is not None else []
        return [*command, "--", address.name, SHELL]

    def _why(self, said: Sequence[str]) -> EdgesmithError:
        name, text = self.name, "\n".join(said)
        if "HOST IDENTIFICATION HAS CHANGED" in text:
            listed = re.search(r"Offending \S+ key in (\S+)", text)
            where = f" (listed in {listed[1]})" if listed else ""
            return DeviceFailed(
                f"{name} shows another host key than the known one{where}, and nothing was sent: find out why, and only"
                f" then forget the old one with ssh-keygen -R {self._known_as}"
            )
        if "Host key verification failed" in text or "host key is known for" in text:
            return DeviceFailed(
                f"the host key of {name} is not known, and none is accepted unseen: log in once with {self._by_hand},"
                " and compare the fingerprint with the device's"
            )
        if "Permission denied" in text or "Too many authentication failures" in text:
            return DeviceFailed(
                f"{name} refuses the login ({_last(said)}): {self._by_hand} has to work without a password, by a key or"
                " an agent"
            )
        return DeviceFailed(f"{name} cannot be reached over SSH: {_last(said)}")

    @property
    def _by_hand(self) -> str:
        """The command that does the same by hand."""
        address = self.address
        port = f"-p {address.port} " if address.port is not None else ""
        config = f"-F {address.config} " if address.config is not None else ""
        return f"`ssh {config}{port}{address.user + '@' if address.user is not None else ''}{address.name}`"

    @property
    def _known_as(self) -> str:
        return self.name if self.address.port in (None, 22) else f"'[{self.name}]:{self.address.port}'"


def _last(said: Sequence[str]) -> str:
    lines = [line.strip() for line in said if line.strip()]
    return lines[-1].removeprefix("ssh: ").rstrip(".") if lines else "ssh said nothing"
