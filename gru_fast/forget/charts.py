"""Small curves as SVG, drawn here so that a report needs nothing else; colours are the page's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 14, 40
_At = Callable[[float, float], tuple[float, float]]  # values to places


@dataclass(frozen=True)
class Line:
    """A curve.

    Args:
        name: in the legend, and the class of its colour: "forget", "kept", "limit".
        points: (x, y).
        is_level: a dashed line, without dots.
    """

    name: str
    kind: str
    points: Sequence[tuple[float, float]]
    is_level: bool = False


def chart(title: str, x_name: str, lines: Sequence[Line], *, low: float = 0.0, high: float = 1.0) -> str:
    """An SVG of lines over one axis from ``low`` to ``high``, with a legend, and every point's numbers as its title."""
    xs = [x for line in lines for x, _ in line.points] or [0.0]
    left, right = min(xs), max(xs)
    span = (right - left) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - left) / span * (_WIDTH - _LEFT - _RIGHT)
        share = (min(max(y, low), high) - low) / (high - low)
        return round(across, 1), round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_grid(at, left, right, low, high),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "middle", x_name, kind="quiet"),
    ]
    for line in lines:
        path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in line.points))
        dashed = ' stroke-dasharray="5 4"' if line.is_level else ""
        parts.append(f'<polyline class="line {line.kind}" points="{path}"{dashed}/>')
        for point in () if line.is_level else line.points:
            x, y = at(*point)
            said = escape(f"{line.name}: {point[1]:.3g} at {x_name} {point[0]:.4g}")
            parts.append(f'<circle class="dot {line.kind}" cx="{x}" cy="{y}" r="3.5"><title>{said}</title></circle>')
    return "".join([*parts, "</svg>"])


def _grid(at: _At, left: float, right: float, low: float, high: float) -> list[str]:
    parts = []
    for quarter in range(5):
        value = low + (high - low) * quarter / 4
        x, y = at(left, value)
        parts.append(f'<line class="grid" x1="{x}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(x - 6, y + 4, "end", f"{value:.3g}"))
    for value in dict.fromkeys((left, (left + right) / 2, right)):
        x, y = at(value, low)
        parts.append(_text(x, y + 16, "end" if value == right != left else "middle", f"{value:.3g}"))
    return parts


def _text(x: float, y: float, anchor: str, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
