"""By which scores of a benchmark models are judged, runs of a sweep or one along its run, and which is the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Judge:
    """What is kept, and what is removed, as the evaluation's columns name them.

    Args:
        benchmark: whose evaluation it is.
        utility: of which the best model must keep a share; higher is better.
        quality: which is best at the best model.
        lower: whether a lower quality is better.
    """

    benchmark: str = "tofu"
    utility: str = "MU"
    quality: str = "FQ (ln p)"
    lower: bool = False

    @property
    def short(self) -> str:
        """The quality without what is in brackets."""
        return self.quality.partition(" (")[0]

    @property
    def best(self) -> str:
        """How good a quality is the best."""
        return "lowest" if self.lower else "highest"

    def better(self, quality: float) -> float:
        """A quality turned so that higher is better."""
        return -quality if self.lower else quality

    def best_of(self, scores: Sequence[tuple[float | None, float | None]], least: float | None) -> int | None:
        """The place of the best quality among (quality, utility) that keep ``least``; of equals, the highest utility's.

        None: there is none, or it is not known what is to be kept.

        >>> TOFU.best_of([(-9.0, 0.6), (-1.0, 0.4), (-5.0, 0.55), (None, 0.6)], 0.5)
        2
        """
        fit = [
            (self.better(quality), utility, -place)
            for place, (quality, utility) in enumerate(scores)
            if quality is not None and utility is not None and least is not None and utility >= least
        ]
        return -max(fit)[2] if fit else None


TOFU = Judge()
JUDGES = {judge.benchmark: judge for judge in (TOFU, Judge("own", "Prob retain", "ES forget", lower=True))}
