"""What a request leaves for people: report.html, one file that needs no network, and report.md; and for machines the
manifest. Both reports are made of the manifest and the files of measures, and can be made again from them.

The template escapes every text, for what models write may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gru_fast import runs
from gru_fast.forget import attacked, charts, manifest, words
from gru_fast.forget.exam import Findings
from gru_fast.forget.level import Level, name_of
from gru_fast.forget.measures import MEASURES, Extraction, Known, of_set, worst_by_document
from gru_fast.forget.watch import Point, read_points

HTML, MARKDOWN = "report.html", "report.md"
_TEMPLATES = Path(__file__).with_name("templates")
_SHOWN = 40  # documents whose texts are in the page


@dataclass(frozen=True)
class Row:
    """A document in the table.

    Args:
        before, after: the three measures; ``known_before``, ``known_after``: whether it counts as known.
        wrote_before, wrote_after: the worst of what the model wrote after its beginnings, if any was asked for.
    """

    document: str
    before: Known
    after: Known
    known_before: bool
    known_after: bool
    wrote_before: Extraction | None
    wrote_after: Extraction | None


@dataclass(frozen=True)
class View:
    """All that is shown of a finished request."""

    folder: Path
    manifest: Mapping[str, Any]
    before: Findings
    after: Findings
    level: Level
    points: list[Point]

    @property
    def rows(self) -> list[Row]:
        """The documents, those that are known best after it first, then those that were before."""
        wrote_before, wrote_after = (worst_by_document(each.extractions) for each in (self.before, self.after))
        found = [
            Row(
                before.document,
                before,
                after,
                bool(self.level.above(before)),
                bool(self.level.above(after)),
                wrote_before.get(before.document),
                wrote_after.get(before.document),
            )
            for before, after in zip(self.before.forget, self.after.forget, strict=True)
        ]
        return sorted(
            found, key=lambda row: (not row.known_after, -row.after.exact_memorization, -row.before.exact_memorization)
        )


def read(folder: str | Path) -> View:
    """A finished request from its folder."""
    from gru_fast.forget.run import AFTER, BEFORE

    folder = Path(folder)
    said = manifest.read(folder)
    before = Findings.from_json(runs.read_json(folder / BEFORE))
    after = Findings.from_json(runs.read_json(folder / AFTER)) if (folder / AFTER).is_file() else before
    return View(folder, said, before, after, Level.from_json(said["level"]), read_points(folder))


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest, both reports, and run.json, by which the run is complete.

    What attacks there are in the folder by now stand in them: a dossier is made anew with the manifest that it has.
    """
    content = {**content, "attacks": attacked.read(folder)}
    runs.write_json(folder / manifest.MANIFEST, content)
    view = read(folder)
    runs.write_text(folder / HTML, page(view))
    runs.write_text(folder / MARKDOWN, markdown(view))
    options = content["options"]
    result = {
        "command": "forget",
        "benchmark": "own",
        "method": _method(content).partition(",")[0],
        "title": "forget",
        "rectify": options["rectify"],
        "split": f"{len(content['documents']['forget'])} documents",
        "model": content["model"]["name"],
        "verdict": content["verdict"],
        "kept": content["measures"]["kept"],
        **content["training"],
        "finished": content["finished"],
    }
    runs.write_json(folder / runs.RESULT, result)


def last_word(folder: Path) -> str:
    """What a command ends with."""
    said = manifest.read(folder)
    return f"{words.headline(said)}\n{folder / HTML}, {folder / MARKDOWN}"


# ---- the page --------------------------------------------------------------------------------------------------------


def require() -> None:
    """Raises ModuleNotFoundError, with what to install, where there is no jinja2."""
    if find_spec("jinja2") is None:
        raise ModuleNotFoundError("the report needs jinja2: pip install 'gru_fast[unlearn]'")


def page(view: View) -> str:
    """The HTML page."""
    require()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    said = view.manifest
    return environment.get_template("report.html").render(
        title=f"Forgetting {_count(len(view.before.forget))}",
        verdict=said["verdict"],
        headline=words.headline(said),
        guarantee=words.guarantee(said),
        facts=_facts(said),
        command=said["command"],
        rows=view.rows,
        texts=_texts(view),
        no_text=not said["options"].get("text", True),
        measures=[
            (measure, name_of(measure), view.level.typical(measure), _limit(view.level, measure))
            for measure in MEASURES
        ],
        source=view.level.name,
        quality=words.quality(said),
        keep=said["options"]["keep"],
        membership=words.membership(said),
        attacks=said.get("attacks", ()),
        attacks_note=words.attacks(said),
        has_retrained=attacked.has_retrained(said.get("attacks", ())),
        charts=[(name, note, Markup(drawing), legend) for name, note, drawing, legend in _charts(view)],
        earlier=said["earlier"],
        files=_files(said),
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )


def _limit(level: Level, measure: str) -> str:
    return f"{level.shown(measure)}{' (blind)' if measure in level.blind else ''}"


def _yardstick(level: Level) -> str:
    return "text never seen" if level.source == "holdout" else "the model's own text"


def _count(number: int) -> str:
    return f"{number} document{'s' * (number != 1)}"


def _facts(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    options, training = said["options"], said["training"]
    rate = training.get("learning_rate")
    versions = ", ".join(f"{name} {version}" for name, version in said["versions"].items() if version)
    retain = options.get("retain") or ["self"]
    facts = {
        "Model": said["model"]["name"],
        "To forget": _count(len(said["documents"]["forget"])),
        "To keep": "text that the model wrote itself" if retain == ["self"] else ", ".join(map(str, retain)),
        "To be kept": f"{options['keep']:.0%}",
        "Method": _method(said),
        "Learning rate": f"{rate:.2g}" if rate else "",
        "Steps": str(training.get("steps", "")),
        "Time": _duration(training["seconds"]) if "seconds" in training else "",
        "Finished": said["finished"],
        "Devices": ", ".join(said["environment"]["devices"]),
        "Versions": versions,
    }
    return [(name, value) for name, value in facts.items() if value]


def _method(said: Mapping[str, Any]) -> str:
    if said["training"].get("ended_by") == "tru":
        return "tru"
    return f"{said['options']['method']}{', rectified (GRU)' if said['options']['rectify'] else ''}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _texts(view: View) -> list[Row]:
    """Documents with something written, worst first."""
    found = [row for row in view.rows if row.wrote_before is not None and row.wrote_before.truth]
    run = {row.document: row.wrote_after.longest_run if row.wrote_after else 0 for row in found}
    return sorted(found, key=lambda row: -run[row.document])[:_SHOWN]


_Chart = tuple[str, str, str, list[tuple[str, str]]]  # name, note, drawing, legend


def _charts(view: View) -> list[_Chart]:
    """None where nothing was changed."""
    mixtures = [Point(**each) for each in view.manifest["edge"]]
    found = [_over_time(view)] if view.points else []
    return [*found, _tradeoff(view, mixtures)] if view.points or mixtures else []


def _steps(view: View) -> list[tuple[float, float, float]]:
    """Step, exact memorization of the documents, share kept; the original first."""
    before = of_set("forget", view.before.forget).exact_memorization
    return [(0.0, before, 1.0), *((float(p.step), p.forget["exact_memorization"], p.kept) for p in view.points)]


def _over_time(view: View) -> _Chart:
    steps, keep = _steps(view), float(view.manifest["options"]["keep"])
    limit, last = view.level.limit("exact_memorization", len(view.before.forget)), steps[-1][0]
    lines = [
        charts.Line("limit", "limit", [(0.0, limit), (last, limit)], is_level=True),
        charts.Line("to be kept", "kept", [(0.0, keep), (last, keep)], is_level=True),
        charts.Line("exact memorization", "forget", [(x, y) for x, y, _ in steps]),
        charts.Line("kept", "kept", [(x, z) for x, _, z in steps]),
    ]
    legend = [
        ("forget", f"exact memorization; dashed: level of {_yardstick(view.level)}"),
        ("kept", "share kept; dashed: --keep"),
    ]
    return "Over the steps", "Looks in training.", charts.chart("Over the steps", "step", lines), legend


def _tradeoff(view: View, mixtures: list[Point]) -> _Chart:
    name, keep = "What each removal cost", float(view.manifest["options"]["keep"])
    steps, mixed = _steps(view), [(p.forget["exact_memorization"], p.kept) for p in mixtures]
    trained = [(y, z) for _, y, z in steps] if view.points else []
    low = max(0.0, round(min([keep, *(z for _, z in (*trained, *mixed))]) - 0.05, 1))
    lines = [charts.Line("to be kept", "kept", [(0.0, keep), (steps[0][1], keep)], is_level=True)]
    lines += [charts.Line("training", "forget", trained)] if trained else []
    lines += [charts.Line("mixed with the original", "mixed", mixed)] if mixed else []
    legend = [("forget", "training")] if trained else []
    legend += [("mixed", "mixed with the original")] if mixed else []
    drawing = charts.chart(name, "exact memorization of the documents", lines, low=low)
    return name, "Left is forgotten, up is kept; dashed: --keep.", drawing, legend


def _files(said: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, hash before and after."""
    before, after = said["model"]["files"], said["result"]["files"]
    return [(name, before.get(name, ""), after.get(name, "")) for name in sorted({*before, *after})]


# ---- the text --------------------------------------------------------------------------------------------------------


def markdown(view: View) -> str:
    """The report as Markdown."""
    said = view.manifest
    lines = [f"# {words.title(said)}", "", words.headline(said), ""]
    lines += [f"- {sentence}" for sentence in words.guarantee(said)]
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in _facts(said)), ""]
    lines += ["## Documents", "", f"Before → after. Known: above the level of {_yardstick(view.level)}.", ""]
    names = ["document", "known", *map(name_of, MEASURES), "longest run (words)", "ROUGE-L", "exact"]
    lines += [f"| {' | '.join(names)} |", "|---|---|" + "---:|" * (len(names) - 2)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in view.rows]
    levels, limits = zip(*((f"{view.level.typical(m):.3g}", _limit(view.level, m)) for m in MEASURES), strict=True)
    lines += [f"| *{view.level.name}, mean* | | {' | '.join(levels)} | | | |"]
    lines += [f"| *known above* | | {' | '.join(limits)} | | | |", ""]
    lines += ["## What is kept", "", "| text | perplexity before | after | share left |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {a:.4g} | {b:.4g} | {share:.1%} |" for name, a, b, share in words.quality(said)]
    if found := words.membership(said):
        lines += ["", "## Membership inference", "", "AUC against --holdout; 0.5: not told apart.", ""]
        lines += [
            "| attack | before | after |",
            "|---|---:|---:|",
            *(f"| {n} | {a:.3f} | {b:.3f} |" for n, a, b in found),
        ]
    if attacks := said.get("attacks"):
        lines += ["", "## Does it come back?", "", words.attacks(said), ""]
        lines += ["| attack | most came back with | score | before | after | original | back | retrained |"]
        lines += ["|---|---|---|---:|---:|---:|---:|---:|", *map(_attack, attacks)]
    if texts := _texts(view):
        lines += ["", "## What the model writes", ""]
        for row in texts:
            lines += _said(row)
    if said["earlier"]:
        lines += ["", "## Earlier requests", "", *(f"- {each['run']}: {each['now']}" for each in said["earlier"])]
    return "\n".join(lines) + "\n"


def _attack(found: Mapping[str, Any]) -> str:
    worst = found["worst"]
    if worst is None:
        return f"| {found['attack']} | the original knows no more | - | - | - | - | - | - |"
    numbers = " | ".join(f"{worst[name]:.3g}" for name in ("before", "after", "original"))
    shares = " | ".join(_percent(worst[name]) for name in ("back", "retained_back"))
    return f"| {found['attack']} | {_cell(worst['what'])} | {worst['score']} | {numbers} | {shares} |"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{round(100 * share)}%"  # of an integer: no -0


def _cells(row: Row) -> list[str]:
    known = f"{'yes' if row.known_before else 'no'} → {'yes' if row.known_after else 'no'}"
    numbers = [f"{row.before[measure]:.3g} → {row.after[measure]:.3g}" for measure in MEASURES]
    wrote = ["-"] * 3
    if row.wrote_before and row.wrote_after:
        a, b = row.wrote_before, row.wrote_after
        wrote = [
            f"{a.longest_run} → {b.longest_run}",
            f"{a.rougeL_recall:.2f} → {b.rougeL_recall:.2f}",
            f"{a.exact:.0%} → {b.exact:.0%}",
        ]
    return [_cell(row.document), known, *numbers, *wrote]


def _said(row: Row) -> list[str]:
    before, after = row.wrote_before, row.wrote_after
    if before is None:
        return []
    return [
        f"**{_cell(row.document)}**",
        "",
        f"- given: {_flat(before.prefix)}",
        f"- the document: {_flat(before.truth)}",
        f"- before: {_flat(before.written)}",
        f"- after: {_flat(after.written if after else '-')}",
        "",
    ]


def _cell(text: str) -> str:
    return _flat(text).replace("|", "\\|")


def _flat(text: str) -> str:
    """A text on one line, of which Markdown makes nothing else."""
    flat = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_<>[]#" else letter for letter in flat)
