"""MkDocs hooks: pages from other folders of the repository, links to them, and the reference pages.

MkDocs calls the functions named ``on_...`` (https://www.mkdocs.org/user-guide/configuration/#hooks).
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import reference  # MkDocs imports a hook with its folder on the path
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]

OUTSIDE = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "notebooks/README.md",
    "results/rates/README.md",
    *sorted(f"results/{path.name}" for path in ROOT.glob("results/*.md")),
)
"""Pages of the site from outside ``docs/``; they keep their paths."""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside ``docs/``, their pictures, and the reference pages."""
    for name, text in reference.pages().items():
        files.append(File.generated(config, name, content=text))
    pictures = set()
    for page in OUTSIDE:
        files.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
        for prefix, target, _ in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            if prefix.startswith("!") and "://" not in target:
                pictures.add(posixpath.normpath(posixpath.join(posixpath.dirname(page), target)))
    for picture in sorted(pictures):
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links between files of the repository to pages of the site, or otherwise to the repository."""
    source = page.file.src_uri
    in_docs = (ROOT / "docs" / source).is_file()
    here = f"docs/{source}" if in_docs else source

    def resolved(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match.group(0)
        place = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        site = place.removeprefix("docs/")
        fragment = f"#{anchor}" if anchor else ""
        if files.get_file_from_path(site) is not None:
            relative = os.path.relpath(site, posixpath.dirname(source) or ".")
            return f"{before}{relative}{fragment}{after}"
        if not (ROOT / place).exists():
            return match.group(0)  # MkDocs then reports the page and the link
        return f"{before}{config.repo_url}/blob/main/{place}{fragment}{after}"

    return LINK.sub(resolved, markdown)
