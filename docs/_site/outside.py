"""A hook of mkdocs: README.md is the first page, and a link to a file outside docs/ takes that file into the site.

Links in the sources are those of the repository, so that they work there and in a checkout. Each is rewritten to where
its file is in the site: README.md is index.md, what is under docs/ keeps its path, all else is below repository/.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FIRST = ROOT / "README.md"
# [text](target), not in code: a target without a scheme, with or without an anchor.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)(?=[)#])")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def place_of(path: Path) -> str:
    """Where a file of the repository is in the site."""
    if path == FIRST:
        return "index.md"
    return (path.relative_to(DOCS) if path.is_relative_to(DOCS) else "repository" / path.relative_to(ROOT)).as_posix()


def linked(page: Path, text: str) -> Iterator[Path]:
    """The files of the repository that a page links to."""
    for part in CODE.split(text)[::2]:
        for target in LINK.findall(part):
            path = (page.parent / target).resolve()
            if path.is_file() and path.is_relative_to(ROOT):
                yield path


def on_files(files: Files, config: Any) -> Files:
    """Adds README.md, and whatever pages link to outside docs/, and what that links to."""
    waiting = [FIRST, *(Path(str(file.abs_src_path)) for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if path == FIRST or not path.is_relative_to(DOCS):
            files.append(File.generated(config, place_of(path), abs_src_path=str(path)))
        if path.suffix == ".md":
            found = set(linked(path, path.read_text(encoding="utf-8"))) - seen
            seen |= found
            waiting += sorted(found)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them."""
    here = Path(page.file.abs_src_path)

    def moved(match: re.Match[str]) -> str:
        path = (here.parent / match[0]).resolve()
        if not (path.is_file() and path.is_relative_to(ROOT)):
            return match[0]  # strict mode says so
        return posixpath.relpath(place_of(path), posixpath.dirname(page.file.src_uri) or ".")

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)
