"""RWKU's probes: twelve sets, each of a row's probes about a ``subject``, one of 200 famous people.

On the hub, or a folder in the layout of its code (``process/data_process.py`` there): ``Target/NUMBER_NAME`` of a
person, or a folder of all, such as ``All``. The same set has one name as a config of the hub and another as a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gru_fast.data.rows import Row, find_folder, load_rows, names_in_folder
from gru_fast.runs.messages import nearest

HUB = "jinzhuoran/RWKU"
ALL = "All"
_TARGETS = "Target"
_PERSON = re.compile(r"\d+_(.+)")


@dataclass(frozen=True)
class ProbeSet:
    """A set of probes.

    Args:
        file: its name in a folder.
        fields: that every row has beside ``subject``.
    """

    file: str
    fields: Mapping[str, type]


_ASKED: dict[str, type] = {"query": str, "answer": str}
SETS = {
    "forget_level1": ProbeSet("forget_level1", _ASKED),
    "forget_level2": ProbeSet("forget_level2", _ASKED),
    "forget_level3": ProbeSet("forget_level3", {**_ASKED, "type": str}),
    "neighbor_level1": ProbeSet("neighbor_level1", _ASKED),
    "neighbor_level2": ProbeSet("neighbor_level2", _ASKED),
    "mia_forget": ProbeSet("forget_mia", {"text": str}),
    "mia_retain": ProbeSet("retain_mia", {"text": str}),
    "utility_general": ProbeSet("retain_mmlu", {"question": str, "choices": list, "answer": int, "task": str}),
    "utility_reason": ProbeSet("retain_bbh", {"question": str, "cot": str}),
    "utility_truthfulness": ProbeSet("truthful", {"question": str, "mc1_targets": dict, "mc2_targets": dict}),
    "utility_factuality": ProbeSet("triviaqa", {"question": str, "answers": list}),
    "utility_fluency": ProbeSet("fluency", {"instruction": str}),
}
GROUPS = ("forget", "neighbor", "mia", "utility")


def sets_of(groups: list[str]) -> list[str]:
    """The sets of some groups (``forget``: the three levels), in RWKU's order."""
    return [name for name in SETS if name.partition("_")[0] in groups]


def load(name: str, data: str | Path = HUB, target: str | None = None, max_rows: int | None = None) -> list[Row]:
    """The probes of a set, in their order; each has ``subject`` and the fields of :data:`SETS`.

    Args:
        name: one of :data:`SETS`.
        data: the hub's name, or a folder (see above).
        target: the person, as the rows have it ("Stephen King"); None: all there are.
        max_rows: the first of them; None: all.

    Raises:
        FileNotFoundError: no such set, folder or person; with those that are there.
        ValueError: rows without the set's fields, or none of this person.
    """
    if name not in SETS:
        raise FileNotFoundError(f'sets: expected some of {", ".join(SETS)}, got "{name}"{nearest(name, SETS)}')
    of, folder = SETS[name], find_folder(data)
    fields = {"subject": str, **of.fields}
    if folder is None:
        rows = load_rows(data, name, fields, split="test")
    else:
        place = _place(folder, target)
        rows = load_rows(place, name if name in names_in_folder(place) else of.file, fields)
    if target is not None:
        subjects = {row["subject"]: None for row in rows}
        if target not in subjects:
            some, hint = ", ".join(list(subjects)[:5]), nearest(target, subjects)
            raise ValueError(f'target: {data} has no {name} of "{target}"{hint}; it has {some}, ...')
        rows = [row for row in rows if row["subject"] == target]
    return rows[:max_rows]


def _place(folder: Path, target: str | None) -> Path:
    """The folder of files that ``folder`` stands for: itself, the person's in it, or that of all."""
    files = {each.file for each in SETS.values()} | {*SETS}
    if files & {*names_in_folder(folder)}:
        return folder
    above = folder / _TARGETS if (folder / _TARGETS).is_dir() else folder
    people = {found[1].replace("_", " "): each for each in above.iterdir() if (found := _PERSON.fullmatch(each.name))}
    if target is not None and target in people:
        return people[target]
    if (folder / ALL).is_dir():
        return folder / ALL
    if not people:
        raise FileNotFoundError(f"data: {folder} has neither files of RWKU (forget_level1.json, ...) nor {_TARGETS}/")
    asked = "; give one with --target" if target is None else f', but no "{target}"{nearest(target, people)}'
    raise FileNotFoundError(f"target: {above} has {', '.join(sorted(people)[:3])}, ... ({len(people)} people){asked}")
