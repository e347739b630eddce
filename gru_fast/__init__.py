"""Gradient Rectified Unlearning (GRU) for PyTorch: take knowledge out of a model without breaking the rest of it.

In a training loop, with ``retain_loss`` on data to keep and ``unlearn_loss`` on data to forget::

    ema = gru_fast.RetainEMA(model.named_parameters())
    for ...:
        with ema.collect():
            retain_loss.backward()
        unlearn_loss.backward()
        step = gru_fast.rectify_(model.parameters(), ema, gamma=0.8, tau=1.0)
        optimizer.step()
        optimizer.zero_grad()

Afterwards the gradient has no component that would raise the retain loss to first order. ``gru_fast.measure`` looks on
and changes nothing, ``gru_fast.reference`` is the same in plain PyTorch, ``gru_fast.rules`` are others
than GRU's, ``gru_fast.vectors`` is task vectors,
``gru_fast.unlearn`` has the objectives and trainers in the manner of ``transformers``, ``gru_fast.build_info()`` says
what runs where.
"""

from gru_fast import moved, optim, reference, rules, vectors
from gru_fast.core import backends as ops
from gru_fast.core.backends import library
from gru_fast.core.ema import RetainEMA
from gru_fast.core.info import build_info
from gru_fast.core.load import __version__
from gru_fast.core.rectify import measure, rectify_
from gru_fast.core.result import Rectification
from gru_fast.core.retain_gradient import RetainGradient

moved.install()

__all__ = [
    "Rectification", "RetainEMA", "RetainGradient", "__version__", "build_info", "library", "measure", "ops",
    "optim", "rectify_", "reference", "rules", "vectors",
]  # fmt: skip
