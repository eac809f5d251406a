"""The referee: peers in processes of their own; stand-ins are right, slow, wrong, refuse, die or are missing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer_stand_ins import PEERS

from edgesmith import cli, records
from edgesmith.bench.peers import contest as contests
from edgesmith.bench.peers import peaks as machine
from edgesmith.bench.peers import peer as rivals
from edgesmith.bench.peers import processes, referee, subject, worker
from edgesmith.bench.peers.contest import Contest, Settings
from edgesmith.bench.peers.peaks import Meter, Peaks
from edgesmith.bench.peers.peer import MODULE, Peer, Source
from edgesmith.bench.peers.record import PeersRecord, RowRecord
from edgesmith.bench.peers.subject import AS_WRITTEN, Form, Subject
from edgesmith.errors import BadInput
from edgesmith.exporters.own.reference import InputSpec, OwnModule

SETTINGS = Settings(seconds=0.2, launches=2)
METER = Meter(lambda seconds: (100.0, 10.0), "a guess")
SOURCE = Source(MODULE, {"named": "doubling"}, None, ("x",), 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contests, "SLOT_MS", 2.0)
    monkeypatch.setattr(machine, "SECONDS", 0.02)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Peer]]:
    """Write a module for each stand-in, which processes find too."""
    paths = [str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(*names: str) -> list[Peer]:
        for name in names:
            (tmp_path / f"{name}.py").write_text(f"import peer_stand_ins\n\nPEER = peer_stand_ins.PEERS[{name!r}]\n")
        return [PEERS[name] for name in names]

    return write


@pytest.fixture
def doubling() -> Subject:
    """A model of which y = 2 x + 1 is all, and which nothing has to load."""
    inputs = [[np.arange(12, dtype=np.float32).reshape(3, 4)], [np.ones((3, 4), np.float32)]]
    return Subject("doubling", {"named": "doubling"}, inputs, [[2 * x + 1] for (x,) in inputs], 10**6, 96, ("x",))


def hold(peers: list[Peer], subject: Subject, folder: Path, settings: Settings = SETTINGS) -> Contest:
    folder.mkdir()
    contest = Contest(subject, folder, settings, METER)
    contest.enter(peers)
    assert contest.run()
    return contest


def rows(contest: Contest) -> dict[str, RowRecord]:
    return {row["peer"]: row for row in contest.record()["rows"]}


def test_every_peer_is_a_row_whatever_becomes_of_it(
    stand_ins: Callable[..., list[Peer]], doubling: Subject, tmp_path: Path
) -> None:
    names = ("exact_peer", "slow_peer", "wrong_peer", "dying_peer", "refusing_peer", "missing_peer")
    found = rows(hold(stand_ins(*names), doubling, tmp_path / "work"))
    assert {name: row["state"] for name, row in found.items()} == {
        "exact_peer": "timed",
        "slow_peer": "timed",
        "wrong_peer": "wrong",
        "dying_peer": "crashed",
        "refusing_peer": "refused",
        "missing_peer": "missing",
    }
    assert found["dying_peer"]["why"] == "its process was ended by SIGSEGV"
    assert found["refusing_peer"]["why"] == "refuses the model: Refused: no kernel for aten::roll in a file:12"
    assert found["missing_peer"]["why"].endswith("pip install -c constraints.txt missing_peer-runtime")
    assert found["wrong_peer"]["error"] == pytest.approx(1.1 / 23, rel=1e-3)  # 0.1 x 11 of the peak 2 x 11 + 1
    assert all((row["p50_ms"] is None) == (row["state"] != "timed") for row in found.values())
    slow = found["slow_peer"]["p50_ms"]
    assert slow is not None
    assert 10 <= slow["value"] < 100
    assert found["slow_peer"]["share"] == pytest.approx(METER.peaks.bound_ms(10**6, 96) / slow["value"])
    assert found["exact_peer"]["error"] == 0
    assert found["exact_peer"]["version"] == "1.2"
    assert [len(found["slow_peer"]["rounds_ms"]), found["dying_peer"]["rounds_ms"]] == [2, []]


def test_the_faster_form_counts_and_ratios_are_to_ours(
    stand_ins: Callable[..., list[Peer]], doubling: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours runs in the slow runtime, so that the exact one is several times faster than ours."""
    slow, exact = stand_ins("slow_peer", "exact_peer")

    def ours(subject: Subject, *_: object) -> list[Form]:
        return [Form("edgesmith, onnx", MODULE, replace(SOURCE, file="unread"), runs_in=slow.name)]

    monkeypatch.setattr(contests, "export_forms", ours)
    contest = hold([slow, exact], doubling, tmp_path / "work")
    record = contest.record()
    base = next(row for row in record["rows"] if row["ours"])
    assert (base["peer"], base["form"]) == ("slow_peer", "edgesmith, onnx")
    assert base["ratio"] is not None
    assert base["ratio"]["value"] == 1
    best = record["rows"][0]
    assert (best["peer"], best["counts"]) == ("exact_peer", True)
    assert best["ratio"] is not None
    assert best["ratio"]["value"] < 0.2
    assert [row["counts"] for row in record["rows"] if row["peer"] == "exact_peer"] == [True, False]
    assert f"the best peer is Exact_Peer ({best['form']}), 0." in referee.describe_outcome(record)


def test_a_form_that_could_not_be_made_is_a_row(
    doubling: Subject, tmp_path: Path, stand_ins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contests, "export_forms", lambda *_: [Form("ours", MODULE, None, "edgesmith does not")])
    contest = Contest(doubling, tmp_path, SETTINGS, METER)
    contest.enter(stand_ins("exact_peer"))
    assert [(one.form.label, one.state, one.why) for one in contest.entries] == [
        (AS_WRITTEN, "timed", ""),
        ("ours", "refused", "edgesmith does not"),
    ]


def test_an_interrupted_contest_keeps_its_complete_launches(
    stand_ins: Callable[..., list[Peer]], doubling: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = Contest(doubling, tmp_path, SETTINGS, METER)
    contest.entries = [contests.Entry(stand_ins("exact_peer")[0], Form(AS_WRITTEN, MODULE, SOURCE), str(tmp_path))]
    warmed = contest._warm

    def interrupted(*arguments: Any) -> bool:
        if contest.launches:
            raise KeyboardInterrupt
        return warmed(*arguments)

    monkeypatch.setattr(contest, "_warm", interrupted)
    assert not contest.run()
    assert contest.launches == 1
    assert [len(entry.rounds_ms) for entry in contest.entries] == [1]
    monkeypatch.setattr(contest, "launches", 0)
    monkeypatch.setattr(contest, "_warm", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        contest.run()


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("waiting_peer", "crashed", "no answer in 1 s"),
        ("other_peer", "wrong", "returns other outputs than PyTorch: [[1, 4]] and [[3, 4]]"),
        ("broken_peer", "missing", "cannot be imported (ImportError: libpeer.so: undefined symbol); install it again"),
        ("reporting_peer", "refused", "refuses the model: PermissionError: no sockets in this process"),
    ],
)
def test_a_peer_that_does_not_open_is_out(
    name: str, state: str, said: str, doubling: Subject, tmp_path: Path, stand_ins: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contests, "OPEN_S", 1.0 if name == "waiting_peer" else 60.0)
    contest = Contest(doubling, tmp_path, SETTINGS, METER)
    entry = contests.Entry(stand_ins(name)[0], Form(AS_WRITTEN, MODULE, SOURCE), str(tmp_path))
    with contests.ExitStack() as stack:
        assert contest._open(entry, stack) is None
    assert (entry.state, entry.why) == (state, said)


def test_outputs_of_another_shape_with_the_same_numbers_are_right(doubling: Subject, tmp_path: Path) -> None:
    """Runtimes without a batch return none."""
    contest = Contest(doubling, tmp_path, SETTINGS, METER)
    outputs = [[y.flatten() for y in calls] for calls in doubling.reference]
    assert contest._check(outputs) == 0
    outputs[1][0][0] += 0.3  # the peak is 3
    assert contest._check(outputs) == pytest.approx(0.1)
    outputs[0][0][0] = np.nan
    assert contest._check(outputs) == float("inf")


def test_a_file_as_written_is_for_those_that_take_no_module() -> None:
    both, modules, files = (
        replace(PEERS["exact_peer"], reads=reads) for reads in ((MODULE, "onnx"), (MODULE,), ("onnx",))
    )
    forms = [Form(AS_WRITTEN, MODULE, None), Form(AS_WRITTEN, "onnx", None), Form("edgesmith, onnx", "onnx", None)]
    taken = {name: [contests._reads(peer, form) for form in forms] for name, peer in vars_of(both, modules, files)}
    assert taken == {"both": [True, False, True], "modules": [True, False, False], "files": [False, True, True]}


def vars_of(*peers: Peer) -> Iterator[tuple[str, Peer]]:
    return zip(("both", "modules", "files"), peers, strict=True)


def test_words_of_a_model_make_it_again(tmp_path: Path) -> None:
    code = tmp_path / "own.py"
    code.write_text("def build(width=1): ...\n")
    own = OwnModule(
        f"{code}:build",
        kwargs={"width": 3},
        inputs=(InputSpec((1, 3)), InputSpec((), "int64", "n", 0, 9)),
        folder=tmp_path,
    )
    words = subject.write_words(own, {"name": "mine"})
    assert subject.read_words(json.loads(json.dumps(words))).model == own
    assert subject.read_words(words).artifact_name == "mine"
    named = subject.read_words(json.loads(json.dumps(subject.write_words("casvit_xs", {"weights": None}))))
    assert (named.model, named.weights) == ("casvit_xs", None)


def test_a_model_is_run_and_counted(tmp_path: Path) -> None:
    """A layer of 3 to 5 numbers on 2 rows: 2 x 3 x 5 products, 20 weights, 6 numbers in and 10 out."""
    code = tmp_path / "linear_of_a_peer.py"
    code.write_text("import torch\n\n\ndef build():\n    return torch.nn.Linear(3, 5)\n")
    found = subject.prepare(
        subject.write_words(OwnModule(f"{code}:build", inputs=(InputSpec((2, 3)),)), {"name": "linear"})
    )
    assert (found.macs, found.bytes, len(found.inputs)) == (30, 4 * (20 + 6 + 10), 2)
    assert not np.array_equal(found.inputs[0][0], found.inputs[1][0])
    eager = rivals.all_peers()["eager"].open(found.source(MODULE), tmp_path, 1)
    for inputs, wanted in zip(found.inputs, found.reference, strict=True):
        assert np.array_equal(eager(inputs)[0], wanted[0])


def test_arrays_come_back_as_they_went(tmp_path: Path) -> None:
    calls = [[np.arange(6).reshape(2, 3).T, np.float32(2) * np.ones(())], [np.zeros((0, 2), bool)]]
    worker.write_arrays(calls, tmp_path / "arrays")
    found = worker.read_arrays(tmp_path / "arrays")
    assert [[(x.dtype, x.shape, x.tolist()) for x in call] for call in found] == [
        [(x.dtype, x.shape, x.tolist()) for x in call] for call in calls
    ]


def test_a_task_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: Any) -> None:
    """`done` carries the file; what a runtime raises is `refused`."""
    monkeypatch.setattr(worker.telemetry, "refuse_sockets", lambda: None)
    stand_ins("exact_peer")
    told: list[dict[str, Any]] = []
    task = {"do": "convert", "peer": "exact_peer", "source": vars(SOURCE), "folder": str(tmp_path / "made")}
    worker.do_task(io.StringIO(json.dumps(task) + "\n"), lambda event, **facts: told.append({"event": event, **facts}))
    assert told == [{"event": "done", "file": str(tmp_path / "made")}]
    worker.do_task(
        io.StringIO(json.dumps({**task, "peer": "no_such_peer"}) + "\n"),
        lambda event, **facts: told.append({"event": event, **facts}),
    )
    assert told[1]["event"] == "lacks"


def test_the_roofline_is_the_later_of_the_two() -> None:
    assert Peaks(100.0, 10.0, "").bound_ms(10**9, 10**6) == pytest.approx(20.0)
    assert Peaks(100.0, 10.0, "").bound_ms(10**6, 10**9) == pytest.approx(100.0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("compilers", [machine.COMPILERS, ()])
def test_peaks_are_measured_with_a_compiler_and_without(
    compilers: tuple[str, ...], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "COMPILERS", compilers)
    with machine.measuring(threads, 1 << 20) as meter:
        meter.take(0.02)
        found = meter.peaks
    assert 1 < found.fma_gflops < 4000
    assert 0.2 < found.bandwidth_gb_s < 4000
    assert ("no C compiler" in found.measured_by) == (not compilers)


def test_a_compiler_that_fails_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fails, one builds what ends at once, and one what says nothing that is a number."""
    for name, program in (("fails", None), ("ends", "exit 0"), ("speaks", "echo 1 one")):
        compiler = tmp_path / name
        made = (
            "exit 1"
            if program is None
            else f'printf \'#!/bin/sh\\n{program}\\n\' > "${{@: -1}}"; chmod +x "${{@: -1}}"'
        )
        compiler.write_text(f"#!/bin/bash\n{made}\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(machine, "COMPILERS", ("fails", "ends", "speaks"))
    with machine.measuring(1, 1 << 12) as meter:
        assert "no C compiler" in meter.peaks.measured_by


def test_peaks_are_medians_of_the_slots() -> None:
    """The first one is measured before the peers are there, on an idle machine."""
    found = iter([(900.0, 90.0), (10.0, 1.0), (30.0, 5.0), ValueError("ended"), (20.0, 3.0)])

    def measure(seconds: float) -> tuple[float, float]:
        if isinstance(one := next(found), ValueError):
            raise one
        return one

    meter = Meter(measure, "a guess")
    assert meter.peaks == Peaks(900.0, 90.0, "a guess")
    for _ in range(4):
        meter.take()
    assert meter.peaks == Peaks(20.0, 3.0, "a guess")


def test_peaks_have_a_slot_in_every_round(doubling: Subject, tmp_path: Path, stand_ins: Any) -> None:
    taken: list[float] = []
    meter = Meter(lambda seconds: (taken.append(seconds) or 100.0, 10.0), "a guess")
    (tmp_path / "work").mkdir()
    contest = Contest(doubling, tmp_path / "work", SETTINGS, meter)
    contest.enter(stand_ins("exact_peer"))
    assert contest.run()
    rounds = next(entry.rounds_ms for entry in contest.entries if entry.is_in)
    assert len(taken) == 1 + sum(map(len, rounds))


@pytest.mark.parametrize(
    "line",
    [
        *("3", "[]", "null", '"done"', "{}", '{"event": 3}', '{"event": []}', '{"event": "end"}', '{"event": "done"}'),
        *('{"event": "warm", "calls": 1, "is_steady": 1}', '{"event": "slot", "samples_ms": []}'),
        *('{"event": "slot", "samples_ms": [-1.0]}', '{"event": "slot", "samples_ms": [1.0]}', "\\xff", "x" * 99),
    ],
)
def test_a_peer_that_answers_nonsense_is_out(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last event is a sound one, and answers another question."""
    monkeypatch.setattr(processes, "WORKER", ("printf", "%b\n", line))
    with pytest.raises(processes.Out, match="answers nonsense"), processes.process_of({"do": "convert"}, 1, 20.0):
        pass


def test_a_peer_that_answers_without_end_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LONGEST_ANSWER", 4096)
    monkeypatch.setattr(processes, "WORKER", ("cat", "/dev/zero"))
    with pytest.raises(processes.Out, match="ended by SIGKILL"), processes.process_of({"do": "convert"}, 1, 20.0):
        pass


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, doubling: Subject, stand_ins: Any) -> None:
    """The command with stand-ins for peers, and a model that nothing loads."""
    entered = stand_ins("exact_peer", "missing_peer")
    monkeypatch.setattr(rivals, "choose", lambda names: entered)
    monkeypatch.setattr(referee, "prepare", lambda words: doubling)
    monkeypatch.setattr(referee, "measuring", lambda threads, moved: contextlib.nullcontext(METER))
    monkeypatch.setattr(referee, "busy_cores", lambda: 0.0)


def test_the_command_shows_rows_and_writes_a_record(
    held: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "peers.json"
    arguments = ["peers", "casvit_xs", "--launches", "1", "--seconds", "0.1", "-o", str(file)]
    assert cli.run(arguments) == 0
    shown = capsys.readouterr().out
    assert "Exact_Peer 1.2" in shown
    assert "pip install" in shown
    assert "100.0 GFLOP/s" in shown
    record = records.read_record(file, records.schema_of(PeersRecord), "record of peers")
    assert record["complete"]
    assert [row["state"] for row in record["models"][0]["rows"]] == ["timed", "missing"]


def test_the_command_keeps_what_an_interrupt_leaves(
    held: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "peers.json"
    launch = Contest._launch

    def once(self: Contest, number: int) -> None:
        if number:
            raise KeyboardInterrupt
        launch(self, number)

    monkeypatch.setattr(Contest, "_launch", once)
    assert cli.run(["peers", "casvit_xs", "--launches", "3", "--seconds", "0.1", "-o", str(file), "--json"]) == 130
    told = capsys.readouterr()
    assert "interrupted after 1 launch, kept in" in told.err
    assert json.loads(told.out)["complete"] is False
    assert json.loads(file.read_text())["models"][0]["launches"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give models"),
        (["casvit_xss"], "Nearest: casvit_xs"),
        (["casvit_xs", "--peer", "openvin"], "Nearest: openvino"),
        (["casvit_xs", "--launches", "0"], "launches must be more than 0"),
        (["casvit_xs", "-o", "peers.txt"], "a record is a .json file"),
        (["casvit_xs", "--cores", "x"], "--cores must be numbers"),
    ],
)
def test_wrong_options_are_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["peers", *arguments]) == BadInput.exit_code
    assert said in capsys.readouterr().err


def test_every_peer_says_what_it_needs() -> None:
    known = rivals.all_peers()
    assert {"eager", "executorch", "mnn", "ncnn", "onnxruntime", "openvino"} <= set(known)
    for name, peer in known.items():
        assert (peer.name, peer.place) == (name, f"{rivals.FOLDER}.{name}")
        assert peer.packages
        assert peer.reads
        assert peer.lacks() is None or "pip install" in str(peer.lacks())


def test_listing_peers_imports_none_of_them() -> None:
    names = {name for peer in rivals.all_peers().values() for name in peer.imports}
    code = f"import sys; from edgesmith.bench.peers import peer; peer.all_peers(); print({names!r} & set(sys.modules))"
    assert (
        processes.subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "set()\n"
    )
