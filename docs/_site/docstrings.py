"""An extension of griffe: docstrings as Markdown. They are written to be read in the source."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]*\.)?(\w+)`")  # :class:`~gru_fast.a.B` -> `B`
BLOCK = re.compile(r"::$", re.MULTILINE)  # what an indented block follows
SESSION = re.compile(r"^( *)>>> .*(?:\n\1(?=\S).*)*", re.MULTILINE)  # an example, to the next blank line
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)  # `a, b: what both are`


def markdown(text: str) -> str:
    """Roles become code, the double colon before a block a single one, examples blocks; `a, b: ...` an entry each."""
    text = BLOCK.sub(":", ROLE.sub(r"`\1`", text))
    text = SESSION.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
    return SEVERAL.sub(lambda f: "\n".join(f"{f[1]}{name}: {f[3]}" for name in f[2].split(", ")), text)


class Markdown(griffe.Extension):
    """Puts :func:`markdown` between the sources and the pages."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
