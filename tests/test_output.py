"""Output for people: whole at any width, by snapshot and by a check that no word and no number is broken."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import shown as canned
from test_bench import noisy, recorded

from edgesmith import cli
from edgesmith.bench import history, measurement
from edgesmith.bench.measurement import Measurement, Operator, Profile
from edgesmith.bench.transport import attached
from edgesmith.cli import devices, doctor, layout, names
from edgesmith.cli.bench import _show_measurement as show_measurement
from edgesmith.cli.commands import COMMANDS, Imported
from edgesmith.cli.devices import _show_estimate as show_estimate
from edgesmith.cli.export import _checks_table as checks_table
from edgesmith.cli.export import _covered_table as covered_table
from edgesmith.cli.export import _operators_table as operators_table
from edgesmith.cli.export import _show_artifact as show_artifact
from edgesmith.cli.export import _show_rewrites as show_rewrites
from edgesmith.cli.peers import _show_model as show_contest
from edgesmith.cli.rows import artifact_rows
from edgesmith.cli.tables import LEAST_WIDTH, line_width, new_table, print_line, print_table, show_stage
from edgesmith.exporters.artifact import Artifact, read
from edgesmith.exporters.usage.source import LANGUAGES

HERE = Path(__file__).parent
OLD = "attention-coreml-mixed"
"""An artifact whose manifest is the same everywhere."""

RULE = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
STYLE = re.compile(r"\x1b\[\d*m")


class Stream(io.StringIO):
    """What a command prints to: a terminal, or a pipe."""

    encoding = "utf-8"  # type: ignore[assignment]  # a property of its base

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What something prints, at a width, on a terminal or not."""

    def capture(show: Callable[[], Any], columns: int | None, is_terminal: bool) -> str:
        stream = Stream(is_terminal)
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            if columns is None:
                patch.delenv("COLUMNS", raising=False)
            else:
                patch.setenv("COLUMNS", str(columns))
            show()
        return stream.getvalue()

    return capture


def words(text: str) -> list[str]:
    """The words of an output in their order of the alphabet, without what is drawn."""
    return sorted(word for word in STYLE.sub("", text).split() if set(word) != {RULE})


def values(text: str) -> set[str]:
    """Words, each once: blocks repeat the titles."""
    return set(words(text))


@dataclass(frozen=True)
class Shown:
    """A command, and what shows its output: the command itself, or, of what takes long, the part that shows."""

    name: str
    show: Callable[[], Any]


def profiled(record: Measurement) -> Measurement:
    operators = (
        Operator("a/Conv_0", "Conv", "conv2d", "network.0.0.attn.proj_with_a_long_name", 1.25),
        Operator("ReorderInput_token_1", "ReorderInput", None, None, 0.25),
    )
    first = replace(record.subjects[0], name="casvit_xs-onnx-fp32", profile=Profile(5, 2.5, operators))
    return replace(record, subjects=(first, replace(record.subjects[1], name="casvit_xs-onnx-int8")))


def explain() -> None:
    show_rewrites(canned.REPORTS)
    print_table(operators_table("casvit_xs", canned.CAPTURED, canned.REWRITTEN))
    print_table(covered_table("casvit_xs", canned.COVERED))


@pytest.fixture
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `devices` and `doctor` find on a machine, the same on every one."""
    rows = {one["target"]: one for one in canned.TARGETS}
    monkeypatch.setattr(attached, "attached", lambda: (canned.ATTACHED, ["adb does not answer"]))
    monkeypatch.setattr(devices, "shutil", SimpleNamespace(which=lambda program: None))
    monkeypatch.setattr(devices, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(devices, "platform", SimpleNamespace(system=lambda: "Linux", machine=lambda: "x86_64"))
    monkeypatch.setattr(doctor, "examine", lambda target: rows.get(target.name, rows["onnx"]))
    monkeypatch.setattr(doctor, "__version__", "1.2.3")
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version="3.11.7 (main)"))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_machine: None) -> list[Shown]:
    """Every command: what it shows of files that are the same on every machine, or of results that are kept here."""
    monkeypatch.chdir(tmp_path)
    measurement.write(profiled(noisy(1.2)), Path("record.json"))
    for day in range(1, 10):
        record = recorded([[5.0 + 0.01 * (day % 3) + (day > 5)] * 3] * 6, started=f"2026-01-{day:02d}")
        measurement.write(record, Path("day.json"))
        history.add(Path("history.sqlite"), Path("day.json"))
    old = read(HERE / "fixtures" / "schema_1" / OLD)
    old = replace(old, path=Path("artifacts") / old.path.name, file=Path("artifacts") / old.path.name / old.file.name)
    record = measurement.read(Path("record.json"))
    shutil.copytree(HERE / "fixtures" / "schema_1" / OLD, Path("kept") / OLD)
    return [
        Shown("export", lambda: show_artifact(old, as_json=False, is_verbose=False)),
        Shown("export --verbose", lambda: show_artifact(old, as_json=False, is_verbose=True)),
        Shown("verify", lambda: print_table(checks_table("casvit", old.manifest["verification"]["steps"]))),
        Shown("bench", lambda: show_measurement(record)),
        run("compare", "record.json"),
        run("profile", "record.json", "--folder", "profiles"),
        run("history", "--file", "history.sqlite"),
        run("operators", "softmax", "--target", "onnx"),
        run("inspect", str(HERE / "fixtures" / "inspector_10.json")),
        run("inspect", str(Path("kept") / OLD)),
        run("lint", str(Path("kept") / OLD)),
        run("use", str(Path("kept") / OLD)),
        run("report", "kept", "--out", "report.html"),
        run("lint", "--explain", "fp32-near-ties"),
        run("models"),
        run("targets"),
        run("targets", "--devices"),
        run("devices"),
        run("doctor"),
        Shown("explain --model casvit_xs --target tvm", explain),
        Shown("estimate --device iphone13", lambda: show_estimate(canned.ESTIMATE)),
        Shown(
            "peers casvit_xs", lambda: show_contest(canned.CONTEST, {"threads": 1, "device": {"cpu": "a processor"}})
        ),
        Shown("build-on ssh://orin", lambda: show_measurement(record)),
    ]


def run(*arguments: str) -> Shown:
    return Shown(" ".join(arguments), lambda: cli.run(list(arguments)))


FIRST = frozenset({"artifact", "model", "op", "module", "operator", "target", "device", "measured", "check"})
"""Titles of first columns, whose cells are the blocks' own titles."""


@pytest.mark.parametrize(("columns", "is_terminal"), [(80, False), (120, False), (80, True), (120, True)])
def test_commands_are_as_they_were_read(
    columns: int, is_terminal: bool, commands: list[Shown], shown: Any, golden: Callable[[str, str], None]
) -> None:
    said = []
    for one in commands:
        text = shown(one.show, columns, is_terminal)
        said.append(f"$ edgesmith {one.name}\n{STYLE.sub('', text)}")
    golden(f"output.{columns}.{'terminal' if is_terminal else 'pipe'}", "\n".join(said).replace(str(HERE), "tests"))


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_no_word_and_no_number_is_broken(columns: int, commands: list[Shown], shown: Any) -> None:
    for one in commands:
        for is_terminal in (False, True):
            wide, narrow = (values(shown(one.show, width, is_terminal)) for width in (2000, columns))
            assert narrow <= wide, one.name
            assert wide - narrow <= FIRST, one.name


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_longer_than_the_terminal_but_for_words_that_are(
    columns: int, commands: list[Shown], shown: Any
) -> None:
    for one in commands:
        if one.name.startswith("use"):  # programs, to be copied as they are
            continue
        for line in STYLE.sub("", shown(one.show, columns, True)).splitlines():
            assert len(line) <= columns or len(line.split()) <= 2, (one.name, line)


def test_every_command_is_among_them(commands: list[Shown]) -> None:
    assert {one.name.split()[0] for one in commands} == set(COMMANDS)


def test_a_broken_word_is_seen_by_this_check() -> None:
    """The check itself can fail: rich's own tables break words."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for _ in range(5):
        table.add_column("measured", overflow="fold")
    table.add_row(*["3.120 (3.101 to 3.150)"] * 5)
    stream = io.StringIO()
    Console(file=stream, width=40).print(table)
    assert {"measured", "(3.101"}.isdisjoint(values(stream.getvalue()))


@given(
    st.lists(st.lists(st.text("ab 1.\n", min_size=1, max_size=30), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(20, 200),
)
def test_every_table_keeps_its_words(rows: list[list[str]], width: int) -> None:
    drawn = "\n".join(layout.draw(("a", "bb", "ccc"), rows, width=width))
    expected = sorted(word for row in rows for cell in row for word in cell.split())
    found = sorted(drawn.split())
    for word in expected:
        found.remove(word)
    assert {word for word in found if set(word) != {"-"}} <= {"a", "bb", "ccc"}


@pytest.mark.parametrize(
    "cell", ["3.120 (3.101 to 3.150)", "1.2e-05", "12.5 MB", "-0.1 dB", "24 -> 12 -> 8", "99.9 %", "78.3 / 78.7 %"]
)
def test_a_number_stays_on_one_line(cell: str) -> None:
    assert layout.break_lines(cell, 5) == cell
    assert cell in layout.break_lines(f"about {cell}, as it was measured here", 12).replace("\n", " ")


def test_the_width_is_columns_then_the_terminals(shown: Any) -> None:
    widths: list[int] = []
    for columns, is_terminal in ((80, False), (None, False), (100, True), (3, False)):
        shown(lambda: widths.append(line_width()), columns, is_terminal)
    assert widths == [80, 120, 100, LEAST_WIDTH]


def test_a_pipe_gets_sentences_whole_and_no_colours(shown: Any) -> None:
    sentence = "head against base: slower: " + "a reason " * 30

    def show() -> None:
        table = new_table("title", "a", "b")
        table.add_row("x", "y")
        print_table(table)
        print_line(sentence)

    piped, typed = (shown(show, 80, is_terminal) for is_terminal in (False, True))
    assert "\x1b" not in piped
    assert sentence in piped
    assert "\x1b[1mtitle\x1b[0m" in typed
    assert max(map(len, typed.splitlines())) <= 80


# what an export says


def test_an_export_begins_with_pass_and_ends_with_what_to_do(export_small: Callable[..., Artifact]) -> None:
    made = export_small("onnx")
    rows = list(artifact_rows(made))
    assert rows[0] == ("PASS", f"{made.file}, {made.file.stat().st_size / 1e6:.2f} MB")
    assert rows[1][0] == "from PyTorch"
    assert "SNR" in rows[1][1]
    assert rows[-1] == ("next", f"edgesmith use {made.path}")
    short, long = [name for name, _ in rows], [name for name, _ in artifact_rows(made, is_verbose=True)]
    assert "operators" not in short
    assert {"operators", "fold_batchnorm", "eager -> file"} <= set(long)
    assert len(short) <= 8


def test_a_file_that_missed_or_never_ran_does_not_pass(export_small: Callable[..., Artifact]) -> None:
    made = export_small("onnx")
    verification: Any = made.manifest["verification"]
    steps = verification["steps"]
    verification["steps"] = [one for one in steps if one["step"] != "eager -> file"]
    assert next(artifact_rows(made))[0] == "NOT RUN"
    verification["steps"], verification["missed"] = steps, ["eager -> file: by far"]
    assert next(artifact_rows(made))[0] == "INACCURATE"


# help and completion


def test_help_has_groups_and_an_example_of_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command.group in text for command in COMMANDS.values())
    for name, command in COMMANDS.items():
        assert command.example.split()[0] == name
        assert cli.run([name, "--help"]) == 0
        assert "Example: edgesmith" in capsys.readouterr().out


def test_a_command_is_summed_up_as_its_own_help_begins() -> None:
    for name, command in COMMANDS.items():
        begun = " ".join(Imported()[name].help.split("\n\n")[0].split())
        assert begun == command.summary, name


def test_help_and_a_wrong_name_import_no_command() -> None:
    """What they take is measured in the notes of decision 0131; here is why."""
    program = (
        "import sys; from edgesmith.cli import run; before = set(sys.modules);"
        "run(['--help']); run(['exprt']); run(['--version']);"
        "print([one for one in sys.modules if one.startswith('edgesmith.') and one not in before])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "No such command 'exprt'. Did you mean 'export', 'report'? See: edgesmith --help" in done.stderr


def options_of(example: str) -> Iterator[str]:
    return (word for word in example.split() if word.startswith("--"))


def test_examples_name_options_that_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name, command in COMMANDS.items():
        cli.run([name, "--help"])
        text = capsys.readouterr().out
        assert [one for one in options_of(command.example) if one not in text] == [], command.example


def test_names_are_completed() -> None:
    assert "casvit_xs" in list(names.models("casvit_"))
    assert list(names.targets("core")) == ["coreai", "coreml"]
    assert "fp16" in list(names.precisions("f"))
    assert "iphone13" in list(names.devices("iphone1"))
    assert sorted(names.languages("")) == sorted(LANGUAGES)


def test_what_an_export_wrote_reads_as_it_did(export_small: Callable[..., Artifact]) -> None:
    made = export_small("onnx")
    assert list(artifact_rows(read(made.path))) == list(artifact_rows(made))


def test_what_a_library_prints_in_a_stage_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with show_stage("import"):
        print("Error importing something")
    print("result")
    told = capsys.readouterr()
    assert told.out == "result\n"
    assert "Error importing something" in told.err
