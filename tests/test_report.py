"""The page: what it finds, what it shows, and how a browser takes it."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_bench import noisy, recorded

from edgesmith import cli
from edgesmith.bench import history, measurement
from edgesmith.bench.estimation import estimate
from edgesmith.bench.estimation.estimate import Estimate
from edgesmith.bench.measurement import Measurement, Operator, Profile
from edgesmith.bench.report import figures
from edgesmith.bench.report.answers import Origin, origin_of
from edgesmith.bench.report.page import VIEWERS, Found, find, write_report
from edgesmith.errors import BadInput, OutputError
from edgesmith.exporters.artifact import Artifact

HOSTILE = '<script>alert("&amp;")</script>'


@dataclass(frozen=True)
class Made:
    """A folder with something of everything, and the anchors of the figures that its page must have.

    devices: that its artifacts are estimated for; saved: the estimate that lies in it.
    """

    folder: Path
    figures: tuple[str, ...]
    saved: Estimate
    devices: tuple[str, ...] = ("iphone13", "jetson-orin-nano", "rtx3080", "iphone13")

    def write(self, out: Path) -> Found:
        return write_report(self.folder, out, self.devices)


def measured(artifact: Artifact) -> Measurement:
    """A record of an artifact, of a model with a published accuracy, and of a file with a hostile name."""
    record = noisy(1.2)
    operators = (
        Operator("a/Conv_0", "Conv", "conv2d", "a.0", 1.25),
        Operator("ReorderInput_token_1", "ReorderInput", None, None, 0.25),
        Operator("b/Mul_1", "Mul", HOSTILE, "b." + "long_name_of_a_module." * 9, 0.5),
    )
    first = replace(record.subjects[0], name=artifact.path.name, sha256=artifact.digest)
    first = replace(first, profile=Profile(5, 2.5, operators))
    names = [replace(record.subjects[1], name="casvit_xs-onnx-fp32", model="casvit_xs")]
    names += [replace(names[0], name=HOSTILE, model="casvit_t", sha256="f" * 64)]
    launches = tuple(
        replace(
            launch,
            warm=(*launch.warm, launch.warm[0]),
            slots=(*launch.slots, *(replace(slot, subject=2) for slot in launch.slots if slot.subject == 0)),
        )
        for launch in record.launches
    )
    return replace(record, subjects=(first, *names), launches=launches)


@pytest.fixture
def made(export_small: Callable[..., Artifact], tmp_path: Path) -> Made:
    folder = tmp_path / "everything"
    for target in ("onnx", "coreml"):
        artifact = export_small(target)
        shutil.copytree(artifact.path, folder / "artifacts" / artifact.path.name)
        if target == "onnx":
            measurement.write(measured(artifact), folder / "measurements" / "record.json")
    for day in range(1, 13):
        record = recorded([[5.0 + 0.01 * (day % 3) + (day > 7)] * 3] * 6, started=f"2026-01-{day:02d}")
        measurement.write(record, tmp_path / "day.json")
        history.add(folder / "history.sqlite", tmp_path / "day.json")
    computed = estimate.estimate(folder / "artifacts" / artifact.path.name, "iphone13")
    costliest = (replace(computed.costliest[0], module=HOSTILE), *computed.costliest[1:])
    saved = replace(computed, p50_ms=1.25 * computed.p50_ms, costliest=costliest)
    for name, one in (("of-another-version", saved), ("the-same", computed)):
        (folder / f"{name}.json").write_text(json.dumps(one.as_json()))
    (folder / "cut.json").write_text('{"schema": 1, "laun')
    (folder / "later.json").write_text('{"schema": "edgesmith.estimate.2"}')
    (folder / "settings.json").write_text('{"theirs": true}')
    samples = tuple(f"{kind}-1-{i}" for i in range(3) for kind in ("samples", "launches"))
    return Made(folder, ("strip-1", "error-0", "accuracy-1", "estimated-error-0", *samples, "history-1-1"), saved)


class Outline(HTMLParser):
    """Tags that are open, identifiers, and heading levels of a page; strict about what is closed."""

    void = frozenset({"meta", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.levels: list[int] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.fetched: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        named = [value or "" for name, value in attrs if name in ("href", "src")]
        self.addresses += named
        self.fetched += [] if tag == "a" else named  # the others wait for a click
        if tag in ("h1", "h2", "h3", "h4"):
            self.levels.append(int(tag[1]))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()


@pytest.mark.wheel
def test_the_page_shows_what_the_folder_holds_and_brings_nothing_from_elsewhere(made: Made, tmp_path: Path) -> None:
    found = made.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert [name for name, _ in found.unread] == ["cut.json", "later.json"]
    assert "settings.json" not in page
    assert "script" not in outline.tags
    assert all(address.startswith(("#", "data:")) for address in outline.fetched)
    elsewhere = {address for address in outline.addresses if not address.startswith(("#", "data:"))}
    assert elsewhere == set(VIEWERS.values())
    assert len(outline.ids) == len(set(outline.ids))
    assert {address[1:] for address in outline.addresses if address.startswith("#")} <= set(outline.ids)
    assert outline.levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(outline.levels, outline.levels[1:], strict=False))
    assert {name for name in outline.ids if name in made.figures} == set(made.figures)
    sections = ("artifacts", "tradeoffs", "devices", "estimates", "operators", "samples", "history", "rewrites")
    assert {*sections, "checks", "lint", "unread"} <= set(outline.ids)
    for said in ("fuse_additive_attention 4", "singleton-last-axis", "+20.0%", "ONNX Runtime, CPU", "Measured on host"):
        assert said in page, said
    assert "&lt;script&gt;alert(&#34;&amp;amp;&#34;)&lt;/script&gt;" in page


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(made: Made, tmp_path: Path) -> None:
    made.write(tmp_path / "one.html")
    moved = shutil.copytree(made.folder, tmp_path / "another" / "place")
    replace(made, folder=moved).write(tmp_path / "other.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()


class Tables(HTMLParser):
    """Every table of a page: the section that it is in, its caption, its columns, and the words of its rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.section = ""
        self.found: list[tuple[str, str, list[str], list[list[str]]]] = []
        self.at: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        elif tag == "table":
            self.found.append((self.section, "", [], []))
        elif tag == "tr" and "tbody" in self.at:
            self.found[-1][3].append([])
        elif tag in ("th", "td"):
            (self.found[-1][3][-1] if "tbody" in self.at else self.found[-1][2]).append("")

    def handle_endtag(self, tag: str) -> None:
        while self.at.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "caption" in self.at:
            section, caption, columns, rows = self.found[-1]
            self.found[-1] = (section, caption + data, columns, rows)
        elif "th" in self.at or "td" in self.at:
            cells = self.found[-1][3][-1] if "tbody" in self.at else self.found[-1][2]
            cells[-1] += data


@pytest.mark.wheel
def test_estimates_stand_apart_from_measurements_and_say_what_they_are(made: Made, tmp_path: Path) -> None:
    made.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    tables = Tables(page).found
    said = [(section, caption) for section, caption, _, _ in tables]
    assert all(
        ("ESTIMATED " in caption) == (section == "estimates") for section, caption in said if "Not" not in caption
    )
    assert not any(
        "measured" in word.lower() for s, c, columns, _ in tables if s == "estimates" for word in (c, *columns)
    )

    (table,) = [one for one in tables if one[1] == "ESTIMATED iPhone 13, estimated"]
    assert table[2][:3] == ["artifact", "p50, ms", "80% interval, ms"]
    rows = {(row[0], row[-1]): row for row in table[3]}
    coreml, onnx = (f"artifacts/{path.name}" for path in sorted((made.folder / "artifacts").iterdir()))
    low, high = made.saved.interval_ms
    assert rows[coreml, "this page"][1] == f"{made.saved.p50_ms / 1.25:.2f}"
    assert rows[coreml, "of-another-version.json"][1:3] == [f"{made.saved.p50_ms:.2f}", f"{low:.2f} to {high:.2f}"]
    reason = next(row for row in table[3] if row[0] == onnx)
    assert reason[1].startswith(
        "not estimated: estimates for iPhone 13 are for target coreml, this artifact is for onnx"
    )
    assert len(table[3]) == 3  # what says the same as the page is not shown twice

    (costliest,) = [one for one in tables if one[1].startswith("ESTIMATED Operators that cost most on iPhone 13")]
    assert [row[0] for row in costliest[3]] == [coreml] * 6
    assert [row[1] for row in costliest[3][:3]] == [cost.type for cost in made.saved.costliest]
    assert costliest[3][3][2] == HOSTILE
    assert made.saved.left_out.sentence() in page

    refused = {caption: rows for _, caption, _, rows in tables if caption.startswith("Not estimated for ")}
    assert list(refused) == ["Not estimated for Jetson Orin Nano"]
    assert "are for target onnx" in refused["Not estimated for Jetson Orin Nano"][0][1]
    assert "this artifact is in fp32" in refused["Not estimated for Jetson Orin Nano"][1][1]
    assert "<p>No artifact is estimated: no estimate for GeForce RTX 3080: no latencies of such a device" in page
    assert "later.json has schema &#39;edgesmith.estimate.2&#39;, and this edgesmith reads edgesmith.estimate.1" in page


def test_a_page_of_a_saved_estimate_alone_names_the_artifact_by_what_it_says(made: Made, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(made.folder / "of-another-version.json", tmp_path / "in" / "one.json")
    write_report(tmp_path / "in", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{made.saved.model}, fp16, not in this folder" in page
    assert "<p>1 estimate</p>" in page


def test_the_costliest_operators_of_many_artifacts_unfold(made: Made, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(8):
        one = replace(made.saved, model=f"model_{i}", sha256=f"{i:064x}")
        (tmp_path / "in" / f"{i}.json").write_text(json.dumps(one.as_json()))
    write_report(tmp_path / "in", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    folded = page.split("<summary>ESTIMATED: the operators that cost most</summary>")[1]
    assert "<caption><strong" in folded.split("</details>")[0]
    tables = [rows for _, caption, _, rows in Tables(page).found if caption.startswith("ESTIMATED ")]
    assert [len(rows) for rows in tables] == [8, 24]


def test_estimates_that_cannot_be_asked_for_are_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measurement.write(noisy(1.0), tmp_path / "in" / "record.json")
    for device, sentence in (
        ("iphone99", "unknown device 'iphone99'. Nearest: iphone"),
        ("iphone15", "nothing to estimate below"),
    ):
        assert cli.run(["report", str(tmp_path / "in"), "--estimate", device, "-o", str(tmp_path / "report.html")]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_what_cannot_be_reported_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="no folder"):
        find(tmp_path / "none")
    with pytest.raises(BadInput, match="nothing to report"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    measurement.write(noisy(1.0), tmp_path / "record.json")
    with pytest.raises(OutputError, match="cannot write the report"):
        write_report(tmp_path, tmp_path / "record.json" / "report.html")
    (tmp_path / "manifest.json").write_text("{}")
    assert cli.run(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 2
    assert "nothing to report" in capsys.readouterr().err  # a folder with a manifest is an artifact, and only that


def test_the_command_names_what_it_could_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measurement.write(noisy(1.0), tmp_path / "in" / "record.json")
    sqlite3.connect(tmp_path / "in" / "other.sqlite").execute("CREATE TABLE a (b)").connection.close()
    assert cli.run(["report", str(tmp_path / "in"), "-o", str(tmp_path / "report.html")]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "report.html")
    assert "other.sqlite: other.sqlite is no history" in shown.err


def test_an_interrupted_record_and_equal_samples_have_a_page(tmp_path: Path) -> None:
    measurement.write(replace(noisy(1.0), launches=(), complete=False), tmp_path / "empty.json")
    measurement.write(recorded([[5.0] * 3] * 6), tmp_path / "equal.json")
    write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0, interrupted" in page
    assert "samples-2-0" in Outline(page).ids


def test_only_an_artifact_s_own_record_is_looked_for_beside_its_manifest(tmp_path: Path) -> None:
    built = tmp_path / "kit-built"
    for name in ("measurement.json", "layers.json", "deeper/record.json"):
        measurement.write(noisy(1.0), built / name)
    (built / "manifest.json").write_text("{}")
    found = find(tmp_path)
    assert [name for name, _ in found.records] == ["kit-built/measurement.json"]
    assert [name for name, _ in found.unread] == ["kit-built/manifest.json"]


@pytest.mark.parametrize(
    ("low", "high", "is_log", "expected"),
    [
        (0.0, 10.0, False, [0, 2, 4, 6, 8, 10]),
        (19.3, 27.9, False, [20, 22, 24, 26]),
        (1e-7, 1e-3, True, [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]),
        (4.0, 30.0, True, [5, 10, 20]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low: float, high: float, is_log: bool, expected: list[float]) -> None:
    assert figures.Axis("", low, high, is_log).ticks == pytest.approx(expected)


# in a browser

CONTRAST = """
() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    if (element.matches("svg .on-mark")) return parse(getComputedStyle(element.previousElementSibling).fill);
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.matches("title, desc, style, .skip, .unseen") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = light(parse(element.matches("svg text") ? style.fill : style.color));
    const paper = light(behind(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) found.push([element.tagName, element.textContent.slice(0, 30), ratio]);
  }
  return found;
}
"""

OUTSIDE = """
() => [...document.querySelectorAll("figure svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map((text) => text.textContent);
})
"""

OVERLAPPING = """
() => [...document.querySelectorAll("figure svg")].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.35 * Math.min(a.height, b.height)
  ).map(([other]) => `${one} over ${other}`));
})
"""

FIRST = """
() => [...document.querySelectorAll("h1, .answers dd strong, #strip-1 svg")].map((element) => {
  const box = element.getBoundingClientRect();
  return [element.tagName, box.bottom <= innerHeight];
})
"""

UNNAMED = """
() => [...document.querySelectorAll("svg[role=img], figure, section, [role=region]")].filter((element) => {
  const names = (element.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
  const said = names.map((name) => (document.getElementById(name) || {textContent: ""}).textContent.trim());
  return !(element.getAttribute("aria-label") || (said.length && said.every(Boolean)));
}).map((element) => element.outerHTML.slice(0, 80))
"""


WIDER_THAN_ITS_ROOM = """[...document.querySelectorAll(".scroll")]
    .filter(region => region.clientWidth && region.scrollWidth > region.clientWidth + 1)
    .map(region => region.getAttribute("aria-label") + ": " + region.scrollWidth + " of " + region.clientWidth)"""
"""Tables of which a part is seen only when they are scrolled."""

CUT_OFF = """
[...document.querySelectorAll('.percent')].filter((element) =>
  element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
).map((element) => element.parentElement.textContent)
"""
"""Figures beside bars that stand beyond the right edge, where a narrow screen shows nothing of them."""


BROKEN = """
[...document.querySelectorAll(".number")].filter((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1;
}).map((cell) => cell.textContent)
"""
"""Numbers that stand on more than one line."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: the page is not opened in a browser")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: extra dev")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


def test_a_browser_shows_the_page_on_a_phone_and_a_desk_in_light_and_dark(
    browser: Any, made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    made.write(out)
    papers = set()
    for width in (390, 1440):
        for scheme in ("light", "dark"):
            where = f"{width} px, {scheme}"
            page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
            said: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(out.as_uri())
            for unfolded in (False, True):
                page.evaluate("open => document.querySelectorAll('details').forEach(d => d.open = open)", unfolded)
                wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
                assert wide[0] <= wide[1], f"{where}: scrolls sideways, unfolded: {unfolded}"
                assert page.evaluate(CONTRAST) == [], where
                assert page.evaluate(WIDER_THAN_ITS_ROOM) == [], f"{where}, unfolded: {unfolded}"
            shown = page.evaluate("[...document.querySelectorAll('figure')].map(f => f.id)")
            assert tuple(shown) == made.figures, where
            sizes = page.evaluate(
                "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
            )
            assert len(sizes) == len(made.figures)
            assert min(sizes) > 150, where
            assert page.evaluate("[...document.querySelectorAll('figure')].every(f => f.querySelector('table'))")
            assert page.evaluate(OUTSIDE) == [], where
            assert page.evaluate(OVERLAPPING) == [], where
            assert page.evaluate(UNNAMED) == [], where
            assert page.evaluate(CUT_OFF) == [], where
            assert said == [], where
            assert asked == [out.as_uri()], where
            papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.close()
    assert len(papers) == 2  # a light one and a dark one


def test_the_page_is_read_with_the_keyboard(browser: Any, made: Made, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    made.write(out)
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(out.as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # seen once it has the focus
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.evaluate("[...document.querySelectorAll('[tabindex]')].every(e => e.tabIndex <= 0)")
    visited = []
    for _ in range(6):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY"))
    assert visited == sorted(visited)  # from top to bottom
    first = page.locator("figure summary").first
    first.focus()
    page.keyboard.press("Enter")
    assert first.evaluate("summary => summary.parentElement.open")
    page.close()


FONTS = ("DejaVu Sans", "DejaVu Sans Condensed", "DejaVu Serif", "DejaVu Sans Mono", "Liberation Sans", "Noto Sans")
"""Of widths and heights that differ by a fifth; what is not on a machine is shown in what it has."""


def test_labels_stay_in_their_figures_whatever_fonts_there_are(browser: Any, made: Made, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    made.write(out)
    page = browser.new_page(viewport={"width": 1440, "height": 844})
    page.goto(out.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for font in FONTS:
        page.add_style_tag(content=f"svg text {{ font-family: '{font}', sans-serif }}")
        assert page.evaluate(OUTSIDE) == [], font
        assert page.evaluate(OVERLAPPING) == [], font
    page.close()


def test_the_first_screen_answers(browser: Any, made: Made, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    made.write(out)
    page = browser.new_page(viewport={"width": 1440, "height": 844})
    page.goto(out.as_uri())
    shown = page.evaluate(FIRST)
    assert [tag for tag, _ in shown] == ["H1", "STRONG", "STRONG", "STRONG", "svg"]
    assert all(is_seen for _, is_seen in shown)
    answers = page.evaluate("[...document.querySelectorAll('.answers div')].map(one => one.innerText)")
    assert [one.split("\n")[0] for one in answers] == ["Passed", "Slower", "Changed"]
    assert "yes all 2 hold to PyTorch" in answers[0].replace("\n", " ")
    page.close()


def test_five_artifacts_print_on_three_pages(browser: Any, made: Made, tmp_path: Path) -> None:
    names = sorted(path.name for path in (made.folder / "artifacts").iterdir())
    for i in range(3):
        shutil.copytree(made.folder / "artifacts" / names[0], made.folder / "artifacts" / f"{names[0]}-{i}")
    out = tmp_path / "report.html"
    write_report(made.folder, out)
    page = browser.new_page()
    page.goto(out.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("getComputedStyle(document.querySelector('.bar')).printColorAdjust") == "exact"
    printed = page.pdf(format="A4", prefer_css_page_size=True)
    assert 1 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 3
    page.close()


def test_axe_finds_nothing(browser: Any, made: Made, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    out = tmp_path / "report.html"
    made.write(out)
    for width in (390, 1440):
        context = browser.new_context(viewport={"width": width, "height": 844}, bypass_csp=True)
        page = context.new_page()
        page.goto(out.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        context.close()


def test_figures_bring_their_data_as_files(made: Made, tmp_path: Path) -> None:
    made.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    files = dict(re.findall(r'<a download="([^"]+)" href="data:[^,]+;base64,([^"]+)"', page))
    (times,) = (json.loads(base64.b64decode(files.pop(name))) for name in [*files] if name.endswith(".node_data.json"))
    assert {node: one["value"] for node, one in times["results"].items()} == {
        "a/Conv_0": 1.25,
        "ReorderInput_token_1": 0.25,
        "b/Mul_1": 0.5,
    }
    assert [one["stop"] for one in times["gradient"]] == [0, 1]
    assert '<a href="https://netron.app" rel="noreferrer">Netron</a>' in page
    assert {name.partition(".")[0] for name in files} == set(made.figures)
    rows = list(csv.reader(io.StringIO(base64.b64decode(files["samples-1-0.csv"]).decode())))
    assert rows[0] == ["launch", "ms"]
    assert len(rows) - 1 == sum(map(len, find(made.folder).records[0][1].samples(0)))
    (first, *_) = json.loads(base64.b64decode(files["strip-1.json"]))
    assert list(first) == ["artifact", "p50, ms", "p90, ms", "p99, ms"]


def test_marks_at_one_place_are_told_apart() -> None:
    spots = figures.spread([(200.0, 100.0)] * 6 + [(204.0, 101.0)])
    apart = [math.dist(a, b) for i, a in enumerate(spots) for b in spots[i + 1 :]]
    assert spots[0] == (200.0, 100.0)
    assert min(apart) >= 2 * figures.DISC


def test_a_page_names_the_checkout_that_its_files_lie_in(tmp_path: Path) -> None:
    (tmp_path / "project" / ".git" / "refs" / "heads").mkdir(parents=True)
    (tmp_path / "project" / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    folder = tmp_path / "project" / "measurements"
    measurement.write(noisy(1.2), folder / "record.json")
    assert origin_of(folder) == Origin("project", "")
    (tmp_path / "project" / ".git" / "packed-refs").write_text(f"{'a' * 40} refs/heads/main\n")
    write_report(folder, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<p>project, commit aaaaaaaaaaaa, measured 2026-01-01</p>" in page
    assert "<dt>Slower</dt><dd><strong>yes</strong>" in page
    (tmp_path / "project" / ".git" / "refs" / "heads" / "main").write_text("b" * 40)
    assert origin_of(folder).commit == "b" * 40
