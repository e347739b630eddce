"""Writes what docs/results.md and docs/paper.md say of the study in bench/results/tofu-tiny from its results.json.

python bench/readme_results.py           rewrites these sections
python bench/readme_results.py --check   fails where one is not what the results make
"""

from __future__ import annotations

import sys
from pathlib import Path

from gru_fast.study import results, tables, verdict
from gru_fast.study.directions import directions
from gru_fast.study.page import duration
from gru_fast.study.render import markdown

ROOT = Path(__file__).parents[1]
STUDY = Path("bench/results/tofu-tiny")
BEGIN, END = "<!-- results: bench/readme_results.py writes this -->", "<!-- end of results -->"


def comparison(found: results.StudyResults) -> str:
    """What the study has found."""
    files = ", ".join(f"[{name}](../{STUDY}/{name})" for name in ("report.md", "report.html", "results.json"))
    seeds = ", ".join(map(str, found.seeds))
    parts = [
        f"{found.title}. {len(found.runs)} runs, {duration(found.seconds)} of jobs; seeds {seeds}. All of it: {files}.",
        f"    {found.command}",
        f"**{verdict.headline(found)}**",
        "\n".join(f"- {sentence}" for sentence in verdict.sentences(found)),
    ]
    for split in found.splits:
        table = tables.comparison(found, split)
        parts += [table.note, markdown(table).rstrip()]
        parts.append(f"![Removal against retention, {split}](../{STUDY}/figures/plane-{split}.png)")
    return "\n\n".join(part for part in parts if part)


def beside_the_paper(found: results.StudyResults) -> str:
    """Which way each score goes, here and in the paper."""
    table = directions(found)
    return f"{table.note}\n\n{markdown(table).rstrip()}"


PAGES = {"docs/results.md": comparison, "docs/paper.md": beside_the_paper}


def rewritten(page: str, text: str, section: str) -> str:
    """The text of a page with its section as the results make it."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise SystemExit(f"{page}: expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def main() -> int:
    """Rewrites the pages, or with --check says whether they are as they should be."""
    found, is_check, is_other = results.read(ROOT / STUDY), "--check" in sys.argv[1:], False
    for page, make in PAGES.items():
        file = ROOT / page
        before = file.read_text(encoding="utf-8")
        after = rewritten(page, before, make(found))
        if not is_check:
            file.write_text(after, encoding="utf-8")
        elif before != after:
            print(f"{page}: its results are not those of results.json; run python bench/readme_results.py")
            is_other = True
    return int(is_other)


if __name__ == "__main__":
    sys.exit(main())
