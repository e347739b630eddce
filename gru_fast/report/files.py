"""Tables and figures of runs, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gru_fast.report import attack_figures, figures, table
from gru_fast.report.collect import Entry
from gru_fast.runs.files import write_text


def write(entries: Sequence[Entry], folder: Path) -> list[Path]:
    """Tables and figures in ``folder``; returns the files, of the figures the PNGs."""
    tables = {"table.md": table.markdown(entries), "table.csv": table.comma_separated(entries)}
    for name, content in tables.items():
        write_text(folder / name, content)
    drawn = [figures.write(entries, folder, drawings) for drawings in (None, attack_figures.FIGURES)]
    return [*(folder / name for name in tables), *(file for files in drawn for file in files)]
