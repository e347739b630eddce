"""The summary of an evaluation on TOFU, made of its records or of a log's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gru_fast.evaluation.summaries import SUMMARY_FILE
from gru_fast.metrics import tofu as metrics
from gru_fast.metrics.logs import ORIGINAL_FILE, read_log, read_records, write_log
from gru_fast.metrics.records import SETS, Records
from gru_fast.metrics.unified import FORMAT, write_unified
from gru_fast.runs.files import read_json, write_json

LOG_FORMATS = ("original", FORMAT)


def resummarize(
    output_dir: str | Path,
    retain_logs: str | Path | None = None,
    truth_ratio: str = "geometric",
    matching_rows: bool = False,
) -> dict[str, Any]:
    """The summary of a finished evaluation, from its records: no model. Without ``retain_logs``, as it was written."""
    output_dir = Path(output_dir)
    before = read_json(output_dir / SUMMARY_FILE)
    if retain_logs is None and before["settings"].get("truth_ratio") == truth_ratio:
        return before
    return finish(output_dir, retain_logs, truth_ratio, matching_rows, seconds=None, settings=before["settings"])


def summarize(
    records: Records,
    retained: Records | None = None,
    truth_ratio: str = "geometric",
    *,
    matching_rows: bool = False,
) -> dict[str, Any]:
    """The numbers of a summary: Model Utility, Forget Quality, their components, rows.

    Sets that a published log does not hold are left out: Model Utility needs retain, real_authors and world_facts,
    Forget Quality needs ``retained``; null where they are missing.
    """
    has_utility = all(records.get(name) for name in SETS if name != "forget")
    quality = None
    if retained is not None:
        quality = metrics.forget_quality(records, retained, truth_ratio, matching_rows=matching_rows).to_json()
    return {
        "model_utility": metrics.model_utility(records, truth_ratio) if has_utility else None,
        "forget_quality": quality,
        "components": metrics.components(records, truth_ratio) if has_utility else None,
        "forget": metrics.forget_scores(records, truth_ratio) if records.get("forget") else None,
        "num_rows": {name: len(records[name]) for name in SETS if records.get(name)},
    }


def write_log_as(log_format: str, records: Records | None, summary: Mapping[str, Any], folder: Path) -> None:
    """Writes an evaluation to ``folder`` in a layout of others, one of ``LOG_FORMATS``.

    ``records`` None: those of the evaluation in ``folder``.
    """
    records = read_records(folder / "records") if records is None else records
    if log_format == "original":
        write_log(records, folder / ORIGINAL_FILE)
        return
    quality = summary["forget_quality"]
    write_unified(records, folder, None if quality is None else quality["p"], summary.get("extra"))


def says_deviation(output_dir: Path) -> bool:
    """Whether there is a summary with the deviations of losses in bfloat16."""
    file = output_dir / SUMMARY_FILE
    return file.is_file() and "bf16" in read_json(file)


def _of_quick(records: Records, truth_ratio: str) -> dict[str, Any]:
    """What a summary of a third of the rows says beside its numbers."""
    return {"intervals": {"MU": list(metrics.utility_interval(records, truth_ratio))}}


def finish(
    output_dir: Path,
    retain_logs: str | Path | Records | None,
    truth_ratio: str,
    matching_rows: bool,
    *,
    seconds: float | None,
    settings: Mapping[str, Any],
    bf16: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the summary. Numbers come from the records on disk: gone on with or unbroken, they are the same.

    ``bf16``: how far losses in bfloat16 are from float32.

    ``seconds`` None: nothing was scored now. What an earlier summary says then stays, if it is not asked for anew.
    """
    records, file = read_records(output_dir / "records"), output_dir / SUMMARY_FILE
    before = read_json(file) if seconds is None and file.is_file() else {}
    retained = read_log(retain_logs, settings["split"]) if isinstance(retain_logs, (str, Path)) else retain_logs
    quick = bool(settings.get("quick"))
    # The retrained model's log may hold all rows: those that were scored are compared.
    numbers = summarize(records, retained, truth_ratio, matching_rows=matching_rows or quick)
    numbers |= _of_quick(records, truth_ratio) if quick else {}
    source = str(retain_logs) if isinstance(retain_logs, (str, Path)) else None
    if retained is None and before.get("settings", {}).get("truth_ratio") == truth_ratio:
        numbers["forget_quality"], source = before["forget_quality"], before["settings"]["retain_logs"]
    summary = {
        "benchmark": "tofu",
        "split": settings["split"],
        **numbers,
        "seconds": before.get("seconds") if seconds is None else seconds,
        "settings": {**settings, "truth_ratio": truth_ratio, "retain_logs": source},
        **({"bf16": dict(bf16)} if bf16 else {}),
        **{name: before[name] for name in ("bf16", "extra") if name in before},
    }
    write_log(records, output_dir / ORIGINAL_FILE)
    write_json(file, summary)
    return summary
