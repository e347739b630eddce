"""report.html: one file with everything in it that it needs, no network.

Without JavaScript the tables, the figures and all texts are there; with it tables sort, points and curves answer to the
pointer and the keyboard. The template escapes every text, for what models write may be anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gru_fast.study.render import Cell, Score, Table, sort_value, text
from gru_fast.study.results import (
    COMPARISON,
    GRU,
    ORIGINAL,
    PLAIN,
    RETRAINED,
    UNLEARNED,
    VECTOR,
    StudyResults,
    StudyRun,
)
from gru_fast.study.statistics import BOTH, MISSING, NONE, REMOVAL, RETENTION, finite, group, pairs
from gru_fast.study.verdict import headline, sentences

_TEMPLATES = Path(__file__).with_name("templates")
_MOST_STEPS = 400  # points of a curve; of more steps every second, third, ... is shown
_DIGITS = 5  # significant ones of logged values
# What a figure shows, by what its name begins with.
CAPTIONS = {
    "steps": "Retain loss, and cosine of unlearning and retain gradient, over the steps (Figure 1 of the paper)",
    "plane": "Removal against retention: means solid, seeds faint, an arrow from plain to GRU (Figure 4)",
    "epochs": "Retention and removal along the epochs (Figures 5 and 6)",
    "distance": "Retention and removal over how far the weights have moved from where the run began",
    "paths": "Removal over what is still kept, from the original on: up and to the right is better",
    "angles": "Angle to the retain gradient, before and after rectification (Figure 7)",
    "changes": "What GRU changes: mean over seeds with its bootstrap interval; + is better",
    "sensitivity": "Both scores over gamma and over tau, the other held",
    "gamma-and-rows": "Both scores over gamma, with more and fewer rows to keep a batch",
    "heatmap": "Both scores over gamma and tau",
    "ablation": "Plain, with clipping only, with GRU",
    "calibration": "Removal where each run keeps a share of the original's retention (UWC)",
}
_SECTIONS = {
    "verdict": "Verdict",
    "failures": "Missing",
    "plane": "Plane",
    "tables": "Tables",
    "curves": "Curves",
    "figures": "Figures",
    "generations": "Generations",
    "runs": "Runs",
}


@dataclass(frozen=True)
class Picture:
    """A figure in the page."""

    name: str
    stem: str
    caption: str
    source: str


@dataclass(frozen=True)
class _Cell:
    text: str
    sort: float | str
    number: bool
    bold: bool


def require() -> None:
    """Raises ModuleNotFoundError, with what to install, where there is no jinja2."""
    if find_spec("jinja2") is None:
        raise ModuleNotFoundError("the page of a study needs jinja2: pip install 'gru_fast[unlearn]'")


def page(results: StudyResults, tables: Sequence[Table], figures: Sequence[Path]) -> str:
    """The page.

    Args:
        tables: as they are to be shown.
        figures: files whose SVG, beside them, goes into the page.

    Raises:
        ModuleNotFoundError: no jinja2.
    """
    require()
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    failures = [run for run in results.runs if run.is_lacking]
    pictures = [_picture(path, results) for path in figures]
    questions = _questions(results)
    others = any(picture.stem in {"sensitivity", "heatmap", "ablation", "calibration"} for picture in pictures)
    there = {"failures": failures, "figures": others, "generations": questions}
    return environment.get_template("report.html").render(
        results=results,
        sections=[(name, title) for name, title in _SECTIONS.items() if there.get(name, True)],
        facts=_facts(results),
        headline=headline(results),
        sentences=sentences(results),
        counts=_counts(results),
        tables=[_shown(table) for table in tables],
        figures=pictures,
        failures=failures,
        questions=questions,
        recipe=_as_yaml(results.recipe),
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((_TEMPLATES / "report.js").read_text(encoding="utf-8")),
        data=Markup(embedded(_data(results))),
    )


def embedded(value: Any) -> str:
    """JSON for a script element: no "<" in it, so that no text can end the element or begin a comment."""
    plain = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---- what the page shows ---------------------------------------------------------------------------------------------


def _facts(results: StudyResults) -> list[tuple[str, str]]:
    """What was run, on what, with which versions; what is not known is left out."""
    environment = results.environment
    versions = {name: version for name, version in (environment.get("versions") or {}).items() if version}
    done = sum(run.is_done for run in results.runs)
    model = next((str(run.config["model"]) for run in results.runs if run.config.get("model")), "")
    facts = {
        "Benchmark": f"{results.benchmark.upper()}, {', '.join(results.splits)}",
        "Model": results.backbone or _model(results.recipe) or model,
        "Seeds": ", ".join(map(str, results.seeds)),
        "Runs with scores": f"{done} of {len(results.runs)}",
        "Time of all jobs": duration(results.seconds),
        "Started": str(environment.get("started") or ""),
        "Commit": _commit(str(environment.get("commit") or "")),
        "Devices": _devices(environment.get("devices")),
        "Python": str(environment.get("python") or ""),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Study": results.name,
    }
    return [(name, value) for name, value in facts.items() if value]


def _model(recipe: Mapping[str, Any]) -> str:
    """What was taught or given, in a few words; empty where the recipe does not say."""
    if "toy" in recipe:
        toy = recipe["toy"] or {}
        return "a Llama made here" + "".join(
            f", {name} {toy[name]}" for name in ("layers", "hidden_size") if name in toy
        )
    return str(recipe.get("target") or recipe.get("model", {}).get("model") or "")


def _devices(found: Sequence[str] | str | None) -> str:
    """Their names; studies that were joined have them in one text already."""
    return found if isinstance(found, str) else ", ".join(found or ())


def _commit(name: str) -> str:
    """Twelve letters of it, and whether files differed; of every one, where studies were joined."""
    return ", ".join(each[:12] + ("+" if each.endswith("+") else "") for each in name.split(", "))


def duration(seconds: float) -> str:
    """ "1 h 02 min", "2 min 05 s", "12 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _counts(results: StudyResults) -> list[tuple[int, str]]:
    whole = group(pairs(results))
    if not whole.pairs:
        return []
    names = {
        BOTH: "improved on both",
        RETENTION: f"on {results.retention} alone",
        REMOVAL: f"on {results.removal} alone",
        NONE: "on none",
        MISSING: "missing",
    }
    return [*((whole.count(outcome), name) for outcome, name in names.items()), (whole.ties, "with a tie")]


def _shown(table: Table) -> Mapping[str, Any]:
    rows = [[_cell(cell, column.number) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    return {"name": table.name, "title": table.title, "note": table.note, "columns": table.columns, "rows": rows}


def _cell(cell: Cell, number: bool) -> _Cell:
    return _Cell(text(cell), sort_value(cell), number, isinstance(cell, Score) and cell.is_best)


def _picture(path: Path, results: StudyResults) -> Picture:
    stem = path.stem.partition("-")[0]
    split = path.stem.partition("-")[2]
    drawing = base64.b64encode(path.with_suffix(".svg").read_bytes()).decode("ascii")
    caption = f"{results.benchmark.upper()} {split}: {CAPTIONS[stem]}." if split else f"{CAPTIONS[stem]}."
    return Picture(path.stem, stem, caption, f"data:image/svg+xml;base64,{drawing}")


def _as_yaml(recipe: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(json.loads(json.dumps(recipe)), sort_keys=False, allow_unicode=True)) if recipe else ""


def _questions(results: StudyResults) -> list[Mapping[str, Any]]:
    """Each question of each split, with what the models write: before, and after, plain and with GRU side by side."""
    found: list[Mapping[str, Any]] = []
    for split in results.splits:
        runs = [run for run in results.runs if run.split == split]
        asked = {(sample.set, sample.question): sample.answer for run in runs for sample in run.samples}
        for (set_, question), answer in asked.items():
            before = [
                (run.title, run.seed, _written(run, set_, question))
                for kind in (ORIGINAL, RETRAINED)
                for run in runs
                if run.kind == kind
            ]
            content = {"split": split, "set": set_, "question": question, "answer": answer, "before": before}
            found.append({**content, "rows": _generations(runs, set_, question)})
    return found


def _generations(runs: Sequence[StudyRun], set_: str, question: str) -> list[Mapping[str, Any]]:
    """A row a method and seed, a task vector's strength and seed."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        if run.kind == VECTOR:
            title, column = f"{run.title}, strength {run.strength:g}" if run.strength else run.title, PLAIN
        elif run.kind == UNLEARNED and COMPARISON in run.uses and run.variant in {PLAIN, GRU}:
            title, column = run.title, run.variant
        else:
            continue
        seed = "-" if run.seed is None else str(run.seed)
        row = rows.setdefault((title, seed), {"title": title, "seed": seed, PLAIN: "-", GRU: "-"})
        row[column] = _written(run, set_, question)
    return list(rows.values())


def _written(run: StudyRun, set_: str, question: str) -> str:
    if not run.is_done:
        return f"({run.state})"
    return next((each.generation for each in run.samples if (each.set, each.question) == (set_, question)), "-")


# ---- what the script reads -------------------------------------------------------------------------------------------


def _data(results: StudyResults) -> Mapping[str, Any]:
    return {
        "retention": results.retention,
        "removal": results.removal,
        "plane": [results.plane[results.retention], results.plane[results.removal]],
        "seeds": list(results.seeds),
        "runs": [_run(results, number, run) for number, run in enumerate(results.runs)],
    }


def _run(results: StudyResults, number: int, run: StudyRun) -> Mapping[str, Any]:
    every = max(1, -(-max(map(len, run.steps.values()), default=0) // _MOST_STEPS))
    both = (results.retention, results.removal)
    scores = {name: _short(value) for name, value in run.scores.items()} if run.is_done else {}
    return {
        "id": number,
        **{name: getattr(run, name) for name in ("name", "label", "title", "kind", "variant", "split", "seed")},
        **{name: _short(getattr(run, name)) for name in ("gamma", "tau", "strength")},
        "compared": COMPARISON in run.uses,
        "scores": scores,
        "x": scores.get(both[0]),
        "y": scores.get(both[1]),
        "every": every,
        "steps": {name: [_short(value) for value in series[::every]] for name, series in run.steps.items()},
        "points": [[_short(point.epoch), *(_short(point.scores.get(name)) for name in both)] for point in run.points],
    }


def _short(value: float | None) -> float | None:
    """A number with few digits; None in place of what JSON has no number for."""
    known = finite(value)
    return None if known is None else float(f"{known:.{_DIGITS}g}")
