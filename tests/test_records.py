"""Records: schemas that follow from TypedDicts, files that keep to them, and sentences for those that do not."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jsonschema
import pytest

from edgesmith import cli, records
from edgesmith.bench import measured, measurement
from edgesmith.bench.history import History
from edgesmith.bench.peers.record import PeersRecord
from edgesmith.bench.verdict import Comparison
from edgesmith.cli.doctor import DoctorRecord
from edgesmith.errors import SLOWER_CODE, BadInput, OutputError
from edgesmith.exporters.manifest import Manifest
from edgesmith.exporters.mil.lint import LintRecord
from edgesmith.exporters.tensorrt.kit.record import Kit
from edgesmith.records import Keyword, schema_of

SCHEMAS: dict[str, type] = {
    "bench/comparison.schema.json": Comparison,
    "bench/history.schema.json": History,
    "bench/measured.schema.json": measured.MeasuredProfile,
    "bench/peers/peers.schema.json": PeersRecord,
    "cli/doctor.schema.json": DoctorRecord,
    "exporters/manifest.schema.json": Manifest,
    "exporters/mil/lint.schema.json": LintRecord,
    "exporters/tensorrt/kit/kit.schema.json": Kit,
}
"""The TypedDict that a committed schema follows from. `pytest --update-golden` writes the files anew."""

BY_HAND = {"bench/measurement.schema.json", "bench/estimation/estimate.schema.json"}
"""Schemas that say more than types do, and that dataclasses are read by."""


def folder_of(package: str) -> Path:
    """The folder of a package of edgesmith; in an editable installation they have no common one."""
    return Path(str(importlib.resources.files(f"edgesmith.{package}")))


Share = Annotated[float, Keyword("minimum", 0), Keyword("maximum", 1)]


class Leaf(TypedDict):
    """A part that
    is nested.

    Attributes:
        low, high: of an interval,
            in milliseconds.
    """

    low: float | None
    high: float | None
    shape: tuple[int, int]
    kind: Literal["a", "b"]
    inner: NotRequired[Leaf]


class Tree(TypedDict):
    """A record of this test."""

    schema: Literal[1, 2]
    share: Share | None
    leaves: list[Leaf]
    by_name: Mapping[str, Leaf | str]
    anything: Any
    again: NotRequired[list[Tree]]


LEAF = {"low": 1.5, "high": None, "shape": [1, 2], "kind": "a"}
TREE = {"schema": 2, "share": 0.5, "leaves": [LEAF], "by_name": {"a/b": LEAF, "c": "d"}, "anything": [None]}


@pytest.mark.parametrize("file", SCHEMAS)
def test_a_committed_schema_is_the_one_of_its_typeddict(file: str, request: pytest.FixtureRequest) -> None:
    text = records.to_text(schema_of(SCHEMAS[file]))
    package, _, rest = file.partition("/")
    path = folder_of(package) / rest
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, f"{file}: --update-golden writes it, then read the diff"
    jsonschema.Draft202012Validator.check_schema(schema_of(SCHEMAS[file]))


@pytest.mark.wheel
def test_every_schema_belongs_to_a_record() -> None:
    found = {
        f"{package}/{path.relative_to(folder_of(package)).as_posix()}"
        for package in ("board", "bench", "cli", "exporters", "kernels", "models", "profiles")
        for path in folder_of(package).rglob("*.schema.json")
    }
    assert found == SCHEMAS.keys() | BY_HAND


def open_objects(schema: Mapping[str, Any], pointer: str = "") -> Iterator[str]:
    """Every part of a schema that takes any value, or a key of any value."""
    if not schema or (schema.get("type") == "object" and schema.get("additionalProperties", True) in ({}, True)):
        yield pointer
    for group in ("properties", "$defs"):
        for key, inner in schema.get(group, {}).items():
            yield from open_objects(inner, f"{pointer}/{key}")
    for key in ("additionalProperties", "items"):
        if isinstance(schema.get(key), dict):
            yield from open_objects(schema[key], f"{pointer}/{key}")
    for group in ("anyOf", "prefixItems"):
        for i, inner in enumerate(schema.get(group, ())):
            yield from open_objects(inner, f"{pointer}/{group}/{i}")


@pytest.mark.parametrize("file", SCHEMAS)
def test_no_record_has_an_object_of_any_kind(file: str) -> None:
    assert not list(open_objects(schema_of(SCHEMAS[file])))


def test_an_object_of_any_kind_is_found() -> None:
    assert list(open_objects(schema_of(Tree))) == ["/anything"]


def test_a_schema_says_what_the_typeddict_says() -> None:
    schema = schema_of(Tree)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"] == "edgesmith tree"
    assert schema["description"] == "A record of this test."
    assert schema["required"] == ["schema", "share", "leaves", "by_name", "anything"]
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {
        "schema": {"enum": [1, 2]},
        "share": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]},
        "leaves": {"type": "array", "items": {"$ref": "#/$defs/Leaf"}},
        "by_name": {
            "type": "object",
            "additionalProperties": {"anyOf": [{"$ref": "#/$defs/Leaf"}, {"type": "string"}]},
        },
        "anything": {},
        "again": {"type": "array", "items": {"$ref": "#"}},
    }
    end = {"type": ["number", "null"], "description": "of an interval, in milliseconds."}
    pair = {"type": "array", "prefixItems": [{"type": "integer"}] * 2, "minItems": 2, "maxItems": 2}
    assert schema["$defs"] == {
        "Leaf": {
            "description": "A part that is nested.",
            "type": "object",
            "additionalProperties": False,
            "required": ["low", "high", "shape", "kind"],
            "properties": {
                "low": end,
                "high": end,
                "shape": pair,
                "kind": {"enum": ["a", "b"]},
                "inner": {"$ref": "#/$defs/Leaf"},
            },
        }
    }


def test_a_sound_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tree.json"
    records.write({**TREE, "again": [TREE]}, path, "tree")
    assert records.read_record(path, schema_of(Tree), "tree") == {**TREE, "again": [TREE]}
    assert records.read_record(json.dumps(TREE).encode(), schema_of(Tree), "tree") == TREE
    assert [one.name for one in path.parent.iterdir()] == ["tree.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 3}, "has schema 3, and this edgesmith reads 1 and 2"),
        ({"share": 2}, "is no sound tree: at /share, 2 "),
        ({"leaves": [LEAF, {**LEAF, "shape": [1, 2, 3]}]}, "at /leaves/1/shape, "),
        ({"leaves": [{**LEAF, "kind": "c"}]}, "at /leaves/0/kind, 'c' is not one of"),
        ({"by_name": {"a/b": {**LEAF, "low": "x"}}}, "at /by_name/a~1b"),
        ({"mood": "good"}, "at the top, Additional properties"),
        ({"again": [{}]}, "at /again/0, 'schema' is a required property"),
        ({"anything": float("nan")}, "it holds NaN, and numbers are finite"),
    ],
)
def test_a_record_that_is_not_sound_is_one_sentence_with_the_place(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "tree.json"
    path.write_text(json.dumps({**TREE, **change}))
    with pytest.raises(BadInput) as caught:
        records.read_record(path, schema_of(Tree), "tree", advice="grow another")
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "grow another" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "x.json is damaged or no tree: Expecting property name"),
        (b"\xff\xfe", "x.json is no tree: it is no text"),
        (b"[]", "x.json is no tree: it holds no object"),
        (b"{}", "x.json is no tree: it names no schema"),
        (b"[" * 100_000, "x.json is no tree: it is nested too deeply"),
    ],
)
def test_what_is_no_record_is_one_sentence(content: bytes, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        records.read_record(content, schema_of(Tree), "tree", name="x.json")
    assert str(caught.value).startswith(said)


def test_a_file_that_is_not_there_or_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read the tree .*none\.json: No such file"):
        records.read_record(tmp_path / "none.json", schema_of(Tree), "tree")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the tree"):
        records.write(TREE, tmp_path / "file" / "tree.json", "tree")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write the tree"):
        records.write(TREE, tmp_path / "folder", "tree")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_a_type_that_json_does_not_have_is_refused() -> None:
    class Odd(TypedDict):
        """Odd."""

        when: set[int]

    class Partial(TypedDict, total=False):
        """Partial."""

        when: int

    with pytest.raises(TypeError, match="JSON has nothing for"):
        schema_of(Odd)
    with pytest.raises(TypeError, match="mark what may be missing as NotRequired"):
        schema_of(Partial)


# records of before

OLD = Path(__file__).parent / "fixtures" / "records"
"""Written by edgesmith 0.1.0: a record of `bench` before there was energy (schema 1) and with it (2), a profile (1)."""


def test_a_measurement_of_the_old_schema_is_read_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads((OLD / "bench-1.json").read_text())["schema"] == 1
    found = measurement.read(OLD / "bench-1.json")
    assert [subject.name for subject in found.subjects] == ["base", "head"]
    assert (found.subjects[0].energy, found.subjects[0].compute_units) == (None, None)
    assert len(found.launches) == 8
    assert cli.run(["compare", str(OLD / "bench-1.json"), "--json"]) == SLOWER_CODE
    (verdict,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert verdict["verdict"] == "slower"
    assert verdict["ratio"]["value"] == pytest.approx(1.201, abs=1e-3)


def test_a_measurement_with_energy_and_a_profile_is_read(tmp_path: Path) -> None:
    found = measurement.read(OLD / "bench-2.json")
    first = found.subjects[0]
    assert first.compute_units == "CPU_AND_NE"
    assert first.energy is not None
    assert first.energy.joules == pytest.approx(0.13)
    assert first.profile is not None
    assert [one.module for one in first.profile.operators] == ["a", None]
    measurement.write(found, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (OLD / "bench-2.json").read_bytes()


def test_a_profile_of_the_old_schema_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    found = measured.read(OLD / "profile-1.json")
    assert found.model == "casvit_xs"
    assert found.latency_ms(50).value == pytest.approx(5.0, rel=0.01)
    assert measured.write(found, tmp_path).read_bytes() == (OLD / "profile-1.json").read_bytes()
    (kept, _) = measured.condense(measurement.read(OLD / "bench-1.json"))
    assert kept == found
