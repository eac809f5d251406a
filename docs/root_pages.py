"""A hook of mkdocs: the pages at the repository's root become pages of the site, with their links."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
SOURCE = re.compile(r"\[[^\]]*\]\((?:\.\./)+((?:examples|exporters)/[^)]*)\)")
"""A link to a file of the source, which the site has no page of: its path is said."""

PAGES = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "DESIGN.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages, as if they lay in docs/."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links to the root's pages lead to where they are in the site."""
    names = "|".join(map(re.escape, PAGES))
    markdown = SOURCE.sub(r"`\1`", markdown)
    return re.sub(rf"\]\(\.\./((?:\.\./)*(?:{names}))", r"](\1", markdown)
