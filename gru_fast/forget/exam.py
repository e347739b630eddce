"""A model is asked about all texts of a request: those to forget, those never seen, and those by which it is seen what
it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gru_fast.data.own import Piece
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import measures
from gru_fast.forget.level import Judgement, Level
from gru_fast.forget.measures import Extraction, Known


@dataclass(frozen=True)
class Texts:
    """The texts of a request as pieces.

    Args:
        forget: to forget.
        kept: set -> pieces that are not trained on, whose perplexity says what is kept: "retain", "neutral".
        unseen: that the model has never seen; none where there is no such text.
        unseen_source: "holdout" or "self-written".
    """

    forget: Sequence[Piece]
    kept: Mapping[str, Sequence[Piece]]
    unseen: Sequence[Piece]
    unseen_source: str

    def some(self, most: int) -> Texts:
        """At most ``most`` pieces of each set, evenly spaced, for quick looks; of the forget set at least one a
        document."""
        return replace(
            self,
            forget=_spread_over_documents(self.forget, most),
            kept={name: _spread(pieces, most) for name, pieces in self.kept.items()},
        )


@dataclass(frozen=True)
class Look:
    """What a quick look at a model says.

    Args:
        forget: by document.
        perplexities: of the kept sets.
    """

    forget: Sequence[Known]
    perplexities: Mapping[str, float]


@dataclass(frozen=True)
class Findings:
    """All that is measured of a model, before or after.

    Args:
        forget, unseen: by document.
        perplexities: of the kept sets.
        membership: attack -> AUC of the forget set against the holdout; empty without one.
        extractions: what it writes after the beginning of pieces to forget.
    """

    forget: Sequence[Known]
    unseen: Sequence[Known]
    perplexities: Mapping[str, float]
    membership: Mapping[str, float] = field(default_factory=dict)
    extractions: Sequence[Extraction] = ()

    def to_json(self) -> dict[str, Any]:
        """For a file; :meth:`from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Findings:
        """What :meth:`to_json` gave."""
        return cls(
            forget=[Known(**each) for each in content["forget"]],
            unseen=[Known(**each) for each in content["unseen"]],
            perplexities=content["perplexities"],
            membership=content["membership"],
            extractions=[Extraction(**each) for each in content["extractions"]],
        )


def look(scorer: Scorer, texts: Texts) -> Look:
    """The quick measures: one pass over the texts to forget and those to keep."""
    found = measures.records(scorer, texts.forget)
    kept = {name: measures.perplexity(measures.records(scorer, pieces)) for name, pieces in texts.kept.items()}
    return Look(measures.by_document(texts.forget, found), kept)


def examine(scorer: Scorer, texts: Texts, *, prefix: int, length: int, generate: int, keep_text: bool) -> Findings:
    """Everything.

    Args:
        prefix, length: see :func:`gru_fast.forget.measures.extractions`.
        generate: pieces to forget that the model is to continue, at most, evenly spaced over the documents.
        keep_text: whether texts are kept.
    """
    found = measures.records(scorer, texts.forget, compressed=True)
    unseen = measures.records(scorer, texts.unseen, compressed=True) if texts.unseen else []
    with_holdout = texts.unseen_source == "holdout"
    return Findings(
        forget=measures.by_document(texts.forget, found),
        unseen=measures.by_document(texts.unseen, unseen) if unseen else [],
        perplexities={name: measures.perplexity(measures.records(scorer, some)) for name, some in texts.kept.items()},
        membership=measures.membership(found, unseen) if unseen and with_holdout else {},
        extractions=measures.extractions(
            scorer,
            _spread_over_documents(texts.forget, generate),
            prefix=prefix,
            length=length,
            keep_text=keep_text,
        ),
    )


@dataclass(frozen=True)
class Standard:
    """What later looks at a model are held against: how it was before.

    Args:
        level: of text never seen.
        perplexities: of the kept sets, in quick looks; empty where nothing is kept by.
    """

    level: Level
    perplexities: Mapping[str, float]

    def kept(self, perplexities: Mapping[str, float]) -> float:
        """The smallest share that is left of a set's probability per token: perplexity before / perplexity now."""
        return min((self.perplexities[name] / now for name, now in perplexities.items()), default=1.0)

    def judge(self, found: Look | Findings) -> Judgement:
        """Whether the documents are known."""
        return self.level.judge(found.forget)


def _spread(pieces: Sequence[Piece], most: int) -> list[Piece]:
    if len(pieces) <= most:
        return list(pieces)
    return [pieces[i * len(pieces) // most] for i in range(most)]


def _spread_over_documents(pieces: Sequence[Piece], most: int) -> list[Piece]:
    """At most ``most`` pieces, but one of each document, the same number of each as far as they have so many."""
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.document, []).append(piece)
    each = max(1, most // max(1, len(groups)))
    return [piece for group in groups.values() for piece in _spread(group, each)]
