"""Looks at a model while it forgets: it ends when the documents are forgotten, or when too little would be kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from gru_fast.evaluation.asking import Scorer
from gru_fast.forget.exam import Look, Standard, Texts, look
from gru_fast.forget.level import Judgement
from gru_fast.forget.measures import MEASURES, of_set
from gru_fast.runs.files import read_lines
from gru_fast.unlearn.task_vector import load_tensors, save_tensors

PROGRESS = "progress.jsonl"  # a look a line
BEST = "work/best.safetensors"  # the best model up to the last checkpoint, or to the end; its point is in the metadata
REMOVED, KEEP, STEPS = "removed", "keep", "steps"  # why it ended


@dataclass(frozen=True)
class Point:
    """The model at a step, or at a mixture with the original.

    Args:
        step: of the training; ``alpha``: its share in a mixture, 1 where it is not mixed.
        forget: the three measures, means over documents.
        known: documents that are still known.
        removed: whether it counts as removed.
        kept: the smallest share of a kept set's probability per token.
        perplexities: of the kept sets.
    """

    step: int
    forget: Mapping[str, float]
    known: int
    removed: bool
    kept: float
    perplexities: Mapping[str, float]
    alpha: float = 1.0

    @classmethod
    def of(cls, step: int, found: Look, standard: Standard, judgement: Judgement, alpha: float = 1.0) -> Point:
        """A look, held against how the model was before."""
        mean = of_set("forget", found.forget)
        return cls(
            step,
            {measure: mean[measure] for measure in MEASURES},
            len(judgement.known),
            judgement.removed,
            standard.kept(found.perplexities),
            dict(found.perplexities),
            alpha,
        )

    @property
    def strength(self) -> tuple[bool, int, float]:
        """By which removals are compared: the larger, the more is removed."""
        return self.removed, -self.known, -self.forget["exact_memorization"] - self.forget["probability"]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self)}

    def __str__(self) -> str:
        shown = f"probability {self.forget['probability']:.3g}, exact {self.forget['exact_memorization']:.2f}"
        known = "removed" if self.removed else f"{self.known} known" if self.known else "known together"
        return f"{shown}, {known}; kept {self.kept:.1%}"


class Watch(TrainerCallback):
    """Looks at the model every ``eval_steps`` steps, and ends the training.

    Every process looks at the whole, so that all come to the same end without a word; the first one writes.

    Args:
        scorer: of the model in training.
        quick: what is looked at; ``whole``: all of it, looked at before it is said that the documents are forgotten.
        standard: how the model was before.
        keep: the least share to be kept; less of it in ``patience`` looks in a row ends the training.
        folder: of the run.
        advance: called with each point.
    """

    def __init__(
        self,
        scorer: Scorer,
        quick: Texts,
        whole: Texts,
        standard: Standard,
        *,
        keep: float,
        patience: int,
        eval_steps: int,
        folder: Path,
        advance: Callable[[Point], Any] = lambda point: None,
    ) -> None:
        self.scorer = scorer
        self.quick = quick
        self.whole = whole
        self.standard = standard
        self.keep = keep
        self.patience = patience
        self.eval_steps = eval_steps
        self.folder = folder
        self.advance = advance
        self.points: list[Point] = []
        self.reason = STEPS
        self.best: Point | None = None
        self.best_weights: dict[str, Tensor] = {}
        self._saved: Point | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a stop: what was seen up to the checkpoint is taken up again, and the best model until then."""
        from gru_fast.runs.processes import on_first

        self.points = [point for point in read_points(self.folder) if point.step <= state.global_step]
        self._write()
        file = self.folder / BEST
        if not on_first(file.is_file):
            return
        weights, about = load_tensors(file)
        if about["step"] <= state.global_step:
            self.best, self.best_weights = Point(**about), weights
        else:  # of steps that are taken again
            on_first(file.unlink)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a checkpoint: the best model until then is kept, for a run that goes on from there.

        (One that is killed between the two goes on with the best of the checkpoint before.)
        """
        from gru_fast.runs.processes import here

        if here()[0] == 0 and self.best is not None and self.best != self._saved:
            save_tensors(self.folder / BEST, self.best_weights or weights_of(self.scorer.model), self.best.to_json())
            self._saved = self.best

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A look, if it is time for one."""
        if state.global_step % self.eval_steps and state.global_step < state.max_steps:
            return control
        point = self.look(state.global_step)
        self.points.append(point)
        self._write()
        self.advance(point)
        latest = self.points[-self.patience :]
        if len(latest) == self.patience and all(each.kept < self.keep for each in latest):
            self.reason, control.should_training_stop = KEEP, True
        elif point.removed and point.kept >= self.keep:
            self.reason, control.should_training_stop = REMOVED, True
        if point.kept >= self.keep and (self.best is None or point.strength >= self.best.strength):
            self.best = point
            self.best_weights = {} if control.should_training_stop else weights_of(self.scorer.model)
        return control

    def look(self, step: int, alpha: float = 1.0, *, whole: bool = False) -> Point:
        """The model as it is now."""
        found = look(self.scorer, self.whole if whole else self.quick)
        judgement = self.standard.judge(found)
        if judgement.removed and not whole and len(self.quick.forget) < len(self.whole.forget):
            found = Look(look(self.scorer, Texts(self.whole.forget, {}, [], "")).forget, found.perplexities)
            judgement = self.standard.judge(found)
        return Point.of(step, found, self.standard, judgement, alpha)

    def _write(self) -> None:
        from gru_fast.runs.files import write_text
        from gru_fast.runs.processes import here

        if here()[0] == 0:
            write_text(self.folder / PROGRESS, "".join(json.dumps(point.to_json()) + "\n" for point in self.points))


def read_points(folder: Path) -> list[Point]:
    """What has been seen of a run so far."""
    file = folder / PROGRESS
    return [Point(**json.loads(line)) for line in read_lines(file) if line] if file.is_file() else []


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what is trained, in the host's memory."""
    return {name: param.detach().cpu().clone() for name, param in model.named_parameters() if param.requires_grad}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts back what :func:`weights_of` took."""
    params = dict(model.named_parameters())
    for name, value in weights.items():
        params[name].copy_(value)
