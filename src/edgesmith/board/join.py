"""One file for a board: the text of a module with that of board/common.py instead of its import.

    own docstring
    # joined from ...
    imports of both, sorted           those of board/common.py are gone
    if TYPE_CHECKING: ...             of both
    body of board/common.py
    own body

Both are Python 3.8 and import nothing else of edgesmith. The same sources give the same bytes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesmith.board import common

COMMON = common.__name__
GUARD = "if TYPE_CHECKING:  # Python 3.8 cannot subscript what the annotations name"


@dataclass(frozen=True)
class _Part:
    """A module's text in pieces; imports are without those of board/common.py.

    Attributes:
        typed: statements under `if TYPE_CHECKING:`.
        body: lines behind the imports, with their comments.
        names: that it defines at its top.
    """

    docstring: str
    imports: tuple[ast.stmt, ...]
    typed: tuple[ast.stmt, ...]
    body: str
    names: frozenset[str]


def join(own: Path) -> str:
    """Return a module's text as a file that needs nothing of edgesmith.

    Raises:
        ValueError: it imports something else of edgesmith, or defines a name that board/common.py has.
    """
    mine, shared = _take_apart(own), _take_apart(Path(common.__file__))
    twice = sorted(mine.names & shared.names)
    if twice:
        raise ValueError(f"{own.name} defines {twice[0]}, which {COMMON} has too: one would take the other's place")
    typed = [ast.unparse(one) for one in _merged((*shared.typed, *mine.typed))]
    return "\n".join(
        [
            f'"""{mine.docstring}"""\n',
            f"# Joined from {COMMON} and {own.name} of edgesmith when it was written; changes belong there.\n",
            "from __future__ import annotations\n",
            "\n".join(ast.unparse(one) for one in _merged((*shared.imports, *mine.imports))) + "\n",
            "\n".join([GUARD, *(f"    {line}" for one in typed for line in one.splitlines())]) + "\n",
            f"# The part that it shares with other files, {COMMON}.\n",
            f"{shared.body}\n",
            f"# Its own part, {own.name}.\n",
            mine.body,
        ]
    )


def _take_apart(file: Path) -> _Part:
    """A module's pieces."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    imports: list[ast.stmt] = []
    typed: list[ast.stmt] = []
    end = 0
    for node in tree.body[1:]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typed += node.body
        else:
            break
        end = node.end_lineno or end
    docstring = ast.get_docstring(tree, clean=False)
    assert docstring is not None
    _refuse_edgesmith(file, tree)
    return _Part(
        docstring,
        tuple(node for node in imports if not _is_joined(node)),
        tuple(node for node in typed if not _is_joined(node)),
        "\n".join(text.splitlines()[end:]).strip("\n") + "\n",
        frozenset(_names(tree.body)),
    )


def _is_joined(node: ast.stmt) -> bool:
    """Return whether a statement is an import that the joined text replaces."""
    return isinstance(node, ast.ImportFrom) and node.module in (COMMON, "__future__")


def _refuse_edgesmith(file: Path, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        other = next((name for name in named if name.split(".")[0] == "edgesmith" and name != COMMON), None)
        if other is not None:
            raise ValueError(f"{file.name} imports {other}, and where it runs there is nothing of edgesmith")


def _names(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that statements define."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _merged(nodes: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Imports without repetition, sorted: whole modules first, then names out of modules; other statements last."""
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    members: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            members.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
    others = {ast.unparse(node): node for node in nodes if not isinstance(node, ast.Import | ast.ImportFrom)}
    return [
        *(ast.Import([ast.alias(name)]) for name in sorted(modules)),
        *(
            ast.ImportFrom(name, [ast.alias(one) for one in sorted(members[name], key=_rank)], 0)
            for name in sorted(members)
        ),
        *others.values(),
    ]


def _rank(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then the others."""
    return not name.isupper(), not name[0].isupper(), name
