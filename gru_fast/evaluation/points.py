"""What a run with evaluations along it (epochs.py) says of them, for those who read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gru_fast.evaluation.judge import Judge
from gru_fast.runs.files import read_json

FILE = "epochs.json"


@dataclass(frozen=True)
class Point:
    """The model at a step: what it scores by the judge's quality and utility; None where that cannot be said."""

    step: int
    epoch: float
    quality: float | None
    utility: float | None


@dataclass(frozen=True)
class Along:
    """The scores along a run.

    Args:
        judge: which scores they are.
        share: of the utility before training that the best model must keep, 0 to 1.
        points: in the order of their steps, the first before training.
    """

    judge: Judge
    share: float
    points: tuple[Point, ...] = ()

    @property
    def least(self) -> float | None:
        """The utility to be kept; None where that before training is not known."""
        start = next((point.utility for point in self.points if point.step == 0), None)
        return None if start is None else self.share * start

    @property
    def best(self) -> Point | None:
        """Of the points behind the start, that of the best quality among those that keep enough, if there is one."""
        later = [point for point in self.points if point.step > 0]
        place = self.judge.best_of([(point.quality, point.utility) for point in later], self.least)
        return None if place is None else later[place]

    def __str__(self) -> str:
        best, judge = self.best, self.judge
        if best is None:
            bound = "that of before, which is not known" if self.least is None else f"{self.least:.4f}"
            return f"no model with {judge.utility} >= {bound}"
        return f"{best.epoch:g}: {judge.short} {best.quality:.2f}, {judge.utility} {best.utility:.4f}"

    def to_json(self) -> dict[str, Any]:
        """As :func:`read` takes it back; with the step of the best, for people."""
        return {**asdict(self), "best": None if self.best is None else self.best.step}


def read(folder: Path) -> Along | None:
    """The scores along the run in a folder; None of a run without."""
    file = folder / FILE
    if not file.is_file():
        return None
    content = read_json(file)
    return Along(Judge(**content["judge"]), content["share"], tuple(Point(**point) for point in content["points"]))
