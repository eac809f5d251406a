"""Foreign text where it is shown, and foreign words in paths: nothing moves a cursor, breaks a table, or leads out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.fuzzing import make_record
from support.manifests import smallest_manifest

from edgesmith.bench import measured, measurement
from edgesmith.bench.announce import junit, markdown
from edgesmith.bench.report.page import write_report
from edgesmith.bench.transport import Address
from edgesmith.bench.transport import remote as remotes
from edgesmith.bench.transport.remote import SHELL, Remote
from edgesmith.bench.verdict import SLOWER, Verdict
from edgesmith.errors import BackendMissing, BadInput, DeviceFailed, EdgesmithError
from edgesmith.exporters import artifact as artifacts
from edgesmith.paths import path_below, path_listed
from edgesmith.show import LONGEST, in_html, in_json, in_markdown, in_terminal, in_xml

HOSTILE = (
    "\x1b[2J\x1b[1;1H",  # clears the screen
    "\x1b]0;owned\x07",  # sets the title
    "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",  # a link
    "\x9b31m",  # CSI in one character
    "good\rbad",
    "a\nedgesmith: done",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u200bzero\ufeffwidth",
    "\u2028line",
    "\ud800",
    "\x00",
    "\x7f",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_visible_character_is_an_escape(text: str) -> None:
    for shown in (in_terminal(text), in_markdown(text), in_xml(text)):
        assert shown.isprintable()
        assert shown.encode()  # a terminal takes UTF-8
    ElementTree.fromstring(ElementTree.tostring(element(in_xml(text))))
    assert "\x1b" not in in_html(text)
    dumped = json.dumps({"a": text}, ensure_ascii=False)
    assert json.loads(in_json(dumped)) == {"a": text}
    assert all(one.isprintable() for one in in_json(dumped))


def element(text: str) -> ElementTree.Element:
    made = ElementTree.Element("case", name=text)
    made.text = text
    return made


def test_plain_text_is_shown_as_it_is() -> None:
    for text in ("casvit_xs-coreml-fp16", "3.120 (3.101 to 3.150)", "Grüße, 東京, ±2 µs", "a_b c_d"):
        assert in_terminal(text) == in_html(text) == in_xml(text) == text
        assert in_markdown(text) == text
    assert in_terminal("a\nb", lines=True) == "a\nb"


def test_a_long_text_loses_its_middle() -> None:
    shown = in_terminal("first" + "x" * 100_000 + "last")
    assert len(shown) < LONGEST + 100
    assert shown.startswith("first")
    assert shown.endswith("last")
    assert "98009 characters left out" in shown


@pytest.mark.parametrize(
    "text",
    ["a|b", "a\n| x | y |", "[x](http://evil)", "<img src=x>", "`x`", "@everyone", "**x**", "_x_", "http://evil"],
)
def test_markdown_keeps_one_cell_and_makes_nothing_of_it(text: str) -> None:
    shown = in_markdown(text)
    assert "\n" not in shown
    bare = re.sub(r"\\.", "", shown)
    assert not set(bare) & set("|[]<>`*@")
    assert not re.search(r"(?<!\w)_|_(?!\w)", bare)
    assert "://" not in bare


# The commands


def record_with(folder: Path, **device: str) -> Path:
    make_record(folder)
    path = folder / "record.json"
    content = json.loads(path.read_text())
    content["device"] |= device
    content["subjects"][0]["name"] = "".join(device.values())
    path.write_text(json.dumps(content))
    return path


EVIL = "\x1b]0;owned\x07|<script>alert(1)</script>\u202e\n# heading"


@pytest.mark.parametrize(
    "name", ["../../outside", "/tmp/outside", "..", ".", "", "a/b", "a\\b", "a\x1b[2J", "a\u202eb", "x" * 300, "C:x"]
)
def test_a_profile_is_kept_below_its_folder_or_not_at_all(
    name: str, tmp_path: Path, edgesmith: Callable[..., Any]
) -> None:
    (tmp_path / "in").mkdir()
    before = sorted(tmp_path.rglob("*"))
    path = record_with(tmp_path / "in", name=name)
    done = edgesmith("profile", str(path), "--folder", str(tmp_path / "in" / "kept"))
    assert done.returncode == BadInput.exit_code
    assert "is no name of a file or folder below" in " ".join(done.stderr.split())
    path.unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_profile_of_a_model_that_leads_out_is_not_kept(tmp_path: Path) -> None:
    make_record(tmp_path)
    text = (tmp_path / "record.json").read_text().replace('"model": "small"', '"model": "../../../outside"')
    (tmp_path / "record.json").write_text(text)
    (one,) = measured.condense(measurement.read(tmp_path / "record.json"))
    with pytest.raises(BadInput, match="is no name of a file"):
        measured.write(one, tmp_path / "kept")


def test_a_link_does_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "host").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="leads out of"):
        path_below(tmp_path / "kept", "host", "a.json")
    assert path_listed(tmp_path, "a/b") == tmp_path / "a" / "b"


def test_commands_show_records_with_hostile_names(tmp_path: Path, edgesmith: Callable[..., Any]) -> None:
    path = record_with(tmp_path, name="host", cpu=EVIL, system=EVIL)
    folder, history = tmp_path / "kept", tmp_path / "history.sqlite"
    for command in (
        ("profile", str(path), "--folder", str(folder)),
        ("profile", "--folder", str(folder), "--markdown"),
        ("profile", "--folder", str(folder), "--json"),
        ("history", "add", str(path), "--file", str(history)),
        ("history", "--file", str(history)),
        ("profile", "--folder", EVIL),
        ("inspect", EVIL),
    ):
        done = edgesmith(*command)
        assert not set(done.stdout + done.stderr) & set("\x1b\x07\u202e"), command
        assert "a bug in edgesmith" not in done.stderr, command
    rows = edgesmith("profile", "--folder", str(folder), "--markdown").stdout.splitlines()
    assert [row.replace("\\|", "").count("|") for row in rows[:3]] == [11, 11, 11]
    assert not [row for row in rows if row.startswith("#")]


def test_the_pull_request_and_the_junit_file_hold(tmp_path: Path) -> None:
    made = measurement.read(record_with(tmp_path, name=EVIL))
    verdict = Verdict(base=EVIL, head=EVIL, verdict=SLOWER, reason=EVIL + "\x0b\ufffe", **rest_of(Verdict))
    table = markdown([verdict], made, 0.05, 0.99).splitlines()
    assert re.sub(r"\\\|", "", table[2]).count("|") == 7
    assert not [line for line in table if line.startswith("#")]
    suite = ElementTree.fromstring(junit([verdict]).encode())
    (case,) = suite
    assert case.find("failure") is not None


def rest_of(kind: Any) -> dict[str, Any]:
    """Return None for each field that has no default but those of the test above."""
    given = {"base", "head", "verdict", "reason"}
    return {name: None for name in kind.__dataclass_fields__ if name not in given}


def test_a_report_lists_what_it_cannot_read_and_escapes_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "below"
    folder.mkdir()
    record_with(folder, name=EVIL)
    for i, text in enumerate(("[" * 100_000, '{"launches": [], "subjects": ' + "9" * 6000 + "}", '"\\ud800"', "\x00")):
        (folder / f"damaged{i}.json").write_text(text)
    made = json.loads((folder / "record.json").read_text())
    for name, ms in (("tiny", 1e-320), ("vast", 1e308)):
        made["launches"][0]["slots"][0]["samples_ms"] = [ms]
        (folder / f"{name}.json").write_text(json.dumps(made))
    made["threads"] = 2**63
    (folder / "threads.json").write_text(json.dumps(made))
    (folder / "odd\x1b[2J.json").write_text("[" * 100_000)
    broken = folder / "artifact"
    broken.mkdir()
    (broken / "manifest.json").write_text(json.dumps(smallest_manifest(file="../../x")))
    found = write_report(folder, tmp_path / "report.html")
    assert len(found.unread) >= 9
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert not set(page) & set("\x1b\x07\u202e\x00")


def test_an_artifact_with_hostile_words_is_shown(tmp_path: Path, edgesmith: Callable[..., Any]) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(b"x")
    manifest = smallest_manifest(precision=EVIL)
    manifest["model"]["name"] = EVIL
    artifacts.write_manifest(folder, manifest)  # type: ignore[arg-type]  # a manifest
    for command in (("verify", str(folder)), ("estimate", str(folder), "--device", "rpi5"), ("bench", str(folder))):
        done = edgesmith(*command)
        assert not set(done.stdout + done.stderr) & set("\x1b\x07\u202e"), command


# Boards


class Here(Remote):
    """This machine as a far device, whose Python is whatever a script says."""

    def _connection(self) -> list[str]:
        return ["sh", "-c", SHELL]

    _channel = _connection

    def _why(self, said: Sequence[str]) -> EdgesmithError:
        return DeviceFailed(f"no way: {said}")


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("echo banana", DeviceFailed, "'banana', which is no version"),
        ("echo 3.9999999", DeviceFailed, "which is no version"),
        ("printf '\\033[2J3.8'", DeviceFailed, "which is no version"),
        ("echo 2.7", BackendMissing, "3.8 or later is needed"),
        ("exit 5", BackendMissing, "does not start"),
        ("exec sleep 100", DeviceFailed, "did not answer within 1 s"),
        ("exec yes 3.8", DeviceFailed, "wrote more than 1"),
        ("exec tr '\\0' x </dev/zero", DeviceFailed, "wrote more than 1"),
    ],
)
def test_a_board_that_answers_nonsense_or_nothing_or_without_end(
    script: str, kind: type[EdgesmithError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(Remote.ask, "__defaults__", (1 if "sleep" in script else 60,))
    device = Here(Address("ssh", "board", python=str(python), folder=str(tmp_path)))
    try:
        with pytest.raises(kind, match=said) as caught:
            device.open()
    finally:
        device.close()
    assert len(in_terminal(str(caught.value))) < 400


def test_a_board_that_says_nothing_after_the_login_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes, "ANSWER_S", 0.5)
    monkeypatch.setattr(Here, "_connection", lambda self: ["sleep", "100"])
    device = Here(Address("ssh", "board"))
    with pytest.raises(DeviceFailed, match=r"did not answer within 0\.5 s of the login"):
        device.open()
    device.close()
