"""Writes the section of docs/results.md on the study in bench/results/tofu-tiny from its results.json.

python bench/readme_results.py           rewrites the section
python bench/readme_results.py --check   fails where the section is not what the results make
"""

from __future__ import annotations

import sys
from pathlib import Path

from gru_fast.study import results, tables, verdict
from gru_fast.study.page import duration
from gru_fast.study.render import markdown

ROOT = Path(__file__).parents[1]
PAGE = "docs/results.md"
STUDY = Path("bench/results/tofu-tiny")
BEGIN, END = "<!-- results: bench/readme_results.py writes this -->", "<!-- end of results -->"


def section() -> str:
    """The text between the marks."""
    found = results.read(ROOT / STUDY)
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


def rewritten(page: str) -> str:
    """The page with the section as the results make it."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise SystemExit(f"{PAGE}: expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"


def main() -> int:
    """Rewrites the page, or with --check says whether it is as it should be."""
    file = ROOT / PAGE
    before = file.read_text(encoding="utf-8")
    after = rewritten(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print(f"{PAGE}: its results are not those of results.json; run python bench/readme_results.py")
        return int(before != after)
    file.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
