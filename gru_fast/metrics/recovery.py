"""What share of the way back an attack got: from the unlearned model's score to the original's."""

from __future__ import annotations

import math

LEAST_WAY = 0.01  # below it, of a score between 0 and 1, there is hardly a way to go back


def share_back(before: float | None, after: float | None, original: float | None) -> float | None:
    """(after - before) / (original - before): 0 nothing came back, 1 all; below 0 the attack removed more.

    It can be above 1: an attack may find more than the original model says by itself.

    Args:
        before: the score of the unlearned model, after: of the same under attack.
        original: the score of the model before unlearning.

    Returns:
        None where a score is not known, or the two models are nearer than 0.01, or than 1% of the larger score: a share
        of hardly any way says nothing.

    >>> share_back(0.2, 0.5, 0.8)
    0.5
    """
    if before is None or after is None or original is None or not all(map(math.isfinite, (before, after, original))):
        return None
    way = original - before
    if abs(way) < LEAST_WAY * max(1.0, abs(before), abs(original)):
        return None
    return (after - before) / way
