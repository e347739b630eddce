"""Forget and retain documents side by side: what they share, and what is held out of training."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from gru_fast.data.own.documents import Document

MAX_SHARED = 0.1
_SHOWN = 3


class Shared(NamedTuple):
    """A document to forget, and one to keep that says the same."""

    forget: Document
    retain: Document


def check_apart(
    forget: Sequence[Document],
    retain: Sequence[Document],
    max_share: float = MAX_SHARED,
    *,
    names: tuple[str, str] = ("forget", "retain"),
) -> list[Shared]:
    """The documents of ``retain`` that are in ``forget`` too, whatever their case, spaces and lines; warned of.

    A model cannot forget and keep the same: what such rows say is neither.

    Raises:
        ValueError: they are more than ``max_share`` of either part; with 0 a single one is too many.
    """
    known = {_content(document): document for document in forget}
    shared = [Shared(known[content], each) for each in retain if (content := _content(each)) in known]
    if not shared:
        return []
    shown = "; ".join(f"{pair.forget.id} = {pair.retain.id}" for pair in shared[:_SHOWN])
    more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
    what = f"{len(shared)} of {len(retain)} documents of {names[1]} are in {names[0]} too ({shown}{more})"
    share = max(len(shared) / len(retain), len({pair.forget.id for pair in shared}) / len(forget))
    if share > max_share:
        most = f"more than {max_share:.0%} of a part" if max_share > 0 else "and none may be"
        raise ValueError(f"{names[1]}: {what}, {most}; take them out of one of the two")
    warnings.warn(f"{what}; a model cannot forget and keep the same", stacklevel=2)
    return shared


def hold_out(documents: Sequence[Document], share: float = 0.1, seed: int = 0) -> tuple[list[Document], list[Document]]:
    """Documents to train on, and some that are kept for measuring: ``share`` of them, at least one, drawn by ``seed``.

    Both parts stay in order. ``share`` 0 holds out nothing.

    Raises:
        ValueError: a share that is not in 0 to below 1, or one document alone, of which nothing can be held out.
    """
    if not 0 <= share < 1:
        raise ValueError(f"hold_out: expected a share from 0 to below 1, got {share}")
    count = math.ceil(share * len(documents))
    if count and count >= len(documents):
        raise ValueError(
            f"hold_out: expected at least two documents to hold one out for measuring, got {len(documents)}; add some, "
            "or hold out nothing (--hold-out 0)"
        )
    held = {*random.Random(seed).sample(range(len(documents)), count)}
    rest = [document for index, document in enumerate(documents) if index not in held]
    return rest, [documents[index] for index in sorted(held)]


def _content(document: Document) -> tuple[str, ...]:
    return tuple(" ".join(text.casefold().split()) for text in document.texts)
