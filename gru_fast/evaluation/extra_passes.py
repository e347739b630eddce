"""The passes of the optional metrics: what they need of a model or a classifier, kept row by row."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gru_fast.data.hashes import hash_of
from gru_fast.data.sequences import IGNORE_INDEX, Encoded, content_hash
from gru_fast.evaluation.asking import Scorer
from gru_fast.evaluation.classifier import clean_probabilities, load_classifier
from gru_fast.evaluation.record_folder import RecordFolder, RowSet, score_sets
from gru_fast.evaluation.scoring import TokenScores
from gru_fast.evaluation.subject import settings_of
from gru_fast.metrics.fluency import GIBBERISH_MODEL, GIBBERISH_TOKENS
from gru_fast.models.identity import fingerprint
from gru_fast.models.limits import limits_of, padding_id

# A pass gives some fields of gru_fast.metrics.scores.TextRecord, and is one file of records per set of texts.
PASSES = {
    "tokens": ("log_probs", "correct", "vocab_means", "vocab_variances", "zlib_bytes"),
    "gradients": ("gradient_norm",),
    "reference": ("reference_loss",),
    "gibberish": ("clean",),
}
OF_MODEL = ("tokens", "gradients")  # passes that share a folder: they depend on the model and the texts alone


@dataclass(frozen=True)
class ExtraScorer(Scorer):
    """What the passes are made with.

    Args:
        reference: loads the reference model, on a device; called only if a metric needs it.
        reference_name, gibberish_model, gibberish_tokens: see :class:`gru_fast.evaluation.extra.ExtraOptions`.
        progress, overwrite: as in an evaluation.
    """

    reference: Callable[[], Any] | None = None
    reference_name: str | None = None
    gibberish_model: str = GIBBERISH_MODEL
    gibberish_tokens: int = GIBBERISH_TOKENS
    progress: bool = True
    overwrite: bool = False


def folder_of(folder: Path, of: str, each: str) -> Path:
    """The folder of a pass over a set, in that of all records."""
    return folder / of if each in OF_MODEL else folder / of / each


def score_by_model(
    scorer: ExtraScorer, folder: Path, sequences: Sequence[Encoded], passes: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """The passes that share a folder."""
    records = RecordFolder(folder, {**settings, **_content(sequences)}, overwrite=scorer.overwrite)

    def tokens(rows: list[Encoded]) -> list[dict[str, Any]]:
        found = scorer.token_scores(rows)
        return [_to_json(one, _text(scorer.tokenizer, row)) for one, row in zip(found, rows, strict=True)]

    def gradients(rows: list[Encoded]) -> list[dict[str, Any]]:
        return [{"gradient_norm": norm} for norm in scorer.gradient_norms(rows)]

    work = {"tokens": tokens, "gradients": gradients}
    _keep(scorer, records, {each: work[each] for each in OF_MODEL if each in passes}, sequences)


def score_by_reference(
    scorer: ExtraScorer, folder: Path, sets: Mapping[str, Sequence[Encoded]], settings: Mapping[str, Any]
) -> None:
    """The losses of the reference model, which is loaded if there are sets to score."""
    if not sets or scorer.reference is None:
        return
    model = scorer.reference()
    reference = replace(scorer, model=model, pad_token_id=padding_id(model, scorer.tokenizer))
    for of, rows in sets.items():
        limits_of(model).check_rows(of, rows)
    own = {**settings_of(reference.model, settings), "reference": scorer.reference_name}

    def work(rows: list[Encoded]) -> list[dict[str, Any]]:
        return [{"reference_loss": one.loss} for one in reference.losses(rows)]

    for of, sequences in sets.items():
        path, content = folder_of(folder, of, "reference"), _content(sequences)
        records = RecordFolder(path, {**own, **content}, overwrite=scorer.overwrite)
        _keep(scorer, records, {"reference": work}, sequences)


def score_by_classifier(scorer: ExtraScorer, folder: Path, sets: Mapping[str, Sequence[str]]) -> None:
    """The classifier's opinion of generations; it is loaded if there are sets to score."""
    if not sets:
        return
    classifier, tokenizer = load_classifier(scorer.gibberish_model, scorer.model.device)
    own: dict[str, Any] = {"gibberish_model": scorer.gibberish_model, "model": fingerprint(classifier)}
    tokens = scorer.gibberish_tokens
    if tokens != GIBBERISH_TOKENS:  # records from before there was a choice stay what they are
        own["gibberish_tokens"] = tokens

    def work(rows: list[str]) -> list[dict[str, Any]]:
        found = clean_probabilities(classifier, tokenizer, rows, batch_size=scorer.batch_size, max_tokens=tokens)
        return [{"clean": value} for value in found]

    for of, texts in sets.items():
        settings = {**own, "texts": hash_of(texts), "num_rows": len(texts)}
        records = RecordFolder(folder_of(folder, of, "gibberish"), settings, overwrite=scorer.overwrite)
        _keep(scorer, records, {"gibberish": work}, texts)


def _keep(
    scorer: ExtraScorer,
    records: RecordFolder,
    passes: Mapping[str, Callable[[list[Any]], list[dict[str, Any]]]],
    rows: Sequence[Any],
) -> None:
    """Some passes over one set."""
    lengths = [len(row) if isinstance(row, str) else len(row["input_ids"]) for row in rows]
    asked = []
    for each, work in passes.items():
        of = records.path.name if each in OF_MODEL else records.path.parent.name
        asked.append(RowSet(each, rows, work, lengths, f"{of}: {each}"))
    score_sets(records, asked, batch_size=scorer.batch_size, progress=scorer.progress)


def _to_json(scores: TokenScores, text: str) -> dict[str, Any]:
    return {
        "log_probs": _short(scores.log_probs),
        "correct": "".join("1" if right else "0" for right in scores.correct.tolist()),
        "vocab_means": _short(scores.means),
        "vocab_variances": _short(scores.variances),
        "zlib_bytes": len(zlib.compress(text.encode("utf-8"))),
    }


def _short(values: Any) -> list[float]:
    """(n,) float32 as the shortest decimals that give the same float32: half the file."""
    return [float(str(value)) for value in values.numpy()]


def _text(tokenizer: Any, row: Encoded) -> str:
    """The text of the label tokens."""
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX], skip_special_tokens=True)


def _content(sequences: Sequence[Encoded]) -> dict[str, Any]:
    return {"texts": hash_of([content_hash(row) for row in sequences]), "num_rows": len(sequences)}
