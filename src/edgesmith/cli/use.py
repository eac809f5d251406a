"""The command `use`: the few lines that run an artifact's file."""

from __future__ import annotations

from edgesmith.cli import options as given
from edgesmith.cli.tables import print_json, print_lines
from edgesmith.readers import apart

INTERFACE = "edgesmith.exporters.targets:read_interface"
"""Of a target's name and a file's path: what the file itself declares. Native code reads some files."""


def use(artifact: given.ArtifactPath, lang: given.Language = None, as_json: given.Json = False) -> None:
    """Show how an artifact's file is run: inputs, outputs and programs in Swift, Kotlin, C++ or Python."""
    from edgesmith.exporters import targets
    from edgesmith.exporters.artifact import read
    from edgesmith.exporters.usage.facts import read_facts
    from edgesmith.exporters.usage.guide import code_in, page

    found = read(artifact)
    target = targets.get(found.target)
    is_older = "interface" not in found.manifest["model"]
    declared = apart.call(INTERFACE, [found.target, str(found.file.absolute())], found.file.name) if is_older else None
    facts = read_facts(found.manifest, declared)
    snippets = target.snippets(facts, found.manifest)
    if as_json:
        programs = [{"language": one.language, "runtime": one.runtime, "code": one.code} for one in snippets]
        print_json({"path": str(found.path), "file": facts.file, "programs": programs})
    elif lang is not None:
        print_lines(code_in(lang, facts, snippets))
    else:
        print_lines(page(facts, snippets))
