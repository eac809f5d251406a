"""Foreign files: each reader states what is damaged, and no file costs more than its reader's budget."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.manifests import smallest_manifest

from edgesmith.board.common import Refusal
from edgesmith.cli.options import read_labels
from edgesmith.errors import BadInput, CheckpointError, OutputError, Unreadable, Unsupported, VerificationFailed
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.precision.calibration import read_given
from edgesmith.exporters.tensorrt import engine
from edgesmith.exporters.tensorrt.kit import build
from edgesmith.exporters.tensorrt.kit.record import read_kit
from edgesmith.models import checkpoint
from edgesmith.models.series import read_config
from edgesmith.profiles import device as devices
from edgesmith.readers import limits, pickles
from edgesmith.readers.archives import Budget, open_archive
from edgesmith.readers.budget import read_bytes
from edgesmith.readers.documents import read_json, read_toml
from edgesmith.readers.messages import parse_message, read_onnx
from edgesmith.readers.tensors import read_safetensors
from edgesmith.readers.typed import as_dataclass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested too deeply"),
        ("1" * 6000, "64 bits"),
        (str(2**63), "64 bits"),
        ("[1e999]", "numbers are finite"),
        ("[NaN]", "NaN, and numbers are finite"),
        ("[-Infinity]", "numbers are finite"),
        (r'["\u0000"]', "a character that no text has"),
        (r'["\ud800"]', "a character that no text has"),
        (r'{"\udfff": 1}', "a character that no text has"),
        ('{"a": 1, "a": 2}', "two values under 'a'"),
        ("{", "in line 1"),
        ("", "in line 1"),
        (b"\xff\xfe", "it is no text"),
    ],
)
def test_json_that_is_none_of_ours_is_one_sentence(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Unreadable, match=said) as caught:
        read_json(path, "record")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_json_keeps_what_is_sound(tmp_path: Path) -> None:
    sound = {"a": [1, -(2**63), 2**63 - 1, 1e300, 5e-324, "é\U0001f600", None, True], "b": {"c": [[]]}}
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(sound).encode())  # as editors on Windows begin a file
    assert read_json(path, "record") == sound


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a = " + "9" * 5000, "damaged or no profile"),
        ("a = 9223372036854775808", "64 bits"),
        ("a = nan", "numbers are finite"),
        ("a = ", "damaged or no profile"),
        (b"\xff", "it is no text"),
        ('a = "' + "x" * 2_000_000 + '"', "such a file has"),
    ],
)
def test_toml_that_is_none_of_ours_is_one_sentence(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Unreadable, match=said):
        read_toml(path, "profile")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("targets = 3", "/targets must be"),
        ('targets = ["onnx", 3]', "/targets/1 must be str, got 3"),
        ("title = true", "/title must be str, got True"),
        ('colour = "red"', "'colour', which is none of"),
        ("clocks = { cpu_ghz = 3 }", "/clocks/cpu_ghz must be a table, got 3"),
        ('clocks = { cpu_ghz = { value = "3" } }', "/clocks/cpu_ghz/value"),
        ("clocks = { cpu_ghz = { value = -1.0 } }", "cpu_ghz must be above 0"),
        ('cuda = { compute_capability = "x", engines = "ahead", source = "" }', "is like 8.7, got 'x'"),
    ],
)
def test_a_device_profile_says_which_position_is_wrong(line: str, said: str, tmp_path: Path) -> None:
    sound = {"title": '"A"', "soc": '"B"', "targets": '["onnx"]'}
    key, _, value = line.partition(" = ")
    path = tmp_path / "board.toml"
    path.write_text("\n".join(f"{name} = {text}" for name, text in {**sound, key: value}.items()))
    with pytest.raises(Unreadable, match=said):
        devices.read_profile(path)


@dataclass(frozen=True)
class One:
    value: int


def test_a_missing_field_is_named() -> None:
    with pytest.raises(Unreadable, match="here has no value"):
        as_dataclass(One, {}, "here")


def test_only_a_regular_file_of_a_bounded_size_is_read(tmp_path: Path) -> None:
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    with large.open("wb") as file:
        file.truncate(2**40)
    for path, said in ((fifo, "is no file"), (large, "such a file has 1.05 MB at most"), (tmp_path, "Is a directory")):
        with pytest.raises(Unreadable, match=said):
            read_bytes(path, "record", 2**20)
    with pytest.raises(Unreadable, match="cannot read the record"):
        read_bytes(tmp_path / "a\0b", "record", 2**20)


# Weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save({"a.weight": torch.arange(64.0), "b.weight": torch.ones(8, 8)}, path)
    return path


def test_a_flipped_bit_in_a_checkpoint_is_refused_wherever_a_checksum_covers_it(weights: Path, tmp_path: Path) -> None:
    sound = weights.read_bytes()
    covered = []
    with zipfile.ZipFile(weights) as archive:
        for member in archive.infolist():
            name, extra = struct.unpack_from("<HH", sound, member.header_offset + 26)
            start = member.header_offset + 30 + name + extra
            covered += range(start, start + member.file_size)
    damaged = tmp_path / "w.pth"
    for at in covered[:: len(covered) // 60]:
        data = bytearray(sound)
        data[at] ^= 16
        damaged.write_bytes(data)
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoint.read(damaged)


def entries(content: bytes) -> list[int]:
    """Where the central directory's entries begin, which no checksum covers."""
    return [found.start() for found in re.finditer(rb"PK\x01\x02", content)]


def fingerprints(weights: Path, damaged: Path, places: Iterable[int], changes: Iterable[int]) -> set[str]:
    """Return the fingerprints of what is still read of a checkpoint that has one byte changed."""
    sound, found = weights.read_bytes(), set()
    for at, bits in itertools.product(places, changes):
        data = bytearray(sound)
        data[at] ^= bits
        damaged.write_bytes(data)
        with contextlib.suppress(CheckpointError):
            found.add(checkpoint.fingerprint(checkpoint.read(damaged)))
    return found


def test_what_an_entry_says_beside_its_name_and_checksum_changes_no_weight(weights: Path, tmp_path: Path) -> None:
    """PyTorch takes an entry with one bit of its attributes for a folder, and leaves its tensor's memory unwritten."""
    places = [at for entry in entries(weights.read_bytes())[4:6] for at in range(entry + 4, entry + 46)]
    wanted = checkpoint.fingerprint(checkpoint.read(weights))
    assert fingerprints(weights, tmp_path / "w.pth", places, (0x10, 0xFF)) == {wanted}


def test_whatever_the_records_at_an_archive_s_end_say_is_read_or_refused(weights: Path, tmp_path: Path) -> None:
    """PyTorch writes those of large archives, with a locator, for every one."""
    sound = weights.read_bytes()
    places = range(sound.rindex(b"PK\x06\x06"), len(sound))
    wanted = checkpoint.fingerprint(checkpoint.read(weights))
    assert fingerprints(weights, tmp_path / "w.pth", places, (0x01, 0xFF)) == {wanted}


def test_an_archive_that_only_pytorch_would_see_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(weights.read_bytes()[:-22])  # without the record at its end
    with pytest.raises(CheckpointError, match="is no PyTorch checkpoint"):
        checkpoint.read(tmp_path / "w.pth")


def test_a_full_disk_is_no_damage_to_a_checkpoint(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pickles, "copy_plainly", fill)
    with pytest.raises(OutputError, match=r"cannot copy w\.pth to check it: No space left"):
        checkpoint.read(weights)


@pytest.mark.parametrize("wrong", ["\x1b[2Jowned", "a\0b"])
def test_labels_are_a_text_of_a_bounded_size(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(f"tench\n{wrong}\n")
    with pytest.raises(BadInput, match="a label with a control character"):
        read_labels(tmp_path / "labels.txt")
    with pytest.raises(BadInput, match="is no file; wanted a UTF-8 text"):
        read_labels(Path("/dev/zero"))
    (tmp_path / "labels.txt").write_bytes(b"x\n" * 2**20)
    with pytest.raises(BadInput, match="wanted a UTF-8 text"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"prediction_channel_indices": ["a"]}, "a test/prediction_channel_indices"),
        ({"exogenous_channel_indices": 3}, "a test/exogenous_channel_indices must be"),
        ({"prediction_filter_length": "8"}, "a test/prediction_filter_length must be"),
        ({"mode": []}, "a test/mode must be"),
        ({"num_layers": 2**31}, "num_layers must be 65536 at most"),
        ({"d_model": 2**62}, "d_model must be 65536 at most"),
    ],
)
def test_a_forecaster_s_configuration_says_which_value_is_wrong(facts: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_config(facts, {}, "a test")


def bomb(path: Path, name: str, size: int) -> None:
    """Write an archive whose one member declares far more than it takes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(1000))
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = size.to_bytes(4, "little")
    path.write_bytes(data)


def test_an_archive_that_inflates_is_refused_before_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inflate(*_: Any) -> bytes:
        raise AssertionError("something was inflated")

    monkeypatch.setattr(zlib, "decompressobj", inflate)
    bomb(tmp_path / "w.pth", "archive/data/0", 4_000_000_000)
    with pytest.raises(CheckpointError, match=r"declares 4 GB; 268 MB are the most"):
        checkpoint.read(tmp_path / "w.pth")
    bomb(tmp_path / "set.npz", "x.npy", 4_000_000_000)
    with pytest.raises(BadInput, match=r"--inputs: .* declares 4 GB; 1\.07 GB are the most"):
        read_given(tmp_path / "set.npz", ["x"], [torch.zeros(1, 3)], None)


def test_an_array_that_declares_more_than_its_member_has_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**3)})
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    with pytest.raises(BadInput, match="declares 4e\\+03 GB in a file of"):
        read_given(tmp_path / "set.npz", ["x"], [torch.zeros(1, 3)], None)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_wrote_them(order: Any, tmp_path: Path) -> None:
    array = np.array(np.arange(24, dtype=np.float32).reshape(4, 6), order=order)
    np.savez(tmp_path / "set.npz", x=array)
    given, _ = read_given(tmp_path / "set.npz", ["x"], [torch.zeros(1, 6)], None)
    assert torch.equal(torch.cat([one[0] for one in given]), torch.from_numpy(array))


def test_an_archive_of_many_members_or_of_two_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(20):
            archive.writestr(f"{i}", b"")
    with pytest.raises(Unreadable, match="20 files in it, and 10 are the most"), open_archive(path, "a", Budget(10)):
        pass
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x", b"2")
    with pytest.raises(Unreadable, match="two members of one name"), open_archive(path, "a", Budget()):
        pass


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}'])
def test_a_safetensors_file_with_another_header_is_one_sentence(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(Unreadable, match="it is no sound safetensors file"):
        read_safetensors(path, "reference")


@pytest.mark.parametrize("content", [b"", b"\xa2\x06\x03abc"], ids=["nothing", "unknown fields"])
def test_a_message_that_says_nothing_is_no_model(content: bytes, tmp_path: Path) -> None:
    import onnx

    (path := tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(Unreadable, match="has no graph with outputs: it is empty, cut off or no ONNX file"):
        read_onnx(path)
    with pytest.raises(Unreadable, match="says nothing: it is empty or no such file"):
        parse_message(path, onnx.ModelProto(), "model")


NAMES = {
    "node": "a node's name",
    "operator": "an operator",
    "reads": "a value that is read",
    "made": "a value that is made",
    "domain": "a domain",
    "attribute": "an attribute's name",
    "batch": "a free size",
    "graph": "a graph's name",
    "inner": "a name in a branch's graph",
    "weights": "a tensor's name",
    "maker": "the program that wrote it",
    "key": "a key of the metadata",
}


@pytest.mark.parametrize("name", NAMES, ids=NAMES.values())
def test_a_name_in_an_onnx_file_that_is_no_text_is_one_sentence(name: str, tmp_path: Path) -> None:
    """Protobuf gives it as bytes, which everything that reads names would stumble over."""
    from onnx import TensorProto, helper

    inner = helper.make_graph([helper.make_node("Identity", ["reads"], ["inner"])], "branch", [], [])
    node = helper.make_node("operator", ["reads"], ["made"], name="node", domain="domain", attribute=inner)
    made = helper.make_tensor_value_info("made", TensorProto.FLOAT, ["batch", 3])
    tensor = helper.make_tensor("weights", TensorProto.FLOAT, [1], [1.0])
    model = helper.make_model(helper.make_graph([node], "graph", [], [made], [tensor]), producer_name="maker")
    helper.set_model_props(model, {"key": "value"})
    content, path = model.SerializeToString(), tmp_path / "m.onnx"
    path.write_bytes(content)
    assert read_onnx(path).graph.name == "graph"
    path.write_bytes(content.replace(name.encode(), b"\xff" + name.encode()[1:]))
    with pytest.raises(Unreadable, match=r"m\.onnx is damaged: a name in it is not UTF-8; export it again"):
        read_onnx(path)


def test_onnx_tensors_in_other_files_are_not_followed(tmp_path: Path) -> None:
    import onnx

    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(Unreadable, match="keeps the tensor w in another file"):
        read_onnx(path)


# Artifacts


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(b"a model")
    (folder / "notes").write_bytes(b"more")
    artifacts.write_manifest(folder, smallest_manifest())  # type: ignore[arg-type]  # a manifest
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "path",
    ["../m.onnx", "/etc/passwd", "./m.onnx", "a//b", "a/../m.onnx", "", ".", "a\\b", "C:x", "a\x1bb", "a\u202eb"],
)
def test_a_manifest_names_files_in_its_folder_only(path: str, made: Path) -> None:
    edit(made, lambda manifest: manifest.update(file=path))
    with pytest.raises(BadInput, match="is no path of a file in the folder"):
        artifacts.read(made)
    edit(made, lambda manifest: manifest.update(file="m.onnx"))
    edit(made, lambda manifest: manifest["files"].append({**manifest["files"][0], "path": path}))
    with pytest.raises(BadInput, match="is no path of a file in the folder"):
        artifacts.read(made)


CHECKED = {"step": "a -> b", "max_abs_error": 0.1, "relative_error": 0.1, "snr_db": 60.0}


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"step": "a -> b"}, "'a -> b' does not say what it came to"),
        ({key: value for key, value in CHECKED.items() if key != "snr_db"}, "'a -> b' has no snr_db"),
        ({**CHECKED, "noise": 1e-6}, "'a -> b' has no allowed"),
        (
            {**CHECKED, "worst": {"max_abs_error": 0.1, "relative_error": 0.1, "snr_db": 1.0, "allowed": 0.1}},
            "does not say which input was the worst",
        ),
    ],
)
def test_a_manifest_s_checks_are_whole(check: dict[str, Any], said: str, made: Path) -> None:
    edit(made, lambda manifest: manifest["verification"]["steps"].append(check))
    with pytest.raises(BadInput, match=f"no sound manifest: the check {said}|{said}"):
        artifacts.read(made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model["interface"].update(inputs=[]), "the file has no inputs, or no outputs"),
        (lambda model: model["interface"].update(outputs=[]), "the file has no inputs, or no outputs"),
        (lambda model: model["interface"]["inputs"][0].update(type="uint24"), "takes values of type 'uint24'"),
    ],
)
def test_use_says_what_no_program_can_be_written_for(
    change: Callable[[Any], object], said: str, export_small: Callable[..., Any], tmp_path: Path, edgesmith: Any
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(export_small("onnx").path, folder)
    edit(folder, lambda manifest: change(manifest["model"]))
    done = edgesmith("use", str(folder))
    assert done.returncode in (BadInput.exit_code, Unsupported.exit_code)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(files=[]), "does not list 'm.onnx'"),
        (lambda m: m.update(files=[f for f in m["files"] if f["path"] != "m.onnx"]), "does not list 'm.onnx'"),
        (lambda m: m.update(file="m"), "does not list 'm'"),
        (lambda m: m["files"].append(m["files"][0]), "lists a file twice"),
        (lambda m: m["files"][0].update(sha256="0"), "at /files/0/sha256"),
        (lambda m: m["files"][0].update(bytes=-1), "at /files/0/bytes"),
        (lambda m: m["files"][0].update(path="manifest.json"), "is no path of a file"),
        (lambda m: m.update(more=1), "'more' was unexpected"),
    ],
)
def test_a_manifest_lists_and_hashes_its_file(change: Callable[[Any], object], said: str, made: Path) -> None:
    edit(made, change)
    with pytest.raises(BadInput, match=said):
        artifacts.read(made)


def test_a_link_in_an_artifact_is_a_change_and_is_not_followed(made: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"a model")
    (made / "m.onnx").unlink()
    (made / "m.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="leads out of"):
        artifacts.read(made)
    (made / "m.onnx").unlink()
    (made / "m.onnx").symlink_to("notes")
    assert artifacts.changed_files(artifacts.read(made)) == ["m.onnx became a link"]


def test_a_wrong_number_of_bytes_is_noticed(made: Path) -> None:
    edit(made, lambda manifest: manifest["files"][0].update(bytes=8))
    assert artifacts.changed_files(artifacts.read(made)) == ["m.onnx has 7 bytes where the manifest says 8"]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"example_0.float32": torch.tensor([10**12])}, "is no shape of an input"),
        ({"example_0.float32": torch.tensor([-1])}, "is no shape of an input"),
        ({"example_0.float32": torch.tensor([1.0])}, "is no shape of an input"),
        ({"example_0.Tensor": torch.tensor([1])}, "it has a tensor 'example_0.Tensor'"),
        ({"input_x.output_0": torch.ones(1)}, "it has a tensor 'input_x.output_0'"),
        ({"input_1.output_0": torch.ones(1)}, "a tensor is missing"),
        ({"x": torch.ones(1)}, "it has a tensor 'x'"),
    ],
)
def test_a_reference_of_other_tensors_is_one_sentence(tensors: dict[str, torch.Tensor], said: str, made: Path) -> None:
    save_file(tensors, made / "reference.safetensors")
    with pytest.raises(Unreadable, match=said):
        artifacts.read_reference(artifacts.read(made))


# Limits


def test_a_command_that_does_not_end_is_stopped_and_so_is_what_it_started(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unreadable, match=r"a\.onnx took longer than the 0\.05 s that --limit allows"):
        limits.run_within(limits.Limit(0.05), ["models"], "a.onnx")
    assert not [line for line in children() if "edgesmith models" in line]


def children() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_command_is_refused_more_memory_than_it_may_have(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    large = tmp_path / "large.json"
    large.write_text("[" + "0.5," * 12_000_000 + "0]")  # 12 million floats take 400 MB
    with pytest.raises(Unreadable, match=r"was refused memory, within the 0\.25 GiB that --limit allows"):
        limits.run_within(limits.Limit(60, 0.25), ["inspect", str(large)], "large.json")


def test_a_command_within_its_limit_ends_with_its_own_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert limits.run_within(limits.Limit(120), ["verify", "nowhere"], "nowhere") == BadInput.exit_code
    assert "no artifact at nowhere" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "1,2,3", "1e9", "nan", "5,0", "5,0.1"])
def test_a_limit_is_seconds_and_gib(text: str) -> None:
    with pytest.raises(BadInput, match="--limit takes seconds"):
        limits.parse_limit(text)
    assert limits.parse_limit("60,2") == limits.Limit(60, 2)


def test_verify_within_a_limit_ends_a_file_with_an_endless_loop(
    export_small: Callable[..., Any], edgesmith: Callable[..., Any]
) -> None:
    import onnx

    artifact = export_small("onnx")
    model = onnx.load(str(artifact.file))
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["going"], ["on"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
        ],
        [onnx.helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, [])],
    )
    often = onnx.helper.make_tensor("often", onnx.TensorProto.INT64, [], [2**62])
    going = onnx.helper.make_tensor("always", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.extend([often, going])
    model.graph.node.append(onnx.helper.make_node("Loop", ["often", "always"], [], body=body, name="endless"))
    model.graph.node[-1].output.append("")
    artifact.file.write_bytes(model.SerializeToString())
    edit(artifact.path, lambda manifest: manifest.update(files=artifacts.list_files(artifact.path)))
    done = edgesmith("verify", str(artifact.path), "--limit", "12")
    assert done.returncode in (BadInput.exit_code, VerificationFailed.exit_code, 6)
    assert "Traceback" not in done.stderr


def test_telemetry_is_off_before_anything_is_imported() -> None:
    code = "import os, edgesmith, sys; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    bare = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}  # of this process
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
    assert done.stdout == "1 False\n"


# What looks like something


def test_a_random_file_that_begins_like_an_engine_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.engine"
    for magic in (b"ftrt", b"vtrt"):
        path.write_bytes(magic + bytes(range(60, 256)))
        with pytest.raises(Unsupported, match="begins like one, and says version"):
            engine.read_header(path)


def test_a_precision_that_a_run_decides_is_unknown() -> None:
    assert build.precision_of("N/A due to dynamic shapes") == build.UNKNOWN
    assert build.precision_of("Row major linear FP16 format") == "fp16"


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "..", "", "a\x1b"])
@pytest.mark.parametrize("key", ["model", "onnx"])
def test_a_kit_names_files_by_plain_names(key: str, name: str, export_small: Callable[..., Any]) -> None:
    kit = export_small("tensorrt", device="jetson-orin-nano", precision="fp16").path
    content = json.loads((kit / "kit.json").read_text())
    (kit / "kit.json").write_text(json.dumps({**content, key: name}))
    with pytest.raises(Unreadable, match=f"its {key} .* is no name of a file"):
        read_kit(kit)
    if key == "model":
        with pytest.raises(Refusal, match="is no name of an engine's file"):
            build.read_kit(kit)
