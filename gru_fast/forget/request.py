"""A request as rows: what is to be forgotten, what is trained to stay, and what is measured."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gru_fast.data.own import MAX_SHARED, Document, Piece, check_apart, hold_out, load, pieces
from gru_fast.data.pairs import UnlearnDataset
from gru_fast.data.self_written import Sampling, read_written, write_retain
from gru_fast.forget.exam import Texts
from gru_fast.forget.level import LEAST
from gru_fast.forget.options import NONE, ForgetOptions
from gru_fast.models.identity import fingerprint
from gru_fast.runs.processes import on_first

WRITTEN = "self_written.jsonl"  # in the run folder, with a .json of what was dropped
_FOR_MEASURES = 24  # texts that a model writes where it is to be measured by them alone
_WRITTEN_SEED = 20_201  # apart from the training's: a run with another seed has the same texts to be measured by


@dataclass(frozen=True)
class Documents:
    """The documents of a request, as they were given.

    Args:
        forget: to forget.
        retain: to keep; none where the model writes them, or there are to be none.
        holdout, neutral: see :class:`~gru_fast.forget.options.ForgetOptions`.
    """

    forget: Sequence[Document]
    retain: Sequence[Document]
    holdout: Sequence[Document]
    neutral: Sequence[Document]


@dataclass
class Request:
    """What is trained and measured.

    Args:
        documents: as given.
        forget: pieces to forget.
        retain: pieces to keep that are trained on; empty with ``--retain none``.
        texts: what is measured.
        written: how many texts the model wrote, and how many were dropped why; empty where it wrote none.
        again: pieces of earlier requests that are trained on as well, see :mod:`gru_fast.forget.earlier`.
    """

    documents: Documents
    forget: Sequence[Piece]
    retain: Sequence[Piece]
    texts: Texts
    written: dict[str, int] = field(default_factory=dict)
    again: Sequence[Piece] = ()

    def dataset(self, rows_per_step: int, seed: int) -> UnlearnDataset:
        """The rows to train on. Those to forget are repeated, so that every step is of ``rows_per_step`` of them, each
        beside another row to keep."""
        rows = [piece.row for piece in (*self.forget, *self.again)]
        rows *= rows_per_step // math.gcd(len(rows), rows_per_step)
        return UnlearnDataset(rows, [piece.row for piece in self.retain] or None, seed=seed)


def read(options: ForgetOptions, forget: Sequence[Document] | None = None) -> Documents:
    """The documents of all options; ``forget``: those to forget, if they have been read.

    Raises:
        FileNotFoundError, ValueError: see :func:`gru_fast.data.own.load`; documents that are to be forgotten and kept;
            any of the holdout that is to be forgotten, or kept.
    """

    given = None if options.writes_itself or options.retain == [NONE] else options.retain
    found = Documents(
        load(list(options.forget or ()), columns=options.columns) if forget is None else forget,
        *(_others(sources, options.columns) for sources in (given, options.holdout, options.neutral)),
    )
    for name in ("retain", "holdout", "neutral"):
        part = getattr(found, name)
        if name == "holdout" and 0 < len(part) < LEAST:
            raise ValueError(
                f"holdout: expected at least {LEAST} documents, got {len(part)}: the level depends on how much texts "
                "differ that the model has never seen"
            )
        if part:
            # One known text among those never seen lifts the level: not a single one may be.
            most = 0.0 if name == "holdout" else MAX_SHARED
            check_apart(found.forget, part, most, names=("forget", name))
    if found.retain and found.holdout:
        check_apart(found.retain, found.holdout, 0.0, names=("retain", "holdout"))
    return found


@dataclass(frozen=True)
class Rows:
    """Rows as they are printed, each with its ``document``; ``retain`` None: the model is to write them."""

    forget: Sequence[Mapping[str, Any]]
    retain: Sequence[Mapping[str, Any]] | None
    sets: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # none, as of any dataset


def to_show(documents: Documents, options: ForgetOptions, tokenizer: Any, template: Any) -> Rows:
    """What would be trained on, as far as it is known without the model."""

    def rows(some: Sequence[Document]) -> list[Mapping[str, Any]]:
        cut = pieces(some, tokenizer, template, options.max_length)
        return [{**piece.row, "document": piece.document} for piece in cut]

    return Rows(rows(documents.forget), rows(documents.retain) if documents.retain else None)


def _others(sources: Sequence[str] | None, columns: dict[str, str] | None) -> list[Document]:
    """Documents beside those to forget: with fields of their own names, or else with the same columns."""
    if not sources:
        return []
    try:
        return load(list(sources))
    except ValueError:
        if not columns:
            raise
        return load(list(sources), columns=columns)


def make(
    documents: Documents,
    options: ForgetOptions,
    model: Any,
    tokenizer: Any,
    template: Any,
    folder: Path | None,
    *,
    shown: bool = True,
    as_written: Path | None = None,
) -> Request:
    """The rows of a request; the model writes what is not given.

    Args:
        folder: where what it writes is kept, to go on with after a stop; None: nowhere.
        shown: show a bar.
        as_written: a file of what a model has written before, to be read in place of having this one write.
    """

    def cut(some: Sequence[Document]) -> list[Piece]:
        return pieces(some, tokenizer, template, options.max_length) if some else []

    forget, given = cut(documents.forget), documents.retain
    kept = {"neutral": cut(documents.neutral)} if documents.neutral else {}
    written: list[Document] = []
    counts: dict[str, int] = {}
    if as_written is not None:
        written = read_written(as_written) if as_written.is_file() else []
    elif options.writes_itself or not (documents.neutral and documents.holdout):
        # One process writes for all: they share the file.
        written, counts = on_first(lambda: _write(documents, options, model, tokenizer, template, folder, shown=shown))
    train: list[Piece] = []
    fresh = written  # that no step sees
    if options.writes_itself:
        learned, fresh = hold_out(written, options.held_out)
        train, kept["retain"] = cut(learned), cut(fresh)
    elif given:
        train, kept["retain"] = _held_out(given, cut, options.held_out)
    if "neutral" not in kept and not options.writes_itself:
        kept["neutral"] = cut(written)
    unseen, source = (documents.holdout, "holdout") if documents.holdout else (fresh, "self-written")
    return Request(documents, forget, train, Texts(forget, kept, cut(unseen), source), counts)


def _write(
    documents: Documents,
    options: ForgetOptions,
    model: Any,
    tokenizer: Any,
    template: Any,
    folder: Path | None,
    *,
    shown: bool,
) -> tuple[list[Document], dict[str, int]]:
    return write_retain(
        model,
        tokenizer,
        template,
        options.self_texts if options.writes_itself else _FOR_MEASURES,
        _WRITTEN_SEED,
        forget=documents.forget,
        batch_size=max(options.eval_batch_size, 16),
        sampling=Sampling(max_new_tokens=options.self_length),
        file=None if folder is None else folder / WRITTEN,
        about={"model": fingerprint(model)},
        progress=shown and sys.stderr.isatty(),
    )


def _held_out(documents: Sequence[Document], cut: Any, share: float) -> tuple[list[Piece], list[Piece]]:
    """Pieces to train on, and of other documents to measure; of one document alone, its last pieces."""
    if len(documents) > 1:
        learned, held = hold_out(documents, share)
        return cut(learned), cut(held)
    found = cut(documents)
    count = math.ceil(share * len(found))
    if count >= len(found):
        raise ValueError(
            f"retain: {documents[0].id} is a single piece, of which nothing can be held out for measuring; give more, "
            "or --retain self"
        )
    return found[:-count], found[-count:]
