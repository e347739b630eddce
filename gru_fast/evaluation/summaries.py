"""Summaries of evaluations on disk: which question one answers, and taking over what is known already."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gru_fast.evaluation.record_folder import differing
from gru_fast.runs.files import read_json, write_json

SUMMARY_FILE = "summary.json"


def finished(output_dir: str | Path, wanted: Mapping[str, Any]) -> bool:
    """Whether ``output_dir`` holds a whole evaluation with the settings ``wanted``, of those in its summary.

    Where ``wanted`` names ``sets``, there may be others beside them.
    """
    file = Path(output_dir) / SUMMARY_FILE
    if not file.is_file():
        return False
    kept = read_json(file)["settings"]
    sets = wanted.get("sets")
    if sets and {*sets} <= {*(kept.get("sets") or ())}:
        kept = {**kept, "sets": sets}
    return not differing({key: kept.get(key) for key in wanted}, wanted)


def settings_before(output_dir: str | Path) -> dict[str, Any]:
    """The settings of the summary in a folder; none where there is no summary."""
    file = Path(output_dir) / SUMMARY_FILE
    return dict(read_json(file)["settings"]) if file.is_file() else {}


def take_over(source: Path, target: Path, model_options: Mapping[str, Any]) -> None:
    """Makes ``target`` a copy of the finished evaluation ``source``, of a model that is asked for in another way.

    ``target`` is not there before, and then as a whole or not at all.
    """
    new = target.with_name(f"{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a copy that was stopped
    shutil.copytree(source, new)
    summary = read_json(new / SUMMARY_FILE)
    summary["settings"]["model_options"] = dict(model_options)
    write_json(new / SUMMARY_FILE, summary)
    new.rename(target)
