"""A learning rate, by trying one step; and how long NPO pushes, by how far there is to go.

AdamW's first step is lr * g / (|g| + eps): each weight moves by the learning rate, whatever the size of the gradient.
So the step of every learning rate is known from one gradient, that of the first rows, rectified by GRU where the
training is. The rates of a grid are tried on the weights, one after another. The largest is taken whose single step::

    kept(lr) >= 1 - COST * (1 - keep)                               costs little of what may be lost
    log p_0 - log p(lr) <= (log p_0 - log p_level) / LEAST_STEPS    does not go far at once

So it follows the model's size and dtype, the documents and --keep, and costs one step and a few looks.

NPO is of sums over the tokens of a sequence. It fades when a sequence has lost some 1 / beta of its log-probability.
What is to be lost, from now to the level of text never seen, grows with the length; beta is 2.5 over that, at most
NPO's own default, with which a long piece would stay known: of 256 tokens each would have lost 0.04 nats. The retain
loss is a mean over tokens; its weight is the mean length of a piece, so that a text to keep counts as much as one to
forget.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.ema import RetainEMA
from gru_fast.core.rectify import rectify_
from gru_fast.data.pairs import PairCollator
from gru_fast.data.sequences import num_labels
from gru_fast.evaluation.asking import Scorer
from gru_fast.evaluation.scoring import DivergedError
from gru_fast.forget.exam import Look, Standard, Texts, look
from gru_fast.forget.level import Level
from gru_fast.forget.measures import Known, of_set
from gru_fast.forget.options import ForgetConfig
from gru_fast.forget.request import Request
from gru_fast.forget.watch import put_weights, weights_of
from gru_fast.models.forward import logits_of, to_device
from gru_fast.models.scores import label_scores

COST = 0.5  # of what may be lost, that the first step may cost: the retain loss brings much of it back
LEAST_STEPS = 8  # of the size of the first, to the level
_GRID = tuple(10 ** (-6 + exponent / 4) for exponent in range(21))  # 1e-6 to 1e-1, four a decade
_EPS = 1e-8  # AdamW's
_MOST_BETA = 0.1  # NPO's default
# beta times what is to be lost: at the level 2 * sigmoid(-2.5) = 15% of the push is left. With 5, which leaves 1.3%, a
# real model came to the level's probability and no further, with too many tokens right.
_FADES = 2.5


@dataclass(frozen=True)
class Found:
    """What was found.

    Args:
        learning_rate: that is taken.
        why: in words.
        tried: learning rate, share kept, and share of the way to the level, after one step with it.
    """

    learning_rate: float
    why: str
    tried: list[tuple[float, float, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def search(scorer: Scorer, request: Request, texts: Texts, level: Level, config: ForgetConfig, keep: float) -> Found:
    """The learning rate for a request; the model is then what it was.

    Args:
        scorer: of the model.
        texts: that are looked at.
        level: of text never seen.
        keep: the least share that is to be kept.
    """
    before = look(scorer, texts)
    standard = Standard(level, before.perplexities)
    least = 1 - COST * (1 - keep)
    tried: list[tuple[float, float, float]] = []
    origin = weights_of(scorer.model)
    with _first_step(scorer, request, config) as step:
        try:
            for rate in _GRID:
                put_weights(scorer.model, origin)
                step(rate)
                tried.append((rate, *_tried(scorer, texts, before, standard, level)))
                if not _fits(tried[-1], least):
                    break
        finally:
            put_weights(scorer.model, origin)
    taken = ([each for each in tried if _fits(each, least)] or tried[:1])[-1]
    why = f"one step of which keeps {taken[1]:.2%} and goes {taken[2]:.1%} of the way"
    return Found(taken[0], why, tried)


def npo(known: Sequence[Known], rows: Request, level: Level) -> dict[str, float]:
    """NPO's ``beta`` and the ``retain_weight`` beside it, for a request.

    Args:
        known: the documents as they are known before.
        rows: of the request, for the lengths of its pieces.
        level: of text never seen.
    """
    tokens = statistics.fmean(num_labels(piece.row) for piece in rows.forget)
    to_lose = tokens * (math.log(of_set("forget", known).probability) - math.log(level.typical("probability")))
    return {"beta": _MOST_BETA if to_lose <= 0 else min(_MOST_BETA, _FADES / to_lose), "retain_weight": tokens}


def _tried(scorer: Scorer, texts: Texts, before: Look, standard: Standard, level: Level) -> tuple[float, float]:
    """Share kept, and share of the way; of a model that gives NaN nothing is kept."""
    try:
        now = look(scorer, texts)
    except DivergedError:
        return 0.0, 1.0
    return standard.kept(now.perplexities), _way(before, now, level)


def _fits(tried: tuple[float, float, float], least: float) -> bool:
    _, kept, way = tried
    return kept >= least and way <= 1 / LEAST_STEPS  # not where they are NaN


def _way(before: Look, now: Look, level: Level) -> float:
    """Share of the way from what the documents' log-probability was to that of text never seen; 0 where it is there."""
    ours, theirs = (math.log(of_set("forget", each.forget).probability) for each in (before, now))
    to_go = ours - math.log(level.typical("probability"))
    return (ours - theirs) / to_go if to_go > 0 else 0.0


@contextmanager
def _first_step(scorer: Scorer, request: Request, config: ForgetConfig) -> Iterator[Any]:
    """Gives a function that makes the first step at a learning rate, from the weights as they are then."""
    model = scorer.model
    params = [param for param in model.parameters() if param.requires_grad]
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    dataset = replace(request, again=()).dataset(rows, config.seed)  # those of earlier requests hardly pull
    size = config.per_device_train_batch_size
    batches = [[dataset[i] for i in range(start, start + size)] for start in range(0, rows, size)]
    was_training = model.training
    model.eval()
    try:
        ema = RetainEMA(model.named_parameters()) if config.rectify else None
        for batch in map(PairCollator(scorer.pad_token_id), batches):
            if ema is not None:
                with ema.collect():
                    _loss(model, batch["retain"]).div(len(batches)).backward()
            (-_loss(model, batch["forget"])).div(len(batches)).backward()
            if "retain" in config.make_method().parts:
                _loss(model, batch["retain"]).div(len(batches)).backward()
        if ema is not None:
            rectify_(params, ema, 1.0)
        del ema
        directions = [_direction(param) for param in params]
    finally:
        for param in params:
            param.grad = None
        model.train(was_training)

    @torch.no_grad()
    def step(rate: float) -> None:
        for param, direction in zip(params, directions, strict=True):
            if direction is not None:
                param.sub_(direction, alpha=rate)

    yield step


def _loss(model: Any, part: Any) -> Tensor:
    batch = to_device(part, model)
    return label_scores(logits_of(model, batch), batch["labels"]).mean_nll


def _direction(param: Tensor) -> Tensor | None:
    grad = param.grad
    return None if grad is None else grad.div_(grad.abs().add_(_EPS))
