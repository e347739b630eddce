"""Results as records, as tables to read, and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from expected import Accuracy
from timing import Samples, quantiles

OURS = "gru_fast"


@dataclass
class FormResult:
    """One form in one cell. Times in ms (20%, 50%, 80%), `floor_ratio` likewise (see timing.py), errors relative."""

    name: str
    samples: int
    ms: tuple[float, float, float]
    floor_ratio: tuple[float, float, float]
    host_ms: float
    gb_per_s: float
    peak_extra_bytes: int | None
    grad_error: float
    ema_error: float
    complaint: str | None

    @classmethod
    def of(
        cls,
        name: str,
        samples: Samples,
        bytes_moved: int,
        peak_extra: int | None,
        accuracy: Accuracy,
        complaint: str | None,
    ) -> FormResult:
        low, middle, high = quantiles(samples.seconds)
        return cls(
            name=name,
            samples=len(samples),
            ms=(low * 1e3, middle * 1e3, high * 1e3),
            floor_ratio=quantiles(samples.ratios()),
            host_ms=quantiles(samples.host)[1] * 1e3,
            gb_per_s=bytes_moved / middle * 1e-9,
            peak_extra_bytes=peak_extra,
            grad_error=accuracy.grad_error,
            ema_error=accuracy.ema_error,
            complaint=complaint,
        )


@dataclass
class Cell:
    """One model, dtype pair and case: all forms under the same conditions."""

    model: str
    tensors: int
    numel: int
    grad_dtype: str
    ema_dtype: str
    case: str
    bytes_moved: int
    rounds: int
    seconds: float
    probe_ms: float
    copy_gb_per_s: float
    forms: list[FormResult] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.model}  {self.grad_dtype} gradients, {self.ema_dtype} EMA  case {self.case}"

    @property
    def ceiling_gb_per_s(self) -> float:
        return self.bytes_moved / self.probe_ms * 1e-6

    def form(self, name: str) -> FormResult | None:
        return next((form for form in self.forms if form.name == name), None)


# ---- text ------------------------------------------------------------------------------------------------------------


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header, as a Markdown table whose columns line up. The first column is text, the others numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(x.rjust(width) for x, width in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths))
    return "\n".join([line(rows[0]), rule + "|", *(line(row) for row in rows[1:])])


def _size(count: int | None) -> str:
    if count is None:
        return "n/a"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _spread(values: tuple[float, float, float]) -> str:
    return f"{values[1]:.2f} ({values[0]:.2f}-{values[2]:.2f})"


_COLUMNS = (
    *("form", "x floor (20-80%)", "vs gru_fast", "ms", "GB/s", "of ceiling", "host ms"),
    *("extra memory", "error g", "error e", "n"),
)


def table(cell: Cell) -> str:
    """All forms of a cell, ours first, then from fast to slow."""
    ours = cell.form(OURS)
    forms = sorted(cell.forms, key=lambda form: (form.name != OURS, form.floor_ratio[1]))
    rows = [list(_COLUMNS)]
    for form in forms:
        ratio = form.floor_ratio[1]
        rows.append(
            [
                form.name + (" *" if form.complaint else ""),
                _spread(form.floor_ratio),
                f"{ratio / ours.floor_ratio[1]:.2f}" if ours else "",
                f"{form.ms[1]:.4g}",
                f"{form.gb_per_s:.4g}",
                f"{100 / ratio:.0f} %",
                f"{form.host_ms:.4g}",
                _size(form.peak_extra_bytes),
                f"{form.grad_error:.1e}",
                f"{form.ema_error:.1e}",
                str(form.samples),
            ]
        )
    return grid(rows)


def describe(cell: Cell) -> str:
    """A cell as text: title, floor, table, what is wrong or missing, verdict."""
    work = f"{cell.tensors} tensors, {cell.numel:,} parameters, {_size(cell.bytes_moved)} to move"
    took = f"{cell.rounds} rounds in {cell.seconds:.0f} s"
    floor = f"Floor (probe): {cell.probe_ms:.4g} ms = {cell.ceiling_gb_per_s:.4g} GB/s"
    copy = f"torch copy_: {cell.copy_gb_per_s:.4g} GB/s"
    lines = [f"### {cell.title}", "", f"{work}; {took}. {floor}; {copy}.", "", table(cell), ""]
    lines += [f"* {form.name}: {form.complaint}" for form in cell.forms if form.complaint]
    lines += [f"{name} left out: {reason}" for name, reason in cell.left_out.items()]
    return "\n".join([*lines, verdict(cell)])


def verdict(cell: Cell) -> str:
    """gru_fast against the floor, and the fastest other form."""
    parts = []
    ours = cell.form(OURS)
    if ours is not None:
        parts.append(f"gru_fast: {ours.floor_ratio[1]:.2f}x the floor")
    others = [form for form in cell.forms if form.name != OURS]
    lists = [form for form in others if not form.name.startswith("flat-")]
    for what, forms in (("fastest PyTorch form", others), ("fastest on plain .grad lists", lists)):
        if forms:
            best = min(forms, key=lambda form: form.floor_ratio[1])
            parts.append(f"{what}: {best.name} {best.floor_ratio[1]:.2f}x")
    return f"{cell.title}: " + "; ".join(parts)


def write_json(path: Path, about: dict[str, object], **records: object) -> None:
    """`about` and lists of records in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, **records}, indent=1, default=asdict) + "\n")


# ---- progress --------------------------------------------------------------------------------------------------------


def progress(text: str) -> None:
    """One changing line on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)


def say(lines: Iterable[str] | str) -> None:
    """Text on stdout, at once."""
    progress("")
    print(lines if isinstance(lines, str) else "\n".join(lines), flush=True)
