"""Requests that a model has been through before: are they still forgotten?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gru_fast.data.own import load, pieces
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


def _now(scorer: Scorer, template: Any, request: Mapping[str, Any], keep_text: bool) -> str:
    options = request["options"]
    try:
        documents = load(list(options["forget"]), columns=options.get("columns"))
    except (OSError, ValueError, ImportError) as error:
        return f"not measured: its documents are not at hand{f' ({error})' if keep_text else ''}"
    differing = manifest.differing(request, documents)
    if differing:
        return f"not measured: its documents are others now ({differing[0]})"
    cut = pieces(documents, scorer.tokenizer, template, int(options["max_length"]))
    known = measures.by_document(cut, measures.records(scorer, cut))
    judgement = Level.from_json(request["level"]).judge(known)
    return f"{judgement}, then: {request['verdict']}"
