"""A study's report: tables, figures, report.md and report.html, all from its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from gru_fast.report.figures import require
from gru_fast.runs.files import write_text
from gru_fast.study import figures, page
from gru_fast.study.render import FORMS, Table, markdown
from gru_fast.study.results import StudyResults
from gru_fast.study.tables import tables
from gru_fast.study.verdict import headline, sentences

TEXT, PAGE = "report.md", "report.html"


def write(results: StudyResults, folder: str | Path) -> list[Path]:
    """Writes the report; the same results make the same bytes.

        tables/NAME.md, .tex, .csv     figures/NAME.png, .svg     report.md     report.html

    Files of these names are replaced; each is there as a whole or not at all.

    Returns:
        The files: report.html, report.md, then tables and figures.

    Raises:
        ModuleNotFoundError: no matplotlib or no jinja2, before anything is written.
    """
    require()
    page.require()
    folder = Path(folder)
    found = tables(results)
    written = []
    for table in found:
        for form, render in FORMS.items():
            written.append(folder / "tables" / f"{table.name}.{form}")
            write_text(written[-1], render(table))
    drawn = figures.write(results, folder / "figures")
    written += [path.with_suffix(suffix) for path in drawn for suffix in (".png", ".svg")]
    write_text(folder / TEXT, as_markdown(results, found, drawn))
    write_text(folder / PAGE, page.page(results, found, drawn))
    return [folder / PAGE, folder / TEXT, *written]


def as_markdown(results: StudyResults, found: Sequence[Table], drawn: Sequence[Path]) -> str:
    """The verdict, what has failed, all tables in the order of the paper, and the figures."""
    parts = [f"# {results.title}", _facts(results), "## What GRU changes", headline(results)]
    parts.append("\n".join(f"- {_one_line(sentence)}" for sentence in sentences(results)))
    failed = [run for run in results.runs if run.is_lacking]
    if failed:
        lines = (
            f"- `{run.name}`: {run.state}{f', {_one_line(run.reason)}' if run.reason else ''}"
            f"{f' (log: `{run.log}`)' if run.log else ''}"
            for run in failed
        )
        parts += ["## What is missing", "\n".join(lines)]
    for table in found:
        parts += [f"## {table.title}", table.note, markdown(table).rstrip()]
    if drawn:
        parts += ["## Figures", *(_figure(path, results) for path in drawn)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(results: StudyResults) -> str:
    done = sum(run.is_done for run in results.runs)
    text = (
        f"{results.benchmark.upper()}, {', '.join(results.splits)}; seeds {', '.join(map(str, results.seeds))}; "
        f"{done} of {len(results.runs)} runs have scores; {page.duration(results.seconds)} of jobs."
    )
    return f"{text}\n\n{indent(results.command, '    ')}" if results.command else text


def _figure(path: Path, results: StudyResults) -> str:
    stem, _, split = path.stem.partition("-")
    caption = f"{page.CAPTIONS[stem]}{f', {results.benchmark.upper()} {split}' if split else ''}"
    return f"![{caption}](figures/{path.name})"


def _one_line(words: str) -> str:
    return " ".join(words.split()).replace("<", "&lt;")
