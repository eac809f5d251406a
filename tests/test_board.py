"""Files for devices that have nothing of edgesmith: what joining makes of a module, and what it refuses."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgesmith import telemetry
from edgesmith.bench import runner
from edgesmith.board import common
from edgesmith.board.join import join
from edgesmith.exporters.streaming import runner as stream
from edgesmith.exporters.tensorrt.kit import build

SOURCES = {name: Path(module.__file__) for name, module in (("runner", runner), ("build", build), ("stream", stream))}


@pytest.mark.wheel
@pytest.mark.parametrize("name", SOURCES)
def test_a_joined_file_is_python_3_8_and_needs_nothing_of_edgesmith(name: str, tmp_path: Path) -> None:
    text = join(SOURCES[name])
    assert join(SOURCES[name]) == text
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [one for one in imported if one.startswith("edgesmith")]
    assert ast.get_docstring(tree) == ast.get_docstring(ast.parse(SOURCES[name].read_text(encoding="utf-8")))
    assert f"# Joined from {common.__name__} and {SOURCES[name].name}" in text
    for line in Path(common.__file__).read_text(encoding="utf-8").splitlines():  # all of it, once
        if line.startswith(("def ", "class ")):
            assert text.splitlines().count(line) == 1, line
    (tmp_path / "file.py").write_text(text, encoding="utf-8")
    code = "import runpy; runpy.run_path('file.py'); import sys; sys.exit('edgesmith' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_telemetry_is_off_on_boards_as_it_is_here() -> None:
    assert common.TELEMETRY_OFF == telemetry.TELEMETRY_OFF


def test_the_joined_runner_answers(tmp_path: Path) -> None:
    (tmp_path / "runner.py").write_text(join(SOURCES["runner"]), encoding="utf-8")
    plan = {"models": [], "seconds": 0, "seed": 0}
    command = [sys.executable, "-I", "runner.py"]
    done = subprocess.run(command, input=json.dumps(plan), cwd=tmp_path, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "about", "end"]
    assert events[1]["machine"] == common.machine()


OWN = '''"""A module for boards."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edgesmith.board.common import median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgesmith.board.common import Call

LEAST = 1
"""Of all."""


def main(values: Sequence[float]) -> float:  # its comment stays
    """Do it."""
    return max(LEAST, median(values))
'''


def test_a_module_keeps_its_text_and_its_imports(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    text = join(own)
    assert text.startswith('"""A module for boards."""\n')
    assert text.endswith(OWN[OWN.index("LEAST") :])
    scope: dict[str, object] = {}
    exec(compile(text, "own.py", "exec"), scope)
    assert scope["main"]([3.0, 4.0, 5.0]) == 4.0  # type: ignore[operator]
    assert text.count("from typing import TYPE_CHECKING, Any") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("import sys\n", "import sys\n\nfrom edgesmith.errors import BadInput\n"), "own.py imports edgesmith.errors"),
        (("import sys\n", "import sys\n\nimport edgesmith.records\n"), "own.py imports edgesmith.records"),
        (("def main(", "def median("), "own.py defines median, which edgesmith.board.common has too"),
    ],
)
def test_what_cannot_be_joined_is_refused(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN.replace(*change))
    with pytest.raises(ValueError, match=said):
        join(own)
