"""The step in plain PyTorch, to read and to compare with: see :mod:`gru_fast.core.backends.reference`."""

from gru_fast.core.backends.reference import (
    ReferencePasses,
    rectified_gradient,
    round_stochastically,
    rounding_bits,
)

__all__ = ["ReferencePasses", "rectified_gradient", "round_stochastically", "rounding_bits"]
