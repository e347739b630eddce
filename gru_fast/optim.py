"""AdamW whose steps do not raise the retain loss to first order: see :mod:`gru_fast.core.optim`."""

from gru_fast.core.optim import AdamW

__all__ = ["AdamW"]
