"""What attacks on a request's model came to (:mod:`gru_fast.attacks`), for its manifest and reports.

They lie in its run folder, whether `gru-fast forget --attack` made them or `gru-fast attack RUN` did later.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gru_fast import attacks, runs
from gru_fast.attacks.parts import outcome

FOLDER = "attacks"
_SHOWN = ("what", "score", "before", "after", "original", "back", "retained_back")


def read(folder: Path) -> list[dict[str, Any]]:
    """The attacks on the run in ``folder`` that are done, without any text, in the order of :func:`attacks.names`.

    Each has its ``attack``, the ``evaluation`` that it asked, the ``seconds`` it took, and ``findings``: of every
    setting that its own report shows, the scores before and after, of the original model, and the shares ``back``, and
    ``retained_back`` of a retrained model, None without one. ``worst`` is the finding with the largest share, None
    where no share is known.
    """
    found = []
    files = folder.glob(f"{FOLDER}/*/*/{outcome.SUMMARY_FILE}")
    known = {name: at for at, name in enumerate(attacks.names())}
    for file in sorted(files, key=lambda file: (file.parents[1].name, known.get(file.parent.name, len(known)))):
        summary = runs.read_json(file)
        worst = outcome.worst_finding(summary)
        found.append(
            {
                "attack": summary["attack"],
                "evaluation": file.parents[1].name,
                "seconds": summary["seconds"],
                "worst": None if worst is None else _shown(worst),
                "findings": [_shown(row) for row in summary["findings"] if row["is_shown"] and row["is_knowledge"]],
            }
        )
    return found


def forget_texts(folder: Path) -> None:
    """Deletes what attacks have kept of prompts and answers; what they came to stays."""
    for attack in folder.glob(f"{FOLDER}/*/*"):
        for inner in [path for path in attack.iterdir() if path.is_dir()] if attack.is_dir() else []:
            shutil.rmtree(inner)


def sentence(found: Sequence[Mapping[str, Any]]) -> str:
    """What all attacks together came to, in one sentence; "" where there are none."""
    if not found:
        return ""
    made = ", ".join(each["attack"] for each in found)
    known = [(each["worst"]["back"], each) for each in found if each["worst"] is not None]
    if not known:
        return (
            f"Attacked ({made}), nothing can be said: by none of the scores did the original model know clearly more."
        )
    most, each = max(known, key=lambda pair: pair[0])
    worst = each["worst"]
    where = f"{each['attack']}: {worst['what']}; {worst['score']}"
    if worst["retained_back"] is not None:
        where += f"; of the retrained model {worst['retained_back']:.0%}"
    if most <= 0:
        return f"Attacked ({made}), nothing came back."
    return f"Attacked ({made}), at most {most:.0%} of the way back to the original was made ({where})."


def has_retrained(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any was held against the same attack on a retrained model."""
    return any(row["retained_back"] is not None for each in found for row in each["findings"])


def _shown(finding: Mapping[str, Any]) -> dict[str, Any]:
    return {name: finding[name] for name in _SHOWN}
