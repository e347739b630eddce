"""The paper's own values, to stand beside ours where backbone, split and setting are the same.

They lie in paper.json, one entry a row of the paper's tables:

    use        comparison, sensitivity, ablation or calibration
    table      of the paper
    backbone   as the paper names it
    split      of the benchmark; null: the row does not depend on it, or there is but one
    method     title as in its tables; "Original", "Retrained"
    variant    plain, clipped or gru; empty for a model that has unlearned nothing, and for task vectors
    settings   gamma, tau, strength, target, corpus: all that a run must share to stand beside it; "not stated": the
               paper does not say
    scores     by heading, as printed: MU and accuracies in 0..1, FQ as ln p, MUSE's in percent
    note       what is wrong, inferred or not said; such values are marked
    unshown    why it stands in no table of the studies that come with the package

gamma and tau of the comparison are those of the paper's Appendix D, as in the recipes. To add a row that is not there,
add its entry; nothing else has to change. A value that is not in the file is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from gru_fast.runs.files import read_json

FILE = Path(__file__).with_name("paper.json")
MARK = "†"  # behind a value that has a note
NOT_STATED = "not stated"

Setting = float | str | None


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
    settings: Mapping[str, Setting] = field(default_factory=dict)
    note: str = ""
    unshown: str = ""

    def shown(self, heading: str) -> str | None:
        """A score as printed, marked where there is a note; None where it is not known."""
        printed = self.scores.get(heading)
        return printed and printed + (MARK if self.note else "")

    @property
    def lacks(self) -> str:
        """Settings that the paper does not say: "gamma and tau not stated"; empty where there are none."""
        names = [name for name, value in self.settings.items() if value == NOT_STATED]
        return f"{' and '.join(names)} {NOT_STATED}" if names else ""

    def is_of(self, use: str, backbone: str, split: str) -> bool:
        """Whether it belongs to a table of this use, backbone and split."""
        is_split = self.split is None or self.split.casefold() == split.casefold()
        return self.use == use and _same(self.backbone, backbone) and is_split


@cache
def entries() -> Sequence[Entry]:
    """All there are."""
    return [Entry(**content) for content in read_json(FILE)]


def find(use: str, backbone: str, split: str, method: str, variant: str = "", **settings: Setting) -> Entry | None:
    """What the paper has for a run; None where nothing is known.

    Args:
        settings: of the run; an entry matches that has these and no others.
    """
    for entry in entries():
        is_row = (entry.method, entry.variant, entry.settings) == (method, variant, settings)
        if is_row and entry.is_of(use, backbone, split):
            return entry
    return None


def not_stated(use: str, backbone: str, split: str) -> Iterator[Entry]:
    """Entries that belong to a table but beside no run of it: the paper does not say with which settings they are."""
    for entry in entries():
        if entry.lacks and entry.is_of(use, backbone, split):
            yield entry


def remark(backbone: str, shown: Iterable[Entry]) -> str:
    """What a reader of a table must know about the paper's values in it."""
    found = list(shown)
    if not found:
        which = f"{backbone} in these settings" if backbone else "this model"
        return f"No value of the paper is comparable: it has none of {which}."
    methods: dict[str, list[str]] = {}
    for entry in found:
        if entry.note:
            methods.setdefault(entry.note, []).append(entry.method)
    notes = "; ".join(f"{', '.join(dict.fromkeys(names))}: {note}" for note, names in methods.items())
    text = "Paper: as printed, of the same backbone, split and settings."
    return f"{text} {MARK} {notes}." if notes else text


def _same(ours: str, theirs: str) -> bool:
    """Whether two names are one backbone: "Llama-2-7B-chat" and "llama2-7b-chat-hf" are."""
    a, b = (re.sub(r"[^a-z0-9]", "", name.casefold()).removesuffix("hf") for name in (ours, theirs))
    return bool(a) and a == b
