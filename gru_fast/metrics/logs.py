"""TOFU evaluation logs as records: the original layout, the unified framework's (open-unlearning), and our own folder.

original    ``eval_log_aggregated.json``: {"eval_log.json": {"avg_gt_loss": {"0": 0.06, ...}, ...}, ...}, or a folder
            with the four files it was made of
unified     ``TOFU_EVAL.json``: {"forget_Q_A_PARA_Prob": {"agg_value": ..., "value_by_index": {"0": {...}}}, ...}
ours        a folder ``records`` with SET.jsonl, the folder above it, or a run's folder (``eval/tofu-SPLIT/records``)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gru_fast.metrics import quick
from gru_fast.metrics.records import SETS, Record, Records, from_json
from gru_fast.metrics.tofu import log_truth_ratios
from gru_fast.runs.files import read_json, read_lines, write_json

ORIGINAL_FILE = "eval_log_aggregated.json"
UNIFIED_FILE = "TOFU_EVAL.json"
_ORIGINAL_SETS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
UNIFIED_SETS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
WITH_PARAPHRASE = ("forget", "retain")  # the other sets' paraphrase is the answer itself

# Frames of the prompts in published logs, so that questions compare equal across layouts and with our own records.
# Special tokens were left out on decoding: a chat's turns begin with bare role names.
_FRAMES = (
    re.compile(r"\s*Question: (.*?)\n(?:Answer:\s*)?", re.DOTALL),
    re.compile(r"\s*\[INST\] ?(.*?) ?\[/INST\]\s*", re.DOTALL),
    re.compile(r"(?:.*\W)?user(?:\|>)?\n+(.*?)\s*(?:<\|)?(?:assistant|model)(?:\|>)?\s*", re.DOTALL),
)


def read_log(path: str | Path, split: str | None = None) -> Records:
    """Records of a log file or folder, in any of the layouts above; sets that it does not hold are left out.

    Args:
        split: which evaluation of a run's folder that holds several, e.g. "forget05".

    Raises:
        FileNotFoundError: nothing there, or a folder without an evaluation.
        ValueError: not a log, or its columns hold different rows.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, split)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder; expected a TOFU evaluation log or a run's folder")
    content = read_json(path)
    if isinstance(content, dict) and any(name in content for name in _ORIGINAL_SETS.values()):
        return _read_original(content, path)
    if isinstance(content, dict) and any(_is_unified(value) for value in content.values()):
        return _read_unified(content, path)
    keys = ", ".join(list(content)[:5]) if isinstance(content, dict) else type(content).__name__
    raise ValueError(
        f"{path}: expected a TOFU evaluation log ({ORIGINAL_FILE} or {UNIFIED_FILE}), got one with {keys or 'nothing'}"
        + ("; a summary holds no rows, give the log beside it" if "model_utility" in keys else "")
    )


def write_log(records: Records, path: str | Path) -> None:
    """Writes records in the original layout, which the original code's aggregation reads. Replaces the file at once."""
    content = {_ORIGINAL_SETS[name]: _to_original(name, rows) for name, rows in records.items() if rows}
    write_json(Path(path), content)


# ---- folders ---------------------------------------------------------------------------------------------------------


def find_records(folder: Path, split: str | None = None) -> Path | None:
    """The folder of our own records in ``folder``: itself, its ``records``, or that of its one evaluation on TOFU."""
    for candidate in (folder / "records", folder):
        if any((candidate / f"{name}.jsonl").is_file() for name in SETS):
            return candidate
    found = sorted(inner.parent for inner in folder.glob("eval/tofu-*/records") if inner.is_dir())
    of_split = [inner for inner in found if split is None or inner.name.removesuffix(quick.SUFFIX) == f"tofu-{split}"]
    # All rows where they are there; else a third of them.
    chosen = [inner for inner in of_split if not inner.name.endswith(quick.SUFFIX)] or of_split
    if len(chosen) > 1:
        names = ", ".join(inner.name.removeprefix("tofu-") for inner in chosen)
        raise ValueError(f"{folder}: evaluated on several splits ({names}); name one, or give its folder in eval/")
    return chosen[0] / "records" if chosen else None


def read_records(folder: Path) -> Records:
    """Records of our own folder of SET.jsonl files."""
    found: Records = {}
    for name in SETS:
        file = folder / f"{name}.jsonl"
        if file.is_file():
            rows = (_line(line, file, number) for number, line in enumerate(read_lines(file), 1) if line)
            found[name] = from_json(rows, str(file))
    return found


def _line(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{number}: not JSON ({error.msg}); was the evaluation cut off? Run it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}:{number}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_folder(folder: Path, split: str | None) -> Records:
    ours = find_records(folder, split)
    if ours is not None:
        return read_records(ours)
    for name in (ORIGINAL_FILE, UNIFIED_FILE):
        if (folder / name).is_file():
            return read_log(folder / name)
    parts = {name: read_json(folder / name) for name in _ORIGINAL_SETS.values() if (folder / name).is_file()}
    if parts:
        return _read_original(parts, folder)
    wanted = f"on {split} " if split else ""
    raise FileNotFoundError(
        f"{folder}: no evaluation {wanted}in it; run `gru-fast eval tofu --model {folder}"
        + (f" --split {split}" if split else "")
        + f"` first, or give a log ({ORIGINAL_FILE}, {UNIFIED_FILE})"
    )


# ---- the original layout ---------------------------------------------------------------------------------------------


def _read_original(content: Mapping[str, Any], path: Path) -> Records:
    records: Records = {}
    for name, file in _ORIGINAL_SETS.items():
        if file not in content:
            continue
        where = f"{path}: {file}"
        columns = content[file]
        if not isinstance(columns, dict) or "avg_gt_loss" not in columns:
            raise ValueError(f'{where}: expected columns by name, "avg_gt_loss" among them')
        texts = _column(columns, "generated_text", where, lambda value: (list(value) + [None] * 3)[:3])
        get = {
            "answer_loss": _column(columns, "avg_gt_loss", where),
            "num_tokens": _column(columns, "num_token_gt", where),
            "paraphrase_loss": _column(columns, "avg_paraphrased_loss", where),
            "perturbed_losses": _column(columns, "average_perturb_loss", where, tuple),
            "rouge1_recall": _column(columns, "rouge1_recall", where),
            "rougeL_recall": _column(columns, "rougeL_recall", where),
            "paraphrase_num_tokens": _column(columns, "num_token_paraphrased", where),
            "perturbed_num_tokens": _column(columns, "num_token_perturb", where, tuple),
        }
        rows = []
        for index in sorted(int(key) for key in columns["avg_gt_loss"]):
            prompt, generation, answer = texts.get(index, (None, None, None))
            rows.append(
                Record(
                    index=index,
                    question=bare_question(prompt),
                    answer=answer,
                    generation=generation,
                    **{field: values.get(index) for field, values in get.items()},
                )
            )
        records[name] = rows
    return records


def _column(columns: Mapping[str, Any], name: str, where: str, make: Callable[[Any], Any] | None = None) -> Any:
    """{row: value} of a column; empty if the log has none. Its rows must be those of avg_gt_loss."""
    if name not in columns:
        return {}
    if set(columns[name]) != set(columns["avg_gt_loss"]):
        raise ValueError(f'{where}: expected "{name}" and "avg_gt_loss" to hold the same rows')
    return {int(key): make(value) if make else value for key, value in columns[name].items()}


def _to_original(name: str, rows: list[Record]) -> dict[str, dict[str, Any]]:
    """Columns of one set: means per token as kept, sums as mean times tokens; columns that no row has are left out."""
    columns: dict[str, dict[str, Any]] = {
        "avg_gt_loss": {},
        "gt_loss": {},
        "num_token_gt": {},
        "generated_text": {},
        "rouge1_recall": {},
        "rougeL_recall": {},
        "average_perturb_loss": {},
        "avg_paraphrased_loss": {},
        "truth_ratio": {},
        "paraphrased_loss": {},
        "perturb_loss": {},
        "num_token_paraphrased": {},
        "num_token_perturb": {},
    }
    for row in rows:
        key = str(row.index)
        columns["avg_gt_loss"][key] = row.answer_loss
        columns["num_token_gt"][key] = row.num_tokens
        columns["gt_loss"][key] = _sum(row.answer_loss, row.num_tokens)
        columns["generated_text"][key] = [row.question, row.generation, row.answer]
        columns["rouge1_recall"][key], columns["rougeL_recall"][key] = row.rouge1_recall, row.rougeL_recall
        columns["avg_paraphrased_loss"][key] = row.paraphrase_loss
        columns["num_token_paraphrased"][key] = row.paraphrase_num_tokens
        columns["paraphrased_loss"][key] = _sum(row.paraphrase_loss, row.paraphrase_num_tokens)
        wrong = None if row.perturbed_losses is None else list(row.perturbed_losses)
        tokens = None if row.perturbed_num_tokens is None else list(row.perturbed_num_tokens)
        columns["average_perturb_loss"][key], columns["num_token_perturb"][key] = wrong, tokens
        columns["perturb_loss"][key] = (
            [loss * count for loss, count in zip(wrong, tokens, strict=True)] if wrong and tokens else None
        )
        known = row.paraphrase_loss is not None and wrong
        columns["truth_ratio"][key] = math.exp(min(log_truth_ratios([row])[0], 700.0)) if known else None
    return {column: values for column, values in columns.items() if any(v is not None for v in values.values())}


def _sum(mean: float | None, count: int | None) -> float | None:
    return None if mean is None or count is None else mean * count


# ---- the unified framework's layout ----------------------------------------------------------------------------------


def _is_unified(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("value_by_index"), dict)


def _read_unified(content: Mapping[str, Any], path: Path) -> Records:
    """Truth ratios are computed from the losses kept there (its own values have 1e-10 in the denominator)."""
    records: Records = {}
    for name, prefix in UNIFIED_SETS.items():
        answer = _values(content, f"{prefix}_Q_A_Prob")
        wrong = _values(content, f"{prefix}_Q_A_PERT_Prob")
        paraphrase = _values(content, f"{prefix}_Q_A_PARA_Prob") if name in WITH_PARAPHRASE else answer
        texts = _values(content, f"{prefix}_Q_A_ROUGE")
        present = [values for values in (answer, wrong, paraphrase, texts) if values]
        if not present:
            continue
        if any(values.keys() != present[0].keys() for values in present):
            raise ValueError(f"{path}: the metrics {prefix}_Q_A_* hold different rows; evaluate again with overwrite")
        records[name] = [
            Record(
                index=index,
                question=bare_question(texts.get(index, {}).get("input")),
                answer=texts.get(index, {}).get("ground_truth"),
                answer_loss=answer.get(index, {}).get("avg_loss"),
                paraphrase_loss=paraphrase.get(index, {}).get("avg_loss"),
                perturbed_losses=_as_tuple(wrong.get(index, {}).get("avg_loss")),
                generation=texts.get(index, {}).get("generation"),
                rouge1_recall=texts.get(index, {}).get("rouge1_recall"),
                rougeL_recall=texts.get(index, {}).get("rougeL_recall"),
            )
            for index in sorted(present[0])
        ]
    if not records:
        known = ", ".join(key for key, value in content.items() if _is_unified(value))
        raise ValueError(f"{path}: expected metrics named forget_Q_A_Prob, retain_Q_A_ROUGE and so on, got {known}")
    return records


def _values(content: Mapping[str, Any], metric: str) -> dict[int, dict[str, Any]]:
    found: Any = content.get(metric)
    if not _is_unified(found):
        return {}
    return {int(key): value or {} for key, value in found["value_by_index"].items()}


def _as_tuple(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(value) if isinstance(value, list) else (value,)


def bare_question(prompt: str | None) -> str | None:
    """A prompt without the frame of the published templates; as it is where the frame is not known."""
    if prompt is None:
        return None
    for frame in _FRAMES:
        found = frame.fullmatch(prompt)
        if found:
            return found.group(1)
    return prompt
