"""Requests that a model has been through before: are they still forgotten, and how they stay so.

In the next request's training their documents are rows to forget again, but NPO's reference of each is what the model
gave it before its own request. So a row that is still forgotten has all but lost its pull::

    2 sigmoid(beta * (log p - log p_ref))          of 1, at p = p_ref; a level that a later request brings it back to

and it is pushed as far as it has come back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gru_fast.data.own import Document, Piece, check_apart, load, pieces
from gru_fast.data.sequences import num_labels
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import manifest, measures
from gru_fast.forget.level import Level


def measured(
    scorer: Scorer, template: Any, requests: Sequence[Mapping[str, Any]], *, keep_text: bool = True
) -> list[dict[str, Any]]:
    """The requests, each with what is to be said of it ``now``, by the rule and level of its own time.

    ``keep_text`` False, or a request that was made so itself: why its documents cannot be read is not said, since such
    a message quotes them.
    """
    return [
        {**each, "now": _now(scorer, template, each, keep_text and each["options"].get("text", True))}
        for each in requests
    ]


def rows(
    requests: Sequence[Mapping[str, Any]],
    retain: Sequence[Document],
    tokenizer: Any,
    template: Any,
    *,
    keep_text: bool = True,
) -> tuple[list[Piece], list[str]]:
    """The pieces of all earlier requests, each row with its ``reference_log_probs``; and in words what was not there.

    The reference of a piece is its share of its document: tokens times the mean log p that the request found before.

    Args:
        retain: documents to keep, of which none may be among them.

    Raises:
        ValueError: none of their documents is at hand; some are to be kept now.
    """
    found: list[Piece] = []
    lacking: list[str] = []
    for request in requests:
        documents = _documents(request, keep_text and request["options"].get("text", True))
        if isinstance(documents, str) or "before" not in request:
            why = documents if isinstance(documents, str) else "its manifest does not say how it was known before"
            lacking.append(f"{request['run']}: {why}")
            continue
        if retain:
            check_apart(documents, retain, 0.0, names=("an earlier request", "retain"))
        cut = pieces(documents, tokenizer, template, int(request["options"]["max_length"]))
        before = _before(request, documents)
        found += [_with_reference(piece, before) for piece in cut if piece.document in before]
    if not found:
        raise ValueError(f"also_keep_forgotten: nothing of the earlier requests is at hand: {'; '.join(lacking)}")
    return found, lacking


def _before(request: Mapping[str, Any], documents: Sequence[Document]) -> dict[str, float]:
    """Document -> its probability before the request, by what it says: its name may be another by now."""
    said = request["documents"]
    names = {each["hash"]: each["id"] for each in said["forget"]}
    then = {document.id: names[manifest.document_hash(said["salt"], document)] for document in documents}
    return {now: request["before"][name] for now, name in then.items() if name in request["before"]}


def _with_reference(piece: Piece, before: Mapping[str, float]) -> Piece:
    log_prob = math.log(max(before[piece.document], 1e-300)) * num_labels(piece.row)
    return replace(piece, row={**piece.row, "reference_log_probs": log_prob})  # type: ignore[typeddict-unknown-key]


def _documents(request: Mapping[str, Any], keep_text: bool) -> list[Document] | str:
    """The documents of a request, or why they are not those."""
    options = request["options"]
    try:
        documents = load(list(options["forget"]), columns=options.get("columns"))
    except (OSError, ValueError, ImportError) as error:
        return f"its documents are not at hand{f' ({error})' if keep_text else ''}"
    differing = manifest.differing(request, documents)
    return f"its documents are others now ({differing[0]})" if differing else documents


def _now(scorer: Scorer, template: Any, request: Mapping[str, Any], keep_text: bool) -> str:
    documents = _documents(request, keep_text)
    if isinstance(documents, str):
        return f"not measured: {documents}"
    cut = pieces(documents, scorer.tokenizer, template, int(request["options"]["max_length"]))
    known = measures.by_document(cut, measures.records(scorer, cut))
    judgement = Level.from_json(request["level"]).judge(known)
    return f"{judgement}, then: {request['verdict']}"
