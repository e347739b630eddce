"""Heat maps of a sweep: Forget Quality and Model Utility over gamma and tau, a figure a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gru_fast.report.figures import panels, save, style
from gru_fast.runs.records import FAILED, PRUNED
from gru_fast.sweep.results import Cell, Results, at, axis, is_grid, shown_tau

_MAP = "viridis"  # told apart by the colour-blind, and in grey
_MARKS = {PRUNED: "pruned", FAILED: "failed"}
_BEST = "#d55e00"


def write(results: Results, folder: Path) -> list[Path]:
    """heatmap-METHOD.png and .svg of every method that has a finished run; returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for method, cells in results.cells.items():
        if not any(cell.quality is not None for cell in cells):
            continue
        with style():
            figure = _figure(results, method, cells)
            found.append(save(figure, folder, f"heatmap-{method.lower().replace('+', '-')}"))
    return found


def _figure(results: Results, method: str, cells: Sequence[Cell]) -> Any:
    gammas, taus = axis(cells, "gamma"), axis(cells, "tau")
    width, height = 4.2, 3.4
    if is_grid(cells):
        width, height = max(3.4, 0.62 * len(taus) + 1.2), max(2.6, 0.32 * len(gammas) + 0.8)
    figure, axes = panels(1, 2, width=width, height=height)
    judge = results.judge
    shown = ((f"{judge.quality}: how well it is removed", "quality"), (f"{judge.utility}: what is kept", "utility"))
    for panel, (title, attribute) in zip(axes[0], shown, strict=True):
        draw = _grid if is_grid(cells) else _points
        image = draw(panel, results, method, attribute)
        figure.colorbar(image, ax=panel, shrink=0.85)
        panel.set_title(title)
        panel.set_xlabel("tau: largest norm of the gradient")
    axes[0, 0].set_ylabel("gamma: weight of the new retain gradient")
    figure.suptitle(method, fontweight="bold")
    light = f"higher, which of {judge.short} is worse" if judge.lower else "higher is better"
    note = f"Framed: the best run. White dot: keeps enough of {judge.utility}. Light: {light}."
    figure.supxlabel(note, fontsize=8, style="italic", color="#444444")
    return figure


def _grid(panel: Any, results: Results, method: str, attribute: str) -> Any:
    """A field a pair, its number in it; where there is none, why."""
    cells = results.cells[method]
    gammas, taus = axis(cells, "gamma"), axis(cells, "tau")
    rows = [[at(cells, gamma, tau) for tau in taus] for gamma in gammas]
    values = [[_value(cell, attribute) for cell in row] for row in rows]
    panel.grid(visible=False)
    image = panel.imshow(values, origin="lower", aspect="auto", cmap=_MAP)
    panel.set_xticks(range(len(taus)), [shown_tau(tau) for tau in taus])
    panel.set_yticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    best = results.best(method)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            if cell is not None:
                _label(panel, x, y, cell, attribute, is_dark=image.norm(values[y][x]) < 0.6)
                if results.keeps_enough(cell):
                    panel.plot(x + 0.38, y - 0.32, marker="o", markersize=3, color="white", markeredgecolor="#444444")
            if cell is not None and cell is best:
                _frame(panel, x, y)
    return image


def _label(panel: Any, x: int, y: int, cell: Cell, attribute: str, *, is_dark: bool) -> None:
    value = getattr(cell, attribute)
    if value is None:
        panel.text(x, y, _MARKS.get(cell.state, ""), ha="center", va="center", fontsize=6, color="#444444", rotation=30)
        return
    shown = f"{value:.1f}" if abs(value) > 1.5 else f"{value:.2f}"
    panel.text(x, y, shown, ha="center", va="center", fontsize=7, color="white" if is_dark else "black")


def _frame(panel: Any, x: int, y: int) -> None:
    from matplotlib.patches import Rectangle

    panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=_BEST, linewidth=2.2, clip_on=False))


def _points(panel: Any, results: Results, method: str, attribute: str) -> Any:
    """A point a run, where a sampler has put it."""
    done = [cell for cell in results.cells[method] if getattr(cell, attribute) is not None]
    panel.set_xscale("log")
    values = [getattr(cell, attribute) for cell in done]
    edges = ["#444444" if results.keeps_enough(cell) else "none" for cell in done]
    image = panel.scatter(
        [cell.tau for cell in done], [cell.gamma for cell in done], c=values, cmap=_MAP, s=60, edgecolors=edges
    )
    lost = [cell for cell in results.cells[method] if cell.state in _MARKS and cell.gamma is not None]
    panel.scatter([cell.tau for cell in lost], [cell.gamma for cell in lost], marker="x", color="#999999", s=30)
    best = results.best(method)
    if best is not None:
        panel.scatter([best.tau], [best.gamma], s=160, facecolors="none", edgecolors=_BEST, linewidths=2.2)
    return image


def _value(cell: Cell | None, attribute: str) -> float:
    value = None if cell is None else getattr(cell, attribute)
    return float("nan") if value is None else value
