"""An evaluation on TOFU or MUSE as a log of the unified framework (open-unlearning), by its definitions.

Its evaluator goes on from such a file: metrics that stand in ``TOFU_EVAL.json`` of its output folder
(``MUSE_EVAL.json``) are not computed again, and ``retain_logs_path`` may name one. So the values in it are those that
it would have found itself for the same losses and texts, with 1e-10 in the denominators; ours do without
(:mod:`gru_fast.metrics.tofu`), which differs by 1e-7 and less unless a model has collapsed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gru_fast.metrics import muse
from gru_fast.metrics.exact import exact_mean
from gru_fast.metrics.logs import UNIFIED_FILE, UNIFIED_SETS, WITH_PARAPHRASE
from gru_fast.metrics.records import Record, Records
from gru_fast.metrics.rouge import rouge
from gru_fast.metrics.tofu import harmonic_mean
from gru_fast.runs.files import write_json

FORMAT = "open-unlearning"  # in --write-log
_LEAST = 1e-10  # added to its denominators
_MEASURES = ("extraction_strength", "exact_memorization")  # means over the forget set, of --metrics
_PRIVLEAK_OF = "mia_min_k"
_MUSE_SETS = {
    "verbmem_f": "forget_verbmem_ROUGE",
    "knowmem_f": "forget_knowmem_ROUGE",
    "knowmem_r": "retain_knowmem_ROUGE",
}

Log = dict[str, dict[str, Any]]  # metric -> agg_value, value_by_index
_Numbers = Mapping[str, Mapping[str, float | None]]


def write_unified(records: Records, folder: Path, quality: float | None = None, extra: _Numbers | None = None) -> None:
    """Writes ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json`` (the numbers of the former, without rows) to ``folder``.

    Arguments: see :func:`unified_log`. Each file is replaced at once.
    """
    _write(unified_log(records, quality, extra), folder / UNIFIED_FILE)


def write_unified_muse(records: muse.Records, folder: Path, extra: _Numbers | None = None) -> None:
    """Writes ``MUSE_EVAL.json`` and ``MUSE_SUMMARY.json`` to ``folder``; arguments: see :func:`unified_muse_log`."""
    _write(unified_muse_log(records, extra), folder / muse.UNIFIED_FILE)


def _write(log: Log, file: Path) -> None:
    write_json(file, log)
    summary = {name: metric["agg_value"] for name, metric in log.items()}
    write_json(file.with_name(file.name.replace("_EVAL", "_SUMMARY")), summary)


def unified_log(records: Records, quality: float | None = None, extra: _Numbers | None = None) -> Log:
    """The metrics of a log, in the order of their names. What is not known is left out, for its evaluator to compute.

    Args:
        records: of an evaluation, or of any log.
        quality: p of Forget Quality, where it is known.
        extra: optional metrics of the evaluation, ``{metric: {set or number: value}}``
            (:func:`gru_fast.metrics.extra.summarize`). Extraction strength, exact memorization and the attacks are
            written, as numbers without rows; gibberish is not, since its configuration reads the first 32 tokens only.

    Raises:
        ValueError: records that hold none of its metrics.
    """
    log: Log = {}
    for name, prefix in UNIFIED_SETS.items():
        rows = records.get(name)
        if rows:
            log.update({f"{prefix}_{what}": metric for what, metric in _of_set(name, rows).items()})
    if not log:
        raise ValueError("write_log: expected records with losses or generations, got none")
    parts = [
        f"{prefix}_{what}"
        for name, prefix in UNIFIED_SETS.items()
        if name != "forget"
        for what in ("Q_A_Prob" if name == "retain" else "Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")
    ]
    if all(part in log for part in parts):
        log["model_utility"] = {"agg_value": harmonic_mean([log[part]["agg_value"] for part in parts])}
    if "forget_Truth_Ratio" in log:
        log["forget_truth_ratio"] = log.pop("forget_Truth_Ratio")  # its name for it differs from set to set
    if quality is not None:
        log["forget_quality"] = {"agg_value": quality}
    log.update(_of_extra(extra or {}, "forget"))
    return dict(sorted(log.items()))


def unified_muse_log(records: muse.Records, extra: _Numbers | None = None) -> Log:
    """The metrics of a log on MUSE, in the order of their names.

    ROUGE is of word stems, as there. PrivLeak of our evaluation is the original code's, of all tokens: the framework's
    is that of the optional metric ``mia_min_k``, and left out without it.

    Args:
        records: of an evaluation.
        extra: as of :func:`unified_log`; memorization is that of verbmem, the texts that are to be gone on with.
    """
    log: Log = {}
    for name, metric in _MUSE_SETS.items():
        rows: Sequence[muse.Generation] = records.get(name, [])
        if rows:
            log[metric] = _metric(rows, [_generation(row) for row in rows], "rougeL_f1")
    log.update(_of_extra(extra or {}, "verbmem_f"))
    return dict(sorted(log.items()))


def _generation(row: muse.Generation) -> dict[str, Any]:
    found = rouge(row.reference, row.generation)
    texts = {"input": row.prompt, "ground_truth": row.reference, "generation": row.generation}
    return {
        "rouge1_recall": found.rouge1_recall,
        "rougeL_f1": found.rougeL_f1,
        "rougeL_recall": found.rougeL_recall,
        **texts,
    }


def _of_set(name: str, rows: Sequence[Record]) -> Log:
    found: Log = {}
    losses = _column(rows, lambda row: row.answer_loss)
    wrong = _column(rows, lambda row: row.perturbed_losses or None)
    right = _column(rows, lambda row: row.paraphrase_loss) if name in WITH_PARAPHRASE else losses
    if losses:
        found["Q_A_Prob"] = _metric(rows, [{"prob": math.exp(-loss), "avg_loss": loss} for loss in losses], "prob")
    if wrong:
        values = [{"prob": [math.exp(-one) for one in row], "avg_loss": list(row)} for row in wrong]
        found["Q_A_PERT_Prob"] = _metric(rows, values, "prob")
    if right and name in WITH_PARAPHRASE:
        found["Q_A_PARA_Prob"] = _metric(rows, [{"prob": math.exp(-one), "avg_loss": one} for one in right], "prob")
    if right and wrong:
        found["Truth_Ratio"] = _truth_ratio(name, rows, right, wrong)
    if losses and wrong and name not in WITH_PARAPHRASE:
        chosen = [
            math.exp(-loss) / (math.exp(-loss) + sum(math.exp(-one) for one in others) + _LEAST)
            for loss, others in zip(losses, wrong, strict=True)
        ]
        found["Q_A_Prob_normalised"] = _metric(rows, [{"prob": prob} for prob in chosen], "prob")
    if _column(rows, lambda row: row.rougeL_recall):
        found["Q_A_ROUGE"] = _metric(rows, [_text(row) for row in rows], "rougeL_recall")
    return found


def _truth_ratio(name: str, rows: Sequence[Record], right: Sequence[float], wrong: Sequence[Sequence[float]]) -> Any:
    ratios = [
        math.exp(-exact_mean(others)) / (math.exp(-loss) + _LEAST) for loss, others in zip(right, wrong, strict=True)
    ]
    values = [{"score": ratio} for ratio in ratios]
    closer_to_1 = [min(ratio, 1 / (ratio + _LEAST)) for ratio in ratios]
    true_better = [max(0.0, 1 - ratio) for ratio in ratios]
    return {**_metric(rows, values), "agg_value": exact_mean(closer_to_1 if name == "forget" else true_better)}


def _text(row: Record) -> dict[str, Any]:
    found = {"rouge1_recall": row.rouge1_recall, "rougeL_recall": row.rougeL_recall}
    if row.answer is not None and row.generation is not None:
        found["rougeL_f1"] = rouge(row.answer, row.generation).rougeL_f1
    return {**found, "input": row.question, "ground_truth": row.answer, "generation": row.generation}


def _of_extra(extra: _Numbers, forget: str) -> Log:
    """``forget``: the set that its memorization is of."""
    found: Log = {}
    for name, numbers in extra.items():
        if name in _MEASURES:
            found[name] = {"agg_value": numbers[forget]}
        elif numbers.get("auc") is not None:
            found[name] = {"agg_value": numbers["auc"], "auc": numbers["auc"]}
    leak = extra.get(_PRIVLEAK_OF, {}).get("privleak")
    return found if leak is None else {**found, "privleak": {"agg_value": leak}}


def _metric(rows: Sequence[Any], values: Sequence[Mapping[str, Any]], mean_of: str | None = None) -> dict[str, Any]:
    """``agg_value`` the mean of one of the values, of the rows' own means where it is a list."""
    found: dict[str, Any] = {"value_by_index": {str(row.index): v for row, v in zip(rows, values, strict=True)}}
    if mean_of is None:
        return found
    numbers = [value[mean_of] for value in values]
    return {"agg_value": exact_mean([exact_mean(n) if isinstance(n, list) else n for n in numbers]), **found}


def _column(rows: Sequence[Record], get: Callable[[Record], Any]) -> list[Any]:
    """A field of all rows; empty where one of them does not have it."""
    found = [get(row) for row in rows]
    return [] if any(value is None for value in found) else found
