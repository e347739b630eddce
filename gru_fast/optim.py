"""AdamW whose steps do not raise the retain loss to first order: see :mod:`gru_fast.core.optim`."""

from gru_fast.core.optim import AdamW
from gru_fast.core.update_monitor import measure_update

__all__ = ["AdamW", "measure_update"]
