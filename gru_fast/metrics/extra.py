"""Optional metrics: the numbers that are made of the scores of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gru_fast.metrics.mia import auc, privleak, rel_diff
from gru_fast.metrics.records import rows_of
from gru_fast.metrics.scores import Metric, TextRecord, TextRecords, get


def summarize(
    chosen: Sequence[str],
    records: TextRecords,
    retained: TextRecords | None = None,
    *,
    measured: Sequence[str] = ("forget", "retain"),
    attacked: tuple[str, str] = ("forget", "holdout"),
) -> dict[str, dict[str, float | None]]:
    """The numbers of some metrics, by name.

    Of a measure ``{set: mean}`` over the sets of ``measured``. Of an attack ``{"auc", "retained_auc", "privleak",
    "rel_diff"}`` between the two sets of ``attacked``, the last three null without ``retained``: the records of the
    retrained model, relative to which PrivLeak and its like are taken. (The unified framework takes 0.5 for an AUC it
    does not know.)

    Raises:
        ValueError: an unknown metric; a set or a field that it needs is not in the records; NaN or Inf.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name in chosen:
        metric = get(name)
        if metric.is_attack:
            found[name] = _attack_numbers(metric, records, retained, attacked)
        else:
            found[name] = {of: _mean(scores(metric, records, of)) for of in measured}
    return found


def scores(metric: Metric, records: TextRecords, of: str, whose: str = "") -> list[float]:
    """The score of each text of the set ``of``, in the order of its records. ``whose``: for messages."""
    found = []
    for row in rows_of(records, of, metric.name, whose):
        try:
            found.append(float(metric.score(row)))
        except ValueError as error:
            raise ValueError(f"{whose}{metric.name}: {of}: row {row.index}: {error}") from None
        if not math.isfinite(found[-1]):
            raise ValueError(f"{whose}{metric.name}: {of}: row {row.index}: the score is {found[-1]}")
    return found


def merge(parts: Mapping[str, Sequence[Mapping[str, Any]]], where: str) -> list[TextRecord]:
    """Records of one set from several files of JSON objects, each with ``index`` and some fields.

    Rows are joined by their index, never by their place, and every file must hold the same rows.
    """
    rows: dict[int, dict[str, Any]] = {}
    first: tuple[str, set[int]] | None = None
    for name, part in parts.items():
        indices = {row["index"] for row in part}
        if first is None:
            first = name, indices
        if indices != first[1] or len(indices) != len(part):
            raise ValueError(
                f"{where}: expected {first[0]} and {name} to hold the same rows, got {len(first[1])} and {len(part)} "
                f"({len(indices & first[1])} in both); score it anew with --overwrite"
            )
        for row in part:
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
            rows.setdefault(row["index"], {}).update(values)
    return [TextRecord(**rows[index]) for index in sorted(rows)]


def _attack_numbers(
    metric: Metric, records: TextRecords, retained: TextRecords | None, attacked: tuple[str, str]
) -> dict[str, float | None]:
    ours = auc(*(scores(metric, records, of) for of in attacked))
    if retained is None:
        return {"auc": ours, "retained_auc": None, "privleak": None, "rel_diff": None}
    theirs = auc(*(scores(metric, retained, of, "retained model: ") for of in attacked))
    return {
        "auc": ours,
        "retained_auc": theirs,
        "privleak": privleak(ours, theirs) if theirs < 1 else None,
        "rel_diff": rel_diff(ours, theirs) if theirs > 0 else None,
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
