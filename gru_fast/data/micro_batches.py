"""A batch in pieces that are run one after another, their mean weighted so that it is the mean over the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gru_fast.data.sequences import IGNORE_INDEX

_Part = Mapping[str, Tensor]


def in_rows(part: _Part) -> Tensor:
    """(B,) float32: 1 for each row."""
    return torch.ones(part["input_ids"].shape[0], device=part["input_ids"].device)


def in_labels(part: _Part) -> Tensor:
    """(B,) float32: the scored label tokens of each row."""
    return (part["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1).float()


def in_attended(part: _Part) -> Tensor:
    """(B,) float32: the attended tokens of each row."""
    return part["attention_mask"].sum(dim=1).float()


def micro_batches(
    part: _Part, rows: int, weigh: Callable[[_Part], Tensor] = in_labels, *, trim: bool = True
) -> list[tuple[Tensor | float, _Part]]:
    """``part`` in pieces of at most ``rows`` rows, each with its share of the whole; the shares add up to 1.

    So ``sum(share * loss(piece))`` is ``loss(part)`` for a loss that is a mean over what ``weigh`` counts. A part that
    is no larger is given back as it is, with share 1.

    Args:
        part: tensors of B rows.
        rows: at least 1.
        weigh: part -> (B,), what the mean is over: :func:`in_rows`, :func:`in_labels`, :func:`in_attended`.
        trim: leave out columns at the end that no row of a piece attends to. (Not for a mean over padding too.)

    Returns:
        Pairs of a share, a scalar tensor (1.0 where there is one piece), and a piece.

    >>> ids, mask = torch.tensor([[5, 6, 7], [5, 6, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    >>> part = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    >>> [(round(float(share), 3), piece["input_ids"].tolist()) for share, piece in micro_batches(part, 1)]
    [(0.667, [[5, 6, 7]]), (0.333, [[5, 6]])]
    """
    count = part["input_ids"].shape[0]
    if count <= rows:
        return [(1.0, part)]
    weights = weigh(part)
    total = weights.sum()
    # A row's last attended column. One look at the mask for all pieces: the only host sync here.
    ends = _ends(part["attention_mask"]) if trim else [part["input_ids"].shape[1]] * count
    places = [slice(start, start + rows) for start in range(0, count, rows)]
    return [(weights[place].sum() / total, _piece(part, place, max(ends[place]))) for place in places]


def _ends(attention_mask: Tensor) -> list[int]:
    columns = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    ends: list[int] = (columns * (attention_mask != 0)).amax(dim=1).tolist()
    return ends


def _piece(part: _Part, rows: slice, width: int) -> dict[str, Tensor]:
    return {name: values[rows, :width] if values.ndim > 1 else values[rows] for name, values in part.items()}
