"""The house's own rules, as far as a program can tell: sizes of functions, how docstrings begin, what asks whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("src/edgesmith", "kernels", "models", "profiles", "exporters", "bench")
LONGEST = 60
BOARD_FILES = ("bench/runner.py", "exporters/tensorrt/kit/build.py")
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


TARGETS = ("onnx", "coreml", "coreai", "tensorrt")


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
