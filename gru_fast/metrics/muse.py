"""MUSE: verbatim memorization, knowledge memorization, privacy leakage and utility, from per-example records.

Shi et al. 2025 (arXiv 2407.06460). Names and units are those of its leaderboard, all in percent:

verbmem_f   ROUGE-L F1 of how the model goes on with a text to be forgotten, against how it went on: lower is better
knowmem_f   ROUGE-L F1 of its answers to questions about the texts to be forgotten: lower is better
knowmem_r   the same about texts to be kept, the utility: higher is better
privleak    100 (A - A_ret) / A_ret, A the AUC of a membership inference attack: nearer to 0 is better

"Lower" ends where the retrained model is, which is the measure of all four.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gru_fast.metrics import mia
from gru_fast.metrics import quick as look
from gru_fast.metrics.records import rows_of
from gru_fast.metrics.rouge import rouge
from gru_fast.runs.files import read_json, read_lines

MIN_KS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # shares of tokens, as published; privleak is of mia.MIN_K
AUC_FILE = "auc.json"
UNIFIED_FILE = "MUSE_EVAL.json"


@dataclass(frozen=True)
class Generation:
    """One prompt and what the model writes after it, greedily.

    Args:
        index: row in its set, from 0.
        prompt: the text to go on with, or the question without its ten examples.
        reference: how the text went on, or the answer.
        generation: what the model writes, up to where a next question would begin.
    """

    index: int
    prompt: str
    reference: str
    generation: str


@dataclass(frozen=True)
class Surprise:
    """How well a model knows one text: no text in here, only numbers.

    Args:
        index: row in its set, from 0.
        text: hash of its tokens, which tells whether two models were asked the same.
        num_tokens: tokens that were scored, n.
        loss: mean of -log p over them, natural logarithm.
        min_k: share of tokens ("0.4") -> :func:`gru_fast.metrics.mia.min_k`, for each of :data:`MIN_KS`.
    """

    index: int
    text: str
    num_tokens: int
    loss: float
    min_k: Mapping[str, float]


GENERATION_SETS = ("verbmem_f", "knowmem_f", "knowmem_r")
SURPRISE_SETS = ("privleak_forget", "privleak_holdout")
SETS = (*GENERATION_SETS, *SURPRISE_SETS)
Records = dict[str, list[Any]]  # set (SETS) -> its records, by index
_R = TypeVar("_R", Generation, Surprise)


def mean_overlap(rows: Sequence[Generation], *, stemmer: bool = False, where: str = "records") -> float:
    """100 mean ROUGE-L F1, in percent: verbmem_f, knowmem_f, knowmem_r.

    The original code's ``mean_rougeL`` has no stemmer, the unified framework's has.
    """
    if not rows:
        raise ValueError(f"{where}: expected rows, got none")
    overlaps = _overlaps(rows, stemmer)
    return 100 * sum(overlaps) / len(overlaps)


def _overlaps(rows: Sequence[Generation], stemmer: bool) -> list[float]:
    return [rouge(row.reference, row.generation, stemmer=stemmer).rougeL_f1 for row in rows]


def scores(records: Records, *, stemmer: bool = False, k: float = mia.MIN_K) -> dict[str, look.Floats]:
    """Set -> (rows, 1): of each row its ROUGE-L F1 in percent, or its Min-K% score."""
    overlaps = {name: [100 * value for value in _overlaps(records[name], stemmer)] for name in GENERATION_SETS}
    found = {**overlaps, **{name: _scores(records, name, k) for name in SURPRISE_SETS}}
    return {name: np.array(values, dtype=np.float64)[:, None] for name, values in found.items()}


def leak_auc(records: Records, k: float = mia.MIN_K) -> float:
    """A = P(s_forget > s_holdout) + P(s_forget = s_holdout) / 2, s the Min-K% score (high for unknown texts), 0 to 1.

    Near 0 where the forget set is known, 1/2 where it cannot be told from texts never seen. It is ``forget_holdout`` of
    the published auc.json, and 1 minus :func:`gru_fast.metrics.mia.auc`, which the unified framework reports.
    """
    forget, holdout = (_scores(records, name, k) for name in SURPRISE_SETS)
    return mia.auc(holdout, forget)


def privleak(auc: float, retain_auc: float) -> float:
    """100 (A - A_ret) / A_ret in percent, A by :func:`leak_auc`, A_ret that of the model retrained without the set.

    0 is best. Negative: the forget set is still known (under-unlearned, -100 at most). Positive: it looks less known
    than to a model that never saw it (over-unlearned).

    >>> round(privleak(0.2291, 0.5393), 1)  # the published target model on Books
    -57.5
    """
    return mia.privleak(1 - auc, 1 - retain_auc)


# ---- records ---------------------------------------------------------------------------------------------------------


def read_records(folder: Path) -> Records:
    """The records of an evaluation: the sets whose SET.jsonl is in ``folder``."""
    found: Records = {}
    for name in SETS:
        file = folder / f"{name}.jsonl"
        if file.is_file():
            lines = [line for line in read_lines(file) if line]
            kind: Any = Generation if name in GENERATION_SETS else Surprise
            found[name] = _from_json(lines, kind, str(file))
    return found


def _from_json(lines: Iterable[str], kind: type[_R], where: str) -> list[_R]:
    rows = [_row(line, kind, f"{where}:{number}") for number, line in enumerate(lines, start=1)]
    return sorted(rows, key=lambda row: row.index)


def _row(line: str, kind: type[_R], where: str) -> _R:
    try:
        return kind(**json.loads(line))
    except (json.JSONDecodeError, TypeError) as error:
        names = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ValueError(f"{where}: expected a record with {names}; score it anew ({error})") from None


# ---- the retrained model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retained:
    """What PrivLeak needs of the retrained model.

    Args:
        aucs: share of tokens ("0.4") -> A.
        texts: set -> hashes of its texts, sorted; None for a published log, which does not say.
        source: where it is from.
    """

    aucs: Mapping[str, float]
    texts: Mapping[str, list[str]] | None
    source: str

    def auc(self, k: float = mia.MIN_K) -> float:
        """A of the Min-K% attack at this share of tokens, above 0."""
        found = self.aucs.get(str(float(k)))
        if found is None:
            raise ValueError(f"{self.source}: no Min-K% AUC at {k}; it has {', '.join(self.aucs)}")
        if found <= 0:
            raise ValueError(
                f"{self.source}: expected a Min-K% AUC above 0, got {found}: this model tells the forget set from "
                "texts never seen without an error, and nothing can be relative to that; is it the retrained model?"
            )
        return found

    def check_texts(self, name: str, texts: Iterable[str]) -> None:
        """Refuses other texts than those that the retrained model was asked about."""
        ours, theirs = sorted(texts), [] if self.texts is None else self.texts[name]
        if self.texts is not None and ours != theirs:
            common = (Counter(ours) & Counter(theirs)).total()
            raise ValueError(
                f"{name}: this model has {len(ours)} texts, the retrained model ({self.source}) {len(theirs)}, and "
                f"{common} are the same; PrivLeak compares the same texts: evaluate both on one corpus, with one "
                "tokenizer and as many rows"
            )


def retained(records: Records, source: str) -> Retained:
    """The retrained model's own records."""
    return Retained(
        aucs={str(k): leak_auc(records, k) for k in MIN_KS},
        texts={name: sorted(row.text for row in records[name]) for name in SURPRISE_SETS},
        source=source,
    )


def read_retained(path: str | Path, corpus: str | None = None, *, quick: bool = False) -> Retained:
    """The retrained model's evaluation.

    Args:
        path: its run folder, the folder of its evaluation or of the records in it; or a published log, auc.json of the
            original repository or MUSE_EVAL.json of the unified framework, or the folder with one.
        corpus: "news" or "books": which evaluation of a run's folder that holds several.
        quick: of its rows those that a quick evaluation has; of a published log, which has no rows, all.

    Raises:
        FileNotFoundError: no such file, or a folder without any of these. ValueError: a log of another kind.
    """
    path = Path(path)
    if path.is_dir():
        found = _find(path, corpus)
        if found.is_dir():
            records = read_records(found)
            missing = [name for name in SURPRISE_SETS if not records.get(name)]
            if missing:
                raise ValueError(f"{found}: has no {missing[0]}.jsonl; was the evaluation cut off? Run it again")
            if quick:
                records = {name: [row for row in rows if not row.index % look.STEP] for name, rows in records.items()}
            return retained(records, str(path))
        path = found
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder; expected the retrained model's evaluation on MUSE")
    content = read_json(path)
    aucs = _published(content) or _unified(content)
    if not aucs:
        raise ValueError(
            f"{path}: expected {AUC_FILE} of the original code (forget_holdout), {UNIFIED_FILE} of the unified "
            "framework (mia_min_k), or a folder that gru-fast eval muse has written"
        )
    return Retained(aucs, None, str(path))


def _find(folder: Path, corpus: str | None) -> Path:
    """The folder of records, or the file, that a folder stands for."""
    for candidate in (folder / "records", folder):
        if any((candidate / f"{name}.jsonl").is_file() for name in SURPRISE_SETS):
            return candidate
    for name in (AUC_FILE, UNIFIED_FILE):
        if (folder / name).is_file():
            return folder / name
    found = sorted(inner.parent for inner in folder.glob("eval/muse-*/records") if inner.is_dir())
    of_corpus = [inner for inner in found if corpus is None or inner.name.removesuffix(look.SUFFIX) == f"muse-{corpus}"]
    # All rows where they are there; else a third of them.
    chosen = [inner for inner in of_corpus if not inner.name.endswith(look.SUFFIX)] or of_corpus
    if len(chosen) == 1:
        return chosen[0] / "records"
    if chosen:
        names = ", ".join(inner.name for inner in chosen)
        raise ValueError(f"{folder}: evaluated on several corpora ({names}); give the folder of one in eval/")
    raise FileNotFoundError(
        f"{folder}: no evaluation {f'on {corpus} ' if corpus else ''}in it; run `gru-fast eval muse --model {folder}` "
        f"first, or give {AUC_FILE} or {UNIFIED_FILE}"
    )


def _published(content: Any) -> dict[str, float]:
    """The original code's: {"forget_holdout": {"Min-40%": A, ...}, ...}."""
    found = content.get("forget_holdout") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        return {}
    return {str(k): float(found[name]) for k in MIN_KS if (name := f"Min-{round(100 * k)}%") in found}


def _unified(content: Any) -> dict[str, float]:
    """The unified framework's: {"mia_min_k": {"agg_value": 1 - A, ...}, ...}, of its k 0.4."""
    found = content.get("mia_min_k") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("agg_value"), (int, float)):
        return {}
    return {"0.4": 1 - float(found["agg_value"])}


def _scores(records: Records, name: str, k: float) -> list[float]:
    rows = rows_of(records, name, "PrivLeak")
    key = str(float(k))
    for row in rows:
        if key not in row.min_k:
            raise ValueError(f"{name}: row {row.index} has no Min-K% score at {k}; it has {', '.join(row.min_k)}")
    return [row.min_k[key] for row in rows]
