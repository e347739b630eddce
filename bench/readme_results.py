"""Writes what README and docs say of the studies in bench/results/ from their results.json.

python bench/readme_results.py           rewrites these sections
python bench/readme_results.py --check   fails where one is not what the results make

A section stands between <!-- results of STUDY: bench/readme_results.py writes this --> and <!-- end of results -->; in
README, STUDY is "all studies".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from textwrap import indent

from gru_fast.study import results, tables, verdict
from gru_fast.study.attacked import attacks
from gru_fast.study.directions import directions
from gru_fast.study.page import duration
from gru_fast.study.paths import paths
from gru_fast.study.render import Table, markdown
from gru_fast.study.results import StudyResults, StudyRun
from gru_fast.study.statistics import by_method, finite, mean, score_of

ROOT = Path(__file__).parents[1]
RESULTS = Path("bench/results")
SECTION = re.compile(
    r"(<!-- results of (?P<study>[^:]+): bench/readme_results\.py writes this -->).*?(<!-- end of results -->)",
    re.DOTALL,
)
ALL = "all studies"
SHARE = 0.9  # of the original's utility, at which removal is compared in README


def comparison(found: StudyResults) -> str:
    """What a study has found: the verdict, its tables, removal against retention."""
    folder = f"../{RESULTS}/{found.name}"
    files = ", ".join(f"[{name}]({folder}/{name})" for name in ("report.md", "report.html", "results.json"))
    seeds = ", ".join(map(str, found.seeds))
    done = sum(bool(run.scores) for run in found.runs)
    parts = [
        f"{found.title}.",
        f"{done} of {len(found.runs)} runs have scores, {duration(found.seconds)} of jobs; seeds {seeds}.",
        f"All of it: {files}.",
        indent(found.command, "    "),
        f"**{verdict.headline(found)}**",
        "\n".join(f"- {sentence}" for sentence in verdict.sentences(found)),
    ]
    for split in found.splits:
        for make in (tables.comparison, tables.further, paths, tables.calibration):
            parts += _table(make(found, split))
        parts.append(f"![Removal against retention, {split}]({folder}/figures/plane-{split}.png)")
    return "\n\n".join(part for part in parts if part)


def attacked(found: StudyResults) -> str:
    """What came back of a study's runs."""
    parts = [indent(found.command, "    ")]
    for split in found.splits:
        parts += _table(attacks(found, split))
    return "\n\n".join(parts)


def beside_the_paper(found: StudyResults) -> str:
    """Which way each score goes, here and in the paper."""
    return "\n\n".join(_table(directions(found)))


def in_short(studies: Iterable[StudyResults]) -> str:
    """A row a method of each study: what is kept, what is removed, and what is removed where equally much is kept."""
    head = ("Model", "Method", "utility kept", "Forget Quality (ln p)", "at 90% utility", "seeds")
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for found in studies:
        for split in found.splits:
            whole = mean(score_of(run, found.retention) for run in found.find(kind=results.ORIGINAL, split=split))
            own = found.find(kind=results.UNLEARNED, use=results.COMPARISON, split=split)
            for title, runs in by_method(own).items():
                seeds = len({run.seed for run in runs if run.scores})
                row = (_MODELS[found.name], title, *_cells(found, runs, whole), str(seeds))
                lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _cells(found: StudyResults, runs: list[StudyRun], whole: float | None) -> tuple[str, str, str]:
    def share(run: StudyRun) -> float | None:
        score = score_of(run, found.retention)
        return None if score is None or not whole else score / whole

    def removed(run: StudyRun) -> float | None:
        return score_of(run, found.removal)

    def at_share(run: StudyRun) -> float | None:
        return next((finite(each.scores.get(found.removal)) for each in run.calibrated if each.target == SHARE), None)

    return _both(runs, share, ".0%"), _both(runs, removed, ".2f"), _both(runs, at_share, ".2f")


_MODELS = {"tofu-smollm2-cpu": "SmolLM2-135M", "tofu-tiny": "a Llama of 2M"}
_MAKE: Mapping[str, Callable[[StudyResults], str]] = {
    "docs/results.md": comparison,
    "docs/attacks.md": attacked,
    "docs/paper.md": beside_the_paper,
}


def _table(table: Table) -> list[str]:
    """Its note and itself; nothing without rows."""
    return [table.note, markdown(table).rstrip()] if table.rows else []


def _both(runs: list[StudyRun], value: Callable[[StudyRun], float | None], spec: str) -> str:
    """ "mean of plain → mean with GRU", a dash for one that is not there; empty without both."""
    means = [mean(value(run) for run in runs if run.variant == name) for name in (results.PLAIN, results.GRU)]
    if all(each is None for each in means):
        return ""
    return " → ".join("–" if each is None else format(each, spec) for each in means)


def rewritten(page: str, text: str) -> str:
    """The text of a page with its sections as the results make them.

    Raises:
        SystemExit: a page without a section, or one of a study that is not there.
    """

    def section(match: re.Match[str]) -> str:
        study = match["study"]
        made = in_short(map(_read, _MODELS)) if study == ALL else _MAKE[page](_read(study))
        return f"{match[1]}\n\n{made}\n\n{match[3]}"

    after, count = SECTION.subn(section, text)
    if not count:
        raise SystemExit(f"{page}: expected a line <!-- results of STUDY: bench/readme_results.py writes this -->")
    return after


def _read(study: str) -> StudyResults:
    folder = ROOT / RESULTS / study
    if not folder.is_dir():
        raise SystemExit(f"{RESULTS / study}: no such study; run it, or take its section out of the page")
    return results.read(folder)


def main() -> int:
    """Rewrites the pages, or with --check says whether they are as they should be."""
    is_check, is_other = "--check" in sys.argv[1:], False
    for page in ("README.md", *_MAKE):
        file = ROOT / page
        before = file.read_text(encoding="utf-8")
        after = rewritten(page, before)
        if not is_check:
            file.write_text(after, encoding="utf-8")
        elif before != after:
            print(f"{page}: its results are not those of results.json; run python bench/readme_results.py")
            is_other = True
    return int(is_other)


if __name__ == "__main__":
    sys.exit(main())
