"""A learning rate, by trying one step.

AdamW's first step is lr * g / (|g| + eps): each weight moves by the learning rate, whatever the size of the gradient. So
the step of every learning rate is known from one gradient, that of the first rows, rectified by GRU where the training
is. The rates of a grid are tried on the weights, one after another, until that one step would cost more than a share of
what may be lost at all::

    kept(lr) >= 1 - SHARE * (1 - keep)

The largest that does not is taken. So it follows the model's size and dtype, the documents and --keep, and costs one
step and a few looks at the texts to keep. docs/forget.md has what it found beside what training found best.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.ema import RetainEMA
from gru_fast.core.rectify import rectify_
from gru_fast.data.pairs import PairCollator
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget.exam import Standard, Texts, look
from gru_fast.forget.options import ForgetConfig
from gru_fast.forget.request import Request
from gru_fast.forget.watch import put_weights, weights_of
from gru_fast.models.forward import logits_of, to_device
from gru_fast.models.scores import label_scores

SHARE = 0.1  # of what may be lost, that the first step may cost
_GRID = tuple(10 ** (-7 + exponent / 4) for exponent in range(25))  # 1e-7 to 1e-1, four a decade
_START = 4  # 1e-6
_EPS = 1e-8  # AdamW's


@dataclass(frozen=True)
class Found:
    """What was found.

    Args:
        learning_rate: that is taken.
        why: in words.
        tried: learning rate, share kept after one step with it.
    """

    learning_rate: float
    why: str
    tried: list[tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def search(scorer: Scorer, request: Request, texts: Texts, config: ForgetConfig, keep: float) -> Found:
    """The learning rate for a request; the model is then what it was.

    Args:
        scorer: of the model.
        texts: by which it is seen what is kept.
        keep: the least share that is to be kept.
    """
    model = scorer.model
    few = Texts(texts.forget[:1], texts.kept, [], texts.unseen_source)
    standard = Standard(_no_level(), look(scorer, few).perplexities)
    least = 1 - SHARE * (1 - keep)
    tried: list[tuple[float, float]] = []
    origin = weights_of(model)
    with _first_step(scorer, request, config) as step:
        try:
            for rate in _GRID[_START:]:
                put_weights(model, origin)
                step(rate)
                tried.append((rate, standard.kept(look(scorer, few).perplexities)))
                if tried[-1][1] < least:
                    break
        finally:
            put_weights(model, origin)
    fitting = [rate for rate, kept in tried if kept >= least]
    taken = fitting[-1] if fitting else tried[0][0]
    kept = dict(tried)[taken]
    return Found(taken, f"one step of which keeps {kept:.2%} (a tenth of what may be lost: {least:.2%})", tried)


def _no_level() -> Any:
    return None  # nothing is judged here


@contextmanager
def _first_step(scorer: Scorer, request: Request, config: ForgetConfig) -> Iterator[Any]:
    """Gives a function that makes the first step at a learning rate, from the weights as they are then."""
    model = scorer.model
    params = [param for param in model.parameters() if param.requires_grad]
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    dataset = request.dataset(rows, config.seed)
    items = [dataset[i] for i in range(rows)]
    size = config.per_device_train_batch_size
    batches = [items[i : i + size] for i in range(0, rows, size)]
    collate = PairCollator(scorer.pad_token_id)
    was_training = model.training
    model.eval()
    try:
        ema = RetainEMA(model.named_parameters()) if config.rectify else None
        for batch in map(collate, batches):
            if ema is not None:
                with ema.collect():
                    _loss(model, batch["retain"]).div(len(batches)).backward()
            (-_loss(model, batch["forget"])).div(len(batches)).backward()
        if ema is not None:
            rectify_(params, ema, 1.0)
        directions = [_direction(param) for param in params]
        del ema
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
    if param.grad is None:
        return None
    grad = param.grad
    return grad.div_(grad.abs().add_(_EPS))
