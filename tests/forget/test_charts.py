"""Curves as SVG: where points lie, and that no name can end an element."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from gru_fast.forget.charts import Line, chart


def test_points_lie_where_their_values_are() -> None:
    drawing = chart("A", "step", [Line("kept", "kept", [(0.0, 0.0), (10.0, 1.0), (5.0, 0.5)])])
    (points,) = re.findall(r'<polyline class="line kept" points="([^"]*)"', drawing)
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in points.split())
    assert x0 < x2 < x1
    assert y0 > y2 > y1  # up is more
    assert x2 == (x0 + x1) / 2
    assert y2 == (y0 + y1) / 2
    assert drawing.count("<circle") == 3


def test_a_level_is_dashed_and_has_no_dots() -> None:
    drawing = chart("A", "step", [Line("limit", "limit", [(0.0, 0.5), (1.0, 0.5)], is_level=True)])
    assert "stroke-dasharray" in drawing
    assert "<circle" not in drawing


def test_values_outside_of_the_axis_stay_inside_of_the_drawing() -> None:
    drawing = chart("A", "step", [Line("kept", "kept", [(0.0, -3.0), (1.0, 7.0)])], low=0.5)
    heights = [float(y) for y in re.findall(r'cy="([^"]*)"', drawing)]
    assert all(0 < y < 260 for y in heights)


def test_it_is_well_formed_whatever_the_names_and_with_one_point() -> None:
    drawing = chart('<b>"&', "</svg>", [Line("<script>", "kept", [(3.0, 0.2)])])
    ET.fromstring(drawing)
    assert "<script>" not in drawing
