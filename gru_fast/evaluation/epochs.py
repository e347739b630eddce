"""A benchmark's evaluation while a model is trained: before it and after epochs, and the best model is kept.

epochs.json         the rule, and the scores at each step, in the run's folder
epochs/STEP/        the evaluation at a step, as `gru-fast eval` leaves it
best/               in the end, the model with the best quality of those that keep enough
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gru_fast.evaluation.judge import Judge
from gru_fast.evaluation.points import FILE, Along, Point, read
from gru_fast.evaluation.scoring import DivergedError
from gru_fast.runs.files import write_json
from gru_fast.runs.processes import on_first

FOLDER, BEST = "epochs", "best"
_MODEL = "model"  # in the folder of a step: the best so far
_CLOSE = 1e-6  # of an epoch, which is a sum of fractions

# A model, its tokenizer and a folder -> scores by heading; every process calls it.
Evaluate = Callable[[Any, Any, Path], Mapping[str, float | None]]


class EpochEvaluations(TrainerCallback):
    """Evaluates the model before training, after every so many epochs, and at the end.

    A resumed run takes up the scores up to its checkpoint, and the best model until then. Greedy generation and losses
    draw nothing at random: what is trained is the same with and without. A model that has diverged has no scores, and
    the training goes on.

    Args:
        evaluate: see :data:`Evaluate`.
        judge: which scores count.
        folder: of the run.
        every: epochs between two evaluations.
        share: of the utility before training that the best model must keep, 0 to 1.
        log: takes the scores, ``eval_`` and their names, each time.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        judge: Judge,
        folder: Path,
        *,
        every: int,
        share: float,
        log: Callable[[dict[str, float]], Any] = lambda scores: None,
    ) -> None:
        self.along = Along(judge, share)
        self._evaluate, self._folder, self._every, self._log = evaluate, folder, every, log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first evaluation; after a stop, what there is up to the checkpoint."""
        found = on_first(lambda: self._taken_up(state.global_step))
        self.along = replace(self.along, points=found)
        if not found:
            self._look(state, kwargs["model"], kwargs["processing_class"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation at the end of an epoch, before a checkpoint is written there."""
        epoch = round(state.epoch)
        is_due = abs(state.epoch - epoch) < _CLOSE and epoch % self._every == 0
        if is_due or state.global_step >= state.max_steps:
            self._look(state, kwargs["model"], kwargs["processing_class"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on no run goes on from before: models that were the best are not needed any more."""
        on_first(self._drop_others)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The best model gets its place."""
        on_first(self._place)

    def _look(self, state: Any, model: Any, tokenizer: Any) -> None:
        folder = self._folder / FOLDER / str(state.global_step)
        try:
            scores = self._evaluate(model, tokenizer, folder)
        except DivergedError:  # in every process
            scores = {}
        judge = self.along.judge
        quality, utility = scores.get(judge.quality), scores.get(judge.utility)
        point = Point(state.global_step, float(state.epoch or 0), quality, utility)
        self.along = replace(self.along, points=(*self.along.points, point))
        if self.along.best == point:
            on_first(lambda: _save(model, tokenizer, folder / _MODEL))
        on_first(lambda: write_json(self._folder / FILE, self.along.to_json()))
        found = {judge.short: quality, judge.utility: utility}
        logged = {f"eval_{name}": value for name, value in found.items() if value is not None}
        if logged:
            self._log(logged)

    # ---- files, in the first process ---------------------------------------------------------------------------------

    def _taken_up(self, step: int) -> tuple[Point, ...]:
        """The scores of an earlier start up to this step; what is there of later ones is removed."""
        before = read(self._folder) if step else None
        along = replace(
            self.along, points=tuple(point for point in before.points if point.step <= step) if before else ()
        )
        placed = self._folder / BEST
        if placed.is_dir() and before and before.best and before.best.step <= step:  # it had come to its end
            shutil.rmtree(target := self._of(before.best), ignore_errors=True)
            placed.replace(target)
        shutil.rmtree(placed, ignore_errors=True)
        for folder in (self._folder / FOLDER).glob("[0-9]*"):
            if not step or int(folder.name) > step:
                shutil.rmtree(folder)
        if along.points:
            write_json(self._folder / FILE, along.to_json())
        else:
            (self._folder / FILE).unlink(missing_ok=True)
        return along.points

    def _drop_others(self) -> None:
        best = self.along.best
        for folder in (self._folder / FOLDER).glob(f"*/{_MODEL}"):
            if best is None or folder != self._of(best):
                shutil.rmtree(folder)

    def _place(self) -> None:
        best = self.along.best
        if best is None:
            return
        if not self._of(best).is_dir():  # it was dropped by an end that came, and is now another
            warnings.warn(f"{self._of(best)}: the best model is not there any more; train anew for it", stacklevel=2)
            return
        self._drop_others()
        shutil.rmtree(self._folder / BEST, ignore_errors=True)
        self._of(best).replace(self._folder / BEST)

    def _of(self, point: Point) -> Path:
        """Where the model of a point is, if it is or was the best."""
        return self._folder / FOLDER / str(point.step) / _MODEL


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)
