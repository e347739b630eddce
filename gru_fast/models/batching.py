"""Which rows can share a batch: tried out on each model, since not every one gives a row what it gives the row alone.

A model may not see the mask of the padding (recurrent ones), count positions from the padding on (absolute positions),
mix up the states of rows (an error in its cache), or choose its rotary frequencies by the longest row of the batch
(LongRoPE). No configuration says so, and the model itself is asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from enum import IntEnum
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gru_fast.runs.messages import in_short

# Rows, run as one batch -> the logits of each at some of its own positions, (positions, V): always the same of a row.
Run = Callable[[list[Sequence[int]]], list[Tensor]]


class Together(IntEnum):
    """Rows that may share a batch, each getting what it gets alone; the wider, the faster."""

    NONE = 0
    EQUAL_LENGTH = 1
    ANY = 2


_IN_WORDS = {
    Together.NONE: "rows are run one at a time",
    Together.EQUAL_LENGTH: "only rows of equal length are run together",
}
# Some families cannot run a batch of such rows, which shows deep within them.
ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError)
_LEAST_TOLERANCE = 2e-3  # of the probability: what TF32 makes of float32

# Model -> what was asked of it -> length of the longest row that it was tried with -> what was found.
_tried: WeakKeyDictionary[nn.Module, dict[str, dict[int, Together]]] = WeakKeyDictionary()


def together(
    model: nn.Module, what: str, rows: Sequence[Sequence[int]], run: Run, *, batch_size: int, dtype: torch.dtype
) -> Together:
    """The widest choice of rows that may share a batch; tried when rows of such a length first come, then remembered.

    The longest row and the last quarter of it, run as a padded pair, must give what each gives alone; if they do not,
    the longest and its reverse, which need no padding. "The same": on average over positions at most sqrt(eps) of the
    probability moves to other tokens, half the digits of ``dtype``, and 0.002 is always allowed. Rounding takes less,
    and a mask that is not seen more. What longer rows may share a batch, shorter ones may: most models are tried once,
    and what is found depends on the rows that are asked for, not on those before them.

    Args:
        model: in the state in which the rows will be run.
        what: is asked of the model, for the warning: rows that are "scored". Each is tried for itself.
        rows: tokens, at least one in each.
        batch_size: rows at a time; 1: nothing is tried.
        dtype: that the model computes in.

    Warns:
        UserWarning: once for a model and ``what``, where not all rows can share a batch, with the reason.
    """
    if batch_size == 1 or len(rows) < 2:
        return Together.ANY
    tried = _tried.setdefault(model, {}).setdefault(what, {})
    longest = max(rows, key=len)
    widest = min((found for length, found in tried.items() if length <= len(longest)), default=Together.ANY)
    narrowest = max((found for length, found in tried.items() if length >= len(longest)), default=Together.NONE)
    if narrowest >= widest:
        return widest
    found, why = _widest(longest, run, tolerance(dtype))
    if found < min(tried.values(), default=Together.ANY):
        warnings.warn(
            f"{type(model).__name__}: rows of up to {len(longest)} tokens that are {what} in one batch do not get what "
            f"each gets alone ({why}); so {_IN_WORDS[found]}, which takes longer",
            stacklevel=3,
        )
    tried[len(longest)] = found
    return found


def _widest(longest: Sequence[int], run: Run, allowed: float) -> tuple[Together, str]:
    """See :func:`together`; and why it is no wider."""
    others = {Together.ANY: longest[-max(1, len(longest) // 4) :], Together.EQUAL_LENGTH: longest[::-1]}
    alone, why = run([longest])[0], ""
    for choice, other in others.items():
        expected = [alone, run([other])[0]]
        try:
            most = max(map(moved, run([longest, other]), expected))
        except torch.OutOfMemoryError:
            raise
        except ERRORS as error:
            why = in_short(error)
            continue
        if most <= allowed:
            return choice, why
        why = f"{most:.1%} of the probability moves to other tokens"
    return Together.NONE, why


def tolerance(dtype: torch.dtype) -> float:
    """How much of the probability may move between two ways to run a model: half the digits of ``dtype``."""
    return max(torch.finfo(dtype).eps ** 0.5, _LEAST_TOLERANCE)


def moved(logits: Tensor, expected: Tensor) -> float:
    """Mean over positions of the total variation distance of two distributions, (positions, V); 1 for NaN.

    0 where NaN was expected: of a model that has diverged there is nothing to find out.
    """
    one, other = (values.double().softmax(dim=-1) for values in (logits, expected))
    if bool(other.isnan().any()):
        return 0.0
    distance = (one - other).abs().sum(dim=-1).mean() / 2
    return 1.0 if bool(distance.isnan()) else float(distance)
