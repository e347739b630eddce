"""The page and the files of a report: self-contained, escaped, the same every time, complete; and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from study_results import NASTY, large, run, small, study

from gru_fast.study import report, results
from gru_fast.study.page import duration, embedded
from gru_fast.study.results import GRU, PLAIN, Sample

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Document(HTMLParser):
    """Tags with their attributes, the texts, and the content of scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts.append(data)
        elif self._open != "style":
            self.texts.append(data)

    @property
    def data(self) -> Any:
        """What the script reads."""
        return json.loads(next(text for text in self.scripts if text.startswith("{")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a study that has everything."""
    path = tmp_path_factory.mktemp("report")
    report.write(large(("GA", "NPO"), seeds=2, steps=5), path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_comes_from_elsewhere(page: str, folder: Path) -> None:
    for tag, attributes in Document(page).tags:
        source = attributes.get("src")
        assert source is None or source.startswith("data:image/svg+xml;base64,"), tag
        target = attributes.get("href")
        if target and target.startswith("#"):
            assert f'id="{target[1:]}"' in page
        elif target is not None:
            assert (folder / target).is_file()
        assert tag not in {"link", "iframe", "base", "object"}
    outside = [url for url in re.findall(r"\w+://[^\s\"'<)]*", page) if url != "http://www.w3.org/2000/svg"]
    assert outside == []
    assert not re.search(r"@import|url\(", page)


def test_what_models_write_is_text(page: str) -> None:
    """Also inside the JSON: a study's names may hold anything."""
    document = Document(page)
    assert not any("pwned" in script for script in document.scripts)
    assert any(NASTY in text for text in document.texts)
    nasty = Document(_page_of(study([run(NASTY, 0.5, -1.0), run(NASTY, 0.5, -1.0, variant=GRU)], title=NASTY)))
    assert [tag for tag, _ in nasty.tags].count("script") == [tag for tag, _ in document.tags].count("script") == 3
    assert nasty.data["runs"][0]["title"] == NASTY
    assert json.loads(embedded(NASTY + "<!--\u2028")) == NASTY + "<!--\u2028"
    assert "<" not in embedded(NASTY)


def _page_of(study_: Any) -> str:
    from gru_fast.study import page, tables

    return page.page(study_, tables.tables(study_), [])


def test_the_same_results_make_the_same_bytes(tmp_path: Path) -> None:
    """Also those that were written and read again."""
    results.write(small(), tmp_path)
    written = [
        report.write(study_, tmp_path / name) for name, study_ in (("a", small()), ("b", results.read(tmp_path)))
    ]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    files = {path for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert files == set(written[0])


def test_what_has_failed_is_everywhere(tmp_path: Path) -> None:
    report.write(small(), tmp_path)
    name, reason, log = "npo-gru-forget05-2", "out of memory: 50% & more_or_less", "logs/npo-gru-forget05-2.log"
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"- `{name}`: failed, {reason} (log: `{log}`)" in text
    assert f"Missing of 4 pairs: 1. NPO, forget05, seed 2: {name} has failed." in text
    document = Document((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert document.texts.count(reason) >= 2
    assert document.texts.count(log) >= 2
    assert any(text.strip() == "1 of 2" for text in document.texts)
    assert name in (tmp_path / "tables" / "runs.csv").read_text(encoding="utf-8")


def test_a_part_that_has_failed_is_named(tmp_path: Path) -> None:
    lacking = replace(small().runs[2], reason="calibration: no memory", log="logs/calibration.log")
    report.write(study([lacking, small().runs[4]]), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- `ga-plain-forget05-1`: done, calibration: no memory (log: `logs/calibration.log`)" in text


def test_every_run_is_on_the_page_with_its_commands(page: str) -> None:
    runs = large(("GA", "NPO"), seeds=2, steps=5).runs
    document = Document(page)
    assert [each["name"] for each in document.data["runs"]] == [each.name for each in runs]
    for each in runs:
        assert not each.commands or "\n".join(each.commands) in document.texts
    whole = "".join(document.texts)
    assert "gru-fast study tofu-tiny --output studies/tofu-tiny" in whole
    assert "1 h 02 min" in whole
    assert "0123456789ab" in whole


def test_the_numbers_that_the_script_reads() -> None:
    series = [float(i) for i in range(1000)]
    (one, two) = Document(
        _page_of(
            study([run("GA", 0.123456789, -2.0, steps={"cos": series}), run("GA", 0.5, float("-inf"), variant=GRU)])
        )
    ).data["runs"]
    assert (one["x"], one["y"], one["scores"]) == (0.12346, -2.0, {"FQ (ln p)": -2.0, "MU": 0.12346})
    assert (one["every"], one["steps"]["cos"][:3], len(one["steps"]["cos"])) == (3, [0.0, 3.0, 6.0], 334)
    assert (two["y"], two["gamma"]) == (None, 0.8)


def test_generations_stand_side_by_side() -> None:
    def wrote(variant: str, text: str, **fields: Any) -> Any:
        return run("GA", 0.5, -1.0, variant=variant, samples=[Sample("forget", "Who?", "Me.", text)], **fields)

    runs = [wrote(PLAIN, "aaa"), wrote(GRU, "You."), run("NPO", variant=GRU, state="failed"), run("NPO", 0.5, -1.0)]
    text = _page_of(study(runs))
    rows = re.findall(r'<tr data-seed="1"><th scope="row">(.*?)</th><td>1</td><td>(.*?)</td><td>(.*?)</td></tr>', text)
    assert rows == [("GA", "aaa", "You."), ("NPO", "-", "(failed)")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (60, "1 min 00 s"), (3723, "1 h 02 min"), (90000, "25 h 00 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- in a browser ----------------------------------------------------------------------------------------------------

# Runs in the page, after its own script; what it finds goes into the title.
_PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const table = document.querySelector("#table-comparison-forget05 table");
  const cells = (column) => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  const head = table.tHead.rows[0].cells[2];
  head.querySelector("button").click();
  const up = cells(2), said = head.getAttribute("aria-sort");
  head.querySelector("button").click();
  const points = document.querySelectorAll("#plane-chart [tabindex]");
  points[0].focus();
  const found = {
    up, down: cells(2), said, errors, points: points.length,
    tooltip: document.getElementById("tooltip").textContent,
    charts: document.querySelectorAll("#curves-chart svg.chart").length,
    wide: document.documentElement.scrollWidth - innerWidth,
  };
  document.title = JSON.stringify(found);
}, 500));
</script></body>"""
_ERRORS = (
    '<script>window.errors = []; addEventListener("error", (event) => errors.push(event.message));</script></head>'
)


def numbers_of(cells: list[str]) -> list[float]:
    """What a sorted column has, where rows without a number, as some of the paper's, stand last."""
    numbers = [cell for cell in cells if cell != "-"]
    assert cells == numbers + ["-"] * (len(cells) - len(numbers))
    return [float(cell.split()[0]) for cell in numbers]


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on PATH")
def test_variants_of_a_recipe_are_drawn_in_colors_of_their_own() -> None:
    """A style of that name there is not, and a line without a color is none."""
    script = (resources.files("gru_fast.study") / "templates" / "report.js").read_text(encoding="utf-8")
    wanted = tuple(f"  const {name} =" for name in ("NAMES", "kindOf", "OTHERS", "color"))
    lines = [line for line in script.splitlines() if line.startswith(wanted)]
    runs = [{"kind": "unlearned", "variant": variant} for variant in ("gru", "update", "rows16", "plain")]
    text = "\n".join([f"const data = {json.dumps({'runs': runs})};", *lines])
    text += "\nconsole.log(JSON.stringify(data.runs.map((run) => color(kindOf(run)))));"
    shown = subprocess.run(["node", "-e", text], capture_output=True, text=True, timeout=60, check=True)
    gru, update, rows, plain = json.loads(shown.stdout)
    assert (gru, plain) == ("var(--gru)", "var(--plain)")
    assert update.startswith("hsl(")
    assert rows.startswith("hsl(")
    assert update != rows


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser(page: str, tmp_path: Path, width: int) -> None:
    """Tables sort both ways, points explain themselves, curves are drawn, nothing is wider than the window."""
    probed = page.replace("</head>", _ERRORS, 1)
    assert probed.count("</body>") == 1
    file = tmp_path / "probed.html"
    file.write_text(probed.replace("</body>", _PROBE), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += [f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run(
        [str(CHROMIUM), *options, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(re.search(r"<title>(.*?)</title>", shown.stdout).group(1).replace("&amp;", "&"))  # type: ignore[union-attr]
    assert found["errors"] == []
    means = numbers_of(found["up"])
    assert means == sorted(means)
    assert found["said"] == "ascending"
    assert numbers_of(found["down"]) == sorted(means, reverse=True)
    # Of forget05: 2 references; 4 kinds of unlearned models and 4 of vectors, each a mean and 2 seeds.
    assert found["points"] == 2 + 8 * 3
    assert "MU " in found["tooltip"]
    assert found["charts"] == 7
    assert found["wide"] <= 0
