"""Figures of the results (matplotlib is optional: asked for only by --plot)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import OURS, Cell


def pyplot() -> Any:
    """matplotlib.pyplot without a display, or a clear error. Call before measuring."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot_cells(path: Path, cells: Sequence[Cell], title: str) -> None:
    """One panel a cell: time over the floor, a bar a form."""
    plt = pyplot()
    height = max(len(cell.forms) for cell in cells)
    figure, axes = plt.subplots(len(cells), 1, figsize=(8, len(cells) * (0.8 + 0.3 * height)), squeeze=False)
    for axis, cell in zip(axes[:, 0], cells, strict=True):
        forms = sorted(cell.forms, key=lambda form: form.floor_ratio[1], reverse=True)
        ratios = [form.floor_ratio[1] for form in forms]
        colors = ["tab:green" if form.name == OURS else "tab:gray" for form in forms]
        bars = axis.barh([form.name for form in forms], ratios, color=colors)
        axis.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_title(cell.title, fontsize=9)
        axis.tick_params(labelsize=8)
    axes[-1, 0].set_xlabel("time / memory floor")
    _save(figure, path, title)


def plot_sweeps(path: Path, sweeps: dict[str, dict[str, list[tuple[int, float]]]], title: str) -> None:
    """One panel a sweep ("numel", "tensors"): milliseconds over the swept number, a line a form. Log axes."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(sweeps), figsize=(6 * len(sweeps), 4.5), squeeze=False)
    for axis, (name, lines) in zip(axes[0], sweeps.items(), strict=True):
        for form, points in lines.items():
            style = {"linestyle": "--", "color": "black"} if form == "probe" else {}
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=form, **style)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(name)
        axis.set_ylabel("ms")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    _save(figure, path, title)


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
