"""The paper's own values, to stand beside ours where backbone, split and setting are the same.

They lie in paper.json, one entry a row of the paper's tables:

    use        comparison, sensitivity, ablation or calibration
    table      of the paper
    backbone   as the paper names it
    split      of the benchmark; null: the row does not depend on it
    method     title as in its tables; "Original", "Retrained"
    variant    plain, clipped or gru; empty for a model that has unlearned nothing
    settings   gamma, tau, target: what the table varies, as far as it is known
    scores     by heading, as printed
    source     only where a value is not from the paper: whose it is
    note       only where one is needed

To add a row that is not there, add its entry; nothing else has to change. A value that is not in the file is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from gru_fast.runs.files import read_json

FILE = Path(__file__).with_name("paper.json")
FOREIGN = "†"  # behind a value that is not from the paper


@dataclass(frozen=True)
class Entry:
    """A row of the paper's tables, as in paper.json."""

    use: str
    table: str
    backbone: str
    split: str | None
    method: str
    variant: str
    scores: Mapping[str, str]
    settings: Mapping[str, float | None] = field(default_factory=dict)
    source: str = ""
    note: str = ""

    def shown(self, heading: str) -> str | None:
        """A score as printed, marked where it is not from the paper; None where it is not known."""
        printed = self.scores.get(heading)
        return printed and printed + (FOREIGN if self.source else "")


@cache
def entries() -> Sequence[Entry]:
    """All there are."""
    return [Entry(**content) for content in read_json(FILE)]


def find(
    use: str, backbone: str, split: str, method: str, variant: str = "", **settings: float | None
) -> Mapping[str, str]:
    """What the paper has for a row, by heading; empty where nothing is known.

    Args:
        settings: values that the table varies; an entry without one of them does not match.
    """
    found: dict[str, str] = {}
    for entry in entries():
        is_it = (
            (entry.use, entry.method, entry.variant) == (use, method, variant)
            and _same(entry.backbone, backbone)
            and (entry.split is None or entry.split.casefold() == split.casefold())
            and all(name in entry.settings and entry.settings[name] == value for name, value in settings.items())
        )
        if is_it:
            for heading in entry.scores:
                found.setdefault(heading, str(entry.shown(heading)))
    return found


def foreign_sources() -> str:
    """Whose the marked values are."""
    return "; ".join(dict.fromkeys(entry.source for entry in entries() if entry.source))


def _same(ours: str, theirs: str) -> bool:
    """Whether two names are one backbone: "Llama-2-7B-chat" and "llama2-7b-chat-hf" are."""
    a, b = (re.sub(r"[^a-z0-9]", "", name.casefold()).removesuffix("hf") for name in (ours, theirs))
    return bool(a) and a == b
