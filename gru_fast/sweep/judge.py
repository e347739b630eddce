"""By which scores of a benchmark the runs of a sweep are judged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Judge:
    """What is kept, and what is removed, as the evaluation's columns name them.

    Args:
        benchmark: whose evaluation it is.
        utility: of which the best run must keep a share; higher is better.
        quality: which is best at the best run.
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


TOFU = Judge()
JUDGES = {judge.benchmark: judge for judge in (TOFU, Judge("own", "Prob retain", "ES forget", lower=True))}
