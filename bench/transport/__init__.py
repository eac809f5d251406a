"""Devices near and far: how files get there, how commands run there, and that nothing stays there.

    host                        this machine: nothing is copied                              local.py
    mac                         this machine where it is a Mac                               local.py
    mac:IPHONE                  an iPhone that this Mac drives, by coremltools               iphone.py
    ssh://[user@]host[:port]    OpenSSH's own client, one connection, host keys checked      ssh.py
    adb:SERIAL                  what `adb devices` lists                                     adb.py

IPHONE is its name, its UDID, or its model as `edgesmith devices` calls it, where one such iPhone is connected. What is
connected here is asked in attached.py.

The far ones, the last two, need Python 3.8 and the runtime there, and nothing of edgesmith: one file, `runner.py`, is
joined (board/join.py) and copied. Times are taken there, so a connection's cost is in none of them. remote.py has what
the two share, and how a folder there is removed even when the connection is cut.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from edgesmith.bench.transport.adb import Adb
from edgesmith.bench.transport.address import Address, parse
from edgesmith.bench.transport.iphone import IPhone
from edgesmith.bench.transport.local import Local
from edgesmith.bench.transport.protocol import CommandFailed, CutOff, Heard, Transport
from edgesmith.bench.transport.remote import Remote
from edgesmith.bench.transport.ssh import Ssh
from edgesmith.errors import BackendMissing

__all__ = ["Address", "CommandFailed", "CutOff", "Heard", "Transport", "connect", "parse"]


@contextmanager
def connect(address: Address) -> Iterator[Transport]:
    """A device for as long as the block lasts; what was copied there is removed after it.

    Raises:
        BackendMissing: `ssh`, `adb` or what drives an iPhone is not installed here, or Python 3.8 not there.
        DeviceFailed: the device cannot be reached, is not the one known, or refuses.
        OutputError: there is no room on it.
    """
    if address.kind in ("mac", "iphone") and platform.system() != "Darwin":
        form = "mac" if address.kind == "mac" else "mac:IPHONE"
        raise BackendMissing(
            f"--device {form} takes a Mac, and this is {platform.system()}: install edgesmith on a Mac, or reach one"
            " with --device ssh://user@mac"
        )
    if address.is_here:
        yield Local(address.name)
        return
    if address.kind == "iphone":
        with IPhone(address) as phone:
            yield phone
        return
    remote: Remote = Ssh(address) if address.kind == "ssh" else Adb(address)
    try:
        remote.open()
        yield remote
    finally:
        remote.close()
