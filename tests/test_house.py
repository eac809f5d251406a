"""The house's own rules, as far as a program can tell: sizes of functions, how docstrings begin, what asks whom."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("src/edgesmith", "kernels", "models", "profiles", "exporters", "bench")
LONGEST = 60
BOARD_FILES = ("bench/runner.py", "exporters/tensorrt/kit/build.py", "exporters/streaming/runner.py")
"""They run where nothing else of edgesmith is, as one file."""


@pytest.fixture(scope="module")
def functions(checkout: Path) -> list[tuple[str, ast.FunctionDef]]:
    return [(f"{path} {node.name}", node) for path, tree in trees(checkout) for node in walk_functions(tree)]


def trees(checkout: Path) -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((checkout / folder).rglob("*.py")):
            yield path.relative_to(checkout).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def walk_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def length(node: ast.FunctionDef) -> int:
    """Return a function's lines, from `def` to its end, with its docstring."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_functions_are_short(functions: list[tuple[str, ast.FunctionDef]]) -> None:
    long = {name: length(node) for name, node in functions if length(node) > LONGEST}
    assert not {name: lines for name, lines in long.items() if not name.startswith(BOARD_FILES)}


def test_docstrings_begin_with_a_verb_or_a_noun(checkout: Path) -> None:
    wrong = []
    for path, tree in trees(checkout):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                words = (ast.get_docstring(node) or "").split()
                if words and words[0] in ("What", "Whether", "Where", "Why", "When", "How"):
                    wrong.append(f"{path} {getattr(node, 'name', 'module')}: {' '.join(words[:6])}")
    assert not wrong, f"{len(wrong)} docstrings: {wrong[:20]}"


def test_nobody_asks_a_target_what_it_has(checkout: Path) -> None:
    asked = []
    for path, tree in trees(checkout):
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            of = node.args[0] if node.args else None
            is_target = isinstance(of, ast.Name) and of.id in ("target", "backend", "to")
            is_its_target = isinstance(of, ast.Attribute) and of.attr == "backend"
            if node.func.id in ("hasattr", "getattr") and (is_target or is_its_target):
                asked.append(f"{path}:{node.lineno}")
    assert not asked


TARGETS = ("onnx", "coreml", "coreai", "tensorrt", "tvm")


def is_target_name(node: ast.expr) -> bool:
    """Return whether an operand of a comparison is the name of a target, or a collection that has one."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(is_target_name(one) for one in node.elts)
    return isinstance(node, ast.Constant) and node.value in TARGETS


def test_no_target_is_compared_by_name_outside_its_own_files(checkout: Path) -> None:
    compared = []
    for path, tree in trees(checkout):
        if path in BOARD_FILES or path.startswith(("exporters/targets/", "kernels/")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and any(is_target_name(one) for one in (node.left, *node.comparators)):
                compared.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert not compared


def test_the_command_line_imports_itself_at_the_top(checkout: Path) -> None:
    inside = []
    for path, tree in trees(checkout):
        if path == "src/edgesmith/__main__.py":  # so that Ctrl-C is answered while the command line is imported
            continue
        for function in walk_functions(tree):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgesmith.cli"):
                    inside.append(f"{path}:{node.lineno}")
    assert not inside


READS = {
    "json": ("load", "loads"),
    "tomllib": ("load", "loads"),
    "np": ("load", "genfromtxt", "loadtxt", "fromfile"),
    "numpy": ("load", "genfromtxt", "loadtxt", "fromfile"),
    "torch": ("load",),
    "onnx": ("load", "load_model", "load_from_string", "load_model_from_string"),
    "sqlite3": ("connect",),
    "zipfile": ("ZipFile", "Path", "is_zipfile"),
    "tarfile": ("open", "TarFile"),
    "pickle": ("load", "loads", "Unpickler"),
    "yaml": ("load", "safe_load"),
    "ElementTree": ("parse", "fromstring"),
}
"""Functions that open foreign files, by their module."""

READING_METHODS = ("ParseFromString", "MergeFromString", "load_file", "safe_open")
READING_MODULES = ("tomllib", "zipfile", "tarfile", "pickle", "yaml", "safetensors")

READING = {
    "bench/history.py": {"sqlite3.connect"},  # its own file, which it writes; what it reads goes through readers/
    "bench/runner.py": {
        "json.load",
        "json.loads",
    },  # on a board, without edgesmith: its plan, a runtime's profile
    "bench/iphone_runner.py": {"json.load", "json.loads"},  # as above
    "exporters/streaming/runner.py": {"json.loads", "numpy.load"},  # as above: its own manifest, and its user's frames
    "exporters/tensorrt/kit/build.py": {"json.loads", "numpy.load"},  # as above: its kit, compared with digests first
}
"""Files outside `readers` that open something themselves."""

OWN_OUTPUT = "bench/experiments/"
"""Experiments read what they have written themselves a moment before."""


def opened_by(tree: ast.Module) -> Iterator[str]:
    """Yield the calls and imports of a module that open foreign files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value).rpartition(".")[2], node.func.attr
            if name in READS.get(owner, ()) or name in READING_METHODS:
                yield f"{owner}.{name}"
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.partition(".")[0] in READING_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in READING_MODULES:
            yield from (f"{node.module}.{one.name}" for one in node.names if one.name != "save")


def test_nothing_but_the_readers_opens_foreign_files(checkout: Path) -> None:
    found = {}
    for path, tree in trees(checkout):
        if not path.startswith(("src/edgesmith/readers/", OWN_OUTPUT)):
            more = set(opened_by(tree)) - READING.get(path, set())
            found |= {path: more} if more else {}
    assert not found, f"read them by edgesmith.readers: {found}"


@pytest.mark.parametrize(
    "line",
    [
        *("import json; json.loads(text)", "import numpy as np; np.load(path)", "import torch; torch.load(path)"),
        *("import zipfile", "from safetensors.torch import load_file", "model.ParseFromString(content)"),
        *("import sqlite3; sqlite3.connect(path)", "import tomllib", "import onnx; onnx.load(path)"),
    ],
)
def test_an_opened_file_is_found(line: str) -> None:
    assert list(opened_by(ast.parse(line)))


def test_the_command_line_prints_by_its_tables_alone(checkout: Path) -> None:
    """`tables.print_line` makes foreign text fit for a terminal; `print` does not."""
    printed = []
    for path, tree in trees(checkout):
        if not path.startswith("src/edgesmith/cli/") or path.endswith("/tables.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printed.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    own = ("print(f'edgesmith {__version__}')", "print(context.get_help())", "print(in_json(")
    assert not [line for line in printed if not line.partition(" ")[2].startswith(own)]


def known_models(checkout: Path) -> set[str]:
    """The names of families and models of the zoo."""
    files = list((checkout / "models").glob("*.toml"))
    words = {path.stem for path in files}
    return words | {
        name for path in files for name in tomllib.loads(path.read_text(encoding="utf-8")).get("models", {})
    }


def model_names_in(tree: ast.Module, models: set[str]) -> list[str]:
    """Return the lines of code that have a model's name: as a word in a string, or in a name of the code's own."""
    found = []
    for node in ast.walk(tree):
        words: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value.strip():
            words = [node.value]
        elif isinstance(node, ast.Name | ast.Attribute | ast.FunctionDef | ast.ClassDef | ast.alias):
            words = [getattr(node, "id", None) or getattr(node, "attr", None) or node.name]  # type: ignore[attr-defined]  # one has each
        elif isinstance(node, ast.ImportFrom):
            words = [node.module or ""]
        for word in words:
            if not any(model in word.lower() for model in models):
                continue
            if any(
                part in models
                for part in re.split(r"[^a-z0-9]+", word.lower()) + re.split(r"[^a-z0-9_]+", word.lower())
            ):
                found.append(f"{getattr(node, 'lineno', 0)} {word}")
    return found


def test_nothing_in_the_compiler_knows_a_model_by_name(checkout: Path) -> None:
    models = known_models(checkout)
    assert {"casvit", "iformer", "transnext"} <= models
    known = {
        path: names
        for path, tree in trees(checkout)
        if path.startswith(("exporters/", "kernels/")) and (names := model_names_in(tree, models))
    }
    assert not known


@pytest.mark.parametrize(
    "line",
    [
        "from edgesmith.models.casvit import CasViT",
        "if spec.family == 'iformer': pass",
        "def fold_affnet(): pass",
        "rules = {'efficientvim_m1': 3}",
    ],
)
def test_a_models_name_is_found(line: str, checkout: Path) -> None:
    assert model_names_in(ast.parse(line), known_models(checkout) | {"efficientvim_m1"})


def test_examples_in_docstrings_give_what_they_say(checkout: Path) -> None:
    with_examples = [path for path, tree in trees(checkout) if any(">>> " in text for text in docstrings(tree))]
    assert len(with_examples) >= 5
    for path in with_examples:
        name = path.removeprefix("src/edgesmith/").removesuffix(".py").replace("/", ".")
        found = doctest.testmod(importlib.import_module(f"edgesmith.{name}"))
        assert found.attempted, path
        assert not found.failed, path


def docstrings(tree: ast.Module) -> Iterator[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds))


def test_every_decision_is_in_the_index_once_and_in_order(checkout: Path) -> None:
    folder = checkout / "docs" / "decisions"
    listed = re.findall(r"^\| \[(\d{4})\]\((\d{4}-[\w-]+\.md)\) \|", (folder / "README.md").read_text(), re.MULTILINE)
    assert [file for _, file in listed] == sorted(path.name for path in folder.glob("0*.md"))
    assert all(file.startswith(number) for number, file in listed)
