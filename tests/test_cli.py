"""The command line as a user meets it: processes, exit codes, one sentence an error, nothing half done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forks import begin, export_convolution

from edgesmith import cli, records
from edgesmith.cli.commands import COMMANDS
from edgesmith.cli.doctor import DoctorRecord, examine
from edgesmith.cli.options import parse_size, read_labels
from edgesmith.errors import BadInput
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact, changed_files, read
from edgesmith.exporters.precision.table import all_precisions
from edgesmith.plugins import leave_out

pytestmark = pytest.mark.wheel

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = ("--model", "casvit_xs", "--input-size", "32")
FOLDER = "artifacts/casvit_xs-onnx-fp32-32x32"


HEAVY = {"torch", "onnx", "onnxruntime", "onnxsim", "onnxscript", "coremltools", "numpy", "safetensors"}


def run_and_list_imports(arguments: list[str], folder: Path) -> tuple[int, str, set[str]]:
    """Run a command as a process. Returns its code, what it says on stderr, and the packages imported when it ends."""
    code = (
        "import sys\nfrom edgesmith.cli import run\n"
        f"code = run({arguments!r})\nprint('\\0'.join({{name.split('.')[0] for name in sys.modules}}))\nsys.exit(code)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return result.returncode, result.stderr, set(result.stdout.splitlines()[-1].split("\0"))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["export", "--help"], ["models"], ["targets"], ["targets", "--devices"], ["devices"], ["--version"]],
)
def test_commands_that_only_list_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code, _, imported = run_and_list_imports(arguments, tmp_path)
    assert code == 0
    assert imported & HEAVY == set()


SLOW_TO_IMPORT = {
    "rich.markdown",
    "rich.traceback",
    "importlib.metadata",
    "socket",
    "jsonschema",
    "edgesmith.board.common",
}
"""What the command line does without until something is done: together they take as long as all of `--help`."""


def test_the_first_command_that_anybody_types_imports_nothing_slow() -> None:
    code = "import sys\nfrom edgesmith.cli import run\nrun(['--help'])\nprint('\\0'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()[-1].split("\0")) & SLOW_TO_IMPORT == set()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_roots_help_is_whole_at_any_width(width: int, edgesmith: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = edgesmith("--help").stdout.splitlines()
    assert width - 10 < max(map(len, shown)) <= width
    text = " ".join(" ".join(shown).split())
    for name, command in COMMANDS.items():
        assert f" {command.group} " in text
        assert f" {name} {command.summary} " in text
        assert "…" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch", "0"], "--batch must be 1 or more, got 0"),
        (["--input-size", "225"], "divisible by 32, got 225x225; the nearest is 224x224"),
        (
            ["--target", "coreml", "--deployment-target", "ios17"],
            "unknown deployment target 'ios17'. There are iOS16, iOS17",
        ),
        (["--labels", "two.txt"], "--labels has 2 names and the model has 1000 classes"),
        (["--precision", "bf16"], "target onnx has precisions fp32, fp16, int8, got 'bf16'"),
        (["--device", "iphone15"], "iPhone 15 takes coreml, not onnx; choose --target"),
        (["--target", "tensorrt"], "an engine is for one GPU"),
        (["--model", "casvit_xss"], "unknown model 'casvit_xss'. Nearest: casvit_xs"),
        (["--target", "coremll"], "unknown target 'coremll'. Nearest: coreml"),
        (["--device", "rpi55"], "unknown device 'rpi55'. Nearest: rpi5"),
        (["--target", "coreml", "--dynamic-batch"], "takes static shapes only; give --batch N"),
        (["--streaming"], "reads images and has no --streaming"),
        (["--image-input"], "target onnx has no --image-input"),
        (["--calibration", "nowhere"], "--calibration is for --precision int8, got fp32"),
    ],
)
def test_a_refused_option_is_answered_before_anything_heavy_is_imported(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "two.txt").write_text("cat\ndog\n", encoding="utf-8")
    # Of an option that is given twice the last counts.
    command = ["export", "--model", "casvit_xs", "--target", "onnx", *arguments]
    code, errors, imported = run_and_list_imports(command, tmp_path)
    assert code == BadInput.exit_code
    (line,) = errors.splitlines()
    assert line.startswith("edgesmith: ")
    assert sentence in line
    assert imported & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input-size", "225"], "divisible by 32, got 225x225"),
        (["--target", "coremll"], "unknown target 'coremll'"),
        (["--frames", "10"], "reads images and has no --frames"),
    ],
)
def test_explain_refuses_before_anything_heavy_is_imported(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    code, errors, imported = run_and_list_imports(["explain", "--model", "casvit_xs", *arguments], tmp_path)
    assert code == BadInput.exit_code
    assert sentence in errors
    assert imported & HEAVY == set()


def test_help_names_every_command_and_the_exit_codes(edgesmith: Run) -> None:
    result = edgesmith("--help")
    assert result.returncode == 0
    for word in ("export", "explain", "verify", "lint", "models", "targets", "doctor", "verification", "--debug"):
        assert word in result.stdout
    assert edgesmith().returncode == 0
    assert edgesmith("--version").stdout.startswith("edgesmith 0.")


def test_the_module_and_the_script_are_the_same_command(process: Run) -> None:
    script = Path(sys.executable).with_name("edgesmith")
    shown = subprocess.run([script, "models"], capture_output=True, text=True, check=True).stdout
    result = process("models")
    assert result.returncode == 0
    assert result.stdout == shown
    assert process("models", "--nonsense").returncode == 2


def test_models_lists_the_published_facts(edgesmith: Run) -> None:
    text = edgesmith("models").stdout
    for part in ("casvit_xs", "3.20 M", "554 M", "3x224x224", "78.3 / 78.7 %", "MIT", "arXiv:2408.03703"):
        assert part in text
    names = [row["name"] for row in json.loads(edgesmith("models", "--json").stdout)]
    assert names.index("casvit_s") == names.index("casvit_xs") + 1


def test_targets_and_devices_are_listed(edgesmith: Run) -> None:
    assert "edgesmith[coreml]" in edgesmith("targets").stdout
    names = [row["name"] for row in json.loads(edgesmith("targets", "--json").stdout)]
    assert names == ["coreai", "coreml", "onnx", "tensorrt", "tvm"]
    assert "iphone15" in edgesmith("targets", "--devices").stdout
    assert "iOS26" in edgesmith("targets", "--devices", "--json").stdout


def test_exports_help_lists_the_precisions(edgesmith: Run) -> None:
    text = edgesmith("export", "--help").stdout
    for name in all_precisions():
        assert f"{name}:" in text


def test_doctor_says_what_works_and_what_to_do(edgesmith: Run) -> None:
    shown = edgesmith("doctor", "--json").stdout.encode()
    found = records.read_record(shown, records.schema_of(DoctorRecord), "doctor's record")
    rows = {row["target"]: row for row in found["targets"]}
    assert rows["onnx"]["lower"].startswith("yes (onnx ")
    assert rows["onnx"]["run"].startswith("yes")
    assert rows["onnx"]["time"] == "yes (onnxruntime)"
    assert rows["coreml"]["run"] == "yes (edgesmith's evaluator)"
    assert ("edgesmith[coreml]" in rows["coreml"]["do"]) == bool(targets.get("coreml").missing_packages())
    result = edgesmith("doctor")
    assert result.returncode == 0
    assert "coreml" in result.stdout


def test_doctor_without_a_backend_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    coreml = targets.get("coreml")
    monkeypatch.setattr(type(coreml), "missing_packages", lambda target: list(target.packages))
    row = examine(coreml)
    assert row["lower"] == "no"
    assert row["do"] == 'pip install "edgesmith[coreml]"'


def test_explain_shows_every_site_and_the_counts(edgesmith: Run) -> None:
    result = edgesmith("explain", *SMALL)
    assert result.returncode == 0
    assert result.stdout.count("-> edgesmith.additive_attention") == 10
    for part in ("fold_batchnorm: fired at 56 sites, 0 near misses", "network.6.1.attn", "aten.conv2d"):
        assert part in result.stdout
    found = json.loads(edgesmith("explain", *SMALL, "--features", "--json").stdout)
    folds = next(report for report in found["rewrites"] if report["name"] == "fold_batchnorm")
    assert len(folds["rejected"]) == 4
    assert found["operators"]["rewritten"]["aten.batch_norm"] == 4


def test_export_shows_stages_and_one_table_and_verify_accepts_it(edgesmith: Run, tmp_path: Path) -> None:
    result = edgesmith("export", *SMALL, "--target", "onnx", "--verbose")
    assert result.returncode == 0, result.stderr
    for stage in ("load", "capture", "rewrite", "verify the program", "lower to onnx", "verify the file", "publish"):
        assert stage in result.stderr
    assert "random (seed 0): for trying out only; give a checkpoint with --weights" in result.stdout
    for part in (
        "fuse_additive_attention",
        "captured 408 -> rewritten 129 -> file",
        "max error",
        "  next ",
        f"edgesmith use {FOLDER}",
    ):
        assert part in result.stdout
    assert re.search(rf"  PASS +{FOLDER}/casvit_xs\.onnx, \d+\.\d\d MB\n", result.stdout)
    again = edgesmith("verify", FOLDER)
    assert again.returncode == 0
    assert "4 files, as published" in again.stdout
    assert (
        json.loads(edgesmith("verify", f"{FOLDER}/casvit_xs.onnx", "--json").stdout)["steps"][2]["max_abs_error"] < 1e-5
    )


def test_export_to_coreml_shows_the_evaluators_figures(process: Run, edgesmith: Run) -> None:
    if targets.get("coreml").missing_packages():
        pytest.skip("coremltools is not installed")
    result = process("export", *SMALL, "--target", "coreml", "--json")
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert manifest["verification"]["steps"][-1]["snr_db"] >= 40
    shown = edgesmith("verify", manifest["path"], "--layers")
    assert "edgesmith's evaluator" in shown.stdout
    assert "gelu fp16" in shown.stdout
    assert "Traceback" not in result.stderr
    assert "Failed to load" not in result.stderr


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Other hash seeds, other folders, for Core ML and TensorRT where they are installed: all of a seed in one.

    Of a CAS-ViT of one block a stage: every operator of the family, in a third of the time.
    """
    built = "return CasViT((1, 1, 1, 1), (8, 12, 16, 24))"
    (tmp_path / "one_block.py").write_text(f"from edgesmith.models.casvit import CasViT\n\ndef small():\n    {built}\n")
    model = ("--module", str(tmp_path / "one_block.py") + ":small", "--input", "1x3x32x32")
    wanted = [t for t in ("onnx", "coreml", "tensorrt") if not targets.get(t).missing_packages()]
    assert "onnx" in wanted
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        out = tmp_path / seed
        lines = []
        for target in wanted:
            device = ["--device", "rtx3080"] if target == "tensorrt" else []
            lines.append(["export", *model, "--target", target, *device, "--out", str(out)])
        code = f"from edgesmith.cli import run; raise SystemExit(max([run(line) for line in {lines}]))"
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False, env=environment
        )
        assert result.returncode == 0, result.stderr
        files = [file for file in out.rglob("*") if file.is_file()]
        found.append({str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files})
    assert found[0] == found[1]
    for target in wanted:
        assert len([file for file in found[0] if target in file]) >= 3


@pytest.mark.slow
def test_export_killed_at_any_moment_leaves_nothing_or_a_whole_artifact(edgesmith: Run, tmp_path: Path) -> None:
    """SIGKILL at 20 random moments of a run, from its first line on; half of them find an older artifact in place."""
    begin(tmp_path).join()  # this one imports
    start = time.monotonic()
    begin(tmp_path).join()
    whole_s = time.monotonic() - start
    moments = random.Random(0)
    (artifact,) = tmp_path.iterdir()
    older = tmp_path.with_name("older")
    artifact.rename(older)
    for round_ in range(20):
        if round_ == 10 and not artifact.exists():
            older.rename(artifact)
        process = begin(tmp_path)
        time.sleep(moments.uniform(0, 1.05 * whole_s))
        process.kill()
        process.join()
        if artifact.exists():
            assert changed_files(read(artifact)) == []
        else:
            assert round_ < 10, "the artifact that was there is gone"
    assert artifact.exists()
    assert edgesmith("verify", str(artifact)).returncode == 0
    export_convolution(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [artifact.name], "leftovers of killed runs"


@pytest.mark.parametrize("delay_s", [0.3, 1.0, 2.0, 4.0])
def test_ctrl_c_is_one_sentence_and_leaves_nothing(delay_s: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgesmith", "export", "--model", "casvit_t", "--target", "onnx"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted; nothing was published" in errors
    assert not list(tmp_path.glob("artifacts/*"))


HEARS = """
import sys, time
from edgesmith import ending
ending.LONGEST_WAIT_S = float(sys.argv[1])
ending.hear_signals()
import held
time.sleep(60)
"""

INTERRUPTED_WHILE_IMPORTED = {
    "a compiled function calls": ("sorted([1, 2], key=lambda x: interrupt() or x)", "heard later"),
    "a compiled function calls, and that imports": (
        "sorted([1, 2], key=lambda x: __import__('inner') and x)",
        "heard later",
    ),
    "a class is made": ("class Made:\n        interrupt()", "heard later"),
    "a module is imported": ("import inner", "heard later"),
    "it never ends": ("interrupt()\n    while True: pass", "heard at once"),
    "compiled code never ends": ("sorted([1, 2], key=lambda x: (interrupt(), time.sleep(60)))", "heard at once"),
}
"""What a module does while it is imported, and whether the interrupt comes out of that."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("case", INTERRUPTED_WHILE_IMPORTED)
def test_an_interrupt_is_not_raised_into_compiled_code_of_an_import(case: str, number: int, tmp_path: Path) -> None:
    """Compiled code that calls Python while it is imported may abort on an exception, as torch's does."""
    what, wanted = INTERRUPTED_WHILE_IMPORTED[case]
    interrupt = f"import os, time\ninterrupt = lambda: os.kill(os.getpid(), {int(number)})\n"
    (tmp_path / "inner.py").write_text(f"{interrupt}interrupt()\nlen(())\n")
    (tmp_path / "held.py").write_text(
        f"{interrupt}try:\n    {what}\nexcept KeyboardInterrupt:\n    print('heard at once')\n    os._exit(0)\n"
    )
    waits = "60" if wanted == "heard later" else "0.5"
    run = subprocess.run(
        [sys.executable, "-c", HEARS, waits],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    if wanted == "heard later":
        assert run.stderr.rstrip().endswith("KeyboardInterrupt"), run.stderr
        assert "at once" not in run.stdout
    else:
        assert run.stdout == "heard at once\n", run.stderr


LOSES_AN_INTERRUPT = """
import os, signal, time
from edgesmith.cli import app, signals
signals.resend_lost_interrupts()
class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
try:
    Finalised()
    time.sleep(20)
except KeyboardInterrupt:
    print("heard")
else:
    print("lost")
"""


def test_an_interrupt_inside_a_finaliser_is_not_lost() -> None:
    run = subprocess.run([sys.executable, "-c", LOSES_AN_INTERRUPT], capture_output=True, text=True)
    assert run.stdout == "heard\n", run.stderr
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["export", "--model", "casvit_xss", "--target", "onnx"], 2, "unknown model 'casvit_xss'. Nearest: casvit_xs"),
        (["export", "--model", "casvit_xs", "--target", "coremll"], 2, "unknown target 'coremll'. Nearest: coreml"),
        (["export", *SMALL, "--target", "onnx", "--device", "rpi55"], 2, "unknown device 'rpi55'. Nearest: rpi5"),
        (
            ["export", "--model", "casvit_xs", "--target", "onnx", "--input-size", "7up"],
            2,
            "--input-size must be 224 or",
        ),
        (
            ["export", "--model", "casvit_xs", "--target", "onnx", "--input-size", "225"],
            2,
            "divisible by 32, got 225x225",
        ),
        (["export", *SMALL, "--target", "onnx", "--weights", "nowhere.pth"], 2, "no weights file at nowhere.pth"),
        (
            ["export", *SMALL, "--target", "onnx", "--labels", "nowhere.txt"],
            2,
            "cannot read the labels nowhere.txt: No such",
        ),
        (["export", *SMALL, "--target", "onnx", "--out", "/proc/nowhere"], 5, "cannot write to /proc/nowhere"),
        (["export", "--target", "onnx"], 2, "give a model: --model NAME"),
        (["exprot"], 2, "No such command 'exprot'"),
        (["verify", "nowhere"], 2, "no artifact at nowhere"),
        (["compare", "."], 2, ". is a folder: give a base and a head"),
        (["lint", "."], 2, ". is no file that lint reads"),
        (
            ["export", "--model", "nix", "--target", "onnx"],
            2,
            "unknown model 'nix'. There are affnet_et, affnet_t, affnet and",
        ),
        *(
            ([*command, 300 * "x"], 2, f"cannot use {80 * 'x'}...: File name too long; give another path")
            for command in (["use"], ["verify"], ["lint"], ["inspect"], ["bench"], ["report"], ["compare", "a"])
        ),
    ],
)
def test_wrong_input_is_one_sentence_with_its_exit_code(
    arguments: list[str], code: int, sentence: str, edgesmith: Run
) -> None:
    result = edgesmith(*arguments)
    assert result.returncode == code
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("  ")]  # but for stages
    assert line.startswith("edgesmith: ")
    assert sentence in line
    assert result.stdout == ""


def test_a_path_that_may_not_be_looked_at_is_one_sentence(edgesmith: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    result = edgesmith("verify", "locked")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"edgesmith: cannot use locked\S*: Permission denied; give another path\n", result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "{made}", "--out", "{taken}/record.json"],
        ["compare", "{made}", "{made}", "--out", "{folder}"],
        ["compare", "{made}", "{made}", "--junit", "{taken}/x.xml"],
        ["peers", "casvit_xs", "--out", "{folder}"],
    ],
)
def test_what_takes_long_refuses_first_what_it_could_not_write(
    arguments: list[str], edgesmith: Run, export_small: Callable[..., Artifact], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "folder.json").mkdir()
    names = {"made": export_small("onnx").path, "taken": "taken", "folder": "folder.json"}
    result = edgesmith(*(one.format(**names) for one in arguments))
    assert (result.returncode, result.stdout) == (5, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("edgesmith: cannot write the ")
    assert not (tmp_path / "measurements").exists()


def test_a_file_in_the_place_of_an_aimodel_is_one_sentence(edgesmith: Run, tmp_path: Path) -> None:
    (tmp_path / "a.aimodel").write_bytes(b"x")
    result = edgesmith("lint", "a.aimodel")
    assert result.returncode == 2
    assert "a.aimodel is a file, and an .aimodel is a folder" in result.stderr


def test_doctor_survives_a_broken_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert cli.run(["doctor", "--json"]) == 0
    (row,) = [one for one in json.loads(capsys.readouterr().out)["targets"] if one["target"] == "tensorrt"]
    assert row["time"] == "no: OSError: libnvinfer.so.10: cannot open shared object file"


def test_a_failed_verification_exits_with_3(edgesmith: Run, artifact: Callable[..., Artifact]) -> None:
    exported = artifact("casvit_xs", "onnx", input_size=(32, 32))
    exported.file.write_bytes(b"")
    result = edgesmith("verify", str(exported.path), "--json")
    assert result.returncode == 3
    assert json.loads(result.stdout)["error"].endswith("casvit_xs.onnx was altered")


def test_a_hostile_checkpoint_exits_with_2_and_does_not_run(edgesmith: Run, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"model": Attack()}, tmp_path / "evil.pth")
    result = edgesmith("export", *SMALL, "--target", "onnx", "--weights", "evil.pth")
    assert result.returncode == 2
    assert "evil.pth is refused: its pickle asks for posix.mkdir" in result.stderr
    assert not (tmp_path / "owned").exists()


def test_debug_shows_the_traceback(process: Run) -> None:
    result = process("verify", "nowhere", "--debug")
    assert "Traceback" in result.stderr
    assert "BadInput" in result.stderr


def test_a_bug_is_one_sentence_that_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgesmith.models import registry

    monkeypatch.setattr(registry, "all_models", lambda: 1 / 0)
    assert cli.run(["models"]) == 1
    assert "a bug in edgesmith: ZeroDivisionError" in capsys.readouterr().err


def test_a_plugin_that_is_left_out_is_one_sentence_each_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgesmith.models import registry

    def without_one() -> dict[str, registry.ModelSpec]:
        leave_out("edgesmith.models", "mine", "it does not load")
        return {}

    monkeypatch.setattr(registry, "all_models", without_one)
    for _ in range(2):
        assert cli.run(["models", "--json"]) == 0
        assert capsys.readouterr().err == (
            "edgesmith: WARNING: plugin 'mine' of edgesmith.models is left out: it does not load\n"
        )


@pytest.mark.parametrize(
    ("text", "size"), [("224", (224, 224)), ("192x256", (192, 256)), ("64X32", (64, 32)), (None, None)]
)
def test_sizes_are_read_as_height_by_width(text: str | None, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


def test_labels_are_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("tench\n\n goldfish \nsandpiper, dunlin\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ["tench", "goldfish", "sandpiper, dunlin"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(BadInput, match=r"holds no labels"):
        read_labels(tmp_path / "empty.txt")


# What the system refuses


LONG = "n" * 300
"""A name that no file system takes."""


@pytest.mark.parametrize(
    "arguments",
    [
        *(["lint", LONG], ["inspect", LONG], ["use", LONG], ["verify", LONG], ["bench", LONG], ["report", LONG]),
        *(["estimate", LONG, "--device", "rpi5"], ["history", "--file", LONG], ["compare", LONG, LONG]),
        ["export", "--model", "casvit_xs", "--target", "onnx", "--weights", LONG],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_name_that_is_too_long_is_one_sentence(arguments: list[str], edgesmith: Callable[..., Any]) -> None:
    done = edgesmith(*arguments)
    assert done.returncode == BadInput.exit_code
    assert "File name too long" in done.stderr
    assert len(done.stderr) < 1000


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "theirs/a.onnx"), "cannot use theirs/a.onnx: Permission denied"),
        (OSError(5, "Input/output error", b"worn/a.onnx"), "cannot use worn/a.onnx: Input/output error"),
        (FileNotFoundError(2, "No such file or directory", "a.onnx"), "a.onnx is no longer there"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a/b is no longer there"),
    ],
)
def test_what_the_system_says_of_a_path_is_no_bug(
    error: OSError, said: str, edgesmith: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another's folder, a broken disk, and what a second process removes in the meantime."""

    def refuse(self: Path) -> bool:
        raise error

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(Path, "is_dir", refuse)
    done = edgesmith("lint", "a.onnx")
    assert done.returncode == BadInput.exit_code
    assert said in done.stderr


def test_an_error_of_the_system_without_a_path_is_a_bug(
    edgesmith: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path) -> bool:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", fail)
    monkeypatch.setattr(Path, "is_dir", fail)
    assert edgesmith("lint", "a.onnx").returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_bug(closed: str) -> None:
    command = f"{sys.executable} -P -m edgesmith targets --json {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert not done.stderr


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library prints to stdout would be in the file."""
    code = (
        "import os, sys; from edgesmith.cli.streams import open_closed_streams; open_closed_streams()\n"
        f"file = os.open({str(tmp_path / 'made')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "os.write(1, b'a library prints'); print('and Python', flush=True); sys.exit(file < 3)"
    )
    command = f'{sys.executable} -P -c "$CODE" >&- 2>&- <&-'
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "CODE": code}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "made").read_bytes() == b""
