"""Every reader against damaged files: a right result or a documented exit; `make fuzz` reads 10,000."""

from __future__ import annotations

import faulthandler
import os
import signal

import pytest
from support.fuzzing import BUG, READERS, Reader, fuzz

from edgesmith.exporters import targets

SAMPLES = 12
"""Of each reader; its first ones are the same everywhere."""

NEEDS = {
    **dict.fromkeys(("Core ML model", "Core ML package", "use of Core ML"), "coreml"),
    "Core AI model": "coreai",
    "compiled library": "tvm",
}
"""Targets that make a reader's sample."""


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_ends_in_a_result_or_a_sentence(reader: Reader) -> None:
    if reader.name in NEEDS and (missing := targets.get(NEEDS[reader.name]).missing_packages()):
        pytest.skip(f"{', '.join(missing)} is not installed")
    found = fuzz(reader, SAMPLES)
    assert not found.bugs
    assert found.ends.total() == SAMPLES


SAMPLE = next(reader for reader in READERS if reader.name == "device .toml")


def planted(kind: type[BaseException]) -> Reader:
    def read(folder: object) -> None:
        if "now" in str(folder):
            raise kind("planted")

    return Reader("planted", SAMPLE.make, SAMPLE.file, read, SAMPLE.mutate)


@pytest.mark.parametrize("kind", [KeyError, RecursionError, MemoryError, SystemExit])
def test_an_error_that_is_no_sentence_is_a_bug(kind: type[BaseException]) -> None:
    assert fuzz(planted(kind), 2).ends == {BUG: 2}


def test_a_process_that_dies_is_a_bug_and_the_next_samples_are_read() -> None:
    reader = planted(KeyError)

    def read(folder: object) -> None:
        faulthandler.disable()
        if "now" in str(folder):
            os.kill(os.getpid(), signal.SIGSEGV)

    found = fuzz(Reader(reader.name, reader.make, reader.file, read, reader.mutate), 2)
    assert [why for _, why in found.bugs] == ["the process ended with -11"] * 2
