"""Checkpoints whose pickles ask for more than their bytes hold: memory, time, or numbers that nobody wrote."""

from __future__ import annotations

import codecs
import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgesmith.errors import Unreadable
from edgesmith.readers import calls
from edgesmith.readers.pickles import read_pickle

DTYPE_STATE = (3, "<", None, None, None, 8, 8, 63)
"""Of a numpy type whose elements would be taken for pointers."""


class Call:
    """What a pickle writes as a call."""

    def __init__(self, function: Any, *given: Any, state: Any = None) -> None:
        self.function, self.given, self.state = function, given, state

    def __reduce__(self) -> Any:
        return (self.function, self.given) if self.state is None else (self.function, self.given, self.state)


class Stored:
    """What a pickle writes as a storage of the file."""

    def __init__(self, key: str, count: int) -> None:
        self.identity = ("storage", torch.FloatStorage, key, "cpu", count, None)


class Pickler(pickle.Pickler):
    def persistent_id(self, given: Any) -> Any:
        return given.identity if isinstance(given, Stored) else None


def pickled(content: Any) -> bytes:
    made = io.BytesIO()
    Pickler(made, 2).dump(content)
    return made.getvalue()


def archive(folder: Path, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "w.pth", "w") as made:
        made.writestr("archive/data.pkl", content)
        made.writestr("archive/byteorder", "little")
        made.writestr("archive/version", "3\n")
    return folder / "w.pth"


def encoded(times: int, name: str) -> Call:
    made = Call(codecs.encode, "a" * 1000, "latin1")
    for _ in range(times):
        made = Call(codecs.encode, made, name)
    return made


def hashed() -> dict[Any, int]:
    key: tuple[Any, ...] = ()
    for _ in range(60):
        key = (key, key)
    return HashedLate(key)


class HashedLate(dict[Any, int]):
    """A dict of one key that is not hashed here: it would never end."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def __reduce__(self) -> Any:
        return dict, (), None, None, iter([(self.key, 1)])


TEXT = b"X" + struct.pack("<I", 200_000) + b"a" * 200_000
ENCODED = b"\x80\x02c_codecs\nencode\nq\x00" + TEXT + b"q\x01X\x06\x00\x00\x00latin1q\x02"
GROWN = b"\x80\x02c__builtin__\nset\nq\x00]q\x01\x85q\x02h\x01(" + b"K\x01" * 50_000 + b"e"

ASKED: dict[str, tuple[bytes, str]] = {
    "memory by a number": (pickled({"x": Call(bytearray, 2**40)}), "bytearray"),
    "memory as a storage": (pickled({"x": Call(torch.FloatStorage, 2**40)}), "torch.FloatStorage"),
    "numbers that nobody wrote": (pickled({"x": Call(torch.FloatTensor, 5, 144)}), "torch.FloatTensor"),
    "an array": (pickled({"x": Call(np.ndarray, (2**40,))}), "numpy.ndarray"),
    "one encoding upon another": (pickled({"x": encoded(60, "hex_codec")}), "_codecs.encode"),
    "by way of a tensor's type": (
        pickled({"x": Call(torch._tensor._rebuild_from_type_v2, bytearray, torch.Tensor, (2**40,), {})}),
        "bytearray",
    ),
    "a text, again and again": (ENCODED + b"h\x00h\x01h\x02\x86R" * 4000 + b".", "far more time or memory"),
    "a list that grows after": (GROWN + b"h\x00h\x02R" * 4000 + b".", "far more time or memory"),
    "keys without end": (pickled({"x": hashed()}), "far more time or memory"),
    "steps without end": (b"\x80\x02" + b"N" * (calls.MOST_STEPS + 1) + b".", "far more time or memory"),
    "a long name": (b"\x80\x02c" + b"a" * 300_000 + b"\nb\n.", "aaa..."),
    "a long text for a function": (b"\x80\x02" + TEXT + b")R.", "truncated"),
    "a long text for a class": (b"\x80\x02" + TEXT + b")\x81.", "truncated"),
    "what was never put": (b"\x80\x02h\x07.", "truncated"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_pickle_that_asks_for_more_than_it_holds_is_one_short_sentence(asked: str, tmp_path: Path) -> None:
    content, said = ASKED[asked]
    path = archive(tmp_path, content)
    with pytest.raises(Unreadable) as raised:
        read_pickle(path)
    assert said in str(raised.value)
    assert len(str(raised.value)) < 300
    with pytest.raises((calls.Refused, ValueError)):  # before PyTorch is asked
        calls.check(io.BytesIO(content))


@pytest.mark.parametrize("keys", [[], ["1"]])
def test_an_old_file_has_every_storage_that_it_names(keys: list[str], tmp_path: Path) -> None:
    tensor = Call(torch._utils._rebuild_tensor_v2, Stored("0", 4), 0, (4,), (1,), False, collections.OrderedDict())
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}})
    content = b"".join(map(pickled, (*head, {"x": tensor}, keys)))
    (path := tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(Unreadable, match="names weights that are not in it"):
        read_pickle(path)


def test_a_numpy_scalar_s_type_is_taken_by_its_name_alone(tmp_path: Path) -> None:
    scalar = np.float64(0).__reduce__()[0]
    kind = Call(np.dtype, "f8", False, True, state=DTYPE_STATE)
    made = read_pickle(archive(tmp_path, pickled({"x": Call(scalar, kind, struct.pack("<d", 2.5))})))
    assert made == {"x": 2.5}
    assert not made["x"].dtype.hasobject
    big = Call(np.dtype, "f8", False, True, state=(3, ">", None, None, None, -1, -1, 0))
    assert read_pickle(archive(tmp_path, pickled({"x": Call(scalar, big, struct.pack(">d", 2.5))}))) == {"x": 2.5}
    for name, content in (("O", b"\1" * 8), ("f8", b"\1" * 7), ("f8", b"\1" * 16)):
        path = archive(tmp_path, pickled({"x": Call(scalar, Call(np.dtype, name, False, True), content)}))
        with pytest.raises(Unreadable):
            read_pickle(path)


def named(x: torch.Tensor) -> torch.Tensor:
    x.of_the_author = "kept"  # type: ignore[attr-defined]
    return x


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Parameter(torch.ones(3)),
        lambda: named(torch.ones(3)),
        lambda: named(torch.nn.Parameter(torch.ones(3))),
        lambda: torch.ones(1).expand(3),
        lambda: torch.ones(3).to_sparse(),
        lambda: {(1, 2): torch.ones(3), 4: [torch.Size([1, 2]), torch.device("cpu"), {1, 2}, 2j]},
        lambda: [np.float32(1), np.int64(2), np.bool_(True)],
    ],
)
def test_what_training_scripts_save_is_read(make: Callable[[], Any], tmp_path: Path) -> None:
    for file, is_archive in (("w.pth", True), ("w.pt", False)):
        torch.save({"x": make()}, tmp_path / file, _use_new_zipfile_serialization=is_archive)
        assert "x" in read_pickle(tmp_path / file)
