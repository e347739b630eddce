"""The dossier of a request made up here, and a reader of its page."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from gru_fast.forget import dossier
from gru_fast.forget.exam import Findings
from gru_fast.forget.level import Level
from gru_fast.forget.measures import Extraction, Known
from gru_fast.forget.watch import Point

EVIL = "</dd><script>alert(1)</script> | *bold* `code` <!-- &amp;"
UNSEEN = [Known(str(i), 9, 0.01 * (i + 1), 0.1 * (i + 1), 0.0) for i in range(3)]
LEVEL, OWN = Level.of("holdout", UNSEEN), Level.of("self-written", UNSEEN)


def findings(exact: float, written: str, run: int) -> Findings:
    forget = [Known(name, 40, exact / 2, exact, exact / 3) for name in (f"leak/{EVIL}.txt", "leak/b.txt")]
    wrote = [
        Extraction("leak/b.txt", 0, "When in", EVIL, written, rougeL_recall=0.5, longest_run=run, words=12, exact=0.25)
    ]
    return Findings(forget, UNSEEN, {"retain": 10.0 if exact > 0.5 else 10.4}, {"mia_loss": exact}, wrote)


def manifest(verdict: str = "removed", still: Sequence[str] = (), level: Level = LEVEL) -> dict[str, Any]:
    """Of two documents, both known before but "new"."""
    before, after = findings(0.9, EVIL, 9), findings(0.1, "something else", 1)
    measures = {
        "before": before.to_json(), "after": after.to_json(), "kept": 10 / 10.4, "known_before": 2,
        "known_after": len(still),
    }  # fmt: skip
    point = Point(5, {"exact_memorization": 0.1, "probability": 0.05}, 0, True, 0.96, {}, alpha=0.5)
    return {
        "verdict": verdict, "rule": level.rule(), "level": level.to_json(), "measures": measures,
        "command": "gru-fast forget --forget leak/", "finished": "2026-01-01T00:00:00+00:00",
        "model": {"name": "m", "files": {"model.safetensors": "aa"}}, "result": {"files": {"model.safetensors": "bb"}},
        "still_known": {name: ["probability"] for name in still}, "never_known": ["new"],
        "documents": {"forget": [{"id": "a"}, {"id": "b"}]},
        "options": {"keep": 0.95, "method": "npo_gd", "rectify": True},
        "training": {"learning_rate": 1e-5, "steps": 5, "seconds": 61.0}, "edge": [point.to_json()], "earlier": [],
        "versions": {"torch": "2.13"}, "environment": {"devices": ["cpu"]},
    }  # fmt: skip


def view(said: dict[str, Any]) -> dossier.View:
    before, after = (Findings.from_json(said["measures"][when]) for when in ("before", "after"))
    points = [Point(2, {"exact_memorization": 0.4, "probability": 0.2}, 1, False, 0.99, {})]
    return dossier.View(Path(), said, before, after, LEVEL, points)


class Reader(HTMLParser):
    """Elements that are open at the end, scripts, and all text."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
