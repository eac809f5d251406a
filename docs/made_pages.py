"""A hook of mkdocs: pages that are made of the code, so that they say what it says. Nothing of edgesmith is imported.

api.md          what `import edgesmith` has, and what plugins are made of, from docstrings
families.md     the families of models, and families/NAME.md for each, from its TOML file and what was measured
schemas.md      the JSON schemas of what commands write and print, and the schemas themselves
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

API = {
    "Exporting and checking": [
        ("exporters/export.py", "export"),
        ("exporters/options.py", "ExportOptions"),
        ("exporters/options.py", "ModelOptions"),
        ("exporters/export.py", "explain"),
        ("exporters/verify.py", "verify_artifact"),
        ("exporters/verify.py", "verify_layers"),
        ("exporters/departures/lint.py", "lint"),
        ("exporters/session.py", "StreamingSession"),
        ("exporters/streaming/stepper.py", "Stepper"),
        ("exporters/artifact.py", "Artifact"),
        ("models/front_end.py", "FrontEnd"),
        ("bench/pytest_plugin.py", "check_latency"),
    ],
    "Plugins": [
        ("kernels/op.py", "FusedOp"),
        ("exporters/rewrites/rewrite.py", "rewrites"),
        ("exporters/rewrites/rewrite.py", "Reject"),
        ("exporters/targets/target.py", "Target"),
        ("exporters/targets/target.py", "TargetFile"),
        ("exporters/costs.py", "Costs"),
        ("exporters/precision/table.py", "Precision"),
        ("profiles/device.py", "DeviceProfile"),
        ("src/edgesmith/errors.py", "EdgesmithError"),
    ],
}
"""What has a place in the reference, by chapter: a file, and a class or function in it."""

CALLED = {"verify_artifact": "edgesmith.verify", "verify_layers": "edgesmith.layers"}
"""Names in `edgesmith` that are not those of the code."""

PUBLIC = ("export", "explain", "lint", "StreamingSession")

SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    made = {"api.md": api(), "families.md": families(), "schemas.md": schemas()}
    made |= {f"families/{facts['family']}.md": family(facts) for facts in all_facts()}
    made |= {f"schemas/{path.name}": path.read_text(encoding="utf-8") for path in all_schemas()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


# The reference.


def api() -> str:
    """Return the reference of the Python interface."""
    parts = ["# Python interface", "", "Importing `edgesmith` imports nothing heavy; the first call does.", ""]
    for chapter, entries in API.items():
        parts += [f"## {chapter}", ""]
        for file, name in entries:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            node = next(one for one in tree.body if getattr(one, "name", None) == name)
            parts += _entry(node, _public_name(file, name), "###")
    return "\n".join(parts) + "\n"


def _public_name(file: str, name: str) -> str:
    if name in CALLED or name in PUBLIC:
        return CALLED.get(name, f"edgesmith.{name}")
    module = file.removeprefix("src/").removeprefix("edgesmith/").removesuffix(".py").replace("/", ".")
    return f"edgesmith.{module}.{name}"


def _entry(node: Any, name: str, heading: str) -> Iterator[str]:
    """Yield a class with its public methods, or a function."""
    yield f"{heading} {name.rpartition('.')[2]}"
    yield ""
    yield f"```python\n{_signature(node, name)}\n```"
    yield ""
    yield from _described(ast.get_docstring(node, clean=False) or "")
    if isinstance(node, ast.ClassDef):
        for one in node.body:
            if isinstance(one, ast.FunctionDef) and not one.name.startswith("_") and ast.get_docstring(one):
                kind = " (property)" if any("property" in ast.unparse(d) for d in one.decorator_list) else ""
                yield f"**`{_signature(one, one.name)}`**{kind}"
                yield ""
                yield from _described(ast.get_docstring(one, clean=False) or "")


def _signature(node: Any, name: str) -> str:
    """Return how something is called."""
    if isinstance(node, ast.ClassDef):
        made = next((one for one in node.body if getattr(one, "name", None) == "__init__"), None)
        return _signature(made, name) if made else f"class {name}"
    arguments = node.args
    for group in (arguments.posonlyargs, arguments.args):
        group[:] = [one for one in group if one.arg not in ("self", "cls")]
    said = f"({ast.unparse(arguments)})".replace("(options: ", "(model, target, **options: ")
    returned = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"{name}{said}{returned}"


def _described(text: str) -> Iterator[str]:
    """Yield a docstring as Markdown: sections become lists, what is indented stays code."""
    section = False
    for line in cleandoc(text).splitlines():
        if SECTION.match(line):
            section = True
            yield f"*{line.removesuffix(':')}*"
            yield ""
        elif section and line.startswith("    ") and not line.startswith("        ") and line.strip():
            name, colon, rest = line.strip().partition(":")
            is_named = colon and re.fullmatch(r"[\w*, ]+", name)
            yield f"- **{name}**:{rest}" if is_named else f"- {line.strip()}"
        elif section and line.startswith("        "):
            yield f"  {line.strip()}"
        else:
            section = section and not line.strip()
            yield line
    yield ""


# The families.


def all_facts() -> list[dict[str, Any]]:
    """Return the facts of every family."""
    return [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "models").glob("*.toml"))]


def families() -> str:
    """Return the list of families."""
    rows = [
        f"| [{one['family']}](families/{one['family']}.md) | {one.get('task', 'several')} | {len(one['models'])} |"
        f" {_papers(one['paper'])} | {one['licence']} |"
        for one in all_facts()
    ]
    head = ["# Families of models", "", "| family | task | models | paper | licence |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", "All models in one table: [Models](models.md)."]) + "\n"


def family(facts: dict[str, Any]) -> str:
    """Return the page of a family."""
    name = facts["family"]
    comment = _comment(ROOT / "models" / f"{name}.toml")
    rows = [_row(model, {**facts, **own}) for model, own in facts["models"].items()]
    first = next(iter(facts["models"]))
    parts = [
        f"# {name}",
        "",
        f"Paper: {_papers(facts['paper'])}. Originals: {_links(facts['source'])}. Licence: {facts['licence']}.",
        "",
        "| model | task | parameters | MACs | input | top-1, published |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        *([*comment, ""] if comment else []),
        "## Measured",
        "",
        *_measured(set(facts["models"])),
        "",
        "## To a file",
        "",
        f"    edgesmith export --model {first} --target onnx",
        f"    edgesmith estimate --model {first} --target onnx --device rpi5",
        "",
        "Checkpoints in the authors' layout load by `--weights`; weights are the authors' to give. "
        "[Every option](../export.md), [estimates](../estimates.md).",
    ]
    return "\n".join(parts) + "\n"


def _row(model: str, facts: dict[str, Any]) -> str:
    top1 = " / ".join(f"{one} %" for one in facts.get("top1", []))
    shape = " x ".join(map(str, facts.get("input", {}).get("shape", [])))
    sizes = (f"{facts['params'] / 1e6:.2f} M", f"{facts['macs'] / 1e6:,.0f} M")
    return f"| `{model}` | {facts.get('task', '')} | {sizes[0]} | {sizes[1]} | {shape} | {top1} |"


def _comment(path: Path) -> list[str]:
    """Return a TOML file's words on what its figures count: the comment that it begins with, but for its first line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return ["```text", *lines[2:], "```"] if len(lines) > 2 else []


def _measured(models: set[str]) -> list[str]:
    """Return the latencies that come with the package, of some models."""
    rows = []
    for path in sorted((ROOT / "profiles" / "measured").glob("*/*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        if one["model"] in models:
            middle = sorted(launch[0] for launch in one["quantiles_ms"])[len(one["quantiles_ms"]) // 2]
            where = f"{one['device']['name']}: {one['device']['cpu']}"
            rows.append(f"| `{one['model']}` | {one['target']} | {one['precision']} | {where} | {middle:.2f} |")
    if not rows:
        return ["Nothing was measured of this family; `edgesmith bench --model NAME` does so."]
    head = ["| model | target | precision | device | p50, ms |", "|---|---|---|---|---|"]
    return [*head, *rows, "", "With intervals and conditions: [Latency](../latency.md#measured)."]


def _papers(text: str) -> str:
    return re.sub(r"arXiv:([\d.]+)", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _links(text: str) -> str:
    return re.sub(r"https://([^\s,]+)", r"<https://\1>", text)


# The schemas.


def all_schemas() -> list[Path]:
    """Return the schemas of the package."""
    return sorted(path for folder in ("exporters", "bench", "src") for path in (ROOT / folder).rglob("*.schema.json"))


def schemas() -> str:
    """Return the page of schemas."""
    parts = ["# JSON schemas", "", "What commands write and print by `--json`, as JSON Schema 2020-12.", ""]
    for path in all_schemas():
        schema = json.loads(path.read_text(encoding="utf-8"))
        parts += [f"## {schema.get('title', path.name)}", "", schema.get("description", ""), ""]
        parts += [f"[{path.name}](schemas/{path.name})", "", "| key | required | |", "|---|---|---|"]
        needed = set(schema.get("required", []))
        for key, about in schema.get("properties", {}).items():
            said = " ".join(str(about.get("description", "")).split()).replace("|", "\\|")
            parts.append(f"| `{key}` | {'yes' if key in needed else ''} | {said} |")
        parts.append("")
    return "\n".join(parts) + "\n"
