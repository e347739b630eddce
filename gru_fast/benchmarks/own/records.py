"""Pieces of documents as a model is asked about them: scored token by token, and begun, to be gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gru_fast.data.own import Document, Piece, pieces
from gru_fast.data.sequences import IGNORE_INDEX, Encoded, num_labels
from gru_fast.data.templates import Template
from gru_fast.evaluation.asking import Prompt, Scorer, unwritten
from gru_fast.evaluation.record_folder import Unwritten
from gru_fast.evaluation.scoring import TokenScores

_SHOWN = 200  # letters of a prompt that a record keeps


@dataclass(frozen=True)
class Asked:
    """A piece, and where it is begun and gone on with; ``prompt`` None: nothing is left to go on with."""

    piece: Piece
    prompt: Prompt | None
    shown: str
    reference: str

    @property
    def row(self) -> Encoded:
        """Its tokens."""
        return self.piece.row


def asked(
    documents: Sequence[Document],
    tokenizer: Any,
    template: Template,
    *,
    max_length: int,
    overlap: int | None,
    prefix_tokens: int,
    new_tokens: int,
) -> list[Asked]:
    """The pieces of documents. A pair or chat is gone on with where its first answer begins; a text after
    ``prefix_tokens`` of what the piece has new, or half of it where it is shorter. What comes then, up to
    ``new_tokens``, is the reference.
    """
    kinds = {document.id: document.kind for document in documents}
    found = []
    for piece in pieces(documents, tokenizer, template, max_length, overlap):
        start, stop = _continuation(piece.row, kinds[piece.document], prefix_tokens, new_tokens)
        ids = piece.row["input_ids"]
        prompt = Prompt(ids[:start], stop - start) if stop > start > 0 else None
        shown = tokenizer.decode(ids[:start], skip_special_tokens=True)[-_SHOWN:]
        reference = tokenizer.decode(ids[start:stop], skip_special_tokens=True) if prompt else ""
        found.append(Asked(piece, prompt if reference.strip() else None, shown, reference.strip()))
    return found


def score(scorer: Scorer, some: Sequence[Asked]) -> list[dict[str, Any] | Unwritten]:
    """The records of some pieces (:class:`gru_fast.metrics.own.Record`), without their index."""
    scores = scorer.token_scores([each.row for each in some])
    records = [partial(_record, each, scored) for each, scored in zip(some, scores, strict=True)]
    return [
        record("") if each.prompt is None else unwritten(each.prompt, record)
        for each, record in zip(some, records, strict=True)
    ]


def _record(asked: Asked, scored: TokenScores, text: str) -> dict[str, Any]:
    return {
        "document": asked.piece.document,
        "num_tokens": num_labels(asked.row),
        "loss": -float(scored.log_probs.double().mean()),
        "correct": "".join("1" if right else "0" for right in scored.correct.tolist()),
        "prompt": asked.shown if asked.prompt else "",
        "reference": asked.reference if asked.prompt else "",
        "generation": text,
    }


def _continuation(row: Encoded, kind: str, prefix_tokens: int, new_tokens: int) -> tuple[int, int]:
    """The tokens to be written: from where to where."""
    labels = row["labels"]
    first = next(index for index, label in enumerate(labels) if label != IGNORE_INDEX)
    end = next((index for index in range(first, len(labels)) if labels[index] == IGNORE_INDEX), len(labels))
    start = first
    if kind == "text" or first == 0:
        start = first + min(prefix_tokens, max((end - first) // 2, 1))
    return start, min(start + new_tokens, end)
